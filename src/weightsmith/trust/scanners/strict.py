"""JSON as strict readers take it: what two readers would understand differently is told apart from what none can read."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...errors import LimitExceeded
from ...found import Finding, Severity
from ..items import WHOLE, Folder, Item
from ..listing import shown
from ..rules import Rule
from .facts import INDEX

MOST_PARTS = 6_000_000  # brackets and commas; each value takes about a hundred bytes of memory
_SAID = 160  # characters of a parser's message that are passed on

INVALID = Rule(
    "json-invalid", "broken", "A settings file that is not valid JSON",
    "Loaders stop at it, or skip it and go on with other settings than the publisher meant; what is in it was not checked.",
    "Fetch the file again; if it is the same at the publisher's, tell them.",
    ("https://www.rfc-editor.org/rfc/rfc8259",),
)  # fmt: skip
TWICE = Rule(
    "json-duplicate-key", "suspicious", "One key stands twice in a JSON object, with two values",
    "Readers disagree about which one counts: what a scanner or a person sees need not be what the loader takes.",
    "Compare with the publisher's file; no exporter writes a key twice.",
    ("https://www.rfc-editor.org/rfc/rfc8259#section-4",),
)  # fmt: skip
NOT_FINITE = Rule(
    "json-not-finite", "note", "NaN or Infinity in a JSON file",
    "They are not JSON. Python reads them, other readers refuse the file.",
    "Harmless where a loader in Python reads the file; look at the key when you did not expect it.",
)  # fmt: skip
TOO_LARGE = Rule(
    "json-too-large", "unknown", "A JSON file larger than any model's",
    f"At most {WHOLE >> 20} MiB and {MOST_PARTS} values are read. A larger file takes gigabytes of memory to parse, in a "
    "loader too.",
    "Find out what the file is for; a model does not need it.",
)  # fmt: skip
TOO_DEEP = Rule(
    "json-too-deep", "broken", "JSON nested beyond what readers follow",
    "Readers with a limit refuse it, those without one run out of stack.",
    "Do not use the file; it was made to break a reader.",
    ("https://cwe.mitre.org/data/definitions/674.html",),
)  # fmt: skip
SHAPE = Rule(
    "json-shape", "broken", "A settings file without the shape that its readers expect",
    "A loader stops at it, or takes defaults in place of what the file should say.",
    "Fetch the file again from its publisher.",
)  # fmt: skip
RULES = (INVALID, TWICE, NOT_FINITE, TOO_LARGE, TOO_DEEP, SHAPE)

_OBJECTS = frozenset({
    "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "adapter_config.json", "preprocessor_config.json", "processor_config.json",
    "params.json", "model_index.json", "chat_template.json", "quantize_config.json", "quant_config.json",
    "weightsmith.json", "sentence_bert_config.json", "config_sentence_transformers.json", "trainer_state.json",
    "tekken.json", "video_preprocessor_config.json", "hf_quant_config.json",
})  # fmt: skip
_LISTS = frozenset({"modules.json"})
_STRICT = frozenset({"tokenizer.json"})  # read by a parser that takes no NaN
_DATA = re.compile(r"(?i)example|sample|result|eval|metric|score|bench|history|\blog|dataset|corpus|unigram|card|answers|parsing")
_SETTINGS = re.compile(r"(?i)config|setting|param|args|index")  # whatever else the name says
_HALF = re.compile(rb"\\u[dD]([89a-fA-F])[0-9a-fA-F]{2}")


@dataclass
class _Notes:
    """What the parser came across."""

    twice: list[tuple[str, Any, Any]] = field(default_factory=list)
    constants: set[str] = field(default_factory=set)

    def pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object; a key that stands in it again is noted."""
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: dict[str, Any] = {}
            for key, value in pairs:
                if key in seen and len(self.twice) < 20:
                    self.twice.append((key, seen[key], value))
                seen[key] = value
        return found

    def constant(self, name: str) -> float:
        """A number that is no JSON, noted."""
        self.constants.add(name)
        return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}[name]


def _half_pair(raw: bytes) -> bool:
    """Whether a JSON text escapes one half of a surrogate pair without the other."""
    high = -1  # where the last first half ended
    for match in _HALF.finditer(raw):
        begin = match.start()
        slashes = begin - len(raw[max(0, begin - 64) : begin].rstrip(b"\\")) - max(0, begin - 64)
        if slashes % 2:
            continue  # an escaped backslash, then letters
        second = match[1] in b"cdefCDEF"
        if second != (high == begin):
            return True
        high = -1 if second else match.end()
        if not second and not _HALF.match(raw, match.end()):
            return True
    return False


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would look at half a million new lists again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def check_json(item: Item, folder: Folder) -> Iterator[Finding]:
    """Findings about one file as JSON; its value is kept for the other scanners."""
    name = shown(item.name)
    try:
        raw = item.read()
    except LimitExceeded as error:
        yield TOO_LARGE.found(error.message, file=name)
        return
    if (parts := sum(raw.count(c) for c in (b"[", b"{", b","))) > MOST_PARTS:
        yield TOO_LARGE.found(f"about {parts} values", file=name)
        return
    notes = _Notes()
    try:
        text = raw.decode()
        with _uncollected():
            value = json.loads(text, object_pairs_hook=notes.pairs, parse_constant=notes.constant)
        if _half_pair(raw):
            raise ValueError("half of a surrogate pair, which is no character")
    except UnicodeDecodeError as error:
        yield INVALID.found(f"not UTF-8 (byte {error.start})", file=name, evidence=raw[max(0, error.start - 20) :][:60].hex(" "),
                            severity=_needed(item))  # fmt: skip
        return
    except RecursionError:
        yield TOO_DEEP.found("nested deeper than any reader of settings follows", file=name)
        return
    except ValueError as error:
        place = f"byte {len(text[: error.pos].encode())}" if isinstance(error, json.JSONDecodeError) else ""
        where = text[max(0, error.pos - 40) : error.pos + 40] if isinstance(error, json.JSONDecodeError) else ""
        yield INVALID.found(f"not valid JSON: {str(error)[:_SAID]}", file=name, place=place, evidence=where,
                            severity=_needed(item))  # fmt: skip
        return
    if item.outer is None:
        folder.keep_json(item.name, value)  # parsed once for all scanners
    yield from _noted(notes, item, name)
    yield from _shape(item, value, name)


def _needed(item: Item) -> Severity | None:
    """``note`` for what by its name is data, a result or no JSON at all, which no loader reads."""
    base = item.basename
    settings = is_named(base) or _SETTINGS.search(base)
    loose = base == "devcontainer.json" or "/.vscode/" in "/" + item.name  # editors allow comments there
    other = loose or not base.lower().endswith((".json", ".ipynb"))  # it only begins like JSON
    return "note" if (_DATA.search(base) or other) and not settings else None


def _noted(notes: _Notes, item: Item, name: str) -> Iterator[Finding]:
    for key, first, last in notes.twice:
        same = _text(first) == _text(last)
        yield TWICE.found(f"{key!r:.80} stands twice" + (", with the same value" if same else ""), file=name,
                          place=f"key {key!r:.80}", evidence=f"first {_text(first)[:150]}; then {_text(last)[:150]}",
                          severity="note" if same else None)  # fmt: skip
    if notes.constants:
        strict = item.basename in _STRICT
        yield NOT_FINITE.found(f"holds {', '.join(sorted(notes.constants))}", file=name,
                               severity="broken" if strict else None)  # fmt: skip


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _shape(item: Item, value: Any, name: str) -> Iterator[Finding]:
    base = item.basename
    wanted = dict if base in _OBJECTS or INDEX.search(base) is not None else list if base in _LISTS else None
    if wanted is not None and not isinstance(value, wanted):
        kind = "object" if wanted is dict else "list"
        yield SHAPE.found(f"should be a JSON {kind} and is {type(value).__name__}", file=name, evidence=_text(value)[:200])


def is_named(base: str) -> bool:
    """Whether loaders look for a file of this name, and take it for JSON or for a template."""
    return base in _OBJECTS | _LISTS or base == "chat_template.jinja" or INDEX.search(base) is not None


def unread_json(folder: Folder) -> Iterator[Finding]:
    """Files that loaders read as JSON, by their names, and whose content is something else."""
    for item in folder.items.values():
        known = item.basename in _OBJECTS | _LISTS or INDEX.search(item.basename) is not None
        if known and "json" not in item.kinds:
            yield INVALID.found(f"its name says JSON, its content is {', '.join(item.kinds) or 'unknown'}", file=shown(item.name),
                                evidence=item.head[:48].hex(" "))  # fmt: skip
