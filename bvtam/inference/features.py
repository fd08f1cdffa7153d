"""A video model as a function from clips to embeddings."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BvtamError, nearest
from .runner import Runner


class Embedder(Runner):
    """Embeddings of clips, at a stage of a video model, on its device.

    Args:
        stage: 'pooled' for what the classifier takes; else the name or the number of a stage in
            `model.feature_info`, averaged over height and width.
        by_step: one embedding for each step in time at that stage, not one for the clip.

    Attributes:
        stage: 'pooled' or the whole name of the stage.
        rows, width: embeddings R of a clip, and numbers D of each.

    Raises:
        BvtamError: an image model, one without a head or a pooling, an unknown stage.
    """

    def __init__(
        self, model: nn.Module, stage: str | int = 'pooled', by_step: bool = False
    ) -> None:
        super().__init__(model, 'extract')
        if not hasattr(model, 'forward_head'):
            raise BvtamError(
                f'{self.name} has no head; extract needs a model without features_only'
            )
        self.by_step = by_step
        self.index, self.stage = self._find(str(stage))
        clip, side = self.clip, self.clip.crop_size
        blank = torch.zeros(1, len(clip.mean), clip.num_frames, side, side, dtype=torch.uint8)
        _, self.rows, self.width = self([blank]).shape

    def _find(self, stage: str) -> tuple[int | None, str]:
        if stage == 'pooled':
            return None, stage
        names = [info['module'] for info in self.model.feature_info]
        short = [name.removeprefix('backbone.') for name in names]
        for known in (names, short, [str(i) for i in range(len(names))]):
            if stage in known:
                return known.index(stage), names[known.index(stage)]
        raise BvtamError(
            f'{self.name} has no stage {stage!r}{nearest(stage, short)}; '
            f'give pooled, {", ".join(short)} or a number from 0 to {len(names) - 1}'
        )

    def identity(self) -> dict[str, Any]:
        """All of the model that decides its embeddings; the weights as SHA-256 of names and values."""
        weights = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            weights.update(f'{name} {tensor.dtype} {tuple(tensor.shape)};'.encode())
            weights.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        return {
            'model': self.name,
            'model_options': getattr(self.model, 'model_options', {}),
            'weights_sha256': weights.hexdigest(),
            'precision': str(self.dtype).removeprefix('torch.'),
            'stage': self.stage,
            'clip': self.clip.to_dict(),
        }

    def __call__(self, clips: list[Tensor]) -> Tensor:
        """n clips, uint8 (crops, C, T, S, S) each -> float32 (n, R, D) on the CPU, crops averaged."""
        pixels = torch.stack(clips)
        embedded = self.run(pixels.flatten(0, 1), self._embed).float()
        return embedded.unflatten(0, pixels.shape[:2]).mean(1).cpu()

    def _embed(self, model: nn.Module, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, R, D)."""
        if self.index is not None:
            (maps,) = model.forward_intermediates(
                x, indices=[self.index], stop_early=True, intermediates_only=True
            )
            steps = maps.mean((3, 4)).transpose(1, 2)
            return steps if self.by_step else steps.mean(1, keepdim=True)
        maps, steps = model.forward_features(x), 1
        if self.by_step:  # the head averages over time, so each step goes there as a clip
            steps = maps.shape[2]
            maps = maps.transpose(1, 2).flatten(0, 1).unsqueeze(2)
        pooled = model.forward_head(maps, pre_logits=True)
        if pooled.ndim != 2:
            raise BvtamError(f"{self.name} does not pool (global_pool=''); name a stage")
        return pooled.unflatten(0, (-1, steps))

    def places(self, num_frames: int) -> Tensor:
        """(R, F): which of the T frames of a clip stand for each of its rows, F = T/R rounded up."""
        count = -(-num_frames // self.rows)
        first = torch.arange(self.rows) * num_frames // self.rows
        return first[:, None] + torch.arange(count)
