"""What the installed scorers read and how often they err."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import RecipeError
from ..measured import ErrorFigure, ScorerNote

__all__ = ["list_scorers"]


def list_scorers() -> list[ScorerNote]:
    """A note on every registered scorer, in order of their names, and on the substring list that the refusal scorer is
    compared with.

    A scorer that needs a recipe's words to be made (phrases, references, a question) is described in general; its error is
    then known only where words that ship were calibrated.
    """
    from ..measure.calibration import substring_note
    from ..measure.scorers import SCORERS

    notes = []
    for name in SCORERS.names():
        notes.append(_note(name, SCORERS.load(name)))
        if name == "refusal":
            notes.append(substring_note())
    return notes


def _note(name: str, kind: Any) -> ScorerNote:
    make: Callable[[dict[str, Any]], Any] | None = getattr(kind, "make", None)
    if make is None:
        return _general(name, kind, "measured for each direction, on prompts that did not make it")
    try:
        note: ScorerNote = make({}).note()
    except RecipeError:  # it needs words of a recipe
        return _general(name, kind, "not calibrated: it depends on the recipe's own words")
    return note


def _general(name: str, kind: Any, error: str) -> ScorerNote:
    reads = " ".join((kind.__doc__ or "").split("\n\n")[0].split()).replace("``", "").rstrip(".")
    figures = _figures() if name == "similarity" else []
    return ScorerNote(name=name, reads=reads, error=error, figures=figures)


def _figures() -> list[ErrorFigure]:
    """Of the references that ship; others have none."""
    from ..measure.similarity import calibration

    return [f for rows in calibration().values() for f in rows]
