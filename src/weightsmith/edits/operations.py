"""What edits do to one writer W ``[out, in]``: the operations that the kinds are made of.

Each holds its equation; the blocks of rows come from :mod:`weightsmith.rewrite`. Sums run in the fixed order of
:mod:`weightsmith.edits.numerics`, so the bytes depend on neither threads nor BLAS nor the size of a block on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import EditError
from .numerics import F64, Array, RowSum, by_rows, squares, tree_sum

ROUNDS = 30  # of alternating projection; the row norms are within TOLERANCE long before, or can't be kept
TOLERANCE = 1e-4
LOOSE = 0.02  # beyond this the last round is refused


@dataclass(frozen=True)
class Project:
    """W + write (readᵀ W), with ``write`` and ``read`` ``[out, k]``: every linear change of a module's output."""

    tensor: str
    out_axis: int
    write: F64
    read: F64
    cleared: F64 | None
    what: str
    turns: int = 1
    whole: bool = False

    def begin(self, columns: slice, dtype: Any) -> _Projecting:
        """Start on some input vectors."""
        return _Projecting(self, dtype)

    def describe(self) -> str:
        """One line for the record."""
        return self.what


class _Projecting:
    def __init__(self, operation: Project, dtype: Any) -> None:
        self.operation = operation
        self.write = operation.write.astype(dtype)
        self.sums = RowSum(operation.read, dtype)
        self.along: Array | None = None

    def see(self, turn: int, rows: slice, values: Array) -> None:
        self.sums.add(rows, values, spare=True)

    def end(self, turn: int) -> bool:
        self.along = self.sums.result().astype(self.write.dtype)
        return True

    def apply(self, rows: slice, values: Array) -> Array:
        return add_outer(values, self.write[rows], self.along)

    def had(self) -> F64 | None:
        return self.sums.result() if self.operation.cleared is self.operation.read else None

    def factors(self) -> tuple[F64, F64]:
        return self.operation.write, self.sums.result()


def add_outer(values: Array, write: Array, along: Array | None) -> Array:
    """values + write @ along, one rank after another, in place; ``write`` is ``[rows, k]``, ``along`` ``[k, in]``."""
    if along is None:
        raise ValueError("the matrix has not been seen yet")
    scratch = np.empty(values.shape, values.dtype)
    with by_rows():
        for k in range(len(along)):
            np.multiply(write[:, k : k + 1], along[k], out=scratch)
            np.add(values, scratch, out=values)
    return values


@dataclass(frozen=True)
class ProjectKeepInputNorms:
    """(W + (f − 1) U UᵀW) with every input vector (column) rescaled to the length that it had.

    Rescaling a column leaves it orthogonal to U, so a removal stays exact. ``basis`` is U ``[out, k]``, orthonormal. What
    the column has along ``kept`` ``[out, p]``, orthonormal and orthogonal to U, is not rescaled; the rest then makes up
    for it.
    """

    tensor: str
    out_axis: int
    basis: F64
    factor: float
    what: str
    kept: F64 | None = None
    turns: int = 1
    whole: bool = False

    @property
    def cleared(self) -> F64 | None:
        """U, for a removal."""
        return self.basis if self.factor == 0.0 else None

    def begin(self, columns: slice, dtype: Any) -> _KeepingInputs:
        """Start on some input vectors."""
        return _KeepingInputs(self, dtype)

    def describe(self) -> str:
        """One line for the record."""
        return self.what


class _KeepingInputs:
    """Of a column with energy e, a along U and p along P: scaled by s with s² (e − a + f²a − p) + p = e."""

    def __init__(self, operation: ProjectKeepInputNorms, dtype: Any) -> None:
        self.operation = operation
        basis, kept = operation.basis, operation.kept
        both = basis if kept is None else np.concatenate([basis, kept], axis=1)
        self.rank = basis.shape[1]
        self.write = (basis * (operation.factor - 1.0)).astype(dtype)
        self.kept = both[:, self.rank :].astype(dtype)
        self.sums = RowSum(both, dtype)
        self.energy: F64 | None = None
        self.along: Array | None = None
        self.back: Array | None = None
        self.scale: Array | None = None

    def see(self, turn: int, rows: slice, values: Array) -> None:
        found = squares(values)
        self.energy = found if self.energy is None else self.energy + found
        self.sums.add(rows, values, spare=True)

    def end(self, turn: int) -> bool:
        along = self.sums.result()
        assert self.energy is not None
        inside, fixed = (_energies(rows, self.energy) for rows in (along[: self.rank], along[self.rank :]))
        before = self.energy - fixed
        after = before + (self.operation.factor**2 - 1.0) * inside
        if bool((after < 1e-6 * before).any()):
            raise EditError("an input vector lies wholly along the direction, so its norm can't be kept without it",
                            where=self.operation.tensor, hint="use `norms: free`")  # fmt: skip
        scale = np.sqrt(np.divide(before, after, out=np.ones_like(after), where=after > 0))
        dtype = self.write.dtype
        self.scale = scale.astype(dtype)
        self.along = along[: self.rank].astype(dtype)
        self.back = ((1.0 - scale) * along[self.rank :]).astype(dtype)
        return True

    def apply(self, rows: slice, values: Array) -> Array:
        changed = add_outer(values, self.write[rows], self.along)
        assert self.scale is not None
        np.multiply(changed, self.scale, out=changed)
        return add_outer(changed, self.kept[rows], self.back)

    def had(self) -> F64:
        return self.sums.result()[: self.rank]

    def factors(self) -> None:
        return None


def _energies(rows: F64, like: F64) -> F64:
    """Sum of the squares of ``rows`` ``[k, in]``, one after another, ``[in]``."""
    total = np.zeros_like(like)
    for row in rows:
        total += row * row
    return total


@dataclass(frozen=True)
class ProjectKeepOutputNorms:
    """W with its component along U taken out and the norm of every output row kept, by alternating projection.

    W ← D W (each row to its norm) and W ← W − U UᵀW in turn, the projection last, so that the removal is exact and the
    norms agree to :data:`TOLERANCE`. What changes W is then D W + write @ along of growing rank, so one more round costs
    one more pass over the file and no memory. It is refused where it can't be: Σ uᵢ wᵢ = 0 with ‖wᵢ‖ given needs the
    longest |uᵢ| ‖wᵢ‖ to be at most the sum of the others.
    """

    tensor: str
    out_axis: int
    basis: F64
    what: str
    turns: int = ROUNDS
    whole: bool = True

    @property
    def cleared(self) -> F64 | None:
        """U."""
        return self.basis

    def begin(self, columns: slice, dtype: Any) -> _KeepingOutputs:
        """Start on the whole matrix."""
        return _KeepingOutputs(self, dtype)

    def describe(self) -> str:
        """One line for the record."""
        return self.what


class _KeepingOutputs:
    """The matrix after t rounds is ``scale ⊙ W + write @ along``; turn 0 projects, each further one does a round."""

    def __init__(self, operation: ProjectKeepOutputNorms, dtype: Any) -> None:
        self.operation = operation
        self.dtype = dtype
        rows = len(operation.basis)
        self.norms, self.lengths, self.scale = np.zeros(rows), np.zeros(rows), np.ones(rows)
        self.write, self.along = np.zeros((rows, 0)), np.zeros((0, 0))
        self.sums = RowSum(operation.basis, dtype)

    def see(self, turn: int, rows: slice, values: Array) -> None:
        current = self.apply(rows, values)
        lengths = np.sqrt(_row_squares(current))
        if turn == 0:
            self.norms[rows] = lengths
        else:
            self.lengths[rows] = lengths
            grow = np.divide(self.norms[rows], lengths, out=np.ones_like(lengths), where=lengths > 0)
            self.scale[rows] *= grow
            self.write[rows] *= grow[:, None]
            current *= grow[:, None].astype(self.dtype)
        self.sums.add(rows, current, spare=True)

    def end(self, turn: int) -> bool:
        worst = np.inf
        if turn == 0:
            self._check_reach()
        else:
            worst = float(np.abs(np.divide(self.lengths, self.norms, out=np.ones_like(self.norms),
                                           where=self.norms > 0) - 1).max())  # fmt: skip
        found = self.sums.result()
        self.along = found if turn == 0 else np.concatenate([self.along, found])
        self.write = np.concatenate([self.write, -self.operation.basis], axis=1)
        self.sums = RowSum(self.operation.basis, self.dtype)
        if turn == self.operation.turns - 1 and worst > LOOSE:
            raise EditError(f"the rows' norms can't be kept: after {turn} rounds one is off by {worst:.0%}",
                            where=self.operation.tensor, hint="use `norms: input` or `norms: free`")  # fmt: skip
        return worst < TOLERANCE

    def _check_reach(self) -> None:
        reach = np.sqrt((self.operation.basis**2).sum(1)) * self.norms
        if self.operation.basis.shape[1] == 1 and float(reach.max()) > float(reach.sum() - reach.max()):
            raise EditError("one row outweighs all others along the direction, so the rows' norms can't be kept",
                            where=f"{self.operation.tensor} row {int(reach.argmax())}",
                            hint="use `norms: input` or `norms: free`")  # fmt: skip

    def apply(self, rows: slice, values: Array) -> Array:
        np.multiply(values, self.scale[rows, None].astype(self.dtype), out=values)
        return add_outer(values, self.write[rows].astype(self.dtype), self.along.astype(self.dtype))

    def had(self) -> F64:
        return self.along[: self.operation.basis.shape[1]]

    def factors(self) -> None:
        return None


def _row_squares(values: Array) -> F64:
    """Sum of squares of each row, ``[rows]``: the columns as a balanced tree."""
    wide = values.astype(np.float64)
    return tree_sum(np.ascontiguousarray((wide * wide).T))


@dataclass(frozen=True)
class AddConstant:
    """b + vector, on a bias (per expert where there are several)."""

    tensor: str
    vector: F64
    out_axis: int = -1
    turns: int = 0
    whole: bool = False
    cleared: None = None

    def begin(self, columns: slice, dtype: Any) -> _AddingConstant:
        """Start on some biases."""
        return _AddingConstant(self.vector.astype(dtype))

    def describe(self) -> str:
        """One line for the record."""
        return f"constant of norm {float(np.sqrt((self.vector**2).sum())):.6g} added"


class _AddingConstant:
    def __init__(self, vector: Array) -> None:
        self.vector = vector

    def see(self, turn: int, rows: slice, values: Array) -> None:
        raise AssertionError("nothing has to be seen")

    def end(self, turn: int) -> bool:
        raise AssertionError("nothing has to be seen")

    def apply(self, rows: slice, values: Array) -> Array:
        return values + self.vector[rows, None]

    def had(self) -> None:
        return None

    def factors(self) -> None:
        return None


@dataclass(frozen=True)
class AddRankOne:
    """W + vector wᵀ, with ``vector`` ``[out]`` and ``w`` ``[in]``."""

    tensor: str
    vector: F64
    w: F64
    out_axis: int
    turns: int = 0
    whole: bool = False
    cleared: None = None

    def begin(self, columns: slice, dtype: Any) -> _AddingRankOne:
        """Start on some input vectors."""
        return _AddingRankOne(self.vector, self.w[columns], dtype)

    def describe(self) -> str:
        """One line for the record."""
        return f"fitted rank-1 constant of norm {float(np.sqrt((self.vector**2).sum())):.6g} added"


class _AddingRankOne:
    def __init__(self, vector: F64, w: F64, dtype: Any) -> None:
        self.exact = (vector[:, None], w[None, :])
        self.write, self.along = self.exact[0].astype(dtype), self.exact[1].astype(dtype)

    def see(self, turn: int, rows: slice, values: Array) -> None:
        raise AssertionError("nothing has to be seen")

    def end(self, turn: int) -> bool:
        raise AssertionError("nothing has to be seen")

    def apply(self, rows: slice, values: Array) -> Array:
        return add_outer(values, self.write[rows], self.along)

    def had(self) -> None:
        return None

    def factors(self) -> tuple[F64, F64]:
        return self.exact
