"""How well the similarity scorer and the on-topic cosine tell real answers apart; writes the calibration that ships.

    python benchmarks/similarity.py MODEL --name NAME [-n 48] [--write]

For each feature the model answers *report* prompts greedily under the persona that shows the feature and under the one that
lacks it. The label is what was asked for, not what a person read in the answer: where the model ignores its persona, no
scorer can be right. The references are the recipe's own ``continuations``. On-topic: the answer beside its own prompt
against the same answer beside the next prompt.

Prediction: the openings are short and tone is a small part of a sentence embedding, so AUROC 0.7 to 0.9 for the features,
under VADER for cheerfulness; on-topic above 0.95. Found: cheerfulness 0.59 with SmolLM2-135M and 0.88 with
Qwen2.5-Coder-0.5B (VADER 0.59 and 0.72: the order was predicted wrong), melancholy 0.75 and 0.76 (VADER 0.64 and 0.70), on-topic
0.98 to 0.99.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import weightsmith
from weightsmith.checkpoint import open_checkpoint
from weightsmith.features.extract import conversation
from weightsmith.features.prompts import prompt_sets
from weightsmith.features.quality import auroc, auroc_interval
from weightsmith.features.recipe import load_feature
from weightsmith.measure.asks import Ask, Decoding, Exchange
from weightsmith.measure.scorers import Sentiment
from weightsmith.measure.similarity import CALIBRATION, Similarity, on_topic, references_digest
from weightsmith.measured import ErrorFigure
from weightsmith.options import RunOptions
from weightsmith.runtime import generate, load

FEATURES = ("cheerfulness", "melancholy")
TOKENS = 64


def exchange(prompt: str, text: str) -> Exchange:
    ask = Ask("report", "persona", 0, prompt, ({"role": "user", "content": prompt},))
    return Exchange(ask, Decoding(TOKENS), (), (), text)


def compared(data: str, shows: list[float | None], lacks: list[float | None]) -> ErrorFigure:
    """AUROC over pairs of which both sides have a value; the interval draws prompts."""
    pairs = np.array([(a, b) for a, b in zip(shows, lacks, strict=True) if a is not None and b is not None])
    low, high = auroc_interval(pairs[:, 0], pairs[:, 1], True, np.random.default_rng(0))
    value = auroc(pairs[:, 0], pairs[:, 1])
    return ErrorFigure(data=data, figure="AUROC", value=value, low=low, high=high, n=2 * len(pairs))


def write(name: str, digest: str, table: dict[str, list[dict[str, Any]]]) -> None:
    """Put one model's figures beside those of the others; its own earlier ones go."""
    path = Path(weightsmith.__file__).parent / CALIBRATION
    path.parent.mkdir(exist_ok=True)
    record: dict[str, Any] = {"made_by": "benchmarks/similarity.py", "models": {}, "references": {}}
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
    record["models"][name] = digest
    for key, rows in table.items():
        rows = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
        names = {row["data"] for row in rows}
        kept = [row for row in record["references"].get(key, []) if row["data"] not in names]
        record["references"][key] = sorted([*kept, *rows], key=lambda row: str(row["data"]))
    path.write_text(json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("model")
    words.add_argument("--name", required=True, help="what the model is called in the record")
    words.add_argument("-n", type=int, default=48)
    words.add_argument("--write", action="store_true")
    given = words.parse_args()
    model = load(open_checkpoint(given.model), RunOptions(device="cpu", dtype="float32", threads=1))
    table: dict[str, Any] = {}
    topic: dict[str, list[tuple[str, str]]] = {}
    for feature in FEATURES:
        spec, folder = load_feature(feature)
        prompts = list(prompt_sets(spec, folder).report.shows[: given.n])
        said: dict[str, list[Exchange]] = {}
        for side in ("shows", "lacks"):
            asked = [model.encode(conversation(spec, side, p, True)) for p in prompts]
            texts = [model.decode(a) for a in generate(model, asked, TOKENS)]
            said[side] = [exchange(p, t) for p, t in zip(prompts, texts, strict=True)]
        topic[feature] = [(e.ask.prompt, e.text or "") for e in said["lacks"]]
        wanted = {s.kind: s.options for s in spec.scorers}
        openings = wanted["continuations"]
        scorer = Similarity.make({"references": {"shows": openings["shows"], "lacks": openings["lacks"]}})
        data = f"{feature}: {given.name}, its personas told apart, the recipe's openings as references"
        figure = compared(data, scorer.score(None, said["shows"]), scorer.score(None, said["lacks"]))
        table[references_digest(scorer.shows, scorer.lacks)] = [figure.model_dump()]
        vader = Sentiment.make(wanted["sentiment"])
        sign = vader.rises
        signed = {s: [None if v is None else sign * v for v in vader.score(None, said[s])] for s in said}
        other = compared(f"{feature}: the same answers, VADER", signed["shows"], signed["lacks"])
        for f in (figure, other):
            print(f"{f.value:.3f} [{f.low:.3f}, {f.high:.3f}] n={f.n}  {f.data}")
    for feature, rows in topic.items():
        prompts, texts = [p for p, _ in rows], [t for _, t in rows]
        own, next_ = on_topic(prompts, texts), on_topic([*prompts[1:], prompts[0]], texts)
        f = compared(f"on-topic, {feature}: own prompt against the next one", own, next_)
        cosines = np.array([v for v in own if v is not None]), np.array([v for v in next_ if v is not None])
        print(f"{f.value:.3f} [{f.low:.3f}, {f.high:.3f}] n={f.n}  {f.data}; "
              f"median cosine {np.median(cosines[0]):.2f} against {np.median(cosines[1]):.2f}")  # fmt: skip
    if given.write:
        write(given.name, model.identity.digest, table)


if __name__ == "__main__":
    main()
