"""The conformer's block: feed-forward, self-attention, convolution, feed-forward.

After Gulati et al. 2020 (arXiv:2005.08100), section 2, made to stream: attention by chunks, and a
depthwise convolution that sees the past only. Every branch begins with a norm and is added to what
it was given; there is no norm at the block's end, as what is added up must not be rescaled from
block to block for the scaled start (Child et al. 2019, section 5.2) to mean anything. The encoder
has one norm, at its own end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_imputer.specs import ConformerSpec

from .base import State
from .depthwise import CausalDepthwiseConv1d
from .self_attention import SelfAttention

EPSILON = 1e-5


def make_norm(spec: ConformerSpec) -> nn.RMSNorm | nn.LayerNorm:
    """A norm of single frames, with a scale for each channel: see `ConformerSpec.norm`."""
    if spec.norm == "rms":
        return nn.RMSNorm(spec.d_model, eps=EPSILON)
    return nn.LayerNorm(spec.d_model, eps=EPSILON, bias=False)


def make_linear(width: int, out_width: int) -> nn.Linear:
    """A linear layer that keeps the variance."""
    linear = nn.Linear(width, out_width)
    nn.init.normal_(linear.weight, std=width**-0.5)
    nn.init.zeros_(linear.bias)
    return linear


class FeedForward(nn.Module):
    """Norm, wide linear layer, SiLU, linear layer: every frame by itself."""

    def __init__(self, spec: ConformerSpec) -> None:
        super().__init__()
        self.norm = make_norm(spec)
        self.up = make_linear(spec.d_model, spec.feed_forward * spec.d_model)
        self.down = make_linear(spec.feed_forward * spec.d_model, spec.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d_model) -> the same."""
        out: Tensor = self.down(F.silu(self.up(self.norm(x))))
        return out


class Attention(nn.Module):
    """Norm and self-attention. Streaming state and partitions are those of `SelfAttention`."""

    def __init__(self, spec: ConformerSpec) -> None:
        super().__init__()
        self.norm = make_norm(spec)
        self.attention = SelfAttention(spec.d_model, spec.attention)

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by a chunk (B, block, d_model), the last one of a stream maybe shorter."""
        return self.attention.step(self.norm(chunk), state)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, d_model) -> the same, 0 past the lengths (B,)."""
        out: Tensor = self.attention(self.norm(x), lengths)
        return out


class Convolution(nn.Module):
    """Norm, linear layer with a gate, depthwise convolution with batch norm, SiLU, linear layer.

    Streaming state and partitions are those of the depthwise convolution.
    """

    def __init__(self, spec: ConformerSpec) -> None:
        super().__init__()
        self.norm = make_norm(spec)
        self.gated = make_linear(spec.d_model, 2 * spec.d_model)
        self.depthwise = CausalDepthwiseConv1d(spec.d_model, spec.kernel)
        self.out = make_linear(spec.d_model, spec.d_model)

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by frames (B, t, d_model): as many frames, and the next state."""
        x, state = self.depthwise.step(F.glu(self.gated(self.norm(chunk))), state)
        return self.out(F.silu(x)), state

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, d_model) -> the same; `lengths` (B,) keep padding out of batch statistics."""
        x = self.depthwise(F.glu(self.gated(self.norm(x))), lengths)
        out: Tensor = self.out(F.silu(x))
        return out


class ConformerBlock(nn.Module):
    """Half a feed-forward step, self-attention, convolution, half a feed-forward step."""

    def __init__(self, spec: ConformerSpec) -> None:
        super().__init__()
        self.first = FeedForward(spec)
        self.attention = Attention(spec)
        self.convolution = Convolution(spec)
        self.second = FeedForward(spec)
        self.dropout = nn.Dropout(spec.dropout)

    @torch.no_grad()
    def scale_residual(self, n_layers: int) -> None:
        """Make every branch's last weights smaller by sqrt(2 N), N the depth of the encoder.

        So the sum of all branches keeps its size however deep the encoder is.
        """
        self.attention.attention.scale_residual(n_layers)
        for linear in (self.first.down, self.convolution.out, self.second.down):
            linear.weight.mul_((2 * n_layers) ** -0.5)

    @torch.no_grad()
    def fold_norms(self) -> None:
        """Move the norms' scales into the linear layers that follow; what comes out is the same."""
        for norm, linear in (
            (self.first.norm, self.first.up),
            (self.attention.norm, self.attention.attention.qkv),
            (self.convolution.norm, self.convolution.gated),
            (self.second.norm, self.second.up),
        ):
            linear.weight.mul_(norm.weight)
            norm.weight.fill_(1)

    def initial_state(self, batch: int = 1) -> State:
        """The attention's state, see `SelfAttention`, then the convolution's one tensor."""
        attention = self.attention.attention.initial_state(batch)
        return (*attention, *self.convolution.depthwise.initial_state(batch))

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by a chunk (B, block, d_model), the last one of a stream maybe shorter."""
        x = chunk + 0.5 * self.first(chunk)
        out, seen = self.attention.step(x, state[:-1])
        x = x + out
        out, last = self.convolution.step(x, state[-1:])
        x = x + out
        return x + 0.5 * self.second(x), (*seen, *last)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Whole utterances (B, T, d_model) of `lengths` (B,) frames -> the same."""
        x = x + 0.5 * self.dropout(self.first(x))
        x = x + self.dropout(self.attention(x, lengths))
        x = x + self.dropout(self.convolution(x, lengths))
        out: Tensor = x + 0.5 * self.dropout(self.second(x))
        return out
