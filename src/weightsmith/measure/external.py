"""Any task of EleutherAI's evaluation harness, run by the harness itself on the model that is already loaded.

``lm_eval.simple_evaluate`` gets the loaded model and its tokenizer, zero-shot unless the task says otherwise and without a
chat template. Its log of samples is kept, so that two models can be compared item by item. Built-in tasks may run the
harness's own code; a folder of further tasks may hold no code of its own (``!function``, ``class``), and a task that wants
a model or a data set to bring code is refused by the harness.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError, MissingExtra, NetworkError, RecipeError, UsageError
from ..storage import digest_of
from .choice import SetResult
from .wheels import Wheel

if TYPE_CHECKING:
    from ..runtime import RunningModel

HARNESS = Wheel("lm_eval", "lm_eval", "tasks", "pip install 'weightsmith[lm-eval]'")
_OFF = "the task's data set is not on this machine, and the hub is not to be asked"


@dataclass
class HarnessRun:
    """What the harness found: per-item ``sets``, and figures that it has for a task as a whole only, by key.

    ``versions`` are the tasks' own, with the harness's under ``lm_eval``.
    """

    sets: list[SetResult] = field(default_factory=list)
    wholes: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def available() -> str | None:
    """``None``, or the reason why the harness is not there."""
    return HARNESS.why_missing()


def run_external(
    model: RunningModel, tasks: Sequence[str], n: int | None = None, *, folder: Path | None = None,
    step: str = "evaluation harness",
) -> HarnessRun:  # fmt: skip
    """Run harness ``tasks`` on the first ``n`` documents of each (all for ``None``).

    ``folder`` holds further task files (YAML).

    Raises:
        MissingExtra: the harness is not installed.
        UsageError: an unknown task.
        RecipeError: a task file of ``folder`` that brings code.
        NetworkError: the task's data set has to be fetched and can't be.
        FormatError: the harness fails on the task.
    """
    HARNESS.folder()
    if n is not None and n < 1:
        raise UsageError(f"{n} documents can't be asked")
    if folder is not None:
        check_folder(folder)
    model.options.report(step, 0, len(tasks))
    with _quiet(), _own_dice(), _imported() as lm_eval, _offline(model.options.offline) as offline:
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=None if folder is None else str(folder))
        if unknown := [t for t in tasks if t not in manager.all_tasks]:
            raise UsageError(f"the evaluation harness has no task {unknown[0]!r}",
                             hint="`lm_eval ls tasks` lists its tasks")  # fmt: skip
        try:
            found = lm_eval.simple_evaluate(
                model=_adapter(model), tasks=list(tasks), limit=n, task_manager=manager, log_samples=True,
                bootstrap_iters=0, apply_chat_template=False, confirm_run_unsafe_code=False,
            )  # fmt: skip
        except Exception as error:  # a task is a stranger's program: it raises anything at all
            raise _said(error, offline, tasks) from error
    model.options.report(step, len(tasks), len(tasks))
    out = HarnessRun(versions={k: str(v) for k, v in found.get("versions", {}).items()} | {"lm_eval": HARNESS.version()})
    for task, samples in found["samples"].items():
        out.sets += per_item(task, samples)
    for task, figures in found["results"].items():
        out.wholes |= _wholes(task, figures, {s.key for s in out.sets})
    return out


def check_folder(folder: Path) -> None:
    """Refuse task files that bring code: the harness would run it.

    Raises:
        RecipeError: no task file, one that is no YAML, or one with a tag, a ``class`` or an ``include`` from elsewhere.
    """
    import yaml

    files = sorted(p for p in folder.rglob("*") if p.is_file() and (p.suffix in (".yaml", ".yml") or "_yaml" in p.name))
    if not files:
        raise RecipeError("no task file (.yaml) here", where=folder)
    for file in files:
        try:
            # composed, not constructed: a tag is only read here
            _check_node(yaml.compose(file.read_bytes(), yaml.SafeLoader), file, {f.resolve() for f in files})
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise RecipeError(f"not valid YAML ({' '.join(str(error).split())[:200]})", where=file) from error


def _check_node(node: Any, file: Path, known: set[Path]) -> None:
    import yaml

    if node is None:
        return
    if not str(node.tag).startswith("tag:yaml.org,2002:") or "python" in str(node.tag):
        raise RecipeError(f"the tag {node.tag} would run code", where=file, hint="write the task without functions")
    if isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _check_node(part, file, known)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
            if name == "class":
                raise RecipeError("a task class is code", where=file, hint="write the task as plain YAML")
            if name == "include":
                parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
                if not all((file.parent / str(p.value)).resolve() in known for p in parts):
                    raise RecipeError("a task file includes one that is not a YAML file of this folder", where=file)
            _check_node(key, file, known)
            _check_node(value, file, known)


def per_item(task: str, samples: Sequence[Mapping[str, Any]]) -> list[SetResult]:
    """The harness's log of samples as one set for each metric that has a value an item.

    The key is ``lm-eval.TASK.METRIC``, with the filter behind it where the task has several. Metrics that are counted over
    the whole task (a perplexity, a bias score) leave tuples in the log and are no sets.
    """
    filters = list(dict.fromkeys(str(s["filter"]) for s in samples))
    out = []
    for name in filters:
        mine = [s for s in samples if s["filter"] == name]
        suffix = f".{name}" if len(filters) > 1 else ""
        ids = [str(s["doc_hash"])[:16] for s in mine]
        for metric in dict.fromkeys(m for s in mine for m in s["metrics"]):
            values = [_number(s.get(metric)) for s in mine]
            if all(v is None for v in values):
                continue
            rate = all(v in (0.0, 1.0) for v in values if v is not None)
            out.append(SetResult(
                key=f"lm-eval.{task}.{metric}{suffix}", name=f"{task}: {metric}{suffix}",
                unit="share of documents" if rate else metric, rate=rate, values=values, clusters=ids,
                digest=digest_of([task, ids]), group="evaluation harness", ids=ids,
            ))  # fmt: skip
    return out


def _number(value: Any) -> float | None:
    if isinstance(value, bool | int | float | np.number) and math.isfinite(float(value)):
        return float(value)
    return None


def _wholes(task: str, figures: Mapping[str, Any], known: set[str]) -> dict[str, float]:
    out = {}
    for name, value in figures.items():
        metric, _, how = name.partition(",")
        number = None if isinstance(value, str) or metric.endswith("_stderr") or not how else _number(value)
        keys = {f"lm-eval.{task}.{metric}", f"lm-eval.{task}.{metric}.{how}"}
        if number is not None and not keys & known:
            out[f"lm-eval.{task}.{metric}" + ("" if how == "none" else f".{how}")] = number
    return out


def _adapter(model: RunningModel) -> Any:
    """The loaded model as the harness wants it, without its progress bars."""
    from lm_eval.models.huggingface import HFLM

    width = max(1, min(model.options.batch_size, model.options.batch_tokens // 256))
    return HFLM(pretrained=model.model, tokenizer=model.tokenizer, backend="causal", batch_size=width,
                max_length=model.context_length, trust_remote_code=False)  # fmt: skip


def _said(error: Exception, offline: bool, tasks: Sequence[str]) -> Exception:
    """The error of this package's tree for what the harness raised."""
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    names = {k.__name__ for e in chain for k in type(e).__mro__}
    where = ", ".join(tasks)
    said = " ".join(str(error).split())[:300] or type(error).__name__
    if names & {"OfflineModeIsEnabled", "ConnectionError", "ConnectError", "LocalEntryNotFoundError", "Timeout",
                "TimeoutException", "NetworkError"}:  # fmt: skip
        return NetworkError(_OFF if offline else f"the task's data set can't be fetched: {said}", where=where,
                            hint="run the task once where the hub can be reached, then its data are in the cache")  # fmt: skip
    missing = next((e for e in chain if isinstance(e, ModuleNotFoundError)), None)
    if missing is not None:
        return MissingExtra(f"the task needs {missing.name}", where=where, hint=f"pip install {missing.name}")
    return FormatError(f"the evaluation harness fails: {said}", where=where, hint="ask for another task, or see what it needs")


# -- the harness's manners ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No log lines, warnings or progress bars of the harness: only the command line talks."""
    logs = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub", "evaluate")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


@contextlib.contextmanager
def _own_dice() -> Iterator[None]:
    """The harness seeds every global generator there is; ours stand afterwards where they stood."""
    import torch

    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])


@contextlib.contextmanager
def _imported() -> Iterator[Any]:
    """The harness, with templates of tasks (small programs) that are rendered in Jinja's sandbox."""
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.utils
    except ImportError as error:
        raise MissingExtra(f"the evaluation harness needs {error.name}", hint=HARNESS.install) from error
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    before = lm_eval.utils.env
    safe = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    safe.filters.update(before.filters)
    lm_eval.utils.env = safe
    try:
        yield lm_eval
    finally:
        lm_eval.utils.env = before


@contextlib.contextmanager
def _offline(wish: bool) -> Iterator[bool]:
    """The libraries' own switches for the time of the run; gives whether the hub is off (by option or environment)."""
    import datasets
    import huggingface_hub.constants as hub

    places: tuple[Any, ...] = (hub, datasets.config)
    before = [place.HF_HUB_OFFLINE for place in places]
    off = wish or any(before)
    for place in places:
        place.HF_HUB_OFFLINE = off
    try:
        yield off
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
