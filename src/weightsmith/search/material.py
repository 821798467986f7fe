"""From a feature and a running model to the :class:`~.objectives.Problem`: the model's own answers, and the direction.

The *extract* prompts are trained on, the *select* prompts are held out; nothing here ever reads the *report* prompts. The
states that chose a base answer's tokens are kept while it is generated: they are the teacher that damage is measured from.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import __version__
from ..direction import Direction
from ..errors import EditError
from ..features import extract, quality
from ..features.extract import conversation
from ..features.prompts import PromptSets, PromptSplit
from ..measure.overlap import sketch
from ..measure.refusal import read
from ..records import DirectionMeta
from ..runtime import Continuation, Decoding, answer_states, replies
from .objectives import Group, Item, Problem
from .openings import Openings, discover
from .passes import Passes, Tree
from .space import Kind

if TYPE_CHECKING:
    from ..features.recipe import FeatureSpec
    from ..runtime import RunningModel

SHOWN_AT_LEAST = 0.05  # share of the prompts on which the base must show what is to be removed
ALIKE = 0.25  # share of the other side's answers that show the behaviour too, from which the answers define the sides
SEPARATED = 0.6  # the lower end of the held-out AUROC must not lie below


@dataclass(frozen=True)
class Sizes:
    """How much is read: prompts trained on and held out (each side), tokens of an answer."""

    train: int = 32
    held: int = 16
    tokens: int = 16


@dataclass(frozen=True)
class Aim:
    """What the material is for: ``kind`` of edit, how much is read, and how far an addition goes (``level`` times as far as the
    persona takes the model). With ``force`` a feature that can't be separated is read all the same."""

    kind: Kind
    sizes: Sizes = field(default_factory=Sizes)
    level: float = 1.0
    force: bool = False


@dataclass(eq=False)
class Material:
    """What a search starts from; ``activations`` are those of the trained prompts, both sides; ``source`` is the layer whose
    vector separates best, ``shown`` the share of prompts whose base answer shows the feature (``None`` where only odds say)."""

    spec: FeatureSpec
    sets: PromptSets
    direction: Direction
    activations: extract.Activations
    source: int
    problem: Problem
    openings: Openings
    shown: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def separation(self) -> tuple[float, float, float]:
        """AUROC on held-out prompts of the starting layer, with its interval."""
        row = next(q for q in self.direction.meta.quality if q.layer == self.source)
        return row.auroc, row.auroc_low, row.auroc_high


def fewer(sets: PromptSets, sizes: Sizes) -> PromptSets:
    """The first prompts of each part; *report* stays as it is."""

    def cut(part: PromptSplit, n: int) -> PromptSplit:
        return PromptSplit(part.shows[:n], part.lacks[:n])

    return replace(sets, extract=cut(sets.extract, sizes.train), select=cut(sets.select, sizes.held))


def gather(
    model: RunningModel, spec: FeatureSpec, sets: PromptSets, aim: Aim, passes: Passes,
    protect: Seq[tuple[FeatureSpec, PromptSets]] = (),
) -> Material:  # fmt: skip
    """Read and answer everything that candidates are compared on.

    Raises:
        EditError: a feature that the model does not show, or whose sides can't be told apart (not with ``force``).
        RecipeError: as for :func:`weightsmith.features.extract.read_part`.
    """
    sets = fewer(sets, aim.sizes)
    reader = _Reader(model, spec, sets, aim.kind, aim.sizes, passes)
    shown: float | None
    if spec.contrast.kind == "prompt_sets":
        problem, openings, shown, read_along = reader.by_openings()
        acts = read_along if spec.site == "last_template_token" else _activations(model, spec, sets, aim.sizes)
    else:
        acts = _activations(model, spec, sets, aim.sizes)
        problem, openings, shown = reader.by_answers(acts)
    direction = _direction(model, spec, sets, acts)
    source = best_layer(direction)
    for other, their in protect:
        problem.protect[other.name] = reader.protected(other, fewer(their, aim.sizes))
    found = Material(spec, sets, direction, acts[0], source, problem, openings, shown)
    _check(found, aim.force)
    if aim.kind == "add" and problem.loss == "distil":
        problem.effect.level = aim.level
    problem.prepare()
    return found


def best_layer(direction: Direction) -> int:
    """The layer from which a search starts: of those between 20% and 80% of the depth that separate the held-out prompts
    as well as any (the lower end of the interval, to 0.02), the one whose two halves agree best."""
    deep = direction.meta.model.n_layers
    rows = [q for q in direction.meta.quality if 0.2 * deep <= q.layer <= 0.8 * deep] or list(direction.meta.quality)
    best = max(q.auroc_low for q in rows)
    return max((q for q in rows if q.auroc_low >= best - 0.02), key=lambda q: (round(q.split_half, 2), -q.layer)).layer


Both = tuple[extract.Activations, extract.Activations]


def _activations(model: RunningModel, spec: FeatureSpec, sets: PromptSets, sizes: Sizes) -> Both:
    """Activations of the prompts that are trained on, and of those held out."""
    how = extract.ExtractOptions(spec.site, "resid_post", tuple(range(model.architecture.n_layers)), max(sizes.tokens, 16))
    return extract.read_part(model, spec, sets, "extract", how), extract.read_part(model, spec, sets, "select", how)


def _direction(model: RunningModel, spec: FeatureSpec, sets: PromptSets, acts: Both) -> Direction:
    layers, (first, held) = tuple(range(model.architecture.n_layers)), acts
    found = quality.vectors(first, "difference-in-means")
    rows = quality.layer_quality(found, layers, first, held, "difference-in-means", model.options.seed)
    used = {part: list(dict.fromkeys((*sets.part(part).shows, *sets.part(part).lacks))) for part in ("extract", "select")}
    meta = DirectionMeta(
        feature=spec.name, feature_digest=spec.digest, description=spec.description.strip(), model=model.identity,
        method="difference-in-means", site=spec.site, point="resid_post", layers=list(layers), prompts_digest=sets.digest,
        n={p: len(sets.part(p).shows) for p in ("extract", "select", "report")}, quality=rows, ran=model.ran,
        versions={"weightsmith": __version__, "numpy": np.__version__},
        prompts={part: [sketch(p) for p in prompts] for part, prompts in used.items()},
    )  # fmt: skip
    means = [m.mean(0).astype(np.float32) for m in (first.lacks.norms, first.shows.means, first.lacks.means)]
    return Direction(found.astype(np.float32), means[0], means[1], means[2], meta)


@dataclass(eq=False)
class _Said:
    """Greedy answers and the final states that chose their tokens, the end token's included."""

    answers: list[list[int]]
    states: list[list[torch.Tensor]]
    means: extract.Array

    def taught(self, i: int) -> torch.Tensor:
        """The states ``[answer, d_model]`` that predict answer ``i``'s own tokens."""
        return torch.stack(self.states[i][: len(self.answers[i])])


@dataclass(eq=False)
class _Reader:
    """Asks the base and builds the groups of items."""

    model: RunningModel
    spec: FeatureSpec
    sets: PromptSets
    kind: Kind
    sizes: Sizes
    passes: Passes

    def by_openings(self) -> tuple[Problem, Openings, float, Both]:
        """Two sets of prompts: the feature is how the model begins its answer to one of them."""
        shows, lacks = (_both(self.sets, side) for side in ("shows", "lacks"))
        ids = [self._encode(p) for p in (*shows, *lacks)]
        said = self._answer(ids, "answering")
        label = labeller(self.spec)
        texts = [self.model.decode(a) for a in said.answers]
        n = len(shows)

        def shown(i: int, text: str, ended: bool) -> bool | None:
            return label((*shows, *lacks)[i], text, ended, i < n)

        showing = [bool(shown(i, t, len(a) < self.sizes.tokens)) for i, (t, a) in enumerate(zip(texts, said.answers, strict=True))]
        with torch.no_grad():
            first = torch.stack([s[0] for s in said.states[:n]])
            chances = torch.softmax(self.model.logits(first), -1)
        found = discover(self.model, ids[:n], said.answers[:n], showing[:n], chances, shown, min(self.sizes.tokens, 12))
        self.passes.ledger.generated += found.generated
        found = found if found.shows else self._from_recipe(found)
        train, held = _places(self.sets, "shows")
        where = ids[:n]
        if self.kind == "add":  # openings rise where the base does not show it
            train, held = _places(self.sets, "lacks")
            where = ids[n:]
        items = [Item(Tree.of(p, list(found.shows)), shows=tuple(range(len(found.shows)))) for p in where]
        quiet = [i for i in range(len(lacks)) if said.answers[n + i] and not showing[n + i]]
        damage = self._own([ids[n + i] for i in quiet], quiet, said, [n + i for i in quiet], "lacks")
        problem = Problem(self.model, self.kind, self.passes, Group(items, train, held), damage)
        # where the other prompts are answered in the same way, the two sides differ in what is asked: the behaviour is what
        # tells the answers apart
        apart = showing if np.mean(showing[n:]) > ALIKE else [i < n for i in range(len(showing))]
        return problem, found, float(np.mean(showing[:n])), self._parts(said.means, apart)

    def by_answers(self, acts: tuple[extract.Activations, extract.Activations]) -> tuple[Problem, Openings, None]:
        """Personas, pairs and texts: answers that show the feature against answers that lack it."""
        if self.spec.contrast.kind == "texts":
            return self._by_texts(), Openings({}, {}), None
        prompts = {side: _both(self.sets, side) for side in ("shows", "lacks")}
        personas = self.spec.contrast.kind == "personas"
        plain = [self._encode(p) for p in prompts["lacks"]]
        said = self._answer(plain, "answering")
        other = [self._encode(p, "shows", persona=personas) for p in prompts["shows"]]
        answers = [a for part in acts for a in part.shows.answers] or self._answer(other, "answering (shows)").answers
        answers = [a[: self.sizes.tokens] for a in answers]
        keep = [i for i in range(len(plain)) if answers[i] and said.answers[i] and answers[i] != said.answers[i]]
        removing = self.kind == "remove"
        if removing:  # the persona is there, the model should answer as without it
            teachers, where, taught = [said.taught(i) for i in keep], other, 1
        else:
            rows = [Continuation(tuple(other[i]), tuple(answers[i])) for i in keep]
            teachers, where, taught = answer_states(self.model, rows, "reading the teacher"), plain, 0
        items = [Item(Tree.of(where[i], [answers[i], said.answers[i]]), (0,), (1,), taught, t)
                 for i, t in zip(keep, teachers, strict=True)]  # fmt: skip
        damage = self._own([plain[i] for i in keep], keep, said, keep, "lacks")
        return Problem(self.model, self.kind, self.passes, self._group(items, keep, "lacks"), damage, loss="distil",
                       chance=False), Openings({}, {}), None  # fmt: skip

    def _by_texts(self) -> Problem:
        """Labelled texts: the log-probability of those that show the feature against those that lack it."""
        rows = {side: [self.model.tokens(t, special=True)[:64] for t in _both(self.sets, side)] for side in ("shows", "lacks")}
        items: list[Item] = []
        parts: tuple[list[int], list[int]] = ([], [])
        for side in ("shows", "lacks"):
            places = _places(self.sets, side)
            for i, ids in enumerate(rows[side]):
                if len(ids) > 1:
                    parts[i not in places[0]].append(len(items))
                    items.append(Item(Tree.of(ids[:1], [ids[1:]]), texts=1.0 if side == "shows" else -1.0))
        own = [Item(Tree.of(r[:1], [r[1:]]), taught=0) for r in rows["lacks"] if len(r) > 1]
        states = answer_states(self.model, [Continuation(i.tree.prompt, i.tree.tokens) for i in own], "reading neutral texts")
        for item, state in zip(own, states, strict=True):
            item.teacher = state
        damage = self._group(own, list(range(len(own))), "lacks")
        return Problem(self.model, self.kind, self.passes, Group(items, *parts), damage, chance=False, margin=0.0)

    def protected(self, spec: FeatureSpec, sets: PromptSets) -> Group:
        """The base's own answers to both sides of a feature that must not move."""
        prompts = [*_both(sets, "shows"), *_both(sets, "lacks")]
        ids = [self.model.encode(conversation(spec, "shows" if i < len(prompts) // 2 else "lacks", p, True))
               for i, p in enumerate(prompts)]  # fmt: skip
        said = self._answer(ids, f"answering ({spec.name})")
        keep = [i for i in range(len(ids)) if said.answers[i]]
        items = [Item(Tree.of(ids[i], [said.answers[i]]), taught=0, teacher=said.taught(i)) for i in keep]
        parts = [_places(sets, side) for side in ("shows", "lacks")]
        n = len(_both(sets, "shows"))
        train = {*parts[0][0], *(n + i for i in parts[1][0])}
        return Group(items, [k for k, i in enumerate(keep) if i in train], [k for k, i in enumerate(keep) if i not in train])

    def _encode(self, prompt: str, side: str = "lacks", *, persona: bool = False) -> list[int]:
        return self.model.encode(conversation(self.spec, side, prompt, persona))

    def _answer(self, prompts: Seq[Seq[int]], step: str) -> _Said:
        states: list[list[torch.Tensor]] = [[] for _ in prompts]
        now: list[Any] = [None] * len(self.model.blocks)
        means = np.empty((len(prompts), len(now), self.model.architecture.d_model), np.float32)

        def keep(layer: int) -> Any:
            def hook(_m: Any, _i: Any, output: Any) -> None:
                now[layer] = output[0] if isinstance(output, tuple) else output

            return hook

        def read_along(i: int, row: int, at: int) -> None:
            means[i] = torch.stack([x[row, at].float() for x in now]).cpu().numpy()

        handles = [block.register_forward_hook(keep(k)) for k, block in enumerate(self.model.blocks)]
        try:
            said = replies(self.model, prompts, Decoding(self.sizes.tokens), step, on_prompt=read_along,
                           on_state=lambda i, state: states[i].append(state.clone()))  # fmt: skip
        finally:
            for handle in handles:
                handle.remove()
        self.passes.ledger.generated += sum(len(r.tokens) for r in said)
        # made under inference mode, which forbids them in a graph: copied outside of it
        return _Said([r.tokens for r in said], [[s.clone() for s in row] for row in states], means)

    def _parts(self, means: extract.Array, apart: Seq[bool]) -> Both:
        """Activations at the prompts' last tokens by part and side; ``apart`` says which prompt (shows first) is on which."""
        found = []
        n = len(_both(self.sets, "shows"))
        for part in (0, 1):
            mine = [*_places(self.sets, "shows")[part], *(n + i for i in _places(self.sets, "lacks")[part])]
            sides = []
            for side in (True, False):
                rows = means[[i for i in mine if bool(apart[i]) is side]]
                sides.append(extract.Side(rows, np.linalg.norm(rows, axis=-1)))
            found.append(extract.Activations(sides[0], sides[1], paired=False))
        return found[0], found[1]

    def _own(self, ids: Seq[Seq[int]], places: Seq[int], said: _Said, at: Seq[int], side: str) -> Group:
        items = [Item(Tree.of(p, [said.answers[k]]), taught=0, teacher=said.taught(k)) for p, k in zip(ids, at, strict=True)]
        return self._group(items, places, side)

    def _group(self, items: list[Item], places: Seq[int], side: str) -> Group:
        """Items by part; ``places[k]`` is the prompt of item k among both parts of ``side``."""
        train = set(_places(self.sets, side)[0])
        return Group(items, [k for k, i in enumerate(places) if i in train], [k for k, i in enumerate(places) if i not in train])

    def _from_recipe(self, found: Openings) -> Openings:
        """The recipe's own openings, where the model's answers show none."""
        options: dict[str, Any] = next((s.options for s in self.spec.scorers if s.kind == "continuations"), {})
        shows = [tuple(self.model.tokens(t)[:4]) for t in options.get("shows", ())]
        free = [a for a in dict.fromkeys(shows) if not any(b != a and a[: len(b)] == b for b in shows)]
        return Openings(dict.fromkeys(free[:6], 0.0), found.lacks, found.generated)


def labeller(spec: FeatureSpec) -> Callable[[str, str, bool, bool], bool | None]:
    """``f(prompt, answer, ended, shows)``: whether an answer shows the feature. By the refusal scorer where the recipe has
    it; else answers to the prompts that show it do."""
    if any(s.kind == "refusal" for s in spec.scorers):
        return lambda prompt, text, ended, _: read(prompt, text, ended=ended).verdict == "refuses"
    return lambda _p, _t, _e, shows: shows


def _both(sets: PromptSets, side: str) -> list[str]:
    return [*getattr(sets.extract, side), *getattr(sets.select, side)]


def _places(sets: PromptSets, side: str) -> tuple[list[int], list[int]]:
    n, m = len(getattr(sets.extract, side)), len(getattr(sets.select, side))
    return list(range(n)), list(range(n, n + m))


def _check(found: Material, force: bool) -> None:
    """Stop before the search where there is nothing to search for."""
    value, low, high = found.separation
    said = f"AUROC {value:.2f} [{low:.2f}, {high:.2f}] on {len(found.sets.select.shows)} held-out prompts a side"
    problem = ""
    if low < SEPARATED:
        problem = f"the model's activations do not tell the two sides apart ({said})"
    elif found.problem.kind == "remove" and found.shown is not None and found.shown < SHOWN_AT_LEAST:
        problem = f"the model does not show this feature: {found.shown:.0%} of its answers do ({said})"
    elif found.spec.contrast.kind == "prompt_sets" and not found.openings.shows:
        problem = f"no answer of the model shows this feature, and the recipe names no openings ({said})"
    if not problem:
        return
    items = found.problem.effect.items
    if not force or not items or not items[0].tree.tokens:
        more = "give more prompts (--prompts, and --held for the interval)"
        raise EditError(problem, where=found.spec.name, hint=f"choose another feature, or {more}" if force else
                        f"choose another feature, {more}, or search all the same with --force")  # fmt: skip
    found.notes.append(f"{problem}; searched all the same")
