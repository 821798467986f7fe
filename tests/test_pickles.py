"""The machine that runs pickles on descriptions: it sees every import that an unpickler makes, and ends on any bytes."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bounded import ends_within
from corpus.assembly import SHELL, STOP, TUPLE1, args, call, named, proto, raw_bytes, stacked, system, text
from weightsmith.found import Finding
from weightsmith.trust.items import Folder, file_item
from weightsmith.trust.kinds import kinds_of
from weightsmith.trust.scan import Scan
from weightsmith.trust.scanners import pickle_machine
from weightsmith.trust.scanners.pickle_judge import Judge
from weightsmith.trust.scanners.pickle_machine import Machine, Stream
from weightsmith.trust.scanners.pickle_names import standing_of
from weightsmith.trust.scanners.pickle_values import Cursor, Held
from weightsmith.trust.scanners.pickles import RULES, Pickles, scan_stream


def run(data: bytes) -> tuple[Judge, Stream]:
    """One stream, run."""
    judge = Judge("x", ids=True)
    return judge, Machine(Cursor(io.BytesIO(data)), judge).run()


def found(data: bytes) -> list[Finding]:
    """Findings of a file of these bytes."""
    return list(scan_stream(io.BytesIO(data), "x"))


class Stub:
    """What a watched unpickler gets for every name: takes anything, does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Stub:
        return Stub()

    def __setstate__(self, _: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass


def watched(base: Any, data: bytes) -> set[tuple[str, str]]:
    """The names that a real unpickler asks for before it ends, with or without an error."""
    asked: set[tuple[str, str]] = set()

    class Watched(base):  # type: ignore[misc]
        def find_class(self, module: str, name: str) -> Any:
            asked.add((module, name))
            return Stub

        def persistent_load(self, pid: Any) -> Any:
            return Stub()

    with contextlib.suppress(Exception):  # an unpickler raises anything on such bytes; what it asked for counts
        Watched(io.BytesIO(data)).load()
    return asked


_TEXTS = st.sampled_from(["os", "system", "collections", "a.b", "é", "", "x" * 300])
_INDEX = st.integers(0, 4)
_PIECES = st.one_of(
    _TEXTS.map(text), _TEXTS.map(lambda t: b"\x8c" + bytes([len(t.encode()) % 256]) + t.encode()[:255]),
    _TEXTS.map(lambda t: b"V" + t.encode("raw-unicode-escape") + b"\n"), _TEXTS.map(lambda t: b"S'" + t.encode() + b"'\n"),
    _TEXTS.map(lambda t: b"U" + bytes([len(t.encode()) % 256]) + t.encode()[:255]),
    st.tuples(_TEXTS, _TEXTS).map(lambda p: named(*p)), st.tuples(_TEXTS, _TEXTS).map(lambda p: f"i{p[0]}\n{p[1]}\n".encode()),
    _INDEX.map(lambda i: b"q" + bytes([i])), _INDEX.map(lambda i: b"h" + bytes([i])), _INDEX.map(lambda i: b"p%d\n" % i),
    _INDEX.map(lambda i: b"g%d\n" % i), _INDEX.map(lambda i: b"r" + struct.pack("<I", i)),
    st.sampled_from([bytes([code]) for code in b"\x94\x94\x93\x93(t012)}]N\x88Rbsaeuldo\x81\x92\x85\x86\x87Q\x8f\x90\x91."]),
    st.sampled_from([b"\x80\x04", b"K\x01", b"I01\n", b"I7\n", b"L5L\n", b"F1.5\n", b"\x8a\x01\x05", b"C\x01x"]),
)  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(st.lists(_PIECES, max_size=25).map(b"".join))
def test_it_sees_every_name_that_an_unpickler_asks_for(data: bytes) -> None:
    judge, stream = run(data + STOP)
    seen = {(g.module, g.name) for g in judge.uses}
    computed = any(f.rule == "pickle-computed" for f in judge.found)
    for base in (pickle._Unpickler, pickle.Unpickler):
        assert computed or watched(base, data + STOP) <= seen, stream.problem


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.binary().map(bytearray),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner) | st.frozensets(st.integers()),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(_VALUES, st.integers(0, 5))
def test_plain_values_are_clean_and_end_where_they_end(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol=protocol)
    stream = run(data + b"more")[1]
    assert (stream.stopped, stream.end, stream.odd) == (True, len(data), [])
    assert [f for f in found(data) if f.severity != "note"] == []


_SEED = {"a": [1, 2.5, "x", b"y" * 300, (1, 2), {3}, None, 1 << 70], "b": {"c": bytearray(b"d")}}
SEEDS = [
    *(pickle.dumps(_SEED, protocol=n) for n in range(6)), system(), call("collections", "OrderedDict") + STOP,
    proto(4) + stacked("os", "system") + text(SHELL) + TUPLE1 + b"R.",
]  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(SEEDS), st.integers(0, 1 << 32), st.integers(1, 12))
def test_mutated_pickles_end_soon_and_are_never_worse_than_a_real_reader(seed: bytes, dice: int, changes: int) -> None:
    rng = random.Random(dice)
    data = bytearray(seed)
    for _ in range(changes):
        spot = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[spot : spot + 1] = bytes([rng.randrange(256)])
            case 1:
                data[spot : spot + rng.randrange(9)] = b""
            case 2:
                data[spot:spot] = rng.randbytes(rng.randrange(9))
            case _:
                begin = rng.randrange(len(data) + 1)
                data[spot:spot] = data[begin : begin + rng.randrange(40)]
    raw = bytes(data)
    with ends_within(5):
        result = found(raw)
    judge, stream = run(raw)
    seen = {(g.module, g.name) for g in judge.uses}
    if not any(f.rule == "pickle-computed" for f in judge.found):
        assert watched(pickle._Unpickler, raw) <= seen
    assert stream.stopped or any(f.rule == "pickle-broken" for f in result)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_end(data: bytes) -> None:
    assert found(data) is not None


@pytest.mark.parametrize("data", [
    b"\x80\x04\x8e" + b"\xff" * 8, b"\x80\x04\x95" + b"\xff" * 8 + b"N.", b"\x80\x02\x8b\xff\xff\xff\x7f", b"T\xff\xff\xff\xff",
    b"\x80\x02" + b"X\xff\xff\xff\xffa", b"(" * 100_000, b"\x80\x02N" + b"\x85" * 100_000 + b".", b"]" + b"2a" * 50_000 + b".",
    b"N" + b"2\x86" * 50_000 + b".", b"L" + b"9" * 200_000 + b"L\n.", b"I" + b"1" * 200_000 + b"\n.",
    b"F" + b"1" * 200_000 + b"\n.",
    b"S'" + b"\\x41" * 50_000 + b"'\n.", b"p" + b"9" * 100_000 + b"\n", b"N" + b"r\xff\xff\xff\xff" * 1000 + b".",
    b"c" + b"a." * 50_000 + b"\nb\n.", b"\x80\x02" + b"\x81" * 10, b"\x80\x04N" + b"\x94" * 100_000 + b".",
], ids=lambda d: d[:6].hex())  # fmt: skip
def test_lengths_depth_and_repetition_cost_what_the_bytes_cost(data: bytes) -> None:
    tracemalloc.start()
    with ends_within(25):
        try:
            found(data)
            taken = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert taken < 40_000_000


def test_a_pickle_beyond_the_limits_is_not_called_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "MOST_OPCODES", 5000)
    assert [f.rule for f in found(b"(" + b"N" * 10_000 + b"t.")] == ["pickle-too-large"]
    assert {f.rule for f in found(system()[:-1] + b"(" + b"N" * 10_000 + b"t.")} == {"pickle-code", "pickle-too-large"}


def test_long_strings_are_skipped_and_found_again() -> None:
    inner = system()[:-1] + text("x" * 100_000) + STOP
    data = proto(3) + call("torch.storage", "_load_from_bytes", raw_bytes(inner)) + STOP
    assert {f.rule for f in found(data)} == {"pickle-code", "pickle-readers-differ"}
    assert any("bytes at" in f.file for f in found(data))


def test_more_items_than_are_kept_are_counted_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "MOST_ITEMS", 10)
    _, stream = run(pickle.dumps([["a"] * 50, system()]))
    assert isinstance(stream.top, Held)
    assert stream.stopped


@pytest.mark.parametrize(("module", "name", "standing"), [
    ("collections", "OrderedDict", "needed"), ("torch", "FloatStorage", "needed"), ("torch._utils", "_rebuild_tensor_v2", "needed"),
    ("__builtin__", "set", "needed"), ("copy_reg", "_reconstructor", "needed"), ("os", "system", "system"),
    ("nt", "system", "system"),
    ("__builtin__", "eval", "system"), ("commands", "getoutput", "system"), ("collections", "OrderedDict.fromkeys", "system"),
    ("torch", "Tensor.map_", "unlisted"), ("torch.hub", "load", "system"), ("torch.serialization", "load", "system"),
    ("numpy", "load", "system"), ("numpy", "float32", "needed"), ("transformers.training_args", "TrainingArguments", "plain"),
    ("transformers.training_args", "TrainingArguments.__init__", "unlisted"), ("torch.nn.modules.linear", "Linear", "module"),
    ("sklearn.svm._classes", "SVC", "plain"), ("sklearn.externals.joblib", "Parallel", "unlisted"), ("__main__", "Net", "unlisted"),
    ("torch.nn.modules.linear", "os.system", "unlisted"), ("Collections", "OrderedDict", "unlisted"), ("", "", "unlisted"),
    ("a" * 300, "b", "system"),
])  # fmt: skip
def test_standing_of_names(module: str, name: str, standing: str) -> None:
    assert standing_of(module, name) == standing


def test_what_torch_itself_admits_is_on_the_list() -> None:
    unpickler = pytest.importorskip("torch._weights_only_unpickler")
    missing = [key for key in unpickler._get_allowed_globals() if standing_of(*key.rsplit(".", 1)) != "needed"]
    assert missing == []


def test_one_finding_says_what_is_called_and_where() -> None:
    (finding,) = found(system())
    assert (finding.rule, finding.place) == ("pickle-code", "byte 47")
    assert SHELL in finding.evidence


def test_evidence_and_findings_stay_small() -> None:
    many = b"".join(call(f"package{i}.module", "f", text("x" * 5000)) + b"0" for i in range(500))
    findings = found(proto(2) + many + b"N.")
    assert len(findings) <= 60
    assert max(len(f.evidence) + len(f.message) for f in findings) < 1000


def test_arguments_are_shown_without_following_them_forever() -> None:
    knot = b"]q\x00h\x00a" + b"q\x01"
    assert found(proto(2) + named("os", "system") + args(knot) + b"R.")


def test_rules_are_named_once() -> None:
    names = [rule.name for rule in RULES]
    assert len(names) == len(set(names))


# -- torch's files as the rest of the scan sees them -----------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_state_dicts_are_declared_with_dtype_shape_and_facts(tmp_path: Path, legacy: bool) -> None:
    torch = pytest.importorskip("torch")
    state = {"w": torch.randn(3, 4), "b": torch.ones(2, dtype=torch.bfloat16), "view": torch.arange(10)[2:5]}
    state["scalar"] = torch.tensor(1.0)
    state["bad"] = torch.tensor([1.0, float("nan")])
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    scan = Scan(tmp_path)
    list(scan.run())
    folder = scan.folder
    assert folder.declared["pytorch_model.bin"] == {
        "w": ("F32", (3, 4)), "b": ("BF16", (2,)), "view": ("I64", (3,)), "scalar": ("F32", ()), "bad": ("F32", (2,)),
    }  # fmt: skip
    facts = {name: f for (file, name), f in folder.tensors.items() if file == "pytorch_model.bin"}
    assert [n for n, f in facts.items() if not f.finite] == ["bad"]
    from blake3 import blake3

    assert facts["w"].blake3 == blake3(state["w"].numpy().tobytes()).hexdigest()


def test_a_large_sequence_is_read_in_pieces(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.zeros(6_000_000)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    item = file_item("pytorch_model.bin", tmp_path / "pytorch_model.bin")
    item.kinds = kinds_of(item)
    tracemalloc.start()
    try:
        assert list(Pickles().scan_file(item, Folder(tmp_path))) == []
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_optimizer_states_with_nan_are_a_note(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"state": {0: {"exp_avg": torch.tensor([float("inf")])}}}, tmp_path / "optimizer.pt")
    said = [(f.rule, f.severity) for f in Scan(tmp_path).run() if f.rule.startswith("torch")]
    assert said == [("torch-state-not-finite", "note")]


def test_a_joblib_file_that_an_ordinary_unpickler_reads_otherwise(tmp_path: Path) -> None:
    """The array's bytes are opcodes to whoever does not know joblib: a payload right behind the wrapper runs."""
    joblib = pytest.importorskip("joblib")
    import numpy as np

    payload = b"0" + call("os", "system", text(SHELL)) + STOP
    joblib.dump(np.frombuffer(payload + b"\0" * 64, np.uint8), tmp_path / "x.joblib")
    data = (tmp_path / "x.joblib").read_bytes()
    begin = data.index(payload)
    pad = next(n for n in range(1, 40) if data[begin - n - 1] == n)  # how many bytes joblib put before the array
    moved = data[: begin - pad - 1] + b"0" + payload[1:].ljust(pad + len(payload) - 1, b"\0") + data[begin + len(payload) :]
    assert watched(pickle.Unpickler, moved) >= {("os", "system")}
    assert "pickle-code" in {f.rule for f in found(moved)}
    assert [f for f in found(data) if f.severity != "note"] == []


@pytest.mark.parametrize("tail", ["cos\nsystemX", "cantigravityX", "ios\nsystemX"])
def test_an_import_that_the_end_of_the_file_cuts_off_is_made(tail: str) -> None:
    data = b"(N" + tail.encode()
    judge, stream = run(data)
    assert not stream.stopped
    assert watched(pickle._Unpickler, data) == {(g.module, g.name) for g in judge.uses} != set()
