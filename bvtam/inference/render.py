"""Results drawn: scores over time as a picture, and the video with its labels on it."""

from __future__ import annotations

import math
import os
import warnings
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..data.prepare.encode import Encoding
from ..data.video.colors import UNTAGGED
from ..data.video.open import open_video
from ..data.video.reader import Reader
from ..data.video.times import frames_at
from ..data.video.write import write_video
from ..errors import BvtamError, one_line
from ..files import atomic_file
from ..optional import library

SUFFIXES = ('.mp4', '.gif')
_MAX_LINES = 8  # labels in the timeline; as many colours can be told apart
_LONGEST = 40  # characters of a label; so many are as wide as a frame
_GIF_FPS, _GIF_WIDTH = 10, 320
_BACK, _BAR, _TEXT = (0, 0, 0, 150), (31, 119, 180, 230), (255, 255, 255, 255)


def save_timeline(result: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """A PNG of the scores of a video's windows over time, and a band of the likeliest label.

    There is a line for each of the labels that win most windows, up to 8; it has gaps where a label
    is not among the `topk` of a window. Letters that matplotlib's font lacks become boxes.

    Args:
        result: of `windows`.
        path: of the PNG file, written atomically.

    Raises:
        BvtamError: a result of another kind, another suffix, no matplotlib, or a file that cannot
            be written.
    """
    path = Path(path)
    if path.suffix.lower() != '.png':
        raise BvtamError(f'{path}: the name of a timeline must end in .png')
    figures = library('matplotlib.figure', 'plot', 'a timeline')
    patches = library('matplotlib.patches', 'plot', 'a timeline')
    if not result.get('windows'):
        raise BvtamError('a timeline needs the windows of a video (every)')
    found = result['windows']
    middles = [(w['start'] + w['end']) / 2 for w in found]
    winners = [w['top'][0]['index'] for w in found]
    wins = Counter(winners)
    scores, names = defaultdict(dict), {}
    for i, window in enumerate(found):
        for row in window['top']:
            scores[row['index']][i] = row['score']
            names[row['index']] = row['label']
    ranked = sorted(scores, key=lambda k: (-wins[k], -sum(scores[k].values()), k))
    colors = {index: f'C{i}' for i, index in enumerate(ranked[:_MAX_LINES])}

    figure = figures.Figure(figsize=(11, 4.5), layout='constrained')
    lines, band = figure.subplots(2, sharex=True, height_ratios=(8, 1))
    for index, color in colors.items():
        values = [scores[index].get(i, float('nan')) for i in range(len(found))]
        lines.plot(middles, values, 'o-', color=color, markersize=3, linewidth=1.2)
    lines.set(ylabel='score', ylim=(-0.02, 1.02))
    lines.grid(alpha=0.3)
    edges = [*_changes(found), found[-1]['end']]
    band.broken_barh(
        [(a, b - a) for a, b in pairwise(edges)],
        (0, 1),
        color=[colors.get(index, 'lightgrey') for index in winners],
        linewidth=0,
    )
    band.set(xlabel='time (s)', yticks=[], ylim=(0, 1), xlim=(0, edges[-1]))
    band.set_ylabel('likeliest', rotation=0, ha='right', va='center')
    shown = [(color, short(names[index])) for index, color in colors.items()]
    if not colors.keys() >= wins.keys():
        shown.append(('lightgrey', 'others'))
    legend = figure.legend(
        [patches.Patch(color=color) for color, _ in shown],
        [' '] * len(shown),  # a label that begins with _ would be left out
        loc='outside right upper',
        fontsize='small',
    )
    for text, (_, label) in zip(legend.get_texts(), shown, strict=True):
        text.set(text=label, parse_math=False)  # a dollar sign is one
    figure.suptitle(
        f'{short(os.path.basename(result["video"]))}, {result["model"]}', parse_math=False
    )
    with atomic_file(path) as new, warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph')  # one for each letter
        figure.savefig(new, format='png', dpi=120)


def save_annotated(
    result: dict[str, Any],
    video: Any,
    path: str | os.PathLike[str],
    topk: int = 3,
    *,
    time_limit: float = 60.0,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """A copy of a video with the likeliest labels drawn on each frame, each with a bar of its score.

    An MP4 file has all the frames at their times, without sound. A GIF has at most 10 frames a
    second and is at most 320 pixels wide. Frames are read and written some at a time. Letters that
    Pillow's own font lacks become boxes.

    Args:
        result: of `predict`, drawn on all frames, or of `windows`, of which each frame has the one
            that it is in; of several, that whose middle is nearest.
        video: the same video, anything that `open_video` takes.
        path: of the file, .mp4 or .gif, written atomically.
        topk: labels to draw; fewer if they would cover more than half of the frame.
        time_limit: seconds without progress after which the video is given up.
        progress: called with the numbers of frames written and of all.

    Raises:
        BvtamError: another suffix, `topk` below 1, the video itself as `path`, a video that cannot
            be read, or a file that cannot be written.
        FileNotFoundError: there is no such video.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise BvtamError(f'{path}: the name of an annotated video must end in .mp4 or .gif')
    if topk < 1:
        raise BvtamError(f'topk must be at least 1, not {topk}')
    reader = open_video(video, time_limit)
    if path.exists() and os.path.exists(reader.name) and os.path.samefile(reader.name, path):
        raise BvtamError(f'{path} is the video itself; give the annotated one another name')
    found = result.get('windows') or [{'start': 0.0, 'end': reader.duration, 'top': result['top']}]
    changes, times = _changes(found), reader.times.tolist()

    @lru_cache(maxsize=1)
    def panel(number: int, width: int, height: int) -> Image.Image:
        return _panel(found[number]['top'][:topk], width, height)

    gif = path.suffix.lower() == '.gif'
    indices, ticks = _gif_frames(reader) if gif else (list(range(reader.num_frames)), [])
    tags = UNTAGGED if gif else reader.tags
    tell = progress or (lambda done, total: None)

    def images() -> Iterator[Image.Image]:
        for i, picture in enumerate(reader.read_in_turn(indices)):
            image = F.to_pil_image(_narrow(picture) if gif else _even(picture))
            number = bisect_right(changes, times[indices[i]] + 1e-6) - 1
            drawn = panel(number, *image.size)
            image.paste(drawn, mask=drawn)
            yield image
            tell(i + 1, len(indices))

    tell(0, len(indices))
    with atomic_file(path) as new:
        if gif:
            _write_gif(new, images(), ticks)
        else:
            pictures = map(F.pil_to_tensor, images())
            coding, aspect = Encoding(gop=50, quality=20).coding, reader.pixel_aspect
            write_video(new, pictures, reader.times, reader.duration, coding, aspect, tags)


def _changes(found: list[dict[str, Any]]) -> list[float]:
    """Seconds from which on each window is the one to show: where its middle becomes the nearest."""
    changes = [0.0]
    for a, b in pairwise(found):
        halfway = (a['start'] + a['end'] + b['start'] + b['end']) / 4
        changes.append(min(max(halfway, b['start']), a['end']))
    return changes


def short(text: object) -> str:
    """A label for a picture: one line of at most 40 characters."""
    text = one_line(text)
    return text if len(text) <= _LONGEST else f'{text[: _LONGEST - 1]}…'


def _panel(top: list[dict[str, Any]], width: int, height: int) -> Image.Image:
    """A transparent picture, as wide as the frame, with a row for each label, for its top."""
    size = max(8, min(width // 24, height // 16))
    font = ImageFont.load_default(size)
    row = size * 3 // 2
    top = top[: max(1, height // 2 // row)]
    image = Image.new('RGBA', (width, row * len(top)))
    canvas = ImageDraw.Draw(image)
    for i, entry in enumerate(top):
        y = i * row
        canvas.rectangle((0, y, width, y + row - 1), fill=_BACK)
        filled = round(width * entry['score'])
        if filled:
            canvas.rectangle((0, y, filled - 1, y + row - 1), fill=_BAR)
        text = f'{100 * entry["score"]:.0f}%  {short(entry["label"])}'
        canvas.text((size // 2, y + row / 2), text, font=font, fill=_TEXT, anchor='lm')
    return image


def _even(picture_CHW: Tensor) -> Tensor:
    """With its last row and column twice where their number is odd: yuv420p has even sides."""
    height, width = picture_CHW.shape[1:]
    return F.pad(picture_CHW, [0, 0, width % 2, height % 2], padding_mode='edge')


def _narrow(picture_CHW: Tensor) -> Tensor:
    height, width = picture_CHW.shape[1:]
    if width <= _GIF_WIDTH:
        return picture_CHW
    return F.resize(picture_CHW, [max(1, height * _GIF_WIDTH // width), _GIF_WIDTH], antialias=True)


def _gif_frames(reader: Reader) -> tuple[list[int], list[int]]:
    """Frames on screen at 0, 0.1, 0.2, ... seconds, each once; and the hundredths of a second at
    which they appear and the last one ends."""
    step = 100 // _GIF_FPS
    moments = torch.arange(math.ceil(reader.duration * _GIF_FPS - 1e-5)).double() / _GIF_FPS
    shown = frames_at(reader.times, moments)
    indices, counts = shown.unique_consecutive(return_counts=True)
    starts = [0, *(counts.cumsum(0) * step).tolist()[:-1]]
    return indices.tolist(), [*starts, max(starts[-1] + 2, round(100 * reader.duration))]


def _write_gif(path: Path, images: Iterable[Image.Image], ticks: list[int]) -> None:
    """A GIF that repeats for ever; every frame has 256 colours of its own."""
    with av.open(str(path), 'w', format='gif') as container:
        stream = container.add_stream('gif', rate=_GIF_FPS)
        stream.pix_fmt = 'pal8'
        stream.time_base = stream.codec_context.time_base = Fraction(1, 100)

        lasting = {start: end - start for start, end in pairwise(ticks)}

        def mux(packets: list[av.Packet]) -> None:
            for packet in packets:
                packet.duration = lasting[packet.pts]
                container.mux(packet)

        for tick, image in zip(ticks[:-1], images, strict=True):
            if tick == 0:
                stream.width, stream.height = image.size
            reduced = image.quantize(256, Image.Quantize.FASTOCTREE)
            palette = np.zeros((256, 4), np.uint8)
            colors = np.array(reduced.getpalette('RGB'), np.uint8).reshape(-1, 3)
            palette[: len(colors), 1:], palette[:, 0] = colors, 255
            frame = av.VideoFrame.from_ndarray((np.array(reduced), palette), format='pal8')
            frame.pts, frame.time_base = tick, stream.time_base
            mux(stream.encode(frame))
        mux(stream.encode(None))
