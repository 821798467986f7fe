"""From the text of a model card to claims, each with its line. No model code, no torch, nothing of a card is run.

Three styles are known well: those of heretic and abliterix (figures in a table beside the original model's, settings in
another) and of mergekit (a YAML configuration in a code block). Precision comes before recall: a number that is merely
mentioned is no claim.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..claimed import Claim
from ..errors import FormatError, UsageError
from .models import base_sentences, front_matter, merge_configs
from .page import LIMIT, read_page
from .prose import prose_claims
from .tables import Names, table_claims

__all__ = ["LIMIT", "Card", "claims_of", "read_card"]

MOST = 200  # claims of one card


@dataclass(frozen=True)
class Card:
    """The claims of a card in the order of their lines, and what was not read."""

    claims: list[Claim]
    notes: list[str]


def read_card(path: Path) -> bytes:
    """The bytes of a card file.

    Raises:
        UsageError: no plain file; FormatError: larger than 1 MiB.
    """
    if not path.is_file():
        raise UsageError("no model card", where=path, hint="give one with --card FILE")
    with path.open("rb") as file:
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise FormatError("a model card of more than 1 MiB is not read", where=path)
    return data


def claims_of(text: str, file: str = "README.md", *, own: Iterable[str] = (), base: Iterable[str] = ()) -> Card:
    """Every claim that a card makes.

    ``own`` and ``base`` are names under which tables may list this model and its base, beside those that the card itself
    gives. The work is linear in the length of the text.

    Raises:
        FormatError: longer than 1 MiB.
    """
    if len(text) > LIMIT:
        raise FormatError("a model card of more than 1 MiB is not read", where=file)
    page = read_page(text)
    found = [*front_matter(page, file), *merge_configs(page, file), *base_sentences(page, file)]
    named = [n for c in found if c.kind == "base model" for n in c.names]
    names = Names(_spellings(own), _spellings([*base, *named]) - _spellings(own))
    found += [*table_claims(page, names, file), *prose_claims(page, names, file)]
    kept: dict[tuple[object, ...], Claim] = {}
    for claim in sorted(found, key=lambda c: c.line):
        kept.setdefault(_what(claim), claim)
    notes = [*page.notes]
    if len(kept) > MOST:
        notes.append(f"the card makes {len(kept)} claims; the first {MOST} were read")
    return Card([*kept.values()][:MOST], notes)


def _spellings(names: Iterable[str]) -> frozenset[str]:
    """Names in lower case, with and without the organisation."""
    found = {n.lower() for n in names if n}
    return frozenset(found | {n.rpartition("/")[2] for n in found})


def _what(claim: Claim) -> tuple[object, ...]:
    """What makes two claims the same claim, said twice."""
    names = tuple(n.lower() for n in claim.names)
    value = None if claim.value is None else round(claim.value, 9)
    return claim.kind, claim.subject, claim.relation, value, claim.total, tuple(claim.keys), names, tuple(claim.layers)
