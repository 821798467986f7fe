"""What a model said and how it scored, kept by digest: a run that was interrupted goes on, a base is measured once.

One folder a subject, named by the digest of everything that its replies depend on: the weights, the small files that come
with them (tokenizer, template, settings), dtype, kind of device, the versions of Weightsmith, torch and transformers, and
the version of this format. Replies are lines of an
append-only file, written as they come; whatever can't be read is absent and made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..storage import cache_dir, cached_json, digest_of, write_cache
from .asks import Ask, Decoding

if TYPE_CHECKING:
    from torch import Tensor

    from ..checkpoint import Checkpoint

VERSION = 2
_HEAVY = (".safetensors", ".gguf", ".bin", ".md", ".index.json")


@dataclass(frozen=True, slots=True)
class Said:
    """A reply as the model gave it: tokens, whether it ended by itself, and its text with the thought cut off.

    ``text`` is ``None`` when the tokens ran out inside the thought.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    ended: bool
    text: str | None
    thought: str = ""


def companions_digest(checkpoint: Checkpoint) -> str:
    """Digest of the small files of a checkpoint that decide what it reads and says: settings, tokenizer, template."""
    if checkpoint.kind != "folder":
        return ""
    sums = {}
    for path in sorted(checkpoint.path.iterdir()):
        if path.is_file() and not path.name.endswith(_HEAVY) and path.name != "weightsmith.json":
            sums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digest_of(sums)


def ask_key(ask: Ask, decoding: Decoding) -> str:
    """Digest of what a reply depends on besides the model: the conversation and the decoding, not its group or name."""
    return digest_of([[dict(m) for m in ask.messages], asdict(decoding)])[:32]


class Store:
    """The replies and figures of one subject."""

    def __init__(self, key: Mapping[str, Any]) -> None:
        self.digest = digest_of({"version": VERSION, **key})[:40]
        self.folder = cache_dir() / "measured" / self.digest
        self._said: dict[str, Said] | None = None

    @property
    def _file(self) -> Path:
        return self.folder / "replies.jsonl"

    def _replies(self) -> dict[str, Said]:
        if self._said is None:
            self._said = {}
            try:
                lines = self._file.read_bytes().split(b"\n")
            except OSError:
                lines = []
            for line in lines:
                with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # torn by a kill, or damaged
                    row = json.loads(line)
                    prompt, tokens = tuple(map(int, row["prompt"])), tuple(map(int, row["tokens"]))
                    text = None if row["text"] is None else str(row["text"])
                    self._said[str(row["key"])] = Said(prompt, tokens, bool(row["ended"]), text, str(row["thought"]))
        return self._said

    def get(self, key: str) -> Said | None:
        """The reply to :func:`ask_key`'s ask, if it is there."""
        return self._replies().get(key)

    def put(self, key: str, said: Said) -> None:
        """Keep a reply; a cache that can't be written costs time, never a result."""
        self._replies()[key] = said
        row = {"key": key, **asdict(said)}
        # led by a line break, one write: an earlier line that a kill has torn spoils itself alone
        line = b"\n" + json.dumps(row, separators=(",", ":")).encode()
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, line)
            finally:
                os.close(handle)

    def value(self, kind: str, key: Any) -> tuple[Path, Any | None]:
        """A small value (per-prompt scores, a vocabulary's digest) and where it is kept; one that was damaged is absent."""
        path, found = cached_json(f"measured/{self.digest}", {"kind": kind, "key": key})
        whole = isinstance(found, dict) and found.keys() == {"sum", "value"} and found["sum"] == digest_of(found["value"])
        return path, found["value"] if found and whole else None

    def keep(self, path: Path, value: Any) -> None:
        """Keep a small value."""
        write_cache(path, json.dumps({"sum": digest_of(value), "value": value}).encode())

    def states(self, key: Any) -> tuple[Path, list[Tensor] | None]:
        """Final hidden states, one tensor an answer, and where they are kept."""
        path = self.folder / f"states-{digest_of(key)[:32]}.safetensors"
        if not path.is_file():
            return path, None
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found = load_file(path)
            return path, [found[str(i)] for i in range(len(found))]
        except (OSError, SafetensorError, KeyError, ValueError):
            return path, None

    def keep_states(self, path: Path, states: list[Tensor]) -> None:
        """Keep final hidden states."""
        from safetensors.torch import save

        write_cache(path, save({str(i): s.contiguous().cpu() for i, s in enumerate(states)}))
