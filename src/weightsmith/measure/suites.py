"""What a suite asks: blocks of questions by feature and condition, and safety both ways, always.

A *block* is one condition of one group: its questions (one a prompt, first wording), what scores them, and which
questions count as one unit of statistics. ``quick`` asks for greedy answers only; ``standard`` and ``full`` also
sample at the model's own default temperature, in several wordings and with several seeds, with and without a system prompt,
and go on for three turns.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest

from ..errors import RecipeError
from ..features.extract import conversation
from ..features.prompts import PromptSets, prompt_sets
from ..features.recipe import FeatureSpec, load_feature, shipped_features
from ..storage import digest_of
from .asks import Ask, Message
from .scorers import Scorer
from .sizes import SUITES, Suite, get_suite

__all__ = ["SUITES", "Block", "FeaturePlan", "Suite", "feature_blocks", "get_suite", "reworded", "safety_blocks",
           "scenario_blocks", "shipped_sets"]  # fmt: skip

NEUTRAL = "neutral prompts"


@dataclass(frozen=True)
class Block:
    """One condition of one group; ``key`` is its stable name, ``units`` the unit of statistics of each question."""

    key: str
    group: str
    condition: str
    asks: tuple[Ask, ...]
    scorers: tuple[Scorer, ...] = ()
    verdicts: bool = False
    form: bool = False
    sampled: bool = True
    units: tuple[int, ...] = ()

    @property
    def prompts_digest(self) -> str:
        """Digest of what is asked, in order: figures of equal digests can be paired."""
        return digest_of([[dict(m) for m in a.messages] for a in self.asks])[:16]


@dataclass(frozen=True)
class FeaturePlan:
    """A feature with its prompts and scorers, ready to be asked."""

    spec: FeatureSpec
    sets: PromptSets
    scorers: tuple[Scorer, ...] = ()
    blocks: tuple[Block, ...] = field(default=())


@cache
def shipped_sets(feature: str) -> PromptSets:
    """The parts of a shipped feature's prompts."""
    spec, folder = load_feature(feature)
    return prompt_sets(spec, folder)


Rows = Sequence[tuple[str, Sequence[Message]]]


def _block(
    key: str, group: str, condition: str, rows: Rows, **more: object
) -> Block:
    asks = tuple(Ask(group, condition, i, prompt, tuple(messages)) for i, (prompt, messages) in enumerate(rows))
    units = more.pop("units", tuple(range(len(asks))))
    return Block(key, group, condition, asks, units=units, **more)  # type: ignore[arg-type]


def _system(text: str, messages: Sequence[Message]) -> list[Message]:
    return [{"role": "system", "content": text}, *messages]


def feature_blocks(plan: FeaturePlan, suite: Suite) -> list[Block]:
    """The blocks of one feature: neutral prompts, where the base shows it, and neutral prompts with a system prompt.

    Raises:
        RecipeError: labelled texts, which can't be asked.
    """
    spec, report = plan.spec, plan.sets.report
    if spec.contrast.kind == "texts":
        raise RecipeError("labelled texts are not prompts: this feature can be found but not asked for",
                          where=spec.name)  # fmt: skip
    persona = spec.contrast.kind == "personas"
    verdicts = any(s.kind == "refusal" for s in spec.scorers)
    plain = [(p, conversation(spec, "lacks", p, False)) for p in report.lacks[: suite.n]]
    shown = [(p, conversation(spec, "shows", p, True)) for p in report.shows[: suite.n]]
    label = "under the feature's persona" if persona else "prompts that show it"
    blocks = [
        _block(f"{spec.name}.neutral", spec.name, NEUTRAL, plain, scorers=plan.scorers, verdicts=verdicts, form=True)]
    if suite.shown:
        blocks.append(_block(f"{spec.name}.shown", spec.name, label, shown, scorers=plan.scorers, verdicts=verdicts, form=True))
    if suite.systems:
        from .sets import NEUTRAL_SYSTEM

        rows = [(p, _system(NEUTRAL_SYSTEM[0], m)) for p, m in plain]
        blocks.append(_block(f"{spec.name}.system", spec.name, f"{NEUTRAL}, with a system prompt", rows,
                             scorers=plan.scorers, verdicts=verdicts))  # fmt: skip
    return blocks


def safety_prompts() -> dict[str, tuple[str, ...]]:
    """The *report* prompts of the safety blocks: harmful, borderline and harmless requests."""
    refusal, over = shipped_sets("refusal"), shipped_sets("over-refusal")
    return {"harmful": refusal.report.shows, "borderline": over.report.shows, "harmless": refusal.report.lacks}


SAFETY = {
    "harmful": "harmful requests",
    "borderline": "harmless requests that sound harmful",
    "harmless": "harmless requests",
}


def safety_blocks(suite: Suite, gone: Collection[str] = ()) -> list[Block]:
    """Safety behaviour, both ways: harmful requests, harmless ones, and refusals that the user asked for where the suite
    has them; without the prompts that are ``gone``."""
    from .sets import NEUTRAL_SYSTEM

    blocks, n = [], suite.safety or suite.n
    for name, prompts in safety_prompts().items():
        kept = [p for p in prompts if p not in gone][:n]
        rows: Rows = [(p, [{"role": "user", "content": p}]) for p in kept]
        blocks.append(_block(f"safety.{name}", "safety", SAFETY[name], rows, verdicts=True, form=name == "harmless"))
        if suite.systems and name == "harmful":
            led: Rows = [(p, _system(NEUTRAL_SYSTEM[0], m)) for p, m in rows]
            blocks.append(_block("safety.harmful.system", "safety", "harmful requests, with a system prompt", led,
                                 verdicts=True))  # fmt: skip
    return [*blocks, *(_asked_blocks(n) if suite.asked else [])]


def _asked_blocks(n: int | None) -> list[Block]:
    from .sets import AskedRefusal, asked_refusals

    blocks = []
    for inside, name in ((False, "outside"), (True, "inside")):
        own = [a for a in asked_refusals() if a.inside == inside]
        # first one question of every scope, then the next: a short suite still has all scopes
        turn: dict[int, list[AskedRefusal]] = {}
        for a in own:
            turn.setdefault(a.scope, []).append(a)
        own = [a for row in zip_longest(*turn.values()) for a in row if a is not None][:n]
        rows = [(a.question, _system(a.system, [{"role": "user", "content": a.question}])) for a in own]
        label = "asked to refuse: outside the scope" if not inside else "asked to refuse: inside the scope"
        blocks.append(_block(f"safety.asked.{name}", "safety", label, rows, verdicts=True, sampled=False,
                             units=tuple(a.scope for a in own)))  # fmt: skip
    return blocks


def reworded(block: Block, suite: Suite) -> list[Ask]:
    """The first ``suite.sampled`` questions of a block in their own and ``suite.wordings`` other wordings."""
    from .sets import wordings

    found = []
    for ask in block.asks[: suite.sampled]:
        found.append(ask)
        for k, text in enumerate(wordings(ask.prompt, suite.wordings)[0], 1):
            messages = (*ask.messages[:-1], {"role": "user", "content": text})
            found.append(Ask(ask.group, ask.condition, ask.item, ask.prompt, messages, wording=k))
    return found


def scenario_blocks(plan: FeaturePlan, suite: Suite) -> list[tuple[Block, list[tuple[str, ...]]]]:
    """Conversations of three turns for a shipped feature, plain and, where it has one, under its persona."""
    from .sets import scenarios

    turns = scenarios(plan.spec.name)[: suite.scenarios] if plan.spec.name in shipped_features() else []
    if not turns:
        return []
    name, scorers = plan.spec.name, plan.scorers
    verdicts = any(s.kind == "refusal" for s in plan.spec.scorers)
    sides = [("neutral", "conversations", False)]
    if plan.spec.contrast.kind == "personas":
        sides.append(("shown", "conversations under the feature's persona", True))
    found = []
    for key, label, persona in sides:
        rows = [(t[0], conversation(plan.spec, "shows", t[0], persona)) for t in turns]
        block = _block(f"{name}.turns.{key}", name, label, rows, scorers=scorers, verdicts=verdicts)
        found.append((block, [tuple(t) for t in turns]))
    return found
