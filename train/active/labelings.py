"""Labelings of utterances: drawn from a model's own distribution, or read off its best path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_imputer.specs import BLANK_ID

from ..objective.seeded import random_uniform

_STREAM = 20  # of an utterance's seed; those of other modules are other numbers


@dataclass(frozen=True)
class Labelings:
    """N labelings of every utterance of a batch.

    Attributes
    ----------
    tokens : long, (N, B, S)
        Ids without blanks; the blank past a labeling's end.
    lengths : long, (N, B)
    weights : (N, B)
        What each counts in a mean over an utterance's labelings.
    """

    tokens: Tensor
    lengths: Tensor
    weights: Tensor


def collapse(paths: Tensor, n_frames: Tensor) -> tuple[Tensor, Tensor]:
    """What alignments spell: repeats merged, blanks dropped.

    Parameters
    ----------
    paths : long, (..., B, T)
    n_frames : long, (B,)
        Each utterance's own; what follows is of its padding.

    Returns
    -------
    tokens : long, (..., B, S)
        The blank past a labeling's end; S is the longest's length, at least 1.
    lengths : long, (..., B)
    """
    longest = paths.shape[-1]
    inside = torch.arange(longest, device=paths.device) < n_frames[:, None]
    before = F.pad(paths[..., :-1], (1, 0), value=BLANK_ID)
    is_new = inside & (paths != BLANK_ID) & (paths != before)
    lengths = is_new.sum(-1)
    place = torch.where(is_new, is_new.cumsum(-1) - 1, longest)  # the others go behind the end
    tokens = paths.new_full((*paths.shape[:-1], longest + 1), BLANK_ID)
    tokens.scatter_(-1, place, paths)
    n_tokens = max(1, int(lengths.max())) if lengths.numel() else 1
    return tokens[..., :longest][..., :n_tokens], lengths


def best_labeling(log_probs: Tensor, n_frames: Tensor) -> Labelings:
    """What the best path spells, (1, B, S): greedy decoding.

    Parameters
    ----------
    log_probs : (B, T, V)
    n_frames : (B,)
    """
    tokens, lengths = collapse(log_probs.argmax(-1)[None], n_frames)
    return Labelings(tokens, lengths, torch.ones_like(lengths, dtype=log_probs.dtype))


def sample_labelings(log_probs: Tensor, n_frames: Tensor, n: int, seeds: Tensor) -> Labelings:
    """Labelings drawn from p(y | x), each of weight 1 / n.

    Frames of CTC, and an Imputer's open frames, are independent given what the network has seen:
    so a token is drawn in every frame, and what the path spells is an exact draw of a labeling.

    Parameters
    ----------
    log_probs : (B, T, V)
        Normalised; -inf where impossible.
    n_frames : (B,)
    n : int
    seeds : long, (B,)
        An utterance's draws depend on its seed and its own frames alone.
    """
    cumulated = log_probs.exp().cumsum(-1)
    shape = (log_probs.shape[1], n)  # frames first: padding may follow, and changes nothing
    uniforms = random_uniform(seeds, _STREAM, shape, log_probs.dtype)
    drawn = torch.searchsorted(cumulated, uniforms * cumulated[..., -1:], right=True)
    paths = drawn.clamp(max=log_probs.shape[2] - 1).permute(2, 0, 1)
    tokens, lengths = collapse(paths, n_frames)
    weights = torch.full(lengths.shape, 1 / n, dtype=log_probs.dtype, device=log_probs.device)
    return Labelings(tokens, lengths, weights)
