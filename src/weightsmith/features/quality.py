"""How good a direction is, layer by layer: AUROC on held-out prompts, size, and whether it reproduces."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..records import LayerQuality
from .extract import Activations
from .methods import EXTRACTORS

F64 = np.ndarray[Any, np.dtype[np.float64]]


def auroc(shows: F64, lacks: F64) -> float:
    """Chance that a random *shows* score exceeds a random *lacks* score, ties counted half. Scores ``[n]``, ``[m]``."""
    return float(_wins(shows, lacks).mean())


def _wins(shows: F64, lacks: F64) -> F64:
    difference = shows[:, None] - lacks[None, :]
    return np.asarray((difference > 0) + 0.5 * (difference == 0), np.float64)


def auroc_interval(
    shows: F64, lacks: F64, paired: bool, rng: np.random.Generator, rounds: int = 1000
) -> tuple[float, float]:
    """95% percentile bootstrap over prompts; pairs are drawn together."""
    wins, n, m = _wins(shows, lacks), len(shows), len(lacks)
    left = rng.multinomial(n, np.full(n, 1 / n), rounds) / n
    right = left if paired and n == m else rng.multinomial(m, np.full(m, 1 / m), rounds) / m
    values = np.einsum("rn,nm,rm->r", left, wins, right, optimize=True)
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def vectors(activations: Activations, method: str) -> F64:
    """The method's vector for every captured layer, ``[layers, d]``."""
    extractor = EXTRACTORS.load(method)
    shows, lacks = activations.shows.means.astype(np.float64), activations.lacks.means.astype(np.float64)
    return np.stack([extractor(shows[:, k], lacks[:, k], activations.paired) for k in range(shows.shape[1])])


def readers(activations: Activations, method: str) -> F64 | None:
    """What the method reads along in every captured layer, ``[layers, d]``; ``None`` where that is its vector."""
    reader = getattr(EXTRACTORS.load(method), "reader", None)
    if reader is None:
        return None
    shows, lacks = activations.shows.means.astype(np.float64), activations.lacks.means.astype(np.float64)
    return np.stack([reader(shows[:, k], lacks[:, k], activations.paired) for k in range(shows.shape[1])])


def split_half(activations: Activations, method: str, seed: int = 0) -> F64:
    """Cosine per layer between the directions of two random halves of the prompts, ``[layers]``."""
    extractor, rng = EXTRACTORS.load(method), np.random.default_rng(seed)
    shows, lacks = activations.shows.means.astype(np.float64), activations.lacks.means.astype(np.float64)
    left = rng.permutation(len(shows))
    right = left if activations.paired else rng.permutation(len(lacks))
    halves = []
    for pick in (slice(0, None, 2), slice(1, None, 2)):
        a, b = shows[left[pick]], lacks[right[pick]]
        halves.append(np.stack([extractor(a[:, k], b[:, k], activations.paired) for k in range(shows.shape[1])]))
    one, two = halves
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return np.asarray((one * two).sum(1) / np.where(norms == 0, 1, norms), np.float64)


def layer_quality(
    found: F64, layers: tuple[int, ...], extract: Activations, select: Activations, method: str, seed: int = 0
) -> list[LayerQuality]:
    """Quality of ``found`` ``[layers, d]``: AUROC with interval on *select*, relative norm, split-half cosine."""
    rng = np.random.default_rng(seed)
    halves = split_half(extract, method, seed)
    rows = []
    for k, layer in enumerate(layers):
        size = float(np.linalg.norm(found[k]))
        unit = found[k] / (size or 1.0)
        shows, lacks = select.shows.means[:, k] @ unit, select.lacks.means[:, k] @ unit
        low, high = auroc_interval(shows, lacks, select.paired, rng)
        norm = float(np.concatenate([extract.shows.norms[:, k], extract.lacks.norms[:, k]]).mean())
        rows.append(LayerQuality(layer=layer, auroc=auroc(shows, lacks), auroc_low=low, auroc_high=high,
                                 relative_norm=size / norm if norm else 0.0, split_half=float(halves[k])))  # fmt: skip
    return rows
