"""``search`` through the command line: its table, bad input, what can't be confirmed, and targets out of reach."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import pico
import searched_records
import searching
from clirun import cli, feature_file, refused
from report_pages import plain
from weightsmith.cli.search import _fitting
from weightsmith.errors import EditError, UsageError
from weightsmith.features.prompts import prompt_sets
from weightsmith.features.recipe import load_feature
from weightsmith.formats.safetensors import read_header, write_file
from weightsmith.jobs.measure import Session
from weightsmith.jobs.search import Listener, SearchOptions, load_confirmed, load_search, search_plan
from weightsmith.jobs.search_target import chosen_point, likeliest
from weightsmith.measure.power import minimum_detectable
from weightsmith.measure.suites import shipped_sets
from weightsmith.search import material
from weightsmith.search import run as run_module
from weightsmith.search.objectives import Problem
from weightsmith.searched import NOTHING, Confirmed, Point, SearchRecord

loading = importlib.import_module("weightsmith.runtime.load")
confirming = importlib.import_module("weightsmith.jobs.search_confirm")
face = importlib.import_module("weightsmith.cli.search")
short_texts, world = searching.short_texts, searching.world


# -- through the command line ------------------------------------------------------------------------------


def test_the_front_is_readable_at_100_columns(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = cli("search", world / "model", world / "prompt_sets.yaml", "-o", tmp_path / "run", *searching.CLI, "--confirm", 2)
    assert done.code == 0, done.err
    assert [line for line in done.err.splitlines() if not line.startswith("shield: ")] == []
    record = load_search(tmp_path / "run")
    lines = done.out.splitlines()
    assert all(len(line) <= 100 for line in lines if not line.startswith("next: "))
    for p in record.front:
        (row,) = [line for line in lines if re.match(rf"{p.name}( knee)?\s+[+-]", line)]
        assert f"{p.effect:+.2f} [{p.effect_low:+.2f}, {p.effect_high:+.2f}]" in row
        assert f"{p.damage:.4f} [{p.damage_low:.4f}, {p.damage_high:.4f}]" in row
        assert p.what[:6] in row
        assert (" knee " in row) == p.knee
        if p.confirmed:
            c = p.confirmed[0]
            assert None not in (c.base, c.base_low, c.base_high)
            both = f"{c.base:.2f} [{c.base_low:.2f}, {c.base_high:.2f}] → {c.value:.2f} [{c.low:.2f}, {c.high:.2f}]"
            assert any(line.startswith(p.name) and both in line for line in lines)
    command = f"next: weightsmith edit {world / 'model'} {tmp_path / 'run' / 'edits' / record.knee}.yaml -o OUT"
    assert (lines[-1] == command) == (NOTHING not in record.notes)
    for notes in ([], [NOTHING]):  # what has no effect is not recommended
        capsys.readouterr()
        face.print_search(record.model_copy(update={"notes": notes}), str(world / "model"), tmp_path / "run")
        assert (command in capsys.readouterr().out) == (not notes)
    assert any("4 prompts can't confirm any change" in n for n in record.notes)
    assert "4 prompts can't confirm any change" in done.words
    again = cli("search", world / "model", world / "prompt_sets.yaml", "-o", tmp_path / "run", *searching.CLI, "--json", "--resume",
                "--confirm", 2)  # fmt: skip
    assert json.loads(again.out)["points"] == json.loads((tmp_path / "run/search.json").read_text())["points"]


def test_closed_forms_that_were_not_possible_are_said(world: Path, tmp_path: Path) -> None:
    """In the terminal, in the record and on the page, and by a resumed run as well."""
    argv = ("search", world / "model", world / "personas.yaml", "-o", tmp_path / "run", *searching.CLI, "--confirm", 1)
    for more in ((), ("--resume",)):
        done = cli(*argv, *more)
        assert done.code == 0, done.err
        said = "closed form not possible: null space (read by least squares, nothing on neutral prompts): the direction and its "
        said += "reading vector do not agree"
        assert said in done.words
        assert load_search(tmp_path / "run").notes.count(said) == 1
        assert said in plain((tmp_path / "run/report.html").read_text())


def test_an_interrupt_says_how_to_go_on(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ("search", world / "model", world / "prompt_sets.yaml", "-o", tmp_path / "run", *searching.CLI, "--confirm", 0)

    def struck(_tick: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(face, "_tick", struck)
        done = cli(*argv)
    assert done.code == 2
    assert "interrupted" in done.err
    assert "--resume" in done.err
    assert not load_search(tmp_path / "run").finished
    refused(tmp_path, *argv, says=("output exists already",))
    assert cli(*argv, "--resume").code == 0
    assert load_search(tmp_path / "run").finished


def alike(folder: Path) -> Path:
    """Two sides that nothing tells apart."""
    return searching.recipe(folder, "prompt_sets", prompts={"shows": {"list": searching.words(20, 1)},
                                                            "lacks": {"list": searching.words(20, 2)}})  # fmt: skip


def test_sides_that_nothing_tells_apart(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feature = alike(tmp_path / "features")
    argv = ("search", world / "model", feature, "-o", tmp_path / "run", *searching.CLI, "--confirm", 0)
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Search, "floor", lambda *_: pytest.fail("the search began"))
        refused(tmp_path, *argv, says=("error[edit-error]", "tell the two sides apart", "AUROC 0.", "6 held-out", "--force"))
    done = cli(*argv, "--force")
    assert done.code == 0, done.err
    record = load_search(tmp_path / "run")
    assert any("do not tell the two sides apart" in n and "searched all the same" in n for n in record.notes)
    assert "searched all the same" in done.words


def test_what_can_not_be_searched_is_refused_though_it_is_forced() -> None:
    """Sides that nothing tells apart, and no prompt whose answers differ: there is nothing to begin with."""
    sets = SimpleNamespace(select=SimpleNamespace(shows=["a", "b"]))
    problem = SimpleNamespace(kind="add", effect=SimpleNamespace(items=[]))
    found: Any = SimpleNamespace(separation=(0.6, 0.4, 0.8), sets=sets, problem=problem, shown=None, notes=[],
                                 spec=SimpleNamespace(name="x", contrast=SimpleNamespace(kind="personas")))  # fmt: skip
    for force in (False, True):
        with pytest.raises(EditError, match="tell the two sides apart") as caught:
            material._check(found, force)
        assert ("--force" in str(caught.value.hint)) != force
        assert "--held" in str(caught.value.hint)


def test_a_front_without_effect_is_said_to_be_that() -> None:
    made: dict[str, Any] = {"stage": "gradient", "what": "", "damage": 0.1, "damage_low": 0, "damage_high": 1, "n": 8, "edit": ""}
    points = [Point(name=f"g{i}", effect=0.1, effect_low=low, effect_high=0.2, front=True, knee=i == 0, **made)
              for i, low in enumerate((-0.1, -0.2))]  # fmt: skip
    assert chosen_point(points, "k", None, finished=True).notes == [NOTHING]
    assert chosen_point(points, "k", None, finished=False).notes == []
    some = [points[0], points[1].model_copy(update={"effect_low": 0.01})]
    assert chosen_point(some, "k", None, finished=True).notes == []


def test_a_long_cell_is_cut_in_its_middle() -> None:
    what = "descent, damage weighted 0.1, step 10 and repetitions unlearned, times 1.25"
    cut = _fitting(what, 40)
    assert len(cut) == 40
    assert cut.startswith("descent, damage wei")
    assert cut.endswith("times 1.25")
    assert _fitting(what, len(what)) == what


def test_a_feature_that_the_model_does_not_show(world: Path, tmp_path: Path) -> None:
    """A random model refuses nothing. Its recipe's own openings are searched where that is forced, and where there are none
    nothing is."""
    refusal, named = {"kind": "refusal"}, {"kind": "continuations", "shows": ["no, sorry", "i will not"], "lacks": ["sure"]}
    with_openings = searching.recipe(tmp_path / "features", "prompt_sets", scorers=[refusal, named])
    without = searching.recipe(tmp_path / "features", "prompt_sets", scorers=[refusal])
    shared = ("-o", tmp_path / "run", *searching.CLI, "--confirm", 0)
    for feature in (with_openings, without):
        refused(tmp_path, "search", world / "model", feature, *shared,
                says=("error[edit-error]", "does not show this feature: 0% of its answers do (AUROC", "--force"))  # fmt: skip
    refused(tmp_path, "search", world / "model", without, *shared, "--force", says=("does not show this feature",))
    refused(tmp_path, "search", world / "model", without, *shared, "--add", says=("the recipe names no openings",))
    done = cli("search", world / "model", with_openings, *shared, "--force")
    assert done.code == 0, done.err
    assert any("does not show this feature" in n and "searched all the same" in n for n in load_search(tmp_path / "run").notes)
    assert set(load_search(tmp_path / "run").shows) == {"no, ", "i wi"}


@pytest.mark.parametrize("kind", ["--remove", "--add"])
@pytest.mark.parametrize("contrast", ["personas", "pairs"])
def test_the_same_answers_either_way(world: Path, tmp_path: Path, contrast: str, kind: str) -> None:
    """A model with the feature inside that says one and the same to everything: its head reads only what its last norm lets
    nothing through of."""
    mute = shutil.copytree(world / "model", tmp_path / "mute")
    file = mute / "model.safetensors"
    header, data = read_header(file), pico.tensors(mute)
    one = np.float32(1).tobytes()
    data["lm_head.weight"] = one + bytes(len(data["lm_head.weight"]) - 4)
    data["model.norm.weight"] = bytes(4) + data["model.norm.weight"][4:]
    entries: list[Any] = [(s.name, s.dtype, s.shape, lambda out, raw=data[s.name]: out.write(raw)) for s in header.tensors]
    write_file(file, entries, header.metadata)
    for force in ((), ("--force",)):
        refused(tmp_path, "search", mute, world / f"{contrast}.yaml", "-o", tmp_path / "run", *searching.CLI, kind, *force,
                "--allow", "suspicious",  # the head is blank but for one value
                says=("error[edit-error]", "only 0 of the prompts to train on get other answers", "--tokens"))  # fmt: skip


@pytest.mark.parametrize(("argv", "says"), [
    (["--prompts", "3"], "too few"),
    (["--held", "3"], "too few"),
    (["--add", "--remove"], "can't be given together"),
    (["--protect", "SELF"], "searched for and protected at once"),
    (["--protect", "pairs.yaml", "--protect", "pairs.yaml"], "given twice"),
    (["--protect", "nothing"], "no such feature"),
    (["--weights", "high,low"], "can't read the weights"),
    (["--weights=-1,2"], "0 or more"),
    (["--weights", "nan"], "0 or more"),
    (["--weights", "inf"], "0 or more"),
    (["--weights", ""], "can't read the weights"),
    (["--add", "--level", "0"], "above 0"),
    (["--add", "--level", "nan"], "above 0"),
    (["--level", "1"], "--level is of additions"),
    (["--add", "--oblique"], "can't be oblique"),
    (["--sampler", "dice"], "no sampler is called 'dice'"),
    (["--start", "4"], "no layer is left to edit"),
    (["--rank", "5"], "a rank of 5 is not possible"),
    (["--add", "--rank", "2"], "one vector at each layer"),
    (["--target", "nan"], "a target is a number"),
    (["--target", "0.2", "--confirm", "0"], "confirmed figures"),
])  # fmt: skip
def test_options_that_make_no_sense(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], says: str
) -> None:
    """All of them before the model is loaded."""
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("the model was loaded"))
    feature = world / "prompt_sets.yaml"
    words = [str(feature) if a == "SELF" else str(world / a) if a.endswith(".yaml") else a for a in argv]
    done = refused(tmp_path, "search", world / "model", feature, "-o", tmp_path / "run", *searching.CLI, *words, says=(says,))
    assert "error[usage-error]" in done.err or "error[recipe-error]" in done.err


def test_no_such_feature_and_too_few_prompts(world: Path, tmp_path: Path) -> None:
    few = feature_file(tmp_path)
    missing = "no such feature"
    for feature, says in (("gloom", missing), (tmp_path / "no.yaml", missing), (few, "leaves 2 prompts held out")):
        refused(tmp_path, "search", world / "model", feature, "-o", tmp_path / "run", *searching.CLI, says=(says,))
    refused(tmp_path, "search", tmp_path / "nowhere", world / "pairs.yaml", "-o", tmp_path / "run", *searching.CLI)


def test_nan_in_a_step_is_backed_off_from(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call, count = searching.spoiled(Problem.effect_loss, {2})
    monkeypatch.setattr(Problem, "effect_loss", lambda *a: call(*a))
    record = searching.sought(world / "model", world / "prompt_sets.yaml", tmp_path / "run", confirm=0, steps=4)
    assert count == [4]
    assert any("step 2: NaN or infinity; it went on with a step of 0.5" in n for n in record.notes)
    assert [t.step for t in record.ticks] == [1, 3, 4]
    assert all(np.isfinite([p.effect, p.damage]).all() for p in record.points)
    assert any(p.stage == "gradient" for p in record.points)


def test_nothing_but_nan_leaves_the_closed_forms(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call, _ = searching.spoiled(Problem.effect_loss, set(range(1, 99)))
    monkeypatch.setattr(Problem, "effect_loss", lambda *a: call(*a))
    done = cli("search", world / "model", world / "prompt_sets.yaml", "-o", tmp_path / "run", *searching.CLI, "--confirm", 0,
               "--steps", 9)  # fmt: skip
    assert done.code == 0, done.err
    record = load_search(tmp_path / "run")
    assert {p.stage for p in record.points} == {"closed form"}
    assert any("the descent ended" in n for n in record.notes)
    assert "the descent ended" in done.words


def test_no_memory_for_a_single_row(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_args: Any, **_more: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.autograd, "grad", none)
    done = cli("search", world / "model", world / "prompt_sets.yaml", "-o", tmp_path / "run", *searching.CLI, "--confirm", 0)
    assert done.code == 2
    assert "error[out-of-memory]: one row alone does not fit" in done.err
    assert "--dtype" in done.err
    searching.whole(tmp_path / "run")
    left = load_search(tmp_path / "run")
    assert not left.finished
    assert {p.stage for p in left.points} == {"closed form"}, "what was found before stays"
    monkeypatch.undo()
    assert cli("search", world / "model", world / "prompt_sets.yaml", "-o", tmp_path / "run", *searching.CLI, "--confirm", 0,
               "--resume").code == 0  # fmt: skip


def test_a_protected_feature(world: Path, tmp_path: Path) -> None:
    """It is read, held in place and confirmed; one with the searched feature's own prompts is refused before the search."""
    n = sum(searching.N.values())
    other = searching.recipe(tmp_path / "features", "prompt_sets", name="calm", prompts={
        "shows": {"list": searching.words(n, 7, " so.")}, "lacks": {"list": searching.words(n, 8, " or")}})  # fmt: skip
    argv = ("search", world / "model", world / "prompt_sets.yaml", "-o", tmp_path / "run", *searching.CLI, "--confirm", 1,
            "--protect")  # fmt: skip
    refused(tmp_path, *argv, world / "pairs.yaml", says=("none is left to confirm it with", "--confirm 0"))
    done = cli(*argv, other)
    assert done.code == 0, done.err
    record = load_search(tmp_path / "run")
    assert record.protect == ["calm"]
    assert all(set(p.protected) == {"calm"} for p in record.points)
    assert all(p.protected["calm"] > 0 for p in record.points)
    (confirmed,) = load_confirmed(tmp_path / "run", record).values()
    assert {d.group for d in confirmed.differences} >= {"calm", "prompt-sets", "safety"}


def test_prompts_of_the_safety_sets_may_be_searched_with(world: Path, tmp_path: Path) -> None:
    """They are left out of the confirmation, and it says so; nothing fails after the search is done."""
    used = shipped_sets("refusal").report.lacks[: sum(searching.N.values())]
    feature = searching.recipe(tmp_path / "features", "prompt_sets", prompts={
        "shows": {"list": searching.words(len(used), 1, " now!!!")}, "lacks": {"list": list(used)}})  # fmt: skip
    record = searching.sought(world / "model", feature, tmp_path / "run", confirm=1)
    (confirmed,) = load_confirmed(tmp_path / "run", record).values()
    assert any("safety:" in n and "left out" in n for n in confirmed.notes)
    sets = prompt_sets(*load_feature(str(feature)))
    asked = {a.prompt for a in confirmed.answers if a.group == "safety"}
    assert asked
    assert not asked & {*sets.extract.lacks, *sets.select.lacks}


# -- a target, and what can be confirmed -------------------------------------------------------------------


def reached(*values: tuple[str, float, float, float], knee: str = "g01") -> list[Point]:
    """Points of a front with a confirmed mean sentiment; damage rises from one to the next."""
    like = searched_records.make_search().points[0]
    made = []
    for k, (name, value, low, high) in enumerate(values):
        figure = Confirmed(key="melancholy.neutral.sentiment", name="sentiment", unit="", value=value, low=low, high=high, n=24)
        other = figure.model_copy(update={"key": "safety.harmful.refuses", "value": -0.6, "low": -0.7, "high": -0.5})
        made.append(like.model_copy(update={"name": name, "front": True, "knee": name == knee, "confirmed": [other, figure],
                                            "damage": 0.1 * k}))  # fmt: skip
    return [*made, like.model_copy(update={"name": "g09", "knee": False, "confirmed": []})]


FAR = [("g01", 0.4, 0.3, 0.5), ("g05", -0.31, -0.40, -0.22), ("g07", -0.2, -0.3, -0.1)]


KEY = "melancholy.neutral.sentiment"


def test_the_point_nearest_to_a_target() -> None:
    points = reached(*FAR)
    some = "; of the 4 points of the front 3 were confirmed"

    def chosen(target: float | None, given: list[Point] = points, *, finished: bool = True) -> tuple[str, str, list[str]]:
        return chosen_point(given, KEY, target, finished=finished)

    assert chosen(None) == ("g01", "knee", [])
    assert chosen(None, points[1:]) == ("", "", [])
    assert chosen(-0.6) == ("g05", "target", [
        "the target of -0.60 was not reached: nearest is g05 with -0.31 [-0.40, -0.22], 0.29 away" + some])
    assert chosen(0.7)[2] == ["the target of 0.70 was not reached: nearest is g01 with 0.40 [0.30, 0.50], 0.30 away" + some]
    assert chosen(-0.39) == ("g05", "target", [])
    assert chosen(-0.21) == ("g07", "target", [])
    assert chosen(0.11) == ("g01", "target", [
        "the target of 0.11 was not reached: nearest is g01 with 0.40 [0.30, 0.50], 0.29 away; confirmed points lie on both sides "
        "of it" + some])
    assert chosen(-0.1, reached(("g01", 0.0, -0.2, 0.2), ("g02", -0.2, -0.3, 0.0)))[0] == "g01", "the less damage of equals"
    off = [p.model_copy(update={"front": p.name != "g05"}) for p in points]
    assert chosen(-0.6, off)[0] == "g07"
    bare = [p.model_copy(update={"confirmed": []}) for p in points]
    assert chosen(-0.6, bare) == ("g01", "knee", ["the target of -0.60 was compared with nothing: no point has a confirmed " + KEY])
    assert chosen(-0.6, bare, finished=False) == ("g01", "knee", [])


def a_front(*effects: float, **confirmed: tuple[float, float]) -> tuple[list[Point], dict[str, float]]:
    """Points p0, p1, … with these effects as the search saw them; those in ``confirmed`` with a value and half an interval.
    The base's own value is 0.8."""
    like = searched_records.make_search().points[0]
    points = []
    for k in range(len(effects)):
        figures = []
        if f"p{k}" in confirmed:
            value, half = confirmed[f"p{k}"]
            figures = [Confirmed(key=KEY, name="", unit="", base=0.8, value=value, low=value - half, high=value + half, n=24)]
        points.append(like.model_copy(update={"name": f"p{k}", "front": True, "knee": k == 1, "confirmed": figures,
                                              "damage": 0.1 * k}))  # fmt: skip
    return points, {f"p{k}": e for k, e in enumerate(effects)}


@pytest.mark.parametrize(("confirmed", "target", "expected"), [
    ({"p1": (0.6, 0.15)}, 0.2, ("p3", 0.2)),  # beyond the last, as steeply as up to it
    ({"p1": (0.6, 0.15)}, 0.4, ("p2", 0.4)),
    ({"p1": (0.6, 0.15)}, 0.7, None),  # it lies within the interval
    ({"p1": (0.6, 0.05)}, 0.7, ("p0", 0.7)),  # between the base and it
    ({"p1": (0.6, 0.15)}, -0.3, None),  # the farthest one will come to 0.2 or so
    ({"p1": (0.6, 0.15)}, 0.06, ("p3", 0.2)),  # near enough to fall within an interval as wide
    ({"p1": (0.6, 0.15)}, 1.2, None),  # away from where edits lead
    ({"p0": (0.75, 0.02), "p3": (0.1, 0.02)}, 0.53, ("p1", 0.62)),  # between two: how the way bends there is not known
    ({"p0": (0.75, 0.02), "p3": (0.1, 0.02)}, 0.3, ("p2", 0.36)),
    ({"p0": (0.75, 0.02), "p3": (0.1, 0.02)}, 0.13, None),  # nothing is nearer to it than what is known
    ({"p0": (0.7, 0.1), "p1": (0.6, 0.1), "p2": (0.5, 0.1), "p3": (0.0, 0.1)}, 0.25, None),  # all are known
    ({"p1": (0.8, 0.15)}, 0.5, None),  # what was confirmed does nothing: the rest will not either
])  # fmt: skip
def test_the_point_that_is_likeliest_to_lie_at_a_target(
    confirmed: dict[str, tuple[float, float]], target: float, expected: tuple[str, float] | None
) -> None:
    points, effects = a_front(0.1, 0.2, 0.4, 0.6, **confirmed)
    found = likeliest(points, effects, KEY, target)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found[0].name, found[1]) == (expected[0], pytest.approx(expected[1]))
    assert likeliest([p.model_copy(update={"front": False}) for p in points], effects, KEY, target) is None
    assert likeliest([p.model_copy(update={"confirmed": []}) for p in points], effects, KEY, target) is None


def test_further_points_are_confirmed_towards_a_target(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many again as --confirm at the most; a resumed run measures none of them twice."""
    asked: list[tuple[str, float]] = []

    def next_one(points: list[Point], effects: dict[str, float], key: str, target: float) -> tuple[Point, float]:
        asked.append((key, target))
        assert set(effects) == {p.name for p in points}
        return next(p for p in points if p.front and not p.confirmed), 0.25

    monkeypatch.setattr(confirming, "likeliest", next_one)
    said: list[str] = []
    wishes: dict[str, Any] = {"confirm": 1, "listener": Listener(say=said.append)}
    model, feature = world / "model", world / "prompt_sets.yaml"
    record = searching.sought(model, feature, tmp_path / "run", target=7.5, **wishes)
    assert len(record.front) > 2
    confirmed = [p.name for p in record.points if p.confirmed]
    assert len(confirmed) == 2
    assert asked == [("prompt-sets.shown.phrases", 7.5)]
    (word,) = [w for w in said if "7.50" in w]
    further = next(n for n in confirmed if n != record.knee)
    assert word == f"no confirmed point lies at the target of 7.50 yet: next is {further}, from which about 0.25 is expected"
    assert (record.chosen_by, record.chosen in confirmed) == ("target", True)
    assert any(n.endswith(f"of the {len(record.front)} points of the front 2 were confirmed") for n in record.notes)

    monkeypatch.setattr(Session, "compare_hooks", lambda *_a, **_k: pytest.fail("measured twice"))
    again = searching.sought(model, feature, tmp_path / "run", target=7.5, resume=True, **wishes)
    assert again.points == record.points
    monkeypatch.undo()
    asked.clear()
    monkeypatch.setattr(confirming, "likeliest", next_one)
    plainly = searching.sought(model, feature, tmp_path / "plainly", **wishes)
    assert asked == []
    assert [p.name for p in plainly.points if p.confirmed] == [plainly.knee]


def test_a_target_that_is_out_of_reach_is_said_plainly(world: Path, tmp_path: Path) -> None:
    argv = ("search", world / "model", world / "prompt_sets.yaml", "-o", tmp_path / "run", *searching.CLI, "--confirm", 1)
    done = cli(*argv, "--target", "7.5")
    assert done.code == 0, done.err
    record = load_search(tmp_path / "run")
    (confirmed,) = [p for p in record.points if p.confirmed]
    assert record.target == 7.5
    assert record.chosen == confirmed.name
    value = confirmed.confirmed[0].value
    assert f"the target of 7.50 was not reached: nearest is {record.chosen} with {value:.2f} [" in done.words
    assert f"{7.5 - value:.2f} away" in done.words
    assert f"take {record.chosen} (nearest to the target of 7.5)" in done.words
    back = cli(*argv, "--resume", "--target", "8")
    assert back.code == 0
    assert [n for n in load_search(tmp_path / "run").notes if "the target of" in n] == [
        n for n in load_search(tmp_path / "run").notes if n.startswith("the target of 8.00")]  # fmt: skip
    assert "the target of 8.00" in back.words


def test_what_a_confirmation_can_show_is_said_before_it(world: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def hear(text: str) -> None:
        said.append(text)

    record = searching.sought(world / "model", world / "prompt_sets.yaml", tmp_path / "run", confirm=1, confirm_n=24,
                              listener=Listener(say=hear))  # fmt: skip
    least = minimum_detectable(6, rate=True)  # the recipe has no more than 6 report prompts
    assert said[0] == f"6 prompts confirm a change of {least:.0%} of the prompts or more (p < 0.05 in 80% of all tries)"
    assert said[1].startswith("confirmed ")
    assert said[0] in record.notes, "so few are noted"


def test_enough_prompts_are_said_and_not_noted() -> None:
    spec, folder = load_feature("melancholy")  # of 48 report prompts, and a mean is confirmed
    search: Any = SimpleNamespace(spec=spec, sets=prompt_sets(spec, folder), plan=SimpleNamespace(kind="remove"))
    said: list[str] = []
    for n, notes in ((24, 0), (16, 0), (15, 1)):
        found = confirming._say_sight(search, SimpleNamespace(confirm_n=n), said.append)
        assert len(found) == notes
        assert said[-1].startswith(f"{n} prompts confirm a change of {minimum_detectable(n, rate=False):.2f} standard deviations")


def test_options_reach_the_plan() -> None:
    wish = SearchOptions(kind="add", weights=(3.0, 1.0), steps=7, level=2.0, rounds=0, start=2)
    plan = search_plan(wish, searching.seeded(4), personas=True)
    assert (plan.descent.weights, plan.descent.steps, plan.descent.seed) == ((3.0, 1.0), 7, 4)
    assert (plan.level, plan.rounds, plan.start, plan.kind) == (2.0, None, 2, "add")
    assert search_plan(SearchOptions(directions=False), pico.CPU, personas=False).descent.turn == 0
    with pytest.raises(UsageError, match="can't search for 'both'"):
        search_plan(SearchOptions(kind="both"), pico.CPU, personas=False)


def test_records_of_before_have_no_chosen_point() -> None:
    data = searched_records.make_search().model_dump(by_alias=True)
    del data["chosen"]
    assert SearchRecord.model_validate(data).chosen == ""


def a_search(effects: list[float], knee: int) -> Any:
    """A search whose front has these effects, by rising damage, and its knee at a place."""
    names = [f"g{i:02d}" for i in range(len(effects))]
    points = [SimpleNamespace(name=n, front=True, knee=i == knee) for i, n in enumerate(names)]
    found = [SimpleNamespace(point=p) for p in points]
    pairs = [(effect, i / 10) for i, effect in enumerate(effects)]
    return SimpleNamespace(points=lambda: points, found=found[::-1], pairs=lambda: pairs[::-1])


@pytest.mark.parametrize(("effects", "knee", "most", "expected"), [
    ([0.27, 0.30, 0.32, 0.45, 0.56, 0.67, 0.75], 4, 3, [4, 6, 3]),  # small doses crowd at the beginning: not by place
    ([0.1, 0.2, 0.3, 0.9], 2, 3, [2, 3, 1]),
    ([0.1, 0.5, 0.6], 0, 3, [0, 2, 1]),  # the knee has the least damage
    ([0.1, 0.5, 0.6], 2, 2, [2, 1]),  # and here the most effect
    ([0.1, 0.5], 1, 5, [1, 0]), ([0.4], 0, 3, [0]), ([], 0, 3, []),
])  # fmt: skip
def test_which_points_are_confirmed(effects: list[float], knee: int, most: int, expected: list[int]) -> None:
    found = confirming.finalists(a_search(effects, knee), most)
    assert [f.point.name for f in found] == [f"g{i:02d}" for i in expected]
    everything = confirming.finalists(a_search(effects, knee), 99)
    assert sorted(f.point.name for f in everything) == [f"g{i:02d}" for i in range(len(effects))]
