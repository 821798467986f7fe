"""Greedy batched generation, and a stream for one conversation.

Prompts are padded on the left, so that every row's next position is the last one; rows that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any

import torch

from ..errors import NonFinite, OutOfMemory
from .forward import Prefix, batches, check_length, recurrent, shared_prefix, slides

if TYPE_CHECKING:
    from .load import RunningModel


@torch.inference_mode()
def generate(
    model: RunningModel, prompts: Seq[Seq[int]], max_new_tokens: int, step: str = "answering"
) -> list[list[int]]:
    """Greedy answers to ``prompts`` (token ids), without their end token; at most ``max_new_tokens`` each.

    Raises:
        NonFinite: the logits hold NaN.
        OutOfMemory: a batch does not fit.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    for prompt in prompts:
        check_length(model, prompt)
    stops = torch.tensor(sorted(model.stop_tokens), device=model.device)
    done = 0
    longest = max((len(p) for p in prompts), default=0) + max_new_tokens
    state = recurrent(model)
    shared = 0 if state or slides(model, longest) else shared_prefix(prompts, [len(p) - 1 for p in prompts])
    prefix = Prefix(model, tuple(prompts[0][:shared]) if prompts else ())
    lengths = [len(p) - shared + max_new_tokens for p in prompts]
    # decoding reads all weights once a step whatever the batch, so rows are cheap: only memory bounds them
    for batch in batches(lengths, model.options.batch_tokens * 4, model.options.batch_size * 2):
        try:
            for part in _alike(prompts, batch) if state else [batch]:
                _generate_batch(model, prefix, prompts, part, answers, max_new_tokens, stops, drop=not state)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory("a batch does not fit", hint="use a smaller --batch") from error
        done += len(batch)
        model.options.report(step, done, len(prompts))
    return answers


def _alike(prompts: Seq[Seq[int]], batch: list[int]) -> list[list[int]]:
    """A batch in parts of equal length, which need no padding."""
    parts: dict[int, list[int]] = {}
    for i in batch:
        parts.setdefault(len(prompts[i]), []).append(i)
    return list(parts.values())


def _generate_batch(
    model: RunningModel, prefix: Prefix, prompts: Seq[Seq[int]], batch: list[int], answers: list[list[int]], limit: int,
    stops: Any, *, drop: bool = True,
) -> None:  # fmt: skip
    """Answer one batch; with ``drop`` rows that have ended leave it."""
    shared = len(prefix.ids)
    suffixes = [list(prompts[i][shared:]) for i in batch]
    longest = max(len(x) for x in suffixes)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    mask = torch.zeros((len(batch), shared + longest), dtype=torch.long)
    mask[:, :shared] = 1
    for row, suffix in enumerate(suffixes):
        ids[row, longest - len(suffix) :] = torch.tensor(suffix)
        mask[row, shared + longest - len(suffix) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
    cache = prefix.cache(len(batch))
    alive, ended = list(batch), set[int]()
    for _ in range(limit):
        out = model.stack(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                          use_cache=True)  # fmt: skip
        logits = model.logits(out.last_hidden_state[:, -1])
        if not torch.isfinite(logits).any(-1).all() or torch.isnan(logits).any():
            raise NonFinite("the logits hold NaN", where=model.checkpoint.path)
        chosen = logits.argmax(-1)
        going = ~torch.isin(chosen, stops)
        tokens, keep = chosen.tolist(), going.tolist()
        ended = {i for row, i in enumerate(alive) if not keep[row]} | ended
        for row, i in enumerate(alive):
            if i not in ended:
                answers[i].append(tokens[row])
        if len(ended) == len(batch):
            return
        if drop and not all(keep):
            rows = going.nonzero()[:, 0]
            cache.batch_select_indices(rows)
            alive = [i for i, k in zip(alive, keep, strict=True) if k]
            mask, chosen, positions = mask[rows], chosen[rows], positions[rows]
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
        positions = positions[:, -1:] + 1


@torch.inference_mode()
def stream(
    model: RunningModel, prompt: Seq[int], max_new_tokens: int, temperature: float = 0.0, seed: int = 0
) -> Iterator[str]:
    """The answer to one prompt in pieces of text as they become complete; greedy at temperature 0.

    Raises:
        NonFinite: the logits hold NaN.
    """
    from transformers import DynamicCache

    check_length(model, prompt)
    cache: Any = DynamicCache(config=model.model.config)
    dice = torch.Generator(device="cpu").manual_seed(seed)
    ids = torch.tensor([list(prompt)], device=model.device)
    stops, said, answer = model.stop_tokens, "", []
    for _ in range(max_new_tokens):
        out = model.stack(input_ids=ids, past_key_values=cache, use_cache=True)
        logits = model.logits(out.last_hidden_state[0, -1])
        if torch.isnan(logits).any():
            raise NonFinite("the logits hold NaN", where=model.checkpoint.path)
        if temperature > 0:
            shares = torch.softmax(logits.cpu() / temperature, -1)
            token = int(torch.multinomial(shares, 1, generator=dice))
        else:
            token = int(logits.argmax())
        if token in stops:
            break
        answer.append(token)
        text = model.decode(answer)
        if not text.endswith("\ufffd"):  # a character can span several tokens
            yield text[len(said) :]
            said = text
        ids = torch.tensor([[token]], device=model.device)
    if (text := model.decode(answer)) != said:
        yield text[len(said) :]
