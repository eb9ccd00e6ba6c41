"""The most probable labelings, by CTC's prefix beam search over a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_imputer.specs import BLANK_ID

from ..objective.seeded import MIX_1, MIX_2
from .labelings import Labelings

_NO_PARENT = -1  # no prefix has this hash but by a chance of 2^-64


@dataclass
class _Beam:
    """W prefixes of every utterance; -inf where there are fewer.

    A prefix is known by a hash of 64 bits, and by that of its parent, which lacks its last token.
    """

    tokens: Tensor  # (B, W, S)
    lengths: Tensor  # (B, W)
    last: Tensor  # (B, W): the last token, the blank of the empty prefix
    hashes: Tensor  # (B, W)
    parents: Tensor  # (B, W): hash of the parent
    blank: Tensor  # (B, W): log-probability of the paths that end in a blank
    spoken: Tensor  # (B, W): of those that end in the last token


def likeliest_labelings(log_probs: Tensor, n_frames: Tensor, n: int) -> Labelings:
    """The n most probable distinct labelings that a beam of n prefixes finds.

    Graves 2012 ("Supervised sequence labelling", section 7.5) and Hannun et al. 2014
    (arXiv:1408.2873): paths are summed over by prefix. Prefixes that fall out of the beam are lost,
    so with a narrow beam a labeling may be missed; n of at least all there are finds all.

    Parameters
    ----------
    log_probs : (B, T, V)
        Normalised; -inf where impossible.
    n_frames : (B,)
    n : int

    Returns
    -------
    Labelings
        The most probable first, by the beam's sums, from which its losses follow too but for what
        was lost. Weights are 1 for a labeling, and 0 where there are fewer than n.
    """
    beam = _start(log_probs, n)
    for t in range(log_probs.shape[1]):  # one step for all utterances and prefixes
        moved = _advance(beam, log_probs[:, t])
        inside = t < n_frames
        for name, value in vars(moved).items():
            old = getattr(beam, name)
            setattr(beam, name, value.where(inside.view(-1, *[1] * (value.dim() - 1)), old))
    total = torch.logaddexp(beam.blank, beam.spoken)
    order = total.argsort(dim=1, descending=True, stable=True)
    lengths = beam.lengths.gather(1, order)
    tokens = beam.tokens.gather(1, order[..., None].expand_as(beam.tokens))
    exists = total.gather(1, order) > -torch.inf
    lengths = lengths.where(exists, 0)
    longest = max(1, int(lengths.max())) if lengths.numel() else 1
    place = torch.arange(longest, device=tokens.device)
    tokens = tokens[..., :longest].where(place < lengths[..., None], BLANK_ID)
    return Labelings(
        tokens.transpose(0, 1).contiguous(),
        lengths.T.contiguous(),
        exists.T.to(log_probs.dtype).contiguous(),
    )


def _start(log_probs: Tensor, n: int) -> _Beam:
    """The empty prefix, certain."""
    batch, n_frames, _ = log_probs.shape
    nothing = log_probs.new_full((batch, n), -torch.inf)
    certain = nothing.clone()
    certain[:, :1] = 0.0
    zeros = torch.zeros(batch, n, dtype=torch.long, device=log_probs.device)
    tokens = zeros[..., None].expand(batch, n, max(1, n_frames)).clone()
    return _Beam(tokens, zeros, zeros + BLANK_ID, zeros, zeros + _NO_PARENT, certain, nothing)


def _advance(beam: _Beam, frame: Tensor) -> _Beam:
    """The beam after one more frame of log-probabilities (B, V)."""
    width, n_tokens = beam.last.shape[1], frame.shape[1]
    total = torch.logaddexp(beam.blank, beam.spoken)
    stay_blank = total + frame[:, BLANK_ID, None]
    repeated = frame.gather(1, beam.last).masked_fill(beam.last == BLANK_ID, -torch.inf)
    stay_spoken = beam.spoken + repeated
    # A token after itself is one more only behind a blank.
    same = torch.arange(n_tokens, device=frame.device) == beam.last[..., None]  # (B, W, V)
    grown = torch.where(same, beam.blank[..., None], total[..., None]) + frame[:, None]
    grown[..., BLANK_ID] = -torch.inf
    # A longer prefix that is in the beam already gets what grows into it.
    is_parent = beam.hashes[:, :, None] == beam.parents[:, None]  # (B, W, W')
    children = beam.last[:, None].expand(-1, width, -1)
    into = grown.gather(2, children).masked_fill(~is_parent, -torch.inf)
    stay_spoken = torch.logaddexp(stay_spoken, into.logsumexp(1))
    taken = torch.zeros_like(grown).scatter_add(2, children, is_parent.to(grown.dtype))
    grown = grown.masked_fill(taken > 0, -torch.inf)
    return _select(beam, stay_blank, stay_spoken, grown)


def _select(beam: _Beam, blank: Tensor, spoken: Tensor, grown: Tensor) -> _Beam:
    """The most probable of prefixes that stay, (B, W), and that grow by a token, (B, W, V)."""
    candidates = torch.cat([torch.logaddexp(blank, spoken), grown.flatten(1)], 1)
    chosen = candidates.topk(beam.last.shape[1], 1).indices  # (B, W)
    width, n_tokens = beam.last.shape[1], grown.shape[2]
    grows = chosen >= width
    source = torch.where(grows, (chosen - width) // n_tokens, chosen)
    token = torch.where(grows, (chosen - width) % n_tokens, beam.last.gather(1, source))
    lengths, hashes = beam.lengths.gather(1, source), beam.hashes.gather(1, source)
    tokens = beam.tokens.gather(1, source[..., None].expand_as(beam.tokens))
    exists = candidates.gather(1, chosen) > -torch.inf
    parents = torch.where(grows, hashes, beam.parents.gather(1, source))
    end = lengths.clamp(max=tokens.shape[2] - 1)[..., None]
    written = torch.where(grows[..., None], token[..., None], tokens.gather(2, end))
    return _Beam(
        tokens=tokens.scatter(2, end, written),
        lengths=lengths + grows,
        last=token,
        hashes=torch.where(grows, _hash(hashes, token), hashes),
        # What has no path must get none as the double of a prefix that is in the beam.
        parents=parents.where(exists, _NO_PARENT),
        blank=torch.where(grows, -torch.inf, blank.gather(1, source)),
        spoken=torch.where(
            grows,
            grown.flatten(1).gather(1, (chosen - width).clamp(min=0)),
            spoken.gather(1, source),
        ),
    )


def _hash(parent: Tensor, token: Tensor) -> Tensor:
    """Of a prefix that grows by a token."""
    mixed = (parent ^ (token + 1) * MIX_1) * MIX_2
    return mixed ^ (mixed >> 29)
