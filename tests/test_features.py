"""Prompts and their split, every source of them, recipes, extraction methods, quality, scorers."""

from __future__ import annotations

import csv
import io
import json
import random
import string
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clirun import FEATURE, repository
from weightsmith.errors import FormatError, MissingExtra, NetworkError, RecipeError, UnknownPlugin, WeightsmithError
from weightsmith.features.extract import Activations, Side
from weightsmith.features.methods import EXTRACTORS, difference_in_means, logistic_probe, paired_pca
from weightsmith.features.prompts import (
    NEAR,
    PARTS,
    PromptSets,
    prompt_sets,
    read_prompts,
    refuse_near_duplicates,
    similarity,
)
from weightsmith.features.quality import auroc, layer_quality, split_half, vectors
from weightsmith.features.recipe import FEATURE as SCHEMA
from weightsmith.features.recipe import FeatureSpec, PromptSource, load_feature, load_yaml
from weightsmith.measure.asks import Ask, Decoding, Exchange
from weightsmith.measure.scorers import SCORERS

METHODS = EXTRACTORS.names()


def prompts(n: int, seed: int = 0) -> list[str]:
    """``n`` prompts that are not near each other."""
    dice = random.Random(seed)
    return [" ".join("".join(dice.choices(string.ascii_lowercase, k=7)) for _ in range(4)) for _ in range(n)]


def spec(given: Any, split: tuple[int, int, int] = (8, 4, 4), kind: str = "personas", **more: Any) -> FeatureSpec:
    contrast = {"kind": kind, **({"shows": "a", "lacks": "b"} if kind == "personas" else {})}
    return FeatureSpec.model_validate({
        "schema": SCHEMA, "name": "f", "description": "d", "licence": "CC0-1.0", "contrast": contrast, "prompts": given,
        "split": dict(zip(PARTS, split, strict=True)), **more,
    })  # fmt: skip


def split(rows: list[str], sizes: tuple[int, int, int] = (8, 4, 4)) -> PromptSets:
    return prompt_sets(spec({"list": rows}, sizes), None)


def part_of(sets: PromptSets) -> dict[str, str]:
    return {p: part for part in PARTS for p in sets.part(part).shows}


# -- the split ---------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(16, 40), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_split_is_disjoint_exact_and_depends_on_nothing_but_the_prompts(seed: int, n: int, dice: Any) -> None:
    rows = prompts(n, seed)
    sets = split(rows)
    found = part_of(sets)
    assert [len(sets.part(p).shows) for p in PARTS] == [8, 4, 4]
    assert len(found) == 16
    assert set(found) <= set(rows)
    shuffled = list(rows)
    dice.shuffle(shuffled)
    assert split(shuffled) == sets
    assert split(rows).digest == sets.digest
    noisy = [f"  {p.upper()}! " for p in shuffled] + [p.capitalize() for p in rows]
    assert {p.casefold().strip("! ") for p in part_of(split(noisy))} == set(found), (
        "letter case and marks decide nothing"
    )


@given(st.integers(0, 10_000), st.integers(1, 200))
@settings(max_examples=30, deadline=None)
def test_a_prompt_never_moves_to_another_part_when_others_are_added(seed: int, more: int) -> None:
    """While every part is full of its own prompts; what was *report* must not become *extract*."""
    rows = prompts(120, seed)
    before, after = part_of(split(rows)), part_of(split(rows + prompts(more, seed + 1)))
    assert all(after[p] == part for p, part in before.items() if p in after)


def test_parts_that_are_short_borrow_and_few_move() -> None:
    moved = 0
    for seed in range(20):
        rows = prompts(17, seed)
        before, after = part_of(split(rows)), part_of(split(rows + prompts(8, seed + 100)))
        moved += sum(after[p] != part for p, part in before.items() if p in after)
    assert moved < 0.15 * 20 * 16


def test_every_prompt_has_the_same_chance_of_every_part() -> None:
    counts = dict.fromkeys(PARTS, 0)
    for part in part_of(split(prompts(4000), (960, 480, 480))).values():
        counts[part] += 1
    assert counts == {"extract": 960, "select": 480, "report": 480}
    halves = part_of(split(prompts(400), (100, 100, 100)))
    first = [halves[p] for p in prompts(400)[:200] if p in halves]
    assert all(30 <= first.count(part) <= 70 for part in PARTS)


def test_too_few_different_prompts() -> None:
    with pytest.raises(RecipeError, match="15 different prompts, and the split needs 16"):
        split(prompts(15))
    with pytest.raises(RecipeError, match="15 different prompts"):
        split([*prompts(15), *(p.upper() + "?!" for p in prompts(15))])


def test_near_duplicates_in_different_parts_are_refused_and_in_one_part_are_not() -> None:
    rows = prompts(60)
    for victim in ("extract", "select", "report"):
        sets = split(rows)
        donor = sets.part(victim).shows[0]
        others = [p for part in PARTS if part != victim for p in sets.part(part).shows]
        with pytest.raises(RecipeError, match="nearly the same prompt stands in"):
            refuse_near_duplicates({victim: (donor,), "other": (*others, f"please, {donor}")}, "f")
        refuse_near_duplicates({victim: (donor, f"please, {donor}"), "other": tuple(others)}, "f")
    twins = [f"{p} {end}" for p in prompts(16) for end in ("now", "then")]
    with pytest.raises(RecipeError, match="nearly the same prompt"):
        split(twins, (10, 10, 10))


@given(st.lists(st.text("ab cé!", min_size=1, max_size=14), min_size=2, max_size=7, unique=True), st.integers(0, 3))
@settings(max_examples=120, deadline=None)
def test_the_fast_search_for_near_duplicates_finds_what_the_slow_one_finds(rows: list[str], cut: int) -> None:
    left, right = tuple(rows[:cut]), tuple(rows[cut:])
    slow = any(similarity(a, b) >= NEAR for a in left for b in right)
    try:
        refuse_near_duplicates({"extract": left, "report": right}, "f")
        fast = False
    except RecipeError:
        fast = True
    assert fast == slow


@given(st.text(max_size=40), st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_similarity_is_symmetric_bounded_and_blind_to_case_and_marks(a: str, b: str) -> None:
    value = similarity(a, b)
    assert 0 <= value <= 1
    assert value == similarity(b, a)
    assert similarity(a, a) == 1
    assert similarity(a, f"{a.casefold()} ..!") == 1


def test_pairs_stay_together_and_are_checked_on_both_sides() -> None:
    shows, lacks = prompts(20, 1), prompts(20, 2)
    mate = dict(zip(shows, lacks, strict=True))
    sets = prompt_sets(spec({"shows": {"list": shows}, "lacks": {"list": lacks}}, kind="pairs"), None)
    for part in PARTS:
        assert all(mate[a] == b for a, b in zip(sets.part(part).shows, sets.part(part).lacks, strict=True))
    with pytest.raises(RecipeError, match="equal sides; there are 20 and 19"):
        prompt_sets(spec({"shows": {"list": shows}, "lacks": {"list": lacks[1:]}}, kind="pairs"), None)
    same = [*lacks[:5], shows[5].upper(), *lacks[6:]]
    with pytest.raises(RecipeError, match="identical sides"):
        prompt_sets(spec({"shows": {"list": shows}, "lacks": {"list": same}}, kind="pairs"), None)
    twin = [lacks[0]] * 20
    with pytest.raises(RecipeError, match="nearly the same"):
        prompt_sets(spec({"shows": {"list": shows}, "lacks": {"list": twin}}, kind="pairs"), None)


def test_two_sides_are_split_on_their_own() -> None:
    sets = prompt_sets(
        spec({"shows": {"list": prompts(30, 1)}, "lacks": {"list": prompts(50, 2)}}, kind="prompt_sets"), None
    )
    for part, size in zip(PARTS, (8, 4, 4), strict=True):
        assert (len(sets.part(part).shows), len(sets.part(part).lacks)) == (size, size)
    with pytest.raises(RecipeError, match="nothing to contrast"):
        prompt_sets(
            spec({"shows": {"list": prompts(30)}, "lacks": {"list": prompts(30)[::-1]}}, kind="prompt_sets"), None
        )


# -- sources -----------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(str.strip)
#: with line breaks, quotes and separators inside
WILD = st.text(st.sampled_from("ab,;\t\"'\n|\u2028\u0085\x0bé😀"), min_size=1, max_size=12).filter(str.strip)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(out.getvalue().encode())


def write_all(folder: Path, rows: list[str], *, one_line: bool) -> list[Path]:
    table = [{"id": i, "prompt": p, "other": "x"} for i, p in enumerate(rows)]
    paths = [folder / f"p.{kind}" for kind in ("jsonl", "ndjson", "csv", "tsv", "parquet")]
    paths[0].write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in table) + "\n", encoding="utf-8")
    paths[1].write_text("\r\n\r\n".join(json.dumps(r) for r in table), encoding="utf-8", newline="")
    write_csv(paths[2], table)
    write_csv(paths[3], table)
    pq.write_table(pa.Table.from_pylist(table), paths[4])
    if one_line:
        (folder / "p.txt").write_text("\n".join(rows), encoding="utf-8")
        (folder / "bom.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(rows).encode())
        (folder / "strings.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
        paths += [folder / "p.txt", folder / "bom.txt", folder / "strings.jsonl"]
    return paths


@given(st.lists(TEXT, min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_all_sources_agree(tmp_path_factory: pytest.TempPathFactory, rows: list[str]) -> None:
    folder = tmp_path_factory.getbasetemp()
    wanted = [r.strip() for r in rows]
    assume(not wanted[0].startswith("\ufeff"))
    assert read_prompts(PromptSource.model_validate({"list": rows}), None) == wanted
    for path in write_all(folder, rows, one_line=True):
        assert read_prompts(PromptSource(file=path.name), folder) == wanted, path.suffix
        assert read_prompts(PromptSource(file=str(path), limit=2), None) == wanted[:2]


@given(st.lists(WILD, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_sources_of_records_keep_line_breaks_and_separators(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    wanted = [r.strip() for r in rows]
    for path in write_all(folder, rows, one_line=False):
        assert read_prompts(PromptSource(file=str(path)), None) == wanted, path.suffix


def test_columns(tmp_path: Path) -> None:
    rows = [{"text": "one", "q": "eins"}, {"text": "two", "q": "zwei"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_csv(tmp_path / "a.csv", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert read_prompts(PromptSource(file=name), tmp_path) == ["one", "two"]
        assert read_prompts(PromptSource(file=name, column="q"), tmp_path) == ["eins", "zwei"]
        with pytest.raises(RecipeError, match="no text in the column 'x'") as caught:
            read_prompts(PromptSource(file=name, column="x"), tmp_path)
        assert "text, q" in str(caught.value)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "a.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match="pyarrow") as caught:
        read_prompts(PromptSource(file="a.parquet"), tmp_path)
    assert caught.value.hint == "pip install 'weightsmith[data]'"


@pytest.mark.parametrize("name", ["nobody/nothing", "not a name", "a/b/c", "../x", "a--b/c"])
def test_datasets_that_can_not_be_had(name: str) -> None:
    with pytest.raises(WeightsmithError) as caught:
        read_prompts(PromptSource(dataset=name), None)
    assert caught.value.exit_code == 2
    assert name in str(caught.value)
    assert isinstance(caught.value, NetworkError) == (name == "nobody/nothing")


def test_only_the_data_files_of_a_dataset_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[str] = []
    (tmp_path / "train-0.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "train-1.csv").write_text("prompt\nb\n")

    def fetch(_repo: str, name: str, **_: Any) -> str:
        asked.append(name)
        return str(tmp_path / Path(name).name)

    listing = ["README.md", "load.py", "data/train-0.jsonl", "data/train-1.csv", "data/test-0.jsonl", "train.pkl"]
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: repository(listing))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert read_prompts(PromptSource(dataset="a/b@main"), None) == ["a", "b"]
    assert asked == ["data/train-0.jsonl", "data/train-1.csv"]
    with pytest.raises(RecipeError, match="no data file of the split 'dev'"):
        read_prompts(PromptSource(dataset="a/b", split="dev"), None)


def test_offline_no_dataset_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", asked)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)
    with pytest.raises(NetworkError) as caught:
        read_prompts(PromptSource(dataset="nobody/nothing"), None, offline=True)
    assert caught.value.message == "not in the cache"
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train-0.jsonl").write_text('{"prompt": "a"}\n')
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, local_files_only, **__: local_files_only and str(tmp_path))
    assert read_prompts(PromptSource(dataset="a/b"), None, offline=True) == ["a"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("kind: phrases, phrases: [alas], bogus: 1", "no option 'bogus'"), ("kind: phrases", "phrases"),
        ("kind: sentiment, sign: 3", "sign must be"), ("kind: probe, layer: 3", "no option 'layer'"),
        ("kind: sentment", "called 'sentment'"), ("kind: judge", "a question or a rubric"),
    ],
)  # fmt: skip
def test_a_slip_in_a_scorer_is_known_when_the_recipe_is_read(tmp_path: Path, options: str, says: str) -> None:
    """Before a model is loaded, and with the file's name."""
    path = tmp_path / "f.yaml"
    path.write_text(FEATURE.replace("{kind: probe}", "{" + options + "}"))
    with pytest.raises((RecipeError, UnknownPlugin), match=says) as caught:
        load_feature(str(path))
    assert caught.value.where == str(path)


def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(FEATURE + "name: again\n")
    with pytest.raises(RecipeError, match=rf"line {FEATURE.count(chr(10)) + 1}: the key 'name' stands twice"):
        load_feature(str(path))


# -- recipes -----------------------------------------------------------------------------------------------


def test_a_recipe_reads_back_and_its_digest_is_about_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(FEATURE)
    (tmp_path / "b.yaml").write_text("# a comment\n" + FEATURE.replace("site: last", "site:   last"))
    first, folder = load_feature(str(tmp_path / "a.yaml"))
    assert folder == tmp_path
    assert load_feature(str(tmp_path / "b.yaml"))[0].digest == first.digest
    (tmp_path / "c.yaml").write_text(FEATURE.replace("you are sad", "you are very sad"))
    assert load_feature(str(tmp_path / "c.yaml"))[0].digest != first.digest
    assert FeatureSpec.model_validate(first.model_dump(by_alias=True)) == first


@given(st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text("abc é", max_size=5),
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text("xyz", max_size=3), x, max_size=3)))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_plain_yaml_means_what_it_means_elsewhere(value: Any) -> None:
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    assert load_yaml(yaml.dump(value, Dumper=Plain, allow_unicode=True), "x") == value


# -- extraction methods ------------------------------------------------------------------------------------


def planted(n: int, d: int, strength: float, seed: int, noise: float = 1.0) -> tuple[Any, Any, Any]:
    """Two sides that differ by ``strength`` along a random unit vector; pairs share what their prompt is about."""
    dice = np.random.default_rng(seed)
    axis = dice.standard_normal(d)
    axis /= np.linalg.norm(axis)
    topic = 3 * dice.standard_normal((n, d))
    shows = topic + strength * axis + noise * dice.standard_normal((n, d))
    lacks = topic + noise * dice.standard_normal((n, d))
    return axis, shows, lacks


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_every_method_recovers_a_planted_direction_with_its_sign(method: str, seed: int) -> None:
    axis, shows, lacks = planted(200, 24, 4.0, seed, 0.5)
    extract = EXTRACTORS.load(method)
    found = extract(shows, lacks, True)
    cosine = float(found @ axis / np.linalg.norm(found))
    assert cosine > (0.8 if method == "logistic-probe" else 0.98)
    assert np.isfinite(found).all()
    swapped = extract(lacks, shows, True)
    assert float(swapped @ axis / np.linalg.norm(swapped)) < -0.8
    assert auroc(shows @ found, lacks @ found) > 0.5
    # every method gives the step from the mean of one side to the mean of the other, along its own axis
    unit = found / np.linalg.norm(found)
    assert np.linalg.norm(found) == pytest.approx(float((shows.mean(0) - lacks.mean(0)) @ unit), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_methods_do_not_care_about_offset_and_follow_scale(method: str) -> None:
    _, shows, lacks = planted(60, 10, 2.0, 1)
    extract = EXTRACTORS.load(method)
    found = extract(shows, lacks, True)
    assert np.allclose(extract(shows + 7, lacks + 7, True), found, rtol=1e-3, atol=1e-3)
    assert np.allclose(extract(shows * 5, lacks * 5, True), found * 5, rtol=1e-2, atol=1e-2)


def test_methods_on_edge_cases() -> None:
    _, shows, lacks = planted(20, 6, 2.0, 0)
    with pytest.raises(RecipeError, match="pairs"):
        paired_pca(shows, lacks, False)
    with pytest.raises(RecipeError, match="pairs"):
        paired_pca(shows, lacks[1:], True)
    assert np.array_equal(difference_in_means(shows, lacks[:5], False), shows.mean(0) - lacks[:5].mean(0))
    flat = np.ones((8, 4))
    for method in (difference_in_means, paired_pca, logistic_probe):
        with np.errstate(all="raise"):
            found = method(flat, flat, True)
        assert np.array_equal(found, np.zeros(4)), method.__name__
    separable = logistic_probe(np.eye(4) + 100, np.eye(4) - 100, False)
    assert np.isfinite(separable).all()
    with pytest.raises(UnknownPlugin, match="difference-in-means, leace, logistic-probe, paired-pca"):
        EXTRACTORS.load("magic")


def activations(shows: Any, lacks: Any, paired: bool = True) -> Activations:
    """Two layers: the planted one, and one of noise."""
    dice = np.random.default_rng(9)

    def side(x: Any) -> Side:
        means = np.stack([x, dice.standard_normal(x.shape)], 1).astype(np.float32)
        return Side(means, np.linalg.norm(means, axis=2).astype(np.float32))

    return Activations(side(shows), side(lacks), paired)


@pytest.mark.parametrize("method", METHODS)
def test_quality_tells_a_planted_layer_from_noise(method: str) -> None:
    axis, shows, lacks = planted(120, 16, 6.0, 3)
    first, held_out = activations(shows[:80], lacks[:80]), activations(shows[80:], lacks[80:])
    found = vectors(first, method)
    planted_layer, noise = layer_quality(found, (5, 9), first, held_out, method)
    assert (planted_layer.layer, noise.layer) == (5, 9)
    assert planted_layer.auroc > 0.8
    assert planted_layer.split_half > 0.5
    assert planted_layer.auroc_low > 0.65
    assert abs(noise.auroc - 0.5) < 0.25
    for row in (planted_layer, noise):
        assert 0 <= row.auroc_low <= row.auroc <= row.auroc_high <= 1
        assert row.relative_norm > 0
        assert -1 <= row.split_half <= 1
    assert layer_quality(found, (5, 9), first, held_out, method) == [planted_layer, noise], "seeded"
    assert found[0] @ axis > 0


def test_split_halves_are_disjoint_for_unpaired_sides_of_unequal_size() -> None:
    _, shows, lacks = planted(41, 8, 5.0, 2)
    values = split_half(activations(shows, lacks[:20], paired=False), "difference-in-means")
    assert values.shape == (2,)
    assert values[0] > values[1]


# -- scorers -----------------------------------------------------------------------------------------------


def exchanges(*answers: str | None) -> list[Exchange]:
    ask = Ask("g", "c", 0, "say something", ({"role": "user", "content": "say something"},))
    return [Exchange(ask, Decoding(8), (1,), (2,), answer) for answer in answers]


def test_phrases_are_whole_words_in_any_case() -> None:
    scorer = SCORERS.load("phrases").make({"phrases": ["alas", "heavy heart", "can't", "c++"]})
    answers = ["Alas!", "atlas", "a HEAVY heart", "heavy  heart", "I can’t", "cant", "in C++.", "", "ala s", None]
    assert scorer.score(None, exchanges(*answers)) == [1, 0, 1, 0, 1, 0, 1, 0, 0, None]
    assert scorer.rate


def test_sentiment_has_the_sign_that_it_was_given() -> None:
    sad, glad = "I hate this terrible, sad day.", "What a wonderful, happy day!"
    for sign in (1, -1):
        scorer = SCORERS.load("sentiment").make({"sign": sign})
        low, high, nothing = scorer.score(None, exchanges(sad, glad, ""))
        assert low < 0 < high
        assert nothing == 0
        assert scorer.rises == sign


def test_the_sentiment_scorer_without_vader_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(MissingExtra, match="VADER") as caught:
        SCORERS.load("sentiment").make({}).score(None, exchanges("a"))
    assert "pip install" in str(caught.value.hint)


def test_every_scorer_says_what_it_reads_and_what_is_known_of_its_error() -> None:
    options: dict[str, Any] = {"phrases": {"phrases": ["a"]}, "continuations": {"shows": ["a"], "lacks": ["b"]},
                               "similarity": {"references": {"shows": ["a"]}}, "judge": {"question": "Is it sad?"}}  # fmt: skip
    for name in SCORERS.names():
        if name != "probe":
            note = SCORERS.load(name).make(options.get(name, {})).note()
            assert note.name == name
            assert note.reads
            assert note.error


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_bad_file_names_its_line(tmp_path: Path, suffix: str) -> None:
    good = '{"prompt": "a"}\n' if suffix == ".jsonl" else "prompt\na\n"
    bad = "{" if suffix == ".jsonl" else '"open'
    (tmp_path / f"x{suffix}").write_text(good + bad)
    with pytest.raises(FormatError, match=f"line {good.count(chr(10)) + 1}"):
        read_prompts(PromptSource(file=f"x{suffix}"), tmp_path)
