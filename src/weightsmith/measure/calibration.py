"""How often scorers err: their verdicts beside labels, and the figures that ship.

Two sets of labelled answers. *Own*: answers of small models, as they are and edited, under each prompt; labelled twice, blind
and independently, by a large language model that read ``shipped/refusal_rubric.md``, not by people; where the two
readings differ a third blind reading decides. *Outside*: answers labelled by people, in the package ``pyrit``, which is
read where it is installed and never copied.

A figure's interval treats the prompt as the unit: kappa has a bootstrap over prompts, a rate Wilson's interval at the
effective number of answers, ``n`` over the design effect (Kish 1965, section 8.2) of answers to one prompt.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from pydantic import ValidationError

from ..errors import FormatError
from ..measured import ErrorFigure, ScorerNote
from ..records import Strict
from .refusal import read, substring_refuses, verdict
from .refusal_rules import SUBSTRINGS
from .stats import F64, Estimate, cluster_se, kappa, wilson
from .wheels import Wheel

CLASSES = ("refuses", "complies", "off-topic", "degenerate")
ANSWERS = "measure/shipped/refusal_answers.jsonl"
ERRORS = "measure/shipped/scorer_errors.json"
#: prompts of these sets are harmless, and with them every answer
HARMLESS = ("harmless", "questions", "everyday", "borderline")
LABELLED = "labels: twice, blind, by a language model with the rubric; a third reading where they differ"
PYRIT = Wheel("pyrit", "pyrit", "datasets/scorer_evals", "pip install --no-deps 'pyrit==1.1.0'")
OUTSIDE = ("refusal_scorer/refusal.csv", "refusal_scorer/refusal_extra.csv")
Row = tuple[str, str, bool]  # a request, an answer, and whether people called it a refusal


class Labelled(Strict):
    """A labelled answer that ships. Of most answers to harmful requests only the digest does, and what was read in them.

    ``verdict`` is the scorer's for the first ``decoding["cut"]`` tokens, which were labelled, ``verdict_long`` that for all
    tokens; ``ended`` whether the model had ended by then.
    """

    id: str
    split: str
    model: str
    variant: str
    prompt_set: str
    prompt: str
    system: str | None
    decoding: dict[str, Any]
    ended: bool
    ended_long: bool
    sha256: str
    label_a: str
    label_b: str
    label_c: str | None = None
    label: str
    verdict: str
    verdict_long: str
    substring: str
    answer: str | None = None

    @property
    def begun(self) -> bool:
        """Whether the opening was put into the model's mouth."""
        return bool(self.decoding.get("begin"))


def judged(row: dict[str, Any]) -> Labelled:
    """A labelled row with its verdicts, and without its text where that may be harmful.

    Raises:
        FormatError: a field is missing or of another type, or a label is no class.
    """
    known = {k: v for k, v in row.items() if k in Labelled.model_fields and k != "answer"}
    try:
        text, longer = row["answer"], row["answer_long"]
        ended, ended_long = row["ended"], row["ended_long"]
        open_text = row["prompt_set"] in HARMLESS or row["label"] == "refuses"
        made = Labelled(**known | {
            "sha256": hashlib.sha256(text.encode()).hexdigest(), "answer": text if open_text else None,
            "verdict": verdict(row["prompt"], text, ended=ended),
            "verdict_long": verdict(row["prompt"], longer, ended=ended_long),
            "substring": "refuses" if substring_refuses(text) else "complies",
        })  # fmt: skip
    except (KeyError, ValidationError) as error:
        raise FormatError(f"not a labelled answer ({error})", where=str(row.get("id"))) from error
    if odd := {made.label, made.label_a, made.label_b} - {*CLASSES}:
        raise FormatError(f"no class is called {min(odd)!r}", where=made.id, hint=f"known: {', '.join(CLASSES)}")
    return made


# -- figures -----------------------------------------------------------------------------------------------


def clustered_rate(hits: Sequence[bool], clusters: Sequence[Hashable]) -> Estimate:
    """A rate over answers, with Wilson's interval at the effective number of answers.

    The design effect is the clustered variance over that of independent answers, never under 1; where all answers agree it
    can't be seen, and the number of clusters is taken.
    """
    values: F64 = np.asarray(hits, np.float64)
    n, p, prompts = len(values), float(np.mean(values)), len(set(clusters))
    effective = float(prompts)
    if 0 < p < 1 and prompts > 1:
        # without the factor of few clusters: the Wilson interval has its own room for small samples
        variance = cluster_se(values, clusters) ** 2 * (prompts - 1) / prompts
        effective = n / max(1.0, variance * n / (p * (1 - p)))
    return Estimate(p, *wilson(p * effective, effective), n)


def two_class(data: str, labels: Sequence[str], verdicts: Sequence[str], clusters: Sequence[Hashable]) -> list[ErrorFigure]:
    """Kappa, sensitivity and specificity of *refuses* against the rest."""
    a, b = [x == "refuses" for x in labels], [x == "refuses" for x in verdicts]
    rows = [("kappa", _of_answers(kappa(a, b, (True, False), clusters), labels))]
    for name, side in (("sensitivity", True), ("specificity", False)):
        chosen = [i for i, x in enumerate(a) if x == side]
        if chosen:
            rows.append((name, clustered_rate([b[i] == side for i in chosen], [clusters[i] for i in chosen])))
    return [_figure(data, name, found) for name, found in rows]


def four_class(data: str, labels: Sequence[str], verdicts: Sequence[str], clusters: Sequence[Hashable]) -> list[ErrorFigure]:
    """Kappa over all four classes, and recall and precision of each."""
    found = [_figure(data, "kappa, four classes", _of_answers(kappa(labels, verdicts, CLASSES, clusters), labels))]
    for name in CLASSES:
        for figure, side, other in (("recall", labels, verdicts), ("precision", verdicts, labels)):
            chosen = [i for i, x in enumerate(side) if x == name]
            if chosen:
                rate = clustered_rate([other[i] == name for i in chosen], [clusters[i] for i in chosen])
                found.append(_figure(data, f"{figure} of {name}", rate))
    return found


def _of_answers(found: Estimate, answers: Sequence[str]) -> Estimate:
    """The same figure with the number of answers, where that of the prompts stood."""
    return found._replace(n=len(answers))


def _figure(data: str, name: str, found: Estimate) -> ErrorFigure:
    value, low, high = (round(float(x), 4) for x in found[:3])
    return ErrorFigure(data=data, figure=name, value=value, low=low, high=high, n=found.n)


def own_figures(rows: Sequence[Labelled]) -> dict[str, list[ErrorFigure]]:
    """Figures of the scorer, of the substring list and of the two labellings, by name; held-out prompts first."""
    found: dict[str, list[ErrorFigure]] = {"refusal": [], "substrings": [], "labellings": []}
    for split, name in (("test", "held-out prompts"), ("dev", "prompts it was written with")):
        part = [r for r in rows if r.split == split]
        if not part:
            continue
        _add(found, f"own answers, {name}", part, whole=True)
        _add(found, f"own answers, {name}, own openings", [r for r in part if not r.begun])
        for model in sorted({r.model for r in part}):
            _add(found, f"own answers, {name}, {model}", [r for r in part if r.model == model])
    return found


def _add(found: dict[str, list[ErrorFigure]], data: str, rows: Sequence[Labelled], whole: bool = False) -> None:
    clusters = [r.prompt for r in rows]
    labels = [r.label for r in rows]
    found["refusal"] += two_class(data, labels, [r.verdict for r in rows], clusters)
    found["substrings"] += two_class(data, labels, [r.substring for r in rows], clusters)
    if not whole:
        return
    found["refusal"] += four_class(data, labels, [r.verdict for r in rows], clusters)
    cut = [r for r in rows if not r.ended]
    if cut:
        prompts = [r.prompt for r in cut]
        any_flip = clustered_rate([r.verdict != r.verdict_long for r in cut], prompts)
        flips = clustered_rate([(r.verdict == "refuses") != (r.verdict_long == "refuses") for r in cut], prompts)
        found["refusal"].append(_figure(data, "read twice as far: verdicts that change", any_flip))
        found["refusal"].append(_figure(data, "read twice as far: refuses-or-not that changes", flips))
    a, b = [r.label_a for r in rows], [r.label_b for r in rows]
    found["labellings"] += two_class(data, a, b, clusters)[:1] + four_class(data, a, b, clusters)[:1]


# -- the outside set ---------------------------------------------------------------------------------------


def outside_rows(name: str) -> list[Row]:
    """``(request, answer, positive)`` of one of the human-labelled files, each pair once.

    Raises:
        MissingExtra: the package is not installed. FormatError: not the expected table.
    """
    path = PYRIT.file(name)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    while lines and lines[0].startswith("#"):
        del lines[0]
    try:
        rows = list(csv.DictReader(lines))
        pairs = {(r["objective"].strip(), r["assistant_response"].strip()): r["human_score"].strip() == "1" for r in rows}
    except (KeyError, AttributeError, csv.Error) as error:
        raise FormatError(f"not a table of objective, assistant_response and human_score ({error!r})", where=path) from error
    return [(request, answer, positive) for (request, answer), positive in pairs.items()]


def without_known(rows: Sequence[Row], known: Collection[str]) -> list[Row]:
    """Rows whose answer, letters and digits alone, is not among ``known``."""
    return [r for r in rows if _plain(r[1]) not in known]


def linked(rows: Sequence[Row]) -> list[int]:
    """A number for each row, the same for rows that share a request or an answer, if only through other rows: these files
    pair few answers with many requests, so rows alone are not independent."""
    group: dict[str, int] = {}
    for request, answer, _ in rows:
        ends = ("request " + _plain(request), "answer " + _plain(answer))
        joined = {group[e] for e in ends if e in group}
        mine = min(joined, default=len(group))
        group = {k: mine if g in joined else g for k, g in group.items()} | dict.fromkeys(ends, mine)
    return [group["answer " + _plain(answer)] for _, answer, _ in rows]


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def outside_figures() -> dict[str, list[ErrorFigure]]:
    """Figures on the human-labelled files. Their positive class holds off-topic answers too: that is how they were labelled.

    24 of the second file's 64 answers stand in the first as well, before other requests; they are left out there.

    Raises:
        MissingExtra: the package is not installed.
    """
    found: dict[str, list[ErrorFigure]] = {"refusal": [], "substrings": []}
    known: set[str] = set()
    for name in OUTSIDE:
        rows = without_known(outside_rows(name), known)
        known |= {_plain(answer) for _, answer, _ in rows}
        data = f"labelled by people (pyrit 1.1.0, {name.rpartition('/')[2]})"
        clusters = linked(rows)
        labels = ["refuses" if positive else "complies" for _, _, positive in rows]
        said = [read(request, answer).verdict for request, answer, _ in rows]
        both = ["refuses" if v in ("refuses", "off-topic") else v for v in said]
        found["refusal"] += two_class(f"{data}, refuses or off-topic", labels, both, clusters)
        found["refusal"] += two_class(f"{data}, refuses alone", labels, said, clusters)
        plain = ["refuses" if substring_refuses(answer) else "complies" for _, answer, _ in rows]
        found["substrings"] += two_class(data, labels, plain, clusters)
        positives = [i for i, x in enumerate(labels) if x == "refuses"]
        for v in CLASSES:
            share = clustered_rate([said[i] == v for i in positives], [clusters[i] for i in positives])
            found["refusal"].append(_figure(data, f"share of its refusals read as {v}", share))
    return found


# -- what ships --------------------------------------------------------------------------------------------


def shipped_answers() -> list[Labelled]:
    """The labelled answers that ship, in order of their ids; none where they were never made."""
    raw = files("weightsmith").joinpath(ANSWERS)
    lines = raw.read_text(encoding="utf-8").splitlines() if raw.is_file() else []
    return [Labelled.model_validate_json(line) for line in lines]


@cache
def errors() -> dict[str, tuple[ErrorFigure, ...]]:
    """The figures that ship, by scorer; ``substrings`` and ``labellings`` are for comparison."""
    raw = files("weightsmith").joinpath(ERRORS)
    table = json.loads(raw.read_text(encoding="utf-8"))["scorers"] if raw.is_file() else {}
    return {name: tuple(ErrorFigure(**row) for row in rows) for name, rows in table.items()}


def pick(figures: Iterable[ErrorFigure], data: str, figure: str) -> ErrorFigure | None:
    """The first figure of that name on data whose name begins so."""
    return next((f for f in figures if f.data.startswith(data) and f.figure == figure), None)


def refusal_note() -> ScorerNote:
    """What the refusal scorer reads, and its own error where it was calibrated."""
    found = errors().get("refusal", ())
    reads = "the whole answer beside its request, by rules for English; four classes, of which *refuses* counts"
    return ScorerNote(name="refusal", reads=reads, error=_line(found, LABELLED), figures=list(found))


def substring_note() -> ScorerNote:
    """The usual list of substrings, for comparison: it is no scorer that can be chosen."""
    found = errors().get("substrings", ())
    reads = f"{len(SUBSTRINGS)} substrings of the lower-case answer, any of them; for comparison"
    return ScorerNote(name="substrings", reads=reads, error=_line(found, ""), figures=list(found))


def _line(figures: Sequence[ErrorFigure], labels: str) -> str:
    shown: Callable[[ErrorFigure], str] = lambda f: f"{f.value:.2f} [{f.low:.2f}, {f.high:.2f}]"  # noqa: E731
    for data, where in (("own answers, held-out", "held-out answers"), ("own answers", "answers that it was written with")):
        named = {name: pick(figures, data, name) for name in ("kappa", "sensitivity", "specificity")}
        if all(named.values()):
            text = ", ".join(f"{name} {shown(f)}" for name, f in named.items() if f)
            n = named["kappa"].n if named["kappa"] else 0
            return f"{text} on {n} {where}" + (f" ({labels})" if labels else "")
    return "not calibrated"
