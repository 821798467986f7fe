"""The chat loop: streaming answers, a feature that can be turned while talking, base and edited side by side."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError, UsageError, WeightsmithError, advice, stated
from .common import console, plain, safe

if TYPE_CHECKING:
    from ..direction import Direction
    from ..jobs.edit import Amount
    from ..options import RunOptions

HELP = """\
/strength X   turn the feature: 1 is the chosen amount, 0 is off, negative is the other way
/compare      answer the last message twice: base and edited, side by side
/reset        forget the conversation
/save FILE    write the conversation as JSON
/help  /quit"""


@dataclass(frozen=True)
class ChatSettings:
    """What was asked for on the command line."""

    direction: str | None
    remove: Amount | None
    add: Amount | None
    system: str | None
    tokens: int
    temperature: float
    transfer: bool
    edit: str | None = None


@dataclass
class Session:
    """A conversation and the knob."""

    model: Any
    settings: ChatSettings
    hooks: list[Any]
    label: str
    strength: float = 1.0
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model.today = None  # a conversation takes place today; a measurement must be the same tomorrow

    def reset(self) -> None:
        """Back to the system message alone."""
        self.messages = [{"role": "system", "content": self.settings.system}] if self.settings.system else []

    @contextlib.contextmanager
    def edited(self, strength: float) -> Iterator[None]:
        """The model with its hooks at ``strength``."""
        from ..runtime import steering

        with steering(self.model, self.hooks if strength else []) as handle:
            handle.strength = strength
            yield

    def pieces(self, messages: list[dict[str, str]], strength: float) -> Iterator[str]:
        """The answer to ``messages``, streamed, at ``strength``."""
        from ..runtime import stream

        with self.edited(strength):
            yield from stream(self.model, self.model.encode(messages), self.settings.tokens, self.settings.temperature)


def chat(ref: str, settings: ChatSettings, run: RunOptions) -> None:
    """Talk until the input ends.

    Raises:
        UsageError: amounts without a direction.
        DirectionModelMismatch: a direction from other weights without ``transfer``.
    """
    from ..direction import load_direction
    from ..jobs.edit import load_edit
    from ..jobs.files import as_checkpoint
    from ..runtime.load import load

    if settings.direction is None and (settings.remove is not None or settings.add is not None):
        raise UsageError("--remove and --add need a --direction")
    if settings.edit is not None and settings.direction is not None:
        raise UsageError("give --edit or --direction, not both: /strength turns one knob")
    direction = load_direction(Path(settings.direction)) if settings.direction else None  # a slip is told before the load
    if settings.edit is not None:
        load_edit(Path(settings.edit))
    model = load(as_checkpoint(ref, run), run)
    hooks, label = _hooks(model, settings, direction) if direction or settings.edit else ([], "")
    session = Session(model, settings, hooks, label)
    session.reset()
    screen = console()
    screen.print(f"[bold]{plain(model.checkpoint.title)}[/] [dim]{model.ran['device']} {model.ran['dtype']}; safetensors only, "
                 f"no code of the model's own, no network[/]")  # fmt: skip
    if label:
        screen.print(f"[dim]{plain(label)} at strength 1[/]")
    for note in model.notes:
        screen.print(f"[yellow]note[/] {plain(note)}")
    screen.print(f"[dim]{HELP if sys.stdin.isatty() else '/help for commands'}[/]", markup=True)
    while (line := _read()) is not None:
        if not _turn(session, line.strip(), screen):
            return


def _hooks(model: Any, settings: ChatSettings, direction: Direction | None) -> tuple[list[Any], str]:
    from ..features.select import compile_hooks
    from ..jobs.edit import resolve_edit
    from ..runtime.load import identity

    if settings.edit is not None:
        spec, found = resolve_edit(model.checkpoint, Path(settings.edit), remove=None, amplify=None, add=None, layers=None,
                                   source=None, roles=None, constant=None, directions=None)  # fmt: skip
        for used in found.values():
            used.check_model(identity(model.checkpoint, model.identity.digest), transfer=settings.transfer)
        return compile_hooks(model, spec, found), spec.name or Path(settings.edit).name
    assert direction is not None
    direction.check_model(identity(model.checkpoint, model.identity.digest), transfer=settings.transfer)
    wishes: dict[str, Any] = {"remove": settings.remove, "amplify": None, "add": settings.add}
    if settings.remove is None and settings.add is None:
        wishes["add"] = "auto" if direction.meta.best("add") else 0.3
    if settings.remove is not None and settings.add is not None:
        raise UsageError("give --remove or --add, not both: /strength turns one knob")
    spec, found = resolve_edit(model.checkpoint, direction, layers=None, source=None, roles=None, constant=None,
                               directions=None, **wishes)  # fmt: skip
    step = spec.steps[0]
    span = f"layers {min(step.layers)}–{max(step.layers)}"
    return compile_hooks(model, spec, found), f"{step.kind} {direction.meta.feature}, amount {step.amount:g}, {span}"


def _read() -> str | None:
    try:
        return input("\n› " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def _turn(session: Session, line: str, screen: Any) -> bool:
    """One line of input; False ends the chat. An error of the user's is said and the chat goes on."""
    if not line:
        return True
    try:
        if line.startswith("/"):
            return _command(session, line, screen)
        session.messages.append({"role": "user", "content": line})
        try:
            said = _answer(session)
        except BaseException:
            session.messages.pop()
            raise
        session.messages.append({"role": "assistant", "content": said})
    except KeyboardInterrupt:
        screen.print("\n[dim](stopped)[/]")
    except WeightsmithError as error:
        screen.print(f"[red]{plain(stated(error))}[/]")
        if told := advice(error):
            screen.print(f"  [red]{plain(told)}[/]")
    return True


def _answer(session: Session) -> str:
    said = []
    for piece in session.pieces(session.messages, session.strength):
        said.append(piece)
        sys.stdout.write(safe(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")
    return "".join(said)


def _command(session: Session, line: str, screen: Any) -> bool:
    name, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    if name in ("quit", "exit", "q"):
        return False
    if name == "strength":
        _strength(session, rest, screen)
    elif name == "compare":
        _compare(session, rest, screen)
    elif name == "reset":
        session.reset()
        screen.print("[dim]forgotten[/]")
    elif name == "save":
        _save(session, rest, screen)
    elif name == "help":
        screen.print(HELP, markup=False)
    else:
        raise UsageError(f"there is no command /{name}", hint="/help lists the commands")
    return True


def _strength(session: Session, text: str, screen: Any) -> None:
    if not session.hooks:
        raise UsageError("there is nothing to turn: start the chat with --direction")
    try:
        value = float(text) if text else session.strength
    except ValueError:
        raise UsageError(f"a strength is a number, not {text!r}") from None
    if not -20 <= value <= 20:
        raise UsageError("a strength beyond ±20 is noise")
    session.strength = value
    screen.print(f"[dim]{plain(session.label)} at strength {value:g}[/]")


def _compare(session: Session, text: str, screen: Any) -> None:
    """Answer the same message with and without the feature, and show both side by side."""
    from rich.table import Table

    if not session.hooks:
        raise UsageError("there is nothing to compare with: start the chat with --direction")
    turns = session.messages
    last = max((i for i, m in enumerate(turns) if m["role"] == "user"), default=None)
    if text:
        messages = [*turns, {"role": "user", "content": text}]
    elif last is not None:
        messages = turns[: last + 1]
    else:
        raise RecipeError("say something first, or /compare MESSAGE")
    asked = messages[-1]["content"]
    base, edited = ("".join(session.pieces(messages, s)) for s in (0.0, session.strength or 1.0))
    table = Table(title=plain(asked), title_justify="left", expand=True, show_lines=False)
    table.add_column("base", ratio=1)
    table.add_column(f"edited, strength {session.strength or 1.0:g}", ratio=1)
    table.add_row(plain(base.strip()), plain(edited.strip()))
    screen.print(table)


def _save(session: Session, text: str, screen: Any) -> None:
    import json

    from ..storage import write_whole

    if not text:
        raise UsageError("name a file: /save talk.json")
    record = {
        "schema": "weightsmith/chat/1", "model": session.model.identity.model_dump(), "edit": session.label,
        "strength": session.strength, "ran": session.model.ran, "temperature": session.settings.temperature,
        "messages": session.messages,
    }  # fmt: skip
    write_whole(Path(text).expanduser(), (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    screen.print(f"[dim]wrote {plain(text)}[/]")
