"""``weightsmith convert``: a GGUF file as a bf16 folder, torch pickles as safetensors."""

from __future__ import annotations

from pathlib import Path

from ..options import RunOptions
from .common import Json, Model, Out, console, plain, print_json, with_run_options


@with_run_options(model=False, gate=True)
def command(model: Model, out: Out, *, run: RunOptions, json: Json = False) -> None:
    """Write a GGUF model as a bf16 Hugging Face folder, or torch pickles as safetensors, whole or not at all."""
    from ..jobs.files import convert
    from ..storage import refuse_existing

    refuse_existing(Path(out))  # known before everything is read
    path = convert(model, out, run)
    if json:
        print_json({"out": str(path)})
    else:
        console().print(f"wrote {plain(str(path))}")
