"""What the metadata of a GGUF file tells its readers to do: tokens never to write, how to sample, the numbers of the model.

Programs built on llama.cpp take these as their defaults, as the usual loader takes ``generation_config.json`` and ``config.json``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...found import Finding
from ..items import Folder
from ..listing import shown
from ..rules import Rule
from .settings_rules import ABSURD, GENERATION, IMPOSSIBLE, MODEL, NOTED, OTHER, STEERS, Ranges, numbers
from .vocabulary import BYTE, NORMAL, USER_DEFINED, Vocabulary, from_gguf, readable

MERGES = Rule(
    "gguf-merges", "suspicious", "Most tokens of a GGUF vocabulary can't be made from their parts",
    "Text is cut into single letters, which the model has hardly seen: it reads badly and costs several times as much. A good "
    "conversion writes a merge for each token of more than one letter.",
    "Convert the model anew, and compare how a sentence is cut with the source.",
    ("https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp",),
)  # fmt: skip
RULES = (MERGES,)

_LEAST = 64  # tokens of more than one letter, of which something can be said
#: key behind the architecture's name -> the name that the same number has in config.json
_NAMES = {
    "attention.layer_norm_rms_epsilon": "rms_norm_eps", "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.group_norm_epsilon": "norm_eps", "rope.freq_base": "rope_theta", "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping", "logit_scale": "logit_scale",
    "attention.sliding_window": "sliding_window", "context_length": "max_position_embeddings",
}  # fmt: skip
_MAY_BE_ZERO = frozenset({"logit_scale", "attn_logit_softcapping", "final_logit_softcapping", "rope_theta"})  # "not used"
_SAMPLING = {"temp": "temperature", "penalty_repeat": "repetition_penalty", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_FACTOR = 512.0
_PRE = re.compile(r"[\w.\-]{1,64}", re.ASCII)
#: pre-tokenizers that llama.cpp knows; it refuses a file with another one
_KNOWN = """
    default minicpm5 llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano deepseek-llm deepseek-coder
    deepseek-v3 spark2_5 youtu falcon mpt starcoder gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum
    modern-bert jais-2 gemma4 granite-embed-multi-311m sarvam-moe jina-v1-en jina-v2-code roberta-bpe whitespace refact command-r
    qwen2 deepseek-r1-qwen kormo f2llmv2 qwen35 stablelm2 olmo dbrx smaug-bpe poro-chat glm4 chatglm-bpe glm5 mmbert viking jais
    tekken smollm codeshell bloom gpt3-finnish exaone exaone4 exaone-moe chameleon minerva-7b megrez gpt-4o llama4 kanana2 talkie
    granite-embed-multi-97m tiny_aya cohere2moe superbpe trillion granite-docling bailingmoe bailingmoe2 llada-moe seed-coder
    hunyuan hunyuan-dense hy_v4 joyai-llm kimi-k2 ufakzeka grok-2 afmoe laguna minimax-m2 solar-open mellum2
"""
_PRES = frozenset(_KNOWN.split())


def findings(folder: Folder, name: str) -> Iterator[Finding]:
    """Findings about the settings of one file."""
    data, file = folder.ggufs[name].metadata, shown(name)
    vocabulary = from_gguf(folder, name)
    if vocabulary is not None:
        yield from _suppressed(data, vocabulary, file)
        yield from _merges(data, vocabulary, file)
    sampling = {theirs: data.get(f"general.sampling.{key}") for key, theirs in _SAMPLING.items()}
    yield from numbers(_present(sampling), GENERATION, file, "metadata general.sampling")
    arch = data.get("general.architecture")
    if isinstance(arch, str):
        yield from _model(data, arch, file)
    pre = data.get("tokenizer.ggml.pre")
    if isinstance(pre, str) and pre not in _PRES:
        odd = not _PRE.fullmatch(pre)
        yield (IMPOSSIBLE if odd else OTHER).found(f"the pre-tokenizer is {pre!r:.60}, which llama.cpp does not know", file=file,
                                                   place="metadata 'tokenizer.ggml.pre'")  # fmt: skip


def _present(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are there."""
    return {key: value for key, value in settings.items() if value is not None}


def _suppressed(data: Mapping[str, Any], vocabulary: Vocabulary, file: str) -> Iterator[Finding]:
    """Tokens that are never to be written."""
    listed = data.get("tokenizer.ggml.suppress_tokens")
    ids = [i for i in listed if type(i) is int] if isinstance(listed, list) else []
    if not ids:
        return
    types = vocabulary.types
    plain = [i for i in ids if not vocabulary.is_marker(i) and i in vocabulary.texts
             and (i >= len(types) or types[i] in (NORMAL, USER_DEFINED, BYTE))]  # fmt: skip
    said = ", ".join(repr(readable(vocabulary.texts.get(i, f"id {i}"))) for i in (plain or ids)[:6])
    yield (STEERS if plain else NOTED).found(f"suppress_tokens is about {len(ids)} tokens, e.g. {said}", file=file,
                                             place="metadata 'tokenizer.ggml.suppress_tokens'")  # fmt: skip


def _merges(data: Mapping[str, Any], vocabulary: Vocabulary, file: str) -> Iterator[Finding]:
    """Tokens of a byte-level vocabulary, and the merges that make them."""
    if data.get("tokenizer.ggml.model") != "gpt2":
        return
    merges, types = data.get("tokenizer.ggml.merges"), vocabulary.types
    longer = sum(1 for text, i in vocabulary.base.items() if len(text) > 1 and (i >= len(types) or types[i] == NORMAL))
    count = len(merges) if isinstance(merges, list) else 0
    if longer >= _LEAST and count * 4 < longer:
        yield MERGES.found(f"{longer} tokens of more than one letter and {count} merges", file=file,
                           place="metadata 'tokenizer.ggml.merges'")  # fmt: skip


def _model(data: Mapping[str, Any], arch: str, file: str) -> Iterator[Finding]:
    """The model's numbers, as for those of a config."""
    found = {theirs: data.get(f"{arch}.{key}") for key, theirs in _NAMES.items()}
    found = {key: value for key, value in _present(found).items() if type(value) in (int, float)
             and not (value == 0 and key in _MAY_BE_ZERO)}  # fmt: skip
    ranges: Ranges = {key: MODEL[key] for key in found}
    yield from numbers(found, ranges, file, f"metadata {arch}")
    factor = data.get(f"{arch}.rope.scaling.factor")
    if isinstance(factor, float) and factor > _FACTOR:
        yield ABSURD.found(f"rope.scaling.factor is {factor!r}", file=file, place=f"metadata {arch}")
    experts, used = data.get(f"{arch}.expert_count"), data.get(f"{arch}.expert_used_count")
    if type(experts) is int and experts > 0 and type(used) is int and not 0 < used <= experts:
        yield IMPOSSIBLE.found(f"{used} of {experts} experts are used", file=file, place=f"metadata '{arch}.expert_used_count'")
