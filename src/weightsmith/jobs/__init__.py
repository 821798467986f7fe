"""One public function per verb. Faces call these and records, nothing below.

Each is imported when it is first used: an edit need not wait for what an export imports.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .claims import claims
    from .comparison import compare
    from .derive import diff, rebuild, undo
    from .edit import edit
    from .export import export
    from .files import convert, describe_direction, describe_model
    from .find import find
    from .measure import measure
    from .pin import pin
    from .scan import scan
    from .search import search
    from .verify import verify

_LAZY = {"claims": "claims", "compare": "comparison", "convert": "files", "describe_direction": "files",
         "describe_model": "files", "diff": "derive", "edit": "edit", "export": "export", "find": "find",
         "measure": "measure", "pin": "pin", "rebuild": "derive", "scan": "scan", "search": "search", "undo": "derive",
         "verify": "verify"}  # fmt: skip

__all__ = ["claims", "compare", "convert", "describe_direction", "describe_model", "diff", "edit", "export", "find",
           "measure", "pin", "rebuild", "scan", "search", "undo", "verify"]  # fmt: skip


class _Package(types.ModuleType):
    """A package whose functions are not taken over by the modules of the same name when those are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _LAZY and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)


sys.modules[__name__].__class__ = _Package
