"""What a template's source shows without being run: reaches for Python's internals, characters that can't be seen, text
that was written to be hidden from the user."""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from jinja2 import Environment, nodes

from .template_marks import INTERNAL, OverBudget

MOST_FOLDED = 2_000  # computed names that are worked out
_BY_ATTRIBUTE = ("map", "selectattr", "rejectattr", "sort", "groupby", "unique", "sum", "min", "max", "join", "dictsort")
_FIELD = re.compile(r"\{[^{}]*(?:\.|\[)\s*_*(?:" + INTERNAL.pattern.replace(r"__\w*", r"__\w+__") + r")")
_ALONE = frozenset(("self", "lipsum", "cycler", "joiner", "request", "config", "url_for", "get_flashed_messages", "__builtins__"))

_COVERT = tuple(re.compile(pattern, re.IGNORECASE | re.DOTALL) for pattern in (
    r"\b(?:do not|don't|never|without|must not)\s+(?:ever\s+)?(?:reveal|mention|disclos\w+|tell|inform\w*|admit\w*|acknowledg\w+|"
    r"notify\w*|alert\w*)\b[^.\n]{0,60}\b(?:instruction|system prompt|hidden|secret|these (?:rule|note)|"
    r"this (?:note|rule|message|text|addition|change|behaviou?r|fact|to (?:the )?user))",
    r"\b(?:recommend|promot\w+|suggest|favou?r|prefer|prais\w+|advertis\w+|always|steer|push)\b[^.\n]{0,120}"
    r"\b(?:do not|don't|never)\s+(?:ever\s+)?(?:mention|reveal|disclose|admit|say|tell)\s+(?:this|it|that|so)\b",
    r"\b(?:end|finish|conclude|close|begin|start)\s+(?:each|every|all|any|your|the)\b[^.\n]{0,40}\bwith\b[^.\n]{0,80}(?:https?://|www\.)\S",
    r"!\[[^\]\n]{0,80}\]\(https?://[^)\s]{1,200}\?[^)\s]{0,80}=\)",
    r"\b(?:tell|instruct|advise|ask|recommend|suggest|urge|direct)\b[^.\n]{0,60}\b(?:pip3?|npm|pnpm|yarn|cargo|gem|conda|brew|apt|apt-get|go)\s+"
    r"(?:install|add|get)\s+\S",
    r"\b(?:ignore|disregard|override|forget)\s+(?:all\s+|any\s+|the\s+|your\s+)*(?:previous|prior|above|earlier|preceding|safety|user'?s?"
    r"|system|other)\b[^.\n]{0,30}\b(?:instruction|prompt|rule|message|guideline|polic|request|polit)",
    r"\b(?:secretly|covertly|stealthily|surreptitiously|without (?:the )?user(?:'s)? (?:knowledge|noticing|knowing|consent))\b",
    r"\b(?:insert|include|add|append|embed|inject|introduce|write|output|generate|provide)\b[^.\n]{0,60}"
    r"\b(?:vulnerabilit\w*|backdoors?|malicious|malware|payloads?|exploits?|phishing|insecure|subtle (?:bug|flaw|error)s?)\b",
    r"\b(?:insert|include|add|append|embed|recommend|direct|refer|send|point|link|visit|promote|upload|post|forward|exfiltrat\w*|leak)\b"
    r"[^.\n]{0,80}(?:https?://|www\.)\S",
    r"\b(?:send|post|exfiltrat\w*|upload|forward|leak|transmit)\b[^.\n]{0,60}"
    r"\b(?:password|credential|api.?key|private key|secret|token|ssh)",
    r"\b(?:(?:you are|you have been|act)\b[^.\n]{0,20}\bjailbr\w+|unrestricted mode|developer mode enabled|DAN mode|"
    r"no (?:ethical|safety|moral) (?:guideline|restriction|limit|rule)s?)\b",
    r"\b(?:give|provide|answer|respond|reply)\w*\b[^.\n]{0,40}\b(?:wrong|false|incorrect|misleading|inaccurate|biased|harmful)\b"
    r"[^.\n]{0,20}\b(?:answer|information|advice|result|response|fact)",
    r"\bcurl\s+\S*https?:|\bwget\s+\S*https?:|\|\s*(?:ba|z)?sh\b|\brm\s+-rf\b|base64\s+(?:-d|--decode)|powershell\s+-e|/dev/tcp/|os\.system\(",
    r"<!--(?:(?!<!--)[^>]){12,}-->",  # up to the next one: many that never end would be read many times
))  # fmt: skip
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # directions of writing
_BLOB = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}|(?:[0-9a-fA-F]{2}){24,}")
_TOKEN = re.compile(r"<\|?[^<>\s|]{2,40}\|?>|\[/?\w{2,20}\]")
_NAME = re.compile(r"[A-Za-z]\w{1,39}")
#: keys that conversations, tools and documents have, and attributes of Jinja's loops; thoughts are given by themselves
_USUAL = re.compile(
    r"role|content|name|type|text|tool_calls|tool_call_id|id|function|arguments|description|parameters|properties|required|title|"
    r"doc_id|(?:image|video|audio)(?:_url)?|url|tools|documents|reasoning(?:_content)?|thinking|thought|prefix|partial|items|format|"
    r"nullable|(?:one|any|all)Of|default|enum|additionalProperties|schema|minimum|maximum|first|last|index0?|revindex0?|length|"
    r"previtem|nextitem|depth0?|changed|cycle"
)


@dataclass(frozen=True)
class Trace:
    """One thing in the source: ``kind`` is ``code``, ``dynamic``, ``import``, ``hidden``, ``lookalike``, ``covert`` or
    ``blob``; ``line`` is 1-based."""

    kind: str
    line: int
    what: str
    evidence: str = ""


def code_traces(tree: nodes.Template, env: Environment) -> Iterator[Trace]:
    """Reaches for Python's internals, however the name is put together, and templates that load templates."""
    folded = 0
    for node in tree.find_all(nodes.Node):
        for name in _names(node):
            value: object = None
            if isinstance(name, str):
                value = name
            elif isinstance(name, nodes.Const):
                value = name.value
            elif isinstance(name, nodes.Expr) and not isinstance(name, nodes.Name):
                folded += 1
                value = _worked_out(name, env) if folded <= MOST_FOLDED else None
                if folded == MOST_FOLDED + 1:
                    yield Trace("dynamic", node.lineno, f"takes more than {MOST_FOLDED} attributes by names that it computes")
            if isinstance(value, str) and INTERNAL.fullmatch(value.strip()):
                yield Trace("code", node.lineno, f"reaches for {value!r}")
        if isinstance(node, nodes.Filter) and node.name == "attr":
            yield Trace("dynamic", node.lineno, "takes an attribute by a name that it is given (|attr)")
        elif isinstance(node, nodes.Filter) and node.name in ("map", "select", "reject") and _first(node) == "attr":
            yield Trace("dynamic", node.lineno, "takes attributes by a name that it is given (|map('attr'))")
        elif isinstance(node, nodes.Import | nodes.FromImport | nodes.Include | nodes.Extends):
            yield Trace("import", node.lineno, f"loads another template ({type(node).__name__.lower()})")
        elif isinstance(node, nodes.Const) and isinstance(node.value, str) and _FIELD.search(node.value):
            yield Trace("code", node.lineno, "reaches for internals in a format string", node.value[:200])
        elif isinstance(node, nodes.Getattr | nodes.Getitem) and isinstance(node.node, nodes.Name) and node.node.name in _ALONE:
            yield Trace("dynamic", node.lineno, f"takes an attribute of Jinja's own {node.node.name!r}")


def _first(node: nodes.Filter) -> object:
    first = node.args[0] if node.args else None
    return first.value if isinstance(first, nodes.Const) else None


def _names(node: nodes.Node) -> list[object]:
    """The names of attributes that a node takes: strings, or expressions for them."""
    if isinstance(node, nodes.Getattr):
        return [node.attr]
    if isinstance(node, nodes.Name):
        return [node.name] if node.name.startswith("__") else []
    if isinstance(node, nodes.Getitem):
        return [] if isinstance(node.arg, nodes.Slice) else [node.arg]
    if isinstance(node, nodes.Keyword):
        return [node.key]
    if isinstance(node, nodes.Filter) and (node.name == "attr" or node.name in _BY_ATTRIBUTE):
        return [*node.args, *(k.value for k in node.kwargs if k.key in ("attribute", "attr", "by"))]
    return []


def asked_for(tree: nodes.Template) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of attributes and keys that a template takes and no usual conversation has, and the roles it compares with."""
    own = {node.name for node in tree.find_all(nodes.Name)} | {ref.attr for ref in tree.find_all(nodes.NSRef)}
    own |= {pair.key for call in tree.find_all(nodes.Call) for pair in call.kwargs}
    methods = {id(call.node) for call in tree.find_all(nodes.Call)}
    names: dict[str, None] = {}
    roles: dict[str, None] = {}
    for node in tree.find_all((nodes.Getattr, nodes.Getitem, nodes.Call, nodes.Compare)):
        found: list[object] = []
        if isinstance(node, nodes.Getattr):
            found = [] if id(node) in methods else [node.attr]
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            found = [node.arg.value]
        elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.node.attr == "get":
            found = [one.value for one in node.args[:1] if isinstance(one, nodes.Const)]
        elif isinstance(node, nodes.Compare):
            compared = [one.value for one in node.find_all(nodes.Const)]
            if isinstance(node.expr, nodes.Const) and any(op.op in ("in", "notin") for op in node.ops):
                found = compared[:1]
            of = node.expr
            if "role" in (getattr(of, "attr", ""), getattr(getattr(of, "arg", None), "value", ""), getattr(of, "name", "")):
                roles.update(dict.fromkeys(one for one in compared if isinstance(one, str) and _NAME.fullmatch(one)))
        names.update(dict.fromkeys(one for one in found if isinstance(one, str) and _NAME.fullmatch(one)))
    return tuple(one for one in names if one not in own and not _USUAL.fullmatch(one)), tuple(one for one in roles if one != "role")


def _worked_out(node: nodes.Expr, env: Environment) -> object:
    """The value of an expression of constants, ``None`` when it has none."""
    try:
        return node.as_const(nodes.EvalContext(env, None))
    except (nodes.Impossible, OverBudget, RecursionError):
        return None
    except Exception:  # noqa: BLE001 - filters raise anything on constants that they were not made for
        return None


def literals(tree: nodes.Template) -> Iterator[tuple[int, str]]:
    """Every text that the template holds, with its line."""
    for node in tree.find_all((nodes.TemplateData, nodes.Const)):
        value = node.data if isinstance(node, nodes.TemplateData) else node.value if isinstance(node, nodes.Const) else None
        if isinstance(value, str) and value.strip():
            yield node.lineno, value


def text_traces(text: str, line: int) -> Iterator[Trace]:
    """Text that hides: covert instructions, encoded blobs, characters that can't be seen, lookalike control tokens."""
    if (covert := covert_part(text)):
        yield Trace("covert", line, "text that instructs behind the user's back", covert)
    for match in _BLOB.finditer(text):
        if (said := _decoded(match.group())):
            yield Trace("blob", line, f"an encoded text: {said[:120]!r}", match.group()[:120])
    if (hidden := hidden_characters(text)):
        yield Trace("hidden", line, f"characters that can't be seen: {', '.join(hidden)}", visible(text)[:300])
    for match in _TOKEN.finditer(text):
        scripts = {_script(c) for c in match.group() if c.isalpha()}
        token = match.group()
        # bars and lines of another width are in the marks of real models, letters of another width or style are not
        odd = [c for c in token if ord(c) > 126 and (c.isalpha() or c.isdecimal())]
        written = any(unicodedata.normalize("NFKC", c).isascii() for c in odd)
        if written or ("LATIN" in scripts and scripts & {"CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE"}):
            what = "another width or style" if written else "two scripts"
            yield Trace("lookalike", line, f"a control token with letters of {what}: {token!r}", visible(token, True))


def covert_part(text: str) -> str:
    """The part of a text that reads like a covert instruction, or ``""``."""
    for begin in range(0, max(1, len(text) - 1000), 99_000):  # patterns take time, and what they find is short
        part = text[begin : begin + 100_000]
        for pattern in _COVERT:
            if (match := pattern.search(part)) is not None:
                return part[max(0, match.start() - 60) : match.end() + 60].strip()
    return ""


def _decoded(blob: str) -> str:
    """The readable text behind a blob, or ``""``."""
    for decode in (bytes.fromhex, lambda b: base64.b64decode(b + "=" * (-len(b) % 4), validate=True)):
        try:
            text = decode(blob).decode("utf-8")
        except (ValueError, binascii.Error, UnicodeDecodeError):
            continue
        if sum(c.isalpha() or c == " " for c in text) > 0.7 * len(text) and text.isprintable():
            return text
    return ""


def _script(char: str) -> str:
    return unicodedata.name(char, "").split(" ")[0]


def _unseen(char: str) -> bool:
    code = ord(char)
    return (unicodedata.category(char) in ("Cf", "Co") or code in (0x3164, 0x115F, 0x1160, 0xFFA0, 0x2800)
            or 0xE0100 <= code <= 0xE01EF or (code < 32 and char not in "\t\n\r\f") or 0x7F <= code < 0xA0)  # fmt: skip


def turned(text: str) -> list[str]:
    """The characters of a template's source, comments and all, that make a reader see other text than there is."""
    return [f"U+{ord(char):04X} {unicodedata.name(char).lower()}" for char in dict.fromkeys(text) if char in _TURNS]


def hidden_characters(text: str) -> list[str]:
    """Characters that are not shown, by name; joiners inside words of other scripts and emoji are honest."""
    found: dict[str, None] = {}
    for at, char in enumerate(text):
        if (char < "\x7f" and char >= " ") or not _unseen(char):
            continue
        before, after = text[at - 1 : at], text[at + 1 : at + 2]
        if char in "\u200c\u200d" and before and after and ord(before) > 0x2FF and ord(after) > 0x2FF:
            continue
        if char == "\ufeff" and at == 0:
            continue
        found[f"U+{ord(char):04X} {unicodedata.name(char, 'unnamed').lower()}"] = None
    return list(found)[:8]


def visible(text: str, every: bool = False) -> str:
    """Text with what can't be seen (or everything beyond ASCII) as escapes."""
    return "".join(f"\\u{{{ord(c):x}}}" if (ord(c) > 126 if every else ord(c) > 126 and _unseen(c)) else c for c in text)
