"""Prompts from their sources, split three ways by construction.

The split is by the prompt's own digest, so a prompt stays in its part, or falls out of use, when others are added: none
moves to another part while every part is full of its own. A part that is short takes from what the others don't need.
Near-duplicates in different parts are refused: a figure on *report* would otherwise be read off prompts that the
direction came from.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import FormatError, MissingExtra, RecipeError, UsageError
from ..hub import dataset_files
from ..storage import digest_of
from .recipe import FeatureSpec, PromptSource, TwoSources

NEAR = 0.7  # Jaccard similarity of character 4-grams from which two prompts count as the same
PARTS = ("extract", "select", "report")


@dataclass(frozen=True)
class PromptSplit:
    """Prompts of one part: ``shows`` and ``lacks`` (equal for personas, paired row by row for pairs)."""

    shows: tuple[str, ...]
    lacks: tuple[str, ...]


@dataclass(frozen=True)
class PromptSets:
    """All three parts and the digest of everything in them."""

    extract: PromptSplit
    select: PromptSplit
    report: PromptSplit

    @property
    def digest(self) -> str:
        """SHA-256 over the three parts."""
        return digest_of([[p, list(getattr(self, p).shows), list(getattr(self, p).lacks)] for p in PARTS])

    def part(self, name: str) -> PromptSplit:
        """One part by name."""
        split: PromptSplit = getattr(self, name)
        return split


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8 at byte {error.start}", where=path,
                          hint="save the file as UTF-8 and try again") from error  # fmt: skip
    except OSError as error:
        raise UsageError(f"can't read the prompt file ({error.strerror})", where=path) from error


def _lines(path: Path) -> list[str]:
    """Lines as editors count them; ``str.splitlines`` would also cut at form feeds and at U+2028."""
    return _text(path).split("\n")


def _field(row: Any, column: str | None, where: object, line: int) -> str:
    if isinstance(row, str) and column is None:
        return row
    if not isinstance(row, dict):
        raise RecipeError(f"line {line} is not an object with fields", where=where)
    name = column or ("prompt" if "prompt" in row else "text")
    value = row.get(name)
    if not isinstance(value, str):
        raise RecipeError(f"line {line} has no text in the column {name!r}", where=where,
                          hint=f"name one of its columns with `column`: {', '.join(map(str, row))}")  # fmt: skip
    return value


def read_prompts(source: PromptSource, folder: Path | None, *, offline: bool = False) -> list[str]:
    """All prompts of one source, in order, blank ones left out; ``offline`` asks no network for a dataset.

    Raises:
        RecipeError: an unknown shipped set, no prompts, a missing column.
        FormatError: a file that is not UTF-8 or not what its suffix says.
        MissingExtra: Parquet without pyarrow.
    """
    if source.prompts is not None:
        found, where = list(source.prompts), "list"
    elif source.shipped is not None:
        entry = files("weightsmith").joinpath(f"features/shipped/prompts/{source.shipped}.txt")
        if not re.fullmatch(r"[a-z_-]+", source.shipped) or not entry.is_file():
            names = sorted(e.name[:-4] for e in files("weightsmith").joinpath("features/shipped/prompts").iterdir())
            raise RecipeError("no shipped prompts are called so", where=source.shipped, hint=f"one of {', '.join(names)}")
        found, where = entry.read_text(encoding="utf-8").splitlines(), source.shipped
    elif source.file is not None:
        path = Path(source.file).expanduser()
        path = path if path.is_absolute() or folder is None else folder / path
        found, where = _from_file(path, source.column), str(path)
    else:
        found, where = _from_dataset(str(source.dataset), source, offline), str(source.dataset)
    cleaned = [p.strip() for p in found if p.strip()]
    if not cleaned:
        raise RecipeError("there is no prompt in it", where=where)
    if broken := [p for p in cleaned if re.search("[\ud800-\udfff]", p)]:
        raise RecipeError(f"a prompt holds half of a surrogate pair: {ascii(broken[0])[:80]}", where=where)
    return cleaned[: source.limit]


def _from_file(path: Path, column: str | None) -> list[str]:
    if not path.is_file():
        raise RecipeError("no such prompt file", where=path)
    kind = path.suffix.lower()
    if kind in (".jsonl", ".ndjson"):
        rows: list[str] = []
        for number, line in enumerate(_lines(path), 1):
            if line.strip():
                try:
                    rows.append(_field(json.loads(line), column, path, number))
                except (ValueError, RecursionError) as error:
                    raise FormatError(f"line {number} is not JSON ({error})", where=path) from error
        return rows
    if kind in (".csv", ".tsv"):
        text = io.StringIO(_text(path), newline="")
        reader = csv.DictReader(text, delimiter="\t" if kind == ".tsv" else ",", strict=True)
        try:
            return [_field(row, column, path, reader.line_num) for row in reader]
        except csv.Error as error:
            raise FormatError(f"line {reader.reader.line_num} is not {kind[1:].upper()} ({error})", where=path) from error
    if kind == ".parquet":
        return _from_parquet(path, column)
    return _lines(path)


def _from_parquet(path: Path, column: str | None) -> list[str]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtra("reading Parquet needs pyarrow", hint="pip install 'weightsmith[data]'") from error
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise FormatError(f"not a Parquet file ({error})", where=path) from error
    return [_field(row, column, path, n) for n, row in enumerate(table.to_pylist(), 1)]


def _from_dataset(name: str, source: PromptSource, offline: bool) -> list[str]:
    """A hub dataset's files of one split; only data files are fetched, a dataset script is never run."""
    return [row for path in dataset_files(name, source.split, offline=offline) for row in _from_file(path, source.column)]


def prompt_sets(spec: FeatureSpec, folder: Path | None, *, offline: bool = False) -> PromptSets:
    """Read the recipe's prompts, ``offline`` without a network, and split them.

    Raises:
        RecipeError: too few, one-sided or identical prompts, or near-duplicates in different parts.
    """
    if isinstance(spec.prompts, TwoSources):
        shows, lacks = (read_prompts(s, folder, offline=offline) for s in (spec.prompts.shows, spec.prompts.lacks))
        if {_key(p) for p in shows} == {_key(p) for p in lacks}:
            raise RecipeError("both sides hold the same prompts: there is nothing to contrast", where=spec.name)
        if spec.contrast.kind == "pairs":
            return _split_pairs(spec, shows, lacks)
        left, right = _split(spec, shows, "shows"), _split(spec, lacks, "lacks")
        parts = {p: PromptSplit(left[p], right[p]) for p in PARTS}
    else:
        both = _split(spec, read_prompts(spec.prompts, folder, offline=offline), "prompts")
        parts = {p: PromptSplit(both[p], both[p]) for p in PARTS}
    return PromptSets(**parts)


def _sizes(spec: FeatureSpec) -> dict[str, int]:
    return {part: getattr(spec.split, part) for part in PARTS}


def _assign(prompts: list[str], sizes: dict[str, int]) -> dict[str, tuple[str, ...]]:
    """The parts: each prompt's digest names its own part, in proportion to the sizes, and its place in it."""
    total = sum(sizes.values())
    own: dict[str, list[str]] = {part: [] for part in sizes}
    ranked = sorted((hashlib.sha256(_key(p).encode()).digest(), p) for p in prompts)
    for digest, prompt in ranked:
        place = int.from_bytes(digest[-8:], "big") * total >> 64  # from other bits than the order
        for part, size in sizes.items():
            place -= size
            if place < 0:
                own[part].append(prompt)
                break
    spare = [p for part, size in sizes.items() for p in own[part][size:]]
    parts: dict[str, tuple[str, ...]] = {}
    for part, size in sizes.items():
        short = size - len(own[part])
        parts[part] = (*own[part][:size], *spare[: max(0, short)])
        spare = spare[max(0, short) :]
    return parts


def _split(spec: FeatureSpec, prompts: list[str], side: str) -> dict[str, tuple[str, ...]]:
    unique = list({_key(p): p for p in prompts}.values())
    sizes = _sizes(spec)
    if len(unique) < sum(sizes.values()):
        raise RecipeError(
            f"{side}: {len(unique)} different prompts, and the split needs {sum(sizes.values())}", where=spec.name,
            hint=f"add prompts, or set `split` lower than {sizes['extract']} / {sizes['select']} / {sizes['report']}",
        )  # fmt: skip
    parts = _assign(unique, sizes)
    refuse_near_duplicates(parts, spec.name)
    return parts


def _split_pairs(spec: FeatureSpec, shows: list[str], lacks: list[str]) -> PromptSets:
    if len(shows) != len(lacks):
        raise RecipeError(f"pairs need equal sides; there are {len(shows)} and {len(lacks)}", where=spec.name)
    if same := [a for a, b in zip(shows, lacks, strict=True) if _key(a) == _key(b)]:
        raise RecipeError(f"a pair has identical sides: {same[0][:80]!r}", where=spec.name)
    parts = _split(spec, shows, "pairs")
    mate = dict(zip(shows, lacks, strict=True))
    splits = {p: PromptSplit(rows, tuple(mate[r] for r in rows)) for p, rows in parts.items()}
    refuse_near_duplicates({p: s.lacks for p, s in splits.items()}, spec.name)
    return PromptSets(**splits)


def _key(prompt: str) -> str:
    return " ".join(re.findall(r"\w+", prompt.casefold()))


def _grams(prompt: str) -> frozenset[str]:
    text = f" {_key(prompt)} "
    return frozenset(text[i : i + 4] for i in range(max(1, len(text) - 3)))


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of the character 4-grams of two prompts, case and punctuation left out (0 to 1)."""
    x, y = _grams(a), _grams(b)
    return len(x & y) / len(x | y)


def refuse_near_duplicates(parts: dict[str, tuple[str, ...]], where: str) -> None:
    """Raise :class:`RecipeError` when prompts of different parts are nearly the same."""
    rows = [(part, prompt, _grams(prompt)) for part, prompts in parts.items() for prompt in prompts]
    index: dict[str, list[int]] = {}
    for i, (part, prompt, grams) in enumerate(rows):
        seen: dict[int, int] = {}
        for gram in grams:
            for j in index.get(gram, ()):
                seen[j] = seen.get(j, 0) + 1
            index.setdefault(gram, []).append(i)
        for j, shared in seen.items():
            other, text, their = rows[j]
            if other != part and shared >= NEAR * (len(grams) + len(their) - shared):
                raise RecipeError(f"nearly the same prompt stands in {other} and {part}: {text[:70]!r} and "
                                  f"{prompt[:70]!r}", where=where, hint="remove one of them")  # fmt: skip
