"""Right and wrong answers, counted."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import BvtamError
from ..inference.ranks import rank_and_world_size

MOST_CLASSES = 25_000  # of which every pair is counted


class Counts:
    """Right and wrong answers so far, as integers, so that no order or split of the videos changes them.

    Of equal scores the one with the lowest index ranks first, as in `predict`.

    Attributes:
        matrix: int64 (K, K), videos by their class (row) and by the class of the highest score.
        top5: int64 (), videos whose class is among the 5 highest scores, or all K if there are fewer.
        loss: float64 (), sum of the losses.

    Raises:
        BvtamError: more than `MOST_CLASSES` classes.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes > MOST_CLASSES:
            raise BvtamError(
                f'{num_classes:,} classes are more than the {MOST_CLASSES:,} whose confusions are counted'
            )
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.top5 = torch.zeros((), dtype=torch.int64)
        self.loss = torch.zeros((), dtype=torch.float64)

    def update(self, scores: Tensor, labels: Tensor, losses: Tensor | None = None) -> None:
        """Counts B more videos, or images.

        Args:
            scores: (B, K) probabilities, on any device.
            labels: int64 (B,).
            losses: (B,); None for the cross-entropy of the scores.

        Raises:
            BvtamError: other shapes, a label outside 0 to K - 1, or scores that are not finite.
        """
        scores, labels = scores.detach().float().cpu(), labels.cpu()
        num_classes = len(self.matrix)
        if scores.ndim != 2 or scores.shape[1] != num_classes or labels.shape != scores.shape[:1]:
            raise BvtamError(
                f'scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must be '
                f'(B, {num_classes}) and (B,)'
            )
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            raise BvtamError(f'label {wrong[0]} is outside the {num_classes} classes')
        if not scores.isfinite().all():
            raise BvtamError('a score is not finite')
        if losses is None:
            losses = -scores.gather(1, labels[:, None]).log()
        order = scores.argsort(dim=1, descending=True, stable=True)
        self.matrix.index_put_((labels, order[:, 0]), torch.ones_like(labels), accumulate=True)
        self.top5 += (order[:, :5] == labels[:, None]).sum()
        self.loss += losses.detach().cpu().double().sum()

    def reduce(self) -> Counts:
        """The counts of all processes of `torch.distributed` together; each of them must call this."""
        total = copy.deepcopy(self)
        if rank_and_world_size()[1] > 1:
            device = 'cuda' if dist.get_backend().startswith('nccl') else 'cpu'
            for tensor in vars(total).values():
                summed = tensor.to(device)
                dist.all_reduce(summed)
                tensor.copy_(summed)
        return total

    def result(self) -> dict[str, Any]:
        """`{num_videos, loss, top1, top5, mean_class_accuracy}`: the mean loss, and percentages.

        The last is the mean of the accuracies of all classes that have a video.

        Raises:
            BvtamError: nothing was counted.
        """
        videos, correct = self.matrix.sum(1), self.matrix.diagonal()
        count, seen = int(videos.sum()), videos > 0
        if not count:
            raise BvtamError('no video could be evaluated')
        return {
            'num_videos': count,
            'loss': self.loss.item() / count,
            'top1': 100 * int(correct.sum()) / count,
            'top5': 100 * int(self.top5) / count,
            'mean_class_accuracy': 100 * (correct[seen].double() / videos[seen]).mean().item(),
        }
