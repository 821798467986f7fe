"""The report: everything of the record is on the page, nothing of it is markup, and every drawing is well formed."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import sys
import unicodedata
import xml.etree.ElementTree as ET

import pytest

from report_pages import (
    HOSTILE,
    RECORDS,
    Parsed,
    every_svg,
    make_direction,
    make_record,
    measured,
    plain,
    poisoned,
    words_apart,
)
from weightsmith import errors
from weightsmith.measured import Difference, MeasureRecord
from weightsmith.records import Candidate
from weightsmith.report import answers, charts, intervals, panels, text, view
from weightsmith.report.html import render_report
from weightsmith.report.plots import layer_curve_png, layer_curve_svg, layer_curve_text
from weightsmith.report.variant import variants


@pytest.fixture(scope="module")
def one() -> str:
    return render_report(make_record())


@pytest.fixture(scope="module")
def two() -> str:
    return render_report([make_record(True), make_record(False)], title="Both")


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("many", [False, True])
def test_hostile_text_stays_text(many: bool, kind: str) -> None:
    clean = RECORDS[kind]()
    record = MeasureRecord.model_validate(poisoned(clean.model_dump(by_alias=True)))
    page = render_report([record, record] if many else record)
    assert sorted(Parsed(page).tags) == sorted(Parsed(render_report([clean, clean] if many else clean)).tags)
    parsed = Parsed(page)
    assert not parsed.open
    assert not parsed.tags & {"script", "img", "iframe", "object", "link", "base", "form"}
    assert not {a for a in parsed.attributes if a.startswith("on")} | parsed.attributes & {"src", "style"}
    assert all(re.fullmatch(r"#[a-z0-9-]+", link) for link in parsed.links)
    assert "{{7*7}}{% raw %}" in page
    for char in "\u202e\u2066\x1b\x00\u200b\U000e0041\u2028\ud800":
        assert char not in page
    assert "⟨U+202E⟩" in page
    assert "␛[31m" in page
    page.encode("utf-8")
    assert len(every_svg(page)) >= 8


def test_the_page_may_load_and_run_nothing(two: str) -> None:
    assert "default-src 'none'" in two
    assert not re.findall(r"(?:https?:)?//[a-z]", two.split("<body>")[0])
    assert not re.findall(r"url\(|@import|\bsrc=|href=(?!\"#)", two)
    css = re.findall(r"<style>(.*?)</style>", two, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in two


@pytest.mark.parametrize("kind", RECORDS)
def test_a_page_is_well_formed(kind: str) -> None:
    record = RECORDS[kind]()
    for page in (render_report(record), render_report([record, record])):
        parsed = Parsed(page)
        assert set(parsed.links) <= {f"#{i}" for i in parsed.ids}
        assert not parsed.open
        assert len(parsed.ids) == len(set(parsed.ids))
        for chart in every_svg(page):
            assert chart.findtext("title")
            assert chart.findtext("desc")
            assert not [v for e in chart.iter() for v in e.attrib.values() if "nan" in v or "inf" in v]


def test_every_figure_is_told_with_its_interval_and_n(two: str) -> None:
    seen = plain(two)
    seen_ = variants([make_record(True), make_record(False)])
    for comparison in view.comparisons(seen_):
        for change in comparison.changes:
            row = [change.base.value, change.base.interval, change.edited.value, change.edited.interval]
            left, _, right = " ".join(row), "", [change.change.value, change.change.interval, f"n = {change.n}"]
            assert left in seen
            assert " ".join([*right, f"p {change.p}", change.sign, change.verdict]) in seen
            assert change.test in seen
    for line in view.damage(seen_):
        for found in line.figures:
            assert found is not None
            assert f"{found[0].value} {found[0].interval} {found[1].n}" in seen


def test_figures_are_printed_as_a_reader_expects(one: str) -> None:
    seen = plain(one)
    for told in (
        "sentiment nothing asks for it", "+0.22 +0.14 to +0.30 −0.52 −0.60 to −0.44",
        "−0.74 −0.83 to −0.65 n = 48 p < 0.0001 ▼ falls", "6% 0% to 12% 58% 52% to 65%", "+52 +45 to +59",
        "sign-flip permutation (sentiment; continuations; probe)", "McNemar, exact (phrases)",
    ):  # fmt: skip
        assert told in seen
    assert "0.0382 0.0351 to 0.0413 48 bootstrap" in seen


def test_every_candidate_and_layer_is_in_a_table(one: str) -> None:
    seen, direction = plain(one), make_direction()
    for c in direction.candidates:
        assert f"{text.number(c.effect, 3, signed=True)} {text.number(c.kl, 4)} {c.n}" in seen
    for q in direction.quality:
        assert f"{q.layer} {q.auroc:.3f} {q.auroc_low:.3f} to {q.auroc_high:.3f} {text.number(q.split_half, 3)}" in seen


def test_the_record_is_whole(one: str) -> None:
    record, seen = make_record(), plain(one)
    derivation = record.derivation
    assert derivation is not None
    for told in (
        record.base.digest, record.edited.digest, derivation.digest, *derivation.outputs.values(), derivation.notes[0],
        "14 of 272 tensors changed", "constant: fitted", "layers: [14, 15, 16, 17, 18, 19, 20]", "weightsmith/measurements/2",
        "transformers 5.0.0", "1 min 41 s", "misses every other wording", "12fd25f77366", "greatest effect minus damage",
    ):  # fmt: skip
        assert told in seen


def test_an_interval_that_holds_zero_is_said_to_tell_nothing(two: str) -> None:
    assert text.verdict(-0.01, 0.11) == text.verdict(0.0, 0.0) == text.verdict(math.nan, math.nan) == "cannot tell"
    assert (text.verdict(0.01, 0.2), text.verdict(-0.2, -0.01)) == ("rises", "falls")
    assert "+0.05 (−0.01 to +0.11), cannot tell" in two


def test_two_records_stand_side_by_side(two: str) -> None:
    assert two.count('class="replies of-3"') == 8
    seen = plain(two)
    assert "▲ enhanced" in seen
    assert "▼ removed" in seen
    assert "2 of them degenerate after the edit, 0 before" in seen
    # one direction behind both edits is drawn once
    assert seen.count("All 16 tried edits as a table") == 1


def test_answers_beside_another_base_answer_get_rows_of_their_own() -> None:
    other = make_record(False)
    other.answers[0].base = "The base said something else."
    groups = answers.exchanges(variants([make_record(True), other]))
    assert [len(s.exchanges) for s in groups] == [5, 4]
    assert [reply is None for reply in groups[0].exchanges[0].replies] == [False, True]


def test_variants_never_share_a_name() -> None:
    same = variants([make_record(True)] * 3)
    assert len({v.label for v in same}) == 3
    assert len({(v.tone, v.shape) for v in same}) == 3
    assert [v.label for v in variants([make_record(True), make_record(False)])] == ["enhanced", "removed"]


@pytest.mark.parametrize("many", [False, True])
def test_a_bare_record_still_renders(many: bool) -> None:
    bare = make_record().model_copy(
        update={"differences": [], "damage": [], "answers": [], "scorers": [], "direction": None, "derivation": None,
                "options": {}, "ran": {}, "seconds": {}, "notes": [], "versions": {}, "feature_description": ""}
    )  # fmt: skip
    page = render_report([bare, bare] if many else bare)
    assert not Parsed(page).open
    for said in ("No answers are on record", "no search to show", "No paired differences", "No damage figures"):
        assert said in page


@pytest.mark.parametrize("left_out", ["candidates", "quality"])
def test_half_a_direction_still_renders(left_out: str) -> None:
    record = make_record()
    direction = make_direction().model_copy(update={left_out: []})
    record = record.model_copy(update={"direction": direction, "derivation": None})
    assert not Parsed(render_report(record)).open


def test_single_prompts_have_no_interval() -> None:
    alone = measured("sentiment", 0.3, 0.0, "", 1, "", "none")
    pair = Difference(name="sentiment", condition="", unit="", base=alone, edited=alone, value=0.0, low=-math.inf,
                      high=math.inf, p=1.0, test="sign-flip permutation", n=1)  # fmt: skip
    page = render_report(make_record().model_copy(update={"differences": [pair], "damage": [alone]}))
    assert "no interval" in page
    assert "cannot tell" in page
    assert not [v for c in every_svg(page) for e in c.iter() for v in e.attrib.values() if "nan" in v or "inf" in v]


def test_no_record_is_an_error() -> None:
    with pytest.raises(errors.RecipeError, match="at least one"):
        render_report([])


def test_visible_keeps_what_scripts_and_emoji_need() -> None:
    kept = "naïve, العربية, 👩\u200d👩\u200d👧, می\u200cخواهم, two\nlines\tand a tab"
    assert text.visible(kept) == kept
    assert text.visible("a\u200db") == "a⟨U+200D⟩b"
    assert text.visible("a\r\nb\rc") == "a\nb␍c"
    hidden = {"Cc", "Cf", "Cs"}
    shown = text.visible("".join(map(chr, range(0x11000))))
    assert {c for c in shown if unicodedata.category(c) in hidden} <= {"\n", "\t"}


def test_word_diffs_mark_what_is_new() -> None:
    found = text.word_diff("the quick brown fox sat down", "the quick red fox sat down")
    assert [p.text for p in found.pieces if p.changed] == ["red"]
    assert "".join(p.text for p in found.pieces) == "the quick red fox sat down"
    assert [text.words("the quick brown fox sat down")[i] for i in found.gone] == ["brown"]
    assert text.word_diff("all of this", "nothing alike here").rewritten
    assert text.word_diff("a" * 5 + " b" * 4000, "c " * 4000).rewritten
    assert text.word_diff("same", "same").same
    assert text.word_diff("", "").pieces == []


@pytest.mark.parametrize("width", [342, 760])
def test_pareto_labels_do_not_overlap(width: int) -> None:
    words_apart(charts.pareto(make_direction().candidates, width, "x"), width)


def test_charts_survive_odd_numbers() -> None:
    one_point = [Candidate(kind="add", source=1, layers=[1], amount=1, effect=0.0, kl=0.0, n=1)]
    assert ET.fromstring(charts.pareto(one_point, 760, "x")) is not None
    lost = [c.model_copy(update={"kl": math.nan}) for c in one_point]
    assert charts.pareto(lost, 760, "x") == ""
    spread = [c.model_copy(update={"kl": 10.0**-i, "effect": i / 3}) for i, c in enumerate(one_point * 6)]
    assert "log scale" in charts.pareto(spread, 760, "x")
    assert intervals.time_bar({"a": 0.0}, 300, "x") == ""
    assert panels.kl_distribution([math.nan], [], (0.1, 1.0), "ink", 300, "x") == ""
    for values in ([0.0], [0.0, 0.0, 1e-9], [5.0], [1e-7, 400.0], [math.inf, 0.2]):
        shown = [panels.Mark("largest", v, math.nan, math.nan, "dot", "x") for v in values]
        drawing = panels.kl_distribution(values, shown, panels.kl_range(values), "ink", 342, "x")
        assert not [v for e in ET.fromstring(drawing).iter() for v in e.attrib.values() if "nan" in v or "inf" in v]
    ranges = {"a": (0.0, 0.0), "b": (-1.0, 3.0), "c": (0.2, 9.0), "d": (-4.0, -1.0)}
    wide = intervals.aligned(ranges)
    assert len({round(-low / (high - low), 9) for low, high in wide.values()}) == 1
    assert all(wide[k][0] <= low and high <= wide[k][1] for k, (low, high) in ranges.items())
    assert ET.fromstring(panels.stacked([panels.Slice("a", math.nan, "a")], 300, "t", "x")) is not None


def test_the_layer_curve_is_a_file_of_its_own() -> None:
    drawing = layer_curve_svg(make_direction())
    root = ET.fromstring(drawing)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in drawing
    assert "layer 18 to add" in drawing
    hostile = make_direction().model_copy(update={"feature": HOSTILE})
    assert ET.fromstring(layer_curve_svg(hostile)) is not None


def test_the_layer_curve_as_png(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = make_direction().model_copy(update={"feature": "$\\frac$ 憂鬱" + HOSTILE})
    pytest.importorskip("matplotlib")
    assert layer_curve_png(hostile).startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(errors.MissingExtra) as caught:
        layer_curve_png(make_direction())
    assert caught.value.hint == "pip install 'weightsmith[plot]'"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_layer_curve_in_a_terminal(width: int) -> None:
    shown = layer_curve_text(make_direction(), width)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width
    assert not any(line != line.rstrip() for line in lines)
    marks = next(line for line in lines if line.split() == ["▼", "▲"])
    cell = (marks.index("▲") - marks.index("▼")) // 4
    assert marks.index("▼") == 7 + 14 * cell


def test_many_layers_share_columns_and_none_is_an_error() -> None:
    quality = [make_direction().quality[i % 30].model_copy(update={"layer": i}) for i in range(126)]
    deep = make_direction().model_copy(update={"quality": quality})
    assert max(map(len, layer_curve_text(deep, 80).splitlines())) <= 80
    with pytest.raises(errors.RecipeError):
        layer_curve_text(make_direction().model_copy(update={"quality": []}), 80)
