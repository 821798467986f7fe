"""One model through a suite: every block answered and scored, the shipped texts read, the sets of questions asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .behaviour import Answered, answer_block, answer_turns, greedy, read_on, sample_block, sampled_jobs
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
    # all questions in one go: the more rows in a batch, the less each costs
    how = greedy(subject, suite)
    subject.answer([(ask, how) for b in blocks for ask in b.asks], "answering", pool)
    run.answered = [answer_block(subject, b, suite, pool) for b in blocks]
    if suite.longer:
        read_on(subject, run.answered, suite)
    if suite.sampled:
        mine = [b for b in blocks if b.sampled]
        subject.answer([job for b in mine for job in sampled_jobs(subject, b, suite)], "sampling", pool)
        run.answered += [sample_block(subject, b, suite, pool) for b in mine]
    if suite.scenarios:
        for plan in plans:
            for block, turns in scenario_blocks(plan, suite):
                run.answered += answer_turns(subject, block, turns, suite, pool)
    if suite.texts:
        run.likelihood = likelihood(subject)
    if sets is not None:
        run.sets = sets(subject)
    return run
