"""Answering and scoring against transformers, at the same batch, prompts, tokens, dtype and threads.

    python benchmarks/measure.py MODEL [--batch 8 16 32] [--prompts 96] [--tokens 64] [--rounds 3] [--threads 2]
        [--clock cpu]

(a) replies() against ``model.generate``, greedy and sampled: real answer tokens a second, up to each answer's end.
(b) answer_states() and score_answers() against one plain forward of the stack, and of the whole model, over the same
rows at the same batch: answer tokens a second.

Prediction, from what the machine can do. A decoding step reads all weights once, P·4 bytes in fp32, and computes 2·P·B
FLOPs for B rows; so it takes max(P·4 / bandwidth, 2·P·B / FLOPs), and both sides share that floor. At 20 GB/s and 100
GFLOP/s (2 threads) the floor of a model of 135 M parameters is 27 ms up to B = 10, 43 ms at 16 and 86 ms at 32; of 494 M
parameters 99 ms up to 10, 158 ms at 16 and 316 ms at 32. The floor per real token is the same for both, so the ratio
comes from what is not needed: rows that have ended (transformers goes on until the last row ends), a prefill of what all
prompts begin with, the cache that ``torch.cat`` copies every step (B·context·layers·heads·d·4 bytes, twice), sorting the
vocabulary. Without early ends a ratio of 1.0 to 1.3 is expected, with them as much more as rows end early. For scoring
the floor is 2·P FLOPs a token: the shared beginning of the prompts is what can be saved, and the lm_head over the
prompt, so the ratio should be the share of the beginning in a row, less the mask that a shared beginning needs.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import torch

from weightsmith.checkpoint import open_checkpoint
from weightsmith.options import RunOptions
from weightsmith.runtime import Continuation, Decoding, RunningModel, answer_states, load, replies, score_answers
from weightsmith.runtime.forward import batches, padded

#: what Qwen2.5 ships as its own sampling, written out so that both sides sample alike
SAMPLED = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}


def shipped(model: RunningModel, count: int) -> list[list[int]]:
    """Prompts of the sets ``everyday`` and ``harmful`` in turn, through the chat template."""
    folder = files("weightsmith").joinpath("features/shipped/prompts")
    sets = [[x for x in folder.joinpath(f"{n}.txt").read_text(encoding="utf-8").splitlines() if x.strip()]
            for n in ("everyday", "harmful")]  # fmt: skip
    lines = [line for pair in zip(*sets, strict=False) for line in pair][:count]
    return [model.encode([{"role": "user", "content": line}]) for line in lines]


def chunks(rows: list[list[int]], batch: int) -> list[list[int]]:
    """Indices by length, ``batch`` at a time."""
    return list(batches([len(r) for r in rows], 1 << 40, batch))


@torch.inference_mode()
def theirs(model: RunningModel, prompts: list[list[int]], batch: int, tokens: int, sampled: bool) -> int:
    """``model.generate`` over all prompts; gives the number of real answer tokens."""
    ends, count = sorted(model.stop_tokens), 0
    how: dict[str, Any] = {"do_sample": True, **SAMPLED} if sampled else {"do_sample": False}
    for part in chunks(prompts, batch):
        longest = max(len(prompts[i]) for i in part)
        ids = torch.tensor([[0] * (longest - len(prompts[i])) + prompts[i] for i in part])
        mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in part])
        out = model.model.generate(ids, attention_mask=mask, max_new_tokens=tokens, eos_token_id=ends,
                                   pad_token_id=ends[0], **how)  # fmt: skip
        for row in out[:, longest:].tolist():
            count += next((k for k, t in enumerate(row) if t in ends), len(row))
    return count


def ours(model: RunningModel, prompts: list[list[int]], tokens: int, sampled: bool) -> int:
    decoding = Decoding(tokens, **SAMPLED, seed=0) if sampled else Decoding(tokens)  # type: ignore[arg-type]
    return sum(len(r.tokens) for r in replies(model, prompts, decoding))


CLOCK = {"wall": time.perf_counter, "cpu": time.process_time}


def compare(name: str, rounds: int, mine: Callable[[], int], other: Callable[[], int], clock: str) -> None:
    """Both sides in turn; medians of tokens a second and of the rounds' ratios."""
    now = CLOCK[clock]
    speeds: list[tuple[float, float]] = []
    for k in range(rounds):
        pair = [0.0, 0.0]
        for side in ((0, 1), (1, 0))[k % 2]:
            start = now()
            count = (mine, other)[side]()
            pair[side] = count / (now() - start)
        speeds.append((pair[0], pair[1]))
    a, b = (statistics.median(s[k] for s in speeds) for k in (0, 1))
    ratios = [x / y for x, y in speeds]
    print(f"{name:44} {a:8.1f} {b:8.1f}   {statistics.median(ratios):5.2f}  [{min(ratios):.2f}, {max(ratios):.2f}]", flush=True)


def scoring(model: RunningModel, prompts: list[list[int]], batch: int, rounds: int, clock: str) -> None:
    """Teacher-forced answers against plain forwards over the same rows."""
    short = dataclasses.replace(model, options=dataclasses.replace(model.options, batch_size=32))
    said = replies(short, prompts, Decoding(32))
    items = [Continuation(tuple(p), tuple(r.tokens)) for p, r in zip(prompts, said, strict=True) if r.tokens]
    rows = [[*i.prompt, *i.answer] for i in items]
    tokens = sum(len(i.answer) for i in items)

    @torch.inference_mode()
    def plain(whole: bool) -> int:
        for part in chunks(rows, batch):
            ids = padded([rows[i] for i in part], model.device)
            if whole:
                model.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            else:
                model.stack(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        return tokens

    def states() -> int:
        answer_states(model, items)
        return tokens

    def scores() -> int:
        score_answers(model, items)
        return tokens

    openings = [tuple(model.tokens(t)) for t in ("I can't help with that", "Sure, here is how", "I'm sorry", "Yes, of course")]
    grouped = [Continuation(tuple(p), o) for p in prompts for o in openings]
    whole_rows = [[*i.prompt, *i.answer] for i in grouped]
    opened = sum(len(i.answer) for i in grouped)

    @torch.inference_mode()
    def plain_openings() -> int:
        for part in chunks(whole_rows, batch):
            ids = padded([whole_rows[i] for i in part], model.device)
            model.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        return opened

    def score_openings() -> int:
        score_answers(model, grouped)
        return opened

    plain(False), states()  # warm up
    compare(f"answer_states / stack, batch {batch}", rounds, states, lambda: plain(False), clock)
    compare(f"score_answers / whole model, batch {batch}", rounds, scores, lambda: plain(True), clock)
    compare(f"score_answers, 4 openings / whole, batch {batch}", rounds, score_openings, plain_openings, clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCK), default="wall", help="cpu where others use the machine too")
    parser.add_argument("--only", choices=["greedy", "sampled", "scoring"])
    args = parser.parse_args()
    loaded = load(open_checkpoint(args.model), RunOptions(device="cpu", dtype="float32", threads=args.threads))
    prompts = shipped(loaded, args.prompts)
    lengths = [len(p) for p in prompts]
    print(f"{len(prompts)} prompts of {min(lengths)} to {max(lengths)} tokens, {args.tokens} new tokens, fp32, "
          f"{args.threads} threads, {args.rounds} rounds in turn, {args.clock} time")  # fmt: skip
    print(f"{'tokens/s':44} {'ours':>8} {'theirs':>8}   ratio  [least, most]")
    for batch in args.batch:
        # replies() takes twice the batch size when decoding; nothing else bounds the batch here
        half = dataclasses.replace(loaded.options, batch_size=batch // 2, batch_tokens=1 << 40)
        for name in ("greedy", "sampled"):
            if args.only in (None, name):
                model, hot = dataclasses.replace(loaded, options=half), name == "sampled"
                compare(f"replies, {name}, batch {batch}", args.rounds,
                        lambda m=model, h=hot: ours(m, prompts, args.tokens, h),
                        lambda m=model, h=hot, b=batch: theirs(m, prompts, b, args.tokens, h), args.clock)  # fmt: skip
        if args.only in (None, "scoring"):
            full = dataclasses.replace(loaded.options, batch_size=batch, batch_tokens=1 << 40)
            scoring(dataclasses.replace(loaded, options=full), prompts, batch, args.rounds, args.clock)


if __name__ == "__main__":
    main()
