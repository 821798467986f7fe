"""Choosing among candidates: the Pareto front of effect against damage, its size, and its knee."""

from __future__ import annotations

from collections.abc import Sequence as Seq


def pareto(points: Seq[tuple[float, float]]) -> list[int]:
    """Places of the points ``(effect, damage)`` that no other has more effect than at no more damage, by rising damage. Of
    equal ones the first stays."""
    best: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][1], -points[i][0], i)):
        if not best or points[i][0] > points[best[-1]][0]:
            best.append(i)
    return best


def hypervolume(points: Seq[tuple[float, float]], reference: float, whole: float = 1.0) -> float:
    """Area that the points dominate between no effect and ``whole``, and between the ``reference`` damage and none, as a
    share of that box (Zitzler and Thiele 1999, two objectives)."""
    if reference <= 0 or whole <= 0:
        return 0.0
    inside = [(max(0.0, min(e, whole)), max(0.0, d)) for e, d in points if d < reference and e > 0]
    area, reached = 0.0, 0.0
    for i in pareto(inside):
        effect, damage = inside[i]
        area += (effect - reached) * (reference - damage)
        reached = effect
    return area / (reference * whole)


def knee(points: Seq[tuple[float, float]]) -> int | None:
    """The place of the knee: of the front's points the one farthest above the line between the front's ends, effect and
    damage each scaled to 0 to 1 between them (Branke et al. 2004, section 2, for two objectives). With two points or one, the
    one of most effect."""
    front = pareto(points)
    if not front:
        return None
    (low, least), (high, most) = points[front[0]], points[front[-1]]
    if len(front) < 3 or high <= low or most <= least:
        return front[-1]
    return max(front, key=lambda i: ((points[i][0] - low) / (high - low) - (points[i][1] - least) / (most - least), points[i][0]))
