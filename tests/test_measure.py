"""Measuring as a whole on pico models: measured once, resumed, paired, and honest where there is nothing to compare."""

from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pico
from clirun import feature_file
from weightsmith import jobs
from weightsmith.checkpoint import open_checkpoint
from weightsmith.errors import NonFinite, RecipeError, UnsupportedModel, UsageError, WeightsmithError
from weightsmith.features.select import compile_hooks
from weightsmith.jobs.measure import Session
from weightsmith.jobs.measured import _missing, load_record, save_record
from weightsmith.measure import subject as subject_module
from weightsmith.measure.asks import Ask, Decoding, Exchange, split_thought
from weightsmith.measure.behaviour import Answered, Scored, answer_block, answer_turns
from weightsmith.measure.damage import Likelihood, likelihood, perplexity_differences
from weightsmith.measure.run import Run
from weightsmith.measure.store import Said, Store, ask_key
from weightsmith.measure.subject import Subject
from weightsmith.measure.suites import SUITES, Suite, safety_blocks, shipped_sets
from weightsmith.measured import MeasureRecord
from weightsmith.runtime import load
from weightsmith.runtime.head import Head
from weightsmith.storage import canonical_json

TINY = Suite("tiny", n=3, tokens=6, longer=2)
SAMPLED = replace(TINY, sampled=2, seeds=2, wordings=1, systems=True, scenarios=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and a differently seeded model of the same family and vocabulary."""
    folder = tmp_path_factory.mktemp("models")
    return pico.build("llama", folder / "a"), pico.build("llama", folder / "b", seed=1)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))


def session(base: Path | None, feature: Any = (), **wishes: Any) -> Session:
    return Session(base, feature, options=pico.CPU, **{"suite": TINY, **wishes})


def figures(record: MeasureRecord) -> dict[str, Any]:
    return {d.key: (d.base.values, d.edited.values, d.value, d.p) for d in record.differences} | {
        m.key: (m.values, m.value) for m in record.damage}


# -- what a comparison says --------------------------------------------------------------------------------


def test_a_model_against_itself_differs_in_nothing(models: tuple[Path, Path]) -> None:
    record = session(models[0], "melancholy").compare(models[0])
    assert record.differences
    assert record.damage
    for d in record.differences:
        assert (d.value, d.p, d.verdict) == (0, 1, "cannot tell"), d.key
        assert d.low <= 0 <= d.high
        assert d.base.values == d.edited.values
    for m in record.damage:
        assert (m.value == 1) if m.key.endswith("top1") else (m.value == 0), m


def test_divergence_is_the_definition(models: tuple[Path, Path]) -> None:
    """KL at every position of the base's own greedy answers, from two plain passes of the reference library."""
    found = session(models[0]).compare(models[1])
    base, edited = (load(open_checkpoint(str(m)), pico.CPU) for m in models)
    prompts = shipped_sets("refusal").report.lacks[:3]
    means, firsts, agree = [], [], []
    with torch.inference_mode():
        for prompt in prompts:
            ids = base.encode([{"role": "user", "content": prompt}])
            out = base.model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids):].tolist()
            answer = [t for t in out if t not in base.stop_tokens]
            rows = [m.model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1].double().log_softmax(-1)
                    for m in (base, edited)]  # fmt: skip
            kl = (rows[0].exp() * (rows[0] - rows[1])).sum(-1).numpy()[: len(answer)]
            means.append(kl.mean())
            firsts.append(kl[0])
            agree.append(float((rows[0].argmax(-1) == rows[1].argmax(-1)).double().mean()))
    by_key = {m.key: m for m in found.damage}
    assert by_key["kl.mean"].values == pytest.approx(means, rel=1e-4)
    assert by_key["kl.first.mean"].values == pytest.approx(firsts, rel=1e-4)
    assert by_key["top1"].value == pytest.approx(np.mean(agree))
    assert by_key["kl.median"].value <= by_key["kl.p95"].value <= by_key["kl.max"].value
    assert found.worst[0].kl == max(by_key["kl.mean"].values or [])


def test_perplexity_is_of_all_tokens_not_of_texts() -> None:
    """A long text weighs as many times more as it has tokens."""
    read = Likelihood([10.0, 400.0], [10, 100], [40, 500])
    rows = {d.key: d for d in perplexity_differences(read, read, same_vocabulary=True)}
    assert rows["perplexity"].base.value == pytest.approx(np.exp(410 / 110))
    assert rows["bpb"].base.value == pytest.approx(410 / 540 / np.log(2))
    assert "perplexity" not in {d.key for d in perplexity_differences(read, read, same_vocabulary=False)}


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_figures_of_few_texts_can_be_written_down(n: int) -> None:
    """Fewer than six can't show any change: there is no smallest one that they find. One has no interval."""
    before = Likelihood([30.0 + k for k in range(n)], [10] * n, [40] * n)
    after = Likelihood([33.0 + 2 * k for k in range(n)], [10] * n, [40] * n)
    for d in perplexity_differences(before, after, same_vocabulary=True):
        assert json.loads(canonical_json(d.model_dump()))["n"] == n
        assert (d.mde is None) == (n < 6)
        for part in (d, d.base, d.edited):
            assert part.low <= part.value <= part.high
        assert (d.base.interval, d.base.low == d.base.high) == (("none", True) if n == 1 else ("bootstrap", False))


def test_other_vocabularies_leave_scores_and_no_divergence(models: tuple[Path, Path], tmp_path: Path) -> None:
    other = shutil.copytree(models[0], tmp_path / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"Z"', '"~"'))
    record = session(models[0], "melancholy").compare(other)
    assert record.damage == []
    assert any("different vocabularies" in n for n in record.notes)
    keys = {d.key for d in record.differences}
    assert "bpb" in keys
    assert "perplexity" not in keys
    assert "melancholy.neutral.sentiment" in keys


def test_weights_and_hooks_are_measured_alike(models: tuple[Path, Path], tmp_path: Path) -> None:
    direction = pico.a_direction(models[0])
    derivation = jobs.edit(models[0], direction, tmp_path / "out", remove=1.0, options=pico.CPU)
    one = session(models[0], "melancholy", direction=direction)
    weights = one.compare(tmp_path / "out")
    assert one.base is not None
    hooks = compile_hooks(one.base.running, derivation.edit, {direction.digest(): direction})
    running = one.compare_hooks(hooks)
    for a, b in zip(weights.damage, running.damage, strict=True):
        assert a.value == pytest.approx(b.value, rel=2e-2, abs=1e-5), a.key
    assert weights.damage[1].value > 1e-4
    again = one.compare_hooks([])
    assert all(d.value == 0 for d in again.differences), "nothing is left of the hooks, and the base is the base"


def test_alone_a_model_has_figures_and_no_differences(models: tuple[Path, Path]) -> None:
    record = session(None, "melancholy").compare(models[0])
    assert record.base is None
    assert not record.differences
    assert not record.damage
    keys = {m.key for m in record.figures}
    assert {"safety.harmful.refuses", "safety.asked.outside.refuses", "melancholy.neutral.sentiment", "perplexity"} <= keys


def test_safety_is_always_measured_both_ways(models: tuple[Path, Path]) -> None:
    record = session(models[0]).compare(models[1])
    keys = {d.key for d in record.differences}
    for part in ("harmful", "borderline", "harmless", "asked.outside", "asked.inside"):
        assert {f"safety.{part}.{c}" for c in ("refuses", "complies", "off-topic", "degenerate")} <= keys
    shares: dict[str, float] = {}
    for d in record.differences:
        if d.key.startswith("safety.") and d.unit == "share of answers":
            part = d.key.rpartition(".")[0]
            shares[part] = shares.get(part, 0) + d.edited.value
    assert all(v == pytest.approx(1) for v in shares.values()), "four verdicts, one an answer"


def test_sampling_has_wordings_seeds_and_a_spread(models: tuple[Path, Path]) -> None:
    record = session(models[0], "melancholy", suite=SAMPLED).compare(models[1])
    by_key = {d.key: d for d in record.differences}
    sampled = by_key["melancholy.neutral.sentiment.sampled"]
    assert (sampled.n, sampled.base.answers) == (2, 2 * 2 * 2)
    assert by_key["melancholy.neutral.sentiment"].n == 3
    assert "melancholy.system.sentiment" in by_key
    assert {f"melancholy.turns.shown.sentiment.turn{t}" for t in (1, 2, 3)} <= set(by_key)
    assert {s.model for s in record.spreads} == {"base", "edited"}
    for s in record.spreads:
        assert s.sd == 0 or s.prompt.value + s.wording.value + s.dice.value == pytest.approx(1)
    assert record.options["default_decoding"]["temperature"] > 0


# -- measured once, and resumed ----------------------------------------------------------------------------


def test_the_base_is_measured_once_and_not_even_loaded_again(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = session(models[0], "melancholy").compare(models[1])
    loaded: list[str] = []
    true = subject_module.load

    def counted(checkpoint: Any, options: Any) -> Any:
        loaded.append(checkpoint.path.name)
        return true(checkpoint, options)

    monkeypatch.setattr(subject_module, "load", counted)
    again = session(models[0], "melancholy").compare(models[1])
    assert "a" not in loaded
    assert figures(first) == figures(again)


def test_an_interrupted_run_goes_on_where_it_was(models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []
    true = Store.put

    def dies(self: Store, key: str, said: Said) -> None:
        true(self, key, said)
        kept.append(self.digest + key)
        if len(kept) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "put", dies)
    with pytest.raises(KeyboardInterrupt):
        session(models[0], "melancholy").compare(models[1])
    monkeypatch.setattr(Store, "put", lambda self, key, said: (kept.append(self.digest + key), true(self, key, said))[1])
    resumed = session(models[0], "melancholy").compare(models[1])
    assert len(kept) == len(set(kept)), "nothing is answered twice"
    whole = Session(models[0], "melancholy", suite=TINY, options=replace(pico.CPU, use_cache=False)).compare(models[1])
    assert figures(resumed) == figures(whole)


def test_a_torn_or_damaged_store_is_made_again(tmp_path: Path) -> None:
    store = Store({"model": "x"})
    said = Said((1, 2), (3,), True, "c", "")
    store.put("one", said)
    store.put("two", said)
    data = store._file.read_bytes()
    store._file.write_bytes(b"\xff\xfe{]" + data[:-7])
    again = Store({"model": "x"})
    assert again.get("one") == said
    assert again.get("two") is None
    again.put("two", said)
    assert Store({"model": "x"}).get("two") == said
    assert Store({"model": "y"}).get("one") is None


def test_the_key_holds_all_that_a_reply_depends_on() -> None:
    ask = Ask("g", "c", 0, "hi", ({"role": "user", "content": "hi"},))
    how = Decoding(8)
    same = Ask("other group", "other condition", 7, "hi", ask.messages)
    assert ask_key(ask, how) == ask_key(same, how)
    others = [(replace(ask, messages=({"role": "user", "content": "ho"},)), how), (ask, Decoding(9)),
              (ask, Decoding(8, temperature=1.0, seed=1)), (ask, Decoding(8, temperature=1.0, seed=2))]  # fmt: skip
    assert len({ask_key(ask, how), *(ask_key(a, h) for a, h in others)}) == 5


@pytest.mark.parametrize("change", ["tokenizer_config.json", "generation_config.json", "config.json"])
def test_small_files_of_a_model_are_part_of_what_it_is(models: tuple[Path, Path], tmp_path: Path, change: str) -> None:
    copy = shutil.copytree(models[0], tmp_path / "copy")
    one, same = (Subject.open("base", open_checkpoint(str(m)), pico.CPU) for m in (models[0], copy))
    assert one.store
    assert same.store
    assert one.store.digest == same.store.digest
    data = json.loads((copy / change).read_text())
    (copy / change).write_text(json.dumps({**data, "extra": 1}))
    other = Subject.open("base", open_checkpoint(str(copy)), pico.CPU)
    assert other.store
    assert other.store.digest != one.store.digest


@pytest.mark.parametrize("name", ["weightsmith", "torch", "transformers"])
def test_replies_of_another_version_are_not_reused(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = Subject.open("base", open_checkpoint(str(models[0])), pico.CPU)
    assert before.key == Subject.open("base", open_checkpoint(str(models[0])), pico.CPU).key
    if name == "weightsmith":
        monkeypatch.setattr(subject_module, "__version__", "0.0.1")
    else:
        monkeypatch.setattr(importlib.import_module(name), "__version__", "0.0.1")
    after = Subject.open("base", open_checkpoint(str(models[0])), pico.CPU)
    assert before.store
    assert after.store
    assert after.store.folder != before.store.folder


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "cohere2", "granite", "gemma3_images", "olmo2"])
def test_the_head_alone_gives_the_models_logits(family: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(pico.build(family, tmp_path / "m")))
    running = load(checkpoint, pico.CPU)
    hidden = torch.randn(5, pico.WIDTH, generator=torch.Generator().manual_seed(0))
    read = Head.read(checkpoint, "cpu", torch.float32)
    torch.testing.assert_close(read.logits(hidden), running.logits(hidden), rtol=0, atol=0)


# -- bad input ---------------------------------------------------------------------------------------------


def test_nan_logits_are_one_clear_error(models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    one = session(models[0])
    one.measure_base()
    true = subject_module.load

    def broken(checkpoint: Any, options: Any) -> Any:
        running = true(checkpoint, options)
        running.model.get_output_embeddings().weight[:, 0] = float("inf")
        return running

    monkeypatch.setattr(subject_module, "load", broken)
    with pytest.raises(NonFinite) as caught:
        one.compare(models[1])
    assert str(caught.value.where) == str(models[1])


def test_prompts_that_found_the_edit_are_not_reported_on(models: tuple[Path, Path], tmp_path: Path) -> None:
    """A direction found on prompts that another recipe reports on is refused by name, or they are left out."""
    recipe = feature_file(tmp_path)
    direction = jobs.find(models[0], str(recipe), response_tokens=2, trial_prompts=2, options=pico.CPU)
    assert set(direction.meta.prompts) == {"extract", "select"}
    jobs.edit(models[0], direction, tmp_path / "out", remove=1.0, options=pico.CPU)
    mine = session(models[0], str(recipe), suite=replace(TINY, n=None)).compare
    assert mine(tmp_path / "out").differences, "its own report prompts are clean"
    everything = tmp_path / "all.yaml"
    everything.write_text(recipe.read_text().replace("{extract: 4, select: 2, report: 2}",
                                                     "{extract: 4, select: 4, report: 192}").replace("tiny", "all"))
    with pytest.raises(RecipeError, match="used to find or choose"):
        Session(models[0], str(everything), edited=tmp_path / "out", suite=TINY, options=pico.CPU)
    kept = Session(models[0], str(everything), edited=tmp_path / "out", suite=replace(TINY, n=None), options=pico.CPU,
                   drop_overlap=True)  # fmt: skip
    assert set(shipped_parts(everything, "report")) - set(kept.plans[0].sets.report.shows) == (
        found_with(recipe) & set(shipped_parts(everything, "report")))
    assert any("left out" in n for n in kept.notes)


def test_a_direction_without_sketches_is_said_not_to_be_checked(models: tuple[Path, Path]) -> None:
    said = "the direction of 'melancholy' was made before prompts were recorded: whether the report prompts were used"

    def notes(**meta: Any) -> list[str]:
        made = pico.a_direction(models[0])
        given = replace(made, meta=made.meta.model_copy(update=meta))
        return [n for n in session(models[0], "melancholy", edited=models[0], direction=given).notes if "the direction of" in n]

    assert [n.startswith(said) for n in notes()] == [True]
    assert notes(prompts_digest=shipped_sets("melancholy").digest) == [], "the parts of that recipe are disjoint"
    assert notes(prompts={"extract": [], "select": []}) == []
    assert "imported without its prompts" in notes(ran={"imported": "x.gguf"})[0]


def shipped_parts(recipe: Path, part: str) -> tuple[str, ...]:
    from weightsmith.features.prompts import prompt_sets
    from weightsmith.features.recipe import load_feature

    return prompt_sets(*load_feature(str(recipe))).part(part).shows


def found_with(recipe: Path) -> set[str]:
    return {*shipped_parts(recipe, "extract"), *shipped_parts(recipe, "select")}


def test_a_prompt_longer_than_the_context(models: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = feature_file(tmp_path)
    long = tmp_path / "long.yaml"
    rows = ", ".join(f"'{chr(97 + i) * 3} {'word ' * 200}{i}'" for i in range(8))
    text = recipe.read_text().replace("{shipped: everyday}", f"{{list: [{rows}]}}")
    long.write_text(text)
    with pytest.raises(RecipeError, match="tokens"):
        session(models[0], str(long)).compare(models[0])


def test_wishes_that_make_no_sense(models: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="no suite"):
        session(models[0], suite="slow")
    with pytest.raises(UsageError, match="no interval"):
        session(models[0], n=1)
    with pytest.raises(UsageError, match="given twice"):
        session(models[0], ["melancholy", "melancholy"])
    with pytest.raises(TypeError, match="no option"):
        session(models[0], suit="quick")


# -- thoughts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "opened", "thought", "answer"),
    [
        ("<think>a b</think>\nc", False, "a b", "c"), ("plain", False, "", "plain"), ("a b</think>c", True, "a b", "c"),
        ("<think>never ends", False, "never ends", None), ("never ends", True, "never ends", None),
        ("we say <think> in passing", False, "", "we say <think> in passing"), ("[THINK]x[/THINK]y", False, "x", "y"),
        ("<think></think>c", False, "", "c"),
    ],
)  # fmt: skip
def test_a_thought_is_kept_apart(raw: str, opened: bool, thought: str, answer: str | None) -> None:
    assert split_thought(raw, opened=opened) == (thought, answer)


def test_a_thinking_model_is_measured_in_both(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Its template opens a thought that the random model never closes: the answers are missing, the thoughts are not."""
    folder = shutil.copytree(models[0], tmp_path / "thinks")
    for file in folder.glob("chat_template*"):
        file.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = pico._TEMPLATE + "<think>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    options = replace(pico.CPU, use_cache=False)
    thinker = Subject.open("model", open_checkpoint(str(folder)), options)
    suite = replace(TINY, thought_tokens=4)
    found = answer_block(thinker, safety_blocks(suite)[0], suite)
    assert all(e.decoding.max_new_tokens == 10 for e in found.exchanges)
    assert all(e.text is None for e in found.exchanges)
    record = Session(None, "melancholy", suite=suite, options=options).compare(folder)
    by_key = {m.key: m for m in record.figures}
    assert by_key["melancholy.neutral.thought.ended"].value == 0
    assert "melancholy.neutral.sentiment" not in by_key, "no answer, no figure"
    assert "melancholy.neutral.thought.sentiment" in by_key


# -- files and suites --------------------------------------------------------------------------------------


def test_the_record_round_trips(models: tuple[Path, Path], tmp_path: Path) -> None:
    record = session(models[0], "melancholy").compare(models[1])
    save_record(record, tmp_path / "r.json")
    assert load_record(tmp_path / "r.json") == record
    (tmp_path / "old.json").write_text(json.dumps({"schema": "weightsmith/measurements/1"}))
    with pytest.raises(RecipeError, match="this version reads"):
        load_record(tmp_path / "old.json")


def test_two_sided_suites_cover_what_they_say() -> None:
    for suite in SUITES.values():
        blocks = safety_blocks(suite)
        assert len({b.key for b in blocks}) == len(blocks)
        for b in blocks:
            assert len(b.units) == len(b.asks) >= 12
            assert suite.n is None or len(b.asks) <= suite.n
    assert SUITES["quick"].sampled == 0
    for name in ("standard", "full"):
        assert SUITES[name].seeds >= 4
        assert SUITES[name].wordings >= 3
        assert SUITES[name].systems
    assert all(s.tokens >= 128 for s in SUITES.values())


def test_digests_of_blocks_follow_what_is_asked() -> None:
    a, b = (safety_blocks(replace(TINY, n=n)) for n in (3, 4))
    assert all(x.prompts_digest != y.prompts_digest for x, y in zip(a, b, strict=True))
    assert [x.prompts_digest for x in a] == [x.prompts_digest for x in safety_blocks(TINY)]


# -- what a model is, beyond its weights -------------------------------------------------------------------


def test_an_adapter_beside_the_weights_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    """A loader would add it to the weights wherever PEFT is installed, under the same digest."""
    folder = shutil.copytree(models[0], tmp_path / "m")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match="adapter"):
        session(models[0]).compare(folder)
    with pytest.raises(UnsupportedModel, match="adapter"):
        load(open_checkpoint(str(folder)), pico.CPU)


@pytest.mark.parametrize(("family", "setting"), [("gemma2", "final_logit_softcapping"), ("cohere2", "logit_scale")])
def test_the_head_alone_knows_its_familys_defaults(family: str, setting: str, tmp_path: Path) -> None:
    folder = pico.build(family, tmp_path / "m")
    pico.edit_config(folder, **{setting: None})
    checkpoint = open_checkpoint(str(folder))
    hidden = torch.randn(5, pico.WIDTH, generator=torch.Generator().manual_seed(0))
    read = Head.read(checkpoint, "cpu", torch.float32)
    torch.testing.assert_close(read.logits(hidden), load(checkpoint, pico.CPU).logits(hidden), rtol=0, atol=0)


def test_rows_that_pad_a_vocabulary_change_nothing(models: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(models[0], tmp_path / "padded")
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        if value.shape[0] == pico.VOCAB:
            tensors[name] = torch.cat([value, torch.full((32, value.shape[1]), 0.1)])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    pico.edit_config(folder, vocab_size=pico.VOCAB + 32)
    for base, edited in ((models[0], folder), (folder, models[0])):
        record = session(base).compare(edited)
        assert {m.key: m.value for m in record.damage if "max" in m.key}["kl.max"] < 1e-6


def test_bits_per_byte_count_what_was_read(models: tuple[Path, Path], tmp_path: Path) -> None:
    """A model that reads only the beginning of a text is not credited with the bytes that it never saw."""
    short = shutil.copytree(models[0], tmp_path / "short")
    pico.edit_config(short, max_position_embeddings=256)
    values = {}
    for folder in (models[0], short):
        subject = Subject.open("model", open_checkpoint(str(folder)), pico.CPU)
        read = likelihood(subject)
        assert all(b >= t for b, t in zip(read.bytes, read.tokens, strict=True)), "one token a character, at least a byte"
        values[folder.name] = sum(read.nats) / sum(read.bytes)
    assert values["short"] == pytest.approx(values["a"], rel=0.15)


def test_a_template_that_asks_for_the_date_is_told_always_the_same(models: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(models[0], tmp_path / "dated")
    for file in folder.glob("chat_template*"):
        file.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ strftime_now('%d %b %Y') }} " + pico._TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    running = load(open_checkpoint(str(folder)), pico.CPU)
    assert running.render([{"role": "user", "content": "hi"}]).startswith("01 Jan 2025 ")
    assert any("asks for the date" in n for n in running.notes)
    running.today = None
    assert not running.render([{"role": "user", "content": "hi"}]).startswith("01 Jan 2025 ")


def test_a_cached_base_still_says_what_it_said(models: tuple[Path, Path]) -> None:
    first = session(models[0], "melancholy", suite=SAMPLED).compare(models[1])
    again = session(models[0], "melancholy", suite=SAMPLED).compare(models[1])
    assert any("temperature 1" in n for n in first.notes)
    assert sorted(first.notes) == sorted(again.notes)
    assert figures(first) == figures(again)


@pytest.mark.parametrize("damage", [b"3", b"{}", b'"x"', b"[1]", b'{"sum": "0", "value": [1.0]}'])
def test_a_kept_value_that_was_changed_is_absent(damage: bytes) -> None:
    store = Store({"model": "z"})
    path, _ = store.value("scores", 1)
    store.keep(path, [1.0, None, 0.1])
    assert store.value("scores", 1)[1] == [1.0, None, 0.1]
    path.write_bytes(damage)
    assert store.value("scores", 1)[1] is None


def test_a_conversation_that_outgrows_the_context_is_left_out_there(models: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(models[0], tmp_path / "narrow")
    pico.edit_config(folder, max_position_embeddings=200)
    narrow = Subject.open("model", open_checkpoint(str(folder)), pico.CPU)
    block = safety_blocks(TINY)[2]
    turns = [(a.prompt, "and then? " * 8, "why?") for a in block.asks]
    found = answer_turns(narrow, block, turns, TINY)
    assert [all(e.text is not None for e in t.exchanges) for t in found] == [True, True, True]
    turns = [(a.prompt, "and then? " * 30, "why?") for a in block.asks]
    found = answer_turns(narrow, block, turns, TINY)
    assert [any(e.text is not None for e in t.exchanges) for t in found] == [True, False, False]
    assert any("does not fit" in n for n in narrow.all_notes())


def test_the_end_of_a_thought_in_channels_ends_no_answer(models: tuple[Path, Path]) -> None:
    raw = "<|channel|>analysis<|message|>hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    assert split_thought(raw) == ("hm.", "Yes.")
    running = load(open_checkpoint(str(models[0])), pico.CPU)
    before = running.stop_tokens
    for extra, stops in (("<|end|>", True), ("<|channel|>", False)):
        running.tokenizer.add_tokens([extra], special_tokens=True)
        end = running.tokenizer.get_vocab()["<|end|>"]
        assert running.stop_tokens == ({*before, end} if stops else before)


def test_a_direction_that_does_not_fit_is_refused_before_anything_is_asked(models: tuple[Path, Path], tmp_path: Path) -> None:
    wide = pico.build("llama", tmp_path / "wide", hidden_size=64)
    direction = pico.a_direction(wide)
    for base in (models[0], None):
        with pytest.raises(WeightsmithError, match="width"):
            Session(base, "melancholy", edited=models[0], direction=direction, suite=TINY, options=pico.CPU)
    own = pico.a_direction(models[0])
    with pytest.raises(UsageError, match="'melancholy', which is not measured"):
        Session(models[0], "formality", edited=models[0], direction=own, suite=TINY, options=pico.CPU)


def test_answers_without_a_value_are_said(models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from weightsmith.measure.scorers import Phrases

    monkeypatch.setattr(Phrases, "score", lambda self, model, exchanges: [None, *[0.0] * (len(exchanges) - 1)])
    record = session(models[0], "melancholy").compare(models[1])
    assert any(n.startswith("phrases gave no value for 2 of 6 answers of the edited model") for n in record.notes), record.notes
    d = next(d for d in record.differences if d.key == "melancholy.neutral.phrases")
    assert (d.n, d.edited.missing) == (2, 1)


def test_an_answer_without_a_thought_has_lost_no_score_of_one() -> None:
    how, ask = Decoding(8), Ask("g", "c", 0, "hi", ({"role": "user", "content": "hi"},))
    said = [Exchange(ask, how, (1,), (2,), "yes", thought, True) for thought in ("hm", "", "hm")]
    block = Answered(safety_blocks(TINY)[0], "c", "", said, [0, 1, 2])

    def notes(thoughts: list[float | None]) -> list[str]:
        block.scores = [Scored("k.phrases", "phrases", "", False, "phrases", [1.0, 1.0, 1.0]),
                        Scored("k.thought.phrases", "thought: phrases", "", False, "phrases", thoughts)]  # fmt: skip
        return _missing({"edited": Run([block])})

    assert notes([1.0, None, 0.0]) == []
    assert notes([1.0, None, None]) == [
        "phrases gave no value for 1 of 2 thoughts of the edited model: they are in none of its figures"]


def test_fewer_prompts_than_were_asked_for_are_said(models: tuple[Path, Path]) -> None:
    def said(n: int) -> list[str]:
        return [n for n in session(models[0], "melancholy", suite="quick", n=n).notes if "were asked for" in n]

    there = len(shipped_sets("melancholy").report.lacks)
    found = said(there + 2)
    assert f"melancholy: {there + 2} prompts were asked for, and there are {there} (neutral prompts; " in found[0]
    assert [n for n in found if n.startswith("safety: ")]
    assert said(12) == []
    whole = session(models[0], "melancholy", suite=replace(TINY, n=there + 2))
    assert not [n for n in whole.notes if "were asked for" in n], "a suite takes what there is"


def test_a_number_of_prompts_limits_sets_of_questions_too(models: tuple[Path, Path]) -> None:
    assert session(models[0], suite="standard", n=8).suite.choice == 8
    assert session(models[0], suite="quick", n=8).suite.choice == 0
