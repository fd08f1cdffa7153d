"""The command line: one thin command per use, for models (`zoo.py`), videos and training."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from ..errors import BvtamError, one_line
from . import predict, training, videos, zoo  # noqa: F401  (each registers its commands)
from .shared import app

_INTERRUPTED = 130  # as shells have it


class _Lines(logging.Handler):
    """Messages on what stderr is at the time: while a bar is shown, the lines above it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(one_line(record.getMessage()), file=sys.stderr)


def main() -> None:
    """Runs the command line: exit 0 done, 1 failed with one line on stderr, 2 wrong usage, 130 Ctrl-C."""
    logging.getLogger('bvtam').handlers = [_Lines()]
    # Pillow warns of images larger than those that are refused.
    warnings.filterwarnings('ignore', 'Image size .* could be decompression bomb')
    sys.stdout.reconfigure(errors='backslashreplace')  # file names can be any bytes
    try:
        try:
            app()
        finally:
            _flush()
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            print('bvtam: interrupted', file=sys.stderr)
        raise
    except BrokenPipeError:  # of `bvtam ... | head`, which has read enough
        sys.exit(1)
    except (BvtamError, ValueError, OSError) as error:
        print(f'bvtam: {_told(error)}', file=sys.stderr)
        sys.exit(getattr(error, 'exit_code', 1))
    except (MemoryError, RuntimeError) as error:
        from ..data.failures import machine_error

        lack = machine_error(error)
        if lack is None:
            raise
        print(f'bvtam: {lack}', file=sys.stderr)
        sys.exit(1)


def _flush() -> None:
    """Writes what is left to stdout; what fails here is not tried again when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _told(error: Exception) -> str:
    """An error in one line."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f'{error.filename}: {error.strerror}' if error.filename else error.strerror
    return ' '.join(text.split()) or type(error).__name__
