"""The same bytes from the same edit, whatever the threads, the blocks, the BLAS kernels and the processor's extensions."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pico
import weightsmith.edits.numerics as numerics
import weightsmith.execute as execute_module
import weightsmith.rewrite as rewrite
from bits import a_basis, digest, digests, removal
from kinds import a_step
from weightsmith.checkpoint import open_checkpoint
from weightsmith.execute import execute
from weightsmith.options import RunOptions
from weightsmith.plan import plan_edit
from weightsmith.records import EditSpec

X86 = platform.machine().lower() in ("x86_64", "amd64")
#: kernels of OpenBLAS, with the processor flag that each needs to run
KERNELS = {"SkylakeX": "avx512f", "Haswell": "avx2", "Sandybridge": "avx", "Nehalem": "sse4_2", "Prescott": "pni"}


def elsewhere(**environment: str) -> dict[str, str]:
    """The digests in another process."""
    program = "import json, bits; print(json.dumps(bits.digests() | {'plain': bits.plain_product()}))"
    here = Path(__file__).parent
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=here, capture_output=True, text=True,
                         env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, check=False)  # fmt: skip
    assert run.returncode == 0, run.stderr
    found: dict[str, str] = json.loads(run.stdout.splitlines()[-1])
    return found


def has(flag: str) -> bool:
    """Whether the processor has an extension, as Linux names it."""
    try:
        return flag in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    """As this process gives them."""
    return digests()


@pytest.fixture(scope="module")
def by_kernel() -> dict[str, dict[str, str]]:
    """In one process for each set of BLAS kernels that can run here."""
    return {name: elsewhere(OPENBLAS_CORETYPE=name) for name, flag in KERNELS.items() if has(flag)}


@pytest.mark.skipif(not X86, reason="the kernels are named for x86")
def test_blas_kernels_do_not_matter(expected: dict[str, str], by_kernel: dict[str, dict[str, str]]) -> None:
    assert by_kernel
    for name, found in by_kernel.items():
        assert {k: v for k, v in found.items() if k != "plain"} == expected, name


@pytest.mark.skipif(not X86, reason="the kernels are named for x86")
def test_the_control_a_plain_product_does_differ(by_kernel: dict[str, dict[str, str]]) -> None:
    """Without which the test above would prove nothing."""
    plain = {name: found["plain"] for name, found in by_kernel.items()}
    if "openblas" not in str(np.show_config(mode="dicts")).lower() or len(plain) < 3:
        pytest.skip("numpy has another BLAS here, or there is only one kind of kernel")
    assert len(set(plain.values())) > 1, plain


def optional_features() -> list[str]:
    """The extensions that numpy would use here and can be told not to."""
    simd: Any = np.show_config(mode="dicts")["SIMD Extensions"]  # type: ignore[call-overload]
    return list(simd.get("found", []))


@pytest.mark.parametrize("share", ["all", "newest"])
def test_numpys_extensions_do_not_matter(expected: dict[str, str], share: str) -> None:
    """Without the vector instructions that numpy chooses at run time, or without the newest of them."""
    features = optional_features()
    if not features:
        pytest.skip("numpy has nothing to switch off here")
    off = features if share == "all" else features[-max(1, len(features) // 2) :]
    found = elsewhere(NPY_DISABLE_CPU_FEATURES=" ".join(off))
    assert {k: v for k, v in found.items() if k != "plain"} == expected, off


def test_blas_threads_do_not_matter(expected: dict[str, str]) -> None:
    found = elsewhere(OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2")
    assert {k: v for k, v in found.items() if k != "plain"} == expected


@pytest.mark.parametrize(("name", "value"), [("CHUNK", 1 << 10), ("CHUNK", 1 << 30), ("PANEL", 100), ("PANEL", 1 << 20),
                                             ("BUFFER", 16), ("BUFFER", 8192)])  # fmt: skip
def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    """All but the figure of what is left, which adds up panel by panel and may differ in its last digits."""
    before = digests(192, 2064, figure=False)
    monkeypatch.setattr(numerics if name == "BUFFER" else rewrite, name, value)
    assert digests(192, 2064, figure=False) == before


def test_the_rows_of_a_block_do_matter(monkeypatch: pytest.MonkeyPatch, expected: dict[str, str]) -> None:
    """The order of the sums is what the bytes hang on: another one gives others, so it is part of the format."""
    before = digest((896, 4864), "BF16", [removal(a_basis(896, 2)[:, :1])])
    assert before == expected["remove bf16"]
    monkeypatch.setattr(rewrite, "ROWS", 96)
    assert digest((896, 4864), "BF16", [removal(a_basis(896, 2)[:, :1])]) != before


@pytest.mark.parametrize("kind", ["remove", "biprojected", "affine"])
def test_threads_and_memory_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The files that come out, with one lane and with two, held in memory between the turns and read again."""
    base = pico.build("llama_bias", tmp_path / "base", shard="30KB")
    direction = pico.a_direction(base)
    found = {direction.digest(): direction}

    def made(name: str, threads: int, keep: int) -> dict[str, str]:
        monkeypatch.setattr(execute_module, "KEEP_TOTAL", keep)
        plan = plan_edit(open_checkpoint(str(base)), EditSpec(steps=[a_step(kind, direction)]), found)
        execute(plan, tmp_path / name, found, options=RunOptions(threads=threads))
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((tmp_path / name).rglob("*"))
                if p.is_file()}  # fmt: skip

    first = made("a", 1, 1 << 28)
    assert len([n for n in first if n.endswith(".safetensors")]) > 2
    assert made("b", 2, 1 << 28) == first
    assert made("c", 2, 0) == first
    assert made("d", 1, 5000) == first

