"""Sparse attention: which frames a frame sees, and how to compute it without looking at the rest.

After Child et al. 2019 (arXiv:1904.10509), sections 4 and 5, made fit for speech: without the
causal order too, for lengths that are no multiple of the block, for padded batches and streams.

`pattern_mask` says what a pattern is, pair by pair; `sparse_attention` computes the same by
reshaping frames into blocks, about T sqrt(T) operations and memory where the block is near sqrt(T).
"""

from __future__ import annotations

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_imputer.specs import AttentionSpec

from .key_sets import Around, ByIndex, Columns, KeySet, Pick, attend

# ------------------------------------------------------------------------------ what is seen


def pattern_mask(spec: AttentionSpec, n_frames: int, length: int | None = None) -> Tensor:
    """Which frame sees which: the definition, of quadratic size, for tests and pictures.

    Parameters
    ----------
    spec : AttentionSpec
    n_frames : int
        T, padding included.
    length : int or None
        Frames before the padding; None: all. Padding sees nothing and is not seen.

    Returns
    -------
    bool, (heads, T, T)
        True at (h, i, j) where frame i sees frame j in head h.
    """
    frame = torch.arange(n_frames)
    return sees(spec, frame[:, None], frame, n_frames if length is None else length)


def sees(spec: AttentionSpec, i: Tensor, j: Tensor, length: int) -> Tensor:
    """Whether frame i sees frame j, by head; `pattern_mask` for some pairs.

    Parameters
    ----------
    i, j : integer, (N, 1) and (M,)
    length : int
        Frames of the utterance.

    Returns
    -------
    bool, (heads, N, M)
    """
    start_i, start_j = i // spec.block * spec.block, j // spec.block * spec.block
    allowed = (i < length) & (j < length)
    if spec.direction != "bidirectional":
        allowed = allowed & (j <= torch.minimum(i + spec.ahead, start_i + spec.block - 1))
    near = _is_near(spec, i, j, start_i) & allowed
    if not spec.has_far:
        return near.expand(spec.heads, -1, -1)
    if spec.pattern == "strided":
        far = (i - j) % spec.block == 0
    else:
        end_j = start_j + spec.block
        if spec.direction == "bidirectional":  # else nobody comes after a block that is not full
            end_j = end_j.clamp(max=length)
        far = j >= end_j - spec.summaries
    if spec.memory_blocks is not None:
        far = far & (start_j >= start_i - spec.memory_blocks * spec.block)
    far = far & allowed
    if spec.head_mode == "merged":
        return (near | far).expand(spec.heads, -1, -1)
    n_far = spec.heads - spec.near_heads
    return torch.cat([near.expand(spec.near_heads, -1, -1), far.expand(n_far, -1, -1)])


def _is_near(spec: AttentionSpec, i: Tensor, j: Tensor, start: Tensor) -> Tensor:
    """The near set without regard to direction or padding; `start` is that of i's block."""
    if spec.pattern == "dense":
        return torch.ones_like(i + j, dtype=torch.bool)
    if spec.pattern == "strided":
        return (i - j).abs() < spec.block
    return _is_local(spec, j, start)


def _is_local(spec: AttentionSpec, j: Tensor, start: Tensor) -> Tensor:
    """Whether frame j is in the block that begins at `start`, or in its context."""
    return (j >= start - spec.left_context) & (j < start + spec.block + spec.left_context)


# ------------------------------------------------------------------------------ computing it


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, spec: AttentionSpec
) -> Tensor:
    """Softmax attention in which a frame sees what `pattern_mask` says.

    Parameters
    ----------
    q, k, v : float, (B, H, T, D)
        H is ``spec.heads``.
    lengths : integer, (B,), or None
        Valid frames; None: all. Whatever stands in the padding has no effect and no gradient.
    spec : AttentionSpec

    Returns
    -------
    (B, H, T, D)
        0 in the padding, and where a head sees nothing: with split heads, the far ones before the
        first summaries.
    """
    batch, heads, n_frames, _ = q.shape
    if heads != spec.heads or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"expected q, k and v of one shape (B, {spec.heads}, T, D), got {tuple(q.shape)}, "
            f"{tuple(k.shape)} and {tuple(v.shape)}"
        )
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"expected lengths ({batch},), got {tuple(lengths.shape)}")
    if q.numel() == 0:
        return q + k + v  # nothing, with gradients of nothing
    if lengths is None:
        return _by_pattern(q, k, v, lengths, spec)
    frame = torch.arange(n_frames, device=q.device)
    padding = (frame >= lengths[:, None])[:, None, :, None]  # (B, 1, T, 1)
    q, k, v = (x.masked_fill(padding, 0) for x in (q, k, v))
    out = _by_pattern(q, k, v, lengths.clamp(0, n_frames), spec)
    return out.masked_fill(padding, 0)


def _by_pattern(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, spec: AttentionSpec
) -> Tensor:
    """`sparse_attention` of zero-padded frames; in the padding the output is anything finite."""
    if spec.pattern == "dense":
        if spec.direction == "causal":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if spec.direction == "bidirectional":
            return _dense(q, k, v, lengths)
        # Every frame of earlier blocks is seen, as if it were its block's summary.
        spec = msgspec.structs.replace(spec, pattern="fixed", summaries=spec.block)
    n_frames = q.shape[2]
    grid = Grid(spec, n_frames, lengths, q)
    missing = grid.n_blocks * spec.block - n_frames
    if not missing:  # else padding by nothing would copy, and be kept for the backward pass
        return _in_blocks(q, k, v, grid)
    q, k, v = (F.pad(x, (0, 0, 0, missing)) for x in (q, k, v))
    return _in_blocks(q, k, v, grid)[:, :, :n_frames]


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
    """`sparse_attention` of whole blocks."""
    spec, n = grid.spec, grid.spec.near_heads
    if spec.head_mode == "merged":
        sets = [near_set(grid, n), *(far_sets(grid, n) if spec.has_far else [])]
        return attend(q, k, v, sets, spec.block)
    near = attend(q[:, :n], k[:, :n], v[:, :n], [near_set(grid, n)], spec.block)
    far_heads = spec.heads - n
    far = attend(q[:, n:], k[:, n:], v[:, n:], far_sets(grid, far_heads), spec.block)
    return torch.cat([near, far], 1)


def _dense(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
    """Every frame sees every valid frame."""
    seen = None
    if lengths is not None:
        frame = torch.arange(q.shape[2], device=q.device)
        seen = frame < lengths.clamp(min=1)[:, None]  # without any key there is no softmax
        seen = seen[:, None, None]  # (B, 1, 1, T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


# ------------------------------------------------------------------------------ sets of keys


class Grid:
    """Frames of a batch in whole blocks, and where each utterance ends.

    Parameters
    ----------
    spec : AttentionSpec
    n_frames : int
        T, before it is padded to whole blocks.
    lengths : (B,) or None
    like : Tensor, (B, ...)
        Whose device and type the biases get (float32 at least).
    """

    def __init__(
        self, spec: AttentionSpec, n_frames: int, lengths: Tensor | None, like: Tensor
    ) -> None:
        self.spec = spec
        self.batch = len(like)
        self.n_blocks = -(-n_frames // spec.block)
        self.whole = lengths is None and n_frames % spec.block == 0
        self.device = like.device
        self.dtype = torch.promote_types(like.dtype, torch.float32)
        if lengths is None:
            lengths = torch.full((1,), n_frames, device=like.device)
        self.lengths = lengths  # (B,), or (1,) where all are the same
        self.start = self.range(self.n_blocks) * spec.block  # (n_blocks,)

    def range(self, *bounds: int) -> Tensor:
        """`torch.arange` on the batch's device."""
        return torch.arange(*bounds, device=self.device)

    def bias(self, seen: Tensor) -> Tensor:
        """0 where `seen`, -inf elsewhere."""
        zeros = torch.zeros(seen.shape, device=self.device, dtype=self.dtype)
        return zeros.masked_fill_(~seen, -torch.inf)

    def per_head(self, bias: Tensor, heads: int) -> Tensor:
        """(B or 1, G / (B H), N, M) -> (G, N, M): the same for all heads."""
        bias = bias[:, None].expand(self.batch, heads, *bias.shape[1:])
        return bias.reshape(-1, *bias.shape[3:])

    def inside(self, column: Tensor) -> Tensor:
        """Whether there is a frame at `column` (M,) from a block's start; (B or 1, n_blocks, M)."""
        frame = self.start[:, None] + column
        return (frame >= 0) & (frame < self.lengths[:, None, None])


def near_set(grid: Grid, heads: int) -> KeySet:
    """A block's own frames and those around it."""
    spec = grid.spec
    before = spec.block - 1 if spec.pattern == "strided" else spec.left_context
    after = before if spec.direction == "bidirectional" else 0
    return _around(grid, heads, -before, spec.block + after)


def far_sets(grid: Grid, heads: int) -> list[KeySet]:
    """What is seen beyond the near set or, with split heads, whether near or not."""
    spec = grid.spec
    if spec.pattern == "strided":
        return [_columns(grid, heads)]
    if spec.direction == "bidirectional":
        return [_summaries_of_all(grid, heads)]
    if spec.head_mode == "merged":
        return [_earlier_summaries(grid)]
    own = _around(grid, heads, spec.block - spec.summaries, spec.block)
    return [_earlier_summaries(grid), own]


def _around(grid: Grid, heads: int, first: int, end: int) -> KeySet:
    """Keys `first` to `end` (exclusive), counted from the start of the query's block."""
    spec = grid.spec
    row, column = grid.range(spec.block)[:, None], grid.range(first, end)
    biases = []
    if spec.pattern == "strided" or spec.ahead < spec.block - 1:
        seen = column <= row + spec.ahead
        if spec.pattern == "strided":
            distance = (column - row).abs() < spec.block
            seen = distance if spec.direction == "bidirectional" else distance & seen
        biases.append(grid.bias(seen)[None])
    # In causal order what is seen of the own block is before the end, if the query is.
    if first < 0 or end > spec.block or not (grid.whole or spec.direction == "causal"):
        inside = grid.bias(grid.inside(column))[:, :, None]  # (B or 1, n_blocks, 1, M)
        biases.append(grid.per_head(inside, heads))
    return KeySet("blocks", Around(spec.block, first, end), tuple(biases))


def _earlier_summaries(grid: Grid) -> KeySet:
    """The last frames of earlier blocks; nobody is after a block that is not full."""
    spec = grid.spec
    frame = _summary_frames(grid, grid.start + spec.block)
    row, column = grid.range(grid.n_blocks)[:, None], grid.range(len(frame)) // spec.summaries
    seen = column < row
    if spec.memory_blocks is not None:
        seen &= column >= row - spec.memory_blocks
    if spec.head_mode == "merged":
        seen &= ~_is_local(spec, frame, grid.start[:, None])
    return KeySet(
        "frames",
        Around(spec.block, spec.block - spec.summaries, spec.block),
        (grid.bias(seen)[None],),
        repeat=spec.block,
        per_row=spec.summaries,
        back=spec.memory_blocks,
        forward=-1,
    )


def _summaries_of_all(grid: Grid, heads: int) -> KeySet:
    """The last frames of all blocks; of a last block that is not full, those it ends with."""
    spec = grid.spec
    end = torch.minimum(grid.start + spec.block, grid.lengths[:, None])
    frame = _summary_frames(grid, end)  # (B or 1, n c)
    seen = (frame >= grid.start.repeat_interleave(spec.summaries))[:, None]  # (B or 1, 1, n c)
    if spec.head_mode == "merged":
        seen = seen & ~_is_local(spec, frame[:, None], grid.start[:, None])
    pick: Pick = ByIndex(frame.clamp(min=0))
    if grid.whole:
        pick = Around(spec.block, spec.block - spec.summaries, spec.block)
    bias = grid.bias(seen)  # (B or 1, n or 1, n c)
    if len(bias) > 1:
        bias = grid.per_head(bias[:, None], heads)
    return KeySet("frames", pick, (bias,), repeat=spec.block, per_row=spec.summaries)


def _summary_frames(grid: Grid, end: Tensor) -> Tensor:
    """Where the summaries of blocks that end at `end` (..., n) stand, (..., n c)."""
    c = grid.spec.summaries
    return (end[..., None] + grid.range(-c, 0)).flatten(-2)


def _columns(grid: Grid, heads: int) -> KeySet:
    """Every l-th frame; without the query's own frame where that is in the near set too."""
    spec, n = grid.spec, grid.n_blocks
    row, column = grid.range(n)[:, None], grid.range(n)
    merged, both_ways = spec.head_mode == "merged", spec.direction == "bidirectional"
    biases = []
    if both_ways:
        if merged:
            biases.append(grid.bias(column != row)[None])
        if not grid.whole:
            inside = grid.bias(grid.inside(grid.range(spec.block)))  # (B or 1, n, l)
            biases.append(grid.per_head(inside.transpose(1, 2)[:, :, None], heads))
    else:
        seen = column < row if merged else column <= row
        if spec.memory_blocks is not None:
            seen &= column >= row - spec.memory_blocks
        biases.append(grid.bias(seen)[None])
    return KeySet(
        "columns",
        Columns(spec.block),
        tuple(biases),
        back=spec.memory_blocks,
        forward=None if both_ways else -merged,
    )
