"""How much a suite asks. No torch here: a name can be checked before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError


@dataclass(frozen=True)
class Suite:
    """How much is asked. ``n`` prompts a condition (``None``: the whole report part), answers of ``tokens`` tokens and
    thoughts of ``thought_tokens`` more; ``sampled`` of the prompts are also sampled, each in its own and ``wordings``
    other wordings with ``seeds`` seeds; ``scenarios`` conversations of three turns a feature; ``longer`` unfinished
    answers a condition are read on to twice the length; ``safety`` prompts a safety condition where it is not ``n``;
    ``choice`` and ``bias`` are items a set. ``shown`` is whether a feature is also asked for where the base shows it, which says
    nothing of an addition; ``texts`` whether the shipped texts are read for perplexity; ``asked`` whether refusals that a system
    prompt asks for are tried.
    """

    name: str
    n: int | None = 16
    tokens: int = 128
    thought_tokens: int = 384
    sampled: int = 0
    seeds: int = 4
    wordings: int = 3
    systems: bool = False
    scenarios: int = 0
    longer: int = 4
    safety: int | None = None
    choice: int = 0
    bias: int = 0
    shown: bool = True
    texts: bool = True
    asked: bool = True

    def __post_init__(self) -> None:
        if (self.n is not None and self.n < 2) or self.tokens < 1:
            raise UsageError(f"{self.n} prompts of {self.tokens} tokens have no interval", hint="give at least 2 prompts")
        if self.sampled and (self.seeds < 1 or not 1 <= self.wordings <= 5):
            raise UsageError(f"nothing can be sampled with {self.seeds} seeds and {self.wordings} more wordings",
                             hint="at least one seed, and 1 to 5 wordings")  # fmt: skip


SUITES = {
    "quick": Suite("quick", safety=12, longer=2),
    "standard": Suite("standard", n=None, thought_tokens=1024, sampled=24, systems=True, scenarios=12, longer=16,
                      choice=200),
    "full": Suite("full", n=None, tokens=256, thought_tokens=4096, sampled=48, systems=True, scenarios=64, longer=64,
                  choice=1000, bias=1000),
}  # fmt: skip


def get_suite(name: str) -> Suite:
    """A suite by name.

    Raises:
        UsageError: no such suite.
    """
    if name not in SUITES:
        raise UsageError(f"no suite is called {name!r}", hint=f"one of {', '.join(SUITES)}")
    return SUITES[name]
