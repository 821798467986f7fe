"""What a search may change: strengths by layer and role, and the directions themselves, as hooks that gradients pass.

A removal takes s û (ûᵀy) from the output y of every writer of its layers, with a strength s for each layer and role and a
unit vector û for each layer (read along g ⊙ û where a norm with gain g follows, as in :mod:`weightsmith.edits.scale`). An
addition puts a vector ‖h_l‖ a_l behind each layer, a_l in units of the mean norm of the residual stream there. Both come
out as an Edit with a Direction file whose vectors are the layers' own, so that weights, adapters and hooks agree.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ..direction import Direction
from ..edits import AddOutput
from ..errors import EditError
from ..plan import compile_edit, read_gains
from ..records import EditSpec, EditStep

if TYPE_CHECKING:
    from ..runtime import RunningModel

Kind = Literal["remove", "add"]


@dataclass(frozen=True, eq=False)
class Site:
    """One module whose output an edit changes: its place in the strengths, and the gains of the norms that follow."""

    module: Any
    layer: int
    role: int
    gain: torch.Tensor | None


@dataclass(eq=False)
class Values:
    """A point of the space: ``strengths`` ``[layers, roles]``, ``vectors`` ``[layers, d_model]`` and, for an oblique removal,
    ``readers`` of the same shape."""

    strengths: torch.Tensor
    vectors: torch.Tensor
    readers: torch.Tensor | None = None

    def copy(self) -> Values:
        """The same values, apart."""
        readers = None if self.readers is None else self.readers.detach().clone()
        return Values(self.strengths.detach().clone(), self.vectors.detach().clone(), readers)

    @property
    def finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return bool(torch.isfinite(self.strengths).all() and torch.isfinite(self.vectors).all())


class Space:
    """Edits of one kind over some layers of a running model, starting from a direction."""

    def __init__(self, model: RunningModel, kind: Kind, direction: Direction, layers: Seq[int], source: int | None,
                 *, oblique: bool = False) -> None:  # fmt: skip
        # behind a norm what is read is not what the residual stream gets
        self.oblique = oblique and kind == "remove" and not model.architecture.family.post_norm
        self.model, self.kind, self.direction = model, kind, direction
        self.layers, self.source = list(layers), source
        self.norms = torch.tensor([float(direction.resid_norm[direction.row(x)]) for x in self.layers], device=model.device)
        self.sites = self._removal_sites() if kind == "remove" else self._addition_sites()
        self.roles = self._roles if kind == "remove" else ["*"]

    def _removal_sites(self) -> list[Site]:
        arch = self.model.architecture
        gains, found, roles = read_gains(self.model.checkpoint), {}, []
        for writer in arch.select(arch.default_roles(), self.layers):
            if writer.layer is None or writer.is_bias:
                continue
            if writer.role not in roles:
                roles.append(writer.role)
            gain = None
            for name in writer.gains:
                more = torch.tensor(gains[name] + writer.gain_offset, dtype=torch.float32, device=self.model.device)
                gain = more if gain is None else gain * more
            place = self.layers.index(writer.layer), roles.index(writer.role)
            found[writer.module] = Site(self.model.module(writer.module), *place, gain)
        self._roles = roles
        return list(found.values())

    def _addition_sites(self) -> list[Site]:
        step = EditStep(kind="add", direction="d", source=self._any_source(), layers=self.layers, amount=0.1)
        hooks = compile_edit(self.model.checkpoint, EditSpec(steps=[step]), {"d": self.direction}, hooks_only=True).hooks
        return [Site(self.model.module(h.module), self.layers.index(h.layer), 0, None)
                for h in hooks if isinstance(h, AddOutput)]  # fmt: skip

    def _any_source(self) -> int:
        return self.direction.meta.layers[-1] if self.source is None else self.source

    def begin(self, strength: float) -> Values:
        """The closed-form edit from which a descent starts: one strength (or total dose) everywhere."""
        rows = [self.direction.unit(x if self.source is None else self.source) for x in self.layers]
        vectors = torch.tensor(np.stack(rows), dtype=torch.float32, device=self.model.device)
        if self.kind == "add":
            vectors = vectors * (strength / len(self.layers))
            return Values(torch.ones((len(self.layers), 1), device=self.model.device), vectors)
        strengths = torch.full((len(self.layers), len(self.roles)), strength, device=self.model.device)
        return Values(strengths, vectors, vectors.clone() if self.oblique else None)

    @contextlib.contextmanager
    def hooked(self, values: Values) -> Iterator[None]:
        """Run the model under the edit; gradients reach ``values``."""
        handles = [site.module.register_forward_hook(self._hook(site, values)) for site in self.sites]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, site: Site, values: Values) -> Any:
        # computed anew in every pass: the shared prefix is differentiated apart from what follows it
        if self.kind == "add":
            norm = self.norms[site.layer]

            def constant(y: torch.Tensor) -> torch.Tensor:
                vector = values.strengths[site.layer, 0] * norm * values.vectors[site.layer]
                return (y.float() + vector.to(y.device)).to(y.dtype)

            return lambda _m, _i, output: _changed(output, constant)

        def linear(y: torch.Tensor) -> torch.Tensor:
            unit = values.vectors[site.layer]
            unit = unit if site.gain is None else unit * site.gain
            unit = unit / unit.norm()
            reader = unit if values.readers is None else values.readers[site.layer] / values.readers[site.layer].norm()
            wide, unit, reader = y.float(), unit.to(y.device), reader.to(y.device)  # a layer may lie on a device of its own
            taken = values.strengths[site.layer, site.role].to(y.device) * (wide @ reader)
            found: torch.Tensor = (wide - taken[..., None] * unit).to(y.dtype)
            return found

        return lambda _m, _i, output: _changed(output, linear)

    def normalise(self, values: Values) -> None:
        """Put values back into the space: strengths within 0 to 1 and unit vectors for a removal."""
        if self.kind == "remove":
            values.strengths.data.clamp_(0.0, 1.0)
            for rows in (values.vectors, values.readers):
                if rows is not None:
                    rows.data.div_(rows.data.norm(dim=1, keepdim=True))

    def edit(self, values: Values, name: str, method: str, *, learned: bool) -> tuple[EditSpec, Direction]:
        """The point as an Edit and the Direction that it names; layers and roles whose strength is 0 are left out.

        Raises:
            EditError: nothing is left of it.
        """
        strengths = values.strengths.detach().double().cpu().numpy()
        vectors = values.vectors.detach().double().cpu().numpy()
        readers = None if values.readers is None else values.readers.detach().float().cpu().numpy()
        learned = learned or readers is not None
        direction = self.direction if not learned else self._direction(vectors, method, readers)
        doses = np.abs(strengths[:, 0]) * np.linalg.norm(vectors, axis=1) if self.kind == "add" else strengths.max(1)
        kept = [k for k, dose in enumerate(doses) if dose > 5e-4]
        if not kept:
            raise EditError("nothing is left of this edit: every strength is 0", where=name)
        layers, digest = [self.layers[k] for k in kept], direction.digest()
        source: Any = "each" if learned or self.source is None else self.source
        if self.kind == "add":
            step = _addition(digest, source, layers, doses[kept])
        else:
            rows = {role: [round(float(strengths[k, r]), 4) for k in kept] for r, role in enumerate(self.roles)}
            kind = "oblique" if self.oblique else "remove"
            step = EditStep(kind=kind, direction=digest, source=source, layers=layers, amount=1.0,
                            roles=[r for r in self.roles if any(rows[r])],
                            strengths={r: x for r, x in rows.items() if any(x)})  # fmt: skip
        return EditSpec(name=name, steps=[step]), direction

    def values_of(self, spec: EditSpec, directions: Mapping[str, Direction]) -> Values:
        """The point that an Edit of this space stands for (its strengths are rounded to 4 digits)."""
        step, values = spec.steps[0], self.begin(0.0)
        direction = directions[step.direction]
        rows = strengths_of(spec)
        for k, layer in enumerate(self.layers):
            if layer not in step.layers:
                continue
            unit = torch.tensor(direction.unit(layer if step.source == "each" else step.source), dtype=torch.float32)
            dose = rows["*"][layer] if self.kind == "add" else 1.0
            values.vectors[k] = (dose * unit).to(values.vectors.device)
            if values.readers is not None and direction.readers is not None:
                values.readers[k] = torch.tensor(direction.readers[direction.row(layer)]).to(values.readers.device)
            for r, role in enumerate(self.roles if self.kind == "remove" else []):
                values.strengths[k, r] = rows.get(role, rows.get("*", {})).get(layer, 0.0)
        return values

    def _direction(self, vectors: Any, method: str, readers: Any = None) -> Direction:
        """The starting direction with these layers' vectors in its place; the means and norms stay those of the layers."""
        old = self.direction
        rows = [old.row(x) for x in self.layers]
        meta = old.meta.model_copy(update={"layers": list(self.layers), "method": method, "candidates": [], "rule": "",
                                           "quality": [q for q in old.meta.quality if q.layer in self.layers]})  # fmt: skip
        return replace(old, vectors=vectors.astype(np.float32), resid_norm=old.resid_norm[rows],
                       mean_shows=old.mean_shows[rows], mean_lacks=old.mean_lacks[rows], meta=meta, readers=readers)  # fmt: skip


def _addition(digest: str, source: Any, layers: list[int], doses: Any) -> EditStep:
    total = round(float(doses.sum()), 4)
    factors = [round(float(d) * len(layers) / total, 4) for d in doses]
    return EditStep(kind="add", direction=digest, source=source, layers=layers, amount=total, strengths={"*": factors})


def strengths_of(spec: EditSpec) -> Mapping[str, Mapping[int, float]]:
    """Strength by role (``*`` for all) and layer of an Edit's first step, its amount included."""
    step = spec.steps[0]
    rows = step.strengths or {"*": [1.0] * len(step.layers)}
    share = len(step.layers) if step.kind == "add" else 1
    return {role: {x: step.amount * s / share for x, s in zip(step.layers, row, strict=True)} for role, row in rows.items()}


def _changed(output: Any, change: Any) -> Any:
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)
