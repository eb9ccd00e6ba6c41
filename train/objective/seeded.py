"""Random numbers that depend on a seed and a place alone: the same on every device, in every batch.

A batch's own generator gives an utterance other numbers in another batch, after a longer
utterance, on another device. Here every utterance has a seed, and number k of a stream is a
function of the seed, the stream and k: SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable
pseudorandom number generators", figure 17), whose output k is a mix of ``start + k * golden``, in
integer operations that wrap around alike on all devices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number."""
    return value - 2**64 if value >= 2**63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def random_bits(seeds: Tensor, stream: int, shape: tuple[int, ...]) -> Tensor:
    """64 random bits for every place of every utterance.

    Parameters
    ----------
    seeds : long, (B,)
        Any numbers; equal seeds have equal bits, near ones have nothing in common.
    stream : int
        Which of the independent streams of a seed.
    shape : tuple of int
        Places. A place's number counts along the last dimension first: so the first dimension
        may be cut short, and nothing that is left changes.

    Returns
    -------
    bits : long, (B, *shape)
    """
    golden = torch.tensor(GOLDEN, device=seeds.device)
    start = _mix(seeds.to(torch.int64) ^ _mix(golden * (stream + 1)))
    place = torch.arange(1, math.prod(shape) + 1, device=seeds.device)
    return _mix(start[:, None] + place * golden).view(len(seeds), *shape)


def random_uniform(
    seeds: Tensor, stream: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Numbers of [0, 1), (B, *shape), as `random_bits`; of 53 bits in float64, else of 24."""
    n_bits = 53 if dtype == torch.float64 else 24
    bits = _shift(random_bits(seeds, stream, shape), 64 - n_bits)
    return bits.to(dtype) * 2.0**-n_bits


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser: every bit of the output depends on every bit of the input."""
    z = (z ^ _shift(z, 30)) * MIX_1
    z = (z ^ _shift(z, 27)) * MIX_2
    return z ^ _shift(z, 31)


def _shift(z: Tensor, n: int) -> Tensor:
    """Logical shift to the right: torch's own copies the sign."""
    return (z >> n) & ((1 << (64 - n)) - 1)
