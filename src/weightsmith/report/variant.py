"""The edited models of one page: what each is called, and the tone and mark that it has everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..measured import MeasureRecord

T = TypeVar("T")


@dataclass(frozen=True)
class Variant:
    """One edited model of the page: its short name, and the tone and mark that it has everywhere."""

    label: str
    tone: str
    shape: str
    record: MeasureRecord

    @property
    def sign(self) -> str:
        """The mark as a character, for running text."""
        return {"up": "▲", "down": "▼", "square": "■", "diamond": "◆", "dot": "●"}[self.shape]


def _kind(record: MeasureRecord) -> str:
    if record.base is None:
        return "model"
    steps = record.derivation.edit.steps if record.derivation else []
    ups = {(s.kind == "add" and s.amount > 0) or (s.kind == "amplify" and s.amount > 1) for s in steps}
    if ups == {True}:
        return "enhanced"
    downs = {(s.kind == "remove" and s.amount > 0) or (s.kind in {"add", "amplify"} and s.amount < 0) for s in steps}
    return "removed" if downs == {True} else "edited"


def variants(records: Sequence[MeasureRecord]) -> list[Variant]:
    """Name the edited models so that no two are alike: by what was done, else by their folder, else by number."""
    kinds = [_kind(r) for r in records]
    folders = [r.edited.ref.rstrip("/").rpartition("/")[2] or "edited" for r in records]
    labels = kinds
    if len(set(labels)) < len(labels) or (len(records) > 1 and {"edited", "model"} & set(labels)):
        labels = folders
    if len(set(labels)) < len(labels):
        labels = [f"{label} {i}" for i, label in enumerate(labels, 1)]
    looks = {"enhanced": ("warm", "up"), "removed": ("cool", "down"), "edited": ("warm", "diamond"),
             "model": ("ink", "dot")}  # fmt: skip
    spare = [("warm", "up"), ("cool", "down"), ("ink", "square"), ("ink", "diamond")]
    chosen: list[tuple[str, str]] = []
    for i, kind in enumerate(kinds):
        look = looks[kind]
        if look in chosen:
            free = [s for s in spare if s not in chosen]
            tones = {tone for tone, _ in chosen}
            look = next((s for s in free if s[0] not in tones), free[0] if free else spare[i % len(spare)])
        chosen.append(look)
    return [Variant(a, tone, shape, r) for a, (tone, shape), r in zip(labels, chosen, records, strict=True)]


def grouped(seen: Sequence[Variant], value: Callable[[MeasureRecord], T]) -> list[tuple[list[Variant], T]]:
    """What the records say, each distinct answer once, with the variants that say it."""
    groups: list[tuple[list[Variant], T]] = []
    for v in seen:
        mine = value(v.record)
        for owners, theirs in groups:
            if theirs == mine:
                owners.append(v)
                break
        else:
            groups.append(([v], mine))
    return groups
