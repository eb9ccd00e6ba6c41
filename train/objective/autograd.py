"""What the explicit gradients of this package share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _OnlyOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, logits: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[None, None]:
        raise RuntimeError("the losses of edge_imputer can be differentiated only once")


def only_once(gradient: Tensor, logits: Tensor) -> Tensor:
    """Make a second derivative through a gradient that autograd did not see an error.

    Without this, ``create_graph=True`` would take the gradient for a constant, silently.
    """
    if not torch.is_grad_enabled():
        return gradient
    guarded: Tensor = _OnlyOnce.apply(gradient, logits)  # type: ignore[no-untyped-call]
    return guarded
