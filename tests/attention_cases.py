"""Every kind of attention, and the slow truth about it: softmax over a masked (T, T) matrix."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import get_args

import torch
from torch import Tensor

from edge_imputer.errors import SpecError
from edge_imputer.specs import AttentionSpec
from edge_imputer.specs.attention import Direction, HeadMode, Pattern
from edge_imputer.train.layers.attention import pattern_mask

HEADS, BLOCK = 3, 5


def specs(
    pattern: Pattern | None = None, direction: Direction | None = None
) -> Iterator[AttentionSpec]:
    """All that `check` lets pass, of small sizes; context within, at and beyond a block."""
    for fields in itertools.product(
        get_args(Pattern) if pattern is None else [pattern],
        get_args(HeadMode),
        get_args(Direction) if direction is None else [direction],
        (0, 1, BLOCK, 2 * BLOCK + 1),
        (None, 1, 3),
        (None, 0, 2),
    ):
        names = "pattern", "head_mode", "direction", "left_context", "memory_blocks", "lookahead"
        spec = AttentionSpec(heads=HEADS, block=BLOCK, **dict(zip(names, fields, strict=True)))
        try:
            spec.check(2 * HEADS)
        except SpecError:
            continue
        yield spec


def random_frames(
    batch: int, n_frames: int, *, heads: int = HEADS, width: int = 2, seed: int = 0
) -> list[Tensor]:
    """Queries, keys, values and an output's gradient, float64, (B, H, T, D) each."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4, batch, heads, n_frames, width)
    return list(torch.randn(shape, generator=generator, dtype=torch.float64))


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention under a mask, (B or 1, H, T, T); 0 where nothing is seen."""
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask, -1e30).softmax(-1).masked_fill(~mask, 0)
    return weights @ v


def masks(spec: AttentionSpec, n_frames: int, lengths: Tensor | None) -> Tensor:
    """The mask of every utterance, (B or 1, H, T, T)."""
    ends = [n_frames] if lengths is None else lengths.tolist()
    return torch.stack([pattern_mask(spec, n_frames, end) for end in ends])


def with_gradients(function, frames: list[Tensor]) -> list[Tensor]:
    """A function's output of q, k and v, and its gradients under the fourth tensor."""
    *inputs, d_out = frames
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, d_out.to(out.dtype))]
