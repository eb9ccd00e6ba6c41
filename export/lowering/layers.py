"""Layers: linear, convolutions, recurrence, norms, attention. Frames are rows, (T, C)."""

from __future__ import annotations

from typing import Any

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
from edge_imputer.train.layers.self_attention import SelfAttention, angles_of
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
    kernel = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))
    stride = (int(conv.stride[0]), int(conv.stride[1]))
    return low.g.conv2d(name, x, kernel, bias, stride, relu=True)


@lowers(CausalDepthwiseConv1d)
def causal_depthwise(low: Lowering, module: CausalDepthwiseConv1d, name: str, x: str) -> str:
    """(T, C) -> (T, C), with batch norm."""
    n_frames, channels = low.g.shape(x)
    x = low.g.reshape(f"{name}.nhwc", x, (1, n_frames, 1, channels))
    x = _with_past(low, name, x, module.left)
    weight, bias = low.fused(module, module.fused)  # (C, 1, kernel)
    kernel = np.ascontiguousarray(weight.transpose(1, 2, 0)[:, :, np.newaxis])
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


def gru_step(
    low: Lowering, name: str, gates_x: str, h: str, weight: Array, bias: Array, shared: str = ""
) -> str:
    """One step of a GRU: gates of the input (1, 3H) in torch's order r, z, n; state (1, H).

    ``n = tanh(x_n + r * (U_n h + c))`` and ``h' = n + z * (h - n)``: the operations that every
    runtime has as int8 kernels. Steps of the same layer have `shared` weights of that name.
    """
    g = low.g
    n = g.shape(h)[1]
    gates_h = g.fully_connected(f"{name}.h", h, weight, bias, constants=shared)
    rz = g.binary(
        "add",
        f"{name}.rz_sum",
        g.slice(f"{name}.x_rz", gates_x, 1, 0, 2 * n),
        g.slice(f"{name}.h_rz", gates_h, 1, 0, 2 * n),
    )
    rz = g.unary("sigmoid", f"{name}.rz", rz)
    r = g.slice(f"{name}.r", rz, 1, 0, n)
    z = g.slice(f"{name}.z", rz, 1, n, n)
    reset = g.binary("mul", f"{name}.reset", r, g.slice(f"{name}.h_n", gates_h, 1, 2 * n, n))
    candidate = g.binary(
        "add", f"{name}.n_sum", g.slice(f"{name}.x_n", gates_x, 1, 2 * n, n), reset
    )
    candidate = g.unary("tanh", f"{name}.n", candidate)
    gap = g.binary("sub", f"{name}.gap", h, candidate)
    g.graph.structural_quant |= {h: GRU_STATE, gap: GRU_GAP}
    kept = g.binary("mul", f"{name}.kept", z, gap)
    return g.binary("add", f"{name}.next_state", candidate, kept)


def gru_first_step(low: Lowering, name: str, gates_x: str) -> str:
    """`gru_step` from a state of zeros, without biases on it: ``h' = n - z * n``."""
    g, n = low.g, low.g.shape(gates_x)[1] // 3
    z = g.unary("sigmoid", f"{name}.z", g.slice(f"{name}.x_z", gates_x, 1, n, n))
    candidate = g.unary("tanh", f"{name}.n", g.slice(f"{name}.x_n", gates_x, 1, 2 * n, n))
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
    gates = low.g.fully_connected(f"{name}.x", x, w_x, b_x)
    following = gru_step(low, name, gates, h, weight, bias)
    low.keep(h, following)
    return following


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
def attention(low: Lowering, module: Attention, name: str, x: str, *, valid: Any) -> str:
    """(T, C) -> (T, C)."""
    rows, gain = normalised(low, module.norm, f"{name}.norm", x)
    return low(module.attention, name, rows, columns=gain, valid=valid)


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
def conformer_block(low: Lowering, module: ConformerBlock, name: str, x: str, *, valid: Any) -> str:
    """(T, C) -> (T, C)."""
    branches: dict[str, tuple[nn.Module, dict[str, Any]]] = {
        "first": (module.first, {"scale": 0.5}),
        "attention": (module.attention, {"valid": valid}),
        "convolution": (module.convolution, {}),
        "second": (module.second, {"scale": 0.5}),
    }
    for branch, (part, options) in branches.items():
        out = low(part, f"{name}.{branch}", x, **options)
        x = low.g.binary("add", f"{name}.{branch}.sum", x, out)
    return x


# ------------------------------------------------------------------------------ attention


def heads_of(low: Lowering, name: str, x: str, n_heads: int) -> str:
    """(T, C) -> (heads, T, C / heads)."""
    n_frames, width = low.g.shape(x)
    split = low.g.reshape(f"{name}.split", x, (n_frames, n_heads, width // n_heads))
    return low.g.transpose(f"{name}.heads", split, (1, 0, 2))


def queries_keys_values(low: Lowering, name: str, qkv: str, n_heads: int) -> list[str]:
    """(T, 3 C) -> three times (heads, T, C / heads)."""
    width = low.g.shape(qkv)[1] // 3
    parts = [
        low.g.slice(f"{name}.{part}", qkv, 1, k * width, width) for k, part in enumerate("qkv")
    ]
    return [heads_of(low, part, part, n_heads) for part in parts]


def joined_heads(low: Lowering, name: str, x: str) -> str:
    """(heads, T, C / heads) -> (T, C)."""
    n_heads, n_frames, width = low.g.shape(x)
    x = low.g.transpose(f"{name}.frames", x, (1, 0, 2))
    return low.g.reshape(f"{name}.joined", x, (n_frames, n_heads * width))


def turned(low: Lowering, name: str, x: str, position: Array) -> str:
    """Rotary positions: every pair of channels (c, c + d / 2) of (H, T, d) turned by its angle."""
    g, half = low.g, low.g.shape(x)[2] // 2
    cos, sin = (a.astype(np.float32)[np.newaxis] for a in angles_of(position, 2 * half))
    first, second = (g.slice(f"{name}.half{k}", x, 2, k * half, half) for k in range(2))
    swapped = g.concat(f"{name}.swapped", (second, first), 2)
    straight = g.constant(f"{name}.cos", np.concatenate([cos, cos], 2))
    across = g.constant(f"{name}.sin", np.concatenate([-sin, sin], 2))
    return g.binary(
        "add",
        name,
        g.binary("mul", f"{name}.straight", x, straight),
        g.binary("mul", f"{name}.across", swapped, across),
    )


BEYOND = 200.0  # a bound that no score reaches, nor the lowest one's opposite


def masked(low: Lowering, name: str, scores: str, seen: Array, valid: str | None) -> str:
    """Scores (H, T, M), the lowest where a key is not seen: in integers so far below the others
    that softmax makes it 0.

    Parameters
    ----------
    seen : bool, (heads or 1, T, M)
        What the pattern shows.
    valid : (1, 1, M) or None
        -0.5 where there is no frame yet, 0.5 elsewhere, as a stream knows it.
    """
    g = low.g
    bounds = []
    if not seen.all():
        pattern = np.where(seen, BEYOND, -BEYOND).astype(np.float32)
        bounds.append(g.constant(f"{name}.pattern", pattern))
    if valid is not None:
        far = g.constant(f"{name}.far", np.full((1, 1, 1), 2 * BEYOND, np.float32))
        bounds.append(g.binary("mul", f"{name}.bound", valid, far))
    for k, bound in enumerate(bounds):
        g.graph.saturating |= {bound, scores}  # the last ones decide, see `softmax_inputs`
        scores = g.binary("minimum", f"{name}.masked{k}", scores, bound)
    return scores


@lowers(SelfAttention)
def self_attention(
    low: Lowering,
    module: SelfAttention,
    name: str,
    x: str,
    *,
    valid: str | None,
    columns: Array | None = None,
) -> str:
    """One chunk of a stream, (T, C) -> (T, C)."""
    g, spec, window = low.g, module.spec, module.window
    if window is None:
        spec.check_streaming()  # raises
    assert window is not None
    if spec.head_mode == "split":
        raise ExportError(
            f"{name}: expected heads that all see the union of the pattern's sets (head_mode "
            "merged), got split: a head that sees nothing yet has no softmax"
        )
    n_frames, width = g.shape(x)
    scale = np.ones(3 * width, np.float32)
    scale[:width] = (width // spec.heads) ** -0.5  # of the queries, which turning does not change
    qkv = low(module.qkv, f"{name}.qkv", x, columns=columns, scale=scale)
    q, k, v = queries_keys_values(low, name, qkv, spec.heads)
    keys, values = (
        _remembered(low, f"{name}.{part}", y, spec) for part, y in (("keys", k), ("values", v))
    )
    q = turned(low, f"{name}.q_turned", q, np.arange(n_frames))
    keys = turned(low, f"{name}.keys_turned", keys, window.position)
    scores = g.batch_matmul(f"{name}.scores", q, keys, transposed=True)
    scores = masked(low, name, scores, window.seen, valid)
    weights = g.unary("softmax", f"{name}.weights", scores)
    out = joined_heads(low, f"{name}.seen", g.batch_matmul(f"{name}.mixed", weights, values))
    return low(module.out, f"{name}.out", out)


def _remembered(low: Lowering, name: str, new: str, spec: Any) -> str:
    """Keys or values of a step (H, M, d): summaries of earlier blocks, frames before, the chunk."""
    g = low.g
    n_heads, n_frames, depth = g.shape(new)
    parts = []
    summaries = g.slice(f"{name}.summaries", new, 1, n_frames - spec.summaries, spec.summaries)
    kept = (("memory", spec.memory_frames, summaries), ("past", spec.past_frames, new))
    for part, size, added in kept:
        if not size:
            continue
        state = low.state(f"{name}.{part}.state", (n_heads, size, depth))
        both = g.concat(f"{name}.{part}.both", (state, added), 1)
        begin = g.shape(both)[1] - size
        low.keep(state, g.slice(f"{name}.{part}.next", both, 1, begin, size))
        parts.append(state)
    return g.concat(f"{name}.all", (*parts, new), 1) if parts else new
