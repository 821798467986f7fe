"""``find``: where a feature lives in a model, how well it separates held-out prompts, which layer and amount to use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..checkpoint import Checkpoint
from ..direction import Direction
from ..errors import RecipeError, UsageError
from ..options import RunOptions
from ..records import DirectionMeta
from ..storage import refuse_existing
from .files import as_checkpoint


def find(
    model: Checkpoint | str | Path,
    feature: str,
    out: str | Path | None = None,
    *,
    method: str = "difference-in-means",
    site: str | None = None,
    point: str = "resid_post",
    layers: list[int] | None = None,
    choose: bool = True,
    response_tokens: int = 24,
    trial_prompts: int = 16,
    budget: float = 1.0,
    options: RunOptions | None = None,
) -> Direction:
    """Find ``feature`` in ``model``.

    ``method`` is an extractor plug-in, ``site`` one of the recipe's sites, ``point`` ``resid_pre`` or ``resid_post``,
    ``layers`` the blocks to read (all by default). With ``choose`` layer and amount are chosen on *select* by effect
    against KL, from ``trial_prompts`` prompts, an addition within a ``budget`` of KL in nats per token. With ``out`` the
    direction is written there.

    Raises:
        RecipeError: a bad recipe; UnsupportedModel, RemoteCode: a model that can't be run; NonFinite: NaN.
    """
    options = options or RunOptions()
    spec, sets, site = _asked(feature, method, site, point, budget, options.offline)
    if out is not None:
        refuse_existing(Path(out), folder=False)
    checkpoint = as_checkpoint(model, options)
    from ..runtime.load import load

    running = load(checkpoint, options)
    from ..features import extract, quality, select

    n_layers = running.architecture.n_layers
    wanted = tuple(range(n_layers)) if layers is None else tuple(sorted(set(layers)))
    if not wanted or wanted[0] < 0 or wanted[-1] >= n_layers:
        raise RecipeError(f"layers must lie between 0 and {n_layers - 1}", where=feature)
    how = extract.ExtractOptions(site, point, wanted, response_tokens)
    first, held_out = (extract.read_part(running, spec, sets, part, how) for part in ("extract", "select"))
    found, readers = quality.vectors(first, method), quality.readers(first, method)
    rows = quality.layer_quality(found, wanted, first, held_out, method, options.seed)
    direction = Direction(
        found.astype(np.float32), first.lacks.norms.mean(0).astype(np.float32),
        first.shows.means.mean(0).astype(np.float32), first.lacks.means.mean(0).astype(np.float32),
        DirectionMeta(
            feature=spec.name, feature_digest=spec.digest, description=spec.description.strip(),
            model=running.identity, method=method, site=site, point="resid_pre" if point == "resid_pre" else "resid_post",
            layers=list(wanted), prompts_digest=sets.digest,
            n={p: len(sets.part(p).shows) for p in ("extract", "select", "report")}, quality=rows,
            ran=running.ran | ({"notes": "; ".join(running.notes)} if running.notes else {}),
            versions={"weightsmith": __version__, "numpy": np.__version__}, prompts=_sketches(sets),
        ), None if readers is None else readers.astype(np.float32),
    )  # fmt: skip
    if choose:
        trials = select.prepare(running, spec, sets, held_out, trial_prompts, response_tokens, budget)
        chosen = select.choose(running, direction, trials)
        meta = direction.meta.model_copy(update={"candidates": chosen, "rule": trials.rule})
        direction = replace(direction, meta=meta)
    if out is not None:
        direction.save(Path(out))
    return direction


def _sketches(sets: Any) -> dict[str, list[str]]:
    """What was read and what the choice was made with, so that a report on the same prompts can be refused."""
    from ..measure.overlap import sketch

    used = {part: dict.fromkeys((*sets.part(part).shows, *sets.part(part).lacks)) for part in ("extract", "select")}
    return {part: [sketch(p) for p in prompts] for part, prompts in used.items()}


def _asked(feature: str, method: str, site: str | None, point: str, budget: float, offline: bool) -> tuple[Any, Any, str]:
    """The recipe, its prompts and the site, all checked before a model is opened."""
    from ..features.methods import EXTRACTORS
    from ..features.prompts import prompt_sets
    from ..features.recipe import SITES, load_feature

    EXTRACTORS.load(method)
    spec, folder = load_feature(feature)
    sets = prompt_sets(spec, folder, offline=offline)
    site = site or spec.site
    if site not in SITES or (site == "text_mean") != (spec.contrast.kind == "texts"):
        raise UsageError(f"the site {site!r} does not fit this feature", hint=f"one of {', '.join(SITES)}")
    if point not in ("resid_pre", "resid_post"):
        raise UsageError(f"unknown point {point!r}", hint="resid_pre or resid_post")
    if not 0 < budget < 100:
        raise UsageError(f"a budget of {budget:g} nats per token makes no sense", hint="0.1 to 2 is usual")
    return spec, sets, site
