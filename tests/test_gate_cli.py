"""The gate from end to end: pins, the scan and the sandbox together, in commands as they are typed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pico
from clirun import make_world
from weightsmith.storage import cache_dir


def command(folder: Path, *words: Any) -> tuple[int, str]:
    """Exit code and standard error of a command that runs in ``folder``."""
    argv = [sys.executable, "-m", "weightsmith", *map(str, words)]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small feature and a pinned model ``m``."""
    folder = tmp_path_factory.mktemp("gate")
    world = make_world(folder)
    (folder / "tiny.yaml").write_text(Path(world.feature).read_text())
    pico.build("llama", folder / "m")
    assert command(folder, "pin", "m")[0] == 0
    return folder


def test_a_pinned_model_runs_from_a_private_copy_in_the_sandbox(place: Path) -> None:
    for more in ((), ("--frozen",), ("--no-sandbox",)):
        code, said = command(place, "find", "m", "tiny.yaml", "-o", f"d{len(more)}{more}", "--no-choose", *more)
        assert code == 0, said
        assert "as pinned, used from a private copy" in said
    assert not list((cache_dir() / "used").iterdir())


def test_what_is_not_as_pinned_is_not_used(place: Path) -> None:
    config = place / "m/config.json"
    text = config.read_text()
    config.write_text(text.replace("0.02", "0.03"))
    for words in (("find", "m", "tiny.yaml", "-o", "no", "--no-choose"), ("chat", "m"),
                  ("measure", "m", "--against", "m", "--feature", "tiny.yaml", "--tokens", "2", "-o", "no.json")):  # fmt: skip
        code, said = command(place, *words)
        assert code == 1, said
        assert "'config.json' is not the file that was pinned" in said
    config.write_text(text)
    assert not (place / "no").exists()
    assert not (place / "no.json").exists()


def test_frozen_uses_only_what_is_pinned(place: Path) -> None:
    pico.build("qwen2", place / "other")
    code, said = command(place, "find", "other", "tiny.yaml", "-o", "no", "--no-choose", "--frozen")
    assert code == 1, said
    assert "not-pinned" in said
