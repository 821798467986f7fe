"""The record of one measurement: figures, differences judged as families, damage, answers to read; and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import FormatError, RecipeError
from ..measured import MEASUREMENTS, Difference, Measurement, MeasureRecord
from ..records import Derivation, EditStep, parse
from ..storage import strict_json, write_whole

if TYPE_CHECKING:
    from ..measure.run import Run
    from ..measure.subject import Subject
    from .measure import Session


#: what writes the files that :func:`load_record` reads
HINT = "weightsmith measure … -o FILE.json writes one"


def record(
    session: Session, edited: Subject, after: Run, derivation: Derivation | None, seconds: dict[str, float], title: str
) -> MeasureRecord:
    """Everything that was found, as one record."""
    from ..measure import figures, prepare
    from ..measure.choice import choice_figures
    from ..measure.damage import perplexity_figures

    base, before = session.base, session.before
    reading = figures.Reading()
    notes = [*session.notes, *(derivation.notes if derivation else [])]
    harm: list[Measurement] = []
    rows: list[Difference] = []
    single: list[Measurement] = []
    worst: list[Any] = []
    if base is not None and before is not None:
        rows = _differences(before, after, same_vocabulary=base.vocabulary == edited.vocabulary)
        harm = _damage(session, edited, reading, notes)
        single = [*figures.flips(before.answered, ", base", ".base"), *figures.flips(after.answered, ", edited", "")]
        key = "safety.harmless"
        worst = figures.worst(before.block(key), after.block(key), reading)
    else:
        single = [*(f for a in after.answered for f in figures.alone(a)), *figures.flips(after.answered, "", "")]
        single += [*perplexity_figures(after.likelihood), *choice_figures(after.sets)]
    spread = [] if before is None else figures.spreads(before.answered, "base")
    notes += _missing({"base": before, edited.name: after})
    what = [p.spec for p in session.plans]
    ran = edited.running.ran
    notes += [*(base.all_notes() if base else []), *edited.all_notes()]
    return MeasureRecord(
        title=title or _title(session, edited), sentence=sentence(derivation, base.checkpoint.title if base else None,
                                                                  ", ".join(s.name for s in what)),
        feature=", ".join(s.name for s in what), feature_description=" ".join(s.description.strip() for s in what),
        base=base.identity if base else None, edited=edited.identity, suite=session.suite.name, figures=single,
        differences=rows, damage=harm, spreads=[*spread, *figures.spreads(after.answered, "edited")],
        answers=figures.answers(before.answered if before else None, after.answered, reading), worst=worst,
        scorers=prepare.scorer_notes(session.plans),
        direction=next((d.meta for d in session.directions.values()), None), derivation=derivation,
        options=_options(session), ran=ran, seconds={**session.seconds, **seconds}, notes=list(dict.fromkeys(notes)),
        versions={"weightsmith": __version__},
    )  # fmt: skip


def _missing(runs: dict[str, Run | None]) -> list[str]:
    """Answers that were read and got no value: a judge that did not answer, or said no verdict."""
    found = []
    for name, run in runs.items():
        counts: dict[tuple[str, str], list[int]] = {}
        for block in run.answered if run is not None else ():
            for s in block.scores:
                # an answer without a thought has no score of one, and that is no loss
                what = "thoughts" if s.name.startswith("thought: ") else "answers"
                read = [e.thought or None if what == "thoughts" else e.text for e in block.exchanges]
                there = [v for v, text in zip(s.values, read, strict=True) if text is not None]
                old = counts.setdefault((s.scorer or s.name, what), [0, 0])
                old[0], old[1] = old[0] + there.count(None), old[1] + len(there)
        found += [f"{scorer} gave no value for {lost} of {n} {what} of the {name} model: they are in none of its figures"
                  for (scorer, what), (lost, n) in counts.items() if lost]  # fmt: skip
    return found


def _differences(before: Run, after: Run, *, same_vocabulary: bool) -> list[Difference]:
    """Every paired difference, judged within its family (Holm)."""
    from ..measure import figures
    from ..measure.choice import choice_differences
    from ..measure.damage import perplexity_differences
    from ..measure.power import judged

    rows = [d for a, b in zip(before.answered, after.answered, strict=True) for d in figures.compared(a, b)]
    rows += choice_differences(before.sets, after.sets)
    rows += perplexity_differences(before.likelihood, after.likelihood, same_vocabulary=same_vocabulary)
    return judged(rows)


def _damage(session: Session, edited: Subject, reading: Any, notes: list[str]) -> list[Measurement]:
    """KL and agreement on harmless requests, and on features' own neutral prompts; nothing between two vocabularies."""
    from ..measure import damage

    assert session.base is not None
    if session.base.vocabulary != edited.vocabulary:
        notes.append("the two models have different vocabularies: KL and agreement have no meaning between them and were "
                     "left out, and so was perplexity per token; bits per byte can be compared")  # fmt: skip
        return []
    found: list[Measurement] = []
    for block in session._compared_blocks():
        reference = session.references[block.key]
        if not reference.items:
            notes.append(f"the base says nothing at all to {block.condition}: there is no distribution to compare there")
            continue
        seen = damage.divergence(reference, edited)
        main = block.key == "safety.harmless"
        prefix = "" if main else f"{block.group}."
        condition = block.condition if main else f"{block.group}: {block.condition}"
        found += damage.divergence_figures(seen, "damage", condition, block.prompts_digest, prefix)
        if main:
            reading.kl = {i: float(k.mean()) for i, k in zip(seen.items, seen.kl, strict=True)}
    return found


def _options(session: Session) -> dict[str, Any]:
    suite = session.suite
    blocks = [*(b for p in session.plans for b in p.blocks), *session.safety]
    decoding = "greedy" if not suite.sampled else f"greedy, and sampled with {suite.seeds} seeds and {suite.wordings} more wordings"
    return {
        "answer_tokens": suite.tokens, "decoding": decoding, "part": "report",
        "conditions": [{"key": b.key, "condition": b.condition, "n": len(b.asks), "prompts": b.prompts_digest} for b in blocks],
        "prompts_digest": session.plans[0].sets.digest if session.plans else "",
        "default_decoding": _decoding(session),
    }  # fmt: skip


def _decoding(session: Session) -> dict[str, Any]:
    if not session.suite.sampled or session.after is None:
        return {}
    from dataclasses import asdict

    sampled = next(a for a in session.after.answered if a.suffix == ".sampled")
    return {k: v for k, v in asdict(sampled.exchanges[0].decoding).items() if k != "seed"}


def _title(session: Session, edited: Subject) -> str:
    name = ", ".join(p.spec.name for p in session.plans)
    against = f" against {session.base.checkpoint.title}" if session.base else ""
    return f"{name}: {edited.checkpoint.title}{against}" if name else f"{edited.checkpoint.title}{against}"


def _removed(step: EditStep) -> str:
    """How far a removal went: exactly only where every layer and role had amount 1."""
    shares = sorted({step.amount * s for row in step.strengths.values() or [[1.0]] for s in row})
    if shares == [1.0]:
        return "removed exactly from"
    low, high = f"{shares[0]:.0%}", f"{shares[-1]:.0%}"
    how = f"removed by {low if low == high else f'{low} to {high}'} from"
    return f"{how.removesuffix(' from')} (beyond 100% turned round) in" if shares[-1] > 1 else how


def sentence(derivation: Derivation | None, base: str | None, feature: str) -> str:
    """What was done, in one sentence."""
    about = f" on {feature}" if feature else ""
    if derivation is None:
        return f"A model was compared with {base}{about}." if base else f"A model was measured alone{about}."
    base = base or "its base"
    parts = []
    for step in derivation.edit.steps:
        found = derivation.directions.get(step.direction)
        name = found.feature if found else "a direction that the record does not hold"
        span = f"layers {min(step.layers)}–{max(step.layers)}" if len(step.layers) > 1 else f"layer {step.layers[0]}"
        if step.kind == "remove":
            parts.append(f"{name} was {_removed(step)} {len(derivation.tensors)} tensors ({span})")
        elif step.kind == "add":
            pole = "enhanced" if step.amount > 0 else "turned down"
            parts.append(f"{name} was {pole} by a constant of dose {step.amount:g} ({span})")
        else:
            parts.append(f"what {base} shows of {name} was multiplied by {step.amount:g} ({span})")
    return f"In {base}, {' and '.join(parts)}."


def save_record(records: MeasureRecord | list[MeasureRecord], path: Path, *, replace: bool = False) -> None:
    """Write measurements as JSON, whole or not at all."""
    many = records if isinstance(records, list) else [records]
    data = [r.model_dump(by_alias=True) for r in many]
    text = json.dumps(data if isinstance(records, list) else data[0], indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path, (text + "\n").encode("utf-8", "backslashreplace"), replace=replace)


def load_record(path: Path) -> MeasureRecord:
    """Read a measurement that :func:`save_record` wrote.

    Raises:
        RecipeError: no file, not a measurement, or several in one file; FormatError: not JSON.
    """
    if not path.is_file():
        raise RecipeError("a folder, and no measurement" if path.is_dir() else "no such file", where=path, hint=HINT)
    try:
        data = strict_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not valid JSON ({error})", where=path, hint=HINT) from error
    if isinstance(data, list) and len(data) == 1:
        data = data[0]
    if given := _not_measured(data):
        raise RecipeError(f"not a measurement: {given}", where=path, hint=HINT)
    found: MeasureRecord = parse(MeasureRecord, data, path, MEASUREMENTS)
    return found


def _not_measured(data: Any) -> str:
    """What JSON is that is no measurement of any version; empty for one."""
    if isinstance(data, list):
        return f"a list of {len(data)}; one measurement a file is read"
    if not isinstance(data, dict):
        return f"JSON, but {'text' if isinstance(data, str) else 'a single value'}"
    schema = data.get("schema")
    kind = MEASUREMENTS.rpartition("/")[0]
    if isinstance(schema, str) and schema.rpartition("/")[0] == kind:
        return ""
    return "JSON without a schema" if schema is None else f"its schema is {str(schema)[:80]!r}"


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
