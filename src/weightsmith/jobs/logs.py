"""Writing what a measurement asked and heard as logs of lm-eval and of Inspect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import UsageError
from ..measured import MeasureRecord
from ..storage import whole_folder

if TYPE_CHECKING:
    from ..measure.figures import Sample
    from ..measure.logs import Model
    from .measure import Session

MODELS = ("base", "edited")


def session_samples(session: Session) -> dict[str, list[Sample]]:
    """Every exchange of a session that has compared: of the base, where there is one, and of the edited model.

    Raises:
        UsageError: nothing was measured yet.
    """
    from ..measure.figures import samples

    runs = {"base": session.before, "edited": session.after}
    found = {name: samples(run.answered) for name, run in runs.items() if run is not None}
    if "edited" not in found:
        raise UsageError("nothing was measured yet, so there is nothing to log")
    return found


def save_logs(session: Session, record: MeasureRecord, folder: Path) -> list[Path]:
    """:func:`write_logs` of what a session asked last, of which ``record`` is the measurement."""
    return write_logs(record, session_samples(session), folder)


def write_logs(
    record: MeasureRecord, samples_by_model: Mapping[str, Sequence[Sample]], folder: Path, *, at: datetime | None = None
) -> list[Path]:
    """Write ``folder`` whole or not at all, and give its files.

    ``samples_by_model`` holds ``edited`` (also the name of a model that was measured alone) and, where there was one,
    ``base``. ``at`` is the time that both formats name their files by; now by default. The layout is
    ``lm-eval/MODEL/results_DATE.json``, ``lm-eval/MODEL/samples_TASK_DATE.jsonl`` and ``inspect/DATE_TASK_MODEL.json``.

    Raises:
        UsageError: a model by another name; OutputExists: ``folder`` is taken; DiskFull.
    """
    from ..measure.logs import inspect_log, lm_eval_log

    if odd := [name for name in samples_by_model if name not in MODELS]:
        raise UsageError(f"no model is called {odd[0]!r}", hint=f"one of {', '.join(MODELS)}")
    moment = at or datetime.now(UTC)
    stamp = moment.astimezone(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
    made: list[Path] = []
    with whole_folder(folder) as scratch:
        for name, samples in samples_by_model.items():
            model = cast("Model", name)
            results, tasks = lm_eval_log(record, model, samples, moment)
            home = scratch / "lm-eval" / name
            home.mkdir(parents=True)
            made.append(_write(home / f"results_{stamp}.json", [results], indent=2))
            made += [_write(home / f"samples_{task}_{stamp}.jsonl", lines) for task, lines in tasks.items()]
            log = inspect_log(record, model, samples, moment)
            (scratch / "inspect").mkdir(exist_ok=True)
            task = log["eval"]["task"].rpartition("/")[2]
            made.append(_write(scratch / "inspect" / f"{stamp}_{task}_{name}.json", [log], indent=1))
        return [folder / path.relative_to(scratch) for path in made]


def _write(path: Path, rows: Sequence[Any], indent: int | None = None) -> Path:
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(row, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")
    return path
