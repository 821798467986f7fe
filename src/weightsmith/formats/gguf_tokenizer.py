"""A Hugging Face tokenizer from the vocabulary inside a GGUF file, as plain JSON.

A GGUF keeps tokens, their kinds and scores, merges and a *name* for how text is cut before merging
(``tokenizer.ggml.pre``); the rest of the pipeline is knowledge about the model. What is written here follows the
original model's own ``tokenizer.json``. Where llama.cpp and the originals agree against transformers' GGUF
reader, we side with them: digits of SmolLM are split one by one, Qwen text is NFC-normalised, Llama 3 and
Tekken look a whole word up before merging, and a SentencePiece prefix space is always added, also before
text that begins with a space and after a special token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from ..errors import FormatError, UnsupportedModel
from .gguf import GgufHeader

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # token types, as llama.cpp numbers them
_LONGEST_PIECE = 256  # characters; a longer piece gets no merges, which keeps the search for them linear
SPACE = "\u2581"  # what SentencePiece writes for a space

#: control tokens that end a turn; generation stops at any of them that the vocabulary has
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_text|>", "<|endoftext|>")

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{{end}}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{{end}}"
    rf"|{{digits}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
_TEKKEN = _CASED.replace("{end}", "").replace("{digits}", r"\p{N}")
_GPT4O = _CASED.replace("{end}", f"{_CONTRACTION}?").replace("{digits}", r"\p{N}{1,3}")


@dataclass(frozen=True, slots=True)
class _Pre:
    """How one family cuts text: a split pattern or GPT-2's own, digits one by one, NFC, whole words first."""

    split: str | None = None
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


#: name of a way to cut text (``tokenizer.ggml.pre``) -> what it does; of names for the same, the usual one is first
_PRE: Mapping[str, _Pre] = {
    "gpt-2": _Pre(),
    "smollm": _Pre(digits=True), "starcoder": _Pre(digits=True), "refact": _Pre(digits=True),
    "llama-bpe": _Pre(_CL100K, ignore_merges=True, add_bos=True),
    "llama3": _Pre(_CL100K, ignore_merges=True, add_bos=True),
    "llama-v3": _Pre(_CL100K, ignore_merges=True, add_bos=True),
    "dbrx": _Pre(_CL100K), "smaug-bpe": _Pre(_CL100K),
    "qwen2": _Pre(_QWEN2, nfc=True), "deepseek-r1-qwen": _Pre(_QWEN2, nfc=True),
    "tekken": _Pre(_TEKKEN, ignore_merges=True, add_bos=True),
    "gpt-4o": _Pre(_GPT4O),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Contents of ``tokenizer.json`` and ``tokenizer_config.json``, and the ids at which generation stops."""

    tokenizer: dict[str, Any]
    config: dict[str, Any]
    stop_ids: tuple[int, ...]


def build_tokenizer(header: GgufHeader) -> TokenizerFiles:
    """The tokenizer that a GGUF file describes; ``header`` must have been read with its arrays.

    Raises:
        UnsupportedModel: a tokenizer model or pre-tokenizer that is not known for sure; it is named.
        FormatError: vocabulary, merges or special ids that contradict each other.
    """
    vocabulary = _Vocabulary(header)
    if vocabulary.model == "gpt2":
        tokenizer, add_bos = _byte_level(vocabulary)
    elif vocabulary.model == "llama":
        tokenizer, add_bos = _sentencepiece(vocabulary), True
    else:
        raise UnsupportedModel(
            f"tokenizer model {vocabulary.model!r}; known: gpt2, llama", where=header.path, hint=_ORIGINAL
        )
    config = _config(vocabulary, add_bos)
    if config["add_bos_token"] or config["add_eos_token"]:
        template = _template(vocabulary, config["add_bos_token"], config["add_eos_token"])
        before = tokenizer["post_processor"]
        tokenizer["post_processor"] = {"type": "Sequence", "processors": [before, template]} if before else template
    return TokenizerFiles(tokenizer, config, vocabulary.stops())


_ORIGINAL = "use the model's original Hugging Face folder instead"


class _Vocabulary:
    """The tokenizer part of the metadata, checked: tokens, types, and special tokens by role."""

    def __init__(self, header: GgufHeader) -> None:
        self.path, self.metadata, self.architecture = header.path, header.metadata, header.architecture
        self.model = self.get("model", str, "")
        self.tokens = self.array("tokens", str)
        types = self.metadata.get("tokenizer.ggml.token_type")
        self.types: list[int] = [1] * len(self.tokens) if types is None else self.array("token_type", int)
        if not self.tokens or len(self.types) != len(self.tokens):
            raise FormatError(f"{len(self.tokens)} tokens and {len(self.types)} token types", where=self.path)
        roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
        self.special = {role: self.id_of(name) for role, name in roles.items()}

    def get(self, name: str, kind: type, default: Any) -> Any:
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if value is not default and type(value) is not kind:
            raise FormatError(f"tokenizer.ggml.{name} is not a {kind.__name__}", where=self.path)
        return value

    def array(self, name: str, kind: type) -> list[Any]:
        value = self.get(name, list, None)
        if value is None or not all(type(v) is kind for v in value):
            raise FormatError(f"tokenizer.ggml.{name} is missing or not an array of {kind.__name__}", where=self.path)
        return list(value)

    def id_of(self, name: str) -> int | None:
        """Id of a special token, ``None`` where the file names none (-1 and its unsigned twin count as none)."""
        number = self.get(f"{name}_token_id", int, None)
        if number is None or number in (-1, 0xFFFFFFFF):
            return None
        if not 0 <= number < len(self.tokens):
            raise FormatError(f"tokenizer.ggml.{name}_token_id is {number}, outside the vocabulary", where=self.path)
        return int(number)

    def text(self, role: str) -> str | None:
        number = self.special[role]
        return None if number is None else self.tokens[number]

    def stops(self) -> tuple[int, ...]:
        """Ids that end a text: the file's own, then the turn ends that it marks as control tokens."""
        named = [self.special["eos"], self.id_of("eot")]
        wanted = set(TURN_ENDS)
        ends = [i for i, t in enumerate(self.tokens) if self.types[i] == _CONTROL and t in wanted]
        return tuple(dict.fromkeys(i for i in [*named, *ends] if i is not None))

    def padding(self) -> int:
        """Number of tokens before the ``[PADn]`` rows that converters append to fill the embedding."""
        end = len(self.tokens)
        while end and self.tokens[end - 1] == f"[PAD{end - 1}]":
            end -= 1
        return end

    def added(self, *, strip_after: bool = False) -> list[dict[str, Any]]:
        """Tokens that are found whole in the text: control ones are special, user-defined ones are not."""
        named = {i for i in self.special.values() if i is not None}
        keep_after = {"<unk>", "<s>", "<|endoftext|>"}
        found = {
            self.tokens[i]: {
                "id": i, "content": self.tokens[i], "single_word": False, "lstrip": False,
                "rstrip": strip_after and kind == _CONTROL and self.tokens[i] not in keep_after,
                "normalized": False, "special": kind == _CONTROL or i in named,
            }
            for i, kind in enumerate(self.types[: self.padding()])
            if (kind in (_CONTROL, _USER_DEFINED) or i in named) and self.tokens[i]
        }  # fmt: skip
        return sorted(found.values(), key=itemgetter("id"))


def _tokenizer(added: list[dict[str, Any]], model: dict[str, Any], **stages: Any) -> dict[str, Any]:
    empty = {"truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None, "post_processor": None}
    bpe = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
    }  # fmt: skip
    return {"version": "1.0", **empty, "added_tokens": added, **stages, "model": bpe | model}


# -- byte-level BPE ----------------------------------------------------------------------------------------


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes: itself, or else the next letter from U+0100 on."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(b if b in plain else next(spare)) for b in range(256)]


def _byte_level(vocabulary: _Vocabulary) -> tuple[dict[str, Any], bool]:
    pre = _PRE.get(_pre_name(vocabulary))
    if pre is None:
        raise UnsupportedModel(
            f"pre-tokenizer {_pre_name(vocabulary)!r}; known: {', '.join(sorted(_PRE))}",
            where=vocabulary.path,
            hint=_ORIGINAL,
        )
    spelling = byte_alphabet()
    alphabet = frozenset(spelling)
    vocab: dict[str, int] = {}
    for i in range(vocabulary.padding()):
        token = vocabulary.tokens[i]
        if vocabulary.types[i] not in (_CONTROL, _USER_DEFINED) and not alphabet.issuperset(token):
            token = "".join(spelling[b] for b in token.encode())  # a plain text where its spelling belongs
        vocab[token] = i
    cut: list[dict[str, Any]] = []
    if pre.digits:
        cut.append({"type": "Digits", "individual_digits": True})
    if pre.split:
        cut.append({"type": "Split", "pattern": {"Regex": pre.split}, "behavior": "Isolated", "invert": False})
    cut.append(_byte_stage(prefix=False, trim=not pre.split, regex=not pre.split))
    tokenizer = _tokenizer(
        vocabulary.added(),
        {"ignore_merges": pre.ignore_merges, "vocab": vocab, "merges": _checked_merges(vocabulary, vocab)},
        normalizer={"type": "NFC"} if pre.nfc else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": cut} if len(cut) > 1 else cut[0],
        post_processor=_byte_stage(prefix=True, trim=False, regex=True),
        decoder=_byte_stage(prefix=True, trim=True, regex=True),
    )
    return tokenizer, pre.add_bos


def _byte_stage(*, prefix: bool, trim: bool, regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": regex}


def _pre_name(vocabulary: _Vocabulary) -> str:
    """The pre-tokenizer's name; old files lack it, and then the architecture tells."""
    name = vocabulary.get("pre", str, "default")
    if name != "default":
        return str(name)
    if vocabulary.architecture in ("qwen2", "qwen3"):
        return "qwen2"
    return "llama-bpe" if vocabulary.architecture == "llama" and len(vocabulary.tokens) == 128_256 else "gpt-2"


def _checked_merges(vocabulary: _Vocabulary, vocab: Mapping[str, int]) -> list[str]:
    merges: list[str] = vocabulary.array("merges", str)
    for merge in merges:
        left, _, right = merge.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise FormatError(f"merge {merge!r} speaks of tokens outside the vocabulary", where=vocabulary.path)
    return merges


# -- SentencePiece BPE -------------------------------------------------------------------------------------


def _sentencepiece(vocabulary: _Vocabulary) -> dict[str, Any]:
    if vocabulary.metadata.get("tokenizer.ggml.precompiled_charsmap"):
        raise UnsupportedModel(
            "a SentencePiece tokenizer with its own normalisation table", where=vocabulary.path, hint=_ORIGINAL
        )
    gemma = vocabulary.architecture.startswith("gemma")
    if gemma:  # runs of spaces come spelled out, while the pieces they merge from are not
        spaces = re.compile(" +")
        vocabulary.tokens = [SPACE * len(t) if spaces.fullmatch(t) else t for t in vocabulary.tokens]
    end = vocabulary.padding()
    vocab = {token: i for i, token in enumerate(vocabulary.tokens[:end])}
    prefix = vocabulary.get("add_space_prefix", bool, not gemma)
    to_piece = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    normalizer: dict[str, Any] = to_piece
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]  # fmt: skip
    if prefix:
        normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, to_piece]}
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    cut = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    unknown = vocabulary.text("unk") or ("<unk>" if "<unk>" in vocab else None)
    model = {
        "unk_token": unknown, "fuse_unk": True, "byte_fallback": True, "vocab": vocab,
        "merges": _merges_from_scores(vocabulary, vocab, by_position=gemma),
    }  # fmt: skip
    return _tokenizer(
        vocabulary.added(strip_after=vocabulary.architecture == "phi3"),
        model,
        normalizer=normalizer,
        pre_tokenizer=cut if gemma else None,
        decoder={"type": "Sequence", "decoders": decoders},
    )


def _merges_from_scores(vocabulary: _Vocabulary, vocab: Mapping[str, int], *, by_position: bool) -> list[str]:
    """Every way to join two pieces into a third, best score of the result first.

    Gemma's scores don't follow its merges; the order of its tokens does. Pieces that text can't produce
    (control, unknown, byte) are never a result. Files that carry merges need none of this.
    """
    if "tokenizer.ggml.merges" in vocabulary.metadata:
        return _checked_merges(vocabulary, vocab)
    scores: list[float] = [] if by_position else vocabulary.array("scores", float)
    if not by_position and len(scores) != len(vocabulary.tokens):
        raise FormatError(f"{len(vocabulary.tokens)} tokens and {len(scores)} scores", where=vocabulary.path)
    found: list[tuple[float, int, int, str]] = []
    never = (_CONTROL, _UNKNOWN, _BYTE)
    for token, i in vocab.items():
        length = len(token)
        if not 1 < length <= _LONGEST_PIECE or vocabulary.types[i] in never or " " in token:
            continue
        rank = float(i) if by_position else -scores[i]
        for cut in range(length - 1, 0, -1):
            left = token[:cut]
            if left in vocab and token[cut:] in vocab:
                found.append((rank, -cut, cut - length, f"{left} {token[cut:]}"))
    found.sort(key=itemgetter(0, 1, 2))
    return [merge for _, _, _, merge in found]


# -- the rest ----------------------------------------------------------------------------------------------


def _template(vocabulary: _Vocabulary, bos: bool, eos: bool) -> dict[str, Any]:
    """The stage that puts the begin and end tokens around one text or two."""
    roles = [role for role, wanted in (("bos", bos), ("eos", eos)) if wanted]
    named = {vocabulary.text(role): vocabulary.special[role] for role in roles}

    def around(letter: str, segment: int) -> list[dict[str, Any]]:
        token = {r: {"SpecialToken": {"id": vocabulary.text(r), "type_id": segment}} for r in roles}
        middle = {"Sequence": {"id": letter, "type_id": segment}}
        return [*([token["bos"]] if bos else []), middle, *([token["eos"]] if eos else [])]

    return {
        "type": "TemplateProcessing", "single": around("A", 0), "pair": around("A", 0) + around("B", 1),
        "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in named.items()},
    }  # fmt: skip


def _config(vocabulary: _Vocabulary, add_bos: bool) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": vocabulary.get("add_bos_token", bool, add_bos) and vocabulary.text("bos") is not None,
        "add_eos_token": vocabulary.get("add_eos_token", bool, False) and vocabulary.text("eos") is not None,
    }
    context = vocabulary.metadata.get(f"{vocabulary.architecture}.context_length")
    if type(context) is int:
        config["model_max_length"] = context
    config |= {f"{role}_token": vocabulary.text(role) for role in ("bos", "eos", "pad", "unk")}
    template = vocabulary.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    return config
