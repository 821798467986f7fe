"""``weightsmith show``: a model, a direction, an edited model's record, or what is installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import RunOptions
from .common import Json, console, gigabytes, plain, print_json, with_run_options

if TYPE_CHECKING:
    from ..direction import Direction


@with_run_options(model=False)
def command(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="A model, a direction, an Edit or feature file, a shipped feature, "
                                                 "`features`, `scorers` or `forms`.")
    ],
    *,
    run: RunOptions,
    json: Json = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    plot: Annotated[str | None, typer.Option(help="Draw a direction's layer curve to this .png or .svg.")] = None,
) -> None:
    """Show a model (headers only, nothing is run), a direction's layer curve, the shipped features, or scorers' errors."""
    from ..direction import is_direction, load_direction

    path = Path(what).expanduser()
    if what == "features":
        _features(json)
    elif what == "forms":
        _forms(json)
    elif what == "scorers":
        from .show_scorers import print_scorers

        print_scorers(json=json)
    elif is_direction(path):
        _direction(load_direction(path), json, plot)
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        _yaml(path, json)
    elif not path.exists() and what in _shipped():
        _yaml(what, json)
    else:
        _model(what, run, json, tensors)


def _shipped() -> list[str]:
    from ..features.recipe import shipped_features

    return shipped_features()


def _features(json: bool) -> None:
    from ..features.recipe import load_feature, shipped_features

    specs = [load_feature(name)[0] for name in shipped_features()]
    if json:
        print_json([s.model_dump(by_alias=True) for s in specs])
        return
    from rich.table import Table

    table = Table("feature", "contrast", "extract / select / report", "what it is", box=None, pad_edge=False)
    for s in specs:
        split = f"{s.split.extract} / {s.split.select} / {s.split.report}"
        table.add_row(f"[bold]{s.name}[/]", s.contrast.kind, split, " ".join(s.description.split()))
    console().print(table)


def _forms(json: bool) -> None:
    """Which edit has which form in which family, from the code itself."""
    from ..forms.table import COLUMNS, rows

    found = rows()
    if json:
        print_json([row.as_record() for row in found])
        return
    from rich.table import Table

    table = Table("family", "edit", *COLUMNS, box=None, pad_edge=False)
    marks = {"exact": "[green]exact[/]", "approximate": "[yellow]approx.[/]", "refused": "[dim]–[/]"}
    for row in found:
        table.add_row(row.family, row.kind, *(marks.get(row.cells[c].status, row.cells[c].status) for c in COLUMNS))
    console().print(table)
    console().print("[dim]– is refused; --json and docs/export.md say why[/]")


def _yaml(what: Path | str, json: bool) -> None:
    """An Edit file, or a feature: a file of it, or the name of one that is shipped."""
    import yaml

    from ..features.recipe import load_feature
    from ..jobs.edit import load_edit

    spec: Any = load_edit(what) if isinstance(what, Path) and _is_edit(what) else load_feature(str(what))[0]
    if json:
        print_json(spec.model_dump(by_alias=True))
    else:
        console().print(plain(yaml.safe_dump(spec.model_dump(by_alias=True, exclude_none=True), sort_keys=False)))


def _is_edit(path: Path) -> bool:
    from ..errors import RecipeError
    from ..features.recipe import load_yaml
    from ..records import EDIT

    try:
        data = load_yaml(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise RecipeError("not a UTF-8 text file", where=path) from error
    return isinstance(data, dict) and data.get("schema") == EDIT


def _model(ref: str, run: RunOptions, json: bool, tensors: bool) -> None:
    from ..jobs.files import describe_model

    facts = describe_model(ref, run)
    if json:
        print_json(facts)
        return
    from rich.table import Table

    out = console()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in _rows(facts):
        table.add_row(name, plain(value))
    out.print(f"[bold]{plain(facts['ref'])}[/]")
    out.print(table)
    if tensors:
        listing = Table("tensor", "dtype", "shape", "role", "file", box=None, pad_edge=False)
        for t in facts["tensors"]:
            listing.add_row(
                plain(t["name"]), t["dtype"], "×".join(map(str, t["shape"])), t["role"] or "", plain(t["file"])
            )
        out.print()
        out.print(listing)


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    family = facts["family"] or f"{facts['model_type']}: {facts.get('why_not_editable')}"
    template = facts["chat_template"]
    rows = [
        ("files", f"{facts['kind']}, {len(facts['files'])} weight file(s), {gigabytes(facts['bytes'])}"),
        ("where", facts["path"]),
        ("source", ", ".join(f"{k} {v}" for k, v in facts["source"].items())),
        ("family", family),
        ("size", f"{facts['parameters'] / 1e6:,.0f} M stored weights"
                 + (f", {facts['layers']} layers, width {facts['d_model']}" if facts["family"] else "")),
        ("dtypes", ", ".join(f"{k} × {v}" for k, v in facts["dtypes"].items())),
        ("writers", ", ".join(f"{k} × {v}" for k, v in facts["roles"].items()) or "unknown"),
        ("context", f"{facts['context_length']} tokens, vocabulary {facts['vocabulary']}"),
        ("tokenizer", f"{facts['tokenizer'].get('class') or 'unknown'} ({', '.join(facts['tokenizer']['files'])})"),
        ("template", f"{len(template)} characters" if template else "none: prompts are given as plain text"),
    ]  # fmt: skip
    if facts["family"] and facts["tied_embeddings"]:
        rows.append(("embeddings", "tied: the embedding is also the unembedding"))
    if facts["edited"]:
        rows.append(("record", "edited by Weightsmith, see weightsmith.json"))
    if facts["wants_remote_code"]:
        rows.append(("warning", f"the config asks loaders to run code ({', '.join(facts['wants_remote_code'])}); "
                                "Weightsmith never does"))  # fmt: skip
    return rows


def _direction(direction: Direction, json: bool, plot: str | None) -> None:
    from ..jobs.files import describe_direction
    from ..report.plots import layer_curve_png, layer_curve_svg, layer_curve_text
    from ..storage import write_whole

    meta = direction.meta
    if plot is not None:
        target = Path(plot)
        data = layer_curve_png(meta) if target.suffix == ".png" else layer_curve_svg(meta).encode()
        write_whole(target, data)
    if json:
        print_json(describe_direction(direction))
        return
    out = console()
    out.print(f"[bold]{plain(meta.expression or meta.feature)}[/]  {plain(' '.join(meta.description.split()))}")
    out.print(f"[dim]found on[/] {plain(meta.model.ref)} ({meta.model.digest[:16]}…), "
              f"{meta.method}, {meta.site}, {meta.point}")  # fmt: skip
    out.print(
        "[dim]prompts[/]  "
        + ", ".join(f"{v} {k}" for k, v in meta.n.items())
        + f"   [dim]digest[/] {direction.digest()[:16]}…"
    )
    if meta.quality:
        out.print(layer_curve_text(meta, min(out.width, 100)), markup=False)
    if meta.candidates:
        print_candidates(out, meta)


def print_candidates(out: Any, meta: Any) -> None:
    """The tried layers and amounts, best first, the chosen ones marked."""
    from rich.table import Table

    table = Table("", "kind", "source", "layers", "amount", "effect", "KL", "effect − KL", box=None, pad_edge=False)
    for c in sorted(meta.candidates, key=lambda c: (c.kind, not c.chosen, c.kl - c.effect)):
        mark = "[bold]→[/]" if c.chosen else ""
        table.add_row(mark, c.kind, str(c.source), f"{min(c.layers)}–{max(c.layers)}", f"{c.amount:g}",
                      f"{c.effect:+.3f}", f"{c.kl:.3f}", f"{c.effect - c.kl:+.3f}")  # fmt: skip
    out.print(f"\n[dim]chosen by: {meta.rule} (n = {meta.candidates[0].n})[/]")
    out.print(table)
