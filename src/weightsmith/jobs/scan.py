"""Scan a model: every file, whole, in a restricted process of its own; one verdict."""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError
from ..found import ScanRecord
from ..hub import locate
from ..options import RunOptions
from ..trust.gate import all_rules, judged, scan_path
from ..trust.policy import read_policy


def scan(
    model: str | Path, *, policy: str | Path | None = None, reference: str | Path | None = None,
    digests: bool = True, options: RunOptions | None = None,
) -> ScanRecord:  # fmt: skip
    """Read every file of ``model`` whole and say what it holds; nothing of it is run.

    ``policy`` is a YAML file of :mod:`weightsmith.trust.policy`; ``reference`` a model that this one is compared with. Files
    are digested in any case; without ``digests`` the record lists no tensors, and tensors are digested only where two of them
    have to be compared, which saves a tenth of the time.

    Raises:
        UsageError: nothing there, or nothing to read in it.
        RecipeError: a malformed policy.
    """
    options = options or RunOptions()
    if policy is not None:
        read_policy(Path(policy), all_rules())  # what is wrong with it is said before anything large is read
    ref = str(model)
    if not Path(ref).exists():  # a lock has nothing to say of what is here
        from ..trust.pins.lock import pinned_ref

        ref = pinned_ref(ref, options.lock)
    located = locate(ref, offline=options.offline, progress=options.progress)
    other = locate(str(reference), offline=options.offline, progress=options.progress).path if reference else None
    for path in (located.path, *([other] if other else ())):
        if path.exists() and not (path.is_dir() or path.is_file()):
            raise UsageError("neither a folder nor a plain file", where=path)
    record = scan_path(located.path, str(model), other, options.progress, digests=digests)
    if not record.files and record.verdict == "clean":
        raise UsageError("there is no file in it: nothing was scanned", where=located.path,
                         hint="give the folder that holds the model's files")  # fmt: skip
    return record if policy is None else judged(record, Path(policy))
