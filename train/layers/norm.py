"""Batch norm that padding has no part in, and how it is folded into the convolution before it."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


class MaskedBatchNorm1d(nn.BatchNorm1d):
    """Batch norm over the last dimension of padded batches: statistics of valid frames only.

    Parameters, running statistics and state dict are those of `torch.nn.BatchNorm1d`, and so is
    all that it computes where nothing is padded. In training a batch gives what its valid frames
    alone would give, however long the padding is. Features come last, unlike torch's; a
    convolution's (B, C, T, F) is normalised as ``norm(x.movedim(1, -1), lengths).movedim(-1, 1)``.

    Where several processes train together, the statistics are those of all their frames: a batch
    that is dealt out to them gives what it would give whole, to the rounding of its sums. Every
    process must then call every norm equally often, with frames or without.
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
        shared = self.training and dist.is_available() and dist.is_initialized()
        if shared and dist.get_world_size() > 1:
            return self._normalise_together(rows).view_as(frames)
        return super().forward(rows).view_as(frames)

    def _normalise_together(self, rows: Tensor) -> Tensor:
        """Normalise rows (N, C) by the statistics of all processes' rows; N may be 0."""
        precise = rows.to(torch.promote_types(rows.dtype, torch.float32))
        n_local = precise.new_tensor([rows.shape[0]])
        sums = _summed(torch.cat([precise.sum(0), n_local]))
        count = sums[-1].detach()
        if count < 2:
            raise ValueError(
                f"expected 2 frames or more over all processes to normalise in training, got "
                f"{int(count)}"
            )
        mean = sums[:-1] / count
        centred = precise - mean
        # Twice summed, so that a large mean takes no digits from the variance.
        variance = _summed(centred.square().sum(0)) / count
        self._remember(mean.detach(), variance.detach() * (count / (count - 1)))
        out = centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return out.to(rows.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards a batch's, as torch's batch norm does."""
        running_mean, running_var = self.running_mean, self.running_var
        n_batches = self.num_batches_tracked
        assert running_mean is not None
        assert running_var is not None
        assert n_batches is not None
        n_batches.add_(1)
        share = 1 / n_batches.item() if self.momentum is None else self.momentum
        running_mean.lerp_(mean.to(running_mean.dtype), share)
        running_var.lerp_(variance.to(running_var.dtype), share)


class _Sum(torch.autograd.Function):
    """Sum over all processes; what one does to a loss, all losses' gradients have a part in."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _summed(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return total


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
