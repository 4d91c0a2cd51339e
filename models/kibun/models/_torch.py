"""Imports torch for a process that only runs models, without what takes a third of that time and is for others.

While it is imported, torch registers in Python how shapes follow from shapes, for its compiler and exporter. Nothing
that is served needs them, so the module that does it is executed when something first reads from it, if ever.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

LATER = "torch._meta_registrations"


class _Later(ModuleType):
    """A module that is executed when an attribute is read that it does not have yet."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        self._execute(self)
        return getattr(self, name)


class _LaterLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Later(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["_execute"] = self._loader.exec_module


class _Finder:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == LATER else None
        if spec is not None and spec.loader is not None:
            spec.loader = _LaterLoader(spec.loader)
        return spec


def import_torch() -> None:
    """Import torch; harmless where it has been. Raises ImportError as `import torch` does."""
    sys.meta_path.insert(0, _Finder)
    try:
        import torch  # noqa: F401
    finally:
        sys.meta_path.remove(_Finder)
