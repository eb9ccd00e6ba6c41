"""The Imputer's dynamic-programming loss (Chan et al. 2020, arXiv:2002.08926, section 3.2).

Given a partial alignment, the loss is minus the log of the summed probability of every alignment
that collapses to the target and agrees with what is filled in. Each filled-in frame has one
possible token, so the sum is a CTC sum over log-probabilities in which that frame is certain:
0 at its token, minus infinity elsewhere. The reduction is exact at the level of tokens, as in the
paper; no gradient reaches a filled-in frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_imputer.specs import BLANK_ID


def clamp_to_alignment(log_probs: Tensor, alignment: Tensor, mask_id: int) -> Tensor:
    """Make every filled-in frame certain: 0 at its token, -inf elsewhere.

    Parameters
    ----------
    log_probs : (B, T, V)
    alignment : long, (B, T)
        Token ids, `mask_id` where the frame is open.
    """
    filled = (alignment != mask_id).unsqueeze(-1)
    certain = torch.full_like(log_probs, -torch.inf)
    certain.scatter_(2, alignment.clamp(max=log_probs.shape[2] - 1).unsqueeze(-1), 0.0)
    return torch.where(filled, certain, log_probs)


def imputer_loss(
    log_probs: Tensor,
    alignment: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *,
    mask_id: int,
) -> Tensor:
    """Minus log-probability of the targets given a partial alignment, per utterance.

    Parameters
    ----------
    log_probs : (B, T, V)
        Log-softmax of the head's logits.
    alignment : long, (B, T)
        Partial alignment; `mask_id` where open. All open is plain CTC.
    targets : long, (B, S)
        Token ids, padded with any value.
    input_lengths, target_lengths : long, (B,)

    Returns
    -------
    loss : (B,)
        In nats. An utterance that no alignment can explain (too few frames, or filled-in tokens
        that contradict the target) gives 0 and no gradient; `edge_imputer.train.data.usable_clips`
        finds such utterances beforehand.
    """
    clamped = clamp_to_alignment(log_probs, alignment, mask_id)
    return F.ctc_loss(
        clamped.transpose(0, 1),
        targets,
        input_lengths,
        target_lengths,
        blank=BLANK_ID,
        reduction="none",
        zero_infinity=True,
    )
