"""Chat templates: every carrier and every named one, read and tried.

Carriers: ``chat_template.jinja`` and its folders, ``chat_template.json``, ``tokenizer_config.json``, the processor's
configuration, any other configuration with a template in it, and the metadata of GGUF files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import jinja2

from ...errors import FormatError, LimitExceeded
from ...found import Finding
from ..items import Folder, Item, Scanner
from ..listing import shown
from ..rules import Rule
from . import template_forced, template_given, template_kept, template_named, template_placed
from . import template_rules as rules
from .remote_keys import Pairs, parsed
from .template_marks import OverBudget
from .template_probe import Behaviour, Seen
from .template_run import Program
from .template_text import Trace, code_traces, covert_part, hidden_characters, literals, text_traces, turned, visible

MOST = 16  # different templates of one model that are tried
LARGEST = 1 << 20  # bytes of a configuration that is searched for templates
MOST_VALUES = 200_000  # of one configuration
_VOCABULARY = ("tokenizer.json", "vocab.json", "added_tokens.json", "merges.txt", "trainer_state.json")
#: files that loaders take a template from
_CARRIERS = re.compile(r".*config(?:_\w+)?\.json|chat_template\.json|special_tokens_map\.json")
_ESCAPED = re.compile(rb"\\u00[2-7]")  # letters that need no escape: whoever looks for words does not find them
_COMPARED = ("plain", "talk", "answered", "tools")


@dataclass(frozen=True)
class Carrier:
    """One template and where it was found. ``group`` is the folder that it belongs to, ``source`` what it was: ``file``,
    ``tokenizer``, ``processor``, ``gguf``, ``other`` (not known as a chat template by its key)."""

    file: str
    place: str
    name: str
    text: str
    source: str
    group: str

    @property
    def chat(self) -> bool:
        """Whether loaders take it as a chat template, or it looks like one."""
        return self.source != "other" or "messages" in self.text


@dataclass
class Tried:
    """What came of one template's text; the same text in two carriers is tried once."""

    found: list[tuple[Rule, str, str, str, str | None]]
    behaviour: Behaviour | None = None


class Templates(Scanner):
    """Reads and tries every chat template of a model."""

    name = "templates"
    rules = rules.RULES
    kinds: ClassVar[frozenset[str]] = frozenset(["template"])
    needs_bytes = False
    about = ("Chat templates: what they reach for, what they make of many conversations, tools, words, lengths and dates; whether "
             "carriers agree.")  # fmt: skip

    def scan_file(self, item: Item, folder: Folder) -> Iterator[Finding | Item]:
        """Templates inside archives; those of the folder are seen together."""
        if item.outer is not None:
            yield from self._carriers(list(_in_file(item)), {})

    def scan_folder(self, folder: Folder) -> Iterator[Finding]:
        """All templates of the folder."""
        carriers: list[Carrier] = []
        for item in folder.items.values():
            if "template" in item.kinds or item.basename.endswith((".jinja", ".jinja2", ".j2")):
                try:
                    carriers += _in_file(item)
                except FormatError as error:
                    yield rules.BROKEN.found(error.message, file=shown(item.name))
            elif _CARRIERS.fullmatch(item.basename) and item.size > LARGEST * 16:
                yield rules.UNTRIED.found(f"{item.size} bytes; a configuration of this size is not read", file=shown(item.name))
            elif "gguf" in item.kinds and item.name in folder.ggufs:
                carriers += _in_gguf(item, folder)
            elif _may_hold(item):
                try:
                    carriers += _in_json(item)
                except LimitExceeded as error:
                    yield rules.UNTRIED.found(error.message, file=shown(item.name))
        specials = _specials(folder)
        yield from self._carriers(carriers, specials)

    def _carriers(self, carriers: list[Carrier], specials: dict[str, str]) -> Iterator[Finding]:
        tried: dict[str, Tried] = {}
        for carrier in carriers:
            if carrier.text not in tried:
                if len(tried) >= MOST:
                    yield rules.UNTRIED.found(f"more than {MOST} different templates", file=shown(carrier.file),
                                              place=carrier.place)  # fmt: skip
                    continue
                tried[carrier.text] = _tried(carrier, specials)
            for rule, message, place, evidence, severity in tried[carrier.text].found:
                where = ", ".join(part for part in (carrier.place, place) if part)
                finding = rule.found(message, file=shown(carrier.file), place=where, evidence=evidence)
                yield finding if severity is None else finding.model_copy(update={"severity": severity})
        yield from _disagreements([c for c in carriers if c.text in tried], tried)


# -- where templates are -----------------------------------------------------------------------------------


def _group(name: str) -> str:
    folder = name.rsplit("/", 1)[0] if "/" in name else ""
    for part in ("additional_chat_templates", "chat_templates"):
        if folder.rsplit("/", 1)[-1] == part:
            return folder[: -len(part)].rstrip("/")
    return folder


def _in_file(item: Item) -> Iterator[Carrier]:
    try:
        text = item.text(LARGEST)
    except LimitExceeded:
        text = item.head.decode("utf-8", "replace") + " " * LARGEST  # too large to be tried: said by the trial
    own = item.basename.rsplit(".", 1)[0]
    listed = "chat_templates/" in "/" + item.name
    name = "default" if own == "chat_template" and not listed else own
    known = own == "chat_template" or listed or "template" in own
    if text:
        yield Carrier(item.name, "", name, text, "file" if known else "other", _group(item.name))


def _in_gguf(item: Item, folder: Folder) -> Iterator[Carrier]:
    for key, value in folder.ggufs[item.name].metadata.items():
        if not isinstance(value, str) or not ("chat_template" in key or "{%" in value):
            continue
        name = key.rpartition("chat_template")[2].lstrip(".") or "default"
        source = "gguf" if key.startswith("tokenizer.chat_template") else "other"
        yield Carrier(item.name, key, name, value, source, _group(item.name))


def _may_hold(item: Item) -> bool:
    if item.basename in _VOCABULARY or not {"json", "text"} & set(item.kinds) or not item.basename.endswith(".json"):
        return False
    if item.size > LARGEST * 16 or (item.size > LARGEST and not _CARRIERS.fullmatch(item.basename)):
        return False
    data = item.read(LARGEST * 16)
    return any(word in data for word in (b"{%", b"{{", b"template", b"prompt")) or _ESCAPED.search(data) is not None


def _in_json(item: Item) -> Iterator[Carrier]:
    """Templates in a configuration, by key and by shape.

    Raises:
        LimitExceeded: more values than are looked at.
    """
    whole = parsed(item.read(LARGEST * 16))
    processor = item.basename in ("processor_config.json", "chat_template.json", "preprocessor_config.json")
    pending: list[tuple[str, str, Any]] = [("$", "", whole)]
    count = 0
    while pending:
        count += 1
        if count > MOST_VALUES:
            raise LimitExceeded(f"more than {MOST_VALUES} values")
        path, key, value = pending.pop()
        if isinstance(value, Pairs):
            name = dict(value).get("name")
            if isinstance(name, str):
                for text in [v for k, v in value if k == "template" and isinstance(v, str)]:
                    yield Carrier(item.name, f"{path}.template", name, text, _source(path, processor), _group(item.name))
                value = Pairs((k, v) for k, v in value if k != "template")
            pending += [(f"{path}.{k}"[:200], str(k), v) for k, v in value if k != "added_tokens_decoder"]
        elif isinstance(value, list):
            pending += [(f"{path}[{n}]"[:200], key, v) for n, v in enumerate(value) if isinstance(v, str | list | Pairs)]
        elif isinstance(value, str) and value:
            keyed = "chat_template" in path
            named = "prompt" in key.lower() or "template" in key.lower()
            if keyed or named or (len(value) > 8 and ("{%" in value or "{{" in value)):
                name = "default" if key == "chat_template" or not keyed else key
                yield Carrier(item.name, path, name, value, _source(path, processor) if keyed else "other", _group(item.name))


def _source(path: str, processor: bool) -> str:
    if "chat_template" not in path:
        return "other"
    return "processor" if processor else "tokenizer"


def _specials(folder: Folder) -> dict[str, str]:
    """The special tokens that loaders give to a template."""
    found = {}
    config = folder.json_object("tokenizer_config.json")
    for key in ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"):
        value = config.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str) and len(value) < 200:
            found[key] = value
    return found


# -- one template ------------------------------------------------------------------------------------------


def _tried(carrier: Carrier, specials: dict[str, str]) -> Tried:
    tried = Tried([])
    found = tried.found
    if not ("{{" in carrier.text or "{%" in carrier.text):
        found += [_of_trace(trace) for trace in text_traces(carrier.text[:LARGEST], 1)]
        return tried
    try:
        program = Program(carrier.text)
        tree = program.env.parse(carrier.text)
    except jinja2.TemplateSyntaxError as error:
        found += [_of_trace(trace) for trace in text_traces(carrier.text[:LARGEST], error.lineno)]
        if carrier.chat:
            found.append((rules.BROKEN, f"line {error.lineno}: {error.message}", "", carrier.text[:200], None))
        return tried
    except (OverBudget, jinja2.TemplateError, RecursionError, MemoryError) as error:
        found.append((rules.UNTRIED, f"not rendered: {error}", "", visible(carrier.text[:200]), None))
        return tried
    found += [_of_trace(trace) for trace in dict.fromkeys(code_traces(tree, program.env))]
    written = list(dict.fromkeys(literals(tree)))
    for line, text in written:
        found += [_of_trace(trace) for trace in text_traces(text, line)]
    if (turns := turned(carrier.text)) and not any(rule is rules.HIDDEN for rule, *_ in found):
        found.append((rules.HIDDEN, f"characters that turn the direction of writing: {', '.join(turns)}", "", "", None))
    if any(rule is rules.CODE for rule, *_ in found) or not carrier.chat:
        return tried
    behaviour = tried.behaviour = Behaviour(program, specials)
    seen = [*template_kept.trial(behaviour), *behaviour.trial(), *template_placed.trial(behaviour),
            *template_forced.trial(behaviour), *template_given.trial(behaviour),
            *template_named.trial(behaviour)]
    found += [kept for one in seen if (kept := _of_seen(one)) is not None]
    found += _of_behaviour(behaviour, {text for _, text in written})
    return tried


_Found = tuple[Rule, str, str, str, str | None]


def _of_trace(trace: Trace) -> _Found:
    rule = {"code": rules.CODE, "dynamic": rules.DYNAMIC, "import": rules.IMPORT, "hidden": rules.HIDDEN, "lookalike": rules.HIDDEN,
            "covert": rules.COVERT, "blob": rules.ENCODED}[trace.kind]  # fmt: skip
    return rule, trace.what, f"line {trace.line}", trace.evidence, None


def _of_seen(seen: Seen) -> _Found | None:
    """The finding that an observation makes, ``None`` for what honest formats do."""
    added = "\n".join("+ " + line for line in seen.added)
    evidence = visible(added or seen.evidence)
    if seen.switch and not covert_part(added):
        return rules.SWITCHES, f"on {seen.trigger}", "", evidence, None
    severity = "malicious" if seen.added and covert_part(added) else None
    if seen.kind == "":
        light = seen.light or seen.lost.startswith("system")
        message = f"{seen.lost} is missing from the text: {seen.trigger}"
        return rules.ALTERS, message, "", visible(seen.evidence), "note" if light else None
    if seen.kind == "role":
        return rules.ALTERS, f"{seen.trigger}: {seen.lost}", "", evidence, "note" if seen.light else None
    if seen.kind == "place":
        return rules.INSIDE, f"text beside {seen.trigger}: {seen.added[0][:120]!r}", "", evidence, severity
    if seen.kind in ("clock", "chance"):
        return rules.CLOCK, f"the text is another one with {seen.trigger}", "", evidence, severity
    if seen.added:
        return rules.TRIGGER, f"text is added with {seen.trigger}", "", evidence, severity
    if seen.lost:
        return rules.ALTERS, f"with {seen.trigger}: {seen.lost}", "", visible(seen.evidence), None
    if seen.plain or seen.kind == "count":
        return rules.TRIGGER, f"the text is another one with {seen.trigger}", "", visible(seen.evidence), None
    return None


def _of_behaviour(behaviour: Behaviour, written: set[str]) -> Iterator[_Found]:
    """Findings from all renderings together; ``written`` are the literals, which were judged already."""
    for name in behaviour.internals:
        yield rules.CODE, f"reaches for {name!r} when it is rendered", "", "", None
    for name in behaviour.chance:
        yield rules.CLOCK, f"the text depends on chance ({name})", "", "", None
    if behaviour.unbounded:
        yield rules.ENDLESS, behaviour.unbounded, "", "", None
    if not behaviour.outputs:
        if not behaviour.unbounded:
            yield rules.REFUSES, f"it says: {behaviour.error}", "", "", None
        return
    text = "\n".join(behaviour.lines)
    if (covert := covert_part(text)) and not any(covert_part(one) for one in written):
        yield rules.COVERT, "text that instructs behind the user's back, made when it is rendered", "", visible(covert), None
    hidden = hidden_characters("\n".join(behaviour.outputs.values()))
    if hidden and not any(hidden_characters(one) for one in written):
        yield rules.HIDDEN, f"characters that can't be seen are made when it is rendered: {', '.join(hidden)}", "", "", None
    if (inside := behaviour.inside()):
        yield rules.INSIDE, f"text beside the messages: {inside[0][:120]!r}", "", visible("\n".join(inside)), None
    if (fixed := behaviour.fixed()):
        yield rules.FIXED, f"every chat is told: {fixed[0][:120]!r}", "", visible("\n".join(fixed)), None
    if (beside := behaviour.beside()):
        message = f"with tools, documents or reasoning it is told: {beside[0][:120]!r}"
        yield rules.FIXED, message, "", visible("\n".join(beside)), None


# -- several carriers --------------------------------------------------------------------------------------


def _disagreements(carriers: list[Carrier], tried: dict[str, Tried]) -> Iterator[Finding]:
    """Carriers of one folder and one name whose texts differ on the same conversations."""
    first: dict[tuple[str, str], Carrier] = {}
    order = ("file", "tokenizer", "processor", "gguf")
    for carrier in sorted((c for c in carriers if c.source in order), key=lambda c: order.index(c.source)):
        key = (carrier.group, carrier.name)
        other = first.setdefault(key, carrier)
        if other.text == carrier.text:
            continue
        one, two = tried[other.text].behaviour, tried[carrier.text].behaviour
        if one is None or two is None:
            continue
        said = _difference(one, two)
        if said is None:
            continue
        message, evidence, light = said
        processors = {other.source, carrier.source} == {"processor", "tokenizer"}
        finding = rules.DISAGREE.found(f"{message} than that of {shown(other.file)} {other.place}".rstrip(),
                                       file=shown(carrier.file), place=carrier.place, evidence=evidence)  # fmt: skip
        yield finding.model_copy(update={"severity": "note"}) if light or processors else finding


def _difference(one: Behaviour, two: Behaviour) -> tuple[str, str, bool] | None:
    """The first difference on the same conversations; the last value says that it is one of spaces only."""
    spaces = None
    for name in _COMPARED:
        if name not in one.shapes or name not in two.outputs:
            continue
        left, right = one.outputs[name], two.render(one.shapes[name])
        if right is None or left == right:
            continue
        left, right = left.removeprefix(one.specials["bos_token"]), right.removeprefix(two.specials["bos_token"])
        at = next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
        begin = max(0, at - 40)
        evidence = visible(f"- {left[begin : at + 150]!r}\n+ {right[begin : at + 150]!r}")
        if left.split() != right.split():
            return f"the text of a conversation ({', '.join(one.shapes[name].roles)}) is another one", evidence, False
        if left != right:
            spaces = spaces or ("the text of a conversation has other spaces", evidence, True)
    return spaces
