"""``claims``: what a model's card and its own record say, measured where it can be: holds, does not hold, cannot tell.

Claims about files (which tensors changed, which base, how large) are compared exactly and need no torch. Figures
(refusals, KL, benchmarks) are measured, by :func:`weightsmith.jobs.measure.measure` or by the function that is given, and
only when the card claims one. The rules are in ``docs/claims.md``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..cards import claims_of, read_card
from ..checkpoint import RECORD, Checkpoint, runnable
from ..claimed import Claim, ClaimsRecord, Verdict
from ..compare import diff_checkpoints
from ..errors import EditError, MissingExtra, RecipeError, ResourceError, UnsupportedModel, UsageError
from ..measure.sizes import SUITES, get_suite
from ..measured import MeasureRecord
from ..options import RunOptions
from ..storage import write_whole
from . import claim_figures, claim_files
from .derive import load_record
from .files import as_checkpoint

CARD = "README.md"
#: questions of a set where a suite has none, and the card claims a score
QUESTIONS = 200
FILES_ONLY = "none"
_FIGURES = ("rate", "score", "divergence", "perplexity")

#: ``(model, against, suite=, options=, **wishes) -> MeasureRecord``, as :func:`weightsmith.jobs.measure.measure`
Measure = Callable[..., MeasureRecord]


def claims(
    model: Checkpoint | str | Path, against: Checkpoint | str | Path, *, card: str | Path | None = None,
    suite: str = "quick", n: int | None = None, measure: Measure | None = None, options: RunOptions | None = None,
) -> ClaimsRecord:  # fmt: skip
    """Check every claim of a model's card, and of its own record, against the model and its base.

    ``card`` is another file than the model's ``README.md``. ``suite`` and ``n`` say how much is measured (``none``: files
    only). ``measure`` measures; it is called at most once, as ``measure(model, against, suite=…, options=…, …)``.

    Raises:
        UsageError: a model or ``card`` that is not there, or no such suite; FormatError: a card over 1 MiB.
        DigestMismatch, ManifestMismatch: the model's files are not those of its own record.
    """
    if suite not in (*SUITES, FILES_ONLY):
        raise UsageError(f"no suite is called {suite!r}", hint=f"one of {', '.join(SUITES)}, or {FILES_ONLY} (files only)")
    options = options or RunOptions()
    there, base = as_checkpoint(model, options), as_checkpoint(against, options)
    there.check_record()
    if there.kind == "folder" and base.kind == "gguf":
        base = runnable(base, progress=options.progress)  # the bf16 folder that an edit of it began from
    path = Path(card) if card is not None else _folder(there) / CARD
    record = ClaimsRecord(
        model=there.title, model_digest=there.digest(options.progress), against=base.title,
        against_digest=base.digest(options.progress), card=str(path.name), card_sha256="",
        versions={"weightsmith": __version__},
    )  # fmt: skip
    found: list[Claim] = []
    if card is not None or path.is_file():
        data = read_card(path)
        record.card_sha256 = hashlib.sha256(data).hexdigest()
        read = claims_of(data.decode("utf-8", "replace"), path.name, own=_names(there), base=_names(base))
        found, record.notes = read.claims, list(read.notes)
        if not found:
            record.notes.append("the card claims nothing that is known how to read")
    else:
        record.card = ""
        record.notes.append(f"the model has no card ({CARD})")
    found += own_claims(there, record.notes)
    wanted = [c for c in found if c.kind in _FIGURES and not c.unmeasurable]
    figures, why = None, "figures were not measured (suite none)"
    if wanted and suite != FILES_ONLY:
        figures, why = _measured(there, base, wanted, (suite, n), measure, options, record)
    files = _files(there, base, found)
    record.verdicts = [_verdict(c, found, files, figures, why) for c in found]
    return record


def _verdict(
    claim: Claim, every: list[Claim], files: claim_files.Files | None, figures: claim_figures.Figures | None, why: str
) -> Verdict:
    if claim.unmeasurable:
        return Verdict(claim=claim, verdict="cannot tell", why=f"not measurable: {claim.unmeasurable}")
    if claim.kind in _FIGURES:
        if figures is None:
            return Verdict(claim=claim, verdict="cannot tell", why=why)
        return claim_figures.judge(claim, figures, every)
    assert files is not None
    if claim.file == RECORD and claim.kind == "tensors" and files.diff.a_digest not in _own_base(every):
        why = f"that is said of the record's base, and --against is another model ({files.diff.a_digest[:16]}…)"
        return Verdict(claim=claim, verdict="cannot tell", why=why)
    return claim_files.judge(claim, files)


def _own_base(every: list[Claim]) -> list[str]:
    """The digest of the base that the model's own record names."""
    return next((c.names for c in every if c.file == RECORD and c.kind == "digest" and c.subject == "original model"), [])


def _files(model: Checkpoint, base: Checkpoint, found: list[Claim]) -> claim_files.Files | None:
    """The exact difference of the two, where a claim is about it."""
    if all(c.unmeasurable or c.kind in _FIGURES for c in found):
        return None
    licence, beside = "", _folder(base) / CARD
    if beside.is_file() and beside.resolve() != (_folder(model) / CARD).resolve():
        theirs = claims_of(read_card(beside).decode("utf-8", "replace"))
        licence = next((c.names[0] for c in theirs.claims if c.kind == "licence"), "")
    return claim_files.Files(model, base, diff_checkpoints(base, model), licence or base.source.get("licence", "").lower())


def _measured(
    model: Checkpoint, base: Checkpoint, wanted: list[Claim], how: tuple[str, int | None], measure: Measure | None,
    options: RunOptions, record: ClaimsRecord,
) -> tuple[claim_figures.Figures | None, str]:  # fmt: skip
    """The figures that the claims speak of, or why there are none; models that can't be run still have files."""
    try:
        found = (measure or _measure)(model, base, options=options, **_wishes(wanted, *how))
    except (MissingExtra, UnsupportedModel, EditError, ResourceError) as error:
        record.notes.append(f"figures were not measured: {error.message}")
        return None, f"it could not be measured: {error.message}"
    record.suite, record.edited, record.base = found.suite or how[0], found.edited, found.base
    record.scorers = found.scorers
    record.notes += [n for n in found.notes if n not in record.notes]
    figures = claim_figures.figures_of(found)
    used = dict.fromkeys(k for c in wanted for k in c.keys)
    rows = [figures.edited[k] for k in used if k in figures.edited]
    record.conditions = list(dict.fromkeys(claim_figures.conditions(m, figures) for m in rows))
    return figures, ""


def _wishes(wanted: list[Claim], suite: str, n: int | None) -> dict[str, Any]:
    """What to ask of ``measure``: sets of questions only where a score is claimed."""
    sets = tuple(dict.fromkeys(k.removesuffix(".accuracy") for c in wanted if c.kind == "score" for k in c.keys))
    wishes: dict[str, Any] = {"suite": suite, "n": n}
    if sets:
        wishes["sets"] = sets
    return wishes


def _measure(model: Checkpoint, against: Checkpoint, *, suite: str, options: RunOptions, **wishes: Any) -> MeasureRecord:
    from ..runtime.load import need_torch

    need_torch()
    from .measure import measure

    chosen = get_suite(suite)
    if wishes.get("sets") and not chosen.choice:
        chosen = replace(chosen, choice=QUESTIONS)
    # prompts with which the edit was made are left out: a claim is about others
    return measure(model, against, suite=chosen, drop_overlap=True, options=options, **wishes)


def _folder(model: Checkpoint) -> Path:
    """Where a model's card would be."""
    origin = model.origin or model
    return origin.path if origin.path.is_dir() else origin.path.parent


def _names(model: Checkpoint) -> list[str]:
    """What tables may call a model: its address, its folder, its config's own word."""
    own = [model.ref.partition("@")[0], model.title, str(model.config.get("_name_or_path", ""))]
    return [n for n in own if 2 < len(n) < 200]


# -- our own record -----------------------------------------------------------------------------------------


def own_claims(model: Checkpoint, notes: list[str]) -> list[Claim]:
    """What the model's ``weightsmith.json`` claims: its base's digest, its own, and that only its tensors changed."""
    if model.kind != "folder" or not (model.path / RECORD).is_file():
        return []
    try:
        found = load_record(model)
    except RecipeError as error:
        notes.append(f"{RECORD} could not be read: {error.message}")
        return []
    text = (model.path / RECORD).read_text(encoding="utf-8").splitlines()
    tensors = [t.tensor for t in found.tensors]
    made = [
        _own(text, "base", "digest", f"made from {found.base.ref} with the digest {found.base.digest[:16]}…",
             [found.base.digest], subject="original model"),
        _own(text, "digest", "digest", f"its weights have the digest {found.digest[:16]}…", [found.digest]),
    ]  # fmt: skip
    if tensors:
        made.append(_own(text, "tensors", "tensors", f"only {len(tensors)} tensors changed", tensors))
    return made


def _own(text: list[str], key: str, kind: Any, says: str, names: list[str], **more: Any) -> Claim:
    inset = next((row.partition('"')[0] for row in text if row.lstrip().startswith('"')), "")  # of the outermost keys
    line = next((i for i, row in enumerate(text, 1) if row.startswith(f'{inset}"{key}"')), 1)
    return Claim(kind=kind, says=says, file=RECORD, line=line, text=f'"{key}"', names=names, **more)


def save_claims(record: ClaimsRecord, path: Path, *, replace: bool = False) -> None:
    """Write the record as JSON, whole or not at all."""
    write_whole(path, (record.model_dump_json(by_alias=True, indent=1) + "\n").encode(), replace=replace)
