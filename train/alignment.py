"""Alignments for training: the best one (Viterbi), and which of its frames the head may see."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_imputer.specs import BLANK_ID


@torch.no_grad()
def viterbi_alignment(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Most probable alignment of each target.

    Parameters
    ----------
    log_probs : (B, T, V)
    targets : long, (B, S)
    input_lengths, target_lengths : long, (B,)

    Returns
    -------
    alignment : long, (B, T)
        Token ids; blank past an utterance's end.
    score : (B,)
        Its log-probability; -inf where the target does not fit into the frames.
    """
    batch, n_frames, _ = log_probs.shape
    n_states = 2 * targets.shape[1] + 1
    labels = targets.new_full((batch, n_states), BLANK_ID)  # blank y1 blank y2 ... blank
    labels[:, 1::2] = targets.clamp(max=log_probs.shape[2] - 1)
    emission = log_probs.gather(2, labels.unsqueeze(1).expand(-1, n_frames, -1))
    can_skip = torch.zeros_like(labels, dtype=torch.bool)
    can_skip[:, 3::2] = labels[:, 3::2] != labels[:, 1:-2:2]

    last = 2 * target_lengths  # the closing blank
    best = torch.full_like(emission[:, 0], -torch.inf)
    best[:, :2] = emission[:, 0, :2]
    steps = torch.zeros(n_frames, batch, n_states, dtype=torch.long, device=log_probs.device)
    rows = torch.arange(batch, device=log_probs.device)

    def at_end(scores: Tensor) -> tuple[Tensor, Tensor]:
        blank_score = scores[rows, last]
        token_score = torch.where(
            target_lengths > 0, scores[rows, (last - 1).clamp(min=0)], -torch.inf
        )
        return torch.maximum(blank_score, token_score), torch.where(
            blank_score >= token_score, last, last - 1
        )

    score, end_state = at_end(best)
    for t in range(1, n_frames):
        step1 = torch.nn.functional.pad(best[:, :-1], (1, 0), value=-torch.inf)
        step2 = torch.nn.functional.pad(best[:, :-2], (2, 0), value=-torch.inf)
        moves = torch.stack([best, step1, step2.masked_fill(~can_skip, -torch.inf)])
        best, steps[t] = moves.max(0)
        best = best + emission[:, t]
        running = t < input_lengths
        new_score, new_end = at_end(best)
        score = torch.where(running, new_score, score)
        end_state = torch.where(running, new_end, end_state)

    alignment = torch.full((batch, n_frames), BLANK_ID, dtype=torch.long, device=log_probs.device)
    state = end_state
    for t in range(n_frames - 1, -1, -1):
        inside = t < input_lengths
        alignment[:, t] = torch.where(inside, labels[rows, state], BLANK_ID)
        state = torch.where(inside, state - steps[t, rows, state], state)
    return alignment, score


def mask_blocks(
    alignment: Tensor, block_size: int, *, mask_id: int, generator: torch.Generator | None = None
) -> Tensor:
    """Mask m random frames of every block, m drawn once an utterance from 1..block_size.

    That is what the head meets in decoding: every block has the same number of open frames.
    (Chan et al. 2020, section 3.3, block policy.)

    Parameters
    ----------
    alignment : long, (B, T), T a multiple of `block_size`

    Returns
    -------
    partial : long, (B, T)
    """
    batch, n_frames = alignment.shape
    shape = (batch, n_frames // block_size, block_size)
    n_masked = torch.randint(1, block_size + 1, (batch, 1, 1), generator=generator)
    order = torch.rand(shape, generator=generator).argsort(-1).argsort(-1)
    masked = (order < n_masked).view(batch, n_frames).to(alignment.device)
    return alignment.masked_fill(masked, mask_id)
