"""Numbers and the names of figures, as cards write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..claimed import Kind, Relation

#: figures of a KL whose definition is not stated: the first answer token (as heretic counts), and all answer tokens
UNSTATED_KL = ["kl.first.mean", "kl.mean"]
LONGEST = 80  # characters of a cell, or of the end of a sentence, in which a number is looked for

_NUMBER = r"\d{1,12}(?:,\d{3}){0,4}(?:\.\d{1,10})?(?:[eE]-?\d{1,2})?|\.\d{1,10}"
#: three ways in which a rate or a number stands at the beginning of a text
_RATIO = re.compile(r"(\d{1,7})\s?(?:/|of|out of)\s?(\d{1,7})(?!\d|\.\d)")
_PLAIN = re.compile(rf"({_NUMBER})\s?(%|percent\b)?")
_SIGN = re.compile(r"(?:<=|<|≤|>=|>|≥|~|≈|=)\s?")
_AT_MOST, _AT_LEAST = {"<", "<=", "≤"}, {">", ">=", "≥"}


@dataclass(frozen=True)
class Number:
    """A number as printed: ``step`` is half of its last digit; ``count`` of ``total`` for a ratio; ``end`` where it ends."""

    value: float
    step: float
    relation: Relation = "is"
    percent: bool = False
    count: int | None = None
    total: int | None = None
    decimals: int = 0
    end: int = 0


def number_at(text: str, start: int = 0) -> Number | None:
    """The number that stands at ``start`` of ``text``, with the sign of comparison before it."""
    relation: Relation = "is"
    if sign := _SIGN.match(text, start):
        mark = sign[0].strip()
        relation = "at most" if mark in _AT_MOST else "at least" if mark in _AT_LEAST else "is"
        start = sign.end()
    if ratio := _RATIO.match(text, start):
        count, total = int(ratio[1]), int(ratio[2])
        if 0 < total >= count:
            return Number(count / total, 0.0, relation, False, count, total, 0, ratio.end())
        return None
    found = _PLAIN.match(text, start)
    if not found or text[found.end() : found.end() + 1] in ("/", "⁄"):
        return None
    digits, _, power = found[1].replace(",", "").lower().partition("e")
    decimals = len(digits.partition(".")[2])
    scale = 10.0 ** int(power or 0)
    percent = found[2] is not None
    share = 0.01 if percent else 1.0
    return Number(float(digits) * scale * share, 0.5 * 10.0**-decimals * scale * share, relation, percent,
                  decimals=decimals, end=found.end())  # fmt: skip


def as_share(number: Number) -> Number | None:
    """A score as a share of 1: ``25.3%``, ``25.3`` and ``0.253`` are the same; ``None`` for what can't be a score."""
    if number.percent or number.total is not None or number.value <= 1:
        return number if number.value <= 1 else None
    if number.value > 100:
        return None
    return Number(number.value / 100, number.step / 100, number.relation, True, decimals=number.decimals, end=number.end)


@dataclass(frozen=True)
class Metric:
    """What a label means: the kind of claim, the figures it could be, and its name for people."""

    kind: Kind
    keys: tuple[str, ...]
    name: str
    unit: str = ""
    total: int | None = None


_BENCHMARKS = (
    (re.compile(r"\bmmlu\b(?![-_ ]?(?:pro|redux|stem|cf|lite|mini|x)\b|[-_]\w)"), "mmlu.accuracy", "MMLU"),
    (re.compile(r"\bpiqa\b"), "piqa.accuracy", "PIQA"),
    (re.compile(r"\b(?:commonsense[ _-]?qa|csqa)\b"), "commonsenseqa.accuracy", "CommonsenseQA"),
)
_OF = re.compile(r"\((?:of |out of |/ ?|n ?= ?)?(\d{1,6})(?: (?:harmful |harmless )?prompts)?\)|/ ?(\d{2,6})$")
_KL = re.compile(r"\bkld?\b|\bkullback")
_REFUSALS = re.compile(r"\brefus(?:al|als|ed|es|e|ing)\b")


def kl_keys(text: str) -> tuple[str, ...]:
    """Which KL a text (in lower case) speaks of."""
    for words, key in ((("median",), "kl.median"), (("p95", "95th", "95 %", "95%"), "kl.p95"), (("max",), "kl.max"),
                       (("first token", "first-token", "next token", "next-token"), "kl.first.mean"),
                       (("response", "all tokens", "per token", "every token", "per-token"), "kl.mean")):  # fmt: skip
        if any(word in text for word in words):
            return (key,)
    return tuple(UNSTATED_KL)


def metric_of(label: str) -> Metric | None:
    """What the label of a row or column stands for, or ``None``."""
    low = label.lower()[:LONGEST]
    if _KL.search(low):
        return Metric("divergence", kl_keys(low), "KL divergence", "nats")
    if "acc_norm" in low or "acc norm" in low:
        return None
    if _REFUSALS.search(low) and not re.search(r"direction|vector|loss|weight|prob|log|layer|scale|token|time", low):
        found = _OF.search(low)
        total = int(found[1] or found[2]) if found else None
        mild = re.search(r"harmless|benign|over-?refus|false|safe\b", low) is not None and "unsafe" not in low
        return Metric("rate", ("safety.harmless.refuses" if mild else "safety.harmful.refuses",),
                      "refusals of harmless requests" if mild else "refusals", "share", total or None)  # fmt: skip
    if re.search(r"\bcompl(?:iance|ies|ied)\b|\basr\b|\battack success\b", low) and "harmless" not in low:
        return Metric("rate", ("safety.harmful.complies",), "compliance with harmful requests", "share")
    for pattern, key, name in _BENCHMARKS:
        if pattern.search(low):
            return Metric("score", (key,), name, "share")
    if re.search(r"\bperplexity\b|\bppl\b", low):
        return Metric("perplexity", ("perplexity",), "perplexity")
    return None


_SIZES = {"k": 1e3, "thousand": 1e3, "m": 1e6, "million": 1e6, "b": 1e9, "billion": 1e9, "t": 1e12, "trillion": 1e12}
_SIZE = re.compile(r"(\d{1,6}(?:\.\d{1,4})?)\s?(k|m|b|million|billion)\b", re.IGNORECASE)
_CONTEXT = re.compile(r"(?:full |up to )?(\d{1,4}(?:,\d{3}){1,2}|\d{1,9})(?:(\s?k)\b)?", re.IGNORECASE)
_DTYPES = {"bf16": "BF16", "bfloat16": "BF16", "f16": "F16", "fp16": "F16", "float16": "F16", "f32": "F32",
           "fp32": "F32", "float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16",
           "torch.float32": "F32"}  # fmt: skip


def size_at(text: str, start: int = 0) -> Number | None:
    """``135M`` or ``1.5 billion`` as a number, ± half of its last digit."""
    found = _SIZE.match(text, start)
    if not found:
        return None
    unit, decimals = _SIZES[found[2].lower()], len(found[1].partition(".")[2])
    return Number(float(found[1]) * unit, 0.5 * 10.0**-decimals * unit, end=found.end())


def context_at(text: str, start: int = 0) -> Number | None:
    """``8192``, ``32,768`` or ``128K`` tokens; a K is 1000 or 1024, so its step covers both."""
    found = _CONTEXT.match(text, start)
    if not found:
        return None
    count = int(found[1].replace(",", ""))
    return Number(count * 1024.0, count * 24.0, end=found.end()) if found[2] else Number(float(count), 0.0, end=found.end())


def dtype_of(text: str) -> str | None:
    """A dtype by any of its names, as safetensors calls it."""
    return _DTYPES.get(text.strip().lower())


def number_fields(number: Number) -> dict[str, Any]:
    """The fields of a claim that a number fills."""
    return {"value": number.value, "count": number.count, "total": number.total, "step": number.step,
            "relation": number.relation}  # fmt: skip
