"""What a hub says of the files of a revision: SHA-256 of its large ones, git's own SHA-1 of the others."""

from __future__ import annotations

import re
from typing import Any

from ...errors import FormatError, NetworkError
from ...hub import hub_errors
from ...pinned import inside
from .vouched import Said, Source, digest_of_said


def published(repo: str, revision: str | None, *, offline: bool = False) -> Source:
    """The digests that the hub gives for ``revision`` of ``repo``.

    They are the server's word at this moment. The cache of an earlier download is no second witness: it holds what the
    same server said then, and is not asked.

    Raises:
        NetworkError: offline, or the hub can't be reached.
        UsageError: no such model or revision.
        FormatError: an answer that makes no sense.
    """
    ref = f"{repo}@{revision}" if revision else repo
    if offline:
        raise NetworkError("the hub was not asked (--offline)", where=ref, hint="leave out --offline, or --hub")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    with hub_errors(ref):
        try:
            info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        except OfflineModeIsEnabled as error:
            raise NetworkError("the hub was not asked (HF_HUB_OFFLINE is set)", where=ref,
                               hint="unset it, or leave out --hub") from error  # fmt: skip
    files: dict[str, tuple[Said, ...]] = {}
    for sibling in info.siblings or ():
        name, said = _row(sibling, ref)
        files[name] = (said,)
    if not files:
        raise FormatError("the hub lists no files for it", where=ref)
    sha = str(info.sha or revision or "")
    return Source("hub", "hub", f"{repo}@{sha}", files, digest_of_said(files), complete=False)


def _row(sibling: Any, ref: str) -> tuple[str, Said]:
    lfs = getattr(sibling, "lfs", None)
    large = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    value, algorithm, length = (large, "sha256", 64) if large else (sibling.blob_id, "git", 40)
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{length}}}", value, re.ASCII):
        raise FormatError(f"the hub gives no digest for {sibling.rfilename!r:.120}", where=ref)
    try:
        return inside(sibling.rfilename), Said(algorithm, value)
    except ValueError as error:
        raise FormatError(str(error), where=ref) from error
