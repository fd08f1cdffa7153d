"""The package's own exception: everything a user can put right is said in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BvtamError(Exception):
    """Bad input, named together with the fix. The command line prints it as one line and exits with 1."""


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """`; did you mean a, b?` for a misspelt name, or an empty string when nothing is near."""
    close = difflib.get_close_matches(name, list(names), n=count)
    return f'; did you mean {" or ".join(close)}?' if close else ''
