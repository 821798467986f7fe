"""Features made ready to be asked: recipe, prompts, direction and scorers, and the proof that no prompt is used twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..direction import Direction, load_direction
from ..errors import RecipeError, UsageError, WeightsmithError
from ..features.prompts import PromptSets, prompt_sets
from ..features.recipe import FeatureSpec, load_feature
from ..measured import ScorerNote
from ..records import Derivation, DirectionMeta
from ..storage import cache_dir
from .degenerate import RULES
from .judge import Access, Judge
from .overlap import overlaps, refuse_overlap
from .refusal import Refusal
from .scorers import SCORERS, Probe, Scorer
from .suites import Block, FeaturePlan, Suite, feature_blocks, safety_prompts


@dataclass(frozen=True)
class Wanted:
    """What the user asked to measure: recipes by name or file, whether questions that were used to find or choose an edit
    are dropped (they are an error otherwise), the judge that may be asked, if any, and whether no network may be."""

    features: tuple[str, ...]
    drop_overlap: bool = False
    judge: Access | None = None
    offline: bool = False


def own_direction(feature: str, record: Derivation | None, folder: Path) -> Direction | None:
    """The direction of ``feature`` that a model's own record names, from beside the record or from the cache."""
    for digest, meta in (record.directions if record else {}).items():
        name = Path(digest).name
        places = [*folder.glob(f"weightsmith/direction-{name[:8]}*.safetensors"),
                  cache_dir() / "directions" / f"{name}.safetensors"]  # fmt: skip
        for kept in places if meta.feature == feature else ():
            with contextlib.suppress(WeightsmithError):  # a damaged one is none
                if kept.is_file() and (found := load_direction(kept)).digest() == digest:
                    return found
    return None


def make_scorers(
    spec: FeatureSpec, direction: Direction | None, reader: Callable[[], Any] | None, reader_digest: str = ""
) -> list[Scorer]:
    """The recipe's scorers; the probe only where its direction is at hand."""
    made: list[Scorer] = []
    for wanted in spec.scorers:
        if wanted.kind == "probe":
            if direction is not None:
                made.append(Probe(direction, probe_layer(direction), reader, reader_digest))
            continue
        made.append(SCORERS.load(wanted.kind).make(wanted.options))
    return made


def probe_layer(direction: Direction) -> int:
    """The layer that the probe reads: the chosen removal's source, else the one with the best AUROC."""
    if chosen := direction.meta.best("remove"):
        return chosen.source
    if direction.meta.quality:
        return max(direction.meta.quality, key=lambda q: q.auroc).layer
    return direction.meta.layers[len(direction.meta.layers) * 6 // 10]


def plan_features(
    wanted: Wanted, suite: Suite, used: Sequence[DirectionMeta], reader: Callable[[], Any], reader_digest: str,
    direction_of: Callable[[FeatureSpec], Direction | None], notes: list[str],
) -> list[FeaturePlan]:  # fmt: skip
    """Read the recipes, leave no prompt that the edit was found or chosen with, and build the blocks.

    Raises:
        RecipeError: a bad recipe; the same feature twice; a *report* prompt that was used before.
    """
    plans: list[FeaturePlan] = []
    recipes: set[str] = set()
    for name in wanted.features:
        spec, folder = load_feature(name)
        if any(p.spec.name == spec.name for p in plans):
            raise UsageError(f"the feature {spec.name!r} was given twice")
        whole = prompt_sets(spec, folder, offline=wanted.offline)
        recipes.add(whole.digest)
        sets = without_overlap(whole, used, spec.name, wanted.drop_overlap, notes)
        direction = direction_of(spec)
        scorers = judged_by(make_scorers(spec, direction, reader, reader_digest), spec, wanted.judge, notes)
        plan = FeaturePlan(spec, sets, tuple(scorers))
        if direction is None and any(s.kind == "probe" for s in spec.scorers):
            notes.append(f"{spec.name}: the probe was left out, since the feature's direction is not at hand (give --direction)")
        plans.append(replace(plan, blocks=tuple(feature_blocks(plan, suite))))
    notes += unrecorded(used, recipes)
    return plans


def judged_by(scorers: list[Scorer], spec: FeatureSpec, access: Access | None, notes: list[str]) -> list[Scorer]:
    """The scorers with the judge that the user allowed; without one a recipe's judge is left out, and nothing is sent."""
    mine = [s for s in scorers if isinstance(s, Judge)]
    others = [s for s in scorers if not isinstance(s, Judge)]
    if access is None:
        if mine:
            notes.append(f"{spec.name}: the recipe's judge was left out, since no judge was given (--judge URL)")
        return others
    named = mine or [Judge.for_feature(spec.description.strip())]
    return [*others, *(replace(judge, access=access) for judge in named)]


def without_overlap(
    sets: PromptSets, used: Sequence[DirectionMeta], name: str, drop: bool, notes: list[str]
) -> PromptSets:
    """The same sets, once no *report* prompt is equal or nearly equal to one that a direction was found or chosen with.

    Raises:
        RecipeError: there is one, and ``drop`` is off; or nothing is left.
    """
    report = sets.report
    found = used_before(used, [*report.shows, *report.lacks])
    if not found:
        return sets
    if not drop:
        refuse_used(used, [*report.shows, *report.lacks], name)
    gone = set(found)
    if len(report.shows) == len(report.lacks):  # personas and pairs: the two sides stay row by row
        rows = [(a, b) for a, b in zip(report.shows, report.lacks, strict=True) if a not in gone and b not in gone]
        shows, lacks = [a for a, _ in rows], [b for _, b in rows]
    else:
        shows, lacks = ([p for p in side if p not in gone] for side in (report.shows, report.lacks))
    if len(shows) < 2 or len(lacks) < 2:
        raise RecipeError("every report prompt was used to find or choose the edit: none is left to measure with",
                          where=name, hint="give a recipe with other prompts")  # fmt: skip
    notes.append(f"{name}: {len(gone)} report prompts were left out, since the edit was found or chosen with them")
    return replace(sets, report=replace(report, shows=tuple(shows), lacks=tuple(lacks)))


def unrecorded(used: Sequence[DirectionMeta], recipes: Collection[str]) -> list[str]:
    """Notes on directions whose prompts nobody knows: no sketches, and not found with one of the ``recipes`` (digests of
    prompt sets), whose parts are known to be disjoint."""
    notes = []
    for meta in used:
        if not meta.prompts and meta.prompts_digest not in recipes:
            how = "imported without its prompts" if "imported" in meta.ran else "made before prompts were recorded"
            notes.append(f"the direction of {meta.feature!r} was {how}: whether the report prompts were used to find it "
                         "can't be checked")  # fmt: skip
    return list(dict.fromkeys(notes))


def short_of(n: int, blocks: Iterable[Block]) -> list[str]:
    """Notes on conditions that have fewer prompts than the ``n`` that were asked for."""
    short: dict[tuple[str, int], list[str]] = {}
    for block in blocks:
        if len(block.asks) < n:
            short.setdefault((block.group, len(block.asks)), []).append(block.condition)
    return [f"{group}: {n} prompts were asked for, and there are {there} ({'; '.join(conditions)})"
            for (group, there), conditions in short.items()]  # fmt: skip


def used_before(used: Sequence[DirectionMeta], prompts: Sequence[str]) -> dict[str, str]:
    """Which of ``prompts`` were used before, and for what: prompt to ``extract`` or ``select``."""
    found: dict[str, str] = {}
    for meta in used:
        for part, prompt in overlaps(meta.prompts, list(dict.fromkeys(prompts))):
            found.setdefault(prompt, part)
    return found


def refuse_used(used: Sequence[DirectionMeta], prompts: Sequence[str], name: str) -> None:
    """Raise :class:`RecipeError` where one of ``prompts`` was used before."""
    for meta in used:
        refuse_overlap(meta.prompts, list(dict.fromkeys(prompts)), name)


def check_safety(used: Sequence[DirectionMeta], drop: bool, notes: list[str]) -> set[str]:
    """Safety prompts that were used before; with ``drop`` they are left out, else they are an error.

    Raises:
        RecipeError: an overlap, and ``drop`` is off.
    """
    prompts = [p for several in safety_prompts().values() for p in several]
    found = used_before(used, prompts)
    if not drop:
        refuse_used(used, prompts, "safety")
    if found:
        notes.append(f"safety: {len(found)} prompts were left out, since the edit was found or chosen with them")
    return set(found)


def scorer_notes(plans: Sequence[FeaturePlan]) -> list[ScorerNote]:
    """What every scorer in use reads and what is known of its error, each once."""
    rules = ScorerNote(name="degenerate", reads=RULES, error="rules, not calibrated; the same for both models")
    notes = {n.name: n for n in (*(s.note() for p in plans for s in p.scorers), Refusal.make({}).note(), rules)}
    return list(notes.values())


__all__ = ["Wanted", "check_safety", "make_scorers", "own_direction", "plan_features", "probe_layer", "scorer_notes", "short_of",
           "unrecorded"]  # fmt: skip
