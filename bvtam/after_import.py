"""Calls a function as soon as another package has been imported, by any code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def after_import(package: str, action: Callable[[], object]) -> None:
    """Calls `action` now if `package` is imported already, or else when its first import has ended."""
    if package in sys.modules:
        action()
    elif not any(isinstance(f, _Finder) and f.package == package for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder(package, action))


class _Finder(MetaPathFinder):
    """Finds one package as Python does, and adds the action to what its import runs."""

    def __init__(self, package: str, action: Callable[[], object]) -> None:
        self.package, self.action = package, action

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name != self.package:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec), None)
        if spec and spec.loader:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self.action()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
