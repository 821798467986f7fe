"""A whole search on pico models: its folder, its page, what it reads, how it stops and goes on, and bad input."""

from __future__ import annotations

import html
import importlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pico
import searching
from clirun import partials, tree
from weightsmith import jobs
from weightsmith.checkpoint import open_checkpoint
from weightsmith.errors import OutputBusy, OutputExists, UsageError
from weightsmith.features.prompts import PARTS, prompt_sets
from weightsmith.features.recipe import load_feature
from weightsmith.features.select import compile_hooks
from weightsmith.formats.gguf_export import export_gguf
from weightsmith.jobs.edit import find_directions, load_edit
from weightsmith.jobs.measure import Session
from weightsmith.jobs.search import Listener, load_confirmed, load_search
from weightsmith.jobs.search_target import main_score
from weightsmith.report import search_view
from weightsmith.runtime import RunningModel, load, steering
from weightsmith.search import fluent
from weightsmith.search.ledger import Ledger
from weightsmith.searched import SEARCH, Point

confirming = importlib.import_module("weightsmith.jobs.search_confirm")
BOTH = [(c, k) for c in searching.CONTRASTS for k in ("remove", "add")]
Runs = Callable[[str, str], Path]
short_texts, world = searching.short_texts, searching.world


@pytest.fixture(scope="module")
def runs(world: Path) -> Runs:
    """Runs that are made once."""

    def run(contrast: str, kind: str) -> Path:
        out = world / "runs" / f"{contrast}-{kind}"
        if not out.exists():
            searching.sought(world / "model", world / f"{contrast}.yaml", out, kind=kind)
        return out

    return run


# -- a run and its folder ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("contrast", "kind"), BOTH)
def test_a_run_leaves_all_of_its_files(runs: Runs, contrast: str, kind: str) -> None:
    out = runs(contrast, kind)
    record = load_search(out)
    assert json.loads((out / "search.json").read_text())["schema"] == SEARCH
    assert record.finished
    assert (record.kind, record.feature) == (kind, contrast.replace("_", "-"))
    assert record.separation is not None
    assert record.separation[0] > 0.8
    assert {p.stage for p in record.points} == {"closed form", "gradient"}
    assert [g.stage for g in record.gains] == ["closed forms", "descents"]
    assert record.gains[0].hypervolume <= record.gains[1].hypervolume + 1e-12
    assert [(t.run, t.step) for t in record.ticks] == [(0, 1), (0, 2), (0, 3)]
    names = [p.name for p in record.points]
    assert len(names) == len(set(names))
    confirmed = {f"confirmed/{p.name}.json" for p in record.points if p.record}
    assert len(confirmed) == min(2, len(record.front))
    for name in confirmed:  # no texts are read for what no page shows
        kept = json.loads((out / name).read_text())
        keys = {x["key"] for x in kept["differences"] + kept["damage"]}
        assert "kl.mean" in keys
        assert not keys & {"perplexity", "bpb"}
    found = {n for n in tree(out) if "direction-" not in n}
    assert found == {"search.json", "state.json", "report.html", "edits", "confirmed", *confirmed,
                     *(f"edits/{n}.yaml" for n in names)}  # fmt: skip
    assert not partials(out)


@pytest.mark.parametrize(("contrast", "kind"), BOTH)
def test_the_front_the_knee_and_what_was_confirmed(runs: Runs, contrast: str, kind: str) -> None:
    out = runs(contrast, kind)
    record = load_search(out)
    (knee,) = [p for p in record.points if p.knee]
    assert knee.front
    assert record.knee == record.chosen == knee.name

    def worth(p: Point) -> tuple[float, float]:
        effect = p.effect if p.chance is None else p.chance * (1 if kind == "add" else -1)
        return effect, -p.damage

    for p in record.points:
        beaten = any(q is not p and all(a >= b for a, b in zip(worth(q), worth(p), strict=True)) for q in record.points)
        assert beaten != p.front, p.name
        assert p.effect_low <= p.effect <= p.effect_high
        assert p.damage_low <= p.damage <= p.damage_high
        assert (p.chance is None) == (contrast != "prompt_sets")
    measured = load_confirmed(out, record)
    assert set(measured) == {p.name for p in record.points if p.confirmed}
    assert knee.name in measured
    spec, _ = load_feature(str(out.parent.parent / f"{contrast}.yaml"))
    key = main_score(spec, kind)[0]
    for name, whole in measured.items():
        point = next(p for p in record.points if p.name == name)
        differences = {d.key: d for d in whole.differences}
        if contrast != "texts":
            assert point.confirmed[0].key == key
        for c in point.confirmed:
            if c.key in differences:
                d = differences[c.key]
                assert (c.base, c.value, c.change, c.n) == (d.base.value, d.edited.value, d.value, d.n)
            else:
                assert c.value == next(m.value for m in whole.damage if m.key == c.key) > 0
        assert any(c.key == "kl.mean" for c in point.confirmed)
    if contrast == "texts":
        assert any("labelled texts are not prompts" in n for n in record.notes)


@pytest.mark.parametrize(("contrast", "kind"), [("prompt_sets", "remove"), ("personas", "add"), ("pairs", "remove")])
def test_every_point_of_the_front_becomes_new_weights(world: Path, runs: Runs, tmp_path: Path, contrast: str, kind: str) -> None:
    """And the new weights do what the hooks do that were judged."""
    out, base = runs(contrast, kind), load(open_checkpoint(str(world / "model")), pico.CPU)
    ids = torch.tensor([base.encode([{"role": "user", "content": "the sea at night"}])])
    with torch.no_grad():
        plain = base.model(ids).logits[0]
    for p in load_search(out).front:
        derivation = jobs.edit(world / "model", out / p.edit, tmp_path / p.name, options=pico.CPU)
        assert derivation.edit.name.endswith(p.name)
        edited = load(open_checkpoint(str(tmp_path / p.name)), pico.CPU)
        spec = load_edit(out / p.edit)
        with torch.no_grad():
            weights = edited.model(ids).logits[0]
            with steering(base, compile_hooks(base, spec, find_directions(spec, out / "edits", []))):
                hooks = base.model(ids).logits[0]
        moved = float((hooks - plain).abs().max())
        assert moved > 1e-3, p.name
        assert float((weights - hooks).abs().max()) < 0.02 * moved, p.name


def test_a_search_of_rank_2_ends_in_edits_of_two_steps(world: Path, tmp_path: Path) -> None:
    """Which are new weights that do what the hooks do; it goes on where it was stopped, and with no other rank."""
    out, feature = tmp_path / "run", world / "prompt_sets.yaml"
    record = searching.sought(world / "model", feature, out, rank=2, confirm=0, steps=6)
    turned = [p for p in record.points if p.stage == "gradient"]
    specs = {p.name: load_edit(out / p.edit) for p in turned}
    assert {len(s.steps) for s in specs.values()} == {2}
    assert all(any(role.endswith(" (2)") for role in p.strengths) for p in turned)
    base = load(open_checkpoint(str(world / "model")), pico.CPU)
    ids = torch.tensor([base.encode([{"role": "user", "content": "the sea at night"}])])
    with torch.no_grad():
        plain = base.model(ids).logits[0]
    name, spec = next(iter(specs.items()))
    jobs.edit(world / "model", out / "edits" / f"{name}.yaml", tmp_path / "new", options=pico.CPU)
    edited = load(open_checkpoint(str(tmp_path / "new")), pico.CPU)
    found = find_directions(spec, out / "edits", [])
    one, two = (found[s.direction] for s in spec.steps)
    for layer in one.meta.layers:
        assert abs(float(one.unit(layer) @ two.unit(layer))) < 1e-5
    with torch.no_grad():
        weights = edited.model(ids).logits[0]
        with steering(base, compile_hooks(base, spec, found)):
            hooks = base.model(ids).logits[0]
    assert float((weights - hooks).abs().max()) < 0.02 * float((hooks - plain).abs().max())
    again = searching.sought(world / "model", feature, out, rank=2, confirm=0, steps=6, resume=True)
    assert [p.strengths for p in again.points] == [p.strengths for p in record.points]
    with pytest.raises(UsageError, match="holds another search"):
        searching.sought(world / "model", feature, out, rank=1, confirm=0, steps=6, resume=True)


def printed(text: str) -> list[tuple[float, float]]:
    """Numbers of a page, with half of their last digit."""
    found = re.findall(r"[−+-]?\d+(?:\.\d+)?", text)
    return [(float(n.replace("−", "-")), 0.51 * 10.0 ** -len(n.partition(".")[2])) for n in found]


@pytest.mark.parametrize(("contrast", "kind"), [("prompt_sets", "remove"), ("personas", "add")])
def test_the_page_has_the_figures_of_the_record(runs: Runs, contrast: str, kind: str) -> None:
    out = runs(contrast, kind)
    record, page = load_search(out), (out / "report.html").read_text()
    table = page[page.index('<table class="data restack fronts">') :]
    rows = table[: table.index("</table>")].split("<tr>")[2:]
    assert len(rows) == len(record.front)
    for row, p in zip(rows, record.front, strict=True):
        cells = re.findall(r"<(?:td|th)[^>]*>(.*?)</(?:td|th)>", row, re.S)
        told = [" ".join(html.unescape(re.sub("<[^>]+>", " ", c)).split()) for c in cells]
        assert p.name in told[0]
        assert p.what in told[0]
        assert ("knee" in told[0].split()) == p.knee
        wanted = [(p.effect, p.effect_low, p.effect_high), (p.damage, p.damage_low, p.damage_high)]
        where = [1, 3 if p.chance is not None else 2]
        for cell, figures in zip((told[w] for w in where), wanted, strict=True):
            for (number, near), figure in zip(printed(cell), figures, strict=False):
                assert number == pytest.approx(figure, abs=near), cell
            assert len(printed(cell)) >= 3
        if p.chance is not None:
            ((number, near),) = printed(told[2])[:1]
            assert number == pytest.approx(100 * p.chance, abs=near)
        for c in search_view.row(p).confirmed:
            assert c.value.value in told[-1]
            assert c.name in told[-1]
        assert ("not confirmed" in told[-1]) == (not p.confirmed)


def without_times(out: Path) -> dict[str, Any]:
    data = json.loads((out / "search.json").read_text())
    for stretch in data["stretches"]:
        del stretch["seconds"]
    return dict(data)


@pytest.mark.parametrize(("contrast", "kind"), [("prompt_sets", "remove"), ("personas", "add")])
def test_a_seed_gives_the_same_run(world: Path, runs: Runs, tmp_path: Path, contrast: str, kind: str) -> None:
    first = runs(contrast, kind)
    feature = world / f"{contrast}.yaml"
    searching.sought(world / "model", feature, tmp_path / "again", kind=kind)
    assert without_times(tmp_path / "again") == without_times(first)
    assert tree(tmp_path / "again/edits") == tree(first / "edits")
    assert (tmp_path / "again/state.json").read_bytes() == (first / "state.json").read_bytes()


# -- what is read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("contrast", "kind"), [("personas", "add"), ("prompt_sets", "remove"), ("texts", "remove")])
def test_report_prompts_are_for_the_confirmation_alone(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contrast: str, kind: str
) -> None:
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    read: dict[str, list[str]] = {"search": [], "confirmation": []}
    phase = ["search"]
    tokens, confirm = RunningModel.tokens, confirming.confirm

    def spy(self: Any, text: str, **more: Any) -> Any:
        read[phase[0]].append(text)
        return tokens(self, text, **more)

    def then(*args: Any) -> Any:
        phase[0] = "confirmation"
        return confirm(*args)

    monkeypatch.setattr(RunningModel, "tokens", spy)  # all that is asked comes by here
    monkeypatch.setattr(confirming, "confirm", then)
    feature = world / f"{contrast}.yaml"
    searching.sought(world / "model", feature, tmp_path / "run", kind=kind)
    sets = prompt_sets(*load_feature(str(feature)))
    own = {part: {*sets.part(part).shows, *sets.part(part).lacks} for part in PARTS}

    def seen(when: str, part: str) -> set[str]:
        return {p for p in own[part] if any(p in text for text in read[when])}

    assert (seen("search", "extract"), seen("search", "select")) == (own["extract"], own["select"])
    assert seen("search", "report") == set()
    assert seen("confirmation", "extract") | seen("confirmation", "select") == set()
    assert bool(seen("confirmation", "report")) == (contrast != "texts")
    assert read["confirmation"], "safety at least"


# -- stopped and gone on with ------------------------------------------------------------------------------

TWO: dict[str, Any] = {"weights": (0.5, 0.1), "confirm": 1, "steps": 2}


class Struck:
    """A listener that stops the search at the first tick (point, word) that ``at`` holds for, and remembers all of them."""

    def __init__(self, at: Callable[[Any], bool] = lambda _: False) -> None:
        self.at, self.told = at, list[Any]()

    def __call__(self, what: Any) -> None:
        self.told.append(what)
        if self.at(what):
            raise KeyboardInterrupt

    @property
    def listener(self) -> Listener:
        return Listener(self, self, self)

    def of(self, kind: type) -> list[Any]:
        return [t for t in self.told if isinstance(t, kind)]


def is_tick(run: int, step: int) -> Callable[[Any], bool]:
    return lambda t: (getattr(t, "run", None), getattr(t, "step", None)) == (run, step)


def test_stopped_in_the_second_descent(world: Path, tmp_path: Path) -> None:
    feature = world / "prompt_sets.yaml"
    with pytest.raises(KeyboardInterrupt):
        searching.sought(world / "model", feature, tmp_path / "run", listener=Struck(is_tick(1, 1)).listener, **TWO)
    searching.whole(tmp_path / "run")
    stopped = load_search(tmp_path / "run")
    assert not stopped.finished
    assert [(t.run, t.step) for t in stopped.ticks] == [(0, 1), (0, 2), (1, 1)]
    assert [p.name for p in stopped.points] == ["c01", "c02", "g01"]
    assert sum(p.knee for p in stopped.points) == 1
    assert "interrupted" in (tmp_path / "run/report.html").read_text(), "the page shows the best so far"
    before, state = tree(tmp_path / "run/edits"), (tmp_path / "run/state.json").read_text()

    heard = Struck()
    record = searching.sought(world / "model", feature, tmp_path / "run", listener=heard.listener, resume=True, **TWO)
    assert record.finished
    assert load_search(tmp_path / "run") == record
    assert {(t.run) for t in heard.told if hasattr(t, "run")} == {1}, "the first descent is not done again"
    assert not {"c01", "c02", "g01"} & {p.name for p in heard.of(Point)}
    names = [p.name for p in record.points]
    assert names[:3] == ["c01", "c02", "g01"]
    assert len(names) == len(set(names))
    assert [(p.effect, p.damage, p.strengths) for p in record.points[:3]] == [
        (p.effect, p.damage, p.strengths) for p in stopped.points]  # fmt: skip
    assert {k: v for k, v in tree(tmp_path / "run/edits").items() if k in before} == before
    straight = searching.sought(world / "model", feature, tmp_path / "straight", **TWO)
    assert [(t.run, t.step) for t in record.ticks] == [(t.run, t.step) for t in straight.ticks]
    assert {t.run for t in record.ticks} == {0, 1}
    assert [g.stage for g in record.gains] == ["closed forms", "descents"]
    assert {s.name for s in record.stretches} >= {"closed forms", "descents", "the same, weaker"}
    assert any(p.confirmed for p in record.points)
    assert [p.what for p in straight.points[:3]] == [p.what for p in record.points[:3]]
    first, both = (Ledger(**json.loads(s)["ledger"]) for s in (state, (tmp_path / "run/state.json").read_text()))
    for name in ("passed", "backward", "generated"):  # totals are of both sessions, as the stretches are
        assert getattr(both, name) == sum(getattr(s, name) for s in record.stretches)
    assert both.passed > first.passed > 0
    assert both.branches > first.branches > 0
    assert record.factors == both.factors() != first.factors()


def test_stopped_twice_and_in_the_first_descent(world: Path, tmp_path: Path) -> None:
    """What had not ended is found anew, under the same names, and the closed forms stay as they are."""
    feature = world / "prompt_sets.yaml"
    straight = searching.sought(world / "model", feature, tmp_path / "straight", **TWO)
    wishes: dict[str, Any] = dict(TWO)
    for at in (lambda t: getattr(t, "name", "") == "c01", is_tick(0, 1), is_tick(0, 2)):
        with pytest.raises(KeyboardInterrupt):
            searching.sought(world / "model", feature, tmp_path / "run", listener=Struck(at).listener, **wishes)
        searching.whole(tmp_path / "run")
        wishes["resume"] = True
    record = searching.sought(world / "model", feature, tmp_path / "run", **wishes)
    but_times: dict[str, Any] = {"stretches": [], "factors": {}}
    assert record.model_copy(update=but_times) == straight.model_copy(update=but_times)
    assert tree(tmp_path / "run/edits") == tree(tmp_path / "straight/edits")
    again = Struck()
    once_more = searching.sought(world / "model", feature, tmp_path / "run", listener=again.listener, **wishes)
    assert again.of(Point) == []
    assert once_more.points == record.points


def test_two_searches_do_not_write_one_folder(world: Path, tmp_path: Path) -> None:
    """The second is told so, whether it resumes or came while nothing was there yet; the first goes on."""
    feature, told = world / "prompt_sets.yaml", []

    def second(**wishes: Any) -> None:
        with pytest.raises(OutputBusy, match="writing this output") as caught:
            searching.sought(world / "model", feature, tmp_path / "run", **TWO, **wishes)
        told.append(caught.value)

    def progress(step: str, _done: int, _total: int) -> None:
        if step == "answering" and not told:
            second()

    def heard(_: Any) -> None:
        if len(told) == 1:
            second(resume=True)

    record = searching.sought(world / "model", feature, tmp_path / "run", listener=Listener(point=heard),
                              options=replace(pico.CPU, progress=progress), **TWO)  # fmt: skip
    assert len(told) == 2
    assert record.finished
    assert load_search(tmp_path / "run") == record


def test_stopped_before_anything_was_found(world: Path, tmp_path: Path) -> None:
    def progress(step: str, _done: int, _total: int) -> None:
        if step == "answering":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searching.sought(world / "model", world / "prompt_sets.yaml", tmp_path / "run",
                         options=replace(pico.CPU, progress=progress))  # fmt: skip
    assert tree(tmp_path) == {}


def test_stopped_while_it_unlearns_repetitions(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the words of a pico model are no loops
    monkeypatch.setattr(fluent, "why_degenerate", lambda _: "loop")

    def progress(step: str, done: int, _total: int) -> None:
        if step == "unlearning repetitions" and done == 3:
            raise KeyboardInterrupt

    feature, options = world / "personas.yaml", replace(pico.CPU, progress=progress)
    wishes: dict[str, Any] = {"kind": "add", "confirm": 0}
    with pytest.raises(KeyboardInterrupt):
        searching.sought(world / "model", feature, tmp_path / "run", options=options, **wishes)
    heard = Struck()
    record = searching.sought(world / "model", feature, tmp_path / "run", listener=heard.listener, resume=True, **wishes)
    straight = searching.sought(world / "model", feature, tmp_path / "straight", **wishes)
    assert not [t for t in heard.told if hasattr(t, "run")]
    assert [p.what for p in record.points] == [p.what for p in straight.points]
    assert any("unlearning" in p.what for p in record.points)


def test_stopped_between_two_confirmations(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feature, wishes = world / "prompt_sets.yaml", dict[str, Any](confirm=2)
    at = Struck(lambda word: isinstance(word, str) and word.startswith("confirmed "))
    with pytest.raises(KeyboardInterrupt):
        searching.sought(world / "model", feature, tmp_path / "run", listener=at.listener, **wishes)
    searching.whole(tmp_path / "run")
    (first,) = (tmp_path / "run/confirmed").iterdir()
    assert (tmp_path / "run/report.html").is_file()
    measured: list[str] = []
    compare = Session.compare_hooks

    def counted(self: Any, hooks: Any, *, title: str = "") -> Any:
        measured.append(title)
        return compare(self, hooks, title=title)

    monkeypatch.setattr(Session, "compare_hooks", counted)
    record = searching.sought(world / "model", feature, tmp_path / "run", resume=True, **wishes)
    assert len(measured) == 1
    assert first.stem not in measured
    assert sum(bool(p.confirmed) for p in record.points) == 2


def test_another_search_is_not_gone_on_with(world: Path, runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(runs("prompt_sets", "remove"), out)
    before = tree(out)
    feature = world / "prompt_sets.yaml"
    pico.build("llama_bias", tmp_path / "other", num_hidden_layers=searching.DEPTH, seed=5)
    for what, changes in (("feature", {"feature": world / "pairs.yaml"}), ("kind", {"kind": "add"}),
                          ("seed", {"options": searching.seeded(3)}), ("model", {"model": tmp_path / "other"}),
                          ("weights", {"weights": (0.4,)}), ("tokens", {"tokens": 5}),
                          ("confirm_n", {"confirm_n": 5})):  # fmt: skip
        given: dict[str, Any] = {"model": world / "model", "feature": feature, "out": out, "resume": True, **changes}
        with pytest.raises(UsageError, match="another search") as error:
            searching.sought(**given)
        assert "another folder" in (error.value.hint or ""), what
    with pytest.raises(OutputExists):
        searching.sought(world / "model", feature, out)
    assert tree(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(OutputExists):
        searching.sought(world / "model", feature, tmp_path / "mine", resume=True)
    assert list(tree(tmp_path / "mine")) == ["letter.txt"]


def test_a_search_of_a_gguf_file_is_gone_on_with(world: Path, tmp_path: Path) -> None:
    """What runs is the folder that the file stands for, and the record is of that."""
    export_gguf(open_checkpoint(str(world / "model")), tmp_path / "model.gguf", "BF16")
    feature, wish = world / "prompt_sets.yaml", {"confirm": 0}
    first = searching.sought(tmp_path / "model.gguf", feature, tmp_path / "run", **wish)
    again = searching.sought(tmp_path / "model.gguf", feature, tmp_path / "run", resume=True, **wish)
    assert [p.strengths for p in again.points] == [p.strengths for p in first.points]
    assert again.model == first.model
