"""Rewriting one tensor: blocks of rows go up, through the operations, and back to the tensor's dtype.

A matrix is seen by its operations as ``[out, in]`` whatever its layout. Where ``out`` runs over the rows on disk
(linears, experts) a block is a few rows with all input vectors, and an operation that needs a sum over all rows sees the
matrix once more. Where it runs along the rows (Conv1D, embeddings, biases) a block is a few whole input vectors, which
need nothing of the others. Memory is bounded by the block, or by ``keep`` bytes when a tensor is small enough to be held
between the turns; the bytes that come out depend on neither.

16-bit and narrower weights are computed in fp32, which their rounding hides by four digits; fp32 and fp64 ones in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .edits import Operation, State
from .edits.numerics import ROWS, Array, RowSum, tree_sum
from .errors import NonFinite
from .formats.safetensors import TensorSpec, all_finite, decode, encode

#: elements of a block of input vectors; of a block of rows there are always ROWS rows
CHUNK = 1 << 18
Reader = Callable[[int, int], memoryview | bytes]


def arithmetic(dtype: str) -> Any:
    """The dtype that weights of a safetensors ``dtype`` are computed in."""
    return np.float64 if dtype in ("F32", "F64") else np.float32


@dataclass
class Left:
    """How much of the cleared directions is left: Σ ‖cᵀW′‖² after the cast over Σ ‖cᵀW‖² before."""

    before: float = 0.0
    after: float = 0.0
    measured: bool = False

    def share(self) -> float | None:
        """‖cᵀW′‖ / ‖cᵀW‖, 0 where nothing was there, ``None`` when nothing was to be cleared."""
        if not self.measured:
            return None
        return math.sqrt(self.after / self.before) if self.before else 0.0


@dataclass
class Rewriting:
    """One tensor being rewritten.

    ``read(start, stop)`` gives the raw bytes from ``start`` to ``stop`` of the tensor; it is called for every byte at
    least once, in ascending order within a turn. Iterating :meth:`blocks` gives the new bytes in file order.
    """

    spec: TensorSpec
    operations: Sequence[Operation]
    read: Reader
    what: str = "edit"
    left: Left = field(default_factory=Left)

    def blocks(self) -> Iterator[bytes]:
        """The new bytes of the tensor, in order.

        Raises:
            NonFinite: NaN or infinity in the tensor, or a value that would overflow its dtype.
        """
        axes = {operation.out_axis for operation in self.operations}
        if len(axes) != 1:
            raise ValueError("operations on one tensor must agree on its output axis")
        shape = self.spec.shape
        if axes == {-1}:
            yield from self._along_rows(math.prod(shape[:-1]), shape[-1])
        else:
            rows, columns = shape[-2:]
            for matrix in range(math.prod(shape[:-2])):
                yield from self._down_rows(matrix * rows, rows, columns)

    def _values(self, first: int, last: int, columns: int) -> Array:
        """Rows ``first`` to ``last`` of the tensor seen as rows of ``columns``, in the arithmetic dtype, owned."""
        width = self.spec.nbytes // max(1, self.spec.numel)
        raw = self.read(first * columns * width, last * columns * width)
        values = decode(raw, self.spec.dtype, arithmetic(self.spec.dtype))
        return values.reshape(last - first, columns)

    def _encode(self, values: Array) -> tuple[bytes, Array]:
        """The block's bytes, and its values as they will be read."""
        data = encode(values, self.spec.dtype)
        if not all_finite(data, self.spec.dtype):
            raise NonFinite(f"{self.spec.name!r} would overflow {self.spec.dtype}", where=self.what,
                            hint="use a smaller amount")  # fmt: skip
        return data, decode(data, self.spec.dtype, arithmetic(self.spec.dtype)).reshape(values.shape)

    def _down_rows(self, offset: int, rows: int, columns: int) -> Iterator[bytes]:
        def read(block: slice) -> Array:
            return self._values(offset + block.start, offset + block.stop, columns)

        states = self._begin(read, rows, slice(0, columns))
        meter = _Meter(self, states, read, rows)
        for block in blocks(rows):
            data, after = self._encode(_through(states, block, read(block)))
            meter.add(block, after)
            yield data
        meter.close()

    def _along_rows(self, inputs: int, width: int) -> Iterator[bytes]:
        step = inputs if any(o.whole for o in self.operations) else max(1, CHUNK // width)
        for start in range(0, inputs, step):
            stop = min(inputs, start + step)
            turned = np.ascontiguousarray(self._values(start, stop, width).T)

            def read(block: slice, turned: Array = turned) -> Array:
                return turned[block].copy()

            states = self._begin(read, width, slice(start, stop))
            meter = _Meter(self, states, read, width)
            changed = np.concatenate([_through(states, block, read(block)) for block in blocks(width)])
            data, after = self._encode(np.ascontiguousarray(changed.T))
            for block in blocks(width):
                meter.add(block, np.ascontiguousarray(after.T[block]))
            meter.close()
            yield data

    def _begin(self, read: Callable[[slice], Array], rows: int, columns: slice) -> list[State]:
        states: list[State] = []
        for operation in self.operations:
            state = operation.begin(columns, arithmetic(self.spec.dtype))
            for turn in range(operation.turns):
                for block in blocks(rows):
                    state.see(turn, block, _through(states, block, read(block)))
                if state.end(turn):
                    break
            states.append(state)
        return states


def blocks(rows: int) -> Iterator[slice]:
    """``rows`` in blocks of :data:`ROWS`."""
    return (slice(start, min(rows, start + ROWS)) for start in range(0, rows, ROWS))


def _through(states: Sequence[State], block: slice, values: Array) -> Array:
    for state in states:
        values = state.apply(block, values)
    return values


class _Meter:
    """Adds up what is left of every cleared direction, over the blocks of one matrix, into the tensor's record."""

    def __init__(self, job: Rewriting, states: Sequence[State], read: Callable[[slice], Array], rows: int) -> None:
        self.left = job.left
        dtype = arithmetic(job.spec.dtype)
        self.sums: list[RowSum] = []
        for index, (operation, state) in enumerate(zip(job.operations, states, strict=True)):
            if operation.cleared is None:
                continue
            had = state.had() if index == 0 else None
            if had is None:
                base = RowSum(operation.cleared, dtype)
                for block in blocks(rows):
                    base.add(block, read(block))
                had = base.result()
            self.left.before += _energy(had)
            self.left.measured = True
            self.sums.append(RowSum(operation.cleared, dtype))

    def add(self, block: slice, after: Array) -> None:
        """One block as it was written."""
        for total in self.sums:
            total.add(block, after)

    def close(self) -> None:
        """The matrix is complete."""
        for total in self.sums:
            self.left.after += _energy(total.result())


def _energy(along: Array) -> float:
    return float(tree_sum((along * along).reshape(-1, 1))[0])


def low_rank(spec: TensorSpec, operations: Sequence[Operation], read: Reader) -> list[tuple[Array, Array]] | None:
    """The change of a tensor as (write ``[out, k]``, read ``[k, in]``) for each of its matrices, or ``None`` where an
    operation has no low rank. Exact in the arithmetic dtype: W′ − W = write @ read before the cast."""
    job = Rewriting(spec, operations, read)
    down = operations[0].out_axis == -2
    rows, columns = spec.shape[-2:] if down else (spec.shape[-1], math.prod(spec.shape[:-1]))
    found: list[tuple[Array, Array]] = []
    for matrix in range(math.prod(spec.shape[:-2]) if down else 1):
        turned = None if down else np.ascontiguousarray(job._values(0, columns, rows).T)

        def values(block: slice, matrix: int = matrix, turned: Array | None = turned) -> Array:
            if turned is not None:
                return turned[block].copy()
            return job._values(matrix * rows + block.start, matrix * rows + block.stop, columns)

        factors = [state.factors() for state in job._begin(values, rows, slice(0, columns))]
        pairs = [f for f in factors if f is not None]
        if len(pairs) < len(factors):
            return None
        found.append((np.concatenate([w for w, _ in pairs], axis=1), np.concatenate([r for _, r in pairs])))
    return found
