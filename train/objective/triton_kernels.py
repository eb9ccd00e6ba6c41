"""The Imputer's loss and gradient on a GPU: five kernels, no atomics, no synchronisation.

Numbers. Forward and backward variables are pairs of a float32 mantissa and an int32 exponent of 2,
so that nothing underflows and no step needs a maximum over states, a log or an exp. Zero is
(0, `DEAD`). A sum brings both addends to the larger exponent; what is 2**127 times smaller
vanishes. A product adds exponents and stops at `DEAD`. Mantissas stray from [1, 2) for a few steps,
by a factor of 5 a step at most, and are then brought back. In memory a number is one int64,
``exponent << 32 | bits of the mantissa``.

Range. A frame's emissions are divided by a power of 2 near the largest, so exponents only fall, but
for the number of paths (2 a frame at most). Paths of ordinary logits, say e**-50 below each frame's
maximum, lose 72 a frame: 100,000 such frames stay two orders of magnitude above `DEAD`. Paths below
2**`DEAD` (7e8 nats) count as that.

Meeting in the middle. With m = ceil(L / 2), `forward` walks alpha over frames 0..m-1 and, at the
same time in another program, beta over L-1..m-1. There sum(alpha * beta) is the probability.
`backward` walks on, alpha through m-1..L-1 beside the stored beta and beta through m-2..0 beside
the stored alpha, and writes posteriors. Each is T / 2 dependent steps, and no frame but the middle
one has both alpha and beta stored.

States. A thread holds REGISTERS blanks and labels that follow each other, k = lane * REGISTERS + r,
as tuples of tensors over lanes. The neighbour k - 1 is thus another register of the same thread,
but for one shift by a lane a step: two warp shuffles with one warp (63 tokens or fewer), shared
memory and two barriers with more. Memory holds (r, lane), lanes adjacent.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import Problem
from .triton_device import (
    emissions_kernel,
    first_half_kernel,
    gradient_kernel,
    loss_kernel,
    second_half_kernel,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
WORKSPACE_DTYPE = torch.int64

LONGEST = 8191
"""Tokens of the longest target: 16 warps of 16 states a thread."""


@dataclass(frozen=True)
class _Shape:
    """How states are laid over threads, and what each kernel works on at a time.

    Attributes
    ----------
    warps, registers : int
        Of a walk; 32 * warps * registers states > tokens of the longest target.
    unrolled : int
        Steps in a turn of a walk's loop, and thus between load and use: 8 registers of states or
        fewer, as the compiler's time grows with the third power.
    """

    warps: int
    registers: int
    unrolled: int

    @property
    def lanes(self) -> int:
        return 32 * self.warps

    @property
    def states(self) -> int:
        return self.lanes * self.registers

    @classmethod
    def of(cls, longest: int) -> _Shape:
        """Two states a thread while 16 warps suffice: short steps, and some work for each wait."""
        states = next(n for n in (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192) if longest < n)
        registers = 1 if states == 32 else max(2, states // 512)
        unrolled = 4 if states < 1024 else 2 if states == 1024 else 1
        return cls(states // (32 * registers), registers, unrolled)


def supported(problem: Problem) -> bool:
    """Whether these kernels can do it: half, bfloat16 or float32, at most `LONGEST` tokens."""
    return problem.logits.dtype in DTYPES and problem.targets.shape[1] <= LONGEST


def _sections(batch: int, n_frames: int, longest: int) -> list[int]:
    """Words of a margin, emissions (labels, blanks), states, sorted targets, statistics, a margin.

    The margins are what a walk may read past its ends. Every section starts on 16 bytes: Triton
    compiles a kernel again for pointers that do not.
    """
    shape, frames = _Shape.of(longest), _rounded(batch * n_frames)
    margin = shape.unrolled * 2 * shape.states
    return [
        margin,
        batch * n_frames * shape.states,
        frames,
        batch * (n_frames + 1) * 2 * shape.states,
        _rounded(batch * longest),
        (3 * frames + _rounded(batch)) // 2,
        margin,
    ]


def _rounded(size: int) -> int:
    return (size + 3) // 4 * 4


def workspace_size(batch: int, n_frames: int, longest: int) -> int:
    """Elements, of `WORKSPACE_DTYPE`, of what `forward` keeps for `backward`.

    Parameters
    ----------
    batch, n_frames : int
        May be symbolic.
    longest : int
        ``targets.shape[1]``, at most `LONGEST`; as a symbol, it is only compared.
    """
    return sum(_sections(batch, n_frames, longest))


def new_workspace(logits: Tensor, size: int) -> Tensor:
    """An uninitialised workspace beside `logits`."""
    return logits.new_empty(size, dtype=WORKSPACE_DTYPE)


@dataclass(frozen=True)
class _Workspace:
    """Views of the workspace; `total_exponents` is an int32 view, the statistics float32."""

    labels: Tensor
    blanks: Tensor
    states: Tensor
    order: Tensor
    highest: Tensor
    inverse: Tensor
    log_total: Tensor
    total_exponents: Tensor

    @classmethod
    def of(cls, words: Tensor, batch: int, n_frames: int, longest: int) -> _Workspace:
        sizes = _sections(batch, n_frames, longest)
        _, labels, blanks, states, order, halves, _ = torch.split_with_sizes(words, sizes)
        frames = _rounded(batch * n_frames)
        sizes = [frames, frames, frames, _rounded(batch)]
        floats = torch.split_with_sizes(halves.view(torch.float32), sizes)
        highest, inverse, log_total, exponents = floats
        return cls(
            labels, blanks, states, order, highest, inverse, log_total, exponents.view(torch.int32)
        )


def _on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _block(size: int, most: int) -> int:
    return max(16, min(1 << (size - 1).bit_length(), most))


def _warps(block: int) -> int:
    """About 8 elements a thread."""
    return max(1, min(block // 256, 8))


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Loss per utterance, and what `backward` needs; launches three kernels and returns at once.

    Parameters
    ----------
    problem : Problem
        For which `supported` holds, on a CUDA device (or anywhere under Triton's interpreter).
        Lengths and tokens outside their ranges give wrong losses but touch no foreign memory.

    Returns
    -------
    loss : float32, (B,)
        In nats; infinite without an alignment, NaN if an open frame has no softmax.
    workspace : int64, (workspace_size(B, T, S),)
    """
    (batch, n_frames, n_tokens), longest = problem.logits.shape, problem.targets.shape[1]
    logits, shape = problem.logits, _Shape.of(longest)
    loss = logits.new_empty(batch, dtype=torch.float32)
    workspace = new_workspace(logits, workspace_size(batch, n_frames, longest))
    parts = _Workspace.of(workspace, batch, n_frames, longest)
    lengths = problem.input_lengths, problem.target_lengths
    layout = {"REGISTERS": shape.registers, "LANES": shape.lanes}
    targets = problem.targets, *problem.targets.stride()
    block_v, block_k = _block(n_tokens, 4096), _block(shape.states, 1024)
    with _on_device(logits):
        emissions_kernel[(batch * n_frames,)](
            logits, *logits.stride(), *targets, problem.partial, *problem.partial.stride(),
            *lengths, parts.labels, parts.blanks, parts.highest, parts.inverse, parts.log_total,
            n_frames, n_tokens, longest, problem.blank_id, STATES=problem.states, **layout,
            BLOCK_V=block_v, BLOCK_K=block_k, num_warps=_warps(max(block_v, block_k)),
        )  # fmt: skip
        first_half_kernel[(batch, 3)](
            *targets, *lengths, parts.labels, parts.blanks, parts.states, parts.order,
            n_frames, n_tokens, longest, STATES=problem.states, **layout, UNROLLED=shape.unrolled,
            BLOCK=block_k, num_warps=shape.warps,
        )  # fmt: skip
        loss_kernel[(batch,)](
            parts.states, parts.log_total, *lengths, parts.total_exponents, loss, n_frames,
            longest, **layout, BLOCK=_block(2 * shape.states, 1024), BLOCK_T=256, num_warps=4,
        )  # fmt: skip
    return loss, workspace


def backward(problem: Problem, grad_loss: Tensor, loss: Tensor, workspace: Tensor) -> Tensor:
    """Gradient with respect to the logits, the same bits every time; launches two kernels.

    Parameters
    ----------
    problem : Problem
        As given to `forward`.
    grad_loss : (B,)
        Not used where the loss is infinite.
    loss, workspace : Tensor
        As returned by `forward`; neither is changed, so `backward` may be called again.

    Returns
    -------
    gradient : (B, T, V)
        Of the logits' type and strides; 0 at fixed frames, past an input length, and wherever the
        loss is infinite; NaN at the open frames of an utterance whose loss is NaN.
    """
    (batch, n_frames, n_tokens), longest = problem.logits.shape, problem.targets.shape[1]
    logits, shape = problem.logits, _Shape.of(longest)
    gradient = torch.empty_like(logits)
    posteriors = logits.new_empty(
        batch * n_frames * (shape.states + shape.lanes), dtype=torch.float32
    )
    parts = _Workspace.of(workspace, batch, n_frames, longest)
    lengths = problem.input_lengths, problem.target_lengths
    layout = {"REGISTERS": shape.registers, "LANES": shape.lanes}
    block_v, block_k = _block(n_tokens, 4096), _block(longest, 8192)
    with _on_device(logits):
        second_half_kernel[(batch, 2)](
            problem.targets, *problem.targets.stride(), *lengths, parts.labels, parts.blanks,
            parts.states, parts.total_exponents, loss, posteriors, n_frames, n_tokens, longest,
            STATES=problem.states, **layout, UNROLLED=shape.unrolled, num_warps=shape.warps,
        )  # fmt: skip
        gradient_kernel[(batch * n_frames,)](
            logits, *logits.stride(), gradient, *gradient.stride(), problem.partial,
            *problem.partial.stride(), *lengths, parts.order, parts.highest, parts.inverse,
            posteriors, loss, grad_loss, *grad_loss.stride(), n_frames, n_tokens, longest,
            problem.blank_id, **layout, BLOCK_V=block_v, BLOCK_K=block_k,
            num_warps=_warps(max(block_v, block_k)),
        )  # fmt: skip
    return gradient
