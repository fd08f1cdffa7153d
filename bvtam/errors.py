"""BvtamError: bad input, said in one line, with the fix."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable


def one_line(text: object, longest: int = 1000) -> str:
    """`text` with control characters escaped and, where it is longer, its middle left out."""
    text = str(text)
    if len(text) > longest:
        text = f'{text[: longest // 2]} ... {text[-longest // 2 :]}'
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value: object) -> str:
    """A value from a file for a message: its `repr`, shortened."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of too many digits
        return f'a {type(value).__name__}'


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


class BvtamError(Exception):
    """Bad input, named together with the fix. The command line prints it as one line and exits with 1."""

    def __init__(self, message: object = '') -> None:
        super().__init__(one_line(message))


class MachineError(BvtamError):
    """This machine lacks memory, file descriptors or disk space; the input is not at fault."""


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """`; did you mean a, b?` for a misspelt name, or an empty string when nothing is near."""
    close = difflib.get_close_matches(name, list(names), n=count)
    return f'; did you mean {" or ".join(close)}?' if close else ''
