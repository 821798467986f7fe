"""Extraction methods: from the activations of two sides to one vector.

Plug-ins of the group ``weightsmith.extractors``. An extractor is ``f(shows, lacks, paired) -> vector`` with ``shows``
``[n, d]`` and ``lacks`` ``[m, d]`` fp64; the vector points from lacking to showing the feature. One that reads along
another vector than it writes has a method ``reader``, called in the same way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import RecipeError
from ..registry import Registry

F64 = np.ndarray[Any, np.dtype[np.float64]]


def difference_in_means(shows: F64, lacks: F64, paired: bool) -> F64:
    """Mean of *shows* minus mean of *lacks* (Marks and Tegmark 2023, arXiv 2310.06824; Arditi et al. 2024)."""
    return np.asarray(shows.mean(0) - lacks.mean(0), np.float64)


def paired_pca(shows: F64, lacks: F64, paired: bool) -> F64:
    """First principal axis of the pairwise differences, uncentred, scaled to the difference in means' projection.

    Zou et al. 2023 (representation engineering, arXiv 2310.01405, section 3.1). The sign is that of the mean
    difference.

    Raises:
        RecipeError: the sides are not paired.
    """
    if not paired or len(shows) != len(lacks):
        raise RecipeError("paired PCA needs pairs: personas or prompt pairs", hint="use --method difference-in-means")
    differences = shows - lacks
    _, _, rows = np.linalg.svd(differences, full_matrices=False)
    axis = np.asarray(rows[0], np.float64)
    return axis * float(differences.mean(0) @ axis)


def logistic_probe(shows: F64, lacks: F64, paired: bool, penalty: float = 1.0) -> F64:
    """Weights of an L2-regularised logistic regression on standardised activations, mapped back to activation units
    and scaled to the difference in means' projection."""
    from scipy.optimize import minimize

    x = np.vstack([shows, lacks])
    y = np.r_[np.ones(len(shows)), -np.ones(len(lacks))]
    mean, scale = x.mean(0), x.std(0) + 1e-6 * (x.std() + 1e-12)
    z = (x - mean) / scale / np.sqrt(x.shape[1])

    def loss(w: F64) -> tuple[float, F64]:
        margin = y * (z @ w[:-1] + w[-1])
        value = np.logaddexp(0, -margin).mean() + penalty / (2 * len(y)) * w[:-1] @ w[:-1]
        slope = -y / (1 + np.exp(np.clip(margin, -500, 500))) / len(y)
        return float(value), np.r_[z.T @ slope + penalty / len(y) * w[:-1], slope.sum()]

    fitted = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B")
    axis = fitted.x[:-1] / scale
    axis /= np.linalg.norm(axis) or 1.0  # zero where both sides are the same
    return np.asarray(axis * float((shows.mean(0) - lacks.mean(0)) @ axis), np.float64)


class _Leace:
    """Difference in means δ, and for reading Σ⁻¹δ, with Σ the covariance of both sides about their own means.

    The pair that least-squares concept erasure takes (Belrose et al. 2023, arXiv 2306.03819, theorem 4.3, two classes).
    The paper has the covariance about the common mean, which gives the same line: the two differ by a multiple of
    δδᵀ. With fewer prompts than dimensions Σ can't be inverted as it is; see :func:`shrinkage`.
    """

    def __call__(self, shows: F64, lacks: F64, paired: bool) -> F64:
        return difference_in_means(shows, lacks, paired)

    def reader(self, shows: F64, lacks: F64, paired: bool) -> F64:
        """Σ⁻¹δ ``[d]``; δ itself where nothing varies within the sides."""
        delta = difference_in_means(shows, lacks, paired)
        spread = np.vstack([shows - shows.mean(0), lacks - lacks.mean(0)])
        return _solve_shrunk(spread, delta)


leace = _Leace()


def shrinkage(spread: F64) -> tuple[float, float]:
    """(ρ, m) of the covariance (1 − ρ) S + ρ m I with the least expected squared error, for centred rows X ``[n, d]``.

    S = XᵀX/n and m is its mean eigenvalue (Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional
    covariance matrices", section 3.2).
    """
    n, width = spread.shape
    energies = (spread * spread).sum(1)
    mean = float(energies.sum()) / (n * width)
    gram = _small_gram(spread)
    squared = float((gram * gram).sum()) / n**2  # ‖S‖² in the Frobenius norm
    apart = squared - width * mean**2
    noise = (float((energies * energies).sum()) / n - squared) / n
    if apart <= 0.0:
        return 1.0, mean
    return min(1.0, max(0.0, noise) / apart), mean


def _small_gram(spread: F64) -> F64:
    """XXᵀ or XᵀX, whichever is smaller."""
    return spread @ spread.T if len(spread) < spread.shape[1] else spread.T @ spread


def _solve_shrunk(spread: F64, vector: F64) -> F64:
    """Σ⁻¹ ``vector`` for the shrunk covariance of centred rows ``[n, d]``; where n < d by way of an n × n system
    (Woodbury)."""
    n, width = spread.shape
    rho, mean = shrinkage(spread)
    floor = max(rho, 1e-6) * mean
    if not floor > 0.0:
        return vector
    if rho >= 1.0:
        return np.asarray(vector / mean, np.float64)
    inner = _small_gram(spread) * ((1.0 - rho) / n)
    inner[np.diag_indices_from(inner)] += floor
    if n >= width:
        return np.asarray(np.linalg.solve(inner, vector), np.float64)
    inside = spread.T @ np.linalg.solve(inner, spread @ vector) * ((1.0 - rho) / n)
    return np.asarray((vector - inside) / floor, np.float64)


EXTRACTORS = Registry(
    "extractors",
    {
        "difference-in-means": "weightsmith.features.methods:difference_in_means",
        "leace": "weightsmith.features.methods:leace",
        "paired-pca": "weightsmith.features.methods:paired_pca",
        "logistic-probe": "weightsmith.features.methods:logistic_probe",
    },
)
