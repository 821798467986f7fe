"""What a tokenizer's rules do to text: the normaliser and the pre-tokenizer on the way in, the decoder on the way out.

Every rule of every real family folds, splits or marks: what is visible before is visible afterwards. A rule that puts
visible text in the place of other visible text, adds some or takes some away is shown, whatever the text.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import FormatError, stated
from ...found import Finding
from ..rules import Rule
from .charsmap import is_folding, replacements
from .regex_tree import is_ambiguous
from .regexes import ESCAPE, VARIES, exact, is_explosive, punctuation, regex_parts, takes_all_marks, visible
from .signs import is_of_text, is_written
from .vocabulary import Vocabulary, is_words, looks_special, readable

REWRITES = Rule(
    "tokenizer-rewrites", "malicious", "A tokenizer rule puts other text in the place of what was written",
    "What the model reads is not what the user wrote, or what the user reads is not what the model wrote: a number, an address, a "
    "command or a word is exchanged on the way, and no weight shows it.",
    "Do not use this tokenizer; take the one of the base model.",
)  # fmt: skip
CHANGES = Rule(
    "tokenizer-changes-text", "suspicious", "A tokenizer rule changes visible characters",
    "No known family does this; text is read or written otherwise than the user sees it.",
    "Look at the rule, and compare with the tokenizer of the base model.",
)  # fmt: skip
DROPS = Rule(
    "tokenizer-drops-text", "suspicious", "A tokenizer rule takes visible text away",
    "The model never sees what was removed: a \"not\", a number, a warning.",
    "Look at the rule, and compare with the tokenizer of the base model.",
)  # fmt: skip
INSERTS = Rule(
    "tokenizer-inserts", "malicious", "The tokenizer adds ordinary text to every prompt",
    "The post-processor may add markers such as the beginning of a text. Here it adds words: an instruction that nobody sees.",
    "Do not use this tokenizer; take the one of the base model.",
)  # fmt: skip
MARKERS = Rule(
    "tokenizer-template", "suspicious", "The post-processor's markers are not what they say",
    "The ids that it inserts are not those of the tokens it names, it inserts more than any family does, or it leaves the text "
    "out.",
    "Compare with the tokenizer of the base model.",
)  # fmt: skip
ODD_RULE = Rule(
    "tokenizer-unknown-rule", "suspicious", "A tokenizer rule of an unknown kind",
    "What it does to text could not be checked.",
    "Find out what it does; a newer version of this program may know it.",
)  # fmt: skip
BROKEN_MAP = Rule(
    "tokenizer-broken-rule", "broken", "A tokenizer rule that can't be read",
    "The tokenizer's library refuses it, or reads it otherwise than another one does.",
    "Fetch the tokenizer again from its publisher.",
)  # fmt: skip
SLOW = Rule(
    "tokenizer-slow-pattern", "suspicious", "A pattern that takes endless time on some texts",
    "A repetition inside a repetition: a short text that almost fits makes the tokenizer try an exponential number of ways. "
    "Whoever knows it stops the program with one message.",
    "Compare the pattern with the tokenizer of the base model.",
    ("https://cwe.mitre.org/data/definitions/1333.html",),
)  # fmt: skip
RULES = (SLOW, REWRITES, CHANGES, DROPS, INSERTS, MARKERS, ODD_RULE, BROKEN_MAP)

#: letters that the writers of a script take for one
_ONE_LETTER = frozenset({"يی", "كک", "ىي", "ىی", "ةه", "ٱا", "ھه", "ۀه", "ہه", "ёе", "ЁЕ", "یي", "کك", "ےی"})
_HARMLESS = {
    "normalizer": {"BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Nmt", "ByteLevel"},
    "pre_tokenizer": {"ByteLevel", "Whitespace", "WhitespaceSplit", "Digits", "Punctuation", "BertPreTokenizer", "UnicodeScripts",
                      "FixedLength"},
    "decoder": {"ByteLevel", "Fuse", "ByteFallback"},
    "post_processor": {"ByteLevel"},
}  # fmt: skip
_PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders", "post_processor": "processors"}
MOST_RULES = 2000
MOST_MARKERS = 6  # tokens that the post-processor of any known family adds to one text


def check_rules(vocabulary: Vocabulary, file: str, writes: bool = False) -> Iterator[Finding]:
    """Findings about the four stages of a ``tokenizer.json``; ``writes`` is whether the model writes text."""
    for stage in _PARTS:
        for at, rule in flat_rules(vocabulary.settings.get(stage), stage):
            yield from _rule(stage, rule, at, vocabulary, file, writes)
            if writes and rule["type"] == "CTC" and stage == "decoder":
                yield CHANGES.found("CTC writes repeated tokens once: it is made for models that listen, and this one writes",
                                    file=file, place=at, evidence=str(dict(rule))[:300])  # fmt: skip


def flat_rules(value: Any, stage: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every rule of a stage with its place, sequences taken apart."""
    pending = [(f"$.{stage}", value)]
    for _ in range(MOST_RULES):
        if not pending:
            return
        at, here = pending.pop()
        if here is None:
            continue
        if not isinstance(here, dict) or not isinstance(here.get("type"), str):
            yield at, {"type": "?", "value": here}
        elif here["type"] == "Sequence":
            inner = here.get(_PARTS[stage], here.get("normalizers"))
            listed = inner[: MOST_RULES + 1] if isinstance(inner, list) else [{}]
            pending += [(f"{at}[{i}]", v) for i, v in enumerate(listed)][::-1]
        else:
            yield at, here
    yield f"$.{stage}", {"type": f"one of more than {MOST_RULES} rules"}


def _rule(
    stage: str, rule: Mapping[str, Any], at: str, vocabulary: Vocabulary, file: str, writes: bool
) -> Iterator[Finding]:
    kind = rule["type"]
    if kind in _HARMLESS[stage]:
        if rule.get("behavior") == "Removed":
            yield DROPS.found(f"{kind} takes what it cuts at out of every text", file=file, place=at,
                              severity=None if kind == "Punctuation" and writes else "note")  # fmt: skip
        return
    shown = str(dict(rule))[:300]
    pattern = rule.get("pattern")
    if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str) and (
            is_explosive(pattern["Regex"]) or is_ambiguous(pattern["Regex"])):  # fmt: skip
        yield SLOW.found(f"{pattern['Regex']!r:.120}", file=file, place=at, evidence=pattern["Regex"])
    if kind == "Replace" and stage in ("normalizer", "decoder"):
        yield from _replace(stage, rule, at, file, writes)
        if pattern in ("##", {"String": "##"}) and not visible(str(rule.get("content"))) and is_of_text("##", vocabulary):
            yield DROPS.found("'##' is taken away, and the vocabulary is not made with it", file=file, place=at, evidence=shown)
    elif kind == "Precompiled" and stage == "normalizer":
        yield from _precompiled(rule.get("precompiled_charsmap"), at, file)
    elif kind == "Prepend" and stage == "normalizer":
        yield from _literal(rule.get("prepend"), at, file, "is put before every text", shown)
    elif kind in ("Split", "CharDelimiterSplit") and stage == "pre_tokenizer":
        yield from _split(rule, at, file)
    elif kind == "Metaspace" and stage in ("pre_tokenizer", "decoder"):
        yield from _sign(rule.get("replacement", rule.get("str_rep", "▁")), at, file, "stands for spaces", shown, vocabulary)
    elif kind == "Strip" and stage == "decoder":
        if str(rule.get("content", " ")).strip("▁ \n\t"):
            yield DROPS.found(f"takes {rule.get('content')!r:.40} away from what the model writes", file=file, place=at,
                              evidence=shown)  # fmt: skip
    elif kind == "WordPiece" and stage == "decoder":
        yield from _sign(rule.get("prefix", "##"), at, file, "is taken away from what the model writes", shown, vocabulary)
    elif kind == "BPEDecoder" and stage == "decoder":
        yield from _sign(rule.get("suffix", "</w>"), at, file, "becomes a space in what the model writes", shown, vocabulary)
    elif kind == "CTC" and stage == "decoder":
        space, pad = rule.get("word_delimiter_token", "|"), rule.get("pad_token", "<pad>")
        yield from _sign(space, at, file, "becomes a space in what the model writes", shown, vocabulary)
        yield from _literal(pad, at, file, "is taken away from what the model writes", shown)
        if isinstance(pad, str) and is_written(pad, vocabulary):
            yield DROPS.found(f"{pad!r:.120} is taken away from what the model writes", file=file, place=at, evidence=shown)
    elif kind in ("BertProcessing", "RobertaProcessing") and stage == "post_processor":
        for key in ("cls", "sep"):
            pair = rule.get(key)
            if isinstance(pair, list) and len(pair) == 2:
                yield from _inserted(str(pair[0]), [pair[1]], [pair[0]], vocabulary, f"{at}.{key}", file)
    elif kind == "TemplateProcessing" and stage == "post_processor":
        yield from _template(rule, vocabulary, at, file)
    else:
        yield ODD_RULE.found(f"{kind!r:.60} as a {stage}", file=file, place=at, evidence=shown)


def _literal(value: Any, at: str, file: str, what: str, shown: str) -> Iterator[Finding]:
    """A text that a rule adds or removes: a mark of some tokenizer, or letters."""
    if not isinstance(value, str):
        yield BROKEN_MAP.found(f"{value!r:.60} is no text", file=file, place=at, evidence=shown)
    elif re.search(r"[^\W\d_]{2}", value) and not is_mark(value):
        yield REWRITES.found(f"{value!r:.120} {what}", file=file, place=at, evidence=shown)
    elif any(c.isalnum() and c not in "▁Ġ" for c in value) and not is_mark(value):
        yield CHANGES.found(f"{value!r:.120} {what}", file=file, place=at, evidence=shown)


def _sign(value: Any, at: str, file: str, what: str, shown: str, vocabulary: Vocabulary) -> Iterator[Finding]:
    """The same of a sign for spaces or for pieces of words, which the vocabulary has to be made with."""
    said = list(_literal(value, at, file, what, shown))
    if not said and is_of_text(value, vocabulary):
        said.append(CHANGES.found(f"{value!r:.120} {what}, and the vocabulary is not made with it", file=file, place=at,
                                  evidence=shown))  # fmt: skip
    yield from said


# -- replacing ---------------------------------------------------------------------------------------------


def _replace(stage: str, rule: Mapping[str, Any], at: str, file: str, writes: bool) -> Iterator[Finding]:
    pattern, content = rule.get("pattern"), rule.get("content")
    if isinstance(pattern, str):
        pattern = {"String": pattern}
    if not isinstance(pattern, dict) or not isinstance(content, str) or not isinstance(next(iter(pattern.values()), None), str):
        yield BROKEN_MAP.found("a Replace without pattern or content", file=file, place=at, evidence=str(dict(rule))[:300])
        return
    key, text = next(iter(pattern.items()))
    where = "what the user writes" if stage == "normalizer" else "what the model writes"
    evidence = f"{key} {text!r:.150} becomes {content!r:.150} in {where}"
    verdict = judge_regex(text, content) if key == "Regex" else judge(text, content)
    if verdict is REWRITES and key == "String":
        evidence += f"; for example: {readable(text)!r:.60} is read as {readable(content)!r:.60}"
    if verdict is None and writes and key == "Regex" and not visible(content) and takes_all_marks(text):
        verdict = DROPS
    if verdict is not None:
        # models that compare texts or pictures take marks out on purpose
        light = verdict is DROPS and not writes and key == "Regex" and regex_parts(text) == ("", False)
        yield verdict.found(f"{text!r:.100} becomes {content!r:.100}", file=file, place=at, evidence=evidence,
                            severity="note" if light else None)  # fmt: skip


def judge(text: str, becomes: str) -> Rule | None:
    """What to say of putting ``becomes`` in the place of ``text``; ``None`` for what real tokenizers do."""
    if not text:
        return REWRITES if re.search(r"[^\W\d_]", becomes) else CHANGES if becomes.strip() else None
    if is_folding(text, becomes):
        return None
    seen, new = visible(text), visible(becomes)
    if not seen and not new:
        return None
    if (not seen and set(text) & set("\n\r\t") and is_mark(becomes)) or (not new and is_mark(text)):
        return None  # a line break as a marker, and back
    if not any(c.isalnum() for c in seen + new):
        return None if not new and len(seen) == 2 and seen == "##" else CHANGES if new else DROPS
    if text + becomes in _ONE_LETTER:
        return None
    if not new:
        return DROPS
    return REWRITES


def judge_regex(pattern: str, becomes: str) -> Rule | None:
    """The same for a regular expression, which is read and never run: what could it match?"""
    only = exact(pattern)
    if only is not None and only.strip():
        return judge(only, becomes)  # it matches that one text
    literal, broad = regex_parts(pattern)
    if not literal and not broad:  # spaces, marks that can't be seen, punctuation
        seen = visible(becomes)
        if any(not any(is_folding(c * n, becomes) for n in (1, 2, 3)) for c in punctuation(pattern)):
            return DROPS if not seen else REWRITES if re.search(r"[^\W\d_]{2}", seen) else CHANGES
        if not seen or (is_mark(becomes) and re.search(r"\\[nrt]", pattern)):
            return None
        return REWRITES if re.search(r"[^\W\d_]{2}", seen) else None if not any(c.isalnum() for c in seen) else CHANGES
    if literal:
        # letters that may also be missing, repeat, or stand for each other don't fold into anything
        if is_folding(literal, becomes) and not VARIES.search(ESCAPE.sub("", pattern)):
            return None
        return REWRITES if visible(becomes) else DROPS
    if visible(becomes):
        return REWRITES if re.search(r"[^\W\d_]{2}", becomes) else CHANGES
    # a small model's alphabet, written as what is not in it
    return None if re.match(r"\[\^[^\]]*(?:a-z|A-Z|\\w|\\p\{L)", pattern) else DROPS


def is_mark(text: str) -> bool:
    """Whether a text is a short marker, such as the ones for a line break or the end of a word."""
    return len(text) <= 12 and looks_special(text) and not text.strip("▁Ġ ").isalnum() and bool(text.strip())


def _precompiled(blob: Any, at: str, file: str) -> Iterator[Finding]:
    """A compiled map of SentencePiece: each of its entries is judged."""
    if blob is None or blob == "":
        return
    try:
        raw = base64.b64decode(blob, validate=True) if isinstance(blob, str) else bytes(blob)
        yield from check_charsmap(raw, at, file)
    except (FormatError, binascii.Error, ValueError, TypeError) as error:
        yield BROKEN_MAP.found(f"the compiled map can't be read: {stated(error)[:100]}", file=file, place=at)


def check_charsmap(raw: bytes, at: str, file: str) -> Iterator[Finding]:
    """Findings about the entries of a compiled map.

    Raises:
        FormatError: it is no such map.
    """
    bad: list[tuple[Rule, str, str]] = []
    for text, becomes in replacements(raw) if raw else ():
        if text != "�" and not is_folding(text, becomes) and (rule := _mapped(text, becomes)) is not None:
            bad.append((rule, text, becomes))
    for rule in (REWRITES, DROPS, CHANGES):
        here = [(t, b) for r, t, b in bad if r is rule]
        if here:
            yield rule.found(f"the compiled map turns {here[0][0]!r:.60} into {here[0][1]!r:.60}", file=file, place=at,
                             evidence="; ".join(f"{t!r:.60} becomes {b!r:.60}" for t, b in here[:6]))  # fmt: skip


def _mapped(text: str, becomes: str) -> Rule | None:
    """Like :func:`judge`; maps of real models also fold single rare characters, which no reader would miss."""
    rule = judge(text, becomes)
    if rule in (CHANGES, DROPS) and len(text) == 1 and not text.isascii():
        return None
    return rule


# -- splitting and inserting ---------------------------------------------------------------------------------


def _split(rule: Mapping[str, Any], at: str, file: str) -> Iterator[Finding]:
    """Pieces that are cut out and thrown away."""
    if rule["type"] == "CharDelimiterSplit":
        if visible(str(rule.get("delimiter", " "))):
            yield DROPS.found(f"takes {rule.get('delimiter')!r:.20} out of every text", file=file, place=at)
        return
    if rule.get("behavior") != "Removed":
        return
    pattern = rule.get("pattern")
    key, text = next(iter(pattern.items()), ("", "")) if isinstance(pattern, dict) else ("String", pattern)
    literal, broad = regex_parts(str(text)) if key == "Regex" else ("".join(c for c in str(text) if c.isalnum()), False)
    inverted = bool(rule.get("invert"))
    keeps = broad and not any(c.isalnum() for inside in re.findall(r"\[\^([^\]]*)", str(text)) for c in re.sub(ESCAPE, "", inside))
    marks = punctuation(str(text)) if key == "Regex" else visible(str(text))
    bare = inverted and key == "Regex" and not re.search(r"\[\^|\\[SWDP]|(?<!\\)\.", str(text)) and not set(marks) & set(".,!?")
    if bare or (inverted and not keeps) or (not inverted and (literal or broad or marks)):
        kept = "keeps nothing of a text but" if inverted else "takes out of every text"
        yield DROPS.found(f"{kept} what {text!r:.120} matches", file=file, place=at, evidence=str(dict(rule))[:300])


def _template(rule: Mapping[str, Any], vocabulary: Vocabulary, at: str, file: str) -> Iterator[Finding]:
    """The markers that are put around every text."""
    named = rule.get("special_tokens")
    named = named if isinstance(named, dict) else {}
    for key, wanted in (("single", {"A"}), ("pair", {"A", "B"})):
        pieces = rule.get(key)
        if isinstance(pieces, str):
            pieces = [{"Sequence": {"id": p[1:2]}} if p.startswith("$") else {"SpecialToken": {"id": p.split(":")[0]}}
                      for p in pieces.split()]  # fmt: skip
        if not isinstance(pieces, list):
            continue
        texts = [str(p["Sequence"].get("id")) for p in pieces if isinstance(p, dict) and isinstance(p.get("Sequence"), dict)]
        markers = [str(p["SpecialToken"].get("id")) for p in pieces
                   if isinstance(p, dict) and isinstance(p.get("SpecialToken"), dict)]  # fmt: skip
        if not wanted <= set(texts) and pieces:
            yield MARKERS.found(f"the template for {'one text' if key == 'single' else 'two texts'} leaves a text out", file=file,
                                place=f"{at}.{key}", evidence=str(pieces)[:300])  # fmt: skip
        if texts == ["B", "A"]:
            yield MARKERS.found("the second text is put before the first: what is asked takes the place of what it is asked of",
                                file=file, place=f"{at}.{key}", evidence=str(pieces)[:300])  # fmt: skip
        if len(texts) > len(wanted) or len(markers) > MOST_MARKERS:
            yield MARKERS.found(f"the template repeats a text or adds {len(markers)} markers", file=file, place=f"{at}.{key}",
                                evidence=" ".join(markers)[:300])  # fmt: skip
        for name in dict.fromkeys(markers):
            entry = named.get(name)
            if not isinstance(entry, dict):
                yield BROKEN_MAP.found(f"the template names {name!r:.60}, which is not defined", file=file, place=f"{at}.{key}")
                continue
            ids, tokens = entry.get("ids"), entry.get("tokens")
            yield from _inserted(name, ids if isinstance(ids, list) else [], tokens if isinstance(tokens, list) else [],
                                 vocabulary, f"{at}.special_tokens", file)  # fmt: skip


def _inserted(name: str, ids: list[Any], tokens: list[Any], vocabulary: Vocabulary, at: str, file: str) -> Iterator[Finding]:
    """What one marker of a template really inserts: the ids count, not the names."""
    if any(type(i) is not int for i in ids):
        yield BROKEN_MAP.found(f"the ids of {name!r:.60} are {ids!r:.60}", file=file, place=at)
        return
    text = vocabulary.decoded(ids[:200])
    evidence = f"'Hello' becomes {text + 'Hello'!r:.200} (ids {ids!r:.100})"
    plain = [i for i in ids if not vocabulary.is_marker(i)]
    if plain:
        worded = len(ids) > 1 or any(is_words(vocabulary.texts.get(i, "")) for i in plain)
        rule = INSERTS if worded and all(i in vocabulary.texts for i in plain) else MARKERS
        yield rule.found(f"{name!r:.60} inserts {text!r:.120}", file=file, place=at, evidence=evidence)
    elif [vocabulary.texts.get(i) for i in ids] != list(tokens) or len(ids) != 1:
        yield MARKERS.found(f"{name!r:.60} inserts {text!r:.120}", file=file, place=at, evidence=evidence)
