"""The CTC lattice of a batch in plain torch: the sum, the best path, samples; on any device.

The states of an utterance are its target with blanks around it: blank 0, token 0, blank 1, ...,
blank S; state 2k is blank k and state 2k + 1 is target token k. From a frame to the next a path
stays, goes on by one state, or by two where that leaves out a blank between two different tokens
(Graves et al. 2006, section 4.1). It starts as if it came from state 0 and ends as if it went on
to state 2S: so the first frame is in state 0 or 1, the last in 2S or 2S - 1, and no frames at all
fit an empty target.

A partial alignment changes the emissions alone: a filled-in frame has probability 1 in the states
that agree with it and 0 in all others (Chan et al. 2020, arXiv:2002.08926, section 3.2). Under
token semantics those are all states of its token; under state semantics it is one state.

Probabilities are logarithms, and every row is shifted so that its maximum is 0: over 1,500 frames
float32 gradients are within 2e-4 of float64's. A frame whose logits are NaN or +inf cannot be
passed; `poisoned` says which utterances have one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import Problem, at_least_float32
from .autograd import only_once


@dataclass(frozen=True)
class Lattice:
    """States and emissions of a batch; N = 2S + 1 for the longest target of S tokens.

    Attributes
    ----------
    tokens : long, (B, N)
        Token of each state; blank past an utterance's own states.
    skip : (B, N)
        0 where a state is entered from two states before, leaving out a blank; else -inf.
    emission : (T, B, N)
        Log-probability of each state in each frame; -inf past either end of an utterance.
    input_lengths : long, (B,)
    last : long, (B,)
        2S, the closing blank.
    """

    tokens: Tensor
    skip: Tensor
    emission: Tensor
    input_lengths: Tensor
    last: Tensor


def log_probabilities(problem: Problem) -> Tensor:
    """Log-softmax of the logits, (B, T, V), without a gradient."""
    logits = problem.logits.detach()
    return logits.log_softmax(-1, dtype=at_least_float32(logits.dtype))


def token_log_probs(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-softmax at one token a frame, without computing it at the others.

    Parameters
    ----------
    logits : (B, T, V)
    tokens : long, (..., B, T)

    Returns
    -------
    log_probs : (..., B, T)
    log_total : (B, T)
        Logarithm of the sum that the softmax divides by. Both are NaN where it is not finite.
    """
    logits = logits.to(at_least_float32(logits.dtype))
    log_total = logits.logsumexp(-1)
    log_total.masked_fill_(~log_total.isfinite(), torch.nan)
    index = tokens.reshape(-1, *log_total.shape).permute(1, 2, 0)  # (B, T, n)
    chosen = logits.gather(2, index).permute(2, 0, 1).reshape(tokens.shape)
    return chosen - log_total, log_total


def poisoned(problem: Problem, log_probs: Tensor) -> Tensor:
    """Utterances with a NaN or +inf logit in an open frame; bool, (B,)."""
    return (log_probs[..., 0].isnan() & problem.frame_is_open()).any(1)


def state_tokens(problem: Problem) -> Tensor:
    """Token of each state; blank past an utterance's own states; long, (B, 2S + 1)."""
    batch, longest = problem.targets.shape
    used = torch.arange(longest, device=problem.targets.device) < problem.target_lengths[:, None]
    tokens = problem.targets.new_full((batch, 2 * longest + 1), problem.blank_id)
    tokens[:, 1::2] = torch.where(used, problem.targets, problem.blank_id)
    return tokens


def make_lattice(problem: Problem, log_probs: Tensor) -> Lattice:
    """Gather the emissions of every state from `log_probs` (B, T, V), and clamp fixed frames."""
    tokens = state_tokens(problem)
    last = 2 * problem.target_lengths
    emission = log_probs.transpose(0, 1).gather(2, tokens.expand(log_probs.shape[1], -1, -1))

    state = torch.arange(tokens.shape[1], device=tokens.device)
    inside = problem.frame_is_inside().T.unsqueeze(-1)  # (T, B, 1)
    fixed = ~problem.frame_is_open().T.unsqueeze(-1)
    agrees = problem.partial.T.unsqueeze(-1) == (state if problem.states else tokens)
    emission.masked_fill_(fixed & agrees, 0.0)
    impossible = ~inside | (fixed & ~agrees) | (state > last[:, None]) | emission.isnan()
    emission.masked_fill_(impossible, -torch.inf)

    skip = torch.full_like(emission[0], -torch.inf)
    skip[:, 3::2].masked_fill_(tokens[:, 3::2] != tokens[:, 1:-2:2], 0.0)
    return Lattice(tokens, skip, emission, problem.input_lengths, last)


def forward(lattice: Lattice) -> tuple[Tensor, Tensor]:
    """Sum over the beginnings of all paths.

    Returns
    -------
    alpha : (T + 1, B, N)
        Row t: log-probability of the first t frames with the path then being in a state, shifted
        so that its maximum over the states is 0. Row 0 is the start, before any frame.
    log_total : (B,)
        Log-probability of all paths; -inf where there is none.
    """
    emission = lattice.emission
    n_frames, batch, n_states = emission.shape
    alpha = emission.new_full((n_frames + 1, batch, n_states + 2), -torch.inf)  # 2 to the left
    alpha[0, :, 2] = 0.0
    shift = emission.new_zeros(n_frames + 1, batch)
    for t in range(n_frames):
        row = _enter(alpha[t], lattice.skip) + emission[t]
        alpha[t + 1, :, 2:], shift[t + 1] = _with_maximum_0(row)
    rows = torch.arange(batch, device=emission.device)
    end = alpha[lattice.input_lengths, rows]
    log_end = torch.logaddexp(end[rows, lattice.last + 2], end[rows, lattice.last + 1])
    return alpha[:, :, 2:], log_end + shift.sum(0)


def backward(lattice: Lattice) -> Tensor:
    """Sum over the ends of all paths.

    Returns
    -------
    beta : (T + 1, B, N)
        Row t: log-probability of frame t and all later ones given the state of frame t - 1,
        shifted so that its maximum over the states is 0. All -inf past an utterance's end.
    """
    emission = lattice.emission
    n_frames, batch, n_states = emission.shape
    state = torch.arange(n_states, device=emission.device)
    may_end = (state == lattice.last[:, None]) | (state == lattice.last[:, None] - 1)
    at_end = torch.zeros_like(lattice.skip).masked_fill_(~may_end, -torch.inf)
    skip = F.pad(lattice.skip, (0, 2), value=-torch.inf)
    beta = emission.new_empty(n_frames + 1, batch, n_states)
    later = emission.new_full((batch, n_states + 2), -torch.inf)  # 2 to the right
    for t in range(n_frames, -1, -1):
        if t < n_frames:
            later[:, :-2] = beta[t + 1] + emission[t]
        row = torch.logaddexp(later[:, :-2], later[:, 1:-1])
        row = torch.logaddexp(row, (later + skip)[:, 2:])
        row = torch.where((lattice.input_lengths == t)[:, None], at_end, row)
        beta[t] = _with_maximum_0(row)[0]
    return beta


def _enter(before: Tensor, skip: Tensor) -> Tensor:
    """Log-sum over the states a state is entered from; `before` has 2 more columns, (B, 2 + N)."""
    stay_or_step = torch.logaddexp(before[:, 2:], before[:, 1:-1])
    return torch.logaddexp(stay_or_step, before[:, :-2] + skip)


def _with_maximum_0(row: Tensor) -> tuple[Tensor, Tensor]:
    """A row (B, N) minus its maximum, and the maximum (B,); -inf throughout is left as it is."""
    maximum = row.amax(1)
    maximum = maximum.masked_fill(maximum == -torch.inf, 0.0)
    return row - maximum[:, None], maximum


def loss_and_gradient(problem: Problem, *, need_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Minus the log-probability of all alignments, and its gradient softmax - posterior.

    The posterior of every frame is renormalised, so the rows of the gradient sum to 0.

    Returns
    -------
    loss : (B,), at least float32
        +inf where no alignment exists, NaN where an open frame has a NaN or +inf logit.
    gradient : (B, T, V) in the logits' type, or None
        Exactly 0 in fixed frames, past an utterance's end, and where the loss is infinite.
    """
    log_probs = log_probabilities(problem)
    bad = poisoned(problem, log_probs)
    lattice = make_lattice(problem, log_probs)
    alpha, log_total = forward(lattice)
    loss = (0.0 - log_total).masked_fill_(bad, torch.nan)
    if not need_gradient:
        return loss, None
    posterior = (alpha + backward(lattice))[1:].softmax(-1)  # (T, B, N)
    gradient = log_probs.exp_().transpose(0, 1)
    gradient[..., problem.blank_id] -= posterior[..., 0::2].sum(-1)
    labels = lattice.tokens[:, 1::2].expand(len(gradient), -1, -1)
    gradient.scatter_add_(2, labels, posterior[..., 1::2].neg())
    has_gradient = problem.frame_is_open() & (loss < torch.inf)[:, None]
    is_nan = problem.frame_is_open() & bad[:, None]
    gradient = gradient.transpose(0, 1)
    gradient.masked_fill_(~has_gradient.unsqueeze(-1), 0.0)
    gradient.masked_fill_(is_nan.unsqueeze(-1), torch.nan)
    return loss, gradient.to(problem.logits.dtype)


class _LatticeLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, problem: Problem) -> Tensor:
        needed = ctx.needs_input_grad[0]
        loss, gradient = loss_and_gradient(problem.with_logits(logits), need_gradient=needed)
        if gradient is not None:
            ctx.save_for_backward(gradient, loss == torch.inf, logits)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None]:
        gradient, infinite, logits = ctx.saved_tensors
        with torch.no_grad():
            factor = grad_loss.masked_fill(infinite, 0.0)  # 0 times infinity is not 0
            scaled = gradient * factor[:, None, None]  # in float32: a loss scale overflows float16
            scaled = scaled.to(gradient.dtype)
        return only_once(scaled, logits), None


def lattice_loss(problem: Problem) -> Tensor:
    """The Imputer loss of every utterance, (B,), under either semantics, differentiable once.

    Checks nothing; see `loss_and_gradient` for infinite and NaN losses. The gradient repeats bit
    for bit on CPU; on CUDA, after ``torch.use_deterministic_algorithms(True)``.
    """
    loss: Tensor = _LatticeLoss.apply(problem.logits, problem)  # type: ignore[no-untyped-call]
    return loss


def viterbi_states(problem: Problem) -> Tensor:
    """States of the most probable path.

    Of equally probable ways into a state, staying goes before one step and one step before two;
    of two equally probable ends, the closing blank goes before the last token.

    Returns
    -------
    states : long, (B, T)
        2S past an utterance's end; -1 in every frame of an utterance that has no path.
    """
    lattice = make_lattice(problem, log_probabilities(problem))
    emission, skip = lattice.emission, lattice.skip
    n_frames, batch, n_states = emission.shape
    best = F.pad(torch.full_like(skip, -torch.inf), (2, 0), value=-torch.inf)
    best[:, 2] = 0.0
    moves = torch.empty(n_frames + 1, batch, n_states, dtype=torch.uint8, device=skip.device)
    for t in range(n_frames + 1):  # entering frame t; frame T is past the end
        stay, step, leap = best[:, 2:], best[:, 1:-1], best[:, :-2] + skip
        entered = torch.maximum(stay, step)
        moves[t] = torch.where(leap > entered, 2, step > stay)
        if t < n_frames:
            row = torch.maximum(entered, leap) + emission[t]
            best[:, 2:] = _with_maximum_0(row)[0]

    state = lattice.last
    states = state.new_empty(n_frames, batch)
    for t in range(n_frames - 1, -1, -1):
        move = moves[t + 1].gather(1, state[:, None])[:, 0]
        state = torch.where(t < lattice.input_lengths, state - move, state)
        states[t] = state
    starts = state - moves[0].gather(1, state[:, None])[:, 0] == 0
    chosen = emission.gather(2, states.unsqueeze(-1)).squeeze(-1)
    exists = starts & ((chosen > -torch.inf) | ~problem.frame_is_inside().T).all(0)
    return states.T.masked_fill(~exists[:, None], -1)


def sample_states(problem: Problem, uniforms: Tensor) -> Tensor:
    """States of random paths, each drawn with its posterior probability.

    The forward sums are computed once; every sample then walks back through them. Frame t of a
    sample, given its frame t + 1 in state s, is in s, s - 1 or s - 2 (where s may be entered from
    there) with weights exp(alpha - max), and is the first of the three whose cumulated weight
    exceeds u times their sum, where u is the sample's uniform number of that frame. The last
    frame is drawn like the others, as if the next one was in state 2S.

    Parameters
    ----------
    uniforms : (n, B, T), in [0, 1)

    Returns
    -------
    states : long, (n, B, T)
        As in `viterbi_states`.
    """
    lattice = make_lattice(problem, log_probabilities(problem))
    alpha, log_total = forward(lattice)
    alpha = F.pad(alpha, (2, 0), value=-torch.inf)
    n_samples, batch, n_frames = uniforms.shape
    skip = lattice.skip.expand(n_samples, -1, -1)
    state = lattice.last.expand(n_samples, -1)
    states = state.new_empty(n_frames, n_samples, batch)
    for t in range(n_frames - 1, -1, -1):
        place = state.unsqueeze(-1)
        row = alpha[t + 1].expand(n_samples, -1, -1)
        stay, step = row.gather(2, place + 2), row.gather(2, place + 1)
        leap = row.gather(2, place) + skip.gather(2, place)
        maximum = torch.maximum(torch.maximum(stay, step), leap)
        first = (stay - maximum).exp()  # NaN where no path leads here: the state then stays
        second = first + (step - maximum).exp()
        total = second + (leap - maximum).exp()
        threshold = uniforms[:, :, t, None] * total
        move = (first <= threshold).long() + (second <= threshold)
        state = torch.where(t < lattice.input_lengths, state - move.squeeze(-1), state)
        states[t] = state
    return states.permute(1, 2, 0).masked_fill((log_total == -torch.inf)[:, None], -1)
