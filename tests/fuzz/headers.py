"""Fuzzes the header scanners for as long as you like: ``python tests/fuzz/headers.py --minutes 60``.

Files of the corpus are the seeds. Each round mutates one (bytes, numbers at the edges, pieces of other seeds, JSON tokens,
the stated length kept right or wrong) and lets the scanners read it, with a clock and a limit on memory. What went on
differently than before (rule, words of the message) joins the seeds, which makes a plain loop find its way. With
``--atheris``, where that library is installed, its coverage does the steering. Ends with 1 when something crashed, took
more than a second, or more memory than it may; the file is kept in ``--keep``.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import resource
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

if "--atheris" in sys.argv:  # it counts what code does that is imported under it
    import atheris

    with atheris.instrument_imports(include=["weightsmith.formats", "weightsmith.trust"]):
        import weightsmith.trust.scanners.headers
        import weightsmith.trust.scanners.numbers  # noqa: F401

from corpus import weights, weights_honest, weights_values
from weightsmith.trust import stream
from weightsmith.trust.items import Folder, Item
from weightsmith.trust.scanners import gguf_keys
from weightsmith.trust.scanners.headers import Headers
from weightsmith.trust.scanners.numbers import Numbers

LONGEST = 1.0  # seconds of processor time for one file
MOST = 512 << 20  # bytes that this process may reach
EDGES = [0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 60,
         (1 << 63) - 1, 1 << 63, (1 << 64) - 1]  # fmt: skip
TOKENS = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"null", b"true", b"-1", b"1e999", b"NaN", b"\\ud800", b"\\u0000",
          b"__metadata__", b"data_offsets", b"dtype", b"shape", b'"F32"', b'"F4"', b"9" * 30, b" " * 64,
          b"\xff", b"\xf0\x9f\x98\x80", b"[" * 200,
          b"general.alignment", b"split.count", b"tokenizer.ggml.tokens"]  # fmt: skip


def seeds() -> list[bytes]:
    """The weight files of all cases that are small and quick to make."""
    cases = [*weights.CASES, *weights_values.CASES, *weights_honest.CASES]
    found = {weights.gguf_file(), *(_file(c) for c in cases if not c.needs)}
    return sorted(f for f in found if 0 < len(f) < 40_000)


def _file(case: weights.Case) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        case.build(Path(folder))
        files = [p for p in Path(folder).iterdir() if p.suffix in (".safetensors", ".gguf")]
        return files[0].read_bytes() if files else b""


def examine(content: bytes) -> str:
    """What the scanners say of a file of these bytes, as a short key."""
    kind = "gguf" if content[:4] == b"GGUF" else "safetensors"
    folder = Folder(Path("."))
    item = Item(f"m.{kind}", len(content), lambda: io.BytesIO(content), kinds=(kind,))
    folder.items[item.name] = item
    headers = Headers()
    found = list(headers.scan_file(item, folder))
    found += stream.read_all(folder, lambda name, done: None)
    found += [*headers.scan_folder(folder), *gguf_keys.splits(folder), *Numbers().scan_folder(folder)]
    return " ".join(sorted({f"{f.rule}:{re.sub('[^a-z ]+', '', f.message)[:40]}" for f in found if not isinstance(f, Item)}))


def mutated(content: bytes, pool: list[bytes], dice: random.Random) -> bytes:
    """A few random changes."""
    raw = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 3, 6))):
        at = dice.randrange(len(raw) + 1)
        if dice.random() < 0.7:
            at = min(at, dice.randrange(600))  # the header
        what = dice.randrange(8)
        if what == 0 and raw:
            raw[min(at, len(raw) - 1)] ^= 1 << dice.randrange(8)
        elif what == 1:
            number = (dice.choice(EDGES) + dice.choice((0, 0, -1, 1))) & ((1 << 64) - 1)
            piece = struct.pack("<Q", number)[: dice.choice((1, 2, 4, 8))]
            raw[at : at + len(piece)] = piece
        elif what == 2:
            token = dice.choice(TOKENS)
            raw[at : at + dice.choice((0, len(token)))] = token
        elif what == 3:
            del raw[at : at + dice.choice((1, 2, 8, 30, 300))]
        elif what == 4:
            begin = dice.randrange(len(raw) + 1)
            raw[at:at] = raw[begin : begin + dice.choice((4, 20, 100))] * dice.choice((1, 1, 2, 50))
        elif what == 5:
            other = dice.choice(pool)
            begin = dice.randrange(len(other))
            raw[at : at + 40] = other[begin : begin + 40]
        elif what == 6:
            digits = [m.span() for m in re.finditer(rb"\d+", bytes(raw[8:4000]))]
            if digits:
                begin, end = dice.choice(digits)
                raw[8 + begin : 8 + end] = str(dice.choice(EDGES)).encode()
        elif what == 7 and len(raw) > 8 and raw[8:9] == b"{":
            end = raw.rfind(b"}", 0, 60_000) + 1
            raw[:8] = struct.pack("<Q", max(0, end - 8))
    return bytes(raw)


def loop(minutes: float, seed: int, keep: Path) -> int:
    """Mutate and examine until the time is over; the number of failures."""
    dice, pool = random.Random(seed), seeds()
    known: set[str] = set()
    done = failures = 0
    slowest = 0.0
    begin = time.monotonic()
    while time.monotonic() - begin < minutes * 60:
        content = mutated(dice.choice(pool), pool, dice)
        start = time.process_time()
        why = ""
        try:
            key = examine(content)
        except Exception:  # noqa: BLE001 - any exception is what is looked for
            key, why = "", traceback.format_exc()
        spent = time.process_time() - start
        slowest = max(slowest, spent)
        if spent > LONGEST:
            why = f"{spent:.2f} s"
        done += 1
        if why:
            failures += 1
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{seed}-{done}").write_bytes(content)
            print(f"failure {failures} after {done}: {why}", flush=True)
        elif content and key not in known and len(known) < 5000 and len(content) < 60_000:
            known.add(key)
            pool.append(content)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(f"{done} files, {len(known)} kinds of outcome, slowest {slowest:.3f} s, peak {peak >> 20} MiB, {failures} failures")
    return failures + (peak > MOST)


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description="fuzz the header scanners")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "weightsmith-fuzz")
    parser.add_argument("--atheris", action="store_true", help="let coverage steer, by the library of that name")
    options, rest = parser.parse_known_args()
    if not options.atheris:
        return min(1, loop(options.minutes, options.seed, options.keep))
    folder = options.keep / "seeds"
    folder.mkdir(parents=True, exist_ok=True)
    for n, content in enumerate(seeds()):
        (folder / str(n)).write_bytes(content)
    limits = [f"-max_total_time={int(options.minutes * 60)}", f"-timeout={int(20 * LONGEST)}", f"-rss_limit_mb={MOST >> 19}",
              "-max_len=40000"]  # fmt: skip
    atheris.Setup([sys.argv[0], str(folder), *limits, *rest], lambda content: examine(bytes(content)) and None)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
