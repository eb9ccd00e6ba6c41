"""Dropout that an utterance's own seed decides."""

from __future__ import annotations

import torch
from torch import Tensor

from ..objective.seeded import random_bits


def seeded_dropout(x: Tensor, rate: float, seeds: Tensor, stream: int) -> Tensor:
    """`torch.nn.functional.dropout`, the same for an utterance in every batch and on every device.

    Parameters
    ----------
    x : (B, T, ...)
    rate : float
        Share of the numbers that are set to 0, from 0 to below 1, in steps of 2^-16.
    seeds : long, (B,)
    stream : int
        Which of the independent draws from a seed.

    Returns
    -------
    Tensor
        As `x`; what is left is divided by ``1 - rate``. What is dropped from a frame does not
        depend on how many frames follow.
    """
    if not rate:
        return x
    each = x[0, 0].numel() if x.numel() else 0
    bits = random_bits(seeds.to(x.device), stream, (x.shape[1], -(-each // 4)))
    draws = bits.view(torch.int16)[..., :each]  # four draws from 64 bits
    keep = draws >= round(rate * 2**16) - 2**15
    return x * keep.view_as(x) / (1 - rate)
