"""Records of the first kind (one feature, two conditions, a direction) and what tests read off a finished page."""

from __future__ import annotations

import html
import math
import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any, ClassVar

from measured_records import identity, v2_record
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


def box_of(t: ET.Element, width: int) -> tuple[float, float, float, float]:
    """About where words of a drawing stand (left, top, right, bottom); they have to lie within its ``width``."""
    wide, x, y = len(t.text or "") * 6.2, float(t.attrib["x"]), float(t.attrib["y"])
    left = {"start": x, "middle": x - wide / 2, "end": x - wide}[t.attrib["text-anchor"]]
    assert left >= -1
    assert left + wide <= width + 24
    return left, y - 10, left + wide, y + 2


def words_apart(drawing: str, width: int) -> None:
    """No words of a drawing lie outside of it, or on others."""
    boxes = [box_of(t, width) for t in ET.fromstring(drawing).iter("text")]
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


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
