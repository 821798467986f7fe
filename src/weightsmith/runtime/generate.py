"""Batched replies, greedy or sampled, and a stream for one conversation.

Decoding reads all weights once a step whatever the batch, so the batch is kept full: rows that have ended leave it and
waiting prompts take their places. What all prompts begin with is passed once. A reply depends neither on its batch nor
on its neighbours, up to rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..errors import NonFinite, OutOfMemory, RecipeError, UsageError
from .forward import Prefix, check_length, halved, out_of_memory, padded, shared_prefix
from .packed import packed
from .sample import Decoding, Reply, dice, draw, penalised, warped
from .slots import Slots, plain

if TYPE_CHECKING:
    from .load import RunningModel

CACHE = 512 << 20  # bytes that the cache of a batch may take, whatever the number of its tokens

OnReply = Callable[[int, Reply], None]
OnState = Callable[[int, "torch.Tensor"], None]
OnPrompt = Callable[[int, int, int], None]


def generate(
    model: RunningModel, prompts: Seq[Seq[int]], max_new_tokens: int, step: str = "answering"
) -> list[list[int]]:
    """Greedy answers to ``prompts`` (token ids), without their end token; at most ``max_new_tokens`` each.

    Raises:
        NonFinite: the logits hold NaN.
        OutOfMemory: one row alone does not fit.
        RecipeError: a prompt is empty or leaves no room for an answer.
    """
    return [r.tokens for r in replies(model, prompts, Decoding(max_new_tokens), step)]


def replies(
    model: RunningModel, prompts: Seq[Seq[int]], decoding: Decoding, step: str = "answering", *,
    seeds: Seq[int] | None = None, on_reply: OnReply | None = None, on_state: OnState | None = None,
    on_prompt: OnPrompt | None = None,
) -> list[Reply]:  # fmt: skip
    """One reply to each of ``prompts`` (token ids), in their order.

    ``seeds`` gives every prompt a seed of its own in place of ``decoding.seed``; equal prompts with equal seeds get equal
    replies. ``on_reply`` is called with (index, reply) as each one ends, ``on_state`` with (index, final state ``[d_model]``) for
    each token that is chosen, the end token included, ``on_prompt`` with (index, row of the pass, place of the prompt's last
    token in it) while a prompt's pass is the last one. An answer that reaches the end of the model's
    context stops there (a note says so).

    Raises:
        NonFinite: the logits of some row hold NaN or infinity.
        OutOfMemory: one row alone does not fit; a larger batch is halved, with a note.
        RecipeError: a prompt is empty or leaves no room for an answer; sampling without a seed.
    """
    known = [Reply([], False) for _ in prompts]
    return continue_replies(model, prompts, known, decoding, step, seeds=seeds, on_reply=on_reply, on_state=on_state,
                            on_prompt=on_prompt)  # fmt: skip


@torch.inference_mode()
def continue_replies(
    model: RunningModel, prompts: Seq[Seq[int]], known: Seq[Reply], decoding: Decoding, step: str = "answering", *,
    seeds: Seq[int] | None = None, on_reply: OnReply | None = None, on_state: OnState | None = None,
    on_prompt: OnPrompt | None = None,
) -> list[Reply]:  # fmt: skip
    """The replies that :func:`replies` would give, when their beginnings are ``known``: one that had ended, or that is as
    long as ``decoding.max_new_tokens`` allows, is given back (cut to that length) and ``on_reply`` is not called for it.

    Raises:
        As :func:`replies`.
    """
    if any(isinstance(s.strength, torch.Tensor) and s.strength.ndim for s in model.steered):
        raise UsageError("a strength for each row can't be used to generate: rows move between batches", hint="give a number")
    rows = _rows(model, prompts, known, decoding, seeds)
    found = {r.index: Reply(r.said, r.ended) for r in rows if r.ended or len(r.said) >= r.limit}
    waiting = [r for r in rows if r.index not in found]
    done = len(found)

    def finish(row: _Row) -> None:
        nonlocal done
        found[row.index] = reply = Reply(row.said, row.ended)
        done += 1
        if on_reply:
            on_reply(row.index, reply)
        model.options.report(step, done, len(rows))

    ids = [r.ids for r in waiting]
    whole = plain(model.model.config) and not _counts_slots(model, max(map(len, ids), default=0) + decoding.max_new_tokens)
    shared = shared_prefix(ids, [len(x) - 1 for x in ids]) if whole else 0
    limit = model.options.batch_size * 4  # rows are cheap when decoding: only memory bounds them
    batch: _Batch | None = None
    ahead = [r.limit - len(r.said) for r in waiting]
    with packed(model, sum(ahead), max(ahead, default=0)):
        while waiting:
            if batch is None:
                prefix = Prefix(model, tuple(ids[0][:shared]), whole=True)
                batch = (_Joining if whole else _Alike)(model, decoding, prefix)
                batch.on_state, batch.on_prompt = on_state, on_prompt
            failed = _serve(batch, waiting, limit, finish)
            if failed:
                limit = halved(model, failed)
                batch.forget()
    return [found[i] for i in range(len(rows))]


@dataclass(eq=False)
class _Row:
    """One reply that is being made."""

    index: int
    prompt: tuple[int, ...]
    said: list[int]
    limit: int
    uniform: Any = None  # one number a step
    ended: bool = False
    seen: dict[int, None] = field(default_factory=dict)  # distinct ids of prompt and answer, for the penalty

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.prompt, *self.said)

    @property
    def going(self) -> bool:
        return not self.ended and len(self.said) < self.limit


def _rows(
    model: RunningModel, prompts: Seq[Seq[int]], known: Seq[Reply], decoding: Decoding, seeds: Seq[int] | None
) -> list[_Row]:
    if not decoding.greedy and seeds is None and decoding.seed is None:
        raise RecipeError("sampled replies need a seed")
    if seeds is not None and len(seeds) != len(prompts):
        raise RecipeError(f"{len(seeds)} seeds for {len(prompts)} prompts")
    rows = []
    for i, (prompt, reply) in enumerate(zip(prompts, known, strict=True)):
        check_length(model, prompt)
        room = model.context_length - len(prompt)
        if room < 1:
            raise RecipeError(f"a prompt has {len(prompt)} tokens, the model reads {model.context_length}: there is no "
                              "room for an answer", hint="shorten the prompt")  # fmt: skip
        if room < decoding.max_new_tokens:
            model.note(f"answers stop at the end of the model's context of {model.context_length} tokens")
        limit = min(room, decoding.max_new_tokens)
        said = list(reply.tokens[:limit])
        row = _Row(i, tuple(prompt), said, limit, ended=reply.ended and len(reply.tokens) <= limit)
        if not decoding.greedy:
            seed = seeds[i] if seeds is not None else decoding.seed
            row.uniform = dice(int(seed or 0), row.prompt, limit)
        if decoding.repetition_penalty != 1:
            row.seen = dict.fromkeys(row.ids)
        rows.append(row)
    return rows


def _counts_slots(model: RunningModel, longest: int) -> bool:
    """Whether a layer takes a token's place in the cache for its position, so that padding would count: Llama 4 scales
    its queries so, beyond a length."""
    config = model.model.config.get_text_config()
    return bool(getattr(config, "attn_temperature_tuning", False)) and longest > getattr(config, "floor_scale", 0)


def _serve(batch: _Batch, waiting: list[_Row], limit: int, finish: Callable[[_Row], None]) -> int:
    """Answer ``waiting`` with at most ``limit`` rows at a time; rows leave the list when they are done. Gives 0, or the
    rows of the batch that did not fit in memory."""
    queue = sorted(waiting, key=lambda r: (len(r.ids) + r.limit - len(r.said), r.index), reverse=True)
    try:
        while queue or batch.rows:
            new = batch.admit(queue, limit)
            gone = batch.join(new) if new else batch.step()
            for row in gone:
                waiting.remove(row)
                finish(row)
    except Exception as error:  # what an allocator raises differs from device to device
        if not out_of_memory(error):
            raise
        if (rows := max(1, batch.tried)) == 1:
            raise OutOfMemory("one row alone does not fit in memory",
                              hint="free some memory, use a narrower --dtype, or shorten the prompts") from error  # fmt: skip
        return rows
    return 0


class _Batch(ABC):
    """The rows that are being answered together; ``tried`` is how many the last pass had."""

    def __init__(self, model: RunningModel, decoding: Decoding, prefix: Prefix) -> None:
        self.model, self.decoding, self.prefix = model, decoding, prefix
        self.stops = model.stop_tokens
        self.rows: list[_Row] = []
        self.tried = 0
        self.on_state: OnState | None = None
        self.on_prompt: OnPrompt | None = None

    @property
    def token_bytes(self) -> int:
        """What one token takes in the cache; 0 while that is not known."""
        return self.prefix.token_bytes

    def forget(self) -> None:
        """Let go of all rows and their cache."""
        self.rows = []

    @abstractmethod
    def admit(self, queue: list[_Row], limit: int) -> list[_Row]:
        """Rows from the end of ``queue`` (its shortest) that join now."""

    @abstractmethod
    def join(self, new: list[_Row]) -> list[_Row]:
        """Read new rows and choose their first tokens; gives back the rows that are done."""

    @abstractmethod
    def step(self) -> list[_Row]:
        """Choose one more token for every row; gives back the rows that are done."""

    def _fits(self, rows: int, row: _Row) -> bool:
        """Whether ``rows`` rows as long as ``row`` can become are within bounds."""
        tokens, each = self.model.options.batch_tokens * 4, self.token_bytes
        return rows * (len(row.prompt) + row.limit) <= (max(tokens, CACHE // each) if each else tokens)

    def _read(self, rows: list[_Row], last: list[int]) -> None:
        for b, (row, at) in enumerate(zip(rows, last, strict=True)):
            if self.on_prompt:
                self.on_prompt(row.index, b, at)

    def _choose(self, hidden: torch.Tensor, rows: list[_Row]) -> None:
        """The next token of ``rows`` from the final states ``[rows, d_model]``."""
        if self.on_state:
            for row, state in zip(rows, hidden, strict=True):
                self.on_state(row.index, state)
        logits = self.model.logits(hidden)
        if self.decoding.repetition_penalty != 1:
            seen = [list(r.seen) for r in rows]
            longest = max(map(len, seen))
            filled = torch.tensor([s + [s[0]] * (longest - len(s)) for s in seen], device=logits.device)
            raw, logits = logits, penalised(logits, filled, self.decoding.repetition_penalty)
            best = raw.amax(-1)
        else:
            best = logits.amax(-1)
        if self.decoding.greedy:
            chosen = logits.argmax(-1)
        else:
            uniform = torch.tensor([r.uniform[len(r.said)] for r in rows], dtype=torch.float64)
            chosen = draw(warped(logits, self.decoding), uniform)
        if not bool(torch.isfinite(best).all()):  # the largest is NaN where one is
            raise NonFinite("the logits hold NaN or infinity", where=self.model.checkpoint.path)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            row.ended = token in self.stops
            if not row.ended:
                row.said.append(token)
                if self.decoding.repetition_penalty != 1:
                    row.seen[token] = None


class _Joining(_Batch):
    """Rows of any length that come and go, over one cache of slots."""

    def __init__(self, model: RunningModel, decoding: Decoding, prefix: Prefix) -> None:
        super().__init__(model, decoding, prefix)
        self.slots = Slots(decoding.max_new_tokens)

    @property
    def token_bytes(self) -> int:
        return self.prefix.token_bytes or self.slots.token_bytes  # rows may have no prefix in common

    def forget(self) -> None:
        super().forget()
        self.slots = Slots(self.decoding.max_new_tokens)

    def admit(self, queue: list[_Row], limit: int) -> list[_Row]:
        free = limit - len(self.rows)
        if self.rows and free < max(1, limit // 8):  # a few at a time: a pass for one row is dear where it is short
            return []
        new: list[_Row] = []
        total = len(self.rows)
        while queue and len(new) < free and (not total or self._fits(total + 1, queue[-1])):
            new.append(queue.pop())
            total += 1
        return new

    def join(self, new: list[_Row]) -> list[_Row]:
        self.tried = len(self.rows) + len(new)
        shared = len(self.prefix.ids)
        suffixes = [r.ids[shared:] for r in new]
        cache = self.prefix.cache(len(new))
        ids = padded(suffixes, self.model.device)
        out = self.model.stack(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        last = torch.tensor([len(s) - 1 for s in suffixes], device=out.device)
        hidden = out[torch.arange(len(new), device=out.device), last]
        self._read(new, [len(x) - 1 for x in suffixes])
        self.slots.join(cache, [shared + len(s) for s in suffixes])
        self.rows += new
        self._choose(hidden, new)
        return self._leave()

    def step(self) -> list[_Row]:
        self.tried = len(self.rows)
        mask, positions = self.slots.ready()
        ids = torch.tensor([[r.said[-1]] for r in self.rows], device=self.model.device)
        out = self.model.stack(input_ids=ids, attention_mask=mask, position_ids=positions,
                               past_key_values=self.slots.cache, use_cache=True)  # fmt: skip
        self.slots.advance()
        self._choose(out.last_hidden_state[:, -1], self.rows)
        return self._leave()

    def _leave(self) -> list[_Row]:
        gone = []
        for k in range(len(self.rows) - 1, -1, -1):
            if not self.rows[k].going:
                gone.append(self.rows[k])
                self.slots.drop(k)
                self.rows[k] = self.rows[-1]
                self.rows.pop()
        return gone[::-1]


class _Alike(_Batch):
    """Rows of equal length, which need no padding: for layers that carry a state, into which padding would enter."""

    cache: Any = None

    def admit(self, queue: list[_Row], limit: int) -> list[_Row]:
        new: list[_Row] = []
        while not self.rows and queue and len(new) < limit:
            if new and not (len(queue[-1].ids) == len(new[0].ids) and self._fits(len(new) + 1, queue[-1])):
                break
            new.append(queue.pop())
        return new

    def join(self, new: list[_Row]) -> list[_Row]:
        from transformers import DynamicCache

        self.cache = DynamicCache(config=self.model.model.config)
        self.rows = list(new)
        return self._pass(padded([r.ids for r in new], self.model.device), len(new[0].ids) - 1)

    def step(self) -> list[_Row]:
        return self._pass(torch.tensor([[r.said[-1]] for r in self.rows], device=self.model.device))

    def forget(self) -> None:
        super().forget()
        self.cache = None

    def _pass(self, ids: torch.Tensor, last: int | None = None) -> list[_Row]:
        self.tried = len(self.rows)
        out = self.model.stack(input_ids=ids, past_key_values=self.cache, use_cache=True)
        if last is not None:
            self._read(self.rows, [last] * len(self.rows))
        self._choose(out.last_hidden_state[:, -1], self.rows)
        gone = [r for r in self.rows if not r.going]
        if gone:
            kept = [k for k, r in enumerate(self.rows) if r.going]
            self.rows = [self.rows[k] for k in kept]
            if kept:
                self.cache.reorder_cache(torch.tensor(kept, device=self.model.device))
        return gone


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
