"""Control vectors as llama.cpp and repeng keep them: a GGUF file with one vector ``direction.N`` ``[d_model]`` a layer.

``direction.N`` is added to the residual stream behind block N (0-based), at every position: llama.cpp adds it to the
block's output, after the MLP's residual sum, and repeng trains it on that very output. Neither llama.cpp's loader nor its
API has a place for block 0. What is written is αv itself, so strength 1 is the edit.

Only constants have this form. It is the activation addition as it is defined, behind the block, in every family: also
where a norm follows every writer and no weight can hold a constant. Where the weights hold the constant in the
attention's bias (Qwen 3, for one), they add it before the layer's MLP and the control vector behind it; a note says so.

An imported vector has no residual norms, of which doses are fractions. Its ``resid_norm`` is set so that **amount 1 over
all its layers is the file as written**; over fewer layers the same total is spread over those.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .. import __version__
from ..checkpoint import Checkpoint
from ..direction import Direction
from ..edits import F64, AddOutput
from ..errors import DirectionModelMismatch, EditError, FormatError, NonFinite, ShapeMismatch, UnsupportedModel
from ..formats import gguf
from ..formats.gguf_edit import provenance
from ..formats.gguf_write import Value, array_entry, write_gguf
from ..plan import compile_edit
from ..records import DirectionMeta, EditSpec, ModelIdentity
from ..storage import digest_of
from . import Export
from .change import GATED, exactly
from .gguf_lora import architecture_of

ARCH = "controlvector"
#: ``method`` of a direction that came from such a file
METHOD = "control-vector"
ONLY_CONSTANTS = "a control vector adds a constant, and can't take out or scale what a model says"
BLOCK_0 = "llama.cpp has no place for a control vector behind block 0"
#: families whose attention and MLP read the same, so that it is all one which of them adds a constant
PARALLEL = ("cohere2",)
EARLIER = "in weights this model holds the constant in the attention, before each layer's MLP; a control vector adds it behind"


def vectors_of(
    checkpoint: Checkpoint, spec: EditSpec, directions: Mapping[str, Direction]
) -> tuple[dict[int, F64], list[str]]:
    """What ``spec`` adds behind each block, fp64 ``[d_model]``, and what is to be said of it.

    Raises:
        EditError: an edit that is more than constants, a gate, or a constant behind block 0.
        RecipeError, UnknownPlugin: as :func:`weightsmith.plan.compile_edit`.
    """
    where = spec.name or "edit"
    if any(s.gate is not None for s in spec.steps):
        raise EditError(f"this edit has no form as a control vector: {GATED}", where=where)
    for step in spec.steps:  # each step by itself: what a hook can't do, such as keeping norms, is no constant either
        if step.kind != "add":
            raise EditError(ONLY_CONSTANTS, where=where, hint="use --as gguf-lora, --as lora or --as weights")
    compiled = compile_edit(checkpoint, exactly(spec), directions, hooks_only=True)
    found: dict[int, F64] = {}
    for hook in compiled.hooks:
        if not isinstance(hook, AddOutput):
            raise EditError(ONLY_CONSTANTS, where=where, hint="use --as gguf-lora, --as lora or --as weights")
        layer = layer_of(checkpoint, hook.module)
        found[layer] = found.get(layer, np.zeros(len(hook.vector))) + hook.vector
    if 0 in found:
        raise EditError(BLOCK_0, where=where, hint="leave layer 0 out of --layers")
    if not found:
        raise EditError("this edit changes nothing, so there is no control vector to write", where=where)
    early = [h for h in compiled.hooks if before_mlp(checkpoint, h.module)]
    return dict(sorted(found.items())), [*compiled.notes, *([EARLIER] if early else [])]


def layer_of(checkpoint: Checkpoint, module: str) -> int:
    """The layer that a module lies in."""
    blocks = {checkpoint.architecture.block(i): i for i in range(checkpoint.architecture.n_layers)}
    return next(layer for block, layer in blocks.items() if f"{module}.".startswith(block))


def before_mlp(checkpoint: Checkpoint, module: str) -> bool:
    """Whether something else of the layer still reads what ``module`` adds."""
    if checkpoint.architecture.family.name in PARALLEL:
        return False
    return any(w.module == module and w.role == "attn_out" for w in checkpoint.architecture.writers)


def write_control_vector(path: Path, checkpoint: Checkpoint, vectors: Mapping[int, F64], record: Export) -> None:
    """Write the file, whole or not at all; the vectors are F32.

    Raises:
        NonFinite: a vector that F32 can't hold.
        OutputExists, DiskFull: as :func:`weightsmith.formats.gguf_write.write_gguf`.
    """
    for layer, vector in vectors.items():
        if not np.abs(vector).max() <= float(np.finfo(np.float32).max):
            raise NonFinite(f"the vector of layer {layer} would overflow F32", where=path, hint="use a smaller amount")
    metadata: dict[str, Value] = {
        "general.architecture": ARCH, f"{ARCH}.model_hint": model_hint(checkpoint), f"{ARCH}.layer_count": len(vectors),
        "general.name": record.edit.name or "edit",
        **provenance(name=checkpoint.title, version=checkpoint.source.get("revision"), derivation=record.as_record()),
    }  # fmt: skip
    write_gguf(path, metadata, [array_entry(f"direction.{n}", np.asarray(v, np.float32)) for n, v in vectors.items()])


def model_hint(checkpoint: Checkpoint) -> str:
    """The GGUF architecture, or the ``model_type`` where that is not known here; no program reads it."""
    try:
        return architecture_of(checkpoint)
    except UnsupportedModel:
        return str(checkpoint.config.get("model_type"))


# -- import ------------------------------------------------------------------------------------------------


def is_control_vector(path: Path) -> bool:
    """Whether ``path`` is a control vector file (by content)."""
    try:
        return path.is_file() and gguf.read_header(path, arrays=False).metadata.get("general.architecture") == ARCH
    except (FormatError, UnsupportedModel):
        return False


def import_control_vector(path: Path, model: ModelIdentity, *, hints: tuple[str, ...] = ()) -> Direction:
    """A control vector file as a direction of ``model``; amount 1 over all its layers is the file as written.

    The file does not say which weights it was made on: that is taken on trust, and the direction says so. ``hints`` are
    the names that its ``model_hint`` may have (any, where empty).

    Raises:
        FormatError: no control vector, or tensors that are none of its kind.
        ShapeMismatch: another width, or layers that the model lacks.
        DirectionModelMismatch: a hint at another architecture.
        NonFinite: NaN, infinity or a vector of zeros.
    """
    header = gguf.read_header(path, arrays=False)
    if header.metadata.get("general.architecture") != ARCH:
        raise FormatError(
            "a GGUF file, but not a control vector", where=path, hint="`weightsmith find` makes a direction"
        )
    hint = str(header.metadata.get(f"{ARCH}.model_hint", ""))
    if hints and hint and hint not in hints:
        raise DirectionModelMismatch(f"made for {hint!r}, and this is a {model.family} model", where=path,
                                     hint="--transfer uses it all the same")  # fmt: skip
    found = {_layer(path, t.name): t for t in header.tensors}
    layers = sorted(found)
    if not layers:
        raise FormatError("there is no direction in it", where=path)
    if layers[-1] >= model.n_layers or {t.shape for t in found.values()} != {(model.d_model,)}:
        raise ShapeMismatch(f"vectors {sorted({t.shape for t in found.values()})} up to layer {layers[-1]}, the model has "
                            f"{model.n_layers} layers of width {model.d_model}", where=path)  # fmt: skip
    vectors = np.stack([np.asarray(gguf.dequantize(found[n]), np.float32).reshape(-1) for n in layers])
    norms = np.sqrt((vectors.astype(np.float64) ** 2).sum(1))
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise NonFinite("a vector is zero or not finite", where=path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    meta = DirectionMeta(
        feature=path.stem, feature_digest=sha256, model=model, method=METHOD, site="unknown", point="resid_post",
        layers=layers, prompts_digest=digest_of([]), n={}, ran={"imported": path.name, "sha256": sha256, "hint": hint},
        description="imported control vector: which weights and prompts it was made on is not known; amount 1 over all "
        "its layers is the file as written", versions={"weightsmith": __version__},
    )  # fmt: skip
    nothing = np.zeros_like(vectors)
    return Direction(vectors, (len(layers) * norms).astype(np.float32), nothing, nothing, meta)


def _layer(path: Path, name: str) -> int:
    match = re.fullmatch(r"direction\.(\d{1,5})", name, re.ASCII)
    if match is None:
        raise FormatError(f"the tensor {name!r} is no direction", where=path)
    return int(match[1])


def hints_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What llama.cpp and repeng write as ``model_hint`` for this model."""
    kinds = {str(checkpoint.config.get("model_type")), checkpoint.architecture.family.name, model_hint(checkpoint)}
    return tuple(sorted(kinds | {k.replace("_", "") for k in kinds} | {k.replace("_", "-") for k in kinds}))
