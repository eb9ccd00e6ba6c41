"""Encoders: one step of a stream each, or one window."""

from __future__ import annotations

from math import prod
from typing import cast

import numpy as np
from torch import nn

from edge_imputer.errors import ExportError
from edge_imputer.specs import AttentionSpec
from edge_imputer.train.encoders.cnn_windowed import CnnNetwork
from edge_imputer.train.encoders.conformer import ConformerEncoder
from edge_imputer.train.encoders.crnn import CrnnEncoder
from edge_imputer.train.encoders.crnn_windowed import WindowNetwork
from edge_imputer.train.encoders.tcn import Stem, TcnBlock, TcnEncoder
from edge_imputer.train.encoders.windowed import WindowedEncoder
from edge_imputer.train.layers.recurrent import OneBiasGru

from ..graph import Array
from .context import Lowering, lowers
from .layers import gru_first_step, gru_step


@lowers(CrnnEncoder)
def crnn(low: Lowering, module: CrnnEncoder, name: str, x: str) -> str:
    """One encoder frame of features (1, subsampling, n_mels, 1) -> (1, hidden)."""
    g = low.g
    for k, conv in enumerate(module.conv):
        x = low(conv, f"conv{k}", x)
    x = g.reshape("conv.flat", x, (1, prod(g.shape(x))))
    for k, layer in enumerate(module.gru):
        x = low(layer, f"gru{k}", x)
    return g.reshape(name, x, g.shape(x))  # its state is another output


@lowers(Stem)
def stem(low: Lowering, module: Stem, name: str, x: str) -> str:
    """(1, T, n_mels, 1) -> (T / stride, C)."""
    g = low.g
    left = module.kernel - module.stride
    if left:
        state = low.state(f"{name}.state", (1, left, module.n_mels, 1))
        x = g.concat(f"{name}.input", (state, x), 1)
        low.keep(state, g.slice(f"{name}.next_state", x, 1, g.shape(x)[1] - left, left))
    weight, bias = low.fused(module, module.fused)  # (C, n_mels, kernel)
    kernel = weight.transpose(0, 2, 1)[..., np.newaxis]
    x = g.conv2d(name, x, kernel, bias, (module.stride, 1), relu=True)
    return g.reshape(f"{name}.frames", x, (g.shape(x)[1], g.shape(x)[3]))


@lowers(TcnBlock)
def tcn_block(low: Lowering, module: TcnBlock, name: str, x: str) -> str:
    """(T, C) -> (T, C)."""
    y = low(module.depthwise, f"{name}.depthwise", x)
    y = low(module.pointwise, f"{name}.pointwise", y)
    total = low.g.binary("add", f"{name}.sum", x, low(module.project, f"{name}.project", y))
    low.g.graph.saturating.add(total)  # what ReLU would cut off is cut off by its scale
    return low.g.unary("relu", name, total)


@lowers(TcnEncoder)
def tcn(low: Lowering, module: TcnEncoder, name: str, x: str) -> str:
    """One encoder frame of features (1, subsampling, n_mels, 1) -> (1, C)."""
    x = low(module.stem, "stem", x)
    outs = []
    for k, stack in enumerate(module.stacks):
        for j, block in enumerate(cast("nn.ModuleList", stack)):
            x = low(block, f"stack{k}.{j}", x)
        outs.append(x)
    if module.spec.sum_stacks:
        for k, out in enumerate(outs[:-1]):
            x = low.g.binary("add", f"stacks{k}", x, out)
    return low.g.reshape(name, x, low.g.shape(x))


@lowers(ConformerEncoder)
def conformer(low: Lowering, module: ConformerEncoder, name: str, x: str) -> str:
    """One chunk of features (1, chunk, n_mels, 1) -> (block, d_model)."""
    spec = module.spec
    spec.attention.check_streaming()
    valid = _valid_keys(low, spec.attention)
    x = low(module.stem, "stem", x)
    for k, block in enumerate(module.blocks, 1):
        x = low(block, f"block{k}", x, valid=valid)
        if module.feedback is not None and k in spec.intermediate_ctc:
            x = _fed_back(low, module, f"branch{k}", x)
    if module.ctc is not None and module.feedback is None:
        for tensor in module.ctc.parameters():  # read in training alone
            low.array(tensor)
    return low(module.norm, name, x)


def _fed_back(low: Lowering, module: ConformerEncoder, name: str, x: str) -> str:
    """x and what a branch reads in it (Nozaki and Komatsu 2021, section 3)."""
    assert module.ctc is not None
    assert module.feedback is not None
    logits = low(module.ctc, f"{name}.ctc", low(module.norm, f"{name}.norm", x))
    read = low.g.unary("softmax", f"{name}.read", logits)
    return low.g.binary("add", f"{name}.sum", x, low(module.feedback, f"{name}.feedback", read))


def _valid_keys(low: Lowering, spec: AttentionSpec) -> str | None:
    """Which keys of a step are frames of the stream: 0.5, else -0.5, (1, 1, M); None: all are.

    What is kept begins as zeros, which are no frames; ones follow them as frames do.
    """
    g = low.g
    parts = []
    kept = {
        "memory": (spec.memory_frames, spec.summaries),
        "past": (spec.past_frames, spec.block),
    }
    for part, (size, added) in kept.items():
        if not size:
            continue
        state = low.state(f"valid.{part}.state", (1, 1, size))
        new = g.constant(f"valid.{part}.ones", np.ones((1, 1, added), np.float32))
        both = g.concat(f"valid.{part}.both", (state, new), 2)
        low.keep(state, g.slice(f"valid.{part}.next", both, 2, g.shape(both)[2] - size, size))
        parts.append(state)
    if not parts:
        return None
    parts.append(g.constant("valid.chunk", np.ones((1, 1, spec.block), np.float32)))
    half = g.constant("valid.half", np.full((1, 1, 1), 0.5, np.float32))
    return g.binary("sub", "valid", g.concat("valid.keys", tuple(parts), 2), half)


# ------------------------------------------------------------------------------ windows


@lowers(OneBiasGru)
def one_bias_gru(low: Lowering, module: OneBiasGru, name: str, x: str) -> str:
    """A window's frames (T, K) -> (T, 2 H), both directions written out step by step."""
    g, n_frames = low.g, low.g.shape(x)[0]
    hidden = module.gru.hidden_size
    sides = []
    for side, order in (("", range(n_frames)), ("_reverse", range(n_frames - 1, -1, -1))):
        w_x = low.array(getattr(module.gru, f"weight_ih_l0{side}"))
        w_h = low.array(getattr(module.gru, f"weight_hh_l0{side}"))
        here = f"{name}{side}"
        gates = g.fully_connected(f"{here}.x", x, w_x[:, :-1], w_x[:, -1])
        states: dict[int, str] = {}
        nothing: Array = np.zeros(3 * hidden, np.float32)
        h = ""
        for t in order:
            step, row = f"{here}.{t}", g.slice(f"{here}.{t}.gates", gates, 0, t, 1)
            if h:
                h = gru_step(low, step, row, h, w_h, nothing, f"{here}.h")
            else:
                h = gru_first_step(low, step, row)
            states[t] = h
        sides.append(g.concat(f"{here}.states", tuple(states[t] for t in range(n_frames)), 0))
    return g.concat(name, tuple(sides), 1)


@lowers(WindowNetwork)
def window_network(low: Lowering, module: WindowNetwork, name: str, x: str) -> str:
    """A window (1, window_frames, n_mels, 1) -> logits (1, n_classes)."""
    g = low.g
    before_freq, after_freq, before_time, after_time = module.padding
    x = g.pad("conv.padded_time", x, 1, before_time, after_time)
    x = g.pad("conv.padded", x, 2, before_freq, after_freq)
    x = _conv(low, module.conv, "conv", x)
    _, n_frames, n_freq, channels = g.shape(x)
    x = g.reshape("conv.frames", x, (n_frames, n_freq * channels))
    for k, layer in enumerate(module.gru):
        x = low(layer, f"gru{k}", x)
    x = g.reshape("flat", x, (1, prod(g.shape(x))))
    return low(module.classifier, name, low(module.dense, "dense", x, relu=True))


@lowers(CnnNetwork)
def cnn_network(low: Lowering, module: CnnNetwork, name: str, x: str) -> str:
    """A window (1, window_frames, n_mels, 1) -> logits (1, n_classes)."""
    g = low.g
    x = _conv(low, module.first, "first", x)
    x = g.max_pool("pool", x, (1, module.pool_freq), (1, module.pool_freq))
    x = _conv(low, module.second, "second", x)
    x = low(module.linear, "linear", g.reshape("flat", x, (1, prod(g.shape(x)))))
    return low(module.classifier, name, low(module.dense, "dense", x, relu=True))


def _conv(low: Lowering, conv: nn.Conv2d, name: str, x: str) -> str:
    """A convolution of torch's, without padding of its own, and ReLU."""
    kernel = low.array(conv.weight).transpose(0, 2, 3, 1)
    stride = (int(conv.stride[0]), int(conv.stride[1]))
    return low.g.conv2d(name, x, kernel, low.array(conv.bias), stride, relu=True)


@lowers(WindowedEncoder)
def windowed(low: Lowering, module: WindowedEncoder, name: str, x: str) -> str:
    """One window (1, window_frames, n_mels, 1) -> logits (1, n_classes)."""
    _, n_frames, _, _ = low.g.shape(x)
    if n_frames != module.spec.window_frames:
        raise ExportError(
            f"{name}: expected a window of {module.spec.window_frames} frames, got {n_frames}"
        )
    return low(module.network, name, x)
