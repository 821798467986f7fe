"""Closed-form candidates: a floor for the search, and where it starts.

- *single layer*: the difference in means of one layer, taken out of all edited layers (Arditi et al. 2024, arXiv 2406.11717,
  section 2.4), or added over them;
- *COSMIC* (Siu et al. 2025, arXiv 2506.00085): of these, the layer whose removal makes the activations of prompts that show
  the feature most like those of prompts that lack it, by cosine, in the layers where the two differ most; no output token
  is looked at;
- *biprojected* and *projected*: the neutral mean taken out of the direction first (:mod:`weightsmith.edits.projected`);
- *LEACE* (Belrose et al. 2023, arXiv 2306.03819): the least change after which no linear probe finds the feature;
- *spectral residual* (after SRA, arXiv 2601.08489): each layer's direction residualised, with a ridge, against the principal
  axes of the neutral activations, which stand for the concepts to be kept;
- *null space*: a reading vector for each layer by least squares that gives what the direction reads on prompts that show the
  feature and nothing on neutral ones; written along the direction.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..direction import Direction
from ..errors import EditError, NonFinite, RecipeError
from ..features import quality
from ..features.extract import Activations, conversation
from ..features.select import compile_hooks, sources
from ..records import EditSpec, EditStep
from ..runtime import RunningModel, Sequence, capture, steering
from .material import Material
from .objectives import Problem, Seen

F64 = np.ndarray[Any, np.dtype[np.float64]]
ATOMS = 8  # principal axes of the neutral side that stand for what is kept
DOSES = (0.15, 0.3)


@dataclass(eq=False)
class Made:
    """A candidate edit, by the method that made it, and what it does on the held-out prompts once it was looked at; where it
    turned out not to be possible, ``fault`` says why."""

    what: str
    method: str
    spec: EditSpec
    directions: dict[str, Direction]
    source: int | None = None
    strength: float = 1.0
    seen: Seen | None = None
    fault: str = ""


def step_of(
    kind: str, direction: Direction, source: Any, layers: Seq[int], amount: float = 1.0, **more: Any
) -> tuple[EditSpec, dict[str, Direction]]:
    """An Edit of one step."""
    digest = direction.digest()
    step = EditStep(kind=kind, direction=digest, source=source, layers=list(layers), amount=amount, **more)
    return EditSpec(name=f"{kind} {direction.meta.feature}", steps=[step]), {digest: direction}


def candidates(model: RunningModel, material: Material, layers: Seq[int], *, few: bool = False) -> list[Made]:
    """All closed-form edits of the problem's kind over ``layers``, those that a family can't hold too: :func:`look` says so of
    them. ``few`` are the single layers alone."""
    direction = material.direction
    picks = sorted({*sources(direction.meta.layers), material.source})
    if material.problem.kind == "add":
        return [Made(f"dose {dose:g} of layer {s}'s difference in means", "single layer",
                     *step_of("add", direction, s, layers, dose), s, dose) for s in picks for dose in DOSES]  # fmt: skip
    found = [Made(f"layer {s}'s difference in means taken out", "single layer", *step_of("remove", direction, s, layers), s)
             for s in picks]  # fmt: skip
    if few:
        return found
    source = cosmic(model, material, found)
    found.append(replace(next(m for m in found if m.source == source), method="COSMIC",
                         what=f"layer {source}'s difference in means taken out (chosen by COSMIC)"))  # fmt: skip
    for kind in ("projected", "biprojected"):
        more: dict[str, Any] = {"norms": "free"} if kind == "biprojected" else {}
        found.append(Made(f"layer {source}'s difference in means without the neutral mean", kind,
                          *step_of(kind, direction, source, layers, **more), source))  # fmt: skip
    acts = material.activations
    found.append(Made("each layer's direction without the neutral side's principal axes", "spectral residual",
                      *step_of("remove", spectral(direction, acts), "each", layers)))  # fmt: skip
    for what, method, readers in (
        ("least change after which no linear probe finds it", "LEACE", quality.readers(acts, "leace")),
        ("read by least squares, nothing on neutral prompts", "null space", null_space(direction, acts)),
    ):
        assert readers is not None, "both have readers"
        found.append(Made(what, method, *step_of("leace", replace(direction, readers=readers.astype(np.float32)),
                                                 "each", layers)))  # fmt: skip
    return found


def look(model: RunningModel, problem: Problem, made: Made, some: int | None = None) -> Seen | None:
    """Judge a candidate on the held-out prompts (the first ``some``); ``None`` where that is not possible, since the model
    can't hold it or its logits are NaN: :attr:`Made.fault` then says why."""
    try:
        hooks = compile_hooks(model, made.spec, made.directions)
    except (EditError, RecipeError) as error:
        made.fault = error.message
        return None
    with torch.no_grad(), steering(model, hooks):
        try:
            return problem.see(some=some)
        except NonFinite as error:
            made.fault = error.message
            return None


def screened(
    model: RunningModel, problem: Problem, made: Seq[Made], loss: Callable[[Seen], float], some: int, keep: int,
    tell: Callable[[int, int], None] = lambda _a, _b: None,
) -> list[Made]:  # fmt: skip
    """All candidates on a few prompts, then the best ``keep`` on all held-out ones. Those that are not possible are not among
    what is given; each of ``made`` that is one has its :attr:`~Made.fault`."""
    first: list[tuple[float, int, Made]] = []
    for k, m in enumerate(made):
        tell(k, len(made))
        seen = look(model, problem, m, some)
        if seen is not None:
            first.append((loss(seen), k, m))
    first.sort(key=lambda x: x[:2])
    chosen = [m for _, _, m in first[:keep]]
    found = []
    for m in chosen:
        seen = look(model, problem, m)
        if seen is not None:
            found.append(replace(m, seen=seen))
    tell(len(made), len(made))
    return sorted(found, key=lambda m: loss(m.seen) if m.seen is not None else np.inf)


def cosmic(model: RunningModel, material: Material, made: Seq[Made]) -> int:
    """The source layer that COSMIC chooses among ``made``: one pass over the held-out prompts of each."""
    spec, sets = material.spec, material.sets
    deep = model.architecture.n_layers
    mean = {side: getattr(material.activations, side).means.astype(np.float64).mean(0) for side in ("shows", "lacks")}
    apart = _cosines(mean["shows"], mean["lacks"])
    late = range(round(0.3 * deep), deep)
    layers = sorted(sorted(late, key=lambda x: apart[x])[: max(1, len(late) // 8)])
    rows = [model.encode(conversation(spec, "shows", p, True)) for p in sets.select.shows[:8]]
    sequences = [Sequence(tuple(r), len(r) - 1, len(r)) for r in rows]
    scores = []
    for m in made:
        with steering(model, compile_hooks(model, m.spec, m.directions)):
            means, _ = capture(model, sequences, layers, step="choosing by cosine")
        scores.append(float(_cosines(means.astype(np.float64).mean(0), mean["lacks"][layers]).mean()))
    best = made[int(np.argmax(scores))].source
    assert best is not None, "single-layer candidates have a source"
    return best


def _cosines(a: F64, b: F64) -> F64:
    return np.asarray((a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12))


def spectral(direction: Direction, acts: Activations) -> Direction:
    """Each layer's direction r minus A(AᵀA + λ)⁻¹Aᵀr, with A the neutral side's principal axes times their singular values
    (the mean's axis among them) and λ the energy of the first axis left out."""
    lacks = acts.lacks.means.astype(np.float64)
    rows = []
    for k, vector in enumerate(direction.vectors.astype(np.float64)):
        _, size, axes = np.linalg.svd(lacks[:, k] / np.sqrt(len(lacks)), full_matrices=False)
        n = min(ATOMS, len(size) - 1)
        keep = size[:n] ** 2 / (size[:n] ** 2 + size[n] ** 2)
        rows.append(vector - axes[:n].T @ (keep * (axes[:n] @ vector)))
    meta = direction.meta.model_copy(update={"method": "spectral residual", "candidates": [], "rule": ""})
    return replace(direction, vectors=np.stack(rows).astype(np.float32), meta=meta)


def null_space(direction: Direction, acts: Activations) -> F64:
    """For each layer the w ``[d]`` with the least ‖X_s w − X_s r̂‖² + ‖X_l w‖² + λ‖w − r̂‖², X the activations of the sides that
    show and lack the feature, a row a prompt; λ is a hundredth of the mean energy of a dimension. ``[layers, d]``."""
    found = []
    for k, vector in enumerate(direction.vectors.astype(np.float64)):
        unit = vector / max(float(np.linalg.norm(vector)), 1e-12)
        x = np.vstack([acts.shows.means[:, k], acts.lacks.means[:, k]]).astype(np.float64)
        wanted = np.r_[np.zeros(len(acts.shows.means)), -(acts.lacks.means[:, k].astype(np.float64) @ unit)]
        penalty = 0.01 * float((x * x).sum()) / x.shape[1]
        # the change from r̂, by the dual of the ridge: as many unknowns as prompts
        change = x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), wanted)
        found.append(unit + change)
    return np.stack(found)
