"""What the files of a folder say about the model in it: which weights a loader takes, what the config promises."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from ...architecture import Family, family_of, text_config
from ...errors import LimitExceeded
from ..items import Folder

Tensor = tuple[str, tuple[int, ...]]  # dtype, shape

#: names of weights from which loaders choose, the first one that is there
LOADED = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
          "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json",
          "diffusion_pytorch_model.bin", "diffusion_pytorch_model.bin.index.json")  # fmt: skip
#: an index of shards: of a variant, its name stands in the middle (`model.safetensors.index.fp16.json`)
INDEX = re.compile(r"\.index(?:\.(?P<variant>[\w-]+))?\.json$")
MOST_INDEXES = 100  # index files of one directory
MOST_AGAIN = 1 << 20  # tensors of files that more than one index lists, which are gathered for each
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_STATE = re.compile(r"^(optimizer|scheduler|rng_state|training_args|scaler|random_states|sampler|dataloader|zero_pp|"
                    r"bf16_zero|mp_rank|tokenizer|vocab|imatrix|scales)", re.IGNORECASE)  # fmt: skip
_SHARD = re.compile(r"^(?P<stem>.+?)-\d{1,6}-of-(?P<count>\d{1,6})(?P<ext>\.\w+)$")
PART = re.compile(r"(.+?)-\d+-of-\d+(\.\w+)$")
ASIDE = re.compile(r"vision|visual|audio|image|speech|(^|\.)mtp\.|draft|talker|code_predictor", re.IGNORECASE)
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight", "embed_in.weight",
               "shared.weight", "embedding.weight", "embeddings.weight")  # fmt: skip
_OF_PLACES = re.compile(r"position|distance_embedding|rel_embeddings")  # tables with a row for each place in a text, or distance


@dataclass
class Weights:
    """Weight files that are loaded together.

    ``name`` is the file by which a loader finds them (an index, or the only file); ``tensors`` maps each tensor to its
    dtype, shape and file, the last file winning as in a loader. ``complete`` is false when a file of it was not read as
    tensors (a pickle that no scanner took apart, a missing shard).
    """

    name: str
    files: list[str]
    tensors: dict[str, tuple[str, tuple[int, ...], str]] = field(default_factory=dict)
    twice: list[tuple[str, str, str]] = field(default_factory=list)
    complete: bool = True


@dataclass
class Place:
    """One directory that holds a model, or a part of one: ``prefix`` is empty for the folder itself, else ends in ``/``."""

    folder: Folder
    prefix: str
    names: list[str]
    weights: list[Weights] = field(default_factory=list)

    @cached_property
    def shards(self) -> dict[tuple[str, str], list[str]]:
        """Files that are called parts of something, by what they are parts of and their ending."""
        found: dict[tuple[str, str], list[str]] = {}
        for name in self.names:
            if match := PART.match(name):
                found.setdefault((match[1], match[2]), []).append(name)
        return found

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json``, empty when there is none."""
        return self.folder.json_object(self.prefix + "config.json")

    @cached_property
    def text(self) -> Mapping[str, Any]:
        """The language model's part of the config."""
        return text_config(self.config)

    @cached_property
    def kind(self) -> str:
        """``model_type`` of the language model."""
        kind = self.text.get("model_type") or self.config.get("model_type")
        return kind if isinstance(kind, str) else ""

    @cached_property
    def family(self) -> Family | None:
        """The family, where it is known."""
        return family_of(self.kind) if self.kind else None

    @property
    def loaded(self) -> Weights | None:
        """The weights that the usual loader takes."""
        by_name = {w.name.removeprefix(self.prefix): w for w in self.weights}
        for name in LOADED:
            if name in by_name:
                return by_name[name]
        plain = [w for w in self.weights if role_of(w.name.removeprefix(self.prefix)) == "model"]
        return plain[0] if len(plain) == 1 else None

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object beside the config; empty when absent."""
        return self.folder.json_object(self.prefix + name)

    @cached_property
    def architectures(self) -> list[str]:
        """Class names that the config gives."""
        found = self.config.get("architectures")
        return [a for a in found if isinstance(a, str)] if isinstance(found, list) else []

    @cached_property
    def generates(self) -> bool:
        """Whether its class writes text."""
        return any("CausalLM" in a or "ConditionalGeneration" in a or "LMHead" in a for a in self.architectures)

    @cached_property
    def embedding(self) -> tuple[str, tuple[int, ...]] | None:
        """Name and shape (``[rows, width]``) of the table of token embeddings, when exactly one shape fits."""
        found: dict[str, tuple[int, ...]] = {}
        loaded = self.loaded
        for name, (_, shape, _) in (loaded.tensors.items() if loaded else ()):
            if len(shape) == 2 and name.endswith(_EMBEDDINGS) and not ASIDE.search(name) and not _OF_PLACES.search(name):
                found[name] = shape
        if len(set(found.values())) != 1:
            found = {n: s for n, s in found.items() if n.endswith(_EMBEDDINGS[:6]) and "per_layer" not in n}
        if not found or len(set(found.values())) != 1:
            return None
        return min(found.items(), key=lambda pair: len(pair[0]))

    @property
    def rows(self) -> int | None:
        """Rows of the embeddings: the number of tokens that the model knows; ``None`` where sounds have a table of their own."""
        return self.embedding[1][0] if self.embedding and not self.several else None

    @property
    def several(self) -> bool:
        """Whether text and sounds have vocabularies of their own, so that one size says nothing of all ids: by the kind of
        model, since a key alone would switch the checks off for any."""
        sizes = any(type(self.config.get(f"{of}_vocab_size")) is int for of in ("text", "codebook"))
        return sizes and self.kind in ("csm", "kyutai_speech_to_text")


def named_templates(place: Place) -> dict[str, str]:
    """Chat templates of a directory by name, whichever file carries them."""
    found: dict[str, str] = {}
    for base in ("tokenizer_config.json", "chat_template.json", "processor_config.json"):
        value = place.json(base).get("chat_template")
        if isinstance(value, str):
            found.setdefault("default", value)
        for entry in value if isinstance(value, list) else ():
            if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                found.setdefault(str(entry.get("name")), entry["template"])
    for name in place.names:
        if name.endswith(".jinja"):
            item = place.folder.items[place.prefix + name]
            found["default" if name == "chat_template.jinja" else name] = item.read(1 << 24).decode("utf-8", "replace")
    for name, header in place.folder.ggufs.items():
        if name.rpartition("/")[0] == place.prefix.rstrip("/"):
            for key, value in header.metadata.items():
                if key.startswith("tokenizer.chat_template") and isinstance(value, str):
                    found.setdefault(key.removeprefix("tokenizer.chat_template").lstrip(".") or "default", value)
    return found


def role_of(name: str) -> str:
    """What a weight file is for, by its name: ``model``, ``variant``, ``adapter``, ``consolidated`` or ``state``."""
    if _STATE.match(name):
        return "state"
    if name.startswith("adapter"):
        return "adapter"
    if name.startswith("consolidated"):
        return "consolidated"
    stem = _SHARD.sub(r"\g<stem>", name)
    if (index := INDEX.search(stem)) is not None:
        if index["variant"]:
            return "variant"
        stem = stem[: index.start()]
    for extension in _WEIGHTS:
        stem = stem.removesuffix(extension)
    return "variant" if re.fullmatch(r"(pytorch_model|model|diffusion_pytorch_model)\.[\w-]+", stem) else "model"


def tensors_of(folder: Folder, name: str) -> dict[str, Tensor] | None:
    """Tensors of one file as its header or its scanner declares them; ``None`` for what was not read as tensors."""
    if (header := folder.headers.get(name)) is not None:
        return {t.name: (t.dtype, t.shape) for t in header.tensors}
    if (gguf := folder.ggufs.get(name)) is not None:
        return {t.name: (t.type, t.shape) for t in gguf.tensors}
    return folder.declared.get(name)


_known: WeakKeyDictionary[Folder, list[Place] | LimitExceeded] = WeakKeyDictionary()


def places(folder: Folder) -> list[Place]:
    """Every directory with weights or a config, the folder itself first; worked out once all files were seen.

    Raises:
        LimitExceeded: more index files in one directory, or more tensors that several of them list, than any model has.
    """
    if folder not in _known:
        try:
            _known[folder] = _places(folder)
        except LimitExceeded as error:
            _known[folder] = error
    found = _known[folder]
    if isinstance(found, LimitExceeded):
        raise found
    return found


def _places(folder: Folder) -> list[Place]:
    by_prefix: dict[str, list[str]] = {}
    for name in folder.items:
        head, slash, base = name.rpartition("/")
        by_prefix.setdefault(head + slash, []).append(base)
    found = [Place(folder, prefix, names) for prefix, names in sorted(by_prefix.items())
             if prefix == "" or "config.json" in names or any(n.endswith(".safetensors") or INDEX.search(n) for n in names)
             or any(prefix + n in folder.declared for n in names)]  # fmt: skip
    for place in found:
        place.weights = _weights(place)
    return found


def _weights(place: Place) -> list[Weights]:
    """The sets of weight files in a directory: those of each index, shards without an index, single files."""
    taken: set[str] = set()
    found: list[Weights] = []
    indexes = sorted(filter(INDEX.search, place.names))
    if len(indexes) > MOST_INDEXES:
        raise LimitExceeded(f"{len(indexes)} index files in one directory; at most {MOST_INDEXES} are compared")
    again = 0
    for index in indexes:
        mapped = place.json(index).get("weight_map")
        files = sorted({v for v in mapped.values() if isinstance(v, str)}) if isinstance(mapped, dict) else []
        again += sum(_count(place.folder, place.prefix + f) for f in files if f in taken)
        if again > MOST_AGAIN:
            raise LimitExceeded(f"index files that list {again} tensors once more; at most {MOST_AGAIN} are compared")
        found.append(_gathered(place, index, files))
        taken.update(files)
    groups: dict[str, list[str]] = {}
    for name in place.names:
        if name in taken or not name.endswith(_WEIGHTS) or role_of(name) == "state":
            continue
        if tensors_of(place.folder, place.prefix + name) is None and name not in LOADED:
            continue
        shard = _SHARD.match(name)
        groups.setdefault(f"{shard['stem']}{shard['ext']} in {shard['count']} parts" if shard else name, []).append(name)
    found += [_gathered(place, name, sorted(files)) for name, files in groups.items()]
    return found


def _count(folder: Folder, name: str) -> int:
    """How many tensors one file has."""
    header = folder.headers.get(name) or folder.ggufs.get(name)
    return len(header.tensors) if header is not None else len(folder.declared.get(name, ()))


def _gathered(place: Place, name: str, files: list[str]) -> Weights:
    weights = Weights(place.prefix + name, [place.prefix + f for f in files])
    for file in weights.files:
        tensors = tensors_of(place.folder, file)
        if tensors is None:
            weights.complete = False
            continue
        for tensor, (dtype, shape) in tensors.items():
            if tensor in weights.tensors:
                weights.twice.append((tensor, weights.tensors[tensor][2], file))
            weights.tensors[tensor] = (dtype, shape, file)
    weights.complete = weights.complete and bool(files)
    return weights


def whole_number(value: Any) -> int | None:
    """A positive integer, else ``None``."""
    return value if type(value) is int and value > 0 else None
