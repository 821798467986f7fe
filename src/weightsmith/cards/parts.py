"""Claims of which weights were changed: "only o_proj and down_proj of layers 10-20", "no other weights", "the same weights"."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..claimed import Claim
from .page import Page, Sentence, escaped

MOST = 1024  # layers

#: parts as cards name them; what a tensor's name must contain stands in ``jobs``
_PART = re.compile(
    r"\b(?:[oqkv]_proj|out_proj|c_proj|c_fc|down_proj|up_proj|gate_proj|gate_up_proj|qkv_proj|query_key_value|w[123]|"
    r"dense_4h_to_h|lm_head|embed_tokens|router)\b(?:\.(?:weight|bias)\b)?|\bembeddings?\b|\blayer ?norms?\b|"
    r"\battention output (?:projections?|matri(?:x|ces)|weights?)\b|"
    r"\bmlp (?:down|output)[- ]?(?:projections?|matri(?:x|ces)|weights?)\b"
)
_FULL = re.compile(r"\b(?:model|transformer|language_model|lm_head)(?:\.[a-z0-9_]{1,40}){1,8}\b")
_LAYERS = re.compile(r"\b(?:layers?|blocks?)\s((?:\d{1,4}(?:\s?(?:-|–|—|to|through)\s?\d{1,4})?(?:,? and |, ?| & )?){1,64})")
_SPAN = re.compile(r"(\d{1,4})(?:\s?(?:-|–|—|to|through)\s?(\d{1,4}))?")
_CHANGED = re.compile(r"\b(?:chang|modif|edit|alter|touch|ablat|abliterat|orthogonali[sz]|updat|affect|train)\w*")
_ONLY = re.compile(r"\bonly\b|\bexclusively\b|\bsolely\b|\bnothing (?:else|but)\b")
_NOT_ONLY = re.compile(r"\bnot only\b|\bwould\b|\bshould\b|\bcan\b|\bcould\b|\bmay\b|\bmight\b|\bif\b|\bread[- ]only\b|"
                       r"\bother models?\b|\boriginal model (?:was|is|has)\b|\?")  # fmt: skip
_NO_OTHER = re.compile(
    r"\b(?:no|none of the) other (?:weights?|tensors?|parameters?|layers?|matri(?:x|ces)|modules?)(?: of the model)?"
    r"(?: (?:was|were|is|are|has been|have been))? (?:changed|modified|edited|altered|touched)\b|"
    r"\b(?:all|every) other (?:weights?|tensors?|parameters?|layers?|modules?)(?: of the model)? "
    r"(?:is|are|was|were|remains?|stays?)(?: left)? (?:bit-for-bit |byte-for-byte |completely |exactly )?"
    r"(?:unchanged|untouched|identical|unmodified|the same|intact)\b"
)
_COUNT = re.compile(r"\bonly (\d{1,5}) (?:weight )?(?:tensors|matrices)\b")
_SAME = re.compile(
    r"\b(?:the )?(?:exact(?:ly)? )?(?:the )?same weights as (?:the )?(?:original|base|upstream|[a-z0-9][\w.-]{0,95}/[\w.-]{1,95})|"
    r"\bweights (?:are|were|remain|have been left) (?:bit-for-bit |byte-for-byte |completely |exactly )?"
    r"(?:unchanged|unmodified|untouched|identical|bit-identical|byte-identical)\b|"
    r"\bno (?:weights|tensors|parameters) (?:were|was|have been|are) (?:changed|modified|edited|altered|touched)\b|"
    r"\b(?:bit-for-bit|byte-for-byte|bit|byte)[ -]identical (?:to|copy of|weights)\b|"
    r"\blossless (?:conversion|copy|re-?upload|re-?save|re-?shard(?:ing)?|dequanti[sz]ation|merge)\b|"
    r"\b(?:this|the|conversion|model|it) (?:conversion |model |copy )?(?:is|was) (?:completely |fully )?lossless\b"
)
_NEARLY = re.compile(r"\b(?:near(?:ly)?|almost|virtually|practically|essentially|effectively|not|isn't|wasn't|other|unlike|"
                     r"would|if|should)\b|\bnear-")  # fmt: skip


def parts_of(page: Page, sentence: Sentence, file: str) -> Iterator[Claim]:
    """What a sentence claims of the weights that were changed."""
    low = sentence.text.lower()
    if len(low) != len(sentence.text):
        return  # a letter whose lower case is longer would move every place
    if (no_other := _NO_OTHER.search(low)) and not _NOT_ONLY.search(low):
        line = sentence.line(no_other.start())
        said = low[: no_other.start()]
        names, layers = _named(said), _layers(said)
        if not names and not layers:  # "A and B were edited. No other weights were."
            said = sentence.before.lower()
            names, layers = (_named(said), _layers(said)) if _CHANGED.search(said) else ([], [])
        why = "" if names or layers else "the card does not say beside it which weights were changed"
        yield _only(page, file, line, names, layers, why)
        return
    if (only := _ONLY.search(low)) and _CHANGED.search(low) and not _NOT_ONLY.search(low):
        line = sentence.line(only.start())
        if count := _COUNT.search(low):
            yield Claim(kind="tensors", says=f"only {count[1]} tensors were changed", file=file, line=line,
                        text=page.quote(line), value=float(count[1]), unit="tensors")  # fmt: skip
            return
        names, layers = _named(low), _layers(low)
        if names or layers:
            yield _only(page, file, line, names, layers, "")
        return
    if (same := _SAME.search(low)) and not _NEARLY.search(low) and "config" not in low:
        line = sentence.line(same.start())
        yield Claim(kind="same weights", says="the weights are those of the base", file=file, line=line,
                    text=page.quote(line), names=["the base's weights"])  # fmt: skip


def _only(page: Page, file: str, line: int, names: list[str], layers: list[int], why: str) -> Claim:
    what = " and ".join(names) or "weights"
    where = f" of layer{'s' if len(layers) > 1 else ''} {layers_text(layers)}" if layers else ""
    return Claim(kind="tensors", says=f"only {what}{where} changed" if not why else "no other weights changed", file=file,
                 line=line, text=page.quote(line), names=names, layers=layers, unmeasurable=why)  # fmt: skip


def _named(low: str) -> list[str]:
    full = [m[0] for m in _FULL.finditer(low)]
    rest = _FULL.sub(" ", low)
    return list(dict.fromkeys(escaped(n, 80) for n in [*full, *(m[0] for m in _PART.finditer(rest))]))[:32]


def _layers(low: str) -> list[int]:
    """Layers as the card counts them, both ends included."""
    found: set[int] = set()
    for match in _LAYERS.finditer(low):
        for span in _SPAN.finditer(match[1]):
            first, last = int(span[1]), int(span[2] or span[1])
            if first <= last < MOST:
                found.update(range(first, last + 1))
    return sorted(found)


def layers_text(layers: list[int]) -> str:
    """``10-20, 22``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
