"""Scripts other than Python: shells, PowerShell, batch files, JavaScript, PHP, R, makefiles. They are read line by line, never run.

What is looked for is what no honest installer says. A line is looked at as it stands, and again without the quotes, carets and
backslashes by which a word is broken up; comments, and texts that are only printed, are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...found import Finding
from ..items import Item
from ..listing import shown
from ..rules import Rule
from . import script_rules as rules

MOST_READ = 1 << 23  # bytes of one script
_LONGEST = 4000  # letters of a line that are looked at together
_NAMES = re.compile(r"(?:gnu)?makefile(?:\..*)?|.*\.(?:mk|php\d?|phtml|r|rprofile|zsh|bash|ksh|csh|fish|psm1|wsf|jse?|cjs|mjs|"
      r"ts|vbe|jl|tcl|awk)|"
                    r"\.(?:bashrc|zshrc|profile|bash_profile|envrc|rprofile|zshenv)|dockerfile(?:\..*)?|justfile|[\w-]{1,40}",
                    re.IGNORECASE)
_NO_SCRIPTS = re.compile(r"(?:license|licence|readme|notice|copying|authors|changelog|contributing|version|citation|merges|"
      r"vocab|head|config|"
                         r"description|use[_-]policy|model_card|packed-refs|index|exclude|fetch_head|orig_head)(?:[-_.].*)?",
                         re.IGNORECASE)
_COMMENT = re.compile(r"\s*(?:#(?!!)|//|::|'|--\s|rem\s|@rem\s|\*\s|;)", re.IGNORECASE)
_PRINTED = re.compile(r"\s*@?(?:echo|printf|print|write-host|write-output|console\.log|message|cat)\b[\s(]*(?:-\w+\s+)*"
                      r"(?:\"[^\"$`]*\"|'[^']*')[\s);]*(?:>\s*&2\s*;?)?\s*(?:(?:;|&&)\s*exit\b[^|]*)?", re.IGNORECASE)
_BROKEN_UP = re.compile(r"\\(?=[A-Za-z])|\^|(?<=\w)(?:''|\"\"|`)(?=\w)|(?<=\w)\$@(?=\w)")
_STARTS = re.compile(r"\b(?:exec|execSync|execFile|execFileSync|spawn|spawnSync|fork)\s*\(")
_SHOWS = re.compile(r"\.(?:run|exec|shellexecute)\b", re.IGNORECASE)
_AT_START = re.compile(r"\b(?:system2?|shell|shell\.exec|source|download\.file|eval)\s*\(")


def judged(item: Item) -> bool:
    """Whether a file is a script by what it is, or a text under a name that programs run."""
    if "script" in item.kinds:
        return True
    base = item.basename
    return "text" in item.kinds and _NAMES.fullmatch(base) is not None and not _NO_SCRIPTS.fullmatch(base)


def check(item: Item) -> Iterator[Finding]:
    """What one script does that attacks or is not usual; that it is one, where it says nothing of the kind."""
    name = shown(item.name)
    with item.open() as file:
        data = file.read(MOST_READ + 1)
    text = _decoded(data[:MOST_READ])
    found = _worst(text, item.basename.lower())
    if found is not None:
        rule, what, line, said = found
        yield rule.found(what, file=name, place=f"line {line}" if line else "", evidence=said.strip()[:300])
    elif "script" in item.kinds:
        yield rules.SCRIPT.found("a script", file=name, evidence=text[:300])
    if len(data) > MOST_READ and (found is None or found[0] is not rules.HOSTILE) and "script" in item.kinds:
        yield rules.UNREAD.found(f"{item.size} bytes; the first {MOST_READ} were read", file=name)


def _decoded(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data[: len(data) & ~1].decode("utf-16", "replace")
    return data.decode("utf-8", "replace")


def _worst(text: str, base: str) -> tuple[Rule, str, int, str] | None:
    """The first line that attacks; else the first that is not usual."""
    worth = rules.pattern("worth")
    risky: tuple[Rule, str, int, str] | None = None
    secrets: dict[str, None] = {}
    for number, line in _lines(text):
        for one in dict.fromkeys((line, _BROKEN_UP.sub("", line))):
            if not worth.search(one) and not secrets:
                continue
            if what := _attacks(one, secrets):
                return rules.HOSTILE, what, number, line
            if risky is None and (what := _risks(one)):
                risky = rules.RISKY, what, number, line
    return _as_a_whole(text, base) or risky


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines with their numbers, continued ones put together, without comments and what is only printed."""
    kept, begun = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        begun = begun if kept else number
        kept += line
        if len(kept) < _LONGEST and kept.endswith(("\\", "|", "`", "&&")) and kept.strip():
            kept = kept[:-1] + " " if kept.endswith(("\\", "`")) else kept + " "
            continue
        yield from _pieces(begun, kept)
        kept = ""
    if kept:
        yield from _pieces(begun, kept)


def _pieces(number: int, line: str) -> Iterator[tuple[int, str]]:
    if _COMMENT.match(line) or _PRINTED.fullmatch(line[:2000]):
        return
    for at in range(0, len(line), _LONGEST):
        yield number, line[max(0, at - 500) : at + _LONGEST]


def _attacks(line: str, secrets: dict[str, None]) -> str:
    for what, patterns in rules.attacks():
        if all(pattern.search(line) for pattern in patterns):
            own = what.startswith("sends") and _only_to_the_hub(line)
            if not own:
                return what
    if hit := rules.pattern("secret").search(line):
        if len(secrets) < 50:
            secrets[hit[1] or hit[2]] = None
    elif secrets and rules.pattern("sends").search(line) and not _only_to_the_hub(line):
        used = re.findall(r"\$\{?(\w{1,41})", line)
        if any(name in secrets for name in used):
            return "sends keys or tokens away"
    return ""


def _only_to_the_hub(line: str) -> bool:
    places = rules.pattern("address").findall(line)
    return bool(places) and all(re.match(r"https://huggingface\.co(?![\w.@:-])", place) for place in places)


def _risks(line: str) -> str:
    for what, patterns in rules.risks():
        if all(pattern.search(line) for pattern in patterns):
            if what.startswith("runs what it fetches") and rules.pattern("installers").search(line):
                left = rules.pattern("installers").sub("", line)
                if not rules.pattern("address").search(left) and "$(" not in left:
                    continue
            return what
    return ""


def _as_a_whole(text: str, base: str) -> tuple[Rule, str, int, str] | None:
    """What only several lines together say."""
    if re.search(r"Sockets\.TCPClient", text, re.IGNORECASE) and re.search(r"\biex\b|Invoke-Expression|cmd\.exe", text,
          re.IGNORECASE):
        return rules.HOSTILE, "hands a shell to another machine", 0, "Net.Sockets.TCPClient"
    if re.search(r"\bmk(?:fifo|nod)\b", text) and re.search(r"\bsh\b[^\n|]{0,80}\|\s*(?:nc|ncat|netcat|telnet)\b", text):
        return rules.HOSTILE, "hands a shell to another machine", 0, "mkfifo"
    if re.search(r"\bchild_process\b", text):
        if re.search(r"\bnet\b[\"')\s]", text) and re.search(r"\.connect\s*\(", text) and re.search(r"\.pipe\s*\(", text):
            return rules.HOSTILE, "hands a shell to another machine", 0, "child_process with a connection"
        if _STARTS.search(text):
            return rules.RISKY, "starts programs from JavaScript", 0, "child_process"
    if re.search(r"WScript\.Shell|Shell\.Application", text, re.IGNORECASE) and _SHOWS.search(text):
        return rules.RISKY, "starts programs by way of Windows Script Host", 0, "WScript.Shell"
    if base == ".rprofile" and (hit := _AT_START.search(text)):
        return rules.RISKY, "R runs it at every start in this folder", 0, hit[0]
    return None
