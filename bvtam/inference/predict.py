"""What a net sees in a video."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..clip import ClipConfig
from ..data.sampling import clip_indices
from ..data.transforms import to_clip
from ..data.video import VideoFile
from ..errors import BvtamError


def predict(model: nn.Module, video: str | os.PathLike[str], topk: int = 5) -> dict[str, Any]:
    """The `topk` likeliest classes of one video, over the clips and crops of `model.clip_config`.

    Each view is normalised and classified by itself, on the model's device and in its precision;
    the softmax probabilities are averaged over the views. The model is left as it came.

    Args:
        model: a video net of the zoo, with `clip_config`, `num_classes` and, where known,
            `label_names`.
        video: path of a video file.
        topk: classes to return; all of them where the model has fewer.

    Returns:
        `{'video': path, 'model': name, 'frames': indices of all clips, one after another,
        'top': [{'label', 'index', 'score'}, ...]}`, the likeliest class first, with its index in
        place of a label where the model has none. Scores are probabilities.

    Raises:
        BvtamError: an image net, a net without classes, labels of another number than classes,
            `topk` below 1, a video that cannot be decoded, or scores that are not finite.
        FileNotFoundError: there is no such video.
    """
    name = _name(model)
    clip, labels = _check(model, name, topk)
    source = VideoFile(video)
    clips = clip_indices(
        source.num_frames, clip.num_frames, clip.num_clips, clip.sampling, clip.frame_stride
    )
    frames = [index for indices in clips for index in indices]
    # One pass over the file for all clips, but one clip at a time through the net, to save memory.
    pictures = source.read(frames).split(clip.num_frames)
    scores = _mean_probabilities(model, (to_clip(p, clip) for p in pictures), name)
    best = scores.argsort(descending=True, stable=True)[:topk].tolist()
    return {
        'video': os.fspath(video),
        'model': name,
        'frames': frames,
        'top': [
            {'label': labels[i] if labels else str(i), 'index': i, 'score': scores[i].item()}
            for i in best
        ],
    }


def _name(model: nn.Module) -> str:
    config = getattr(model, 'pretrained_cfg', None) or {}
    name = getattr(model, 'model_name', None) or config.get('architecture')
    return name or type(model).__name__


def _check(model: nn.Module, name: str, topk: int) -> tuple[ClipConfig, list[str] | None]:
    clip = getattr(model, 'clip_config', None)
    if clip is None or getattr(model, 'input_kind', 'clip') == 'image':
        raise BvtamError(f'{name} takes single images; predict needs a video net')
    if not model.num_classes:
        raise BvtamError(f'{name} has no classifier (num_classes=0); predict needs one')
    if topk < 1:
        raise BvtamError(f'topk must be at least 1, not {topk}')
    labels = getattr(model, 'label_names', None)
    if labels is not None and len(labels) != model.num_classes:
        raise BvtamError(
            f'{name} has {model.num_classes} classes but {len(labels)} label names; '
            'give one for each class, or none'
        )
    return clip, labels


def _mean_probabilities(model: nn.Module, clips: Iterable[Tensor], name: str) -> Tensor:
    """float32 (num_classes,) on the CPU, over all views of all clips (crops, C, T, H, W)."""
    weight = next(model.parameters(), torch.empty(0))
    # Each module has its own flag: a finetuned net may keep its batch norms in eval mode.
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            logits = torch.cat([model(x.to(weight.device, weight.dtype)) for x in clips]).float()
    finally:
        for module, flag in training.items():
            module.training = flag
    if not logits.isfinite().all():
        raise BvtamError(f'{name} gave scores that are not finite; its weights may be damaged')
    return logits.softmax(dim=1).mean(dim=0).cpu()
