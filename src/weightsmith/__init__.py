"""Weightsmith: open weights with the benefits of open source.

Check a language model that you downloaded, find a feature of it, remove or enhance that feature, measure what the
change did, and keep a record from which anyone can make it again::

    import weightsmith as ws

    model = ws.open_checkpoint("demo:smollm2")          # headers only, nothing is run
    direction = ws.find(model, "melancholy")            # where the feature lives, with held-out quality
    out = ws.edit(model, direction, "OUT", add="auto")  # new weights, whole or not at all, with their record
    result = ws.measure("OUT", against=model, feature="melancholy", direction=direction)

Everything that is written to disk is a record with a schema (:mod:`weightsmith.records`), every error is one of
:mod:`weightsmith.errors`, and nothing prints but the command line. Importing this package imports neither torch nor
transformers; only running a model does.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "Checkpoint": "checkpoint",
    "Direction": "direction",
    "EditSpec": "records",
    "RunOptions": "options",
    "WeightsmithError": "errors",
    "claims": "jobs",
    "convert": "jobs",
    "diff": "jobs",
    "edit": "jobs",
    "export": "jobs",
    "find": "jobs",
    "load_direction": "direction",
    "load_feature": "features.recipe",
    "measure": "jobs",
    "open_checkpoint": "checkpoint",
    "rebuild": "jobs",
    "sandbox": "trust.sandbox",
    "scan": "jobs",
    "search": "jobs",
    "undo": "jobs",
}

__all__ = [
    "Checkpoint",
    "Direction",
    "EditSpec",
    "RunOptions",
    "WeightsmithError",
    "__version__",
    "claims",
    "convert",
    "diff",
    "edit",
    "export",
    "find",
    "load_direction",
    "load_feature",
    "measure",
    "open_checkpoint",
    "rebuild",
    "sandbox",
    "scan",
    "search",
    "undo",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(types.ModuleType):
    """A package whose public names are not taken over by its folders: importing the folder ``measure`` would bind
    that name here, and ``weightsmith.measure(...)`` would work once only."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _LAZY and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
