"""Teacher-forced passes that do no work twice, with or without gradients.

Savings, each counted by the :class:`Ledger`:

- what all rows begin with (the template's head, a persona) is passed once and its key-value cache is shared;
- layers below the first edited one give what they gave before: their output is kept and the pass starts above them;
- several continuations of one prompt pass together, as branches of a tree that share the prompt (a mask keeps branches
  apart, positions count depth), where the family's own mask is plain causal;
- a token that predicts nothing that is read is not passed, and the ``lm_head`` reads only states that predict something.

With gradients the shared prefix is differentiated once: the micro-batches send their gradients into its keys and values,
and these go back through it at the end.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..errors import OutOfMemory, RecipeError
from ..runtime.forward import batches, check_length, out_of_memory, shared_prefix, slides
from ..runtime.generate import _counts_slots
from ..runtime.slots import plain, unwindowed
from .attention import quick_back
from .blocks import can_recompute, recomputing, standing_in
from .ledger import Ledger
from .memory import Bound

if TYPE_CHECKING:
    from ..runtime import RunningModel


@dataclass(frozen=True, slots=True)
class Tree:
    """A prompt and what may follow it: ``tokens[j]`` follows ``tokens[parents[j]]``, or the prompt where that is −1.

    Parents stand before their children. ``ends`` are the nodes at which a continuation ends.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, prompt: Seq[int], continuations: Seq[Seq[int]]) -> Tree:
        """Continuations that begin alike share their nodes."""
        tokens: list[int] = []
        parents: list[int] = []
        known: dict[tuple[int, int], int] = {}
        ends = []
        for continuation in continuations:
            at = -1
            for token in continuation:
                if (at, token) not in known:
                    known[at, token] = len(tokens)
                    tokens.append(token)
                    parents.append(at)
                at = known[at, token]
            ends.append(at)
        return cls(tuple(prompt), tuple(tokens), tuple(parents), tuple(ends))

    @property
    def fed(self) -> tuple[int, ...]:
        """The nodes that are passed: those that something follows."""
        return tuple(sorted({p for p in self.parents if p >= 0}))

    @property
    def reads(self) -> tuple[int, ...]:
        """Of each node, which row of the tree's states predicts it: row 0 is the prompt's last token, then ``fed``."""
        place = {node: k + 1 for k, node in enumerate(self.fed)} | {-1: 0}
        return tuple(place[p] for p in self.parents)

    @property
    def chain(self) -> bool:
        """Whether it does not branch."""
        return self.fed == tuple(range(len(self.fed)))

    def path(self, node: int) -> list[int]:
        """The nodes from the prompt to ``node``."""
        found = []
        while node >= 0:
            found.append(node)
            node = self.parents[node]
        return found[::-1]


@dataclass
class _Row:
    """One row of a batch: the ids that are passed after the prefix, the index of each one's predecessor among them (−1:
    the token before), and for each state that is wanted (node, place)."""

    ids: list[int]
    before: list[int]
    wanted: list[tuple[int, int]]

    @property
    def chain(self) -> bool:
        return all(b == k - 1 for k, b in enumerate(self.before))


@dataclass
class Rows:
    """Trees that are passed together, with what the layers below ``start`` give for them.

    ``hidden[i][k]`` is the input of block ``start`` for row k of tree i, ``[suffix, d_model]``, and ``head`` that for the
    prefix, ``[1, prefix, d_model]``.
    """

    trees: list[Tree]
    prefix: tuple[int, ...]
    rows: list[list[_Row]]
    hidden: list[list[torch.Tensor]] = field(default_factory=list)
    head: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.trees)

    def size(self, i: int) -> int:
        """Tokens that are passed of tree i, without the prefix."""
        return sum(len(r.ids) for r in self.rows[i])

    def padded(self, pick: Seq[int]) -> list[int]:
        """Tokens of each tree, its rows padded to the longest of them."""
        return [max(len(r.ids) for r in self.rows[i]) * len(self.rows[i]) for i in pick]


Done = TypeVar("Done")
Use = Callable[[list[int], list[torch.Tensor]], "torch.Tensor | None"]


class Passes:
    """Passes of one running model in which blocks below ``start`` are taken as unchanged; it may be lowered to a block whose
    keys later ones read."""

    def __init__(self, model: RunningModel, start: int = 0, ledger: Ledger | None = None) -> None:
        self.model, self.start = model, _needed(model, start)
        self.ledger = ledger or Ledger()
        self.micro = min(model.options.batch_tokens, 1024)  # tokens whose graph stands in memory at once
        self.bound: Bound | None = None  # known when a pass with gradients is first asked for
        if model.options.memory is not None:
            Bound.of(model)  # a model that is too large by itself is refused before anything is read
        self.recompute = False  # what happens within blocks is computed twice, whatever the bound says
        self._tuples = False

    def prepare(self, trees: Seq[Tree]) -> Rows:
        """Read the layers below ``start`` once.

        Raises:
            RecipeError: an empty or over-long prompt; prompts on both sides of a length at which the model changes.
            OutOfMemory: one row alone does not fit.
        """
        for tree in trees:
            check_length(self.model, tree.prompt)
            check_length(self.model, (*tree.prompt, *max((tree.path(e) for e in tree.ends), key=len, default=())))
        longest = max((len(t.prompt) + len(t.tokens) for t in trees), default=0)
        simple = plain(self.model.model.config) and not slides(self.model, longest) and not _rescaled(self.model, trees)
        shared = shared_prefix([t.prompt for t in trees], [len(t.prompt) - 1 for t in trees]) if simple else 0
        prefix = trees[0].prompt[:shared] if trees else ()
        branching = simple and not _counts_slots(self.model, longest)
        made = Rows(list(trees), prefix, [_rows(t, shared, branching) for t in trees])
        if self.start and trees:
            with torch.no_grad():
                self._fitting(lambda: self._below(made))
        return made

    def _below(self, rows: Rows) -> None:
        found: list[torch.Tensor] = []

        def keep(_m: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(args[0] if args else kwargs["hidden_states"])
            raise _Stop

        def shape(_m: Any, _i: Any, output: Any) -> None:
            self._tuples = isinstance(output, tuple)

        handles = [self.model.blocks[self.start].register_forward_pre_hook(keep, with_kwargs=True),
                   self.model.blocks[self.start - 1].register_forward_hook(shape)]  # fmt: skip
        try:
            cache = None
            if rows.prefix:
                cache = unwindowed(self.model.model.config)
                with contextlib.suppress(_Stop):
                    self.model.stack(input_ids=_ids([rows.prefix], self.model), past_key_values=cache, use_cache=True)
                rows.head = found.pop()
                self._count(len(rows.prefix), self.start)
            rows.hidden = [[torch.empty(0)] * len(r) for r in rows.rows]

            def run(batch: list[tuple[int, int]]) -> None:
                with contextlib.suppress(_Stop):
                    self._call(rows, batch, None if cache is None else _spread(cache, len(batch)))
                out = found.pop()
                for b, (i, k) in enumerate(batch):
                    rows.hidden[i][k] = out[b, : len(rows.rows[i][k].ids)].clone()

            self._micro(rows, range(len(rows)), run, self.micro)
        finally:
            for handle in handles:
                handle.remove()
        self._count(sum(rows.size(i) for i in range(len(rows))), self.start)

    def states(self, rows: Rows, pick: Seq[int] | None = None) -> list[torch.Tensor]:
        """Final hidden states of each tree, ``[1 + fed, d_model]``: the prompt's last token, then :attr:`Tree.fed`."""
        found: dict[int, torch.Tensor] = {}

        def use(which: list[int], states: list[torch.Tensor]) -> None:
            found.update(zip(which, states, strict=True))

        chosen = list(range(len(rows)) if pick is None else pick)
        self.each(rows, chosen, use)
        return [found[i] for i in chosen]

    def each(
        self, rows: Rows, pick: Seq[int], use: Use, params: Seq[torch.Tensor] = ()
    ) -> tuple[float, list[torch.Tensor]]:
        """Call ``use`` with trees and their states, one micro-batch after another; sums what it returns.

        With ``params`` it also gives the sum's gradients by them. A micro-batch that does not fit is halved and everything
        is done again, so ``use`` must bear being called twice.

        Raises:
            OutOfMemory: one tree alone does not fit.
        """
        with torch.set_grad_enabled(bool(params)), quick_back(self.model):
            return self._fitting(lambda: self._each(rows, pick, use, params))

    def _fitting(self, work: Callable[[], Done]) -> Done:
        """What ``work`` gives; it is done again with half the tokens at once where they did not fit."""
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:  # what an allocator raises differs from device to device
                if not out_of_memory(error):
                    raise
                if self.micro <= 1 and (self.recompute or not torch.is_grad_enabled() or not can_recompute(self.model)):
                    raise OutOfMemory("one row alone does not fit in memory",
                                      hint="free some memory, or use a narrower --dtype") from error  # fmt: skip
            if self.micro <= 1:
                self.recompute = True
                self.model.note("one row did not fit in memory with what its blocks keep: that is computed twice")
                continue
            self.model.note(f"{self.micro} tokens at once did not fit in memory: it went on with {self.micro // 2}")
            self.micro //= 2  # outside of the handler, which would keep the failed pass alive

    def _each(
        self, rows: Rows, pick: Seq[int], use: Use, params: Seq[torch.Tensor]
    ) -> tuple[float, list[torch.Tensor]]:
        total, sums = 0.0, [torch.zeros_like(p) for p in params]
        room, recompute = self._room(rows, pick, use) if params else (self.micro, False)
        cache = self._prefix(rows)
        made, leaves = _cut(cache, self.start)
        owed = [torch.zeros_like(x) for x in leaves]

        def run(batch: list[tuple[int, int]]) -> None:
            nonlocal total
            loss = self._loss(rows, batch, cache, use)
            if loss is None:
                return
            total += float(loss.detach())
            if params and loss.requires_grad:
                found = torch.autograd.grad(loss, [*params, *leaves], allow_unused=True)
                for into, more in zip([*sums, *owed], found, strict=True):
                    if more is not None:
                        into += more

        edited = self.model.blocks[self.start :]
        with recomputing(edited, self.start) if recompute else contextlib.nullcontext():
            self._micro(rows, pick, run, room)
        if made:
            back = torch.autograd.grad(made, list(params), owed, allow_unused=True)
            for into, more in zip(sums, back, strict=True):
                if more is not None:
                    into += more
        n = sum(rows.size(i) for i in pick)
        self._count_pass(rows, pick, n, bool(params))
        return total, sums

    def _loss(
        self, rows: Rows, batch: list[tuple[int, int]], cache: Any, use: Use, passed: Callable[[], None] = lambda: None
    ) -> torch.Tensor | None:
        """What ``use`` makes of some rows; ``passed`` is called when the blocks are done."""
        out = self._call(rows, batch, None if cache is None else _spread(cache, len(batch)), skip=True)
        passed()
        which = list(dict.fromkeys(i for i, _ in batch))
        return use(which, [_gather(rows, batch, i, out.last_hidden_state) for i in which])

    def _room(self, rows: Rows, pick: Seq[int], use: Use) -> tuple[int, bool]:
        """Tokens at once with which a pass with gradients keeps to the bound, and whether blocks are computed twice.

        Raises:
            OutOfMemory: one tree alone does not keep to it.
        """
        sizes = rows.padded(pick)
        layers = len(self.model.blocks) - self.start
        bound = self.bound = self.bound or Bound.of(self.model)
        if not sizes or not bound.near(self.model, min(self.micro, sum(sizes)) + len(rows.prefix), layers):
            return self.micro, self.recompute
        if not bound.token:
            least = min(range(len(pick)), key=sizes.__getitem__)
            batch = [(pick[least], k) for k in range(len(rows.rows[pick[least]]))]
            with torch.no_grad():
                cache = self._prefix(rows)
            with bound.counting(self.model) as kept:
                self._loss(rows, batch, cache, use, kept.through)
            bound.learn(kept, sizes[least])
        room, recompute = bound.settle(self.model, layers, len(rows.prefix), max(sizes), self.micro)
        return room, recompute or self.recompute

    def _prefix(self, rows: Rows) -> Any:
        """The cache of the prefix under the hooks that are in place, ``None`` without a prefix."""
        if not rows.prefix:
            return None
        cache = unwindowed(self.model.model.config)
        with self._resumed(rows.head):
            self.model.stack(input_ids=_ids([rows.prefix], self.model), past_key_values=cache, use_cache=True)
        some = next(x for x in cache.layers[self.start :] if _filled(x)).keys
        for layer in cache.layers[: self.start]:
            # only its length is ever asked for: these blocks are not run
            if not _filled(layer):
                layer.lazy_initialization(some, some)
                layer.keys = layer.values = some.new_zeros((1, 1, len(rows.prefix), 1))
        self._count(len(rows.prefix), len(self.model.blocks) - self.start, back=torch.is_grad_enabled())
        return cache

    def _call(self, rows: Rows, batch: list[tuple[int, int]], cache: Any, *, skip: bool = False) -> Any:
        """The stack on some rows, padded on the right."""
        chosen = [rows.rows[i][k] for i, k in batch]
        ids = _ids([r.ids for r in chosen], self.model)
        told: dict[str, Any] = {} if all(r.chain for r in chosen) else _branched(chosen, ids, len(rows.prefix), self.model)
        if cache is not None:
            told |= {"past_key_values": cache}
        hidden = None
        if skip and self.start:
            width = ids.shape[1]
            parts = [rows.hidden[i][k] for i, k in batch]
            hidden = torch.stack([torch.nn.functional.pad(p, (0, 0, 0, width - len(p))) for p in parts])
        with self._resumed(hidden):
            return self.model.stack(input_ids=ids, use_cache=cache is not None, **told)

    def _resumed(self, hidden: torch.Tensor | None) -> contextlib.AbstractContextManager[None]:
        """Blocks below ``start`` are not run: what comes out of them is ``hidden``."""
        if hidden is None:
            return contextlib.nullcontext()
        return standing_in(self.model.blocks[: self.start], (hidden,) if self._tuples else hidden)

    def _micro(self, rows: Rows, pick: Seq[int], run: Callable[[list[tuple[int, int]]], None], room: int) -> None:
        for batch in batches(rows.padded(pick), room, 1 << 10):
            run([(pick[b], k) for b in batch for k in range(len(rows.rows[pick[b]]))])

    # -- counting ------------------------------------------------------------------------------------------------

    def _count(self, tokens: int, layers: int, *, back: bool = False) -> None:
        self.ledger.passed += tokens
        self.ledger.backward += tokens if back else 0
        self.ledger.layers += tokens * layers

    def _count_pass(self, rows: Rows, pick: Seq[int], n: int, back: bool) -> None:
        depth, book = len(self.model.blocks), self.ledger
        self._count(n, depth - self.start, back=back)
        book.below += (n + len(rows.prefix)) * self.start
        book.prefixes += max(0, len(pick) - 1) * len(rows.prefix) * depth
        reads = 0
        for i in pick:
            tree = rows.trees[i]
            reads += 1 + len(tree.fed)
            paths = [tree.path(e) for e in tree.ends]
            alone = sum(len(tree.prompt) - len(rows.prefix) + len(p) for p in paths)
            fed = rows.size(i)
            book.unread += (alone - sum(len(tree.prompt) - len(rows.prefix) + len(p) - 1 for p in paths)) * depth
            book.branches += max(0, alone - len(paths) - fed) * depth
        book.heads += reads
        book.heads_unread += n - reads


def _needed(model: RunningModel, start: int) -> int:
    """``start``, or the first block before it whose keys and values later blocks read in place of their own (Gemma 4)."""
    modes = getattr(model.model.config.get_text_config(), "kv_sharing_modes", None) or ()
    return min([start, *(k for k, mode in enumerate(modes) if mode == "store")]) if "reuse" in modes else start


def _rescaled(model: RunningModel, trees: Seq[Tree]) -> bool:
    """Whether a rotary embedding of two scales (Phi 3's longrope) takes the one for long inputs, which it does for all that
    passes together: a beginning alone would get the other.

    Raises:
        RecipeError: some of the trees would get one scale by themselves, and others the other.
    """
    rope = getattr(model.model.config.get_text_config(), "rope_parameters", None) or {}
    limit = rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None
    fed = [len(t.prompt) + max((len(t.path(n)) for n in t.fed), default=0) for t in trees]
    if limit is None or max(fed, default=0) <= limit:
        return False
    if min(len(t.prompt) for t in trees) <= limit:
        raise RecipeError(f"some prompts with their answers lie below {limit} tokens and some above, from where this model "
                          "reads positions on another scale", hint="give prompts that all lie on one side")  # fmt: skip
    return True


class _Stop(Exception):
    """Raised above the last layer that is wanted."""


def _rows(tree: Tree, shared: int, branching: bool) -> list[_Row]:
    """The rows of one tree: one with branches, or one for each path where the model's own mask must be used."""
    prompt = list(tree.prompt[shared:])
    last = len(prompt) - 1
    fed = tree.fed
    if branching or tree.chain:
        place = {node: len(prompt) + k for k, node in enumerate(fed)} | {-1: last}
        before = [*range(-1, last), *(place[tree.parents[n]] for n in fed)]
        wanted = [(-1, last), *((n, place[n]) for n in fed)]
        return [_Row([*prompt, *(tree.tokens[n] for n in fed)], before, wanted)]
    inner = {tree.parents[n] for n in fed}
    made: list[_Row] = []
    seen = {-1}
    for leaf in (n for n in fed if n not in inner):
        path = tree.path(leaf)
        ids = [*prompt, *(tree.tokens[n] for n in path)]
        wanted = [(n, len(prompt) + k) for k, n in enumerate(path) if n not in seen]
        if not made:
            wanted.insert(0, (-1, last))
        seen.update(path)
        made.append(_Row(ids, list(range(-1, len(ids) - 1)), wanted))
    return made


def _gather(rows: Rows, batch: list[tuple[int, int]], tree: int, out: torch.Tensor) -> torch.Tensor:
    """The states of one tree ``[1 + fed, d_model]``, in the order of :attr:`Tree.fed`."""
    places = {node: (b, at) for b, (i, k) in enumerate(batch) if i == tree for node, at in rows.rows[i][k].wanted}
    where = [places[-1], *(places[n] for n in rows.trees[tree].fed)]
    return out[[b for b, _ in where], [at for _, at in where]]


def _ids(rows: Seq[Seq[int]], model: RunningModel) -> torch.Tensor:
    longest = max(len(r) for r in rows)
    return torch.tensor([[*r, *[0] * (longest - len(r))] for r in rows], dtype=torch.long, device=model.device)


def _branched(chosen: list[_Row], ids: torch.Tensor, prefix: int, model: RunningModel) -> dict[str, Any]:
    """Mask ``[batch, 1, queries, prefix + queries]`` (0, or the least number where nothing may be seen) and positions."""
    n, width = ids.shape
    seen = torch.zeros((n, width, prefix + width), dtype=torch.bool)
    positions = torch.zeros((n, width), dtype=torch.long)
    seen[:, :, :prefix] = True
    for b, row in enumerate(chosen):
        for at, before in enumerate(row.before):
            if before >= 0:
                seen[b, at, prefix:] = seen[b, before, prefix:]
                positions[b, at] = positions[b, before] + 1
            else:
                positions[b, at] = prefix
            seen[b, at, prefix + at] = True
        for at in range(len(row.before), width):  # padding sees itself: an empty row of a mask is no softmax
            seen[b, at, prefix + at] = True
    mask = torch.zeros(seen.shape, dtype=model.dtype).masked_fill_(~seen, torch.finfo(model.dtype).min)
    return {"attention_mask": mask[:, None].to(model.device), "position_ids": positions.to(model.device)}


def _cut(cache: Any, start: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Keys and values that depend on parameters, and the leaves that stand for them in the cache from now on."""
    made: list[torch.Tensor] = []
    leaves: list[torch.Tensor] = []
    for layer in [] if cache is None else cache.layers[start:]:
        for name in ("keys", "values"):
            value = getattr(layer, name, None)
            if value is not None and value.requires_grad:
                made.append(value)
                leaves.append(value.detach().requires_grad_())
                setattr(layer, name, leaves[-1])
    return made, leaves


def _filled(layer: Any) -> bool:
    return getattr(layer, "keys", None) is not None and layer.keys.numel() > 0


def _spread(cache: Any, rows: int) -> Any:
    """A copy of a one-row cache for ``rows`` rows, which see the same memory."""
    fresh = copy.copy(cache)
    fresh.layers = [copy.copy(x) for x in cache.layers]
    for layer in fresh.layers:
        if _filled(layer):
            layer.keys, layer.values = (x.expand(rows, *x.shape[1:]) for x in (layer.keys, layer.values))
    return fresh
