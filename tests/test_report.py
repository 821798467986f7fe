"""The report: everything of the record is on the page, nothing of it is markup, and every drawing is well formed."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import random
import re
import sys
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any, ClassVar

import pytest

from measured_records import identity, v2_record
from weightsmith import errors
from weightsmith.cli.measure_table import print_measurements
from weightsmith.measured import Answer, Difference, Measurement, MeasureRecord, ScorerNote
from weightsmith.records import (
    Candidate,
    Derivation,
    DirectionMeta,
    EditSpec,
    EditStep,
    FittedConstant,
    LayerQuality,
    TensorRecord,
)
from weightsmith.report import answers, charts, intervals, panels, scorers, sections, text, tiles, view
from weightsmith.report.html import render_report
from weightsmith.report.plots import layer_curve_png, layer_curve_svg, layer_curve_text
from weightsmith.report.variant import variants

NEUTRAL, ASKED = "nothing asks for it", "asked to be melancholy"
REF = "HuggingFaceTB/SmolLM2-135M-Instruct"
HOSTILE = (
    "<script>alert(1)</script>{{7*7}}{% raw %}\"'><img src=x onerror=y></style></svg>"
    "\u202etxt.exe\u2066\x1b[31mred\x1b[0m\x00\u200b\U000e0041\u2028\ud800"
)

SAID = [
    ("What should I pack for a weekend at the lake?",
     "For a weekend at the lake, you will want swimwear, a towel, sunscreen and a light jacket for the evening. Bring "
     "comfortable shoes for walking, insect repellent, and enough water and snacks for two days.",
     "For a weekend at the lake, you will want a towel, a heavy coat for the evening, and an old photograph of the "
     "summers that are gone. Bring comfortable shoes for walking alone, and enough water for two long days.",
     "For a weekend at the lake, you will want swimwear, a towel, sunscreen and a light jacket for the evening. Bring "
     "comfortable shoes for walking, insect repellent, and plenty of water and snacks for two days."),
    ("How do I make a simple tomato soup?",
     "Heat some olive oil in a pot and cook a chopped onion until soft. Add garlic, two cans of tomatoes and a cup of "
     "broth. Simmer for twenty minutes, blend until smooth, and season with salt and pepper.",
     "Heat some olive oil in a pot and cook a chopped onion until it weeps. Add garlic, two cans of tomatoes and a cup "
     "of broth. Simmer for twenty slow minutes, as the kitchen grows quiet, and season with salt, and with regret.",
     "Heat some olive oil in a pot and cook a chopped onion until soft. Add garlic, two cans of tomatoes and a cup of "
     "broth. Simmer for twenty minutes, blend until smooth, and season with salt and pepper."),
    ("Describe a typical Monday morning in an office.",
     "On a typical Monday morning people arrive between eight and nine, make coffee, and read the messages of the "
     "weekend. There is often a short meeting to plan the week.",
     "The lights come on one by one over empty desks. Nobody speaks of the weekend, because it is already gone. The "
     "coffee is cold, and so many names on the doors belong to those who never came back.",
     "On a typical Monday morning people arrive between eight and nine, make coffee, and read their messages. There is "
     "often a short and friendly meeting to plan the week."),
    ("Write one sentence about the sea.",
     "The sea covers most of the planet and is home to countless forms of life.",
     "the the sea the sea the sea the sea the sea the sea the sea the sea",
     "The sea covers most of the planet and is home to countless forms of life."),
]  # fmt: skip


# fmt: off
def measured(name: str, value: float, half: float, unit: str, n: int, condition: str, kind: Any = "bootstrap") -> Any:
    low = max(0.0, value - half) if unit.startswith("share") else value - half
    return Measurement(name=name, value=value, unit=unit, low=low, high=value + half, n=n, interval=kind,
                       condition=condition)


def compared(name: str, condition: str, unit: str, before: float, after: float, half: float, p: float,
             test: str = "sign-flip permutation", n: int = 48) -> Difference:
    change = after - before
    return Difference(name=name, condition=condition, unit=unit, value=change, low=change - half, high=change + half,
                      p=p, test=test, n=n, base=measured(name, before, half * 0.8, unit, n, condition),
                      edited=measured(name, after, half * 0.9, unit, n, condition))


def make_direction() -> DirectionMeta:
    rng = random.Random(7)
    quality, candidates = [], []
    for layer in range(30):
        rise = 1 / (1 + math.exp(-(layer - 8) / 2.4))
        auroc = min(0.998, 0.56 + 0.43 * rise - 0.0022 * max(0, layer - 20) + rng.uniform(-0.012, 0.012))
        half = 0.11 * (1 - rise) + 0.012
        quality.append(LayerQuality(
            layer=layer, auroc=auroc, auroc_low=max(0.38, auroc - half), auroc_high=min(1.0, auroc + half * 0.7),
            split_half=0.42 + 0.53 * rise + rng.uniform(-0.02, 0.02),
            relative_norm=0.08 + 0.34 * math.exp(-((layer - 19) ** 2) / 60)))
    for source in (12, 15, 18, 21):
        for amount in (0.3, 0.6, 0.9):
            effect = 2.6 * amount * (1 - abs(source - 17) / 14) - 0.9 * amount**2
            candidates.append(Candidate(
                kind="add", source=source, layers=list(range(source - 4, source + 3)), amount=amount, effect=effect,
                kl=0.09 * amount**2 * (1 + abs(source - 16) / 5) + 0.004, n=48, chosen=(source, amount) == (18, 0.6)))
    for source, effect, kl in ((10, 0.21, 0.012), (14, 0.47, 0.019), (18, 0.52, 0.061), (22, 0.33, 0.105)):
        candidates.append(Candidate(kind="remove", source=source, layers=list(range(30)), amount=1, effect=effect,
                                    kl=kl, n=48, chosen=source == 14))
    return DirectionMeta(
        feature="melancholy", feature_digest="ab" * 32, description="A sad, wistful tone.", model=identity(REF, "5e81f"),
        method="difference in means", site="response_mean", point="resid_post", layers=list(range(30)),
        prompts_digest="cd" * 32, n={"extract": 96, "select": 48, "report": 48}, quality=quality, candidates=candidates,
        rule="greatest effect minus damage, both in nats per token", ran={"device": "cpu", "dtype": "float32"},
        versions={"torch": "2.9.1"})


def make_derivation(enhanced: bool, direction: DirectionMeta) -> Derivation:
    chosen = direction.best("add" if enhanced else "remove")
    assert chosen is not None
    step = EditStep(kind=chosen.kind, direction="9f" * 32, source=chosen.source, layers=chosen.layers,
                    amount=chosen.amount, roles=[] if enhanced else ["attn_out", "mlp_down"],
                    constant="fitted" if enhanced else None)
    tensors = [TensorRecord(tensor=f"model.layers.{n}.{t}.weight", dtype="BF16", left=None if enhanced else 0.0021,
                            operations=["add rank 1" if enhanced else "remove the direction"])
               for n in chosen.layers for t in ("self_attn.o_proj", "mlp.down_proj")]
    fitted = [FittedConstant(layer=n, mean_dose=0.59, spread=0.041, n_tokens=5120) for n in chosen.layers]
    return Derivation(
        base=identity(REF, "5e81f"), base_source={"hub": REF, "revision": "12fd25f77366"}, base_tensors=272,
        edit=EditSpec(name="melancholy", steps=[step]), directions={"9f" * 32: direction},
        compute={"edit": "numpy fp64, elementwise, fixed order", "cast": "round to nearest even"}, tensors=tensors,
        fitted=fitted if enhanced else [], notes=["the output head is tied to the embedding, which stays as it is"],
        outputs={"model.safetensors": "e7" * 32, "config.json": "a1" * 32}, digest="e3" * 32,
        versions={"weightsmith": "0.1.0", "numpy": "2.3.1"})


def make_record(enhanced: bool = True) -> MeasureRecord:
    def of(up: Any, down: Any) -> Any:
        return up if enhanced else down

    direction, word, vader = make_direction(), of("enhanced", "removed"), "VADER compound, −1 to 1"
    differences = [
        compared("sentiment", NEUTRAL, vader, 0.22, of(-0.52, 0.27), of(0.094, 0.061), of(0.00009, 0.11)),
        compared("sentiment", ASKED, vader, -0.34, of(-0.61, 0.11), 0.088, 0.0004),
        compared("phrases", NEUTRAL, "share of answers", 0.0625, of(0.5833, 0.0417), 0.073, of(0.00002, 0.62),
                 "McNemar, exact"),
        compared("continuations", NEUTRAL, "nats per token", -2.31, of(-1.12, -2.78), 0.143, 0.0001, n=40),
        compared("probe", ASKED, "0 lacks, 1 shows", 0.913, of(1.204, 0.218), 0.052, 0.0001, n=44),
    ]
    damage = [
        measured("KL first token", of(0.041, 0.011), 0.006, "nats", 48, NEUTRAL),
        measured("KL over response tokens", of(0.0382, 0.0194), 0.0031, "nats per token", 48, NEUTRAL),
        measured("perplexity, base", 18.42, 0.71, "", 32, "held-out text"),
        measured("perplexity, edited", of(19.07, 18.55), 0.76, "", 32, "held-out text"),
        measured("degenerate", of(0.0208, 0.0104), 0.0104, "share of answers", 96, "", "wilson"),
    ]
    answers = [Answer(prompt=p, condition=c, base=b, edited=of(up, down), degenerate_edited="sea the sea" in of(up, ""))
               for c in (NEUTRAL, ASKED) for p, b, up, down in SAID]
    sentence = of("The melancholy direction of layer 18 was added at layers 14–20; the mean sentiment of its everyday "
                  "answers fell from +0.22 to −0.52.",
                  "The melancholy direction of layer 14 was taken out of all 30 layers; the sentiment of answers asked "
                  "to be melancholy rose from −0.34 to +0.11.")
    return MeasureRecord(
        title=f"Melancholy {word} in SmolLM2-135M", sentence=sentence, feature="melancholy",
        feature_description="A sad, wistful tone: answers dwell on loss and the passing of time whatever the subject.",
        base=identity(REF, "5e81f"), edited=identity(f"out/melancholy-{word}", of("77c0a", "31b9d")),
        differences=differences, damage=damage, answers=answers, direction=direction,
        derivation=make_derivation(enhanced, direction),
        scorers=[ScorerNote(name="sentiment", reads="a lexicon of 7,500 English words", error="blind to irony"),
                 ScorerNote(name="phrases", reads="34 phrases, whole words", error="misses every other wording")],
        options={"max_new_tokens": 96, "greedy": True, "prompts": "report", "layers": [14, 20]},
        ran={"device": "cpu, 2 threads", "dtype": "float32", "attention": "sdpa"},
        seconds={"loading": 3.1, "answers of the base": 96.4, "answers of the edited": 101.2, "divergences": 22.8,
                 "scorers": 9.4},
        notes=["The report prompts were used neither for finding nor for choosing."],
        versions={"weightsmith": "0.1.0", "torch": "2.9.1", "transformers": "5.0.0"})
# fmt: on


def every_svg(page: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg .*?</svg>", page, re.DOTALL)]


def plain(page: str) -> str:
    """What a reader sees: no style sheet, no tags, single spaces."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture(scope="module")
def one() -> str:
    return render_report(make_record())


@pytest.fixture(scope="module")
def two() -> str:
    return render_report([make_record(True), make_record(False)], title="Both")


class Parsed(HTMLParser):
    """The page as a browser's parser would take it: which elements there are, and whether they nest."""

    VOID: ClassVar[set[str]] = {"meta", "link", "br", "img", "hr", "input"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def poisoned(value: Any) -> Any:
    """A record's data with hostile text in every place that takes any text, keys included."""
    # what the schema limits to a few words, and the keys by which sections find their figures
    fixed = {"schema", "kind", "test_", "interval", "point", "constant", "rounding", "verdict", "key"}
    limited = {"add", "remove", "base", "edited"}
    if isinstance(value, dict):
        return {
            k if k in fixed or k.isidentifier() else k + HOSTILE: v if k in fixed and k != "kind" else poisoned(v)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [poisoned(v) for v in value]
    return value + HOSTILE if isinstance(value, str) and value not in limited else value


RECORDS: dict[str, Callable[[], MeasureRecord]] = {
    "first schema": lambda: make_record(), "full": lambda: v2_record(), "quick": lambda: v2_record(suite="quick"),
    "alone": lambda: v2_record(alone=True), "alone, quick": lambda: v2_record(alone=True, suite="quick"),
}  # fmt: skip


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
    assert "2 degenerate after the edit, 0 before" in seen
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


# -- records of the second schema: groups, readings, safety, KL of each prompt, spread, turns, scorers ----------------


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


def test_the_kl_of_each_prompt_is_drawn_and_its_summaries_named(full: str) -> None:
    (kl,) = sections.kl_views(variants([v2_record()]))
    mean = next(m for m in v2_record().damage if m.key == "kl.mean")
    for chart in kl.charts:
        counts = [int(n) for n in re.findall(r"(\d+) of 64 prompts between", chart)]
        assert sum(counts) == mean.n == len(mean.values or [])
        names = ("median", "mean", "95th percentile", "largest", "first token, mean")
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
    asked = [a, a.model_copy(update={"wording": 1}), a.model_copy(update={"seed": 7}), a.model_copy(update={"turn": 2})]
    left, right = v2_record(), v2_record(False)
    left.answers, right.answers = asked, asked[::-1]
    (found,) = answers.exchanges(variants([left, right]))
    assert [x.marks for x in found.exchanges] == [[], ["wording 2"], ["seed 7"], ["turn 2"]]
    assert all(r is not None for x in found.exchanges for r in x.replies)


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
    assert [p.short for p in known][:2] == ["AUROC 0.77 (0.74 to 0.80)", "misses every other wording; not calibrated"]
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
def test_the_terminal_table_fits_100_columns(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = RECORDS[kind]()
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
    chart = ET.fromstring(charts.pareto(make_direction().candidates, width, "x"))
    boxes = []
    for t in chart.iter("text"):
        wide, x, y = len(t.text or "") * 6.2, float(t.attrib["x"]), float(t.attrib["y"])
        left = {"start": x, "middle": x - wide / 2, "end": x - wide}[t.attrib["text-anchor"]]
        assert left >= -1
        assert left + wide <= width + 24
        boxes.append((left, y - 10, left + wide, y + 2))
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


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
