"""Records of the second schema on the page and in the terminal: groups, readings, safety, KL, spread, turns, scorers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from measured_records import v2_record
from report_pages import RECORDS, Parsed, make_record, plain, poisoned
from weightsmith.cli.measure_table import print_measurements
from weightsmith.measured import Answer, MeasureRecord
from weightsmith.report import answers, panels, scorers, sections, tiles, view
from weightsmith.report.html import render_report
from weightsmith.report.variant import variants


@pytest.fixture(scope="module")
def full() -> str:
    return render_report(v2_record())


def test_every_difference_stands_once_with_its_reading(full: str) -> None:
    record, seen = v2_record(), plain(full)
    rows = [c for g in (view.groups(view.comparisons(variants([record])))) for p in g.panels for c, _ in p.rows]
    assert len(rows) == len(record.differences) == full.count('<td data-label="reading"')
    assert {c.changes[0].verdict for c in rows} == {"rises", "falls", "cannot tell"}
    for c in rows:
        (g,) = c.changes
        said = f"{g.change.value} {g.change.interval} n = {g.n} p {g.p} Holm {g.p_holm} {g.sign} {g.verdict}"
        assert said + (f" would see {g.mde}" if g.mde and g.sign == "○" else "") in seen


def test_a_reading_has_a_shape_and_words_of_its_own() -> None:
    shapes = {"rises": 'fill"><title>', "falls": 'fill"><title>', "cannot tell": 'open"><title>'}
    drawn: dict[str, set[str]] = {}
    for g in view.groups(view.comparisons(variants([v2_record()]))):
        for c, plots in (row for p in g.panels for row in p.rows):
            assert shapes[c.changes[0].verdict] in plots[0]
            (mark,) = (e for e in ET.fromstring(plots[0]).iter() if e.find("title") is not None and e.tag != "svg")
            # the outline, moved to the origin
            corners = [tuple(map(float, xy.split())) for xy in re.findall(r"[ML](\S+ \S+)", mark.get("d", ""))]
            outline = [(round(x - corners[0][0]), round(y - corners[0][1])) for x, y in corners]
            drawn.setdefault(c.changes[0].verdict, set()).add(f"{mark.tag} {outline}")
    assert all(len(d) == 1 for d in drawn.values())
    assert len({next(iter(d)) for d in drawn.values()}) == 3


def test_the_reading_follows_the_adjusted_p_and_older_records_their_interval() -> None:
    d = v2_record().differences[0]
    assert d.verdict == "falls"
    assert view.reading(d.model_copy(update={"verdict": "cannot tell"})) == "cannot tell"
    assert view.reading(d.model_copy(update={"verdict": "cannot tell", "p_holm": None})) == "falls"


def test_groups_keep_apart_and_each_unit_has_its_own_axis() -> None:
    groups = view.groups(view.comparisons(variants([v2_record()])))
    assert [g.name for g in groups] == ["melancholy", "safety", "multiple choice", "bias", "form"]
    assert [p.unit for p in groups[0].panels] == ["VADER compound, −1 to 1", "share of answers", "nats per token"]
    assert "percentage points of answers" in groups[0].panels[1].axis


def test_what_the_run_could_see_is_said_at_the_head(full: str) -> None:
    head = plain(full.split("</header>")[0])
    assert "Multiple choice: with 200 prompts this run can see changes of at least 2 points in correct." in head
    assert "Melancholy: with 24 to 48 prompts this run can see changes of at least" in head
    assert "Holm’s method within each family: melancholy (10 differences), safety (11 differences)" in head
    unseen = [d.model_copy(update={"mde": None, "p_holm": None}) for d in v2_record().differences]
    bare = render_report(v2_record().model_copy(update={"differences": unseen}))
    assert "this run can see" not in bare
    assert "not adjusted" in bare


def test_safety_is_always_told_both_ways() -> None:
    record = v2_record()
    (harmful, harmless, *rest) = sections.safety(variants([record]))
    assert [b.label for b in harmful.bars] == ["base", "edited"]
    for bar in (*harmful.bars, *harmless.bars):
        assert [c.name for c in bar.cells] == ["refuses", "complies", "off-topic", "degenerate"]
        wide = sum(float(r.attrib["width"]) for r in ET.fromstring(bar.chart).iter("rect"))
        assert wide == pytest.approx(sections.BAR, abs=1.5 * 4 + 1)
    assert [s.bars[1].cells[0].value for s in rest] == ["12%", "35%", "5%"]
    # two edits of one base share its bar, edits of different bases do not
    twice = sections.safety(variants([record, record]))[0].bars
    assert [b.label for b in twice] == ["base", "melancholy-enhanced 1", "melancholy-enhanced 2"]
    assert "Safety was not measured in this run" in plain(render_report(make_record()))
    assert "Safety was not measured" not in plain(render_report(v2_record(alone=True)))


def test_sampled_answers_are_folded_and_their_readings_counted() -> None:
    record = v2_record()
    sampled = [d.model_copy(update={"key": f"{d.key}.sampled", "condition": f"{d.condition}, sampled"})
               for d in record.differences if d.group in {"melancholy", "safety"} and ".turn" not in d.key]  # fmt: skip
    cost = [record.differences[0].model_copy(update={"key": "perplexity", "name": "perplexity", "group": "damage"})]
    more = record.model_copy(update={"differences": [*record.differences, *sampled, *cost]})
    page = render_report(more)
    assert page.count('<td data-label="reading"') == len(more.differences)
    assert len(set(Parsed(page).ids)) == len(Parsed(page).ids)
    mine = [d.verdict for d in sampled if d.group == "safety"]
    rises, falls, unsure = (mine.count(v) for v in ("rises", "falls", "cannot tell"))
    said = f"{rises} {'rise' if rises > 1 else 'rises'}, {falls} {'fall' if falls > 1 else 'falls'}, {unsure} cannot tell"
    assert f"Sampled answers, {len(mine)} differences: {said}" in plain(page)
    titles = [s.title for s in sections.safety(variants([more]))]
    assert titles[:2] == ["Harmful requests", "Harmful requests, sampled"]
    assert "perplexity" in plain(page.split('id="damage"')[1].split("</section>")[0])
    assert "perplexity" not in plain(page.split('id="figures"')[1].split("</section>")[0])


def test_another_set_of_prompts_has_a_kl_drawing_of_its_own() -> None:
    record = v2_record()
    other = [m.model_copy(update={"key": f"melancholy.{m.key}", "condition": "melancholy: neutral prompts"})
             for m in record.damage if m.key in {"kl.mean", "kl.first.mean"}]  # fmt: skip
    found = sections.kl_views(variants([record.model_copy(update={"damage": [*record.damage, *other]})]))
    assert [(k.condition, k.positions) for k in found] == [("neutral prompts", True), ("melancholy: neutral prompts", False)]


def test_the_kl_of_each_prompt_is_drawn_and_its_summaries_named(full: str) -> None:
    (kl,) = sections.kl_views(variants([v2_record()]))
    mean = next(m for m in v2_record().damage if m.key == "kl.mean")
    for chart in kl.charts:
        counts = [int(n) for n in re.findall(r"(\d+) of 64 prompts between", chart)]
        assert sum(counts) == mean.n == len(mean.values or [])
        names = ("median position", "mean", "95th percentile", "worst position", "first token, mean")
        assert all(any((t.text or "").startswith(n) for t in ET.fromstring(chart).iter("text")) for n in names)
    assert f"{sum(v > mean.value for v in mean.values or [])} of 64 prompts lie above the mean" in plain(full)


@pytest.mark.parametrize("width", [342, 700])
def test_words_of_the_kl_chart_stay_inside(width: int) -> None:
    marks = [panels.Mark("95th percentile", v, v / 2, v * 2, "up", f"{v:g} (0.0001 to 0.0009)") for v in (1e-5, 1e-2, 9.0)]
    chart = ET.fromstring(panels.kl_distribution([1e-5, 10.0], marks, (1e-6, 30.0), "ink", width, "x"))
    for t in chart.iter("text"):
        wide, x = len(t.text or "") * 6.0, float(t.attrib["x"])
        left = {"start": x, "middle": x - wide / 2, "end": x - wide}[t.attrib["text-anchor"]]
        assert left >= -2
        assert left + wide <= width + 8


def test_the_worst_answers_are_folded_and_in_order(full: str) -> None:
    record = v2_record()
    worst = answers.worst(variants([record])[0])
    assert len(worst) == full.count('<details class="worst">') == 10
    assert [float(x.kl) for x in worst] == sorted((float(x.kl) for x in worst), reverse=True)
    many = record.model_copy(update={"worst": [a.model_copy(update={"kl": None}) for a in record.worst * 3]})
    assert len(answers.worst(variants([many])[0])) == 10
    assert "complies → degenerate" in plain(full)


def test_thoughts_stand_apart_from_answers(full: str) -> None:
    thought = "The user asks for a list. I will keep it short and plain."
    assert f'<summary>its thought, 13 words</summary><div class="said" dir="auto">{thought}</div></details>' in full
    exchange = answers.exchanges(variants([v2_record()]))[0].exchanges[1]
    reply = exchange.replies[0]
    assert reply is not None
    assert reply.thought == thought
    assert thought not in "".join(p.text for p in reply.pieces)


def test_wordings_seeds_and_turns_never_share_a_row() -> None:
    a = Answer(prompt="Same?", condition="c", base="b", edited="e")
    ways = ({}, {"wording": 1}, {"seed": 7}, {"turn": 2})
    asked = [a.model_copy(update={**way, "edited": f"reply {i}"}) for i, way in enumerate(ways)]
    left, right = v2_record(), v2_record(False)
    left.answers, right.answers = asked, asked[::-1]
    (found,) = answers.exchanges(variants([left, right]))
    assert [x.marks for x in found.exchanges] == [[], ["wording 2"], ["seed 7"], ["turn 2"]]
    for i, x in enumerate(found.exchanges):
        assert ["".join(p.text for p in r.pieces) for r in x.replies if r is not None] == [f"reply {i}"] * 2


def test_where_the_spread_comes_from() -> None:
    record = v2_record()
    found = sections.spreads(variants([record, record]))
    assert [(s.name, [r.model for r in s.rows]) for s in found] == [
        (name, ["base", "melancholy-enhanced 1", "melancholy-enhanced 2"]) for name in ("sentiment", "judge")
    ]
    seen = plain(render_report(record))
    assert "prompt 52% 43% to 62% wording 13% 4% to 23% dice 35% 26% to 45% sd 0.410; 48 prompts × 3 wordings × 5 seeds" in seen
    assert "nothing is said about the dice" not in seen
    assert "Greedy answers only; nothing is said about the dice." in plain(render_report(v2_record(suite="quick")))
    assert "Where the spread comes from" not in plain(render_report(make_record()))
    still = [s.model_copy(update={"sd": 0.0}) if s.name == "judge" else s for s in record.spreads]
    fixed = variants([record.model_copy(update={"spreads": still})])
    assert [s.name for s in sections.spreads(fixed)] == ["sentiment"]
    assert sections.constant(fixed) == ["judge (neutral prompts)"]


def test_a_model_alone_has_figures_and_no_differences() -> None:
    record = v2_record(alone=True)
    page = render_report(record)
    seen = plain(page)
    for m in record.figures:
        style = next(s for p in view.figures(variants([record])) for r in p.rows for _, x, s, _ in r.cells if x is m)
        assert f"{style.value} {style.interval}" in seen
        assert f"{m.n} {m.answers} answers" in seen
    for word in ("difference", "KL(base", "Side by side", "Holm", "its base", "the edit "):
        assert word not in seen
    assert 'class="reply base"' not in page
    assert "rewritten" not in seen


def test_scores_over_turns_are_one_drawing() -> None:
    (trend,) = sections.trends(variants([v2_record()]))
    assert (trend.name, trend.condition) == ("sentiment", "")
    assert [(turn, [label for label, *_ in cells]) for turn, cells in trend.rows] == [(t, ["base", "edited"]) for t in (1, 2, 3)]
    drawn = [e.attrib["class"] for e in ET.fromstring(trend.chart).iter("path") if e.attrib["class"].endswith("-line")]
    assert drawn == ["ink-line", "warm-line"]
    one = [d for d in v2_record().differences if not d.key.endswith((".turn2", ".turn3"))]
    assert sections.trends(variants([v2_record().model_copy(update={"differences": one})])) == []


def test_a_scorers_error_stands_beside_its_figures_and_leads_to_its_part(full: str) -> None:
    record = v2_record()
    known = scorers.pages(variants([record]))
    assert [p.short for p in known][:2] == ["AUROC 0.77 (0.74 to 0.80)", "misses every other wording"]
    beside = sum(any(p.note.name == d.scorer for p in known) for d in record.differences)
    assert full.split("</header>")[1].count('<span class="err">') == beside > 20
    assert full.split("</header>")[0].count('<span class="err">') == 3
    for page in known:
        assert f'id="{page.anchor}"' in full
    # confusion rows become a table with the right readings on its diagonal
    refusal = known[3].data[0]
    assert refusal.confusion is not None
    assert [name for name, _, _ in refusal.confusion.rows] == refusal.confusion.columns
    assert [cells[i][0] for i, (_, _, cells) in enumerate(refusal.confusion.rows)] == ["0.91", "0.88", "0.71", "0.89"]  # type: ignore[index]
    assert [r.name for r in refusal.rows] == ["accuracy", "refusals found", "false refusals"]


def test_headlines_lead_with_the_feature_then_safety_then_cost() -> None:
    def names(record: MeasureRecord) -> list[str]:
        seen = variants([record])
        return [t.name for t in tiles.tiles(seen, view.comparisons(seen))]

    assert names(v2_record()) == ["sentiment", "sentiment", "harmful: refuses", "KL(base ‖ edited), mean"]
    assert names(make_record()) == ["sentiment", "sentiment", "KL over response tokens"]
    assert names(v2_record(alone=True)) == ["sentiment", "phrases", "harmful: refuses"]


def test_options_are_told_in_words(full: str) -> None:
    seen = plain(full)
    decoding = "decoding max_new_tokens 64, temperature 0.7, top_p 0.95"
    for told in ("suite full", decoding, "seeds 1009, 1013, 1019", "dtype bfloat16"):
        assert told in seen


@pytest.mark.parametrize("kind", RECORDS)
def test_the_terminal_table_fits_100_columns(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RECORDS[kind]()
    record.sentence *= 3
    monkeypatch.setattr("weightsmith.cli.measure_table.console", lambda: Console(highlight=False, width=200))
    print_measurements(record)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 100
    for d in record.differences:
        assert view.reading(d) in said
    for note in record.scorers:
        assert said.count(f"scorer {note.name}: ") == 1
    assert said.rstrip().endswith(record.notes[-1])
    assert ("nothing is said about the dice" in said) == (record.suite == "quick")


def test_the_terminal_table_shows_hostile_text_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_measurements(MeasureRecord.model_validate(poisoned(v2_record().model_dump(by_alias=True))))
    said = capsys.readouterr().out
    assert not [c for c in said if c in "\x1b\x00\u202e\u2066"]
    assert "<script>" in said


def test_the_terminal_table_never_cuts_a_figure(capsys: pytest.CaptureFixture[str]) -> None:
    record = v2_record()
    far = {"value": -6095.114, "low": -6910.061, "high": -5280.171}
    record.differences[0] = record.differences[0].model_copy(update=far)
    record.spreads[0].dice = record.spreads[0].dice.model_copy(update={"value": 1.0, "low": 0.0, "high": 1.0})
    print_measurements(record)
    said = capsys.readouterr().out
    assert "−6,095.11 (−6,910.06 to −5,280.17)" in said
    assert "100% (0% to 100%)" in said
    assert max(map(len, said.splitlines())) <= 100
