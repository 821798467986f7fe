"""A direction: what was found for a feature, one vector per layer, with where it came from and how good it is.

File format ``weightsmith/direction/1``: a safetensors file with

- ``vectors``       F32 ``[n_layers_captured, d_model]``, as the method gave them (not normalised);
- ``resid_norm``    F32 ``[n_layers_captured]``, mean ‖h‖ of the residual stream at the site, neutral prompts;
- ``mean_shows``, ``mean_lacks``  F32 ``[n_layers_captured, d_model]``, means of the two sides;
- ``readers``       F32 ``[n_layers_captured, d_model]``, Σ⁻¹δ, only where the method whitens (LEACE);

and the metadata key ``weightsmith``: canonical JSON of :class:`~weightsmith.records.DirectionMeta`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DirectionModelMismatch, FormatError, NonFinite, RecipeError, ShapeMismatch
from .formats.safetensors import build_header, read_header, read_tensor
from .records import DIRECTION, DirectionMeta, ModelIdentity, parse
from .storage import cache_dir, canonical_json, strict_json, write_cache, write_whole

Array = np.ndarray[Any, np.dtype[np.float32]]
_TENSORS = ("vectors", "resid_norm", "mean_shows", "mean_lacks")


@dataclass(frozen=True)
class Direction:
    """One vector per captured layer, with algebra; operations keep the metadata and note the expression.

    ``vectors`` is ``[layers, d_model]`` fp32; ``meta.layers[k]`` is the block that row ``k`` belongs to.
    """

    vectors: Array
    resid_norm: Array
    mean_shows: Array
    mean_lacks: Array
    meta: DirectionMeta
    readers: Array | None = None

    def row(self, layer: int) -> int:
        """Row of ``layer``.

        Raises:
            RecipeError: the direction was not captured there.
        """
        try:
            return self.meta.layers.index(layer)
        except ValueError:
            span = f"{self.meta.layers[0]} to {self.meta.layers[-1]}"
            raise RecipeError(f"the direction has no layer {layer}; it has {span}", where=self.meta.feature) from None

    def unit(self, layer: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Unit vector of ``layer``, fp64 ``[d_model]``.

        Raises:
            NonFinite: the vector is zero or not finite, so it has no direction.
        """
        vector = self.vectors[self.row(layer)].astype(np.float64)
        norm = float(np.sqrt((vector * vector).sum()))
        if not np.isfinite(norm) or norm == 0.0:
            raise NonFinite(f"the vector of layer {layer} is zero or not finite", where=self.meta.feature)
        return np.asarray(vector / norm, np.float64)

    def _with(self, vectors: np.ndarray[Any, Any], expression: str) -> Direction:
        if not np.isfinite(vectors).all():
            raise NonFinite("the result holds NaN or infinity", where=expression)
        # quality and candidates described the old vectors
        meta = self.meta.model_copy(update={"expression": expression, "quality": [], "candidates": [], "rule": ""})
        return replace(self, vectors=np.ascontiguousarray(vectors, np.float32), meta=meta, readers=None)

    @property
    def _name(self) -> str:
        return self.meta.expression or self.meta.feature

    def _check_mate(self, other: Direction) -> None:
        mine, theirs = self.meta, other.meta
        if mine.model.digest != theirs.model.digest:
            raise DirectionModelMismatch(f"found on different models: {mine.model.digest[:16]}… and "
                                         f"{theirs.model.digest[:16]}…", where=self._name)  # fmt: skip
        if mine.layers != theirs.layers or mine.point != theirs.point or self.vectors.shape != other.vectors.shape:
            raise ShapeMismatch("captured at different layers or sites", where=f"{self._name}, {other._name}")

    def __add__(self, other: Direction) -> Direction:
        self._check_mate(other)
        return self._with(self.vectors + other.vectors, f"({self._name} + {other._name})")

    def __sub__(self, other: Direction) -> Direction:
        self._check_mate(other)
        return self._with(self.vectors - other.vectors, f"({self._name} - {other._name})")

    def __mul__(self, factor: float) -> Direction:
        with np.errstate(over="ignore", invalid="ignore"):
            return self._with(self.vectors * np.float32(factor), f"{factor:g}·{self._name}")

    __rmul__ = __mul__

    def __neg__(self) -> Direction:
        return self * -1.0

    def normalise(self) -> Direction:
        """Every layer's vector at length 1 (zero vectors stay zero)."""
        norms = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        return self._with(self.vectors / np.where(norms == 0, 1, norms), f"unit({self._name})")

    def project_out(self, other: Direction) -> Direction:
        """What is left after taking each layer's component along ``other`` out: v − ŵ(ŵᵀv)."""
        self._check_mate(other)
        theirs = other.normalise().vectors.astype(np.float64)
        mine = self.vectors.astype(np.float64)
        out = mine - theirs * (mine * theirs).sum(1, keepdims=True)
        return self._with(out, f"({self._name} ⊥ {other._name})")

    def cosine(self, other: Direction) -> Array:
        """Cosine per layer, ``[layers]`` (0 where one of them is zero)."""
        self._check_mate(other)
        a, b = self.normalise().vectors.astype(np.float64), other.normalise().vectors.astype(np.float64)
        return np.asarray((a * b).sum(1), np.float32)

    def check_model(self, model: ModelIdentity, *, transfer: bool = False) -> bool:
        """Whether this direction is being moved to other weights (allowed with ``transfer`` and equal shapes).

        Raises:
            ShapeMismatch: another width or depth.
            DirectionModelMismatch: another digest and no ``transfer``.
        """
        found = self.meta.model
        if (found.d_model, found.n_layers) != (model.d_model, model.n_layers):
            raise ShapeMismatch(f"found on {found.n_layers} layers of width {found.d_model}, this model has "
                                f"{model.n_layers} of width {model.d_model}", where=self._name)  # fmt: skip
        if found.digest == model.digest:
            return False
        if not transfer:
            raise DirectionModelMismatch(
                f"found on {found.ref} ({found.digest[:16]}…), this is {model.ref} ({model.digest[:16]}…)",
                where=self._name,
                hint="if one derives from the other, --transfer uses it all the same and the record will say so",
                found_on=found.digest, model=model.digest,
            )  # fmt: skip
        return True

    def to_bytes(self) -> bytes:
        """The direction file; equal directions have equal bytes."""
        names = _TENSORS if self.readers is None else (*_TENSORS, "readers")
        arrays = [np.ascontiguousarray(getattr(self, name), "<f4") for name in names]
        header = build_header(
            ((n, "F32", a.shape) for n, a in zip(names, arrays, strict=True)),
            {"weightsmith": canonical_json(self.meta.model_dump(by_alias=True)).decode()},
        )
        return header + b"".join(a.tobytes() for a in arrays)

    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def save(self, path: Path, *, replace: bool = False) -> str:
        """Write the file whole or not at all, keep a copy in the cache by digest, and return the digest."""
        data = self.to_bytes()
        digest = hashlib.sha256(data).hexdigest()
        write_whole(path, data, replace=replace)
        self.keep()
        return digest

    def keep(self) -> None:
        """Keep a copy in the cache, where an Edit that names this direction by digest finds it."""
        data = self.to_bytes()
        kept = cache_dir() / "directions" / f"{hashlib.sha256(data).hexdigest()}.safetensors"
        if not kept.exists():
            write_cache(kept, data)


def load_direction(path: Path) -> Direction:
    """Read a direction file.

    Raises:
        FormatError: not a direction file.
        NonFinite: NaN or infinity in it.
        RecipeError: metadata of another schema.
    """
    header = read_header(path)
    if "weightsmith" not in header.metadata:
        raise FormatError(
            "a safetensors file, but not a direction", where=path, hint="make one with `weightsmith find`"
        )
    specs = {t.name: t for t in header.tensors}
    if missing := [n for n in _TENSORS if n not in specs]:
        raise FormatError(f"the tensor {missing[0]!r} is missing", where=path)
    try:
        data = strict_json(header.metadata["weightsmith"].encode())
        canonical_json(data)  # neither NaN nor infinity among the figures
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the metadata is not JSON ({error})", where=path) from error
    meta: DirectionMeta = parse(DirectionMeta, data, path, DIRECTION)
    rows = meta.layers
    if not rows or rows != sorted(set(rows)) or rows[0] < 0 or rows[-1] >= meta.model.n_layers:
        raise FormatError(f"its layers are not in order among 0 to {meta.model.n_layers - 1}", where=path)
    names = [*_TENSORS, *(["readers"] if "readers" in specs else [])]
    if odd := [specs[n] for n in names if specs[n].dtype != "F32"]:
        raise FormatError(f"{odd[0].name} is {odd[0].dtype}, not F32", where=path)
    arrays = [np.array(read_tensor(specs[n])) for n in names]
    shape = (len(meta.layers), meta.model.d_model)
    for name, array in zip(names, arrays, strict=True):
        if array.shape != (shape[:1] if name == "resid_norm" else shape):
            raise ShapeMismatch(f"{name} has shape {list(array.shape)}, the metadata say {list(shape)}", where=path)
        if not np.isfinite(array).all():
            raise NonFinite(f"{name} holds NaN or infinity", where=path)
    return Direction(arrays[0], arrays[1], arrays[2], arrays[3], meta, arrays[4] if len(arrays) > 4 else None)


def is_direction(path: Path) -> bool:
    """Whether ``path`` is a direction file (by content)."""
    if not path.is_file():
        return False
    try:
        return "weightsmith" in read_header(path).metadata
    except FormatError:
        return False
