"""Settings that put text where the user wrote none, or take ordinary words for padding and beginnings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...found import Finding
from ..rules import Rule
from .facts import Place
from .vocabulary import Vocabulary, is_words, readable

WORD = Rule(
    "special-id-is-a-word", "suspicious", "An ordinary word is used for padding, or begins every answer",
    "Where no mask is given, generation takes every padding token of a prompt for nothing: a prompt with that word is read without "
    "it. A decoder that starts from a word has said it before it has read anything.",
    "Compare the id with the base model's.",
    ("https://huggingface.co/docs/transformers/main_classes/text_generation",),
)  # fmt: skip
PREFIX = Rule(
    "prompt-prefix", "suspicious", "The settings put text before every prompt",
    "Pipelines write `prefix` before whatever the user asks, and show nothing of it. Models that were trained on tasks name theirs "
    "like this (\"summarize: \"), which is a note; sentences are instructions, and so are words before what a chat model is asked.",
    "Read the text; remove it unless you want it in every prompt.",
)  # fmt: skip
RULES = (WORD, PREFIX)
_TASK = re.compile(r"\s*[\w <>-]{1,60}[:>]\s*|\W*")
_WORDS = re.compile(r"[^\W\d_]{2,}")
_SOUNDS = ("musicgen", "parler", "bark", "audiogen", "moshi", "csm", "dia", "higgs")  # what they write are ids of sounds
_ENDED = re.compile(r"[.!?。！？]\W*$")  # what ends like a sentence
SENTENCE = 4  # words; a name of something has fewer
NAMED = 2  # words, where a model goes on with what it reads and knows no tasks by name
Sources = list[tuple[str, Mapping[str, Any], str]]


def check(place: Place, vocabulary: Vocabulary | None, sources: Sources, marker: Callable[[int], bool]) -> Iterator[Finding]:
    """Findings of the settings files of a directory; ``marker`` tells which ids stand for no text."""
    sound = place.kind.startswith(_SOUNDS)
    for file, settings, at in sources:
        for key in ("pad_token_id", "decoder_start_token_id"):
            value = settings.get(key)
            if vocabulary is None or sound or type(value) is not int:
                continue
            text = vocabulary.texts.get(value)
            if text is not None and is_words(text) and not marker(value):
                yield WORD.found(f"{key} {value} is {readable(text)!r:.40}", file=file, place=f"{at}.{key}")
        for path, text in _prefixes(settings):
            count = len(_WORDS.findall(text))
            fewest = NAMED if _goes_on(settings) or _ENDED.search(text) else SENTENCE
            task = _TASK.fullmatch(text) is not None or count < fewest
            yield PREFIX.found(f"{text[:160]!r} before every prompt" + (" of a task" if "." in path else ""), file=file,
                               place=f"{at}.{path}", evidence=text[:300], severity="note" if task else None)  # fmt: skip


def _goes_on(settings: Mapping[str, Any]) -> bool:
    """Whether these are the settings of a causal language model."""
    classes = settings.get("architectures")
    names = [one for one in classes if isinstance(one, str)] if isinstance(classes, list) else []
    named = any("CausalLM" in one or "LMHead" in one for one in names)
    return named and settings.get("is_encoder_decoder") is not True


def _prefixes(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The prefixes that a pipeline takes from a config: its own, and those of each task."""
    tasks = settings.get("task_specific_params")
    found = [("prefix", settings.get("prefix"))]
    found += [(f"task_specific_params.{name}.prefix"[:120], value.get("prefix"))
              for name, value in (tasks.items() if isinstance(tasks, dict) else ()) if isinstance(value, dict)]  # fmt: skip
    for path, text in found:
        if isinstance(text, str) and text.strip():
            yield path, text
