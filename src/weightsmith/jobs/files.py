"""Jobs on files alone: show and convert. No torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import checkpoint as files
from ..checkpoint import Checkpoint, open_checkpoint
from ..direction import Direction
from ..errors import NotPinned, PickleOnly, WeightsmithError
from ..hub import locate
from ..options import RunOptions
from ..trust.gate import pass_gate
from ..trust.pins.guard import describe
from ..trust.pins.lock import find_lock, held, pinned_ref


def as_checkpoint(model: Checkpoint | str | Path, options: RunOptions | None = None) -> Checkpoint:
    """A checkpoint as it is, or opened from a reference; with a lock, ``org/name`` is the revision that it pins."""
    if isinstance(model, Checkpoint):
        return model
    options = options or RunOptions()
    return open_checkpoint(pinned_ref(str(model), options.lock), offline=options.offline, progress=options.progress)


def held_to_pins(checkpoint: Checkpoint, options: RunOptions, *, weights: bool = True) -> Checkpoint:
    """The checkpoint with what a lock says of it checked; without ``weights`` for a job that compares each tensor with
    ``known_digests`` as it reads it.

    Raises:
        NotPinned, ManifestMismatch, DigestMismatch: what the lock says.
    """
    return held(checkpoint, find_lock(explicit=options.lock), frozen=options.frozen, weights=weights)


def passed(checkpoint: Checkpoint, options: RunOptions) -> None:
    """Let a checkpoint through the gate; says so in one line to whoever listens.

    Raises:
        UnsafeModel, NotAnalysed: what the scan found.
    """
    shield = replace(pass_gate(checkpoint, options), pinned=describe(checkpoint))
    if options.tell is not None:
        options.tell(f"{checkpoint.title}: {shield.line}")


def convert(model: Checkpoint | str | Path, out: str | Path, options: RunOptions | None = None) -> Path:
    """Write a GGUF or quantised model as a bf16 Hugging Face folder at ``out``, or torch pickles as safetensors, whole or not
    at all.

    Raises:
        UsageError: already a folder.
        OutputExists: ``out`` is taken.
        UnsupportedModel: a GGUF architecture or tensor type without a converter.
        UnsafeModel, NotAnalysed: what the scan found.
    """
    options = options or RunOptions()
    try:
        opened = as_checkpoint(model, options)
    except PickleOnly:
        if options.frozen:
            raise NotPinned("torch pickles can't be pinned, and --frozen uses only what is pinned", where=str(model),
                            hint="convert it without --frozen, then pin what came out") from None  # fmt: skip
        from ..runtime.pickled import convert_pickles  # needs torch, unlike the rest

        place = locate(pinned_ref(str(model), options.lock), offline=options.offline).path
        return convert_pickles(place, Path(out), options)
    pinned = held_to_pins(opened, options)
    passed(pinned, options)
    files.convert(pinned, Path(out), progress=options.progress)
    return Path(out)


def describe_model(model: Checkpoint | str | Path, options: RunOptions | None = None) -> dict[str, Any]:
    """What ``weightsmith show`` prints: from headers and small files only."""
    checkpoint = as_checkpoint(model, options)
    try:
        arch = checkpoint.architecture
        family: dict[str, Any] = {
            "family": arch.family.name, "layers": arch.n_layers, "d_model": arch.d_model, "tied_embeddings": arch.tied,
            "post_norm": arch.family.post_norm, "roles": _roles(checkpoint),
        }  # fmt: skip
    except WeightsmithError as error:
        family = {"family": None, "why_not_editable": error.message, "roles": {}}
    remote = [k for k in ("auto_map", "custom_generate") if checkpoint.config.get(k)]
    role_of = {} if family["family"] is None else {w.tensor: w.role for w in checkpoint.architecture.writers}
    return {
        "ref": checkpoint.ref,
        "path": str(checkpoint.path),
        "kind": checkpoint.kind,
        "source": dict(checkpoint.source),
        "model_type": checkpoint.config.get("model_type"),
        **family,
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.nbytes,
        "dtypes": checkpoint.dtypes,
        "files": [f.name for f in checkpoint.weight_files],
        "context_length": checkpoint.config.get("max_position_embeddings"),
        "vocabulary": checkpoint.config.get("vocab_size"),
        "tokenizer": dict(checkpoint.tokenizer),
        "chat_template": checkpoint.chat_template,
        "config": dict(checkpoint.config),
        "edited": (checkpoint.path / files.RECORD).is_file() if checkpoint.kind == "folder" else False,
        "wants_remote_code": remote,
        "tensors": [
            {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.nbytes, "file": t.file.name,
             "role": role_of.get(t.name)}
            for t in checkpoint.tensors.values()
        ],
    }  # fmt: skip


def _roles(checkpoint: Checkpoint) -> dict[str, int]:
    counts: dict[str, int] = {}
    for writer in checkpoint.architecture.writers:
        counts[writer.role] = counts.get(writer.role, 0) + 1
    return counts


def describe_direction(direction: Direction) -> dict[str, Any]:
    """What ``weightsmith show DIRECTION`` prints."""
    return {"digest": direction.digest(), **direction.meta.model_dump(by_alias=True)}
