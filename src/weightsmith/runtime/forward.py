"""Forward passes that compute only what is asked for.

Sequences are batched by length and padded on the right: with causal attention no real token sees the padding, so no
mask is needed and the fast attention path is taken. What all sequences of a call begin with (a template's head, a
persona) is passed once and its key-value cache is shared. Capture stops at the last wanted layer and never reaches the
``lm_head``; log-probabilities run the ``lm_head`` on the answer's positions only.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import NonFinite, OutOfMemory, RecipeError

if TYPE_CHECKING:
    from .load import RunningModel

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Sequence:
    """Token ids and the span ``[start, stop)`` of positions over which the residual stream is averaged."""

    ids: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Continuation:
    """A prompt and an answer to it, both as token ids; log-probabilities are those of the answer's tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class _Stop(Exception):
    """Raised by the last wanted layer to end the pass."""


def batches(lengths: Seq[int], batch_tokens: int, batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length: at most ``batch_tokens`` padded tokens and ``batch_size`` rows each."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) >= batch_size or lengths[index] * (len(batch) + 1) > batch_tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower()
    words = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory")
    return isinstance(error, RuntimeError) and any(w in said for w in words)


def run_batches(
    model: RunningModel, lengths: Seq[int], run: Callable[[list[int]], None], step: str, *, batch_size: int = 0
) -> None:
    """Call ``run`` with one batch of indices after another. A batch that does not fit is halved and run again, and what
    follows keeps to the smaller size.

    Raises:
        OutOfMemory: one row alone does not fit.
    """
    waiting = list(batches(lengths, model.options.batch_tokens, batch_size or model.options.batch_size))
    waiting.reverse()
    done, size = 0, len(lengths)
    while waiting:
        batch = waiting.pop()
        if len(batch) > size:
            waiting.append(batch[size:])
            batch = batch[:size]
        if _fits(run, batch):
            done += len(batch)
            model.options.report(step, done, len(lengths))
            continue
        size = halved(model, len(batch))  # outside of the handler, which would keep the failed batch alive
        waiting.append(batch)


def halved(model: RunningModel, rows: int) -> int:
    """Half the rows of a batch that did not fit; says so in the model's notes."""
    model.note(f"a batch of {rows} rows did not fit in memory: it went on with {rows // 2}")
    return rows // 2


def _fits(run: Callable[[list[int]], None], batch: list[int]) -> bool:
    try:
        run(batch)
    except Exception as error:  # what an allocator raises differs from device to device
        if not out_of_memory(error):
            raise
        if len(batch) == 1:
            raise OutOfMemory("one row alone does not fit in memory",
                              hint="free some memory, use a narrower --dtype, or shorten the prompts") from error  # fmt: skip
        return False
    return True


def padded(rows: Seq[Seq[int]], device: str, fill: int = 0) -> torch.Tensor:
    """Rows of token ids as one tensor ``[batch, longest]``, padded on the right."""
    longest = max(len(r) for r in rows)
    return torch.tensor([[*r, *[fill] * (longest - len(r))] for r in rows], dtype=torch.long, device=device)


HEAD_POSITIONS = 1024  # positions whose logits over the whole vocabulary stand in memory at once
MIN_SHARED = 8  # a shorter common beginning is not worth a pass of its own


def shared_prefix(rows: Seq[Seq[int]], before: Seq[int]) -> int:
    """Length of the beginning that all ``rows`` share, at most ``min(before)`` and shorter than every row; 0 when it
    is too short to pay."""
    if len(rows) < 2:
        return 0
    limit = min(min(before), min(len(r) for r in rows) - 1)
    ordered = sorted(tuple(r) for r in rows)
    first, last = ordered[0], ordered[-1]  # in sorted order the extremes share the least
    n = next((i for i in range(limit) if first[i] != last[i]), limit)
    return n if n >= MIN_SHARED else 0


def slides(model: RunningModel, longest: int) -> bool:
    """Whether a sliding window is shorter than the ``longest`` input: it counts slots of the cache, so padding between a
    shared prefix and a prompt would push tokens out of it."""
    config = model.model.config.get_text_config()
    chunk: int | None = getattr(config, "attention_chunk_size", None)
    if chunk is not None and longest > chunk:
        return True
    width: int | None = getattr(config, "sliding_window", None)
    return width is not None and getattr(config, "use_sliding_window", True) is not False and longest > width


def recurrent(model: RunningModel) -> bool:
    """Whether some layers carry a state instead of a key-value cache (linear attention, convolutions): it can't be
    repeated for several suffixes, and padding on the left would enter it."""
    kinds = getattr(model.model.config.get_text_config(), "layer_types", None) or ()
    return any(kind in ("linear_attention", "conv", "mamba", "recurrent") for kind in kinds)


@dataclass
class Prefix:
    """A beginning that was passed once: its ids, and how to continue it with a batch of suffixes."""

    model: RunningModel
    ids: tuple[int, ...]
    whole: bool = False  # keep every token, also where a sliding window would drop them

    def __post_init__(self) -> None:
        self._cache: Any = None
        if self.ids:
            _fits(self._fill, [0])

    def _fill(self, _: list[int]) -> None:
        self._cache = self._empty()
        row = torch.tensor([self.ids], device=self.model.device)
        self.model.stack(input_ids=row, past_key_values=self._cache, use_cache=True)

    def _empty(self) -> Any:
        from transformers import DynamicCache

        from .slots import unwindowed

        config = self.model.model.config
        return unwindowed(config) if self.whole else DynamicCache(config=config)

    @property
    def token_bytes(self) -> int:
        """What one token takes in the cache; 0 where there is no prefix to tell it from."""
        layers = [] if self._cache is None else self._cache.layers
        held = [x for layer in layers for x in (getattr(layer, "keys", None), getattr(layer, "values", None)) if x is not None]
        return int(sum(x.numel() * x.element_size() for x in held)) // max(1, len(self.ids))

    def cache(self, rows: int) -> Any:
        """A fresh cache of the prefix, repeated for ``rows`` suffixes; empty without a prefix."""
        if self._cache is None:
            return self._empty()
        fresh = copy.copy(self._cache)
        fresh.layers = [copy.copy(layer) for layer in self._cache.layers]
        for layer in fresh.layers:  # the rows see one copy; the first tokens that are added make it their own
            if getattr(layer, "keys", None) is not None and layer.keys.numel():
                layer.keys, layer.values = (x.expand(rows, *x.shape[1:]) for x in (layer.keys, layer.values))
        return fresh

    def run(self, suffixes: Seq[Seq[int]]) -> Any:
        """The stack's output over ``suffixes`` (padded on the right), after the prefix."""
        ids = padded(suffixes, self.model.device)
        if self._cache is None:
            return self.model.stack(input_ids=ids, use_cache=False)
        return self.model.stack(input_ids=ids, past_key_values=self.cache(len(suffixes)), use_cache=True)


def check_length(model: RunningModel, ids: Seq[int]) -> None:
    """Raise :class:`RecipeError` for a sequence that the model's context can't hold."""
    if len(ids) > model.context_length:
        raise RecipeError(f"a prompt has {len(ids)} tokens, the model reads {model.context_length}",
                          hint="shorten the prompt")  # fmt: skip
    if not ids:
        raise RecipeError("a prompt came to no tokens at all")


@torch.inference_mode()
def capture(
    model: RunningModel, sequences: Seq[Sequence], layers: Seq[int], point: str = "resid_post",
    step: str = "reading activations",
) -> tuple[Array, Array]:  # fmt: skip
    """Mean residual stream over each sequence's span, fp32 ``[sequences, layers, d_model]``, and the mean norm ‖h‖ of
    its tokens there, fp32 ``[sequences, layers]``.

    ``point`` is ``resid_pre`` (a block's input) or ``resid_post`` (its output).

    Raises:
        NonFinite: the activations hold NaN or infinity.
        RecipeError: an empty or over-long sequence.
        OutOfMemory: one sequence alone does not fit.
    """
    out = np.empty((len(sequences), len(layers), model.architecture.d_model), np.float32)
    for s in sequences:
        check_length(model, s.ids)
    norms = np.empty((len(sequences), len(layers)), np.float32)
    rows = {layer: k for k, layer in enumerate(layers)}
    current: list[int] = []
    shared = 0 if recurrent(model) else shared_prefix([s.ids for s in sequences], [s.start for s in sequences])
    prefix = Prefix(model, sequences[0].ids[:shared] if sequences else ())

    def take(layer: int, hidden: torch.Tensor) -> None:
        weights = torch.zeros(hidden.shape[:2], device=hidden.device)
        for b, i in enumerate(current):
            start, stop = sequences[i].start - shared, sequences[i].stop - shared
            weights[b, start:stop] = 1.0 / (stop - start)
        wide = hidden.float()
        out[current, rows[layer]] = torch.einsum("bt,btd->bd", weights, wide).cpu().numpy()
        norms[current, rows[layer]] = (weights * wide.norm(dim=-1)).sum(1).cpu().numpy()
        if layer == max(layers):
            raise _Stop

    def run(batch: list[int]) -> None:
        current[:] = batch
        with contextlib.suppress(_Stop):
            prefix.run([sequences[i].ids[shared:] for i in batch])

    handles = _capture_hooks(model, layers, point, take)
    try:
        run_batches(model, [len(s.ids) - shared for s in sequences], run, step)
    finally:
        for handle in handles:
            handle.remove()
    if not np.isfinite(out).all():
        bad = int(np.argwhere(~np.isfinite(out))[0][1])
        raise NonFinite(f"the activations of layer {layers[bad]} hold NaN or infinity", where=model.checkpoint.path,
                        hint="the weights are damaged, or the dtype is too narrow: try --dtype float32")  # fmt: skip
    return out, norms


def _capture_hooks(model: RunningModel, layers: Seq[int], point: str, take: Any) -> list[Any]:
    def pre(layer: int) -> Any:
        def hook(_m: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            take(layer, args[0] if args else kwargs["hidden_states"])

        return hook

    def post(layer: int) -> Any:
        return lambda _m, _i, output: take(layer, output[0] if isinstance(output, tuple) else output)

    blocks = model.blocks
    if point == "resid_pre":
        return [blocks[x].register_forward_pre_hook(pre(x), with_kwargs=True) for x in layers]
    return [blocks[x].register_forward_hook(post(x)) for x in layers]


@torch.inference_mode()
def answer_states(model: RunningModel, items: Seq[Continuation], step: str = "reading answers") -> list[torch.Tensor]:
    """Final hidden states that predict each answer token, one ``[answer, d_model]`` tensor an item.

    Raises:
        NonFinite: NaN or infinity in them.
        RecipeError: an empty or over-long sequence.
        OutOfMemory: one sequence alone does not fit.
    """
    out: list[torch.Tensor | None] = [None] * len(items)
    rows = [item.prompt + item.answer[:-1] for item in items]
    for item, row in zip(items, rows, strict=True):
        check_length(model, row)
        if not item.answer:
            raise RecipeError("an answer came to no tokens at all")
    shared = 0 if recurrent(model) else shared_prefix(rows, [len(item.prompt) - 1 for item in items])
    prefix = Prefix(model, rows[0][:shared] if rows else ())

    def run(batch: list[int]) -> None:
        states = prefix.run([rows[i][shared:] for i in batch]).last_hidden_state
        for b, i in enumerate(batch):
            first = len(items[i].prompt) - 1 - shared
            out[i] = states[b, first : first + len(items[i].answer)].clone()

    run_batches(model, [len(r) - shared for r in rows], run, step)
    kept = [s for s in out if s is not None]
    if not all(bool(torch.isfinite(s).all()) for s in kept):
        raise NonFinite("the model's output holds NaN or infinity", where=model.checkpoint.path)
    return kept


@torch.inference_mode()
def score_answers(model: RunningModel, items: Seq[Continuation], step: str = "scoring answers") -> list[float]:
    """Mean log-probability per token (nats) of each answer after its prompt.

    Items that share a prompt share its prefill: the prompt runs once and its key-value cache is repeated.

    Raises:
        RecipeError: an empty or over-long sequence.
        OutOfMemory: one prompt alone does not fit.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(item.prompt, []).append(i)
    out = [0.0] * len(items)
    saved = sum(len(i.prompt) for i in items) - sum(map(len, groups))  # tokens that shared prompts need not pass again
    pays = saved > sum(len(i.answer) for i in items)
    if not pays or len(groups) > len(items) / 2 or recurrent(model):
        states = answer_states(model, items, step)
        for i, (item, state) in enumerate(zip(items, states, strict=True)):
            out[i] = _mean_logprob(model, state, item.answer)
        return out
    longest = max(len(i.prompt) + len(i.answer) for i in items)
    shared = 0 if slides(model, longest) else shared_prefix(list(groups), [len(p) - 1 for p in groups])
    prefix = Prefix(model, next(iter(groups))[:shared])
    prompts, width = list(groups), max(len(m) for m in groups.values())
    for item in items:
        check_length(model, item.prompt + item.answer[:-1])
        if not item.answer:
            raise RecipeError("an answer came to no tokens at all")
    rows = max(1, model.options.batch_size * 4 // width)  # prompts in one batch; each becomes `width` short rows

    def run(batch: list[int]) -> None:
        members = [groups[prompts[i]] for i in batch]
        answers = [[items[i].answer for i in m] for m in members]
        scores = _score_groups(model, prefix, [prompts[i][shared:] for i in batch], answers)
        for m, values in zip(members, scores, strict=True):
            for i, value in zip(m, values, strict=True):
                out[i] = value

    run_batches(model, [len(p) for p in prompts], run, step, batch_size=rows)
    return out


def _score_groups(
    model: RunningModel, prefix: Prefix, prompts: list[tuple[int, ...]], answers: list[list[tuple[int, ...]]]
) -> list[list[float]]:
    """Answers to several prompts: the prompts (padded on the left) pass once, then all answers on their repeated cache."""
    shared, device = len(prefix.ids), model.device
    longest, width = max(len(p) for p in prompts), max(len(a) for a in answers)
    ids = torch.tensor([[*[0] * (longest - len(p)), *p] for p in prompts], device=device)
    pads = [[1] * shared + [0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    mask = torch.tensor(pads, device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = prefix.cache(len(prompts))
    first = model.stack(input_ids=ids, attention_mask=mask, position_ids=positions[:, shared:], past_key_values=cache,
                        use_cache=True)  # fmt: skip
    last = first.last_hidden_state[:, -1]
    cache.batch_repeat_interleave(width)
    # a prompt with fewer answers than the widest repeats its own last one; the copies are not read
    rows = [(a[k] if k < len(a) else a[-1]) for a in answers for k in range(width)]
    short = padded([r[:-1] or r for r in rows], device)
    mask = torch.cat([mask.repeat_interleave(width, 0), mask.new_ones(short.shape)], 1)
    starts = positions[:, -1:].repeat_interleave(width, 0) + 1
    steps = torch.arange(short.shape[1], device=device)[None]
    rest = model.stack(input_ids=short, attention_mask=mask, position_ids=starts + steps, past_key_values=cache,
                       use_cache=True)  # fmt: skip
    # the first token of all answers to a prompt is predicted by one state: the lm_head, a fifth of a small model's
    # work, reads it once
    opening = torch.log_softmax(model.logits(last), -1)
    scores: list[list[float]] = []
    for b, own in enumerate(answers):
        # the lm_head is read once for as many answers as its output, the largest thing here, leaves room for
        some, row = max(1, HEAD_POSITIONS // short.shape[1]), []
        for at in range(0, len(own), some):
            block = rest.last_hidden_state[b * width + at : b * width + min(at + some, len(own))]
            logits = torch.log_softmax(model.logits(block), -1)
            row += [float(opening[b, a[0]] + logits[k, torch.arange(len(a) - 1), list(a[1:])].sum()) / len(a)
                    for k, a in enumerate(own[at : at + some])]  # fmt: skip
        scores.append(row)
    return scores


def _mean_logprob(model: RunningModel, states: torch.Tensor, answer: tuple[int, ...]) -> float:
    logprobs = torch.log_softmax(model.logits(states), -1)
    ids = torch.tensor(answer, device=logprobs.device)
    return float(logprobs.gather(-1, ids[:, None]).mean())
