"""Writes the table of the weights that transformers' classes always have: ``python scripts/weight_kinds.py``.

Each class is built without memory (on ``meta``), four layers deep, and its weights are named as a saved model has them. What is
there in the default configuration and in every variant of it (each switch the other way round, counts of experts and of dense
layers, ranks, kinds of layers) is what a checkpoint can't do without. The scan compares names only.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto import modeling_auto

OUT = Path(__file__).parents[1] / "src/weightsmith/trust/scanners/weight_kinds.json"
MAPPINGS = ("MODEL_FOR_CAUSAL_LM", "MODEL_FOR_IMAGE_TEXT_TO_TEXT", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM", "MODEL_FOR_SPEECH_SEQ_2_SEQ",
            "MODEL_FOR_MASKED_LM", "MODEL", "MODEL_FOR_SEQUENCE_CLASSIFICATION", "MODEL_FOR_TOKEN_CLASSIFICATION",
            "MODEL_FOR_QUESTION_ANSWERING")  # fmt: skip
DEEP = 4
DEPTH = re.compile(r"^(num_hidden_layers|n_layers?|num_layers|encoder_layers|decoder_layers|num_decoder_layers|depth)$")
COUNTS = re.compile(
    r"expert|dense|sparse|step|interval|period|every|rank|mtp|nextn|shared|adapter|kv_heads|num_key_value|multi_query")
JOINED = {"encoder-decoder", "vision-encoder-decoder", "speech-encoder-decoder", "rag"}  # of any two models
COMPUTED = {"marian", "pegasus", "fsmt", "roformer"}  # their positions are sines, which older versions did not save
#: sizes that some configurations leave to the checkpoint
UNSET = {"head_dim": 64, "vocab_size": 33, "n_routed_experts": 8, "n_shared_experts": 1, "moe_intermediate_size": 64}
EXPERTS = re.compile(r"^(num_(local_)?experts|n_routed_experts|moe_num_experts)$")
TOP = re.compile(r"embed|wte|wpe|norm|ln_f|layer_?norm", re.IGNORECASE)
SKIPPED = re.compile(r"pooler|classifier|score|lm_head|qa_outputs|^cls\.|rotary|inv_freq|\bmtp|nextn")
#: what else a switch may be called that is a word
WORDS = {"position_embedding_type": ("absolute", "relative_key", "rotary"), "hidden_act": (), "norm_type": ("layernorm", "rmsnorm")}
MOST = 160  # variants of one kind of model


def kind_of(name: str) -> str:
    """The name with stars for numbers."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def build(cls: type[PreTrainedModel], config: Any) -> dict[str, set[int]]:
    """Kind -> the layers that have it, of one model; without the prefix of its base."""
    with torch.device("meta"):
        model = cls(config)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    names = {n: p for n, p in model.named_parameters(remove_duplicate=False) if n not in tied}
    lost = [re.compile(p) for p in (getattr(model, "_keys_to_ignore_on_load_missing", None) or ())]
    saved = revert_weight_conversion(model, dict(names))
    found: dict[str, set[int]] = {}
    for name in saved:
        if any(p.search(name) for p in lost) or SKIPPED.search(name):
            continue
        plain = name.removeprefix(cls.base_model_prefix + ".") if cls.base_model_prefix else name
        number = re.search(r"\.(\d+)\.", "." + plain)
        if number is None and not (TOP.search(plain) and plain.endswith("weight")):
            continue
        found.setdefault(kind_of(plain), set()).add(int(number[1]) if number else 0)
    return found


def shallow(config: Any) -> Any:
    """A configuration with few layers, its parts' too."""
    told = config.to_diff_dict() if hasattr(config, "to_diff_dict") else {}
    made = type(config)(**{k: v for k, v in told.items() if k != "model_type"})
    for part in [made, *(v for v in vars(made).values() if isinstance(v, transformers.PretrainedConfig))]:
        for key, value in list(vars(part).items()):
            if DEPTH.match(key) and isinstance(value, int) and value > DEEP:
                setattr(part, key, DEEP)
            if value is None and key in UNSET:
                setattr(part, key, UNSET[key])
            if key in ("layer_types", "mlp_layer_types") and isinstance(value, list):
                setattr(part, key, value[:DEEP])
            if EXPERTS.match(key) and isinstance(value, int) and value > 8:
                setattr(part, key, 8)
    return made


def variants(base: Any) -> Iterator[tuple[str, Any]]:
    """Changes of one field each, of the configuration and of its text part."""
    text = base.get_text_config() if hasattr(base, "get_text_config") else base
    for inner in dict.fromkeys((False, text is not base)):
        part = text if inner else base
        for key, value in list(vars(part).items()):
            if key.startswith("_") or key in ("return_dict", "output_hidden_states", "torchscript", "use_cache"):
                continue
            others: tuple[Any, ...] = ()
            if isinstance(value, bool):
                others = (not value,)
            elif isinstance(value, int) and COUNTS.search(key):
                others = (*(n for n in (0, 1, 2, 100) if n != value), None)
            elif isinstance(value, int) and value and not DEPTH.match(key):
                others = (0,)  # which leaves a part out
            elif value is None and COUNTS.search(key):
                others = (1, 8)
            elif key in WORDS:
                others = WORDS[key]
            elif key in ("layer_types", "mlp_layer_types") and isinstance(value, list):
                others = tuple([kind] * len(value) for kind in dict.fromkeys(
                    [*value, "full_attention", "linear_attention", "sliding_attention", "dense", "sparse", "conv", "mamba"]))
            for other in others:
                yield (("text_config." if inner else "") + key), other


def varied(base: Any, key: str, value: Any) -> Any:
    """The same configuration with one field changed."""
    import copy

    made = copy.deepcopy(base)
    part = made.get_text_config() if key.startswith("text_config.") else made
    setattr(part, key.removeprefix("text_config."), value)
    return made


def table_of(kind: str) -> dict[str, Any] | None:
    """What the classes of one type always have, what they may have, and of each class its prefix and what it lacks."""
    names: list[str] = []
    for mapping in MAPPINGS:
        name = getattr(modeling_auto, mapping + "_MAPPING_NAMES").get(kind)
        names += [name] if isinstance(name, str) else list(name or ())
    base = shallow(CONFIG_MAPPING[kind]())
    classes: dict[str, dict[str, set[int]]] = {}
    for name in dict.fromkeys(names):
        try:
            classes[name] = build(getattr(transformers, name), base)
        except Exception as error:  # noqa: BLE001 - what can't be built is not in the table
            print(f"  {name}: {type(error).__name__}: {str(error)[:80]}")
    if not classes:
        return None
    main = next(iter(classes))
    always, may, uneven = set(classes[main]), set(classes[main]), ragged(classes[main])
    for number, (key, value) in enumerate(variants(base)):
        if number >= MOST:
            break
        try:
            found = build(getattr(transformers, main), varied(base, key, value))
        except Exception:  # noqa: BLE001 - not every change makes a model
            continue
        if found:
            always &= set(found)
            may |= set(found)
            uneven |= ragged(found)
    for found in classes.values():
        may |= set(found)
        uneven |= ragged(found)
    if kind in COMPUTED:
        always = {k for k in always if "embed_positions" not in k}
    always -= uneven  # which layers have it may be a matter of lists that no variant changes
    return {"always": grouped(always), "uneven": grouped(uneven), "may": grouped(may - always),
            "classes": {n: [getattr(transformers, n).base_model_prefix, sorted(always - set(f))] for n, f in classes.items()}}


def ragged(found: dict[str, set[int]]) -> set[str]:
    """Kinds that only some layers of their stack have."""
    layers: dict[str, set[int]] = {}
    for kind, at in found.items():
        layers.setdefault(kind.partition(".*.")[0], set()).update(at)
    return {kind for kind, at in found.items() if ".*." in kind and at != layers[kind.partition(".*.")[0]]}


def grouped(kinds: set[str]) -> dict[str, list[str]]:
    """The kinds of each stack, without its name."""
    made: dict[str, list[str]] = {}
    for kind in sorted(kinds):
        stack, star, leaf = kind.partition(".*.")
        made.setdefault(stack if star else "", []).append(leaf if star else kind)
    return made


def main() -> None:
    """Write the table."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    wanted = sys.argv[1:] or sorted(CONFIG_MAPPING.keys() - JOINED)
    found: dict[str, Any] = {}
    for kind in wanted:
        try:
            table = table_of(kind)
        except Exception as error:  # noqa: BLE001 - a type without a model
            print(f"{kind}: {type(error).__name__}: {str(error)[:80]}")
            continue
        if table and table["always"]:
            found[kind] = table
            print(kind, *(sum(map(len, table[part].values())) for part in ("always", "uneven", "may")), flush=True)
    out = Path("/dev/stdout") if sys.argv[1:] else OUT
    out.write_text(json.dumps({"transformers": transformers.__version__, "types": found}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
