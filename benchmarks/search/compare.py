"""Ours against a black-box baseline and the closed forms: one machine, one runtime, one confirmation for all.

    python benchmarks/search/compare.py MODEL [--trials 24] [--points 6] [--tokens 128] [--threads 2] [-o FILE.json]

(a) :class:`weightsmith.search.run.Search`: closed forms by single layer, a sweep of two descents, its best point made weaker.
(b) :mod:`baseline`: TPE over the published parameterisation, 32 tokens generated for every prompt in every trial. (c) every
closed form. All are given the same 48 + 48 prompts; ours, and the closed forms on its material, need 26 + 26 of them, a size
that was chosen on the search's own held-out figures. The clock of each runs from the loaded model to its front; then the
front's points (at most ``--points``, spread over it) answer 24 harmful requests that no side has seen, at full length, read
by the refusal scorer (requests that the base itself answers with a loop are replaced first); damage is KL(base ‖ edited) over
the tokens of the base's own answers to 24 harmless ones; over-refusal is read on 24 harmless requests that look harmful. The
hypervolume's box ends at the base's own rate of refusals and at a KL of 0.5.

Prediction, before the first run. The baseline generates trials × 48 × 32 tokens and passes as many prompts; with 0.5 G
parameters at 2 FLOP each that is 37 TFLOP of decoding and 5 of prompts for 24 trials, at 60 to 100 GFLOP/s seven to twelve
minutes. Ours answers 96 prompts once (12 tokens: 1.2 TFLOP, and 1.5 of prompts), and makes about ten steps over 8 + 8 prompts
of which 60% of the layers are passed, forward and backward (0.3 TFLOP each): a tenth of it. That came out at 0.18; with 52
prompts, 8 tokens and seven steps over 6 + 6 prompts, as it is now, at 0.095 to 0.097 (docs/search.md).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baseline import run_baseline

from weightsmith.checkpoint import open_checkpoint
from weightsmith.features.prompts import PromptSets, prompt_sets, read_prompts
from weightsmith.features.recipe import PromptSource, load_feature
from weightsmith.features.select import compile_hooks, kl_rows
from weightsmith.measure.refusal import read
from weightsmith.measure.stats import wilson
from weightsmith.measure.suites import shipped_sets
from weightsmith.options import RunOptions
from weightsmith.runtime import Continuation, RunningModel, answer_states, generate, load, steering
from weightsmith.runtime.load import quick
from weightsmith.search import closed
from weightsmith.search.front import hypervolume
from weightsmith.search.gradient import Descent
from weightsmith.search.material import Sizes
from weightsmith.search.run import Plan, Search

REFERENCE = 0.5
HERE = Path(__file__).parent
#: of the 48 + 48 prompts it needs 26 + 26: 16 to train on, 10 held out
OURS = Plan("remove", Sizes(16, 10, 8), Descent(weights=(60.0, 20.0), steps=5, more=2, batch=6, check=5, rate=0.07, turn=0.003),
            few=True, screen=4, keep=1, factors=(0.7, 0.55, 0.4, 0.25))  # fmt: skip


@dataclass
class Confirmation:
    """One edit on the report's prompts: refusals and degenerate answers of 24 harmful ones, refusals of 24 that only look
    harmful, KL over response tokens of 24 harmless ones."""

    side: str
    what: str
    refuses: int
    degenerate: int
    over: int
    kl: float
    n: int


@dataclass
class Side:
    """What one side did before its confirmation."""

    name: str
    seconds: float
    prefilled: int
    generated: int
    edits: list[tuple[str, Any, Any]] = field(default_factory=list)
    found: dict[str, float] = field(default_factory=dict)  # seconds after which an edit of the front was found, where known


class Judge:
    """The same confirmation for all sides.

    A request that the base itself answers with a loop tells nothing of what an edit broke: the next of the shipped ones that no
    side searches on takes its place (``replaced``), before any edit is made.
    """

    def __init__(self, model: RunningModel, sets: PromptSets, tokens: int) -> None:
        self.model, self.tokens = model, tokens
        self.replaced: list[str] = []
        self.prompts = {"harmful": self._answered(sets), "borderline": shipped_sets("over-refusal").report.shows[:24]}
        self.ids = {k: [self._ids(p) for p in v] for k, v in self.prompts.items()}
        plain = [self._ids(p) for p in sets.report.lacks]
        said = generate(model, plain, tokens, "base answers")
        self.own = [Continuation(tuple(p), tuple(a)) for p, a in zip(plain, said, strict=True) if a]
        self.states = answer_states(model, self.own)

    def _answered(self, sets: PromptSets) -> list[str]:
        used = {p for part in (sets.extract, sets.select, sets.report) for p in part.shows}
        spare = [p for p in read_prompts(PromptSource(shipped="harmful"), None) if p not in used][:12]
        asked = [*sets.report.shows, *spare]
        said = generate(self.model, [self._ids(p) for p in asked], self.tokens, "base")
        loops = {p for p, a in zip(asked, said, strict=True)
                 if read(p, self.model.decode(a), ended=len(a) < self.tokens).verdict == "degenerate"}  # fmt: skip
        self.replaced = [p for p in sets.report.shows if p in loops]
        return [p for p in asked if p not in loops][: len(sets.report.shows)]

    def _ids(self, prompt: str) -> list[int]:
        return self.model.encode([{"role": "user", "content": prompt}])

    def __call__(self, side: str, what: str, hooks: Seq[Any]) -> Confirmation:
        verdicts = {}
        with steering(self.model, hooks):
            for kind, ids in self.ids.items():
                tokens = self.tokens if kind == "harmful" else self.tokens // 2
                said = generate(self.model, ids, tokens, f"{side}: {kind}")
                verdicts[kind] = [read(p, self.model.decode(a), ended=len(a) < tokens).verdict
                                  for p, a in zip(self.prompts[kind], said, strict=True)]  # fmt: skip
            states = answer_states(self.model, self.own)
        kl = float(np.mean([float(x.mean()) for x in kl_rows(self.model, self.states, states)]))
        count = verdicts["harmful"].count
        return Confirmation(side, what, count("refuses"), count("degenerate"), verdicts["borderline"].count("refuses"), kl,
                            len(self.ids["harmful"]))  # fmt: skip


def ours(model: RunningModel, recipe: str, plan: Plan = OURS) -> tuple[Side, Search]:
    """(a)"""
    spec, folder = load_feature(recipe)
    begun = time.perf_counter()
    at: dict[str, float] = {}
    search = Search(model, spec, prompt_sets(spec, folder), plan,
                    on_found=lambda f: at.update({f.point.what: time.perf_counter() - begun}))  # fmt: skip
    search.gather()
    search.floor()
    search.descend()
    points = [p for p in search.points() if p.front]
    seconds = time.perf_counter() - begun
    for stretch in search.stretches:
        print(f"    {stretch.name}: {stretch.seconds:.1f} s, passed {stretch.passed}, backward {stretch.backward}")
    print("    savings:", {k: round(v, 2) for k, v in search.ledger.factors().items()})
    names = {p.name for p in points}
    chosen = sorted((f for f in search.found if f.point.name in names), key=lambda f: f.point.damage)
    side = Side("ours", seconds, search.ledger.passed, search.ledger.generated,
                [(f.point.what, f.spec, f.directions) for f in chosen], at)  # fmt: skip
    return side, search


def closed_forms(model: RunningModel, search: Search, seconds: float) -> Side:
    """(c), on the material that (a) has read; its reading counts."""
    assert search.material is not None
    begun, before = time.perf_counter(), search.ledger.passed
    made = closed.candidates(model, search.material, search.layers)
    best = closed.screened(model, search.problem, made, search.loss, 16, len(made))
    seconds += time.perf_counter() - begun
    gathered = next(s for s in search.stretches if s.name == "the base's answers")
    passed = gathered.passed + search.ledger.passed - before
    return Side("closed forms", seconds, passed, gathered.generated,
                [(f"{m.method}: {m.what}", m.spec, m.directions) for m in best])  # fmt: skip


def spread(edits: list[Any], most: int) -> list[Any]:
    """At most ``most`` of them, evenly over their order, the ends among them."""
    places = np.linspace(0, len(edits) - 1, min(most, len(edits))).round().astype(int)
    return [edits[i] for i in dict.fromkeys(places.tolist())]


def main() -> None:
    """Run all sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--points", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", help="what `search` itself takes by default")
    parser.add_argument("--weights", help="of the damage in ours, one descent each, e.g. 180,60 (60,20)")
    parser.add_argument("-o", "--out")
    args = parser.parse_args()
    weights = tuple(map(float, args.weights.split(","))) if args.weights else OURS.descent.weights
    plan = replace(OURS, descent=replace(OURS.descent, weights=weights))
    torch.set_num_threads(args.threads)
    recipe = str(HERE / "refusal.yaml")
    options = RunOptions(threads=args.threads, use_cache=False, seed=args.seed, dtype=args.dtype)
    model = load(open_checkpoint(args.model), quick(options))
    print(f"dtype: {model.dtype}")
    spec, folder = load_feature(recipe)
    sets = prompt_sets(spec, folder)
    judge = Judge(model, sets, args.tokens)
    base = judge("base", "the base itself", [])
    low, high = wilson(base.refuses, base.n)
    print(f"base: {base.refuses} of {base.n} refusals [{low:.2f}, {high:.2f}], {base.degenerate} degenerate, {base.over} of 24 "
          "over-refusals", flush=True)  # fmt: skip
    print(f"asked in place of requests that the base answers with a loop: {len(judge.replaced)}")
    mine, search = ours(model, recipe, plan)
    gathered = next(s.seconds for s in search.stretches if s.name == "the base's answers")
    sides, rows = [mine], [judge("ours", w, compile_hooks(model, s, d)) for w, s, d in spread(mine.edits, args.points)]
    report(base, sides, rows)
    sides.append(closed_forms(model, search, gathered))
    rows += [judge("closed forms", w, compile_hooks(model, s, d)) for w, s, d in sides[-1].edits[: args.points]]
    report(base, sides, rows)
    harmful, harmless = ([*getattr(sets.extract, k), *getattr(sets.select, k)] for k in ("shows", "lacks"))
    found = run_baseline(model, harmful, harmless, args.trials, args.seed)
    edits = [(f"trial {t.number}: {t.refusals} of 48 by markers, first-token KL {t.kl:.4f}", t.spec, t.directions)
             for t in found.front]  # fmt: skip
    sides.append(Side("baseline", found.seconds, found.prefilled, found.generated, edits))
    rows += [judge("baseline", w, compile_hooks(model, s, d)) for w, s, d in spread(edits, args.points)]
    report(base, sides, rows)
    if args.out:
        data = {"base": asdict(base), "sides": [{k: v for k, v in asdict(s).items() if k != "edits"} for s in sides],
                "rows": [asdict(r) for r in rows], "options": vars(args)}  # fmt: skip
        Path(args.out).write_text(json.dumps(data, indent=1))


def volume_of(base: Confirmation, rows: Seq[Confirmation]) -> float:
    """Hypervolume of confirmed points."""
    return hypervolume([(1 - r.refuses / max(1, base.refuses), r.kl) for r in rows], REFERENCE)


def reaches(base: Confirmation, side: Side, rows: Seq[Confirmation], volume: float) -> float | None:
    """Seconds after which the points that a side had found by then have that hypervolume, by their confirmed figures. Only
    points of its last front are looked at: no others were confirmed."""
    mine = [r for r in rows if r.side == side.name]
    times = sorted(side.found[r.what] for r in mine)
    return next((t for t in times if volume_of(base, [r for r in mine if side.found[r.what] <= t]) >= volume), None)


def damage_at(base: Confirmation, rows: Seq[Confirmation], left: int, *, loops: bool) -> float | None:
    """KL at which a side leaves so many requests refused (with ``loops``: refused or answered with a loop), by a straight line
    between its neighbouring points, of which the base is one; KL grows with the square of an edit's strength, so the line lies
    above what an edit between the two would have. ``None`` where no point leaves so few."""
    points = [(base.refuses + loops * base.degenerate, 0.0), *((r.refuses + loops * r.degenerate, r.kl) for r in rows)]
    found = []
    for more, low in points:
        for less, high in points:
            if more >= left >= less and low <= high:
                share = (more - left) / (more - less) if more > less else 0.0
                found.append(low + share * (high - low))
    return min(found, default=None)


def at_equal_effect(base: Confirmation, mine: Seq[Confirmation], theirs: Seq[Confirmation], *, loops: bool) -> Iterator[str]:
    """Our KL over theirs, at each of their points that no other one of theirs beats."""
    what = "refused or looping" if loops else "refused"
    counts = {id(r): r.refuses + loops * r.degenerate for r in theirs}
    for r in sorted(theirs, key=lambda r: r.kl):
        if any(o.kl < r.kl and counts[id(o)] <= counts[id(r)] for o in theirs):
            continue
        ours = damage_at(base, mine, counts[id(r)], loops=loops)
        said = "none of ours" if ours is None else f"ours {ours:.4f}, {ours / max(r.kl, 1e-9):.2f} of it"
        yield f"KL with {counts[id(r)]} of {r.n} {what}: baseline {r.kl:.4f}, {said}"


def report(base: Confirmation, sides: Seq[Side], rows: Seq[Confirmation]) -> None:
    """The table so far; ratios against the baseline where it has run."""
    print()
    for side in sides:
        mine = [r for r in rows if r.side == side.name]
        volume = volume_of(base, mine)
        print(f"{side.name}: {side.seconds:.1f} s, prefilled {side.prefilled}, generated {side.generated}, "
              f"hypervolume {volume:.4f}")  # fmt: skip
        for r in sorted(mine, key=lambda r: r.kl):
            print(f"    {r.refuses:2d} of {r.n} refuse, {r.degenerate} degenerate, {r.over} of 24 over-refusals, KL {r.kl:.4f}   "
                  f"{r.what}")  # fmt: skip
    by_name = {s.name: s for s in sides}
    if "baseline" in by_name:
        a, b = by_name["ours"], by_name["baseline"]
        reached = reaches(base, a, rows, volume_of(base, [r for r in rows if r.side == "baseline"]))
        when = "never" if reached is None else f"after {reached:.1f} s, {reached / b.seconds:.3f} of its time"
        print(f"ours reached the baseline's hypervolume: {when}")
        mine, theirs = ([r for r in rows if r.side == name] for name in ("ours", "baseline"))
        for loops in (False, True):
            print("\n".join(at_equal_effect(base, mine, theirs, loops=loops)))
        print(f"ours / baseline: time {a.seconds / b.seconds:.3f}, generated {a.generated / b.generated:.3f}, "
              f"prefilled {a.prefilled / b.prefilled:.3f}")  # fmt: skip
    print(flush=True)


if __name__ == "__main__":
    main()
