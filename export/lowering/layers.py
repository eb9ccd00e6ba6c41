"""Layers: linear, convolutions, recurrence, norms, attention. Frames are rows, (T, C)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import nn

from edge_imputer.errors import ExportError
from edge_imputer.quantization import QuantParams
from edge_imputer.train.layers.conformer import (
    Attention,
    ConformerBlock,
    Convolution,
    FeedForward,
)
from edge_imputer.train.layers.conv import CausalConv2d
from edge_imputer.train.layers.depthwise import CausalDepthwiseConv1d, Pointwise
from edge_imputer.train.layers.norm import fold_norm
from edge_imputer.train.layers.subsampling import Subsampling, SubsamplingConv2d

from ..graph import Array
from .context import Lowering, lowers

# A GRU's state is a mean of tanh outputs, so it takes their scale. The difference of the two is
# then a whole number d of steps, at most 255; its own step is 257 / 127 of theirs, so that
# d * 127 / 257 is never near a half, which runtimes round differently.
GRU_STATE = QuantParams(scale=1 / 128, zero_point=0)
GRU_GAP = QuantParams(scale=float(np.float32(257 / 127 / 128)), zero_point=0)


# ------------------------------------------------------------------------------ linear


@lowers(nn.Linear)
def linear(
    low: Lowering,
    module: nn.Linear,
    name: str,
    x: str,
    *,
    relu: bool = False,
    columns: Array | None = None,
    scale: Array | float = 1.0,
) -> str:
    """(N, K) -> (N, M). `columns` (K,) scale the inputs, `scale` (M,) the outputs: folded in."""
    weight = low.array(module.weight)
    bias = np.zeros(len(weight), np.float32) if module.bias is None else low.array(module.bias)
    if columns is not None:
        weight = weight * columns
    factor = np.broadcast_to(np.float32(scale), bias.shape)
    return low.g.fully_connected(name, x, weight * factor[:, np.newaxis], bias * factor, relu)


@lowers(Pointwise)
def pointwise(low: Lowering, module: Pointwise, name: str, x: str) -> str:
    """(T, C) -> (T, C')."""
    weight, bias = low.fused(module, module.fused)
    return low.g.fully_connected(name, x, weight, bias, module.relu)


# ------------------------------------------------------------------------------ convolutions


def _with_past(low: Lowering, name: str, x: str, left: int) -> str:
    """A tensor behind what is kept of it, `left` frames along axis 1, which are kept anew."""
    if not left:  # windows that do not overlap in time keep nothing
        return x
    shape = low.g.shape(x)
    state = low.state(f"{name}.state", (shape[0], left, *shape[2:]))
    x = low.g.concat(f"{name}.input", (state, x), axis=1)
    begin = low.g.shape(x)[1] - left
    low.keep(state, low.g.slice(f"{name}.next_state", x, 1, begin, left))
    return x


@lowers(CausalConv2d, SubsamplingConv2d)
def causal_conv2d(
    low: Lowering, module: CausalConv2d | SubsamplingConv2d, name: str, x: str
) -> str:
    """(1, T, F, C) -> (1, T / stride, F', C'), with batch norm and ReLU."""
    conv = module.conv
    x = _with_past(low, name, x, module.left)
    x = low.g.pad(f"{name}.padded", x, 2, module.freq_pad, module.freq_pad)
    weight, bias = low.fused(module, lambda: fold_norm(conv.weight, conv.bias, module.norm))
    kernel = weight.transpose(0, 2, 3, 1)
    stride = (int(conv.stride[0]), int(conv.stride[1]))
    return low.g.conv2d(name, x, kernel, bias, stride, relu=True)


@lowers(CausalDepthwiseConv1d)
def causal_depthwise(low: Lowering, module: CausalDepthwiseConv1d, name: str, x: str) -> str:
    """(T, C) -> (T, C), with batch norm."""
    n_frames, channels = low.g.shape(x)
    x = low.g.reshape(f"{name}.nhwc", x, (1, n_frames, 1, channels))
    x = _with_past(low, name, x, module.left)
    weight, bias = low.fused(module, module.fused)  # (C, 1, kernel)
    kernel = weight.transpose(1, 2, 0)[:, :, np.newaxis]
    x = low.g.depthwise_conv2d(name, x, kernel, bias, dilation=(module.dilation, 1))
    return low.g.reshape(f"{name}.frames", x, (n_frames, channels))


@lowers(Subsampling)
def subsampling(low: Lowering, module: Subsampling, name: str, x: str) -> str:
    """(1, T, n_mels, 1) -> (T / subsampling, d_model)."""
    for k, conv in enumerate(module.conv):
        x = low(conv, f"{name}.conv{k}", x)
    _, n_frames, n_freq, channels = low.g.shape(x)
    x = low.g.reshape(f"{name}.flat", x, (n_frames, n_freq * channels))
    return low(module.linear, name, x)


# ------------------------------------------------------------------------------ recurrence


class Gates(NamedTuple):
    """What a GRU's gates make of the input, or of the state: r beside z (1, 2H), and n (1, H)."""

    rz: str
    n: str


def gru_step(low: Lowering, name: str, of_x: Gates, of_h: Gates, h: str) -> str:
    """One step of a GRU, from the state h (1, H) to the next.

    ``n = tanh(x_n + r * h_n)`` and ``h' = n + z * (h - n)``: the operations that every runtime has
    as int8 kernels.
    """
    g, n = low.g, low.g.shape(h)[1]
    rz = g.unary("sigmoid", f"{name}.rz", g.binary("add", f"{name}.rz_sum", of_x.rz, of_h.rz))
    r = g.slice(f"{name}.r", rz, 1, 0, n)
    z = g.slice(f"{name}.z", rz, 1, n, n)
    reset = g.binary("mul", f"{name}.reset", r, of_h.n)
    candidate = g.binary("add", f"{name}.n_sum", of_x.n, reset)
    candidate = g.unary("tanh", f"{name}.n", candidate)
    gap = g.binary("sub", f"{name}.gap", h, candidate)
    g.graph.structural_quant |= {h: GRU_STATE, gap: GRU_GAP}
    kept = g.binary("mul", f"{name}.kept", z, gap)
    return g.binary("add", f"{name}.next_state", candidate, kept)


def gru_first_step(low: Lowering, name: str, of_x: Gates) -> str:
    """`gru_step` from a state of zeros, without biases on it: ``h' = n - z * n``."""
    g, n = low.g, low.g.shape(of_x.n)[1]
    z = g.unary("sigmoid", f"{name}.z", g.slice(f"{name}.x_z", of_x.rz, 1, n, n))
    candidate = g.unary("tanh", f"{name}.n", of_x.n)
    gone = g.binary("mul", f"{name}.gone", z, candidate)
    return g.binary("sub", f"{name}.next_state", candidate, gone)


@lowers(nn.GRU)
def gru(low: Lowering, module: nn.GRU, name: str, x: str) -> str:
    """One frame of a streaming layer, (1, K) -> (1, H)."""
    if module.num_layers != 1 or module.bidirectional:
        raise ExportError(f"{name}: expected one layer that looks at the past, got {module}")
    h = low.state(f"{name}.state", (1, module.hidden_size))
    w_x, b_x, weight, bias = (
        low.array(getattr(module, f"{kind}_l0"))
        for kind in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
    )
    gates = {
        "x": low.g.fully_connected(f"{name}.x", x, w_x, b_x),
        "h": low.g.fully_connected(f"{name}.h", h, weight, bias),
    }
    of_x, of_h = (_gates(low, f"{name}.{part}", both) for part, both in gates.items())
    following = gru_step(low, name, of_x, of_h, h)
    low.keep(h, following)
    return following


def _gates(low: Lowering, name: str, gates: str) -> Gates:
    """Parts of (1, 3H) in torch's order r, z, n."""
    n = low.g.shape(gates)[1] // 3
    return Gates(
        low.g.slice(f"{name}_rz", gates, 1, 0, 2 * n),
        low.g.slice(f"{name}_n", gates, 1, 2 * n, n),
    )


# ------------------------------------------------------------------------------ norms


def normalised(low: Lowering, module: nn.Module, name: str, x: str) -> tuple[str, Array]:
    """Rows (T, C) of length 1, and what each column is still to be multiplied by, (C,).

    Without the norms' epsilon, which is for rows of zeros: those stay zeros here too. The factor
    goes into the linear layer that follows.
    """
    g, width = low.g, low.g.shape(x)[1]
    if isinstance(module, nn.LayerNorm):
        x = g.binary("sub", f"{name}.centred", x, g.mean(f"{name}.mean", x))
    elif not isinstance(module, nn.RMSNorm):
        raise ExportError(f"{name}: expected a norm, got {type(module).__name__}")
    gain = np.ones(width, np.float32) if module.weight is None else low.array(module.weight)
    return g.unary("l2_norm", f"{name}.direction", x), gain * np.float32(width**0.5)


@lowers(nn.RMSNorm, nn.LayerNorm)
def norm(low: Lowering, module: nn.Module, name: str, x: str) -> str:
    """A norm that nothing linear follows: (T, C) -> (T, C)."""
    rows, gain = normalised(low, module, name, x)
    return low.g.binary("mul", name, rows, low.g.constant(f"{name}.gain", gain[np.newaxis]))


# ------------------------------------------------------------------------------ conformer


def silu(low: Lowering, name: str, x: str) -> str:
    """x * sigmoid(x)."""
    return low.g.binary("mul", f"{name}.silu", x, low.g.unary("sigmoid", f"{name}.gate", x))


@lowers(FeedForward)
def feed_forward(low: Lowering, module: FeedForward, name: str, x: str, *, scale: float) -> str:
    """(T, C) -> (T, C), times `scale`."""
    rows, gain = normalised(low, module.norm, f"{name}.norm", x)
    up = low(module.up, f"{name}.up", rows, columns=gain)
    return low(module.down, f"{name}.down", silu(low, name, up), scale=scale)


@lowers(Attention)
def attention(low: Lowering, module: Attention, name: str, x: str, *, visible: Any) -> str:
    """(T, C) -> (T, C)."""
    rows, gain = normalised(low, module.norm, f"{name}.norm", x)
    return low(module.attention, name, rows, columns=gain, visible=visible)


@lowers(Convolution)
def convolution(low: Lowering, module: Convolution, name: str, x: str) -> str:
    """(T, C) -> (T, C)."""
    g, width = low.g, low.g.shape(x)[1]
    rows, gain = normalised(low, module.norm, f"{name}.norm", x)
    gated = low(module.gated, f"{name}.gated", rows, columns=gain)
    gate = g.unary("sigmoid", f"{name}.glu", g.slice(f"{name}.b", gated, 1, width, width))
    x = g.binary("mul", f"{name}.glued", g.slice(f"{name}.a", gated, 1, 0, width), gate)
    x = low(module.depthwise, f"{name}.depthwise", x)
    return low(module.out, f"{name}.out", silu(low, name, x))


@lowers(ConformerBlock)
def conformer_block(
    low: Lowering, module: ConformerBlock, name: str, x: str, *, visible: Any
) -> str:
    """(T, C) -> (T, C)."""
    branches: dict[str, tuple[nn.Module, dict[str, Any]]] = {
        "first": (module.first, {"scale": 0.5}),
        "attention": (module.attention, {"visible": visible}),
        "convolution": (module.convolution, {}),
        "second": (module.second, {"scale": 0.5}),
    }
    for branch, (part, options) in branches.items():
        out = low(part, f"{name}.{branch}", x, **options)
        x = low.g.binary("add", f"{name}.{branch}.sum", x, out)
    return x
