"""A Hugging Face folder as a GGUF file that llama.cpp and Ollama run: the inverse of :mod:`.gguf_convert`.

Llama and Mistral get their queries' and keys' rows interleaved for ggml's rotary embedding, Gemma's norms get the 1
that its code adds, Llama 3's rope scaling becomes a tensor of divisors. A model is written only when everything in its
config can be said in GGUF; what can't is refused, by name.

Which ggml type each tensor gets, for a file type such as ``Q4_K_M``, follows llama.cpp's ``llama-quantize``:

* vectors (norms, biases) are F32, whatever the file type;
* F32, F16, BF16, Q8_0 and Q6_K hold all matrices in that one type;
* otherwise the output matrix, which is the embedding where the two are tied, is Q6_K;
* Q4_K_M and Q5_K_M hold half of ``attn_v`` and ``ffn_down`` as Q6_K: the first and last eighth of the layers, and
  every third between; Q4_K_S holds ``attn_v`` of the first four layers and ``ffn_down`` of the first eighth as Q5_K;
  with 80 layers and grouped queries, an ``attn_v`` of Q4_K becomes Q5_K;
* where rows are no multiple of the type's 256, Q4_K falls back to Q5_0, Q5_K to Q5_1, Q6_K to Q8_0 (and the output
  matrix always to Q8_0); where they are no multiple of 32 either, to F16.

Accepted trade-off: Mistral's sliding window, which GGUF's ``llama`` can't say, shortens the context length to the
window, within which both models are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checkpoint import Checkpoint
from ..errors import FormatError, NonFinite, Truncated, UnsupportedModel, UsageError
from . import gguf_quant, gguf_vocab, safetensors
from .gguf import Array
from .gguf_export_config import Layout, layout_of
from .gguf_write import Piece, TensorEntry, Value, array_entry, write_gguf
from .safetensors import TensorSpec

#: file type -> (its number in ``general.file_type``, the type of most matrices)
FILE_TYPES: Mapping[str, tuple[int, str]] = {
    "F32": (0, "F32"), "F16": (1, "F16"), "BF16": (32, "BF16"), "Q8_0": (7, "Q8_0"), "Q4_0": (2, "Q4_0"),
    "Q4_1": (3, "Q4_1"), "Q5_0": (8, "Q5_0"), "Q5_1": (9, "Q5_1"), "Q4_K_S": (14, "Q4_K"), "Q4_K_M": (15, "Q4_K"),
    "Q5_K_S": (16, "Q5_K"), "Q5_K_M": (17, "Q5_K"), "Q6_K": (18, "Q6_K"),
}  # fmt: skip
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_WHOLE = ("F32", "F16", "BF16")
_FLOATS = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}
CHUNK = 1 << 20  # elements that one task casts

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class ExportedGguf:
    """What was written: the ggml type of each tensor by GGUF name, and the texts at which generation stops."""

    path: Path
    file_type: str
    types: Mapping[str, str]
    stops: tuple[str, ...]


def export_gguf(
    checkpoint: Checkpoint,
    target: Path,
    file_type: str = "Q8_0",
    *,
    metadata: Mapping[str, Value] | None = None,
    progress: Progress | None = None,
) -> ExportedGguf:
    """Write a folder checkpoint as the GGUF file ``target``, whole or not at all.

    The same folder gives the same bytes, whatever the number of threads. Pairs of ``metadata`` (such as those of
    :func:`.gguf_edit.provenance`, or ``general.name``) are added or replace ours.

    Raises:
        UsageError: ``checkpoint`` is no folder, or no such file type.
        UnsupportedModel: an architecture, a feature of it or a tokenizer that GGUF can't say, or a dtype that is not
            a plain float.
        FormatError: tensors that the architecture needs are missing or have another shape.
        MissingExtra: the file type has K quants and xllamacpp is not installed.
        NonFinite: a weight is NaN, infinite, or too large for its type.
        OutputExists, DiskFull: as :func:`.gguf_write.write_gguf`.
    """
    if checkpoint.kind != "folder":
        raise UsageError("a GGUF file already", where=checkpoint.path, hint="export a folder of safetensors")
    if file_type not in FILE_TYPES:
        raise UsageError(f"file type {file_type!r}; known: {', '.join(FILE_TYPES)}", where=target)
    layout = layout_of(checkpoint.config, checkpoint.tensors, checkpoint.path)
    vocabulary = gguf_vocab.vocabulary_metadata(checkpoint.path, layout.vocab, checkpoint.config,
                                                checkpoint.chat_template)  # fmt: skip
    types = tensor_types(layout, file_type)
    for kind in sorted(set(types.values())):
        gguf_quant.require_type(kind, target)
    entries = [_entry(layout, source, checkpoint.tensors[name], types[source])
               for source, (name, _) in layout.tensors.items()]  # fmt: skip
    if layout.rope_divisors is not None:
        entries.insert(0, array_entry("rope_freqs.weight", layout.rope_divisors))
    pairs: dict[str, Value] = {
        "general.architecture": layout.arch, "general.type": "model", "general.name": checkpoint.title,
        **layout.metadata, "general.file_type": FILE_TYPES[file_type][0], **vocabulary.metadata,
    }  # fmt: skip
    if file_type not in _WHOLE:
        pairs["general.quantization_version"] = 2
    write_gguf(Path(target), {**pairs, **(metadata or {})}, entries, progress=progress)
    return ExportedGguf(Path(target), file_type, types, vocabulary.stops)


# -- types -------------------------------------------------------------------------------------------------


def tensor_types(layout: Layout, file_type: str) -> dict[str, str]:
    """The ggml type of every tensor, by GGUF name, as the module's docstring says."""
    base = FILE_TYPES[file_type][1]
    tied = "output.weight" not in layout.tensors
    output = "token_embd.weight" if tied else "output.weight"
    found: dict[str, str] = {}
    for name, (_, shape) in layout.tensors.items():
        if len(shape) < 2:
            found[name] = "F32"
        elif base in _WHOLE:
            found[name] = base
        elif name == output:
            found[name] = _fitting(_output_type(base, shape[-1]), shape[-1])
        else:
            found[name] = _fitting(_mixed(name, file_type, base, layout), shape[-1])
    return found


def _output_type(base: str, columns: int) -> str:
    if base == "Q8_0" or columns % gguf_quant.BLOCKS[base][1]:
        return "Q8_0"
    return "Q6_K"


def _mixed(name: str, file_type: str, base: str, layout: Layout) -> str:
    leaf = name.split(".", 2)[-1]
    if leaf not in ("attn_v.weight", "ffn_down.weight"):
        return base
    layer, layers = int(name.split(".")[1]), layout.layers
    eighth = layers // 8
    if file_type in ("Q4_K_M", "Q5_K_M") and (layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2):
        return "Q6_K"
    if file_type == "Q4_K_S" and layer < (4 if leaf == "attn_v.weight" else eighth):
        return "Q5_K"
    many = layers == 80 and layout.grouped and layout.arch in ("llama", "qwen2")
    return "Q5_K" if many and leaf == "attn_v.weight" and base == "Q4_K" else base


def _fitting(kind: str, columns: int) -> str:
    """``kind``, or what stands in for it where rows are no whole number of its blocks."""
    if columns % gguf_quant.BLOCKS[kind][1]:
        kind = _FALLBACK.get(kind, "F16")
    return kind if columns % gguf_quant.BLOCKS[kind][1] == 0 else "F16"


# -- values ------------------------------------------------------------------------------------------------


def _entry(layout: Layout, source: str, spec: TensorSpec, kind: str) -> TensorEntry:
    if spec.dtype not in _FLOATS:
        raise UnsupportedModel(f"tensor {spec.name!r} is {spec.dtype}; only {', '.join(_FLOATS)} can be exported",
                               where=spec.file)  # fmt: skip
    heads, offset = layout.heads_of(source), np.float32(layout.offset_of(source))
    vector = len(spec.shape) == 1
    rows, columns = spec.shape[0], 1 if vector else spec.shape[1]
    step = rows if vector else max(1, CHUNK // columns)
    if heads and not vector:  # whole heads only
        step = max(1, step // layout.head_dim) * layout.head_dim

    def cast(start: int, stop: int) -> Array:
        values = read_rows(spec, start, stop)
        if heads:
            values = values.reshape(-1, 2, layout.head_dim // 2, columns).swapaxes(1, 2).reshape(values.shape)
        if offset:
            values = values + offset
        try:
            return gguf_quant.quantize_rows(values.reshape(1, -1) if vector else values, kind)
        except NonFinite as error:
            raise NonFinite(f"tensor {spec.name!r}: {error.message}", where=spec.file) from error

    def pieces() -> Iterator[Piece]:
        for start in range(0, rows, step):
            yield lambda start=start: cast(start, min(rows, start + step))  # type: ignore[misc]

    return TensorEntry(source, kind, spec.shape, pieces)


def read_rows(spec: TensorSpec, start: int, stop: int) -> Array:
    """Rows ``start:stop`` of a float tensor as fp32 ``[stop - start, in]``; a vector is rows of one element.

    Raises:
        Truncated: the file got shorter since its header was read.
    """
    columns = int(np.prod(spec.shape[1:], dtype=np.int64))
    width = columns * _FLOATS[spec.dtype]
    raw = np.fromfile(spec.file, np.uint8, (stop - start) * width, offset=spec.start + start * width)
    if raw.size != (stop - start) * width:
        raise Truncated(f"tensor {spec.name!r} ends early", where=spec.file)
    if spec.dtype == "BF16":
        values = safetensors.bf16_to_f32(raw.view("<u2"))
    else:
        with np.errstate(over="ignore"):
            values = raw.view({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[spec.dtype]).astype(np.float32, copy=False)
    return np.asarray(values).reshape(stop - start, columns)


# -- Ollama ------------------------------------------------------------------------------------------------


def modelfile(
    gguf: str | Path,
    stops: Sequence[str] = (),
    *,
    system: str | None = None,
    template: str | None = None,
    adapters: Sequence[str | Path] = (),
    parameters: Mapping[str, float | int | str] | None = None,
) -> str:
    """The text of an Ollama ``Modelfile`` that runs a GGUF file.

    ``gguf`` and ``adapters`` are paths as the file shall name them (relative ones are relative to it). The chat
    template is the one inside the GGUF unless ``template``, in Ollama's own template language, is given.

    Raises:
        FormatError: a text whose double quotes the format can't say.
    """
    lines = [f"FROM {_relative(gguf)}"]
    lines += [f"ADAPTER {_relative(adapter)}" for adapter in adapters]
    if template is not None:
        lines.append(f"TEMPLATE {_quoted(template)}")
    if system is not None:
        lines.append(f"SYSTEM {_quoted(system)}")
    lines += [f"PARAMETER {name} {value}" for name, value in (parameters or {}).items()]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    return "\n".join(lines) + "\n"


def _relative(path: str | Path) -> str:
    text = Path(path).as_posix()
    return text if text.startswith(("/", "./", "../", "~")) or ":" in text else f"./{text}"


def _quoted(text: str) -> str:
    long = "\n" in text or '"' in text
    if '"""' in text or (long and text.endswith('"')):
        raise FormatError("a Modelfile can't hold three double quotes in a row, nor one at the end of such a text",
                          hint="write that text otherwise in the model's settings or template")  # fmt: skip
    return f'"""{text}"""' if long else f'"{text}"'
