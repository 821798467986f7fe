"""The command line as the tests see it: one call, its exit code, its words, and whatever it left on disk."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from weightsmith.cli.main import run
from weightsmith.storage import cache_dir

#: read at the last token of the prompt, so that nothing has to be generated
FEATURE = """\
schema: weightsmith/feature/1
name: tiny
description: A small one.
licence: CC0-1.0
contrast: {kind: personas, shows: you are sad, lacks: you are glad}
prompts: {shipped: everyday}
split: {extract: 4, select: 2, report: 2}
site: last_template_token
scorers:
  - {kind: phrases, phrases: [alas]}
  - {kind: probe}
"""


@dataclass(frozen=True)
class World:
    """A small model, a direction found on it, the model edited with it, a feature file and a GGUF file."""

    folder: Path
    model: Path
    direction: Path
    edited: Path
    feature: Path
    gguf: Path

    def copy(self, target: Path, what: str = "model") -> Path:
        """A model folder of one's own to damage."""
        shutil.copytree(getattr(self, what), target)
        return target


def repository(names: list[str]) -> SimpleNamespace:
    """What the hub says of a repository that holds files of these names."""
    return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])


def make_world(folder: Path) -> World:
    """Build it."""
    import pico
    from test_gguf_convert import tiny

    world = World(folder, *(folder / n for n in ("model", "tiny.safetensors", "edited")), feature_file(folder),
                  folder / "tiny.gguf")  # fmt: skip
    pico.build("llama", world.model)
    pico.a_direction(world.model, feature="tiny").save(world.direction)
    done = cli("edit", world.model, world.direction, "--remove", "1", "-o", world.edited)
    assert done.code == 0, done.err
    tiny(world.gguf, "llama", "output")
    return world


@dataclass(frozen=True)
class Outcome:
    """What one command came to."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """Both streams, white space made plain."""
        return " ".join((self.out + " " + self.err).split())


def cli(*argv: object) -> Outcome:
    """Run one command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(a) for a in argv])
    return Outcome(code, out.getvalue(), err.getvalue())


def tree(folder: Path) -> dict[str, str]:
    """Everything under ``folder``, files by digest: equal trees are equal byte for byte."""
    found: dict[str, str] = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root, name)
            kind = "link" if path.is_symlink() else "other"
            if path.is_file() and not path.is_symlink():
                kind = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(folder))] = kind
    return found


def partials(folder: Path) -> list[str]:
    """Half-written things anywhere under ``folder``."""
    return [n for n in tree(folder) if ".partial" in n] if folder.is_dir() else []


def refused(folder: Path, *argv: object, code: int | tuple[int, ...] = 2, says: tuple[str, ...] = ()) -> Outcome:
    """Run a command that has to fail: one clear error, the right exit code, nothing left in ``folder`` or the cache."""
    before = tree(folder)
    done = cli(*argv)
    told = f"exit {done.code}\n{done.out}\n{done.err}"
    assert done.code in (code if isinstance(code, tuple) else (code,)), told
    assert_one_error(done.err)
    # what a measurement is going to ask is said before it runs
    assert done.out == "" or "--json" in argv or (argv[0] == "measure" and done.out.startswith("suite ")), told
    for text in says:
        assert text.lower() in done.words.lower(), f"{text!r} is not said:\n{told}"
    assert tree(folder) == before, f"left behind: {set(tree(folder)) ^ set(before)}"
    assert not partials(cache_dir())
    return done


def unshielded(err: str) -> str:
    """Standard error without the lines that say what was checked."""
    return "".join(x for x in err.splitlines(keepends=True) if not x.startswith(("shield: ", "🛡 ", "sandbox: ")))


def assert_one_error(err: str) -> None:
    """One error with at most a line of what to do; no traceback, no warning of a library."""
    assert "Traceback" not in err, err
    assert "this is a bug" not in err.lower(), err
    lines = [line for line in unshielded(err).strip().splitlines() if line]
    heads = [line for line in lines if re.match(r"(error\[[a-z-]+\]: |Error: )", line)]
    assert len(heads) == 1, err
    usage = heads[0].startswith("Error: ")
    assert len(lines) <= (4 if usage else 2), err
    assert usage or lines[0] == heads[0], err


def bug_free(*argv: object) -> Outcome:
    """Run a command on hostile input: it may succeed or fail, but never as a bug of ours."""
    done = cli(*argv)
    assert done.code in (0, 1, 2), f"exit {done.code}\n{done.err}"
    if done.code:
        assert_one_error(done.err)
    return done


def flip(file: Path, byte: int, bit: int = 0) -> None:
    """Turn one bit over."""
    with file.open("r+b") as out:
        out.seek(byte)
        old = out.read(1)[0]
        out.seek(byte)
        out.write(bytes([old ^ (1 << bit)]))


def edit_json(file: Path, change: Callable[[Any], Any]) -> None:
    """Rewrite a JSON file by ``change``, which returns the new value or alters the old one in place."""
    value = json.loads(file.read_text())
    changed = change(value)
    file.write_text(json.dumps(value if changed is None else changed))


def feature_file(folder: Path, text: str = FEATURE, **changes: str) -> Path:
    """A feature file; ``changes`` replace whole lines, given by how they begin."""
    lines = text.splitlines()
    for key, line in changes.items():
        hits = [i for i, old in enumerate(lines) if old.startswith(key)]
        assert hits, key
        lines[hits[0]] = line
    path = folder / "feature.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def python(script: str, *argv: object, **environment: str) -> subprocess.Popen[str]:
    """A real process that runs ``script`` with the arguments, in a session of its own."""
    known = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen([sys.executable, "-c", script, *map(str, argv)], env=known, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
