"""Plug-ins by name, imported only when used.

Built-in plug-ins are ``"module:attribute"`` strings; third-party ones come through the entry-point groups
``weightsmith.extractors``, ``.edits``, ``.scorers``, ``.scanners`` and ``.architectures``. A name that is
registered twice is an error: silently preferring one of them would change what a recipe means.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

from .errors import UnknownPlugin, UsageError


class Registry:
    """Names of one kind of plug-in, each loaded on first use."""

    def __init__(self, kind: str, builtin: dict[str, str]) -> None:
        self.kind = kind
        self.group = f"weightsmith.{kind}"
        self._builtin = dict(builtin)
        self._targets: dict[str, str] | None = None

    def _all(self) -> dict[str, str]:
        if self._targets is None:
            targets = dict(self._builtin)
            for point in entry_points(group=self.group):
                if point.name in targets:
                    raise UsageError(
                        f"two plug-ins of kind {self.kind} are called {point.name!r}",
                        where=f"{targets[point.name]} and {point.value}",
                        hint="uninstall one of the two packages",
                    )
                targets[point.name] = point.value
            self._targets = targets
        return self._targets

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._all())

    def module(self, name: str) -> str:
        """The module of the plug-in called ``name``, which is not imported for it.

        Raises:
            UnknownPlugin: no plug-in has that name.
        """
        return self._target(name).partition(":")[0]

    def load(self, name: str) -> Any:
        """Import and return the plug-in called ``name``.

        Raises:
            UnknownPlugin: no plug-in has that name.
        """
        module, _, attribute = self._target(name).partition(":")
        return getattr(importlib.import_module(module), attribute)

    def _target(self, name: str) -> str:
        target = self._all().get(name)
        if target is None:
            raise UnknownPlugin(
                f"no plug-in of kind {self.kind} is called {name!r}",
                hint=f"known: {', '.join(self.names())}",
            )
        return target
