"""The target of a search: which point to take, and which to confirm next where no confirmed one lies at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ..searched import NOTHING, TARGET, Confirmed, Point

if TYPE_CHECKING:
    from ..features.recipe import FeatureSpec


class Choice(NamedTuple):
    """The name of the point to take, what chose it, and notes on a target that no confirmed point lies at."""

    name: str
    by: Literal["", "knee", "target"]
    notes: list[str]


def main_score(spec: FeatureSpec, kind: str) -> tuple[str, float]:
    """The key of the figure that says whether the feature shows, where this kind of edit acts, and +1 where more of it is
    more of the feature, −1 where it is less."""
    where = "neutral" if kind == "add" else "shown"
    for scorer in spec.scorers:
        if scorer.kind == "refusal":
            return f"{spec.name}.{where}.refuses", 1.0
        if scorer.kind not in ("probe", "continuations", "judge"):
            return f"{spec.name}.{where}.{scorer.kind}", float(scorer.options.get("sign", 1))
    return f"{spec.name}.{where}.continuations", 1.0


def _read(points: Sequence[Point], key: str) -> list[tuple[Point, Confirmed]]:
    """The points of the front whose main score was confirmed, with that figure."""
    return [(p, f) for p in points if p.front for f in p.confirmed if f.key == key]


def _nearest(read: Sequence[tuple[Point, Confirmed]], target: float) -> tuple[Point, Confirmed]:
    """The one nearest to the target, that of less damage where two are equally near."""
    return min(read, key=lambda x: (abs(x[1].value - target), x[0].damage))


def _at(read: Sequence[tuple[Point, Confirmed]], target: float) -> bool:
    """Whether the target lies within the interval of one of them."""
    return any(f.low <= target <= f.high for _, f in read)


def chosen_point(points: Sequence[Point], key: str, target: float | None, *, finished: bool) -> Choice:
    """The point to take: the knee, or of the confirmed points of the front the one whose main score is nearest to
    ``target``, that of less damage where two are equally near."""
    knee = next((p.name for p in points if p.knee), "")
    front = [p for p in points if p.front]
    if target is None:
        nothing = finished and front and all(p.effect_low <= 0 for p in front)
        return Choice(knee, "knee" if knee else "", [NOTHING] if nothing else [])
    read = _read(points, key)
    if not read:
        said = f"{TARGET}{target:.2f} was compared with nothing: no point has a confirmed {key}"
        return Choice(knee, "knee" if knee else "", [said] if finished else [])
    point, nearest = _nearest(read, target)
    if _at(read, target):
        return Choice(point.name, "target", [])
    values = [f.value for _, f in read]
    sides = "; confirmed points lie on both sides of it" if min(values) < target < max(values) else ""
    said = (f"{TARGET}{target:.2f} was not reached: nearest is {point.name} with {nearest.value:.2f} [{nearest.low:.2f}, "
            f"{nearest.high:.2f}], {abs(nearest.value - target):.2f} away{sides}; of the {sum(p.front for p in points)} points "
            f"of the front {len(read)} were confirmed")  # fmt: skip
    return Choice(point.name, "target", [said])


def likeliest(points: Sequence[Point], effects: Mapping[str, float], key: str, target: float) -> tuple[Point, float] | None:
    """The point of the front to confirm next, and the main score that is expected of it; ``None`` where a confirmed one lies
    at the target, or none is likely to.

    ``effects`` are those that the search saw, by point, 0 for the base. A point's main score is expected on the straight line
    between those of its neighbours in effect that are known (confirmed points, and the base); beyond the last of these, on the
    line from the base through it. A point is likely where that is nearer to the target than every confirmed point, and the
    target either lies between those neighbours, or not further away than half the width of the nearest one's interval.
    """
    read = _read(points, key)
    if not read or _at(read, target):
        return None
    known = {effects[p.name]: f.value for p, f in read}
    bases = [f.base for _, f in read if f.base is not None]
    if bases:
        known.setdefault(0.0, bases[0])
    nearest = _nearest(read, target)[1]
    found = []
    for p in points:
        if p.front and not p.confirmed:
            expected, ends = _expected(effects[p.name], known)
            away = abs(expected - target)
            within = min(ends) <= target <= max(ends) or away <= (nearest.high - nearest.low) / 2
            if within and away < abs(nearest.value - target):
                found.append((away, p.damage, p, expected))
    return min(found, key=lambda x: x[:2])[2:] if found else None


def _expected(effect: float, known: Mapping[float, float]) -> tuple[float, list[float]]:
    """The main score at an effect from those that are ``known``, and these of its neighbours."""
    xs = sorted(known)
    left, right = max((x for x in xs if x <= effect), default=xs[0]), min((x for x in xs if x >= effect), default=xs[-1])
    value, last = float(np.interp(effect, xs, [known[x] for x in xs])), xs[-1]
    if effect > last > 0 and 0.0 in known:
        value += (effect - last) * (known[last] - known[0.0]) / last
    return value, [known[left], known[right]]
