"""What a search writes to disk: every candidate as a point, the front, its knee, and where the time went.

The page of a run is drawn from a :class:`SearchRecord` (``search.json``) and the measurements of its confirmed points
(``confirmed/NAME.json``) and nothing else.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .records import ModelIdentity, Strict

SEARCH = "weightsmith/search/1"

#: how notes on a target begin; they are made anew whenever the record is written
TARGET = "the target of "
NOTHING = "no candidate's effect on held-out prompts can be told from none: there is nothing here to take"

Stage = Literal["closed form", "gradient", "black box"]
KNEE = (
    "the knee is the point of the front that lies farthest from the line between its ends, effect and damage each scaled to "
    "0 to 1 between them"
)


class Confirmed(Strict):
    """One figure of a finalist, from full-length answers to prompts that the search never saw.

    ``key`` and ``name`` are those of the measurement; ``base`` is the base's value, ``value`` the edited model's, each with
    its 95% interval, ``change`` the paired difference with its own; ``verdict`` as in a measurement.
    """

    key: str
    name: str
    unit: str
    base: float | None = None
    base_low: float | None = None
    base_high: float | None = None
    value: float
    low: float
    high: float
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    verdict: str = ""
    n: int


class Point(Strict):
    """One candidate edit, judged on the search's held-out prompts by teacher-forced passes alone.

    ``effect`` is the fall (remove) or rise (add) of the log-odds of showing the feature, nats, with a 95% bootstrap
    interval over prompts; ``chance`` the mean chance of showing it (``None`` where the odds are per token and no chance);
    ``damage`` is KL(base ‖ edited) in nats per token over the base's own answers to neutral prompts; ``protected`` the
    same KL by protected feature. ``what`` says in a line what the edit is. ``edit`` is the Edit file, for points of the front.
    ``looping`` is true of an addition's points from before its repetitions were unlearned, which are not offered.
    ``disagrees`` says how the confirmed figures differ from what the search saw; empty where they agree or were not taken.
    """

    name: str
    stage: Stage
    what: str
    effect: float
    effect_low: float
    effect_high: float
    chance: float | None = None
    damage: float
    damage_low: float
    damage_high: float
    protected: dict[str, float] = {}
    n: int
    weight: float | None = None
    front: bool = False
    knee: bool = False
    start: bool = False
    looping: bool = False
    edit: str = ""
    strengths: dict[str, dict[int, float]] = {}
    confirmed: list[Confirmed] = []
    record: str = ""
    disagrees: str = ""


class Tick(Strict):
    """One step of a training curve; figures are of its batch, those of held-out prompts stand where they were read."""

    run: int
    step: int
    weight: float
    effect_loss: float
    damage: float
    held_effect: float | None = None
    held_damage: float | None = None
    note: str = ""


class Stretch(Strict):
    """Where time and tokens went: one stage of the work. Tokens of confirmations are not counted."""

    name: str
    seconds: float
    passed: int = 0
    backward: int = 0
    generated: int = 0

    @property
    def counted(self) -> bool:
        """Whether its tokens were."""
        return not self.name.startswith("confirmation")


class Gain(Strict):
    """What a stage added: the hypervolume of the front after it, as a share of the box between the base and the reference
    damage, and how many points there were."""

    stage: str
    hypervolume: float
    points: int


class SearchRecord(Strict):
    """Everything that one search found.

    ``separation`` is the AUROC on held-out prompts of the layer from which the search started, with its interval.
    ``shows`` and ``lacks`` are openings that the model's own answers were found to have, with their share. ``factors``
    say how many times dearer the same passes would have been without each saving. ``knee`` and ``front`` name points;
    ``chosen`` is the point to take: the knee, or with a ``target`` the confirmed point of the front nearest to it;
    ``chosen_by`` says which of the two. Figures are of the whole run, however often it was interrupted.
    """

    schema_id: str = Field(SEARCH, alias="schema")
    feature: str
    feature_description: str
    feature_digest: str
    kind: Literal["remove", "add"]
    model: ModelIdentity
    protect: list[str] = []
    objective: str
    damage_unit: str = "nats per token"
    reference_damage: float
    separation: tuple[float, float, float] | None = None
    source: int | None = None
    start: int = 0
    n: dict[str, int] = {}
    prompts_digest: str = ""
    shows: dict[str, float] = {}
    lacks: dict[str, float] = {}
    points: list[Point] = []
    knee: str = ""
    chosen: str = ""
    chosen_by: Literal["", "knee", "target"] = ""
    rule: str = KNEE
    target: float | None = None
    ticks: list[Tick] = []
    stretches: list[Stretch] = []
    gains: list[Gain] = []
    factors: dict[str, float] = {}
    options: dict[str, float | int | str | bool | None] = {}
    ran: dict[str, str] = {}
    versions: dict[str, str] = {}
    notes: list[str] = []
    finished: bool = True

    @property
    def front(self) -> list[Point]:
        """The points of the front, from the least damage to the most."""
        return sorted((p for p in self.points if p.front), key=lambda p: p.damage)

    @property
    def taken(self) -> Point | None:
        """The point to take; the knee in records that name none."""
        named = next((p for p in self.points if p.name == self.chosen), None)
        return named or next((p for p in self.points if p.knee or (self.knee and p.name == self.knee)), None)
