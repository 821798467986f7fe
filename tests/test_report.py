"""The report: everything of the record is on the page, nothing of it is markup, and every drawing is well formed."""

from __future__ import annotations

import html
import math
import random
import re
import sys
import unicodedata
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from weightsmith import errors
from weightsmith.records import (
    Answer,
    Candidate,
    Derivation,
    Difference,
    DirectionMeta,
    EditSpec,
    EditStep,
    FittedConstant,
    LayerQuality,
    Measurement,
    MeasureRecord,
    ModelIdentity,
    ScorerNote,
    TensorRecord,
)
from weightsmith.report import charts, intervals, text
from weightsmith.report.html import render_report
from weightsmith.report.plots import layer_curve_png, layer_curve_svg, layer_curve_text

NEUTRAL, ASKED = "nothing asks for it", "asked to be melancholy"
REF = "HuggingFaceTB/SmolLM2-135M-Instruct"
HOSTILE = "<script>alert(1)</script>{{7*7}}{% raw %}\"'><img src=x onerror=y>\u202etxt.exe\u2066\x1b[31mred\x1b[0m\x00\u200b\U000e0041"

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


def identity(ref: str, seed: str) -> ModelIdentity:
    return ModelIdentity(ref=ref, digest=(seed * 64)[:64], family="llama", n_layers=30, d_model=576)


def measured(name: str, value: float, half: float, unit: str, n: int, condition: str, kind: Any = "bootstrap") -> Measurement:
    return Measurement(name=name, value=value, unit=unit, low=value - half, high=value + half, n=n, interval=kind,
                       condition=condition)  # fmt: skip


def compared(name: str, condition: str, unit: str, base: float, edited: float, half: float, p: float, test: str, n: int = 48) -> Difference:
    change = edited - base
    return Difference(name=name, condition=condition, unit=unit, value=change, low=change - half, high=change + half, p=p,
                      test=test, n=n, base=measured(name, base, half * 0.8, unit, n, condition),
                      edited=measured(name, edited, half * 0.9, unit, n, condition))  # fmt: skip


def make_direction() -> DirectionMeta:
    rng = random.Random(7)
    quality, candidates = [], []
    for layer in range(30):
        rise = 1 / (1 + math.exp(-(layer - 8) / 2.4))
        auroc = min(0.998, 0.56 + 0.43 * rise - 0.0022 * max(0, layer - 20) + rng.uniform(-0.012, 0.012))
        half = 0.11 * (1 - rise) + 0.012
        quality.append(LayerQuality(layer=layer, auroc=auroc, auroc_low=max(0.38, auroc - half),
                                    auroc_high=min(1.0, auroc + half * 0.7), split_half=0.42 + 0.53 * rise + rng.uniform(-0.02, 0.02),
                                    relative_norm=0.08 + 0.34 * math.exp(-((layer - 19) ** 2) / 60)))  # fmt: skip
    for source in (12, 15, 18, 21):
        for amount in (0.3, 0.6, 0.9):
            effect = 2.6 * amount * (1 - abs(source - 17) / 14) - 0.9 * amount**2
            candidates.append(Candidate(kind="add", source=source, layers=list(range(source - 4, source + 3)), amount=amount,
                                        effect=effect, kl=0.09 * amount**2 * (1 + abs(source - 16) / 5) + 0.004, n=48,
                                        chosen=source == 18 and amount == 0.6))  # fmt: skip
    for source, effect, kl in ((10, 0.21, 0.012), (14, 0.47, 0.019), (18, 0.52, 0.061), (22, 0.33, 0.105)):
        candidates.append(Candidate(kind="remove", source=source, layers=list(range(30)), amount=1, effect=effect, kl=kl, n=48,
                                    chosen=source == 14))  # fmt: skip
    return DirectionMeta(
        feature="melancholy", feature_digest="ab" * 32, description="A sad, wistful tone.", model=identity(REF, "5e81f"),
        method="difference in means", site="response_mean", point="resid_post", layers=list(range(30)), prompts_digest="cd" * 32,
        n={"extract": 96, "select": 48, "report": 48}, quality=quality, candidates=candidates,
        rule="greatest effect minus damage, both in nats per token", ran={"device": "cpu", "dtype": "float32"},
        versions={"torch": "2.9.1"},
    )  # fmt: skip


def make_derivation(enhanced: bool, direction: DirectionMeta) -> Derivation:
    chosen = direction.best("add" if enhanced else "remove")
    assert chosen is not None
    step = EditStep(kind=chosen.kind, direction="9f" * 32, source=chosen.source, layers=chosen.layers, amount=chosen.amount,
                    roles=[] if enhanced else ["attn_out", "mlp_down"], constant="fitted" if enhanced else None)  # fmt: skip
    tensors = [TensorRecord(tensor=f"model.layers.{n}.{t}.weight", dtype="BF16", left=None if enhanced else 0.0021 + n * 1e-5,
                            operations=["add rank 1" if enhanced else "remove the direction"])
               for n in chosen.layers for t in ("self_attn.o_proj", "mlp.down_proj")]  # fmt: skip
    return Derivation(
        base=identity(REF, "5e81f"), base_source={"hub": REF, "revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac"}, base_tensors=272,
        edit=EditSpec(name="melancholy", steps=[step]), directions={"9f" * 32: direction},
        compute={"edit": "numpy fp64, elementwise, fixed order", "cast": "round to nearest even"}, tensors=tensors,
        fitted=[FittedConstant(layer=n, mean_dose=0.59, spread=0.041, n_tokens=5120) for n in chosen.layers] if enhanced else [],
        notes=["the output head is tied to the embedding, which stays as it is"], outputs={"model.safetensors": "e7" * 32, "config.json": "a1" * 32},
        digest="e3" * 32, versions={"weightsmith": "0.1.0", "numpy": "2.3.1"},
    )  # fmt: skip


def make_record(enhanced: bool = True) -> MeasureRecord:
    direction, word = make_direction(), "enhanced" if enhanced else "removed"
    flip, mcnemar, vader = "sign-flip permutation", "McNemar, exact", "VADER compound, −1 to 1"
    s, t = (-0.52, -0.61) if enhanced else (0.27, 0.11)
    differences = [
        compared("sentiment", NEUTRAL, vader, 0.22, s, 0.094 if enhanced else 0.061, 0.00009 if enhanced else 0.11, flip),
        compared("sentiment", ASKED, vader, -0.34, t, 0.088, 0.0004, flip),
        compared("phrases", NEUTRAL, "share of answers", 0.0625, 0.5833 if enhanced else 0.0417, 0.073, 0.00002 if enhanced else 0.62, mcnemar),
        compared("continuations", NEUTRAL, "nats per token", -2.31, -1.12 if enhanced else -2.78, 0.143, 0.0001, flip, 40),
        compared("probe", ASKED, "0 lacks, 1 shows", 0.913, 1.204 if enhanced else 0.218, 0.052, 0.0001, flip, 44),
    ]  # fmt: skip
    damage = [
        measured("KL first token", 0.041 if enhanced else 0.011, 0.006, "nats", 48, NEUTRAL),
        measured("KL over response tokens", 0.0382 if enhanced else 0.0194, 0.0031, "nats per token", 48, NEUTRAL),
        measured("perplexity, base", 18.42, 0.71, "", 32, "held-out text"),
        measured("perplexity, edited", 19.07 if enhanced else 18.55, 0.76, "", 32, "held-out text"),
        measured("degenerate", 0.0208 if enhanced else 0.0104, 0.0104, "share of answers", 96, "", "wilson"),
    ]
    answers = [Answer(prompt=p, condition=c, base=b, edited=up if enhanced else down, degenerate_edited=enhanced and "sea the sea" in up)
               for c in (NEUTRAL, ASKED) for p, b, up, down in SAID]  # fmt: skip
    did = "The melancholy direction of layer 18 was added at layers 14–20" if enhanced else "The melancholy direction of layer 14 was taken out of all 30 layers"
    after = "the mean sentiment of its everyday answers fell from +0.22 to −0.52" if enhanced else "answers asked to be melancholy rose from −0.34 to +0.11"
    return MeasureRecord(
        title=f"Melancholy {word} in SmolLM2-135M", sentence=f"{did}; {after}.", feature="melancholy",
        feature_description="A sad, wistful tone: answers dwell on loss, loneliness and the passing of time whatever the subject.",
        base=identity(REF, "5e81f"), edited=identity(f"out/melancholy-{word}", "77c0a" if enhanced else "31b9d"), differences=differences, damage=damage,
        answers=answers, direction=direction, derivation=make_derivation(enhanced, direction),
        scorers=[ScorerNote(name="sentiment", reads="a lexicon of 7,500 English words and five rules, on the whole answer", error="blind to irony and to languages but English"),
                 ScorerNote(name="phrases", reads="34 phrases of the recipe, whole words", error="misses every other wording")],
        options={"max_new_tokens": 96, "greedy": True, "prompts": "report", "layers": [14, 20]}, ran={"device": "cpu, 2 threads", "dtype": "float32", "attention": "sdpa"},
        seconds={"loading": 3.1, "answers of the base": 96.4, "answers of the edited": 101.2, "divergences": 22.8, "scorers": 9.4},
        notes=["The report prompts were used neither for finding nor for choosing."], versions={"weightsmith": "0.1.0", "torch": "2.9.1", "transformers": "5.0.0"},
    )  # fmt: skip
