"""Differences between releases of PyAV, known in this place alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import av


def open_container(source: Any, **options: Any) -> av.container.InputContainer:
    """`av.open` to read; a title in another encoding than UTF-8 is no reason to refuse a video."""
    if _metadata_may_raise():
        options['metadata_errors'] = 'ignore'
    return av.open(source, **options)


def num_indexed(stream: av.VideoStream) -> int | None:
    """Packets in the container's index of a stream; None where PyAV does not tell."""
    entries = getattr(stream, 'index_entries', None)
    return None if entries is None else len(entries)


@cache
def _metadata_may_raise() -> bool:
    """Whether `av.open` has the option `metadata_errors`, as it has up to release 18."""
    try:
        av.open('', metadata_errors='ignore').close()
    except TypeError:
        return False
    except (av.FFmpegError, OSError, ValueError):
        pass  # there is no such file
    return True
