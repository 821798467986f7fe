"""Claims in pipe tables: figures by row or by column, settings of a search, and facts about the files.

A number is a claim only where its row and column say both what it is and whose it is. A table may have metrics down and
models across (heretic) or models down and metrics across; models that are neither this one nor its base are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..claimed import Claim, Subject
from .figures import (
    LONGEST,
    Metric,
    Number,
    as_share,
    context_at,
    dtype_of,
    metric_of,
    number_at,
    number_fields,
    size_at,
)
from .page import Page, Table, escaped

_THIS = re.compile(r"\bthis\b|\bours?\b|\bedited\b|\bafter\b|ablit|\bmodified\b|\bderivative\b|\bdecensored\b")
_ORIGINAL = re.compile(r"\boriginal\b|\bbase\b|\bbaseline\b|\bbefore\b|\bunedited\b|\bunmodified\b")
_VALUES = {"value", "values", "score", "scores", "result", "results", "accuracy", "acc", "metric value", "performance"}
_SETTING = re.compile(r"[A-Za-z][A-Za-z0-9_.\- ]{1,79}")
_ARROW = re.compile(r"\s?(?:→|->|=>)\s?")
_MAX_ROWS = 400


@dataclass(frozen=True)
class Names:
    """What this model and its base are called, in lower case."""

    own: frozenset[str]
    base: frozenset[str]

    def subject(self, label: str) -> Subject | None:
        """Whose figures a label heads, or ``None`` where that can't be told."""
        low = label.lower().strip()[: 2 * LONGEST]
        bare = re.sub(r"\s?\([^()]{0,80}\)$", "", low)
        if {bare, bare.rpartition("/")[2]} & self.own:
            return "this model"
        if {bare, bare.rpartition("/")[2]} & self.base:
            return "original model"
        original, this = _ORIGINAL.search(low) is not None, _THIS.search(low) is not None
        if original == this:
            return None
        return "original model" if original else "this model"


def table_claims(page: Page, names: Names, file: str) -> Iterator[Claim]:
    """Claims of every table of a page."""
    for table in page.tables:
        if len(table.head.cells) >= 2:
            yield from _one_table(page, table, names, file)


def _one_table(page: Page, table: Table, names: Names, file: str) -> Iterator[Claim]:
    head = [c.lower() for c in table.head.cells]
    if head[0] in ("parameter", "setting", "hyperparameter", "parameters") and len(head) == 2:
        yield from _settings(page, table, file)
    elif "value" in head and any(h in ("tasks", "task", "metric") for h in head) and "stderr" in head:
        yield from _harness(page, table, head, file)
    elif any(metric_of(c) for c in table.head.cells[1:]):
        yield from _metrics_across(page, table, names, file)
    else:
        yield from _metrics_down(page, table, names, file)


def _settings(page: Page, table: Table, file: str) -> Iterator[Claim]:
    """What the tool was set to: read, so that nobody takes it for checked, but nothing in the weights says it."""
    for row in table.rows[:_MAX_ROWS]:
        if len(row.cells) < 2 or not row.cells[1]:
            continue
        name = row.cells[0]
        if found := fact(page, file, row.line, name, row.cells[1]):
            yield found
        elif _SETTING.fullmatch(name):
            number = number_at(row.cells[1][:LONGEST])
            yield Claim(kind="setting", says=f"{escaped(name, 60)} was {escaped(row.cells[1], 40)}", file=file,
                        line=row.line, text=page.quote(row.line), names=[escaped(name, 60), escaped(row.cells[1], 40)],
                        value=number.value if number else None,
                        unmeasurable="a setting of the search that made the edit; weights do not say it")  # fmt: skip


def _metrics_down(page: Page, table: Table, names: Names, file: str) -> Iterator[Claim]:
    """``| Metric | This model | Original model |``."""
    subjects: dict[int, Subject] = {}
    for i, cell in enumerate(table.head.cells[1:], 1):
        if whose := names.subject(cell):
            subjects[i] = whose
    if not subjects and len(table.head.cells) == 2 and table.head.cells[1].lower() in _VALUES | {"", "details"}:
        subjects[1] = "this model"
    if len(set(subjects.values())) != len(subjects):
        return  # two columns that could both be this model's
    for row in table.rows[:_MAX_ROWS]:
        label = row.cells[0]
        metric = metric_of(label)
        for i, subject in subjects.items():
            if i < len(row.cells):
                cell = row.cells[i]
                if metric:
                    yield from figure(page, file, row.line, metric, subject, cell)
                elif subject == "this model" and (found := fact(page, file, row.line, label, cell)):
                    yield found


def _metrics_across(page: Page, table: Table, names: Names, file: str) -> Iterator[Claim]:
    """``| Model | Refusals | KL divergence |``."""
    metrics = {i: m for i, c in enumerate(table.head.cells) if i and (m := metric_of(c))}
    rows = [(row, names.subject(row.cells[0])) for row in table.rows[:_MAX_ROWS]]
    subjects: tuple[Subject, ...] = ("this model", "original model")
    for subject in subjects:
        mine = [row for row, whose in rows if whose == subject]
        if len(mine) != 1:
            continue  # none, or several variants of which one is meant
        for i, metric in metrics.items():
            if i < len(mine[0].cells):
                yield from figure(page, file, mine[0].line, metric, subject, mine[0].cells[i])


def _harness(page: Page, table: Table, head: list[str], file: str) -> Iterator[Claim]:
    """The table that lm-eval prints: a task, its metric and its value."""
    at, kind = head.index("value"), head.index("metric") if "metric" in head else -1
    task = ""
    for row in table.rows[:_MAX_ROWS]:
        task = row.cells[0] or task
        name = row.cells[kind].strip() if 0 <= kind < len(row.cells) else "acc"
        metric = metric_of(task.strip(" -")) if not task.startswith(" -") else None
        if metric and metric.kind == "score" and name == "acc" and at < len(row.cells):
            yield from figure(page, file, row.line, metric, "this model", row.cells[at])


_PARAMETERS = re.compile(r"(?:(?:number|count|no\.) of )?(?:total |model )?param(?:eter)?s?(?: count)?|model size")
_CONTEXT_LABEL = re.compile(r"(?:max(?:imum)? )?context(?: (?:length|window|size))?|max position embeddings")
_DTYPE_LABEL = re.compile(r"(?:tensor|data|weight|torch) ?d?types?|dtype|torch_dtype|precision|weights? precision")


def fact(page: Page, file: str, line: int, label: str, text: str) -> Claim | None:
    """A claim about the files, from a label and what stands beside it."""
    low, text = label.lower().strip(" :")[:LONGEST], text.strip()[:LONGEST]
    base: dict[str, Any] = {"file": file, "line": line, "text": page.quote(line)}
    aside = re.sub(r"\s?\(non-?embeddings?\)", "", low)
    if _PARAMETERS.fullmatch(aside):
        number = size_at(text) or _whole(text)
        if number and text[number.end :].strip().lower() in ("", "params", "parameters", "(dense)"):
            unit = "parameters" if aside == low else "parameters without embeddings"
            return Claim(kind="parameters", says=f"{text} {unit}", value=number.value, step=number.step, unit=unit, **base)
    elif _CONTEXT_LABEL.fullmatch(low):
        number = context_at(text)
        if number and text[number.end :].strip().lower() in ("", "tokens", "token"):
            return Claim(kind="context length", says=f"a context of {text}", value=number.value, step=number.step,
                         unit="tokens", **base)  # fmt: skip
    elif _DTYPE_LABEL.fullmatch(low):
        if dtype := dtype_of(text):
            return Claim(kind="dtype", says=f"stored as {dtype}", names=[dtype], **base)
    elif low in ("license", "licence") and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+\- ]{1,40}", text):
        return Claim(kind="licence", says=f"licensed under {text}", names=[text.lower().replace(" ", "-")], **base)
    return None


def _whole(text: str) -> Number | None:
    number = number_at(text)
    return number if number and number.value >= 1000 and not number.percent and number.total is None else None


def figure(page: Page, file: str, line: int, metric: Metric, subject: Subject, cell: str) -> Iterator[Claim]:
    """The claims of one cell: a number, or ``before → after``."""
    parts = _ARROW.split(cell[:LONGEST])
    if len(parts) == 2 and subject == "this model":
        yield from figure(page, file, line, metric, "original model", parts[0])
        yield from figure(page, file, line, metric, "this model", parts[1])
        return
    if len(parts) != 1 or (metric.kind == "divergence" and subject == "original model"):
        return  # a model's divergence from itself is no claim
    number = number_at(cell.strip())
    if not number or not _ends_well(cell.strip()[number.end :]):
        return
    claim = claim_of(metric, number, subject, file, line, page.quote(line))
    if claim:
        yield claim


def _ends_well(rest: str) -> bool:
    """Whether nothing after a number makes it another one: words that qualify it stand in brackets."""
    rest = rest.strip()
    return not rest or rest[0] in "(±[*†↑↓✓✅⭐🏆" or rest.lower() in ("nats", "refusals", "refused", "prompts")


def claim_of(metric: Metric, number: Number, subject: Subject, file: str, line: int, text: str) -> Claim | None:
    """The claim that a figure has a value, or ``None`` where the number can't be one."""
    base: dict[str, Any] = {"kind": metric.kind, "file": file, "line": line, "text": text, "subject": subject,
                            "keys": list(metric.keys)}  # fmt: skip
    says = metric.name + ("" if subject == "this model" else " of the original model")
    if metric.kind == "rate" and number.total is None and not number.percent and not number.decimals:  # a bare count
        count, total = int(number.value), metric.total
        if total is None or count > total:
            return Claim(says=says, value=number.value, unit="answers", **base,
                         unmeasurable="the card does not say of how many")  # fmt: skip
        return Claim(says=says, unit="share", value=count / total, count=count, total=total, relation=number.relation,
                     **base)  # fmt: skip
    if metric.unit == "share":
        share = as_share(number)
        return Claim(says=says, unit="share", **number_fields(share), **base) if share else None
    if number.total is not None or number.percent:
        return None
    return Claim(says=says, unit=metric.unit, **number_fields(number), **base)
