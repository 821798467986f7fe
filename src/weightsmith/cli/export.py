"""``weightsmith export``: an edit as a LoRA adapter, a control vector, or a file for llama.cpp."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..options import RunOptions
from .common import Json, Out, console, plain, print_json, several, with_run_options
from .wishes import Feature, Transfer, with_wishes


@with_run_options(model=True)
@with_wishes
def command(
    model: Annotated[
        str, typer.Argument(help="A model; or, alone, an edited model or an Edit file.", metavar="MODEL|EDIT")
    ],
    out: Out,
    what: Annotated[
        str | None, typer.Argument(help="A direction file, or an Edit file (YAML).", metavar="[EDIT|DIRECTION]")
    ] = None,
    *,
    run: RunOptions,
    wishes: dict[str, Any],
    form: Annotated[str, typer.Option("--as", help="lora, gguf-lora, control-vector, weights or gguf.")] = "lora",
    lora_dtype: Annotated[str, typer.Option(help="Of a LoRA adapter: float32, bfloat16 or float16.")] = "float32",
    file_type: Annotated[
        str | None, typer.Option(help="Of a GGUF file, e.g. F16, Q8_0 or Q4_K_M; a GGUF model keeps its own types.")
    ] = None,
    feature: Feature = None,
    transfer: Transfer = False,
    json: Json = False,
) -> None:
    """Write an edit in another form; what a form can't hold is refused, with the reason."""
    from ..jobs.export import export

    record = export(model, what, out, form=form, lora_dtype=lora_dtype, file_type=file_type, feature=feature,
                    transfer=transfer, options=run, **wishes)  # fmt: skip
    if json:
        print_json(record.model_dump(by_alias=True))
        return
    screen = console()
    screen.print(
        f"wrote {plain(out)}: {plain(record.edit.name or 'edit')} as {plain(form)}, {several(len(record.tensors), 'tensor')}"
    )
    left: list[float] = [x for t in record.tensors if (x := getattr(t, "left", None)) is not None]
    if left:
        screen.print(f"  share of the direction left: at most {max(left):.3%}")
    if form == "gguf":
        screen.print(f"  beside it: {plain(out)}.Modelfile for Ollama, {plain(out)}.weightsmith.json with the record")
    for note in record.notes:
        screen.print(f"[yellow]note[/] {plain(note)}")
