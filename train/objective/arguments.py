"""What every path of the objective is given, checked once: shapes, types, devices, ranges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from edge_imputer.errors import ObjectiveError

MASK = -1
"""The value of a frame of a partial alignment that is still open."""

Semantics = Literal["token", "state"]
Reduction = Literal["none", "mean", "sum"]

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type that sums over logits of `dtype` are computed in."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class Problem:
    """One batch, with every tensor on the logits' device and every integer an int64.

    Attributes
    ----------
    logits : (B, T, V), float16, bfloat16, float32 or float64
        Any strides; time-first storage is a transposed view.
    targets : (B, S)
        Token ids; anything past an utterance's target length.
    partial : (B, T)
        `MASK` where open. Otherwise a token id (blank too), or, if `states`, a CTC state in
        0..2S: even states 2k are blanks, odd states 2k + 1 are target token k. Anything past
        an utterance's input length. May be an expanded (stride 0) tensor.
    input_lengths, target_lengths : (B,)
    blank_id : int
    states : bool
        `partial` holds states, not tokens.
    """

    logits: Tensor
    targets: Tensor
    partial: Tensor
    input_lengths: Tensor
    target_lengths: Tensor
    blank_id: int = 0
    states: bool = False

    def with_logits(self, logits: Tensor) -> Problem:
        """The same batch with other logits of the same shape."""
        return replace(self, logits=logits)

    def at_least_float32(self) -> Problem:
        """The same batch with logits of a type that sums are computed in."""
        dtype = at_least_float32(self.logits.dtype)
        return self if dtype == self.logits.dtype else self.with_logits(self.logits.to(dtype))

    def frame_is_open(self) -> Tensor:
        """Frames that have a probability: open, and before the utterance's end; bool, (B, T)."""
        return (self.partial == MASK) & self.frame_is_inside()

    def frame_is_inside(self) -> Tensor:
        """Frames before the utterance's end; bool, (B, T)."""
        frame = torch.arange(self.logits.shape[1], device=self.logits.device)
        return frame < self.input_lengths[:, None]


def make_problem(
    logits: Tensor,
    targets: Tensor,
    partial_alignment: Tensor | None,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *,
    blank_id: int,
    semantics: str = "token",
    validate: bool = False,
) -> Problem:
    """Check shapes, types and devices, and bring everything into the form of `Problem`.

    Ranges are checked too if `validate`: on a GPU that costs a synchronisation, see `check_ranges`.

    Raises
    ------
    ObjectiveError
        Also a ValueError: what was expected, what came.
    """
    check_logits(logits)
    batch, n_frames, n_tokens = logits.shape
    if not isinstance(blank_id, int) or not 0 <= blank_id < n_tokens:
        raise ObjectiveError(f"blank_id: expected 0..{n_tokens - 1}, got {blank_id}")
    if semantics not in ("token", "state"):
        raise ObjectiveError(f"semantics: expected 'token' or 'state', got {semantics!r}")
    device = logits.device
    input_lengths = integers("input_lengths", input_lengths, device, shape=(batch,))
    target_lengths = integers("target_lengths", target_lengths, device, shape=(batch,))
    if partial_alignment is None:
        partial = torch.full((1, 1), MASK, device=device).expand(batch, n_frames)
    else:
        partial = integers("partial_alignment", partial_alignment, device, shape=(batch, n_frames))
    targets = integers("targets", targets, device)
    if targets.ndim == 1:
        targets = _unpack(targets, target_lengths)
    elif targets.ndim != 2 or targets.shape[0] != batch:
        raise ObjectiveError(
            f"targets: expected ({batch}, S), or 1-D and concatenated, "
            f"got {tuple(targets.shape)} beside logits of {tuple(logits.shape)}"
        )
    problem = Problem(
        logits, targets, partial, input_lengths, target_lengths, blank_id, semantics == "state"
    )
    if validate:
        check_ranges(problem)
    return problem


def check_logits(logits: Tensor) -> None:
    """Check that logits are (B, T, V) floats."""
    if not isinstance(logits, Tensor):
        raise ObjectiveError(f"logits: expected a tensor, got {type(logits).__name__}")
    if logits.ndim != 3 or 0 in logits.shape:
        raise ObjectiveError(
            "logits: expected (batch, frames, tokens), none of them 0, "
            f"got {tuple(logits.shape)}; add a batch dimension with unsqueeze(0)"
        )
    if logits.dtype not in FLOATS:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise ObjectiveError(f"logits: expected {names}, got {logits.dtype}")


def integers(
    name: str, tensor: Tensor, device: torch.device, shape: tuple[int, ...] | None = None
) -> Tensor:
    """The tensor as int64 on `device`; lengths and targets may come from the CPU."""
    if not isinstance(tensor, Tensor):
        raise ObjectiveError(f"{name}: expected a tensor of integers, got {type(tensor).__name__}")
    if tensor.dtype not in INTEGERS:
        raise ObjectiveError(f"{name}: expected int32 or int64, got {tensor.dtype}")
    if shape is not None and tuple(tensor.shape) != shape:
        raise ObjectiveError(
            f"{name}: expected shape {shape}, got {tuple(tensor.shape)} (logits are (batch, "
            "frames, tokens); time-first ones go in as logits.transpose(0, 1))"
        )
    if tensor.device != device and tensor.device.type != "cpu":
        raise ObjectiveError(
            f"{name} is on {tensor.device}, logits are on {device}; "
            f"move it with {name}.to(logits.device)"
        )
    return tensor.to(device, torch.int64, non_blocking=True)


def checked_seeds(
    seeds: Tensor | None, generator: torch.Generator | None, batch: int, device: torch.device
) -> Tensor | None:
    """One random seed an utterance, (B,) on `device`, where there is no generator."""
    if seeds is None:
        return None
    if generator is not None:
        raise ObjectiveError("seeds: expected these or a generator, got both; leave one out")
    return integers("seeds", seeds, device, shape=(batch,))


def _unpack(concatenated: Tensor, lengths: Tensor) -> Tensor:
    """Concatenated targets as (B, S)."""
    if lengths.numel() and int(lengths.min()) < 0:
        raise ObjectiveError(f"target_lengths: {int(lengths.min())} is negative")
    total = int(lengths.sum())
    if total != concatenated.numel():
        raise ObjectiveError(
            f"targets: expected {total} concatenated tokens (the sum of target_lengths), "
            f"got {concatenated.numel()}"
        )
    longest = int(lengths.max())
    if total == 0:
        return concatenated.new_zeros(len(lengths), longest)
    start = lengths.cumsum(0) - lengths
    place = start[:, None] + torch.arange(longest, device=lengths.device)
    return concatenated[place.clamp(max=total - 1)]


def check_ranges(problem: Problem) -> None:
    """Check every value that is used; what lies past a length may be anything.

    Raises
    ------
    ObjectiveError
        Names the first wrong value and its place, as in ``targets: token 57 at [3, 12] is
        outside 0..31``.
    """
    _, n_frames, n_tokens = problem.logits.shape
    longest = problem.targets.shape[1]
    for name, lengths, most in (
        ("input_lengths", problem.input_lengths, n_frames),
        ("target_lengths", problem.target_lengths, longest),
    ):
        refuse(name, "", lengths, (lengths < 0) | (lengths > most), f"outside 0..{most}")
    place = torch.arange(longest, device=problem.targets.device)
    used = place < problem.target_lengths[:, None]
    targets = problem.targets
    outside = used & ((targets < 0) | (targets >= n_tokens))
    refuse("targets", "token ", targets, outside, f"outside 0..{n_tokens - 1}")
    refuse("targets", "token ", targets, used & (targets == problem.blank_id), "the blank")
    partial, inside = problem.partial, problem.frame_is_inside()
    if problem.states:
        most_states = 2 * problem.target_lengths[:, None]
        wrong = inside & ((partial < MASK) | (partial > most_states))
        refuse("partial_alignment", "state ", partial, wrong, "outside 0..2S and not MASK (-1)")
    else:
        wrong = inside & ((partial < MASK) | (partial >= n_tokens))
        limits = f"outside 0..{n_tokens - 1} and not MASK (-1)"
        refuse("partial_alignment", "token ", partial, wrong, limits)


def refuse(name: str, what: str, values: Tensor, wrong: Tensor, why: str) -> None:
    """Raise ``name: what value at [place] is why`` for the first value that is `wrong`."""
    if not bool(wrong.any()):
        return
    place = wrong.nonzero()[0].tolist()
    value = int(values[tuple(place)])
    raise ObjectiveError(f"{name}: {what}{value} at {place} is {why}")
