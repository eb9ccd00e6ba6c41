"""The Imputer head and its schedule."""

from __future__ import annotations

from typing import Literal, get_args

from ..errors import SpecError
from .base import Spec

Order = Literal["confidence", "left-to-right", "non-blank-first"]
Mixer = Literal["conv", "attention", "encoder", "none"]


def check_schedule(schedule: tuple[int, ...], block_size: int) -> None:
    """Raise `SpecError` unless the passes commit every frame of a block."""
    if min(schedule, default=-1) < 0 or sum(schedule) < block_size:
        raise SpecError(
            f"expected a schedule of commits >= 0 that sum to at least block_size {block_size}, "
            f"got {schedule}; make one with edge_imputer.imputation.schedule"
        )


def check_revisions(revisions: int) -> None:
    """Raise `SpecError` unless so many passes of revision can be made."""
    if revisions < 0:
        raise SpecError(
            f"expected revisions >= 0, passes that look at every frame again, got {revisions}"
        )


class ImputerSpec(Spec, frozen=True, kw_only=True):
    """Imputer head: encoder frames plus the embedded partial alignment, then a few layers.

    The layers (`mixer`) are convolutions, or self-attention within the window; the encoder has run
    once and is not run again. With "encoder" the alignment's embedding is added before the whole
    encoder, which then runs in every pass: the paper's form, for a conformer. It has no layers of
    its own, so `depth`, `width`, `kernel`, `heads` and `context` do not matter to it. With "none"
    there is but a linear layer on encoder frames, which does not see the alignment: plain CTC, all
    of a block committed in the one pass there is.

    Frames are decoded chunk by chunk; a chunk is `chunk_blocks` whole blocks of `block_size`
    frames. A frame sees `left_context` earlier frames and its own chunk, nothing later.

    Which frames of a block a pass commits is the `order`: those it is surest of; the earliest;
    or the surest of those whose best token is not the blank, and blanks once there are no others.
    Once all are committed, each of `revisions` passes more sees the whole alignment and finds every
    frame anew (Align-Refine, Chi et al. 2021, arXiv:2010.14233); heads learn it by the setting
    `refined` of their task.
    """

    mixer: Mixer = "conv"
    depth: int = 2
    width: int = 64
    kernel: int = 7  # odd; of convolutions
    heads: int = 4  # of attention
    context: int = 8  # earlier frames that attention sees; convolutions have theirs by their kernel
    block_size: int = 8
    chunk_blocks: int = 1
    schedule: tuple[int, ...] = (1, 1, 1, 1, 1, 1, 1, 1)  # frames committed a block, pass by pass
    order: Order = "confidence"
    revisions: int = 0  # passes after those of the schedule

    @property
    def n_passes(self) -> int:
        """Passes of the head a chunk: those of the schedule, and revisions."""
        return len(self.schedule) + self.revisions

    @property
    def chunk_size(self) -> int:
        """Encoder frames in a chunk."""
        return self.block_size * self.chunk_blocks

    @property
    def left_context(self) -> int:
        """Encoder frames before the chunk that the head sees."""
        if self.mixer == "conv":
            return self.depth * (self.kernel // 2)
        return self.context if self.mixer == "attention" else 0

    @property
    def window(self) -> int:
        """Encoder frames that one head pass reads: left context and chunk."""
        return self.left_context + self.chunk_size

    def check(self) -> None:
        """Raise `SpecError` on a head that cannot be built."""
        if self.order not in get_args(Order) or self.mixer not in get_args(Mixer):
            raise SpecError(
                f"expected an order of {get_args(Order)} and a mixer of {get_args(Mixer)}, got "
                f"{self.order!r} and {self.mixer!r}"
            )
        if self.kernel % 2 == 0 or min(self.depth, self.width, self.kernel) < 1:
            raise SpecError(f"expected an odd kernel and depth, width >= 1, got {self}")
        if self.mixer == "attention" and (self.heads < 1 or self.width % self.heads):
            raise SpecError(
                f"expected heads that divide the width {self.width}, got {self.heads} heads"
            )
        if self.context < 0:
            raise SpecError(f"expected a context of 0 frames or more, got {self.context}")
        if self.block_size < 1 or self.chunk_blocks < 1:
            raise SpecError(f"expected block_size >= 1 and chunk_blocks >= 1, got {self}")
        check_schedule(self.schedule, self.block_size)
        check_revisions(self.revisions)
        if self.mixer == "none" and (self.schedule != (self.block_size,) or self.revisions):
            raise SpecError(
                f"expected the schedule ({self.block_size},) and no revisions with mixer none, "
                f"which reads no alignment, got {self.schedule} and {self.revisions}"
            )
