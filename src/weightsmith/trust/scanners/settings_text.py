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
    "like this (\"summarize: \"), which is a note; sentences are instructions.",
    "Read the text; remove it unless you want it in every prompt.",
)  # fmt: skip
RULES = (WORD, PREFIX)
_TASK = re.compile(r"\s*[\w <>-]{1,60}[:>]\s*|\W*")
_WORDS = re.compile(r"[^\W\d_]{2,}")
_SOUNDS = ("musicgen", "parler", "bark", "audiogen", "moshi", "csm", "dia", "higgs")  # what they write are ids of sounds
SENTENCE = 4  # words; a name of something has fewer
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
            task = _TASK.fullmatch(text) is not None or len(_WORDS.findall(text)) < SENTENCE
            yield PREFIX.found(f"{text[:160]!r} before every prompt" + (" of a task" if "." in path else ""), file=file,
                               place=f"{at}.{path}", evidence=text[:300], severity="note" if task else None)  # fmt: skip


def _prefixes(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The prefixes that a pipeline takes from a config: its own, and those of each task."""
    tasks = settings.get("task_specific_params")
    found = [("prefix", settings.get("prefix"))]
    found += [(f"task_specific_params.{name}.prefix"[:120], value.get("prefix"))
              for name, value in (tasks.items() if isinstance(tasks, dict) else ()) if isinstance(value, dict)]  # fmt: skip
    for path, text in found:
        if isinstance(text, str) and text.strip():
            yield path, text
