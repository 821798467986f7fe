"""A LoRA adapter as llama.cpp reads it: a GGUF file with ``NAME.lora_a`` ``[r, in]`` and ``NAME.lora_b`` ``[out, r]``.

llama.cpp scales each pair by alpha / r, with one alpha for the file and r read off the tensor: alpha is the largest rank,
and pairs of a smaller rank are written so much smaller. It has no bias, so constants are refused. It takes the embedding's
pair the other way round (``lora_a`` ``[vocabulary, r]``, looked up by token), and for that very reason can't use it where
the unembedding is the same tensor: it would read the pair the usual way and stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..architecture import text_config
from ..checkpoint import Checkpoint
from ..errors import EditError, UnsupportedModel
from ..formats.gguf_config import FAMILIES
from ..formats.gguf_edit import provenance
from ..formats.gguf_export_config import ARCHITECTURES
from ..formats.gguf_write import TensorEntry, Value, array_entry, write_gguf
from . import Export, FormTensor
from .change import Change, Matrix

NO_CONSTANT = "llama.cpp's LoRA has no bias, so it can't hold a constant"
TIED = "the embeddings are tied, and llama.cpp reads one pair for both of their uses, in different orders"
NO_NAME = "llama.cpp's name of this tensor is not known here"


def architecture_of(checkpoint: Checkpoint) -> str:
    """The GGUF architecture of a checkpoint.

    Raises:
        UnsupportedModel: a family that is not written as GGUF here.
    """
    kind = str(text_config(checkpoint.config).get("model_type"))
    if kind not in ARCHITECTURES:
        raise UnsupportedModel(f"model type {kind!r} is not written as GGUF here; known: {', '.join(sorted(ARCHITECTURES))}",
                               where=checkpoint.ref, hint="`--as lora` works in every family")  # fmt: skip
    return ARCHITECTURES[kind]


def pairs_of(checkpoint: Checkpoint, change: Change) -> tuple[list[TensorEntry], list[FormTensor], int]:
    """The tensors of the file, what they are, and alpha.

    Raises:
        UnsupportedModel: a family without GGUF names; EditError: a constant, tied embeddings, or no change at all.
    """
    arch = architecture_of(checkpoint)
    if change.constants:
        module = next(iter(change.constants))
        raise EditError(
            NO_CONSTANT, where=module, hint="export a control vector (--as control-vector), or --as weights"
        )
    if not change.matrices:
        raise EditError("this edit changes nothing, so there is no adapter to write", where=checkpoint.ref)
    alpha = max(m.rank for m in change.matrices.values())
    entries: list[TensorEntry] = []
    rows: list[FormTensor] = []
    for matrix in change.matrices.values():
        name = _name(checkpoint, arch, matrix)
        write, read = matrix.factors[0]
        write = write * (matrix.rank / alpha)
        first, second = (read.T, write) if matrix.writer.role == "embed" else (read, write)
        entries += [_entry(f"{name}.lora_a", first), _entry(f"{name}.lora_b", second)]
        rows.append(FormTensor(target=name, rank=matrix.rank, operations=list(matrix.what)))
    return entries, rows, alpha


def _entry(name: str, values: np.ndarray[Any, Any]) -> TensorEntry:
    if not np.abs(values).max(initial=0.0) <= float(np.finfo(np.float32).max):
        raise EditError(f"{name!r} would overflow F32", hint="use a smaller amount")
    return array_entry(name, np.ascontiguousarray(values, np.float32))


def _name(checkpoint: Checkpoint, arch: str, matrix: Matrix) -> str:
    architecture, writer = checkpoint.architecture, matrix.writer
    if writer.role == "embed":
        if architecture.tied:
            raise EditError(TIED, where=writer.tensor, hint="leave +embed out, or export --as gguf")
        return "token_embd.weight"
    tail = writer.tensor.removeprefix(architecture.block(writer.layer or 0))
    leaf = next((leaf for leaf, (name, _) in FAMILIES[arch].leaves.items() if name == tail), None)
    if leaf is None:
        raise EditError(NO_NAME, where=writer.tensor, hint="use --as lora or --as weights")
    return f"blk.{writer.layer}.{leaf}"


def write_gguf_lora(path: Path, checkpoint: Checkpoint, entries: list[TensorEntry], alpha: int, record: Export) -> None:
    """Write the file, whole or not at all.

    Raises:
        OutputExists, DiskFull: as :func:`weightsmith.formats.gguf_write.write_gguf`.
    """
    metadata: Mapping[str, Value] = {
        "general.type": "adapter", "general.architecture": architecture_of(checkpoint),
        "general.name": record.edit.name or "edit", "adapter.type": "lora", "adapter.lora.alpha": float(alpha),
        **provenance(name=checkpoint.title, version=checkpoint.source.get("revision"), derivation=record.as_record()),
    }  # fmt: skip
    write_gguf(path, metadata, entries)
