"""What a stream's calls ask for is summed: many small requests are one large one, and what the stream holds itself is free."""

from __future__ import annotations

import io
import pickle
from collections import Counter, OrderedDict, deque

import numpy as np
import pytest

from corpus.assembly import BUILD, NEWOBJ, REDUCE, STOP, args, call, named, proto, raw_bytes, text
from weightsmith.trust.scanners.pickle_sizes import MUCH
from weightsmith.trust.scanners.pickles import scan_stream

PUT, GET = b"q\x010", b"h\x01"  # what is put away is taken off the stack
BYTES = named("builtins", "bytes")


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def bombs(data: bytes) -> list[str]:
    """Rules that speak of a stream, which stay the same however it is written."""
    return sorted({f.rule for f in scan_stream(io.BytesIO(data), "x") if f.severity in ("broken", "malicious")})


def new(module: str, name: str, *values: bytes) -> bytes:
    return named(module, name) + args(*values) + NEWOBJ


HALF = MUCH // 2
TYPE = call("numpy", "dtype", text("V536870912"), number(0), number(1))
TENTH = b"(" + number(1 << 13) + number(1 << 14) + b"t"  # 2**27 elements
REQUESTS = {
    "bytearray": call("builtins", "bytearray", number(HALF)),
    "bytes": new("builtins", "bytes", number(HALF)),
    "bytes-by-reconstructor": call("copyreg", "_reconstructor", BYTES, BYTES, number(HALF)),
    "array": new("numpy", "ndarray", b"(" + number(1 << 14) + number(1 << 15) + b"t"),
    "array-of-doubles": new("numpy", "ndarray", b"(" + number(HALF >> 3) + b"t", text("<f8")),
    "array-of-wide-type": new("numpy", "ndarray", b"(" + number(1) + b"t", TYPE),
    "array-made-again": call("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), TENTH, raw_bytes(b"f4")),
    "scalar": call("numpy.core.multiarray", "scalar", TYPE),
    "tensor": call("torch", "Tensor", number(1 << 13), number(1 << 13)),
    "storage": new("torch.storage", "UntypedStorage", number(HALF >> 3)),
    "float-storage": new("torch", "FloatStorage", number(HALF >> 3)),
    "set": call("builtins", "set", call("builtins", "range", number(HALF >> 6))),
    "tuple": new("builtins", "tuple", call("builtins", "range", number(5), number(5 + (HALF >> 6)))),
    "counter": call("collections", "Counter", call("builtins", "range", number(0), number(HALF >> 5), number(2))),
    "deque": call("collections", "deque", call("builtins", "bytearray", number(HALF >> 1))),
    "object-array": call("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), b"(K\x00t", raw_bytes(b"b"))
    + b"(K\x01(" + number(HALF >> 3) + b"t" + call("numpy", "dtype", text("O8")) + b"\x89]t" + BUILD,
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_summed(name: str) -> None:
    one, three = (proto(2) + b"](" + REQUESTS[name] * times + b"e" + STOP for times in (1, 3))
    assert "pickle-asks-for-memory" not in bombs(one)
    assert "pickle-asks-for-memory" in bombs(three)


def test_copies_of_what_is_there_once_are_counted() -> None:
    held = raw_bytes(b"x" * 60_000) + PUT
    copy = named("builtins", "bytearray") + GET + b"\x85" + REDUCE
    assert not bombs(proto(2) + held + b"](" + copy * 100 + b"e" + STOP)
    assert bombs(proto(2) + held + b"](" + copy * 20_000 + b"e" + STOP) == ["pickle-asks-for-memory"]
    made = call("builtins", "bytearray", number(MUCH >> 6)) + PUT
    assert bombs(proto(2) + made + b"](" + copy * 80 + b"e" + STOP) == ["pickle-asks-for-memory"]


def test_a_chain_of_copies_does_not_hide_its_beginning() -> None:
    chain = call("builtins", "bytearray", number(MUCH >> 7))
    for _ in range(200):
        chain = named("builtins", "bytearray") + chain + b"\x85" + REDUCE
    assert bombs(proto(2) + chain + STOP) == ["pickle-asks-for-memory"]


@pytest.mark.parametrize("protocol", range(6))
def test_what_is_written_in_full_is_free(protocol: int) -> None:
    value = [bytearray(b"x" * 50_000), b"y" * 200_000, np.zeros((300, 300)), set(range(5000)), deque(range(5000)),
             Counter("abc" * 50), OrderedDict((n, n) for n in range(3000)),
             np.array([{"a": 1}], object), np.zeros(3, "V50,f8,(3,4)f4"),
             np.float64(1.5), np.zeros(3, "V50,f8,(3,4)f4")[0]]  # fmt: skip
    assert not bombs(pickle.dumps([value] * 3, protocol))
