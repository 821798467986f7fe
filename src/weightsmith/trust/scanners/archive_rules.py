"""What can be wrong with an archive, and with a member's name: the rules that all archive formats share."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...found import Finding
from ..rules import Rule

_SLIP = "https://cwe.mitre.org/data/definitions/22.html"
_BOMB = "https://cwe.mitre.org/data/definitions/409.html"
_TWO_READERS = "https://cwe.mitre.org/data/definitions/436.html"

BROKEN = Rule(
    "archive-broken", "broken", "An archive that its own format does not allow",
    "It is cut off or damaged. Some programs read what they can of it, others nothing, so what one check saw another "
    "program may not see.",
    "Fetch it again; if it stays so, ask the publisher.",
)  # fmt: skip
AMBIGUOUS = Rule(
    "archive-ambiguous", "suspicious", "An archive in which two programs find different things",
    "Names, sizes or flags are stored twice in it and disagree, or members are hidden from one way of listing it. A scanner "
    "that reads one copy passes what a loader that reads the other copy runs.",
    "Don't use it. Ask the publisher for a file that was written by an ordinary program.",
    ("CVE-2025-1944", "CVE-2025-1945", "CVE-2025-62518", _TWO_READERS),
)  # fmt: skip
TRAVERSAL = Rule(
    "archive-traversal", "malicious", "A member that would be written outside the folder it is unpacked into",
    "Its name or its link's target is absolute or climbs out with `..`. Programs that unpack it without checking overwrite "
    "files of yours: start-up scripts, keys, other models.",
    "Don't unpack it.",
    (_SLIP,),
)  # fmt: skip
LINK = Rule(
    "archive-link", "suspicious", "A device, pipe or link among the members of an archive",
    "Weights need plain files only. What is unpacked behind a link lands somewhere else, and devices have effects of their own.",
    "Unpack it only with a program that refuses links and devices.",
    ("https://cwe.mitre.org/data/definitions/59.html",),
)  # fmt: skip
BOMB = Rule(
    "archive-bomb", "malicious", "An archive that is made to grow beyond measure",
    "A few kilobytes that unpack to gigabytes fill the memory or the disk of whoever opens them: its members overlap, it "
    "contains itself, or it repeats one byte for gigabytes. No compressed weights look like this.",
    "Don't unpack it.",
    (_BOMB,),
)  # fmt: skip
ENCRYPTED = Rule(
    "archive-encrypted", "unknown", "An encrypted member",
    "Nobody can check what is in it without the password; the program that has the password unpacks it unchecked.",
    "Ask for the file without encryption.",
)  # fmt: skip
NOT_OPENED = Rule(
    "archive-not-opened", "unknown", "An archive of a kind that is not opened here",
    "What is in it was not checked. Packing a payload differently from what scanners know is a trick that was found in the wild.",
    "Unpack it yourself in a safe place and scan what comes out, or ask for another format.",
    ("https://www.reversinglabs.com/blog/rl-identifies-malware-ml-model-hosted-on-hugging-face",),
)  # fmt: skip
TOO_LARGE = Rule(
    "archive-too-large", "unknown", "An archive too large to be unpacked for a check",
    "Only a part of what is in it was checked.",
    "Unpack it where there is room, and scan the folder.",
)  # fmt: skip
AROUND = Rule(
    "archive-extra-data", "suspicious", "Bytes before, between or behind an archive's members that belong to none of them",
    "Programs that look for an archive from the other end, or for another format, find something else in the same file.",
    "Ask the publisher what the bytes are for.",
    (_TWO_READERS,),
)  # fmt: skip
RULES = (BROKEN, AMBIGUOUS, TRAVERSAL, LINK, BOMB, ENCRYPTED, NOT_OPENED, TOO_LARGE, AROUND)

RATIO = 200  # times by which a member may grow ...
GROWS = 1 << 28  # ... once it is larger than this


def is_bomb(packed: int, unpacked: int) -> bool:
    """Whether a member grows beyond what weights, text or pictures do."""
    return unpacked > GROWS and unpacked > RATIO * max(1, packed)


def leads_out(name: str) -> str:
    """Why a member's name (or a link's target, seen from the archive's root) is outside of the folder; ``""`` if it is not."""
    parts = re.split(r"[/\\]", name)
    depth = 0
    if name.startswith(("/", "\\")):
        return "an absolute path"
    if re.match(r"[A-Za-z]:", name):
        return "a path with a drive"
    for part in parts:
        depth += {"..": -1, ".": 0, "": 0}.get(part.rstrip(" "), 1)
        if depth < 0:
            return "a path that climbs out with `..`"
    return ""


def check_name(name: str, file: str, place: str) -> Iterator[Finding]:
    """Findings about a member's name alone."""
    if out := leads_out(name):
        yield TRAVERSAL.found(f"{name[:200]!r} is {out}", file=file, place=place)
    elif "\0" in name:
        yield AMBIGUOUS.found(f"the name {name[:200]!r} holds a zero byte, at which some programs end it", file=file, place=place)
    elif ".." in re.split(r"[/\\]", name):
        yield AMBIGUOUS.found(f"the name {name[:200]!r} goes up and down again", file=file, place=place)


def check_link(name: str, target: str, file: str, place: str, *, hard: bool = False) -> Iterator[Finding]:
    """Findings about a link: malicious when it leads out, else a note."""
    base = "" if hard else name.rpartition("/")[0]
    seen = target if target.startswith(("/", "\\")) or not base else f"{base}/{target}"
    if out := leads_out(seen):
        yield TRAVERSAL.found(f"the link {name[:100]!r} leads to {target[:200]!r}, {out}", file=file, place=place)
    else:
        yield LINK.found(f"{name[:100]!r} is a link to {target[:200]!r}, another member", file=file, place=place, severity="note")
