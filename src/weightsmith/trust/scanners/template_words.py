"""The words of a text, for whoever has to tell sentences from the marks of a format."""

from __future__ import annotations

import re

#: what may be a mark of a format; between bars with two spaces at the most, without them with none
_TOKENS = re.compile(
    r"<[|｜][^<>\s]{0,60}(?: [^<>\s]{1,40}){0,2}[|｜]?>|<[^<>\s|]{0,60}(?: [^<>\s|]{1,40}){0,2}[|｜]>|"
    r"</?[^<>\s]{1,40}>|\[/?[A-Z_]{2,40}\]"
)
#: letters of scripts that put no spaces between words
_LETTERS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNSPACED = re.compile(f"[{_LETTERS}]")
_SCRIPTS = re.compile(f"[{_LETTERS}]+|[^{_LETTERS}]+")
WORD = re.compile(r"[^\W\d_]{2,}")


def words_in(text: str, step: int = 2) -> list[str]:
    """The words of a text; of scripts that put no spaces between them two letters each, from every ``step``-th on."""
    found: list[str] = []
    for word in WORD.findall(text):
        for part in _SCRIPTS.findall(word):
            found += [part[n : n + 2] for n in range(0, len(part), step)] if _UNSPACED.match(part) else [part]
    return found


def known_words(*texts: str) -> set[str]:
    """The words of texts, wherever in them a word of two letters is taken to begin."""
    return set(words_in("\n".join(texts), 1))


def _without_mark(token: re.Match[str]) -> str:
    """A line break in the place of a mark; what only looks like one and is a sentence without spaces stays."""
    return token[0] if len(_UNSPACED.findall(token[0])) > 8 else "\n"


def text_lines(text: str, inputs: tuple[str, ...] = ()) -> list[str]:
    """Lines of natural language (three words or more) that are not inputs or control tokens."""
    for known in sorted(inputs, key=len, reverse=True):
        text = text.replace(known, "\n")
    found = []
    for line in _TOKENS.sub(_without_mark, text).split("\n"):
        if len(words_in(line)) >= 3:
            found.append(line.strip())
    return found
