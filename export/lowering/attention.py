"""Attention: heads, rotary positions, what a stream remembers, what a frame may see.

Queries, keys and values come from one layer, so they have one scale, and what a stream remembers
of keys and values is one tensor. Its frames stand so that a step takes few operations: those
before the chunk, the chunk, summaries of earlier blocks from the newest to the oldest. What is kept
for the next step is then cut out of one tensor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import ExportError
from edge_imputer.specs import AttentionSpec
from edge_imputer.train.layers.self_attention import SelfAttention, Window, angles_of

from ..graph import Array
from .context import Lowering, lowers

BEYOND = 200.0  # a bound that no score reaches, nor the lowest one's opposite
Visible = str | Array | None
"""Which keys a frame sees: 0.5, else -0.5, (1, T or 1, M); computed, known beforehand, or all."""


def heads_of(low: Lowering, name: str, x: str, n_heads: int) -> str:
    """(T, C) -> (heads, T, C / heads)."""
    n_frames, width = low.g.shape(x)
    split = low.g.reshape(f"{name}.split", x, (n_frames, n_heads, width // n_heads))
    return low.g.transpose(f"{name}.heads", split, (1, 0, 2))


def queries_keys_values(low: Lowering, name: str, qkv: str, n_heads: int) -> list[str]:
    """(T, 3 C) -> three times (heads, T, C / heads)."""
    heads = heads_of(low, name, qkv, 3 * n_heads)
    return [
        low.g.slice(f"{name}.{part}", heads, 0, k * n_heads, n_heads)
        for k, part in enumerate("qkv")
    ]


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


# ------------------------------------------------------------------------------ streams


def remembered(low: Lowering, name: str, new: str, axis: int, spec: AttentionSpec) -> str:
    """What a step sees of something that it has for every frame of its chunk, along an axis.

    Frames before the chunk, the chunk, the summaries of earlier blocks from the newest to the
    oldest; what the next step needs of it is kept.
    """
    g, past, memory = low.g, spec.past_frames, spec.memory_frames
    if not past and not memory:
        return new

    def state(part: str, size: int) -> list[str]:
        shape = tuple(size if k == axis else n for k, n in enumerate(g.shape(new)))
        return [low.state(f"{name}.{part}.state", shape)] if size else []

    states = {"past": state("past", past), "memory": state("memory", memory)}
    x = g.concat(f"{name}.all", (*states["past"], new, *states["memory"]), axis)
    begins = {"past": spec.block, "memory": past + spec.block - spec.summaries}
    for part, names in states.items():
        for before in names:
            size = g.shape(before)[axis]
            low.keep(before, g.slice(f"{name}.{part}.next", x, axis, begins[part], size))
    return x


def seen_order(spec: AttentionSpec) -> npt.NDArray[np.int64]:
    """Where the keys of `remembered` are among those of a `Window`, (M,)."""
    memory, others = np.split(np.arange(spec.stream_keys), [spec.memory_frames])
    newest_first = memory.reshape(-1, spec.summaries)[::-1].ravel() if memory.size else memory
    return np.concatenate([others, newest_first])


def visible_keys(low: Lowering, spec: AttentionSpec, window: Window) -> Visible:
    """What the frames of a step see among its keys, for all layers of an encoder.

    The states begin as zeros, which are no frames; ones follow them as frames do.
    """
    g = low.g
    if spec.head_mode == "split":
        raise ExportError(
            "expected heads that all see the union of the pattern's sets (head_mode merged), got "
            "split: a head that sees nothing yet has no softmax"
        )
    seen = window.seen[:1, :, seen_order(spec)]  # the same for every head
    pattern = None if seen.all() else np.where(seen, 0.5, -0.5).astype(np.float32)
    if spec.stream_keys == spec.block:
        return pattern
    ones = g.constant("valid.chunk", np.ones((1, 1, spec.block), np.float32))
    half = g.constant("valid.half", np.full((1, 1, 1), 0.5, np.float32))
    valid = g.binary("sub", "valid", remembered(low, "valid", ones, 2, spec), half)
    if pattern is None:
        return valid
    return g.binary("minimum", "visible", valid, g.constant("visible.pattern", pattern))


def masked(low: Lowering, name: str, scores: str, visible: Visible) -> str:
    """Scores (H, T, M), the lowest where a key is not seen: in integers so far below the others
    that softmax makes it 0."""
    g = low.g
    if visible is None:
        return scores
    if isinstance(visible, str):
        far = g.constant(f"{name}.far", np.full((1, 1, 1), 2 * BEYOND, np.float32))
        bound = g.binary("mul", f"{name}.bound", visible, far)
    else:
        bound = g.constant(f"{name}.bound", visible * np.float32(2 * BEYOND))
    g.graph.saturating |= {bound, scores}  # what is masked decides, see `softmax_inputs`
    return g.binary("minimum", f"{name}.masked", scores, bound)


@lowers(SelfAttention)
def self_attention(
    low: Lowering,
    module: SelfAttention,
    name: str,
    x: str,
    *,
    visible: Visible,
    columns: Array | None = None,
) -> str:
    """One chunk of a stream, (T, C) -> (T, C)."""
    g, spec, window, heads = low.g, module.spec, module.window, module.spec.heads
    if window is None:
        spec.check_streaming()  # raises
    assert window is not None
    n_frames, width = g.shape(x)
    scale = np.ones(3 * width, np.float32)
    scale[:width] = (width // heads) ** -0.5  # of the queries, which turning does not change
    qkv = low(module.qkv, f"{name}.qkv", x, columns=columns, scale=scale)
    qkv = heads_of(low, f"{name}.qkv", qkv, 3 * heads)
    q, new = (
        g.slice(f"{name}.{part}", qkv, 0, begin, size)
        for part, begin, size in (("q", 0, heads), ("kv", heads, 2 * heads))
    )
    kv = remembered(low, f"{name}.kv", new, 1, spec)
    keys, values = (
        g.slice(f"{name}.{part}", kv, 0, k * heads, heads) for k, part in enumerate("kv")
    )
    q = turned(low, f"{name}.q_turned", q, np.arange(n_frames))
    keys = turned(low, f"{name}.k_turned", keys, window.position[seen_order(spec)])
    scores = g.batch_matmul(f"{name}.scores", q, keys, transposed=True)
    weights = g.unary("softmax", f"{name}.weights", masked(low, name, scores, visible))
    out = joined_heads(low, f"{name}.seen", g.batch_matmul(f"{name}.mixed", weights, values))
    return low(module.out, f"{name}.out", out)
