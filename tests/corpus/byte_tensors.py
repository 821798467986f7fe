"""Tensors of single bytes that are code, and those that hold numbers, text or a vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import Case
from .layout import save

Build = Callable[[Path], None]
SHORT = b"\x80\x04\x8c\x05posix\x8c\x06system\x93(\x8c\x02idtR."
RULE = ("tensor-payload",)


def _bytes(data: bytes, dtype: str = "uint8") -> Build:
    def build(folder: Path) -> None:
        values = np.frombuffer(data.ljust(4096, b"\0"), dtype)
        save(folder / "model.safetensors", {"head.weight": np.arange(16, dtype=np.float32).reshape(4, 4), "data": values})

    return build


def _text(folder: Path) -> None:
    text = json.dumps({"model": {"vocab": {f"word{n}": n for n in range(300)}}})
    _bytes(text.encode())(folder)


HOSTILE = [
    Case("bytes-short-pickle", _bytes(SHORT), "suspicious", RULE),
    Case("bytes-short-pickle-signed", _bytes(SHORT, "int8"), "suspicious", RULE),
    Case("bytes-old-pickle", _bytes(b"cposix\nsystem\n(S'id'\ntR."), "suspicious", RULE),
    Case("bytes-instance", _bytes(b"(S'id'\niposix\nsystem\n."), "suspicious", RULE),
    Case("bytes-long-command", _bytes(b"cposix\nsystem\n(S'" + b"x" * 700 + b"'\ntR."), "suspicious", RULE),
    Case("bytes-source", _bytes(b"import os\nos.system('id')\n"), "suspicious", RULE),
]
HONEST = [
    Case("bytes-random", _bytes(np.random.default_rng(3).integers(0, 256, 4096, np.uint8).tobytes())),
    Case("bytes-mask", _bytes(bytes([0, 1]) * 2048)),
    Case("bytes-tokenizer", _text),
]
CASES = HOSTILE + HONEST
