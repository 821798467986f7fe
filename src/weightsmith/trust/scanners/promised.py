"""The config against the weights: what a loader would initialise at random, leave out, or stop at.

Where the family's tensors are known one by one, each is expected in its shape. For every other model the layers are
compared with one another and with what the config counts, which takes no knowledge of the family; and with the names of what
its class can't do without (:mod:`.weight_kinds`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...errors import WeightsmithError
from ...found import Finding
from ..listing import shown
from ..rules import Rule
from .facts import ASIDE, Place, whole_number

MISSING = Rule(
    "weights-missing", "broken", "Weights that the config promises are not there",
    "A loader fills them with random numbers, and says so in a line of a log at most: the model runs and is not what it should be.",
    "Fetch the model again from one revision; the config or the weights are not those of this model.",
)  # fmt: skip
SHAPE = Rule(
    "weights-misshapen", "broken", "A tensor has another shape than the config gives it",
    "A loader stops, or (told to ignore it) fills the tensor with random numbers.",
    "Fetch config and weights again from one revision.",
)  # fmt: skip
IGNORED = Rule(
    "layers-ignored", "suspicious", "There are more layers than the config counts",
    "A loader leaves the others out in silence: what runs is not the model that was trained.",
    "Compare config.json with the publisher's: a count was changed, or the weights are those of a larger model.",
)  # fmt: skip
UNUSED = Rule(
    "weights-ignored", "note", "Tensors that this family's code does not use",
    "A loader leaves them out. They may belong to a part that only other programs know, or to another model.",
    "Nothing, when the publisher explains them.",
)  # fmt: skip
UNEVEN = Rule(
    "layers-uneven", "suspicious", "One layer differs from all others",
    "A tensor of it is missing or has another shape; if the family's code expects it, a loader fills it with random numbers.",
    "Compare with the publisher's files.",
)  # fmt: skip
HEAD = Rule(
    "head-ignored", "suspicious", "Tied embeddings, and an output head with other values",
    "The config says that the output head is the embeddings; readers disagree on whether the stored one counts.",
    "Ask the publisher which is meant.",
)  # fmt: skip
DTYPE = Rule(
    "dtype-differs", "note", "The config names another number type than the weights have",
    "A loader converts them, which can lose precision or take more memory than needed.",
    "Nothing, unless you did not expect it.",
)  # fmt: skip
QUANT = Rule(
    "quantisation-differs", "broken", "The config and the weights disagree about quantisation",
    "A loader looks for weights under other names, does not find them, and fills the model with random numbers.",
    "Fetch config and weights again from one revision.",
)  # fmt: skip
CLASS = Rule(
    "class-of-another-family", "suspicious", "The config names a class of another family than its model type",
    "Some programs choose the code by `model_type`, others by `architectures`: they run two different models.",
    "Compare the config with the base model's.",
)  # fmt: skip
RULES = (MISSING, SHAPE, IGNORED, UNUSED, UNEVEN, HEAD, DTYPE, QUANT, CLASS)

_STACK = re.compile(r"^(?P<stack>(?:.*\.)?(?:layers|layer|h|blocks|block))\.(?P<index>\d{1,5})\.(?P<leaf>.+)$")
_BUFFERS = re.compile(r"(?:^|\.)(?:\w*inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids|num_batches_tracked|"
                      r"cos_cached|sin_cached)$")  # fmt: skip
_PACKED = re.compile(r"\.(qweight|qzeros|g_idx|weight_packed|weight_shape|absmax|quant_state\.[\w.]+|weight_scale(_inv)?|"
                     r"weight_format|SCB|scales|blocks|\w+_scales|\w+_blocks|nested_absmax|quant_map|input_scale)$")  # fmt: skip
_QUANTISED = {"gptq": r"\.qweight$", "awq": r"\.qweight$", "aqlm": r"\.codes$", "vptq": r"\.indices$", "hqq": r"\.W_q$"}
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
_WHOLE = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration|Model|For\w+Classification|ForQuestionAnswering)$")
_PREFIXES = frozenset({"", "model.", "transformer.", "gpt_neox.", "backbone.", "base_model.", "language_model.", "text_model.",
                       "model.language_model.", "language_model.model.", "model.text_model.", "thinker.model."})  # fmt: skip
#: how the classes of families begin whose code nobody else's config asks for
_CLASSES = {
    "Llama": "llama", "Mistral": "mistral", "Mixtral": "mixtral", "Qwen2": "qwen2", "Qwen3": "qwen3", "Gemma": "gemma",
    "Gemma2": "gemma2", "Phi3": "phi3", "GPT2": "gpt2", "GPTNeoX": "gpt_neox", "Bert": "bert", "Roberta": "roberta", "T5": "t5",
    "Falcon": "falcon", "Bloom": "bloom", "OPT": "opt", "Bart": "bart", "DistilBert": "distilbert",
}  # fmt: skip
_CLASS = re.compile(r"(\w+?)(?:Model|LMHeadModel|ForCausalLM|ForMaskedLM|ForConditionalGeneration|ForSequenceClassification|"
                    r"ForTokenClassification|ForQuestionAnswering)")  # fmt: skip
#: families whose code does not tie where the config is silent
_UNTIED = frozenset({"llama", "mistral", "mixtral", "qwen2", "qwen3", "phi3", "olmo2", "qwen2_moe", "qwen3_moe"})
_CAUSAL = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$")
#: the only widths that a shape letter stands for, see :mod:`..formats.gguf_config`
_LETTERS = "DFGHKPQ"
_GAPS = 40  # missing layers that are listed
_KINDS = 64  # different sets of tensors, most common first, with which a layer is compared


def compare(place: Place) -> Iterator[Finding]:
    """Findings about one directory with a config and weights."""
    weights, config = place.loaded, place.config
    if weights is None or not weights.tensors or not config:
        return
    file = shown(place.prefix + "config.json")
    shapes = {n: s for n, (_, s, _) in weights.tensors.items() if not _BUFFERS.search(n)}
    packed = _is_quantised(place, shapes)
    yield from _quantisation(place, shapes, file)
    yield from _embedding(place, file)
    if weights.complete:
        yield from _counted(place, shapes, file)
        yield from _even(shapes, place, file, packed)
        yield from _head(place, shapes, file, packed)
        yield from _prefixed(place, file)
        if not packed:
            known = _expected(place, shapes)
            if known is not None:
                yield from _exactly(shapes, known, place, file)
            else:
                yield from _writers(place, file)
                yield from _indispensable(place, shapes, file)
    yield from _dtype(place, file)
    yield from _classes(place, file)


def _classes(place: Place, file: str) -> Iterator[Finding]:
    """The classes that the config names against its model type, both of families that are known by name."""
    kind = place.config.get("model_type")
    for name in place.architectures:
        match = _CLASS.fullmatch(name)
        family = _CLASSES.get(match[1]) if match else None
        if family is not None and kind in _CLASSES.values() and family != kind:
            yield CLASS.found(f"{name} is a class of {family}, and the model type is {kind}", file=file, place="$.architectures")


def _is_quantised(place: Place, shapes: Mapping[str, Any]) -> bool:
    return any(k in place.config for k in ("quantization_config", "compression_config")) or any(map(_PACKED.search, shapes))


def _quantisation(place: Place, shapes: Mapping[str, Any], file: str) -> Iterator[Finding]:
    """Whether the config's method fits the names of the tensors."""
    said = place.config.get("quantization_config") or place.config.get("compression_config")
    method = str(said.get("quant_method", "")).lower() if isinstance(said, dict) else ""
    pattern = _QUANTISED.get(method)
    stacked = [n for n in shapes if _STACK.match(n)]
    if pattern and stacked and place.loaded and place.loaded.complete and not any(re.search(pattern, n) for n in shapes):
        yield QUANT.found(f"the config says {method}, and no tensor is quantised that way", file=file,
                          place="$.quantization_config")  # fmt: skip
    bare = [n for n in shapes if n.endswith(".qweight")]
    told = said or any(n in place.names for n in ("quantize_config.json", "quant_config.json", "hf_quant_config.json"))
    if bare and not told and place.kind:
        yield QUANT.found(f"{len(bare)} tensors are quantised, e.g. {bare[0]!r}, and the config says nothing of it", file=file)


def _embedding(place: Place, file: str) -> Iterator[Finding]:
    """The vocabulary's size and the width against the embeddings."""
    if place.embedding is None:
        return
    name, (rows, width) = place.embedding
    said = whole_number(place.text.get("vocab_size"))
    hidden = next((n for k in ("hidden_size", "d_model", "n_embd", "dim") if (n := whole_number(place.text.get(k)))), None)
    sure = place.family is not None or place.kind in ("t5", "bert", "roberta", "opt", "bloom", "falcon", "gptj", "mpt", "bart")
    if said is not None and said != rows and place.kind not in ("mllama", "mllama_text_model"):
        yield SHAPE.found(f"{name!r} has {rows} rows, the config's vocabulary {said}", file=file, place="$.vocab_size",
                          severity=None if sure else "note")  # fmt: skip
    odd = hidden is not None and hidden != width and width not in _packed_widths(place, hidden)
    if odd and place.kind not in ("opt", "albert", "electra", "deberta-v2"):
        yield SHAPE.found(f"{name!r} is {width} wide, the config says {hidden}", file=file, place="$.hidden_size",
                          severity=None if sure else "note")  # fmt: skip


def _packed_widths(place: Place, hidden: int) -> set[int]:
    """Widths of embeddings that MLX packed into words of 32 bits, by the bits that the config names; it quantises them too."""
    named = [place.config.get(k) for k in ("quantization", "quantization_config")]
    parts = [v for q in named if isinstance(q, dict) and "group_size" in q for v in (q, *q.values()) if isinstance(v, dict)]
    return {hidden * n // 32 for v in parts if (n := whole_number(v.get("bits"))) is not None and 0 < n <= 16}


def _stacks(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[int, dict[str, tuple[int, ...]]]]:
    """Layers by the name of their stack: index -> leaf name -> shape."""
    found: dict[str, dict[int, dict[str, tuple[int, ...]]]] = defaultdict(lambda: defaultdict(dict))
    for name, shape in shapes.items():
        # the first number counts layers; later ones count experts and parts of a layer
        cut = re.search(r"\.(\d{1,5})\.", name)
        match = _STACK.match(name[: cut.end()] + "x") if cut else None
        if match and cut:
            found[match["stack"]][int(match["index"])][name[cut.end() :]] = shape
    return found


def _counted(place: Place, shapes: Mapping[str, tuple[int, ...]], file: str) -> Iterator[Finding]:
    """Layers without holes, and as many as the config counts."""
    stacks = {s: layers for s, layers in _stacks(shapes).items() if not ASIDE.search(s)}
    for stack, layers in stacks.items():
        top = max(layers)
        gaps = _gaps(layers)
        if gaps and len(layers) > 1 and min(len(v) for v in layers.values()) >= 4:
            yield MISSING.found(f"{stack}.{gaps[0]} is not there, {stack}.{top} is", file=file,
                                evidence=f"missing: {', '.join(map(str, gaps))}")  # fmt: skip
    main = _main(place, stacks)
    if main is None:
        return
    stack, layers = main
    keys = place.family.keys.get("layers") if place.family else None
    names = [*([keys] if isinstance(keys, str) else keys or []), *_LAYERS]
    key = next((k for k in names if k in place.text), None)
    count = whole_number(place.text.get(key)) if key else None
    if count is None or key is None:
        return
    top = max(layers) + 1
    drafts = sum(_is_draft(layers[i]) for i in range(count, top) if i in layers)
    if top < count:
        yield MISSING.found(f"the config counts {count} layers, the weights hold {top} ({stack})", file=file, place=f"$.{key}")
    elif top - drafts > count:
        yield IGNORED.found(f"the config counts {count} layers, the weights hold {top} ({stack})", file=file, place=f"$.{key}")


def _gaps(layers: Iterable[int]) -> list[int]:
    """The first layers that are not there, of the first 4,096; in as many steps as there are layers, whatever their numbers."""
    found: list[int] = []
    expected = 0
    for index in sorted(layers):
        found += range(expected, min(index, 4096, expected + _GAPS - len(found)))
        if len(found) >= _GAPS:
            break
        expected = index + 1
    return found


def _is_draft(leaves: Mapping[str, Any]) -> bool:
    return any(re.match(r"(enorm|hnorm|eh_proj|shared_head|e_proj|h_proj)\b", leaf) for leaf in leaves)


def _main(place: Place, stacks: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The stack that the config's number of layers is about: the only one, or the one that the family names."""
    if place.family is not None:
        suffix = place.family.block.removesuffix(".{i}")
        fitting = [s for s in stacks if s == suffix or s.endswith("." + suffix)]
    else:
        fitting = [s for s in stacks if min(len(v) for v in stacks[s].values()) >= 4]
        if "encoder_layers" in place.config or place.config.get("is_encoder_decoder"):
            return None
    return (fitting[0], stacks[fitting[0]]) if len(fitting) == 1 else None


def _even(shapes: Mapping[str, tuple[int, ...]], place: Place, file: str, packed: bool) -> Iterator[Finding]:
    """A layer in the middle that lacks what its likes have, or has it in another shape."""
    if "block_configs" in place.config or "block_configs" in place.text:
        return  # pruned by search: every layer is another one, by design
    for stack, layers in _stacks(shapes).items():
        sets = Counter(frozenset(leaves) for leaves in layers.values())
        if len(layers) < 4 or min(len(v) for v in layers.values()) < 4:
            continue
        common = [s for s, n in sets.most_common(_KINDS) if n > 1]
        top = max(layers)
        for i, leaves in layers.items():
            here = frozenset(leaves)
            nearest = min((c for c in common if here < c), key=len, default=None) if sets[here] == 1 and 0 < i < top else None
            if nearest is not None:
                lost = sorted(nearest - here)
                yield UNEVEN.found(f"{stack}.{i} lacks {lost[0]!r}, which {sets[nearest]} other layers have", file=file,
                                   place=f"{stack}.{i}", evidence=", ".join(lost[:12]))  # fmt: skip
        if packed:
            continue
        by_leaf: dict[str, Counter[tuple[int, ...]]] = defaultdict(Counter)
        first: dict[tuple[str, tuple[int, ...]], int] = {}
        for i, leaves in layers.items():
            for leaf, shape in leaves.items():
                by_leaf[leaf][shape] += 1
                first.setdefault((leaf, shape), i)
        for leaf, counted in by_leaf.items():
            if len(counted) == 2 and min(counted.values()) == 1 and sum(counted.values()) >= 4:
                odd = next(s for s, n in counted.items() if n == 1)
                i = first[leaf, odd]
                usual = counted.most_common(1)[0][0]
                if 0 < i < top:
                    yield UNEVEN.found(f"{stack}.{i}.{leaf} has shape {list(odd)}, the others {list(usual)}", file=file,
                                       place=f"{stack}.{i}.{leaf}")  # fmt: skip


def _head(place: Place, shapes: Mapping[str, tuple[int, ...]], file: str, packed: bool) -> Iterator[Finding]:
    """The output head: there when it is not tied, and the same when it is."""
    causal = any(_CAUSAL.search(a) for a in place.architectures) or (not place.architectures and place.family is not None)
    if not causal or place.embedding is None:
        return
    name, shape = place.embedding
    heads = [n for n in shapes if re.search(r"(^|\.)(lm_head|embed_out|output|output_layer|head|proj_out|score)\b", n)
             and not _STACK.match(n)]  # fmt: skip
    wrong = next((n for n in heads if n.endswith("lm_head.weight") and shapes[n] != shape), None)
    if wrong and place.family is not None and not packed:
        yield SHAPE.found(f"{wrong!r} has shape {list(shapes[wrong])}, the embeddings {list(shape)}", file=file,
                          place=f"tensor {wrong!r}")  # fmt: skip
    said = [c["tie_word_embeddings"] for c in (place.config, place.text) if isinstance(c.get("tie_word_embeddings"), bool)]
    if not said and place.kind in _UNTIED:
        said = [False]
    if not said or len(set(said)) > 1:
        return
    others = [n for n, s in shapes.items() if s == shape and n != name and not n.endswith("embed_tokens.weight")]
    if not said[0] and not heads and not others and not packed:
        yield MISSING.found("the output head is not tied to the embeddings and is not there", file=file,
                            place="$.tie_word_embeddings", evidence="tie_word_embeddings: false")  # fmt: skip
    loaded = place.loaded
    stored = next((n for n in heads if shapes[n] == shape and n.endswith("lm_head.weight")), None)
    if not said[0] or not stored or loaded is None:
        return
    if place.folder.alike((loaded.tensors[name][2], name), (loaded.tensors[stored][2], stored)) is False:
        yield HEAD.found(f"{stored!r} holds other values than {name!r}, to which it is tied", file=file,
                         place="$.tie_word_embeddings")  # fmt: skip


def _prefixed(place: Place, file: str) -> Iterator[Finding]:
    """Names that begin as no class of the library looks for them."""
    if place.family is None or place.text is not place.config or place.embedding is None or not _is_whole(place):
        return
    prefix = place.embedding[0].removesuffix(place.family.embed[0])
    if prefix != place.embedding[0] and prefix not in _PREFIXES:
        yield MISSING.found(f"the names of the weights begin with {prefix!r:.60}, which no {place.kind} class looks for", file=file,
                            evidence=place.embedding[0], severity="suspicious")  # fmt: skip


def _is_whole(place: Place) -> bool:
    """Whether the class is one that has all of its family's layers; a config without a class is loaded by its type."""
    return not place.architectures or any(_WHOLE.search(a) for a in place.architectures)


def _expected(place: Place, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...] | None] | None:
    """Every tensor of the families that are known one by one, under this folder's prefix; ``None`` for all others."""
    from ...formats.gguf_config import FAMILIES

    family = next((f for f in FAMILIES.values() if f.model_type == place.kind), None)
    if family is None or place.embedding is None or not _is_whole(place):
        return None
    text = place.text
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    layers, hidden, inner, heads = (whole_number(text.get(k)) for k in keys)
    named = place.embedding[0].endswith("embed_tokens.weight")
    if layers is None or hidden is None or heads is None or layers > 10_000 or not named:
        return None
    default = {"gemma2": 256, "gemma3_text": 256, "qwen3": 128}.get(place.kind, hidden // heads)
    size = whole_number(text.get("head_dim")) or default
    kv = whole_number(text.get("num_key_value_heads")) or heads
    q, k = heads * size, kv * size
    letters = dict(zip(_LETTERS, (hidden, inner, 2 * inner if inner else None, size, k, q + 2 * k, q), strict=True))
    leaves = dict(family.leaves)
    for flag, group in family.optional.items():
        if text.get(flag):
            leaves |= group
    prefix = place.embedding[0].removesuffix("embed_tokens.weight")
    found: dict[str, tuple[int, ...] | None] = {place.embedding[0]: place.embedding[1], prefix + "norm.weight": (hidden,)}
    for i in range(layers):
        for leaf, word in leaves.values():
            sizes = [letters[letter] for letter in word]
            found[f"{prefix}layers.{i}.{leaf}"] = None if None in sizes else tuple(s for s in sizes if s is not None)
    return found


def _exactly(
    shapes: Mapping[str, tuple[int, ...]], known: Mapping[str, tuple[int, ...] | None], place: Place, file: str
) -> Iterator[Finding]:
    """The weights against the list of what the family has."""
    lost = [n for n in known if n not in shapes]
    if lost:
        yield MISSING.found(f"{len(lost)} of {len(known)} weights of a {place.kind} model are missing, e.g. {lost[0]!r}", file=file,
                            place=f"tensor {lost[0]!r}", evidence=", ".join(lost[:20]))  # fmt: skip
    wrong = [(n, shapes[n], s) for n, s in known.items() if n in shapes and s is not None and shapes[n] != s]
    if wrong:
        name, have, want = wrong[0]
        yield SHAPE.found(f"{len(wrong)} tensors have another shape than the config says, e.g. {name!r}: {list(have)} instead of "
                          f"{list(want)}", file=file, place=f"tensor {name!r}", evidence=", ".join(n for n, _, _ in wrong[:20]))
    biased = place.text.get("attention_bias") or place.text.get("mlp_bias")
    extra = [n for n in shapes if n not in known and "lm_head" not in n and place.text is place.config
             and not (biased and n.endswith("_proj.bias"))]  # fmt: skip
    if extra:
        yield UNUSED.found(f"{len(extra)} tensors are unknown to the {place.kind} family, e.g. {extra[0]!r}", file=file,
                           evidence=", ".join(extra[:20]))  # fmt: skip


def _writers(place: Place, file: str) -> Iterator[Finding]:
    """For the other known families: the weights that write to the residual stream, as far as the family's data goes."""
    from ... import architecture

    if place.family is None or place.loaded is None or not _is_whole(place):
        return
    headers = {t.name: t for f in place.loaded.files if f in place.folder.headers for t in place.folder.headers[f].tensors}
    if len(headers) != len(place.loaded.tensors):
        return
    try:
        architecture.resolve(place.config, headers)
    except WeightsmithError as error:
        if "more, e.g." not in error.message:  # said by the count of layers
            rule = SHAPE if error.code == "shape-mismatch" else MISSING
            yield rule.found(error.message, file=file)


def _indispensable(place: Place, shapes: Mapping[str, tuple[int, ...]], file: str) -> Iterator[Finding]:
    """Weights that the class named by the config has in every configuration, under the names that it saves them with."""
    from . import weight_kinds

    known = weight_kinds.class_of(place.architectures)
    if known is None or "block_configs" in place.config or "pruned_heads" in place.config:
        return
    for kind, where in weight_kinds.missing(known, shapes):
        at = f"layer {where} has no" if where else "there is no"
        yield MISSING.found(f"{at} {kind!r}, which every {place.architectures[0]} has", file=file, place=f"tensor {kind!r}")


def _dtype(place: Place, file: str) -> Iterator[Finding]:
    """The number type of the config against those of the weights."""
    said = place.config.get("dtype") or place.config.get("torch_dtype") or place.text.get("dtype") or place.text.get("torch_dtype")
    wanted = _DTYPES.get(str(said).removeprefix("torch."))
    have = Counter(d for d, _, _ in place.loaded.tensors.values()) if place.loaded else Counter()
    if wanted and have and wanted not in have and all(d in _DTYPES.values() for d in have):
        yield DTYPE.found(f"the config says {said}, the weights are {', '.join(sorted(have))}", file=file)
