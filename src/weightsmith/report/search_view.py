"""From a search record to what its page says: sentences, printed figures, the points to read answers of."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..measured import MeasureRecord
from ..searched import TARGET, Confirmed, Gain, Point, SearchRecord, Stretch
from . import text
from .intervals import Dot, extent, strip
from .search_charts import Profile
from .search_front import STAGES
from .text import Shown, show
from .variant import Variant
from .view import READINGS

TILES, READ = 5, 3
SAVINGS = {
    "prefixes": "shared beginnings passed once", "below": "layers below the first edited one kept",
    "branches": "continuations of one prompt in one pass", "unread": "tokens that predict nothing that is read",
    "heads": "lm_head only where something is read",
}  # fmt: skip
# Which points of the front are read and compared: name, tone, shape. The warm tone is the point to take's on the whole page.
LEAST, MOST = ("least damage", "ink", "down"), ("most effect", "ink", "up")
LESS, MORE = ("less damage", "ink", "down"), ("more effect", "ink", "up")


@dataclass(frozen=True)
class Told:
    """A confirmed figure in print; ``verdict`` is empty where nothing was compared."""

    name: str
    base: str
    value: Shown
    change: Shown | None
    verdict: str
    n: int
    figure: Confirmed

    @property
    def sign(self) -> str:
        """The mark of its verdict."""
        return READINGS[self.verdict][1] if self.verdict in READINGS else ""


def told(c: Confirmed) -> Told:
    """One confirmed figure, all of its numbers with the decimals that the value's interval supports."""
    scale = 100 if text.is_share(c.unit) else 1
    places = text.decimals_for(c.value * scale, c.low * scale, c.high * scale)
    base = "" if c.base is None else show(c.base, c.base, c.base, c.unit, places=places).value
    change, verdict = None, c.verdict
    if c.change is not None and c.change_low is not None and c.change_high is not None:
        change = show(c.change, c.change_low, c.change_high, c.unit, change=True)
        verdict = verdict or text.verdict(c.change_low, c.change_high)
    return Told(c.name, base, show(c.value, c.low, c.high, c.unit, places=places), change, verdict, c.n, c)


@dataclass(frozen=True)
class Row:
    """A point of the front in print."""

    point: Point
    sign: str
    effect: Shown
    chance: str
    damage: Shown
    protected: list[tuple[str, str]]
    confirmed: list[Told]


def _bare(value: float, unit: str = "") -> str:
    return show(value, value, value, unit).value


def row(p: Point) -> Row:
    """One point in print."""
    return Row(
        point=p, sign=STAGES[p.stage][2], effect=show(p.effect, p.effect_low, p.effect_high, "nats", signed=True),
        chance="" if p.chance is None else _bare(p.chance, "share"), damage=show(p.damage, p.damage_low, p.damage_high, ""),
        protected=[(k, _bare(v)) for k, v in p.protected.items()], confirmed=[told(c) for c in p.confirmed],
    )  # fmt: skip


def why(record: SearchRecord) -> str:
    """Why the point to take is that."""
    if record.chosen_by == "target" and record.target is not None:
        return f"nearest to the target of {record.target:g}"
    return f"the {label(record)}"


def label(record: SearchRecord) -> str:
    """What the point to take is called beside others."""
    return "knee" if record.taken is None or record.taken.knee or record.taken.name == record.knee else "taken"


def missed(record: SearchRecord) -> list[str]:
    """What is to be said of the target: that it was not reached, and how near anything came."""
    return [n for n in record.notes if n.startswith(TARGET)]


def model_name(record: SearchRecord) -> str:
    """The model by the last part of its name."""
    return record.model.ref.rstrip("/").rpartition("/")[2] or record.model.ref


def title(record: SearchRecord) -> str:
    """The page's title."""
    doing = "Removing {} from {}" if record.kind == "remove" else "Adding {} to {}"
    return doing.format(record.feature, model_name(record))


def _several(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def sentence(record: SearchRecord, confirmed: Mapping[str, MeasureRecord]) -> str:
    """What was searched, in one sentence."""
    doing = f"removes {record.feature} from" if record.kind == "remove" else f"adds {record.feature} to"
    said = f"A search for the edit that {doing} {record.model.ref} with the least damage tried "
    said += f"{_several(len(record.points), 'candidate', 'candidates')}; "
    said += f"{_several(len(record.front), 'is', 'are')} on the front of effect against damage"
    finalists = [p for p in record.points if p.confirmed or p.name in confirmed]
    if finalists:
        said += f", and {len(finalists)} {'was' if len(finalists) == 1 else 'were'} confirmed on full-length answers to prompts "
        said += "that the search never saw"
    return said + "."


def command(record: SearchRecord, p: Point) -> str:
    """The command line that carries a point out, from the run's folder; empty where its Edit was not kept."""
    if not p.edit:
        return ""
    return f"weightsmith edit {shlex.quote(text.visible(record.model.ref))} {shlex.quote(text.visible(p.edit))} -o OUT"


@dataclass(frozen=True)
class Tile:
    """A headline figure of the point to take."""

    name: str
    when: str
    base: str
    value: Shown
    chart: Markup
    change: Shown | None = None
    verdict: str = ""
    sign: str = ""


def _confirmed_tile(t: Told, i: int, who: str) -> Tile:
    c, scale = t.figure, 100 if text.is_share(t.figure.unit) else 1
    dots = [] if c.base is None else [Dot(c.base * scale, c.base * scale, c.base * scale, "ink", "dot", "base", t.base)]
    words = f"{t.value.value} ({t.value.interval})"
    dots.append(Dot(c.value * scale, c.low * scale, c.high * scale, "warm", "diamond", who, words))
    chart = strip(dots, extent(dots, zero=True), 300, f"{t.name} with its 95% interval", f"tile{i}")
    return Tile(t.name, f"confirmed · n = {t.n}", t.base, t.value, Markup(chart), t.change, t.verdict, t.sign)


def tiles(record: SearchRecord, p: Point) -> list[Tile]:
    """First confirmed figures of the point to take, and its damage as the search saw it; without any, its effect as well."""
    who, seen = label(record), row(p)
    found = [_confirmed_tile(told(c), i, who) for i, c in enumerate(p.confirmed[:TILES])]
    for name, value, low, high, shown, unit in (
        ("effect", p.effect, p.effect_low, p.effect_high, seen.effect, "nats of log-odds"),
        ("damage", p.damage, p.damage_low, p.damage_high, seen.damage, record.damage_unit),
    ):
        if name == "effect" and found:
            continue  # what was confirmed of it stands there
        dots = [Dot(value, low, high, "warm", "diamond", who, f"{shown.value} ({shown.interval})")]
        chart = strip(dots, extent(dots, zero=True), 300, f"{name} with its 95% interval", f"tile-{name}")
        when = f"seen by the search, {unit} · n = {p.n}"
        found.append(Tile(name, when, "", shown, Markup(chart)))
    return found


def _special(record: SearchRecord) -> list[tuple[Point, tuple[str, str, str]]]:
    """Least damage, the point to take and most effect of the front, each point once; one at an end is the one to take."""
    front, taken = record.front, record.taken
    ends = [(front[0], LEAST), (front[-1], MOST)] if front else []
    if len(front) == 1:
        del ends[1:]
    found = [(p, look) for p, look in ends if p is not taken]
    if taken is not None:
        found.insert(sum(look is LEAST for _, look in found), (taken, (label(record), "warm", "diamond")))
    return found


def read_points(record: SearchRecord, confirmed: Mapping[str, MeasureRecord]) -> list[tuple[Point, Variant]]:
    """The points whose answers the page shows, by their damage: of those that were confirmed the one to take, the two at the
    ends, and as many others as make three."""
    there = [p for p in record.front if p.name in confirmed]
    taken = record.taken if record.taken in there else None
    order = [taken, *there[:1], *there[-1:], *there]
    names = list(dict.fromkeys(p.name for p in order if p is not None))[:READ]
    points = [p for p in there if p.name in names]
    return [(p, Variant(*_looks(record, p, points), confirmed[p.name])) for p in points]


def _looks(record: SearchRecord, p: Point, beside: list[Point]) -> tuple[str, str, str]:
    """How a point is called beside the others whose answers are shown."""
    if p is record.taken:
        return label(record), "warm", "diamond"
    if p is record.front[0]:
        return LEAST
    if p is record.front[-1]:
        return MOST
    taken = record.taken if record.taken in beside else None
    if taken is None or p not in (beside[0], beside[-1]):
        return p.name, "ink", "square"
    return LESS if p.damage < taken.damage else MORE


def profiles(record: SearchRecord) -> list[tuple[Point, Profile]]:
    """Strengths of the point to take, then of the two ends of the front."""
    found = sorted(_special(record), key=lambda entry: entry[0] is not record.taken)
    signs = {"down": "▼", "diamond": "◆", "up": "▲"}
    return [(p, Profile(label, signs[shape], shape, p.strengths)) for p, (label, _, shape) in found if p.strengths]


@dataclass(frozen=True)
class GainRow:
    """What a stage added, in print."""

    stage: str
    hypervolume: str
    added: str
    points: int
    share: float


def gains(found: Sequence[Gain]) -> list[GainRow]:
    """Hypervolume after each stage, and by how much it rose."""
    made, before = [], 0.0
    for g in found:
        added = (g.hypervolume - before) * 100
        covered = text.number(g.hypervolume * 100, 1) + "%"
        made.append(GainRow(g.stage, covered, text.number(added, 1, signed=True), g.points, g.hypervolume))
        before = g.hypervolume
    return made


def savings(factors: Mapping[str, float]) -> list[tuple[str, float]]:
    """What each saving gave, in words, the largest first."""
    return [(SAVINGS.get(k, k), v) for k, v in sorted(factors.items(), key=lambda item: -item[1])]


def in_all(found: Sequence[Stretch]) -> Stretch:
    """The sum of all stages."""
    return Stretch(name="in all", seconds=sum(s.seconds for s in found), passed=sum(s.passed for s in found),
                   backward=sum(s.backward for s in found), generated=sum(s.generated for s in found))  # fmt: skip
