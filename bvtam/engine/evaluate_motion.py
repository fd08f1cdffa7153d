"""Accuracy on procedural motion clips that no training run has seen, as a whole and family by family."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict

from torch import nn
from torch.utils.data import Dataset

from ..clip import ClipConfig
from ..data.datasets import VideoDataset
from ..data.motion.clips import FAMILIES, MotionClips
from ..data.motion.h264 import write_clip
from ..data.records import Record
from ..data.transforms import check_channels
from .eval_data import check_model
from .evaluate import evaluate
from .report import ClassAccuracy, Evaluation

# As users film: 4.8 seconds, so that a clip of 16 frames takes every third.
_FRAMES, _SIZE, _FPS, _CUT_UNIT = 48, (240, 320), 10.0, 12


class FamilyAccuracy(TypedDict):
    """Percentages of one family of classes; the bounds are those of `MotionClips.bound`."""

    top1: float | None
    num_videos: int
    frame_bound: float
    pair_bound: float


class MotionEvaluation(Evaluation):
    """`Evaluation`, and the accuracy of each family: 'direction', 'order' and 'stroke'."""

    families: dict[str, FamilyAccuracy]


def evaluate_motion(
    model: nn.Module,
    count: int = 2000,
    seed: int = 1,
    *,
    held_out: bool = False,
    videos: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    out: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> MotionEvaluation:
    """`evaluate` on fresh clips of the families that the model was trained on, equally many of each class.

    Args:
        model: of the zoo, trained on one of `FAMILIES`: its label names tell on which.
        count: clips.
        seed: of the scenes; they are of the split 'test', which shares none with training.
        held_out: clips of the motions and textures that are kept out of training.
        videos: render 320x240 at 10 frames a second, write H.264 files and read these, as any other
            video; otherwise clips come as tensors, of the model's own frames and size.
        batch_size, workers, out, progress: as in `evaluate`.

    Raises:
        BvtamError: as `evaluate` and `MotionClips`.
    """
    name, _ = check_model(model)
    clip = model.clip_config
    check_channels(name, clip, model)
    names = getattr(model, 'label_names', None)
    own = [f for f in FAMILIES if MotionClips(family=f, held_out=held_out).label_names == names]
    family = own[0] if own else 'all'
    common = {'family': family, 'seed': seed, 'split': 'test', 'held_out': held_out}
    with TemporaryDirectory() as scratch:
        if videos:
            clips = MotionClips(_FRAMES, _SIZE, **common, length=count, cut_unit=_CUT_UNIT)
            data = _Encoded(clips, replace(clip, num_clips=1, num_crops=1), Path(scratch))
        else:
            data = clips = MotionClips(clip.num_frames, clip.crop_size, **common, length=count)
        result = evaluate(
            model,
            data,
            batch_size=batch_size,
            workers=workers,
            on_error='raise',
            out=out,
            label_names=clips.label_names,
            progress=progress,
        )
    return result | {'families': families(result['per_class'], held_out)}


class _Encoded(Dataset):
    """Motion clips by way of a video file each, which is gone once it is read."""

    def __init__(self, clips: MotionClips, clip: ClipConfig, folder: Path) -> None:
        self.clips, self.clip, self.folder = clips, clip, folder

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.clips[index]
        path = write_clip(self.folder / f'{index}.mp4', sample['clip'], _FPS, gop=250)
        read = VideoDataset([Record(str(path), sample['label'])], self.clip)[0]
        path.unlink()
        return read | {'index': index, 'video': sample['video']}


def families(per_class: list[ClassAccuracy], held_out: bool = False) -> dict[str, FamilyAccuracy]:
    """Of the table per class: accuracy of each family, beside the bounds of its classes."""
    found = {}
    for family in ('direction', 'order', 'stroke'):
        clips = MotionClips(family=family, held_out=held_out)
        rows = [row for row in per_class if row['label'] in clips.label_names]
        count = sum(row['num_videos'] for row in rows)
        found[family] = {
            'top1': 100 * sum(row['correct'] for row in rows) / count if count else None,
            'num_videos': count,
            'frame_bound': 100 * clips.bound('frame'),
            'pair_bound': 100 * clips.bound('pair'),
        }
    return found
