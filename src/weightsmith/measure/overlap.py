"""Prompts that found or chose a direction must not report on it: known from short sketches of them, without their text.

A sketch is kept with the direction. It tells equal prompts surely (64 bits of SHA-256 over the prompt, case and
punctuation left out) and nearly equal ones by chance: of the prompt's character 4-grams, hashed to 32 bits, the twelve
smallest hashes are kept (a *bottom-k* sketch: Broder 1997, "On the resemblance and containment of documents", section 3;
Cohen and Kaplan 2007, "Summarizing Data using Bottom-k Sketches").

The report prompts are at hand in full, so the Jaccard similarity is estimated from more than the twelve: over *all* 4-grams
of both prompts whose hash is not above the sketch's last, the share that both have.

Limits: a prompt with as many shared 4-grams as :data:`~weightsmith.features.prompts.NEAR` asks for at the very least is
found about every other time, one with 0.85 nearly always; a paraphrase is not found at all. A sketch hides the wording, not
the subject: who hashes all 4-grams can read a dozen of them off it.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

from ..errors import FormatError, RecipeError
from ..features.prompts import NEAR, _grams, _key

KEPT = 12
EXACT = 16  # hex digits of the digest
HASH = 8  # hex digits of one 4-gram's hash


@lru_cache(maxsize=1 << 16)
def _hash(gram: str) -> str:
    """Fixed-width hex sorts as its number does."""
    return hashlib.blake2b(gram.encode(), digest_size=HASH // 2).hexdigest()


def _exact(prompt: str) -> str:
    return hashlib.sha256(_key(prompt).encode()).hexdigest()[:EXACT]


def sketch(prompt: str) -> str:
    """A prompt as 16 hex digits of its digest and the hashes of at most twelve of its 4-grams, in rising order."""
    return _exact(prompt) + "".join(sorted({_hash(g) for g in _grams(prompt)})[:KEPT])


def overlaps(sketches: Mapping[str, Sequence[str]], report_prompts: Sequence[str]) -> list[tuple[str, str]]:
    """``(part, report prompt)`` for each report prompt that is, or nearly is, one of a part's sketched prompts.

    Equal but for case and punctuation, or an estimated Jaccard similarity of character 4-grams of at least
    :data:`~weightsmith.features.prompts.NEAR`.

    Raises:
        FormatError: what is no sketch.
    """
    equal: dict[str, set[str]] = {}
    holders: dict[str, list[int]] = {}
    known: list[tuple[str, int, str]] = []
    for part, rows in sketches.items():
        for row in rows:
            hashes = _hashes(row, part)
            equal.setdefault(row[:EXACT], set()).add(part)
            for one in hashes:
                holders.setdefault(one, []).append(len(known))
            # fewer than are kept: those are all the prompt has, so every hash of the other prompt counts
            known.append((part, len(hashes), hashes[-1] if len(hashes) == KEPT else "g"))
    found: list[tuple[str, str]] = []
    for prompt in report_prompts:
        parts = set(equal.get(_exact(prompt), ()))
        mine = {_hash(g) for g in _grams(prompt)}
        shared = Counter(i for one in mine for i in holders.get(one, ()))
        for i, both in shared.items():
            part, size, last = known[i]
            # of the union's hashes up to `last`: all of the sketch, and those of this prompt that are not in it
            if part not in parts and both >= NEAR * size:
                union = size + sum(one <= last for one in mine) - both
                if both >= NEAR * union:
                    parts.add(part)
        found += [(part, prompt) for part in sketches if part in parts]
    return found


def _hashes(row: str, part: str) -> list[str]:
    if not re.fullmatch(rf"[0-9a-f]{{{EXACT}}}(?:[0-9a-f]{{{HASH}}}){{1,{KEPT}}}", row):
        raise FormatError(f"not a sketch of a prompt: {row[:40]!r}", where=part)
    return [row[at : at + HASH] for at in range(EXACT, len(row), HASH)]


def refuse_overlap(sketches: Mapping[str, Sequence[str]], report_prompts: Sequence[str], where: object = None) -> None:
    """Raise where a figure would be read off prompts that the direction came from.

    Raises:
        RecipeError: a report prompt is, or nearly is, one of a part's; FormatError: what is no sketch.
    """
    if found := overlaps(sketches, report_prompts):
        part, prompt = found[0]
        more = len({p for _, p in found}) - 1
        others = f" ({more} more {'overlaps' if more == 1 else 'overlap'} as well)" if more else ""
        raise RecipeError(
            f"a report prompt was used to find or choose the edit ({part}), or nearly so: {prompt[:80]!r}{others}",
            where=where, hint="measure with other prompts, or leave these out with --drop-overlap",
            part=part, prompts=more + 1,
        )  # fmt: skip
