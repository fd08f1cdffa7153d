"""Where in a clip, and when, a model sees what it names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from ..data.sampling import view_indices
from ..data.transforms import read_crops
from ..data.video.in_memory import source_name
from ..data.video.open import open_video
from ..errors import BvtamError
from ..files import atomic_file
from ..optional import library
from .predict import Classifier, Score
from .render import short

_STEPS = 8  # of the integral
_MOST_FRAMES = 8  # in a picture
_WEAK = 0.2  # of the largest strength in the clip: too little for an outline
_STRONG = 0.5  # of the largest strength in the frame: what the outline surrounds


class Evidence(TypedDict):
    """Maps of the likeliest class, beside the T frames that the model saw."""

    video: str
    model: str
    frames: list[int]  # indices
    times: list[float]  # seconds
    top: list[Score]
    pictures: Tensor  # uint8 (T, C, S, S)
    maps: Tensor  # float32 (T', h, w): logits of the likeliest class less their mean over classes
    motion: Tensor  # float32 (T, S, S): the part of each pixel's change over time in that lead


def evidence(model: nn.Module, video: Any, topk: int = 5, *, time_limit: float = 60.0) -> Evidence:
    """Where and when a model sees the likeliest class, at the places of its features and in pixels.

    `maps` are class activation maps over time and place (Zhou et al., CVPR 2016). The classifier is
    linear and follows an average over steps and places, so what a class leads the mean of all
    classes by is the mean of its map: nothing is approximated. What a place knows of its
    surroundings and of other frames is in its features, so a map says where the model looks it up,
    not which pixels caused it.

    `motion` does say that: integrated gradients (Sundararajan et al., ICML 2017) from the mean of the
    frames, in which nothing moves, to the clip. Their sum is, nearly, the lead of the class less the
    lead that it has where nothing moves; a pixel that never changes has none of it.

    Args:
        model: a video model of the zoo; it is left as it came.
        video: anything that `open_video` takes; of its clips the first one counts, cropped at the centre.
        topk, time_limit: as of `predict`.

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
        'motion': classifier.run(views, _integrated_gradients).cpu(),
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


def _integrated_gradients(model: nn.Module, x: Tensor) -> Tensor:
    """(T, S, S) of one clip, summed over channels."""
    best, still = model(x)[0].argmax(), x.mean(2, keepdim=True).expand_as(x)
    total = torch.zeros_like(x, dtype=torch.float32)
    for step in range(_STEPS):
        between = still.lerp(x, (step + 0.5) / _STEPS).requires_grad_()
        with torch.enable_grad():
            logits = model(between)[0].float()
            (gradient,) = torch.autograd.grad(logits[best] - logits.mean(), between)
        total += gradient / _STEPS
    return (total * (x - still)).sum(1)[0]


def save_evidence(result: Evidence, path: str | os.PathLike[str]) -> None:
    """A PNG of what `evidence` found: the motion that speaks for the class, over grey frames; the
    class activation maps, averaged over places, over time; the scores.

    Raises:
        BvtamError: another suffix, no matplotlib, or a file that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != '.png':
        raise BvtamError(f'{path}: the name of a picture of the evidence must end in .png')
    figure = library('matplotlib.figure', 'plot', 'a picture').Figure(
        (12, 7.2), layout='constrained'
    )
    best = result['top'][0]
    figure.suptitle(
        f'{short(best["label"])}: {best["score"]:.0%}',
        parse_math=False,
        fontsize=20,
        fontweight='bold',
    )
    above, below = figure.subfigures(2, 1, height_ratios=(2.1, 1))
    _draw_frames(above, result)
    time, scores = below.subplots(1, 2, width_ratios=(1.6, 1))
    _draw_time(time, result)
    _draw_scores(scores, result['top'])
    with atomic_file(path) as new:
        figure.savefig(new, format='png', dpi=100)


def _draw_frames(figure: Any, result: Evidence) -> None:
    """The whole clip in one large frame, and some of its steps beside it."""
    steps = len(result['maps'])
    strength = _strength(result)
    gray = F.rgb_to_grayscale(result['pictures'])[:: len(result['pictures']) // steps, 0]
    shown = torch.linspace(0, steps - 1, min(steps, _MOST_FRAMES)).round().long().tolist()
    columns = -(-len(shown) // 2)
    grid = figure.subplot_mosaic(
        [['all', *range(columns)], ['all', *range(columns, 2 * columns)]],
        width_ratios=[2, *[1] * columns],
    )
    _overlay(grid['all'], gray.float().mean(0), strength.amax(0))
    grid['all'].set_title(f'all, {result["times"][0]:.1f} to {result["times"][-1]:.1f} s')
    for place in range(2 * columns):
        grid[place].set_axis_off()
    for place, step in enumerate(shown):
        image = _overlay(grid[place], gray[step], strength[step])
        seconds = result['times'][step * len(result['pictures']) // steps]
        grid[place].set_title(f'{seconds:.1f} s')
    bar = figure.colorbar(image, ax=list(grid.values()), shrink=0.8, pad=0.01, ticks=[0, 1])
    bar.set_ticklabels(['none', 'most'])
    bar.set_label('motion that speaks for it')


def _strength(result: Evidence) -> Tensor:
    """(T', S, S) on [0, 1]: the evidence of each place for the class, without single pixels."""
    motion = result['motion'].clamp(min=0).unflatten(0, (len(result['maps']), -1)).mean(1)
    width = max(1, motion.shape[-1] // 16)
    smooth = F.gaussian_blur(motion, [6 * width + 1] * 2, [width] * 2)
    return smooth / smooth.max().clamp(min=torch.finfo(torch.float32).tiny)


def _overlay(axes: Any, gray: Tensor, strength: Tensor) -> Any:
    """Draws a strength on [0, 1] over a grey frame; its strongest part has an outline."""
    opacity = ((strength - _WEAK / 2) / (1 - _WEAK / 2)).clamp(min=0).sqrt()
    strength, opacity = strength.numpy(), opacity.numpy()
    axes.set_axis_off()
    axes.imshow(gray.numpy(), cmap='gray', vmin=0, vmax=255, interpolation='bicubic')
    image = axes.imshow(
        strength, cmap='plasma', vmin=0, vmax=1, alpha=0.8 * opacity, interpolation='bilinear'
    )
    if strength.max() > _WEAK:
        axes.contour(strength, [_STRONG * strength.max()], colors='white', linewidths=1.5)
    return image


def _draw_time(axes: Any, result: Evidence) -> None:
    each = len(result['pictures']) // len(result['maps'])
    moments, values = result['times'][::each], result['maps'].mean((1, 2)).tolist()
    axes.fill_between(moments, values, alpha=0.3, color='C0')
    axes.plot(moments, values, 'o-', color='C0')
    axes.axhline(0, color='grey', linewidth=0.8)
    axes.set(xlabel='time (s)', ylabel='evidence (logits)')
    axes.set_title(f'evidence for {short(result["top"][0]["label"])} over time', parse_math=False)


def _draw_scores(axes: Any, top: list[Score]) -> None:
    bars = axes.barh(range(len(top)), [entry['score'] for entry in top], color='C0')
    axes.bar_label(bars, [f'{entry["score"]:.0%}' for entry in top], padding=3)
    axes.set_yticks(range(len(top)), [short(entry['label']) for entry in top], parse_math=False)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.15), xticks=(0, 0.5, 1), title='scores')
