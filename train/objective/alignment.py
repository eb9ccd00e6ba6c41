"""Alignments of transcripts with frames: the best one, random ones, and the times of their tokens.

::

    alignment = best_alignment(logits, targets, input_lengths, target_lengths)
    for token, start_s, end_s, score in alignment.spans(frame_s=0.04)[0]:
        print(f"{characters[token]}  {start_s:.2f}-{end_s:.2f} s  {score:.2f}")

Any acoustic model trained with CTC will do: all that is needed are its logits, how many seconds a
frame lasts, and the transcript.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from edge_imputer.errors import ObjectiveError

from . import native
from .arguments import Problem, at_least_float32, checked_seeds, make_problem
from .lattice import (
    sample_states,
    state_tokens,
    token_log_probs,
    viterbi_states,
)
from .seeded import random_uniform

_STREAM = 4  # of an utterance's seed; those of other modules are other numbers


class TokenSpan(NamedTuple):
    """One token of a transcript and when it is heard.

    Attributes
    ----------
    token : int
    start, end : float
        In frames, or in seconds if the length of a frame was given. `end` is exclusive.
    score : float
        Mean probability of the token over its frames, 0..1; filled-in frames count 1.
    """

    token: int
    start: float
    end: float
    score: float


@dataclass(frozen=True, eq=False)
class Alignment:
    """One alignment of every utterance of a batch; or, with `n_samples`, n of them.

    The n samples are a first dimension of every field; `sample` takes one out. Shapes are given
    without it. An utterance whose target does not fit (into its frames, or with its partial
    alignment) has no alignment: its `log_prob` is -inf. Where a logit of an open frame is NaN or
    +inf, it is NaN.

    Attributes
    ----------
    tokens : long, (B, T)
        Token of every frame; blank past an utterance's end, and where there is no alignment.
    states : long, (B, T)
        CTC state of every frame: 2k is the k-th blank, 2k + 1 target token k, k = 0, 1, ...
        Past an utterance's end 2S, its closing blank; -1 where there is no alignment.
    frame_scores : (B, T), at least float32
        Log-probability of the frame's token; 0 in filled-in frames and past an utterance's end.
        -inf where there is no alignment. The `confidence` that `mask_alignment` takes.
    log_prob : (B,)
        Sum of `frame_scores`: of open frames only, so it is at most minus the `imputer_loss`.
    token_starts, token_ends : long, (B, S)
        Frames [start, end) of each target token. The blanks between tokens belong to none. Both
        are -1 past a target's length and where there is no alignment.
    token_scores : (B, S)
        Mean of `frame_scores` over the token's frames; 0 past a target's length. Where there is
        no alignment, `log_prob`.
    input_lengths, target_lengths : long, (B,)
    """

    tokens: Tensor
    states: Tensor
    frame_scores: Tensor
    log_prob: Tensor
    token_starts: Tensor
    token_ends: Tensor
    token_scores: Tensor
    input_lengths: Tensor
    target_lengths: Tensor

    def sample(self, index: int) -> Alignment:
        """One of the n samples, without their dimension."""
        if self.tokens.ndim != 3:
            raise ObjectiveError(
                "sample: expected an alignment from sample_alignment(..., n_samples=n), "
                "got a single one per utterance; use it as it is"
            )
        return Alignment(*(getattr(self, field.name)[index] for field in fields(self)))

    def spans(self, frame_s: float | None = None) -> list[list[TokenSpan]]:
        """Tokens with their times and scores, for every utterance; the blanks are left out.

        What ``torchaudio.functional.merge_tokens`` gave for probabilities, in seconds if wanted.

        Parameters
        ----------
        frame_s : float, optional
            Seconds from one frame to the next, for example 0.04. Without it, times are in frames.

        Returns
        -------
        list of list of TokenSpan
            In the order of the target. Empty where there is no alignment.

        Raises
        ------
        ObjectiveError
            For n samples: take one with `sample` first.
        """
        if self.tokens.ndim != 2:
            raise ObjectiveError(
                f"spans: expected one alignment per utterance, got {len(self.tokens)} samples; "
                "take one with alignment.sample(index).spans()"
            )
        starts, ends = self.token_starts.tolist(), self.token_ends.tolist()
        n_frames = self.token_ends - self.token_starts
        scores = _token_means(self.frame_scores.exp(), self.states, n_frames)
        unit = 1 if frame_s is None else frame_s
        return [
            [
                TokenSpan(frame_tokens[start], start * unit, end * unit, score)
                for start, end, score in zip(*row, strict=True)
                if start >= 0
            ]
            for frame_tokens, *row in zip(
                self.tokens.tolist(), starts, ends, scores.tolist(), strict=True
            )
        ]


@torch.no_grad()
def best_alignment(
    logits: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *,
    partial_alignment: Tensor | None = None,
    blank_id: int = 0,
    semantics: str = "token",
    validate: bool = True,
) -> Alignment:
    """Most probable alignment of every target with its frames (Viterbi): forced alignment.

    Parameters
    ----------
    logits : (B, T, V)
        Unnormalised; log-probabilities do as well. float16 and bfloat16 are computed in float32.
    targets : int, (B, S), or (sum of target_lengths,)
        Token ids without blanks, padded with anything; or all of them in a row.
    input_lengths, target_lengths : int, (B,)
    partial_alignment : int, (B, T), optional
        Frames that are known: a token (blank too) or, with ``semantics="state"``, a CTC state;
        `MASK` (-1) in all others. The best of the alignments that agree with it is found.
    blank_id : int
    semantics : {"token", "state"}
        What the values of `partial_alignment` are.
    validate : bool
        Check the range of every integer; on a GPU that waits for the device.

    Returns
    -------
    Alignment
        On the logits' device, without a gradient. Of equally probable alignments, the one that
        is in a later state in the frame where they part, seen from the end.

    Raises
    ------
    ObjectiveError
        Wrong shapes, types, devices or ranges.

    Examples
    --------
    When is each character of "hi" heard? Frames of 40 ms; blank 0, h 1, i 2.

    >>> logits = torch.tensor([[[0., 9, 0], [9, 0, 0], [0, 0, 9], [0, 0, 9], [9, 0, 0]]])
    >>> alignment = best_alignment(
    ...     logits, torch.tensor([[1, 2]]), torch.tensor([5]), torch.tensor([2])
    ... )
    >>> alignment.tokens.tolist()
    [[1, 0, 2, 2, 0]]
    >>> [(token, start, end) for token, start, end, _ in alignment.spans(frame_s=0.04)[0]]
    [(1, 0.0, 0.04), (2, 0.08, 0.16)]
    """
    problem = make_problem(
        logits,
        targets,
        partial_alignment,
        input_lengths,
        target_lengths,
        blank_id=blank_id,
        semantics=semantics,
        validate=validate,
    )
    return _describe(problem, _best_states(problem))


@torch.no_grad()
def sample_alignment(
    logits: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *,
    partial_alignment: Tensor | None = None,
    blank_id: int = 0,
    semantics: str = "token",
    n_samples: int | None = None,
    generator: torch.Generator | None = None,
    seeds: Tensor | None = None,
    validate: bool = True,
) -> Alignment:
    """Random alignments of every target, each drawn with its exact posterior probability.

    The posterior is over the alignments that collapse to the target and agree with
    `partial_alignment`. All samples share one forward pass.

    Parameters
    ----------
    logits, targets, input_lengths, target_lengths, partial_alignment, blank_id, semantics
        As in `best_alignment`.
    n_samples : int, optional
        Draw this many; every field then has them as its first dimension.
    generator : torch.Generator, optional
        Where the random numbers come from, the CPU's default one if None. The numbers are drawn
        on its device and then moved, so the same CPU generator gives the same on every device.
    seeds : int, (B,), optional
        In the place of a generator: an utterance's samples then depend on its seed and its own
        frames alone, whatever batch it is in and however long that is padded.

    Returns
    -------
    Alignment
        On the logits' device, without a gradient.

    Raises
    ------
    ObjectiveError
        Wrong shapes, types, devices or ranges, or `n_samples` below 1.
    """
    if n_samples is not None and n_samples < 1:
        raise ObjectiveError(f"n_samples: expected 1 or more, or None, got {n_samples}")
    problem = make_problem(
        logits,
        targets,
        partial_alignment,
        input_lengths,
        target_lengths,
        blank_id=blank_id,
        semantics=semantics,
        validate=validate,
    )
    shape, dtype = (n_samples or 1, *logits.shape[:2]), at_least_float32(logits.dtype)
    seeds = checked_seeds(seeds, generator, len(logits), logits.device)
    if seeds is None:
        device = torch.device("cpu") if generator is None else generator.device
        uniforms = torch.rand(shape, dtype=dtype, device=device, generator=generator)
    else:  # frames first: padding may follow, and changes nothing
        places = (shape[2], shape[0])
        uniforms = random_uniform(seeds, _STREAM, places, dtype).permute(2, 0, 1).contiguous()
    states = _sample_states(problem, uniforms.to(logits.device))
    return _describe(problem, states[0] if n_samples is None else states)


def _best_states(problem: Problem) -> Tensor:
    """By the C kernels where they can be used, else in torch; the same states."""
    if native.NATIVE is None or problem.logits.device.type != "cpu":
        return viterbi_states(problem)
    return native.best_states(native.NATIVE, problem.at_least_float32())


def _sample_states(problem: Problem, uniforms: Tensor) -> Tensor:
    if native.NATIVE is None or problem.logits.device.type != "cpu":
        return sample_states(problem, uniforms)
    return native.sample_states(native.NATIVE, problem.at_least_float32(), uniforms)


def _describe(problem: Problem, states: Tensor) -> Alignment:
    """Tokens, scores and times of states (..., B, T) that are -1 where there is no alignment."""
    leading = states.shape[:-1]  # (B,) or (n, B)
    tokens = state_tokens(problem).expand(*leading, -1).gather(-1, states.clamp(min=0))
    log_probs, log_total = token_log_probs(problem.logits, tokens)
    is_open = problem.frame_is_open()
    bad = (is_open & log_total.isnan()).any(1, keepdim=True)  # NaN or +inf: nothing can be said
    states = states.masked_fill(bad, -1)
    exists = states[..., :1] >= 0
    frame_scores = log_probs.where(is_open, 0.0).where(exists, -torch.inf)
    frame_scores = frame_scores.masked_fill(bad, torch.nan)
    log_prob = frame_scores.sum(-1)
    starts, ends = _token_times(problem, states)
    token_scores = _token_means(frame_scores, states, ends - starts)
    return Alignment(
        tokens=tokens.where(exists, problem.blank_id),
        states=states,
        frame_scores=frame_scores,
        log_prob=log_prob,
        token_starts=starts,
        token_ends=ends,
        token_scores=token_scores.where(exists, log_prob.unsqueeze(-1)),
        input_lengths=problem.input_lengths.expand(leading),
        target_lengths=problem.target_lengths.expand(leading),
    )


def _token_times(problem: Problem, states: Tensor) -> tuple[Tensor, Tensor]:
    """First frame of every target token, and the frame after its last; -1 where it has none."""
    token = torch.arange(problem.targets.shape[1], device=states.device)
    state = (2 * token + 1).expand(*states.shape[:-1], -1).contiguous()
    ordered = states.contiguous()  # paths never go back
    starts = torch.searchsorted(ordered, state)
    ends = torch.searchsorted(ordered, state, right=True)
    none = starts == ends
    return starts.masked_fill(none, -1), ends.masked_fill(none, -1)


def _token_means(frame_values: Tensor, states: Tensor, n_frames: Tensor) -> Tensor:
    """Mean over the `n_frames` (..., B, S) of every token; 0 where it has none."""
    longest = n_frames.shape[-1]
    is_token = (states >= 0) & (states % 2 == 1)
    token = torch.where(is_token, states // 2, longest)  # blanks are summed too, and dropped
    sums = frame_values.new_zeros(*n_frames.shape[:-1], longest + 1)
    sums.scatter_add_(-1, token, frame_values)
    return sums[..., :longest] / n_frames.clamp(min=1)
