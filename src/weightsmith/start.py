"""Where a command begins, before anything heavy is imported.

The SHA-256 of a large file takes longer than all else that a scan does to it, and needs none of the imports: it is begun first.
Nothing is decided here: what was begun for the wrong path is thrown away by the scan.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

_VALUED = ("-o", "--out", "--policy", "--allow", "--reference", "--explain")  # options of `scan` that are followed by a value


#: Objects made before Python looks for cycles among them, in a process of our own: a model library is some million that stay, and
#: at Python's 700 up to a fifth of its import is spent on looking
_COLLECT = (50_000, 20, 50)


def main() -> None:
    """Run the command line and exit with its code."""
    gc.set_threshold(*_COLLECT)
    begin_digest(sys.argv[1:])
    if sys.argv[1:2] == ["scan"]:  # nothing is multiplied: threads for it would spin beside those who read
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from .cli.main import main as command_line

    try:
        command_line()
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
