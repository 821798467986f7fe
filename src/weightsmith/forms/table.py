"""Which edit each form can hold, in each family: found by trying, so that the table can't say what the code doesn't do.

For every family a skeleton is written from its role data: a few kilobytes of weights with every writer that the family
has, no optional bias, and embeddings that are not tied. Each kind of edit is then compiled in each form, by the code that
writes it; what is refused gives its own reason. ``docs/export.md`` holds the outcome, and a test compares the two.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..architecture import Family, families
from ..checkpoint import Checkpoint, open_checkpoint
from ..direction import Direction
from ..edits import F64
from ..edits.constant import fit_writer
from ..errors import EditError, UnsupportedModel
from ..formats.safetensors import write_file
from ..plan import compile_edit, plan_edit
from ..records import DirectionMeta, EditSpec, EditStep, FittedConstant, ModelIdentity
from .change import Fits, change_of, needs_fit
from .control_vector import EARLIER, vectors_of
from .gguf_lora import architecture_of, pairs_of
from .lora import adapter_of

WIDTH, INPUTS, VOCABULARY, EXPERTS, LAYERS = 8, 6, 10, 2, 2
COLUMNS = ("weights", "gguf", "hooks", "lora", "gguf-lora", "control-vector")
#: GGUF architectures in which llama.cpp reads no bias of the attention's output
NO_OUTPUT_BIAS = ("qwen3",)
BIAS_NOT_READ = "llama.cpp reads no such bias in this architecture"
FITTED = "fitted: the record says which share of the dose arrives on held-out prompts, and its spread"

#: row of the table -> fields of the step; ``also`` and ``gate`` get a direction
KINDS: dict[str, dict[str, Any]] = {
    "remove": {"kind": "remove", "amount": 1.0},
    "remove a subspace": {"kind": "remove", "amount": 1.0, "also": True},
    "remove, + embeddings": {"kind": "remove", "amount": 1.0, "embed": True},
    "remove, norms kept": {"kind": "remove", "amount": 1.0, "norms": "input"},
    "amplify": {"kind": "amplify", "amount": 2.0},
    "projected": {"kind": "projected", "amount": 1.0},
    "biprojected": {"kind": "biprojected", "amount": 1.0},
    "biprojected, norms free": {"kind": "biprojected", "amount": 1.0, "norms": "free"},
    "affine": {"kind": "affine", "amount": 1.0},
    "leace": {"kind": "leace", "amount": 1.0},
    "add": {"kind": "add", "amount": 0.5},
    "add, fitted": {"kind": "add", "amount": 0.5, "constant": "fitted"},
    "add, gated": {"kind": "add", "amount": 0.5, "gate": True},
}


@dataclass(frozen=True)
class Cell:
    """What one form makes of one edit: ``exact``, ``approximate`` or ``refused``, and why."""

    status: str
    why: str = ""


@dataclass(frozen=True)
class Row:
    """One kind of edit in one family: a cell for each of :data:`COLUMNS`."""

    family: str
    kind: str
    cells: Mapping[str, Cell]

    def as_record(self) -> dict[str, Any]:
        """As plain data."""
        return {"family": self.family, "kind": self.kind,
                "cells": {form: {"status": c.status, "why": c.why} for form, c in self.cells.items()}}  # fmt: skip


def cell(
    checkpoint: Checkpoint, spec: EditSpec, directions: Mapping[str, Direction], form: str, fits: Fits | None = None
) -> Cell:
    """Try ``spec`` on ``checkpoint`` in one of :data:`COLUMNS`; nothing is written. ``fits`` stand in for a running model
    where constants have to be fitted."""
    try:
        if form in ("weights", "gguf"):
            arch = architecture_of(checkpoint) if form == "gguf" else ""
            plan = plan_edit(checkpoint, spec, directions, fits)
            if arch in NO_OUTPUT_BIAS and plan.new:
                return Cell("refused", BIAS_NOT_READ)
            return Cell("approximate", FITTED) if plan.compiled.fitted else Cell("exact")
        if form == "hooks":
            compile_edit(checkpoint, spec, directions, hooks_only=True)
            return Cell("exact")
        if form == "control-vector":
            early = EARLIER in vectors_of(checkpoint, spec, directions)[1]
            return Cell("approximate", EARLIER) if early else Cell("exact")
        change = change_of(checkpoint, spec, directions, fits if any(map(needs_fit, spec.steps)) else None)
        _ = pairs_of(checkpoint, change) if form == "gguf-lora" else adapter_of(checkpoint, change)
        return Cell("approximate", FITTED) if change.fitted else Cell("exact")
    except (EditError, UnsupportedModel) as error:
        return Cell("refused", error.message)


def step_of(
    checkpoint: Checkpoint, kind: str, main: str, other: str, layers: list[int], *, source: int = 1
) -> EditSpec:  # fmt: skip
    """A row of :data:`KINDS` as an edit of ``layers``; ``main`` and ``other`` are digests of directions."""
    fields: dict[str, Any] = dict(KINDS[kind])
    if fields.pop("embed", False):
        fields["roles"] = [*checkpoint.architecture.default_roles(), "embed"]
    if fields.pop("also", False):
        fields["also"] = [other]
    if fields.pop("gate", False):
        fields["gate"] = {"direction": other, "layer": 0, "threshold": 0.0}
    return EditSpec(steps=[EditStep(direction=main, source=source, layers=layers, **fields)])


def any_fits(checkpoint: Checkpoint) -> dict[int, tuple[F64, FittedConstant]]:
    """Stand-ins for fitted constants: the weights are of no account where only the form is asked for."""
    found = {}
    for layer in range(checkpoint.architecture.n_layers):
        try:
            spec = checkpoint.tensors[fit_writer(checkpoint.architecture, layer).tensor]
        except EditError:
            continue
        inputs = spec.numel // checkpoint.architecture.d_model
        found[layer] = (np.ones(inputs), FittedConstant(layer=layer, mean_dose=1.0, spread=0.0, n_tokens=0))
    return found


@cache
def rows() -> tuple[Row, ...]:
    """The whole table: every kind of edit in every family, by family in alphabetical order."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, family in sorted({f.name: f for f in families().values()}.items()):
            checkpoint = skeleton(family, Path(scratch) / name)
            main, other = (a_direction(checkpoint, seed) for seed in (0, 1))
            known = {main.digest(): main, other.digest(): other}
            fits = any_fits(checkpoint)
            for kind in KINDS:
                spec = step_of(checkpoint, kind, main.digest(), other.digest(), [1])
                cells = {form: cell(checkpoint, spec, known, form, fits) for form in COLUMNS}
                found.append(Row(name, kind, cells))
    return tuple(found)


def a_direction(checkpoint: Checkpoint, seed: int) -> Direction:
    """A random direction in every layer, with everything that any kind reads."""
    arch = checkpoint.architecture
    dice = np.random.default_rng(seed)
    shape = (arch.n_layers, arch.d_model)
    who = ModelIdentity(ref=checkpoint.ref, digest=checkpoint.digest(), family=arch.family.name, n_layers=arch.n_layers,
                        d_model=arch.d_model)  # fmt: skip
    meta = DirectionMeta(feature="skeleton", feature_digest="0" * 64, model=who, method="none", site="answer",
                         point="resid_post", layers=list(range(arch.n_layers)), prompts_digest="0" * 64, n={})  # fmt: skip
    vectors = dice.standard_normal(shape).astype(np.float32)
    return Direction(vectors, dice.uniform(3, 6, shape[:1]).astype(np.float32),
                     dice.standard_normal(shape).astype(np.float32), dice.standard_normal(shape).astype(np.float32), meta,
                     (vectors + 0.1 * dice.standard_normal(shape)).astype(np.float32))  # fmt: skip


# -- skeletons ---------------------------------------------------------------------------------------------


def skeleton(family: Family, folder: Path) -> Checkpoint:
    """A model of ``family`` with nothing in it but what an edit touches."""
    names = [*(_full(family, e) for e in family.embed), family.unembed]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (VOCABULARY, WIDTH))
    for layer in range(LAYERS):
        shapes |= dict(_layer(family, layer))
    config: dict[str, Any] = {"model_type": _text_type(family), "tie_word_embeddings": False}
    for key, default, value in (("layers", "num_hidden_layers", LAYERS), ("width", "hidden_size", WIDTH),
                                ("experts", "num_local_experts", EXPERTS)):  # fmt: skip
        known = family.keys.get(key, default)
        config[known if isinstance(known, str) else known[0]] = value
    dice = np.random.default_rng(0)
    entries = [(name, "F32", shape, _fill(dice.standard_normal(shape))) for name, shape in shapes.items()]
    folder.mkdir(parents=True)
    write_file(folder / "model.safetensors", entries)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return open_checkpoint(str(folder), offline=True)


def _full(family: Family, name: str) -> str:
    return f"model.{name}"


def _text_type(family: Family) -> str:
    return next((t for t in family.model_types if t.endswith("_text")), family.model_types[0])


def _layer(family: Family, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    def holds(key: str) -> bool:
        return bool(family.defaults.get(key))

    here = [
        w
        for w in family.writers
        if ("when" not in w or holds(w["when"])) and not ("unless" in w and holds(w["unless"]))
    ]
    mixture = any(w["role"] == "experts" for w in here)
    mixers = [w for w in here if w["role"] == "attn_out"]
    for data in here:
        if (data["role"] == "mlp_down" and mixture) or (data in mixers and data != mixers[min(layer, len(mixers) - 1)]):
            continue
        block = f"{_full(family, family.block.format(i=layer))}."
        yield from _writer(block, data)
    block = f"{_full(family, family.block.format(i=layer))}."
    for linear in (family.constant or {}).get("zeros", ()):  # they share the flag of the bias that holds a constant
        yield f"{block}{linear}.weight", (INPUTS, WIDTH)


def _writer(block: str, data: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    flat = (WIDTH, INPUTS) if data.get("out_axis", -2) == -2 else (INPUTS, WIDTH)
    name = data.get("weight")
    if name is None:
        yield block + data["fused"], (EXPERTS, *flat)
    else:
        yield from ((block + str(name).format(e=e), flat) for e in range(EXPERTS if "{e}" in name else 1))
    if data.get("bias_always"):
        yield block + data["bias"], (WIDTH,) if name is not None else (EXPERTS, WIDTH)
    listed = data.get("gain", [])
    yield from ((block + gain, (WIDTH,)) for gain in ([listed] if isinstance(listed, str) else listed))


def _fill(values: np.ndarray[Any, Any]) -> Any:
    return lambda file: file.write(np.asarray(values, "<f4").tobytes())


# -- the page ----------------------------------------------------------------------------------------------


def as_markdown() -> str:
    """The table for ``docs/export.md``: families that are alike in every cell share one table."""
    alike: dict[tuple[tuple[Cell, ...], ...], list[str]] = {}
    for name in dict.fromkeys(row.family for row in rows()):
        mine = tuple(tuple(r.cells[form] for form in COLUMNS) for r in rows() if r.family == name)
        plain = tuple(tuple(Cell(c.status, _general(c.why, name)) for c in line) for line in mine)
        alike.setdefault(plain, []).append(name)
    reasons = list(dict.fromkeys(c.why for table in alike for line in table for c in line if c.why))
    parts = []
    for table, names in alike.items():
        lines = [
            f"### {', '.join(names)}",
            "",
            f"| edit | {' | '.join(COLUMNS)} |",
            "| --- " * (len(COLUMNS) + 1) + "|",
        ]
        lines += [f"| {kind} | {' | '.join(_shown(c, reasons) for c in line)} |"
                  for kind, line in zip(KINDS, table, strict=True)]  # fmt: skip
        parts.append("\n".join(lines))
    notes = "\n".join(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))
    return "\n\n".join([*parts, "### Why", notes]) + "\n"


def _general(why: str, family: str) -> str:
    """A reason without the family's own name, so that families can share it."""
    for named in (f"a {family} model", f"model type '{family}'", f"model type '{family}_text'"):
        why = why.replace(named, "this family")
    return why.partition("; known: ")[0]


def _shown(found: Cell, reasons: list[str]) -> str:
    word = {"exact": "exact", "approximate": "≈", "refused": "–"}[found.status]
    return word if not found.why else f"{word} ({reasons.index(found.why) + 1})"


__all__ = ["COLUMNS", "KINDS", "Cell", "Row", "as_markdown", "cell", "rows", "step_of"]
