"""Which frames of an alignment the model may see: the masks it is trained under.

The Imputer decodes in blocks of B frames, and commits frames in all blocks at once (Chan et al.
2020, arXiv:2002.08926, section 3.4). What it has seen in training is what it knows in decoding;
the policies differ in how near they come to that:

- ``"block"``: in every block the same number of frames is open, as between two passes of the
  decoder, but at random places.
- ``"confidence"``: the same, at the places a decoder leaves open, that commits the most confident
  frames first.
- ``"bernoulli"``: every frame on its own, at a rate drawn once per utterance.

A block that the utterance's end cuts short to w frames is filled in sooner: when n of B frames
are open in the others, max(0, w - (B - n)) are in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_imputer.errors import ObjectiveError

from .arguments import INTEGERS, MASK, checked_seeds, integers, refuse
from .seeded import random_uniform

# Streams of an utterance's seed; those of other modules are other numbers.
_FRAMES, _N_OPEN, _RATE = 1, 2, 3


def mask_alignment(
    alignment: Tensor,
    input_lengths: Tensor,
    *,
    policy: str = "block",
    block_size: int = 8,
    confidence: Tensor | None = None,
    rate: float | None = None,
    generator: torch.Generator | None = None,
    seeds: Tensor | None = None,
) -> Tensor:
    """Mask frames of an alignment, as the decoder would meet it.

    Parameters
    ----------
    alignment : int, (B, T)
        Tokens or states of `best_alignment` or `sample_alignment`, or of any other source.
    input_lengths : int, (B,)
    policy : {"block", "confidence", "bernoulli"}
        block: n ~ U{1..block_size} once per utterance; n random frames of every block.
        confidence: n as in block; the n least confident frames of every block, the later one of
        two that are equally so. bernoulli: a rate ~ U[0, 1] once per utterance, unless given;
        every frame with that probability.
    block_size : int
        Frames of a block, for all but bernoulli.
    confidence : float, (B, T)
        For the policy of that name alone; such as `Alignment.frame_scores`. NaN is the least.
    rate : float, optional
        For bernoulli alone: the probability that a frame is masked, 0..1.
    generator : torch.Generator, optional
        Where the random numbers come from, the CPU's default one if None. They are drawn on its
        device and then moved, so the same CPU generator gives the same masks on every device.
    seeds : int, (B,), optional
        In the place of a generator: an utterance's masks then depend on its seed and its own
        frames alone, whatever batch it is in and however long that is padded, on every device.

    Returns
    -------
    partial_alignment : long, (B, T)
        `MASK` (-1) where masked and past an utterance's end, else the alignment's value.

    Raises
    ------
    ObjectiveError
        An unknown policy, or an argument that it does not take or needs; wrong shapes, types,
        devices or ranges.
    """
    draw = _Draw.checked(alignment, input_lengths, block_size, confidence, rate, generator, seeds)
    if policy not in _POLICIES:
        names = ", ".join(repr(name) for name in _POLICIES)
        raise ObjectiveError(f"policy: expected {names}, got {policy!r}")
    if confidence is not None and policy != "confidence":
        raise ObjectiveError(f"confidence: policy {policy!r} does not use it; leave it out")
    if rate is not None and policy != "bernoulli":
        raise ObjectiveError(f"rate: policy {policy!r} does not use it; leave it out")
    return alignment.to(torch.int64).masked_fill(_POLICIES[policy](draw) | ~draw.inside, MASK)


@dataclass(frozen=True)
class _Draw:
    """Arguments of a policy; `inside` are the frames before an utterance's end, bool, (B, T)."""

    inside: Tensor
    block_size: int
    confidence: Tensor | None
    rate: float | None
    generator: torch.Generator | None
    seeds: Tensor | None

    @staticmethod
    def checked(
        alignment: Tensor,
        input_lengths: Tensor,
        block_size: int,
        confidence: Tensor | None,
        rate: float | None,
        generator: torch.Generator | None,
        seeds: Tensor | None,
    ) -> _Draw:
        if not isinstance(alignment, Tensor) or alignment.dtype not in INTEGERS:
            kind = getattr(alignment, "dtype", type(alignment).__name__)
            raise ObjectiveError(f"alignment: expected a tensor of integers, got {kind}")
        if alignment.ndim != 2:
            raise ObjectiveError(
                f"alignment: expected (batch, frames), got {tuple(alignment.shape)}; "
                "flatten samples with alignment.flatten(0, 1)"
            )
        batch, n_frames = alignment.shape
        lengths = integers("input_lengths", input_lengths, alignment.device, shape=(batch,))
        wrong = (lengths < 0) | (lengths > n_frames)
        refuse("input_lengths", "", lengths, wrong, f"outside 0..{n_frames}")
        if block_size < 1:
            raise ObjectiveError(f"block_size: expected 1 frame or more, got {block_size}")
        if rate is not None and not 0 <= rate <= 1:
            raise ObjectiveError(f"rate: expected a probability, 0..1, got {rate}")
        if confidence is not None:
            if not isinstance(confidence, Tensor) or not confidence.is_floating_point():
                kind = getattr(confidence, "dtype", type(confidence).__name__)
                raise ObjectiveError(f"confidence: expected a tensor of floats, got {kind}")
            if confidence.shape != alignment.shape or confidence.device != alignment.device:
                raise ObjectiveError(
                    f"confidence: expected the alignment's shape and device, "
                    f"{tuple(alignment.shape)} on {alignment.device}, got "
                    f"{tuple(confidence.shape)} on {confidence.device}"
                )
        seeds = checked_seeds(seeds, generator, batch, alignment.device)
        frame = torch.arange(n_frames, device=alignment.device)
        return _Draw(frame < lengths[:, None], block_size, confidence, rate, generator, seeds)

    def uniform(self, stream: int, *shape: int) -> Tensor:
        """Random numbers of [0, 1), drawn where the generator is, moved to the alignment."""
        if self.seeds is not None:
            return random_uniform(self.seeds, stream, shape[1:])
        numbers = torch.rand(shape, generator=self.generator, device=self._source())
        return numbers.to(self.inside.device)

    def n_open(self) -> Tensor:
        """Open frames of a whole block, 1..block_size, one number per utterance, (B, 1)."""
        shape = (len(self.inside), 1)
        if self.seeds is not None:
            return 1 + (random_uniform(self.seeds, _N_OPEN, (1,)) * self.block_size).long()
        numbers = torch.randint(
            1, self.block_size + 1, shape, generator=self.generator, device=self._source()
        )
        return numbers.to(self.inside.device)

    def _source(self) -> torch.device:
        return torch.device("cpu") if self.generator is None else self.generator.device


def _block(draw: _Draw) -> Tensor:
    n_open = draw.n_open()
    return _all_but_first(draw, draw.uniform(_FRAMES, *draw.inside.shape), n_open)


def _confidence(draw: _Draw) -> Tensor:
    if draw.confidence is None:
        raise ObjectiveError(
            "confidence: policy 'confidence' needs it; pass Alignment.frame_scores, or how sure "
            "the model is of every frame, as confidence=(batch, frames)"
        )
    known = draw.confidence.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return _all_but_first(draw, known, draw.n_open())


def _bernoulli(draw: _Draw) -> Tensor:
    rate = draw.uniform(_RATE, len(draw.inside), 1) if draw.rate is None else draw.rate
    return draw.uniform(_FRAMES, *draw.inside.shape) < rate


_POLICIES: dict[str, Callable[[_Draw], Tensor]] = {
    "block": _block,
    "confidence": _confidence,
    "bernoulli": _bernoulli,
}


def _all_but_first(draw: _Draw, priority: Tensor, n_open: Tensor) -> Tensor:
    """Mask all but the `block_size` - `n_open` (B, 1) frames that a block commits first.

    A decoder commits the same number in every block until none is left, the highest priority
    first and the earlier frame of equals. So blocks that are cut short fill up sooner.
    """
    batch, n_frames = priority.shape
    n_blocks = -(-n_frames // draw.block_size)
    ranked = priority.masked_fill(~draw.inside, -torch.inf)  # behind all others: they come later
    to_end = n_blocks * draw.block_size - n_frames
    blocks = F.pad(ranked, (0, to_end), value=-torch.inf).view(batch, n_blocks, draw.block_size)
    rank = blocks.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    committed = rank < draw.block_size - n_open.unsqueeze(-1)
    return ~committed.view(batch, n_blocks * draw.block_size)[:, :n_frames]
