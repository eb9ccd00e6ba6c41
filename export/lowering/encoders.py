"""Encoders: one step of a stream each, or one window."""

from __future__ import annotations

from math import prod
from typing import cast

import numpy as np
from torch import nn

from edge_imputer.errors import ExportError
from edge_imputer.train.encoders.cnn_windowed import CnnNetwork
from edge_imputer.train.encoders.conformer import ConformerEncoder
from edge_imputer.train.encoders.crnn import CrnnEncoder
from edge_imputer.train.encoders.crnn_windowed import WindowNetwork
from edge_imputer.train.encoders.tcn import Stem, TcnBlock, TcnEncoder
from edge_imputer.train.encoders.windowed import WindowedEncoder
from edge_imputer.train.layers.recurrent import OneBiasGru
from edge_imputer.train.layers.self_attention import stream_window

from .attention import visible_keys
from .context import Lowering, lowers
from .layers import Gates, gru_first_step, gru_step


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
    visible = visible_keys(low, spec.attention, stream_window(spec.attention))
    x = low(module.stem, "stem", x)
    for k, block in enumerate(module.blocks, 1):
        x = low(block, f"block{k}", x, visible=visible)
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


# ------------------------------------------------------------------------------ windows


@lowers(OneBiasGru)
def one_bias_gru(low: Lowering, module: OneBiasGru, name: str, x: str) -> str:
    """A window's frames (T, K) -> (T, 2 H), both directions written out step by step."""
    sides = tuple(_one_direction(low, module, name, x, side) for side in ("", "_reverse"))
    return low.g.concat(name, sides, 1)


def _one_direction(low: Lowering, module: OneBiasGru, name: str, x: str, side: str) -> str:
    """A window's frames (T, K) -> (T, H). What all steps compute has one scale for all of them."""
    g, n_frames, here = low.g, low.g.shape(x)[0], f"{name}{side}"
    of_r_and_z = 2 * module.gru.hidden_size
    of_x, of_h = (  # rows of r and z, and of n; the last column of the first is the bias
        dict(zip(Gates._fields, (weight[:of_r_and_z], weight[of_r_and_z:]), strict=True))
        for weight in (
            low.array(getattr(module.gru, f"weight_{kind}_l0{side}")) for kind in ("ih", "hh")
        )
    )
    frames = {}
    for gate, weight in of_x.items():
        y = g.fully_connected(f"{here}.x_{gate}", x, weight[:, :-1], weight[:, -1])
        frames[gate] = [g.slice(f"{here}.{t}.x_{gate}", y, 0, t, 1) for t in range(n_frames)]
    seen = [Gates(*gates) for gates in zip(*frames.values(), strict=True)]
    first, *later = reversed(range(n_frames)) if side else range(n_frames)
    states = {first: gru_first_step(low, f"{here}.{first}", seen[first])}
    h = states[first]
    for t in later:
        remembered = (
            g.fully_connected(
                f"{here}.{t}.h_{gate}",
                h,
                weight,
                np.zeros(len(weight), np.float32),
                constants=f"{here}.h_{gate}",
            )
            for gate, weight in of_h.items()
        )
        h = states[t] = gru_step(low, f"{here}.{t}", seen[t], Gates(*remembered), h)
    for part in ("h_rz", "h_n", "rz_sum", "reset", "n_sum", "kept"):
        g.graph.alike.append(tuple(f"{here}.{t}.{part}" for t in later))
    return g.concat(f"{here}.states", tuple(states[t] for t in range(n_frames)), 0)


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
