"""Marks that the chat template writes, and whether the tokenizer still reads each of them as one token.

A mark of a conversation is a token that is looked for before anything else is done to a text. Without its entry among the added
tokens, or with one that only matches between spaces, the text of the mark is cut into letters like any other: the model, which
learned the mark as one token, no longer sees who speaks. Marks that the vocabulary has no token for (Llama 2's ``[INST]``,
``### Instruction:``) are meant to be read as text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...found import Finding
from ..listing import shown
from ..rules import Rule
from .facts import Place, named_templates
from .vocabulary import Vocabulary, looks_special

CUT = Rule(
    "marks-cut-to-pieces", "suspicious", "Marks of the chat template are not read as one token",
    "The vocabulary has a token for the mark, and nothing makes the tokenizer find it in a text: its entry among the added tokens "
    "is missing, or says `single_word`, which no mark beside a letter is. The model does not see who speaks.",
    "Take the tokenizer of the base model.",
    ("https://huggingface.co/docs/tokenizers/api/added-tokens",),
)  # fmt: skip
RULES = (CUT,)
_BEGINS = "<[{|"
_GIVEN = ("bos_token", "eos_token")  # which loaders give to a template by name
_SHOWN = 12


def check_marks(place: Place, vocabulary: Vocabulary) -> Iterator[Finding]:
    """Findings about the marks of a directory's chat templates, as its ``tokenizer.json`` reads them."""
    templates = "\n".join(named_templates(place).values()) if vocabulary.source.endswith("tokenizer.json") else ""
    if not templates:
        return
    file = shown(vocabulary.source)
    texts = set(_strings([place.json("tokenizer_config.json").get(key) for key in _GIVEN if key in templates]))
    alone = [a.text for a in vocabulary.added if a.single_word]
    decoder = place.json("tokenizer_config.json").get("added_tokens_decoder")
    alone += [str(e.get("content")) for e in (decoder.values() if isinstance(decoder, dict) else ())
              if isinstance(e, dict) and e.get("single_word") is True]  # fmt: skip
    if cut := [t for t in dict.fromkeys(alone) if _is_mark(t) and (t in templates or t in texts)]:
        yield CUT.found(f"{len(cut)} marks are only found between spaces, e.g. {cut[0]!r:.60}", file=file, place="$.added_tokens",
                        evidence=", ".join(f"{t!r:.40}" for t in cut[:_SHOWN]))  # fmt: skip
    if vocabulary.kind != "BPE":
        return  # other models find a piece of the vocabulary wherever it stands
    found = {a.text for a in vocabulary.added} | _named(place)
    # what merges make is an ordinary token: nobody but a list of added tokens can find the others
    lost = [t for t in vocabulary.base if t[:1] in _BEGINS and t not in found and _is_mark(t) and t in templates
            and vocabulary.rank(t) is None]  # fmt: skip
    if lost:
        yield CUT.found(f"{len(lost)} marks are in the vocabulary and not among the added tokens, e.g. {lost[0]!r:.60}", file=file,
                        place="$.added_tokens", evidence=", ".join(f"{t!r:.40}" for t in lost[:_SHOWN]))  # fmt: skip


def _named(place: Place) -> set[str]:
    """Tokens that loaders add because a settings file names them."""
    found = set(place.json("added_tokens.json"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        for key, value in place.json(name).items():
            if key.endswith(("_token", "_tokens", "added_tokens_decoder")):
                found.update(_strings(value))
    return found


def _is_mark(text: str) -> bool:
    return len(text) >= 3 and text[0] in _BEGINS and looks_special(text)


def _strings(value: Any, depth: int = 4) -> Iterator[str]:
    """Every text within a setting."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)) and depth:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner, depth - 1)
