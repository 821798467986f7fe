"""One model through a suite: every block answered and scored, the shipped texts read, the sets of questions asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .behaviour import Answered, answer_block, answer_turns, sample_block
from .damage import Likelihood, likelihood
from .figures import SetScores
from .subject import Subject
from .suites import Block, FeaturePlan, Suite, scenario_blocks

Sets = Callable[[Subject], list[SetScores]]


@dataclass
class Run:
    """Everything that one model said: ``answered`` in the order of the plan, so that two runs pair up."""

    answered: list[Answered] = field(default_factory=list)
    likelihood: Likelihood = field(default_factory=lambda: Likelihood([], [], []))
    sets: list[SetScores] = field(default_factory=list)

    def block(self, key: str) -> Answered:
        """The greedy answers of one block."""
        return next(a for a in self.answered if a.block.key == key and not a.suffix)


def run_suite(
    subject: Subject, suite: Suite, plans: Sequence[FeaturePlan], safety: Sequence[Block], sets: Sets | None = None,
    pool: Any = None,
) -> Run:  # fmt: skip
    """Everything a suite asks of one model.

    Raises:
        NonFinite: NaN in its logits; RecipeError: a prompt longer than its context; OutOfMemory.
    """
    run = Run()
    blocks = [*(b for p in plans for b in p.blocks), *safety]
    for block in blocks:
        run.answered.append(answer_block(subject, block, suite, pool))
    if suite.sampled:
        run.answered += [sample_block(subject, b, suite, pool) for b in blocks if b.sampled]
    if suite.scenarios:
        for plan in plans:
            for block, turns in scenario_blocks(plan, suite):
                run.answered += answer_turns(subject, block, turns, suite, pool)
    run.likelihood = likelihood(subject)
    if sets is not None:
        run.sets = sets(subject)
    return run
