"""Whether a claim about files holds: what was changed, which base, how large, how stored. Compared exactly, without torch.

These verdicts need no statistics: tensors are the same byte for byte or they are not. *cannot tell* is left for what bytes
don't say: whether a folder is the published model of that name, or whether a cast kept its values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from ..architecture import text_config
from ..checkpoint import Checkpoint
from ..claimed import Claim, Outcome, Verdict
from ..errors import WeightsmithError
from ..formats.safetensors import FLOAT_DTYPES, TensorSpec
from ..records import DiffRecord, TensorDifference

#: two matrices that were trained apart differ by √2 of their norm; an edit or a fine-tune by far less
RELATED, UNRELATED = 0.5, 1.2
#: how far a published number of parameters may be from the headers': rounding, and what was counted in
SIZE_CLOSE, SIZE_FAR = 0.05, 0.20
SHOWN = 50

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|blk)\.(\d{1,5})\.")
_EMBEDDINGS = {"embed_tokens", "wte", "embed_in", "tok_embeddings", "word_embeddings"}
_HEADS = {"lm_head", "embed_out", "output"}


@dataclass
class Files:
    """Both checkpoints and their difference (A is the base). ``licence`` is what the base's own card says."""

    model: Checkpoint
    against: Checkpoint
    diff: DiffRecord
    licence: str = ""

    @cached_property
    def roles(self) -> dict[str, str]:
        """Role of every tensor that writes to the residual stream; none where the family is unknown."""
        try:
            return {w.tensor: w.role for w in self.model.architecture.writers}
        except WeightsmithError:  # then literal names are all that can be matched
            return {}

    @cached_property
    def casts(self) -> list[str]:
        """Tensors that only their stored type tells apart: whether their values changed was not compared."""
        return [t.tensor for t in self.diff.tensors if _is_cast(t)]

    @cached_property
    def changed(self) -> list[str]:
        """Tensors that differ in bytes or shape, or that only one has and that copy none of the base's."""
        known = set(self.against.tensor_digests().values())
        theirs = self.model.tensor_digests()
        found = []
        for t in self.diff.tensors:
            if _is_cast(t) or (t.what == "only in B" and theirs.get(t.tensor) in known):
                continue  # a tied head that was stored a second time is no change
            found.append(t.tensor)
        return found

    @property
    def comparable(self) -> bool:
        """Whether the two share names of tensors at all."""
        return bool(self.against.tensors.keys() & self.model.tensors.keys())


def _is_cast(t: TensorDifference) -> bool:
    if t.what != "another type or shape" or t.a is None or t.b is None:
        return False
    return t.a.partition(" ")[2] == t.b.partition(" ")[2]


def judge(claim: Claim, files: Files) -> Verdict:
    """The verdict on a claim about files."""
    return _RULES[claim.kind](claim, files)


def _told(claim: Claim, verdict: Outcome, why: str, measured: str = "", differs: Iterable[str] = ()) -> Verdict:
    return Verdict(claim=claim, verdict=verdict, why=why, measured=measured, differs=list(differs)[:SHOWN])


# -- which weights changed ----------------------------------------------------------------------------------


def layer_of(tensor: str) -> int | None:
    """The layer in a tensor's name."""
    found = _LAYER.search(tensor)
    return int(found[1]) if found else None


def is_part(tensor: str, part: str, roles: Mapping[str, str]) -> bool:
    """Whether a tensor is what a card calls ``part``."""
    pieces = tensor.split(".")
    if "." in part and part.count(".") > 1:
        return tensor == part or tensor.startswith(f"{part}.")
    if part.startswith("attention output"):
        return roles.get(tensor) == "attn_out"
    if part.startswith("mlp "):
        return roles.get(tensor) == "mlp_down"
    if part.startswith("embedding"):
        return roles.get(tensor) == "embed" or bool(_EMBEDDINGS & {*pieces})
    if part.replace(" ", "").startswith("layernorm"):
        return any("norm" in p or p.startswith("ln_") for p in pieces)
    return part.split(".")[0] in pieces


def _tensors(claim: Claim, files: Files) -> Verdict:
    if not files.comparable:
        return _told(claim, "cannot tell", "the two name their tensors differently, so nothing can be compared")
    counted = f"{len(files.changed)} of {len(files.model.tensors)} tensors differ from the base"
    if claim.value is not None:
        right = len(files.changed) == int(claim.value)
        why = f"{counted}, where {claim.value:.0f} are claimed"
        return _cast_aware(claim, files, "holds" if right else "does not hold", why, counted, files.changed if not right else [])
    exact = {n for n in claim.names if n in files.model.tensors or n in files.against.tensors}

    def named(tensor: str, first: int) -> bool:
        layer = layer_of(tensor)
        if claim.layers and (layer is None or layer + first not in claim.layers):
            return False
        return tensor in exact or not claim.names or any(
            is_part(tensor, p, files.roles) for p in claim.names if p not in exact)  # fmt: skip

    inside = [t for t in files.model.tensors if named(t, 0)]
    if not inside:
        return _told(claim, "cannot tell", f"no tensor here is what the card names: {claim.says.removeprefix('only ')}", counted)
    if not files.changed and not files.casts:
        return _told(claim, "does not hold", "nothing was changed: every tensor is the base's, byte for byte", counted)
    outside = [t for t in files.changed if not named(t, 0)]
    first = ""
    if outside and claim.layers and 0 not in claim.layers and not [t for t in files.changed if not named(t, 1)]:
        outside, first = [], " (layers counted from 1)"
    if outside:
        why = f"{counted}, and {len(outside)} of them are none of those, e.g. {outside[0]}"
        return _told(claim, "does not hold", why, counted, outside)
    untouched = len([t for t in inside if t not in files.changed])
    rest = f"; {untouched} of the {len(inside)} that are named are the base's still" if untouched and not first else ""
    return _cast_aware(claim, files, "holds", f"{counted}, all of them among those{first}{rest}", counted, [])


def _cast_aware(claim: Claim, files: Files, verdict: Outcome, why: str, measured: str, differs: list[str]) -> Verdict:
    """Casts are judged last: nothing else contradicts the claim, and they might."""
    if files.casts and verdict == "holds":
        why = f"{len(files.casts)} tensors are stored as another type; whether their values changed too was not compared"
        return _told(claim, "cannot tell", why, measured, files.casts)
    return _told(claim, verdict, why, measured, differs)


def _same_weights(claim: Claim, files: Files) -> Verdict:
    if not files.comparable:
        return _told(claim, "cannot tell", "the two name their tensors differently, so nothing can be compared")
    counted = f"{len(files.changed)} of {len(files.model.tensors)} tensors differ from the base"
    if files.changed:
        return _told(claim, "does not hold", f"{counted}, e.g. {files.changed[0]}", counted, files.changed)
    return _cast_aware(claim, files, "holds", "every tensor is the base's, byte for byte", counted, [])


# -- which base ---------------------------------------------------------------------------------------------


def called(checkpoint: Checkpoint, name: str) -> str:
    """Why a checkpoint is taken for the model ``name``, or nothing: its address on the hub, its folder, its config."""
    low, last = name.lower(), name.lower().rpartition("/")[2]
    every = [checkpoint, *([checkpoint.origin] if checkpoint.origin else [])]
    for c in every:
        if low in (c.ref.lower().partition("@")[0], *(v.lower() for v in c.source.values())):
            return "it was named so"
        if f"models--{low.replace('/', '--')}" in (p.lower() for p in c.path.parts):
            return "it is that model's snapshot"
        own = c.path.name.lower()
        if own == last or own.startswith(f"{last}."):
            return "its folder or file has that name"
        if str(c.config.get("_name_or_path", "")).lower() == low:
            return "its config has that name"
    return ""


def _matrices(files: Files) -> tuple[list[str], list[TensorDifference]]:
    """Matrices that are the base's byte for byte, and those of the same shape that differ."""
    moved = {t.tensor: t for t in files.diff.tensors}
    both = [n for n, t in files.against.tensors.items() if n in files.model.tensors and len(t.shape) > 1]
    return [n for n in both if n not in moved], [moved[n] for n in both if n in moved and moved[n].what == "changed"]


def _shapes(tensors: Mapping[str, TensorSpec]) -> dict[str, tuple[int, ...]]:
    return {n: tuple(t.shape) for n, t in tensors.items()}


def _base(claim: Claim, files: Files) -> Verdict:
    """Of that base: by its name first, then by structure, then by how far the matrices moved."""
    name, why = claim.names[0], called(files.against, claim.names[0])
    mine, theirs = _shapes(files.model.tensors), _shapes(files.against.tensors)
    odd = [n for n in theirs if n in mine and mine[n] != theirs[n]]
    kinds = [str(text_config(c.config).get("model_type")) for c in (files.against, files.model)]
    same, moved = _matrices(files)
    relatives = [t.relative for t in moved if t.relative is not None]
    middle = median(relatives) if relatives else 0.0
    counted = f"{len(same)} of {len(same) + len(moved)} matrices are the base's"
    if moved:
        counted += f"; the others moved by {middle:.2g} of their norm (median)"
    if not why:
        also = f" ({counted})" if same or moved else ""
        return _told(claim, "cannot tell", f"--against is not known to be {name}; its name, address and config say nothing "
                     f"of it{also}", counted)  # fmt: skip
    named = f"--against is {name} ({why})"
    if kinds[0] != kinds[1]:
        return _told(claim, "does not hold", f"{named}, and is a {kinds[0]} where this is a {kinds[1]}", counted)
    if odd and len(odd) > len(theirs) // 2:
        return _told(claim, "does not hold", f"{named}, and {len(odd)} of its tensors have other shapes here", counted, odd)
    if not same and not moved:
        return _told(claim, "cannot tell", f"{named}, but no matrix can be compared: other names or other types", counted)
    if same or middle < RELATED:
        return _told(claim, "holds", f"{named}: {counted}", counted)
    if middle > UNRELATED:
        return _told(claim, "does not hold", f"{named}, and {counted}: as far as models that were trained apart", counted)
    return _told(claim, "cannot tell", f"{named}: {counted}, which a long training or another origin could do", counted)


def _merge(claim: Claim, files: Files) -> Verdict:
    if len(claim.names) == 1 and (why := called(files.against, claim.names[0])):
        return _told(claim, "cannot tell", f"--against is {claim.names[0]} ({why}), but a merge needs all its models to be checked")
    return _told(claim, "cannot tell", "a merge can be checked only against all of its models, and one was given")


def _digest(claim: Claim, files: Files) -> Verdict:
    of_base = claim.subject == "original model"
    found = files.diff.a_digest if of_base else files.diff.b_digest
    whose, short = "--against" if of_base else "this model", f"{found[:16]}…"
    if found == claim.names[0]:
        return _told(claim, "holds", f"the digest of {whose} is that", short)
    if of_base:
        return _told(claim, "cannot tell", f"--against is another model ({short}) than the record's base", short)
    return _told(claim, "does not hold", f"the digest of {whose} is {short}", short)


# -- sizes and licences -------------------------------------------------------------------------------------


def _parameters(claim: Claim, files: Files) -> Verdict:
    model = files.model
    if model.kind != "gguf" and any(t.dtype not in FLOAT_DTYPES for t in model.tensors.values()):
        return _told(claim, "cannot tell", "the weights are packed: their headers don't give the number of parameters")
    whole = model.parameters
    embeddings = sum(t.numel for n, t in model.tensors.items() if _EMBEDDINGS & {*n.split(".")})
    heads = sum(t.numel for n, t in model.tensors.items() if _HEADS & {*n.split(".")[:-1]})
    if "without embeddings" in claim.unit:
        ways = {"without embeddings": whole - embeddings - heads}
    else:
        ways = {"in the headers": whole, "without embeddings": whole - embeddings - heads}
        ways["with a head of its own" if not heads else "without the head"] = whole - heads if heads else whole + embeddings
    claimed = claim.value or 0.0
    how, count = min(ways.items(), key=lambda item: abs(item[1] - claimed))
    off = abs(count - claimed)
    shown = f"{whole / 1e6:.4g} M in the headers" if how != "without embeddings" else f"{count / 1e6:.4g} M {how}"
    if off <= max(claim.step, SIZE_CLOSE * claimed):
        return _told(claim, "holds", f"{count:,} {how}", shown)
    if off > SIZE_FAR * claimed:
        return _told(claim, "does not hold", f"the nearest way to count gives {count:,} ({how})", shown)
    return _told(claim, "cannot tell", f"{count:,} {how}: near, but not what is claimed by any way to count", shown)


def _context(claim: Claim, files: Files) -> Verdict:
    config = text_config(files.model.config)
    found = config.get("max_position_embeddings") or config.get("n_positions")
    if not isinstance(found, int) or isinstance(found, bool):
        return _told(claim, "cannot tell", "the config does not say how long a context can be")
    shown = f"{found} tokens"
    if abs(found - (claim.value or 0.0)) <= claim.step:
        return _told(claim, "holds", "the config says so", shown)
    scaling: Any = config.get("rope_scaling") or config.get("rope_parameters")
    if isinstance(scaling, dict) and any("factor" in str(k) for k in scaling):
        return _told(claim, "cannot tell", f"the config says {found}, stretched by a scaling of its positions", shown)
    return _told(claim, "does not hold", f"the config says {found}", shown)


def _dtype(claim: Claim, files: Files) -> Verdict:
    matrices = {n: t.dtype for n, t in files.model.tensors.items() if len(t.shape) > 1}
    kinds = sorted(set(matrices.values()))
    odd = [n for n, t in matrices.items() if t != claim.names[0]]
    if odd:
        why = f"{len(odd)} of {len(matrices)} matrices are stored otherwise"
        return _told(claim, "does not hold", why, ", ".join(kinds), odd)
    return _told(claim, "holds", f"all {len(matrices)} matrices are", ", ".join(kinds))


def _licence(claim: Claim, files: Files) -> Verdict:
    if not files.licence:
        return _told(claim, "cannot tell", "--against has no card that names its licence")
    if files.licence.lower() == claim.names[0].lower():
        return _told(claim, "holds", "the base's own card names the same", files.licence)
    why = f"the base's own card names {files.licence}: whether this one may differ is a question of law"
    return _told(claim, "cannot tell", why, files.licence)


_RULES: dict[str, Callable[[Claim, Files], Verdict]] = {
    "tensors": _tensors, "same weights": _same_weights, "base model": _base, "merge": _merge, "digest": _digest,
    "parameters": _parameters, "context length": _context, "dtype": _dtype, "licence": _licence,
}  # fmt: skip

