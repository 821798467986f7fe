"""One edit in every form: weights, a LoRA adapter, a GGUF file, a control vector.

All of them are compiled from the same steps as the weights (:mod:`weightsmith.edits`), so that they agree; a form that
can't hold an edit refuses it and says why. :mod:`.change` is what the adapters are made of, :mod:`.lora` writes PEFT's
format, :mod:`.gguf_lora` llama.cpp's, :mod:`.control_vector` reads and writes control vectors, and :mod:`.table` says
which edit each form can hold in each family. Nothing here imports torch or peft.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ..records import DirectionMeta, EditSpec, FittedConstant, ModelIdentity, Strict

#: what ``weightsmith export --as`` takes
FORMS = ("weights", "lora", "gguf", "gguf-lora", "control-vector")
EXPORT = "weightsmith/export/1"


class FormTensor(Strict):
    """One tensor of an adapter: which weight it changes, the exact rank of the change, and what was done.

    ``constant`` is the norm of the constant that comes with it, 0 where there is none.
    """

    target: str
    rank: int
    operations: list[str]
    constant: float = 0.0


class Export(Strict):
    """``weightsmith.json`` of an adapter, and ``weightsmith.derivation`` in the metadata of a GGUF one: which base and
    which edit it comes from. ``outputs`` are the SHA-256 of the files beside it."""

    schema_id: str = Field(EXPORT, alias="schema")
    form: Literal["lora", "gguf-lora", "control-vector"]
    base: ModelIdentity
    base_source: dict[str, str]
    edit: EditSpec
    directions: dict[str, DirectionMeta]
    transferred: bool = False
    tensors: list[FormTensor] = []
    fitted: list[FittedConstant] = []
    notes: list[str] = []
    outputs: dict[str, str] = {}
    versions: dict[str, str]

    def as_record(self) -> dict[str, Any]:
        """As plain data, with the schema's own key."""
        return self.model_dump(by_alias=True)


__all__ = ["EXPORT", "FORMS", "Export", "FormTensor"]
