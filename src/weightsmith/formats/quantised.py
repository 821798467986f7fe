"""Quantised Hugging Face checkpoints: what method, a refusal that says so, and the way to a bf16 folder.

A quantised weight is several tensors on disk. The decoder of its method (``quant_floats``, ``quant_packed``,
``quant_compressed``, ``quant_bnb``) names them and decodes blocks of output rows to fp32; here they are rounded to
bf16, to nearest, ties to even, and written under the name and in the shape that the unquantised model has. All other
weights are copied byte for byte. Worker threads decode, this thread hashes and writes in order, and only a few blocks
are in flight, so memory does not grow with the model and the bytes do not depend on the number of threads.

Every tensor must be accounted for: one that belongs to no weight and is no plain float is an error, by name.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..errors import NonFinite, UnsupportedModel, UsageError
from ..storage import disk_errors, refuse_existing, require_space, usable_cores
from . import safetensors
from .quant_bnb import plan_bitsandbytes
from .quant_compressed import plan_compressed
from .quant_floats import plan_fp8, plan_modelopt, plan_mxfp4
from .quant_packed import plan_awq, plan_gptq
from .quant_parts import FP8, Array, Parts, Weight, read_bytes
from .safetensors import TensorSpec

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint

#: version of what the conversion writes; raise it whenever the same input would give other bytes
DEQUANTISATION = 1

SHARD_BYTES = 5_000_000_000
BLOCK = 1 << 16  # elements rounded at a time
COPY = 1 << 22  # bytes copied at a time
SMALL = 100_000_000  # a file beside the weights that is larger than this is no tokenizer

Progress = Callable[[str, int, int], None]
Planner = Callable[[Parts, Mapping[str, Any]], list[Weight]]

#: decoders by ``quant_method``
METHODS: dict[str, Planner] = {
    "compressed-tensors": plan_compressed, "fp8": plan_fp8, "mxfp8": plan_fp8, "fbgemm_fp8": plan_fp8,
    "modelopt": plan_modelopt, "gptq": plan_gptq, "awq": plan_awq, "bitsandbytes": plan_bitsandbytes,
    "mxfp4": plan_mxfp4,
}  # fmt: skip
_KEYS = ("quantization_config", "compression_config")
#: scales of activations and of caches, which no weight needs
_ACTIVATIONS = re.compile(r"(^|[._])((input|output|activation|act)_(scale|scale_ub|zero_point|global_scale)"
                          r"|[qkv]_(scale|zero_point))$")  # fmt: skip
#: leaves that only parts of a quantised weight have
_PARTS = re.compile(r"\.(qweight|qzeros|scales|g_idx|SCB|weight_(format|packed|shape|g_idx|zero_point|global_scale"
                    r"|scale|scale_inv|scale_2))$|\.weight\.(absmax|quant_map|nested_|quant_state)")  # fmt: skip
_COPIED = ("F32", "F16", "BF16", "F64", "I64", "BOOL")
_LEFT_BEHIND = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".onnx", ".py", ".gguf",
                ".safetensors", ".lock")  # fmt: skip
_REWRITTEN = ("config.json", "model.safetensors.index.json", "weightsmith.json", "quantize_config.json",
              "quant_config.json", "hf_quant_config.json")  # fmt: skip
#: families whose quantised linears are Conv1D, stored [in, out] when they are not quantised
_CONV1D = {"gpt2": re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")}


@dataclass(frozen=True, slots=True)
class DequantisedModel:
    """What a conversion wrote: the method, each tensor's digest by name (as ``Checkpoint.tensor_digests`` gives it),
    whether all values are finite (decoded ones always are), and the file names."""

    folder: Path
    method: str
    tensors: Mapping[str, str]
    finite: bool
    files: tuple[str, ...]


# -- what it is --------------------------------------------------------------------------------------------


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The quantisation settings of a config, wherever they stand; empty where there are none."""
    for holder in (config, config.get("text_config"), config.get("llm_config")):
        for key in _KEYS:
            found = holder.get(key) if isinstance(holder, Mapping) else None
            if isinstance(found, Mapping) and found:
                return found
    return {}


def quantisation(config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> str | None:
    """The method by which a checkpoint is quantised, or ``None``: what its config says, else what its names show.

    The name may be one that is not in :data:`METHODS`. Plain 8-bit floats without scales are not quantised: each is
    its own value.
    """
    settings = _settings(config)
    if settings:
        method = settings.get("quant_method")
        if isinstance(method, str) and method:
            return {"compressed_tensors": "compressed-tensors"}.get(method.lower(), method.lower())
        if "config_groups" in settings:
            return "compressed-tensors"
        return "bitsandbytes" if {"load_in_4bit", "load_in_8bit"} & settings.keys() else "unnamed"
    for name, spec in tensors.items():
        if name.endswith(".SCB") or ".quant_state.bitsandbytes__" in name:
            return "bitsandbytes"
        if name.endswith(".weight_packed"):
            return "compressed-tensors"
        if name.endswith("_blocks") and name.removesuffix("_blocks") + "_scales" in tensors:
            return "mxfp4"
        if spec.dtype in FP8 and (name + "_scale_inv" in tensors or name + "_scale" in tensors):
            return "fp8"
        if name.endswith(".qweight"):
            scales = tensors.get(name.removesuffix("qweight") + "scales")
            return "gptq" if scales is None or scales.shape[-1:] == spec.shape[-1:] else "awq"
    return None


def describe(config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> str:
    """The method with what matters of its settings, for people, e.g. ``gptq, 4 bits, groups of 128``."""
    settings = _settings(config)
    words = [quantisation(config, tensors) or "not quantised"]
    if isinstance(settings.get("format"), str) and settings["format"] not in words:
        words.append(settings["format"])
    four, eight = settings.get("load_in_4bit") is True, settings.get("load_in_8bit") is True
    bits = 4 if four else 8 if eight else settings.get("bits")
    words += [f"{bits} bits"] if type(bits) is int else []
    words += [str(settings["bnb_4bit_quant_type"])] if four and "bnb_4bit_quant_type" in settings else []
    group, block = settings.get("group_size"), settings.get("weight_block_size")
    words += [f"groups of {group}"] if type(group) is int and group > 0 else []
    words += [f"blocks of {' × '.join(map(str, block))}"] if isinstance(block, list) else []
    return ", ".join(words)


def refuse_quantised(config: Mapping[str, Any], tensors: Mapping[str, TensorSpec], where: object = None) -> None:
    """Refuse a quantised checkpoint, and say what can be done about it; do nothing for any other.

    Raises:
        UnsupportedModel: naming the method.
    """
    method = quantisation(config, tensors)
    if method is None:
        return
    if method not in METHODS:
        raise _unknown(method, where)
    raise UnsupportedModel(
        f"the weights are quantised ({describe(config, tensors)})", where=where,
        hint="--dequantize converts them to bf16 once, into the cache, and works on that copy",
    )  # fmt: skip


def _unknown(method: str, where: object) -> UnsupportedModel:
    return UnsupportedModel(
        f"the weights are quantised by a method that is not known here ({method})", where=where,
        hint=f"use an unquantised copy of the model; known methods: {', '.join(sorted(METHODS))}",
    )  # fmt: skip


# -- what it becomes ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Target:
    """One tensor to write, as jobs that each give its next bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    jobs: tuple[Callable[[], memoryview], ...]


def dequantised_specs(config: Mapping[str, Any], tensors: Mapping[str, TensorSpec], where: object = None,
                      ) -> dict[str, tuple[str, tuple[int, ...]]]:  # fmt: skip
    """(dtype, shape) of every tensor that :func:`dequantize_folder` will write, in its order; no weight is read.

    Raises:
        UnsupportedModel, FormatError: as :func:`dequantize_folder`.
    """
    return {t.name: (t.dtype, t.shape) for t in _targets(config, tensors, where)}


def _targets(config: Mapping[str, Any], tensors: Mapping[str, TensorSpec], where: object) -> list[_Target]:
    method = quantisation(config, tensors)
    if method is None:
        raise UsageError("the weights are not quantised; nothing to convert", where=where)
    if method not in METHODS:
        raise _unknown(method, where)
    settings = _settings(config)
    if not settings and method in ("gptq", "awq"):
        raise UnsupportedModel(f"{method} weights, and config.json has no quantization_config that describes them",
                               where=where, hint="add what the model's own repository says of them")  # fmt: skip
    parts = Parts(method, tensors, where)
    made: dict[str, Weight] = {}
    for weight in METHODS[method](parts, settings):
        if weight.name in tensors and weight.name not in weight.parts:
            raise parts.bad(weight.name, "is there both quantised and plain")
        made |= dict.fromkeys(weight.parts, _conv1d(config, weight))
    targets: dict[str, _Target] = {}
    for name, spec in tensors.items():
        if name not in made:
            if not _ACTIVATIONS.search(name):
                targets[name] = _copied(parts, spec)
        elif made[name].name not in targets:
            targets[made[name].name] = _decoded(made[name])
    return list(targets.values())


def _conv1d(config: Mapping[str, Any], weight: Weight) -> Weight:
    """Quantisers write Conv1D's weights as ``[out, in]``; the model itself has them the other way round."""
    pattern = _CONV1D.get(str(config.get("model_type")))
    if pattern is None or not pattern.search(weight.name) or len(weight.shape) != 2:
        return weight

    def rows(start: int, stop: int) -> Array:
        return np.concatenate([weight.rows(*r) for r in weight.ranges()]).T[start:stop]

    return replace(weight, shape=weight.shape[::-1], rows=rows, step=weight.shape[1], within=0)


def _decoded(weight: Weight) -> _Target:
    jobs = tuple(partial(_bf16, weight, *r) for r in weight.ranges())
    return _Target(weight.name, "BF16", weight.shape, 2 * math.prod(weight.shape), jobs)


def _copied(parts: Parts, spec: TensorSpec) -> _Target:
    if _PARTS.search(spec.name) or spec.dtype not in _COPIED:
        raise parts.bad(spec.name, f"({spec.dtype}) belongs to no weight that can be decoded")

    def job(start: int) -> memoryview:
        return read_bytes(spec, start, min(COPY, spec.nbytes - start)).data

    jobs = tuple(partial(job, start) for start in range(0, spec.nbytes, COPY))
    return _Target(spec.name, spec.dtype, spec.shape, spec.nbytes, jobs)


def _bf16(weight: Weight, start: int, stop: int) -> memoryview:
    """Rows ``start:stop`` as the bytes of bf16, rounded one cache-sized block at a time.

    Raises:
        NonFinite: a value that is not finite, before or after.
    """
    with np.errstate(all="ignore"):
        values = weight.rows(start, stop)
    out = np.empty(values.shape, np.uint16)
    step = max(1, BLOCK // max(1, values.shape[1]))
    for row in range(0, len(values), step):
        bits = np.ascontiguousarray(values[row : row + step]).view(np.uint32)
        if (bits & np.uint32(0x7FFFFFFF)).max(initial=0) >= 0x7F7F8000:  # from there on bf16 has only infinity
            raise NonFinite(f"the decoded {weight.name!r} holds NaN or infinity, or overflows bf16",
                            hint="the file is damaged, or was broken when it was made: fetch it again")  # fmt: skip
        rounded = bits >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += bits
        out[row : row + step] = rounded.view("<u2")[:, 1::2]
    return out.view(np.uint8).reshape(-1).data


# -- the whole folder --------------------------------------------------------------------------------------


def dequantize_folder(checkpoint: Checkpoint, folder: Path, progress: Progress | None = None) -> DequantisedModel:
    """Write a quantised checkpoint into the existing empty ``folder`` as the bf16 model that it stands for.

    Quantised weights become bf16, rounded to nearest, ties to even; other weights, the tokenizer and other small
    files are copied as they are, but never code or pickles. ``config.json`` loses its quantisation settings and says
    bfloat16. The same files give the same bytes, whatever the number of threads. ``progress`` gets a tensor's name,
    bytes written so far and in total.

    Raises:
        UsageError: the checkpoint is not a quantised folder.
        UnsupportedModel: a method, layout or width that is not known here.
        FormatError: a part of a weight is missing or does not fit, by name.
        NonFinite: a decoded weight holds NaN or infinity.
        OutputExists: ``folder`` is not empty.
        DiskFull: no space for the result.
    """
    folder = Path(folder)
    if checkpoint.kind != "folder":
        raise UsageError("not a Hugging Face folder", where=checkpoint.path)
    if not folder.is_dir():
        raise UsageError("not a folder", where=folder, hint="create it first")
    refuse_existing(folder)
    targets = _targets(checkpoint.config, checkpoint.tensors, checkpoint.path)
    method = str(quantisation(checkpoint.config, checkpoint.tensors))
    require_space(folder, sum(t.nbytes for t in targets) + (16 << 20))
    with disk_errors(folder):
        for path in sorted(checkpoint.path.iterdir()):
            if path.is_file() and path.suffix not in _LEFT_BEHIND and path.name not in _REWRITTEN \
                    and not path.name.startswith(".") and path.stat().st_size <= SMALL:  # fmt: skip
                shutil.copyfile(path, folder / path.name)
        _write_json(folder / "config.json", _plain_config(checkpoint.config))
        digests, finite = _write_weights(targets, folder, progress)
    files = tuple(sorted(p.name for p in folder.iterdir()))
    return DequantisedModel(folder, method, digests, finite, files)


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without quantisation settings, all of its dtypes bfloat16."""

    def plain(value: Mapping[str, Any]) -> dict[str, Any]:
        found = {k: plain(v) if isinstance(v, Mapping) else v for k, v in value.items() if k not in _KEYS}
        return found | {k: "bfloat16" for k in ("dtype", "torch_dtype") if isinstance(found.get(k), str)}

    found = plain(config)
    return found if "torch_dtype" in found else found | {"dtype": "bfloat16"}


class _Writer:
    """Writes shards from one stream of blocks, and takes each tensor's digest on the way."""

    def __init__(self, targets: list[_Target], progress: Progress | None) -> None:
        self.stream = _stream(targets, usable_cores())
        self.progress = progress
        self.done, self.total = 0, sum(t.nbytes for t in targets)
        self.digests: dict[str, str] = {}
        self.finite = True

    def fill(self, target: _Target) -> Callable[[BinaryIO], None]:
        """What writes one tensor: to be called in the order of the stream."""

        def write(file: BinaryIO) -> None:
            digest = safetensors.TensorDigest(target.dtype)
            for _ in target.jobs:
                block = next(self.stream)
                digest.update(block)
                self.done += len(block)
                while block:  # a raw file may take less than it was given
                    block = block[file.write(block) :]
                if self.progress:
                    self.progress(target.name, self.done, self.total)
            self.digests[target.name] = digest.hexdigest()
            self.finite &= digest.finite

        return write


def _stream(targets: list[_Target], workers: int) -> Generator[memoryview, None, None]:
    """The blocks of all targets in order, computed ahead by ``workers`` threads, a few at a time."""
    ahead: deque[Future[memoryview]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for target in targets:
                for job in target.jobs:
                    ahead.append(pool.submit(job))
                    if len(ahead) > workers + 1:
                        yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _write_weights(targets: list[_Target], folder: Path, progress: Progress | None,
                   ) -> tuple[dict[str, str], bool]:  # fmt: skip
    shards: list[list[_Target]] = [[]]
    room = SHARD_BYTES
    for target in targets:
        if shards[-1] and target.nbytes > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(target)
        room -= target.nbytes
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else ["model.safetensors"]
    writer = _Writer(targets, progress)
    try:
        for name, shard in zip(names, shards, strict=True):
            entries = [(t.name, t.dtype, t.shape, writer.fill(t)) for t in shard]
            safetensors.write_file(folder / name, entries, {"format": "pt"})
    except NonFinite as error:
        error.where = error.where or str(folder)
        raise
    finally:
        writer.stream.close()
    if len(shards) > 1:
        weights = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        index = {"metadata": {"total_size": writer.total}, "weight_map": weights}
        _write_json(folder / "model.safetensors.index.json", index)
    return writer.digests, writer.finite


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
