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
#: a mark and the one word that it heads (a role, a channel), a key of JSON
_HEADED = re.compile(f"(?:{_TOKENS.pattern})[ \\t]?[a-z_]{{1,20}}(?=[ \\t]*(?:\\n|<|\\[|$))|[\"'][\\w ]{{1,40}}[\"']\\s*:")
#: words of a format that stand for a role, a state or a value rather than for anything said
_STRUCTURE = re.compile(
    r"(?i)system|user|human|assistant|model|bot|tools?|functions?|calls?|observation|ipython|environment|developer|name|role|type|"
    r"think(?:ing)?|thought|reasoning|analysis|final|commentary|channel|respon[sd]e|results?|outputs?|content|message|text|image|"
    r"video|audio|null|none|true|false|error|id"
)
WORD = re.compile(r"[^\W\d_]{2,}")
#: the words of one that is written without spaces, each with a capital
_CAPITALS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def _spelled_apart(word: str) -> list[str]:
    """The words of ``SeveralWordsInOne``; whole where a single letter would be left of it, which is none."""
    if not word.isascii() or word.islower() or word.isupper() or word[1:].islower():
        return [word]
    parts = _CAPITALS.findall(word)
    return parts if min(map(len, parts)) > 1 else [word]


def words_in(text: str, step: int = 2) -> list[str]:
    """The words of a text; of scripts that put no spaces between them two letters each, from every ``step``-th on."""
    found: list[str] = []
    for word in WORD.findall(text):
        for part in _SCRIPTS.findall(word):
            found += [part[n : n + 2] for n in range(0, len(part), step)] if _UNSPACED.match(part) else _spelled_apart(part)
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
        text = text.replace(known, "\n") if known.strip() else text  # a space alone stands between all words
    found = []
    for line in _TOKENS.sub(_without_mark, text).split("\n"):
        if len(words_in(line)) >= 3:
            found.append(line.strip())
    return found


def strange_words(text: str, known: set[str], inputs: tuple[str, ...] = ()) -> list[str]:
    """Words of a text that are neither ``known`` nor inputs nor part of a format."""
    if set(words_in(text)) <= {*known, *inputs}:  # as in most texts
        return []
    for one in sorted(inputs, key=len, reverse=True):
        text = text.replace(one, " ") if one.strip() else text
    plain = _TOKENS.sub(" ", _HEADED.sub(" ", text))
    return [word for word in dict.fromkeys(words_in(plain)) if word not in known and not _STRUCTURE.fullmatch(word)]
