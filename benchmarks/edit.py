"""An edit of a whole checkpoint against `cp -r` and `openssl dgst -sha256` of the copy, whole processes, in one run.

    python benchmarks/edit.py FOLDER                    # as it is
    python benchmarks/edit.py FOLDER --shards 4         # the same tensors in so many files
    python benchmarks/edit.py --synthetic 16            # a made-up sharded Llama of so many GB

The prediction: the anchor reads all bytes twice and writes them once, and digests them on one core. The edit reads them
twice (once in the kernel, to copy; once to digest), writes them once, and digests with one core for each file, while
another core copies and rewrites. So with one file the SHA-256 is the floor and the ratio is near 1; with at least as
many files as cores it is the sum of all work over the cores. Both sides begin with the base in the page cache as far as
it fits, alternate, and the medians are compared. Peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.checkpoint import INDEX, open_checkpoint
from weightsmith.direction import Direction
from weightsmith.formats.safetensors import TensorSpec, write_file
from weightsmith.records import DirectionMeta, ModelIdentity

EDIT = "import sys; from weightsmith.cli.main import main; main(sys.argv[1:])"


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--shards", type=int, default=0)
    parser.add_argument("--synthetic", type=float, default=0.0, metavar="GB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cold-digests", action="store_true", help="forget the base's digests before each edit")
    parser.add_argument("--work", default=None, help="where to put what is written")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        base = prepared(given, Path(work))
        compare(base, Path(work), given.repeats, given.cold_digests)


def prepared(given: argparse.Namespace, work: Path) -> Path:
    """The folder to edit."""
    if not given.synthetic and not given.shards:
        return Path(given.folder)
    # in a process of its own: what it takes in memory would count as the edit's, which begins as a copy of this one
    job: tuple[Any, ...] = (synthetic, given.synthetic) if given.synthetic else (resharded, Path(given.folder), given.shards)
    spawned = multiprocessing.get_context("spawn").Process(target=made, args=(work / "base", *job))
    spawned.start()
    spawned.join()
    if spawned.exitcode:
        sys.exit("the base could not be made")
    return work / "base"


def made(folder: Path, how: Any, *arguments: Any) -> None:
    """Make the base in ``folder``."""
    how(folder, *arguments)


def resharded(folder: Path, base: Path, count: int) -> Path:
    """The same model in ``count`` files of about the same size."""
    checkpoint = open_checkpoint(str(base))
    folder.mkdir()
    for file in base.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name != INDEX:
            shutil.copyfile(file, folder / file.name)
    parts: list[list[TensorSpec]] = [[] for _ in range(count)]
    sizes = [0] * count
    for spec in sorted(checkpoint.tensors.values(), key=lambda s: -s.nbytes):
        least = sizes.index(min(sizes))
        parts[least].append(spec)
        sizes[least] += spec.nbytes
    index = {}
    for k, part in enumerate(parts):
        name = f"model-{k + 1:05d}-of-{count:05d}.safetensors"
        write_file(folder / name, [(s.name, s.dtype, s.shape, _copy(s)) for s in part], {"format": "pt"})
        index.update({s.name: name for s in part})
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": sum(sizes)}, "weight_map": index}))
    return folder


def _copy(spec: TensorSpec):  # type: ignore[no-untyped-def]
    def fill(out) -> None:  # type: ignore[no-untyped-def]
        with spec.file.open("rb") as file:
            file.seek(spec.start)
            out.write(file.read(spec.nbytes))

    return fill


def synthetic(folder: Path, gigabytes: float) -> Path:
    """A Llama of random bf16 weights in files of about 2 GB: width 4096, MLP of 14336, as many layers as fit."""
    width, inner, vocab = 4096, 14336, 32000
    shapes = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (1024, width), "self_attn.v_proj": (1024, width),
              "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
              "mlp.down_proj": (width, inner)}  # fmt: skip
    layer_bytes = 2 * sum(a * b for a, b in shapes.values())
    layers = max(2, round((gigabytes * 1e9 - 4 * vocab * width) / layer_bytes))
    folder.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": width, "vocab_size": vocab,
              "num_hidden_layers": layers, "intermediate_size": inner, "num_attention_heads": 32,
              "num_key_value_heads": 8, "tie_word_embeddings": False}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    names = [("model.embed_tokens.weight", (vocab, width))]
    for i in range(layers):
        names += [(f"model.layers.{i}.{n}.weight", s) for n, s in shapes.items()]
        names += [(f"model.layers.{i}.{n}.weight", (width,)) for n in ("input_layernorm", "post_attention_layernorm")]
    names += [("model.norm.weight", (width,)), ("lm_head.weight", (vocab, width))]
    files: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    room = 2e9
    for name, shape in names:
        size = 2 * int(np.prod(shape))
        if size > room and files[-1]:
            files.append([])
            room = 2e9
        files[-1].append((name, shape))
        room -= size
    # one pool of random bf16 numbers of the usual size, read from another place for every tensor
    noise = (np.random.default_rng(0).standard_normal(1 << 24) * 0.02).astype(np.float32)
    pool = (noise.view(np.uint32) >> 16).astype("<u2").tobytes()
    index, dice = {}, np.random.default_rng(1)
    for k, part in enumerate(files):
        name = f"model-{k + 1:05d}-of-{len(files):05d}.safetensors"
        entries = [(n, "BF16", s, _random(pool, int(dice.integers(1 << 20)) * 2, 2 * int(np.prod(s)))) for n, s in part]
        write_file(folder / name, entries, {"format": "pt"})
        index.update({n: name for n, _ in part})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def _random(pool: bytes, start: int, length: int):  # type: ignore[no-untyped-def]
    def fill(out) -> None:  # type: ignore[no-untyped-def]
        left, at = length, start
        while left:
            piece = pool[at : at + left]
            out.write(piece)
            left -= len(piece)
            at = 0

    return fill


def a_direction(base: Path, path: Path) -> None:
    """A direction with a random vector in every layer, of this very model."""
    checkpoint = open_checkpoint(str(base))
    arch = checkpoint.architecture
    who = ModelIdentity(ref=str(base), digest=checkpoint.digest(), family=arch.family.name, n_layers=arch.n_layers,
                        d_model=arch.d_model)  # fmt: skip
    meta = DirectionMeta(feature="benchmark", feature_digest="0" * 64, model=who, method="diff-means", site="answer",
                         point="resid_post", layers=list(range(arch.n_layers)), prompts_digest="0" * 64, n={})  # fmt: skip
    shape = (arch.n_layers, arch.d_model)
    vectors = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    Direction(vectors, np.ones(shape[0], np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.float32), meta).save(path)


def timed(command: list[str]) -> tuple[float, int]:
    """Seconds from start to exit, and the peak resident bytes, of one process."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def compare(base: Path, work: Path, repeats: int, cold: bool) -> None:
    """Alternate the two sides and print the ratio of their medians."""
    os.environ["WEIGHTSMITH_CACHE"] = str(work / "cache")
    files = sorted(base.glob("*.safetensors"))
    size = sum(f.stat().st_size for f in files)
    a_direction(base, work / "direction.safetensors")
    anchor, edit, peak = [], [], 0
    for k in range(repeats + 1):
        if cold:
            shutil.rmtree(work / "cache", ignore_errors=True)
        seconds, memory = timed([sys.executable, "-c", EDIT, "edit", str(base), str(work / "direction.safetensors"),
                                 "--remove", "1", "-q", "-o", str(work / "out")])  # fmt: skip
        shutil.rmtree(work / "out")
        cp, _ = timed(["cp", "-r", str(base), str(work / "copy")])
        digest, _ = timed(["openssl", "dgst", "-sha256", *(str(work / "copy" / f.name) for f in files)])
        shutil.rmtree(work / "copy")
        if k or not repeats:  # the first round warms the page cache for both
            edit.append(seconds)
            anchor.append(cp + digest)
            peak = max(peak, memory)
        print(f"  edit {seconds:.2f} s, cp {cp:.2f} s, openssl {digest:.2f} s, peak {memory / 2**20:.0f} MiB", flush=True)
    ratio = statistics.median(edit) / statistics.median(anchor)
    print(f"{size / 1e9:.2f} GB in {len(files)} files, {os.cpu_count()} cores: edit {statistics.median(edit):.2f} s, "
          f"cp + openssl {statistics.median(anchor):.2f} s, ratio {ratio:.2f}; peak {peak / 2**20:.0f} MiB "
          f"(this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB)")  # fmt: skip


if __name__ == "__main__":
    main()
