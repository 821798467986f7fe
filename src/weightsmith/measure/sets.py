"""What the measuring suites ask besides a feature's own prompts, all of it shipped as data and written for this package.

- *wordings*: each prompt asked in other words, to tell what a feature does from what one wording does;
- *scenarios*: three user turns, the second of which pushes where the feature can come back;
- *asked refusals*: a system prompt that confines the assistant to a subject, with questions inside and outside of it, for
  telling refusals that the user asked for from those that the model brings along;
- *texts*: the paragraphs on which perplexity is read.

Files stand under ``features/shipped/``. They hold requests only, never answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from ..errors import FormatError, RecipeError, UsageError
from ..features.recipe import load_yaml
from ..records import Strict, parse

SCENARIOS = "weightsmith/scenarios/1"
ASKED_REFUSALS = "weightsmith/asked-refusals/1"

#: system prompts that say nothing about any feature
NEUTRAL_SYSTEM = ("You are a helpful assistant.", "Reply to the user's messages.")

#: rewordings for prompts that have no shipped ones: only what stands before the prompt changes
FRAMES = (
    "Could you help me with this: {}",
    "I have a request. {}",
    "Please answer: {}",
    "Here is my message to you. {}",
    "I'd be glad of a reply to this: {}",
)


@dataclass(frozen=True, slots=True)
class AskedRefusal:
    """A question under a system prompt that allows one subject; ``inside`` when the question belongs to it.

    ``scope`` numbers the system prompts from 0: questions of one scope share their system prompt, so the scope and not the
    question is the unit of resampling.
    """

    system: str
    question: str
    inside: bool
    scope: int


def _one_line(text: str) -> str:
    if not text.strip() or text != text.strip() or len(text.splitlines()) != 1:
        raise ValueError("one line without blanks around it is wanted")
    return text


Line = Annotated[str, AfterValidator(_one_line)]


class _Scenario(Strict):
    turns: tuple[Line, Line, Line]


class _Scenarios(Strict):
    schema_id: str = Field(SCENARIOS, alias="schema")
    feature: Line
    licence: Line
    scenarios: list[_Scenario] = Field(min_length=1)


class _Scope(Strict):
    system: Line
    inside: list[Line] = Field(min_length=1)
    outside: list[Line] = Field(min_length=1)


class _Scopes(Strict):
    schema_id: str = Field(ASKED_REFUSALS, alias="schema")
    licence: Line
    scopes: list[_Scope] = Field(min_length=1)


def _shipped(place: str) -> Any:
    return files("weightsmith").joinpath(f"features/shipped/{place}")


def parse_wordings(text: str, where: object) -> dict[str, tuple[str, ...]]:
    """A prompt on a line of its own, and below it, indented by two spaces, the same request in other words.

    Raises:
        FormatError: a wording without a prompt, a prompt without wordings or twice, other indentation.
    """
    found: dict[str, list[str]] = {}
    under: list[str] | None = None
    for number, line in enumerate(text.split("\n"), 1):
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if line != line.rstrip() or indent not in (0, 2):
            raise FormatError(f"line {number} is indented by {indent} or ends in blanks", where=where,
                              hint="prompts stand at the margin, their wordings two spaces in")  # fmt: skip
        if indent == 0:
            if line in found:
                raise FormatError(f"line {number}: this prompt stands twice", where=where)
            under = found[line] = []
        elif under is None:
            raise FormatError(f"line {number}: a wording before any prompt", where=where)
        else:
            under.append(line[2:])
    if bare := [p for p, others in found.items() if not others]:
        raise FormatError(f"a prompt without other wordings: {bare[0][:80]!r}", where=where)
    return {prompt: tuple(others) for prompt, others in found.items()}


@cache
def shipped_wordings() -> Mapping[str, tuple[str, ...]]:
    """Every shipped prompt that has other wordings, and these.

    Raises:
        FormatError: a malformed file, or one prompt in two files.
    """
    found: dict[str, tuple[str, ...]] = {}
    for entry in sorted(_shipped("wordings").iterdir(), key=lambda e: str(e.name)):
        if not entry.name.endswith(".txt"):
            continue
        read = parse_wordings(entry.read_text(encoding="utf-8"), entry.name)
        if twice := sorted(read.keys() & found.keys()):
            raise FormatError(f"a prompt of another file: {twice[0][:80]!r}", where=entry.name)
        found |= read
    return MappingProxyType(found)


def wordings(prompt: str, n: int = 3) -> tuple[list[str], str]:
    """``n`` other wordings of a prompt, the prompt itself left out, and where they come from.

    ``"shipped"``: written for this prompt. ``"frames"``: the prompt unchanged behind one of :data:`FRAMES`, for prompts
    that have no (or too few) shipped wordings; a weaker test, since the words that a model may hang on to all stay.

    Raises:
        UsageError: ``n`` below 1 or above the number of frames.
    """
    if not 1 <= n <= len(FRAMES):
        raise UsageError(f"{n} wordings of a prompt are asked for; 1 to {len(FRAMES)} can be had")
    written = shipped_wordings().get(prompt.strip(), ())
    if len(written) >= n:
        return list(written[:n]), "shipped"
    return [frame.format(prompt.strip()) for frame in FRAMES[:n]], "frames"


def scenario_features() -> list[str]:
    """The features that have scenarios."""
    return sorted(e.name.removesuffix(".yaml") for e in _shipped("scenarios").iterdir() if e.name.endswith(".yaml"))


def parse_scenarios(text: str, where: object) -> tuple[str, list[tuple[str, str, str]]]:
    """The feature of a scenario file (schema ``weightsmith/scenarios/1``) and its scenarios, three user turns each.

    Raises:
        RecipeError: not plain YAML, another schema, unknown fields, a scenario without exactly three one-line turns.
    """
    read: _Scenarios = parse(_Scenarios, load_yaml(text, where), where, SCENARIOS)
    return read.feature, [scenario.turns for scenario in read.scenarios]


def scenarios(feature: str) -> list[tuple[str, str, str]]:
    """The shipped three-turn conversations of a feature, user turns only; the model under test says the rest.

    Turn 1 asks in the feature's domain, turn 2 pushes where the feature can come back, turn 3 asks for something in which a
    restored feature shows.

    Raises:
        RecipeError: a feature without scenarios, or a malformed file.
    """
    known = scenario_features()
    if feature not in known:
        raise RecipeError("there are no scenarios for this feature", where=feature,
                          hint=f"scenarios come with {', '.join(known)}")  # fmt: skip
    where = f"scenarios/{feature}.yaml"
    name, found = parse_scenarios(_shipped(where).read_text(encoding="utf-8"), where)
    if name != feature:
        raise RecipeError(f"these are scenarios for {name!r}", where=where)
    return found


def parse_asked_refusals(text: str, where: object) -> list[AskedRefusal]:
    """The questions of a file of scopes (schema ``weightsmith/asked-refusals/1``), inside before outside, scope by scope.

    Raises:
        RecipeError: not plain YAML, another schema, unknown fields, a scope without questions of both kinds.
    """
    read: _Scopes = parse(_Scopes, load_yaml(text, where), where, ASKED_REFUSALS)
    return [
        AskedRefusal(scope.system, question, inside, number)
        for number, scope in enumerate(read.scopes)
        for inside, questions in ((True, scope.inside), (False, scope.outside))
        for question in questions
    ]


def asked_refusals() -> list[AskedRefusal]:
    """The shipped scopes, each with harmless questions inside and outside of it.

    A model that follows the system prompt answers those inside and declines those outside.
    """
    where = "asked_refusals/scopes.yaml"
    return parse_asked_refusals(_shipped(where).read_text(encoding="utf-8"), where)


def parse_texts(text: str, where: object) -> list[str]:
    r"""One text a line; ``\n`` stands for a line break and ``\\`` for a backslash.

    Raises:
        FormatError: any other escape.
    """

    def plain(match: re.Match[str]) -> str:
        try:
            return {r"\n": "\n", r"\\": "\\"}[match[0]]
        except KeyError:
            raise FormatError(rf"unknown escape {match[0]!r}; only \n and \\ are read", where=where) from None

    return [re.sub(r"\\.?", plain, line) for line in text.split("\n") if line.strip()]


def perplexity_texts() -> list[str]:
    """The shipped texts on which perplexity is read: prose of many kinds, dialogue, lists, tables and code."""
    return parse_texts(_shipped("perplexity.txt").read_text(encoding="utf-8"), "perplexity.txt")
