"""One tensor against those of its name in the other layers: what no list of names says of a family, its own layers do.

A zero gate, a bias or an output that was begun at zero is so in all layers or in none of them after training. What is one
value everywhere, empty in part or many times as large in few layers only is damage.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING

from ..values import Measured

if TYPE_CHECKING:
    from .numbers import Held

FEWEST = 4  # layers that say something about one of them
_GAIN = re.compile(r"(?:norm|ln)\w*\.weight$", re.IGNORECASE)
_FILLED = 0.5  # greatest value of a gain that was not begun at zero
_EMPTY, _RARE = 0.3, 0.05  # share of zeros, and of the usual layer
_APART, _LARGE = 100.0, 1.0  # times the usual root mean square, and the least that is told


def unlike(group: Sequence[Held]) -> Iterator[tuple[str, Held, str]]:
    """``(what, tensor, sentence)`` of the few that differ, ``what`` being *constant*, *blank* or *apart*; ``group`` holds the
    tensors of one name, dtype and shape in different layers."""
    if len(group) < FEWEST or math.prod(group[0].shape) < 16 or not group[0].name.endswith("weight"):
        return
    flat = [t for t in group if t.facts.constant]
    rest = [t for t in group if not t.facts.constant]
    if len(group[0].shape) - group[0].shape.count(1) < 2:
        zero = [t for t in flat if t.facts.peak == 0]
        filled = [t for t in group if (t.facts.peak or 0.0) > _FILLED]
        if _GAIN.search(group[0].name) and 0 < len(zero) * 3 <= len(filled):
            yield from (("constant", t, "is all zero, and in the other layers it is not") for t in zero)
        return
    if 0 < len(flat) * 3 <= len(rest):
        for t in flat:
            if not t.matrix:  # else it was said
                yield "constant", t, "has one value everywhere, and in the other layers it has not"
    measured = [t.facts for t in rest if isinstance(t.facts, Measured)]
    if len(measured) == len(rest) and len(rest) >= FEWEST and median(f.zeros for f in measured) < _RARE:
        told = [t.matrix and (facts.zeros >= 0.99 or facts.bare > 0.4) for t, facts in zip(rest, measured, strict=True)]
        empty = [t for t, facts, was in zip(rest, measured, told, strict=True) if facts.zeros > _EMPTY and not was]
        if len(empty) * 3 <= len(rest):
            yield from (("blank", t, "has many zeros, and in the other layers there are hardly any") for t in empty)
    sizes = [(t.rms, t) for t in rest if t.rms is not None]
    middle = median(rms for rms, _ in sizes) if len(sizes) >= FEWEST else math.inf
    for rms, t in sizes:
        if rms > _APART * middle and rms > _LARGE and not t.matrix:
            yield "apart", t, f"has a root mean square of about {rms:.3g}; in the other layers it is {middle:.3g}"
