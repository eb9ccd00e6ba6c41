"""Constant-step decoding, chunk by chunk (Chan et al. 2020, arXiv:2002.08926, section 3.4).

A chunk of encoder frames starts fully masked. Each pass runs the head once and, in every block,
commits the frames it is surest of (or another order of the specification); what is committed does
not change until all is. Then passes of revision, if there are any, see the whole alignment and find
every frame anew (Chi et al. 2021, arXiv:2010.14233). K, the number of both, is given, so the work a
chunk costs does not depend on what is said.

The head sees the chunk and `left_context` earlier frames, whose alignment it sees *as it stood
before the same pass* in their own chunk. So decoding chunk by chunk equals decoding the whole
utterance in K passes at once, bit for bit, revisions and all, and K = 1 is CTC greedy decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BackendError, SpecError
from .specs import ImputerSpec, TokenSpec, check_revisions, check_schedule

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]

HeadStep = Callable[[Array, Int32], Float32]


def schedule(n_steps: int, block_size: int) -> tuple[int, ...]:
    """Frames to commit a block in each of `n_steps` passes: as even as possible, front-loaded.

    >>> schedule(3, 8), schedule(10, 8)
    ((3, 3, 2), (1, 1, 1, 1, 1, 1, 1, 1, 0, 0))
    """
    if n_steps < 1 or block_size < 1:
        raise SpecError(f"expected n_steps >= 1 and block_size >= 1, got {n_steps}, {block_size}")
    each, extra = divmod(block_size, n_steps)
    return tuple(each + (step < extra) for step in range(n_steps))


def resolve_schedule(
    head: ImputerSpec, n_steps: int | None, commits: Sequence[int] | None
) -> tuple[int, ...]:
    """The schedule asked for: by number of passes, in full, or (both None) the model's own.

    Raises
    ------
    SpecError
        Both are given, or the schedule leaves frames open.
    """
    if n_steps is not None and commits is not None:
        raise SpecError(
            f"expected n_steps or schedule, got both ({n_steps} and {tuple(commits)}); "
            "leave one out"
        )
    if n_steps is not None:
        return schedule(n_steps, head.block_size)
    chosen = head.schedule if commits is None else tuple(commits)
    check_schedule(chosen, head.block_size)
    return chosen


def resolve_revisions(head: ImputerSpec, revisions: int | None) -> int:
    """The passes of revision asked for, or (None) the model's own.

    Of a head that reads no alignment they change nothing.

    Raises
    ------
    SpecError
        There are fewer than none.
    """
    chosen = head.revisions if revisions is None else revisions
    check_revisions(chosen)
    return chosen


def log_softmax(logits: Float32) -> Float32:
    """Log-probabilities over the last axis.

    Computed in float64 and rounded once, so that frames with the same logits in another order
    tie, whatever order a library sums in.
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted.astype(np.float32)


@dataclass(frozen=True)
class ImputedChunk:
    """A decoded chunk of C encoder frames.

    Attributes
    ----------
    first_frame : int
        Index of its first encoder frame in the utterance.
    alignment : int32, (C,)
        Token ids, none of them the mask.
    log_probs : float32, (C, V)
        Each frame's row is that of the pass in which the frame was committed.
    committed_at : int32, (C,)
        The pass, from 0, in which each frame was committed; a revision commits all of them.
    trace : int32, (K, C), or None
        The partial alignment after each pass, if asked for.
    """

    first_frame: int
    alignment: Int32
    log_probs: Float32
    committed_at: Int32
    trace: Int32 | None


class StreamingImputer:
    """Fills in the alignment of one chunk after another.

    Parameters
    ----------
    head_step : callable
        ``(encoder_window (W, d), alignment_window int32 (W,)) -> logits float32 (C, V)``, a
        backend's `imputer_step`; W = left_context + chunk_size = L + C.
    head, tokens : specs of the model
    context : (L, d)
        Encoder frames before the first chunk, a backend's `initial_context`.
    schedule : frames committed a block in each pass
    revisions : int
        Passes after these that find every frame anew.
    keep_trace : bool
        Keep every pass's partial alignment in the chunks given out.
    """

    def __init__(
        self,
        head_step: HeadStep,
        head: ImputerSpec,
        tokens: TokenSpec,
        *,
        context: Array,
        schedule: Sequence[int],
        revisions: int = 0,
        keep_trace: bool = False,
    ) -> None:
        self.schedule, self.revisions = tuple(schedule), revisions
        check_schedule(self.schedule, head.block_size)
        check_revisions(revisions)
        if context.ndim != 2 or len(context) != head.left_context:
            raise BackendError(
                f"expected an initial context of {head.left_context} encoder frames, (L, d), got "
                f"shape {context.shape}; the backend and the spec belong to different models"
            )
        self._head_step = head_step
        self._block_size, self._chunk_size = head.block_size, head.chunk_size
        self._left = head.left_context
        self._order = head.order
        self._blank_id, self._mask_id = tokens.blank_id, tokens.mask_id
        self._logits_shape = (head.chunk_size, tokens.vocabulary_size)
        self._keep_trace = keep_trace
        self._context = context.copy()
        self._frames = np.empty((head.window, context.shape[1]), context.dtype)  # (W, d)
        # Row k is what pass k sees: the left context as it stood before pass k, then the chunk.
        n_passes = len(self.schedule) + revisions
        self._windows = np.empty((n_passes, head.window), np.int32)  # (K, W)
        self._all_frames = np.arange(head.chunk_size)
        self.reset()

    def reset(self) -> None:
        """Start a new utterance: real zeros and blanks before the first frame."""
        self._next_frame = 0
        self._frames[: self._left] = self._context
        self._windows[:, : self._left] = self._blank_id

    def push_chunk(self, encoder_out: Array) -> ImputedChunk:
        """Decode the next chunk, running the head once a pass.

        Parameters
        ----------
        encoder_out : (C, d)
            In the backend's own dtype; copied.

        Raises
        ------
        BackendError
            The head returned another shape, or numbers that are not finite.
        """
        left = self._left
        self._frames[left:] = encoder_out
        alignment = np.full(self._chunk_size, self._mask_id, np.int32)
        committed_at = np.empty(self._chunk_size, np.int32)
        log_probs = np.empty(self._logits_shape, np.float32)
        n_open = self._block_size
        for step, window in enumerate(self._windows):
            window[left:] = alignment
            logits = self._head_step(self._frames, window)
            is_revision = step >= len(self.schedule)
            n_commit = 0 if is_revision else min(self.schedule[step], n_open)
            if n_commit or is_revision:
                tokens, rows = self._best(logits)
                chosen = self._all_frames
                if not is_revision:
                    chosen = self._next(alignment, tokens, rows, n_commit)
                alignment[chosen] = tokens[chosen]
                log_probs[chosen] = rows[chosen]
                committed_at[chosen] = step
                n_open -= n_commit
        chunk = ImputedChunk(
            self._next_frame, alignment, log_probs, committed_at, self._trace(alignment)
        )
        self._next_frame += self._chunk_size
        self._frames[:left] = self._frames[self._chunk_size :]
        self._windows[:, :left] = self._windows[:, self._chunk_size :]
        return chunk

    def _best(self, logits: Float32) -> tuple[npt.NDArray[np.intp], Float32]:
        """Best token of each frame, the lowest id on ties (C,), and the log-probs (C, V)."""
        if logits.shape != self._logits_shape:
            raise BackendError(
                f"expected logits of shape {self._logits_shape} from the head, got {logits.shape}; "
                "the backend and the spec belong to different models"
            )
        if not np.isfinite(logits).all():
            raise BackendError(
                "expected finite logits from the head, got NaN or infinity; "
                "the model's weights or its runtime are broken"
            )
        return logits.argmax(axis=1), log_softmax(logits)

    def _next(
        self, alignment: Int32, tokens: npt.NDArray[np.intp], rows: Float32, n_commit: int
    ) -> npt.NDArray[np.intp]:
        """The `n_commit` open frames of every block that come first in the order.

        Every block has the same number of open frames, at least `n_commit`. The earlier frame
        wins a tie.
        """
        keys: list[Array] = []  # the last one counts most
        if self._order != "left-to-right":
            keys.append(-rows[self._all_frames, tokens])
        if self._order == "non-blank-first":
            keys.append(tokens == self._blank_id)
        keys.append(alignment != self._mask_id)
        blocks = tuple(key.reshape(-1, self._block_size) for key in keys)
        order = np.lexsort(blocks, axis=1)[:, :n_commit]
        return (order + self._all_frames[:: self._block_size, None]).ravel()

    def _trace(self, alignment: Int32) -> Int32 | None:
        """Partial alignments after each pass: what the next pass saw, and the last one's own."""
        if not self._keep_trace:
            return None
        return np.concatenate([self._windows[1:, self._left :], alignment[None]])
