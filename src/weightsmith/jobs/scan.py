"""Scan a model: every file, whole, in a restricted process of its own; one verdict."""

from __future__ import annotations

from pathlib import Path

from ..found import ScanRecord
from ..hub import locate
from ..options import RunOptions
from ..trust.gate import judged, scan_path


def scan(
    model: str | Path, *, policy: str | Path | None = None, reference: str | Path | None = None,
    options: RunOptions | None = None,
) -> ScanRecord:  # fmt: skip
    """Read every file of ``model`` whole and say what it holds; nothing of it is run.

    ``policy`` is a YAML file of :mod:`weightsmith.trust.policy`; ``reference`` a model that this one is compared with.

    Raises:
        UsageError: nothing there.
        RecipeError: a malformed policy.
    """
    options = options or RunOptions()
    located = locate(str(model), offline=options.offline, progress=options.progress)
    other = locate(str(reference), offline=options.offline, progress=options.progress).path if reference else None
    record = scan_path(located.path, str(model), other, options.progress)
    return record if policy is None else judged(record, Path(policy))
