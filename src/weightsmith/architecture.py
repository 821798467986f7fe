"""Roles of tensors: which weights write to the residual stream of a model, on disk and in memory.

Families are data, one small YAML file each under ``families/``. A *writer* is a linear map whose output is added to
the residual stream. On disk it is one tensor or one per expert; in memory it is a module whose output a hook sees.
Where a norm with a learned gain g stands between the writer and the residual stream (post-norm families), what must
be orthogonal to the written weight is ``g ⊙ r`` and not ``r``: the norm multiplies by g and divides by a scalar.

Roles: ``attn_out`` is what mixes tokens (attention, linear attention, short convolution), ``mlp_down`` the MLP,
``experts`` and ``shared_experts`` a mixture's, ``per_layer`` the inputs that Gemma 4 gives each layer of its own,
``embed`` the embeddings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from .errors import ShapeMismatch, UnsupportedModel, UsageError
from .formats.safetensors import TensorSpec

ROLES = ("attn_out", "mlp_down", "experts", "shared_experts", "per_layer", "embed")
DEFAULT_ROLES = ("attn_out", "mlp_down", "experts", "shared_experts", "per_layer")
#: towers for other inputs, and heads that draft tokens: their names end like the language model's
_ASIDE = re.compile(r"vision|visual|audio|image|speech|(^|\.)mtp\.", re.IGNORECASE)
_KNOWN_KEYS = {"family", "model_types", "block", "embed", "unembed", "keys", "gain_offset", "writers", "constant",
               "as_llama", "defaults", "scaled", "draft"}  # fmt: skip
_WRITER_KEYS = {"role", "weight", "fused", "bias", "bias_always", "module", "out_axis", "gain", "when", "unless"}
#: families for which no role data would be right, and why
REFUSED = {
    **dict.fromkeys(("gemma3n", "gemma3n_text"), "AltUp keeps several residual streams, each rewritten in every block"),
    "deepseek_v4": "hyper-connections keep several residual streams, which every block mixes",
}


@dataclass(frozen=True, slots=True)
class Writer:
    """One tensor that writes to the residual stream.

    ``out_axis`` is the axis that runs over the residual stream's ``d_model`` (−2 for ``[out, in]`` and
    ``[experts, out, in]``, −1 for Conv1D's ``[in, out]``, embeddings' ``[vocab, d_model]`` and every bias).
    ``module`` is the path of the module whose output is what this tensor writes. ``gain`` is the gain tensor of the
    norm that follows, or ``None``; ``outer_gain`` that of a second norm, which the sum of several normed outputs
    passes. A gain is ``gain_offset`` + the stored values; the two multiply.
    """

    role: str
    layer: int | None
    tensor: str
    out_axis: int
    module: str
    is_bias: bool = False
    gain: str | None = None
    gain_offset: int = 0
    outer_gain: str | None = None

    @property
    def gains(self) -> tuple[str, ...]:
        """The gain tensors of every norm between this writer and the residual stream."""
        return tuple(g for g in (self.gain, self.outer_gain) if g is not None)


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
    """The data of one family, as parsed from its YAML file.

    The first of ``writers`` is one that layer 0 always has: names are found by it. A writer with ``when`` is there
    exactly where that key of the config holds, one with ``unless`` where it does not; ``defaults`` are what the
    family's code takes where the config is silent. ``scaled`` families multiply what a writer writes afterwards.
    ``draft`` is a tensor of the heads that draft tokens, which some families number like layers after the last.
    """

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
    defaults: Mapping[str, Any]
    scaled: bool
    draft: str | None

    @property
    def post_norm(self) -> bool:
        """Whether something stands between the writers and the residual stream, so that no weight holds a constant: a
        norm, which divides by the norm of the whole, or a multiplier, which scales a constant too."""
        return self.scaled or any("gain" in writer for writer in self.writers)


@cache
def families() -> dict[str, Family]:
    """All families by the ``model_type`` that names them."""
    found: dict[str, Family] = {}
    for entry in sorted(files("weightsmith").joinpath("families").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            family = _parsed(entry.name)
            found.update(dict.fromkeys(family.model_types, family))
    return found


@cache
def _parsed(name: str) -> Family:
    """One family from its file."""
    import yaml

    entry = files("weightsmith").joinpath("families", name)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built
    data = loader(entry.read_text(encoding="utf-8")).get_single_data()
    if unknown := (set(data) - _KNOWN_KEYS).union(*(set(w) - _WRITER_KEYS for w in data["writers"])):
        raise UnsupportedModel(f"unknown keys {sorted(unknown)}", where=name)
    return Family(
        data["family"], tuple(data["model_types"]), data["block"], tuple(data["embed"]), data["unembed"],
        data.get("keys", {}), data.get("gain_offset", 0), tuple(data["writers"]), data.get("constant"),
        data.get("as_llama", False), data.get("defaults", {}), data.get("scaled", False),
        data.get("draft"),
    )  # fmt: skip


def family_of(kind: str) -> Family | None:
    """The family of a ``model_type``; most files are called like it, so that the others need not be parsed."""
    if kind.isidentifier() and files("weightsmith").joinpath("families", f"{kind}.yaml").is_file():
        family = _parsed(f"{kind}.yaml")
        if kind in family.model_types:
            return family
    return families().get(kind)


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
            UnsupportedModel: a role that this model does not have; UsageError: a layer outside it.
        """
        wanted, chosen = set(roles), set(layers)
        if absent := sorted(wanted - {w.role for w in self.writers}):
            raise UnsupportedModel(
                f"no tensor has the role {', '.join(absent)}", where=self.family.name,
                hint=f"roles here: {', '.join(sorted({w.role for w in self.writers}))}",
            )  # fmt: skip
        if outside := sorted(x for x in chosen if not 0 <= x < self.n_layers):
            raise UsageError(f"layer {outside[0]} is not one of 0 to {self.n_layers - 1}", where=self.family.name,
                             hint="layers are counted from 0")  # fmt: skip
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
    family = family_of(str(kind))
    if str(kind) in REFUSED:
        raise UnsupportedModel(f"the family {kind!r} can't be edited: {REFUSED[str(kind)]}", where=where,
                               hint="an edit of single writers would not say what it does there")  # fmt: skip
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
    beyond = _beyond(family, tensors, prefix, n_layers)
    if beyond is not None:
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


def _beyond(family: Family, tensors: Mapping[str, TensorSpec], prefix: str, n_layers: int) -> str | None:
    """A writer of a layer that the config does not count, if there is one; heads that draft tokens are no layers."""
    layer, block = n_layers, f"{prefix}{family.block.format(i=n_layers)}."
    while family.draft is not None and block + family.draft in tensors:
        layer += 1
        block = f"{prefix}{family.block.format(i=layer)}."
    names = (_label(data).format(e=0) for data in family.writers)
    return next((block + n for n in names if block + n in tensors), None)


def _holds(family: Family, text: Mapping[str, Any], key: str) -> bool:
    """Whether a key of the config is on, or in its absence the family's default."""
    value = text.get(key)
    return bool(family.defaults.get(key) if value is None else value)


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
        and not _ASIDE.search(name) and len(spec.shape) == 2 and spec.shape[axis] == d_model
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
    here = [w for w in family.writers if ("when" not in w or _holds(family, text, w["when"]))
            and not ("unless" in w and _holds(family, text, w["unless"]))]  # fmt: skip
    for data in here:
        names = _tensor_names(family, data, tensors, block, text, where)
        if not names and "when" in data:
            raise UnsupportedModel(f"{block + _label(data)!r} is missing, which {data['when']!r} promises", where=where)
        if not names:
            continue
        module = block + data["module"]
        axis = data.get("out_axis", -2)
        gains = _gains(data, tensors, block, where)
        biases = [block + data["bias"]] if "bias" in data else [n.removesuffix("weight") + "bias" for n in names]
        if data.get("bias_always") and biases[0] not in tensors:
            raise UnsupportedModel(f"the bias {biases[0]!r} is missing", where=where)
        written = [(name, axis, False) for name in names] + [(b, -1, True) for b in biases if b in tensors]
        found += [Writer(data["role"], layer, name, out, module, is_bias, gains[0], family.gain_offset, gains[1])
                  for name, out, is_bias in written]  # fmt: skip
    roles = {w.role for w in found}
    for needed in (("attn_out",), ("shared_experts",) if "experts" in roles else ("mlp_down", "experts")):
        expected = [block + _label(data) for data in here if data["role"] in needed]
        if expected and not roles.intersection(needed):
            quantised = any(f"{name}_blocks" in tensors for name in expected)
            raise UnsupportedModel(
                f"layer {layer} of this {family.name} model lacks {' and '.join(expected)}", where=where,
                hint="it is there as quantised blocks: use an unquantised copy of the model" if quantised
                else "`weightsmith show` lists the names that are there",
            )  # fmt: skip
    return found


def _label(data: Mapping[str, Any]) -> str:
    return str(data.get("weight") or data["fused"])


def _gains(
    data: Mapping[str, Any], tensors: Mapping[str, TensorSpec], block: str, where: object
) -> tuple[str | None, str | None]:
    """The gain tensors of the one or two norms that follow a writer, the nearest first."""
    listed = data.get("gain", [])
    names = [block + g for g in ([listed] if isinstance(listed, str) else listed)]
    if absent := next((n for n in names if n not in tensors), None):
        raise UnsupportedModel(f"the norm gain {absent!r} is missing", where=where)
    first, second = [*names, None, None][:2]
    return first, second


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
