"""What ``compare`` writes to disk: the figures of several measurements side by side, their differences, conditions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .measured import Interval, Side
from .records import ModelIdentity, Strict

COMPARISON = "weightsmith/comparison/1"

How = Literal["paired", "unpaired", "side by side"]


class Change(Strict):
    """A difference that was tested, without the figures that it is made of; fields as in ``Difference``."""

    value: float
    low: float
    high: float
    p: float
    test: str
    n: int
    p_holm: float | None = None
    mde: float | None = None
    verdict: Side = "cannot tell"


class Cell(Strict):
    """One figure of one file: of the edited model, or of the model that was measured alone.

    ``change`` is edited minus its own base, as the measurement found it; ``None`` for a model alone, and for damage.
    """

    value: float
    low: float
    high: float
    n: int
    interval: Interval
    answers: int = 0
    missing: int = 0
    change: Change | None = None


class Against(Strict):
    """A later file against the first one: ``change`` is later minus first, and ``None`` where they stand side by side.

    ``why`` says why it is not paired, or not tested at all.
    """

    how: How
    why: str = ""
    change: Change | None = None


class Row(Strict):
    """One key over all files, in their order; ``against`` has one entry for each file after the first."""

    key: str
    name: str
    condition: str
    unit: str
    group: str = ""
    scorer: str = ""
    cells: list[Cell | None] = []
    against: list[Against] = []


class ComparedFile(Strict):
    """One measurement that was compared. ``label`` is its letter; ``sha256`` is of the file's bytes."""

    label: str
    file: str
    sha256: str
    title: str
    suite: str
    base: ModelIdentity | None
    edited: ModelIdentity


class ConditionFigure(Strict):
    """One figure that a condition asked for: ``figure`` as it was written, from the file of that ``label``."""

    figure: str
    label: str
    value: float
    relation: str
    limit: float
    holds: bool


class Condition(Strict):
    """One ``--fail-if``, and whether it came true: then the comparison fails."""

    expression: str
    fails: bool
    figures: list[ConditionFigure] = []


class CompareRecord(Strict):
    """Several measurements compared. ``warnings`` are conditions that differ, so that a difference may be theirs."""

    schema_id: str = Field(COMPARISON, alias="schema")
    files: list[ComparedFile]
    rows: list[Row] = []
    conditions: list[Condition] = []
    warnings: list[str] = []
    notes: list[str] = []
    versions: dict[str, str] = {}

    @property
    def fails(self) -> bool:
        """Whether any condition came true."""
        return any(c.fails for c in self.conditions)
