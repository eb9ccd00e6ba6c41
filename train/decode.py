"""Decoding whole utterances in torch: every chunk at once, exactly K passes of the head.

The streaming decoder of the runtime (`edge_imputer.imputation`) gives the same alignments chunk
by chunk; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .imputer import ImputerHead


@torch.no_grad()
def decode(head: ImputerHead, encoder_out: Tensor, schedule: Sequence[int]) -> Tensor:
    """Fill in the alignment of every utterance (Chan et al. 2020, section 3.4).

    Each pass commits, in every block, the `schedule[k]` open frames whose best token is most
    probable (the earlier frame on a tie). Committed tokens never change.

    Parameters
    ----------
    encoder_out : (B, T, d_model), T a multiple of the chunk size
    schedule : frames committed a block in each pass; sums to at least the block size

    Returns
    -------
    alignment : long, (B, T)
    """
    block = head.spec.block_size
    alignment = head.fully_masked(encoder_out)
    batch, n_frames = alignment.shape
    for n_commit in schedule:
        log_probs = head(encoder_out, alignment).log_softmax(-1)
        confidence, token = log_probs.max(-1)
        is_open = alignment == head.mask_id
        blocks = confidence.masked_fill(~is_open, -torch.inf).view(batch, -1, block)
        rank = blocks.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        commit = (rank < n_commit).view(batch, n_frames) & is_open
        alignment = torch.where(commit, token, alignment)
    return alignment
