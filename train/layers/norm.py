"""Batch norm that padding has no part in, and how it is folded into the convolution before it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class MaskedBatchNorm1d(nn.BatchNorm1d):
    """Batch norm over the last dimension of padded batches: statistics of valid frames only.

    Parameters, running statistics and state dict are those of `torch.nn.BatchNorm1d`, and so is
    all that it computes where nothing is padded. In training a batch gives what its valid frames
    alone would give, however long the padding is. Features come last, unlike torch's; a
    convolution's (B, C, T, F) is normalised as ``norm(x.movedim(1, -1), lengths).movedim(-1, 1)``.
    """

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalise frames.

        Parameters
        ----------
        input : (B, T, ..., C)
        lengths : (B,) or None
            Valid frames; None: all.

        Returns
        -------
        (B, T, ..., C); in training 0 past the lengths.
        """
        frames = input.flatten(0, 1)  # (B * T, ..., C)
        if lengths is None or not self.training:  # running statistics: frames do not mix
            return self._normalise(frames).view_as(input)
        frame = torch.arange(input.shape[1], device=input.device)
        valid = (frame < lengths[:, None]).flatten().nonzero().squeeze(1)
        out = self._normalise(frames.index_select(0, valid))
        return out.new_zeros(frames.shape).index_copy(0, valid, out).view_as(input)

    def _normalise(self, frames: Tensor) -> Tensor:
        rows = frames.reshape(-1, frames.shape[-1])
        return super().forward(rows).view_as(frames)


def fold_norm(
    weight: Tensor, bias: Tensor | None, norm: nn.modules.batchnorm._BatchNorm
) -> tuple[Tensor, Tensor]:
    """Weight and bias that do a convolution and the batch norm after it, in evaluation mode.

    Parameters
    ----------
    weight : (C, ...)
        Output channels first.
    bias : (C,) or None
    norm : batch norm over C channels

    Returns
    -------
    weight : (C, ...)
    bias : (C,)
    """
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight * torch.rsqrt(var + norm.eps)  # (C,)
    shift = -mean if bias is None else bias - mean
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), norm.bias + scale * shift
