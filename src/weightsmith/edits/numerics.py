"""Sums that give the same bits everywhere: elementwise IEEE operations in an order that is fixed here.

No BLAS, whose order depends on its kernels and threads, and no reduction of numpy's along a contiguous axis. Rows are
taken in blocks of :data:`ROWS` whatever the memory and the threads; inside a block they are added as a balanced tree
(the rounding error grows with log₂ 64 instead of 64), and the blocks' sums are added up in fp64, in order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import EditError

F64 = np.ndarray[Any, np.dtype[np.float64]]
Array = np.ndarray[Any, Any]
ROWS = 64
BUFFER = 1024  # elements; see `by_rows`


@contextlib.contextmanager
def by_rows() -> Iterator[None]:
    """Make numpy go over whole rows where it multiplies rows by a column of factors.

    Where two rows fit into its buffer it gathers them there first, which takes two to three times as long and gives
    the same.
    """
    before = np.setbufsize(BUFFER)
    try:
        yield
    finally:
        np.setbufsize(before)


def tree_sum(block: Array) -> Array:
    """Sum over the first axis as a balanced tree of elementwise additions; ``block`` is used as scratch."""
    n = len(block)
    while n > 1:
        half = n // 2
        np.add(block[:half], block[n - half : n], out=block[:half])
        n -= half
    return np.asarray(block[0])


class RowSum:
    """Accumulates ``coefficientsᵀ @ matrix`` ``[k, in]`` over blocks of rows, in fp64 from block to block."""

    def __init__(self, coefficients: F64, dtype: Any) -> None:
        self.coefficients = coefficients.astype(dtype)
        self.total: F64 | None = None

    def add(self, rows: slice, values: Array, *, spare: bool = False) -> None:
        """Add one block ``[rows, in]``; ``spare`` says that nobody needs it any more, so that it may be overwritten."""
        weights = self.coefficients[rows]
        last = weights.shape[1] - 1
        found = np.empty((last + 1, values.shape[1]), np.float64)
        scratch = values if spare and not last else np.empty(values.shape, values.dtype)
        with by_rows():
            for k in range(last + 1):
                out = values if spare and k == last else scratch
                np.multiply(values, weights[:, k : k + 1], out=out)
                found[k] = tree_sum(out)
        if self.total is None:
            self.total = found
        else:
            self.total += found

    def result(self) -> F64:
        """The sums so far."""
        if self.total is None:
            raise ValueError("nothing was seen")
        return self.total


def squares(values: Array) -> F64:
    """Sum of the squares of a block's rows, ``[in]``, fp64."""
    return tree_sum(values * values).astype(np.float64)


def orthonormal(vectors: Sequence[F64]) -> F64:
    """Orthonormal columns ``[d, k]`` with the span of ``vectors``, by modified Gram-Schmidt done twice.

    Raises:
        EditError: they are not linearly independent.
    """
    basis: list[F64] = []
    for vector in vectors:
        rest = np.asarray(vector, np.float64)
        length = float(np.sqrt((rest * rest).sum()))
        for _ in range(2):
            for other in basis:
                rest = rest - other * float((other * rest).sum())
        norm = float(np.sqrt((rest * rest).sum()))
        if not norm > 1e-6 * length:
            raise EditError("the directions are not linearly independent", hint="leave out the one that repeats others")
        basis.append(rest / norm)
    return np.stack(basis, axis=1)
