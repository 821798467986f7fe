"""Conditions of a template that never came out both ways, forced to: what they guard.

What a message, the date or the number of messages decides is followed wherever it is compared, so this finds what stands
behind a condition that no conversation of the trial meets, however odd. There a single word is enough: honest templates
guard marks and roles like this, and nothing that is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .template_marks import Run
from .template_probe import DATES, SWITCH, Behaviour, Seen
from .template_talk import word_of
from .template_words import known_words, strange_words, text_lines

MOST_FLIPS = 32


def trial(behaviour: Behaviour) -> Iterator[Seen]:
    """What conditions guard that were never met, and what values of messages choose."""
    if not behaviour.outputs or behaviour.unbounded:
        return
    yield from _flips(behaviour)
    chosen = [line for text in behaviour.chosen for line in text_lines(text) if not SWITCH.fullmatch(line)]
    if chosen:
        yield Seen("content", "a value of a message that chooses a text", tuple(chosen)[:6])
    for name in behaviour.escaped:
        yield Seen("content", f"what {name} makes of a message, which can't be followed", plain=True)


def _flips(behaviour: Behaviour) -> Iterator[Seen]:
    """Conditions that never came out one way: what they guard."""
    usual = known_words(*behaviour.outputs.values())
    count, done, reported = 0, set(), 0
    pending: list[dict[int, bool]] = [{}]
    while pending and count < MOST_FLIPS and reported < 4:
        held = pending.pop(0)
        unseen = [n for n, seen in behaviour.tests.items() if len(seen) < 2]
        for number in sorted(unseen, key=lambda n: not behaviour.doubtful.get(n)):
            kind = behaviour.doubtful.get(number, "content" if behaviour.spelled else "")
            outcome = not next(iter(behaviour.tests[number]), False)
            if (number, outcome) in done:
                continue
            if count >= MOST_FLIPS:
                if kind:
                    yield Seen(kind, "more conditions on what messages say than were tried", plain=True)
                return
            done.add((number, outcome))
            count += 1
            forced = {**held, number: outcome}
            before = set(behaviour.tests)
            seen = list(_forced(behaviour, forced, kind, number, usual))
            reported += bool(seen)
            yield from seen
            if set(behaviour.tests) - before and len(forced) < 4:
                pending.append(forced)


def _forced(behaviour: Behaviour, forced: dict[int, bool], kind: str, number: int, usual: set[str]) -> Iterator[Seen]:
    """What is in the text when conditions come out as they never did: lines, or single words that no text has without."""
    source = behaviour.program.source.split("\n")
    line = behaviour.program.tests[number] - 1
    for name in ("plain", "talk", "tools") if kind else ("talk",):
        shape = behaviour.shapes.get(name)
        if shape is None:
            continue
        text = behaviour.render(shape, run=Run(forced=forced, quiet=True))
        if text is None or not kind:
            continue
        known = {DATES.sub("#", known) for known in behaviour.lines}
        added = [new for new in behaviour.text_lines(text, shape) if DATES.sub("#", new) not in known]
        said = tuple(word_of(n) for n in range(len(shape.roles)))
        few = [] if added else strange_words(text, usual, said)
        if added or few:
            where = source[line].strip()[:160] if line < len(source) else ""
            literals = re.findall(r"'([^']*)'|\"([^\"]*)\"", where)
            switch = any(SWITCH.fullmatch(one or two) for one, two in literals)
            seen = tuple(dict.fromkeys(added)) or (" ".join(few[:12]),)
            yield Seen(kind, f"the condition in line {line + 1} ({where})", seen, switch=switch)
            return
