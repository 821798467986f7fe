"""A tensor of bytes is code only when no chance makes it so: hostile pickles of every protocol, source; not what weights hold."""

from __future__ import annotations

import json
import pickle
import random

import numpy as np
import pytest

from corpus.assembly import SHELL
from weightsmith.trust.scanners.payloads import begins_like_code


class Evil:
    """Calls a shell when it is unpickled."""

    def __reduce__(self) -> object:
        import os

        return os.system, (SHELL,)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("behind", [b"", bytes(500), b"\xff" * 500])
def test_pickles_that_call_something_are_found(protocol: int, behind: bytes) -> None:
    data = pickle.dumps(Evil(), protocol)
    assert begins_like_code("U8", data + behind) or (protocol >= 4 and data[2:3] == b"\x95")  # a frame is a sign of its own
    assert begins_like_code("I8", b"\x80\x04\x8c\x05posix\x8c\x06system\x93(\x8c\x02idtR." + behind)


@pytest.mark.parametrize("source", [
    "import os\nos.system('id')\n", "import os, sys\n", "# weights\n\nfrom os import system\nsystem('id')",
    "import os;os.system('id')", '"""Weights."""\nimport os as o\n', "exec(__import__('zlib').decompress(b''))",
])  # fmt: skip
def test_python_source_is_found(source: str) -> None:
    assert begins_like_code("U8", source.encode() + bytes(64))


def test_what_weights_hold_is_not() -> None:
    rng = np.random.default_rng(7)
    for _ in range(20_000):
        assert not begins_like_code("U8", rng.integers(0, 256, 256, np.uint8).tobytes())
    for low, high in ((0, 2), (32, 127), (97, 123), (120, 136), (0, 16)):
        for _ in range(2000):
            assert not begins_like_code("I8", rng.integers(low, high, 256, np.uint8).tobytes())


def test_tables_and_texts_in_tensors_are_not() -> None:
    words = ["cat", "cosine", "import", "important", "from", "form", "icon", "class", "const", "system", "os", "the"]
    draw = random.Random(7)
    texts = ["\n".join(draw.choices(words, k=60)) for _ in range(3000)]
    texts += [json.dumps({"model": {"vocab": {w: n for n, w in enumerate(words)}}}),
              "import duties are taxes on goods", "from here on"]
    for text in texts:
        assert not begins_like_code("U8", text.encode())
    for value in ({"a": [1, 2.0, None]}, "os.system", ["posix", "system"] * 3):
        for protocol in range(6):
            assert not begins_like_code("U8", pickle.dumps(value, protocol))
