"""What a search may change: strengths by layer and role, and the directions themselves, as hooks that gradients pass.

A removal takes s û (ûᵀy) from the output y of every writer of its layers, with a strength s for each layer and role and a
unit vector û for each layer (read along g ⊙ û where a norm with gain g follows, as in :mod:`weightsmith.edits.scale`); one of
rank k does so k times, one after the other, with orthogonal vectors and strengths of their own. An
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
    """A point of the space: ``strengths`` ``[rank · layers, roles]``, ``vectors`` ``[rank · layers, d_model]`` (all layers' first
    ones, then all second ones) and, for an oblique removal, ``readers`` of the same shape."""

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
    """Edits of one kind over some layers of a running model, starting from a direction; ``rank`` is a removal's at each layer."""

    def __init__(self, model: RunningModel, kind: Kind, direction: Direction, layers: Seq[int], source: int | None,
                 *, oblique: bool = False, rank: int = 1) -> None:  # fmt: skip
        self.rank = rank if kind == "remove" else 1
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
        bases = [self._basis(x) for x in self.layers]
        rows = [basis[r] for r in range(self.rank) for basis in bases]
        vectors = torch.tensor(np.stack(rows), dtype=torch.float32, device=self.model.device)
        if self.kind == "add":
            vectors = vectors * (strength / len(self.layers))
            return Values(torch.ones((len(self.layers), 1), device=self.model.device), vectors)
        strengths = torch.full((len(rows), len(self.roles)), strength, device=self.model.device)
        strengths[len(self.layers) :] = 0.0  # a descent begins as the closed form, and takes up what helps beside it
        return Values(strengths, vectors, vectors.clone() if self.oblique else None)

    def _basis(self, layer: int) -> Any:
        """Orthonormal ``[rank, d_model]`` to start a layer from: the direction's own vector, then what else its layers hold."""
        first = self.direction.unit(layer if self.source is None else self.source).astype(np.float64)
        found = [first / np.linalg.norm(first)]
        if self.rank > 1:
            own = self.direction.unit(layer) if layer in self.direction.meta.layers else first
            others = np.linalg.svd(self.direction.vectors.astype(np.float64), full_matrices=False)[2]
            for row in (own, *others):
                rest = row - sum((row @ x) * x for x in found)
                rest = rest - sum((rest @ x) * x for x in found)  # what is left of nearly all of it is not orthogonal yet
                if len(found) < self.rank and np.linalg.norm(rest) > 1e-3:
                    found.append(rest / np.linalg.norm(rest))
        if len(found) < self.rank:
            raise EditError(f"the direction's layers span {len(found)} dimensions, and a rank of {self.rank} was asked for",
                            where=self.direction.meta.feature, hint="search with a lower --rank")  # fmt: skip
        return np.stack(found)

    def places(self, layer: int) -> range:
        """The rows of a layer, by its place in ``layers``: one for each rank."""
        return range(layer, layer + self.rank * len(self.layers), len(self.layers))

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
            wide = y.float()
            for row in self.places(site.layer):
                unit = values.vectors[row]
                unit = unit if site.gain is None else unit * site.gain
                unit = unit / unit.norm()
                reader = unit if values.readers is None else values.readers[row] / values.readers[row].norm()
                unit, reader = unit.to(y.device), reader.to(y.device)  # a layer may lie on a device of its own
                taken = values.strengths[row, site.role].to(y.device) * (wide @ reader)
                wide = wide - taken[..., None] * unit
            return wide.to(y.dtype)

        return lambda _m, _i, output: _changed(output, linear)

    def normalise(self, values: Values) -> None:
        """Put values back into the space: strengths within 0 to 1 and orthonormal vectors of each layer for a removal."""
        if self.kind == "remove":
            values.strengths.data.clamp_(0.0, 1.0)
            size = len(self.layers)
            for r in range(1, self.rank):
                rows = values.vectors.data[r * size : (r + 1) * size]
                for q in range(r):
                    before = values.vectors.data[q * size : (q + 1) * size]
                    unit = before / before.norm(dim=1, keepdim=True)
                    rows -= (rows * unit).sum(1, keepdim=True) * unit
            for units in (values.vectors, values.readers):
                if units is not None:
                    units.data.div_(units.data.norm(dim=1, keepdim=True))

    def edit(self, values: Values, name: str, method: str, *, learned: bool) -> tuple[EditSpec, dict[str, Direction]]:
        """The point as an Edit, a step for each rank, and the Directions that it names by their digests; layers and roles whose
        strength is 0 are left out.

        Raises:
            EditError: nothing is left of it.
        """
        steps, directions, size = [], {}, len(self.layers)
        for r in range(self.rank):
            rows = slice(r * size, (r + 1) * size)
            strengths = values.strengths[rows].detach().double().cpu().numpy()
            vectors = values.vectors[rows].detach().double().cpu().numpy()
            readers = None if values.readers is None else values.readers[rows].detach().float().cpu().numpy()
            own = learned or readers is not None or r > 0
            direction = self.direction if not own else self._direction(vectors, method, readers)
            step = self._step(strengths, vectors, direction.digest(), "each" if own or self.source is None else self.source)
            if step is not None:
                steps.append(step)
                directions[step.direction] = direction
        if not steps:
            raise EditError("nothing is left of this edit: every strength is 0", where=name)
        return EditSpec(name=name, steps=steps), directions

    def _step(self, strengths: Any, vectors: Any, digest: str, source: Any) -> EditStep | None:
        """One rank's step; ``None`` where every strength is 0."""
        doses = np.abs(strengths[:, 0]) * np.linalg.norm(vectors, axis=1) if self.kind == "add" else strengths.max(1)
        kept = [k for k, dose in enumerate(doses) if dose > 5e-4]
        if not kept:
            return None
        layers = [self.layers[k] for k in kept]
        if self.kind == "add":
            return _addition(digest, source, layers, doses[kept])
        rows = {role: [round(float(strengths[k, r]), 4) for k in kept] for r, role in enumerate(self.roles)}
        kind = "oblique" if self.oblique else "remove"
        return EditStep(kind=kind, direction=digest, source=source, layers=layers, amount=1.0,
                        roles=[r for r in self.roles if any(rows[r])],
                        strengths={r: x for r, x in rows.items() if any(x)})  # fmt: skip

    def values_of(self, spec: EditSpec, directions: Mapping[str, Direction]) -> Values:
        """The point that an Edit of this space stands for (its strengths are rounded to 4 digits)."""
        values = self.begin(0.0)
        for rank, step in enumerate(spec.steps):
            direction, rows = directions[step.direction], strengths_of(step)
            for k, layer in enumerate(self.layers):
                if layer not in step.layers:
                    continue
                row = self.places(k)[rank]
                unit = torch.tensor(direction.unit(layer if step.source == "each" else step.source), dtype=torch.float32)
                dose = rows["*"][layer] if self.kind == "add" else 1.0
                values.vectors[row] = (dose * unit).to(values.vectors.device)
                if values.readers is not None and direction.readers is not None:
                    values.readers[row] = torch.tensor(direction.readers[direction.row(layer)]).to(values.readers.device)
                for r, role in enumerate(self.roles if self.kind == "remove" else []):
                    values.strengths[row, r] = rows.get(role, rows.get("*", {})).get(layer, 0.0)
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


def strengths_of(step: EditStep) -> dict[str, dict[int, float]]:
    """Strength by role (``*`` for all) and layer of a step, its amount included."""
    rows = step.strengths or {"*": [1.0] * len(step.layers)}
    share = len(step.layers) if step.kind == "add" else 1
    return {role: {x: step.amount * s / share for x, s in zip(step.layers, row, strict=True)} for role, row in rows.items()}


def curves(spec: EditSpec) -> dict[str, dict[int, float]]:
    """Strengths of all steps by role and layer; from the second one on with its number behind the role."""
    found = {}
    for number, step in enumerate(spec.steps, 1):
        found.update({role if number == 1 else f"{role} ({number})": row for role, row in strengths_of(step).items()})
    return found


def _changed(output: Any, change: Any) -> Any:
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)
