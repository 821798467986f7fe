"""``measure``: one model against its base, on report prompts, with intervals; the record from which reports are drawn."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoint import RECORD, Checkpoint, read_json
from ..direction import Direction, load_direction
from ..errors import RecipeError, ShapeMismatch, UsageError, WeightsmithError
from ..options import RunOptions
from ..records import DERIVATION, Derivation, MeasureRecord, parse
from ..storage import cache_dir, write_whole
from .files import as_checkpoint


def measure(
    model: Checkpoint | str | Path,
    against: Checkpoint | str | Path,
    feature: str,
    *,
    direction: Direction | str | Path | None = None,
    n: int | None = None,
    tokens: int = 48,
    options: RunOptions | None = None,
) -> MeasureRecord:
    """Measure ``model`` against its base on the *report* prompts of ``feature``.

    ``n`` limits the prompts (all of the report part by default), ``tokens`` the length of answers. The probe needs the
    feature's ``direction``; it is taken from the model's own record and the cache when it is not given.

    Raises:
        RecipeError: a feature that can't be asked for; EditError: different vocabularies; NonFinite: NaN.
    """
    options = options or RunOptions()
    if n is not None and n < 2:
        raise UsageError(f"{n} prompts have no interval", hint="give at least 2")
    clock = time.perf_counter()
    session = Session(against, feature, direction=direction, n=n, tokens=tokens, options=options, edited=model)
    record = session.compare(model)
    record.seconds["in all"] = time.perf_counter() - clock
    return record


class Session:
    """A base that is loaded and measured once, and compared with any number of edits."""

    def __init__(
        self, against: Checkpoint | str | Path, feature: str, *, direction: Direction | str | Path | None = None,
        n: int | None = None, tokens: int = 48, options: RunOptions | None = None,
        edited: Checkpoint | str | Path | None = None,
    ) -> None:  # fmt: skip
        from ..features.prompts import prompt_sets
        from ..features.recipe import load_feature
        from ..measure import compare
        from ..runtime.load import load

        self.options = options or RunOptions()
        self.seconds: dict[str, float] = {}
        self.spec, folder = load_feature(feature)
        self.sets = prompt_sets(self.spec, folder)
        self.tokens = tokens
        base = as_checkpoint(against, self.options)
        derivation = None
        if edited is not None:
            other = as_checkpoint(edited, self.options)
            other.check_record()  # a damaged model is known before minutes are spent on its base
            derivation = read_derivation(other)
        self.direction = self._find_direction(direction, derivation)
        start = time.perf_counter()
        self.base = load(base, self.options)
        self._check_direction(given=direction is not None)
        self.seconds["loading the base"] = time.perf_counter() - start
        start = time.perf_counter()
        self.suite = compare.build_suite(self.base, self.spec, self.sets, self.direction, n, tokens)
        self.before = compare.run_model(self.base, self.suite, "base")
        self.items, self.states = compare.base_states(self.base, self.suite, self.before)
        self.seconds["measuring the base"] = time.perf_counter() - start

    def _find_direction(self, given: Direction | str | Path | None, record: Derivation | None) -> Direction | None:
        if isinstance(given, Direction):
            return given
        if given is not None:
            return load_direction(Path(given))
        for digest, meta in (record.directions if record else {}).items():
            kept = cache_dir() / "directions" / f"{Path(digest).name}.safetensors"
            with contextlib.suppress(WeightsmithError):  # a damaged cache entry is none
                if meta.feature == self.spec.name and kept.is_file():
                    found = load_direction(kept)
                    if found.digest() == digest:
                        return found
        return None

    def _check_direction(self, *, given: bool) -> None:
        """The probe reads the base: a direction of another shape is an error where it was given, else left out."""
        if self.direction is None:
            return
        try:
            if self.direction.check_model(self.base.identity, transfer=True):
                self.base.note("the probe's direction was found on other weights than this base")
        except ShapeMismatch:
            if given:
                raise
            self.direction = None

    def compare(self, model: Checkpoint | str | Path, *, title: str = "") -> MeasureRecord:
        """Load ``model``, measure it as the base was measured, and compare."""
        from ..runtime.load import load

        start = time.perf_counter()
        checkpoint = as_checkpoint(model, self.options)
        edited = load(checkpoint, self.options)
        seconds = {"loading the edited model": time.perf_counter() - start}
        return self._compare(edited, read_derivation(checkpoint), seconds, title)

    def compare_hooks(self, hooks: list[Any], *, title: str = "") -> MeasureRecord:
        """Compare the base with itself under runtime hooks: the same edit, without new weights."""
        from ..runtime import steering

        with steering(self.base, hooks):
            return self._compare(self.base, None, {}, title)

    def _compare(
        self, edited: Any, derivation: Derivation | None, seconds: dict[str, float], title: str
    ) -> MeasureRecord:
        from ..measure import compare

        start = time.perf_counter()
        after = compare.run_model(edited, self.suite, "edited")
        harm = compare.damage(self.base, edited, self.items, self.states, self.before, after)
        seconds["measuring the edited model"] = time.perf_counter() - start
        conditions = [{"condition": c, "n": len(p[0])} for c, p in self.suite.conditions.items()]
        notes = sorted({*self.base.notes, *edited.notes, *(derivation.notes if derivation else [])})
        if self.direction is None and any(s.kind == "probe" for s in self.spec.scorers):
            notes.append("the probe was left out: the feature's direction is not at hand (give --direction)")
        if self.direction is not None and self.direction.meta.prompts_digest != self.sets.digest:
            notes.append("the direction was found with other prompts than this recipe's: some of the report prompts may "
                         "have been used to find it, so run `find` again before you trust these figures")  # fmt: skip
        return MeasureRecord(
            title=title or f"{self.spec.name}: {edited.checkpoint.title} against {self.base.checkpoint.title}",
            sentence=sentence(derivation, self.base.checkpoint.title, self.spec.name),
            feature=self.spec.name, feature_description=self.spec.description.strip(),
            base=self.base.identity, edited=edited.identity,
            differences=compare.differences(self.suite, self.before, after), damage=harm,
            answers=compare.answers(self.suite, self.before, after), scorers=compare.scorer_notes(self.suite),
            direction=self.direction.meta if self.direction else None, derivation=derivation,
            options={"answer_tokens": self.tokens, "decoding": "greedy", "conditions": conditions,
                     "prompts_digest": self.sets.digest, "part": "report"},
            ran=edited.ran, seconds={**self.seconds, **seconds}, notes=notes,
            versions={"weightsmith": __version__},
        )  # fmt: skip


def read_derivation(checkpoint: Checkpoint) -> Derivation | None:
    """The model's own ``weightsmith.json``, or ``None``.

    Raises:
        RecipeError: a record of another schema.
    """
    file = checkpoint.path / RECORD
    if checkpoint.kind != "folder" or not file.is_file():
        return None
    derivation: Derivation = parse(Derivation, read_json(file), file, DERIVATION)
    return derivation


def sentence(derivation: Derivation | None, base: str, feature: str) -> str:
    """What was done, in one sentence."""
    if derivation is None:
        return f"A model was compared with {base} on {feature}."
    parts = []
    for step in derivation.edit.steps:
        found = derivation.directions.get(step.direction)
        name = found.feature if found else "a direction that the record does not hold"
        span = f"layers {min(step.layers)}–{max(step.layers)}" if len(step.layers) > 1 else f"layer {step.layers[0]}"
        if step.kind == "remove":
            how = "removed exactly from" if step.amount == 1 else f"removed by {step.amount:.0%} from"
            parts.append(f"{name} was {how} {len(derivation.tensors)} tensors ({span})")
        elif step.kind == "add":
            pole = "enhanced" if step.amount > 0 else "turned down"
            parts.append(f"{name} was {pole} by a constant of dose {step.amount:g} ({span})")
        else:
            parts.append(f"what {base} shows of {name} was multiplied by {step.amount:g} ({span})")
    return f"In {base}, {' and '.join(parts)}."


def save_record(record: MeasureRecord | list[MeasureRecord], path: Path, *, replace: bool = False) -> None:
    """Write measurements as JSON, whole or not at all."""
    many = record if isinstance(record, list) else [record]
    data = [r.model_dump(by_alias=True) for r in many]
    text = json.dumps(data if isinstance(record, list) else data[0], indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path, (text + "\n").encode(), replace=replace)


def save_report(records: list[MeasureRecord], path: Path, *, title: str | None = None, replace: bool = False) -> None:
    """Write the HTML report, whole or not at all.

    Raises:
        RecipeError: there is nothing to report.
    """
    from ..report.html import render_report

    if not records:
        raise RecipeError("there is nothing to report")
    html = render_report(records if len(records) > 1 else records[0], title=title)
    write_whole(path, html.encode(), replace=replace)
