"""This process among those of a launch."""

from __future__ import annotations

import os

import torch.distributed as dist

from ..errors import BvtamError


def rank_and_world_size(launched: bool = False) -> tuple[int, int]:
    """The rank of this process and the world size: those of `torch.distributed`, or (0, 1).

    Args:
        launched: where no process group is there, take RANK and WORLD_SIZE, which torchrun and
            `accelerate launch` set. Without a group, processes cannot add up what they found.

    Raises:
        BvtamError: RANK and WORLD_SIZE do not fit together.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    world_size = os.environ.get('WORLD_SIZE') or '1'
    if not launched or world_size == '1':
        return 0, 1
    rank = os.environ.get('RANK') or '0'
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise BvtamError(f'RANK={rank} and WORLD_SIZE={world_size} in the environment do not fit')
    return int(rank), int(world_size)
