"""Searches on pico models: recipes of every contrast with prompts of their own, and a whole run in a few seconds."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pico
from clirun import partials
from weightsmith.features.recipe import FEATURE
from weightsmith.jobs.edit import find_directions, load_edit
from weightsmith.jobs.search import load_search, search
from weightsmith.options import RunOptions
from weightsmith.searched import SearchRecord

DEPTH = 4
N = {"extract": 8, "select": 6, "report": 6}
CONTRASTS = ("personas", "prompt_sets", "pairs", "texts")
#: so little that a run takes a second or two
SMALL: dict[str, Any] = {"prompts": 8, "held": 6, "tokens": 4, "steps": 3, "weights": (0.5,), "confirm": 2, "confirm_n": 4,
                         "confirm_tokens": 4, "rounds": 1}  # fmt: skip
CLI = ("--prompts", 8, "--held", 6, "--tokens", 4, "--steps", 3, "--weights", "0.5", "--rounds", 1, "--confirm-n", 4,
       "--confirm-tokens", 4, "--device", "cpu", "--dtype", "float32", "--threads", 1)  # fmt: skip


def build(folder: Path) -> Path:
    """A model of four layers whose biases hold constants exactly."""
    return pico.build("llama_bias", folder, num_hidden_layers=DEPTH)


def make_world(folder: Path) -> Path:
    """``model`` and one recipe of each contrast in ``folder``."""
    build(folder / "model")
    for contrast in CONTRASTS:
        recipe(folder / contrast, contrast).rename(folder / f"{contrast}.yaml")
    return folder


@pytest.fixture(scope="module", autouse=True)
def short_texts() -> Iterator[None]:
    """Perplexity is read elsewhere: here it would take half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        damage = importlib.import_module("weightsmith.measure.damage")
        patch.setattr(damage, "perplexity_texts", lambda: words(8, 3))
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in it, and recipes."""
    return make_world(tmp_path_factory.mktemp("world"))


def words(n: int, seed: int, ending: str = "") -> list[str]:
    """``n`` prompts that are not near each other."""
    dice = random.Random(seed)
    return ["".join(dice.choices("abcdefghijklmnopqrstuvwxyz ", k=14)).strip() + ending for _ in range(n)]


def recipe(folder: Path, contrast: str = "personas", **changes: Any) -> Path:
    """A recipe (JSON is YAML) whose two sides a random model tells apart by their last characters."""
    n = sum(N.values())
    data: dict[str, Any] = {
        "schema": FEATURE, "name": contrast.replace("_", "-"), "description": "A small one.", "licence": "CC0-1.0",
        "contrast": {"kind": contrast}, "split": N, "site": "last_template_token",
        "prompts": {"shows": {"list": words(n, 1, " now!!!")}, "lacks": {"list": words(n, 2, " then?")}},
        "scorers": [{"kind": "continuations", "shows": ["alas", "oh no"], "lacks": ["hooray", "yes"]},
                    {"kind": "phrases", "phrases": ["a", "e", "i", "o"]}],
    }  # fmt: skip
    if contrast == "personas":
        data["contrast"] |= {"shows": "you are sad", "lacks": "you are glad!"}
        data["prompts"] = {"list": words(n, 1)}
    if contrast == "texts":
        data |= {"site": "text_mean", "scorers": [],
                 "prompts": {s: {"list": [w.upper() if s == "shows" else w for w in words(n, k)]}
                             for k, s in enumerate(("shows", "lacks"))}}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{contrast}-{len(list(folder.iterdir()))}.yaml"
    path.write_text(json.dumps(data | changes), encoding="utf-8")
    return path


def sought(model: Path, feature: Path | str, out: Path, *, options: RunOptions = pico.CPU, **wishes: Any) -> SearchRecord:
    """A small search."""
    return search(model, str(feature), out, options=options, **{**SMALL, **wishes})


def whole(out: Path) -> None:
    """Every file of a stopped run can be read, and every point has its Edit."""
    assert not partials(out)
    for p in load_search(out).points:
        spec = load_edit(out / p.edit)
        assert find_directions(spec, out / "edits", [])
    json.loads((out / "state.json").read_text())


def seeded(seed: int) -> RunOptions:
    """Run options with another seed."""
    return replace(pico.CPU, seed=seed)


def spoiled(real: Callable[..., Any], when: set[int], error: BaseException | None = None) -> tuple[Callable[..., Any], list[int]]:
    """``real`` with NaN in place of its loss (or with ``error``) at the calls ``when``, counted from 1; and the count."""
    count = [0]

    def call(*args: Any, **more: Any) -> Any:
        count[0] += 1
        if count[0] in when and error is not None:
            raise error
        found = real(*args, **more)
        return (float("nan"), [s * float("nan") for s in found[1]]) if count[0] in when else found

    return call, count
