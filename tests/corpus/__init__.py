"""Hostile, broken and honest model folders, made afresh for each run; what is to be said of each.

A payload only ever creates the file that the environment variable ``WEIGHTSMITH_MARKER`` names. A case that executes
proves it with ``fires``: the real loader, in a process of its own, makes the marker appear.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MARKER = "WEIGHTSMITH_MARKER"


@dataclass(frozen=True)
class Case:
    """One folder.

    ``build`` fills an empty folder. ``verdict`` is what a scan has to say, ``rules`` names rules of which at least one has
    to have found something (nothing is expected of a clean case but that no rule above a note did). ``fires`` is Python
    source for a fresh process in which ``folder`` is the path: it loads the folder with the real, unsafe loader.
    ``see`` is the advisory or source of the trick. ``needs`` names modules without which ``fires`` can't run.
    """

    name: str
    build: Callable[[Path], None]
    verdict: str = "clean"
    rules: tuple[str, ...] = ()
    fires: str = ""
    see: str = ""
    needs: tuple[str, ...] = ()


def all_cases() -> list[Case]:
    """Every case of every area, names unique."""
    found: list[Case] = []
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        found += getattr(importlib.import_module(f"{__name__}.{module}"), "CASES", [])
    names = [c.name for c in found]
    assert len(set(names)) == len(names), sorted(n for n in names if names.count(n) > 1)
    return found


def fired(case: Case, folder: Path, marker: Path) -> tuple[bool, str]:
    """Whether the real loader makes the marker appear, and what that process printed."""
    script = f"import pathlib\nfolder = pathlib.Path({str(folder)!r})\n" + case.fires
    env = {**os.environ, MARKER: str(marker)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120, check=False)
    return marker.exists(), done.stdout + done.stderr


def write_json(path: Path, value: object) -> None:
    """A JSON file."""
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
