"""Roles of tensors: which weights write to the residual stream of a model, on disk and in memory.

Families are data, one small YAML file each under ``families/``. A *writer* is a linear map whose output is added to
the residual stream. On disk it is one tensor or one per expert; in memory it is a module whose output a hook sees.
Where a norm with a learned gain g stands between the writer and the residual stream (post-norm families), what must
be orthogonal to the written weight is ``g ⊙ r`` and not ``r``: the norm multiplies by g and divides by a scalar.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from .errors import ShapeMismatch, UnsupportedModel
from .formats.safetensors import TensorSpec

ROLES = ("attn_out", "mlp_down", "experts", "shared_experts", "embed")
DEFAULT_ROLES = ("attn_out", "mlp_down", "experts", "shared_experts")
_SIDE_TOWERS = re.compile(r"vision|visual|audio|image|speech", re.IGNORECASE)
_KNOWN_KEYS = {"family", "model_types", "block", "embed", "unembed", "keys", "gain_offset", "writers", "constant",
               "as_llama"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Writer:
    """One tensor that writes to the residual stream.

    ``out_axis`` is the axis that runs over the residual stream's ``d_model`` (−2 for ``[out, in]`` and
    ``[experts, out, in]``, −1 for Conv1D's ``[in, out]``, embeddings' ``[vocab, d_model]`` and every bias).
    ``module`` is the path of the module whose output is what this tensor writes. ``gain`` is the gain tensor of the
    norm that follows, or ``None``; the gain is ``gain_offset`` + the stored values.
    """

    role: str
    layer: int | None
    tensor: str
    out_axis: int
    module: str
    is_bias: bool = False
    gain: str | None = None
    gain_offset: int = 0


@dataclass(frozen=True, slots=True)
class ConstantSite:
    """Where a constant can be added exactly: an output bias, the config flag that creates it, biases to zero-fill."""

    role: str
    weight: str
    bias: str
    module: str
    flag: str | None
    zeros: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """The data of one family, as parsed from its YAML file."""

    name: str
    model_types: tuple[str, ...]
    block: str
    embed: tuple[str, ...]
    unembed: str
    keys: Mapping[str, str | list[str]]
    gain_offset: int
    writers: tuple[Mapping[str, Any], ...]
    constant: Mapping[str, Any] | None
    as_llama: bool

    @property
    def post_norm(self) -> bool:
        """Whether a norm stands between the writers and the residual stream."""
        return any("gain" in writer for writer in self.writers)


@cache
def families() -> dict[str, Family]:
    """All families by the ``model_type`` that names them."""
    import yaml

    found: dict[str, Family] = {}
    for entry in sorted(files("weightsmith").joinpath("families").iterdir(), key=lambda e: e.name):
        if not entry.name.endswith(".yaml"):
            continue
        data = yaml.safe_load(entry.read_text(encoding="utf-8"))
        if unknown := set(data) - _KNOWN_KEYS:
            raise UnsupportedModel(f"unknown keys {sorted(unknown)}", where=entry.name)
        family = Family(
            data["family"], tuple(data["model_types"]), data["block"], tuple(data["embed"]), data["unembed"],
            data.get("keys", {}), data.get("gain_offset", 0), tuple(data["writers"]), data.get("constant"),
            data.get("as_llama", False),
        )  # fmt: skip
        found.update(dict.fromkeys(family.model_types, family))
    return found


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config: multimodal models keep it under ``text_config``."""
    inner = config.get("text_config") or config.get("llm_config")
    return inner if isinstance(inner, Mapping) and "model_type" in inner else config


@dataclass(frozen=True)
class Architecture:
    """The roles of one checkpoint's tensors.

    ``writers`` are in layer order, embeddings first. ``prefix`` is what stands before ``layers.…`` in this
    checkpoint's names (``model.``, ``model.language_model.``, or nothing).
    """

    family: Family
    n_layers: int
    d_model: int
    prefix: str
    writers: tuple[Writer, ...]
    tied: bool
    unembed: str | None

    def select(self, roles: Iterable[str], layers: Iterable[int]) -> list[Writer]:
        """The writers of these roles in these layers; ``embed`` belongs to no layer and is taken when asked for.

        Raises:
            UnsupportedModel: a role that this model does not have, or a layer outside it.
        """
        wanted, chosen = set(roles), set(layers)
        if absent := sorted(wanted - {w.role for w in self.writers}):
            raise UnsupportedModel(
                f"no tensor has the role {', '.join(absent)}", where=self.family.name,
                hint=f"roles here: {', '.join(sorted({w.role for w in self.writers}))}",
            )  # fmt: skip
        if outside := sorted(x for x in chosen if not 0 <= x < self.n_layers):
            raise UnsupportedModel(f"layer {outside[0]} is not one of 0 to {self.n_layers - 1}",
                                   where=self.family.name)  # fmt: skip
        return [w for w in self.writers if w.role in wanted and (w.layer is None or w.layer in chosen)]

    def default_roles(self) -> list[str]:
        """Every role that writes in a layer: all but the embeddings."""
        have = {w.role for w in self.writers}
        return [role for role in DEFAULT_ROLES if role in have]

    def block(self, layer: int) -> str:
        """Name prefix of one layer's tensors on disk."""
        return f"{self.prefix}{self.family.block.format(i=layer)}."

    @property
    def embedding(self) -> str:
        """The tensor that holds the tokens' embeddings (and the unembedding, where the two are tied)."""
        return self.prefix + self.family.embed[0]

    def constant_site(self, layer: int) -> ConstantSite | None:
        """Where a constant can be added exactly in ``layer``, or ``None`` where no output bias can exist."""
        data = self.family.constant
        if data is None or self.family.post_norm:
            return None
        writer = next(w for w in self.family.writers if w["role"] == data["role"])
        block = self.block(layer)
        if not any(w.layer == layer and w.role == data["role"] for w in self.writers):
            return None
        zeros = tuple(block + z for z in data.get("zeros", ()))
        return ConstantSite(data["role"], block + writer["weight"], block + writer["bias"], block + writer["module"],
                            data.get("flag"), zeros)  # fmt: skip


def resolve(config: Mapping[str, Any], tensors: Mapping[str, TensorSpec], where: object = None) -> Architecture:
    """Find the family of a checkpoint and name every tensor that writes to its residual stream.

    Raises:
        UnsupportedModel: an unknown family, or a writer that the family promises and the checkpoint lacks.
    """
    text = text_config(config)
    kind = text.get("model_type") or config.get("model_type")
    family = families().get(str(kind))
    if family is None:
        raise UnsupportedModel(
            f"the family {kind!r} has no role data", where=where,
            hint=f"known families: {', '.join(sorted({f.name for f in families().values()}))}; "
            "a new one is one YAML file under families/",
        )  # fmt: skip
    n_layers = _number(text, family.keys.get("layers", "num_hidden_layers"), where)
    d_model = _number(text, family.keys.get("width", "hidden_size"), where)
    prefix = _prefix(family, tensors, d_model, where)
    writers: list[Writer] = []
    for name in family.embed:
        if prefix + name not in tensors:
            raise UnsupportedModel(f"the embedding {prefix + name!r} is missing", where=where)
        writers.append(Writer("embed", None, prefix + name, -1, (prefix + name).removesuffix(".weight")))
    unembed = next((n for n in (family.unembed, prefix + family.unembed, _sibling(prefix, family.unembed))
                    if n in tensors), None)  # fmt: skip
    tied = unembed is None or bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
    if tied and unembed is not None:  # stored twice: loaders untie two copies that differ, so they change together
        writers.append(Writer("embed", None, unembed, -1, writers[0].module))
    for layer in range(n_layers):
        writers += _layer_writers(family, tensors, f"{prefix}{family.block.format(i=layer)}.", layer, text, where)
    beyond = f"{prefix}{family.block.format(i=n_layers)}.{family.writers[0]['weight']}"
    if beyond in tensors:
        raise UnsupportedModel(f"the config names {n_layers} layers and the files hold more, e.g. {beyond!r}", where=where,
                               hint="a loader would silently leave the others out: mend config.json")  # fmt: skip
    _check_shapes(writers, tensors, d_model, where)
    return Architecture(family, n_layers, d_model, prefix, tuple(writers), tied, unembed)


def _number(config: Mapping[str, Any], key: str | list[str], where: object) -> int:
    """A count of the config, under whichever of its names is there."""
    names = [key] if isinstance(key, str) else key
    key = next((n for n in names if n in config), names[0])
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise UnsupportedModel(f"the config has no usable {key!r} (it holds {value!r})", where=where)
    return value


def _sibling(prefix: str, name: str) -> str:
    return prefix.removesuffix("model.") + name


def _prefix(family: Family, tensors: Mapping[str, TensorSpec], d_model: int, where: object) -> str:
    """What stands before the family's names: read off the first layer's writers, side towers left out."""
    first = family.writers[0]["weight"]
    suffix = f"{family.block.format(i=0)}.{first}"
    axis = family.writers[0].get("out_axis", -2)
    found = [
        name[: -len(suffix)]
        for name, spec in tensors.items()
        if name.endswith(suffix) and (len(name) == len(suffix) or name[-len(suffix) - 1] == ".")
        and not _SIDE_TOWERS.search(name) and len(spec.shape) == 2 and spec.shape[axis] == d_model
    ]  # fmt: skip
    if len(found) != 1:
        what = f"no tensor ends in {suffix!r}" if not found else f"several tensors end in {suffix!r}"
        raise UnsupportedModel(f"{what} with width {d_model}, as a {family.name} model must have", where=where,
                               hint="`weightsmith show` lists the names that are there")  # fmt: skip
    return found[0]


def _layer_writers(
    family: Family, tensors: Mapping[str, TensorSpec], block: str, layer: int, text: Mapping[str, Any], where: object
) -> list[Writer]:
    found: list[Writer] = []
    for data in family.writers:
        names = _tensor_names(family, data, tensors, block, text, where)
        if not names:
            continue
        module = block + data["module"]
        axis = data.get("out_axis", -2)
        gain = block + data["gain"] if "gain" in data else None
        if gain is not None and gain not in tensors:
            raise UnsupportedModel(f"the norm gain {gain!r} is missing", where=where)
        offset = family.gain_offset
        found += [Writer(data["role"], layer, name, axis, module, False, gain, offset) for name in names]
        biases = [block + data["bias"]] if "bias" in data else [n.removesuffix("weight") + "bias" for n in names]
        if data.get("bias_always") and biases[0] not in tensors:
            raise UnsupportedModel(f"the bias {biases[0]!r} is missing", where=where)
        found += [Writer(data["role"], layer, b, -1, module, True, gain, offset) for b in biases if b in tensors]
    roles = {w.role for w in found}
    for needed in (("attn_out",), ("shared_experts",) if "experts" in roles else ("mlp_down", "experts")):
        expected = [block + (data.get("weight") or data["fused"]) for data in family.writers if data["role"] in needed]
        if expected and not roles.intersection(needed):
            quantised = any(f"{name}_blocks" in tensors for name in expected)
            raise UnsupportedModel(
                f"layer {layer} of this {family.name} model lacks {' and '.join(expected)}", where=where,
                hint="it is there as quantised blocks: use an unquantised copy of the model" if quantised
                else "`weightsmith show` lists the names that are there",
            )  # fmt: skip
    return found


def _tensor_names(
    family: Family, data: Mapping[str, Any], tensors: Mapping[str, TensorSpec], block: str, text: Mapping[str, Any],
    where: object,
) -> list[str]:  # fmt: skip
    if "fused" in data and block + data["fused"] in tensors:
        return [block + data["fused"]]
    pattern = data.get("weight")
    if pattern is None:
        return []
    if "{e}" not in pattern:
        return [block + pattern] if block + pattern in tensors else []
    count = _number(text, family.keys["experts"], where)
    names = [block + pattern.format(e=e) for e in range(count)]
    present = [n for n in names if n in tensors]
    if present and len(present) != count:
        absent = next(n for n in names if n not in tensors)
        raise UnsupportedModel(f"{len(present)} of {count} experts are there; {absent!r} is missing", where=where)
    return present


def _check_shapes(writers: list[Writer], tensors: Mapping[str, TensorSpec], d_model: int, where: object) -> None:
    for writer in writers:
        shape = tensors[writer.tensor].shape
        if len(shape) < -writer.out_axis or shape[writer.out_axis] != d_model:
            raise ShapeMismatch(f"{writer.tensor!r} has shape {list(shape)}, its output axis should be {d_model}",
                                where=where)  # fmt: skip
