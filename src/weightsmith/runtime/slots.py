"""A key-value cache in which rows come and go while a batch is being answered.

Every layer holds one buffer ``[rows, heads, slots, d]``. A row's tokens stand next to each other and end at the same
slot ``end`` in all rows, so its padding is on the left and a sliding window over slots is one over tokens. A step writes
one slot and copies nothing (``torch.cat`` would copy the whole cache); a row that ends gives its place to the last row,
and a new row is written right before ``end``.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DummyLayer, DynamicCache, DynamicLayer

#: free slots when buffers are made, at the least and at the most: growing them copies all that is alive
_AHEAD, _FAR = 64, 256


class _Layer(DynamicLayer):  # type: ignore[misc]
    """One layer's buffers; ``update`` shows the live part of them."""

    def __init__(self, slots: Slots, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.slots, self.keys, self.values = slots, keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new token of every row after the last, and show all tokens of the live rows."""
        rows, begin, end = len(self.slots.lengths), self.slots.begin, self.slots.end
        self.keys[:rows, :, end : end + 1] = keys
        self.values[:rows, :, end : end + 1] = values
        return self.keys[:rows, :, begin : end + 1], self.values[:rows, :, begin : end + 1]

    def get_seq_length(self) -> int:
        """Slots from the first live one on."""
        return self.slots.end - self.slots.begin


class Slots:
    """The cache of a batch of rows of unequal length: ``lengths[row]`` tokens each, all of which end before ``end``; rows are
    expected to grow by ``ahead`` tokens."""

    def __init__(self, ahead: int = _AHEAD) -> None:
        self.ahead = min(max(ahead, _AHEAD), _FAR)
        self.lengths: list[int] = []
        self.end = 0
        self.cache: Any = None
        self._layers: list[_Layer] = []

    @property
    def begin(self) -> int:
        """The first slot that some row uses."""
        return self.end - max(self.lengths, default=0)

    @property
    def token_bytes(self) -> int:
        """What one token of one row takes; 0 while nothing is held."""
        held = [x for layer in self._layers for x in (layer.keys, layer.values)]
        return sum(x.shape[1] * x.shape[3] * x.element_size() for x in held)

    def join(self, filled: Any, lengths: list[int]) -> None:
        """Add rows: ``filled`` is a cache that holds them padded on the right, ``lengths`` their true lengths."""
        self._reserve(filled, len(lengths), max(lengths))
        first, end = len(self.lengths), self.end
        for mine, theirs in zip(self._layers, (x for x in filled.layers if _holds(x)), strict=True):
            for k, n in enumerate(lengths):
                mine.keys[first + k, :, end - n : end] = theirs.keys[k, :, :n]
                mine.values[first + k, :, end - n : end] = theirs.values[k, :, :n]
        self.lengths += lengths

    def drop(self, row: int) -> None:
        """Take a row out; the last one takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            at = slice(self.end - self.lengths[last], self.end)
            for layer in self._layers:
                layer.keys[row, :, at] = layer.keys[last, :, at]
                layer.values[row, :, at] = layer.values[last, :, at]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def ready(self) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The mask ``[rows, slots + 1]`` of a step (``None`` without padding) and its positions ``[rows, 1]``; makes
        room for the step."""
        if self.end + 1 > self._layers[0].keys.shape[2]:
            self._move(len(self.lengths), self.end - self.begin)
        device = self._layers[0].keys.device
        lengths = torch.tensor(self.lengths, device=device)[:, None]
        longest = max(self.lengths)
        if min(self.lengths) == longest:
            return None, lengths
        return torch.arange(longest, -1, -1, device=device)[None] <= lengths, lengths

    def advance(self) -> None:
        """A step has written its slot."""
        self.end += 1
        self.lengths = [n + 1 for n in self.lengths]

    def _reserve(self, like: Any, rows: int, longest: int) -> None:
        """Room for ``rows`` more rows of up to ``longest`` tokens."""
        if not self._layers:
            self.end = longest
            layers: list[Any] = []
            for layer in like.layers:
                if not _holds(layer):
                    layers.append(DummyLayer())
                    continue
                mine = _Layer(self, *(_room(x, rows, longest + self.ahead) for x in (layer.keys, layer.values)))
                self._layers.append(mine)
                layers.append(mine)
            self.cache = Cache(layers=layers)
        elif longest > self.end or len(self.lengths) + rows > self._layers[0].keys.shape[0]:
            self._move(len(self.lengths) + rows, max(longest, self.end - self.begin))

    def _move(self, rows: int, end: int) -> None:
        """Put what is alive into buffers of at least ``rows`` rows, so that it ends at ``end``."""
        live, begin, old = len(self.lengths), self.begin, self.end
        size = max(rows, self._layers[0].keys.shape[0])
        for layer in self._layers:
            for name in ("keys", "values"):
                buffer = getattr(layer, name)
                fresh = _room(buffer, size, end + _AHEAD + end // 4)
                fresh[:live, :, end - (old - begin) : end] = buffer[:live, :, begin:old]
                setattr(layer, name, fresh)
        self.end = end


def unwindowed(config: Any) -> Any:
    """An empty cache for ``config`` that keeps every token, also where a sliding window would drop them."""
    cache = DynamicCache(config=config)
    cache.layers = [DynamicLayer() if getattr(x, "is_sliding", False) else x for x in cache.layers]
    return cache


def plain(config: Any) -> bool:
    """Whether all layers hold keys and values and nothing else, so that rows can join, leave and be repeated."""
    layers = DynamicCache(config=config).layers
    return all(isinstance(x, DummyLayer) or type(x).__name__ in ("DynamicLayer", "DynamicSlidingWindowLayer") for x in layers)


def _holds(layer: Any) -> bool:
    """Whether a layer of a filled cache holds anything (one that shares another's keys doesn't)."""
    return getattr(layer, "keys", None) is not None


def _room(like: torch.Tensor, rows: int, slots: int) -> torch.Tensor:
    # zeros: a masked slot still enters a product, where memory that was never written could hold NaN
    return like.new_zeros((rows, like.shape[1], slots, like.shape[3]))
