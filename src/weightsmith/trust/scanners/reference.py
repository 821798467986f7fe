"""A model against a reference that the user trusts: what differs, by meaning and not by bytes.

The user asked for the comparison, so a difference in what the model does is suspicious: a copy of the reference has none, and
whoever compares a fine-tuned model with its base reads the list and consents. What only describes the model is a note.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ...found import Finding
from ..items import Folder, Item, Scanner
from ..listing import shown
from ..rules import Rule
from .facts import INDEX, Place, Weights, named_templates, places
from .vocabulary import Vocabulary, merge_pairs, readable, vocabularies

FILES = Rule(
    "reference-files", "suspicious", "Files that only one of model and reference has",
    "A file more can be code or weights that a loader takes; a file less makes it take something else.",
    "Look at the list; fetch the model again when it should be a copy.",
)  # fmt: skip
CONTENT = Rule(
    "reference-file-differs", "note", "A file has other contents than the reference's",
    "What the difference means for the model is said by the other findings of the comparison.",
    "Compare the two files.",
)  # fmt: skip
SETTING = Rule(
    "reference-setting", "suspicious", "A setting differs from the reference",
    "Settings decide how the weights are used, what text the model sees and when it stops.",
    "Look at each; expected after fine-tuning, never in a copy.",
)  # fmt: skip
TOKENS = Rule(
    "reference-tokens", "suspicious", "Tokens have other ids than in the reference",
    "Exchanged ids exchange words for the model and for the reader, with untouched weights.",
    "Use the reference's tokenizer, unless the weights were trained with this one.",
)  # fmt: skip
ADDED = Rule(
    "reference-tokens-added", "suspicious", "Tokens that only one of model and reference has",
    "Added tokens are usual in fine-tuning. In a copy there are none.",
    "Look at them.",
)  # fmt: skip
RULES_DIFFER = Rule(
    "reference-tokenizer-rules", "suspicious", "The tokenizer's rules differ from the reference",
    "The same text gives other tokens, or other text on the way out.",
    "Use the reference's tokenizer, unless the weights were trained with this one.",
)  # fmt: skip
TEMPLATE = Rule(
    "reference-template", "suspicious", "The chat template differs from the reference",
    "The template writes what the model sees around each message.",
    "Read the difference.",
)  # fmt: skip
SHAPES = Rule(
    "reference-tensors", "suspicious", "Tensors differ from the reference in name, type or shape",
    "The weights are not those of the reference: resized, converted, or another model.",
    "Expected after quantisation or an extended vocabulary, never in a copy.",
)  # fmt: skip
VALUES = Rule(
    "reference-values", "suspicious", "Tensors hold other values than the reference's",
    "The weights were changed: by training, by an edit, or by somebody who publishes them as the original.",
    "Expected after fine-tuning, never in a copy; `weightsmith diff` shows how they differ.",
)  # fmt: skip
NOT_COMPARED = Rule(
    "reference-not-compared", "unknown", "Weights that were not compared with the reference",
    "Whether their values are those of the reference is unknown.",
    "Compare the files' digests, or the models with `weightsmith diff`.",
)  # fmt: skip
_DOCS = (".md", ".txt", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf", ".webp", ".gitattributes", ".gitignore", "license",
         "notice")  # fmt: skip
_SILENT = frozenset({"transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "torch_dtype", "dtype", "use_cache",
                     "_from_model_config", "backend", "is_local", "local_files_only", "version", "_diffusers_version",
                     "output_attentions", "output_hidden_states", "initializer_range", "created_by"})  # fmt: skip
_SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
             "preprocessor_config.json", "processor_config.json", "adapter_config.json", "modules.json", "params.json",
             "config_sentence_transformers.json", "model_index.json", "video_preprocessor_config.json")  # fmt: skip
_STAGES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
MOST_BYTES = 1 << 36  # of a reference's weights that are read for their values
MOST_SECONDS = 40.0  # less than the silence after which a scan is taken for dead
_BLOCK = 1 << 22
_LISTED = 20


class Reference(Scanner):
    """The comparison with ``--reference``."""

    name = "reference"
    about = "Another model, when one is given: settings, tokens, template, tensors and files that differ"
    rules = (FILES, CONTENT, SETTING, TOKENS, ADDED, RULES_DIFFER, TEMPLATE, SHAPES, VALUES, NOT_COMPARED)

    def scan_folder(self, folder: Folder) -> Iterator[Finding]:
        """Findings where there is a reference."""
        other = folder.reference
        if other is None:
            return
        if not (folder.single and other.single):
            yield from _files(folder, other)
        theirs = {p.prefix: p for p in places(other)}
        for place in places(folder):
            if place.prefix in theirs:
                yield from _settings(place, theirs[place.prefix])
                yield from _templates(place, theirs[place.prefix])
                yield from _tokenizers(place, theirs[place.prefix])
                yield from _weights(place, theirs[place.prefix])
        yield from _ggufs(folder, other)


def _is_document(name: str) -> bool:
    return name.rpartition("/")[2].casefold().endswith(_DOCS)


def _files(folder: Folder, other: Folder) -> Iterator[Finding]:
    """Files by name; contents of small ones that no other part of the comparison reads."""
    sides = ((folder, other, "has files that the reference lacks"), (other, folder, "lacks files of the reference"))
    for ours, theirs, what in sides:
        lone = [n for n in ours.items if n not in theirs.items and not _is_weights(ours, n)]
        for names, severity in (([n for n in lone if not _is_document(n)], None), ([n for n in lone if _is_document(n)], "note")):
            if names:
                listed = ", ".join(shown(n) for n in names[:_LISTED])
                yield FILES.found(f"it {what}: {listed[:160]}", evidence=listed, severity="note" if severity else None)
    for name in folder.items.keys() & other.items.keys():
        one, two = folder.items[name], other.items[name]
        read = name.rpartition("/")[2] in _SETTINGS or _is_weights(folder, name) or name.endswith((".jinja", "tokenizer.json"))
        if not read and not _same_bytes(one, two):
            yield CONTENT.found("differs", file=shown(name), severity=None if _is_document(name) else "suspicious")


def _is_weights(folder: Folder, name: str) -> bool:
    return name in folder.headers or name in folder.ggufs or INDEX.search(name) is not None


def _same_bytes(one: Item, two: Item) -> bool:
    if one.size != two.size:
        return False
    with one.open() as first, two.open() as second:
        while block := first.read(_BLOCK):
            if block != second.read(len(block)):
                return False
    return True


# -- settings ------------------------------------------------------------------------------------------------


def _settings(place: Place, other: Place) -> Iterator[Finding]:
    """Every key of the settings files whose value differs."""
    for base in _SETTINGS:
        ours, theirs = (dict(_leaves(p.json(base))) for p in (place, other))
        if not ours or not theirs:
            continue  # a file that is missing was said
        changed = [k for k in sorted(ours.keys() | theirs.keys()) if not _equal(ours.get(k, _ABSENT), theirs.get(k, _ABSENT))]
        changed = [k for k in changed if "chat_template" not in k]
        for key in changed[:_LISTED]:
            was, now = (_text(v.get(key, _ABSENT)) for v in (theirs, ours))
            quiet = key.rpartition(".")[2].split("[")[0] in _SILENT
            yield SETTING.found(f"{key}: {was:.80} there, {now:.80} here", file=shown(place.prefix + base), place=key,
                                evidence=f"reference: {was}\nhere: {now}", severity="note" if quiet else None)  # fmt: skip
        if len(changed) > _LISTED:
            yield SETTING.found(f"{len(changed) - _LISTED} more keys differ", file=shown(place.prefix + base),
                                evidence=", ".join(changed[_LISTED:60]))  # fmt: skip


_ABSENT = object()


def _equal(one: Any, two: Any) -> bool:
    return (one is _ABSENT) == (two is _ABSENT) and _text(one) == _text(two)


def _text(value: Any) -> str:
    return "nothing" if value is _ABSENT else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """``(path, value)`` of everything in a JSON value that is no object; lists count as one value."""
    pending = [("$", value)]
    while pending:
        at, here = pending.pop()
        if isinstance(here, dict) and here:
            pending += [(f"{at}.{k}", v) for k, v in here.items()]
        elif at != "$":
            yield at, here


def _templates(place: Place, other: Place) -> Iterator[Finding]:
    """Chat templates by name, whichever file carries them."""
    ours, theirs = named_templates(place), named_templates(other)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) == theirs.get(name):
            continue
        import difflib

        lines = list(difflib.unified_diff(theirs.get(name, "")[:20_000].splitlines(), ours.get(name, "")[:20_000].splitlines(),
                                          "reference", "here", lineterm="", n=0))  # fmt: skip
        what = "is not in the reference" if name not in theirs else "is missing here" if name not in ours else "differs"
        yield TEMPLATE.found(f"the template {name!r:.60} {what}", file=shown(place.prefix + "tokenizer_config.json"), place=name,
                             evidence="\n".join(lines[2:40]))  # fmt: skip


# -- tokenizers ------------------------------------------------------------------------------------------------


def _tokenizers(place: Place, other: Place) -> Iterator[Finding]:
    """Each carrier against the same carrier of the reference, else against its first."""
    theirs = {v.source.removeprefix(other.prefix): v for v in vocabularies(other)}
    for ours in vocabularies(place):
        base = ours.source.removeprefix(place.prefix)
        if base in theirs or theirs:
            yield from compare_vocabularies(ours, theirs.get(base) or next(iter(theirs.values())), base in theirs)


def compare_vocabularies(ours: Vocabulary, theirs: Vocabulary, alike: bool = True) -> Iterator[Finding]:
    """What differs between two vocabularies; their rules only where both are of one kind of file (``alike``)."""
    file = shown(ours.source)
    mine, yours = ours.ids, theirs.ids
    if mine != yours:
        both = mine.keys() & yours.keys()
        moved = sorted((t for t in both if mine[t] != yours[t]), key=lambda t: str(mine[t]))
        if moved:
            swapped = [(t, u) for t in moved[:10_000] if (u := ours.texts.get(yours[t])) is not None and yours.get(u) == mine[t]]
            pairs = "; ".join(f"{readable(t)!r:.40} and {readable(u)!r:.40} are exchanged" for t, u in swapped[:6])
            listed = "; ".join(f"{t!r:.40}: {yours[t]} there, {mine[t]} here" for t in moved[:12])
            yield TOKENS.found(f"{len(moved)} tokens have other ids, e.g. {moved[0]!r:.60}", file=file, evidence=pairs or listed)
        for lone, what in ((mine.keys() - yours.keys(), "more"), (yours.keys() - mine.keys(), "fewer")):
            if lone:
                listed = ", ".join(f"{t!r:.40}" for t in sorted(lone)[:_LISTED])
                yield ADDED.found(f"{len(lone)} tokens {what} than the reference: {listed:.100}", file=file, evidence=listed)
    if alike:
        yield from _flags(ours, theirs, file)
    if alike and ours.kind not in ("gguf", "sentencepiece") and ours.settings and theirs.settings:
        yield from _stages(ours.settings, theirs.settings, file)


def _flags(ours: Vocabulary, theirs: Vocabulary, file: str) -> Iterator[Finding]:
    """How tokens are looked for in a text: both have each of them, and only one finds it, or finds it elsewhere."""
    one, two = ({a.text: (a.special, a.normalized, a.single_word) for a in v.added} for v in (ours, theirs))
    changed = sorted(t for t in one.keys() & two.keys() if one[t] != two[t])
    if changed:
        word = all(one[t][:2] == two[t][:2] for t in changed)
        what = "is only found as a word of its own" if word else "is special"
        yield RULES_DIFFER.found(f"{changed[0]!r:.60} {what} in one and not in the other", file=file, place="$.added_tokens",
                                 evidence=", ".join(map(repr, changed[:12])))  # fmt: skip
    if lone := sorted(t for t in one.keys() ^ two.keys() if t in ours.ids and t in theirs.ids):
        yield RULES_DIFFER.found(f"{lone[0]!r:.60} is an added token in one and not in the other", file=file,
                                 place="$.added_tokens", evidence=", ".join(map(repr, lone[:12])))  # fmt: skip


def _stages(ours: Mapping[str, Any], theirs: Mapping[str, Any], file: str) -> Iterator[Finding]:
    """The four stages, the order of the merges, and the model's own settings."""
    for stage in (*_STAGES, "truncation", "padding"):
        if not _equal(ours.get(stage), theirs.get(stage)):
            yield RULES_DIFFER.found(f"the {stage.replace('_', '-')} differs", file=file, place=f"$.{stage}",
                                     evidence=f"reference: {_text(theirs.get(stage))[:180]}\nhere: {_text(ours.get(stage))[:180]}")
    mine, yours = (m if isinstance(m := s.get("model"), dict) else {} for s in (ours, theirs))
    for key in sorted((mine.keys() | yours.keys()) - {"vocab", "merges"}):
        if (mine.get(key) or None) != (yours.get(key) or None):
            yield RULES_DIFFER.found(f"{key}: {yours.get(key)!r:.60} there, {mine.get(key)!r:.60} here", file=file,
                                     place=f"$.model.{key}")  # fmt: skip
    one, two = merge_pairs(mine.get("merges")), merge_pairs(yours.get("merges"))
    if one != two:
        one, two = one or [], two or []
        at = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
        both = [str(m[at]) if at < len(m) else "the end" for m in (two, one)]
        yield RULES_DIFFER.found(f"the merges differ from number {at} on: {both[0]:.60} there, {both[1]:.60} here", file=file,
                                 place=f"$.model.merges[{at}]")  # fmt: skip
    if isinstance(mine.get("vocab"), list) and mine.get("vocab") != yours.get("vocab"):
        yield RULES_DIFFER.found("pieces have other scores, or another order", file=file, place="$.model.vocab")


# -- weights ------------------------------------------------------------------------------------------------


def _weights(place: Place, other: Place) -> Iterator[Finding]:
    """The weights that a loader takes, by name, type, shape and value."""
    ours, theirs = place.loaded, other.loaded
    if ours is None or theirs is None or not theirs.tensors:
        if ours is not None and ours.tensors:
            place.folder.unchecked.append("the reference has no weights that could be compared with these")
        return
    file = shown(ours.name)
    mine, yours = ours.tensors, theirs.tensors
    for lone, what in ((mine.keys() - yours.keys(), "more"), (yours.keys() - mine.keys(), "fewer")):
        if lone:
            yield SHAPES.found(f"{len(lone)} tensors {what} than the reference, e.g. {min(lone)!r:.100}", file=file,
                               evidence=", ".join(sorted(lone)[:_LISTED]))  # fmt: skip
    both = sorted(mine.keys() & yours.keys())
    shaped = [n for n in both if mine[n][:2] != yours[n][:2]]
    if shaped:
        name = shaped[0]
        yield SHAPES.found(f"{len(shaped)} tensors have another type or shape, e.g. {name!r:.100}: {yours[name][0]} "
                           f"{list(yours[name][1])} there, {mine[name][0]} {list(mine[name][1])} here", file=file,
                           evidence=", ".join(shaped[:_LISTED]))  # fmt: skip
    same = [n for n in both if mine[n][:2] == yours[n][:2]]
    yield from _values(place.folder, other.folder, ours, theirs, same, file)


def _values(
    folder: Folder, other: Folder, ours: Weights, theirs: Weights, names: list[str], file: str
) -> Iterator[Finding]:
    """Tensors of one type and shape by their values: digests of this model against the bytes of the reference."""
    begin, read = time.monotonic(), 0
    changed, unknown = [], []
    specs = {(f, t.name): t for f in theirs.files if f in other.headers for t in other.headers[f].tensors}
    for name in names:
        digest = folder.digest(ours.tensors[name][2], name)
        spec = specs.get((theirs.tensors[name][2], name))
        if digest is None or spec is None or read + spec.nbytes > MOST_BYTES or time.monotonic() - begin > MOST_SECONDS:
            unknown.append(name)
            continue
        read += spec.nbytes
        if other.items[theirs.tensors[name][2]].blake3(spec.start, spec.nbytes) != digest:
            changed.append(name)
    if changed:
        roles = Counter(n.rsplit(".", 2)[-2] if n.count(".") > 1 else n for n in changed)
        listed = ", ".join(f"{count} {role}" for role, count in roles.most_common(8))
        yield VALUES.found(f"{len(changed)} of {len(names)} tensors have other values: {listed:.160}", file=file,
                           evidence=", ".join(changed[:_LISTED]))  # fmt: skip
    if unknown:
        yield NOT_COMPARED.found(f"{len(unknown)} of {len(names)} tensors were not compared, e.g. {unknown[0]!r:.100}", file=file)


def _ggufs(folder: Folder, other: Folder) -> Iterator[Finding]:
    """GGUF files of one name (or the only two): metadata and tensors."""
    pairs = [(n, n) for n in folder.ggufs if n in other.ggufs]
    if not pairs and len(folder.ggufs) == len(other.ggufs) == 1:
        pairs = [(next(iter(folder.ggufs)), next(iter(other.ggufs)))]
    for name, theirs in pairs:
        mine, yours = folder.ggufs[name].metadata, other.ggufs[theirs].metadata
        for key in sorted(mine.keys() | yours.keys()):
            one, two = mine.get(key, _ABSENT), yours.get(key, _ABSENT)
            if one != two and not (isinstance(one, float) and isinstance(two, float) and one != one and two != two):
                quiet = key.startswith("general.") and key != "general.architecture"
                yield SETTING.found(f"{key}: {str(two)[:80] if two is not _ABSENT else 'nothing'} there, "
                                    f"{str(one)[:80] if one is not _ABSENT else 'nothing'} here", file=shown(name), place=key,
                                    severity="note" if quiet else None)  # fmt: skip
        tables = [{t.name: (t.type, t.shape) for t in f.ggufs[n].tensors} for f, n in ((folder, name), (other, theirs))]
        changed = sorted(n for n in tables[0].keys() | tables[1].keys() if tables[0].get(n) != tables[1].get(n))
        if changed:
            yield SHAPES.found(f"{len(changed)} tensors differ in type or shape, e.g. {changed[0]!r:.100}", file=shown(name),
                               evidence=", ".join(changed[:_LISTED]))  # fmt: skip
        elif not _same_bytes(folder.items[name], other.items[theirs]):
            yield VALUES.found("the bytes of the two files differ", file=shown(name))
