"""``measure``: a model against its base, or alone, on prompts that nothing was chosen with; the record that all else is
drawn from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import RECORD, Checkpoint, read_json
from ..direction import Direction, load_direction
from ..errors import ShapeMismatch, UsageError
from ..measured import MeasureRecord
from ..options import RunOptions
from ..records import DERIVATION, Derivation, DirectionMeta, parse
from .files import as_checkpoint

if TYPE_CHECKING:
    from ..features.recipe import FeatureSpec
    from ..measure.damage import Reference
    from ..measure.run import Run
    from ..measure.subject import Subject

Model = Checkpoint | str | Path


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured, apart from the models.

    ``suite`` is ``quick``, ``standard``, ``full`` or a :class:`weightsmith.measure.suites.Suite`; ``n`` and ``tokens``
    override its number of prompts and length of answers. The probe needs a feature's ``direction``; it is taken from the
    model's own record and the cache when it is not given. ``drop_overlap`` leaves out prompts that the edit was found or
    chosen with, which are an error otherwise. ``sets`` names the sets of questions (all that are installed, where the
    suite has them, by default), ``tasks`` tasks of lm-eval. ``workers`` are a number, ``ray`` or ``ray:HOST:PORT``.
    ``judge`` is the :class:`weightsmith.measure.judge.Access` of a judge that may be sent the answers; none is asked
    otherwise.
    """

    suite: Any = "quick"
    direction: Direction | str | Path | None = None
    n: int | None = None
    tokens: int | None = None
    drop_overlap: bool = False
    sets: tuple[str, ...] | None = None
    tasks: tuple[str, ...] = ()
    workers: str | None = None
    judge: Any = None


def measure(
    model: Model, against: Model | None = None, feature: str | Sequence[str] = (), *, options: RunOptions | None = None,
    **wishes: Any,
) -> MeasureRecord:  # fmt: skip
    """Measure ``model``, against its base where one is given, on the *report* prompts of the features and on safety.

    ``wishes`` are the fields of :class:`MeasureOptions`.

    Raises:
        RecipeError: a feature that can't be asked for, or prompts that were used before; NonFinite: NaN in the logits;
        UsageError: an unknown suite or set.
    """
    clock = time.perf_counter()
    session = Session(against, feature, edited=model, options=options, **wishes)
    record = session.compare(model)
    record.seconds["in all"] = time.perf_counter() - clock
    return record


class Session:
    """A plan and a base that is measured once, compared with any number of edits; without a base, models alone.

    Nothing is loaded or asked before the first comparison; ``design`` says what will be asked and what can be seen.
    """

    def __init__(
        self, against: Model | None, feature: str | Sequence[str] = (), *, edited: Model | None = None,
        options: RunOptions | None = None, **wishes: Any,
    ) -> None:  # fmt: skip
        from ..measure import prepare, suites
        from ..measure.questions import Questions
        from ..measure.subject import Subject
        from ..measure.workers import Pool

        self.options, self.wishes = options or RunOptions(), _wishes(wishes)
        w = self.wishes
        chosen = suites.get_suite(w.suite) if isinstance(w.suite, str) else w.suite
        self.suite = replace(chosen, **{k: v for k, v in {"n": w.n, "tokens": w.tokens}.items() if v is not None})
        if w.n is not None:
            self.suite = replace(self.suite, safety=None if isinstance(w.suite, str) else self.suite.safety)
        if w.n is not None:  # it limits the sets of questions as well
            self.suite = replace(self.suite, choice=w.n if w.sets or w.tasks else min(w.n, chosen.choice),
                                 bias=w.n if w.sets else min(w.n, chosen.bias))  # fmt: skip
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        self.given = _given(w.direction)
        self.derivation, self.folder, who = None, Path(), None
        if edited is not None:
            # a damaged model is known before minutes are spent on its base
            other = Subject.open("edited", as_checkpoint(edited, self.options), self.options)
            self.folder, who = other.checkpoint.path, other.identity
            self.derivation = read_derivation(other.checkpoint)
        start = time.perf_counter()
        self.base: Subject | None = None
        if against is not None:
            self.base = Subject.open("base", as_checkpoint(against, self.options), self.options)
        self.seconds["reading the base"] = time.perf_counter() - start
        self.directions: dict[str, Direction] = {}
        self._who = self.base.identity if self.base is not None else who
        self._reader: Subject | None = self.base
        names = (feature,) if isinstance(feature, str) else tuple(feature)
        used = self._used()
        self.plans = prepare.plan_features(
            prepare.Wanted(names or self._own_features(), w.drop_overlap, w.judge, self.options.offline), self.suite, used,
            self._read, self.base.key if self.base else "", self._direction_of, self.notes,
        )  # fmt: skip
        if self.given is not None and self.given.meta.feature not in (measured := [p.spec.name for p in self.plans]):
            raise UsageError(f"the direction given is of {self.given.meta.feature!r}, which is not measured",
                             where=w.direction if isinstance(w.direction, str | Path) else None,
                             hint=f"measured: {', '.join(measured) or 'no feature'} (--feature)")  # fmt: skip
        self.safety = suites.safety_blocks(self.suite, prepare.check_safety(used, w.drop_overlap, self.notes))
        if w.n is not None:
            self.notes += prepare.short_of(w.n, [*(b for p in self.plans for b in p.blocks), *self.safety])
        self.questions = Questions.wanted(self.suite, w.sets, w.tasks, self.notes)
        self.pool = Pool(w.workers, self.options) if w.workers else None
        self.before: Run | None = None
        self.references: dict[str, Reference] = {}
        self.after: Run | None = None

    def _used(self) -> list[DirectionMeta]:
        """What is known of the prompts that the edit was found and chosen with."""
        own = list(self.derivation.directions.values()) if self.derivation else []
        return [*own, *([self.given.meta] if self.given else [])]

    def _own_features(self) -> tuple[str, ...]:
        """The shipped features that the model's own record edits."""
        from ..features.recipe import shipped_features

        own = dict.fromkeys(m.feature for m in (self.derivation.directions.values() if self.derivation else ()))
        return tuple(name for name in own if name in shipped_features())

    def _read(self) -> Any:
        """The running model that probes read with: the base, or the model itself where there is none."""
        assert self._reader is not None, "a session reads with a model"
        return self._reader.running

    def _direction_of(self, spec: FeatureSpec) -> Direction | None:
        """The feature's direction, given or from the model's record; one of another shape is an error where it was given."""
        from ..measure.prepare import own_direction

        mine = self.given if self.given is not None and self.given.meta.feature == spec.name else None
        found = mine or own_direction(spec.name, self.derivation, self.folder)
        if found is None:
            return None
        try:
            if self._who is not None and found.check_model(self._who, transfer=True) and self.base is not None:
                self.notes.append(f"{spec.name}: the probe's direction was found on other weights than this base")
        except ShapeMismatch:
            if mine is not None:
                raise
            return None
        self.directions[spec.name] = found
        return found

    def design(self) -> list[tuple[str, int, float, float]]:
        """What each condition can see: (condition, units, smallest change of a rate, of a mean in standard deviations)."""
        from ..measure.power import minimum_detectable

        rows = []
        for block in [*(b for p in self.plans for b in p.blocks), *self.safety]:
            n = len(set(block.units))
            rows.append((f"{block.group}: {block.condition}", n, minimum_detectable(n, True), minimum_detectable(n, False)))
        return rows

    def measure_base(self) -> None:
        """Measure the base, or look up what is known of it; called by the first comparison."""
        if self.base is None or self.before is not None:
            return
        from ..measure import damage

        start = time.perf_counter()
        self.before = self._run(self.base)
        for block in self._compared_blocks():
            self.references[block.key] = damage.reference(self.base, self.before.block(block.key))
        if not any(s.asks for p in self.plans for s in p.scorers):
            self.base.release()
        self.seconds["measuring the base"] = time.perf_counter() - start

    def _compared_blocks(self) -> list[Any]:
        """Where distributions are compared: harmless requests, and features' neutral prompts that are others."""
        harmless = next(b for b in self.safety if b.key == "safety.harmless")
        own = [p.blocks[0] for p in self.plans if p.blocks[0].prompts_digest != harmless.prompts_digest]
        return [harmless, *own]

    def _run(self, subject: Subject) -> Run:
        from ..measure.run import run_suite

        return run_suite(subject, self.suite, self.plans, self.safety, self._sets, self.pool)

    def _sets(self, subject: Subject) -> list[Any]:
        return self.questions.run(subject, self.suite)

    def compare(self, model: Model, *, title: str = "") -> MeasureRecord:
        """Measure ``model`` as the base is measured, and compare; without a base, measure it alone."""
        from ..measure.subject import Subject

        checkpoint = as_checkpoint(model, self.options)
        checkpoint.check_record()
        self.measure_base()
        edited = Subject.open("edited" if self.base else "model", checkpoint, self.options)
        return self._compare(edited, read_derivation(checkpoint), title)

    def compare_hooks(self, hooks: list[Any], *, title: str = "") -> MeasureRecord:
        """Compare the base with itself under runtime hooks: the same edit, without new weights."""
        if self.base is None:
            raise UsageError("hooks are compared with the model without them", hint="give the base")
        self.measure_base()
        return self._compare(self.base.under(hooks, "edited"), None, title)

    def _compare(self, edited: Subject, derivation: Derivation | None, title: str) -> MeasureRecord:
        from . import measured

        start = time.perf_counter()
        if self.base is None:
            self._reader = edited
        self.after = self._run(edited)
        if self.pool is not None:
            self.pool.release()  # the memory of the models; the workers come back when they are needed
        seconds = {"measuring the edited model" if self.base else "measuring the model": time.perf_counter() - start}
        return measured.record(self, edited, self.after, derivation, seconds, title)


def _wishes(given: dict[str, Any]) -> MeasureOptions:
    known = MeasureOptions.__dataclass_fields__
    if odd := [k for k in given if k not in known]:
        raise TypeError(f"measure() has no option {odd[0]!r}; it takes {', '.join(known)}")
    return MeasureOptions(**given)


def _given(direction: Direction | str | Path | None) -> Direction | None:
    if not isinstance(direction, str | Path):
        return direction
    path = Path(direction).expanduser()
    if not path.is_file():
        raise UsageError("no such direction file", where=path, hint="`weightsmith find` writes one")
    return load_direction(path)


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
