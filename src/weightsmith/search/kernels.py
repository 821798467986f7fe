"""Edits by a few numbers: strengths over layers as one tent for each role, and the direction by a number or layer by layer.

This is the parameterisation that black-box searches of this field have published: for each role a greatest weight, the layer
where it stands, a least weight, and the distance over which the first falls to the second, nothing beyond; one direction
for all layers, found between two neighbouring layers' unit vectors, or each layer's own. Here a point of it comes out as an Edit
and a Direction whose vectors are the edited layers' own, so that weights, adapters and hooks agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from ..direction import Direction
from ..errors import EditError
from ..records import EditSpec, EditStep

Range = tuple[float, float]
Kind = Literal["remove", "add"]
ALL = "*"  # the one role of an addition: its constant stands behind a layer, whichever module wrote


class Chooser(Protocol):
    """What chooses a parameter's value: an Optuna trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number from ``low`` to ``high``."""
        ...

    def suggest_categorical(self, name: str, choices: Seq[str]) -> Any:
        """One of ``choices``."""
        ...


@dataclass(frozen=True)
class Kernel:
    """A tent over layers: ``most`` at ``position`` (in layers, need not be whole), falling linearly to ``least`` at
    ``distance`` layers from it, 0 beyond."""

    most: float
    position: float
    least: float
    distance: float

    def at(self, layer: float) -> float:
        """The weight of a layer."""
        away = abs(layer - self.position)
        if away > self.distance:
            return 0.0
        if away == 0.0:
            return self.most
        return self.most + (self.least - self.most) * (away / self.distance)


@dataclass(frozen=True)
class Ranges:
    """Where the numbers are looked for.

    ``most`` is a share of the component (beyond 1 it is turned round) and ``dose`` the total of an addition, in mean norms of the
    residual stream; ``least`` is a share of ``most``. ``position`` is a share of the way from the first layer that may be edited
    to the last, ``distance`` goes from one layer to a share of that way, ``source`` is a share of the model's depth.
    """

    most: Range = (0.8, 1.5)
    position: Range = (0.6, 1.0)
    least: Range = (0.0, 1.0)
    distance: float = 0.6
    source: Range = (0.4, 0.9)
    dose: Range = (0.02, 1.5)

    @classmethod
    def of(cls, kind: Kind) -> Ranges:
        """The published ranges for a removal; for an addition, which acts on all that is written behind it, the middle too."""
        return cls() if kind == "remove" else cls(position=(0.2, 0.9), source=(0.2, 0.9))


@dataclass(frozen=True)
class Setting:
    """A point: tents by role, the source of the direction (``None``: each layer's own), and an addition's total dose."""

    kernels: Mapping[str, Kernel]
    source: float | None
    dose: float = 0.0


def suggest(chooser: Chooser, kind: Kind, roles: Seq[str], layers: Seq[int], depth: int, ranges: Ranges) -> Setting:
    """A point of the space for a model of ``depth`` layers.

    Every number is always asked for, the source too where each layer has its own: a sampler that models the parameters
    together knows no conditions.
    """
    scope = chooser.suggest_categorical("scope", ("global", "per layer"))
    source = chooser.suggest_float("source", *(share * (depth - 1) for share in ranges.source))
    dose = chooser.suggest_float("dose", *ranges.dose, log=True) if kind == "add" else 0.0
    first, way = min(layers), max(layers) - min(layers)
    kernels = {}
    for role in roles if kind == "remove" else (ALL,):
        most = chooser.suggest_float(f"{role}.most", *ranges.most) if kind == "remove" else 1.0
        position = chooser.suggest_float(f"{role}.position", *(first + share * way for share in ranges.position))
        least = most * chooser.suggest_float(f"{role}.least", *ranges.least)
        distance = chooser.suggest_float(f"{role}.distance", 1.0, max(1.0, ranges.distance * way))
        kernels[role] = Kernel(most, position, least, distance)
    return Setting(kernels, source if scope == "global" else None, dose)


def between(direction: Direction, source: float, layers: Seq[int]) -> Direction:
    """A direction for ``layers`` whose vectors are all one: the unit vectors of the two captured layers beside ``source``,
    weighted by nearness, at length one. Means and norms stay those of the layers.

    Raises:
        NonFinite: one of the two has no direction, or they cancel.
        RecipeError: a layer at which the direction was not captured.
    """
    known = direction.meta.layers
    at = float(np.clip(round(source, 4), known[0], known[-1]))
    low = max(x for x in known if x <= at)
    high = min(x for x in known if x >= at)
    share = 0.0 if high == low else (at - low) / (high - low)
    vector = (1.0 - share) * direction.unit(low) + share * direction.unit(high)
    vector /= math.sqrt(float((vector * vector).sum()))
    rows = [direction.row(x) for x in layers]
    name = direction.meta.expression or direction.meta.feature
    meta = direction.meta.model_copy(update={
        "layers": list(layers), "expression": f"{name} at layer {at:g}", "quality": [], "candidates": [], "rule": ""})  # fmt: skip
    return replace(direction, vectors=np.tile(vector.astype(np.float32), (len(rows), 1)),
                   resid_norm=direction.resid_norm[rows], mean_shows=direction.mean_shows[rows],
                   mean_lacks=direction.mean_lacks[rows], meta=meta, readers=None)  # fmt: skip


def edit_of(
    setting: Setting, direction: Direction, kind: Kind, layers: Seq[int], name: str = ""
) -> tuple[EditSpec, Direction]:
    """The point as an Edit and the Direction that it names; layers and roles whose strength is 0 are left out.

    Raises:
        EditError: no layer lies within any tent.
    """
    layers = sorted(layers)
    rows = {role: [round(k.at(x), 4) for x in layers] for role, k in setting.kernels.items()}
    kept = [i for i in range(len(layers)) if any(row[i] for row in rows.values())]
    if not kept:
        raise EditError("nothing is left of this edit: no layer has a strength", where=name or direction.meta.feature)
    rows = {role: [row[i] for i in kept] for role, row in rows.items()}
    rows = {role: row for role, row in rows.items() if any(row)}
    used = direction if setting.source is None else between(direction, setting.source, layers)
    where = [layers[i] for i in kept]
    shape: dict[str, Any] = {"kind": kind, "direction": used.digest(), "source": "each", "layers": where}
    if kind == "add":
        mean = sum(rows[ALL]) / len(kept)
        step = EditStep(**shape, amount=round(setting.dose, 4), strengths={ALL: [round(x / mean, 4) for x in rows[ALL]]})
    else:
        step = EditStep(**shape, amount=1.0, roles=list(rows), strengths=rows)
    return EditSpec(name=name, steps=[step]), used
