"""safetensors: the header against the reference library in both directions, hostile headers one by one, rounding."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from blake3 import blake3
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from safetensors.numpy import save

from bounded import ends_within
from weightsmith.errors import BadOffsets, FormatError, HeaderTooLarge, Truncated, WeightsmithError
from weightsmith.formats.safetensors import (
    DTYPE_BITS,
    MAX_HEADER,
    TensorSpec,
    bf16_to_f32,
    build_header,
    digest_and_check,
    encode,
    f32_to_bf16,
    read_header,
    read_tensor,
    write_file,
)

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda n: n != "__metadata__")
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
WHOLE = sorted(d for d, bits in DTYPE_BITS.items() if bits % 8 == 0)
ENTRIES = st.dictionaries(NAMES, st.tuples(st.sampled_from(WHOLE), SHAPES), max_size=6)
METADATA = st.dictionaries(NAMES, NAMES, max_size=3)


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def reference(content: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    """What the reference library reads, or ``None`` where it refuses."""
    try:
        found = safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return None
    return {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in found}


def ours(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    content = path.read_bytes()
    return {t.name: (t.dtype, t.shape, content[t.start : t.start + t.nbytes]) for t in read_header(path).tensors}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("st") / "m.safetensors"


# -- agreement with the reference library ------------------------------------------------------------------


@given(entries=ENTRIES, metadata=METADATA, dice=st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_what_we_write_the_library_reads(file: Path, entries: Any, metadata: dict[str, str], dice: Any) -> None:
    data = {n: dice.randbytes(math.prod(s) * DTYPE_BITS[d] // 8) for n, (d, s) in entries.items()}
    rows: list[Any] = [(n, d, s, lambda out, n=n: out.write(data[n])) for n, (d, s) in entries.items()]
    write_file(file, rows, metadata)
    wanted = {n: (d, s, data[n]) for n, (d, s) in entries.items()}
    assert reference(file.read_bytes()) == wanted
    assert ours(file) == wanted
    header = read_header(file)
    assert [t.name for t in header.tensors] == list(entries) or 0 in {t.nbytes for t in header.tensors}
    assert dict(header.metadata) == metadata
    assert header.data_start % 8 == 0
    assert 8 + len(header.raw) == header.data_start
    with safetensors.safe_open(file, "np") as opened:
        assert (opened.metadata() or {}) == metadata


@given(
    tensors=st.dictionaries(
        NAMES,
        nps.arrays(st.sampled_from(["<f4", "<f2", "<f8", "<i8", "<i4", "<i2", "i1", "u1", "?"]), SHAPES),
        max_size=5,
    ),
    metadata=METADATA,
)
@settings(max_examples=60, deadline=None)
def test_what_the_library_writes_we_read(file: Path, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    assume(tensors or metadata)  # of neither, version 0.8 of the library writes what it can't read itself
    file.write_bytes(save(tensors, metadata))
    header = read_header(file)
    assert dict(header.metadata) == metadata
    assert {t.name for t in header.tensors} == tensors.keys()
    for spec in header.tensors:
        values = read_tensor(spec)
        assert values.dtype == tensors[spec.name].dtype
        assert values.shape == spec.shape == tensors[spec.name].shape
        assert values.tobytes() == tensors[spec.name].tobytes()
        assert digest_and_check(spec)[0] == blake3(values.tobytes()).hexdigest()
        assert spec.numel == values.size


def test_every_dtype_of_the_library_is_known(file: Path) -> None:
    refusal = ""
    try:
        safetensors.deserialize(raw({"a": entry("none", [0], [0, 0])}))
    except safetensors.SafetensorError as error:
        refusal = str(error).split("expected one of")[1]
    known = {word.strip("`, ") for word in refusal.split(" at line")[0].split()}
    assert known == set(DTYPE_BITS)
    for dtype, bits in DTYPE_BITS.items():
        file.write_bytes(raw({"a": entry(dtype, [8], [0, bits])}, bytes(bits)))
        assert ours(file) == reference(file.read_bytes()), dtype


@given(content=st.binary(max_size=120), flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 7)), max_size=3))
@settings(max_examples=150, deadline=None)
def test_no_bytes_are_a_bug_and_we_take_nothing_that_the_library_refuses(
    file: Path, content: bytes, flips: list[tuple[int, int]]
) -> None:
    good = bytearray(raw({"__metadata__": {"k": "v"}, "a": entry(), "b": entry("BF16", [2, 1], [4, 8])}, bytes(8)))
    for byte, bit in flips:
        good[byte % len(good)] ^= 1 << bit
    for data in (content, raw(content), bytes(good)):
        file.write_bytes(data)
        error, found = attempt(file)
        assert found == reference(data) if error is None else error.where == str(file)


def attempt(file: Path) -> tuple[WeightsmithError | None, Any]:
    """The error on reading a file, or what was read."""
    try:
        return None, ours(file)
    except WeightsmithError as error:
        return error, None


# -- hostile headers ---------------------------------------------------------------------------------------

DEEP = b'{"a":' * 100_000
HOSTILE: dict[str, tuple[bytes, type[WeightsmithError], str]] = {
    "no bytes": (b"", Truncated, "shorter than the 8"),
    "seven bytes": (bytes(7), Truncated, "shorter than the 8"),
    "header of no bytes": (bytes(8), FormatError, "not valid JSON"),
    "length of all ones": (b"\xff" * 8, HeaderTooLarge, "18446744073709551615"),
    "length over the limit": ((MAX_HEADER + 1).to_bytes(8, "little"), HeaderTooLarge, "the limit is 100000000"),
    "length at the limit": (MAX_HEADER.to_bytes(8, "little"), Truncated, "the header needs"),
    "length beyond the file": (raw(b"{}")[:-1], Truncated, "the header needs 10 bytes and the file has 9"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", FormatError, "Git LFS pointer"),
    "HTML": (b"<!DOCTYPE html>", HeaderTooLarge, "the header claims"),
    "a pickle": (b"\x80\x04\x95" + bytes(40), Truncated, "the header needs"),
    "not JSON": (raw(b"{"), FormatError, "not valid JSON"),
    "Latin-1": (raw('{"é":1}'.encode("latin-1")), FormatError, "not valid JSON"),
    "UTF-16": (raw("{}".encode("utf-16")), FormatError, "not valid JSON"),
    "UTF-16 without mark": (raw("{}".encode("utf-16-le")), FormatError, "not valid JSON"),
    "byte order mark": (raw(b"\xef\xbb\xbf{}"), FormatError, "not valid JSON"),
    "half a surrogate": (raw(rb'{"\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'), FormatError, "JSON"),
    "two values": (raw(b"{}{}"), FormatError, "not valid JSON"),
    "deep": (raw(DEEP), FormatError, "not valid JSON"), "deep lists": (raw(b"[" * 100_000), FormatError, "JSON"),
    "a list": (raw([]), FormatError, "not a JSON object"), "a number": (raw(5), FormatError, "not a JSON object"),
    "null": (raw(None), FormatError, "not a JSON object"),
    "a tensor twice": (raw(b'{"a":1,"a":2}'), FormatError, "names 'a' twice"),
    "a field twice": (raw(b'{"a":{"dtype":"F32","dtype":"F64"}}'), FormatError, "names 'dtype' twice"),
    "metadata twice": (raw(b'{"__metadata__":{},"__metadata__":{}}'), FormatError, "twice"),
    "metadata a list": (raw({"__metadata__": []}), FormatError, "__metadata__"),
    "metadata false": (raw({"__metadata__": False}), FormatError, "__metadata__"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}}), FormatError, "__metadata__"),
    "metadata nested": (raw({"__metadata__": {"a": {}}}), FormatError, "__metadata__"),
    "tensor a list": (raw({"a": []}), FormatError, "expected dtype, shape"),
    "tensor null": (raw({"a": None}), FormatError, "expected dtype, shape"),
    "no shape": (raw({"a": {"dtype": "F32", "data_offsets": [0, 0]}}), FormatError, "expected dtype, shape"),
    "another field": (raw({"a": entry(extra=1)}, bytes(4)), FormatError, "expected dtype, shape"),
    "unknown dtype": (raw({"a": entry("F128")}, bytes(4)), FormatError, "unknown dtype 'F128'"),
    "dtype a list": (raw({"a": entry(["F32"])}, bytes(4)), FormatError, "unknown dtype"),
    "dtype an object": (raw({"a": entry({})}, bytes(4)), FormatError, "unknown dtype"),
    "dtype null": (raw({"a": entry(None)}, bytes(4)), FormatError, "unknown dtype"),
    "shape a number": (raw({"a": entry(shape=1)}, bytes(4)), FormatError, "lists of non-negative"),
    "shape of text": (raw({"a": entry(shape=["1"])}, bytes(4)), FormatError, "lists of non-negative"),
    "shape of fractions": (raw({"a": entry(shape=[1.0])}, bytes(4)), FormatError, "lists of non-negative"),
    "shape of truth": (raw({"a": entry(shape=[True])}, bytes(4)), FormatError, "lists of non-negative"),
    "shape negative": (raw({"a": entry(shape=[-1])}, bytes(4)), FormatError, "lists of non-negative"),
    "shape twice negative": (raw({"a": entry(shape=[-1, -1])}, bytes(4)), FormatError, "lists of non-negative"),
    "shape NaN": (raw(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)), FormatError, "lists of"),
    "shape that overflows": (raw({"a": entry(shape=[1 << 32, 1 << 32])}, bytes(4)), BadOffsets, "4 bytes for shape"),
    "shape that wraps": (raw({"a": entry(shape=[(1 << 62) + 1])}, bytes(4)), BadOffsets, "4 bytes for shape"),
    "shape of huge digits": (raw(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}'),
                             FormatError, "not valid JSON"),
    "offsets of one": (raw({"a": entry(offsets=[0])}, bytes(4)), FormatError, "begin, end"),
    "offsets of three": (raw({"a": entry(offsets=[0, 4, 8])}, bytes(4)), FormatError, "begin, end"),
    "offsets backwards": (raw({"a": entry(offsets=[4, 0])}, bytes(4)), FormatError, "begin, end"),
    "offsets negative": (raw({"a": entry(offsets=[-4, 0])}, bytes(4)), FormatError, "non-negative"),
    "offsets too short": (raw({"a": entry(offsets=[0, 3])}, bytes(3)), BadOffsets, "3 bytes for shape"),
    "offsets too long": (raw({"a": entry(offsets=[0, 5])}, bytes(5)), BadOffsets, "5 bytes for shape"),
    "offsets beyond the file": (raw({"a": entry()}, bytes(3)), Truncated, "the data needs"),
    "offsets far beyond": (raw({"a": entry("U8", [1 << 60], [0, 1 << 60])}), Truncated, "the data needs"),
    "a hole at the start": (raw({"a": entry(offsets=[4, 8])}, bytes(8)), BadOffsets, "leaves a hole"),
    "a hole between": (raw({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12)), BadOffsets, "'b' leaves a hole"),
    "an overlap": (raw({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6)), BadOffsets, "'b' overlaps"),
    "the same bytes twice": (raw({"a": entry(), "b": entry()}, bytes(4)), BadOffsets, "'b' overlaps"),
    "a tail": (raw({"a": entry()}, bytes(5)), BadOffsets, "1 bytes after the last"),
    "a tail without tensors": (raw({}, bytes(5)), BadOffsets, "5 bytes after the last"),
    "half a byte": (raw({"a": entry("F4", [3], [0, 1])}, bytes(1)), BadOffsets, "1 bytes for shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header(tmp_path: Path, case: str) -> None:
    content, error, says = HOSTILE[case]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        read_header(path)
    assert type(caught.value) is error
    assert says in caught.value.message
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    "header",
    [
        lambda: {f"t{i}": entry("U8", [0], [0, 0]) for i in range(30_000)},
        lambda: b"{" + b",".join(b'"t%d":0' % i for i in range(60_000)) + b',"t59999":0}',
        lambda: {"a": entry("U8", [(1 << 63) - 1] * 30_000, [0, 0])},
        lambda: {"a": entry("U8", [10**4000] * 200, [0, 0])},
        lambda: {"a": entry("U8", [0] * 50_000, [0, 0])},
        lambda: {"__metadata__": {f"k{i}": "v" * 9 for i in range(50_000)}},
    ],
    ids=["many tensors", "a late twin", "huge shape", "huge numbers", "long shape", "much metadata"],
)
def test_time_stays_in_proportion_to_the_header(tmp_path: Path, header: Callable[[], Any]) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw(header()))
    with ends_within(20):
        error, _ = attempt(path)
    assert len(str(error)) < 1000


def test_null_metadata_and_white_space_are_taken_as_the_library_takes_them(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for content in (raw({"__metadata__": None}), raw(b"  {}"), raw(b"{}   \n"), raw({})):
        path.write_bytes(content)
        assert reference(content) == {}
        assert ours(path) == {}
        assert dict(read_header(path).metadata) == {}


def test_empty_tensors_may_stand_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    header = {"z": entry(shape=[0], offsets=[4, 4]), "a": entry(), "y": entry(shape=[3, 0], offsets=[0, 0])}
    path.write_bytes(raw(header, bytes(4)))
    assert ours(path) == reference(path.read_bytes())


def test_a_writer_that_writes_too_much_or_too_little(tmp_path: Path) -> None:
    for count in (3, 5):
        with pytest.raises(FormatError, match=f"{count} bytes written, 4 needed"):
            write_file(tmp_path / "m", [("a", "F32", (1,), lambda out, n=count: out.write(bytes(n)))])


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw({"a": entry(shape=[4], offsets=[0, 16])}, bytes(16)))
    spec = read_header(path).tensors[0]
    path.write_bytes(path.read_bytes()[:-1])
    for read in (read_tensor, digest_and_check):
        with pytest.raises(Truncated, match="'a' ends early"):
            read(spec)


# -- values ------------------------------------------------------------------------------------------------


def as_torch_bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def test_every_bfloat16_and_its_neighbourhood_rounds_as_torch_rounds() -> None:
    """All 65,536 values, and in fp32 the points around each halfway mark between it and the next."""
    top = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    for low in (0, 1, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF):
        values = (top | np.uint32(low)).view(np.float32)
        real = ~np.isnan(values)
        bits = f32_to_bf16(values)
        assert np.array_equal(bits[real], as_torch_bits(values)[real])
        back = bf16_to_f32(bits)
        assert np.isnan(back[~real]).all()
        assert not np.isnan(back[real]).any()
        assert ((bits[~real] & 0x40) != 0).all(), "a NaN stays a quiet NaN"
    exact = np.arange(1 << 16, dtype=np.uint16)
    wide = bf16_to_f32(exact)
    real = ~np.isnan(wide)
    assert np.array_equal(f32_to_bf16(wide)[real], exact[real])
    assert np.array_equal(wide.view(np.uint32), torch.from_numpy(exact.view(np.int16)).view(torch.bfloat16).float()
                          .numpy().view(np.uint32))  # fmt: skip


def test_random_fp32_and_fp64_round_as_torch_rounds() -> None:
    dice = np.random.default_rng(0)
    single = dice.integers(0, 1 << 32, 300_000, np.uint32).view(np.float32)
    single = single[~np.isnan(single)]
    assert np.array_equal(f32_to_bf16(single), as_torch_bits(single))
    assert f32_to_bf16(single.reshape(2, -1)[:, ::3]).shape == single.reshape(2, -1)[:, ::3].shape
    double = dice.standard_normal(50_000) * 10.0 ** dice.uniform(-45, 39, 50_000)
    assert encode(double, "F64") == double.tobytes()
    with np.errstate(all="ignore"):
        assert encode(double, "F32") == double.astype(np.float32).tobytes()
        assert encode(double, "F16") == double.astype(np.float16).tobytes()
    back = np.frombuffer(encode(double, "F32"), "<f4")
    assert np.array_equal(back, torch.from_numpy(double).float().numpy())


def test_fp64_is_rounded_once_and_not_by_way_of_fp32() -> None:
    """Just beside the middle between two neighbours, fp32 would fall on the middle and then go to the even one."""
    low = np.arange(0x7F7F, dtype=np.uint16)  # every finite value but the greatest, and its neighbour above
    a, b = (bf16_to_f32(x).astype(np.float64) for x in (low, low + np.uint16(1)))
    middle = (a + b) / 2
    even = np.where(low % 2 == 0, a, b)
    for sign in (1.0, -1.0):
        for values, wanted in ((np.nextafter(middle, 0), a), (np.nextafter(middle, np.inf), b), (middle, even)):
            got = bf16_to_f32(np.frombuffer(encode(sign * values, "BF16"), "<u2"))
            assert np.array_equal(got.astype(np.float64), sign * wanted)


@given(nps.arrays("<f4", st.integers(0, 20), elements=st.floats(width=32, allow_nan=True)))
@settings(max_examples=60, deadline=None)
def test_bfloat16_rounding_is_to_nearest(values: np.ndarray[Any, Any]) -> None:
    assume(values.size)
    got = bf16_to_f32(f32_to_bf16(values))
    finite = np.isfinite(values) & np.isfinite(got)
    bits = f32_to_bf16(values)[finite].astype(np.int32)
    for step in (-1, 1):
        neighbour = bf16_to_f32(((bits + step) & 0xFFFF).astype(np.uint16)).astype(np.float64)
        nearer = np.abs(neighbour - values[finite].astype(np.float64)) < np.abs(
            got[finite].astype(np.float64) - values[finite].astype(np.float64)
        )
        assert not nearer[np.isfinite(neighbour)].any()


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize("place", [0, 1, 4_999])
def test_the_digest_pass_sees_every_nan_and_infinity(tmp_path: Path, dtype: str, place: int) -> None:
    values = np.linspace(-60_000, 60_000, 5_000)
    for bad, finite in ((0.0, True), (np.nan, False), (np.inf, False), (-np.inf, False)):
        values[place] = bad
        data = encode(values, dtype)
        path = tmp_path / "m.safetensors"
        write_file(path, [("a", dtype, values.shape, lambda out, data=data: out.write(data))])
        spec = read_header(path).tensors[0]
        assert digest_and_check(spec) == (blake3(data).hexdigest(), finite)
        assert np.isfinite(read_tensor(spec)).all() == finite


def test_dtypes_that_arrays_and_edits_can_not_hold(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="can't cast to I8"):
        encode(np.zeros(1), "I8")
    path = tmp_path / "m"
    path.write_bytes(bytes(8))
    with pytest.raises(FormatError, match="F8_E4M3 can't be read"):
        read_tensor(TensorSpec("a", "F8_E4M3", (8,), path, 0, 8))


def test_equal_entries_have_equal_headers() -> None:
    rows: list[tuple[str, str, tuple[int, ...]]] = [("é", "BF16", (2, 3)), ("a", "F32", ())]
    header = build_header(rows, {"b": "1", "a": "2"})
    assert header == build_header(iter(rows), {"b": "1", "a": "2"})
    assert len(header) % 8 == 0
    assert json.loads(header[8:])["a"]["data_offsets"] == [12, 16]
    assert b"__metadata__" not in build_header(rows, None)
