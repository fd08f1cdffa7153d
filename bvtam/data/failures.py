"""One policy for videos that cannot be read: stop, skip or substitute; counted and listed."""

from __future__ import annotations

import csv
import logging
import os
from pathlib import Path

from ..errors import BvtamError, one_line

log = logging.getLogger('bvtam')

ON_ERROR = ('raise', 'skip', 'substitute')
VIDEO_ERRORS = (BvtamError, OSError)  # what reading one video may raise


def check_policy(on_error: str, choices: tuple[str, ...] = ON_ERROR) -> str:
    """`on_error`, if it is one of `choices`; else a `BvtamError`."""
    if on_error not in choices:
        raise BvtamError(f'on_error must be one of {", ".join(choices)}, not {on_error!r}')
    return on_error


class Failures:
    """Counts the videos of one run that failed, and lists each with its reason.

    Args:
        total: videos in the run.
        max_failed: share of them, on [0, 1], that may fail; one more stops the run.
        path: `errors.csv` to write, with columns video and reason; it appears with the first
            failure and is on disk after each, so that a killed run leaves its list behind.

    Raises:
        BvtamError: `max_failed` outside [0, 1], or a `path` that cannot be written.
    """

    def __init__(
        self, total: int, max_failed: float = 0.1, path: str | os.PathLike[str] | None = None
    ) -> None:
        if not 0 <= max_failed <= 1:
            raise BvtamError(f'max_failed must be a share from 0 to 1, not {max_failed}')
        self.total, self.max_failed = total, max_failed
        self.path = Path(path) if path is not None else None
        self.reasons: dict[str, str] = {}
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.unlink(missing_ok=True)  # of an earlier run
            except OSError as error:
                raise BvtamError(f'{self.path} cannot be written: {error.strerror}') from None

    def add(self, video: str, reason: object) -> None:
        """Records one failure; a video that failed before counts once.

        Raises:
            BvtamError: more than the stated share has failed.
        """
        if video in self.reasons:
            return
        reason = one_line(reason)
        self.reasons[video] = reason
        log.warning('%s failed: %s', one_line(video), reason)
        if self.path is not None:
            first = not self.path.exists()
            with self.path.open(
                'a', newline='', encoding='utf-8', errors='surrogateescape'
            ) as file:
                writer = csv.writer(file)
                if first:
                    writer.writerow(['video', 'reason'])
                writer.writerow([video, reason])
                file.flush()
                os.fsync(file.fileno())
        if len(self.reasons) > self.max_failed * self.total:
            where = f'; see {self.path}' if self.path is not None else ''
            raise BvtamError(
                f'{len(self.reasons)} of {self.total} videos failed, more than the allowed share '
                f'of {self.max_failed:g} (max_failed){where}; the last: {reason}'
            )

    def __len__(self) -> int:
        return len(self.reasons)

    def summary(self) -> str:
        """`''` where nothing failed, else one line for the end of a run."""
        if not self.reasons:
            return ''
        where = f', listed in {self.path}' if self.path is not None else ''
        return f'{len(self.reasons)} of {self.total} videos failed{where}'
