"""Activations of a feature's two sides: prompts rendered, answers generated where the site needs them, spans read.

Sites: ``last_instruction_token`` (the last token of the user's text), ``last_template_token`` (the last before the
answer), ``response_mean`` (answers generated under each persona, then re-read *without* it, averaged over their
tokens), ``text_mean`` (labelled texts, averaged). Everything is cached by the digest of model, prompts and options.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import RecipeError
from ..runtime import RunningModel, Sequence, capture, generate
from ..runtime.load import Conversation
from ..storage import cache_dir, digest_of, write_cache
from .prompts import PromptSets, PromptSplit
from .recipe import FeatureSpec

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class ExtractOptions:
    """What is read: ``site``, ``point`` (``resid_pre`` or ``resid_post``), layers, and the length of answers."""

    site: str
    point: str = "resid_post"
    layers: tuple[int, ...] = ()
    response_tokens: int = 24


@dataclass
class Side:
    """One side of a contrast on one part: means ``[n, layers, d]``, token norms ``[n, layers]``, answers as ids."""

    means: Array
    norms: Array
    answers: list[list[int]] = field(default_factory=list)


@dataclass
class Activations:
    """Both sides on one part; ``paired`` when row k of one belongs to row k of the other."""

    shows: Side
    lacks: Side
    paired: bool


def conversation(spec: FeatureSpec, side: str, prompt: str, persona: bool) -> Conversation:
    """The messages for one prompt of one side; the persona's system message only when asked for."""
    system = getattr(spec.contrast, side) if spec.contrast.kind == "personas" and persona else None
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": prompt}]


def read_part(
    model: RunningModel, spec: FeatureSpec, sets: PromptSets, part: str, options: ExtractOptions
) -> Activations:
    """Activations of both sides on one part (``extract`` or ``select``).

    Raises:
        RecipeError: the two sides come to the same activations.
    """
    split = sets.part(part)
    sides = {s: _read_side(model, spec, s, split, part, options) for s in ("shows", "lacks")}
    if np.array_equal(sides["shows"].means, sides["lacks"].means):
        raise RecipeError("both sides of the contrast come to identical activations: there is nothing to find",
                          where=spec.name)  # fmt: skip
    return Activations(sides["shows"], sides["lacks"], spec.contrast.kind in ("personas", "pairs"))


def _read_side(
    model: RunningModel, spec: FeatureSpec, side: str, split: PromptSplit, part: str, options: ExtractOptions
) -> Side:
    prompts: tuple[str, ...] = getattr(split, side)
    key = {
        "version": 3, "model": model.identity.digest, "ran": [model.device, str(model.dtype)],
        "template": digest_of(getattr(model.tokenizer, "chat_template", None) or ""),
        "contrast": spec.contrast.model_dump(), "side": side, "prompts": list(prompts), "site": options.site,
        "point": options.point, "layers": list(options.layers), "tokens": options.response_tokens,
    }  # fmt: skip
    path = cache_dir() / "activations" / f"{digest_of(key)[:40]}.npz"
    if model.options.use_cache and path.is_file():
        cached = _load(path)
        if cached is not None:
            return cached
    sequences, answers = _sequences(model, spec, side, prompts, part, options)
    means, norms = capture(model, sequences, options.layers, options.point, f"reading {part} activations ({side})")
    result = Side(means, norms, answers)
    if model.options.use_cache:
        buffer = io.BytesIO()
        text = np.frombuffer(json.dumps(answers).encode(), np.uint8)
        np.savez(buffer, means=means, norms=norms, answers=text)
        write_cache(path, buffer.getvalue())
    return result


def _load(path: Any) -> Side | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            return Side(data["means"], data["norms"], json.loads(data["answers"].tobytes()))
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
        return None  # a damaged cache entry is made again


def _sequences(
    model: RunningModel, spec: FeatureSpec, side: str, prompts: tuple[str, ...], part: str, options: ExtractOptions
) -> tuple[list[Sequence], list[list[int]]]:
    if options.site == "text_mean":
        rows = [model.tokens(p, special=True) for p in prompts]
        return [Sequence(tuple(r), 0, len(r)) for r in rows], []
    if options.site == "response_mean":
        asked = [model.encode(conversation(spec, side, p, True)) for p in prompts]
        answers = generate(model, asked, options.response_tokens, f"answering {part} prompts ({side})")
        plain = [model.encode(conversation(spec, side, p, False)) for p in prompts]
        # an empty answer has no tokens to average: its last template token stands for it
        return [
            Sequence((*p, *a), len(p) if a else len(p) - 1, len(p) + len(a))
            for p, a in zip(plain, answers, strict=True)
        ], answers
    found = []
    for prompt in prompts:
        messages = conversation(spec, side, prompt, True)
        ids = model.encode(messages)
        last = len(ids) - 1 if options.site == "last_template_token" else _last_instruction(model, messages)
        found.append(Sequence(tuple(ids), last, last + 1))
    return found, []


def _last_instruction(model: RunningModel, messages: Conversation) -> int:
    """Position of the token that holds the last character of the user's text."""
    text, content = model.render(messages), messages[-1]["content"].rstrip()
    end = text.rfind(content)
    if end < 0:  # a template that rewrites the text: the last template token is the best there is
        return len(model.encode(messages)) - 1
    end += len(content) - 1
    encoded = model.tokenizer(text, add_special_tokens=not model.has_template, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    return max(i for i, (a, b) in enumerate(offsets) if a <= end and b > a)
