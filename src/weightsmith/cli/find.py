"""``weightsmith find``: where a feature lives in a model."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import RunOptions
from .common import Json, Model, Out, console, parse_layers, plain, print_json, with_run_options


@with_run_options(model=True)
def command(
    model: Model,
    feature: Annotated[str, typer.Argument(help="A shipped feature (`weightsmith show features`) or a YAML file.")],
    out: Out,
    *,
    run: RunOptions,
    method: Annotated[
        str, typer.Option(help="difference-in-means, leace, paired-pca or logistic-probe.")
    ] = "difference-in-means",
    site: Annotated[str | None, typer.Option(help="Where to read; the recipe's own site by default.")] = None,
    point: Annotated[str, typer.Option(help="resid_pre or resid_post.")] = "resid_post",
    layers: Annotated[str | None, typer.Option(help="Layers to read, e.g. 8-20; all by default.")] = None,
    choose: Annotated[
        bool, typer.Option("--choose/--no-choose", help="Choose layer and amount on select prompts.")
    ] = True,
    tokens: Annotated[int, typer.Option(help="Length of generated answers, in tokens.", min=1)] = 24,
    trials: Annotated[int, typer.Option(help="Select prompts that each candidate is tried on.", min=2)] = 16,
    budget: Annotated[float, typer.Option(help="KL that an addition may cost, in nats per token.")] = 1.0,
    json: Json = False,
) -> None:
    """Find a feature: one direction per layer, with held-out quality, and the layer and amount to use."""
    from pathlib import Path

    from ..jobs.files import describe_direction
    from ..jobs.find import find

    direction = find(model, feature, out, method=method, site=site, point=point, layers=parse_layers(layers),
                     choose=choose, response_tokens=tokens, trial_prompts=trials, budget=budget, options=run)  # fmt: skip
    if json:
        print_json(describe_direction(direction))
        return
    from .show import print_candidates

    best = max(direction.meta.quality, key=lambda q: q.auroc)
    screen = console()
    screen.print(f"wrote {plain(str(Path(out)))}: {plain(direction.meta.feature)} in {len(direction.meta.layers)} layers of "
                 f"{plain(model)}")  # fmt: skip
    screen.print(f"best separation of held-out prompts: layer {best.layer}, AUROC {best.auroc:.3f} "
                 f"[{best.auroc_low:.3f}, {best.auroc_high:.3f}]")  # fmt: skip
    if direction.meta.candidates:
        print_candidates(screen, direction.meta)
    if note := direction.meta.ran.get("notes"):
        screen.print(f"[yellow]note[/] {plain(note)}")
    how = "--add auto -o OUT   (or --remove auto)" if direction.meta.candidates else "--remove 1 -o OUT   (or --add 0.3)"
    screen.print(f"[dim]next: weightsmith edit {plain(model)} {plain(out)} {how}[/]")
