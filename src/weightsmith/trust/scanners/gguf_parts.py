"""Tensors of a GGUF file against its architecture: what llama.cpp asks for, and the shapes that the metadata gives them.

A family's table is short on purpose: it names what every file of the family has, never what some of them leave out
(biases, factors of long positions, a head that is tied to the embeddings). Families that are not in it are compared
with themselves only: a layer without a matrix that nearly all others have. Files that are no whole model (adapters,
projectors, vocabularies, one part of several) and such that lack the numbers which a reader needs are passed over.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...formats.gguf import GgufTensor
from ...found import Finding
from .header_rules import PART_MISSING, PART_SHAPE

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Parts:
    """What each block of a family has: norms (or other tensors by name), a gate in its MLP, and what stands outside of blocks.

    ``wide`` is how many widths of the MLP its first matrix holds; ``standard`` is false where attention has another form,
    and then ``block`` names its tensors as well.
    """

    block: tuple[str, ...] = ("attn_norm", "ffn_norm")
    gate: bool = True
    top: tuple[str, ...] = ("output_norm",)
    wide: int = 1
    standard: bool = True


_LLAMA = _Parts()
_PLAIN = _Parts(gate=False)
_GATHERED = ("attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm")
_AROUND = ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
_FAMILIES: Mapping[str, _Parts] = {
    **dict.fromkeys(("llama", "qwen2", "qwen2moe", "gemma", "internlm2", "baichuan", "xverse", "minicpm", "exaone", "granite",
                     "smollm3", "orion"), _LLAMA),
    "qwen3": _Parts(_GATHERED), "qwen3moe": _Parts(_GATHERED), "gemma2": _Parts(_AROUND),
    "gemma3": _Parts((*_AROUND, "attn_q_norm", "attn_k_norm")),
    "olmo": _Parts((), top=()), "olmo2": _Parts(("post_attention_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm")),
    "command-r": _Parts(("attn_norm",)), "stablelm": _Parts(("attn_norm",)),
    "phi2": _Parts(("attn_norm",), gate=False), "phi3": _Parts(gate=False, wide=2), "falcon": _Parts(("attn_norm",), gate=False),
    "gptneox": _PLAIN, "mpt": _PLAIN, "starcoder2": _PLAIN,
    "bloom": _Parts(gate=False, top=("output_norm", "token_embd_norm")),
    "gpt2": _Parts(gate=False, top=("output_norm", "position_embd")),
    "starcoder": _Parts(gate=False, top=("output_norm", "position_embd")),
    "deepseek2": _Parts(("attn_norm", "ffn_norm", "attn_kv_a_mqa", "attn_kv_a_norm", "attn_output"), standard=False),
    "mamba": _Parts(("attn_norm", "ssm_in", "ssm_conv1d", "ssm_x", "ssm_dt", "ssm_a", "ssm_d", "ssm_out"), standard=False),
}  # fmt: skip
_BLOCK = re.compile(r"blk\.(\d{1,6})\.(.+)")
_MATRICES = frozenset({"attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_up", "ffn_down", "ffn_gate"})
#: layers of different kinds in turn, or layers that take keys and values of others
_MIXED = re.compile(r"ssm_|shortconv|time_mix|attn_kv_|per_layer|cross_attn|nextn")
_FEWEST = 4  # layers that can be compared with one another
_SAID = 8


def findings(tensors: Iterable[GgufTensor], data: Mapping[str, Any], file: str) -> Iterator[Finding]:
    """Findings about all tensors of one model, whose metadata is ``data``."""
    shapes = {t.name.removesuffix(".weight"): t.shape for t in tensors}
    arch = data.get("general.architecture")
    if data.get("general.type", "model") != "model" or not isinstance(arch, str) or not shapes:
        return
    sizes = {key: data.get(f"{arch}.{key}") for key in ("embedding_length", "block_count", "attention.head_count")}
    if any(value is None for value in sizes.values()) and not (arch == "mamba" and sizes["embedding_length"]):
        return  # no reader takes it for a model
    count, more = sizes["block_count"], data.get(f"{arch}.nextn_predict_layers", 0)
    if type(count) is not int or not 0 < count <= len(shapes):
        return  # said by what compares the number of layers
    count -= more if type(more) is int else 0  # layers that only speed generation up; some files leave them out
    blocks: dict[int, dict[str, Shape]] = defaultdict(dict)
    for name, shape in shapes.items():
        if (match := _BLOCK.fullmatch(name)) and int(match[1]) < count:
            blocks[int(match[1])][match[2]] = shape
    parts = _FAMILIES.get(arch)
    if parts is None:
        yield from _unlike(blocks, data, file)
        return
    missing = [top for top in ("token_embd", *parts.top) if top not in shapes]
    missing += [f"blk.{n}.{part}" for n in sorted(blocks) for part in _missing(blocks[n], parts)]
    if missing:
        yield _found(missing, file)
    wrong = [said for name, shape, wanted in _shapes(shapes, blocks, parts, _Sizes(data, arch)) if shape != wanted
             for said in [f"{name} has {list(shape)}, and should have {list(wanted)}"]]  # fmt: skip
    if wrong:
        yield PART_SHAPE.found(f"{len(wrong)} tensors, e.g. {wrong[0]}", file=file, place=f"tensor {wrong[0].split()[0]!r}",
                               evidence="; ".join(wrong[:_SAID]))  # fmt: skip


def _found(missing: list[str], file: str) -> Finding:
    return PART_MISSING.found(f"{len(missing)} are missing, e.g. {missing[0]}", file=file, place=f"tensor {missing[0]!r}",
                              evidence=", ".join(missing[:_SAID]))  # fmt: skip


def _missing(block: Mapping[str, Shape], parts: _Parts) -> Iterator[str]:
    """Names that one block should have."""
    yield from (name for name in parts.block if name not in block)
    if parts.standard:
        attention = ("attn_output",) if "attn_qkv" in block else ("attn_q", "attn_k", "attn_v", "attn_output")
        yield from (name for name in attention if name not in block)
    elif "attn_kv_a_mqa" in parts.block:
        yield from () if "attn_q" in block else (name for name in ("attn_q_a", "attn_q_b") if name not in block)
        yield from () if "attn_kv_b" in block else (name for name in ("attn_k_b", "attn_v_b") if name not in block)
    else:
        return  # no MLP
    if "ffn_gate_inp" not in block:
        yield from (name for name in ("ffn_up", "ffn_down", *(("ffn_gate",) * parts.gate)) if name not in block)
    elif "ffn_down.0" not in block:  # experts one by one, as old files have them
        up = "ffn_gate_up_exps" in block or "ffn_up_exps" in block
        yield from (name for name, there in (("ffn_up_exps", up), ("ffn_down_exps", "ffn_down_exps" in block)) if not there)


class _Sizes:
    """Numbers of a model's metadata; ``None`` for one that is not there, or is something else than a number."""

    def __init__(self, data: Mapping[str, Any], arch: str) -> None:
        self.data, self.arch = data, arch

    def get(self, key: str, block: int | None = None) -> int | None:
        """A number, or the one of a block where each has its own."""
        value = self.data.get(f"{self.arch}.{key}")
        if isinstance(value, list):
            value = value[block] if block is not None and block < len(value) else None
        return value if type(value) is int and value > 0 else None


def _shapes(
    shapes: Mapping[str, Shape], blocks: Mapping[int, Mapping[str, Shape]], parts: _Parts, sizes: _Sizes
) -> Iterator[tuple[str, Shape, Shape]]:
    """``(name, shape, the shape it should have)`` of the tensors whose shape the metadata gives."""
    width = sizes.get("embedding_length")
    if width is None:
        return
    rows = shapes["token_embd"][0] if len(shapes.get("token_embd", ())) == 2 else None
    for name in ("token_embd", "output"):
        if name in shapes and rows is not None:
            yield name, shapes[name], (rows, width)
    for name in ("output_norm", "token_embd_norm"):
        if name in shapes:
            yield name, shapes[name], (width,)
    for number, block in sorted(blocks.items()):
        wanted = _of_block(sizes, number, width, parts)
        yield from ((f"blk.{number}.{name}", block[name], shape) for name, shape in wanted.items() if name in block)


def _of_block(sizes: _Sizes, number: int, width: int, parts: _Parts) -> dict[str, Shape]:
    """Shapes that the tensors of one block should have."""
    found: dict[str, Shape] = dict.fromkeys(("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"), (width,))
    heads, middle = sizes.get("attention.head_count", number), sizes.get("feed_forward_length", number)
    if parts.standard and heads is not None:
        others = sizes.get("attention.head_count_kv", number) or heads
        head = sizes.get("attention.key_length") or width // heads
        value = sizes.get("attention.value_length") or width // heads
        q, k, v = heads * head, others * head, others * value
        found |= {"attn_q": (q, width), "attn_k": (k, width), "attn_v": (v, width), "attn_qkv": (q + k + v, width),
                  "attn_output": (width, heads * value)}  # fmt: skip
    if middle is not None:
        found |= {"ffn_up": (middle * parts.wide, width), "ffn_gate": (middle, width), "ffn_down": (width, middle)}
    return found


def _unlike(blocks: Mapping[int, Mapping[str, Shape]], data: Mapping[str, Any], file: str) -> Iterator[Finding]:
    """Layers without a matrix that nearly all others have, where every layer is of one kind."""
    each = [name for block in blocks.values() for name in block]
    per_layer = any(isinstance(value, list) and key.endswith(("head_count", "head_count_kv", "feed_forward_length"))
                    for key, value in data.items())  # fmt: skip
    if len(blocks) < _FEWEST or per_layer or any("shared_kv" in key for key in data) or any(map(_MIXED.search, each)):
        return
    counts = Counter(name for name in each if name in _MATRICES)
    usual = {name for name, count in counts.items() if count * 4 > len(blocks) * 3}
    # a layer whose other tensors stand for the missing ones (experts, all in one) is of another kind
    common = {name for name, count in Counter(each).items() if count * 2 > len(blocks)}
    missing = [f"blk.{n}.{name}" for n, block in sorted(blocks.items()) if block.keys() <= common
               for name in sorted(usual - block.keys())]  # fmt: skip
    if missing:
        yield _found(missing, file)
