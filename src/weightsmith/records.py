"""What Weightsmith writes to disk, as strict models: an unknown field is an error, and every record names its schema.

A schema id is ``weightsmith/<noun>/<version>``. Readers accept the versions that they know and refuse newer ones by
name, so that an old program never silently drops a field of a new file.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import RecipeError

DIRECTION = "weightsmith/direction/1"
EDIT = "weightsmith/edit/1"
DERIVATION = "weightsmith/derivation/1"
DIFF = "weightsmith/diff/1"
REBUILD = "weightsmith/rebuild/1"


class Strict(BaseModel):
    """A record without room for typing errors."""

    # validators are built when a record is first used: a command needs two or three of them
    model_config = ConfigDict(extra="forbid", populate_by_name=True, defer_build=True)


def parse(model: type[Strict], data: Any, where: object, schema: str | None = None, page: str = "docs/formats.md") -> Any:
    """Validate ``data``; the first problem becomes one :class:`RecipeError` that says where it is, and which ``page`` helps.

    Raises:
        RecipeError: unknown or missing fields, wrong types, or a schema that this version does not know.
    """
    if not isinstance(data, dict):
        raise RecipeError("expected a mapping of fields", where=where)
    found = data.get("schema")
    if schema is not None and found != schema:
        raise RecipeError(f"the schema is {found!r:.120}; this version reads {schema!r}", where=where,
                          hint=_of_another_schema(found, schema))  # fmt: skip
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found_ = error.errors()
        first = found_[0]
        if first["type"] == "missing":  # perhaps by a typo, which is then an unknown field beside it
            first = next((e for e in found_ if e["type"] == "extra_forbidden" and e["loc"][:-1] == first["loc"][:-1]), first)
        place = ".".join(str(p) for p in first["loc"]) or "(top)"
        message = "unknown field" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise RecipeError(f"{place}: {message}", where=where, hint=f"{page} lists every field") from error


def _of_another_schema(found: object, wanted: str) -> str:
    """What to do about a file whose schema is not the wanted one: none, another kind of file, an older or a newer version."""
    if not isinstance(found, str) or not found:
        return f"begin with `schema: {wanted}`"
    (kind, _, version), (known, _, ours) = found.rpartition("/"), wanted.rpartition("/")
    if kind != known or not version.isdecimal():
        return "it is another kind of file than the one that is wanted here"
    return "a newer Weightsmith may be needed" if int(version) > int(ours) else "an older Weightsmith wrote it: make it again"


class LayerQuality(Strict):
    """How well one layer's direction does on the *select* prompts.

    ``auroc`` with a 95% bootstrap interval over prompts; ``relative_norm`` is ‖direction‖ / mean ‖residual‖;
    ``split_half`` is the cosine between the directions of two halves of the *extract* prompts.
    """

    layer: int
    auroc: float
    auroc_low: float
    auroc_high: float
    relative_norm: float
    split_half: float


class Candidate(Strict):
    """One tried edit on the *select* prompts: what it does and what it costs, both in nats per token.

    ``effect`` is the rise (add) or fall (remove) of the log-odds of feature-showing over feature-lacking answers;
    ``kl`` is KL(base ‖ edited) over the base's own neutral answers. ``degenerate`` is the share of its answers to the
    same prompts that are empty, garbage or loops, for the few candidates that were generated from.
    """

    kind: Literal["add", "remove"]
    source: int
    layers: list[int]
    amount: float
    effect: float
    kl: float
    n: int
    degenerate: float | None = None
    chosen: bool = False


class ModelIdentity(Strict):
    """Which weights: ``digest`` is over all tensors (see ``Checkpoint.digest``), not over files."""

    ref: str
    digest: str
    family: str
    n_layers: int
    d_model: int


class DirectionMeta(Strict):
    """The metadata of a direction file.

    ``prompts`` holds, for each part that was used (``extract``, ``select``), one-way sketches of its prompts: enough to
    see that none of them is reported on, not enough to read them.
    """

    schema_id: str = Field(DIRECTION, alias="schema")
    feature: str
    feature_digest: str
    description: str = ""
    model: ModelIdentity
    method: str
    site: str
    point: Literal["resid_pre", "resid_post"]
    layers: list[int]
    prompts_digest: str
    n: dict[str, int]
    quality: list[LayerQuality] = []
    candidates: list[Candidate] = []
    rule: str = ""
    ran: dict[str, str] = {}
    transfer: list[dict[str, str]] = []
    expression: str = ""
    versions: dict[str, str] = {}
    prompts: dict[str, list[str]] = {}

    def best(self, kind: str) -> Candidate | None:
        """The candidate chosen on *select* for ``add`` or ``remove``."""
        return next((c for c in self.candidates if c.kind == kind and c.chosen), None)


class GateSpec(Strict):
    """When a step acts, as a hook: only at tokens where the residual stream after ``layer`` lies beyond ``threshold``
    along the unit vector of ``direction`` there (conditional activation steering, arXiv 2409.05907)."""

    direction: str
    layer: int
    threshold: float
    below: bool = False


class EditStep(Strict):
    """One step of an edit.

    ``kind`` never shares a scale with another: ``remove`` has the share of the component taken out (1 is exact
    orthogonalization, more, up to 2, turns it round), ``amplify`` the factor on the component, ``add`` a dose in units of
    ‖αv‖/‖h‖, the sum over its layers. ``direction`` is the sha256 of a direction file, ``source`` the layer whose vector
    is used, or ``each`` for every layer's own. ``also`` names further directions that span the subspace, ``protect`` ones
    that must not move. ``strengths`` are factors on the amount, one for each of ``layers``, by role or for all (``*``). ``norms``
    says what is kept: nothing (``free``), the norm of each input vector or of each output row.
    """

    kind: str
    direction: str
    source: int | Literal["each"]
    layers: list[int]
    roles: list[str] = []
    amount: float
    also: list[str] = []
    protect: list[str] = []
    strengths: dict[str, list[float]] = {}
    norms: Literal["free", "input", "output"] | None = None
    gate: GateSpec | None = None
    constant: Literal["exact", "fitted", "as-llama"] | None = None

    @property
    def dose(self) -> float:
        """Of an addition: Σ |αv|/‖h‖ over its layers, strengths included."""
        row = self.strengths.get("*") or [1.0] * len(self.layers)
        return abs(self.amount) * sum(abs(x) for x in row) / len(self.layers)

    @property
    def digests(self) -> list[str]:
        """Every direction that the step names, once."""
        gate = [self.gate.direction] if self.gate else []
        return list(dict.fromkeys([self.direction, *self.also, *self.protect, *gate]))

    @model_validator(mode="after")
    def _strengths_fit(self) -> EditStep:
        for role, row in self.strengths.items():
            if len(row) != len(self.layers):
                raise ValueError(f"strengths of {role!r}: {len(row)} factors for {len(self.layers)} layers")
            if not all(math.isfinite(x) for x in row):
                raise ValueError(f"strengths of {role!r} must be finite numbers")
        return self

    @field_validator("layers")
    @classmethod
    def _some_layers(cls, value: list[int]) -> list[int]:
        if not value:
            raise ValueError("at least one layer is needed")
        if len(set(value)) != len(value):
            raise ValueError("a layer is named twice")
        return value

    @field_validator("amount")
    @classmethod
    def _finite(cls, value: float) -> float:
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError("must be a finite number")
        return value


class EditSpec(Strict):
    """An edit as a file: intent only, no tensors. Steps compose in order.

    ``rounding`` is to nearest, ties to even, or ``balanced``: to either neighbour, so that what rounding leaves of removed
    directions cancels.
    """

    schema_id: str = Field(EDIT, alias="schema")
    name: str = ""
    description: str = ""
    steps: list[EditStep]
    rounding: Literal["nearest", "balanced"] = "nearest"

    @property
    def digests(self) -> list[str]:
        """Every direction that the steps name, once, in order."""
        return list(dict.fromkeys(d for s in self.steps for d in s.digests))

    @field_validator("steps")
    @classmethod
    def _some_steps(cls, value: list[EditStep]) -> list[EditStep]:
        if not value:
            raise ValueError("at least one step is needed")
        return value


class TensorRecord(Strict):
    """What was done to one tensor; ``left`` is ‖uᵀW′‖/‖uᵀW‖ after the final cast, for exact removals."""

    tensor: str
    dtype: str
    operations: list[str]
    left: float | None = None
    added: bool = False


class FittedConstant(Strict):
    """How well a fitted rank-1 update delivers its constant on prompts that were not used for the fit."""

    layer: int
    mean_dose: float
    spread: float
    n_tokens: int


class Derivation(Strict):
    """``weightsmith.json``: which base and which edit gave which bytes."""

    schema_id: str = Field(DERIVATION, alias="schema")
    base: ModelIdentity
    base_source: dict[str, str]
    base_tensors: int
    edit: EditSpec
    directions: dict[str, DirectionMeta]
    transferred: bool = False
    compute: dict[str, str]
    tensors: list[TensorRecord]
    fitted: list[FittedConstant] = []
    notes: list[str] = []
    config_changes: dict[str, Any] = {}
    outputs: dict[str, str]
    digest: str
    versions: dict[str, str]
    base_record: dict[str, Any] | None = None


class TensorDifference(Strict):
    """One tensor that is not the same in A and B; ``relative`` is ‖B − A‖/‖A‖, ``largest`` the largest |B − A|."""

    tensor: str
    what: Literal["changed", "only in A", "only in B", "another type or shape"]
    a: str | None = None
    b: str | None = None
    elements_changed: int | None = None
    elements: int | None = None
    largest: float | None = None
    relative: float | None = None


class FileDifference(Strict):
    """One file that is not the same in A and B; ``keys`` are the top-level keys of a JSON file that differ."""

    file: str
    what: Literal["changed", "only in A", "only in B"]
    keys: list[str] = []


class DiffRecord(Strict):
    """What differs between two checkpoints, exactly; digests are model digests, of what ``notes`` say was compared."""

    schema_id: str = Field(DIFF, alias="schema")
    a: str
    b: str
    a_digest: str
    b_digest: str
    identical_tensors: int
    tensors: list[TensorDifference]
    files: list[FileDifference]
    notes: list[str] = []

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.tensors and not self.files


class RebuildRecord(Strict):
    """A derivative made again from its base and its record, and compared with what is there.

    ``first_tensor`` is the first, in file order, that is not what the record gives; ``files`` are other files that are
    not. ``record_digest`` is the digest that the record claims, ``rebuilt_digest`` the one that came out.
    """

    schema_id: str = Field(REBUILD, alias="schema")
    model: str
    base: str
    base_digest: str
    record_digest: str
    rebuilt_digest: str
    found_digest: str
    tensors: list[str]
    files: list[str]
    first_tensor: str | None = None
    made_with: dict[str, str] = {}
    rebuilt_with: dict[str, str] = {}
    notes: list[str] = []

    @property
    def same(self) -> bool:
        """Whether what is there is, byte for byte, what the record gives."""
        return not self.tensors and not self.files and self.rebuilt_digest == self.record_digest
