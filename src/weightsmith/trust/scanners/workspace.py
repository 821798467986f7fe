"""Settings by which a program runs something as soon as it is used in this folder: git, Mercurial, editors, desktops.

None of them belongs to a model. What git itself writes into a clone (remotes, branches, Git LFS) is expected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Literal

from ...found import Finding
from ..items import Folder, Item
from ..kinds import as_text
from ..listing import shown
from ..rules import Rule

HOOK = Rule(
    "git-hook", "suspicious", "A git hook comes with the model",
    "Git runs it, as you, at the next commit, checkout or merge in this folder. Hooks are never part of what is cloned.",
    "Remove it, and ask how it got there.",
)  # fmt: skip
OPENED = Rule(
    "folder-runs-command", "suspicious", "A setting that runs a command once a program is used in this folder",
    "Git runs programs that a repository's configuration names (`core.fsmonitor` at every `git status`), also in a folder that "
    "only looks like a repository; editors, shells and desktops have files of their own that start commands or fetch from other "
    "machines.",
    "Don't use git, an editor or a file manager in this folder before the file is gone. No model needs it.",
    ("CVE-2022-24765", "https://git-scm.com/docs/git-config#Documentation/git-config.txt-safebareRepository"),
)  # fmt: skip
RULES = (HOOK, OPENED)

MOST = 1 << 20  # bytes of such a file
MOST_SAID = 20  # findings about one file
LFS_HOOK = 1024  # bytes; what stands behind them would run as well
_HOOKS = re.compile(
    rb"#!/bin/sh\s+command -v git-lfs >/dev/null 2>&1 \|\| \{ (?:printf|echo) >&2(?: \"[^\"`$\n]{0,400}\"){1,2}; exit 2; \}\s+"
    rb"git lfs [a-z-]{4,20} \"\$@\"\s*"
)
_SECTION = re.compile(r'\s*\[\s*([\w.-]+)\s*(?:"((?:[^"\\]|\\.)*)")?\s*\]')
_PLAIN = re.compile(r"(?:true|false|yes|no|on|off|\d*)", re.IGNORECASE)
_LFS = re.compile(r"git-lfs (?:(?:clean|smudge)(?: --skip)?(?: --)? %f|filter-process(?: --skip)?)")
#: helpers and editors that everybody has; another one is a program that somebody chose
_USUAL = re.compile(r"|store|cache(?: --timeout[= ]\d+)?|manager(?:-core)?|osxkeychain|wincred|libsecret|oauth|nano|vim?|emacs|"
                    r"less|more|cat|code --wait", re.IGNORECASE)
_OWN_PLACES = re.compile(r"(?:credential\.helper|core\.(?:editor|pager)|sequence\.editor|pager\.\w+)")
#: keys whose value git runs, as `section.key` without what stands in quotes between them
_RUN = re.compile(
    r"core\.(?:sshcommand|gitproxy|editor|pager|hookspath|askpass|alternaterefscommand)|sequence\.editor|pager\.\w+|alias\.[\w-]+|"
    r"credential\.helper|(?:diff|merge|filter|difftool|mergetool|browser|man|guitool)\.(?:command|textconv|driver|clean|smudge|process|cmd|path)|"
    r"diff\.external|gpg\.program|interactive\.difffilter|web\.browser|uploadpack\.packobjectshook|remote\.(?:uploadpack|receivepack|vcs)|"
    r"trailer\.(?:command|cmd)|include\.path|includeif\.path|protocol\.allow|tar\.command|sendemail\.(?:smtpserver|tocmd|cccmd)|"
    r"receive\.procreceiverefs|ssh\.variant|submodule\.update"
)


def check(folder: Folder) -> Iterator[Finding]:
    """Findings of all such files of a folder."""
    for item in folder.items.values():
        path = "/" + item.name.lower()  # most disks of desktops don't tell `.GIT` from `.git` (CVE-2014-9390)
        if "/.git/hooks/" in path and not path.endswith(".sample") and item.size:
            own = item.size <= LFS_HOOK and _HOOKS.fullmatch(item.head[:LFS_HOOK])  # what Git LFS writes into every clone
            yield HOOK.found("git runs it" + (", as Git LFS writes it" if own else ""), file=shown(item.name),
                             evidence=item.head[:300].decode("utf-8", "replace"), severity="note" if own else None)  # fmt: skip
        for pattern, read in _READERS:
            if pattern.search(path) and (pattern is not _GIT or _repository(item, folder)):
                yield from _found(item, read)
                break


def _found(item: Item, read: Callable[[str], Iterator[str]]) -> Iterator[Finding]:
    if item.size > MOST:
        yield OPENED.found(f"it has {item.size} bytes, and no more than {MOST} are read", file=shown(item.name), severity="unknown")
        return
    data = item.read(MOST)
    text = as_text(data)
    told = {"note": 0, None: 0}  # notes don't use up the place of what counts
    for said in read(data.decode("latin-1") if text is None else text):  # a byte that is no text doesn't stop git
        severity = _severity(said)
        told[severity] += 1
        if told[severity] <= MOST_SAID:
            yield OPENED.found(said[:300], file=shown(item.name), evidence=said, severity=severity)


def _severity(said: str) -> Literal["note"] | None:
    return "note" if said.startswith("in a container") else None


def _repository(item: Item, folder: Folder) -> bool:
    """Whether a file named `config` is that of a git directory: git goes by what lies beside it, not by the folder's name."""
    place = item.name.removesuffix(item.basename)
    beside = item.basename.lower() == "config.worktree" or any(f"{place}{name}" in folder.items for name in ("HEAD", "head"))
    return beside or f"/{place}".lower().endswith("/.git/")


def _git(text: str) -> Iterator[str]:
    """What a git configuration makes git run; also of `.gitmodules`."""
    section = sub = ""
    for line in re.sub(r"\\\r?\n", "", text).splitlines():
        begin = 0
        while at := _SECTION.match(line, begin):
            section, sub, begin = at[1].lower(), at[2] or "", at.end()
        line = line[begin:]
        key, _, value = line.partition("=")
        key, value = key.strip().lower(), value.strip().strip('"').strip()
        if not key or key[0] in "#;":
            continue
        whole, full = f"{section.split('.')[0]}.{key}", f"{section}{'.' if sub else ''}{sub}.{key}"
        transport = key in ("url", "pushurl", "insteadof") and (re.match(r"[\w+-]+::|-", value) or re.match(r"[\w+-]+::|-", sub))
        own = whole == "core.fsmonitor" and not _PLAIN.fullmatch(value)
        runs = _RUN.fullmatch(whole) and not _LFS.fullmatch(value)
        if whole == "submodule.update" or section == "alias":
            runs = runs if value.startswith("!") else None
        if _OWN_PLACES.fullmatch(whole) and _USUAL.fullmatch(value):
            runs = None
        if transport or own or runs:
            yield f"git runs what {full} says: {value}"


def _mercurial(text: str) -> Iterator[str]:
    section = ""
    for line in text.splitlines():
        if at := _SECTION.match(line):
            section = at[1].lower()
        elif section in ("hooks", "extensions", "alias", "extdiff", "merge-tools") and "=" in line and line.strip()[0] not in "#;":
            yield f"Mercurial runs what [{section}] says: {line.strip()}"


def _keys(text: str) -> Iterator[tuple[str, object]]:
    """Every key of a JSON file with its value; comments, which editors allow, are no reason to see nothing."""
    try:
        pending = [json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))]
    except (ValueError, RecursionError):
        yield from ((key, value) for key, value in re.findall(r'"(\w+)"\s*:\s*"?([^",}]*)', text))
        return
    while pending:
        here = pending.pop()
        if isinstance(here, dict):
            yield from here.items()
        pending += here.values() if isinstance(here, dict) else here if isinstance(here, list) else []


def _json(keys: str, said: str, only: str = "") -> Callable[[str], Iterator[str]]:
    def read(text: str) -> Iterator[str]:
        for key, value in _keys(text):
            if re.fullmatch(keys, key) and value and (not only or value == only):
                yield f"{said} {key}: {json.dumps(value, default=str)[:200]}"

    return read


def _container(text: str) -> Iterator[str]:
    for key, value in _keys(text):
        if re.fullmatch(r"(?:initialize|onCreate|updateContent|post\w+)Command", key) and value:
            yield f"{'the editor runs' if key.startswith('initialize') else 'in a container the editor runs'} {key}: {value}"


def _line(pattern: str, said: str) -> Callable[[str], Iterator[str]]:
    def read(text: str) -> Iterator[str]:
        for at in re.finditer(pattern, text, re.MULTILINE | re.IGNORECASE):
            yield f"{said}: {at.group().strip()[:200]}"

    return read


def _local(text: str) -> Iterator[str]:
    """Programs that opencode starts; commands that are texts for the model have other forms."""
    for key, value in _keys(text):
        if key == "command" and isinstance(value, list) and value:
            yield f"a coding agent starts: {json.dumps(value, default=str)[:200]}"


#: what a program loads or runs before anything else, and paths of interpreters inside the folder
_LOADED = re.compile(r"LD_\w+|DYLD_\w+|PYTHON(?:PATH|STARTUP|HOME|BREAKPOINT)|NODE_OPTIONS|BASH_ENV|ENV|PROMPT_COMMAND|"
                     r"PERL5\w+|RUBYOPT")
_INSIDE = re.compile(r"(?:\./|\.\\|\$\{workspaceFolder\})(?!.{0,80}(?:venv|conda|[/\\]env|node_modules)\b)")


def _editor(text: str) -> Iterator[str]:
    """What settings of Visual Studio Code run at the first use of a terminal or of a language."""
    for key, value in _keys(text):
        if re.fullmatch(r"terminal\.integrated\.env\.\w+", key) and isinstance(value, dict):
            yield from (f"each terminal of the editor gets {name}={told!s:.160}" for name, told in value.items()
                        if _LOADED.fullmatch(name) and told)  # fmt: skip
        elif re.search(r"(?:interpreter|executable|python|shell)Path$|\.path$|automationShell|shell\.\w+$", key,
                       re.IGNORECASE) and isinstance(value, str) and _INSIDE.match(value):  # fmt: skip
            yield f"the editor runs a file of this folder, {key}: {value[:160]}"


_GIT = re.compile(r"/config(?:\.worktree)?$")
#: an address of packages that is not one of those which everybody uses
_INDEX = (r"^[ \t]*(?:(?:extra-|default-)?index(?:-url)?|find-links|url)[ \t]*=(?![^\n]*https://(?:pypi\.org|files\.pythonhosted\.org|"
          r"download\.pytorch\.org|pypi\.nvidia\.com|pypi\.ngc\.nvidia\.com|test\.pypi\.org)(?:[/\"']|\s|$))[^\n]*(?:://|\.\./).*$")
_ELSEWHERE = r"^[ \t]*\w{1,40}[ \t]*=[ \t]*(?:file:|\\\\|//).*$"
_READERS: tuple[tuple[re.Pattern[str], Callable[[str], Iterator[str]]], ...] = (
    (_GIT, _git), (re.compile(r"/\.(?:gitmodules|gitconfig|lfsconfig)$"), _git), (re.compile(r"/\.hg/hgrc$"), _mercurial),
    (re.compile(r"/\.vscode/tasks\.json$"), _json("runOn", "the editor runs a task by itself,", "folderOpen")),
    (re.compile(r"/\.(?:claude|cursor|gemini|codex)/(?:settings(?:\.local)?|hooks)\.json$"),
     _json("command", "a coding agent runs")),
    (re.compile(r"/(?:\.mcp|\.cursor/mcp|\.vscode/mcp|mcp)\.json$"), _json("command", "a coding agent starts")),
    (re.compile(r"/\.codex/config\.toml$"), _line(r"^[ \t]*(?:command|notify)[ \t]*=.*$", "a coding agent starts")),
    (re.compile(r"/opencode\.jsonc?$"), _local), (re.compile(r"/\.vscode/settings\.json$"), _editor),
    (re.compile(r"/(?:pip\.(?:conf|ini)|uv\.toml|pipfile)$"), _line(_INDEX, "the installer takes packages from elsewhere")),
    (re.compile(r"/\.?devcontainer\.json$"), _container), (re.compile(r"/\.envrc$"), _line(r"^[ \t]*[^\s#].*$", "the shell runs")),
    (re.compile(r"\.desktop$"), _line(r"^(?:Exec|TryExec)[ \t]*=.*$", "the desktop starts")),
    (re.compile(r"/desktop\.ini$|\.(?:url|library-ms|searchconnector-ms)$", re.IGNORECASE),
     _line(_ELSEWHERE, "the desktop fetches")),
    (re.compile(r"/autorun\.inf$", re.IGNORECASE),
     _line(r"^[ \t]*(?:open|shellexecute|shell\\\w{1,40}\\command)[ \t]*=.*$", "the desktop starts")),
)  # fmt: skip
