"""Libraries that only some uses need: each belongs to an extra of the package."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from .errors import BvtamError


def library(name: str, extra: str, user: str) -> ModuleType:
    """The module `name` of a library, which is imported now.

    Args:
        name: 'onnx', or a module inside a library, as 'matplotlib.figure'.
        extra: of this package, that installs the library.
        user: words for what needs it, at the start of the message.

    Raises:
        BvtamError: the library is missing or cannot be imported.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition('.')[0]
        # One that is there but broken has a reason of its own.
        reason = '' if getattr(error, 'name', None) in (name, package) else f' ({error})'
        raise BvtamError(f"{user} needs {package}: pip install 'bvtam[{extra}]'{reason}") from None
