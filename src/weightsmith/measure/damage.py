"""Damage: how far the edited model's distributions moved from the base's, by exact definitions.

With p the base's and q the edited model's distribution of the next token over the full vocabulary, at a position t of the
base's own greedy answer a (both models read the prompt and a's first t tokens):

- KL(base ‖ edited) at t is Σ p log(p / q), in nats. *First token* is t = 0; *mean*, *median*, *95th percentile* and *max*
  are over every position of every answer, the mean as the mean of the answers' own means.
- *Top-1 agreement* is the share of positions where p and q have the same likeliest token.
- *Perplexity* is exp of the mean negative log-likelihood per token of the texts that ship with Weightsmith; *bits per
  byte* is the same in units that do not depend on the tokenizer.

Between two vocabularies KL and agreement have no meaning and are left out; perplexity then has none either, bits per
byte still do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NonFinite
from ..measured import Difference, Measurement
from ..runtime import Continuation, score_answers
from .behaviour import Answered
from .power import minimum_detectable
from .sets import perplexity_texts
from .stats import ROUNDS, maximum, measurement, quantile_measurement, sign_flip, tails
from .subject import Subject

if TYPE_CHECKING:
    from ..runtime.head import Head

F64 = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Divergence:
    """KL and agreement of every position, one array an answer (``[positions]``); ``items`` are the answers' places in
    the block, since a base that says nothing to a prompt leaves nothing to compare there."""

    kl: list[F64] = field(default_factory=list)
    agree: list[F64] = field(default_factory=list)
    items: list[int] = field(default_factory=list)


@dataclass
class Reference:
    """The base's own greedy answers to a block, its final hidden states over them, and its ``lm_head``: all that a
    comparison needs of the base. ``places`` are the answers' places in the block."""

    items: list[Continuation]
    places: list[int]
    states: list[Any]
    head: Head
    vocabulary: str


def reference(base: Subject, answered: Answered) -> Reference:
    """Read the base's answers once; prompts to which it said nothing have no position to compare."""
    told = [(i, e) for i, e in enumerate(answered.exchanges) if e.tokens]
    items = [Continuation(e.prompt_ids, e.tokens) for _, e in told]
    states = base.states(items, "reading its own answers") if items else []
    return Reference(items, [i for i, _ in told], states, base.head, base.vocabulary)


def divergence(before: Reference, edited: Subject) -> Divergence:
    """KL(base ‖ edited) and top-1 agreement at every position; see the module's definitions.

    Raises:
        NonFinite: NaN or infinity in the edited model's output.
    """
    import torch

    after, head = edited.states(before.items, "reading the base's answers"), edited.head
    found = Divergence(items=list(before.places))
    with torch.inference_mode():
        for k, (a, b) in enumerate(zip(before.states, after, strict=True)):
            base, other = before.head.logits(a), head.logits(b)
            width = min(base.shape[-1], other.shape[-1])  # rows that only pad the vocabulary stand for no token
            p = torch.log_softmax(base[:, :width], -1)
            q = torch.log_softmax(other[:, :width], -1).to(p.device)
            same = p.argmax(-1) == q.argmax(-1)
            q = torch.sub(p, q, out=q)  # in place: these are the largest things here
            kl = torch.linalg.vecdot(p.exp_(), q).clamp(min=0)
            if not bool(torch.isfinite(kl).all()):
                raise NonFinite("KL is not finite: the edited model's logits overflow", where=edited.checkpoint.path)
            found.kl.append(kl.double().cpu().numpy())
            found.agree.append(same.double().cpu().numpy())
            edited.options.report("comparing distributions", k + 1, len(after))
    return found


def divergence_figures(found: Divergence, group: str, condition: str, prompts: str, prefix: str = "") -> list[Measurement]:
    """The figures of one divergence: ``kl.first.mean``, ``kl.mean``, ``kl.median``, ``kl.p95``, ``kl.max``, ``top1``."""
    positions = sum(len(k) for k in found.kl)
    first = np.array([k[0] for k in found.kl])
    means = np.array([k.mean() for k in found.kl])
    agree = np.array([a.mean() for a in found.agree])
    whose = f" on {prefix[:-1]} prompts" if prefix else ""
    name = f"KL(base ‖ edited){whose}"
    more: dict[str, Any] = {"group": group, "prompts": prompts}
    rows = [
        measurement(f"{name}, first token", first, "nats", condition, key=f"{prefix}kl.first.mean", **more),
        measurement(f"{name}, every position, mean", means, "nats per token", condition, key=f"{prefix}kl.mean", **more),
    ]
    if not prefix:
        rows += [
            quantile_measurement(f"{name}, median position", found.kl, 0.5, "nats", condition, key="kl.median", **more),
            quantile_measurement(f"{name}, 95th percentile", found.kl, 0.95, "nats", condition, key="kl.p95", **more),
            maximum(f"{name}, worst position", found.kl, "nats", condition, key="kl.max", **more),
        ]
    rows.append(measurement(f"top-1 agreement{whose}", agree, "share of positions", condition, key=f"{prefix}top1", **more))
    everywhere = ("kl.mean", "kl.median", "kl.p95", "kl.max", "top1")
    return [r.model_copy(update={"answers": positions}) if r.key.endswith(everywhere) else r for r in rows]


@dataclass
class Likelihood:
    """Negative log-likelihood in nats, tokens and bytes of each text."""

    nats: list[float]
    tokens: list[int]
    bytes: list[int]


def likelihood(subject: Subject) -> Likelihood:
    """Read the shipped texts; a text longer than the context is read as far as it goes."""
    texts = perplexity_texts()
    return Likelihood(*subject.value("likelihood", texts, lambda: _read(subject, texts)))


def _read(subject: Subject, texts: list[str]) -> tuple[list[float], list[int], list[int]]:
    model = subject.running
    rows = [model.tokens(t, special=True)[: model.context_length] for t in texts]
    # the first token is given: without a token that begins a text there is nothing to predict it from
    items = [Continuation(tuple(r[:1]), tuple(r[1:])) for r in rows if len(r) > 1]
    read = [len(model.decode(list(i.answer)).encode()) for i in items]
    with subject.steered():
        means = score_answers(model, items, f"{subject.name}: reading the shipped texts")
    return [-m * len(i.answer) for m, i in zip(means, items, strict=True)], [len(i.answer) for i in items], read


def perplexity_differences(before: Likelihood, after: Likelihood, *, same_vocabulary: bool) -> list[Difference]:
    """Perplexity (per token) and bits per byte, edited minus base, bootstrapped over the texts; nothing without texts."""
    if not before.nats:
        return []
    found = []
    if same_vocabulary:
        found.append(_ratio("perplexity", "", before.nats, after.nats, before.tokens, after.tokens, np.exp))
    found.append(_ratio("bits per byte", "bits", before.nats, after.nats, before.bytes, after.bytes,
                        lambda x: x / np.log(2)))  # fmt: skip
    return found


def perplexity_figures(read: Likelihood) -> list[Measurement]:
    """The same of one model alone."""
    return [d.edited for d in perplexity_differences(read, read, same_vocabulary=True)]


def _ratio(
    name: str, unit: str, a: Sequence[float], b: Sequence[float], a_size: Sequence[int], b_size: Sequence[int], shape: Any
) -> Difference:
    x, y = np.array(a, np.float64), np.array(b, np.float64)
    alone = len(x) < 2  # one text has no interval
    sizes = np.array(a_size, np.float64), np.array(b_size, np.float64)
    key = {"perplexity": "perplexity", "bits per byte": "bpb"}[name]
    picks = np.random.default_rng(0).multinomial(len(x), np.full(len(x), 1 / len(x)), ROUNDS)
    before, after = (shape((picks @ v) / (picks @ n)) for v, n in zip((x, y), sizes, strict=True))

    def side(v: F64, n: F64, drawn: F64) -> Measurement:
        low, high = (drawn[0], drawn[0]) if alone else np.quantile(drawn, tails(len(v)))
        return Measurement(
            name=name, value=float(shape(v.sum() / n.sum())), low=float(low), high=float(high), unit=unit, n=len(v),
            answers=int(n.sum()), interval="none" if alone else "bootstrap", condition="shipped texts", key=key, group="damage",
            values=[float(z) for z in v / n],
        )  # fmt: skip

    base, edited = side(x, sizes[0], before), side(y, sizes[1], after)
    change = after - before
    low, high = (change[0], change[0]) if alone else np.quantile(change, tails(len(x)))
    least = minimum_detectable(len(x), rate=False, sd=1.0)  # infinite where so few texts can't show any change
    sd = float(change.std()) * len(x) ** 0.5  # of one text's share in the difference
    p = sign_flip(y / sizes[1] - x / sizes[0])
    return Difference(name=name, condition="shipped texts", unit=unit, base=base, edited=edited,
                      value=edited.value - base.value, low=float(low), high=float(high), p=p,
                      test="sign-flip permutation of the texts", n=len(x), key=key, group="damage",
                      family="damage", mde=least * sd if math.isfinite(least) else None)  # fmt: skip
