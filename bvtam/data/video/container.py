"""Opening video files and streams with FFmpeg: what it may open, and its errors in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import av
from av.stream import Disposition

from ..failures import machine_error
from .joins import Damage
from .memory import MAX_PIXELS
from .pipes import Pipe
from .pyav import open_container
from .reader import VideoError

Opened = tuple[av.container.InputContainer, av.VideoStream]

# Formats that name other files or addresses to be opened.
_LISTS = {'concat', 'dash', 'hls', 'image2', 'imf', 'rtp', 'rtsp', 'sap', 'sdp', 'vapoursynth'}
_LISTS |= {'lavfi', 'webm_dash_manifest'}
_LISTS |= {'tty'}  # which draws the letters of a text
_STREAMS = {'dash', 'hls', 'rtp', 'rtsp', 'webm_dash_manifest'}  # lists, but of addresses alone


@contextmanager
def open_stream(
    place: str | Pipe,
    name: str,
    time_limit: float,
    protocols: str = '',
    *,
    remote: bool = False,
    format: str | None = None,
) -> Iterator[Opened]:
    """The container at `place`, and the video stream in it that players show.

    Args:
        place: an address as FFmpeg takes it, or a pipe.
        protocols: that FFmpeg may use, itself and for what a file names; '' for no limit.
        remote: whether lists of addresses (HLS, DASH) may be opened.
        format: FFmpeg's name of it; None where the content tells.

    Raises:
        VideoError: it cannot be opened or has no video; FFmpeg fails or finds damage in the block.
        MachineError: memory or descriptors run out.
    """

    def fail(error: Exception) -> VideoError:
        """`error`, which came later than opening, as a `VideoError`."""
        if isinstance(error, av.error.ExitError):
            return VideoError(
                f'{name} gave nothing for {time_limit:g} s; try again, or raise time_limit'
            )
        _check_machine(error, name)
        return damaged(name, getattr(error, 'strerror', None) or error)

    options = {'max_pixels': str(MAX_PIXELS)}  # for the first look; and below for decoding
    if protocols:
        options |= {'protocol_whitelist': protocols, 'format_whitelist': _allowed_formats(remote)}
    try:
        container = open_container(place, format=format, options=options, timeout=time_limit)
    except av.error.ExitError as error:
        raise fail(error) from None
    except av.FFmpegError as error:
        _check_machine(error, name)
        reason = error.strerror
        if isinstance(error, av.ArgumentError):
            reason = 'it may be a list of other files'
            if remote:
                reason = 'it leads to what may not be opened, or is a list of it'
        raise VideoError(
            f'{name} cannot be opened as a video ({reason}); '
            'is it complete, and of a format that FFmpeg reads?'
        ) from error
    with container:
        # A cover picture in a music file is a video stream to FFmpeg.
        streams = [
            stream
            for stream in container.streams.video
            if not stream.disposition & Disposition.attached_pic and stream.codec_context
        ]
        if not streams:
            raise VideoError(f'{name} has no video stream; give a file with pictures')
        stream = _to_show(streams)
        decoder = stream.codec_context
        decoder.options |= {'max_pixels': str(MAX_PIXELS)}
        if decoder.name == 'mjpeg':  # or it shows old memory where a broken picture ends
            decoder.options |= {'err_detect': 'explode'}
        try:
            yield container, stream
        except (Damage, av.FFmpegError) as error:
            raise fail(error) from error


def damaged(name: str, reason: object) -> VideoError:
    return VideoError(f'{name} is damaged: {reason}; fetch or encode the video again')


def _check_machine(error: Exception, name: str) -> None:
    if lack := machine_error(error, name):
        raise lack from error


def _to_show(streams: list[av.VideoStream]) -> av.VideoStream:
    """The one that ffmpeg takes: the largest of those marked as default, or of all.

    One that moves goes before a still picture; one of which the file holds nothing has no size.
    """
    default = [s for s in streams if s.disposition & Disposition.default] or streams
    moving = [s for s in default if s.frames != 1] or default
    return max(moving, key=lambda s: s.codec_context.width * s.codec_context.height)


@cache
def _allowed_formats(remote: bool = False) -> str:
    return ','.join(sorted(av.formats_available - _LISTS | (_STREAMS if remote else set())))
