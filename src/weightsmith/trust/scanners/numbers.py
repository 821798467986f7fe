"""What the weights hold: values that can't be, and values that are there twice.

The facts come from the pass that takes the digests. Only tensors whose role is known by name are judged by their values:
a matrix of zeros is damage where a projection should be, and how a fresh adapter, a mask or a position table begins.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

from ...errors import FormatError, LimitExceeded, UnsupportedModel
from ...formats.safetensors import SafetensorsHeader
from ...found import Finding, Severity
from ..items import Folder, Item, Scanner, TensorFacts
from ..listing import shown
from ..rules import Rule
from ..stream import CHANGED, facts_of
from ..values import HEAD, PLACES, SCALES, Measured
from . import kin
from .facts import role_of
from .headers import header_of
from .payloads import begins_like_code

HUGE = 1e4  # magnitude that no weight of a trained matrix comes near; outliers of real models stay below a thousand
HUGE_SCALES = 1e5  # what the greatest scale of a quantised matrix could make
HUGE_VECTOR = 1e7  # biases and running statistics may be large
HUGE_GAIN = 1e4  # of a norm; the greatest of real models are some hundreds
ALONE = 1e3  # magnitude of single values of a matrix that are so many times (FAR) as large as usual ones
FAR = 2e4  # outliers of real models have less than a thousand times the usual size
MOST_SAME = 0.7  # of the neighbours among sampled rows; what pads a table is less
BARE = 0.4  # of sampled rows that are all zero; rows that pad a table, or were cut out of a layer, are fewer
FEWEST_ROWS = 32
NEARLY_ALL = 0.8  # of the neighbours: nothing but equal rows is left
NEAR = 24  # of the kept places at which two matrices have the same bytes
LOUD = 100.0  # root mean square of a matrix whose rows should keep the size of what they multiply
APART = 100.0  # times the median of the same matrix in the other layers
_SAID = 5

NOT_FINITE = Rule(
    "weights-not-finite", "broken", "NaN or infinity among the weights",
    "One such value spreads to every output that depends on it. It is what a damaged file, a diverged training or a failed "
    "quantisation leaves, and loaders do not look for it.",
    "Do not use the model; fetch it again, and tell the publisher if it stays so.",
)  # fmt: skip
INFINITE_MASK = Rule(
    "mask-infinite", "note", "An attention mask, or a bound that nothing is cut at, that holds infinities",
    "Masks are made of them, and bounds are infinite until they are set; saved with the weights they do no harm.",
    "Nothing to do.",
)  # fmt: skip
CONSTANT = Rule(
    "weights-constant", "broken", "A weight matrix that is all zero, or one value everywhere",
    "The matrix was never filled (a sparse download, a failed conversion) or was wiped: the model answers, and what it had "
    "learned there is gone.",
    "Fetch it again and compare digests with the source; do not use it.",
)  # fmt: skip
BLANK = Rule(
    "weights-blank", "suspicious", "A weight matrix that is mostly zeros",
    "A download that was interrupted, a file with holes, or a wiped stretch: the shape is right and the values are not there.",
    "Fetch it again and compare digests with the source; a matrix that was pruned this far is rare, and its card says so.",
)  # fmt: skip
PAYLOAD = Rule(
    "tensor-payload", "suspicious", "A tensor that begins like a program, a pickle or an archive",
    "Nothing runs it by itself. It is how a second program, which does look harmless, finds its payload.",
    "Look at its bytes, and ask the publisher what it is for.", ("https://cwe.mitre.org/data/definitions/506.html",),
)  # fmt: skip
EMPTY_TABLE = Rule(
    "tensor-constant", "note", "A tensor with one value everywhere",
    "Of a tensor of this name nobody can say whether that is meant: buffers, masks and parts that were not trained are like that.",
    "Nothing to do, unless you know that it should be weights.",
)  # fmt: skip
ABSURD = Rule(
    "weights-absurd", "suspicious", "Weights of a size that no trained model has",
    "A single scaled matrix makes a model repeat itself, overflow in half precision or answer one thing always; it is cheap "
    "sabotage that no header shows.",
    "Compare with the source; do not use it before somebody explains it.",
)  # fmt: skip
OUTLIER = Rule(
    "layer-apart", "suspicious", "One layer's matrix differs in size from the same matrix of all other layers",
    f"The same matrix has about the same size in every layer. A factor of {APART:.0f} and more is damage or tampering.",
    "Compare the tensor with the source.",
)  # fmt: skip
REPEATED = Rule(
    "layers-repeated", "suspicious", "A layer's matrices are bytes of another layer",
    "Training never makes two equal layers. Copying one over another is damage that every shape check passes; on purpose it is "
    "done by merges that make a model deeper, which say so.",
    "If it is not a merge of that kind, compare with the source.",
)  # fmt: skip
DEEPER = Rule(
    "layers-shared", "note", "Whole layers, or one matrix in many layers, are there more than once",
    "Merges that make a model deeper repeat its layers, and some architectures share matrices between layers.",
    "Nothing to do, if the model says so.",
)  # fmt: skip
EXPERTS = Rule(
    "experts-equal", "note", "Experts of one layer with the same bytes",
    "A mixture that was made from one dense model begins like this; after training experts differ.",
    "Nothing to do, if the model was made from one and not trained on; otherwise compare with the source.",
)  # fmt: skip
ROWS = Rule(
    "weights-rows-equal", "broken", "A weight matrix whose rows are all the same",
    "An embedding or head like this gives one answer to every prompt, a projection says one thing whatever it reads. It is what a "
    "failed conversion leaves, and a wiped matrix with a few values changed so that it is not constant.",
    "Compare with the source; do not use it.",
)  # fmt: skip
INTEGERS = Rule(
    "weights-whole-numbers", "suspicious", "Weight matrices of whole numbers without scales",
    "Loaders turn the numbers into floats as they are, a hundred times too large: quantised weights whose scales are gone, or were "
    "taken away. No setting here says that they are quantised.",
    "Compare with the source; fetch it again.",
)  # fmt: skip
BOOLEANS = Rule(
    "boolean-values", "broken", "Booleans that are neither 0 nor 1",
    "Programs that trust the type use such bytes as they are: what a comparison with them gives is undefined.",
    "Fetch the file again; it is damaged or made up.",
)  # fmt: skip

#: names of matrices that every trained model fills
_MATRIX = re.compile(
    r"(?:^|[._])(?:[qkvo]_proj|out_proj|qkv_proj|qkv|gate_proj|up_proj|down_proj|gate_up_proj|query_key_value|c_attn|c_proj|c_fc|"
    r"fc[12]|fc_(?:in|out)|lin[12]|dense(?:_h_to_4h|_4h_to_h)?|query|key|value|Wqkv|in_proj|w[123qkvo]|lm_head|embed_tokens|"
    r"(?:q|kv)_[ab]_proj(?:_with_mqa)?|[A-Za-z]+Attention\.[qkvo]|DenseReluDense\.w(?:i|i_[01]|o)|shared|"
    r"embed_(?:in|out)|word_embeddings|wte|output|token_embd|attn_(?:q|k|v|qkv|output)|ffn_(?:gate|up|down)(?:_exps|_shexp)?)"
    r"\.(?:weight|qweight|weight_packed)$|experts\.(?:gate_up_proj|down_proj|gate_proj|up_proj)$|"
    r"(?:^|backbone\.)embeddings\.weight$"
)
_ADAPTER = re.compile(r"lora_|\.lora|lokr_|hada_|oft_|ia3_|prompt_")
_GAIN = re.compile(r"(?:norm|layernorm|ln_\w{1,3}|layer_norm|norm_[12f])\.weight$")
_PLAIN_GAINS = frozenset({"llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "phi3", "olmo2", "gpt2",
                          "gpt_neox", "granite", "smollm3", "deepseek_v2", "deepseek_v3", "opt", "bloom", "falcon",
                          "mpt"})  # fmt: skip
_NORM = re.compile(r"(?:norm\d?|ln_\w{1,3})\.weight$", re.IGNORECASE)
_MASK = re.compile(r"mask|causal|alibi|attn\.bias$|attention\.bias$", re.IGNORECASE)
#: bounds that what goes into a layer and out of it is cut at
_BOUND = re.compile(r"(?:^|\.)(?:input|output)_(min|max)$")
_STATISTIC = re.compile(
    r"running_|num_batches|absmax|scale|zero|quant|position|rotary|freq|cache|_ids?$|timestep|g_idx|qmap", re.IGNORECASE
)
_LAYER = re.compile(r"(.*?)\b(layers|layer|h|blocks|block|blk)\.(\d{1,6})\.(.*)", re.DOTALL)
_EXPERT = re.compile(r"(.*\bexperts\.)(\d{1,6})(\..*)", re.DOTALL)
_WHOLE = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
_QUANTISED = re.compile(r"quanti[sz]|quant_|compress|bitsandbytes|_bit\b|bits\b", re.IGNORECASE)
_WIDE = ("F32", "F16", "BF16", "F64")
_TABLE = re.compile(r"embed|wte|shared|lm_head|token_embd|output\.weight")
_SHARED = re.compile(r"(?:^|\.)shared\.weight$")  # T5's table, which is larger than other families'
#: a pickle with its frame or its first opcodes, an ELF file, a zip archive or a script
_PROGRAM = re.compile(
    rb"\x80[\x04\x05]\x95.{4}\x00{4}|\x80[\x02\x03](?:}q\x00|\]q\x00|c[a-z_]{2}|\(lp)|\x7fELF[\x01\x02][\x01\x02]\x01|"
    rb"PK\x03\x04[\x0a-\x2d]\x00|#!/(?:bin|usr)/|MZ\x90\x00\x03\x00\x00\x00|\x1f\x8b\x08[\x00\x08]", re.DOTALL
)
_MERGED = re.compile(rb"mergekit|frankenmerge|passthrough|self-merge|upscal|block.expansion|layer_range", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor with what its header says and what its bytes hold; ``file`` as it is shown, ``item`` as it is called."""

    item: str
    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    facts: TensorFacts
    matrix: bool  # whether it is a weight matrix by its name and shape

    @property
    def rms(self) -> float | None:
        """Root mean square of a sample, of dtypes whose values stand for themselves."""
        return self.facts.rms if isinstance(self.facts, Measured) and self.dtype in _WIDE else None


class Numbers(Scanner):
    """Judges the facts of all tensors."""

    name = "numbers"
    rules = (NOT_FINITE, INFINITE_MASK, CONSTANT, BLANK, PAYLOAD, EMPTY_TABLE, ABSURD, OUTLIER, REPEATED, DEEPER, EXPERTS, BOOLEANS,
             ROWS, INTEGERS, CHANGED)  # fmt: skip
    kinds = frozenset({"safetensors", "gguf"})
    about = "Values of tensors (safetensors, GGUF, torch): NaN, infinity, constant or absurd matrices, repeated layers"

    def scan_file(self, item: Item, folder: Folder) -> Iterator[Finding | Item]:
        """Members of archives, which the pass over the folder's files does not see."""
        if item.outer is None:
            return
        try:
            header = header_of(item)
        except (FormatError, UnsupportedModel):
            return  # the header scanner says so
        inside = Folder(folder.path)
        if isinstance(header, SafetensorsHeader):
            inside.headers[item.name] = header
        else:
            inside.ggufs[item.name] = header
        inside.tensors.update({(item.name, name): facts for name, facts in facts_of(item, inside).items()})
        yield from judged(held(inside))

    def scan_folder(self, folder: Folder) -> Iterator[Finding]:
        """Findings of all weight files together."""
        tensors = held(folder)
        alone = list(judged(tensors, str(folder.json_object("config.json").get("model_type")) in _PLAIN_GAINS))
        yield from alone
        yield from _apart(tensors)
        said = {(f.rule, f.file, f.place) for f in alone}
        yield from (f for f in _among_kin(tensors) if (f.rule, f.file, f.place) not in said)
        yield from _repeated(tensors, folder)
        yield from _experts(tensors, folder)
        yield from _integers(tensors, folder)


def _is_matrix(name: str, dtype: str, shape: tuple[int, ...]) -> bool:
    size = math.prod(shape)
    if size < 16:
        return False
    spread = len(shape) - shape.count(1) >= 2 or (dtype == "U8" and size >= 4096)  # packed 4-bit is one column
    return spread and bool(_MATRIX.search(name)) and not _ADAPTER.search(name)


def held(folder: Folder) -> list[Held]:
    """All tensors whose bytes were read."""
    found = []
    specs = [*((n, t.name, t.dtype, t.shape) for n, h in folder.headers.items() for t in h.tensors),
             *((n, t.name, t.type, t.shape) for n, g in folder.ggufs.items() for t in g.tensors),
             *((n, name, *spec) for n, found in folder.declared.items() if role_of(n.rpartition("/")[2]) != "state"
               for name, spec in found.items())]  # fmt: skip
    for file, name, dtype, shape in specs:
        facts = folder.tensors.get((file, name))
        if facts is not None:
            found.append(held_as(file, name, dtype, shape, facts))
    return found


def held_as(file: str, name: str, dtype: str, shape: tuple[int, ...], facts: TensorFacts) -> Held:
    """A tensor of a file."""
    return Held(file, shown(file), name, dtype, shape, facts, _is_matrix(name, dtype, shape))


def judged(tensors: list[Held], plain_gains: bool = False) -> Iterator[Finding]:
    """Findings that need one tensor only, and what the rest of its layer says about it; with ``plain_gains`` a norm
    multiplies by what is stored (and not by one more)."""
    identity = _identity_blocks(tensors)
    plain: list[Held] = []
    for t in tensors:
        peak = t.facts.peak
        if isinstance(t.facts, Measured) and (_PROGRAM.match(t.facts.head) or begins_like_code(t.dtype, t.facts.head)):
            yield PAYLOAD.found(f"{t.name[:120]} begins like a program, a pickle or an archive", file=t.file,
                                place=f"tensor {t.name[:120]!r}", evidence=t.facts.head[:HEAD].hex(" "))  # fmt: skip
        if not t.facts.finite:
            masks = peak is not None and math.isinf(peak) and (_MASK.search(t.name) or _is_open_bound(t))
            rule, what = (INFINITE_MASK, "infinity") if masks else (NOT_FINITE, "infinity" if peak == math.inf else "NaN")
            yield _at(rule, t, f"holds {what}")
        elif t.dtype == "BOOL" and (peak or 0) > 1:
            yield _at(BOOLEANS, t, f"holds the byte {peak:.0f}")
        elif isinstance(t.facts, Measured) and t.matrix and not t.facts.constant and t.facts.same > MOST_SAME:
            mild = bool(_EXPERT.match(t.name)) or t.facts.same <= NEARLY_ALL
            yield _at(ROWS, t, f"has equal rows ({t.facts.same:.0%} of a sample)", "suspicious" if mild else None)
        elif t.facts.constant and t.matrix:
            added = (_LAYER.match(t.name) or [""] * 4)[3] in identity if peak == 0 else False
            severity: Severity | None = "suspicious" if added or _EXPERT.match(t.name) else None
            yield _at(CONSTANT, t, "is all zero" if peak == 0 else "has one value everywhere", severity)
        elif t.facts.constant and t.facts.peak == 0 and plain_gains and _GAIN.search(t.name) and math.prod(t.shape) >= 16:
            yield _at(CONSTANT, t, "is all zero, so that nothing passes it", "suspicious")
        elif t.facts.constant and len(t.shape) >= 2 and math.prod(t.shape) >= 4096 and not _STATISTIC.search(t.name):
            plain.append(t)
        else:
            yield from _absurd(t)
    if plain:
        said = ", ".join(t.name[:80] for t in plain[:_SAID])
        yield EMPTY_TABLE.found(f"{len(plain)} tensors hold one value everywhere, e.g. {said}", file=plain[0].file)


def _is_open_bound(t: Held) -> bool:
    """Whether a tensor is a single bound on the side where infinity cuts nothing; the last byte has the sign."""
    match, head = _BOUND.search(t.name), t.facts.head if isinstance(t.facts, Measured) else b""
    if match is None or math.prod(t.shape) != 1 or t.dtype not in _WIDE or not head:
        return False
    return (head[-1] >= 0x80) == (match[1] == "min")


def _absurd(t: Held) -> Iterator[Finding]:
    peak, rms = t.facts.peak, t.rms
    if isinstance(t.facts, Measured) and t.matrix and t.facts.blank > (0.6 if _TABLE.search(t.name) else 0.2):
        yield _at(BLANK, t, f"has stretches of nothing but zeros, {t.facts.blank:.0%} of its bytes")
    if peak is not None and t.dtype in SCALES and peak > HUGE_SCALES:
        yield _at(ABSURD, t, f"has scales that make values of up to {peak:.3g}")
    if peak is None or t.dtype not in _WIDE or _MASK.search(t.name) or _STATISTIC.search(t.name):
        return
    if len(t.shape) >= 2 and t.matrix:
        if isinstance(t.facts, Measured) and t.facts.zeros >= 0.99:
            yield _at(BLANK, t, f"holds {t.facts.zeros:.1%} zeros in a sample")
        elif isinstance(t.facts, Measured) and t.facts.bare > BARE and t.shape[0] >= FEWEST_ROWS and not _EXPERT.match(t.name):
            yield _at(BLANK, t, f"has rows of nothing but zeros, {t.facts.bare:.0%} of a sample")
        if peak > HUGE or (rms is not None and rms > LOUD * (10 if _SHARED.search(t.name) else 1)):
            yield _at(ABSURD, t, f"has a value of {peak:.3g}" + (f", a root mean square of about {rms:.3g}" if rms else ""))
        elif isinstance(t.facts, Measured) and peak > ALONE and 0 < t.facts.usual * FAR < peak:
            yield _at(ABSURD, t, f"has a value of {peak:.3g}, where about {t.facts.usual:.2g} is usual")
        elif peak < 1e-12:
            yield _at(ABSURD, t, f"has no value above {peak:.3g}: as good as zero")
    elif peak > HUGE_GAIN and _NORM.search(t.name):
        yield _at(ABSURD, t, f"multiplies by {peak:.3g}")
    elif peak > HUGE_VECTOR and not t.name.endswith("bias"):
        yield _at(ABSURD, t, f"has a value of {peak:.3g}")


def _identity_blocks(tensors: Iterable[Held]) -> set[str]:
    """Numbers of layers that add nothing, both outputs zero: how block expansion begins."""
    zero: dict[str, set[str]] = defaultdict(set)
    for t in tensors:
        if t.facts.peak == 0 and (match := _LAYER.match(t.name)):
            zero[match[3]].add(match[4])
    return {n for n, rests in zero.items() if any("o_proj" in r for r in rests) and any("down_proj" in r for r in rests)}


def _at(rule: Rule, t: Held, said: str, severity: Severity | None = None) -> Finding:
    return rule.found(f"{t.name[:120]} ({t.dtype} {list(t.shape[:8])}) {said}", file=t.file, place=f"tensor {t.name[:120]!r}",
                      severity=severity)  # fmt: skip


def _apart(tensors: Iterable[Held]) -> Iterator[Finding]:
    """The same matrix across layers: one of them far from the others."""
    groups: dict[tuple[str, ...], list[tuple[float, Held]]] = defaultdict(list)
    for t in tensors:
        if t.matrix and t.rms and not t.facts.constant and (match := _LAYER.match(t.name)):
            rest = _EXPERT.sub(r"\1*\3", match[4])
            groups[match[1], match[2], rest, t.dtype].append((t.rms, t))
    for group in groups.values():
        if len(group) < 4:
            continue
        middle = median(rms for rms, _ in group)
        for rms, t in group:
            if rms > APART * middle or rms * APART * 10 < middle:
                yield _at(OUTLIER, t, f"has a root mean square of about {rms:.3g}; in the other layers it is {middle:.3g}")


def _among_kin(tensors: Iterable[Held]) -> Iterator[Finding]:
    """Tensors of one name and shape across layers, whatever they are called."""
    groups: dict[tuple[Any, ...], list[Held]] = defaultdict(list)
    for t in tensors:
        known = t.dtype in (*_WIDE, *SCALES) and not (_STATISTIC.search(t.name) or _ADAPTER.search(t.name) or _MASK.search(t.name))
        if known and t.facts.finite and (match := _LAYER.match(t.name)):
            groups[match[1], match[2], match[4], t.dtype, t.shape].append(t)
    rules = {"constant": CONSTANT, "blank": BLANK, "apart": OUTLIER}
    for group in groups.values():
        yield from (_at(rules[what], t, said, "suspicious") for what, t, said in kin.unlike(group))


def _repeated(tensors: Iterable[Held], folder: Folder) -> Iterator[Finding]:
    """Layers with the bytes of other layers."""
    layers: dict[tuple[str, str], dict[int, dict[str, Held]]] = defaultdict(lambda: defaultdict(dict))
    for t in tensors:
        if t.matrix and not t.facts.constant and (match := _LAYER.match(t.name)):
            layers[match[1], match[2]][int(match[3])][match[4]] = t
    for found in layers.values():
        rows = [(rest, number, t) for number in sorted(found) for rest, t in found[number].items()]
        equal = _equal(((rest, t) for rest, _, t in rows), folder)
        numbers = {t: number for _, number, t in rows}
        copies = {key: [numbers[t] for t in group] for key, group in equal.items()}
        exact = {pair for group in copies.values() for pair in combinations(group, 2)}
        near = {key: pair for key, pair in _nearly(found).items() if tuple(pair) not in exact}
        if copies or near:
            yield _about_copies(found, {**copies, **near}, folder)


def _nearly(layers: dict[int, dict[str, Held]]) -> dict[tuple[str, str], list[int]]:
    """Matrices of one name in two layers with the same bytes almost everywhere they were looked at."""
    places: dict[str, list[tuple[int, list[str]]]] = defaultdict(list)
    for number, rests in sorted(layers.items()):
        for rest, t in rests.items():
            pieces = t.facts.pieces if isinstance(t.facts, Measured) else ""
            if width := len(pieces) // PLACES:
                cut = [pieces[n : n + width] for n in range(0, len(pieces), width)]
                places[f"{rest} {t.dtype} {t.shape}"].append((number, cut))
    found: dict[tuple[str, str], list[int]] = {}
    for rest, group in places.items():
        met: Counter[tuple[int, int]] = Counter()  # some places first: few pairs meet at one of them
        for place in range(0, PLACES, 4):
            alike: dict[str, list[int]] = defaultdict(list)
            for index, (_, cut) in enumerate(group):
                alike[cut[place]].append(index)
            met.update(pair for same in alike.values() if len(same) < 8 for pair in combinations(same, 2))
        for one, two in (pair for pair, count in met.items() if count >= PLACES // 8):
            equal = [a for a, b in zip(group[one][1], group[two][1], strict=True) if a == b]
            if len(equal) >= NEAR and len(set(equal)) >= NEAR // 2:
                found[rest.partition(" ")[0], f"{group[one][0]} {group[two][0]}"] = [group[one][0], group[two][0]]
    return found


def _about_copies(layers: dict[int, dict[str, Held]], copies: dict[tuple[str, str], list[int]], folder: Folder) -> Finding:
    pairs = Counter((numbers[0], other) for numbers in copies.values() for other in numbers[1:])
    whole = {pair for pair, count in pairs.items() if count == len(layers[pair[1]]) == len(layers[pair[0]])}
    ranges = {(a, b) for a, b in whole if (a + 1, b + 1) in whole or (a - 1, b - 1) in whole}
    single = [p for p in pairs if p not in ranges]
    many = all(len(numbers) > 2 for numbers in copies.values())
    rule = DEEPER if not single or many or _merged(folder) else REPEATED
    (rest, _), numbers = next(iter(copies.items()))
    first = layers[numbers[0]][rest]
    said = ", ".join(f"{a} and {b}{'' if (a, b) in whole else ' in part'}" for a, b in sorted(pairs)[:_SAID])
    return rule.found(f"{len(pairs)} pairs of layers have equal matrices, or all but equal ones: {said}", file=first.file,
                      place=f"tensor {first.name[:120]!r}")  # fmt: skip


def _merged(folder: Folder) -> bool:
    """Whether the folder says that it is a merge of the kind that repeats layers."""
    if "mergekit_config.yml" in folder.items:
        return True
    card = folder.items.get("README.md")
    try:
        return card is not None and bool(_MERGED.search(card.read()))
    except (LimitExceeded, OSError):
        return False


def _equal(named: Iterable[tuple[str, Held]], folder: Folder) -> dict[tuple[str, str], list[Held]]:
    """Tensors of one name each that have the bytes of another one, by name and digest; only what looks alike is digested."""
    alike: dict[tuple[Any, ...], list[Held]] = defaultdict(list)
    for name, t in named:
        alike[name, t.shape, t.facts.trait].append(t)
    found: dict[tuple[str, str], list[Held]] = defaultdict(list)
    for (name, *_), group in alike.items():
        for t in group if len(group) > 1 else ():
            found[name, folder.digest(t.item, t.name) or ""].append(t)
    return {key: group for key, group in found.items() if len(group) > 1}


def _experts(tensors: Iterable[Held], folder: Folder) -> Iterator[Finding]:
    matches = ((t, _EXPERT.match(t.name)) for t in tensors if t.matrix and not t.facts.constant)
    equal = list(_equal(((f"{match[1]} {match[3]}", t) for t, match in matches if match), folder).values())
    if equal:
        t = equal[0][0]
        yield _at(EXPERTS, t, f"and {len(equal[0]) - 1} other experts are equal; {len(equal)} such groups")


def _integers(tensors: Iterable[Held], folder: Folder) -> Iterator[Finding]:
    """Matrices of whole numbers in a model of floats, with nothing beside them that would make them floats."""
    found: dict[str, list[Held]] = defaultdict(list)
    for t in tensors:
        if t.matrix and t.dtype in _WHOLE and t.name.endswith(".weight") and t.item not in folder.ggufs:
            found[t.item.rpartition("/")[0]].append(t)
    for place, group in found.items():
        prefix = f"{place}/" if place else ""
        config = folder.json_object(prefix + "config.json")
        if not isinstance(config.get("model_type"), str) or _QUANTISED.search(" ".join(_keys(config))):
            continue
        if any(_QUANTISED.search(name.removeprefix(prefix)) for name in folder.items if name.startswith(prefix)):
            continue
        parts = Counter(t.name.rpartition(".")[0] for t in tensors if t.item.rpartition("/")[0] == place
                        and not t.name.endswith(".bias"))  # fmt: skip
        bare = [t for t in group if parts[t.name.rpartition(".")[0]] == 1
                and not any(name.startswith(f"{t.name}_") or name.startswith(f"{t.name}.") for name in parts)]  # fmt: skip
        if bare:
            yield _at(INTEGERS, bare[0], f"has no scales; {len(bare)} such matrices")


def _keys(config: dict[str, Any]) -> list[str]:
    """Names of the settings, and of those one level below."""
    return [*config, *(key for value in config.values() if isinstance(value, dict) for key in value)]
