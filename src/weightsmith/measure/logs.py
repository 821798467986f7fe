"""Everything that was asked, answered and scored, in two layouts that other tools read: lm-eval's and Inspect's.

*lm-eval 0.4* (``--log_samples``): one folder a model, with ``results_DATE.json`` and ``samples_TASK_DATE.jsonl``; a task is
a block of questions, a document is one ask under one seed. *Inspect* (``inspect_ai.log.EvalLog``, schema version 2): one
file a model; a sample is one wording of one question, an epoch is a seed. Neither package is needed to write them.

Means, intervals and n are those of the :class:`MeasureRecord`, over prompts. Answers come from models: halves of surrogate
pairs become U+FFFD and numbers that are not finite become ``null``, so that the files are always valid JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from ..measured import Measurement, MeasureRecord
from ..storage import digest_of
from .figures import Sample
from .stats import measurement

Model = Literal["base", "edited"]
LM_EVAL = "0.4.13"
INSPECT_VERSION = 2
_SUFFIX = re.compile(r"(?P<block>.*?)(?P<suffix>\.sampled|\.turn\d+)?", re.DOTALL)
#: keys of a line of lm-eval's sample files that no score may take
_TAKEN = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash",
          "target_hash", "verdict", "thought", "ended"}  # fmt: skip


def plain_json(value: Any) -> Any:
    """``value`` as any JSON reader takes it: text that is valid UTF-8, finite numbers or ``None``, text keys."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {plain_json(str(k)): plain_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(v) for v in value]
    return value


def figure_of(
    record: MeasureRecord, model: Model, key: str, score: str, samples: Sequence[Sample]
) -> Measurement | None:
    """The record's figure of one score of one block, else one made from ``samples``; ``None`` where nothing has a value.

    ``key`` is the block's with its suffix (``melancholy.neutral.sampled``), ``score`` as in :class:`Sample`.
    """
    split = _SUFFIX.fullmatch(key)
    assert split is not None
    wanted = f"{split['block']}.{score.replace('thought: ', 'thought.')}{split['suffix'] or ''}"
    for d in record.differences:
        if d.key == wanted:
            return d.edited if model == "edited" else d.base
    if record.base is None:
        known = next((m for m in record.figures if m.key == wanted), None)
        if known is not None:
            return known
    read = [(s.exchange.ask.item, s.scores.get(score)) for s in samples]
    kept = [(item, float(v)) for item, v in read if v is not None and math.isfinite(v)]
    if not kept:
        return None
    return measurement(score, [v for _, v in kept], "", items=[item for item, _ in kept], missing=len(read) - len(kept),
                       key=wanted)  # fmt: skip


def standard_error(figure: Measurement) -> float | None:
    """Of the mean over prompts; ``None`` for a single prompt, or where the values are in clusters or not kept."""
    values = figure.values
    if values is None or len(values) != figure.n or figure.n < 2:
        return None
    return float(np.std(values, ddof=1) / math.sqrt(figure.n))


def _blocks(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for s in samples:
        found.setdefault(s.key, []).append(s)
    return found


def _scores(samples: Sequence[Sample]) -> list[str]:
    return list(dict.fromkeys(name for s in samples for name in s.scores))


def _identity(record: MeasureRecord, model: Model) -> tuple[str, str]:
    """What a model is called, and the digest of its weights."""
    identity = record.edited if model == "edited" or record.base is None else record.base
    return plain_json(identity.ref), identity.digest


# -- lm-eval -----------------------------------------------------------------------------------------------


def lm_eval_log(
    record: MeasureRecord, model: Model, samples: Sequence[Sample], at: datetime
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """``(results, lines by task)`` as lm-eval's ``EvaluationTracker`` saves them.

    A task is named by its block's key, with whatever can't stand in a file's name replaced. Both models' documents have
    equal ``doc_id`` and ``doc_hash``, so that lm-eval's own tools pair them; ``arguments`` hold the whole conversation,
    which in later turns is the model's own.
    """
    name, digest = _identity(record, model)
    tasks: dict[str, list[dict[str, Any]]] = {}
    out: dict[str, Any] = {k: {} for k in ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better",
                                           "n-samples")}  # fmt: skip
    for key, rows in _blocks(samples).items():
        task, metrics = _task_name(key, tasks), _metric_names(rows)
        tasks[task] = [_lm_eval_line(i, s, metrics) for i, s in enumerate(rows)]
        out["results"][task] = _lm_eval_figures(record, model, key, rows, metrics)
        out["group_subtasks"][task] = []
        out["configs"][task] = _lm_eval_config(task, rows, metrics)
        out["versions"][task], out["n-shot"][task] = 2, 0
        out["higher_is_better"][task] = dict.fromkeys(metrics.values())
        out["n-samples"][task] = {"original": len(rows), "effective": len(rows)}
    out |= {
        "config": {"model": "weightsmith", "model_args": f"pretrained={name}", "model_sha": digest,
                   "model_dtype": record.ran.get("dtype"), "device": record.ran.get("device"), "batch_size": None, "limit": None,
                   "bootstrap_iters": 0, "gen_kwargs": None},
        "date": at.timestamp(), "model_source": "weightsmith", "model_name": name,
        "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name), "system_instruction": None, "chat_template": None,
        "fewshot_as_multiturn": False, "task_hashes": {t: _sha("".join(x["doc_hash"] + x["prompt_hash"] + x["target_hash"]
                                                                       for x in lines)) for t, lines in tasks.items()},
        "lm_eval_version": LM_EVAL, "weightsmith_versions": record.versions,
    }  # fmt: skip
    cleaned: tuple[dict[str, Any], dict[str, list[dict[str, Any]]]] = plain_json(out), tasks
    return cleaned


def _task_name(key: str, taken: Mapping[str, Any]) -> str:
    name = re.sub(r"[^\w.-]", "_", plain_json(key), flags=re.ASCII)[:100].lstrip(".") or "block"
    number = 2
    found = name
    while found.casefold() in {t.casefold() for t in taken}:
        found, number = f"{name}-{number}", number + 1
    return found


def _metric_names(rows: Sequence[Sample]) -> dict[str, str]:
    """Scores by name, as lm-eval may call them: a comma parts a metric from its filter there."""
    found: dict[str, str] = {}
    for name in _scores(rows):
        plain = plain_json(name).replace(",", " ")
        while plain in _TAKEN or plain in found.values() or plain.endswith("_stderr"):
            plain += "_"
        found[name] = plain
    return found


def _lm_eval_line(number: int, s: Sample, metrics: Mapping[str, str]) -> dict[str, Any]:
    ask, decoding = s.exchange.ask, s.exchange.decoding
    doc = plain_json({"prompt": ask.prompt, "group": ask.group, "condition": ask.condition, "item": ask.item,
                      "wording": ask.wording, "turn": ask.turn, "seed": decoding.seed})  # fmt: skip
    asked = json.dumps(plain_json([dict(m) for m in ask.messages]), ensure_ascii=False)
    said = plain_json(s.exchange.text or "")
    values = {plain: plain_json(_float(s.scores.get(name))) for name, plain in metrics.items()}
    return {
        "doc_id": number, "doc": doc, "target": "",
        "arguments": {"gen_args_0": {"arg_0": asked, "arg_1": generation(s)}},
        "resps": [[said]], "filtered_resps": [said], "filter": "none", "metrics": list(values),
        "doc_hash": _sha(json.dumps(doc, indent=2, ensure_ascii=False)), "prompt_hash": _sha(asked), "target_hash": _sha(""),
        **values, "verdict": plain_json(s.verdict or ""), "thought": plain_json(s.exchange.thought),
        "ended": s.exchange.ended,
    }  # fmt: skip


def generation(s: Sample) -> dict[str, Any]:
    """How a reply was decoded, in the words of transformers, which lm-eval uses."""
    d = s.exchange.decoding
    return {"until": [], "max_gen_toks": d.max_new_tokens, "do_sample": not d.greedy, "temperature": d.temperature,
            "top_p": d.top_p, "top_k": d.top_k, "min_p": d.min_p, "repetition_penalty": d.repetition_penalty,
            "seed": d.seed}  # fmt: skip


def _lm_eval_figures(
    record: MeasureRecord, model: Model, key: str, rows: list[Sample], metrics: Mapping[str, str]
) -> dict[str, Any]:
    found: dict[str, Any] = {"name": plain_json(key), "alias": plain_json(key), "sample_len": len(rows)}
    for name, plain in metrics.items():
        figure = figure_of(record, model, key, name, rows)
        if figure is not None and math.isfinite(figure.value):
            error = standard_error(figure)
            found[f"{plain},none"] = figure.value
            found[f"{plain}_stderr,none"] = "N/A" if error is None else error
    return found


def _lm_eval_config(task: str, rows: Sequence[Sample], metrics: Mapping[str, str]) -> dict[str, Any]:
    ask = rows[0].exchange.ask
    return {
        "task": task, "output_type": "generate_until", "doc_to_text": "{{prompt}}", "doc_to_target": "", "repeats": 1,
        "num_fewshot": 0, "should_decontaminate": False, "generation_kwargs": generation(rows[0]) | {"seed": None},
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": None} for m in metrics.values()],
        "metadata": {"version": 2, "group": ask.group, "condition": ask.condition},
    }  # fmt: skip


# -- Inspect -----------------------------------------------------------------------------------------------


def inspect_log(record: MeasureRecord, model: Model, samples: Sequence[Sample], at: datetime) -> dict[str, Any]:
    """One model's answers as an ``EvalLog``; scores that are missing are left out and counted as unscored.

    A score's metrics are grouped by block: ``melancholy.neutral/mean``, ``…/stderr``, ``…/low``, ``…/high``.
    """
    name, digest = _identity(record, model)
    weights = [m.digest for m in (record.base, record.edited) if m is not None]
    run = digest_of(plain_json([record.title, weights, at.isoformat()]))
    task = "weightsmith/" + (re.sub(r"[^\w-]", "_", record.suite, flags=re.ASCII) or "measure")
    created = at.astimezone(UTC).isoformat(timespec="seconds")
    rows = _inspect_samples(record, name, samples, f"{run} {model}")
    ids = list(dict.fromkeys(r["id"] for r in rows))
    usage = {k: sum(r["model_usage"][name][k] for r in rows) for k in ("input_tokens", "output_tokens", "total_tokens")}
    first = max((s.exchange.decoding for s in samples), key=lambda d: d.max_new_tokens, default=None)
    log = {
        "version": INSPECT_VERSION, "status": "success",
        "eval": {
            "eval_id": _id(run, model), "run_id": _id(run, "run"), "created": created, "task": task,
            "task_id": _id(run, f"task {model}"), "task_version": 2, "task_display_name": record.title,
            "task_args": {"suite": record.suite, "model": model},
            "dataset": {"name": record.feature or "safety", "samples": len(ids), "sample_ids": ids, "shuffled": False},
            "model": name, "model_args": {"digest": digest}, "config": {"epochs": max((r["epoch"] for r in rows), default=1)},
            "packages": dict(record.versions), "metadata": {"options": record.options, "ran": record.ran, "role": model},
        },
        "plan": {"name": "plan", "steps": [{"solver": "generate", "params": {}}],
                 "config": {} if first is None else {"max_tokens": first.max_new_tokens}},
        "results": {"total_samples": len(rows), "completed_samples": len(rows),
                    "scores": _inspect_scores(record, model, samples)},
        "stats": {"started_at": created, "completed_at": created, "model_usage": {name: usage} if rows else {}},
        "samples": rows,
    }  # fmt: skip
    found: dict[str, Any] = plain_json(log)
    return found


def _inspect_samples(record: MeasureRecord, name: str, samples: Sequence[Sample], run: str) -> list[dict[str, Any]]:
    reads = {n.name: n.reads for n in record.scorers}
    seen: dict[tuple[str, int], int] = {}
    found = []
    for s in samples:
        ask, seed = s.exchange.ask, s.exchange.decoding.seed
        epoch = seed if seed is not None and seed > 0 else 1
        own = f"{plain_json(s.key)}/{ask.item}" + (f"/{ask.wording}" if ask.wording else "")
        again = seen[own, epoch] = seen.get((own, epoch), 0) + 1
        own += f"#{again}" if again > 1 else ""
        asked = [_message(m) | {"id": _id(run, f"{own} {epoch} {i}")} for i, m in enumerate(ask.messages)]
        said = _said(s) | {"id": _id(run, f"{own} {epoch} {name}")}
        sizes = len(s.exchange.prompt_ids), len(s.exchange.tokens)
        usage = {"input_tokens": sizes[0], "output_tokens": sizes[1], "total_tokens": sum(sizes)}
        stop = "stop" if s.exchange.ended else "max_tokens"
        found.append({
            "id": own, "epoch": epoch, "uuid": _id(run, f"{own} {epoch}"), "input": asked, "target": "",
            "messages": [*asked, said],
            "output": {"model": name, "choices": [{"message": said, "stop_reason": stop}], "completion": s.exchange.text or "",
                       "usage": usage},
            "scores": _sample_scores(s, reads), "model_usage": {name: usage},
            "metadata": {"block": s.key, "group": ask.group, "condition": ask.condition, "item": ask.item, "prompt": ask.prompt,
                         "wording": ask.wording, "turn": ask.turn, "seed": seed, "decoding": generation(s)},
        })  # fmt: skip
    return found


def _message(message: Mapping[str, str]) -> dict[str, Any]:
    role = message.get("role", "user")
    known = role if role in ("system", "user", "assistant") else "user"
    return {"role": known, "content": message.get("content", ""), "source": "input"}


def _said(s: Sample) -> dict[str, Any]:
    text = s.exchange.text or ""
    thought = s.exchange.thought
    content: Any = [{"type": "reasoning", "reasoning": thought}, {"type": "text", "text": text}] if thought else text
    return {"role": "assistant", "content": content, "source": "generate"}


def _sample_scores(s: Sample, reads: Mapping[str, str]) -> dict[str, Any]:
    answer = s.exchange.text or ""
    rows: dict[str, Any] = {n: _float(v) for n, v in s.scores.items()}
    found = {n: {"value": v, "answer": answer, "explanation": reads.get(n)} for n, v in rows.items() if v is not None}
    if s.verdict is not None:
        found["verdict"] = {"value": s.verdict, "answer": answer, "explanation": reads.get("refusal")}
    return found


def _inspect_scores(record: MeasureRecord, model: Model, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    blocks, found = _blocks(samples), []
    for score in _scores(samples):
        metrics: dict[str, Any] = {}
        scorer, unit = score, ""
        there = [s for s in samples if score in s.scores]
        for key, rows in blocks.items():
            figure = figure_of(record, model, key, score, rows)
            if figure is None or not math.isfinite(figure.value):
                continue
            scorer, unit = figure.scorer or scorer, figure.unit or unit
            parts = {"mean": figure.value, "stderr": standard_error(figure), "low": figure.low, "high": figure.high}
            metrics |= {f"{key}/{part}": {"name": part, "group": key, "value": value, "metadata": {"n": figure.n}}
                        for part, value in parts.items() if value is not None and math.isfinite(value)}  # fmt: skip
        scored = sum(_float(s.scores[score]) is not None for s in there)
        found.append({"name": score, "scorer": scorer, "scored_samples": scored, "unscored_samples": len(there) - scored,
                      "metrics": metrics, "metadata": {"unit": unit}})  # fmt: skip
    return found


def _float(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _id(run: str, what: str) -> str:
    """A stable name of 22 letters and digits, as Inspect's own are."""
    return hashlib.sha256(f"{run} {plain_json(what)}".encode()).hexdigest()[:22]
