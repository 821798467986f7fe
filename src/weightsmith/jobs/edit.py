"""``edit``: from a direction or an Edit file to new weights with their record."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..checkpoint import Checkpoint, refuse_remote_code, runnable
from ..direction import Direction, is_direction, load_direction
from ..errors import RecipeError, UsageError, WeightsmithError
from ..execute import execute
from ..options import RunOptions
from ..plan import EditPlan, compile_edit, plan_edit
from ..records import EDIT, Derivation, EditSpec, EditStep, FittedConstant, ModelIdentity, parse
from ..storage import cache_dir, refuse_existing
from .files import as_checkpoint, held_to_pins, passed

HOW_MADE = "`weightsmith find MODEL FEATURE -o FILE` makes a direction, `weightsmith search` Edits"

Amount = float | Literal["auto"]


def edit(
    model: Checkpoint | str | Path,
    what: Direction | EditSpec | str | Path,
    out: str | Path,
    *,
    remove: Amount | None = None,
    amplify: float | None = None,
    add: Amount | None = None,
    layers: list[int] | None = None,
    source: int | Literal["each"] | None = None,
    roles: list[str] | None = None,
    constant: Literal["exact", "fitted", "as-llama"] | None = None,
    how: Mapping[str, Any] | None = None,
    directions: list[Path] | None = None,
    transfer: bool = False,
    feature: str | None = None,
    resume: bool = False,
    options: RunOptions | None = None,
) -> Derivation:
    """Edit ``model`` and write it to ``out``, whole or not at all.

    ``what`` is a direction, with exactly one of ``remove``, ``amplify`` and ``add``, or an Edit (a file or a spec).
    ``"auto"`` takes the amount, layers and source that ``find`` chose on the select prompts. ``how`` refines the step:
    ``kind`` (projected, biprojected, affine or leace, in place of remove), ``norms``, ``rounding``, and ``also`` and ``protect``,
    lists of direction files.

    Raises:
        UsageError: no amount, or several; OutputExists; DiskFull; DirectionModelMismatch without ``transfer``;
        EditError: an edit that this family can't hold; NonFinite: NaN before or after.
    """
    options = options or RunOptions()
    refuse_existing(Path(out))
    opened = runnable(as_checkpoint(model, options), dequantize=options.dequantize, progress=options.progress)
    checkpoint = held_to_pins(opened, options, weights=False)
    wishes: dict[str, Any] = {
        "remove": remove, "amplify": amplify, "add": add, "layers": layers, "source": source, "roles": roles,
        "constant": constant, "how": how, "directions": directions,
    }  # fmt: skip
    if isinstance(what, str | Path) and not is_direction(Path(what).expanduser()):
        from .imported import with_imported

        what, wishes = with_imported(checkpoint, what, wishes, transfer=transfer, options=options)
    spec, found = resolve_edit(checkpoint, what, **wishes)
    plan = prepare(checkpoint, spec, found, transfer=transfer, feature=feature, options=options)
    return execute(plan, Path(out), found, transfer=transfer, resume=resume, options=options)


def prepare(
    checkpoint: Checkpoint, spec: EditSpec, found: Mapping[str, Direction], *, transfer: bool = False,
    feature: str | None = None, options: RunOptions | None = None,
) -> EditPlan:  # fmt: skip
    """Check the directions against the model, fit constants where they have to be fitted, and plan.

    The base's own digest is compared here where it is remembered, and else with the bytes that the edit reads.

    Raises:
        DirectionModelMismatch: a direction of other weights, without ``transfer``; ShapeMismatch: of another width.
    """
    options = options or RunOptions()
    check_directions(checkpoint, spec, found, transfer=transfer, options=options)
    fits = needed_fits(checkpoint, spec, found, feature, options)
    return plan_edit(checkpoint, spec, found, fits)


def check_directions(
    checkpoint: Checkpoint, spec: EditSpec, found: Mapping[str, Direction], *, transfer: bool, options: RunOptions
) -> None:
    """Check the directions that ``spec`` names against the model, as far as its digest is remembered.

    Raises:
        RemoteCode: a model that asks for its own code; DigestMismatch: one that was changed since it was edited.
        UnsafeModel, NotAnalysed: what the scan found.
        DirectionModelMismatch: a direction of other weights, without ``transfer``; ShapeMismatch: of another width.
    """
    arch = checkpoint.architecture
    refuse_remote_code(checkpoint, options)
    checkpoint.check_record()
    passed(checkpoint, options)
    known = checkpoint.known_digests()
    for digest in {d for s in spec.steps for d in s.digests} & found.keys():
        meta = found[digest].meta.model
        base = ModelIdentity(ref=checkpoint.ref, digest=checkpoint.digest_of(known) if known else meta.digest,
                             family=arch.family.name, n_layers=arch.n_layers, d_model=arch.d_model)  # fmt: skip
        found[digest].check_model(base, transfer=transfer)


def needed_fits(
    checkpoint: Checkpoint, spec: EditSpec, found: Mapping[str, Direction], feature: str | None, options: RunOptions
) -> dict[int, Any]:
    """Fitted constants for the additions of this edit that no bias can hold."""
    arch = checkpoint.architecture
    if arch.family.post_norm:
        return {}
    steps = [s for s in spec.steps if s.kind in ("add", "affine", "leace") and s.amount
             and (s.constant or ("exact" if arch.constant_site(s.layers[0]) else "fitted")) == "fitted"]  # fmt: skip
    if not steps:
        return {}
    from ..edits.constant import fit_writer

    for step in steps:
        for layer in step.layers:
            fit_writer(arch, layer)  # refused before a model is loaded
    import numpy as np

    from ..trust.apart import apart
    from ..trust.sandbox import model_paths

    prompts = _fit_prompts(found, steps, feature, options.offline)
    quiet = replace(options, progress=None, tell=None)
    rows = apart(lambda forked: _fitted(checkpoint, steps, found, prompts, quiet if forked else options),
                 model_paths(checkpoint.path))  # fmt: skip
    return {layer: (np.array(w, np.float64), FittedConstant.model_validate(report)) for layer, w, report in rows}


def _fitted(
    checkpoint: Checkpoint, steps: list[EditStep], found: Mapping[str, Direction], asked: tuple[str, ...], options: RunOptions
) -> list[Any]:
    """Rows of layer, w and its report as plain data: this is the step of an edit that runs a model."""
    from ..runtime.load import load

    running = load(checkpoint, options)
    from ..edits import AddOutput
    from ..features.fit import fit_constants

    fits: dict[int, Any] = {}
    prompts = [running.encode([{"role": "user", "content": p}]) for p in asked]
    for step in steps:
        compiled = compile_edit(checkpoint, EditSpec(steps=[step]), found, hooks_only=True)
        additions = [h for h in compiled.hooks if isinstance(h, AddOutput)]
        fits.update(fit_constants(running, prompts, additions, [a.layer for a in additions]))
    return [[layer, w.tolist(), report.model_dump(mode="json")] for layer, (w, report) in fits.items()]


def _fit_prompts(found: Mapping[str, Direction], steps: list[EditStep], feature: str | None, offline: bool) -> tuple[str, ...]:
    """The feature's *select* prompts; the shipped everyday ones where the recipe is not at hand."""
    from ..features.prompts import prompt_sets
    from ..features.recipe import load_feature, shipped_features

    name = feature or found[steps[0].direction].meta.feature
    if feature is None and name not in shipped_features():
        name = "melancholy"
    spec, folder = load_feature(name)
    return prompt_sets(spec, folder, offline=offline).select.lacks


def resolve_edit(
    checkpoint: Checkpoint, what: Direction | EditSpec | str | Path, *, remove: Amount | None, amplify: float | None,
    add: Amount | None, layers: list[int] | None, source: int | Literal["each"] | None, roles: list[str] | None,
    constant: Literal["exact", "fitted", "as-llama"] | None, directions: list[Path] | None,
    how: Mapping[str, Any] | None = None,
) -> tuple[EditSpec, dict[str, Direction]]:  # fmt: skip
    """The Edit and its directions by digest, whatever ``what`` was; see :func:`edit` for ``how``.

    Raises:
        UsageError: amounts that are missing, doubled, or given beside an Edit file.
        RecipeError: a malformed Edit, or directions that can't be found.
    """
    checkpoint.check_record()  # a bad verdict comes before everything else
    amounts = {k: v for k, v in (("remove", remove), ("amplify", amplify), ("add", add)) if v is not None}
    if isinstance(what, str | Path):
        path = Path(what).expanduser()
        if not path.is_file():
            raise UsageError("no such direction or edit file", where=path, hint=HOW_MADE)
        what = load_direction(path) if is_direction(path) or path.suffix == ".safetensors" else load_edit(path)
        folder: Path | None = path.absolute().parent
    else:
        folder = None
    if isinstance(what, EditSpec):
        if amounts or layers or source is not None or roles or how:
            raise UsageError("an Edit file says all of it: amounts, layers and roles can't be given beside it")
        return what, find_directions(what, folder, directions or [])
    if len(amounts) != 1:
        raise UsageError("say what to do with the direction: one of --remove, --amplify and --add",
                         hint="--remove 1 takes it out, --add auto enhances it, --amplify 2 scales both poles")  # fmt: skip
    kind, amount = next(iter(amounts.items()))
    digest = what.digest()
    step = _step(checkpoint, what, digest, kind, amount, layers, source, roles or [], constant)
    how = dict(how or {})
    rounding = how.pop("rounding", None) or "nearest"
    step, others = _refined(step, how)
    name = f"{step.kind} {what.meta.feature}"
    for direction in (what, *others.values()):
        direction.keep()
    spec: EditSpec = parse(EditSpec, {"schema": EDIT, "name": name, "steps": [step.model_dump()], "rounding": rounding}, "edit")
    return spec, {digest: what, **others}


def _refined(step: EditStep, how: dict[str, Any]) -> tuple[EditStep, dict[str, Direction]]:
    """``step`` with what :func:`edit` calls ``how``, and the further directions that it names."""
    others: dict[str, Direction] = {}
    changes: dict[str, Any] = {k: how[k] for k in ("norms", "strengths", "gate") if how.get(k)}
    for key in ("also", "protect"):
        loaded = [load_direction(_file(path)) for path in how.get(key) or []]
        if loaded:
            changes[key] = [d.digest() for d in loaded]
            others.update(zip(changes[key], loaded, strict=True))
    kind = how.get("kind")
    if kind:
        if step.kind != "remove":
            raise UsageError(f"--kind {kind} is a way to remove, and can't be given with --{step.kind}")
        changes["kind"] = kind
    if unknown := set(how) - {"kind", "norms", "strengths", "gate", "also", "protect"}:
        raise UsageError(f"unknown refinement {sorted(unknown)[0]!r}")
    made: EditStep = parse(EditStep, step.model_dump() | changes, "edit")
    return made, others


def _file(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise UsageError("no such direction file", where=path, hint=HOW_MADE)
    return path


def _step(
    checkpoint: Checkpoint, direction: Direction, digest: str, kind: str, amount: Amount, layers: list[int] | None,
    source: int | Literal["each"] | None, roles: list[str], constant: Literal["exact", "fitted", "as-llama"] | None,
) -> EditStep:  # fmt: skip
    chosen = direction.meta.best("add" if kind == "add" else "remove")
    if amount == "auto":
        if chosen is None:
            raise UsageError("this direction has no chosen amount", where=direction.meta.feature,
                             hint="give a number, or run `find` again without --no-choose")  # fmt: skip
        amount = chosen.amount
    if source is None:
        source = chosen.source if chosen else _default_source(direction)
    if layers is None:
        everywhere = list(range(checkpoint.architecture.n_layers))
        layers = chosen.layers if chosen else ([int(source)] if kind == "add" and source != "each" else everywhere)
    if isinstance(source, int):
        direction.row(source)
    arch_roles = checkpoint.architecture.default_roles()
    picked = [r.removeprefix("+") for r in roles]
    if any(r.startswith("+") for r in roles):
        picked = [*arch_roles, *[r for r in picked if r not in arch_roles]]
    step = {"kind": kind, "direction": digest, "source": source, "layers": layers, "roles": picked, "amount": amount,
            "constant": constant if kind == "add" else None}  # fmt: skip
    made: EditStep = parse(EditStep, step, f"--{kind}")
    return made


def _default_source(direction: Direction) -> int:
    if direction.meta.quality:
        return max(direction.meta.quality, key=lambda q: q.auroc).layer
    return direction.meta.layers[len(direction.meta.layers) // 2]


def load_edit(path: Path) -> EditSpec:
    """Read an Edit file.

    Raises:
        RecipeError: not UTF-8, not YAML, or not an Edit.
    """
    from ..features.recipe import load_yaml

    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError("neither a direction nor a UTF-8 text file", where=path) from error
    spec: EditSpec = parse(EditSpec, load_yaml(text, path), path, EDIT)
    return spec


def save_edit(spec: EditSpec, path: Path) -> None:
    """Write an Edit file, whole or not at all."""
    import yaml

    from ..storage import write_whole

    data = spec.model_dump(by_alias=True, exclude_defaults=False, exclude_none=True)
    write_whole(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode())


def find_directions(
    spec: EditSpec, folder: Path | None, given: list[Path], known: Mapping[str, Direction] | None = None
) -> dict[str, Direction]:
    """The directions that an Edit names by digest: from the given files, beside the Edit, or from the cache.

    Raises:
        RecipeError: one of them is nowhere.
    """
    wanted = {d for s in spec.steps for d in s.digests}
    found: dict[str, Direction] = dict(known or {})
    for path in given:
        if not path.is_file():
            raise UsageError("no such direction file", where=path, hint=HOW_MADE)
        direction = load_direction(path)
        found[direction.digest()] = direction
    beside = sorted(folder.glob("*.safetensors")) if folder else []
    cached = [cache_dir() / "directions" / f"{d}.safetensors" for d in wanted if re.fullmatch("[0-9a-f]{64}", d)]
    for path in [*cached, *beside]:
        if wanted <= found.keys():
            break
        with contextlib.suppress(WeightsmithError):  # a file that nobody named may be anything
            if is_direction(path):
                direction = load_direction(path)
                found.setdefault(direction.digest(), direction)
    if missing := sorted(wanted - found.keys()):
        raise RecipeError(f"the direction {missing[0][:16]}… is not at hand", where=spec.name or "edit",
                          hint="put its file beside the Edit, or name it with --direction")  # fmt: skip
    return {digest: found[digest] for digest in wanted}
