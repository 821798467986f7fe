"""The evaluation harness on a loaded model: a task of our own, its log of samples, its manners."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pico
from weightsmith.checkpoint import open_checkpoint
from weightsmith.errors import FormatError, MissingExtra, NetworkError, RecipeError, UsageError
from weightsmith.measure import choice, external, wheels
from weightsmith.runtime import RunningModel, load

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 3.0
"""


def items(kind: str) -> list[choice.Item]:
    """Questions of unequal length, with letters or with continuations."""
    found = []
    for k in range(24):
        texts = (f"rain {k}" + " and more" * (k % 4), f"a warm wind from the sea {k}", "snow" + "!" * (k % 3))
        if kind == "letters":
            block = "".join(f"{letter}. {t}\n" for letter, t in zip("ABC", texts, strict=True))
            found.append(choice.item(f"What comes on day {k}?\n{block}Answer:", ("A", "B", "C"), k % 3, f"{k}", by_length=False))
        else:
            found.append(choice.item(f"Question: day {k}?\nAnswer:", texts, k % 3, f"{k}", by_length=True))
    return found


def write_task(folder: Path, name: str, asked: list[choice.Item]) -> None:
    """The items as a task of the harness."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(
        json.dumps({"prompt": i.prompt, "choices": list(i.choices), "gold": i.gold}) + "\n" for i in asked))  # fmt: skip
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RunningModel:
    return load(open_checkpoint(str(pico.build("llama", tmp_path_factory.mktemp("external") / "m"))), pico.CPU)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's libraries write where the test may."""
    datasets = pytest.importorskip("datasets", reason="lm_eval is not installed")
    if (why := external.available()) is not None:
        pytest.skip(why)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# -- without the harness -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "why"), [
    ("task: x\nprocess_docs: !function utils.f\n", "would run code"),
    ("task: x\nmore: {deep: [1, !function utils.f]}\n", "would run code"),
    ("task: x\nmore: !!python/name:os.system\n", "would run code"),
    ("task: x\n'class': utils.Task\n", "class is code"),
    ("task: x\ninclude: ../other.yaml\n", "includes one"),
    ("task: x\ninclude: [a.yaml, hidden.txt]\n", "includes one"),
    ("task: [x\n", "not valid YAML"),
    ("task: &a [*a]\nbad: *b\n", "not valid YAML"),
])  # fmt: skip
def test_task_files_that_bring_code_are_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.yaml").write_text('doc_to_text: "{{a if a != b else \'!function\'}}"\n')
    (tmp_path / "sub/hidden.txt").write_text("process_docs: !function utils.f\n")
    external.check_folder(tmp_path)
    (tmp_path / "sub/_x_yaml").write_text(text)
    with pytest.raises(RecipeError, match=why):
        external.check_folder(tmp_path)


def test_a_folder_without_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no task file"):
        external.check_folder(tmp_path)


def test_only_values_of_items_are_sets() -> None:
    def sample(k: int, name: str, **metrics: Any) -> dict[str, Any]:
        return {"doc_hash": f"{k:064x}", "filter": name, "metrics": list(metrics), **metrics}

    rows = [sample(k, "none", acc=k % 2, bleu=(1, 2), f1=k / 4, odd=float("nan") if k else 1.0) for k in range(4)]
    found = {s.key: s for s in external.per_item("t", rows)}
    assert set(found) == {"lm-eval.t.acc", "lm-eval.t.f1", "lm-eval.t.odd"}
    assert found["lm-eval.t.acc"].rate
    assert found["lm-eval.t.acc"].values == [0.0, 1.0, 0.0, 1.0]
    assert not found["lm-eval.t.f1"].rate
    assert found["lm-eval.t.odd"].values == [1.0, None, None, None]
    two = external.per_item("t", [sample(k, f, acc=1.0) for f in ("strict", "loose") for k in range(3)])
    assert [s.key for s in two] == ["lm-eval.t.acc.strict", "lm-eval.t.acc.loose"]
    assert len(two[0].ids) == 3
    assert two[0].digest == two[1].digest


def test_without_the_harness_one_line_says_what_to_install(model: RunningModel, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = wheels.Wheel("lm_eval", "no_such_harness", "tasks", "pip install 'weightsmith[lm-eval]'")
    monkeypatch.setattr(external, "HARNESS", nowhere)
    assert "weightsmith[lm-eval]" in (external.available() or "")
    with pytest.raises(MissingExtra, match="not installed"):
        external.run_external(model, ["piqa"])


# -- with it -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_the_harness_agrees_with_our_own_scores(model: RunningModel, tmp_path: Path, capfd: Any) -> None:
    asked = {kind: items(kind) for kind in ("letters", "continuations")}
    for kind, rows in asked.items():
        write_task(tmp_path, f"our_{kind}", rows)
    steps: list[tuple[str, int, int]] = []
    options = dataclasses.replace(pico.CPU, progress=lambda *step: steps.append(step))
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    dice = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]
    told = dataclasses.replace(model, options=options)
    found = external.run_external(told, ["our_letters", "our_continuations"], folder=tmp_path)
    assert random.getstate() == dice[0]
    assert np.array_equal(np.random.get_state()[1], dice[1])  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), dice[2])
    assert steps == [("evaluation harness", 0, 2), ("evaluation harness", 2, 2)]
    assert capfd.readouterr() == ("", "")
    sets = {s.key: s for s in found.sets}
    assert set(sets) == {f"lm-eval.our_{k}.{m}" for k in asked for m in ("acc", "acc_norm")}
    for kind, metric in (("letters", "acc"), ("continuations", "acc_norm")):
        ours = choice.answer(model, asked[kind], "")
        assert [None if r is None else float(r.correct) for r in ours] == sets[f"lm-eval.our_{kind}.{metric}"].values
        assert 0 < sum(r.correct for r in ours if r) < len(ours)
    assert found.versions["our_letters"] == "3.0"
    assert found.versions["lm_eval"]
    assert found.wholes == {}
    few = external.run_external(model, ["our_letters"], 5, folder=tmp_path)
    assert few.sets[0].values == sets["lm-eval.our_letters.acc"].values[:5]


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_what_cannot_be_run_is_one_clear_error(model: RunningModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no task 'nothing_such'"):
        external.run_external(model, ["nothing_such"])
    offline = dataclasses.replace(model, options=dataclasses.replace(model.options, offline=True))
    with pytest.raises(NetworkError, match="not on this machine") as caught:
        external.run_external(offline, ["piqa"])
    assert "once where the hub can be reached" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="0 documents"):
        external.run_external(model, ["piqa"], 0)
    # a template is a program: it runs in a sandbox
    write_task(tmp_path, "nosy", items("letters"))
    task = tmp_path / "nosy.yaml"
    task.write_text(task.read_text().replace("{{prompt}}", "{{prompt.__class__.__mro__}}"))
    with pytest.raises(FormatError, match="unsafe"):
        external.run_external(model, ["nosy"], folder=tmp_path)
    assert "nosy" not in sys.modules
