"""GGUF headers under attack, and dequantised values against the reference package."""

import os
import random
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightsmith
from bounded import ends_within
from weightsmith.errors import (
    BadOffsets,
    FormatError,
    HeaderTooLarge,
    Truncated,
    UnsupportedModel,
    WeightsmithError,
)
from weightsmith.formats import gguf

U32, STRING, ARRAY, BOOL = 4, 8, 9, 7


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


def array(kind: int, count: int, raw: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + raw


def info(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def build(pairs=(), tensors=(), data=b"", *, version=3, align=32, counts=None) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(pairs))))
    head += b"".join(pairs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % align) + data


PAIRS = (
    pair("general.architecture", STRING, text("llama")),
    pair("a.bool", BOOL, b"\1"),
    pair("a.u32", U32, struct.pack("<I", 7)),
    pair("a.f64", 12, struct.pack("<d", 0.5)),
    pair("a.i16s", ARRAY, array(3, 3, struct.pack("<3h", -1, 0, 300))),
    pair("a.strings", ARRAY, array(STRING, 3, text("x") + text("") + text("é∑"))),
    pair("a.nested", ARRAY, array(ARRAY, 2, array(0, 1, b"\5") + array(STRING, 1, text("y")))),
)
TENSORS = (info("w", [32, 3], 8, 0), info("b", [4], 0, 128))  # Q8_0 of 3 rows is 102 bytes
DATA = bytes(range(144))
GOOD = build(PAIRS, TENSORS, DATA)


@pytest.fixture
def parse(tmp_path: Path):
    path = tmp_path / "m.gguf"

    def run(raw: bytes, **options) -> gguf.GgufHeader:
        path.write_bytes(raw)
        return gguf.read_header(path, **options)

    return run


@pytest.mark.parametrize("version", [2, 3])
def test_a_good_file_is_read(parse, version):
    header = parse(build(PAIRS, TENSORS, DATA, version=version))
    assert header.version == version
    assert header.architecture == "llama"
    assert header.metadata == {
        "general.architecture": "llama", "a.bool": True, "a.u32": 7, "a.f64": 0.5, "a.i16s": [-1, 0, 300],
        "a.strings": ["x", "", "é∑"], "a.nested": [[5], ["y"]],
    }  # fmt: skip
    w, b = header.tensors
    assert (w.name, w.type, w.shape, w.nbytes, w.rows, w.numel) == ("w", "Q8_0", (3, 32), 102, 3, 96)
    assert (b.type, b.shape, b.start - w.start, b.rows) == ("F32", (4,), 128, 1)
    assert w.start == header.data_start == len(GOOD) - len(DATA)
    assert w.start % header.alignment == 0


def test_agrees_with_the_reference_reader(tmp_path):
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quantize

    path = tmp_path / "ref.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_token_list(["a", "b▁", "c"] * 700)
    writer.add_token_scores([0.5, -1.0, 2.0] * 700)
    writer.add_add_bos_token(True)
    rng = np.random.default_rng(0)
    for i, kind in enumerate((GGMLQuantizationType.Q5_1, GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16)):
        values = rng.standard_normal((5, 96)).astype(np.float32)
        writer.add_tensor(f"t{i}", quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header, reader = gguf.read_header(path), GGUFReader(path)
    assert header.alignment == 64
    assert header.data_start == reader.data_offset
    for ours, theirs in zip(header.tensors, reader.tensors, strict=True):
        assert (ours.name, ours.type, ours.start) == (theirs.name, theirs.tensor_type.name, theirs.data_offset)
        assert (list(ours.shape[::-1]), ours.nbytes) == (theirs.shape.tolist(), theirs.n_bytes)
    for key, value in header.metadata.items():
        assert value == reader.fields[key].contents()
    skipped = gguf.read_header(path, arrays=False)
    assert skipped.metadata["tokenizer.ggml.tokens"] == gguf.SkippedArray(2100)
    assert skipped.metadata["tokenizer.ggml.scores"] == gguf.SkippedArray(2100)
    assert skipped.tensors == header.tensors


def test_every_truncation_is_noticed(parse):
    for length in range(len(GOOD)):
        with pytest.raises(Truncated):
            parse(GOOD[:length])
        with pytest.raises(Truncated):
            parse(GOOD[:length], arrays=False)


HUGE = struct.pack("<Q", 1 << 60)
HOSTILE = {
    "array of 2^60 numbers": (build([pair("k", ARRAY, struct.pack("<I", U32) + HUGE)]), HeaderTooLarge),
    "array of 2^60 strings": (build([pair("k", ARRAY, struct.pack("<I", STRING) + HUGE)]), HeaderTooLarge),
    "array of 2^60 arrays": (build([pair("k", ARRAY, struct.pack("<I", ARRAY) + HUGE)]), HeaderTooLarge),
    "array of 5000 numbers": (build([pair("k", ARRAY, array(U32, 5000, b""))]), Truncated),
    "array of 5000 strings": (build([pair("k", ARRAY, array(STRING, 5000, b""))]), Truncated),
    "arrays without end": (build([pair("k", ARRAY, array(ARRAY, 1, b"") * 100)]), HeaderTooLarge),
    "array of unknown type": (build([pair("k", ARRAY, array(13, 1, b"\0" * 8))]), FormatError),
    "string of 2^60 bytes": (build([pair("k", STRING, HUGE)]), HeaderTooLarge),
    "string past the end": (build([pair("k", STRING, struct.pack("<Q", 999))]), Truncated),
    "string in an array past the end": (build([pair("k", ARRAY, array(STRING, 1, HUGE))]), Truncated),
    "key of 70000 bytes": (build([pair("k" * 70_000, BOOL, b"\1")]), HeaderTooLarge),
    "empty key": (build([pair("", BOOL, b"\1")]), FormatError),
    "key twice": (build([pair("k", BOOL, b"\1")] * 2), FormatError),
    "key not UTF-8": (build([text(b"\xff") + struct.pack("<I", BOOL) + b"\1"]), FormatError),
    "string not UTF-8": (build([pair("k", STRING, text(b"\xff"))]), FormatError),
    "strings not UTF-8": (build([pair("k", ARRAY, array(STRING, 1, text(b"\xc3")))]), FormatError),
    "boolean of 2": (build([pair("k", BOOL, b"\2")]), FormatError),
    "booleans of 3": (build([pair("k", ARRAY, array(BOOL, 3, b"\0\3\1"))]), FormatError),
    "unknown value type": (build([pair("k", 13, b"\0" * 8)]), FormatError),
    "2^40 tensors": (build(counts=(1 << 40, 0)), HeaderTooLarge),
    "1000 tensors that are not there": (build(counts=(1000, 0)), Truncated),
    "2^64-1 pairs": (build(counts=(0, (1 << 64) - 1)), HeaderTooLarge),
    "five dimensions": (build([], [info("w", [1] * 5, 0, 0)], DATA), FormatError),
    "2^32-1 dimensions": (build([], [text("w") + b"\xff" * 4], DATA), FormatError),
    "2^126 elements": (build([], [info("w", [1 << 63, 1 << 63], 0, 0)], DATA), Truncated),
    "offset past the end": (build([], [info("w", [4], 0, 1 << 62)], DATA), Truncated),
    "offset that wraps": (build([], [info("w", [4], 0, (1 << 64) - 32)], DATA), Truncated),
    "data past the end": (build([], [info("w", [40], 0, 0)], DATA), Truncated),
    "unaligned": (build([], [info("w", [4], 0, 8)], DATA), BadOffsets),
    "overlap": (build([], [info("w", [16], 0, 0), info("v", [4], 0, 32)], DATA), BadOffsets),
    "same place": (build([], [info("w", [4], 0, 0), info("v", [4], 0, 0)], DATA), BadOffsets),
    "tensor twice": (build([], [info("w", [4], 0, 0), info("w", [4], 0, 32)], DATA), FormatError),
    "tensor without name": (build([], [info("", [4], 0, 0)], DATA), FormatError),
    "half a block": (build([], [info("w", [33], 8, 0)], DATA), FormatError),
    "unknown ggml type": (build([], [info("w", [4], 99, 0)], DATA), UnsupportedModel),
    "alignment 0": (build([pair("general.alignment", U32, b"\0" * 4)]), FormatError),
    "alignment 24": (build([pair("general.alignment", U32, struct.pack("<I", 24))]), FormatError),
    "alignment as text": (build([pair("general.alignment", STRING, text("32"))]), FormatError),
    "alignment as boolean": (build([pair("general.alignment", BOOL, b"\1")]), FormatError),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), UnsupportedModel),
    "version 1": (build(version=1), UnsupportedModel),
    "version 4": (build(version=4), UnsupportedModel),
    "not GGUF": (b"PK\3\4" + b"\0" * 60, FormatError),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", FormatError),
    "empty": (b"", Truncated),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused(parse, case):
    raw, error = HOSTILE[case]
    with pytest.raises(error) as caught:
        parse(raw)
    assert caught.value.where
    if case not in ("strings not UTF-8", "booleans of 3"):  # what is skipped is not decoded either
        with pytest.raises(error):
            parse(raw, arrays=False)


def test_a_header_may_not_grow_beyond_the_limit(parse, monkeypatch):
    monkeypatch.setattr(gguf, "MAX_HEADER", 200)
    with pytest.raises(HeaderTooLarge):
        parse(GOOD)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_mutation_gets_past_the_typed_errors(tmp_path_factory, data):
    raw = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(GOOD) - len(DATA)))
        patch = data.draw(st.sampled_from([b"\xff" * 8, b"\0" * 4, b"\1", b"\x09\0\0\0"]) | st.binary(max_size=8))
        raw[where : where + len(patch)] = patch
    path = tmp_path_factory.getbasetemp() / "mutant.gguf"
    path.write_bytes(raw)
    try:
        header = gguf.read_header(path)
    except WeightsmithError:
        return
    assert all(t.start + t.nbytes <= len(raw) for t in header.tensors)


def test_time_and_memory_stay_in_proportion(parse):
    many = random.Random(0).randbytes(50_000)
    files = [
        build([pair("k", ARRAY, array(STRING, 100_000, b"\0" * 800_000))]),
        build([pair("k", ARRAY, array(3, 25_000, many))]),
        build([pair("k", ARRAY, array(ARRAY, 60_000, array(0, 0, b"") * 60_000))]),
        build([pair(f"k{i}", BOOL, b"\1") for i in range(30_000)]),
        build([], [info(f"t{i}", [0], 0, 0) for i in range(20_000)]),
    ]
    for raw in files:
        tracemalloc.start()
        with ends_within(60):  # tracing costs ten times what the work does
            parse(raw)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 30 * len(raw) + 1_000_000


# -- values ------------------------------------------------------------------------------------------------


def test_the_type_table_is_the_reference_one():
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for number, (name, elements, nbytes) in gguf.GGML_TYPES.items():
        if number in list(GGMLQuantizationType):
            assert GGMLQuantizationType(number).name == name
            assert GGML_QUANT_SIZES[GGMLQuantizationType(number)] == (elements, nbytes)


def _stored(tmp_path: Path, kind: int, rows: int, columns: int, seed: int) -> tuple[gguf.GgufTensor, np.ndarray]:
    _, elements, nbytes = gguf.GGML_TYPES[kind]
    raw = np.random.default_rng(seed).integers(0, 256, (rows, columns // elements * nbytes), np.uint8)
    path = tmp_path / f"{kind}.gguf"
    path.write_bytes(build([], [info("w", [columns, rows], kind, 0)], raw.tobytes()))
    return gguf.read_header(path).tensors[0], raw


@pytest.mark.parametrize("kind", [k for k, (n, _, _) in gguf.GGML_TYPES.items() if n not in ("Q8_1", "Q8_K", "NVFP4")])
def test_values_are_bit_equal_to_the_reference(tmp_path, kind):
    from gguf import GGMLQuantizationType, dequantize

    tensor, raw = _stored(tmp_path, kind, 37, 512, kind)
    if tensor.type in ("I8", "I16", "I32", "I64", "F64"):
        with pytest.raises(UnsupportedModel, match=tensor.type):
            gguf.dequantize(tensor)
        return
    with np.errstate(all="ignore"):  # random bytes make NaN scales too
        wanted = dequantize(raw, GGMLQuantizationType(kind))
    got = gguf.dequantize(tensor)
    assert got.dtype == np.float32
    assert got.shape == tensor.shape == (37, 512)
    assert np.array_equal(got.view(np.uint32), wanted.view(np.uint32))
    assert np.array_equal(gguf.dequantize(tensor, (5, 9)), got[5:9], equal_nan=True)
    assert gguf.dequantize(tensor, (5, 5)).shape == (0, 512)


def test_vectors_keep_their_shape(tmp_path):
    path = tmp_path / "v.gguf"
    path.write_bytes(build([], [info("v", [4], 0, 0), info("s", [], 0, 32)], DATA))
    vector, scalar = gguf.read_header(path).tensors
    assert np.array_equal(gguf.dequantize(vector), np.frombuffer(DATA[:16], "<f4"))
    assert gguf.dequantize(scalar).shape == ()


def test_a_file_that_shrinks_after_its_header_is_read(tmp_path):
    tensor, _ = _stored(tmp_path, 8, 4, 64, 0)
    with tensor.file.open("r+b") as file:
        file.truncate(tensor.start + 10)
    with pytest.raises(Truncated):
        gguf.dequantize(tensor)


def test_neither_torch_nor_the_gguf_package_is_imported():
    code = "import sys, weightsmith.formats.gguf_convert; sys.exit(any(m in sys.modules for m in ('torch', 'gguf')))"
    source = Path(weightsmith.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(source)}).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SmolLM2-135M-Instruct.Q4_1.gguf", "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf"])
def test_real_headers_are_read_at_once(name):
    from gguf import GGUFReader

    path = Path(os.environ.get("WEIGHTSMITH_TEST_MODELS", "")) / name
    if not path.is_file():
        pytest.skip("WEIGHTSMITH_TEST_MODELS does not name a folder with the real models")
    with ends_within(20):
        header = gguf.read_header(path)
    reader = GGUFReader(path)
    assert {k: v.contents() for k, v in reader.fields.items() if not k.startswith("GGUF.")} == header.metadata
    assert [(t.name, t.data_offset) for t in reader.tensors] == [(t.name, t.start) for t in header.tensors]
