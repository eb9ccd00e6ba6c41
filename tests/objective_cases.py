"""Random cases of the Imputer objective, and the slow truth about them: every alignment, listed.

Token semantics fixes what a frame spells; state semantics fixes which CTC state it is in: 2k is the
k-th blank, 2k + 1 the k-th target token.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edge_imputer.train.objective.arguments import MASK, Problem

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@functools.cache
def every_path(n_frames: int, n_tokens: int) -> Ints:
    """All alignments, (V^T, T)."""
    paths = list(itertools.product(range(n_tokens), repeat=n_frames))
    return np.array(paths, dtype=np.int64).reshape(len(paths), n_frames)


def states_of(paths: Ints, blank: int) -> Ints:
    """The CTC state of every frame, (N, T): an alignment passes through one state a frame."""
    before = np.concatenate([np.full_like(paths[:, :1], blank), paths[:, :-1]], axis=1)
    n_tokens = np.cumsum((paths != blank) & (paths != before), axis=1)
    return np.where(paths == blank, 2 * n_tokens, 2 * n_tokens - 1)


def collapsing_to(target: Ints, n_frames: int, n_tokens: int, blank: int) -> Ints:
    """Alignments that collapse to `target`, (N, T)."""
    paths = every_path(n_frames, n_tokens)
    before = np.concatenate([np.full_like(paths[:, :1], blank), paths[:, :-1]], axis=1)
    new = (paths != blank) & (paths != before)
    paths, new = paths[new.sum(1) == len(target)], new[new.sum(1) == len(target)]
    spelled = paths[new].reshape(len(paths), len(target))
    return paths[(spelled == target).all(1)]


@dataclass(frozen=True)
class Truth:
    """What enumeration says of one utterance.

    Attributes
    ----------
    paths : (N, T)
        Alignments that collapse to the target and agree with the partial one.
    states : (N, T)
    log_probs : (N,)
        Over open frames.
    loss : float
        Infinite where N = 0; not a number where an open frame's logits are none.
    gradient : (T, V)
        Of the loss with respect to the logits; 0 where the loss is infinite.
    """

    paths: Ints
    states: Ints
    log_probs: Array
    loss: float
    gradient: Array

    @property
    def posterior(self) -> Array:
        """Probability of each path, (N,)."""
        return np.exp(self.log_probs + self.loss)


def truth_of(problem: Problem, row: int) -> Truth:
    """Enumerate one utterance of a batch."""
    length, size = int(problem.input_lengths[row]), int(problem.target_lengths[row])
    logits = problem.logits[row, :length].detach().double()
    target = problem.targets[row, :size].cpu().numpy()
    partial = problem.partial[row, :length].cpu().numpy()
    n_tokens = logits.shape[1]
    log_p = logits.log_softmax(-1).cpu().numpy()
    paths = collapsing_to(target, length, n_tokens, problem.blank_id)
    states = states_of(paths, problem.blank_id)
    fixed = partial != MASK
    agrees = ((states if problem.states else paths)[:, fixed] == partial[fixed]).all(1)
    paths, states = paths[agrees], states[agrees]
    frames = np.arange(length)
    log_probs = log_p[frames, paths][:, ~fixed].sum(1)
    gradient = np.zeros((length, n_tokens))
    if not len(paths) or np.isneginf(log_probs).all():
        return Truth(paths, states, log_probs, np.inf, gradient)
    if np.isnan(log_probs).any():
        gradient[~fixed] = np.nan
        return Truth(paths, states, log_probs, np.nan, gradient)
    loss = -float(np.logaddexp.reduce(log_probs))
    gradient = np.exp(log_p)
    for path, weight in zip(paths, np.exp(log_probs + loss), strict=True):
        gradient[frames, path] -= weight
    gradient[fixed] = 0.0
    return Truth(paths, states, log_probs, loss, gradient)


def truth(problem: Problem) -> tuple[Tensor, Tensor]:
    """Losses (B,) and their gradients (B, T, V) by enumeration, in float64."""
    batch, n_frames, n_tokens = problem.logits.shape
    losses = torch.zeros(batch, dtype=torch.float64)
    gradients = torch.zeros(batch, n_frames, n_tokens, dtype=torch.float64)
    for row in range(batch):
        one = truth_of(problem, row)
        losses[row] = one.loss
        gradients[row, : len(one.gradient)] = torch.from_numpy(one.gradient)
    return losses, gradients


KINDS = ("all masked", "half", "all fixed", "contradictory", "sharp")


def random_problem(
    rng: np.random.Generator, *, batch: int = 8, states: bool = False, blank: int | None = None
) -> Problem:
    """A batch of small utterances: repeats, empty targets, unequal lengths, contradictions.

    Kinds take turns: nothing filled in, about half, everything; partial alignments drawn without
    looking at the target (mostly infeasible); and logits of +-40.
    """
    n_frames, n_tokens = int(rng.integers(1, 7)), int(rng.integers(2, 5))
    if blank is None:
        blank = int(rng.integers(n_tokens))
    logits = rng.normal(size=(batch, n_frames, n_tokens)) * 2
    partial = np.full((batch, n_frames), MASK)
    lengths = rng.integers(0, n_frames + 1, batch)
    targets: list[Ints] = []
    for row, length in enumerate(lengths):
        kind = KINDS[row % len(KINDS)]
        path = rng.integers(0, n_tokens, (1, length))
        if kind == "sharp":
            logits[row] *= 20
        values = states_of(path, blank)[0] if states else path[0]
        target = np.array([t for t, _ in itertools.groupby(path[0]) if t != blank], np.int64)
        if kind == "contradictory":
            target = rng.choice(
                [t for t in range(n_tokens) if t != blank], int(rng.integers(0, 4))
            ).astype(np.int64)
            most = 2 * len(target) + 1 if states else n_tokens
            values = rng.integers(0, most, length)
        share = {"all masked": 0.0, "all fixed": 1.0}.get(kind, 0.5)
        fixed = rng.random(length) < share
        partial[row, :length][fixed] = values[fixed]
        targets.append(target)
    return Problem(
        torch.from_numpy(logits),
        pad(targets, int(rng.integers(0, 2)), n_tokens + 7),
        torch.from_numpy(partial),
        torch.from_numpy(lengths),
        torch.tensor([len(target) for target in targets]),
        blank,
        states,
    )


def pad(targets: list[Ints], extra: int, value: int) -> Tensor:
    """Targets as (B, S) padded with `value`, with `extra` columns that nobody uses."""
    longest = max(map(len, targets), default=0) + extra
    padded = np.full((len(targets), longest), value, np.int64)
    for row, target in zip(padded, targets, strict=True):
        row[: len(target)] = target
    return torch.from_numpy(padded)


def problems(seed: int, n_utterances: int, *, states: bool = False) -> Iterator[Problem]:
    """Batches of eight until there are `n_utterances`."""
    rng = np.random.default_rng(seed)
    for _ in range(-(-n_utterances // 8)):
        yield random_problem(rng, batch=8, states=states)
