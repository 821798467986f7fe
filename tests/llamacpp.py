"""llama.cpp as a second opinion: logits, tokens and the verdict on a file, through the C API of ``xllamacpp``.

Every call runs in a process of its own: llama.cpp aborts where Python would raise, and that must not end the test run.
Its log is kept, and shown when something fails. The key-value cache is fp32 and flash attention is off, so that an F32
file gives the logits of the mathematics, and what differs is what the file's types do.

Only the first fields of two structs are touched; their defaults are checked before, so that a release of another layout
fails loudly instead of reading nonsense.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

THREADS = 2
Loras = Path | Sequence[tuple[Path, float]]


class LlamaFailed(AssertionError):
    """llama.cpp refused the file, or died; the message holds the end of its log."""


def logits(
    gguf_path: Path,
    token_rows: Sequence[Sequence[int]],
    *,
    lora: Loras | None = None,
    control_vector: Path | np.ndarray[Any, Any] | None = None,
    control_scale: float = 1.0,
    control_layers: tuple[int, int] | None = None,
    timeout: float = 600,
) -> list[np.ndarray[Any, Any]]:
    """fp32 logits ``[len(row), vocabulary]`` of every row of token ids, at all its positions.

    ``lora`` is one adapter, or pairs of adapter and scale. ``control_vector`` is a GGUF of architecture
    ``controlvector``, or an array ``[layers, d_model]`` of which row ``i`` is added to the residual stream after block
    ``i``; llama.cpp has no place for row 0, which must be zero. ``control_layers`` are first and last, both included.

    Raises:
        LlamaFailed: a file was refused, or llama.cpp crashed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        request: dict[str, Any] = {"do": "logits", "model": str(gguf_path), "rows": [list(map(int, r)) for r in token_rows],
                                   "control_layers": control_layers}  # fmt: skip
        pairs = [(lora, 1.0)] if isinstance(lora, str | os.PathLike) else list(lora or [])
        request["lora"] = [[str(path), float(scale)] for path, scale in pairs]
        if control_vector is not None:
            table = control_vector if isinstance(control_vector, np.ndarray) else control_rows(Path(control_vector))
            assert not table[0].any(), "llama.cpp can't add a control vector after block 0"
            np.save(Path(scratch) / "control.npy", np.ascontiguousarray(table[1:] * control_scale, np.float32))
        return _ask(request, Path(scratch), timeout)


def tokens(gguf_path: Path, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
    """Token ids of texts as llama.cpp cuts them; with ``special`` it adds its begin token and parses special ones."""
    with tempfile.TemporaryDirectory() as scratch:
        request = {"do": "tokens", "model": str(gguf_path), "texts": list(texts), "special": special}
        return [[int(i) for i in row] for row in _ask(request, Path(scratch), 600)]


def loads(gguf_path: Path) -> str | None:
    """``None`` where llama.cpp loads the model, else the end of its log."""
    try:
        logits(gguf_path, [[1]])
    except LlamaFailed as error:
        return str(error)
    return None


def control_rows(path: Path) -> np.ndarray[Any, Any]:
    """A control vector file as ``[layers, d_model]``; layers without a direction are zero."""
    from gguf import GGUFReader

    found = {int(t.name.removeprefix("direction.")): np.asarray(t.data) for t in GGUFReader(path).tensors}
    table = np.zeros((max(found) + 1, next(iter(found.values())).size), np.float32)
    for layer, row in found.items():
        table[layer] = row
    return table


def _ask(request: dict[str, Any], scratch: Path, timeout: float) -> list[np.ndarray[Any, Any]]:
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(
        [sys.executable, __file__, str(scratch)], input=json.dumps(request), text=True, capture_output=True,
        env=environment, timeout=timeout, check=False,
    )  # fmt: skip
    if done.returncode:
        raise LlamaFailed(f"llama.cpp ended with {done.returncode}\n{done.stderr[-3000:]}")
    with np.load(scratch / "out.npz") as found:
        return [found[f"r{i}"] for i in range(len(found.files))]


# -- the other process -------------------------------------------------------------------------------------


class _Session:
    """One loaded model; everything is freed by the end of the process."""

    def __init__(self, model: str) -> None:
        import ctypes

        import xllamacpp

        self.c: Any = ctypes
        self.lib: Any = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
        self.log: list[str] = []
        sink = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self._sink = sink(lambda level, text, _: self.log.append(text.decode(errors="replace")))
        self.lib.llama_log_set(self._sink, None)
        self.lib.llama_backend_init()

        class Opaque(ctypes.Structure):  # larger than the struct: the rest is never read
            _fields_ = [("words", ctypes.c_int32 * 128)]

        class Batch(ctypes.Structure):
            _fields_ = [
                ("n_tokens", ctypes.c_int32), ("token", ctypes.POINTER(ctypes.c_int32)), ("embd", ctypes.c_void_p),
                ("pos", ctypes.POINTER(ctypes.c_int32)), ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
                ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))), ("logits", ctypes.POINTER(ctypes.c_int8)),
            ]  # fmt: skip

        self.Batch = Batch
        pointers = ("llama_model_load_from_file", "llama_init_from_model", "llama_model_get_vocab", "llama_get_memory",
                    "llama_adapter_lora_init")  # fmt: skip
        for name in pointers:
            getattr(self.lib, name).restype = ctypes.c_void_p
        self.lib.llama_model_default_params.restype = self.lib.llama_context_default_params.restype = Opaque
        self.lib.llama_batch_init.restype = Batch
        self.lib.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
        self.model = ctypes.c_void_p(
            self.checked(self.lib.llama_model_load_from_file(model.encode(), self.lib.llama_model_default_params()))
        )
        self.vocab = ctypes.c_void_p(self.lib.llama_model_get_vocab(self.model))

    def checked(self, pointer: int | None) -> int:
        if not pointer:
            raise SystemExit("".join(self.log)[-3000:] + "\nrefused")
        return pointer

    def context(self, longest: int) -> Any:
        params = self.lib.llama_context_default_params()
        words = params.words
        before = [words[i] for i in (0, 1, 2, 7, 8, 13, 26, 27)]
        assert before == [512, 2048, 512, 4, 4, -1, 1, 1], (
            f"llama_context_params has another layout: {list(words[:40])}"
        )
        words[0] = words[1] = words[2] = max(longest, 32)  # n_ctx, n_batch, n_ubatch
        words[7] = words[8] = THREADS
        words[13] = 0  # flash attention off
        words[26] = words[27] = 0  # F32 keys and values
        context = self.c.c_void_p(self.checked(self.lib.llama_init_from_model(self.model, params)))
        self.lib.llama_set_n_threads(context, THREADS, THREADS)
        return context

    def adapt(self, context: Any, loras: list[list[Any]], control: Path, layers: list[int] | None) -> None:
        found = [self.checked(self.lib.llama_adapter_lora_init(self.model, path.encode())) for path, _ in loras]
        if found:
            adapters = (self.c.c_void_p * len(found))(*found)
            scales = (self.c.c_float * len(found))(*[scale for _, scale in loras])
            assert self.lib.llama_set_adapters_lora(context, adapters, self.c.c_size_t(len(found)), scales) == 0
        if control.is_file():
            table = np.load(control)
            first, last = layers or (1, len(table))
            data = table.ctypes.data_as(self.c.POINTER(self.c.c_float))
            size = self.c.c_size_t(table.size)
            code = self.lib.llama_set_adapter_cvec(context, data, size, table.shape[1], first, last)
            assert code == 0, "".join(self.log)[-2000:]

    def run(self, context: Any, row: list[int]) -> np.ndarray[Any, Any]:
        self.lib.llama_memory_clear(self.c.c_void_p(self.lib.llama_get_memory(context)), self.c.c_bool(True))
        batch = self.lib.llama_batch_init(len(row), 0, 1)
        batch.n_tokens = len(row)
        for i, token in enumerate(row):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        code = self.lib.llama_decode(context, batch)
        assert code == 0, f"llama_decode: {code}\n" + "".join(self.log)[-2000:]
        width = self.lib.llama_vocab_n_tokens(self.vocab)
        rows = [np.ctypeslib.as_array(self.lib.llama_get_logits_ith(context, i), (width,)) for i in range(len(row))]
        out = np.stack(rows)
        self.lib.llama_batch_free(batch)
        return out

    def cut(self, text: str, special: bool) -> np.ndarray[Any, Any]:
        raw = text.encode()
        room = len(raw) + 16
        found = (self.c.c_int32 * room)()
        flag = self.c.c_bool(special)
        count = self.lib.llama_tokenize(self.vocab, raw, len(raw), found, room, flag, flag)
        assert count >= 0, count
        return np.array(found[:count], np.int32)


def _main(scratch: Path) -> None:
    request = json.loads(sys.stdin.read())
    session = _Session(request["model"])
    if request["do"] == "tokens":
        rows = [session.cut(text, request["special"]) for text in request["texts"]]
    else:
        context = session.context(max(map(len, request["rows"])))
        session.adapt(context, request["lora"], scratch / "control.npy", request["control_layers"])
        rows = [session.run(context, row) for row in request["rows"]]
    np.savez(scratch / "out.npz", **{f"r{i}": row for i, row in enumerate(rows)})
    sys.stdout.flush()
    os._exit(0)  # without the destructors of a library that was never closed


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
