"""Removal of what is the feature's own: the mean of the neutral side taken out of the direction first.

A difference-in-means often leans on the mean residual m of the side that lacks the feature, which every token carries;
removing it damages everything. With m̂ = m/‖m‖::

    projected      r ← r − m̂_s (m̂_sᵀ r)                          m of the layer s whose vector is used
    biprojected    r ← r − its part in span(m̂_s, m̂_l)             and of each layer l that is edited as well

and then exact orthogonalization to r as in :mod:`weightsmith.edits.scale`. The biprojected kind keeps input norms
unless ``norms`` says otherwise (norm-preserving biprojected abliteration, as practised by the field since 2025).
"""

from __future__ import annotations

import numpy as np

from ..records import EditStep
from . import F64, Context
from .scale import scale, share_left


def neutral_mean(step: EditStep, context: Context, layer: int) -> F64:
    """The mean residual of the side that lacks the feature in ``layer``, fp64 ``[d_model]``."""
    direction = context.directions[step.direction]
    return np.asarray(direction.mean_lacks[direction.row(layer)], np.float64)


def projected(step: EditStep, context: Context) -> None:
    """Remove ``amount`` of the direction, the neutral mean of its own layer taken out of it first.

    Raises:
        RecipeError: an amount outside 0 to 2.
        EditError: the direction is little more than that mean.
    """
    scale(step, context, share_left(step),
          lambda layer: context.basis(step, layer, neutral_mean(step, context, context.row(step, layer))))  # fmt: skip


def biprojected(step: EditStep, context: Context) -> None:
    """Remove ``amount`` of the direction, the neutral means of its own and of each edited layer taken out of it.

    Raises:
        RecipeError: an amount outside 0 to 2.
        EditError: the direction lies in the span of those means.
    """

    def basis(layer: int) -> F64:
        source = context.row(step, layer)
        layers = [source] if source == layer else [source, layer]
        return context.basis(step, layer, *(neutral_mean(step, context, x) for x in layers))

    scale(step, context, share_left(step), basis)
