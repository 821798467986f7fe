"""One paired comparison: base and edited model on the same report prompts, effect and damage side by side.

Two conditions: *neutral* (the prompt as a user would send it) and *shown* (where the base shows the feature: under its
persona, or on the prompts that show it), since a removal has nothing to remove elsewhere. Damage is measured on the
base's own greedy neutral answers: KL(base ‖ edited) over the full vocabulary at the first token and at every token.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np

from ..direction import Direction
from ..errors import EditError, RecipeError
from ..features.extract import conversation
from ..features.prompts import PromptSets
from ..features.recipe import FeatureSpec
from ..features.select import kl_rows
from ..records import Answer, Difference, Measurement, ScorerNote
from ..runtime import Continuation, RunningModel, answer_states, generate
from .degenerate import RULES, why_degenerate
from .scorers import SCORERS, Probe
from .stats import measurement, paired

NEUTRAL = "neutral prompts"


@dataclass(frozen=True)
class Suite:
    """What is measured, ready to run: prompts as token ids by condition, scorers, lengths."""

    spec: FeatureSpec
    conditions: dict[str, tuple[list[str], list[list[int]]]]
    scorers: list[Any]
    tokens: int
    kl_tokens: int = 32


@dataclass
class Run:
    """One model's answers and scores: ``scores[condition][scorer]`` is ``[n]``."""

    answers: dict[str, list[list[int]]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    perplexity: list[float] = field(default_factory=list)


def build_suite(
    model: RunningModel, spec: FeatureSpec, sets: PromptSets, direction: Direction | None, n: int | None, tokens: int
) -> Suite:
    """Render the *report* prompts and make the recipe's scorers.

    Raises:
        RecipeError: labelled texts, which can't be asked; unknown scorers or options.
    """
    if spec.contrast.kind == "texts":
        raise RecipeError("labelled texts are not prompts: this feature can be found but not asked for",
                          where=spec.name)  # fmt: skip
    part = sets.report
    shown = "under the feature's persona" if spec.contrast.kind == "personas" else "prompts that show it"
    rows = {NEUTRAL: ("lacks", part.lacks[:n], False), shown: ("shows", part.shows[:n], True)}
    conditions = {
        name: (list(prompts), [model.encode(conversation(spec, side, p, persona)) for p in prompts])
        for name, (side, prompts, persona) in rows.items()
    }
    return Suite(spec, conditions, make_scorers(spec, direction, model), tokens)


def make_scorers(spec: FeatureSpec, direction: Direction | None, reader: RunningModel) -> list[Any]:
    """The recipe's scorers; the probe only where its direction is at hand."""
    made: list[Any] = []
    for wanted in spec.scorers:
        if wanted.kind == "probe":
            if direction is not None:
                made.append(Probe(direction, probe_layer(direction), reader))
            continue
        made.append(SCORERS.load(wanted.kind).make(wanted.options))
    return made


def probe_layer(direction: Direction) -> int:
    """The layer that the probe reads: the chosen removal's source, else the one with the best AUROC."""
    if chosen := direction.meta.best("remove"):
        return chosen.source
    if direction.meta.quality:
        return max(direction.meta.quality, key=lambda q: q.auroc).layer
    return direction.meta.layers[len(direction.meta.layers) * 6 // 10]


def perplexity_texts() -> list[str]:
    """The shipped texts, one paragraph each."""
    text = files("weightsmith").joinpath("features/shipped/perplexity.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def run_model(model: RunningModel, suite: Suite, name: str) -> Run:
    """Answers, scores and perplexity of one model.

    Raises:
        NonFinite: NaN in its logits.
    """
    run = Run()
    for condition, (_, ids) in suite.conditions.items():
        answers = generate(model, ids, suite.tokens, f"{name}: answering ({condition})")
        texts = [model.decode(a) for a in answers]
        run.answers[condition], run.texts[condition] = answers, texts
        scores = run.scores.setdefault(condition, {})
        for scorer in suite.scorers:
            if hasattr(scorer, "score_texts"):
                scores[scorer.name] = scorer.score_texts(texts)
            else:
                neutral = _plain(model, suite, condition)
                asked = neutral if isinstance(scorer, Probe) else ids
                scores[scorer.name] = scorer.score_model(model, asked, answers)
        scores["degenerate"] = [float(why_degenerate(t) is not None) for t in texts]
    texts_ = [_as_continuation(model, t) for t in perplexity_texts()]
    from ..runtime import score_answers

    run.perplexity = [-v for v in score_answers(model, texts_, f"{name}: reading the shipped text")]
    return run


def _plain(model: RunningModel, suite: Suite, condition: str) -> list[list[int]]:
    """The prompts of a condition without its persona: the probe reads answers, not the persona before them."""
    prompts, _ = suite.conditions[condition]
    return [model.encode(conversation(suite.spec, "shows", p, False)) for p in prompts]


def _as_continuation(model: RunningModel, text: str) -> Continuation:
    ids = model.tokens(text, special=True)[: model.context_length]
    return Continuation(tuple(ids[:1]), tuple(ids[1:]))


def base_states(model: RunningModel, suite: Suite, run: Run) -> tuple[list[Continuation], list[Any]]:
    """The base's neutral answers, cut to ``kl_tokens``, and its final hidden states over them."""
    _, prompts = suite.conditions[NEUTRAL]
    items = [Continuation(tuple(p), tuple(a[: suite.kl_tokens]))
             for p, a in zip(prompts, run.answers[NEUTRAL], strict=True) if a]  # fmt: skip
    if not items:
        raise RecipeError("the base model answers nothing to every neutral prompt: there is nothing to compare")
    return items, answer_states(model, items, "base: reading its own answers")


def damage(
    base: RunningModel, edited: RunningModel, items: Seq[Continuation], states: Seq[Any], before: Run, after: Run
) -> list[Measurement]:
    """KL at the first token and over the answer, top-1 agreement, and perplexity of both.

    Raises:
        EditError: the two models have different vocabularies.
    """
    if base.tokenizer.get_vocab() != edited.tokenizer.get_vocab():
        raise EditError("the two models have different vocabularies, so KL has no meaning between them")
    after_states = answer_states(edited, items, "edited: reading the base's answers")
    rows, agree = _divergence(base, edited, states, after_states)
    first = np.array([float(r[0]) for r in rows])
    mean = np.array([float(r.mean()) for r in rows])
    found = [
        measurement("KL(base ‖ edited), first token", first, "nats", NEUTRAL),
        measurement(f"KL(base ‖ edited), {max(len(r) for r in rows)} response tokens", mean, "nats per token", NEUTRAL),
        measurement("top-1 agreement", agree, "share of tokens", NEUTRAL),
    ]
    for name, run in (("base", before), ("edited", after)):
        nll = measurement("nll", np.array(run.perplexity), "nats per token", "shipped text")
        found.append(Measurement(
            name=f"perplexity, {name}", value=float(np.exp(nll.value)), low=float(np.exp(nll.low)),
            high=float(np.exp(nll.high)), unit="", n=nll.n, interval="bootstrap", condition="shipped text",
        ))  # fmt: skip
    return found


def _divergence(base: RunningModel, edited: RunningModel, before: Seq[Any], after: Seq[Any]) -> tuple[list[Any], Any]:
    import torch

    same_head = base is edited
    rows, agree = [], []
    with torch.inference_mode():
        for a, b in zip(before, after, strict=True):
            p = torch.log_softmax(base.logits(a), -1)
            q = torch.log_softmax((base if same_head else edited).logits(b.to(edited.device)), -1).to(p.device)
            rows.append((p.exp() * (p - q)).sum(-1).clamp(min=0).cpu())
            agree.append(float((p.argmax(-1) == q.argmax(-1)).float().mean()))
    return rows, np.array(agree)


def differences(suite: Suite, before: Run, after: Run) -> list[Difference]:
    """Paired differences of every scorer under every condition, degenerate answers beside them."""
    found = []
    for condition in suite.conditions:
        for scorer in suite.scorers:
            found.append(paired(scorer.name, np.array(before.scores[condition][scorer.name]),
                                np.array(after.scores[condition][scorer.name]), scorer.unit, condition,
                                scorer.rate))  # fmt: skip
        found.append(paired("degenerate", np.array(before.scores[condition]["degenerate"]),
                            np.array(after.scores[condition]["degenerate"]), "share of answers", condition, True))  # fmt: skip
    return found


def answers(suite: Suite, before: Run, after: Run, n: int = 8) -> list[Answer]:
    """Pairs of answers to read: the first ``n`` report prompts of each condition, not picked by hand."""
    found = []
    for condition, (prompts, _) in suite.conditions.items():
        for prompt, a, b in list(zip(prompts, before.texts[condition], after.texts[condition], strict=True))[:n]:
            found.append(Answer(prompt=prompt, condition=condition, base=a, edited=b,
                                degenerate_base=why_degenerate(a) is not None,
                                degenerate_edited=why_degenerate(b) is not None))  # fmt: skip
    return found


def scorer_notes(suite: Suite) -> list[ScorerNote]:
    """What every scorer reads and what is known of its error."""
    rules = ScorerNote(name="degenerate", reads=RULES, error="rules, not calibrated; the same for both models")
    return [*(s.note() for s in suite.scorers), rules]


__all__ = ["NEUTRAL", "Run", "Suite", "answers", "base_states", "build_suite", "damage", "differences", "kl_rows",
           "make_scorers", "run_model", "scorer_notes"]  # fmt: skip
