"""Whether a claimed figure holds by a measured one: rules with three outcomes, each wrong at most one time in twenty.

Both *holds* and *does not hold* have to be shown. With the difference d = measured − claimed and a margin δ inside which
a difference means nothing to a reader (other prompts, other judges, other token limits):

- *holds*: the 90% interval of d lies inside [−δ, δ] (two one-sided tests at 5%: Schuirmann 1987).
- *does not hold*: the 90% interval of d lies outside [−δ, δ] altogether (a one-sided test at 5% of a difference larger
  than the margin, not merely of a difference).
- *cannot tell*: anything else. More prompts (``n``) decide it.

The interval of d is the hybrid score interval of Newcombe (1998, method 10) from Wilson intervals of both sides where
the card gives n of m; a claim without its m is taken as exact up to its last digit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..claimed import Claim, Outcome, Verdict
from ..measured import Difference, Measurement, MeasureRecord, ScorerNote

#: what a rate or a score may differ by before it matters: other prompts, judges, shots and token limits move it so far
MARGIN = 0.10
#: a KL holds within 25% or 0.01 nats, and is not to be had at twice the claim; lower than a tenth of it is another model's
KL_SHARE, KL_LEAST, KL_TWICE, KL_TENTH = 0.25, 0.01, 2.0, 10.0
#: by how much a ratio of perplexities may differ
PERPLEXITY = 0.05
Z90, Z95 = 1.6448536269514722, 1.959963984540054

Interval = tuple[float, float]


@dataclass
class Figures:
    """The figures of a measurement by key, for the edited model and for its base."""

    edited: dict[str, Measurement] = field(default_factory=dict)
    base: dict[str, Measurement] = field(default_factory=dict)
    pairs: dict[str, Difference] = field(default_factory=dict)
    scorers: dict[str, ScorerNote] = field(default_factory=dict)
    tokens: int | None = None


def figures_of(record: MeasureRecord) -> Figures:
    """Figures by their keys; the first of a key counts."""
    found = Figures()
    for pair in record.differences:
        found.pairs.setdefault(pair.key, pair)
        found.edited.setdefault(pair.key, pair.edited)
        found.base.setdefault(pair.key, pair.base)
    for figure in [*record.damage, *record.figures]:
        found.edited.setdefault(figure.key, figure)
    found.scorers = {s.name: s for s in record.scorers}
    tokens = record.options.get("answer_tokens")
    found.tokens = tokens if isinstance(tokens, int) else None
    return found


def wilson(count: float, n: int, z: float) -> Interval:
    """Wilson's score interval of a rate (Wilson 1927)."""
    p, spread = count / n, z * z / n
    middle = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def ninety(figure: Measurement) -> Interval:
    """The 90% interval of a figure: Wilson's again for counts, else the 95% one drawn in as a normal's would be."""
    count = figure.value * figure.n
    if figure.interval == "wilson" and figure.n and abs(count - round(count)) < 1e-6:
        return wilson(round(count), figure.n, Z90)
    shrink = Z90 / Z95
    return figure.value - shrink * (figure.value - figure.low), figure.value + shrink * (figure.high - figure.value)


def difference(claim: Claim, figure: Measurement) -> Interval:
    """The 90% interval of measured − claimed (Newcombe 1998, method 10)."""
    claimed = claim.value or 0.0
    sides = (claimed - claim.step, claimed + claim.step)
    if claim.total is not None and claim.count is not None:
        sides = wilson(claim.count, claim.total, Z90)
    low, high = ninety(figure)
    d = figure.value - claimed
    return (d - math.hypot(figure.value - low, sides[1] - claimed), d + math.hypot(high - figure.value, claimed - sides[0]))


def within(interval: Interval, margin: float, claim: Claim) -> Outcome:
    """The three outcomes for an interval of measured − claimed; a bound (*at most*) is only broken on its one side."""
    low, high = interval
    above = "does not hold" if low > margin else "holds" if high <= margin else "cannot tell"
    below = "does not hold" if high < -margin else "holds" if low >= -margin else "cannot tell"
    sides = {"at most": (above,), "at least": (below,)}.get(claim.relation, (above, below))
    if "does not hold" in sides:
        return "does not hold"
    return "holds" if set(sides) == {"holds"} else "cannot tell"


def judge(claim: Claim, figures: Figures, others: Iterable[Claim]) -> Verdict:
    """The verdict on a claim of a figure. ``others`` are the card's claims, of which some are about the base."""
    if claim.kind == "divergence":
        return _divergence(claim, figures)
    if claim.kind == "perplexity":
        return _perplexity(claim, figures, others)
    return _rate(claim, figures, others)


def _rate(claim: Claim, figures: Figures, others: Iterable[Claim]) -> Verdict:
    figure = (figures.edited if claim.subject == "this model" else figures.base).get(claim.keys[0])
    if figure is None:
        return Verdict(claim=claim, verdict="cannot tell", why=f"the suite that ran has no {claim.says}")
    interval = difference(claim, figure)
    verdict = within(interval, MARGIN, claim)
    span = f"measured − claimed is {_points(interval[0])} to {_points(interval[1])} points (90%)"
    why = {
        "holds": f"{span}: within {MARGIN * 100:.0f} points",
        "does not hold": f"{span}: more than {MARGIN * 100:.0f} points off",
        "cannot tell": f"{span}, which neither stays within {MARGIN * 100:.0f} points nor leaves them; more prompts would tell",
    }[verdict]
    if verdict == "does not hold" and claim.subject == "this model":
        control = next((c for c in others if c.subject == "original model" and c.keys == claim.keys), None)
        theirs = figures.base.get(claim.keys[0])
        if control and not control.unmeasurable and theirs and (
            within(difference(control, theirs), MARGIN, control) == "does not hold"
        ):  # fmt: skip
            verdict = "cannot tell"
            why = (f"{span}, but the same holds for the base: claimed {control.claimed}, measured {theirs.value:.1%}. "
                   "The card counts otherwise than we do, so its figures can't be compared with ours")  # fmt: skip
    if claim.subject == "original model" and verdict == "does not hold":
        why += "; a base's figure depends on nothing but the prompts and the count, so theirs are others than ours"
    return _with_figure(claim, verdict, f"{why}. {conditions(figure, figures)}", figure)


def _divergence(claim: Claim, figures: Figures) -> Verdict:
    """A KL without a definition holds if it does by any; it does not hold only if it does by none."""
    found = [(k, figures.edited[k]) for k in claim.keys if k in figures.edited]
    if not found or claim.value is None:
        return Verdict(claim=claim, verdict="cannot tell", why="the suite that ran has no such divergence")
    tried = [(key, figure, _one_divergence(claim, figure)) for key, figure in found]
    first = next((t for t in tried if t[2] == "holds"), None)
    stated = len(claim.keys) == 1
    if first:
        how = "" if stated else f", as {first[0]} (the card does not say which KL)"
        why = f"within {KL_SHARE:.0%} or {KL_LEAST} nats of the measured interval{how}"
        return _with_figure(claim, "holds", f"{why}. {conditions(first[1], figures)}", first[1])
    shown = ", ".join(f"{key} {figure.value:.3g} [{figure.low:.3g}, {figure.high:.3g}]" for key, figure, _ in tried)
    best = min(tried, key=lambda t: abs(t[1].value - (claim.value or 0.0)))[1]
    if all(outcome == "does not hold" for _, _, outcome in tried):
        why = f"by no definition: {shown}" if not stated else f"measured {shown}"
        return _with_figure(claim, "does not hold", f"{why}. {conditions(best, figures)}", best)
    lower = all(figure.high < (claim.value or 0.0) for _, figure, _ in tried)
    why = (f"measured lower than claimed ({shown}), which other prompts may explain" if lower
           else f"the measured interval is too wide, or too near twice the claim, to tell: {shown}")  # fmt: skip
    return _with_figure(claim, "cannot tell", f"{why}. {conditions(best, figures)}", best)


def _one_divergence(claim: Claim, figure: Measurement) -> Outcome:
    """One definition of KL: see ``docs/claims.md``. Low figures are no reproach, unless they are another model's."""
    value = claim.value or 0.0
    slack = max(KL_LEAST, KL_SHARE * value)
    if claim.relation == "at most":
        if figure.high <= value + slack:
            return "holds"
        return "does not hold" if figure.low > KL_TWICE * value + KL_LEAST else "cannot tell"
    if figure.low > KL_TWICE * value + KL_LEAST or figure.high < value / KL_TENTH - KL_LEAST:
        return "does not hold"
    near = figure.low - slack <= value <= figure.high + slack
    tight = figure.high <= KL_TWICE * value + KL_LEAST and figure.low >= value / KL_TWICE - KL_LEAST
    return "holds" if near and tight else "cannot tell"


def _perplexity(claim: Claim, figures: Figures, others: Iterable[Claim]) -> Verdict:
    """Perplexities of other texts can't be compared; the ratio to the base's can, where the card gives both."""
    pair = figures.pairs.get("perplexity")
    base = next((c for c in others if c.kind == "perplexity" and c.subject != claim.subject), None)
    if pair is None or base is None or not base.value or not claim.value or claim.subject == "original model":
        what = "the base's is not claimed" if pair is not None else "none was measured"
        if claim.subject == "original model" and base is not None:
            what = "its ratio to the edited model's is judged instead"
        why = f"a perplexity means nothing without its texts, and those are not ours; {what}"
        return Verdict(claim=claim, verdict="cannot tell", why=why)
    claimed = claim.value / base.value
    ratio, low, high = ((pair.base.value + x) / pair.base.value for x in (pair.value, pair.low, pair.high))
    slack = claimed * PERPLEXITY
    shrink = Z90 / Z95
    interval = ratio - shrink * (ratio - low) - claimed, ratio + shrink * (high - ratio) - claimed
    verdict = within(interval, slack, claim)
    why = (f"edited/base is claimed as {claimed:.3f} and measured as {ratio:.3f} [{low:.3f}, {high:.3f}]; "
           f"the margin is {PERPLEXITY:.0%}, and only the ratio is compared: the texts are others")  # fmt: skip
    return Verdict(claim=claim, verdict=verdict, why=why, measured=f"ratio {ratio:.3f} [{low:.3f}, {high:.3f}]",
                   figure="perplexity", value=ratio, low=low, high=high, n=pair.n)  # fmt: skip


def _with_figure(claim: Claim, verdict: Outcome, why: str, figure: Measurement) -> Verdict:
    share = claim.unit == "share"
    scale, unit = (100, "%") if share else (1, "")
    low, high = scale * figure.low, scale * figure.high
    digits = ".0f" if share else ".3g"
    shown = f"{scale * figure.value:{digits}}{unit} [{low:{digits}}, {high:{digits}}]"
    return Verdict(claim=claim, verdict=verdict, why=why, measured=shown, figure=figure.key, value=figure.value,
                   low=figure.low, high=figure.high, n=figure.n)  # fmt: skip


def conditions(figure: Measurement, figures: Figures) -> str:
    """Under what conditions a figure was measured: prompts, tokens, who read the answers, and its own error."""
    parts = [f"{figure.n} of our prompts" + (f" ({figure.condition})" if figure.condition else "")]
    if figure.scorer and figures.tokens:
        parts.append(f"answers of {figures.tokens} tokens")
    note = figures.scorers.get(figure.scorer)
    if note is not None:
        parts.append(f"read by {note.name}" + (f" ({note.error})" if note.error else ""))
    return "Measured on " + ", ".join(parts)


def _points(share: float) -> str:
    return f"{100 * share:+.0f}"
