"""Where in a clip, and when, a model sees what it names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.sampling import view_indices
from ..data.transforms import read_crops
from ..data.video.in_memory import source_name
from ..data.video.open import open_video
from ..errors import BvtamError
from ..files import atomic_file
from ..optional import library
from .predict import Classifier, Score

_MOST_PICTURES = 8


class Evidence(TypedDict):
    """Maps of the likeliest class, beside the T frames that the model saw."""

    video: str
    model: str
    frames: list[int]  # indices
    times: list[float]  # seconds
    top: list[Score]
    pictures: Tensor  # uint8 (T, C, S, S)
    maps: Tensor  # float32 (T', h, w): logits of the likeliest class less their mean over classes


def evidence(model: nn.Module, video: Any, topk: int = 5, *, time_limit: float = 60.0) -> Evidence:
    """Class activation maps of the likeliest class, over time and place (Zhou et al., CVPR 2016).

    The classifier is linear and follows an average over steps and places, so what a class leads
    the mean of all classes by is the mean of its map: nothing is approximated. What a place knows
    of its surroundings and of other frames is in its features, so a map says where the model
    looks it up, not which pixels caused it.

    Args:
        model: a video model of the zoo; it is left as it came.
        video: anything that `open_video` takes; of its clips the first one counts, cropped at the centre.
        topk: classes to name.
        time_limit: seconds without progress after which the video is given up.

    Returns:
        `{'video', 'model', 'frames', 'times', 'top', 'pictures', 'maps'}`; see `Evidence`.

    Raises:
        BvtamError: as from `predict`; a model whose features are not averaged.
        FileNotFoundError: there is no such video.
    """
    classifier = Classifier(model, topk, num_clips=1, num_crops=1)
    clip = classifier.clip
    reader = open_video(video, time_limit)
    (indices,) = view_indices(clip, reader.num_frames)
    (views,) = read_crops(reader, [indices], clip)
    logits, maps = classifier.run(views, _activation_maps)
    if maps is None:
        raise BvtamError(f'{classifier.name} does not average its features: it has no such maps')
    return {
        'video': source_name(video),
        'model': classifier.name,
        'frames': indices,
        'times': reader.times[indices].tolist(),
        'top': classifier.top(classifier.finite(logits).softmax(0).cpu()),
        'pictures': views[0].transpose(0, 1),
        'maps': maps.cpu(),
    }


def _activation_maps(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The logits (K,) of one clip, and the maps (T', h, w) of the likeliest class, if they add up."""
    features, head = model.forward_features(x), model.get_classifier()
    logits = model.forward_head(features)[0].float()
    weight, bias = head.weight.float(), head.bias.float()
    if features.shape[1] != weight.shape[1]:
        return logits, None
    best = int(logits.argmax())
    maps = torch.einsum('cthw,c->thw', features[0].float(), weight[best] - weight.mean(0))
    maps += bias[best] - bias.mean()
    lead = logits[best] - logits.mean()
    adds_up = torch.isclose(maps.mean(), lead, rtol=1e-2, atol=1e-2 * logits.abs().max())
    return logits, maps if adds_up else None


def save_evidence(result: Evidence, path: str | os.PathLike[str]) -> None:
    """A PNG of what `evidence` found: frames with the map over them, evidence over time, scores.

    Raises:
        BvtamError: another suffix, no matplotlib, or a file that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != '.png':
        raise BvtamError(f'{path}: the name of a picture of the evidence must end in .png')
    figures = library('matplotlib.figure', 'plot', 'a picture')
    pictures, maps, top = result['pictures'], result['maps'], result['top']
    steps = len(maps)
    each = len(pictures) // steps  # frames of a step: the two of a pair, or one
    shown = torch.linspace(0, steps - 1, min(steps, _MOST_PICTURES)).round().long().tolist()
    largest = maps.abs().max().item() or 1.0
    size = pictures.shape[-1]
    overlays = F.interpolate(maps[:, None], (size, size), mode='bilinear')[:, 0]

    figure = figures.Figure(figsize=(11, 4.6), layout='constrained')
    strip, below = figure.subfigures(2, 1, height_ratios=(1, 1.5))
    for axes, step in zip(strip.subplots(1, len(shown)), shown, strict=True):
        axes.imshow(pictures[step * each].permute(1, 2, 0).numpy(), cmap='gray', vmin=0, vmax=255)
        heat = overlays[step].clamp(0, largest)
        axes.imshow(heat.numpy(), cmap='inferno', alpha=0.75 * (heat / largest).numpy(), vmin=0, vmax=largest)  # fmt: skip
        axes.set_axis_off()
        axes.set_title(f'{result["times"][step * each]:.1f} s', fontsize='small')
    time, scores = below.subplots(1, 2, width_ratios=(1.2, 1))
    moments = [result['times'][step * each] for step in range(steps)]
    time.plot(moments, maps.mean((1, 2)).numpy(), 'o-', color='C3')
    time.axhline(0, color='grey', linewidth=0.8)
    time.set(xlabel='time (s)', ylabel='evidence (logits)')
    time.set_title(f'for {top[0]["label"]}', fontsize='medium', parse_math=False)
    names = [entry['label'] for entry in top][::-1]
    scores.barh(range(len(top)), [entry['score'] for entry in top][::-1], color='C0')
    scores.set_yticks(range(len(top)), names, parse_math=False)
    scores.set(xlabel='score', xlim=(0, 1))
    with atomic_file(path) as new:
        figure.savefig(new, format='png', dpi=110)
