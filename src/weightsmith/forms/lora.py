"""A LoRA adapter in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``, written without peft.

Of exact rank, with alpha = r so that the scaling is 1: ``lora_A`` ``[r, in]`` is what the change reads,
``lora_B`` ``[out, r]`` what it writes. What PEFT (0.20 and later) does with it decides the rest:

* ``lora_bias`` is one switch for all targets: where one module's constant moves, all get a bias, of zeros elsewhere. It
  needs no bias in the model, but merging into a linear without one is then refused by PEFT. Embeddings and fused experts
  refuse it altogether, so an edit of both is refused here.
* A tied head is a module of its own: it is listed with the embedding and ``ensure_weight_tying`` is set, without which
  the logits would lack the change of the unembedding. PEFT looks for modules called ``embed_tokens`` or ``lm_head``;
  the latter is in every family's list. Merging such an adapter adds the change to the shared matrix twice: a note says so.
* Routed experts are one parameter ``[experts, …, …]`` in memory (``target_parameters``): all experts share a rank, those
  with less are padded with zeros. PEFT takes it for ``[experts, out, in]`` unless the module says ``is_transposed``;
  where it is the other way round and silent (Llama 4) the two factors change places. Biases of the experts,
  ``[experts, out]``, are a parameter like any other. In such models PEFT takes every module called ``down_proj`` for
  the experts of older files, shared and plain ones included, so those are named by their parameter too. PEFT 0.19 read
  the two layouts the other way round, and can't load adapters of most mixtures under transformers 5.20 and later at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..architecture import Writer
from ..checkpoint import Checkpoint
from ..edits import F64
from ..errors import EditError
from ..formats.safetensors import encode, write_file
from . import FormTensor
from .change import Change, Matrix

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: what stands before ``layers.…`` in the module tree of the causal language model, where it isn't ``model.``
_PREFIX = {"gpt2": "transformer.", "gpt_neox": "gpt_neox."}
#: multimodal models of which the causal language model is loaded alone
_ALONE = ("llama4", "qwen3_5", "qwen3_5_moe")
_CONV1D = ("gpt2",)
#: families whose experts are [experts, in, out] in memory and don't say so
_SILENT = ("llama4",)
HEAD = "lm_head"
#: what older files called the experts' linears: PEFT redirects every module of that name
_REDIRECTED = (".down_proj", ".w2")
REDIRECTED = "PEFT can't add a constant to this linear: in a mixture it takes every module of that name for experts"
TIED_NOTE = (
    "embeddings are tied: use this adapter unmerged, since PEFT's merge adds the change to the shared matrix twice"
)
BIAS_NOTE = (
    "lora_bias: PEFT refuses to merge this adapter, since some of its linears have no bias; unmerged it is exact"
)
NO_BIAS_BESIDE = "PEFT can't hold a constant beside {what}: lora_bias is one switch for the whole adapter"


@dataclass
class Adapter:
    """An adapter in memory: tensors by PEFT's names, fp64, and the figures of ``adapter_config.json``."""

    tensors: dict[str, F64] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    conv1d: bool = False
    bias: bool = False
    tied: bool = False
    rows: list[FormTensor] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def memory_path(checkpoint: Checkpoint, disk_path: str) -> str:
    """The module that a causal language model of transformers 5 has for ``disk_path``, whatever the files call it."""
    architecture = checkpoint.architecture
    prefix = _PREFIX.get(architecture.family.name, "model.")
    nested = "text_config" in checkpoint.config or "llm_config" in checkpoint.config
    if nested and checkpoint.config.get("model_type") not in _ALONE:
        prefix = "model.language_model."
    return prefix + disk_path.removeprefix(architecture.prefix)


def adapter_of(checkpoint: Checkpoint, change: Change) -> Adapter:
    """The adapter that makes ``change``.

    Raises:
        EditError: nothing changes, or PEFT has no form for it.
    """
    found = Adapter(conv1d=checkpoint.architecture.family.name in _CONV1D, bias=bool(change.constants))
    _refuse_mixture(change)
    for module, rows in _by_module(checkpoint, change.matrices.values()):
        if rows[0].writer.role == "embed":
            _embedding(checkpoint, found, module, rows[0])
        elif rows[0].writer.role == "experts":
            _experts(checkpoint, found, module, rows)
        else:
            _linear(found, module, *_joined(rows), change.constants.get(rows[0].writer.module), checkpoint)
            _note(found, module, rows)
    _constants(checkpoint, found, change)
    biases = {w.module for w in checkpoint.architecture.writers if w.is_bias}
    disk = {memory_path(checkpoint, w.module) for w in checkpoint.architecture.writers if w.module not in biases}
    found.notes = [
        *([TIED_NOTE] if found.tied else []),
        *([BIAS_NOTE] if found.bias and disk & {*found.modules} else []),
    ]
    if not found.tensors:
        raise EditError("this edit changes nothing, so there is no adapter to write", where=checkpoint.ref)
    return found


def _refuse_mixture(change: Change) -> None:
    """Refuse constants beside what PEFT gives no bias.

    Raises:
        EditError: embeddings or experts change as well.
    """
    if not change.constants:
        return
    for role, what in (("embed", "embeddings"), ("experts", "routed experts")):
        if any(m.writer.role == role for m in change.matrices.values()):
            raise EditError(NO_BIAS_BESIDE.format(what=what), where=next(iter(change.constants)),
                            hint=f"leave the {what} out with --roles, or write it as weights")  # fmt: skip


def _by_module(checkpoint: Checkpoint, matrices: Iterable[Matrix]) -> Iterator[tuple[str, list[Matrix]]]:
    grouped: dict[str, list[Matrix]] = {}
    head = checkpoint.architecture.unembed if checkpoint.architecture.tied else None
    for matrix in matrices:
        if matrix.writer.tensor != head:  # a tied head stored twice is one module in memory
            grouped.setdefault(memory_path(checkpoint, matrix.writer.module), []).append(matrix)
    yield from grouped.items()


def _joined(rows: list[Matrix]) -> tuple[F64, F64]:
    if len(rows) != 1 or len(rows[0].factors) != 1:
        raise EditError(f"{len(rows)} tensors write through one module", where=rows[0].writer.module)
    return rows[0].factors[0]


def _note(found: Adapter, target: str, rows: list[Matrix], constant: F64 | None = None) -> None:
    size = 0.0 if constant is None else float(np.sqrt((constant * constant).sum()))
    found.rows.append(FormTensor(target=target, rank=max((m.rank for m in rows), default=0), constant=size,
                                 operations=list(dict.fromkeys(w for m in rows for w in m.what))))  # fmt: skip


def _linear(
    found: Adapter, module: str, write: F64, read: F64, constant: F64 | None, checkpoint: Checkpoint
) -> None:  # fmt: skip
    key = f"base_model.model.{module}"
    mixture = any(w.role == "experts" for w in checkpoint.architecture.writers)
    if mixture and module.endswith(_REDIRECTED):
        if found.bias:
            raise EditError(REDIRECTED, where=module, hint="leave it out with --roles, or write it as weights")
        found.parameters.append(f"{module}.weight")
        found.ranks[f"{module}.weight"] = write.shape[1]
    else:
        found.modules.append(module)
        found.ranks[module] = write.shape[1]
    found.tensors[f"{key}.lora_A.weight"] = read
    found.tensors[f"{key}.lora_B.weight"] = write
    if found.bias:
        zeros = np.zeros(checkpoint.architecture.d_model)
        found.tensors[f"{key}.lora_B.bias"] = zeros if constant is None else constant


def _constants(checkpoint: Checkpoint, found: Adapter, change: Change) -> None:
    """Modules whose constant alone moves: rank 1 of zeros carries the bias."""
    inputs = {w.module: _inputs(checkpoint, w) for w in checkpoint.architecture.writers if not w.is_bias}
    for disk, constant in change.constants.items():
        module = memory_path(checkpoint, disk)
        row = next((r for r in found.rows if r.target == module), None)
        if row is not None:
            row.constant = float(np.sqrt((constant * constant).sum()))
            continue
        _linear(found, module, np.zeros((len(constant), 1)), np.zeros((1, inputs[disk])), constant, checkpoint)
        _note(found, module, [], constant)


def _inputs(checkpoint: Checkpoint, writer: Writer) -> int:
    """Inputs of a linear."""
    return checkpoint.tensors[writer.tensor].shape[-1 if writer.out_axis == -2 else -2]


def _embedding(checkpoint: Checkpoint, found: Adapter, module: str, matrix: Matrix) -> None:
    write, read = _joined([matrix])
    found.modules.append(module)
    found.ranks[module] = write.shape[1]
    found.tensors[f"base_model.model.{module}.lora_embedding_A"] = read
    found.tensors[f"base_model.model.{module}.lora_embedding_B"] = write
    _note(found, module, [matrix])
    if checkpoint.architecture.tied and matrix.writer.tensor == checkpoint.architecture.embedding:
        found.tied = True
        found.modules.append(HEAD)
        found.ranks[HEAD] = write.shape[1]
        found.tensors[f"base_model.model.{HEAD}.lora_A.weight"] = write.T
        found.tensors[f"base_model.model.{HEAD}.lora_B.weight"] = read.T
        _note(found, HEAD, [matrix])


def _experts(checkpoint: Checkpoint, found: Adapter, module: str, rows: list[Matrix]) -> None:
    """Fused experts; PEFT wraps a second parameter of a module around the first, whose names get ``base_layer``."""
    weights, biases = [m for m in rows if not m.writer.is_bias], [m for m in rows if m.writer.is_bias]
    if weights:
        pairs = _every_expert(checkpoint, weights)
        rank = max(w.shape[1] for w, _ in pairs)
        writes = np.stack([_widened(w, rank) for w, _ in pairs])  # [experts, out, r]
        reads = np.stack([_widened(r.T, rank).T for _, r in pairs])  # [experts, r, in]
        first, second = reads, writes.transpose(1, 2, 0)  # A [e, r, in], B [out, r, e]
        if checkpoint.architecture.family.name in _SILENT:
            first, second = writes.transpose(0, 2, 1), reads.transpose(2, 1, 0)
        _parameter(found, module, _leaf(checkpoint, weights[0].writer), first.reshape(-1, first.shape[-1]),
                   second.reshape(len(second), -1), rank, "base_layer." if biases else "", weights)  # fmt: skip
    if biases:
        write, read = _joined(biases)
        _parameter(found, module, _leaf(checkpoint, biases[0].writer), write.T, read.T, write.shape[1], "", biases)


def _parameter(
    found: Adapter, module: str, leaf: str, first: F64, second: F64, rank: int, inner: str, rows: list[Matrix]
) -> None:
    name = f"{module}.{leaf}"
    found.parameters.append(name)
    found.ranks[name] = rank
    found.tensors[f"base_model.model.{module}.{inner}lora_A.weight"] = first
    found.tensors[f"base_model.model.{module}.{inner}lora_B.weight"] = second
    _note(found, name, rows)


def _leaf(checkpoint: Checkpoint, writer: Writer) -> str:
    """The last word of the fused parameter's name in memory."""
    if writer.is_bias:
        return writer.tensor.rpartition(".")[2]
    fused = next(str(w["fused"]) for w in checkpoint.architecture.family.writers if w["role"] == "experts")
    return fused.rpartition(".")[2]


def _every_expert(checkpoint: Checkpoint, rows: list[Matrix]) -> list[tuple[F64, F64]]:
    """The factors of all experts of a layer, in order; those that the edit leaves alone have rank 0."""
    if len(checkpoint.tensors[rows[0].writer.tensor].shape) == 3:
        return list(rows[0].factors)
    known = {m.writer.tensor: m.factors[0] for m in rows}
    names = [w.tensor for w in checkpoint.architecture.writers if w.module == rows[0].writer.module and not w.is_bias]
    write, read = rows[0].factors[0]
    return [known.get(n, (write[:, :0], read[:0])) for n in names]


def _widened(columns: F64, rank: int) -> F64:
    return np.pad(columns, ((0, 0), (0, rank - columns.shape[1])))


# -- files -------------------------------------------------------------------------------------------------


def config_of(checkpoint: Checkpoint, adapter: Adapter) -> dict[str, Any]:
    """``adapter_config.json``: the most usual rank for all, ``rank_pattern`` and ``alpha_pattern`` for the others."""
    ranks = sorted(adapter.ranks.values())
    usual = max(set(ranks), key=lambda r: (ranks.count(r), r))
    others = {name: rank for name, rank in sorted(adapter.ranks.items()) if rank != usual}
    config: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name(checkpoint),
        "revision": checkpoint.source.get("revision"), "inference_mode": True, "r": usual, "lora_alpha": usual,
        "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": adapter.conv1d, "init_lora_weights": True,
        "use_rslora": False, "target_modules": sorted(adapter.modules), "rank_pattern": others, "alpha_pattern": others,
        "modules_to_save": None,
    }  # fmt: skip
    if adapter.parameters:
        config["target_parameters"] = sorted(adapter.parameters)
    if adapter.bias:
        config["lora_bias"] = True
    if adapter.tied:
        config["ensure_weight_tying"] = True
    return config


def base_name(checkpoint: Checkpoint) -> str:
    """The base as anyone can find it: its name on the hub, or the reference that was given."""
    return checkpoint.source.get("repo") or checkpoint.ref


def write_adapter(folder: Path, checkpoint: Checkpoint, adapter: Adapter, dtype: str = "F32") -> None:
    """Write both files into ``folder``; ``dtype`` is F32, BF16 or F16.

    Raises:
        EditError: a factor that the dtype can't hold.
    """
    (folder / CONFIG).write_text(json.dumps(config_of(checkpoint, adapter), indent=2) + "\n", encoding="utf-8")
    entries = [(name, dtype, tuple(values.shape), _fill(name, values, dtype))
               for name, values in sorted(adapter.tensors.items())]  # fmt: skip
    write_file(folder / WEIGHTS, entries, {"format": "pt"})


def _fill(name: str, values: F64, dtype: str) -> Any:
    def fill(file: BinaryIO) -> None:
        largest = {"F16": 65504.0}.get(dtype, float(np.finfo(np.float32).max))
        if not np.abs(values).max(initial=0.0) <= largest:
            raise EditError(f"{name!r} would overflow {dtype}", hint="use a smaller amount")
        file.write(encode(np.ascontiguousarray(values, np.float32), dtype))

    return fill
