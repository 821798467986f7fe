"""A Modelfile, from which Ollama makes a model: its system prompt and template count there, and no other file says them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...found import Finding
from ..items import Folder
from ..kinds import as_text
from ..listing import shown
from ..rules import Rule

TEXT = Rule(
    "modelfile-text", "note", "A Modelfile gives the model a system prompt, a template or messages",
    "Whoever makes a model of this folder with Ollama gets them with every conversation. The template is written in Go's language, "
    "which this scan shows and does not try.",
    "Read the text.",
    ("https://docs.ollama.com/modelfile",),
)  # fmt: skip
ELSEWHERE = Rule(
    "modelfile-elsewhere", "suspicious", "A Modelfile takes weights from outside the folder",
    "The model that is made of it holds weights or an adapter that did not come with it and that this scan did not see.",
    "Take the entry out, or scan what it names.",
    ("https://cwe.mitre.org/data/definitions/22.html",),
)  # fmt: skip
RULES = (TEXT, ELSEWHERE)

MOST = 1 << 20  # bytes
MOST_SAID = 20  # notes about one file
#: where no model lies
_SYSTEM = re.compile(r"/(?:etc|proc|sys|dev|boot|run|root/\.(?!cache|ollama|local))\b|.*/\.(?:ssh|aws|gnupg|kube|docker)/")
_ENTRY = re.compile(r'^[ \t]*(SYSTEM|TEMPLATE|MESSAGE|ADAPTER|FROM|LICENSE|PARAMETER)[ \t]+("""(?:.*?)(?:"""|\Z)|[^\n]*)',
                    re.IGNORECASE | re.MULTILINE | re.DOTALL)  # fmt: skip


def check(folder: Folder) -> Iterator[Finding]:
    """Findings of every Modelfile."""
    for item in folder.items.values():
        if not re.fullmatch(r"modelfile(?:[-_.][\w.-]+)?|.*\.modelfile", item.basename, re.IGNORECASE) or "text" not in item.kinds:
            continue
        if item.size > MOST:
            yield TEXT.found(f"it has {item.size} bytes, and no more than {MOST} are read", file=shown(item.name),
                             severity="unknown")  # fmt: skip
            continue
        beside = {n.rpartition("/")[2] for n in folder.items}
        told = 0
        for at in _ENTRY.finditer(as_text(item.read(MOST)) or ""):
            key, value = at[1].upper(), at[2].strip().strip('"').strip()
            if key in ("ADAPTER", "FROM"):
                if re.match(r"[/\\~]|[A-Za-z]:\\|\w+://", value) or ".." in re.split(r"[\\/]", value):
                    # what the publisher's own machine called it: the file that is meant lies here, or is Ollama's own copy
                    own = re.split(r"[\\/]", value)[-1] in beside or (
                        key == "FROM" and re.match(r"/\w", value) and not _SYSTEM.match(value))  # fmt: skip
                    yield ELSEWHERE.found(f"{key} {value[:160]}", file=shown(item.name), evidence=value[:300],
                                          severity="note" if own else None)  # fmt: skip
            elif value and key not in ("LICENSE", "PARAMETER") and (told := told + 1) <= MOST_SAID:
                yield TEXT.found(f"{key} of {len(value)} letters", file=shown(item.name), evidence=value[:600])
