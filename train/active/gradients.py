"""Gradients of an output layer in closed form, and what is made of them.

An output layer gives the logits ``z_t = W h_t + b``. With ``delta_t(y)`` the gradient of
-log p(y | x) with respect to ``z_t`` (for CTC: softmax minus occupancy), that with respect to the
layer is ``G(y) = sum_t delta_t(y) [h_t, 1]^T``. So no pass through the network is needed, but one
cheap backward pass of the loss at the logits for each labeling.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_imputer.specs import BLANK_ID

from ..objective import ctc_loss
from .labelings import Labelings


def label_gradients(
    log_probs: Tensor, n_frames: Tensor, labels: Labelings
) -> tuple[Tensor, Tensor]:
    """-log p(y | x) of every labeling, and its gradient with respect to the logits.

    Frames that an Imputer has been shown are certain in `log_probs` (0 at their token, -inf
    elsewhere): CTC over these is the Imputer's loss, and the gradient there is 0.

    Parameters
    ----------
    log_probs : (B, T, V)
        Normalised.
    n_frames : (B,)
    labels : Labelings

    Returns
    -------
    losses : (N, B)
        In nats; infinite where a labeling is impossible.
    delta : (N, B, T, V)
        0 past an utterance's end, and where a labeling is impossible.
    """
    n, batch = labels.lengths.shape
    repeated = log_probs.detach().expand(n, -1, -1, -1).flatten(0, 1).requires_grad_()
    with torch.enable_grad():
        losses = ctc_loss(
            repeated,
            labels.tokens.flatten(0, 1),
            n_frames.repeat(n),
            labels.lengths.flatten(),
            blank_id=BLANK_ID,
            reduction="none",
            validate=False,
        )
        (delta,) = torch.autograd.grad(losses.sum(), repeated)
    return losses.detach().view(n, batch), delta.view(n, *log_probs.shape)


def layer_gradients(delta: Tensor, inputs: Tensor) -> Tensor:
    """Gradients of the output layer's weights, and of its bias as one more column.

    Parameters
    ----------
    delta : (N, B, T, V)
    inputs : (B, T, D)
        What the layer has read, h.

    Returns
    -------
    gradients : (N, B, V, D + 1)
        ``sum_t delta_t [h_t, 1]^T``.
    """
    n, batch, _, n_tokens = delta.shape
    left = delta.permute(1, 0, 3, 2).flatten(1, 2)  # (B, N * V, T)
    out = left @ F.pad(inputs, (0, 1), value=1.0)
    return out.view(batch, n, n_tokens, -1).transpose(0, 1)


def lengths_of(gradients: Tensor, *, squared: bool) -> Tensor:
    """Euclidean lengths of gradients (N, B, V, D + 1), or their squares: (N, B)."""
    squares = gradients.square().sum((-2, -1))
    return squares if squared else squares.sqrt()


def path_bound(log_probs: Tensor, inputs: Tensor, n_frames: Tensor, *, squared: bool) -> Tensor:
    """An upper bound of the expected gradient length, from one pass and no labeling, (B,).

    ``sum_t (||h_t||^2 + 1) (1 - sum_k p_tk^2)``, the trace of the Fisher information of the path:
    the labeling is a function of the path, so it has no more (data processing). Without `squared`
    its root, which bounds the expected length by Jensen's inequality.

    Parameters
    ----------
    log_probs : (B, T, V)
    inputs : (B, T, D)
    n_frames : (B,)
    """
    inside = torch.arange(inputs.shape[1], device=inputs.device) < n_frames[:, None]
    # p (1 - p) summed, so that nothing cancels where a frame is nearly certain
    doubt = (log_probs.exp() * -torch.expm1(log_probs)).sum(-1)
    values = (inputs.square().sum(-1) + 1) * doubt
    bound = values.masked_fill(~inside, 0.0).sum(1)
    return bound if squared else bound.sqrt()


def deep_lengths(
    logits: Tensor, delta: Tensor, parameters: Sequence[nn.Parameter], *, squared: bool
) -> Tensor:
    """Gradient lengths with respect to any parameters, by a backward pass a labeling: (N,).

    Parameters
    ----------
    logits : (1, T, V)
        Of one utterance, with the graph that made them.
    delta : (N, 1, T, V)
        Gradients with respect to them.
    parameters
        What the logits do not depend on counts 0.
    squared : bool
    """
    squares = []
    for one in delta:
        found = torch.autograd.grad(logits, parameters, one, retain_graph=True, allow_unused=True)
        parts = [gradient.square().sum() for gradient in found if gradient is not None]
        squares.append(torch.stack(parts).sum() if parts else logits.new_zeros(()))
    total = torch.stack(squares)
    return total if squared else total.sqrt()


def project(gradients: Tensor, dimensions: int) -> Tensor:
    """Gradients (B, V, D + 1) as rows of at most `dimensions` numbers, (B, d).

    A fixed random projection, the same on every machine, that keeps lengths and distances to about
    sqrt(2 / dimensions) of themselves (Johnson and Lindenstrauss 1984). What has no more numbers
    anyway is left as it is.
    """
    flat = gradients.flatten(1)
    if flat.shape[1] <= dimensions:
        return flat
    projected: Tensor = flat @ _projection(flat.shape[1], dimensions).to(flat)
    return projected


@functools.lru_cache(maxsize=4)
def _projection(size: int, dimensions: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, dimensions, generator=generator) / math.sqrt(dimensions)
