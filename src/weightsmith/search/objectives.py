"""What is wanted and what it costs, without generation and with gradients.

*Effect* is a log-odds, in nats. Of openings: log P − log(1 − P), where P is the chance that the answer begins with any of
the openings by which the model itself shows the feature (several tokens each, teacher-forced along a tree; all else that it
would say is its own way of not showing it, which the damage holds in place). Of answers: the mean log-probability a token of
the model's own answer that shows the feature minus that of its own answer that lacks it.

*Distance* is KL(teacher ‖ edited), mean over the tokens of an answer, nats per token. The teacher is the base itself on
its own neutral answers (damage), or the base under the other prompt: context distillation (Snell et al. 2022, arXiv
2209.15189), the edited model without the persona against the base with it, or the other way round for a removal.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ..errors import NonFinite
from .passes import Passes, Rows, Tree

if TYPE_CHECKING:
    from ..runtime import RunningModel

F64 = np.ndarray[Any, np.dtype[np.float64]]
KEEP_LOGPROBS = 256 << 20  # bytes of the teachers' log-probabilities that are kept; more are computed each time


@dataclass(eq=False)
class Item:
    """One prompt with its continuations. ``shows`` and ``lacks`` are places in ``tree.ends``; with ``lacks`` empty the odds
    are those of openings. ``texts`` is ±1 for a labelled text, whose odds are its mean log-probability a token. ``teacher``
    holds the states ``[path, d_model]`` that predict the continuation ``taught``, ``own`` those of the base in its place,
    where the teacher is to be exceeded."""

    tree: Tree
    shows: tuple[int, ...] = ()
    lacks: tuple[int, ...] = ()
    taught: int = -1
    teacher: torch.Tensor | None = None
    texts: float = 0.0
    own: torch.Tensor | None = None


@dataclass(eq=False)
class Group:
    """Items that pass together; ``train`` and ``held`` are their places, apart by prompt. With a ``level`` other than 1 the
    target is p · (teacher / p)^level, p being the base without the persona: as far in the same way, level times.
    ``lean`` are the rows with the taught continuation alone, where there are others."""

    items: list[Item]
    train: list[int]
    held: list[int]
    level: float = 1.0
    rows: Rows = field(repr=False, default=None)  # type: ignore[assignment]
    lean: Rows | None = field(repr=False, default=None)
    targets: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)

    def prepare(self, model: RunningModel, passes: Passes) -> None:
        """Read the layers below the first edited one, and the teachers' log-probabilities where they are few."""
        self.rows = passes.prepare([i.tree for i in self.items])
        taught = [k for k, i in enumerate(self.items) if i.teacher is not None]
        if self.level != 1.0:
            for k, states in zip(taught, passes.states(self.rows, taught), strict=True):
                tree = self.items[k].tree
                self.items[k].own = states[[tree.reads[n] for n in tree.path(tree.ends[self.items[k].taught])]]
        if len(taught) == len(self.items) > 0 and any(len(i.tree.ends) > 1 for i in self.items):
            self.lean = passes.prepare([_taught(i) for i in self.items])
        size = sum(len(self.items[k].tree.path(self.items[k].tree.ends[self.items[k].taught])) for k in taught)
        if size * model.head.weight.shape[0] * 4 <= KEEP_LOGPROBS:
            self.targets = {k: self.target(model, k) for k in taught}

    def target(self, model: RunningModel, k: int) -> torch.Tensor:
        """The teacher's log-probabilities ``[path, vocab]`` of item ``k``."""
        if k in self.targets:
            return self.targets[k]
        teacher = self.items[k].teacher
        assert teacher is not None, "an item without a teacher has no distance"
        with torch.no_grad():
            found = torch.log_softmax(model.logits(teacher), -1)
            own = self.items[k].own
            if own is None:
                return found
            plain = torch.log_softmax(model.logits(own), -1)
            return torch.log_softmax(plain + self.level * (found - plain), -1)


def odds(item: Item, logprobs: torch.Tensor) -> torch.Tensor:
    """The effect's log-odds from log-probabilities ``[states, vocab]`` of the tree's states."""
    tree = item.tree
    node = logprobs[list(tree.reads), list(tree.tokens)]
    paths = [tree.path(e) for e in tree.ends]
    if item.texts:
        return item.texts * node[paths[0]].mean()
    if not item.lacks:
        whole = torch.logsumexp(torch.stack([node[paths[k]].sum() for k in item.shows]), 0)
        whole = whole.clamp(max=-1e-6)
        return whole - torch.log(-torch.expm1(whole))
    zero = node.new_zeros(())
    shows = sum((node[paths[k]].mean() for k in item.shows), zero) / max(1, len(item.shows))
    lacks = sum((node[paths[k]].mean() for k in item.lacks), zero) / len(item.lacks)
    return shows - lacks


def _taught(item: Item) -> Tree:
    """The prompt with the taught continuation alone."""
    return Tree.of(item.tree.prompt, [[item.tree.tokens[n] for n in item.tree.path(item.tree.ends[item.taught])]])


def distance(item: Item, logprobs: torch.Tensor, target: torch.Tensor, *, lean: bool = False) -> torch.Tensor:
    """KL(teacher ‖ edited), mean over the taught continuation's tokens, nats per token; ``lean`` where that is all that was
    passed."""
    path = item.tree.path(item.tree.ends[item.taught])
    mine = logprobs if lean else logprobs[[item.tree.reads[n] for n in path]]
    return (target.exp() * (target - mine)).sum(-1).mean()


def _above(value: torch.Tensor) -> float:
    """A KL that rounding may have put below 0; NaN stays NaN, which Python's ``max`` would turn into 0."""
    return float(value.clamp(min=0.0))


@dataclass(eq=False)
class Seen:
    """What a candidate does on the held-out prompts: log-odds and KL by prompt, KL by protected feature and prompt."""

    odds: F64
    damage: F64
    distance: F64
    protected: dict[str, F64] = field(default_factory=dict)


@dataclass(eq=False)
class Problem:
    """Everything that a search compares candidates on.

    ``loss`` is ``odds`` (push the log-odds below −``margin`` for a removal, above it for an addition) or ``distil``
    (towards the teacher). ``chance`` says whether odds are those of a probability.
    """

    model: RunningModel
    kind: Literal["remove", "add"]
    passes: Passes
    effect: Group
    damage: Group
    protect: dict[str, Group] = field(default_factory=dict)
    loss: Literal["odds", "distil"] = "odds"
    chance: bool = True
    margin: float = 3.0
    base: Seen | None = None

    @property
    def sign(self) -> float:
        """+1 where the odds should fall."""
        return 1.0 if self.kind == "remove" else -1.0

    def prepare(self) -> None:
        """Read what does not change, once; and judge the base."""
        for group in (self.effect, self.damage, *self.protect.values()):
            group.prepare(self.model, self.passes)
        self.base = self.see()

    def logprobs(self, states: Seq[torch.Tensor]) -> list[torch.Tensor]:
        """Log-probabilities of each item's states; the ``lm_head`` runs once for all of them."""
        logits = torch.log_softmax(self.model.logits(torch.cat(list(states))), -1)
        return list(torch.split(logits, [len(s) for s in states]))

    def effect_loss(self, which: Seq[int], params: Seq[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
        """Mean loss of the effect over some items, and its gradients."""
        group = self.effect
        # the other continuation is for the log-odds, which such a descent only reads
        lean = group.lean if self.loss == "distil" else None

        def use(chosen: list[int], states: list[torch.Tensor]) -> torch.Tensor:
            found = self.logprobs(states)
            total = found[0].new_zeros(())
            for i, logprobs in zip(chosen, found, strict=True):
                item = group.items[i]
                if self.loss == "distil":
                    total = total + distance(item, logprobs, group.target(self.model, i), lean=lean is not None)
                else:
                    total = total + torch.nn.functional.softplus(self.sign * odds(item, logprobs) + self.margin)
            return total / len(which)

        return self.passes.each(group.rows if lean is None else lean, which, use, params)

    def distance_loss(
        self, group: Group, which: Seq[int], weight: float, params: Seq[torch.Tensor]
    ) -> tuple[float, list[torch.Tensor]]:
        """Mean KL from the teacher over some items, times ``weight``, and its gradients."""

        def use(chosen: list[int], states: list[torch.Tensor]) -> torch.Tensor:
            found = self.logprobs(states)
            total = found[0].new_zeros(())
            for i, logprobs in zip(chosen, found, strict=True):
                total = total + distance(group.items[i], logprobs, group.target(self.model, i))
            return total * (weight / len(which))

        return self.passes.each(group.rows, which, use, params)

    def see(self, *, train: bool = False, some: int | None = None) -> Seen:
        """Judge what runs now (under whatever hooks are in place) on the held-out prompts (the first ``some`` of each
        kind), or on those trained on.

        Raises:
            NonFinite: NaN in the logits.
        """
        which = (self.effect.train if train else self.effect.held)[:some]
        shown: dict[int, tuple[float, float]] = {}

        def use(chosen: list[int], states: list[torch.Tensor]) -> None:
            for i, logprobs in zip(chosen, self.logprobs(states), strict=True):
                item = self.effect.items[i]
                far = 0.0 if item.teacher is None else _above(distance(item, logprobs, self.effect.target(self.model, i)))
                shown[i] = float(odds(item, logprobs)), far

        self.passes.each(self.effect.rows, which, use)
        places = (self.damage.train if train else self.damage.held)[:some]
        seen = Seen(np.array([shown[i][0] for i in which]), self._far(self.damage, places),
                    np.array([shown[i][1] for i in which]),
                    {n: self._far(g, (g.train if train else g.held)[:some]) for n, g in self.protect.items()})  # fmt: skip
        if not all(np.isfinite(x).all() for x in (seen.odds, seen.damage, seen.distance, *seen.protected.values())):
            raise NonFinite("the edited model's logits hold NaN or infinity", where=self.model.checkpoint.path)
        return seen

    def _far(self, group: Group, which: Seq[int]) -> F64:
        found: dict[int, float] = {}

        def use(chosen: list[int], states: list[torch.Tensor]) -> None:
            for i, logprobs in zip(chosen, self.logprobs(states), strict=True):
                found[i] = _above(distance(group.items[i], logprobs, group.target(self.model, i)))

        self.passes.each(group.rows, which, use)
        return np.array([found[i] for i in which])

    def loss_of(self, seen: Seen) -> float:
        """The effect's loss of what was seen, as the descent has it."""
        if self.loss == "distil":
            return float(seen.distance.mean())
        return float(np.logaddexp(0.0, self.sign * seen.odds + self.margin).mean())

    def cost_of(self, seen: Seen) -> float:
        """Damage and what happened to protected features, summed, nats per token."""
        return float(seen.damage.mean()) + sum(float(x.mean()) for x in seen.protected.values())
