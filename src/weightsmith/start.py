"""Where a command begins, before anything heavy is imported.

The SHA-256 of a large file takes longer than all else that a scan does to it, and needs none of the imports: it is begun first.
Nothing is decided here: what was begun for the wrong path is thrown away by the scan.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

_VALUED = ("-o", "--out", "--policy", "--allow", "--reference", "--explain")  # options of `scan` that are followed by a value


#: Objects made before Python looks for cycles among them, in a process of our own: a model library is some million that stay, and
#: at Python's 700 up to a fifth of its import is spent on looking
_COLLECT = (50_000, 20, 50)


#: seconds in which a second Ctrl-C is the same one: a hand that trembles, or two ways by which it comes
TWICE = 0.5
INTERRUPTED = "\ninterrupted; nothing half-written was left behind"
COULD_NOT_TELL = 2


class Once:
    """What hears Ctrl-C: the second of two at once is the first, so that it does not interrupt the cleaning up."""

    def __init__(self) -> None:
        self.last = -TWICE

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self.last > TWICE:
            self.last = now
            signal.default_int_handler(number, frame)


def main() -> None:
    """Run the command line and exit with its code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, Once())
    gc.set_threshold(*_COLLECT)
    try:
        begin_digest(sys.argv[1:])
        if sys.argv[1:2] == ["scan"]:  # nothing is multiplied: threads for it would spin beside those who read
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from .cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:  # while it was still being imported; the command line says it of itself
        sys.stderr.write(INTERRUPTED + "\n")
        sys.exit(COULD_NOT_TELL)
    finally:
        if sys.argv[1:2] == ["scan"]:  # it leaves nothing behind that a last collection would have to end
            gc.freeze()


def begin_digest(argv: Sequence[str]) -> None:
    """Begin the digests of a scan's first model, where it is a path."""
    path = scanned(argv)
    if path and os.path.exists(path):
        from pathlib import Path

        from .trust import ahead

        ahead.begin(Path(path))


def scanned(argv: Sequence[str]) -> str:
    """The first model that a command line wants scanned; nothing where there is none."""
    if argv[:1] != ["scan"] or {"-h", "--help", "--explain"} & set(argv):
        return ""
    before = ""
    for word in argv[1:]:
        if before not in _VALUED and not word.startswith("-"):
            return word
        before = word
    return ""
