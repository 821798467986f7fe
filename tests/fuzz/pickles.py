"""Fuzzes the pickle machine for as long as you like: ``python tests/fuzz/pickles.py --minutes 60``.

Seeds are the pickles of the corpus. Each round mutates one: opcodes in and out, bytes, pieces of other seeds. Two things
must hold: it ends within a second and the stated memory, and whatever name a real unpickler asks for, the machine has
seen. With ``--atheris``, where that library is installed, its coverage does the steering. Ends with 1 when one of the two
does not hold; the bytes are kept in ``--keep``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import random
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

if "--atheris" in sys.argv:  # it counts what code does that is imported under it
    import atheris

    with atheris.instrument_imports(include=["weightsmith.trust"]):
        import weightsmith.trust.scanners.pickles  # noqa: F401

from corpus.assembly import args, call, named, proto, stacked, system, text
from weightsmith.trust.scanners.pickle_judge import Judge
from weightsmith.trust.scanners.pickle_machine import Machine
from weightsmith.trust.scanners.pickle_values import Cursor
from weightsmith.trust.scanners.pickles import scan_stream

LONGEST = 1.0  # seconds of processor time
MOST = 512 << 20  # bytes that this process may reach
_OPCODES = bytes(range(0x28, 0x80)) + bytes(range(0x80, 0x99))
_VALUE = {"a": [1, 2.5, "x", b"y" * 300, (1, 2), {3}, None, 1 << 70], "b": {"c": bytearray(b"d"), 4: frozenset([5])}}
SEEDS = [
    *(pickle.dumps(_VALUE, protocol=n) for n in range(6)), system(), proto(4) + stacked("os", "system") + args(text("x")) + b"R.",
    proto(2) + call("collections", "OrderedDict") + b".", proto(2) + named("argparse", "Namespace") + b")\x81}b.",
    proto(2) + call("torch.storage", "_load_from_bytes", b"B\x04\x00\x00\x00\x80\x02N.") + b".",
    b"(S'a'\nVb\nI1\nL2L\nF3\nlp1\ng1\n0.",
]  # fmt: skip


class Nothing:
    """What a watched unpickler gets for every name."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Nothing:
        return Nothing()

    def __setstate__(self, _: Any) -> None:
        pass


def asked(data: bytes) -> set[tuple[str, str]]:
    """Names that the unpickler written in Python asks for; the one in C reserves memory for what it is told."""
    names: set[tuple[str, str]] = set()

    class Watched(pickle._Unpickler):  # type: ignore[name-defined, misc]
        def find_class(self, module: str, name: str) -> Any:
            names.add((module, name))
            return Nothing

        def persistent_load(self, pid: Any) -> Any:
            return Nothing()

    with contextlib.suppress(Exception):
        Watched(io.BytesIO(data)).load()
    return names


def _reached() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def check(data: bytes) -> None:
    """Raises AssertionError when one of the two promises is broken."""
    begin, before = time.process_time(), _reached()  # a real unpickler may have taken more
    list(scan_stream(io.BytesIO(data), "x"))
    judge = Judge("x", ids=True)
    stream = Machine(Cursor(io.BytesIO(data)), judge).run()
    assert time.process_time() - begin < LONGEST, "took too long"
    assert _reached() < max(MOST, before + 1), "took too much memory"
    seen = {(g.module, g.name) for g in judge.uses}
    if not stream.limit and not any(f.rule == "pickle-computed" for f in judge.found):
        assert asked(data) <= seen, "a name was not seen"


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A seed with a few changes."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(1, 16)):
        spot = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data[spot : spot + 1] = bytes([rng.choice(_OPCODES)])
            case 1:
                data[spot:spot] = bytes(rng.choice(_OPCODES) for _ in range(rng.randrange(1, 5)))
            case 2:
                data[spot : spot + rng.randrange(12)] = b""
            case 3:
                data[spot:spot] = rng.randbytes(rng.randrange(5))
            case _:
                other = rng.choice(seeds)
                begin = rng.randrange(len(other))
                data[spot:spot] = other[begin : begin + rng.randrange(60)]
    return bytes(data)


def main() -> int:
    """The loop; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-kept"))
    parser.add_argument("--atheris", action="store_true")
    options = parser.parse_args()
    if options.atheris:
        atheris.Setup([sys.argv[0]], check)
        atheris.Fuzz()
    rng, rounds, end = random.Random(options.seed), 0, time.monotonic() + 60 * options.minutes
    while time.monotonic() < end:
        data = mutated(rng, SEEDS)
        try:
            check(data)
        except Exception:  # noqa: BLE001 - whatever it is, it is what the fuzzer looks for
            traceback.print_exc()
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"pickle-{rounds}.bin").write_bytes(data)
            return 1
        rounds += 1
    print(f"{rounds} rounds, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
