"""The command line: one thin command per use, in `zoo.py` (networks) and `videos.py` (videos)."""

from __future__ import annotations

import logging
import sys

from ..errors import BvtamError
from . import videos, zoo  # noqa: F401  (each registers its commands)
from .shared import app


def main() -> None:
    """Runs the command line: exit 0 done, 1 failed with one line on stderr, 2 wrong usage."""
    logging.basicConfig(format='%(message)s', stream=sys.stderr, level=logging.WARNING)
    try:
        app()
    except (BvtamError, ValueError, OSError) as error:
        text = ' '.join(str(error).split()) or type(error).__name__
        print(f'bvtam: {text}', file=sys.stderr)
        sys.exit(getattr(error, 'exit_code', 1))
