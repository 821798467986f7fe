"""Headers, digests and values of weight files in a scan: every violation has its rule, and every value is looked at."""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from bounded import ends_within
from corpus import Case, weights, weights_honest, weights_values
from weightsmith.checkpoint import open_checkpoint
from weightsmith.formats import float8, gguf, safetensors
from weightsmith.found import Finding, verdict_of
from weightsmith.trust import stream
from weightsmith.trust.items import Folder, Item
from weightsmith.trust.listing import list_folder
from weightsmith.trust.scanners.header_rules import BY_FAULT, MOST_HEADER, RULES
from weightsmith.trust.scanners.headers import Headers, texts
from weightsmith.trust.scanners.numbers import Numbers
from weightsmith.trust.values import Values

FORMS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4",
         "I64": "<i8", "U64": "<u8"}  # fmt: skip


def examine(path: Path, tell: Callable[[str, int], None] = lambda name, done: None) -> tuple[list[Finding], Folder]:
    """What the header scanner, the pass over the bytes and the numbers scanner say of a folder."""
    folder = Folder(path, single=not path.is_dir())
    found = list(list_folder(path, folder))
    headers, numbers = Headers(), Numbers()
    for item in folder.items.values():
        if headers.kinds & set(item.kinds):
            found += [f for f in headers.scan_file(item, folder) if isinstance(f, Finding)]
    found += stream.read_all(folder, tell)
    found += [*headers.scan_folder(folder), *numbers.scan_folder(folder)]
    return found, folder


# -- cases -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*weights.CASES, *weights_values.CASES], ids=lambda c: c.name)
def test_what_is_wrong_is_named(case: Case, tmp_path: Path) -> None:
    case.build(tmp_path)
    found, _ = examine(tmp_path)
    assert verdict_of(found) == case.verdict, found
    assert {f.rule for f in found} & set(case.rules), found


@pytest.mark.parametrize("case", [c for c in weights_honest.CASES if "transformers" not in c.needs], ids=lambda c: c.name)
def test_what_exporters_write_is_clean(case: Case, tmp_path: Path) -> None:
    case.build(tmp_path)
    found, folder = examine(tmp_path)
    assert verdict_of(found) == "clean", found
    assert all(i.sha256 == hashlib.sha256(i.read()).hexdigest() for i in folder.items.values())


def test_every_fault_of_the_parsers_has_a_rule_and_every_error_a_fault() -> None:
    for module in (safetensors, gguf):
        source = Path(module.__file__).read_text(encoding="utf-8")
        parser = source[: source.index("def build_header" if module is safetensors else "def read_rows")]
        faults = set(re.findall(r'fault="([a-z0-9-]+)"', parser))
        assert faults
        assert faults <= BY_FAULT.keys()
        raised = len(re.findall(r"(?:raise|return) (?:FormatError|BadOffsets|Truncated|HeaderTooLarge|UnsupportedModel)\(", parser))
        assert raised - parser.count("no general.architecture") - parser.count('"not a plain file"') <= parser.count("fault=")
    assert len({r.name for r in RULES}) == len(RULES)


@pytest.mark.parametrize("text", ["x", "<", "<a ", "curl ", "eval( ", "gAI", "8002", "_", "os.", " onab", "__class_", "\U0001f600"])
def test_texts_are_searched_in_time_that_follows_their_length(text: str) -> None:
    item = Item("m", 1, lambda: io.BytesIO(b""))
    spent = []
    for size in (100_000, 800_000):
        begin = time.process_time()
        list(texts([("k", "<a" + text * (size // len(text)))], item))
        spent.append(time.process_time() - begin)
    assert spent[1] < 40 * spent[0] + 0.1


def test_a_header_is_kept_for_other_scanners_only_when_it_is_good(tmp_path: Path) -> None:
    weights.model(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes() + b"x")
    (tmp_path / "model.gguf").write_bytes(weights.gguf_file())
    _, folder = examine(tmp_path)
    assert set(folder.headers) == {"model.safetensors"}
    assert set(folder.ggufs) == {"model.gguf"}
    assert {f for f, _ in folder.tensors} == {"model.safetensors", "model.gguf"}


def test_a_member_of_an_archive_is_judged_by_its_values_too(tmp_path: Path) -> None:
    case = next(c for c in weights_values.CASES if c.name == "values-nan-f32")
    case.build(tmp_path)
    outer = Item("model.zip", 1, lambda: io.BytesIO(b"x"), kinds=("zip",))
    item = outer.member("model.safetensors", (tmp_path / "model.safetensors").read_bytes())
    item.kinds = ("safetensors",)
    folder = Folder(tmp_path)
    assert not list(Headers().scan_file(item, folder))
    assert not folder.headers
    assert [f.rule for f in Numbers().scan_file(item, folder) if isinstance(f, Finding)] == ["weights-not-finite"]


# -- digests -----------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    weights_values._shards(tmp_path, weights.llama(), 5)
    (tmp_path / "notes.bin").write_bytes(os.urandom(100_000))
    return tmp_path


def read_quickly(folder: Folder) -> set[str]:
    """Read a folder without digests of tensors; the tensors that were digested all the same."""
    list(list_folder(folder.path, folder))
    for item in folder.items.values():
        assert not list(Headers().scan_file(item, folder))
    list(stream.Reading(folder, digested=False).finish(lambda *_: None))
    assert not any(f.blake3 for f in folder.tensors.values())
    return {name for _, name in folder._digests}


@pytest.mark.parametrize("equal", [True, False])
def test_only_what_looks_alike_is_digested_and_the_digest_decides(tmp_path: Path, equal: bool) -> None:
    """Layers 1 and 2 begin alike and have one greatest value; the rest is the same, or not."""
    rng = np.random.default_rng(3)
    tensors = {f"model.layers.{n}.self_attn.q_proj.weight": rng.normal(size=(64, 64)).astype(np.float32) for n in range(4)}
    one, two = (tensors[f"model.layers.{n}.self_attn.q_proj.weight"] for n in (1, 2))
    one[9, 9] = 7.5
    two[:] = one
    if not equal:
        two[16:] = rng.normal(size=(48, 64))  # more than the few values that a copy may differ in
    tensors = {"a.odd.one": np.ones(3, np.float32), **tensors}  # equal tensors lie at other places of their blocks
    save_file(tensors, tmp_path / "model.safetensors")
    folder = Folder(tmp_path)
    assert read_quickly(folder) == set()
    found = [f.rule for f in Numbers().scan_folder(folder) if isinstance(f, Finding)]
    assert found == (["layers-repeated"] if equal else [])
    assert {name for _, name in folder._digests} == {f"model.layers.{n}.self_attn.q_proj.weight" for n in (1, 2)}
    pairs = [("model.safetensors", f"model.layers.{n}.self_attn.q_proj.weight") for n in (0, 1, 2)]
    assert folder.alike(pairs[1], pairs[2]) is equal
    assert folder.alike(pairs[0], pairs[1]) is False
    assert folder.alike(pairs[0], ("model.safetensors", "not.there")) is None
    expected = {name: blake3(values.tobytes()).hexdigest() for name, values in tensors.items()}
    assert {name: folder.digest(file, name) for file, name in folder.tensors} == expected


@pytest.mark.parametrize(("cores", "block"), [(1, 1 << 20), (2, 1 << 20), (3, 700), (8, 128), (2, 64)])
def test_digests_do_not_depend_on_threads_and_blocks(
    shards: Path, cores: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_checkpoint(str(shards)).tensor_digests()
    monkeypatch.setattr(stream, "usable_cores", lambda: cores)
    monkeypatch.setattr(stream, "BLOCK", block)
    monkeypatch.setattr(stream, "SMALL", 0)
    before = threading.active_count()
    found, folder = examine(shards)
    assert not found
    assert {name: f.blake3 for (_, name), f in folder.tensors.items()} == expected
    assert all(f.finite and f.peak and f.peak < 5 for f in folder.tensors.values())
    for item in folder.items.values():
        assert item.sha256 == hashlib.sha256(item.read()).hexdigest()
    assert threading.active_count() == before


def test_a_worker_without_a_file_takes_over_the_hashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big.bin").write_bytes(os.urandom(3_000_000))
    helped = threading.Event()
    real = stream._Job.help
    monkeypatch.setattr(stream._Job, "help", lambda self: (helped.set(), real(self)))
    slow = stream._fill
    monkeypatch.setattr(stream, "_fill", lambda *a: (slow(*a), helped.wait(5)))
    monkeypatch.setattr(stream, "usable_cores", lambda: 2)
    monkeypatch.setattr(stream, "BLOCK", 100_000)
    monkeypatch.setattr(stream, "SMALL", 0)
    _, folder = examine(tmp_path)
    assert helped.is_set()
    assert folder.items["big.bin"].sha256 == hashlib.sha256((tmp_path / "big.bin").read_bytes()).hexdigest()


def test_other_work_can_be_done_while_the_pass_goes_on(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "usable_cores", lambda: 2)
    monkeypatch.setattr(stream, "SMALL", 0)
    before = sys.getswitchinterval()
    folder = _listed(shards)
    reading = stream.Reading(folder)
    assert sys.getswitchinterval() < before
    assert all(item.read() for item in folder.items.values())
    assert not list(reading.finish(lambda name, done: None))
    assert sys.getswitchinterval() == before
    assert all(i.sha256 == hashlib.sha256(i.read()).hexdigest() for i in folder.items.values())


def test_somebody_hears_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big.bin").write_bytes(bytes(1_000_000))
    monkeypatch.setattr(stream, "BLOCK", 1000)
    monkeypatch.setattr(stream, "TELL", 50_000)
    heard: list[tuple[str, int]] = []
    examine(tmp_path, lambda name, done: heard.append((name, done)))
    steps = [done for name, done in heard if name == "big.bin"]
    assert steps[-1] == 1_000_000
    assert max(b - a for a, b in zip([0, *steps], steps, strict=False)) <= 51_000
    assert stream.TELL <= 64 << 20


def _listed(path: Path) -> Folder:
    folder = Folder(path)
    assert not list(list_folder(path, folder))
    return folder


@pytest.mark.parametrize("how", ["shorter", "longer", "rewritten", "replaced", "gone"])
@pytest.mark.parametrize("when", ["before", "while"])
def test_a_file_that_changes_has_no_digest(how: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (how, when) in (("replaced", "while"), ("gone", "while")):
        pytest.skip("the bytes that are read are still those of the listed file")
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(10_000))
    folder = _listed(tmp_path)

    def change() -> None:
        if how in ("gone", "replaced"):
            path.unlink()
        if how != "gone":
            path.write_bytes(bytes({"shorter": 100, "longer": 20_000}.get(how, 10_000)))
            os.utime(path, ns=(1, 1))

    if when == "before":
        change()
    else:
        monkeypatch.setattr(stream, "_state", lambda file, real=stream._state: (real(file), change())[0])
    found = list(stream.read_all(folder, lambda name, done: None))
    assert [f.rule for f in found] == ["unreadable" if how == "gone" else "file-changed"]
    assert verdict_of(found) == "could not tell"
    assert folder.items["model.bin"].sha256 is None


def test_a_disk_that_fails_is_a_finding_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    folder = _listed(tmp_path)

    class Broken(io.BytesIO):
        def readinto(self, view: Any) -> int:
            raise OSError(5, "Input/output error")

    folder.items["a"].opener = lambda: Broken(b"a")
    found = list(stream.read_all(folder, lambda name, done: None))
    assert [(f.rule, f.file) for f in found] == [("unreadable", "a")]
    assert "Input/output error" in found[0].message
    assert folder.items["b"].sha256 == hashlib.sha256(b"b").hexdigest()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    with (tmp_path / "big.bin").open("wb") as file:
        file.truncate(200 << 20)
    tracemalloc.start()
    try:
        examine(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


# -- values ------------------------------------------------------------------------------------------------


def decoded(raw: bytes, dtype: str) -> np.ndarray[Any, Any]:
    """The values, by way of a library or a table."""
    if dtype == "BF16":
        with np.errstate(invalid="ignore"):  # a NaN that signals
            return safetensors.bf16_to_f32(np.frombuffer(raw, "<u2")).astype(np.float64)
    if dtype in float8.DECODED:
        return float8.table(dtype)[np.frombuffer(raw, "u1")].astype(np.float64)
    return np.frombuffer(raw, FORMS[dtype])


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_facts_are_those_of_the_decoded_values(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([*FORMS, "BF16", *float8.DECODED]))
    width = safetensors.DTYPE_BITS[dtype] // 8
    words = data.draw(st.lists(st.binary(min_size=width, max_size=width) | st.just(bytes(width)), min_size=1, max_size=9))
    raw = b"".join(words)
    cut = data.draw(st.integers(0, len(words))) * width
    values = Values(dtype)
    for part in (raw[:cut], raw[cut:]):
        if part:
            values.update(np.frombuffer(part, np.uint8))
    facts, real = values.facts(), decoded(raw, dtype)
    assert facts.finite == bool(np.isfinite(real).all())
    if facts.finite:
        assert facts.peak == float(max(abs(float(v)) for v in real))
        assert facts.constant == (len(set(words)) == 1 or not real.any())
        if facts.rms is not None and facts.peak < 1e150:
            assert facts.rms == pytest.approx(float(np.sqrt(np.mean(np.square(real, dtype=np.float64)))), rel=1e-9)
    assert facts.finite or np.isnan(facts.peak) == bool(np.isnan(real).any())


BLOCK_TYPES = [n for n in gguf._BLOCK if n not in ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K", "NVFP4")]


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_quantised_blocks_are_finite_exactly_when_their_values_are(kind: str) -> None:
    _, nbytes = gguf._BLOCK[kind]
    dice = np.random.default_rng(5)
    seen = set()
    for _ in range(300):
        raw = dice.integers(0, 256, (3, nbytes), dtype=np.uint8)
        if dice.random() < 0.5:
            raw &= 0xBB  # no exponent of all ones
        values = Values(kind, quantised=True)
        values.update(raw.reshape(-1))
        real = gguf.decode_rows(kind, raw)
        facts = values.facts()
        if kind != "MXFP4":  # whose greatest scales overflow fp32 only in the product
            assert facts.finite == bool(np.isfinite(real).all())
        seen.add(facts.finite)
        if facts.finite and facts.peak is not None and kind != "IQ1_M":
            assert facts.peak >= np.abs(real).max() * 0.999 or not np.isfinite(facts.peak)
    assert True in seen
    if kind == "MXFP4":
        values = Values(kind, quantised=True)
        values.update(np.full(nbytes, 0xFF, np.uint8))
        assert not values.facts().finite


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_K", "Q6_K", "Q2_K"])
def test_zero_blocks_are_constant(kind: str) -> None:
    values = Values(kind, quantised=True)
    values.update(np.zeros(gguf._BLOCK[kind][1] * 4, np.uint8))
    assert values.facts().constant
    assert values.facts().peak == 0


# -- fuzzing -----------------------------------------------------------------------------------------------

_ENTRIES = weights.entries({"a": np.ones(4, np.float32), "b": np.ones((2, 3), np.uint8)})[0]
GOOD = (weights.packed({"__metadata__": {"format": "pt"}, **_ENTRIES}, bytes(22)), weights.gguf_file())
PATCHES = [b"\xff" * 8, b"\0" * 4, b"\1", b"\x09\0\0\0", b"[", b"{", b'"', b",", b"}", b"-", b"1e999", b"NaN", b"9" * 30,
           b"\\u0000"]  # fmt: skip


def mutants() -> Any:
    patch = st.tuples(st.integers(0, 700), st.sampled_from(PATCHES) | st.binary(max_size=8), st.booleans())
    return st.tuples(st.sampled_from(GOOD), st.lists(patch, max_size=4), st.integers(0, 40))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutants())
def test_no_mutant_crashes_hangs_or_is_read_otherwise(tmp_path_factory: pytest.TempPathFactory, drawn: Any) -> None:
    base, patches, cut = drawn
    raw = bytearray(base)
    for at, patch, insert in patches:
        raw[at : at + (0 if insert else len(patch))] = patch
    content = bytes(raw[: len(raw) - cut])
    folder = tmp_path_factory.mktemp("m")
    name = "m.safetensors" if base is GOOD[0] else "m.gguf"
    (folder / name).write_bytes(content)
    with ends_within(4):
        found, known = examine(folder)
    if name == "m.safetensors" and verdict_of(found) == "clean" and content:
        from safetensors import safe_open

        with safe_open(folder / name, "np") as file:
            assert {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()} == {  # noqa: SIM118 - not a mapping
                t.name: t.shape for t in known.headers[name].tensors}  # fmt: skip


BOMBS = {
    "lists": b'{"a":[' + b"[]," * (MOST_HEADER // 3 - 20) + b"[]]}",
    "objects": b'{"a":[' + b'{"":1},' * (MOST_HEADER // 7 - 20) + b"{}]}",
    "numbers": b'{"a":[' + b"1e5," * (MOST_HEADER // 4 - 20) + b"1]}",
    "texts": b'{"a":[' + b'"ab",' * (MOST_HEADER // 5 - 20) + b"1]}",
    "tensors": b"{" + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(130_000)) + b"}",
    "wide text": ('{"__metadata__":{"a":"' + "x" * (MOST_HEADER - 100) + '\U0001f600"}}').encode(),
    "names": b"{" + b",".join(b'"%d":0' % i for i in range(1_600_000)) + b"}",
}


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_no_header_takes_much_memory(bomb: str, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(weights.packed(BOMBS[bomb]))
    tracemalloc.start()
    try:
        examine(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 400 << 20
    finally:
        tracemalloc.stop()
