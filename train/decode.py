"""Decoding whole utterances in torch: every chunk at once, exactly K passes of the head.

The streaming decoder of the runtime (`edge_imputer.imputation`) gives the same alignments chunk
by chunk; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edge_imputer.specs import check_revisions

from .imputer import ImputerHead
from .imputer_stack import ImputerStack


def decode(
    head: ImputerHead | ImputerStack,
    encoder_out: Tensor,
    schedule: Sequence[int],
    lengths: Tensor | None = None,
    *,
    revisions: int = 0,
) -> Tensor:
    """The alignment alone of `decode_with_log_probs`: long, (B, T)."""
    return decode_with_log_probs(head, encoder_out, schedule, lengths, revisions=revisions)[0]


@torch.no_grad()
def decode_with_log_probs(
    head: ImputerHead | ImputerStack,
    encoder_out: Tensor,
    schedule: Sequence[int],
    lengths: Tensor | None = None,
    *,
    revisions: int = 0,
) -> tuple[Tensor, Tensor]:
    """Fill in the alignment of every utterance (Chan et al. 2020, section 3.4).

    Each pass commits, in every block, the `schedule[k]` open frames that come first in the head's
    order, such as those whose best token is most probable (the earlier frame on a tie). Committed
    tokens do not change until all are; then every revision sees the whole alignment, and commits
    every frame anew (Chi et al. 2021, arXiv:2010.14233).

    Parameters
    ----------
    encoder_out : (B, T, d_model), T a multiple of the chunk size
    schedule : frames committed a block in each pass; sums to at least the block size
    lengths : (B,), optional
        Valid frames, which an `ImputerStack` must know in a padded batch; a head looks at whole
        chunks and does not ask.
    revisions : passes after those of the schedule

    Returns
    -------
    alignment : long, (B, T)
    log_probs : (B, T, V)
        Of each frame, in the pass that committed it.
    """
    check_revisions(revisions)
    block = head.spec.block_size
    alignment = head.fully_masked(encoder_out)
    batch, n_frames = alignment.shape
    if n_frames % block:
        raise ValueError(f"expected whole blocks of {block} frames, got {n_frames} frames")
    known = () if lengths is None or isinstance(head, ImputerHead) else (lengths,)
    committed = encoder_out.new_zeros(())
    for n_commit in schedule:
        log_probs = head(encoder_out, alignment, *known).log_softmax(-1)
        confidence, token = log_probs.max(-1)
        is_open = alignment == head.mask_id
        keys = {  # the last one counts most
            "confidence": [-confidence],
            "left-to-right": [],
            "non-blank-first": [-confidence, token == head.blank_id],
        }[head.spec.order]
        rank = _rank([key.view(batch, -1, block) for key in (*keys, ~is_open)])
        commit = (rank < n_commit).view(batch, n_frames) & is_open
        alignment = torch.where(commit, token, alignment)
        committed = torch.where(commit[:, :, None], log_probs, committed)
    for _ in range(revisions):
        committed = head(encoder_out, alignment, *known).log_softmax(-1)
        alignment = committed.argmax(-1)
    return alignment, committed


def _rank(keys: Sequence[Tensor]) -> Tensor:
    """Place of every element of the last dimension in the order by the last key, then the others.

    Equal elements keep their order.
    """
    order = torch.arange(keys[0].shape[-1], device=keys[0].device).expand(keys[0].shape)
    for key in keys:
        order = order.gather(-1, key.gather(-1, order).argsort(dim=-1, stable=True))
    return order.argsort(-1)
