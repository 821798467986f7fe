"""A Markdown file as plain parts with line numbers: front matter, tables, code blocks and prose. Nothing is rendered.

Cards are hostile input. Every scan is linear in the size of the file: patterns have no nested repetition, are bounded,
or run on pieces of at most :data:`LINE` characters. HTML is never executed; comments, scripts and styles are dropped,
other tags become spaces.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from dataclasses import dataclass, field

LIMIT = 1 << 20  # bytes of a card that are read
LINE = 4000  # characters of one line, or of one joined paragraph
CELLS = 32
SENTENCES, TABLES = 20_000, 500  # of one card; no card that is meant to be read has so many
QUOTED = 160

_BREAK = re.compile(r"\r\n|\r|\n")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})\s*([A-Za-z0-9_+-]{0,20})")
_RULE = re.compile(r"[\s:|\-]{2,}")
_HR = re.compile(r" {0,3}-{5,}\s*")
_HEADING = re.compile(r" {0,3}(#{1,6})\s+(.*)")
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,3}[.)])\s+")
_LINK = re.compile(r"!?\[([^\[\]]{0,300})\]\(([^()\s]{0,500})(?:\s[^()]{0,100})?\)")
_HUB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,95})/?")
_URL = re.compile(r"https?://\S{1,1000}")
_TAG = re.compile(r"<[A-Za-z/!][^<>]{0,1000}>")
_SENTENCE_END = re.compile(r"(?<=[.!?;])(?<!vs\.)(?<!e\.g\.)(?<!i\.e\.)(?<!approx\.)\s")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,95}")


@dataclass(frozen=True)
class Row:
    """Cells of one table row, cleaned."""

    line: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A pipe table: its header and its rows."""

    head: Row
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Block:
    """A fenced code block; ``line`` is that of its first line of text."""

    language: str
    line: int
    text: str


@dataclass(frozen=True)
class Sentence:
    """One sentence of a paragraph, with what was said before it in the same paragraph."""

    text: str
    before: str
    offset: int
    starts: tuple[tuple[int, int], ...]

    def line(self, position: int = 0) -> int:
        """Line number of a character of the sentence."""
        return self.starts[bisect_right(self.starts, (self.offset + position, 1 << 60)) - 1][1]


@dataclass
class Page:
    """The parts of a card. ``lines`` are its raw lines, for quoting."""

    lines: list[str]
    front: str = ""
    tables: list[Table] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    sentences: list[Sentence] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def quote(self, line: int) -> str:
        """The source line, shortened, safe to show."""
        return escaped(self.lines[line - 1].strip()) if 0 < line <= len(self.lines) else ""


def escaped(text: str, limit: int = QUOTED) -> str:
    """Text shortened to ``limit`` characters, with control, format and direction characters as visible escapes."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(_visible(c) for c in short)


def _visible(c: str) -> str:
    if c == "\t":
        return " "
    if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}"
    return c


def read_page(text: str) -> Page:
    """Split a card into its parts; lines that are longer than :data:`LINE` are cut, which is noted."""
    page = Page(_BREAK.split(text.removeprefix("\ufeff")))
    long = [i for i, line in enumerate(page.lines, 1) if len(line) > LINE]
    if long:
        page.notes.append(f"{len(long)} lines are longer than {LINE} characters; only their beginnings were read "
                          f"(line {long[0]})")  # fmt: skip
    lines = [line[:LINE] for line in page.lines]
    start = _front_matter(page, lines)
    lines = _without_html(lines, start)
    end = _copied_card(page, lines, start)
    _Body(page, lines[:end]).read(start)
    if len(page.sentences) >= SENTENCES or len(page.tables) >= TABLES:
        page.notes.append(f"only {SENTENCES} sentences and {TABLES} tables were read")
    if any("<td" in line[:LINE].lower() for line in page.lines[:end]):
        page.notes.append("tables written in HTML are not read")
    return page


def _front_matter(page: Page, lines: list[str]) -> int:
    """Take the YAML between two ``---`` at the top; the index of the first line after it."""
    if lines[0].rstrip() != "---":
        return 0
    for i in range(1, len(lines)):
        if lines[i].rstrip() in ("---", "..."):
            page.front = "\n".join(lines[1:i])
            return i + 1
    page.notes.append("the front matter has no end")
    return 0


def _without_html(lines: list[str], start: int) -> list[str]:
    """Comments, scripts and styles blanked, across lines."""
    found, until = lines[:start], ""
    for line in lines[start:]:
        kept, rest = [], line
        while rest:
            low = rest.lower()
            if until:
                at = low.find(until)
                if at < 0:
                    break
                rest, until = rest[at + len(until) :], ""
                continue
            hits = [(at, tag) for tag in ("<!--", "<script", "<style") if (at := low.find(tag)) >= 0]
            if not hits:
                kept.append(rest)
                break
            at, tag = min(hits)
            kept.append(rest[:at])
            until = "-->" if tag == "<!--" else f"</{tag[1:]}>"
            rest = rest[at + len(tag) :]
        found.append(" ".join(kept))
    return found


def _copied_card(page: Page, lines: list[str], start: int) -> int:
    """Where the base's own card begins, which heretic copies under a rule of dashes; its claims are not this model's."""
    told = False
    for i in range(start, len(lines)):
        low = lines[i].lower()
        told = told or ("heretic" in low and ("decensored" in low or "made using" in low))
        if told and _HR.fullmatch(lines[i]) and (i == start or not lines[i - 1].strip()):
            if any(line.strip() for line in lines[i + 1 :]):
                page.notes.append(f"lines {i + 2} to {len(lines)} are taken for the base's own card, copied under a "
                                  "rule by the tool that wrote this one; what they say was not read")  # fmt: skip
            return i
    return len(lines)


class _Body:
    """Walks over the lines after the front matter."""

    def __init__(self, page: Page, lines: list[str]) -> None:
        self.page, self.lines = page, lines
        self.pieces: list[tuple[int, str]] = []
        self.size = 0

    def read(self, i: int) -> None:
        while i < len(self.lines) and len(self.page.sentences) < SENTENCES and len(self.page.tables) < TABLES:
            line = self.lines[i]
            if fence := _FENCE.match(line):
                i = self._fenced(i, fence[1], fence[2])
            elif "|" in line and i + 1 < len(self.lines) and _is_rule(self.lines[i + 1]):
                i = self._table(i)
            else:
                self._prose(i, line)
                i += 1
        self._end_paragraph()

    def _fenced(self, i: int, mark: str, language: str) -> int:
        self._end_paragraph()
        end = i + 1
        while end < len(self.lines):
            bare = self.lines[end].strip()
            if bare.startswith(mark) and not bare.strip(mark[0]):
                break
            end += 1
        self.page.blocks.append(Block(language.lower(), i + 2, "\n".join(self.lines[i + 1 : end])))
        return end + 1

    def _table(self, i: int) -> int:
        self._end_paragraph()
        head = Row(i + 1, _cells(self.lines[i]))
        rows = []
        i += 2
        while i < len(self.lines) and "|" in self.lines[i]:
            rows.append(Row(i + 1, _cells(self.lines[i])))
            i += 1
        self.page.tables.append(Table(head, tuple(rows)))
        return i

    def _prose(self, i: int, line: str) -> None:
        bare = line.strip().lstrip("> ")
        heading, item = _HEADING.match(line), _ITEM.match(f"{bare} ")
        if not bare or heading or item or bare.startswith("|"):
            self._end_paragraph()
        text = clean(heading[2].rstrip("# ") if heading else bare[item.end() :] if item else bare)
        if text:
            if self.size + len(text) > LINE:
                self._end_paragraph()
            self.pieces.append((i + 1, text))
            self.size += len(text) + 1
        if heading or line.endswith("  ") or line.rstrip().endswith(("\\", "<br>", "<br/>")):  # a hard break
            self._end_paragraph()

    def _end_paragraph(self) -> None:
        if not self.pieces:
            return
        starts, at = [], 0
        for number, piece in self.pieces:
            starts.append((at, number))
            at += len(piece) + 1
        whole = " ".join(piece for _, piece in self.pieces)
        self.pieces, self.size = [], 0
        begin = 0
        for end in [*(m.end() for m in _SENTENCE_END.finditer(whole)), len(whole)]:
            if text := whole[begin:end].strip():
                before = whole[max(0, begin - 600) : begin]
                self.page.sentences.append(Sentence(text, before, begin, tuple(starts)))
            begin = end


def _is_rule(line: str) -> bool:
    """Whether a line is the rule under a table's header."""
    return "-" in line and "|" in line and _RULE.fullmatch(line.strip()) is not None


def _cells(line: str) -> tuple[str, ...]:
    bare = line.strip().replace("\\|", "\0")
    bare = bare.removeprefix("|").removesuffix("|")
    return tuple(clean(c.replace("\0", "|")) for c in bare.split("|", CELLS)[:CELLS])


def clean(text: str) -> str:
    """Text of Markdown: links become the name that they stand for, tags and marks of emphasis go."""
    text = _TAG.sub(" ", _LINK.sub(_linked, text))
    text = _URL.sub(lambda m: hub[1] if (hub := _HUB.fullmatch(m[0].rstrip(".,;)"))) else " ", text)
    text = text.replace("\\_", "_").replace("\\*", "*").replace("**", "").replace("`", "")
    return " ".join(text.replace("&nbsp;", " ").replace("&lt;", "<").replace("&gt;", ">").split()).strip("* ")


def _linked(match: re.Match[str]) -> str:
    """``[words](address)``: a model's name on the hub where the address is one and the words are not, else the words."""
    if match[0].startswith("!"):
        return " "
    hub = _HUB.fullmatch(match[2])
    return hub[1] if hub and not _HUB_NAME.fullmatch(match[1].strip("`* ")) else match[1]
