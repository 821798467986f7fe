"""A GGUF file as a folder that transformers can run: config, tokenizer, and weights as bf16 safetensors.

Weights stream: worker threads read and dequantise blocks of rows that fit the cache, this thread hashes and
writes them in order, and at most a few blocks are in flight, so memory does not grow with the model and the
bytes do not depend on the number of threads. Whatever llama.cpp's converter did to a tensor is undone: the
rotary permutation of Llama's queries and keys, and the 1 that it adds to Gemma's norms.

Each tensor that the architecture needs must be there in the right shape, and no other may be there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import FormatError, UnsupportedModel, UsageError
from ..storage import disk_errors, refuse_existing, require_space, sha256_range, usable_cores
from . import gguf, gguf_tokenizer, safetensors
from .gguf import GgufHeader, GgufTensor
from .gguf_config import ROPE_TENSORS, Model, config_from_gguf

#: version of what the conversion writes; raise it whenever the same input would give other bytes
CONVERSION = 1

__all__ = ["CONVERSION", "ConvertedModel", "config_from_gguf", "convert_gguf", "hf_tensor_names"]

SHARD_BYTES = 5_000_000_000
CHUNK = 1 << 20  # elements that one task hands over: 2 MB of bf16
BLOCK = 1 << 16  # elements dequantised at a time, so that the fp32 intermediate stays in the cache

Progress = Callable[[str, int, int], None]
_Fill = Callable[[BinaryIO], None]


@dataclass(frozen=True, slots=True)
class ConvertedModel:
    """What a conversion wrote: SHA-256 of the GGUF file and of each tensor's bytes by name, and the file names."""

    folder: Path
    source_sha256: str
    tensors: Mapping[str, str]
    files: tuple[str, ...]


# -- tensors -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor to write, and how to undo what the GGUF converter did to it.

    ``heads`` of 0 means that rows stay in place; ``chunks`` are ranges of rows, in order.
    """

    source: GgufTensor
    name: str
    heads: int
    offset: float
    chunks: tuple[tuple[int, int], ...]


def hf_tensor_names(header: GgufHeader) -> dict[str, str]:
    """The transformers name of every weight by its GGUF name, in the order of the converted file.

    Rope factors are tensors in a GGUF but belong to the config, so they are not among them.

    Raises:
        UnsupportedModel: an architecture that is not known here, or a tensor that it does not have.
        FormatError: a tensor is missing or has another shape than the metadata says.
    """
    return {t.source.name: t.name for t in targets_of(header)}


def targets_of(header: GgufHeader) -> list[Target]:
    """Every weight to write, in the order of the converted file; errors as :func:`hf_tensor_names`."""
    model = Model(header)
    leaves = {**model.family.leaves}
    for group in model.family.optional.values():
        leaves |= group if model.present(group) else {}
    vocab = model.tensor("token_embd.weight").rows
    plan: list[tuple[str, str, tuple[int, ...]]] = [
        ("token_embd.weight", "model.embed_tokens.weight", (vocab, model.hidden))
    ]
    for layer in range(model.layers):
        for leaf, (name, word) in leaves.items():
            plan.append((f"blk.{layer}.{leaf}", f"model.layers.{layer}.{name}", model.shape(word)))
    plan.append(("output_norm.weight", "model.norm.weight", (model.hidden,)))
    if "output.weight" in model.tensors:
        plan.append(("output.weight", "lm_head.weight", (vocab, model.hidden)))
    unknown = set(model.tensors).difference((source for source, _, _ in plan), ROPE_TENSORS)
    if unknown:
        raise UnsupportedModel(f"{model.arch} with tensor {min(unknown)!r}", where=model.path)
    return [_target(model, source, name, shape) for source, name, shape in plan]


def _target(model: Model, source: str, name: str, shape: tuple[int, ...]) -> Target:
    tensor = model.tensor(source)
    if tensor.shape != shape:
        raise FormatError(f"tensor {source!r} is {list(tensor.shape)}, not {list(shape)}", where=model.path)
    gguf.refuse_type(tensor.type, model.path)
    heads = 0
    if model.family.permuted and ".attn_q." in source:
        heads = model.heads
    elif model.family.permuted and ".attn_k." in source:
        heads = model.kv_heads
    rows, step = (shape[0], shape[0]) if len(shape) == 1 else (shape[0], max(1, CHUNK // shape[1]))
    if heads:  # whole heads only
        if model.head_dim % 2:
            raise FormatError(f"rotary heads of odd size {model.head_dim}", where=model.path)
        step = max(1, step // model.head_dim) * model.head_dim
    chunks = tuple((start, min(rows, start + step)) for start in range(0, rows, step))
    return Target(tensor, name, heads, model.family.norm_offset if "norm.weight" in source else 0.0, chunks)


def _bf16(target: Target, start: int, stop: int) -> memoryview:
    """Rows ``start:stop`` as the bytes of bf16, dequantised one cache-sized block at a time."""
    tensor = target.source
    vector = len(tensor.shape) == 1
    raw = gguf.read_rows(tensor, 0, 1) if vector else gguf.read_rows(tensor, start, stop)
    if target.heads:  # ggml pairs neighbours, transformers pairs halves of a head
        per_head = (tensor.shape[0] // target.heads) // 2
        rows = raw.reshape(stop - start, -1)
        raw = rows.reshape(-1, per_head, 2, rows.shape[1]).swapaxes(1, 2).reshape(raw.shape)
    columns = tensor.shape[-1]
    out = np.empty((len(raw), columns), np.uint16)
    step = max(1, BLOCK // columns)
    with np.errstate(all="ignore"):
        for row in range(0, len(raw), step):
            values = gguf.decode_rows(tensor.type, raw[row : row + step])
            if target.offset:
                values = values - np.float32(target.offset)
            _round(values, out[row : row + step])
    return out.view(np.uint8).reshape(-1).data


def _round(values: gguf.Array, out: gguf.Array) -> None:
    """fp32 to the bits of bf16, to nearest, ties to even; fast where all is finite, careful where not."""
    if not math.isfinite(float(values.sum())):
        out[...] = safetensors.f32_to_bf16(values)
        return
    bits = values.view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    out[...] = rounded.view("<u2")[:, 1::2]


def _stream(targets: list[Target], workers: int) -> Generator[memoryview, None, None]:
    """The chunks of all targets in order, computed ahead by ``workers`` threads, a few at a time."""
    jobs = ((target, start, stop) for target in targets for start, stop in target.chunks)
    ahead: deque[Future[memoryview]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for job in jobs:
                ahead.append(pool.submit(_bf16, *job))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


class _Writer:
    """Writes shards from one stream of chunks, and takes each tensor's digest on the way."""

    def __init__(self, targets: list[Target], progress: Progress | None) -> None:
        self.stream = _stream(targets, usable_cores())
        self.progress = progress
        self.done, self.total = 0, sum(2 * t.source.numel for t in targets)
        self.digests: dict[str, str] = {}

    def fill(self, target: Target) -> _Fill:
        """What writes one tensor: to be called in the order of the stream."""

        def write(file: BinaryIO) -> None:
            digest = hashlib.sha256()
            for _ in target.chunks:
                block = next(self.stream)
                digest.update(block)
                self.done += len(block)
                while block:  # a raw file may take less than it was given
                    block = block[file.write(block) :]
                if self.progress:
                    self.progress(target.name, self.done, self.total)
            self.digests[target.name] = digest.hexdigest()

        return write


# -- the whole folder --------------------------------------------------------------------------------------


def convert_gguf(path: Path, folder: Path, progress: Progress | None = None) -> ConvertedModel:
    """Write the model of the GGUF file ``path`` into the existing empty ``folder``, as transformers loads it.

    Weights become bf16 (norms and biases too), rounded to nearest, ties to even. The same file gives the same
    bytes, whatever the number of threads. ``progress`` gets a tensor's name, bytes written so far and in total.

    Raises:
        UnsupportedModel: an architecture, feature, quantisation or tokenizer that is not known here.
        FormatError: the file is damaged or contradicts itself.
        OutputExists: ``folder`` is not empty.
        DiskFull: no space for the result.
    """
    path, folder = Path(path), Path(folder)
    if not folder.is_dir():
        raise UsageError("not a folder", where=folder, hint="create it first")
    refuse_existing(folder)
    header = gguf.read_header(path)
    targets, config = targets_of(header), config_from_gguf(header)
    require_space(folder, sum(2 * t.source.numel for t in targets) + path.stat().st_size // 8)
    with disk_errors(folder), ThreadPoolExecutor(1) as hashing:
        source = hashing.submit(sha256_range, path)
        tokenizer = gguf_tokenizer.build_tokenizer(header)
        _write_json(folder / "tokenizer.json", tokenizer.tokenizer, indent=None)
        _write_json(folder / "tokenizer_config.json", tokenizer.config)
        _write_json(folder / "config.json", config)
        _write_json(folder / "generation_config.json", _generation(config, tokenizer.stop_ids))
        digests = _write_weights(targets, folder, progress)
        files = tuple(sorted(p.name for p in folder.iterdir()))
        return ConvertedModel(folder, source.result(), digests, files)


def _generation(config: Mapping[str, Any], stops: tuple[int, ...]) -> dict[str, Any]:
    found = {"_from_model_config": False, "bos_token_id": config["bos_token_id"], "eos_token_id": list(stops) or None,
             "pad_token_id": config["pad_token_id"]}  # fmt: skip
    return {key: value for key, value in found.items() if value is not None}


def _write_weights(targets: list[Target], folder: Path, progress: Progress | None) -> dict[str, str]:
    shards: list[list[Target]] = [[]]
    room = SHARD_BYTES
    for target in targets:
        size = 2 * target.source.numel
        if shards[-1] and size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(target)
        room -= size
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else ["model.safetensors"]
    writer = _Writer(targets, progress)
    try:
        for name, shard in zip(names, shards, strict=True):
            entries = [(t.name, "BF16", t.source.shape, writer.fill(t)) for t in shard]
            safetensors.write_file(folder / name, entries, {"format": "pt"})
    finally:
        writer.stream.close()
    if len(shards) > 1:
        weights = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        index = {"metadata": {"total_size": writer.total}, "weight_map": weights}
        _write_json(folder / "model.safetensors.index.json", index)
    return writer.digests


def _write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False, separators=None if indent else (",", ":"))
    path.write_text(text + "\n", encoding="utf-8")
