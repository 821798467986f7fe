"""Matrices of a low-rank adapter: whether each has its other half, a module that the settings name, and a likely size."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from ...found import Finding, Severity
from ..listing import shown
from ..rules import Rule
from ..values import Measured
from .facts import Place, Weights, whole_number
from .regexes import is_explosive

HALF = Rule(
    "adapter-half", "broken", "An adapter lacks one of the two matrices of a module",
    "A loader fills what is missing as for a new adapter: half of it is zero, so that the module stays as it was, or what is "
    "added is random. It says so in a warning at most.",
    "Fetch the adapter again; if it stays so, tell the publisher.",
)  # fmt: skip
ELSEWHERE = Rule(
    "adapter-elsewhere", "broken", "An adapter's matrices belong to modules that its settings do not name",
    "A loader makes room for the modules of `target_modules` only and leaves all other matrices out, without an error: the model "
    "answers as if there were no adapter.",
    "Fetch settings and weights again from one revision.",
)  # fmt: skip
ABSURD = Rule(
    "adapter-absurd", "suspicious", "An adapter that drowns what it is added to",
    "Weights of models are mostly smaller than one. What this adapter adds is a hundred times as large: nothing of the model "
    "remains.",
    "Do not use it before the publisher explains it.",
)  # fmt: skip
RULES = (HALF, ELSEWHERE, ABSURD)

LOUD = 100.0  # root mean square of what is added; that of a model's matrices is below one
HUGE = 1e4  # a single value
_PAIR = re.compile(r"(?P<module>.+?)[._](?P<kind>lora_embedding_|lora_|lora_linear_layer\.)(?P<side>A|B|up|down)\d*(?:\..+)?")
_OTHER = {"A": "B", "B": "A", "up": "down", "down": "up"}
_UP = ("B", "up")
_WIDE = ("F32", "F16", "BF16", "F64")
_SAID = 12
#: of a pattern that is run over names: repetitions, and how many names of how many letters it is tried on
_REPEATED, _TRIED, _LONG = 3, 32, 200


def compare(place: Place, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Findings about the adapters of one directory, whose settings are empty where it has none."""
    for weights in place.weights:
        pairs: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        for name in weights.tensors:
            if match := _PAIR.fullmatch(name):
                pairs[match["module"], match["kind"]].setdefault(match["side"], name)
        if not pairs:
            continue
        if settings.get("peft_type", "LORA") == "LORA" and weights.complete:
            yield from _halves(pairs, weights, None if settings else "suspicious")
        if settings.get("peft_type") == "LORA":
            yield from _elsewhere(sorted({module for module, _ in pairs}), settings, shown(place.prefix + "adapter_config.json"))
        yield from _absurd(pairs, weights, place, settings)


def _halves(
    pairs: Mapping[tuple[str, str], Mapping[str, str]], weights: Weights, severity: Severity | None
) -> Iterator[Finding]:
    alone = [name for sides in pairs.values() for side, name in sides.items() if _OTHER[side] not in sides]
    if alone:
        yield HALF.found(f"{len(alone)} matrices stand alone, e.g. {alone[0]!r:.120}", file=shown(weights.files[0]),
                         place=f"tensor {alone[0][:120]!r}", evidence=", ".join(alone[:_SAID]),
                         severity=severity)  # fmt: skip


def _elsewhere(modules: list[str], settings: Mapping[str, Any], file: str) -> Iterator[Finding]:
    """Modules with matrices against those that the settings name, as PEFT compares them: whole, or by how they end."""
    targets = settings.get("target_modules")
    more = settings.get("target_parameters")
    if more or settings.get("auto_mapping") or settings.get("megatron_config") or not targets:
        return  # parameters that are no module's own weight belong to modules around them
    names = [module.removeprefix("base_model.model.").removesuffix(".base_layer") for module in modules]
    if isinstance(targets, str):
        outside = names if _matches_none(targets, names) else []
    else:
        known = {target for target in targets if isinstance(target, str)} if isinstance(targets, list) else set()
        if not known:
            return
        outside = [name for name in names if not _ends(name, known)]
    certain = len(outside) == len(names) and not isinstance(targets, str)
    if outside:
        yield ELSEWHERE.found(f"{len(outside)} of {len(names)} modules, e.g. {outside[0]!r:.120}; "
                              f"target_modules is {targets!r:.120}", file=file, place="$.target_modules",
                              evidence=", ".join(outside[:_SAID]),
                              severity=None if certain else "suspicious")  # fmt: skip


def _matches_none(pattern: str, names: list[str]) -> bool:
    """Whether a pattern, where it is simple enough to be run, fits no name, with or without what stands before its parts."""
    if pattern == "all-linear" or sum(map(pattern.count, "*+{")) > _REPEATED or is_explosive(pattern):
        return False
    try:
        known = re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    tried = [name.split(".") for name in names[:_TRIED] if len(name) <= _LONG]
    return bool(tried) and not any(known.fullmatch(".".join(parts[n:])) for parts in tried for n in range(min(4, len(parts))))


def _ends(name: str, known: set[str]) -> bool:
    """Whether a module's name, or its end behind a dot, is among the known ones."""
    parts = name.split(".")
    return any(".".join(parts[n:]) in known for n in range(len(parts)))


def _absurd(
    pairs: Mapping[tuple[str, str], Mapping[str, str]], weights: Weights, place: Place, settings: Mapping[str, Any]
) -> Iterator[Finding]:
    """What the product of two matrices adds, by their sizes: a root mean square of both, and the square root of the rank."""
    found = []
    for (module, _), sides in pairs.items():
        facts = {side: place.folder.tensors.get((weights.tensors[name][2], name)) for side, name in sides.items()
                 if weights.tensors[name][0] in _WIDE}  # fmt: skip
        known = {side: fact for side, fact in facts.items() if isinstance(fact, Measured) and fact.rms is not None}
        peak = max((fact.peak or 0.0 for fact in known.values()), default=0.0)
        up = next((side for side in known if side in _UP), None)
        other = known.get(_OTHER[up]) if up else None
        added = 0.0
        if up and other is not None:
            shape = weights.tensors[sides[up]][1]
            rank = shape[1] if len(shape) > 1 else 1
            added = (known[up].rms or 0.0) * (other.rms or 0.0) * math.sqrt(max(1, rank)) * _factor(settings)
        if added > LOUD or (HUGE < peak < math.inf):
            found.append((module, added, peak))
    if found:
        module, added, peak = max(found, key=lambda each: each[1])
        yield ABSURD.found(f"{len(found)} modules, e.g. {module[:120]}: about {added:.3g} is added, "
                           f"the greatest value is {peak:.3g}", file=shown(weights.files[0]),
                           evidence=", ".join(name for name, _, _ in found[:_SAID]))  # fmt: skip


def _factor(settings: Mapping[str, Any]) -> float:
    """What the product is multiplied by, where the settings say it."""
    alpha, rank = settings.get("lora_alpha"), whole_number(settings.get("r"))
    if rank is None or isinstance(alpha, bool) or not isinstance(alpha, int | float):
        return 1.0
    try:
        return 1.0 if alpha != alpha else min(1e4, abs(alpha) / (math.sqrt(rank) if settings.get("use_rslora") is True else rank))
    except OverflowError:
        return 1.0
