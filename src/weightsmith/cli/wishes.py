"""What to do with a direction: the options that ``edit`` and ``export`` share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import UsageError
from .common import parse_layers

What = Annotated[str, typer.Argument(help="A direction file, or an Edit file (YAML).", metavar="EDIT|DIRECTION")]
Feature = Annotated[str | None, typer.Option(help="Feature whose prompts a fitted constant is fitted on.")]
Transfer = Annotated[bool, typer.Option("--transfer", help="Use a direction from other weights.")]

_OPTIONS: dict[str, Any] = {
    "remove": Annotated[str | None, typer.Option(help="Share to take out, 0 to 2 (1 is exact, more turns it round), or `auto`.")],
    "amplify": Annotated[float | None, typer.Option(help="Factor on both poles of what the model shows.")],
    "add": Annotated[str | None, typer.Option(help="Dose ‖αv‖/‖h‖ to add (this enhances), or `auto`.")],
    "layers": Annotated[str | None, typer.Option(help="Layers to edit, e.g. 10-20.")],
    "source": Annotated[str | None, typer.Option(help="Layer whose vector is used, or `each`.")],
    "roles": Annotated[str | None, typer.Option(help="Roles to edit, e.g. attn_out,mlp_down; +embed adds one.")],
    "constant": Annotated[str | None, typer.Option(help="How an addition is held: exact, fitted or as-llama.")],
    "kind": Annotated[str | None, typer.Option(help="With --remove: projected, biprojected, affine or leace.")],
    "norms": Annotated[str | None, typer.Option(help="Norms to keep: free, input or output.")],
    "rounding": Annotated[str | None, typer.Option(help="nearest, or balanced: what rounding leaves then cancels.")],
    "also": Annotated[list[str] | None, typer.Option(help="Further directions that span the subspace.")],
    "protect": Annotated[list[str] | None, typer.Option(help="Directions of features that must not move.")],
    "direction": Annotated[list[str] | None, typer.Option(help="Direction files that an Edit names by digest.")],
}


def with_wishes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options; it receives them as one ``wishes``, keywords of :func:`weightsmith.jobs.edit`."""
    own = inspect.signature(function, eval_str=True)
    before = [p for n, p in own.parameters.items() if n != "wishes"]
    place = next((i for i, p in enumerate(before) if p.default is not inspect.Parameter.empty), len(before))
    extra = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=a) for n, a in _OPTIONS.items()
    ]

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        return function(*args, wishes=_wishes({n: kwargs.pop(n, None) for n in _OPTIONS}), **kwargs)

    kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in before]
    command.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*kept[: place + 1], *extra, *kept[place + 1 :]]
    )
    return command


def _wishes(given: dict[str, Any]) -> dict[str, Any]:
    constant, roles = given["constant"], given["roles"]
    if constant not in (None, "exact", "fitted", "as-llama"):
        raise UsageError(f"unknown constant {constant!r}", hint="exact, fitted or as-llama")
    return {
        "remove": amount(given["remove"], "remove"), "amplify": given["amplify"], "add": amount(given["add"], "add"),
        "layers": parse_layers(given["layers"]), "source": _source(given["source"]),
        "roles": roles.split(",") if roles else None, "constant": constant,
        "directions": [Path(d) for d in given["direction"] or []],
        "how": {k: given[k] for k in ("kind", "norms", "rounding", "also", "protect") if given[k]},
    }  # fmt: skip


def amount(text: str | None, name: str) -> float | Literal["auto"] | None:
    if text is None or text == "auto":
        return None if text is None else "auto"
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--{name} takes a number or `auto`, not {text!r}", hint=f"for example --{name} 1") from None


def _source(text: str | None) -> int | Literal["each"] | None:
    if text is None or text == "each":
        return None if text is None else "each"
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise UsageError(f"--source takes a layer or `each`, not {text!r}")
    return int(text)
