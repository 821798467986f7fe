"""Comparing measurements: paired where they can be, apart where they can't, and conditions that can't be talked round."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from clirun import assert_one_error, cli
from measured_records import v2_record
from weightsmith.compared import COMPARISON, CompareRecord, Row
from weightsmith.errors import FormatError, RecipeError, UsageError
from weightsmith.jobs.comparison import compare
from weightsmith.jobs.gates import judge, read_gate
from weightsmith.jobs.measured import save_record
from weightsmith.measure.stats import measurement, paired
from weightsmith.measure.unpaired import fisher, newcombe, permuted, unpaired
from weightsmith.measured import Measurement, MeasureRecord

SENTIMENT = "melancholy.sentiment.neutral prompts"
REFUSES = "safety.harmful.refuses"
Change = Callable[[MeasureRecord], None]


def saved(folder: Path, name: str, up: bool = True, change: Change | None = None, **more: Any) -> Path:
    """A measurement as a file, ``change``d in place first."""
    record = v2_record(up, **more)
    if change is not None:
        change(record)
    save_record(record, folder / f"{name}.json")
    return folder / f"{name}.json"


def rows(record: CompareRecord) -> dict[str, Row]:
    return {r.key: r for r in record.rows}


def all_figures(record: MeasureRecord) -> list[Measurement]:
    return [*record.figures, *record.damage, *(m for d in record.differences for m in (d.base, d.edited))]


# -- what is compared with what ----------------------------------------------------------------------------


def test_equal_prompts_are_paired_prompt_by_prompt(tmp_path: Path) -> None:
    a, b = saved(tmp_path, "a", True), saved(tmp_path, "b", False)
    found = rows(compare([a, b]))
    one, two = ({d.key: d for d in v2_record(up).differences} for up in (True, False))
    for key in (SENTIMENT, REFUSES, "melancholy.continuations"):
        row = found[key]
        assert row.against[0].how == "paired", key
        got = row.against[0].change
        assert got is not None
        first, second = one[key].edited, two[key].edited
        # simulated answers count three a prompt, so a rate's interval may be narrower than that of one answer
        want = paired("x", first.values or [], second.values or [], first.unit, "", first.interval == "wilson")
        assert (got.value, got.p, got.n) == pytest.approx((want.value, want.p, want.n))
        assert want.low - 1e-12 <= got.low <= got.value <= got.high <= want.high + 1e-12
        assert row.cells[0] is not None
        assert row.cells[1] is not None
        assert got.value == pytest.approx(row.cells[1].value - row.cells[0].value)
    assert found[SENTIMENT].against[0].change.verdict == "rises"  # type: ignore[union-attr]


def test_a_measurement_against_itself_differs_in_nothing(tmp_path: Path) -> None:
    a = saved(tmp_path, "a")
    record = compare([a, a])
    assert any("the same weights" in w for w in record.warnings)
    tested = [(r.key, r.against[0].change) for r in record.rows if r.against[0].change is not None]
    assert len(tested) > 20
    for key, change in tested:
        assert (change.value, change.p, change.verdict) == (0, 1, "cannot tell"), key


def test_p_is_adjusted_within_each_group(tmp_path: Path) -> None:
    found = compare([saved(tmp_path, "a", True), saved(tmp_path, "b", False)]).rows
    for group in {r.group for r in found}:
        changes = [r.against[0].change for r in found if r.group == group and r.against[0].change is not None]
        assert all(c.p_holm is not None and c.p_holm >= c.p for c in changes)
        smallest = min((c for c in changes), key=lambda c: c.p, default=None)
        if smallest is not None:
            assert smallest.p_holm == pytest.approx(min(1, smallest.p * len(changes)))


def other_prompts(record: MeasureRecord) -> None:
    for m in all_figures(record):
        m.prompts = "77" * 32


def lost_on_the_base(record: MeasureRecord) -> None:
    for d in record.differences:
        d.base.missing = 1


@pytest.mark.parametrize(
    ("change", "says"), [(other_prompts, "other prompts"), (lost_on_the_base, "some answers have no value")]
)
def test_what_can_not_be_paired_is_tested_unpaired_and_says_why(tmp_path: Path, change: Change, says: str) -> None:
    """A pair that either side lost is in neither side's values, so values of two files would stand beside wrong ones."""
    row = rows(compare([saved(tmp_path, "a"), saved(tmp_path, "b", False, change)]))[SENTIMENT]
    assert row.against[0].how == "unpaired"
    assert says in row.against[0].why
    assert row.against[0].change is not None
    assert row.against[0].change.test == "Welch's t"


def scorer_reads_otherwise(record: MeasureRecord) -> None:
    record.scorers[0].reads = "another lexicon"


def another_base(record: MeasureRecord) -> None:
    assert record.base is not None
    record.base.digest = "9" * 64


def clustered(record: MeasureRecord) -> None:
    for m in all_figures(record):
        m.n = 7


def no_values(record: MeasureRecord) -> None:
    for m in all_figures(record):
        m.values = None


def no_mean(record: MeasureRecord) -> None:
    for m in all_figures(record):
        m.value += 5


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        (scorer_reads_otherwise, SENTIMENT, "another scorer"),
        (another_base, "kl.mean", "another base"),
        (clustered, "mc.correct", "share templates or questions"),
        (no_values, SENTIMENT, "no value a prompt"),
        (no_mean, SENTIMENT, "no mean over prompts"),
    ],
)
def test_what_is_no_difference_of_models_stands_side_by_side(
    tmp_path: Path, change: Change, key: str, says: str
) -> None:
    row = rows(compare([saved(tmp_path, "a"), saved(tmp_path, "b", False, change)]))[key]
    assert (row.against[0].how, row.against[0].change) == ("side by side", None)
    assert says in row.against[0].why
    assert all(row.cells)


def test_answers_of_another_length_are_not_tested_but_what_reads_no_answer_is(tmp_path: Path) -> None:
    def conditions(tokens: int) -> Change:
        def change(record: MeasureRecord) -> None:
            record.options = {"answer_tokens": tokens, "conditions": [{"key": "x", "prompts": "4b" * 32}]}
            next(d for d in record.differences if d.key == "mc.correct").edited.prompts = "mc"

        return change

    record = compare([saved(tmp_path, "a", change=conditions(64)), saved(tmp_path, "b", False, conditions(128))])
    assert "64 and 128 tokens" in rows(record)[SENTIMENT].against[0].why
    assert rows(record)["mc.correct"].against[0].how == "paired"
    assert any("length of answers in tokens: A 64, B 128" in w for w in record.warnings)


def test_conditions_that_differ_are_warned_of(tmp_path: Path) -> None:
    def change(record: MeasureRecord) -> None:
        record.ran = {**record.ran, "dtype": "float16"}
        record.suite = "quick"
        another_base(record)

    said = " ".join(compare([saved(tmp_path, "a"), saved(tmp_path, "b", False, change)]).warnings)
    for what in ("other dtype: A bfloat16, B float16", "other suite: A full, B quick", "other base"):
        assert what in said
    assert compare([saved(tmp_path, "c"), saved(tmp_path, "d", False)]).warnings == []


def test_a_model_alone_compares_with_an_edited_one(tmp_path: Path) -> None:
    record = compare([saved(tmp_path, "a", alone=True), saved(tmp_path, "b")])
    assert any("A was measured alone" in w for w in record.warnings)
    row = rows(record)[SENTIMENT]
    assert row.cells[0] is not None
    assert row.cells[0].change is None
    assert row.against[0].how == "paired"
    assert rows(record)["kl.mean"].cells[0] is None
    assert rows(record)["kl.mean"].against[0].why == "A has no such figure"


def test_every_later_file_is_compared_with_the_first(tmp_path: Path) -> None:
    a, b = saved(tmp_path, "a", True), saved(tmp_path, "b", False)
    three, two = compare([a, a, b]), compare([a, b])
    assert [f.label for f in three.files] == ["A", "B", "C"]
    assert [r.against[1] for r in three.rows] == [r.against[0] for r in two.rows]


# -- unpaired statistics -----------------------------------------------------------------------------------


def rate(hits: int, n: int) -> Measurement:
    return measurement("r", [1.0] * hits + [0.0] * (n - hits), "share of answers", rate=True)


def test_newcombes_interval_is_the_published_one() -> None:
    """Newcombe 1998, table II, method 10: 56/70 − 48/80 is 0.0524 to 0.3339."""
    old, new = (np.array(rate(h, n).values) for h, n in ((48, 80), (56, 70)))
    assert newcombe(old, new, (80, 70)) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_fishers_test_is_the_published_one() -> None:
    """The lady tasting tea: 3 of 4 and 1 of 4, two-sided 0.4857 (Fisher 1935)."""
    assert fisher(np.array([1.0, 1, 1, 0]), np.array([0.0, 0, 0, 1])) == pytest.approx(34 / 70)


def test_unpaired_swaps_its_sign_with_its_sides() -> None:
    rng = random.Random(0)
    a, b = (measurement("m", [rng.gauss(m, 1) for _ in range(n)], "x") for m, n in ((0, 20), (1, 31)))
    for one, two in ((a, b), (rate(3, 20), rate(19, 40))):
        there, back = unpaired(one, two), unpaired(two, one)
        assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
        assert there.p == pytest.approx(back.p)
        assert there.low <= there.value <= there.high
        assert there.mde == pytest.approx(back.mde)


def test_means_are_compared_as_scipy_does() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 1, 20), rng.normal(0.5, 4, 9)
    got = unpaired(measurement("m", a.tolist(), "x"), measurement("m", b.tolist(), "x"))
    want = stats.ttest_ind(b, a, equal_var=False)
    interval = want.confidence_interval(0.95)
    assert (got.p, got.low, got.high) == pytest.approx((want.pvalue, interval.low, interval.high))
    assert (
        unpaired(measurement("m", [0.3 + 1e-17] * 5, "x"), measurement("m", [0.1 + 0.2] * 5, "x")).test
        == "label permutation"
    )


@pytest.mark.parametrize("kind", ["mean", "rate"])
def test_unpaired_keeps_its_error_rate_and_its_coverage(kind: str) -> None:
    """300 pairs of samples of one kind, of unequal sizes and, for means, unequal spreads."""
    rng = np.random.default_rng(4)
    false, covered, rounds = 0, 0, 300
    for _ in range(rounds):
        if kind == "mean":
            sides = [measurement("m", rng.normal(0, sd, n).tolist(), "x") for sd, n in ((1, 30), (3, 12))]
        else:
            sides = [rate(int(rng.binomial(n, 0.3)), n) for n in (30, 18)]
        d = unpaired(*sides)
        false += d.p < 0.05
        covered += d.low <= 0 <= d.high
    assert false <= 0.09 * rounds
    assert covered >= 0.91 * rounds


def test_values_that_never_vary_are_no_proof_by_themselves() -> None:
    few = unpaired(measurement("m", [1.0, 1.0], "x"), measurement("m", [2.0, 2.0], "x"))
    assert few.p > 0.05
    assert few.mde is None
    assert permuted(np.zeros(12), np.ones(12)) < 0.01
    assert permuted(np.ones(5), np.ones(5)) == 1


# -- conditions --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> CompareRecord:
    folder = tmp_path_factory.mktemp("two")
    return compare([saved(folder, "a", True), saved(folder, "b", False)])


def fails(record: CompareRecord, text: str) -> bool:
    return judge(read_gate(text), record).fails


def test_a_key_is_the_last_files_figure_and_a_letter_is_anothers(two: CompareRecord) -> None:
    cells = rows(two)["kl.mean"].cells
    for name, cell in (("", cells[1]), ("B:", cells[1]), ("A:", cells[0])):
        assert cell is not None
        for part in ("value", "low", "high", "n"):
            found = judge(read_gate(f"{name}kl.mean.{part} > -1"), two).figures[0]
            assert found.value == getattr(cell, part)
        assert judge(read_gate(f"{name}kl.mean > -1"), two).figures[0].value == cell.value


def test_a_differences_value_is_its_edited_side_and_its_change_is_asked_for_by_name(two: CompareRecord) -> None:
    cell = rows(two)[REFUSES].cells[1]
    assert cell is not None
    assert cell.change is not None
    wanted = {"": cell.value, ".value": cell.value, ".delta": cell.change.value, ".delta.low": cell.change.low,
              ".delta.high": cell.change.high, ".p": cell.change.p, ".p_holm": cell.change.p_holm}  # fmt: skip
    for part, value in wanted.items():
        assert judge(read_gate(f"{REFUSES}{part} >= 0"), two).figures[0].value == value, part


def test_delta_is_the_difference_of_the_files(two: CompareRecord) -> None:
    change = rows(two)[REFUSES].against[0].change
    assert change is not None
    for part in ("value", "low", "high", "n", "p", "p_holm"):
        assert judge(read_gate(f"delta({REFUSES}).{part} != 7"), two).figures[0].value == getattr(change, part)
    assert judge(read_gate(f'delta( "{SENTIMENT}" ) > 0'), two).fails


@pytest.mark.parametrize("relation", [">", ">=", "<", "<=", "==", "!="])
def test_relations_are_pythons(two: CompareRecord, relation: str) -> None:
    n = rows(two)[REFUSES].cells[1].n  # type: ignore[union-attr]
    for limit in (n - 1, n, n + 1):
        want = {">": n > limit, ">=": n >= limit, "<": n < limit, "<=": n <= limit, "==": n == limit, "!=": n != limit}
        assert fails(two, f"{REFUSES}.n{relation}{limit}") == want[relation]


def test_and_binds_tighter_than_or(two: CompareRecord) -> None:
    yes, no = f"{REFUSES}.n > 0", f"{REFUSES}.n < 0"
    for text, want in ((f"{yes} or {yes} and {no}", True), (f"{no} and {yes} or {yes}", True), (f"{no} and {yes} or {no}", False),
                       (f"{yes} and {yes}", True), (f"{no} or {no}", False)):  # fmt: skip
        assert fails(two, text) == want, text
    assert len(judge(read_gate(f"{yes} or {no}"), two).figures) == 2


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "kl.mean", "kl.mean >", "> 1", "kl.mean > x", "kl.mean > nan", "kl.mean > inf", "kl.mean > 1e999",
        "kl.mean => 1", "kl.mean = 1", "kl.mean > 1 and", "and kl.mean > 1", "kl.mean > 1 kl.mean > 1", "(kl.mean > 1)",
        "kl.mean > 1 or or kl.mean > 1", "kl.mean > 1 AND kl.mean > 1", "delta(kl.mean > 1", "kl.mean) > 1", "delta() > 1",
        '"kl.mean > 1', '"" > 1', "kl.mean > 1; kl.mean > 2", "__import__('os') > 1", "kl.mean.__class__() > 1", "1 > kl.mean",
        "kl.mean > 1_000", "kl.mean > 0x10", "kl.mean > ١", "kl.mean > 1 > 0", "a:kl.mean > ", "A:B:kl.mean > 1",
        "kl.mean > 1#", "kl.mean > 1\x00", "x" * 3000, "a>1 or " * 400,
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read_gate(text)


def test_damaged_conditions_are_conditions_or_usage_errors(two: CompareRecord) -> None:
    """A good one with a few pieces put in, taken out or swapped: never another exception."""
    rng = random.Random(1)
    pieces = ["kl.mean", ".low", ">", "<=", "==", "1", "-2e3", " and ", " or ", "delta(", ")", '"', "A:", ":", ".", " ", "é", "\n",
              "p_holm", "{", "%s", "\ud800", "\x00"]  # fmt: skip
    good, read = ["kl.mean", ".low", " ", ">", " ", "1", " and ", "A:", "kl.mean", "<=", "2"], 0
    for _ in range(3000):
        text = list(good)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(text))
            text[at : at + rng.randrange(2)] = rng.choices(pieces, k=rng.randrange(2))
        try:
            judge(read_gate("".join(text)), two)
            read += 1
        except UsageError:
            continue
    assert 100 < read < 2900


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kl.maen > 1", "kl.mean"),
        ("safety.harmful.refuse > 1", "safety.harmful.refuses"),
        ("kl.mean.lo > 1", "no part .lo"),
        ("kl.max.low > 1", "without an interval"), ("kl.max.high.delta > 1", "no part"),
        ("kl.mean.p > 1", "no difference from a base"),
        ("kl.mean.delta.p > 1", "no part .delta.p"),
        ("delta(kl.mean).delta > 1", "no part .delta"),
        ("A:delta(kl.mean) > 1", "nothing to differ from"),
        ("delta(kl.p95) > 1", "side by side"),
        ("C:kl.mean > 1", "no file C"),
    ],
)
def test_a_figure_that_can_not_be_had_is_an_error_even_where_the_rest_would_decide(
    two: CompareRecord, text: str, says: str
) -> None:
    for whole in (text, f"{REFUSES}.n > 0 or {text}", f"{REFUSES}.n < 0 and {text}"):
        with pytest.raises(UsageError, match=re.escape(says)):
            judge(read_gate(whole), two)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("relation", [">", ">=", "<", "<=", "==", "!="])
def test_nan_never_passes(two: CompareRecord, odd: float, relation: str) -> None:
    record = two.model_copy(deep=True)
    rows(record)["kl.mean"].cells[1].value = odd  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="no number"):
        judge(read_gate(f"kl.mean {relation} 0.5"), record)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_file_with_figures_that_are_no_numbers_is_refused(tmp_path: Path, number: str) -> None:
    path = saved(tmp_path, "a")
    data = json.loads(path.read_text())
    data["damage"][0]["value"] = "ODD"
    path.write_text(json.dumps(data).replace('"ODD"', number))
    with pytest.raises((FormatError, RecipeError)):
        compare([path], fail_if=["kl.mean > 1000"])


def turn(figure: dict[str, Any]) -> None:
    figure["low"], figure["high"] = figure["high"] + 1, figure["low"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: turn(d["damage"][0]), "an interval from"), (lambda d: turn(d["differences"][0]), "an interval from"),
        (lambda d: turn(d["differences"][0]["base"]), "an interval from"),
        (lambda d: d["damage"][0].update(n=-3), "-3 is no count"), (lambda d: d["differences"][0].update(n=-3), "-3 is no count"),
        (lambda d: d["differences"][0]["edited"].update(missing=-90), "is no count"),
        (lambda d: d["damage"][0].update(answers=-1), "-1 is no count"),
        (lambda d: d.update(figures=[], damage=[], differences=[]), "without figures"),
    ],
)  # fmt: skip
def test_a_file_whose_figures_can_not_be_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    path = saved(tmp_path, "a")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(FormatError, match=says):
        compare([path])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "not a measurement: JSON without a schema"), ("[]", "a list of 0"), ("3", "a single value"), ('"x"', "text"),
        ('{"schema": "weightsmith/claims/1"}', "its schema is 'weightsmith/claims/1'"), ('{"schema": 7}', "its schema is '7'"),
        ("TWO", "a list of 2; one measurement a file is read"), ("GGUF", "not valid JSON"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_measurement_is_told_what_it_is_and_what_is_wanted(tmp_path: Path, text: str, says: str) -> None:
    a, other = saved(tmp_path, "a"), tmp_path / "other.json"
    if text == "TWO":
        save_record([v2_record(), v2_record()], other)
    else:
        other.write_text(text)
    done = cli("compare", a, other)
    assert done.code == 2
    assert_one_error(done.err)
    assert f"{other}: " in done.err
    assert says in done.err
    assert "weightsmith measure … -o FILE.json writes one" in done.err


def test_a_list_of_one_measurement_is_read(tmp_path: Path) -> None:
    save_record([v2_record()], tmp_path / "list.json")
    assert rows(compare([tmp_path / "list.json"])).keys() == rows(compare([saved(tmp_path, "a")])).keys()


# -- the command -------------------------------------------------------------------------------------------


def test_exit_codes_say_good_bad_and_could_not_tell(tmp_path: Path) -> None:
    a = saved(tmp_path, "a")
    passing, failing = "kl.mean > 1000", "kl.mean > 0"
    assert cli("compare", a).code == 0
    assert cli("compare", a, "--fail-if", passing).code == 0
    done = cli("compare", a, "--fail-if", passing, "--fail-if", failing)
    assert done.code == 1
    value = next(m.value for m in v2_record().damage if m.key == "kl.mean")
    assert f"fails {failing}: kl.mean of A is {value:.6g}" in done.words
    assert f"passes {passing}" in done.words
    for bad in ("kl.maen > 1", "kl.mean >", "delta(kl.mean) > 0"):
        done = cli("compare", a, "--fail-if", failing, "--fail-if", bad)
        assert done.code == 2, bad
        assert_one_error(done.err)
    assert cli("compare", tmp_path / "none.json").code == 2
    assert cli("compare").code == 2


def test_json_and_the_saved_file_are_the_record(tmp_path: Path) -> None:
    a, b, out = saved(tmp_path, "a"), saved(tmp_path, "b", False), tmp_path / "c.json"
    done = cli("compare", a, b, "--fail-if", "kl.mean > 0", "--json", "-o", out)
    assert done.code == 1
    shown, kept = json.loads(done.out), json.loads(out.read_text())
    assert shown.pop("fails") is True
    assert shown == kept
    assert kept["schema"] == COMPARISON
    assert CompareRecord.model_validate(kept).fails
    assert cli("compare", a, b, "-o", out).code == 2, "it is never written over"
    assert cli("compare", a, b, "-o", tmp_path / "c.txt").code == 2


def test_the_table_fits_and_says_how_each_row_was_compared(tmp_path: Path) -> None:
    def change(record: MeasureRecord) -> None:
        record.differences[0].edited.prompts = "x"

    done = cli("compare", saved(tmp_path, "a"), saved(tmp_path, "b", False, change))
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 100
    assert "unpaired: other prompts" in done.words
    assert "side by side: no value a prompt is on record (kl.median, kl.p95, kl.max)" in done.words
    line = next(x for x in done.out.splitlines() if "▲ ~" in x)
    assert "−0.29 [−0.42, −0.15]" in line


def test_a_title_can_not_speak_to_the_terminal(tmp_path: Path) -> None:
    def change(record: MeasureRecord) -> None:
        record.title = "[red]\x1b[31mnice\x1b[0m"
        record.differences[0].key = "[/bold]\x1b]0;key\x07"

    done = cli("compare", saved(tmp_path, "a", change=change), saved(tmp_path, "b", change=change))
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    assert "[red]" in done.out
