"""What the verbs share: run options, consoles, progress, and text from models made safe for a terminal."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from . import sandboxed

if TYPE_CHECKING:
    from rich.console import Console

    from ..options import RunOptions

Model = Annotated[
    str, typer.Argument(help="A folder, a GGUF file, org/name@revision, or demo:smollm2.", metavar="MODEL")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables.")]
Out = Annotated[str, typer.Option("-o", "--out", help="Where to write; must not exist.", metavar="PATH")]

_RUN: dict[str, Any] = {
    "offline": Annotated[bool, typer.Option("--offline", help="Never use the network.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")],
}
_MODEL_RUN: dict[str, Any] = {
    "device": Annotated[str | None, typer.Option(
        help="cpu, cuda, cuda:1, mps; the fastest there is by default. Several spread the model over them: cuda:0,cuda:1.")],
    "dtype": Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; chosen for the device by default.")
    ],
    "threads": Annotated[int | None, typer.Option(help="CPU threads.", min=1)],
    "batch": Annotated[int, typer.Option(help="Prompts in one batch, at most.", min=1)],
    "cache": Annotated[bool, typer.Option("--cache/--no-cache", help="Reuse activations of earlier runs.")],
    "ignore_remote_code": Annotated[
        bool,
        typer.Option("--ignore-remote-code", help="Load a model that asks for its own code with the built-in class."),
    ],
    "dequantize": Annotated[bool, typer.Option("--dequantize", help="Work on a quantised model as bf16.")],
    "sandbox": Annotated[
        bool, typer.Option("--sandbox/--no-sandbox", help="Run the model where it can't reach files, network or programs.")
    ],
}
_GATE: dict[str, Any] = {
    "allow": Annotated[
        list[str] | None, typer.Option(help="Consent to a scan's verdict: `suspicious`, the only one there can be consent to.")
    ],
    "policy": Annotated[str | None, typer.Option(help="A YAML file: which of the scan's rules fail.", metavar="FILE")],
    "lock": Annotated[str | None, typer.Option(help="Pins; weightsmith.lock here or above by default.", metavar="FILE")],
    "frozen": Annotated[bool, typer.Option("--frozen", help="Refuse what is not pinned; check every byte again.")],
}
_DEFAULTS = {"offline": False, "quiet": False, "device": None, "dtype": None, "threads": None, "batch": 32,
             "cache": True, "ignore_remote_code": False, "dequantize": False, "allow": None, "policy": None, "lock": None,
             "frozen": False, "sandbox": True}  # fmt: skip


def with_run_options(*, model: bool, gate: bool = False, still: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the shared options; it receives them as one ``run`` (a :class:`RunOptions`).

    ``gate`` is whether the model goes through the scan and the pins; by default it does where it runs. ``still`` bars move
    only when they are told something: they need no thread, so the process can fork.
    """
    shared = {**_RUN, **(_MODEL_RUN if model else {}), **(_GATE if model or gate else {})}

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(function, eval_str=True)
        kept = [p for n, p in own.parameters.items() if n != "run"]
        extra = [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[n], annotation=a)
            for n, a in shared.items()
        ]

        @functools.wraps(function)
        def command(*args: Any, **kwargs: Any) -> Any:
            given: dict[str, Any] = {n: kwargs.pop(n, d) if n in shared else d for n, d in _DEFAULTS.items()}
            entered = sandboxed.enter(function.__module__, given, kwargs, lambda tell: _options(given, tell))
            if entered.code is not None:
                return entered.code
            given["offline"] = given["offline"] or entered.offline
            with progress(quiet=given["quiet"], still=still) as tell:
                return function(*args, run=_options(given, tell), **kwargs)

        command.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in kept] + extra
        )
        command.__annotations__ = {p.name: p.annotation for p in (*kept, *extra)}
        return command

    return wrap


def _options(given: dict[str, Any], tell: Callable[[str, int, int], None]) -> RunOptions:
    from ..options import RunOptions

    return RunOptions(
        device=given["device"], dtype=given["dtype"], threads=given["threads"], batch_size=given["batch"],
        offline=given["offline"], use_cache=given["cache"], ignore_remote_code=given["ignore_remote_code"],
        dequantize=given["dequantize"], progress=tell, allow=consent(given["allow"]), policy=given["policy"],
        lock=given["lock"], frozen=given["frozen"], tell=None if given["quiet"] else say,
    )  # fmt: skip


def consent(given: list[str] | None) -> tuple[str, ...]:
    """Verdicts that the user consents to.

    Raises:
        UsageError: one that nobody can consent to.
    """
    if odd := [a for a in given or () if a != "suspicious"]:
        raise UsageError(f"there is no consent to {odd[0]!r}", hint="--allow suspicious, or a policy that names the rule")
    return tuple(given or ())


def say(line: str) -> None:
    """One line about what was checked, on standard error."""
    shield = "🛡 " if "utf" in (sys.stderr.encoding or "").lower() else "shield: "
    sys.stderr.write(shield + safe(line) + "\n")


@contextlib.contextmanager
def progress(
    *, quiet: bool = False, log: Callable[[str, float], None] | None = None, still: bool = False
) -> Iterator[Any]:
    """A bar on standard error for the step that runs; ``log`` is told each finished step and its seconds."""
    if quiet:
        yield lambda step, done, total: None
        return
    if not sys.stderr.isatty() and log is None:
        yield Lines().tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bars = Progress(TextColumn("{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn(),
                    console=Console(stderr=True), transient=True, auto_refresh=not still)  # fmt: skip
    tasks: dict[str, Any] = {}
    started: dict[str, float] = {}
    drawn = 0.0

    one_at_a_time = threading.Lock()  # files are digested by several threads

    def tell(step: str, done: int, total: int) -> None:
        with one_at_a_time:
            told(step, done, total)

    def told(step: str, done: int, total: int) -> None:
        if total > 1 << 20:
            done, total = done >> 20, total >> 20
        if step not in tasks:
            if done >= total:  # told of the end once more
                return
            tasks[step] = bars.add_task(safe(step), total=total)
            started[step] = time.perf_counter()
        nonlocal drawn
        now = time.perf_counter()
        draw = still and now - drawn > 0.1
        drawn = now if draw else drawn
        bars.update(tasks[step], completed=done, total=total, refresh=draw)
        if done >= total:
            bars.remove_task(tasks.pop(step))
            if not tasks:
                bars.refresh()
            if log is not None:
                log(step, time.perf_counter() - started.pop(step))

    with bars:
        yield tell


class Lines:
    """Progress where there is no terminal: a line now and then of a step that takes long, and nothing of a short one."""

    FIRST, EVERY = 10.0, 60.0  # seconds

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.due: dict[str, float] = {}
        self.one_at_a_time = threading.Lock()

    def tell(self, step: str, done: int, total: int) -> None:
        """Hear of a step's progress."""
        with self.one_at_a_time:
            now = self.clock()
            due = self.due.setdefault(step, now + self.FIRST)
            if done >= total:
                self.due.pop(step)
            elif now >= due:
                self.due[step] = now + self.EVERY
                sys.stderr.write(f"{safe(step)}: {done / total:.0%}\n")
                sys.stderr.flush()


def console() -> Console:
    """Standard output; width 100 when it is not a terminal, so that tables don't wrap by accident."""
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=100)


def print_json(value: Any) -> None:
    """One JSON document on standard output, in which what a terminal would act on is written as JSON's own escapes."""
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    sys.stdout.write(_ACTED_ON.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")


#: control and direction-changing characters, and the stray bytes of file names
_ACTED_ON = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def safe(text: str) -> str:
    """Text that came with a model, for a terminal: control and direction-changing characters become visible escapes."""
    odd = {c for c in text if (ord(c) < 32 and c not in "\n\t") or _ACTED_ON.match(c)}
    return "".join(f"\\x{ord(c):02x}" if c in odd else c for c in text)


def plain(text: str) -> str:
    """:func:`safe`, with Rich's markup switched off as well."""
    from rich.markup import escape

    return escape(safe(text))


def parse_layers(text: str | None) -> list[int] | None:
    """``"3"``, ``"10-20"`` or ``"3,7,10-12"`` as a list of layers.

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        span = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip(), re.ASCII)
        first, last = (int(span[1]), int(span[2] or span[1])) if span else (1, 0)
        if first > last:
            raise UsageError(f"can't read the layers {text!r}", hint="for example 14, 10-20 or 3,7,10-12")
        found += range(first, last + 1)
    return sorted(set(found))


def spans(layers: list[int]) -> str:
    """Layers for people: ``3, 7–12``."""
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in parts)


def several(n: int, what: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def gigabytes(n: int) -> str:
    """Bytes for people, in decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n} B"
