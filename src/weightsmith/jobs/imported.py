"""Control vectors of other programs, taken where a direction is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..direction import Direction
from ..forms.control_vector import hints_of, import_control_vector, is_control_vector
from ..options import RunOptions
from ..records import EditSpec, ModelIdentity
from ..storage import cache_dir, write_cache


def base_identity(checkpoint: Checkpoint, options: RunOptions) -> ModelIdentity:
    """Which weights these are, from all their bytes (remembered between runs)."""
    arch = checkpoint.architecture
    return ModelIdentity(ref=checkpoint.ref, digest=checkpoint.digest(options.progress), family=arch.family.name,
                         n_layers=arch.n_layers, d_model=arch.d_model)  # fmt: skip


def with_imported(
    checkpoint: Checkpoint, what: Direction | EditSpec | str | Path, wishes: dict[str, Any], *, transfer: bool,
    options: RunOptions,
) -> tuple[Direction | EditSpec | str | Path, dict[str, Any]]:  # fmt: skip
    """``what``, and the wishes of :func:`weightsmith.jobs.edit`, with a control vector file read as a direction.

    Where nothing else is said it is used as it was written: each layer's own vector, in all its layers, so that
    ``add=1`` is strength 1. A copy is kept in the cache, where an Edit that names it by digest finds it.

    Raises:
        FormatError, ShapeMismatch, NonFinite: as :func:`weightsmith.forms.control_vector.import_control_vector`.
        DirectionModelMismatch: made for another architecture, without ``transfer``.
    """
    if isinstance(what, Direction | EditSpec) or not is_control_vector(Path(what).expanduser()):
        return what, wishes
    hints = () if transfer else hints_of(checkpoint)
    direction = import_control_vector(Path(what).expanduser(), base_identity(checkpoint, options), hints=hints)
    write_cache(cache_dir() / "directions" / f"{direction.digest()}.safetensors", direction.to_bytes())
    defaults: dict[str, Any] = {}
    if wishes.get("source") is None:
        defaults["source"] = "each"
    if wishes.get("layers") is None:
        defaults["layers"] = list(direction.meta.layers)
    return direction, {**wishes, **defaults}
