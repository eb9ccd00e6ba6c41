"""Heads: one pass of an Imputer over a chunk and what is before it."""

from __future__ import annotations

import numpy as np

from edge_imputer.train.imputer import ImputerHead, WindowAttention

from .attention import joined_heads, queries_keys_values
from .context import Lowering, lowers
from .layers import norm, normalised, silu


@lowers(ImputerHead)
def imputer_head(low: Lowering, module: ImputerHead, name: str, frames: str, ids: str) -> str:
    """(window, d_model) and ids (window,) -> logits (chunk, vocabulary)."""
    g, spec = low.g, module.spec
    if spec.mixer == "none":  # CTC: the alignment is not looked at
        left = g.shape(frames)[0] - spec.chunk_size
        chunk = g.slice("chunk", frames, 0, left, spec.chunk_size) if left else frames
        return low(module.output, name, chunk)
    projected = low(module.input, "input", frames)
    tokens = g.embedding("tokens", ids, low.array(module.embedding.weight))
    x = g.binary("add", "frames", projected, tokens)
    mixed = _convolved(low, module, x) if spec.mixer == "conv" else _attended(low, module, x)
    return low(module.output, name, mixed)


def _convolved(low: Lowering, module: ImputerHead, x: str) -> str:
    """(window, width) -> (chunk, width)."""
    g, (window, width) = low.g, low.g.shape(x)
    half = module.spec.kernel // 2
    x = g.reshape("frames.nhwc", x, (1, window, 1, width))
    for k, conv in enumerate(module.conv):
        weight = low.array(conv.weight).transpose(0, 2, 1)[:, :, np.newaxis]  # type: ignore[arg-type]
        padded = g.pad(f"conv{k}.padded", x, 1, 0, half)
        bias = low.array(conv.bias)  # type: ignore[arg-type]
        y = g.conv2d(f"conv{k}", padded, weight, bias, (1, 1), relu=True)
        kept = g.shape(y)[1]
        skip = g.slice(f"conv{k}.skip", x, 1, half, kept) if half else x
        x = g.binary("add", f"conv{k}.residual", skip, y)
    return g.reshape("frames.flat", x, (module.spec.chunk_size, width))


def _attended(low: Lowering, module: ImputerHead, x: str) -> str:
    """(window, width) -> (chunk, width)."""
    g, spec = low.g, module.spec
    x = g.binary("add", "placed", x, g.constant("place", low.array(module.place)))
    for k, layer in enumerate(module.attention):
        x = low(layer, f"attention{k}", x)
    if spec.left_context:
        x = g.slice("chunk", x, 0, spec.left_context, spec.chunk_size)
    return norm(low, module.norm, "norm", x)


@lowers(WindowAttention)
def window_attention(low: Lowering, module: WindowAttention, name: str, x: str) -> str:
    """(window, width) -> the same; every frame sees the whole window."""
    g, width = low.g, low.g.shape(x)[1]
    rows, gain = normalised(low, module.norms[0], f"{name}.norm0", x)
    scale = np.ones(3 * width, np.float32)
    scale[:width] = (width // module.heads) ** -0.5
    qkv = low(module.qkv, f"{name}.qkv", rows, columns=gain, scale=scale)
    q, k, v = queries_keys_values(low, name, qkv, module.heads)
    scores = g.batch_matmul(f"{name}.scores", q, k, transposed=True)
    weights = g.unary("softmax", f"{name}.weights", scores)
    seen = joined_heads(low, f"{name}.seen", g.batch_matmul(f"{name}.mixed", weights, v))
    x = g.binary("add", f"{name}.sum", x, low(module.out, f"{name}.out", seen))
    rows, gain = normalised(low, module.norms[1], f"{name}.norm1", x)
    up = low(module.up, f"{name}.up", rows, columns=gain)
    return g.binary("add", name, x, low(module.down, f"{name}.down", silu(low, name, up)))
