"""Self-attention of an encoder: which frames a frame sees."""

from __future__ import annotations

from typing import Literal

from ..errors import SpecError
from .base import Spec

Pattern = Literal["dense", "local", "fixed", "strided", "local+fixed"]
Direction = Literal["bidirectional", "chunk", "causal"]
HeadMode = Literal["split", "merged"]


class AttentionSpec(Spec, frozen=True, kw_only=True):
    """Which frames a frame sees, after the Sparse Transformer (Child et al. 2019, sections 4-5).

    Frames come in blocks of `block`; a stream is encoded block by block. Every pattern but two
    is the union of a near set and a far one, both small:

    ============= ========================================= =====================================
    pattern       near                                      far
    ============= ========================================= =====================================
    dense         all frames
    local         own block, `left_context` frames before
    fixed         own block                                 the last `summaries` frames of blocks
    local+fixed   own block, `left_context` frames before   the last `summaries` frames of blocks
    strided       the frames less than `block` away         every `block`-th frame from here
    ============= ========================================= =====================================

    What of these lies in the future is seen as the direction allows. The definition in full is
    `pattern_mask` in ``edge_imputer.train.layers.attention``.

    Attributes
    ----------
    pattern : str
        "local+fixed" suits speech; "strided" wants periodic data.
    heads : int
    block : int
        Frames of a block (the paper's stride l). Cost is least near sqrt(summaries * n) for
        n frames; in a stream it is the chunk.
    summaries : int
        Frames at a block's end that frames far away see too (the paper's c).
    left_context : int
        Frames before its block that a frame sees besides; bidirectional: as many after it.
    memory_blocks : int or None
        How many blocks back the far set reaches. None is the paper's "all", which takes memory
        that grows with the stream: see `check_streaming`.
    head_mode : str
        "merged": every head sees the union, in one softmax. "split": the first half of the heads
        (and the odd one) see the near set, the others the far one.
    direction : str
        "bidirectional"; "causal": nothing later; "chunk": nothing later than the own block.
    lookahead : int or None
        Direction "chunk": how many frames ahead within its block a frame sees. None: all.
    """

    pattern: Pattern = "local+fixed"
    heads: int = 4
    block: int = 8
    summaries: int = 2
    left_context: int = 0
    memory_blocks: int | None = None
    head_mode: HeadMode = "merged"
    direction: Direction = "chunk"
    lookahead: int | None = None

    @property
    def ahead(self) -> int:
        """Frames ahead within its block that a frame sees at most."""
        if self.direction == "causal":
            return 0
        return self.block - 1 if self.lookahead is None else self.lookahead

    @property
    def has_far(self) -> bool:
        """Whether frames are seen beyond the near ones."""
        return self.pattern in ("fixed", "strided", "local+fixed")

    @property
    def has_summaries(self) -> bool:
        """Whether the far frames are the blocks' last ones."""
        return self.pattern in ("fixed", "local+fixed")

    @property
    def near_heads(self) -> int:
        """Heads that see the near set: the first ones."""
        return self.heads if self.head_mode == "merged" else (self.heads + 1) // 2

    @property
    def past_frames(self) -> int:
        """Frames just before a chunk that a stream keeps."""
        if self.pattern == "strided":
            return self.block * (self.memory_blocks or 0)
        return self.left_context

    @property
    def memory_frames(self) -> int:
        """Summaries of earlier blocks that a stream keeps."""
        return self.summaries * (self.memory_blocks or 0) if self.has_summaries else 0

    @property
    def stream_keys(self) -> int:
        """Keys that every frame of a streamed chunk is compared with."""
        return self.memory_frames + self.past_frames + self.block

    def check(self, d_model: int | None = None) -> None:
        """Raise `SpecError` on contradictions.

        Parameters
        ----------
        d_model : int or None
            Width of the layer, where it is known: the heads must divide it, into even parts
            (rotary positions turn pairs of channels).
        """
        if min(self.heads, self.block, self.summaries) < 1:
            raise SpecError(
                "expected heads, block and summaries >= 1, got "
                f"{self.heads}, {self.block} and {self.summaries}"
            )
        if d_model is not None and (d_model < 1 or d_model % (2 * self.heads)):
            raise SpecError(
                f"expected heads that divide d_model into even parts, got d_model {d_model} and "
                f"{self.heads} heads; d_model must be a multiple of {2 * self.heads}"
            )
        self._check_pattern()
        self._check_direction()

    def _check_pattern(self) -> None:
        if self.has_summaries and self.summaries > self.block:
            raise SpecError(
                f"expected at most as many summaries as a block has frames ({self.block}), got "
                f"{self.summaries}"
            )
        if self.left_context < 0 or (self.left_context and "local" not in self.pattern):
            raise SpecError(
                "expected left_context >= 0, and 0 unless the pattern is local or local+fixed, got "
                f"{self.left_context} with {self.pattern}"
            )
        if self.head_mode == "split" and (self.heads < 2 or not self.has_far):
            raise SpecError(
                "expected two heads or more and a pattern of two sets (fixed, strided or "
                f"local+fixed) to split, got heads {self.heads} and {self.pattern}; "
                "leave head_mode merged"
            )

    def _check_direction(self) -> None:
        memory = self.memory_blocks
        if memory is not None and memory < 1:
            raise SpecError(f"expected memory_blocks >= 1, or None for all, got {memory}")
        if memory is not None and not (self.has_far and self.direction != "bidirectional"):
            raise SpecError(
                "memory_blocks bounds how far back the pattern's far set reaches: expected None "
                f"with {self.pattern}, {self.direction}, got {memory}; it goes with fixed, "
                "strided and local+fixed in direction chunk or causal"
            )
        if self.lookahead is None:
            return
        if self.direction != "chunk":
            raise SpecError(
                "lookahead is counted within a chunk: expected None with direction "
                f"{self.direction}, got {self.lookahead}; use direction chunk"
            )
        if not 0 <= self.lookahead < self.block:
            raise SpecError(
                "expected a lookahead within the chunk, which is a block: 0 to "
                f"{self.block - 1} frames, got {self.lookahead}"
            )

    @property
    def streams(self) -> bool:
        """Whether a stream of any length takes constant memory."""
        return self._hindrance() is None

    def check_streaming(self) -> None:
        """Raise `SpecError` unless a stream of any length takes constant memory."""
        hindrance = self._hindrance()
        if hindrance is not None:
            raise SpecError(hindrance)

    def _hindrance(self) -> str | None:
        if self.direction == "bidirectional":
            return (
                "expected direction chunk or causal to encode a stream, got bidirectional: its "
                "first frame sees the last one"
            )
        if self.pattern == "dense":
            return (
                "dense attention keeps every frame of a stream: expected local, fixed, strided "
                "or local+fixed; local with left_context is dense attention of bounded reach"
            )
        if self.has_far and self.memory_blocks is None:
            return (
                f"{self.pattern} attention keeps something of every block of a stream: expected "
                "memory_blocks, the number of blocks to remember, got None"
            )
        return None
