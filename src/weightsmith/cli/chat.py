"""``weightsmith chat``: talk to a model, and to the same model with a feature turned up or down."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import RunOptions
from .common import Model, with_run_options


@with_run_options(model=True)
def command(
    model: Model,
    *,
    run: RunOptions,
    direction: Annotated[str | None, typer.Option(help="A direction to steer with.")] = None,
    remove: Annotated[str | None, typer.Option(help="Begin with this share removed, or `auto`.")] = None,
    add: Annotated[str | None, typer.Option(help="Begin with this dose added, or `auto`.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 200,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    edit: Annotated[str | None, typer.Option(help="An Edit file to steer with, gates included.")] = None,
    transfer: Annotated[bool, typer.Option("--transfer", help="Use a direction from other weights.")] = False,
) -> None:
    """Chat with a model; with a direction, /strength turns the feature and /compare shows both side by side."""
    from .chat_session import ChatSettings, chat
    from .wishes import amount

    chosen = (amount(remove, "remove"), amount(add, "add"))
    chat(model, ChatSettings(direction, *chosen, system, tokens, temperature, transfer, edit), run)
