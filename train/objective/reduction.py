"""The exact reduction of the Imputer loss to CTC: any device, and the reference for the kernels.

A filled-in frame has one possible token, so the sum over alignments that agree with it is a CTC
sum over log-probabilities in which that frame is certain: 0 at its token, minus infinity
elsewhere. A finite number in place of the infinity would hide alignments that are impossible.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import MASK, Problem


def clamp_to_alignment(log_probs: Tensor, partial: Tensor) -> Tensor:
    """Make every filled-in frame certain: 0 at its token, -inf elsewhere.

    Impossible tokens of open frames become constants too: `ctc_loss` has no gradient for them.

    Parameters
    ----------
    log_probs : (B, T, V)
    partial : long, (B, T)
        Token ids, `MASK` where open.
    """
    filled = (partial != MASK).unsqueeze(-1)
    certain = torch.full_like(log_probs, -torch.inf)
    token = partial.clamp(0, log_probs.shape[2] - 1).unsqueeze(-1)
    certain.scatter_(2, token, torch.where(filled, 0.0, -torch.inf).to(log_probs.dtype))
    return torch.where(filled | log_probs.isneginf(), certain, log_probs)


def reduction_loss(problem: Problem, *, zero_infinity: bool) -> Tensor:
    """Losses of a batch with token semantics, (B,), by way of `torch.nn.functional.ctc_loss`.

    Impossible utterances have no gradient; their loss is infinite, or 0 if `zero_infinity`.
    """
    # What is filled in or past the end has no say, and no NaN of it may reach the gradient.
    logits = problem.logits.masked_fill(~problem.frame_is_open().unsqueeze(-1), 0.0)
    log_probs = clamp_to_alignment(logits.log_softmax(-1), problem.partial)

    def ctc(log_probs: Tensor, zero_infinity: bool) -> Tensor:
        return F.ctc_loss(
            log_probs.transpose(0, 1),
            problem.targets,
            problem.input_lengths,
            problem.target_lengths,
            blank=problem.blank_id,
            reduction="none",
            zero_infinity=zero_infinity,
        )

    losses = ctc(log_probs, True)
    if zero_infinity:
        return losses
    with torch.no_grad():
        impossible = ctc(log_probs, False).isinf()
    return losses.masked_fill(impossible, torch.inf)
