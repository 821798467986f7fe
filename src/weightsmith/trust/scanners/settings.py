"""Settings that steer what is written: tokens that are banned, forced or pushed, and generation that can't stop.

``generation_config.json`` counts, and where it is silent the older keys of ``config.json``. Which tokens a setting is
about is shown as text, through the vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from ...found import Finding
from ..items import Folder, Scanner
from ..listing import shown
from . import gguf_settings, settings_text
from .facts import Place, places
from .settings_rules import (
    ABSURD,
    DIFFERS,
    GENERATION,
    IMPOSSIBLE,
    MARKS,
    MODEL,
    NO_END,
    NO_STOP,
    NOTED,
    ODD_STOP,
    OTHER,
    OUTSIDE,
    RULES,
    STEERS,
    numbers,
)
from .token_settings import named_elsewhere
from .vocabulary import Vocabulary, is_words, readable, vocabularies

_TRANSCRIBES = ("whisper", "moonshine", "speech", "granite_speech", "voxtral", "kyutai", "musicgen", "bark", "clvp", "parakeet")
_LISTS = ("bad_words_ids", "force_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_decoder_ids", "sequence_bias")
_ENDING = re.compile(r"(?i)end|eo[stdm]|/s|stop|sep")
_BANS = ("suppress_tokens", "bad_words_ids")
_ENDS = ("forced_bos_token_id", "forced_eos_token_id")
_COUNTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size", "head_dim",
           "num_key_value_heads")  # fmt: skip
#: ids that a class of the library has when its config is made without any
_DEFAULT_IDS = {
    50256: ("gpt2", "gptj", "gpt_neo", "codegen", "whisper", "starcoder2", "gpt_bigcode"), 50257: ("whisper",), 11: ("falcon",),
    49406: ("clip", "clip_text_model"), 49407: ("clip", "clip_text_model"), 32000: ("phi3", "phimoe"),
    50279: ("olmo", "olmo2", "olmo3", "olmoe"), 255001: ("cohere", "cohere2"), 128000: ("smollm3", "bitnet"),
    128001: ("smollm3", "bitnet"), 151329: ("glm", "glm4"), 151336: ("glm", "glm4"), 151338: ("glm", "glm4"),
}  # fmt: skip
#: families that hear: their models of letters never generate
_HEARS = re.compile(r"(?:wav2vec2|hubert|wavlm|unispeech|sew|data2vec-audio|mctct)(?:-|$)")
_TINY = 5000  # tokens of a model that is made for tests
_PROMPT = re.compile(r"system_prompt|system_message|default_prompt|preamble|instruction", re.IGNORECASE)
_KNOWN_ROPES = {"default", "linear", "dynamic", "yarn", "longrope", "llama3", "su", "mrope", "proportional", "ntk", "none"}


class Settings(Scanner):
    """Generation settings and the numbers of the config."""

    name = "settings"
    rules = (*RULES, *gguf_settings.RULES, *settings_text.RULES)
    needs_bytes = False
    about = "Settings that ban, force or suppress tokens, that never stop, or that no model works with"

    def scan_folder(self, folder: Folder) -> Iterator[Finding]:
        """Each directory with a config, and each GGUF file, which carries its own settings."""
        for place in places(folder):
            if place.config or place.json("generation_config.json"):
                yield from _Settings(place).findings()
        for name in folder.ggufs:
            yield from gguf_settings.findings(folder, name)


class _Settings:
    """The settings of one directory."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.generation = place.json("generation_config.json")
        self.config = place.config

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The vocabulary that shows what ids mean."""
        return next(vocabularies(self.place), None)

    @cached_property
    def sources(self) -> list[tuple[str, Mapping[str, Any], str]]:
        """``(file, settings, place)`` where a loader looks for generation settings."""
        config, generation = (shown(self.place.prefix + n) for n in ("config.json", "generation_config.json"))
        found: list[tuple[str, Mapping[str, Any], str]] = [(generation, self.generation, "$"), (config, self.config, "$")]
        for key in ("text_config", "decoder", "llm_config"):
            if isinstance(inner := self.config.get(key), dict):
                found.append((config, inner, f"$.{key}"))
        return found

    @cached_property
    def limit(self) -> int | None:
        """Ids below this one have an embedding; ``None`` where nobody says."""
        if self.place.rows is not None:
            return self.place.rows
        one = self.place.kind and not self.place.config.get("is_encoder_decoder") and not self.place.several
        size = self.place.text.get("vocab_size") if one else None
        return size if type(size) is int and size > 0 else None

    @cached_property
    def ends(self) -> set[int]:
        """Ids that end an answer, as the first file that names any says."""
        for _, settings, _ in self.sources:
            value = settings.get("eos_token_id")
            if found := {i for i in (value if isinstance(value, list) else [value]) if type(i) is int}:
                return found
        return set()

    def findings(self) -> Iterator[Finding]:
        """All of them."""
        for file, settings, at in self.sources:
            yield from self._steering(file, settings, at)
            yield from self._special(file, settings, at)
            yield from numbers(settings, GENERATION, file, at)
            yield from self._others(file, settings, at)
        yield from settings_text.check(self.place, self.vocabulary, self.sources, self._marker)
        for file, settings, at in self.sources[1:]:
            yield from numbers(settings, MODEL, file, at)
            yield from _counts(settings, file, at)
            yield from _rope(settings, file, at)
        yield from self._stopping()

    # -- tokens --

    def _steering(self, file: str, settings: Mapping[str, Any], at: str) -> Iterator[Finding]:
        """Tokens that are banned, forced or pushed."""
        for key in _LISTS:
            value = settings.get(key)
            if value:
                ids = _ids(value, pairs=key == "forced_decoder_ids", biased=key == "sequence_bias")
                yield from self._about(key, ids, value, file, at)
        for key in _ENDS:
            value = settings.get(key)
            ids = [i for i in (value if isinstance(value, list) else [value]) if type(i) is int]
            if ids and not all(self._marker(i) for i in ids):
                yield from self._about(key, ids, value, file, at)

    def _about(self, key: str, ids: list[int], value: Any, file: str, at: str) -> Iterator[Finding]:
        plain = {i for i in ids if not self._marker(i)}
        gone = _pushed_down(value) if key == "sequence_bias" else _banned(value) if key in _BANS else []
        if self.ends and self.ends <= set(gone):
            yield NO_STOP.found(f"{key} forbids the token that ends an answer", file=file, place=f"{at}.{key}")
        texts = [self._text(i) for i in ids]
        transcribes = self.place.kind.startswith(_TRANSCRIBES) or self.config.get("is_encoder_decoder") is True
        worded = [t for i, t in zip(ids, texts, strict=True)
                  if i in plain and re.search(r"[^\W\d_]{2}", t) and not t.startswith("id ")]  # fmt: skip
        if transcribes and (self.vocabulary is None or len(worded) * 4 <= len(ids)):
            plain = set()
        rule = STEERS if plain or not ids or (key == "force_words_ids" and not transcribes) else NOTED
        yield rule.found(f"{key} is about {len(ids)} tokens, e.g. {', '.join(repr(t) for t in (worded or texts)[:6])}", file=file,
                         place=f"{at}.{key}", evidence=", ".join(repr(t) for t in [*worded, *texts][:60]))  # fmt: skip

    def _text(self, number: int) -> str:
        known = self.vocabulary.texts.get(number) if self.vocabulary else None
        return f"id {number}" if known is None else readable(known)

    def _marker(self, number: int) -> bool:
        """Whether an id stands for no text: special, spelled like a special one, or named by the config as one."""
        if self.vocabulary is not None and number in self.vocabulary.texts:
            return self.vocabulary.is_marker(number)
        return self.vocabulary is None and number in self._named

    @cached_property
    def _named(self) -> set[int]:
        found: set[int] = set()
        for _, settings, _ in self.sources:
            for key, value in settings.items():
                if key.endswith("token_id"):
                    found.update(i for i in (value if isinstance(value, list) else [value]) if type(i) is int)
        return found

    def _special(self, file: str, settings: Mapping[str, Any], at: str) -> Iterator[Finding]:
        """Special ids: inside the embeddings, of the right type, and no ordinary words."""
        for name in ("bos", "eos", "pad", "decoder_start", "sep", "cls", "mask", "unk"):
            key = f"{name}_token_id"
            value = settings.get(key)
            ids = value if isinstance(value, list) else [] if value is None else [value]
            if any(type(i) is not int for i in ids) or (isinstance(value, list) and not value):
                yield IMPOSSIBLE.found(f"{key} is {value!r:.80}", file=file, place=f"{at}.{key}")
                continue
            outside = [i for i in ids if i < 0 or (self.limit is not None and i >= self.limit)]
            if outside and name != "pad" and (self._writes_nothing or self._default(name, value)):
                yield OUTSIDE.found(f"{key} is {value!r:.60}, and there are {self.limit} tokens", file=file, place=f"{at}.{key}",
                                    severity="note")  # fmt: skip
            elif outside and len(outside) == len(ids) and name == "eos":
                yield NO_STOP.found(f"{key} is {value!r:.60}, and there are {self.limit} tokens", file=file, place=f"{at}.{key}",
                                    severity="note" if ids == [-1] else None)  # fmt: skip
            elif outside:
                near = self.limit is not None and max(outside) < self.limit + 64
                soft = name in ("pad", "sep", "mask", "cls", "unk") and (near or min(ids) == -1)
                yield OUTSIDE.found(f"{key} is {value!r:.60}, and there are {self.limit} tokens", file=file, place=f"{at}.{key}",
                                    severity="note" if soft or min(ids) < 0 else None)  # fmt: skip
            if name == "eos" and self.vocabulary is not None:
                texts = self.vocabulary.texts
                words = [i for i in ids if i in texts and not self._marker(i)]
                if words and not (ids == [2] and self._unasked_end(settings)):
                    yield ODD_STOP.found(f"{key} {words[0]} is {self._text(words[0])!r:.40}", file=file, place=f"{at}.{key}")

    def _unasked_end(self, settings: Mapping[str, Any]) -> bool:
        """Whether 2 as the end is what the config's class says when nobody asks: of CLIP's first configs, and of models that
        name a letter for each stretch of sound and never write on until an end."""
        hears = bool(_HEARS.match(self.place.kind)) and not self.place.generates
        return str(settings.get("model_type")).startswith("clip") or hears

    @property
    def _writes_nothing(self) -> bool:
        """Whether the config names classes, and none of them writes text."""
        return bool(self.place.architectures) and not self.place.generates

    def _default(self, name: str, value: Any) -> bool:
        """Whether an id is the one that the library gives to a small model of this kind when nobody says another."""
        ids = [i for i in (value if isinstance(value, list) else [value]) if type(i) is int]
        tiny = (self.limit or _TINY) < _TINY and name in ("bos", "eos", "decoder_start")
        return tiny and all(self.place.kind in _DEFAULT_IDS.get(i, ()) for i in ids)

    def _stopping(self) -> Iterator[Finding]:
        """Whether anything ends an answer, and whether the files agree on it."""
        if not self.place.generates or self.config.get("is_encoder_decoder"):
            return
        yield from self._without_text()
        file = shown(self.place.prefix + "generation_config.json")
        ends = {f: set(v if isinstance(v, list) else [v]) for f, s, at in self.sources
                if at == "$" and (v := s.get("eos_token_id")) is not None and _hashable(v)}  # fmt: skip
        named = self.place.json("tokenizer_config.json").get("eos_token")
        text = named.get("content") if isinstance(named, dict) else named
        inner = [v for _, s, at in self.sources if at != "$" and (v := s.get("eos_token_id")) is not None]
        if not ends and not inner and not text:
            yield NO_END.found("neither the config nor the tokenizer names one", file=file, place="$.eos_token_id")
        if isinstance(text, str) and self.vocabulary is not None:
            if text not in self.vocabulary.ids:
                yield NO_STOP.found(f"the tokenizer's end token {text!r:.60} is not in its vocabulary",
                                    file=shown(self.place.prefix + "tokenizer_config.json"), place="$.eos_token",
                                    severity="note" if ends and (_is_partial(self.vocabulary) or
                                                                 named_elsewhere(self.place, text)) else None)  # fmt: skip
            elif is_words(text):
                yield ODD_STOP.found(f"the tokenizer's end token is {text!r:.60}",
                                     file=shown(self.place.prefix + "tokenizer_config.json"), place="$.eos_token")  # fmt: skip
            elif ends and text not in self._others_named and set().union(*ends.values()) <= set(self._others_named.values()):
                others = sorted(set().union(*ends.values()), key=str)
                yield ODD_STOP.found(f"answers end with {self._text(others[0])!r:.40}, which begins a text or stands for what is "
                                     f"unknown; the tokenizer ends with {text!r:.40}", file=file,
                                     place="$.eos_token_id")  # fmt: skip
            elif ends and not any(self.vocabulary.ids[text] in list(e) for e in ends.values()):  # a list: anything can be compared
                others = sorted(set().union(*ends.values()), key=str)
                yield DIFFERS.found(f"the tokenizer ends with {text!r:.60} ({self.vocabulary.ids[text]}), the settings with "
                                    f"{others!r:.60}", file=file, place="$.eos_token_id")  # fmt: skip
        if len(ends) == 2 and not set.intersection(*ends.values()):
            yield DIFFERS.found(f"eos_token_id: {' and '.join(repr(sorted(e, key=str))[:40] for e in ends.values())}", file=file,
                                place="$.eos_token_id")  # fmt: skip

    @cached_property
    def _others_named(self) -> dict[str, int]:
        """Tokens that begin a text or stand for what is unknown, and their ids: models never write them."""
        config = self.place.json("tokenizer_config.json")
        named = [config.get(key) for key in ("bos_token", "unk_token")]
        texts = [n.get("content") if isinstance(n, dict) else n for n in named]
        if texts[0] == texts[1]:
            return {}  # one token for everything, as older families have it
        known = self.vocabulary.ids if self.vocabulary is not None else {}
        return {t: known[t] for t in texts if isinstance(t, str) and type(known.get(t)) is int and not _ENDING.search(t)}

    def _without_text(self) -> Iterator[Finding]:
        """An end that generation can't come to: none at all, or only ids that stand for no token."""
        file = shown(self.place.prefix + "generation_config.json")
        if self.generation.get("eos_token_id", 0) is None and self.config.get("eos_token_id") is not None:
            yield NO_STOP.found("eos_token_id is null, which hides the one of config.json", file=file, place="$.eos_token_id")
        known = self.vocabulary.texts if self.vocabulary is not None and self.vocabulary.source.endswith("tokenizer.json") else {}
        used = self.generation.get("eos_token_id")
        ids = used if isinstance(used, list) else [used]
        theirs = self.config.get("eos_token_id")
        if (known and ids and all(type(i) is int and 0 <= i not in known for i in ids) and type(theirs) is int
                and theirs in known):  # fmt: skip
            yield NO_STOP.found(f"eos_token_id is {used!r:.60}, an id without a token; config.json says {theirs}", file=file,
                                place="$.eos_token_id")  # fmt: skip

    # -- the rest --

    def _others(self, file: str, settings: Mapping[str, Any], at: str) -> Iterator[Finding]:
        """Settings that are neither ids nor plain numbers."""
        if settings.get("watermarking_config"):
            yield MARKS.found("watermarking_config is set", file=file, place=f"{at}.watermarking_config",
                              evidence=str(settings["watermarking_config"])[:200])  # fmt: skip
        writes = self.place.generates and not self.config.get("is_encoder_decoder")  # speech has larger penalties
        if settings.get("no_repeat_ngram_size") == 1 or settings.get("encoder_no_repeat_ngram_size") == 1:
            yield ABSURD.found("no token may be written twice", file=file, place=f"{at}.no_repeat_ngram_size")
        elif settings.get("no_repeat_ngram_size") == 2 and writes:
            yield OTHER.found("no pair of tokens may be written twice", file=file, place=f"{at}.no_repeat_ngram_size")
        stops = settings.get("stop_strings")
        texts = [s for s in (stops if isinstance(stops, list) else [stops]) if isinstance(s, str)]
        for text in texts:
            word = (is_words(text) and "\n" not in text and not text.rstrip().endswith(":")) or len(text.strip()) <= 1
            rule = ODD_STOP if word else OTHER
            yield rule.found(f"answers end at {text!r:.60}", file=file, place=f"{at}.stop_strings")
        if settings.get("do_sample") is True and settings.get("temperature") == 0 and type(settings["temperature"]) in (int, float):
            yield IMPOSSIBLE.found("do_sample with a temperature of 0", file=file, place=f"{at}.temperature")
        penalty = settings.get("repetition_penalty")
        if isinstance(penalty, float | int) and 3 < penalty <= 5 and writes:
            yield ABSURD.found(f"repetition_penalty is {penalty!r:.40}", file=file, place=f"{at}.repetition_penalty")
        decay = settings.get("exponential_decay_length_penalty")
        if isinstance(decay, list) and len(decay) == 2 and isinstance(decay[1], (int, float)) and not 0.5 <= decay[1] <= 3:
            yield ABSURD.found(f"exponential_decay_length_penalty is {decay!r:.60}", file=file,
                               place=f"{at}.exponential_decay_length_penalty")  # fmt: skip
        for key in ("assistant_model", "assistant_model_name_or_path", "draft_model", "speculative_model"):
            if isinstance(settings.get(key), str):
                yield OTHER.found(f"{key} names another model, {settings[key]!r:.100}", file=file, place=f"{at}.{key}",
                                  severity="suspicious")  # fmt: skip
        if settings.get("use_cache") is False:
            yield OTHER.found("use_cache is off: every token costs as much as the whole text", file=file, place=f"{at}.use_cache")
        for key in ("prompt_lookup_num_tokens", "token_healing", "guidance_scale"):
            if settings.get(key) not in (None, False, 1, 1.0):
                yield OTHER.found(f"{key} is {settings[key]!r:.40}", file=file, place=f"{at}.{key}")
        for key, value in settings.items():
            if isinstance(value, str) and _PROMPT.search(key):
                yield OTHER.found(f"{key} holds a text of {len(value)} letters", file=file, place=f"{at}.{key}", evidence=value)


def _is_partial(vocabulary: Vocabulary) -> bool:
    """Whether a carrier holds the model's own tokens only, so that added ones stand elsewhere."""
    return not vocabulary.source.endswith("tokenizer.json")


def _hashable(value: Any) -> bool:
    return all(isinstance(v, (int, str)) for v in (value if isinstance(value, list) else [value]))


def _banned(value: Any) -> list[int]:
    """Ids that are banned alone, not as part of a longer text."""
    entries = value if isinstance(value, list) else [value]
    return [i for e in entries for i in (e if isinstance(e, list) and len(e) == 1 else [e]) if type(i) is int]


def _pushed_down(value: Any) -> list[int]:
    """Ids of single tokens that a ``sequence_bias`` makes all but impossible."""
    listed = value if isinstance(value, list) else []
    pairs = list(value.items()) if isinstance(value, dict) else [e for e in listed if isinstance(e, list) and len(e) == 2]
    found = []
    for tokens, bias in pairs:
        ids = _ids([[tokens, bias]], biased=True)
        if len(ids) == 1 and isinstance(bias, (int, float)) and bias <= -5:
            found += ids
    return found


def _ids(value: Any, *, pairs: bool = False, biased: bool = False) -> list[int]:
    """Every token id in a list of ids, of lists of ids, of ``[position, id]`` pairs or of ``[ids, bias]`` pairs."""
    entries: list[Any] = list(value.items()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    if pairs:
        entries = [e[1:2] if isinstance(e, list) else e for e in entries]
    if biased:
        entries = [e[0] if isinstance(e, (list, tuple)) and e else e for e in entries]
    found: list[int] = []
    pending = entries[::-1]
    while pending:
        here = pending.pop()
        if type(here) is int:
            found.append(here)
        elif isinstance(here, list):
            pending += here[::-1]
        elif biased and isinstance(here, str):
            found += [int(n) for n in re.findall(r"\d{1,9}", here)]
    return found


def _counts(settings: Mapping[str, Any], file: str, at: str) -> Iterator[Finding]:
    """Sizes of the model: whole, positive, and heads that divide what they share."""
    for key in _COUNTS:
        value = settings.get(key)
        if value is None or isinstance(value, (list, dict)):
            continue
        if type(value) is not int or value < 0 or value > 1 << 31:
            yield IMPOSSIBLE.found(f"{key} is {value!r:.40}", file=file, place=f"{at}.{key}")


_LONGEST = 1 << 20  # positions of the longest contexts


def _rope(settings: Mapping[str, Any], file: str, at: str) -> Iterator[Finding]:
    """Rotary embeddings: kind, factors and base."""
    for key in ("rope_scaling", "rope_parameters"):
        value = settings.get(key)
        if value and not isinstance(value, dict):
            yield IMPOSSIBLE.found(f"{key} is {value!r:.60}", file=file, place=f"{at}.{key}")
            continue
        parts = [value] if value else []
        parts += [v for v in (value or {}).values() if isinstance(v, dict)]
        for part in parts:
            kind = part.get("rope_type", part.get("type"))
            if kind is not None and str(kind) not in _KNOWN_ROPES:
                yield OTHER.found(f"{key} of an unknown kind, {kind!r:.40}", file=file, place=f"{at}.{key}")
            begun = part.get("original_max_position_embeddings")  # few positions, and a large factor that makes many of them
            most_factor = max(512.0, _LONGEST / begun) if kind == "yarn" and type(begun) is int and begun >= 512 else 512.0
            for name, most in (("factor", most_factor), ("attention_factor", 100.0), ("rope_theta", 1e13),
                               ("low_freq_factor", 1e4), ("high_freq_factor", 1e4), ("beta_fast", 1e4), ("beta_slow", 1e4)):
                number = part.get(name)
                if isinstance(number, (int, float)) and not isinstance(number, bool):
                    if number <= 0 or (isinstance(number, float) and not math.isfinite(number)):
                        yield IMPOSSIBLE.found(f"{name} is {number!r}", file=file, place=f"{at}.{key}.{name}")
                    elif number > most or (name == "rope_theta" and number < MODEL[name][2]):
                        yield ABSURD.found(f"{name} is {number!r}", file=file, place=f"{at}.{key}.{name}")
            for name in ("long_factor", "short_factor"):
                numbers = part.get(name)
                if isinstance(numbers, list) and not all(isinstance(n, (int, float)) and 0 < n < 1e4 for n in numbers):
                    yield IMPOSSIBLE.found(f"{name} holds something else than positive numbers", file=file,
                                           place=f"{at}.{key}.{name}")  # fmt: skip
