"""Claims of where a model comes from: front matter, merge configurations, sentences; the licence and typed results too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..claimed import Claim
from .figures import dtype_of, metric_of, number_at
from .page import Page, escaped
from .plain_yaml import Scalar, dicts, read_yaml, texts
from .prose import LONGEST
from .tables import claim_of

_NAME = r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}|(?=[\w.-]{0,95}\d)[A-Za-z][\w.-]{3,95})(?=[\s,.;:!)]|$)"
_VERSION = re.compile(
    r"\b(?:abliterated|uncensored|decensored|edited|modified|fine-?tuned?|quanti[sz]ed|steered|altered|instruction-tuned|"
    r"re-?uploaded|converted|derived|ablated)\s(?:version|variant|derivative|copy|edition|fork|conversion)\s(?:of|from)\s"
    rf"(?:the\s)?(?:original\s|base\s)?(?:model\s)?{_NAME}", re.IGNORECASE)  # fmt: skip
_FROM = re.compile(rf"\b(?:fine-?tuned|derived|abliterated|edited|converted|quanti[sz]ed)\s(?:from|on top of)\s(?:the\s)?"
                   rf"(?:original\s|base\s)?(?:model\s)?{_NAME}", re.IGNORECASE)  # fmt: skip
_LABEL = re.compile(rf"(?:base|original|parent|source) model:\s{_NAME}", re.IGNORECASE)
_MERGE_BASE = re.compile(rf"\bmerge method using\s{_NAME}\sas (?:a|the) base\b", re.IGNORECASE)
_MODEL = re.compile(r"[A-Za-z0-9][\w./\\ -]{0,190}")
_UNKNOWN_LICENCE = {"other", "unknown"}


def front_matter(page: Page, file: str) -> Iterator[Claim]:
    """Base model, licence and typed results of the YAML at the top."""
    if not page.front.strip():
        return
    data, why = read_yaml(page.front)
    if not isinstance(data, dict):
        page.notes.append(f"the front matter could not be read: {escaped(why) or 'not a mapping'}")
        return
    bases = [b for b in texts(data.get("base_model")) if _MODEL.fullmatch(b)]
    relation = str(data.get("base_model_relation", ""))[:40]
    if bases:
        yield _base(page, file, bases[0].line + 1, [str(b) for b in bases], relation)
    for licence in texts(data.get("license"))[:1]:
        if licence.lower() not in _UNKNOWN_LICENCE:
            line = licence.line + 1
            yield Claim(kind="licence", says=f"licensed under {escaped(licence, 60)}", file=file, line=line,
                        text=page.quote(line), names=[escaped(licence.lower(), 60)])  # fmt: skip
    yield from _model_index(page, data.get("model-index"), file)


def _base(page: Page, file: str, line: int, names: list[str], relation: str = "") -> Claim:
    shown = [escaped(n, 120) for n in names[:16]]
    if len(names) > 1 or relation == "merge":
        return Claim(kind="merge", says=f"made from {len(names)} models", file=file, line=line, text=page.quote(line),
                     names=shown)  # fmt: skip
    return Claim(kind="base model", says=f"made from {shown[0]}", file=file, line=line, text=page.quote(line), names=shown)


def _model_index(page: Page, index: Any, file: str) -> Iterator[Claim]:
    """Typed results (``model-index``): task, data set, metric."""
    for entry in dicts(index):
        for result in dicts(entry.get("results")):
            dataset = result.get("dataset")
            name = dataset.get("name") if isinstance(dataset, dict) else None
            metric = metric_of(str(name)) if isinstance(name, Scalar) else None
            for row in dicts(result.get("metrics")):
                value, kind = row.get("value"), row.get("type")
                if metric and metric.kind == "score" and isinstance(value, Scalar) and str(kind) in ("acc", "accuracy"):
                    number = number_at(value[:40])
                    line = value.line + 1
                    if number and (claim := claim_of(metric, number, "this model", file, line, page.quote(line))):
                        yield claim


def merge_configs(page: Page, file: str) -> Iterator[Claim]:
    """The configuration of mergekit, in a fenced block."""
    blocks = [b for b in page.blocks if b.language in ("", "yaml", "yml") and "merge_method" in b.text]
    for block in blocks[:8]:
        data, why = read_yaml(block.text)
        if not isinstance(data, dict) or "merge_method" not in data:
            page.notes.append(f"the merge configuration at line {block.line} could not be read: {escaped(why)}")
            continue
        rows = [*dicts(data.get("models")), *(s for part in dicts(data.get("slices")) for s in dicts(part.get("sources")))]
        models = [m for row in rows[:256] for m in texts(row.get("model"))]
        named = list(dict.fromkeys(str(m) for m in models))[:64]
        if named:
            line = block.line + models[0].line - 1
            yield Claim(kind="merge", says=f"a merge of {len(named)} models", file=file, line=line, text=page.quote(line),
                        names=[escaped(n, 120) for n in named])  # fmt: skip
        for base in texts(data.get("base_model"))[:1]:
            line = block.line + base.line - 1
            yield _base(page, file, line, [str(base)], "merge")
        for dtype in texts(data.get("out_dtype") or data.get("dtype"))[:1]:
            if stored := dtype_of(dtype):
                line = block.line + dtype.line - 1
                yield Claim(kind="dtype", says=f"stored as {stored}", file=file, line=line, text=page.quote(line),
                            names=[stored])  # fmt: skip


def base_sentences(page: Page, file: str) -> Iterator[Claim]:
    """``an abliterated version of X``, ``fine-tuned from X``, ``Base model: X``."""
    for sentence in page.sentences:
        if len(sentence.text) > LONGEST or re.search(r"\bunlike\b|\bnot an?\b|\bif\b|\?", sentence.text.lower()):
            continue
        for pattern, merged in ((_VERSION, ""), (_FROM, ""), (_LABEL, ""), (_MERGE_BASE, "merge")):
            if match := pattern.search(sentence.text):
                line = sentence.line(match.start(1))
                yield _base(page, file, line, [match[1].rstrip(".-_")], merged)
                break
