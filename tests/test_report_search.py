"""The page of a search: every candidate and figure of the record is on it, nothing of it is markup, all drawings hold."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from report_pages import HOSTILE, Parsed, box_of, every_svg, plain, words_apart
from searched_records import FRONT, make_all_confirmed, make_confirmed, make_search
from weightsmith import errors
from weightsmith.measured import MeasureRecord
from weightsmith.report import search_charts, search_front, search_view, text
from weightsmith.report.searched import render_search, save_search
from weightsmith.searched import SearchRecord, Tick

BARE = {
    "points": [], "ticks": [], "stretches": [], "gains": [], "factors": {}, "options": {}, "ran": {}, "versions": {},
    "notes": [], "shows": {}, "lacks": {}, "n": {}, "separation": None, "source": None, "knee": "", "protect": [],
    "feature_description": "", "prompts_digest": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def page() -> str:
    return render_search(make_search(), make_all_confirmed())


def titles(drawing: str) -> list[str]:
    """The tooltips of a drawing, without its own title."""
    return [t.text or "" for t in ET.fromstring(drawing).iter("title")][1:]


def one_point(**changes: Any) -> SearchRecord:
    knee = next(p for p in make_search().points if p.knee).model_copy(update=changes)
    return make_search(points=[knee], knee=knee.name)


def holds(page: str) -> None:
    """The page is well formed, and every coordinate of its drawings is a finite number."""
    parsed = Parsed(page)
    assert not parsed.open
    assert len(parsed.ids) == len(set(parsed.ids))
    assert set(parsed.links) <= {f"#{i}" for i in parsed.ids}
    for drawing in every_svg(page):
        assert drawing.findtext("title")
        for element in drawing.iter():
            for name in ("x", "y", "cx", "cy", "x1", "y1", "x2", "y2", "width", "height", "r"):
                assert math.isfinite(float(element.attrib.get(name, "0")))
            assert all(map(math.isfinite, map(float, re.findall(r"-?[\d.]+|nan|inf", element.attrib.get("d", "")))))


@pytest.mark.parametrize("width", [342, 760])
def test_every_point_stands_once_in_the_chart_with_its_words(width: int) -> None:
    record = make_search()
    tips = titles(search_front.front_chart(record, width, "x"))
    assert len(tips) == len(record.points)
    for p in record.points:
        mine = [t for t in tips if t.startswith(f"{p.name}, {p.stage}")]
        assert len(mine) == 1
        assert p.what in mine[0]
        assert ("on the front" in mine[0], "the knee" in mine[0], "the starting point" in mine[0]) == (p.front, p.knee, p.start)
        assert p.disagrees in mine[0]


def test_marks_tell_the_stage_the_front_the_knee_the_start_and_disagreement() -> None:
    drawing = search_front.front_chart(make_search(), 760, "x")
    root = ET.fromstring(drawing)
    classes = [e.attrib.get("class", "") for e in root.iter()]
    assert classes.count("front-line") == 1
    assert classes.count("warm-ring") == 1
    assert sum("dashed" in c and "ring" in c for c in classes) == 1
    assert classes.count("differs") == 1
    assert sum(c.endswith("-fill") for c in classes) == len(FRONT)
    assert sum(c.endswith("-open") for c in classes) == len(make_search().points) - len(FRONT)
    # an interval in both directions for each point of the front
    assert sum(c.endswith("-reach") for c in classes) == 2 * len(FRONT)
    words = [t.text for t in root.iter("text")]
    assert "knee" in words
    assert "start" in words
    assert "gradient-w10, differs" in words


MISSED = "the target of 0.3 was not reached: nearest is gradient-w10 with 0.53 [0.47, 0.59], 0.23 away"


def aimed() -> SearchRecord:
    """A search with a target, which chose another point than the knee."""
    return make_search(target=0.3, chosen="gradient-w10", chosen_by="target", notes=["A note.", MISSED])


def test_the_point_that_a_target_chose_is_the_one_that_stands_out() -> None:
    found = render_search(aimed(), make_all_confirmed())
    holds(found)
    seen, head = plain(found), plain(found.partition("</header>")[0])
    taken = next(p for p in make_search().points if p.name == "gradient-w10")
    assert f"◆ nearest to the target of 0.3 {taken.what}" in head
    assert "by the rule alone, the knee, it would have been gradient-w3" in head
    assert MISSED[0].upper() + MISSED[1:] in head
    assert f"weightsmith edit {make_search().model.ref} edits/gradient-w10.yaml -o OUT" in head
    assert search_view.told(taken.confirmed[0]).value.value in head
    assert "the point to take gradient-w10, nearest to the target of 0.3" in seen
    rows = found[found.index('<table class="data restack fronts">') :].partition("</table>")[0].split("<tr>")
    assert [plain(r).split()[0] for r in rows if "badge taken" in r] == ["taken"]
    assert ['<span class="badge">knee</span>' in r for r in rows].count(True) == 1
    assert [p.label for _, p in search_view.profiles(aimed())] == ["taken", "least damage", "most effect"]
    assert [v.label for _, v in search_view.read_points(aimed(), make_all_confirmed())] == ["least damage", "taken", "most effect"]


@pytest.mark.parametrize("width", [342, 760])
def test_the_chart_of_a_search_with_a_target(width: int) -> None:
    drawing = search_front.front_chart(aimed(), width, "x")
    words_apart(drawing, width)
    root = ET.fromstring(drawing)
    words = [t.text for t in root.iter("text")]
    assert "taken, differs" in words
    assert "knee" in words
    classes = [e.attrib.get("class", "") for e in root.iter()]
    assert classes.count("warm-ring") == classes.count("warm-fill") == 1
    (tip,) = [t for t in titles(drawing) if "the point to take" in t]
    assert tip.startswith("gradient-w10, ")


def test_a_target_that_chose_the_knee_leaves_it_the_knee() -> None:
    found = plain(render_search(make_search(target=0.2, chosen="gradient-w3", chosen_by="target")))
    assert "◆ nearest to the target of 0.2 remove refusal" in found
    assert "by the rule alone" not in found
    assert search_view.label(make_search(chosen="gradient-w3", chosen_by="knee")) == "knee"


@pytest.mark.parametrize("width", [342, 760])
def test_words_of_the_chart_do_not_overlap(width: int) -> None:
    words_apart(search_front.front_chart(make_search(), width, "x"), width)


def near(printed: str, value: float, scale: float = 1) -> bool:
    """Whether a printed figure is the value, rounded to the digits that it shows."""
    bare = printed.replace(text.MINUS, "-").replace(",", "").strip("+%")
    return abs(float(bare) - value * scale) <= 0.5001 * 10.0 ** -len(bare.partition(".")[2])


def test_figures_in_the_tables_are_the_records(page: str) -> None:
    seen = plain(page)
    for p in make_search().front:
        row = search_view.row(p)
        for shown, values in (
            (row.effect, (p.effect, p.effect_low, p.effect_high)), (row.damage, (p.damage, p.damage_low, p.damage_high)),
        ):  # fmt: skip
            assert all(near(a, b) for a, b in zip((shown.value, shown.low, shown.high), values, strict=True))
            assert f"{shown.value} {shown.interval}" in seen
        assert near(row.chance, p.chance or 0, 100)
        for name, value in row.protected:
            assert near(value, p.protected[name])
            assert f"{name} {value}" in seen
        for c, t in zip(p.confirmed, row.confirmed, strict=True):
            scale = 100 if c.unit.startswith("share") else 1
            assert near(t.value.value, c.value, scale)
            assert near(t.value.low, c.low, scale)
            assert near(t.value.high, c.high, scale)
            verdict = f" {t.sign} {t.verdict}" if t.verdict else ""
            base = f"{t.base} → " if t.base else ""
            assert f"{c.name}, n = {c.n}{verdict} {base}{t.value.value} ({t.value.interval})" in seen
            if t.change and c.change is not None:
                assert near(t.change.value, c.change, scale)
        assert p.disagrees in seen
    for p in make_search().points:
        assert f" {p.name} " in seen
        assert p.what in html.unescape(page)


def test_the_head_says_what_was_searched_the_knee_and_how_to_carry_it_out(page: str) -> None:
    seen = plain(page)
    assert "removes refusal from Qwen/Qwen2.5-Coder-0.5B-Instruct with the least damage tried 41 candidates" in seen
    assert "6 are on the front" in seen
    assert "5 were confirmed" in seen
    assert "◆ the knee remove refusal at layers 6–19, 2 roles, strengths 0.11 to 1.24" in seen
    assert "87% → 16%" in seen
    assert "○ cannot tell" in seen
    assert "weightsmith edit Qwen/Qwen2.5-Coder-0.5B-Instruct edits/gradient-w3.yaml -o OUT" in seen
    assert "interrupted" not in seen


def test_the_command_line_survives_odd_names() -> None:
    record = one_point(edit="edits/a b; rm -rf $HOME.yaml")
    words = shlex.split(search_view.command(record, record.points[0]))
    assert words == ["weightsmith", "edit", record.model.ref, "edits/a b; rm -rf $HOME.yaml", "-o", "OUT"]
    assert "no command line" in plain(render_search(one_point(edit="")))


def test_parts_come_in_their_order_and_whole(page: str) -> None:
    record, seen = make_search(), plain(page)
    order = ["Effect against damage", "What it answers", "How strongly, by layer", "Training", "Where the time went",
             "How it was made"]  # fmt: skip
    places = [page.index(f"<h2>{name}</h2>") for name in order]
    assert places == sorted(places)
    assert page.count('class="replies of-4"') == 6
    # beside the six rows of answers, both stand in the line that counts their answers
    assert page.count("</span> least damage</span>") == page.count("</span> most effect</span>") == 7
    for told in (
        record.objective, record.rule, "AUROC 0.991 (0.978 to 0.998) on held-out prompts, layer 13",
        "“I'm sorry, but I can't” 61.0%",
        "“Sure” 42.0%", "coding, politeness", "prompts, train 96", "budget standard", "device cpu, 2 threads", "torch 2.13.0",
        record.notes[0], record.prompts_digest, record.model.digest, "shared beginnings passed once 1.82 ×",
        "layers below the first edited one kept 1.31 ×", "continuations of one prompt in one pass 2.40 ×",
        "tokens that predict nothing that is read 1.12 ×", "lm_head only where something is read 1.66 ×",
        "gradient 78.3% +37.3 6", "black box 79.4% +1.1 6", "in all 24 min 54 s 819,700 318,000 142,400",
        "weight 1, step 60: stopped", "0.1 nats per token", "5 runs",
    ):  # fmt: skip
        assert told in seen, told


def test_every_strength_and_held_out_reading_is_drawn() -> None:
    record = make_search()
    shown = [p for _, p in search_view.profiles(record)]
    assert [p.label for p in shown] == ["knee", "least damage", "most effect"]
    tips = titles(search_charts.strengths_chart(shown, 760, "x"))
    for p in shown:
        for role, row in p.strengths.items():
            for layer, value in row.items():
                assert f"{p.label}, layer {layer}, {role}: {text.number(value, 3)}" in tips
    tips = titles(search_charts.training_chart(record.ticks, "nats per token", 760, "x"))
    held = [t for t in record.ticks if t.held_effect is not None]
    assert sum("held out" in t for t in tips) == 2 * len(held)
    assert {r.weight for r in search_charts.runs(record.ticks)} == {t.weight for t in record.ticks}


def test_stage_bars_have_the_seconds_and_tokens_of_the_record() -> None:
    record = make_search()
    tokens = search_charts.token_bars(record.stretches)
    for s, bar in zip(record.stretches, tokens, strict=True):
        assert sum(v for v, _ in bar.parts) == s.passed + s.generated
        assert bar.parts[0][0] == s.backward
    assert [b.parts[0][0] for b in search_charts.seconds_bars(record.stretches)] == [s.seconds for s in record.stretches]


def poisoned(value: Any) -> Any:
    """A record's data with hostile text in every text that the schema leaves free, keys included."""
    fixed = {"schema", "kind", "stage", "interval", "key", "verdict", "chosen_by"}
    limited = {"remove", "gradient-w3"}
    if isinstance(value, dict):
        free = {k for k in value if isinstance(k, str) and not k.isidentifier()}
        return {k + HOSTILE if k in free else k: v if k in fixed else poisoned(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [poisoned(v) for v in value]
    return value + HOSTILE if isinstance(value, str) and value not in limited else value


def test_hostile_text_stays_text(page: str) -> None:
    data = make_search().model_dump(by_alias=True)
    for p in data["points"]:
        p["protected"] = {HOSTILE + k: v for k, v in p["protected"].items()}
        p["strengths"] = {HOSTILE + k: v for k, v in p["strengths"].items()}
    record = SearchRecord.model_validate(poisoned(data))
    answers = {
        p.name: MeasureRecord.model_validate(poisoned(make_confirmed("x", p.effect / 9).model_dump(by_alias=True)))
        for p in record.points if p.record
    }  # fmt: skip
    found = render_search(record, answers)
    parsed = Parsed(found)
    assert not parsed.open
    assert parsed.tags == Parsed(page).tags
    assert not parsed.tags & {"script", "img", "iframe", "object", "link", "base", "form"}
    assert not {a for a in parsed.attributes if a.startswith("on")} | parsed.attributes & {"src", "style"}
    assert all(re.fullmatch(r"#[a-z0-9-]+", link) for link in parsed.links)
    assert "{{7*7}}{% raw %}" in found
    for char in "\u202e\u2066\x1b\x00\u200b\U000e0041\u2028\ud800":
        assert char not in found
    assert "␛[31m" in found
    found.encode("utf-8")
    holds(found)


def test_the_page_may_load_and_run_nothing(page: str) -> None:
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert not re.findall(r"(?:https?:)?//[a-z]", page)
    assert not re.findall(r"url\(|@import|\bsrc=|href=(?!\"#)", page)
    css = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)[0]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()}'" in page


def test_the_whole_page_is_well_formed(page: str) -> None:
    holds(page)
    assert len(every_svg(page)) >= 12


def test_a_bare_record_still_has_a_page() -> None:
    found = render_search(make_search(**BARE))
    holds(found)
    for said in ("No candidates", "No knee", "No answers", "No strengths", "Nothing was trained", "No times", "None on record"):
        assert said in found


@pytest.mark.parametrize("part", sorted(BARE))
def test_every_part_may_be_empty(part: str) -> None:
    holds(render_search(make_search(**{part: BARE[part]}), make_all_confirmed()))


def test_an_interrupted_run_says_so_first() -> None:
    seen = plain(render_search(make_search(finished=False)).partition("<main>")[2])
    assert seen.startswith("This run was interrupted. The page shows the best that it had found so far.")
    assert "no front yet" in plain(render_search(make_search(finished=False, points=[])))


def test_one_point_on_the_front_zero_damage_and_no_confirmation() -> None:
    zero: dict[str, Any] = {"damage": 0.0, "damage_low": 0.0, "damage_high": 0.0}
    found = render_search(one_point(**zero, confirmed=[], start=True, strengths={}))
    holds(found)
    assert "Not confirmed" in found
    assert "knee, also the start" in found
    holds(render_search(one_point(**zero, effect=0.0, effect_low=0.0, effect_high=0.0)))
    holds(render_search(one_point(effect=-2.0, effect_low=-3.0, effect_high=-1.0)))
    mixed = [p.model_copy(update=zero) if i == 0 else p for i, p in enumerate(make_search().points)]
    assert "zero at the left edge" in render_search(make_search(points=mixed))
    holds(render_search(make_search(points=mixed), make_all_confirmed()))


def test_a_point_that_was_not_measured_has_no_column_of_answers() -> None:
    some = make_all_confirmed()
    del some["closed-each"]
    found = render_search(make_search(), {**some, "unknown": make_confirmed("unknown", 1.0)})
    assert found.count('class="replies of-4"') == 6, "another that was measured stands in its place"
    assert "most effect" not in found.partition('id="answers"')[2].partition('id="strengths"')[0]


@pytest.mark.parametrize(("names", "labels"), [
    # what a run confirms: the knee, the most effect, halfway to the least damage; the front goes from w30 to closed-each
    (("gradient-w10", "gradient-w3", "closed-each"), ["less damage", "knee", "most effect"]),
    (("gradient-w30", "gradient-w3", "gradient-w1"), ["least damage", "knee", "more effect"]),
    (("gradient-w3", "gradient-w1", "closed-each"), ["knee", "gradient-w1", "most effect"]),
    (("gradient-w10", "gradient-w3"), ["less damage", "knee"]), (("gradient-w3",), ["knee"]), ((), []),
    (("gradient-w10", "gradient-w1"), ["gradient-w10", "gradient-w1"]),  # the knee was not measured
])  # fmt: skip
def test_answers_of_three_points_are_shown_where_three_were_confirmed(names: tuple[str, ...], labels: list[str]) -> None:
    measured = {n: make_all_confirmed()[n] for n in names}
    shown = search_view.read_points(make_search(), measured)
    assert [v.label for _, v in shown] == labels
    assert [p.name for p, _ in shown] == list(names)
    assert len({(v.label, v.shape) for _, v in shown}) == len(names)
    holds(render_search(make_search(), measured))


def test_odd_strengths_and_ticks_can_be_drawn() -> None:
    deep = {"*": {n: (-1.0) ** n * n / 20 for n in range(80)}, "embed": {0: 0.0}}
    drawing = search_charts.strengths_chart([search_charts.Profile("knee", "◆", "diamond", deep)], 342, "x")
    assert "every role" in drawing
    assert ET.fromstring(drawing) is not None
    assert search_charts.strengths_chart([], 342, "x") == search_charts.training_chart([], "", 342, "x") == ""
    flat = {"mlp_down": {3: 0.0}}
    assert ET.fromstring(search_charts.strengths_chart([search_charts.Profile("knee", "◆", "up", flat)], 342, "x")) is not None
    lone = [Tick(run=0, step=0, weight=1.0, effect_loss=-0.5, damage=0.0)]
    assert ET.fromstring(search_charts.training_chart(lone, "nats per token", 342, "x")) is not None
    many = [
        Tick(run=r, step=s, weight=r / 3, effect_loss=-r - s, damage=r * s * 1e-4, held_damage=0.0)
        for r in range(24) for s in range(3)
    ]  # fmt: skip
    assert ET.fromstring(search_charts.training_chart(many, "nats per token", 760, "x")) is not None


def test_very_long_names_keep_inside_the_drawings() -> None:
    names = {p.name: f"{p.name}-{'long' * 60}" for p in make_search().points}
    points = [p.model_copy(update={"name": names[p.name]}) for p in make_search().points]
    record = make_search(points=points, knee=names["gradient-w3"])
    holds(render_search(record, {names[k]: v for k, v in make_all_confirmed().items()}))
    for width in (342, 760):
        for t in ET.fromstring(search_front.front_chart(record, width, "x")).iter("text"):
            box_of(t, width)


def test_the_page_is_saved_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "search.html"
    save_search(make_search(), {}, target)
    first = target.read_text(encoding="utf-8")
    assert first == render_search(make_search())
    with pytest.raises(errors.WeightsmithError, match="exists"):
        save_search(make_search(), {}, target)
    save_search(make_search(finished=False), {}, target, replace=True)
    assert "interrupted" in target.read_text(encoding="utf-8")

    def broken(*_: object) -> str:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("weightsmith.report.searched.render_search", broken)
    with pytest.raises(RuntimeError):
        save_search(make_search(), {}, tmp_path / "other.html")
    assert [p.name for p in tmp_path.iterdir()] == ["search.html"]
