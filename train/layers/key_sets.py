"""One softmax over several sets of keys, each laid out as its own batch of small matrices.

A sparse pattern is a union of sets: a block's own frames, the summaries of other blocks, every
l-th frame. Within each set the scores are a batch of dense matrices, once frames are reshaped the
right way; over the union they share one softmax. So every set gives its output and the logarithm
of its sum of exponentials, and these are merged, which is exact. The scores are made in tiles that
fit a cache, are never kept, and are made again in the backward pass (as in Dao et al. 2022,
FlashAttention): what is kept for it is the inputs, the output and one number a frame and head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Layout = Literal["blocks", "frames", "columns"]

# Scores of one tile: about a core's second-level cache, or enough to fill a GPU.
TILE_SCORES_CPU = 2**18
TILE_SCORES_GPU = 2**26
SHORTEST = 16  # rows of a tile where keys come in windows
LOWEST = -1e30  # below every score, and finite: a row without keys must not become inf - inf


class Pick(Protocol):
    """Which frames are a set's keys, in which order; frames may be picked more than once."""

    @property
    def all_in_order(self) -> bool:
        """Whether every frame is picked once, in order."""

    def take(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, H, ..., M, D)."""

    def give(self, gradient: Tensor, into: Tensor) -> None:
        """Add the gradient of what `take` returned, contiguous, to that of the frames, in place."""


@dataclass(frozen=True)
class KeySet:
    """A set of keys: what they are, how they lie, and which query row sees which.

    Frames (B, H, T, D), T in whole blocks of l, become a batch of G matrices of N rows:

    ======= ========= ======= ========================================
    layout  G         N       a matrix is
    ======= ========= ======= ========================================
    blocks  B H T/l   l       a block
    frames  B H       T       everything
    columns B H l     T/l     every l-th frame
    ======= ========= ======= ========================================

    Keys and values become (G, M, D).

    Attributes
    ----------
    pick : Pick
    biases : each broadcastable to (G, N / repeat, M)
        Added to the scores: 0 where a row sees a key, -inf where not.
    repeat : int
        Query rows that share a row of the biases.
    per_row : int
        Keys that belong to a row of the biases; the next two fields count such rows.
    back : int or None
        A row sees no keys of rows further back. None: all.
    forward : int or None
        The same ahead; 0 is the row itself, -1 the one before it. None: all.
    """

    layout: Layout
    pick: Pick
    biases: tuple[Tensor, ...] = ()
    repeat: int = 1
    per_row: int = 1
    back: int | None = None
    forward: int | None = None

    def reach(self, rows: slice, n_keys: int) -> slice:
        """Keys that some row of `rows` may see; what is outside need not be looked at."""
        first = 0 if self.back is None else max(0, rows.start - self.back) * self.per_row
        if self.forward is None:
            return slice(first, n_keys)
        return slice(first, min(n_keys, (rows.stop + self.forward) * self.per_row))


@dataclass(frozen=True)
class Tile:
    """A part of the scores: some matrices, some query rows, and the keys these may see."""

    matrices: slice
    queries: slice
    rows: slice  # of the biases
    keys: slice


def tiles(keys: KeySet, q: Tensor, n_keys: int) -> Iterator[Tile]:
    """Cut the scores (G, N, M) of queries (G, N, D) into tiles; what is in none is not seen."""
    n_matrices, n_queries, _ = q.shape
    budget = TILE_SCORES_CPU if q.device.type == "cpu" else TILE_SCORES_GPU
    n_rows = size = n_queries // keys.repeat
    if keys.back is not None:  # so that at most half of a tile is out of its rows' reach
        size = min(n_rows, max(keys.back, SHORTEST))
    elif keys.forward is not None and n_matrices * n_queries * n_keys > budget:
        size = -(-n_rows // 4)  # what lies ahead of a tile is skipped
    widest = keys.reach(slice(n_rows - size, n_rows), n_keys)
    width = max(1, widest.stop - widest.start) * keys.repeat
    size = max(1, min(size, budget // width))
    depth = max(1, budget // (width * size))
    for start in range(0, n_rows, size):
        rows = slice(start, min(n_rows, start + size))
        reach = keys.reach(rows, n_keys)
        queries = slice(rows.start * keys.repeat, rows.stop * keys.repeat)
        if reach.start < reach.stop:
            for matrix in range(0, n_matrices, depth):
                yield Tile(slice(matrix, matrix + depth), queries, rows, reach)


def blocks(x: Tensor, block: int) -> Tensor:
    """(B, H, T, D) -> (B, H, T / block, block, D)."""
    batch, heads, frames, width = x.shape
    return x.reshape(batch, heads, frames // block, block, width)


@dataclass(frozen=True)
class Around:
    """Frames `first` to `end` (exclusive) from every block's start; zeros where there are none.

    Either within the block, or all of it and more.
    """

    block: int
    first: int
    end: int

    @property
    def all_in_order(self) -> bool:
        """See `Pick`."""
        return self.first == 0 and self.end == self.block

    @property
    def _within(self) -> bool:
        return self.first >= 0 and self.end <= self.block

    def take(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, H, T / block, end - first, D)."""
        if self._within:
            return blocks(x, self.block)[:, :, :, self.first : self.end]
        padded = F.pad(x, (0, 0, -self.first, self.end - 1))
        return torch.cat([part for _, part in self._parts(padded, x.shape[2])], 3)

    def give(self, gradient: Tensor, into: Tensor) -> None:
        """See `Pick`."""
        n_frames = into.shape[2]
        gradient = gradient.view(*into.shape[:2], n_frames // self.block, -1, into.shape[3])
        if self._within:
            blocks(into, self.block)[:, :, :, self.first : self.end] += gradient
            return
        padded = F.pad(torch.zeros_like(into), (0, 0, -self.first, self.end - 1))
        for at, part in self._parts(padded, n_frames):
            part += gradient[:, :, :, at : at + self.block]
        into += padded[:, :, -self.first : n_frames - self.first]

    def _parts(self, padded: Tensor, n_frames: int) -> Iterator[tuple[int, Tensor]]:
        """What windows have from their frame `at` on, a block at most: views of padded frames."""
        size = self.end - self.first
        for at in range(0, size, self.block):
            shifted = padded[:, :, at : at + n_frames]
            yield at, blocks(shifted, self.block)[:, :, :, : size - at]


@dataclass(frozen=True)
class Columns:
    """Every `block`-th frame."""

    block: int
    all_in_order = False

    def take(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, H, block, T / block, D)."""
        return blocks(x, self.block).transpose(2, 3)

    def give(self, gradient: Tensor, into: Tensor) -> None:
        """See `Pick`."""
        columns = blocks(into, self.block).transpose(2, 3)
        columns += gradient.view(columns.shape)


@dataclass(frozen=True)
class ByIndex:
    """Frames by number.

    Attributes
    ----------
    index : integer, (B or 1, M)
    """

    index: Tensor
    all_in_order = False

    def take(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, H, M, D)."""
        return x.gather(2, self._expanded(x))

    def give(self, gradient: Tensor, into: Tensor) -> None:
        """See `Pick`."""
        index = self._expanded(into)
        into.scatter_add_(2, index, gradient.view(index.shape))

    def _expanded(self, x: Tensor) -> Tensor:
        return self.index[:, None, :, None].expand(*x.shape[:2], -1, x.shape[3])


def to_matrices(x: Tensor, layout: Layout, block: int) -> Tensor:
    """(B, H, T, D) -> (G, N, D), see `KeySet`; a view of contiguous frames except for columns."""
    if layout == "frames":
        return x.flatten(0, 1)
    x = blocks(x, block)
    if layout == "columns":
        x = x.transpose(2, 3)
    return x.flatten(0, 2)


def from_matrices(x: Tensor, layout: Layout, frames: torch.Size, block: int) -> Tensor:
    """(G, N, D) -> (B, H, T, D), the inverse of `to_matrices`; `frames` starts with B, H, T."""
    if layout == "columns":
        n_sequences = frames[0] * frames[1]
        x = x.reshape(n_sequences, block, frames[2] // block, x.shape[-1]).transpose(1, 2)
    return x.reshape(*frames[:3], x.shape[-1])


def attend(q: Tensor, k: Tensor, v: Tensor, sets: Sequence[KeySet], block: int) -> Tensor:
    """Softmax attention of every query over the union of disjoint sets of keys.

    Parameters
    ----------
    q, k, v : (B, H, T, D), T a multiple of `block`
        float16 and bfloat16 are computed in float32.
    sets : one or more

    Returns
    -------
    (B, H, T, D); 0 for a query that sees no key.
    """
    out: Tensor = _Attend.apply(q, k, v, sets, block)  # type: ignore[no-untyped-call]
    return out


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sets: Sequence[KeySet], block: int
    ) -> Tensor:
        out = lse = None
        with torch.autocast(q.device.type, enabled=False):
            for keys in sets:
                part, part_lse = (
                    from_matrices(x, keys.layout, q.shape, block)
                    for x in _forward(keys, *_matrices(keys, (q, k, v), block))
                )
                if out is None or lse is None:
                    out, lse = part, part_lse
                else:
                    out, lse = _merge(out, lse, part, part_lse)
        assert out is not None
        assert lse is not None
        lse.masked_fill_(lse.isneginf(), 0)  # exp(-inf - 0) is the probability 0 it should be
        out = out.to(q.dtype)
        ctx.sets, ctx.block = sets, block
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # the gradient would be taken for a constant, silently
            raise RuntimeError(
                "sparse attention can be differentiated only once, and create_graph=True asks for "
                "the gradient's gradient; leave it out"
            )
        q, k, v, out, lse = ctx.saved_tensors
        d_q, d_k, d_v = (torch.zeros(x.shape, dtype=lse.dtype, device=x.device) for x in (q, k, v))
        with torch.autocast(q.device.type, enabled=False):
            # What the softmax takes off: the same for every set, as is the sum of exponentials.
            mean = (d_out.to(lse.dtype) * out).sum(-1, keepdim=True)
            for keys in ctx.sets:
                _backward(keys, (q, k, v), (d_out, lse, mean), (d_q, d_k, d_v), ctx.block)
        return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype), None, None


Three = tuple[Tensor, Tensor, Tensor]


def _matrices(keys: KeySet, frames: Three, block: int) -> Three:
    """Queries (G, N, D), and the set's keys and values (G, M, D), from frames (B, H, T, D)."""
    q = to_matrices(frames[0], keys.layout, block)
    k, v = (keys.pick.take(x).reshape(len(q), -1, x.shape[3]) for x in frames[1:])
    return q, k, v


def _scores(keys: KeySet, tile: Tile, q: Tensor, k: Tensor) -> Tensor:
    """Scaled and biased scores of one tile, (g, n, m)."""
    unused = q.new_empty(()).expand(len(q), q.shape[1], k.shape[1])
    scores = torch.baddbmm(unused, q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)
    by_row = scores.view(len(q), -1, keys.repeat, k.shape[1])
    cut = (tile.matrices, tile.rows, tile.keys)
    for bias in keys.biases:
        at = tuple(
            part if size > 1 else slice(None) for part, size in zip(cut, bias.shape, strict=True)
        )
        by_row.add_(bias[at].unsqueeze(2))
    return scores


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over two sets from the softmax over each; their sums of exponentials weigh them."""
    top = torch.maximum(lse, part_lse).clamp_min_(LOWEST)
    weight, part_weight = (lse - top).exp_(), (part_lse - top).exp_()
    total = weight + part_weight  # 1 to 2, or 0 without keys
    lse = top.add_(total.log())
    total.clamp_min_(1)
    return out.mul_(weight.div_(total)).addcmul_(part, part_weight.div_(total)), lse


def _forward(keys: KeySet, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output (G, N, D) and log-sum-exp (G, N, 1) of one set."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    out = torch.zeros(q.shape, dtype=dtype, device=q.device)  # what is in no tile stays so
    lse = out.new_full((*q.shape[:2], 1), -torch.inf)
    for tile in tiles(keys, q, k.shape[1]):
        at, to = (tile.matrices, tile.queries), (tile.matrices, tile.keys)
        weights = _scores(keys, tile, q[at].to(dtype), k[to].to(dtype))
        top = weights.amax(-1, keepdim=True).clamp_min_(LOWEST)
        total = weights.sub_(top).exp_().sum(-1, keepdim=True)  # at least 1, or 0 without keys
        lse[at] = top.add_(total.log())
        out[at] = torch.bmm(weights, v[to].to(dtype)).div_(total.clamp_min_(1))
    return out, lse


def _backward(keys: KeySet, frames: Three, results: Three, gradients: Three, block: int) -> None:
    """Add one set's share to the gradients of queries, keys and values, in place.

    Parameters
    ----------
    frames : queries, keys and values, (B, H, T, D)
    results : the output's gradient; the whole union's log-sum-exp, so that weights are shares of
        the whole; and the mean that the softmax takes off
    gradients : of `frames`, contiguous
    """
    q, k, v = _matrices(keys, frames, block)
    d_out, lse, mean = (to_matrices(x, keys.layout, block) for x in results)
    # Where the matrices are views of the frames, nothing is left to be added in the end.
    in_order = keys.layout != "columns", keys.pick.all_in_order, keys.pick.all_in_order
    d_q, d_k, d_v = (
        whole.view(x.shape) if view else torch.zeros(x.shape, dtype=lse.dtype, device=x.device)
        for x, whole, view in zip((q, k, v), gradients, in_order, strict=True)
    )
    scale = q.shape[-1] ** -0.5
    for tile in tiles(keys, q, k.shape[1]):
        at, to = (tile.matrices, tile.queries), (tile.matrices, tile.keys)
        q_, k_, v_, d_ = (x.to(lse.dtype) for x in (q[at], k[to], v[to], d_out[at]))
        weights = _scores(keys, tile, q_, k_).sub_(lse[at]).exp_()
        d_v[to].baddbmm_(weights.transpose(1, 2), d_)
        d_scores = torch.bmm(d_, v_.transpose(1, 2)).sub_(mean[at]).mul_(weights)
        d_q[at].baddbmm_(d_scores, k_, alpha=scale)
        d_k[to].baddbmm_(d_scores.transpose(1, 2), q_, alpha=scale)
    picks: tuple[Pick, ...] = Columns(block), keys.pick, keys.pick
    for pick, part, whole, view in zip(picks, (d_q, d_k, d_v), gradients, in_order, strict=True):
        if not view:
            pick.give(part, whole)
