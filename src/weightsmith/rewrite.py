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
from .edits.numerics import ROWS, Array, RowSum, orthonormal, tree_sum
from .edits.rounding import Balance
from .errors import NonFinite
from .formats.safetensors import FLOAT_WORDS, TensorSpec, all_finite, bf16_to_f32, decode, encode, round_to_bf16

#: elements of a block of input vectors; of a block of rows there are always ROWS rows
CHUNK = 1 << 18
#: input vectors of a block of rows that are worked on at a time, so that the intermediates stay in the cache
PANEL = 2048
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
    least once, in ascending order within a turn. Iterating :meth:`blocks` gives the new bytes in file order. With
    ``balanced`` what rounding leaves of cleared directions cancels (see :mod:`weightsmith.edits.rounding`).
    """

    spec: TensorSpec
    operations: Sequence[Operation]
    read: Reader
    what: str = "edit"
    balanced: bool = False
    left: Left = field(default_factory=Left)

    def blocks(self) -> Iterator[memoryview]:
        """The new bytes of the tensor, in order.

        Raises:
            NonFinite: NaN or infinity in the tensor, or a value that would overflow its dtype.
        """
        axes = {operation.out_axis for operation in self.operations}
        if len(axes) != 1:
            raise ValueError("operations on one tensor must agree on its output axis")
        shape = self.spec.shape
        if not self.spec.numel:
            return
        if axes == {-1}:
            yield from self._along_rows(math.prod(shape[:-1]), shape[-1])
        else:
            rows, columns = shape[-2:]
            for matrix in range(math.prod(shape[:-2])):
                yield from self._down_rows(matrix * rows, rows, columns)

    def _words(self, first: int, last: int, columns: int) -> Array:
        """Rows ``first`` to ``last`` of the tensor seen as rows of ``columns``, as raw words."""
        width = self._word.itemsize
        raw = self.read(first * columns * width, last * columns * width)
        return np.frombuffer(raw, self._word).reshape(last - first, columns)

    @property
    def _word(self) -> np.dtype[Any]:
        """Of the raw bytes of one value."""
        return np.dtype(f"<u{self.spec.nbytes // max(1, self.spec.numel)}")

    def _decode(self, words: Array) -> Array:
        """The values of raw words, in the arithmetic dtype, owned."""
        if self.spec.dtype == "BF16":
            return bf16_to_f32(words)
        flat = np.ascontiguousarray(words).reshape(-1)
        return decode(flat.data, self.spec.dtype, arithmetic(self.spec.dtype)).reshape(words.shape)

    def _encode(self, values: Array) -> tuple[Array, Array]:
        """The block's raw words, and its values as they will be read; ``values`` may be overwritten."""
        if self.spec.dtype == "BF16" and values.dtype == np.float32 and not np.isnan(np.max(values, initial=0.0)):
            words, after = round_to_bf16(values), values
        else:
            data = encode(values, self.spec.dtype)
            words = np.frombuffer(data, self._word).reshape(values.shape)
            after = self._decode(words)
        if not all_finite(words.reshape(-1).data, self.spec.dtype):
            raise NonFinite(f"{self.spec.name!r} would overflow {self.spec.dtype}", where=self.what,
                            hint="use a smaller amount")  # fmt: skip
        return words, after

    def _balance(self) -> Balance | None:
        """Balanced rounding for one panel, where it is asked for and something is to be cleared."""
        cleared = [column for o in self.operations if o.cleared is not None for column in o.cleared.T]
        if not (self.balanced and cleared and self.spec.dtype in FLOAT_WORDS):
            return None
        return Balance(orthonormal(cleared), self.spec.dtype, lambda values: encode(values, self.spec.dtype))

    def _rounded(self, balance: Balance | None, block: slice, values: Array) -> tuple[Array, Array]:
        if balance is None:
            return self._encode(values)
        self._encode(values.copy())  # what overflows is refused there
        return balance.round(block, values)

    def _down_rows(self, offset: int, rows: int, columns: int) -> Iterator[memoryview]:
        width = columns if any(o.whole for o in self.operations) else PANEL
        panels = [slice(start, min(columns, start + width)) for start in range(0, columns, width)]

        def read(block: slice) -> list[Array]:
            words = self._words(offset + block.start, offset + block.stop, columns)
            return [words[:, panel] for panel in panels]

        states = self._begin(read, rows, panels)
        meters = [_Meter(self, s) for s in states]
        if any(m.unknown for m in meters):
            for block in blocks(rows):
                for meter, words in zip(meters, read(block), strict=True):
                    meter.base(block, self._decode(words))
        balances = [self._balance() for _ in panels]
        for block in blocks(rows) if balances[0] else ():
            for balance, state, words in zip(balances, states, read(block), strict=True):
                if balance is not None:
                    balance.see(block, _through(state, block, self._decode(words)))
        for block in blocks(rows):
            out = np.empty((block.stop - block.start, columns), self._word)
            for panel, state, meter, balance, words in zip(panels, states, meters, balances, read(block), strict=True):
                out[:, panel], after = self._rounded(balance, block, _through(state, block, self._decode(words)))
                meter.add(block, after)
            yield out.reshape(-1).data.cast("B")
        for meter in meters:
            meter.close()

    def _along_rows(self, inputs: int, width: int) -> Iterator[memoryview]:
        step = inputs if any(o.whole for o in self.operations) else max(1, CHUNK // width)
        for start in range(0, inputs, step):
            stop = min(inputs, start + step)
            turned = np.ascontiguousarray(self._words(start, stop, width).T)

            def read(block: slice, turned: Array = turned) -> list[Array]:
                return [turned[block]]

            state = self._begin(read, width, [slice(start, stop)])[0]
            meter = _Meter(self, state)
            out, balance = np.empty(turned.shape, turned.dtype), self._balance()
            if balance is not None:
                for block in blocks(width):
                    balance.see(block, _through(state, block, self._decode(turned[block])))
            for block in blocks(width):
                values = self._decode(turned[block])
                if meter.unknown:
                    meter.base(block, values)
                out[block], after = self._rounded(balance, block, _through(state, block, values))
                meter.add(block, after)
            meter.close()
            yield np.ascontiguousarray(out.T).reshape(-1).data.cast("B")

    def _begin(self, read: Callable[[slice], list[Array]], rows: int, panels: Sequence[slice]) -> list[list[State]]:
        """The operations' states, for each panel of input vectors, after all their turns."""
        states: list[list[State]] = [[] for _ in panels]
        for operation in self.operations:
            fresh = [operation.begin(panel, arithmetic(self.spec.dtype)) for panel in panels]
            for turn in range(operation.turns):
                for block in blocks(rows):
                    for before, state, words in zip(states, fresh, read(block), strict=True):
                        state.see(turn, block, _through(before, block, self._decode(words)))
                done = [state.end(turn) for state in fresh]
                if all(done):
                    break
            for before, state in zip(states, fresh, strict=True):
                before.append(state)
        return states


def blocks(rows: int) -> Iterator[slice]:
    """``rows`` in blocks of :data:`ROWS`."""
    return (slice(start, min(rows, start + ROWS)) for start in range(0, rows, ROWS))


def _through(states: Sequence[State], block: slice, values: Array) -> Array:
    for state in states:
        values = state.apply(block, values)
    return values


class _Meter:
    """Adds up what is left of every cleared direction, over the blocks of some input vectors, into the tensor's record."""

    def __init__(self, job: Rewriting, states: Sequence[State]) -> None:
        self.left = job.left
        dtype = arithmetic(job.spec.dtype)
        self.sums: list[RowSum] = []
        self.unknown: list[RowSum] = []  #: what was there before, where no operation knows
        for index, (operation, state) in enumerate(zip(job.operations, states, strict=True)):
            if operation.cleared is None:
                continue
            had = state.had() if index == 0 else None
            if had is None:
                self.unknown.append(RowSum(operation.cleared, dtype))
            else:
                self.left.before += _energy(had)
            self.left.measured = True
            self.sums.append(RowSum(operation.cleared, dtype))

    def base(self, block: slice, values: Array) -> None:
        """One block as it was before all operations."""
        for total in self.unknown:
            total.add(block, values)

    def add(self, block: slice, after: Array) -> None:
        """One block as it was written; it is overwritten."""
        for total in self.sums:
            total.add(block, after, spare=total is self.sums[-1])

    def close(self) -> None:
        """All blocks have been given."""
        self.left.before += sum(_energy(total.result()) for total in self.unknown)
        self.left.after += sum(_energy(total.result()) for total in self.sums)


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
        turned = None if down else np.ascontiguousarray(job._words(0, columns, rows).T)

        def words(block: slice, matrix: int = matrix, turned: Array | None = turned) -> list[Array]:
            if turned is not None:
                return [turned[block]]
            return [job._words(matrix * rows + block.start, matrix * rows + block.stop, columns)]

        factors = [state.factors() for state in job._begin(words, rows, [slice(0, columns)])[0]]
        pairs = [f for f in factors if f is not None]
        if len(pairs) < len(factors):
            return None
        found.append((np.concatenate([w for w, _ in pairs], axis=1), np.concatenate([r for _, r in pairs])))
    return found
