"""``compare``: measurements beside each other, tested where they can be, with conditions that a build can fail by.

Every file after the first (A) is compared with it. Two figures of one key are

- *paired*, prompt by prompt, if both were read on the same prompts (equal digests) and each has one value a prompt;
- *unpaired* if the prompts are others, or it is not on record which of them lack a value;
- *side by side*, untested, if a difference would be of something else: another scorer, another length of answers.

Verdicts need a p that stays under 0.05 when adjusted within its group (Holm), as in a measurement.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..compared import Against, Cell, Change, ComparedFile, CompareRecord, Row
from ..errors import FormatError, UsageError
from ..measured import Difference, Measurement, MeasureRecord
from ..storage import write_whole
from .gates import judge, read_gate
from .measured import HINT, load_record

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OPTIONS = {"answer_tokens": "length of answers in tokens", "decoding": "decoding", "default_decoding": "sampling",
            "part": "part of the prompts", "seeds": "seeds"}  # fmt: skip
#: no figure is that large, and squares of larger ones are infinite
_LARGEST = 1e150
_RAN = ("dtype", "device", "attention")


@dataclass
class Known:
    """One figure of one record: ``lost`` answers of either side, ``change`` from its base, ``of_base`` where it is KL
    or agreement with the base and nothing without it."""

    figure: Measurement
    lost: int = 0
    change: Difference | None = None
    of_base: bool = False


@dataclass
class Opened:
    """A record that was read, with its figures by key."""

    label: str
    file: Path
    record: MeasureRecord
    figures: dict[str, Known] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)


def compare(files: Sequence[str | Path], *, fail_if: Sequence[str] = ()) -> CompareRecord:
    """Compare measurements that were saved as JSON; a single one is only shown and held against ``fail_if``.

    ``fail_if`` are conditions of the language in :mod:`.gates`.

    Raises:
        UsageError: no file or more than 26, or a condition that can't be read or judged; RecipeError, FormatError: a file
        is not there or no measurement, or has figures that are no numbers.
    """
    if not 0 < len(files) <= len(LETTERS):
        raise UsageError(f"{len(files)} files to compare", hint=f"give 1 to {len(LETTERS)} measurements (.json)")
    gates = [read_gate(text) for text in fail_if]
    opened = [_open(label, Path(f)) for label, f in zip(LETTERS, files, strict=False)]
    first, *later = opened
    keys = list(dict.fromkeys(k for o in opened for k in o.figures))
    columns = [_against(first, o, keys) for o in later]
    record = CompareRecord(
        files=[_about(o) for o in opened],
        rows=[_row(k, opened, [column[k] for column in columns]) for k in keys],
        warnings=[w for o in later for w in warnings(first, o)],
        notes=[f"{o.label} has several figures called {', '.join(o.twice)}; the first of each is shown" for o in opened if o.twice],
        versions={"weightsmith": __version__},
    )  # fmt: skip
    record.conditions = [judge(gate, record) for gate in gates]
    return record


def _open(label: str, file: Path) -> Opened:
    found = Opened(label, file, load_record(file))
    for key, known in _figures(found.record):
        _check_sound(key, known, file)
        if key not in found.figures or known.figure.name.endswith(", edited"):
            found.figures[key] = known
        elif not known.figure.name.endswith(", base"):
            found.twice.append(key)
    if not found.figures:
        raise FormatError("a measurement without figures", where=file, hint=HINT)
    return found


def _figures(record: MeasureRecord) -> Iterator[tuple[str, Known]]:
    for d in record.differences:
        yield _key(d.key, d.name, d.condition), Known(d.edited, d.base.missing + d.edited.missing, d)
    for m in record.damage:
        yield _key(m.key, m.name, m.condition), Known(m, m.missing, of_base=True)
    for m in record.figures:
        yield _key(m.key, m.name, m.condition), Known(m, m.missing)


def _key(key: str, name: str, condition: str) -> str:
    return key or (f"{name} ({condition})" if condition else name)


def _check_sound(key: str, known: Known, file: Path) -> None:
    """Numbers that are finite, intervals the right way round, and no counts below nothing."""
    spans = [known.figure, *((known.change, known.change.base) if known.change else ())]
    if turned := next((s for s in spans if s.low > s.high), None):
        raise FormatError(f"{key}: an interval from {turned.low:g} to {turned.high:g}", where=file)
    if (least := min(min(s.n for s in spans), known.figure.answers, known.lost)) < 0:
        raise FormatError(f"{key}: {least} is no count", where=file)
    numbers: list[float | None] = [
        known.figure.value,
        known.figure.low,
        known.figure.high,
        *(known.figure.values or ()),
    ]
    if (d := known.change) is not None:
        numbers += [d.value, d.low, d.high, d.p, d.p_holm, d.mde]
    odd = next((v for v in numbers if v is not None and not abs(v) < _LARGEST), None)
    if odd is not None:
        raise FormatError(f"{key}: {odd} is no figure", where=file)


def _about(opened: Opened) -> ComparedFile:
    record = opened.record
    return ComparedFile(label=opened.label, file=str(opened.file), sha256=hashlib.sha256(opened.file.read_bytes()).hexdigest(),
                        title=record.title, suite=record.suite, base=record.base, edited=record.edited)  # fmt: skip


def _row(key: str, opened: list[Opened], against: list[Against]) -> Row:
    found = [o.figures.get(key) for o in opened]
    m = next(k.figure for k in found if k is not None)
    return Row(key=key, name=m.name.removesuffix(", edited"), condition=m.condition, unit=m.unit, group=m.group,
               scorer=m.scorer, cells=[_cell(k) for k in found], against=against)  # fmt: skip


def _cell(known: Known | None) -> Cell | None:
    if known is None:
        return None
    m = known.figure
    return Cell(value=m.value, low=m.low, high=m.high, n=m.n, interval=m.interval, answers=m.answers, missing=m.missing,
                change=None if known.change is None else _change(known.change))  # fmt: skip


def _change(d: Difference) -> Change:
    return Change(value=d.value, low=d.low, high=d.high, p=d.p, test=d.test, n=d.n, p_holm=d.p_holm, mde=d.mde,
                  verdict=d.verdict)  # fmt: skip


# -- two files ---------------------------------------------------------------------------------------------


def _against(first: Opened, later: Opened, keys: list[str]) -> dict[str, Against]:
    """Every key of two files, judged together: p values are adjusted within their groups."""
    from ..measure.power import judged

    found: dict[str, Against] = {}
    tested: list[tuple[str, str, str, Difference]] = []
    for key in keys:
        a, b = first.figures.get(key), later.figures.get(key)
        if a is None or b is None:
            found[key] = Against(how="side by side", why=f"{(first if a is None else later).label} has no such figure")
        elif reason := why_apart(first, later, a, b):
            found[key] = Against(how="side by side", why=reason)
        elif reason := why_unpaired(a, b):
            tested.append((key, "unpaired", reason, _unpaired(a, b)))
        else:
            tested.append((key, "paired", "", _paired(a, b)))
    for (key, how, why, _), d in zip(tested, judged([t[3] for t in tested]), strict=True):
        found[key] = Against(how=how, why=why, change=_change(d))
    return found


def _paired(a: Known, b: Known) -> Difference:
    import numpy as np

    from ..measure.power import observed_mde
    from ..measure.stats import paired, rate_difference_interval
    from ..measure.unpaired import are_rates

    old, new = a.figure, b.figure
    rate = are_rates(old, new)
    values = old.values or [], new.values or []
    d = paired(old.name, *values, old.unit, old.condition, rate, key=old.key, group=old.group, family=old.group)
    answers = min(old.answers, new.answers)
    if rate and answers > d.n:  # several answers a prompt are known better than one
        x, y = (np.array(v, np.float64) for v in values)
        low, high = rate_difference_interval(x, y, answers)
        d = d.model_copy(update={"low": low, "high": high, "mde": observed_mde(y - x, rate=True, answers=answers)})
    return d


def _unpaired(a: Known, b: Known) -> Difference:
    from ..measure.unpaired import unpaired

    return unpaired(a.figure, b.figure, family=a.figure.group)


def why_apart(first: Opened, later: Opened, a: Known, b: Known) -> str:
    """Why two figures can't be tested against each other; empty where they can."""
    x, y, one, two = a.figure, b.figure, first.record, later.record
    if x.unit != y.unit:
        return f"other units: {x.unit or 'none'}, {y.unit or 'none'}"
    if x.scorer != y.scorer or _reads(one, x) != _reads(two, y):
        return "another scorer"
    if x.scorer == "probe" and one.direction != two.direction:
        return "a probe with another direction"
    if (a.of_base or b.of_base) and _digest(one) != _digest(two):
        return "divergence from another base"
    tokens = one.options.get("answer_tokens"), two.options.get("answer_tokens")
    if tokens[0] != tokens[1] and _of_answers(one, x) and _of_answers(two, y):
        return f"answers of another length: {tokens[0]} and {tokens[1]} tokens"
    if x.key.endswith(".sampled") and any(
        one.options.get(k) != two.options.get(k) for k in ("default_decoding", "decoding")
    ):
        return "sampled in another way"
    return _why_untestable(x) or _why_untestable(y)


def _why_untestable(m: Measurement) -> str:
    if m.values is None:
        return "no value a prompt is on record"
    if len(m.values) != m.n:
        return "its values share templates or questions, and which is not on record"
    if m.n < 2:
        return "a single prompt"
    if not math.isclose(sum(m.values) / m.n, m.value, rel_tol=1e-6, abs_tol=1e-9):
        return "it is no mean over prompts"
    return ""


def why_unpaired(a: Known, b: Known) -> str:
    """Why two figures that can be tested can't be paired; empty where they can."""
    if not a.figure.prompts or a.figure.prompts != b.figure.prompts:
        return "other prompts" if a.figure.prompts and b.figure.prompts else "its prompts are not on record"
    if a.lost or b.lost:
        return "some answers have no value, and of which prompts is not on record"
    return "" if a.figure.n == b.figure.n else "other numbers of prompts"


def _reads(record: MeasureRecord, m: Measurement) -> str:
    return next((s.reads for s in record.scorers if s.name == m.scorer), "")


def _digest(record: MeasureRecord) -> str:
    return record.base.digest if record.base else ""


def _of_answers(record: MeasureRecord, m: Measurement) -> bool:
    """Whether a figure is about what a model answered; taken for one where the record can't tell."""
    asked = record.options.get("conditions")
    known = {c.get("prompts") for c in asked if isinstance(c, dict)} if isinstance(asked, list) else set()
    return not m.prompts or not known or m.prompts in known


def warnings(first: Opened, later: Opened) -> list[str]:
    """Conditions in which two measurements differ, one sentence each."""
    one, two, labels = first.record, later.record, (first.label, later.label)
    rows: list[tuple[str, Any, Any]] = [("suite", one.suite, two.suite)]
    rows += [(name, one.options.get(k), two.options.get(k)) for k, name in _OPTIONS.items()]
    rows += [(k, one.ran.get(k), two.ran.get(k)) for k in _RAN]
    rows.append(("Weightsmith", one.versions.get("weightsmith"), two.versions.get("weightsmith")))
    if one.base and two.base:
        rows.append(("base", f"{one.base.ref} ({one.base.digest[:12]})", f"{two.base.ref} ({two.base.digest[:12]})"))
        if one.base.digest == two.base.digest:
            rows.pop()
    said = [f"other {name}: {labels[0]} {_short(x)}, {labels[1]} {_short(y)}" for name, x, y in rows if x != y]
    notes = {s.name: s.reads for s in one.scorers}
    said += [f"the scorer {s.name} reads otherwise: {labels[0]} {_short(notes[s.name])}, {labels[1]} {_short(s.reads)}"
             for s in two.scorers if s.name in notes and notes[s.name] != s.reads]  # fmt: skip
    if (one.base is None) != (two.base is None):
        alone = labels[0] if one.base is None else labels[1]
        said.append(
            f"{alone} was measured alone: only figures of the models themselves are compared, not of their changes"
        )
    if one.edited.digest == two.edited.digest:
        said.append(f"{labels[0]} and {labels[1]} measure the same weights: a difference is one of the measuring")
    return said


def _short(value: Any) -> str:
    text = "none" if value is None or value == "" or value == {} else str(value)
    return text if len(text) <= 80 else text[:79] + "…"


def save_comparison(record: CompareRecord, path: Path, *, replace: bool = False) -> None:
    """Write the record as JSON, whole or not at all."""
    text = record.model_dump_json(by_alias=True, indent=1)
    write_whole(path, (text + "\n").encode("utf-8", "backslashreplace"), replace=replace)
