"""The imitation loss: cross entropy against one alignment (Chan et al. 2020, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edge_imputer.errors import ObjectiveError

from .arguments import MASK, Problem, check_logits, integers, make_problem, refuse
from .autograd import only_once
from .lattice import token_log_probs


def imitation_loss(
    logits: Tensor,
    alignment: Tensor,
    partial_alignment: Tensor | None,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *,
    blank_id: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
    semantics: str = "token",
) -> Tensor:
    """Minus the log-probability of one alignment, over its open frames.

    The same call as `imputer_loss`, with an alignment in the place of the targets. It is the loss
    of one of the alignments that `imputer_loss` sums over, and so never below it; an alignment
    that cannot be one of them has an infinite loss.

    Parameters
    ----------
    logits : (B, T, V)
        float16 and bfloat16 are computed in float32.
    alignment : int, (B, T)
        A token (blank too) for every frame: the `tokens` of `best_alignment` or
        `sample_alignment`. Anything past an utterance's end.
    partial_alignment : int, (B, T), or None
        Frames that are `MASK` (-1) count. The others do not, and agree with `alignment`. None:
        all frames count.
    input_lengths, target_lengths : int, (B,)
    blank_id : int
    reduction : {"mean", "sum", "none"}
        "mean" divides every loss by its target length (by 1 if it is 0), then averages over the
        batch, as `torch.nn.functional.ctc_loss` does.
    zero_infinity : bool
        Replace infinite losses by 0.
    semantics : {"token", "state"}
        What the values of `partial_alignment` are.

    Returns
    -------
    Tensor
        A scalar, or (B,) with ``reduction="none"``; at least float32. Infinite where an open
        frame's token has probability 0, and where `alignment` disagrees with `partial_alignment`
        or does not spell `target_lengths` tokens: so the blanks that `best_alignment` gives for
        a target that does not fit are never learnt. NaN where an open frame has a NaN or +inf
        logit. The gradient is exactly 0 in frames that are not open, past an utterance's end, and
        where the loss is infinite.

    Raises
    ------
    ObjectiveError
        Wrong shapes, types, devices or ranges.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ObjectiveError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    check_logits(logits)
    batch, n_frames, n_tokens = logits.shape
    tokens = integers("alignment", alignment, logits.device, shape=(batch, n_frames))
    problem = make_problem(
        logits,
        tokens,  # the targets are not used
        partial_alignment,
        input_lengths,
        target_lengths,
        blank_id=blank_id,
        semantics=semantics,
    )
    lengths = problem.input_lengths
    too_long = (lengths < 0) | (lengths > n_frames)
    refuse("input_lengths", "", lengths, too_long, f"outside 0..{n_frames}")
    outside = problem.frame_is_inside() & ((tokens < 0) | (tokens >= n_tokens))
    refuse("alignment", "token ", tokens, outside, f"outside 0..{n_tokens - 1}")

    open_tokens = tokens.where(problem.frame_is_open(), MASK)
    losses: Tensor = _OpenCrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits, open_tokens, _may_be_summed(problem, tokens)
    )
    if zero_infinity:
        losses = losses.where(losses != torch.inf, 0.0)
    if reduction == "mean":
        return (losses / problem.target_lengths.clamp(min=1)).mean()
    return losses.sum() if reduction == "sum" else losses


def _may_be_summed(problem: Problem, tokens: Tensor) -> Tensor:
    """Whether alignments (B, T) have the target's length and agree with the partial ones, (B,)."""
    is_token = problem.frame_is_inside() & (tokens != problem.blank_id)
    is_new = is_token.clone()
    is_new[:, 1:] &= tokens[:, 1:] != tokens[:, :-1]
    values = 2 * is_new.cumsum(1) - is_token.long() if problem.states else tokens
    is_fixed = problem.frame_is_inside() & ~problem.frame_is_open()
    contradicts = (is_fixed & (values != problem.partial)).any(1)
    return (is_new.sum(1) == problem.target_lengths) & ~contradicts


class _OpenCrossEntropy(torch.autograd.Function):
    """Cross entropy over the frames whose token is not `MASK`; infinite where not `possible`.

    Keeps the logits, not their log-softmax, and gives exact zeros elsewhere even beside NaN
    logits, as attention leaves them past an utterance's end.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, possible: Tensor) -> Tensor:
        scores, log_total = token_log_probs(logits, tokens.clamp(min=0))
        losses = 0.0 - scores.where(tokens != MASK, 0.0).sum(1)
        losses += torch.zeros_like(losses).masked_fill(~possible, torch.inf)  # NaN stays NaN
        ctx.save_for_backward(logits, tokens, log_total, losses == torch.inf)
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor, None, None]:
        logits, tokens, log_total, infinite = ctx.saved_tensors
        with torch.no_grad():
            factor = grad_losses.masked_fill(infinite, 0.0)  # 0 times infinity is not 0
            gradient = (logits - log_total.unsqueeze(-1)).exp_()
            chosen = tokens.clamp(min=0).unsqueeze(-1)
            gradient.scatter_add_(2, chosen, torch.full_like(chosen, -1, dtype=gradient.dtype))
            gradient *= factor[:, None, None]
            gradient.masked_fill_((tokens == MASK).unsqueeze(-1), 0.0)
            gradient = gradient.to(logits.dtype)
        return only_once(gradient, logits), None, None
