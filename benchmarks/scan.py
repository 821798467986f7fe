"""What a scan costs: whole processes of ``weightsmith scan`` against ``openssl dgst -sha256`` of the same bytes.

    python benchmarks/scan.py MODEL_FOLDER [--small FOLDER ...] [--runs 5]

``MODEL_FOLDER`` holds one large safetensors file; a copy of it in four shards is made beside ``--scratch``. Both sides run
in turn, so that a machine that slows down slows both; medians are compared. The package's bytecode is made first, as pip does
where it installs one. With ``--masked`` the processor's own SHA
instructions are hidden from both. Small folders are scanned one by one, and all in one call.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import weightsmith
from weightsmith.formats.safetensors import TensorSpec, read_header, write_file

MASK = {"OPENSSL_ia32cap": ":~0x20000000"}


def timed(command: list[str], env: dict[str, str]) -> tuple[float, float, int]:
    """Wall seconds, peak MiB of the process and those it waited for, exit code."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return time.perf_counter() - begin, usage.ru_maxrss / 1024, process.returncode


def scan(*folders: Path) -> list[str]:
    """The command that scans folders."""
    return [sys.executable, "-m", "weightsmith", "scan", *map(str, folders)]


def sharded(folder: Path, out: Path, count: int = 4) -> Path:
    """A copy of a one-file model in shards of about one size, with its index."""
    out.mkdir(parents=True)
    header = read_header(next(folder.glob("*.safetensors")))
    parts: list[list[TensorSpec]] = [[] for _ in range(count)]
    sizes = [0] * count
    for spec in sorted(header.tensors, key=lambda t: -t.nbytes):
        smallest = sizes.index(min(sizes))
        parts[smallest].append(spec)
        sizes[smallest] += spec.nbytes
    weight_map = {}
    for n, part in enumerate(parts):
        name = f"model-{n + 1:05d}-of-{count:05d}.safetensors"
        entries = [(t.name, t.dtype, t.shape, lambda file, t=t: copy(t, file)) for t in part]
        write_file(out / name, entries, header.metadata)
        weight_map.update({t.name: name for t in part})
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy2(file, out)
    return out


def copy(spec: TensorSpec, file: object) -> None:
    """The bytes of one tensor, as they are."""
    with spec.file.open("rb") as source:
        source.seek(spec.start)
        left = spec.nbytes
        while left:
            block = source.read(min(left, 1 << 22))
            file.write(block)  # type: ignore[attr-defined]
            left -= len(block)


def compare(label: str, folder: Path, runs: int, env: dict[str, str]) -> None:
    """Print the ratio of a folder's scan to openssl's time on its weights."""
    files = sorted(map(str, folder.glob("*.safetensors")))
    theirs, ours, peaks = [], [], []
    codes = set()
    for _ in range(runs + 1):  # the first one warms the page cache
        theirs.append(timed(["openssl", "dgst", "-sha256", *files], env)[0])
        seconds, peak, code = timed(scan(folder), env)
        ours.append(seconds)
        peaks.append(peak)
        codes.add(code)
    a, b = statistics.median(theirs[1:]), statistics.median(ours[1:])
    size = sum(Path(f).stat().st_size for f in files) / 1e9
    spread = f"{min(ours[1:]):.2f} to {max(ours[1:]):.2f}"
    print(f"{label}: {size:.2f} GB, openssl {a:.2f} s, scan {b:.2f} s ({spread}), ratio {b / a:.2f}, "
          f"peak {max(peaks):.0f} MiB, exit {sorted(codes)}", flush=True)  # fmt: skip


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description="time weightsmith scan")
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--small", type=Path, nargs="*", default=[])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--masked", action="store_true")
    parser.add_argument("--scratch", type=Path, default=None, help="where the copy in shards is made (and kept)")
    options = parser.parse_args()
    compileall.compile_dir(Path(weightsmith.__file__).parent, quiet=2)
    with tempfile.TemporaryDirectory() as temporary:
        env = {**os.environ, "WEIGHTSMITH_CACHE": str(Path(temporary) / "cache"), **(MASK if options.masked else {})}
        if options.model:
            four = (options.scratch or Path(temporary)) / "four-shards"
            if not four.exists():
                sharded(options.model, four)
            compare("one file", options.model, options.runs, env)
            compare("four shards", four, options.runs, env)
        if options.small:
            each = [statistics.median(timed(scan(folder), env)[0] for _ in range(options.runs)) for folder in options.small]
            print(f"{len(each)} small folders, a process each: median {statistics.median(each):.2f} s, slowest {max(each):.2f} s")
            whole = statistics.median(timed(scan(*options.small), env)[0] for _ in range(options.runs))
            print(f"all {len(each)} in one call: {whole:.2f} s, {whole / len(each):.3f} s each")


if __name__ == "__main__":
    main()
