"""A model as files: one noun over Hugging Face folders, GGUF files, hub snapshots and the demo.

Opening reads headers and small JSON files only: no weight is touched, no model code is run.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from . import architecture
from .errors import (
    DigestMismatch,
    FormatError,
    ManifestMismatch,
    NonFinite,
    PickleOnly,
    RemoteCode,
    UsageError,
)
from .formats.safetensors import FLOAT_DTYPES, SafetensorsHeader, TensorSpec, digest_and_check, read_header
from .hub import GIVEN_AS, Progress, locate
from .options import RunOptions
from .storage import (
    cache_dir,
    cached_json,
    digest_of,
    parallel_map,
    remembered_sha256,
    require_space,
    stat_key,
    whole_folder,
    write_cache,
)
from .storage import (
    read_json as read_json,
)

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
INDEX = "model.safetensors.index.json"
RECORD = "weightsmith.json"
#: folder of an edited model that holds what a rebuild needs beside the record: directions and fitted vectors
KEPT = "weightsmith"


@dataclass(frozen=True)
class Checkpoint:
    """Files on disk, never a live model.

    ``tensors`` are by name in file order; ``kind`` is ``folder`` or ``gguf``. ``source`` says where the files came
    from. For a GGUF file the tensors carry the names that the converted folder will have, their ggml types as
    dtypes, and shapes in ``[out, in]`` order.
    """

    ref: str
    kind: str
    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorSpec]
    weight_files: tuple[Path, ...]
    headers: tuple[SafetensorsHeader, ...]
    source: Mapping[str, str]
    chat_template: str | None
    tokenizer: Mapping[str, Any]
    generation: Mapping[str, Any]
    origin: Checkpoint | None = field(default=None, compare=False)

    @cached_property
    def architecture(self) -> architecture.Architecture:
        """Roles of the tensors.

        Raises:
            UnsupportedModel: an unknown family, a missing writer, or quantised weights.
        """
        plain = all(t.dtype in FLOAT_DTYPES for t in self.tensors.values())
        if self.kind == "folder" and not (plain and "quantization_config" not in self.config):
            from .formats.quantised import refuse_quantised

            refuse_quantised(self.config, self.tensors, self.path)
        return architecture.resolve(self.config, self.tensors, self.path)

    @property
    def parameters(self) -> int:
        """Number of stored weights."""
        return sum(t.numel for t in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(t.nbytes for t in self.tensors.values())

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of tensors of each dtype."""
        return dict(Counter(t.dtype for t in self.tensors.values()))

    @property
    def title(self) -> str:
        """Short name for people."""
        if self.origin is not None:
            return self.origin.title
        return self.ref if self.source["kind"] != "local" else self.path.name or str(self.path)

    def tensor_digests(self, progress: Progress | None = None) -> dict[str, str]:
        """BLAKE3 digest of every tensor's bytes, by name; remembered while the files don't change (size, times, inode).

        Raises:
            Truncated: a file became shorter.
        """
        return {name: row[0] for name, row in self._read_all(progress).items()}

    def known_digests(self) -> dict[str, str] | None:
        """The tensors' digests where they are remembered and all values finite; nothing is read."""
        rows = self._remembered()[1]
        return None if rows is None or not all(row[1] for row in rows.values()) else {n: r[0] for n, r in rows.items()}

    def remember(self, digests: Mapping[str, str], broken: Collection[str] = ()) -> None:
        """Keep digests of tensors that were just read, all of them finite but the ``broken``, for whoever asks next."""
        rows = {name: (digests[name], name not in broken) for name in self.tensors}
        write_cache(self._remembered()[0], json.dumps(rows).encode())
        self._place(self.digest_of(digests))

    def check_finite(self, progress: Progress | None = None) -> None:
        """Refuse weights that hold NaN or infinity; the values are checked in the pass that takes the digests.

        Raises:
            NonFinite: with the name of the first such tensor.
        """
        bad = [name for name, row in self._read_all(progress).items() if not row[1]]
        if bad:
            raise NonFinite(f"{len(bad)} tensors hold NaN or infinity, e.g. {bad[0]!r}", where=self.path,
                            hint="the file is damaged, or was broken when it was made: fetch it again")  # fmt: skip

    def _remembered(self) -> tuple[Path, dict[str, tuple[str, bool]] | None]:
        key = {"files": [stat_key(f) for f in self.weight_files], "tensors": len(self.tensors), "pass": 3}
        path, known = cached_json("digests", key)
        if isinstance(known, dict) and known.keys() == self.tensors.keys() and all(map(_is_row, known.values())):
            return path, {n: (row[0], row[1]) for n, row in known.items()}
        return path, None

    def _read_all(self, progress: Progress | None) -> dict[str, tuple[str, bool]]:
        """(digest, all values finite) of every tensor, in one parallel pass, or as remembered."""
        path, known = self._remembered()
        if known is not None:
            return known
        done = 0

        def read(spec: TensorSpec) -> tuple[str, bool]:
            nonlocal done
            row = digest_and_check(spec)
            done += spec.nbytes
            if progress:
                progress("digesting weights", done, self.nbytes)
            return row

        rows = dict(zip(self.tensors, parallel_map(read, self.tensors.values()), strict=True))
        write_cache(path, json.dumps(rows).encode())
        self._place(self.digest_of({n: row[0] for n, row in rows.items()}))
        return rows

    def digest(self, progress: Progress | None = None) -> str:
        """What identifies the weights, however they are sharded: SHA-256 over the sorted list of
        ``[name, dtype, shape, BLAKE3 digest of the bytes]``."""
        digest = self.digest_of(self.tensor_digests(progress))
        self._place(digest)
        return digest

    def digest_of(self, digests: Mapping[str, str]) -> str:
        """The model digest that follows from its tensors' digests."""
        return digest_of([[n, t.dtype, list(t.shape), digests[n]] for n, t in sorted(self.tensors.items())])

    def _place(self, digest: str) -> None:
        """Keep where the model with this digest was seen, for whoever asks for it by digest."""
        here = str(self.path.absolute())
        if here in _places(digest):
            return
        places = [here, *(p for p in _places(digest) if p != here)]
        write_cache(cache_dir() / "models" / f"{digest}.json", json.dumps(places[:8]).encode())

    def file_sha256(self) -> str:
        """SHA-256 of the one file of a GGUF model, remembered while it does not change."""
        return remembered_sha256(self.path)

    def derived(self) -> Path:
        """Where conversions of this model are kept."""
        return cache_dir()

    def check_record(self) -> None:
        """Compare the weight files with the digests in the folder's own ``weightsmith.json``, when it has one.

        Raises:
            DigestMismatch: a file is not the one that was written.
            ManifestMismatch: a recorded file is missing.
        """
        record = self.path / RECORD
        if self.kind != "folder" or not record.is_file():
            return
        outputs = read_json(record).get("outputs")
        if not isinstance(outputs, dict) or not all(
            isinstance(v, str) and _inside(n) for n, v in outputs.items()
        ):
            raise FormatError("`outputs` must map the folder's files to their digests", where=record)
        if extra := [f.name for f in self.weight_files if f.name not in outputs]:
            raise ManifestMismatch(f"{extra[0]!r} is there and stands not in the record", where=self.path)
        for name, expected in outputs.items():
            file = self.path / name
            if not file.is_file():
                raise ManifestMismatch(f"{name!r} stands in the record and is not there", where=self.path)
            known = remembered_sha256(file)
            if known != expected:
                raise DigestMismatch(f"{name!r} is not the file that was written: {known[:16]}… instead of "
                                     f"{expected[:16]}…", where=self.path,
                                     hint="the file was changed or damaged after the edit; rebuild it")  # fmt: skip


def _inside(name: str) -> bool:
    """Whether a recorded name is a plain file of the folder or of its ``weightsmith/``."""
    parts = name.split("/")
    return (len(parts) == 1 or (len(parts) == 2 and parts[0] == KEPT)) and all(
        part and Path(part).name == part and "\\" not in part for part in parts)  # fmt: skip


def seen_at(digest: str) -> Path | None:
    """Where the model with this digest was last seen, when something is still there; its digest is not checked."""
    return next(iter(seen_places(digest)), None)


def seen_places(digest: str) -> list[Path]:
    """Every place where the model with this digest was seen and something still is, the last one first."""
    return [Path(place) for place in _places(digest) if Path(place).exists()]


def _places(digest: str) -> list[str]:
    try:
        value = json.loads((cache_dir() / "models" / f"{digest}.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    return [place for place in value if isinstance(place, str)] if isinstance(value, list) else []


def _is_row(row: Any) -> bool:
    """Whether a cached value is the (SHA-256, finite) of a tensor."""
    return isinstance(row, list) and [type(v) for v in row] == [str, bool] and len(row[0]) == 64


class TensorStream:
    """Iterates ``(spec, bytes)`` of a checkpoint in file order, one block at a time."""

    def __init__(self, checkpoint: Checkpoint, block: int = 1 << 22) -> None:
        self.checkpoint = checkpoint
        self.block = block

    def __iter__(self) -> Iterator[tuple[TensorSpec, Iterator[bytes]]]:
        for spec in self.checkpoint.tensors.values():
            yield spec, self._blocks(spec)

    def _blocks(self, spec: TensorSpec) -> Iterator[bytes]:
        with spec.file.open("rb", buffering=0) as file:
            file.seek(spec.start)
            left = spec.nbytes
            while left:
                data = file.read(min(left, self.block))
                if not data:
                    raise FormatError(f"tensor {spec.name!r} ends early", where=spec.file)
                left -= len(data)
                yield data


def open_checkpoint(ref: str, *, offline: bool = False, progress: Progress | None = None) -> Checkpoint:
    """Open a model by folder, GGUF file, ``org/name@revision`` or ``demo:NAME``; headers only.

    Raises:
        UsageError: nothing there.
        FormatError: a header or JSON file is malformed.
        ManifestMismatch: index, shards and headers disagree.
        PickleOnly: no safetensors beside pickles.
    """
    located = locate(ref, offline=offline, progress=progress)
    path = located.path
    if path.is_dir():
        return _open_folder(ref, path, located.source)
    if not path.is_file():
        raise UsageError("neither a folder nor a plain file", where=path)
    if path.suffix == ".gguf" or _starts_with(path, b"GGUF"):
        return _open_gguf(ref, path, located.source)
    if path.suffix == ".safetensors":
        if "weightsmith" in read_header(path).metadata:
            raise UsageError("this is a direction, not a model", where=path, hint="name the model: a folder or a GGUF file")
        return _open_folder(ref, path.parent, located.source, only=path)
    if path.suffix in PICKLES:
        _refuse_pickles(path, [path])
    raise UsageError("neither a model folder, a GGUF file nor a safetensors file", where=path, hint=GIVEN_AS)


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _refuse_pickles(where: Path, pickles: list[Path]) -> None:
    hint = "ask the publisher for safetensors, or convert it in the sandbox: weightsmith convert MODEL -o OUT"
    raise PickleOnly(f"the weights are pickles ({pickles[0].name}), which can run code when they are read; they were not opened",
                     where=where, hint=hint)  # fmt: skip


def _open_folder(ref: str, folder: Path, source: Mapping[str, str], only: Path | None = None) -> Checkpoint:
    shards = [only] if only else sorted(folder.glob("*.safetensors"))
    shards = [s for s in shards if not s.name.startswith(("adapter_", "consolidated"))] or shards
    config_file = folder / "config.json"
    if not shards:
        pickles = sorted(p for p in folder.iterdir() if p.suffix in PICKLES)
        if pickles:
            _refuse_pickles(folder, pickles)
        ggufs = sorted(folder.glob("*.gguf"))
        if ggufs:
            raise UsageError(f"the folder holds GGUF files; name one, e.g. {ggufs[0].name}", where=folder)
        raise UsageError("the folder holds no model", where=folder, hint="expected config.json and *.safetensors")
    if not config_file.is_file():
        raise FormatError("config.json is missing", where=folder, hint="copy it from the model's own repository")
    config = read_json(config_file)
    index_file = folder / INDEX
    index = read_json(index_file).get("weight_map", {}) if index_file.is_file() and only is None else None
    if index is not None:
        shards = _indexed_shards(folder, index, index_file)
    headers = tuple(read_header(shard) for shard in shards)
    tensors = _merge(headers)
    if index is not None:
        _compare_index(index, tensors, index_file)
    return Checkpoint(
        ref, "folder", folder, config, tensors, tuple(shards), headers, source,
        _template(folder), _tokenizer(folder), _optional_json(folder / "generation_config.json"),
    )  # fmt: skip


def _indexed_shards(folder: Path, index: Any, where: Path) -> list[Path]:
    if not isinstance(index, dict) or not index or not all(isinstance(v, str) for v in index.values()):
        raise FormatError("weight_map must map tensor names to file names", where=where)
    shards = [folder / name for name in sorted(set(index.values()))]
    for shard in shards:
        if shard.parent != folder or Path(shard.name) != Path(shard.relative_to(folder)):
            raise ManifestMismatch(f"{shard.name!r} lies outside the folder", where=where)
        if not shard.is_file():
            raise ManifestMismatch(f"the index names the shard {shard.name!r}, which is not there", where=where,
                                   hint="the download is incomplete: fetch the missing file")  # fmt: skip
    return shards


def _merge(headers: tuple[SafetensorsHeader, ...]) -> dict[str, TensorSpec]:
    tensors: dict[str, TensorSpec] = {}
    for header in headers:
        for spec in header.tensors:
            if spec.name in tensors:
                raise ManifestMismatch(f"the tensor {spec.name!r} stands in two files: "
                                       f"{tensors[spec.name].file.name} and {spec.file.name}",
                                       where=spec.file.parent)  # fmt: skip
            tensors[spec.name] = spec
    return tensors


def _compare_index(index: Mapping[str, str], tensors: Mapping[str, TensorSpec], where: Path) -> None:
    for name, file in index.items():
        if name not in tensors or tensors[name].file.name != file:
            raise ManifestMismatch(f"the index promises {name!r} in {file!r}, which does not hold it", where=where)
    if extra := [n for n in tensors if n not in index]:
        raise ManifestMismatch(f"the shards hold {extra[0]!r}, which the index does not name", where=where)


def _optional_json(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}


def _template(folder: Path) -> str | None:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8", errors="replace")
    template = _optional_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        template = next(
            (t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None
        )
    return template if isinstance(template, str) else None


def _tokenizer(folder: Path) -> dict[str, Any]:
    names = ["tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json"]
    config = _optional_json(folder / "tokenizer_config.json")
    return {"files": [n for n in names if (folder / n).is_file()], "class": config.get("tokenizer_class")}


def _open_gguf(ref: str, path: Path, source: Mapping[str, str]) -> Checkpoint:
    from .formats import gguf, gguf_convert

    header = gguf.read_header(path)
    config = gguf_convert.config_from_gguf(header)
    names = gguf_convert.hf_tensor_names(header)
    tensors = {
        names.get(t.name, t.name): TensorSpec(names.get(t.name, t.name), t.type, t.shape, path, t.start, t.nbytes)
        for t in header.tensors
    }
    template = header.metadata.get("tokenizer.chat_template")
    kind = header.metadata.get("tokenizer.ggml.model")
    return Checkpoint(
        ref, "gguf", path, config, tensors, (path,), (), source,
        template if isinstance(template, str) else None, {"files": [path.name], "class": f"GGUF {kind}"}, {},
    )  # fmt: skip


def runnable(
    checkpoint: Checkpoint, *, dequantize: bool = False, progress: Progress | None = None
) -> Checkpoint:
    """The same model as a folder that can be run: itself, or for a GGUF its bf16 conversion from the cache.

    The cache is keyed by the digest of the GGUF file; a conversion appears there whole or not at all.
    """
    if checkpoint.kind == "folder":
        return _unquantised(checkpoint, progress) if dequantize else checkpoint
    known = checkpoint.file_sha256()
    from .formats.gguf_convert import CONVERSION

    folder = checkpoint.derived() / "converted" / f"{known[:40]}-v{CONVERSION}"
    if not folder.is_dir():
        convert(checkpoint, folder, progress=progress)
    opened = _open_folder(checkpoint.ref, folder, dict(checkpoint.source) | {"gguf_sha256": known})
    object.__setattr__(opened, "origin", checkpoint)
    return opened


def _unquantised(checkpoint: Checkpoint, progress: Progress | None) -> Checkpoint:
    """A quantised folder as the bf16 folder that it stands for, from the cache; any other as it is."""
    from .formats import quantised

    if quantised.quantisation(checkpoint.config, checkpoint.tensors) is None:
        return checkpoint
    small = {p.name: remembered_sha256(p) for p in checkpoint.path.iterdir()
             if p.is_file() and p not in checkpoint.weight_files and p.stat().st_size < 1 << 28}  # fmt: skip
    key = digest_of([checkpoint.digest(progress), small, quantised.DEQUANTISATION])
    folder = checkpoint.derived() / "dequantised" / key[:40]
    if not folder.is_dir():
        require_space(folder.parent, sum(t.nbytes for t in checkpoint.tensors.values()) * 4)
        with _first_come(folder), whole_folder(folder) as scratch:
            quantised.dequantize_folder(checkpoint, scratch, progress)
    opened = _open_folder(checkpoint.ref, folder, dict(checkpoint.source) | {"dequantised_from": checkpoint.digest()})
    object.__setattr__(opened, "origin", checkpoint)
    return opened


@contextlib.contextmanager
def _first_come(folder: Path) -> Iterator[None]:
    """Two processes that fill the cache at once write the same bytes: the first one's folder is as good."""
    try:
        yield
    except UsageError:
        if not (folder.is_dir() and cache_dir() in folder.parents):
            raise


def convert(checkpoint: Checkpoint, folder: Path, *, progress: Progress | None = None) -> None:
    """Write a GGUF or a quantised checkpoint as a bf16 Hugging Face folder at ``folder``, whole or not at all.

    Raises:
        UsageError: the checkpoint is a folder already.
        OutputExists: ``folder`` is taken.
    """
    from .formats import quantised

    if checkpoint.kind == "folder" and quantised.quantisation(checkpoint.config, checkpoint.tensors) is not None:
        require_space(folder.absolute().parent, checkpoint.nbytes * 4)
        with whole_folder(folder) as scratch:
            quantised.dequantize_folder(checkpoint, scratch, progress)
        return
    if checkpoint.kind != "gguf":
        raise UsageError("already a safetensors folder; nothing to convert", where=checkpoint.path, hint="use it as it is")
    from .formats.gguf_convert import convert_gguf

    require_space(folder.parent, sum(t.numel for t in checkpoint.tensors.values()) * 2 + (64 << 20))
    with _first_come(folder), whole_folder(folder) as scratch:
        convert_gguf(checkpoint.path, scratch, progress)


def refuse_remote_code(checkpoint: Checkpoint, options: RunOptions) -> None:
    """Refuse a model whose config makes loaders import code that comes with it.

    Raises:
        RemoteCode: unless ``options.ignore_remote_code``, which loads with the library's built-in class.
    """
    if options.ignore_remote_code or checkpoint.kind != "folder":
        return
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json"):
        data = _optional_json(checkpoint.path / name)
        if data.get("auto_map") or data.get("custom_generate"):
            raise RemoteCode(
                f"{name} asks the loader to run code that comes with the model; it was not run", where=checkpoint.path,
                hint="if its family is built into transformers, --ignore-remote-code loads it with the built-in class",
            )  # fmt: skip
