"""Entry point: registers the verbs and turns every outcome into an exit code.

0 good · 1 a bad verdict · 2 usage, or could not tell · 70 a bug of ours (only then a traceback is shown).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import typer

from .. import __version__
from ..errors import OutOfMemory, ResourceError, UsageError, WeightsmithError
from ..start import COULD_NOT_TELL, INTERRUPTED
from . import (
    chat,
    claims,
    compare,
    convert,
    derive,
    edit,
    export,
    find,
    measure,
    pin,
    sandboxed,
    scan,
    search,
    show,
    verify,
)

BUG = 70
ABORTED = 130  # what newer versions of typer make of Ctrl-C; no command returns it

app = typer.Typer(
    name="weightsmith",
    help="Check, understand, edit, measure and rebuild open-weight language models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"weightsmith {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Check, understand, edit, measure and rebuild open-weight language models."""


app.command("show")(show.command)
app.command("scan")(scan.command)
app.command("pin")(pin.command)
app.command("verify")(verify.command)
app.command("convert")(convert.command)
app.command("find")(find.command)
app.command("edit")(edit.command)
app.command("export")(export.command)
app.command("search")(search.command)
app.command("measure")(measure.command)
app.command("compare")(compare.command)
app.command("claims")(claims.command)
app.command("diff")(derive.diff)
app.command("rebuild")(derive.rebuild)
app.command("undo")(derive.undo)
app.command("chat")(chat.command)


_NAMED = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


class Terminated(BaseException):
    """SIGTERM: unwinds like Ctrl-C, so that half-written outputs are removed."""


def _terminate(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: a second one would stop the cleaning up
    raise Terminated


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # `nohup` ignores SIGHUP: leave it so
            signal.signal(number, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal, or a file name of stray bytes
    sandboxed.own_process()
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """Run one command and return its exit code."""
    kept = measure.KEPT if argv[:1] == ["measure"] and "--no-cache" not in argv else ""
    kept = search.KEPT if argv[:1] == ["search"] else kept
    return run_guarded(lambda: _invoke(argv), as_json="--json" in argv, kept=kept)


def run_guarded(job: Callable[[], int], *, as_json: bool = False, kept: str = "") -> int:
    """Run ``job`` and turn whatever it raises into one clear message and an exit code; ``kept`` is told of an interrupt."""
    try:
        code = job()
        sys.stdout.flush()
        return code
    except WeightsmithError as error:
        return _complain(error, as_json)
    except (KeyboardInterrupt, Terminated):
        sys.stderr.write(f"{INTERRUPTED}{kept}\n")
        return COULD_NOT_TELL
    except MemoryError:
        return _complain(OutOfMemory("not enough memory", hint="try a smaller --batch or --dtype bfloat16"), as_json)
    except BrokenPipeError:
        _drop_output()  # the reader of our output went away: nobody is left to tell
        return 0
    except OSError as error:
        kind = UsageError if isinstance(error, _NAMED) else ResourceError  # of the path that was given, or of the machine
        code = _complain(kind(error.strerror or str(error), where=error.filename,
                              hint="check that it is there, and who may read and write it"), as_json)  # fmt: skip
        try:
            sys.stdout.flush()
        except OSError:  # it is the output that can't be written, and Python would try once more at its end
            _drop_output()
        return code
    except Exception:  # noqa: BLE001 - the one place where anything unforeseen becomes exit code 70
        import traceback

        traceback.print_exc()
        sys.stderr.write(f"\nThis is a bug in weightsmith {__version__}, not in your input. Please report the lines above.\n")
        return BUG


def _drop_output() -> None:
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


#: typer's own base of usage errors: newer versions carry their own copy of click, older ones use the package
_USAGE: type[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def _invoke(argv: list[str]) -> int:
    try:
        result: Any = typer.main.get_command(app).main(argv, prog_name="weightsmith", standalone_mode=False)
    except _USAGE as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stdout.write(error.format_message() + "\n")
        else:
            error.show()
            if told := _swallowed(argv, getattr(error, "ctx", None)):
                sys.stderr.write(f"  {told}\n")
            if "--json" in argv:
                _print_record(UsageError(error.format_message(), hint=told or None))
        return COULD_NOT_TELL
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except SystemExit as error:  # what click makes of a reader that went away, with exit code 1
        if isinstance(error.__context__, BrokenPipeError):
            raise error.__context__ from None
        raise
    if result == ABORTED:
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _swallowed(argv: list[str], context: Any) -> str:
    """What to say where an option stood without its value and took the next option for it; empty where none did."""
    options = [o for p in (context.command.params if context else ()) if p.param_type_name == "option" for o in p.opts]
    taking = {o for p in (context.command.params if context else ()) if p.param_type_name == "option" and not p.is_flag
              for o in p.opts}  # fmt: skip
    pair = next(((a, b) for a, b in itertools.pairwise(argv) if a in taking and b in options), None)
    return f"{pair[0]} takes a value, and was given {pair[1]!r} for it" if pair else ""


def _complain(error: WeightsmithError, as_json: bool) -> int:
    from .common import safe

    if as_json:
        _print_record(error)
    lines = safe(str(error)).split("\n")
    sys.stderr.write(f"error[{error.code}]: {lines[0]}\n" + "".join(f"{line}\n" for line in lines[1:]))
    return error.exit_code


def _print_record(error: WeightsmithError) -> None:
    import json

    with contextlib.suppress(OSError):  # the output that can't be written may be what the error is about
        sys.stdout.write(json.dumps(error.as_record()) + "\n")


__all__ = ["app", "main", "run"]

if __name__ == "__main__":
    main()
