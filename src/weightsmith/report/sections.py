"""The sections with charts of their own: safety, where the spread comes from, turns of a conversation, KL of each prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..measured import Measurement, MeasureRecord, Share
from . import panels, text
from .panels import Mark, Slice, Turns
from .variant import Variant
from .view import NARROW, SAMPLED, TURN_KEY, TURN_WORDS, dot, printed

BAR = 400
VERDICTS = (("refuses", "a"), ("complies", "b"), ("off-topic", "c"), ("degenerate", "d"))
# (key, heading, how to read it)
SETS = (
    ("safety.harmful", "Harmful requests", "A refusal is what most would want here; compliance is what an edit can let through."),
    ("safety.harmful.system", "Harmful requests, with a system prompt", "A plain system prompt stands before the same requests."),
    ("safety.harmless", "Harmless requests", "Every refusal here is one too many."),
    ("safety.borderline", "Harmless requests that sound harmful", "Every refusal here is one too many."),
    ("safety.asked.outside", "Asked to refuse: requests outside what was allowed",
     "The user set the limits; a refusal keeps to them."),
    ("safety.asked.inside", "Asked to refuse: requests inside what was allowed",
     "The user set the limits; a refusal breaks them."),
)  # fmt: skip
NO_DICE = "greedy answers only; nothing is said about the dice"


@dataclass(frozen=True)
class Cell:
    """A share in print."""

    name: str
    value: str
    interval: str
    n: int


@dataclass(frozen=True)
class VerdictBar:
    """How one model answered one set of requests: a bar, and the same in numbers."""

    label: str
    tone: str
    sign: str
    chart: Markup
    cells: list[Cell]

    @property
    def n(self) -> int | None:
        """The number of requests if it is the same for all verdicts."""
        found = {c.n for c in self.cells}
        return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class VerdictSet:
    """One set of requests, a bar for each model."""

    title: str
    lede: str
    bars: list[VerdictBar]


def _sides(record: MeasureRecord) -> Iterator[tuple[str, str, Measurement]]:
    """Every figure with a key, as (key, ``base`` or ``edited``, figure)."""
    for d in record.differences:
        if d.key:
            yield d.key, "base", d.base
            yield d.key, "edited", d.edited
    for m in record.figures:
        if m.key:
            yield m.key, "edited", m


def _bar(found: dict[str, Measurement], who: tuple[str, str, str], title: str, uid: str) -> VerdictBar:
    if all(name in found for name, _ in VERDICTS):
        slices = [Slice(name, found[name].value, fill) for name, fill in VERDICTS]
    else:
        # only some verdicts are figures of their own: one against the rest
        name = next(n for n, _ in VERDICTS if n in found)
        rest = 1 - found[name].value if math.isfinite(found[name].value) else 0.0
        slices = [Slice(name, found[name].value, dict(VERDICTS)[name]), Slice("all else", rest, "e")]
    cells = []
    for name, _ in VERDICTS:
        if name in found:
            shown = printed(found[name], places=0 if found[name].n < 500 else 1)
            cells.append(Cell(name, shown.value, shown.interval, found[name].n))
    chart = panels.stacked(slices, BAR, f"{title}, {who[0]}: verdicts", uid)
    return VerdictBar(*who, Markup(chart), cells)


def safety(seen: Sequence[Variant]) -> list[VerdictSet]:
    """Verdicts on every set of requests that was asked, base first; empty if none was."""
    found = []
    asked = [(prefix, suffix, title + ", sampled" * bool(suffix), lede)
             for prefix, title, lede in SETS for suffix in ("", SAMPLED)]  # fmt: skip
    for i, (prefix, suffix, title, lede) in enumerate(asked):
        bars: list[VerdictBar] = []
        told: list[dict[str, Measurement]] = []
        for j, v in enumerate(seen):
            sides: dict[str, dict[str, Measurement]] = {"base": {}, "edited": {}}
            for key, side, m in _sides(v.record):
                if not key.endswith(suffix):
                    continue
                head, _, last = key.removesuffix(suffix).rpartition(".")
                if head == prefix and last in dict(VERDICTS):
                    sides[side].setdefault(last, m)
            # two edited models of one base share its bar
            if sides["base"] and not any(_same(sides["base"], other) for other in told):
                told.append(sides["base"])
                bars.append(_bar(sides["base"], ("base", "ink", "●"), title, f"safety{i}-{j}-base"))
            if sides["edited"]:
                bars.append(_bar(sides["edited"], (v.label, v.tone, v.sign), title, f"safety{i}-{j}"))
        if bars:
            # the bases before the models that came of them
            bars.sort(key=lambda b: b.label != "base")
            found.append(VerdictSet(title, lede, bars))
    return found


def _same(a: dict[str, Measurement], b: dict[str, Measurement]) -> bool:
    return {k: (m.value, m.n) for k, m in a.items()} == {k: (m.value, m.n) for k, m in b.items()}


@dataclass(frozen=True)
class SpreadRow:
    """Where the variance of one score of one model comes from."""

    model: str
    tone: str
    sign: str
    chart: Markup
    shares: list[tuple[str, str, str]]
    sd: str
    counts: str


@dataclass(frozen=True)
class SpreadSet:
    """One score, a bar for each model."""

    name: str
    condition: str
    group: str
    rows: list[SpreadRow]


def _share(s: Share) -> tuple[str, str]:
    shown = text.show(s.value, s.low, s.high, "share", places=0)
    return shown.value, shown.interval


def spreads(seen: Sequence[Variant]) -> list[SpreadSet]:
    """Shares of variance by prompts, wordings and dice, by score; the base once where records agree on it."""
    sets: dict[tuple[str, str, str, str], list[SpreadRow]] = {}
    varied = {(s.name, s.condition, s.group, s.key) for v in seen for s in v.record.spreads if s.sd > 0}
    told: list[object] = []
    for i, v in enumerate(seen):
        for j, s in enumerate(v.record.spreads):
            if s.model == "base" and s in told:
                continue
            told.append(s)
            who = ("base", "ink", "●") if s.model == "base" else (v.label, v.tone, v.sign)
            parts = (("prompt", s.prompt, "a"), ("wording", s.wording, "b"), ("dice", s.dice, "d"))
            slices = [Slice(name, share.value, fill) for name, share, fill in parts]
            chart = panels.stacked(slices, BAR, f"{s.name}, {who[0]}: shares of the variance", f"spread{i}-{j}")
            counts = " × ".join(
                f"{n} {one if n == 1 else one + 's'}"
                for n, one in ((s.prompts, "prompt"), (s.wordings, "wording"), (s.seeds, "seed"))
            )
            sd = text.show(s.sd, s.sd, s.sd, "").value
            row = SpreadRow(*who, Markup(chart), [(n, *_share(share)) for n, share, _ in parts], sd, counts)
            sets.setdefault((s.name, s.condition, s.group, s.key), []).append(row)
    return [SpreadSet(*place[:3], rows) for place, rows in sets.items() if place in varied]


def constant(seen: Sequence[Variant]) -> list[str]:
    """Scores that never varied in any model, so that there is no variance to divide."""
    spread: dict[str, float] = {}
    for s in (s for v in seen for s in v.record.spreads):
        name = f"{s.name} ({s.condition})" if s.condition else s.name
        spread[name] = max(spread.get(name, 0.0), s.sd)
    return [name for name, sd in spread.items() if sd <= 0]


def without_spread(seen: Sequence[Variant]) -> list[tuple[Variant, str]]:
    """What to say of records that have no spread; nothing of records older than spreads."""
    found = []
    for v in seen:
        if not v.record.spreads and v.record.suite:
            said = NO_DICE if v.record.suite == "quick" else "no shares of the variance are on record"
            found.append((v, said[0].upper() + said[1:] + "."))
    return found


@dataclass(frozen=True)
class Trend:
    """A score over the turns of a conversation, drawn and as rows of (turn, [(label, tone, sign, value, interval, n)])."""

    name: str
    condition: str
    chart: Markup
    rows: list[tuple[int, list[tuple[str, str, str, str, str, int]]]]


def _turns_of(seen: Sequence[Variant]) -> dict[tuple[str, str], dict[tuple[str, str, str], dict[int, Measurement]]]:
    """By stem of key and unit: by model (label, tone, shape): by turn."""
    found: dict[tuple[str, str], dict[tuple[str, str, str], dict[int, Measurement]]] = {}
    for v in seen:
        for key, side, m in _sides(v.record):
            if match := TURN_KEY.match(key):
                who = ("base", "ink", "dot") if side == "base" else (v.label, v.tone, v.shape)
                turns = found.setdefault((match["stem"], m.unit), {}).setdefault(who, {})
                turns.setdefault(int(match["turn"]), m)
    return found


def trends(seen: Sequence[Variant]) -> list[Trend]:
    """Scores that were taken at two or more turns of the same conversations."""
    found = []
    signs = {"dot": "●"} | {v.shape: v.sign for v in seen}
    for i, ((_, unit), models) in enumerate(_turns_of(seen).items()):
        every = [m for turns in models.values() for m in turns.values()]
        signed = not text.is_share(unit) and min(m.low for m in every) < 0
        if max(len(turns) for turns in models.values()) < 2:
            continue
        first = every[0]
        name = TURN_WORDS.sub(" ", first.name).strip()
        condition = TURN_WORDS.sub(" ", first.condition).strip()
        lines: list[Turns] = []
        rows: dict[int, list[tuple[str, str, str, str, str, int]]] = {}
        for (label, tone, shape), turns in models.items():
            dots = {}
            for turn, m in turns.items():
                shown = printed(m, signed=signed)
                dots[turn] = dot(m, label, f"{shown.value} ({shown.interval})", tone, shape)
                cell = (label, tone, signs[shape], shown.value, shown.interval, m.n)
                rows.setdefault(turn, []).append(cell)
            lines.append(Turns(label, tone, shape, dots))
        said = "% " + unit.partition(" ")[2] if text.is_share(unit) else unit
        chart = panels.trend(lines, said.strip(), 300, f"{name} over turns", f"trend{i}")
        found.append(Trend(name, condition, Markup(chart), sorted(rows.items())))
    return found


@dataclass(frozen=True)
class KlView:
    """The KL of every prompt of one variant, wide and narrow."""

    variant: Variant
    condition: str
    charts: tuple[Markup, Markup]
    n: int
    mean_words: str
    positions: bool


# mean and first token are over prompts; the others over single positions, of which a prompt has as many as answer tokens
_MARKS = (("kl.mean", "mean", "dot"), ("kl.first.mean", "first token, mean", "down"), ("kl.median", "median position", "square"),
          ("kl.p95", "95th percentile of positions", "up"), ("kl.max", "worst position", "diamond"))  # fmt: skip
_POSITIONS = {"kl.median", "kl.p95", "kl.max"}


def kl_views(seen: Sequence[Variant]) -> list[KlView]:
    """Distributions of the per-prompt KL, all on one axis; nothing for records that keep no per-prompt values.

    A prefix before ``kl.mean`` is another set of prompts, with summaries of its own.
    """
    kept: list[tuple[Variant, Measurement, list[float], dict[str, Measurement]]] = []
    for v in seen:
        by_key = {m.key: m for m in v.record.damage}
        for key, mean in by_key.items():
            if (key == "kl.mean" or key.endswith(".kl.mean")) and mean.values:
                prefix = key.removesuffix("kl.mean")
                mine = {k: by_key[prefix + k] for k, _, _ in _MARKS if prefix + k in by_key}
                kept.append((v, mean, mean.values, mine))
    ends = [x for _, _, values, _ in kept for x in values] + [m.value for *_, mine in kept for m in mine.values()]
    domain = panels.kl_range(ends)
    found = []
    for i, (v, mean, values, mine) in enumerate(kept):
        marks = []
        for key, name, shape in _MARKS:
            if m := mine.get(key):
                shown = printed(m)
                words = shown.value + (f" ({shown.interval})" if shown.bounded else "")
                low, high = (m.low, m.high) if shown.bounded else (math.nan, math.nan)
                marks.append(Mark(name, m.value, low, high, shape, words))
        charts = [
            Markup(panels.kl_distribution(values, marks, domain, v.tone, width, f"kl{i}-{width}")) for width in (700, NARROW)
        ]
        above = sum(x > mean.value for x in values)
        words = f"{above} of {len(values)} prompts lie above the mean of {printed(mean).value} nats per token."
        found.append(KlView(v, mean.condition, (charts[0], charts[1]), len(values), words, bool(_POSITIONS & mine.keys())))
    return found
