"""Extraction methods: from the activations of two sides to one vector.

Plug-ins of the group ``weightsmith.extractors``. An extractor is ``f(shows, lacks, paired) -> vector`` with ``shows``
``[n, d]`` and ``lacks`` ``[m, d]`` fp64; the vector points from lacking to showing the feature.
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


EXTRACTORS = Registry(
    "extractors",
    {
        "difference-in-means": "weightsmith.features.methods:difference_in_means",
        "paired-pca": "weightsmith.features.methods:paired_pca",
        "logistic-probe": "weightsmith.features.methods:logistic_probe",
    },
)
