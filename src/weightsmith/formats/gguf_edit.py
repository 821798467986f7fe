"""A GGUF file edited in its own form: what is touched is dequantised, edited and quantised to its own type again; every
other tensor, and the metadata, is copied byte for byte.

An edit sees what transformers would: names such as ``model.layers.3.mlp.down_proj.weight``, fp32 matrices
``[out, in]``, Llama's queries and keys in transformers' order, Gemma's norms without the 1 that the converter added.

Quantising is not free, so blocks (32 or 256 neighbours of a row) whose values the edit left as they were keep their
stored bytes. An edit that changes nothing therefore gives the same tensors, for every type, also for those whose
decoded values would not quantise to the same bytes (see :mod:`.gguf_quant`).

Nor is it neutral: rounding to 4 bits takes back half of a removed direction, unless the caller names what to hold (see
:mod:`.gguf_hold`).

Tensors may be added. What llama.cpp does with a bias in ``blk.N`` that the source has not (every cell was run with
xllamacpp, and the honoured ones compared with transformers' logits; ``tests/test_gguf_llama.py`` runs them again):

===========================  ====================  ==============  =====================================
architecture                 ``attn_output.bias``  ``ffn_*.bias``  ``attn_q.bias``, ``_k.``, ``_v.``
===========================  ====================  ==============  =====================================
llama (and so Mistral)       honoured              honoured        honoured
qwen2                        refused               refused         honoured (the model has them anyway)
qwen3, gemma2, gemma3        refused               refused         honoured
===========================  ====================  ==============  =====================================

"Refused" means that llama.cpp does not load the file ("wrong number of tensors"); none is silently dropped. Biases of
norms are refused everywhere, ``output.bias`` everywhere but in qwen2. So biases can be added here to Llama only; to any
architecture with a tied output, ``lm_head.weight`` can be.

transformers has Llama's biases all or none (``attention_bias``, ``mlp_bias``), so the others of the group are added as
zeros: the edited file can still be converted to a folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NonFinite, ShapeMismatch, UnsupportedModel, UsageError
from . import gguf, gguf_quant
from .gguf import Array, GgufHeader, GgufTensor
from .gguf_config import Model
from .gguf_convert import Target, targets_of
from .gguf_hold import Hold, held, lost
from .gguf_write import Landed, Piece, RawPair, TensorEntry, Value, array_entry, file_entry, write_gguf

CHUNK = 1 << 20  # elements that one task quantises

#: rows ``start:stop`` of a tensor as fp32 ``[stop - start, in]``; a vector is one row
Reader = Callable[[int, int], Array]
#: the edited rows of the named tensor, all of them in order, in blocks of any number of rows
EditRows = Callable[[str, Reader], Iterable[Array]]
#: gets a tensor's name, the first row, and these rows before the edit and as the written file decodes them
MeasuredRows = Callable[[str, int, Array, Array], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Added:
    """A tensor that the source lacks: fp32 values in transformers' order and shape, and the ggml type to write."""

    values: Array
    type: str = "F32"


@dataclass(slots=True)
class Touched:
    """What became of one edited tensor.

    ``blocks`` of its ggml type, how many of them were ``kept`` as they were, and Frobenius norms of what the edit
    asked for (``asked``: wanted minus before) and of what quantising put on top (``rounding``: written minus wanted).
    ``lost`` is the share of the edit along held vectors that quantising took back, where there are such.
    """

    name: str
    type: str
    blocks: int = 0
    kept: int = 0
    asked: float = 0.0
    rounding: float = 0.0
    lost: float | None = None


@dataclass(frozen=True, slots=True)
class EditedGguf:
    """What :func:`edit_gguf_rows` wrote: touched tensors by transformers name, added ones, number of copied ones."""

    path: Path
    touched: Mapping[str, Touched]
    added: tuple[str, ...]
    copied: int


def provenance(
    *,
    name: str | None = None,
    organization: str | None = None,
    repo_url: str | None = None,
    version: str | None = None,
    derivation: Any = None,
) -> dict[str, Value]:
    """Metadata that says where an edited model comes from: the base model in GGUF's own keys, and ``derivation``
    (any JSON value) as text under ``weightsmith.derivation``."""
    base = {"name": name, "organization": organization, "repo_url": repo_url, "version": version}
    found: dict[str, Value] = {f"general.base_model.0.{k}": v for k, v in base.items() if v is not None}
    if found:
        found = {"general.base_model.count": 1, **found}
    if derivation is not None:
        found["weightsmith.derivation"] = json.dumps(derivation, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return found


def hf_names(source: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes ``[out, in]``, as transformers has them, of all tensors that can be edited; in file order.

    Raises:
        UnsupportedModel, FormatError: as :func:`.gguf_convert.hf_tensor_names`.
    """
    return {t.name: t.source.shape for t in targets_of(gguf.read_header(Path(source), arrays=False))}


# -- the edit ----------------------------------------------------------------------------------------------


def edit_gguf(
    source: Path,
    target: Path,
    edits: Mapping[str, Callable[[Array], Array]],
    *,
    holds: Mapping[str, Hold] | None = None,
    added: Mapping[str, Added] | None = None,
    metadata: Mapping[str, Value] | None = None,
    measured: Callable[[str, Array, Array], None] | None = None,
    progress: Progress | None = None,
) -> EditedGguf:
    """:func:`edit_gguf_rows` for edits that want a whole tensor: transformers name -> function on the fp32 tensor in
    its own shape, which must not change it in place.

    ``holds`` say which products of an edited matrix must survive quantising. ``measured`` gets a name, the tensor
    before, and as the written file decodes it. About four fp32 copies of the largest edited tensor are in memory.
    """
    shapes = hf_names(source)
    edited = {name: _Whole(edits[name], shapes[name], (holds or {}).get(name)) for name in edits if name in shapes}
    if unknown := sorted((holds or {}).keys() - edits.keys()):
        raise UsageError(f"{unknown[0]!r} is to be held and not edited", where=source)
    kinds = {t.name: t.source.type for t in targets_of(gguf.read_header(Path(source), arrays=False))}

    def rows(name: str, read: Reader) -> Iterator[Array]:
        yield edited[name].compute(name, kinds[name], read)

    def collect(name: str, start: int, _: Array, after: Array) -> None:
        whole = edited[name]
        if whole.land(start, after) and measured:
            measured(name, whole.before.reshape(whole.shape), whole.after.reshape(whole.shape))
        if not whole.left:
            whole.before = whole.after = np.empty(0)

    done = edit_gguf_rows(source, target, edits.keys(), rows, added=added, metadata=metadata, measured=collect,
                          progress=progress)  # fmt: skip
    for name, whole in edited.items():
        whole.settle(done.touched[name])
    return done


@dataclass(slots=True)
class _Whole:
    """One tensor that is edited in one piece, from the moment it is read until all of it is written."""

    edit: Callable[[Array], Array]
    shape: tuple[int, ...]
    hold: Hold | None
    before: Array = field(default_factory=lambda: np.empty(0))
    after: Array = field(default_factory=lambda: np.empty(0))
    wanted: Array = field(default_factory=lambda: np.empty(0))
    left: int = 0
    figures: tuple[float, float, float] | None = None

    def compute(self, name: str, kind: str, read: Reader) -> Array:
        """What to quantise, as rows."""
        self.before = read(0, self.shape[0] if len(self.shape) > 1 else 1)
        wanted = np.asarray(self.edit(self.before.reshape(self.shape)), np.float32)
        if wanted.shape != self.shape:
            raise ShapeMismatch(f"the edit of {name!r} gave {list(wanted.shape)}, not {list(self.shape)}")
        if not np.isfinite(wanted).all():
            raise NonFinite(f"the edit of {name!r} gave NaN or infinity")
        self.wanted, self.left = wanted.reshape(self.before.shape), len(self.before)
        self.after = np.empty_like(self.before)
        return self.wanted if self.hold is None else held(self.wanted, self.before, kind, self.hold)

    def land(self, start: int, after: Array) -> bool:
        """Take rows that were written; true when they were the last."""
        self.after[start : start + len(after)] = after
        self.left -= len(after)
        if not self.left and self.hold is not None:
            self.figures = (math.sqrt(_square(self.wanted, self.before)), math.sqrt(_square(self.after, self.wanted)),
                            lost(self.wanted, self.before, self.after, self.hold))  # fmt: skip
        if not self.left:
            self.wanted = np.empty(0)
        return not self.left

    def settle(self, record: Touched) -> None:
        """Where something was held, the figures are about what was wanted, not about what was quantised for it."""
        if self.figures is not None:
            record.asked, record.rounding, record.lost = self.figures


def edit_gguf_rows(
    source: Path,
    target: Path,
    names: Collection[str],
    edit_rows: EditRows,
    *,
    added: Mapping[str, Added] | None = None,
    metadata: Mapping[str, Value] | None = None,
    measured: MeasuredRows | None = None,
    progress: Progress | None = None,
) -> EditedGguf:
    """Write ``target``, the GGUF file ``source`` with the tensors ``names`` edited, whole or not at all.

    ``edit_rows`` is called once for each of them, in file order, and its blocks are quantised on worker threads while
    it computes the next. ``added`` are tensors by transformers name. Pairs of ``metadata`` (see :func:`provenance`)
    replace the source's; a new ``general.base_model`` replaces all that the source says of its own.

    Raises:
        UsageError: a name that the model has not, or an added one that it has.
        UnsupportedModel: an architecture or a ggml type that can't be edited here.
        MissingExtra: a touched tensor is a K or I quant and xllamacpp is not installed.
        ShapeMismatch: edited rows of another shape.
        NonFinite: NaN or infinity, in the tensor, in the edit's result or in what the type makes of it.
        OutputExists, DiskFull: as :func:`.gguf_write.write_gguf`.
    """
    header = gguf.read_header(Path(source))
    targets = {t.source.name: t for t in targets_of(header)}
    known = {t.name: t for t in targets.values()}
    if unknown := sorted(set(names) - known.keys()):
        raise UsageError(f"the model has no tensor {unknown[0]!r}", where=source)
    touched = {n: Touched(n, known[n].source.type) for n in known if n in set(names)}
    for name in touched:
        gguf_quant.require_type(known[name].source.type, source)
    entries: list[TensorEntry] = []
    for tensor in header.tensors:
        hit = targets.get(tensor.name)
        if hit is not None and hit.name in touched:
            entries.append(_edited(hit, edit_rows, touched[hit.name], measured))
        else:
            entries.append(file_entry(tensor.name, tensor.type, tensor.shape, tensor.file, tensor.start, tensor.nbytes))
    new = _added_entries(header, known, added or {})
    write_gguf(Path(target), _metadata(header, metadata or {}), [*entries, *new], alignment=max(8, header.alignment),
               progress=progress)  # fmt: skip
    return EditedGguf(Path(target), touched, tuple(e.name for e in new), len(entries) - len(touched))


def _metadata(header: GgufHeader, changes: Mapping[str, Value]) -> dict[str, Value]:
    with header.path.open("rb") as file:
        pairs: dict[str, Value] = {}
        for key, (begin, end) in header.spans.items():
            file.seek(begin)
            pairs[key] = RawPair(file.read(end - begin))
    if any(key.startswith("general.base_model.") for key in changes):
        pairs = {k: v for k, v in pairs.items() if not k.startswith("general.base_model.")}
    pairs.pop("general.alignment", None)  # written anew where it is not the usual one
    return {**pairs, **changes}


# -- one tensor --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Stored:
    """A tensor as rows in transformers' order: ``order[i]`` is the file's row of row ``i`` (``None``: as they are)."""

    target: Target
    tensor: GgufTensor
    rows: int
    columns: int
    order: Array | None = field(default=None)

    @classmethod
    def of(cls, target: Target) -> _Stored:
        tensor = target.source
        if not target.heads:
            return cls(target, tensor, tensor.rows, tensor.shape[-1])
        rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])  # a permuted vector is rows of one element
        gguf_quant.row_bytes(tensor.type, columns)
        order = np.arange(rows).reshape(target.heads, -1, 2).swapaxes(1, 2).reshape(-1)
        return cls(target, tensor, rows, columns, order)

    def raw(self, start: int, stop: int) -> Array:
        """Stored bytes of the file's rows ``start:stop``."""
        if self.tensor.rows == self.rows:
            return gguf.read_rows(self.tensor, start, stop)
        return gguf.read_rows(self.tensor, 0, 1).reshape(self.rows, -1)[start:stop]

    def values(self, raw: Array) -> Array:
        decoded = gguf.decode_rows(self.tensor.type, raw)
        return decoded - np.float32(self.target.offset) if self.target.offset else decoded

    def read(self, start: int, stop: int) -> Array:
        """fp32 rows ``start:stop`` in transformers' order."""
        if not 0 <= start <= stop <= self.rows:
            raise UsageError(f"{self.target.name!r} has no rows {start} to {stop}; it has {self.rows}")
        if self.order is None:
            return self.values(self.raw(start, stop))
        return self.values(self.raw(0, self.rows)[self.order[start:stop]])


def _edited(target: Target, edit_rows: EditRows, record: Touched, measured: MeasuredRows | None) -> TensorEntry:
    stored = _Stored.of(target)

    def read(start: int, stop: int) -> Array:
        if stored.rows != 1 and len(target.source.shape) == 1:  # a permuted vector is one row for the edit
            return stored.read(0, stored.rows).reshape(1, -1)
        return stored.read(start, stop)

    def pieces() -> Iterator[Piece]:
        blocks = _checked(target.name, edit_rows(target.name, read), stored)
        start = 0
        for block in blocks if stored.order is None else [np.concatenate(list(blocks))]:
            wanted = block if stored.order is None else block[np.argsort(stored.order)]
            step = max(1, CHUNK // stored.columns)
            for first in range(0, len(wanted), step):
                part = wanted[first : first + step]
                yield _piece(stored, start + first, part, record, measured)
            start += len(wanted)

    return TensorEntry(target.source.name, target.source.type, target.source.shape, pieces)


def _checked(name: str, blocks: Iterable[Array], stored: _Stored) -> Iterator[Array]:
    """The blocks of an edit, each ``[n, in]`` fp32; all rows must come."""
    seen = 0
    for given in blocks:
        block = np.ascontiguousarray(given, np.float32)
        if block.ndim != 2 or block.size % stored.columns or (stored.columns > 1 and block.shape[1] != stored.columns):
            raise ShapeMismatch(f"the edit of {name!r} gave {list(block.shape)}, not rows of {stored.columns}")
        block = block.reshape(-1, stored.columns)
        seen += len(block)
        yield block
    if seen != stored.rows:
        raise ShapeMismatch(f"the edit of {name!r} gave {seen} rows; it has {stored.rows}")


def _piece(stored: _Stored, start: int, wanted: Array, record: Touched, measured: MeasuredRows | None) -> Piece:
    """Quantises ``wanted``, rows of the file from ``start`` on, but keeps the blocks that are as they were."""

    def compute() -> Landed:
        kind, offset, name = stored.tensor.type, np.float32(stored.target.offset), stored.target.name
        _, elements, nbytes = gguf_quant.BLOCKS[kind]
        raw = stored.raw(start, start + len(wanted))
        before = stored.values(raw)
        if not np.isfinite(before).all():
            raise NonFinite(f"tensor {name!r} holds NaN or infinity", where=stored.tensor.file)
        same = (before == wanted).reshape(len(wanted), -1, elements).all(axis=2)
        out = raw.copy()
        if (changed := ~same.all(axis=1)).any():
            new = _quantized(wanted[changed] + offset if offset else wanted[changed], kind, name)
            old, keep = raw[changed], same[changed]
            new.reshape(len(new), -1, nbytes)[keep] = old.reshape(len(old), -1, nbytes)[keep]
            out[changed] = new
        after = stored.values(out)
        if not np.isfinite(after).all():
            raise NonFinite(f"the edited tensor {name!r} is too large for {kind}", where=stored.tensor.file)
        norms = (_square(wanted, before), _square(after, wanted))

        def then() -> None:
            record.blocks += same.size
            record.kept += int(same.sum())
            record.asked = math.hypot(record.asked, math.sqrt(norms[0]))
            record.rounding = math.hypot(record.rounding, math.sqrt(norms[1]))
            if measured:
                _tell(stored, start, before, after, measured)

        return Landed(out, then)

    return compute


def _tell(stored: _Stored, start: int, before: Array, after: Array, measured: MeasuredRows) -> None:
    name = stored.target.name
    if len(stored.tensor.shape) == 1 and stored.order is not None:
        measured(name, 0, before[stored.order].reshape(1, -1), after[stored.order].reshape(1, -1))
    elif stored.order is None:
        measured(name, start, before, after)
    else:  # one row at a time, each at its place in transformers' order
        places = np.argsort(stored.order)[start : start + len(before)]
        for i, place in enumerate(places):
            measured(name, int(place), before[i : i + 1], after[i : i + 1])


def _quantized(values: Array, kind: str, name: str) -> Array:
    try:
        return gguf_quant.quantize_rows(values, kind)
    except NonFinite as error:
        raise NonFinite(f"the edited tensor {name!r}: {error.message}") from error


def _square(a: Array, b: Array) -> float:
    difference = (a - b).astype(np.float64).ravel()
    return float(difference @ difference)


# -- added tensors -----------------------------------------------------------------------------------------


def _added_entries(header: GgufHeader, known: Mapping[str, Target], added: Mapping[str, Added]) -> list[TensorEntry]:
    model = Model(header)
    if not added:
        return []
    groups = list(model.family.optional.values()) if model.arch == "llama" else []  # see the module's docstring
    places: dict[str, tuple[str, tuple[int, ...], int]] = {}  # transformers name -> GGUF name, shape, its group
    for layer in range(model.layers):
        for number, group in enumerate(groups):
            for leaf, (name, word) in group.items():
                places[f"model.layers.{layer}.{name}"] = (f"blk.{layer}.{leaf}", model.shape(word), number)
    places["lm_head.weight"] = ("output.weight", model.tensor("token_embd.weight").shape, -1)
    entries: list[TensorEntry] = []
    needed: set[int] = set()
    for name, tensor in added.items():
        if name in known:
            raise UsageError(f"the model has {name!r} already; edit it", where=header.path)
        if name not in places:
            raise UnsupportedModel(f"{model.arch} has no place for a tensor {name!r}", where=header.path,
                                   hint="llama.cpp takes added biases in Llama only")  # fmt: skip
        source, shape, number = places[name]
        if tensor.values.shape != shape:
            raise ShapeMismatch(f"{name!r} is {list(tensor.values.shape)}, not {list(shape)}", where=header.path)
        gguf_quant.require_type(tensor.type, header.path)
        needed |= {number} - {-1}
        entries.append(array_entry(source, _as_stored(model, source, tensor.values), tensor.type))
    for name, (source, shape, number) in places.items():  # transformers knows a group whole or not at all
        if number in needed and name not in added and name not in known:
            entries.append(array_entry(source, np.zeros(shape, np.float32)))
    return entries


def _as_stored(model: Model, source: str, values: Array) -> Array:
    """``values`` with the rows of Llama's queries and keys interleaved, as ggml's rotary embedding wants them."""
    heads = {".attn_q.": model.heads, ".attn_k.": model.kv_heads}
    count = next((n for key, n in heads.items() if key in source and model.family.permuted), 0)
    return values.reshape(count, 2, -1).swapaxes(1, 2).reshape(values.shape) if count else values
