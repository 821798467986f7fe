"""What passes cost, and what it would have cost without the savings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Ledger:
    """What was computed, and what it would have cost without the savings; tokens count without padding.

    ``layers`` is in token × layers; ``prefixes``, ``below``, ``branches`` and ``unread`` are what was not passed thanks to
    each saving, in the same unit.
    """

    passed: int = 0
    backward: int = 0
    generated: int = 0
    layers: int = 0
    heads: int = 0
    prefixes: int = 0
    below: int = 0
    branches: int = 0
    unread: int = 0
    heads_unread: int = 0

    def add(self, other: Ledger) -> None:
        """Add another's counts."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def factors(self) -> dict[str, float]:
        """How many times dearer the same passes would have been without each saving."""
        out = {}
        whole = max(1, self.layers)
        for name in ("prefixes", "below", "branches", "unread"):
            out[name] = 1 + getattr(self, name) / whole
        out["heads"] = 1 + self.heads_unread / max(1, self.heads)
        return out
