"""What the loss costs beside torch's, on one machine in one run: ``make bench-loss``.

Compared are one forward and backward pass from raw logits: `imputer_loss`, the exact reduction to
`ctc_loss` on the same partial alignments, and torch's own CTC, that is log_softmax and ctc_loss,
which knows no partial alignment. The methods take turns, so that a busy machine slows them alike.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..benchmark import cpu_threads, peak_bytes, place, processor, timed
from .arguments import MASK, Problem
from .loss import choose_backend, imputer_loss
from .native import NATIVE
from .reduction import reduction_loss

SHAPES = ((32, 100, 32, 20), (32, 250, 64, 60), (16, 500, 256, 120), (16, 1500, 1024, 200))
SHARES = (0.5, 1.0)
LONG = (2, 1500, 1024, 200)  # where gradients are compared with float64
Method = Callable[[Problem, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """Median milliseconds of one shape.

    Attributes
    ----------
    shape : (B, T, V, S)
    open_share : float
        Share of the frames that are open; 1 is CTC.
    where : str
        As in "1 thread (CPU time)".
    ms : dict
        CPU time of all threads, or GPU time, by method.
    wall_ms : dict
        Time by the clock, by method.
    """

    shape: tuple[int, int, int, int]
    open_share: float
    where: str
    ms: dict[str, float]
    wall_ms: dict[str, float]

    def speedup(self, method: str) -> float:
        """How many times as long as `imputer_loss` a method takes."""
        return self.ms[method] / self.ms["imputer_loss"]


def random_batch(
    shape: tuple[int, int, int, int], open_share: float, device: str = "cpu"
) -> Problem:
    """Random logits and targets, and partial alignments that agree with the targets."""
    batch, n_frames, n_tokens, size = shape
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(1, n_tokens, (batch, size), generator=generator)
    for k in range(1, size):  # no repeats: any frames will do for the tokens
        same = targets[:, k] == targets[:, k - 1]
        targets[same, k] = targets[same, k] % (n_tokens - 1) + 1
    places = torch.rand(batch, n_frames, generator=generator).argsort(1)[:, :size].sort(1).values
    alignment = torch.zeros(batch, n_frames, dtype=torch.int64).scatter_(1, places, targets)
    is_open = torch.rand(batch, n_frames, generator=generator) < open_share
    return Problem(
        torch.randn(batch, n_frames, n_tokens, generator=generator).to(device),
        targets.to(device),
        alignment.masked_fill(is_open, MASK).to(device),
        torch.full((batch,), n_frames, device=device),
        torch.full((batch,), size, device=device),
    )


def ours(problem: Problem, logits: Tensor) -> Tensor:
    """The loss under test."""
    return imputer_loss(
        logits,
        problem.targets,
        problem.partial,
        problem.input_lengths,
        problem.target_lengths,
        reduction="sum",
    )


def reduction(problem: Problem, logits: Tensor) -> Tensor:
    """The same loss by way of torch's ctc_loss."""
    return reduction_loss(problem.with_logits(logits), zero_infinity=True).sum()


def torch_ctc(problem: Problem, logits: Tensor) -> Tensor:
    """CTC as torch has it, without the partial alignment."""
    return F.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        problem.targets,
        problem.input_lengths,
        problem.target_lengths,
        reduction="sum",
    )


METHODS: dict[str, Method] = {"imputer_loss": ours, "reduction": reduction, "torch ctc": torch_ctc}


def once(method: Method, problem: Problem) -> tuple[float, float]:
    """CPU and clock milliseconds of one forward and backward pass; on CUDA, GPU time twice."""
    logits = problem.logits.clone().requires_grad_()
    if torch.get_num_threads() > 1:
        time.sleep(0.01)  # the clone's OpenMP threads go on spinning, and would be counted
    return timed(lambda: torch.autograd.grad(method(problem, logits), logits), logits.device.type)


Setting = tuple[tuple[int, int, int, int], float, int, str]


def places() -> list[tuple[int, str]]:
    """Threads and device: one thread, two, and a GPU if there is one."""
    cpu = [(1, "cpu"), (2, "cpu")]
    return [*cpu, (1, "cuda")] if torch.cuda.is_available() else cpu


def plan() -> list[Setting]:
    """Shape, open share, threads and device of every row."""
    return [(shape, share, *place) for place in places() for share in SHARES for shape in SHAPES]


def measure(
    shape: tuple[int, int, int, int],
    open_share: float,
    threads: int = 1,
    device: str = "cpu",
    methods: dict[str, Method] = METHODS,
) -> Row:
    """Medians over rounds in which the methods take turns."""
    problem = random_batch(shape, open_share, device)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    with cpu_threads(threads):
        for _ in range(1 + (5 if shape[1] > 1000 else 15)):  # the first one warms up
            for name, method in methods.items():
                times[name].append(once(method, problem))
    ms, wall_ms = (
        {name: statistics.median(t[which] for t in ts[1:]) for name, ts in times.items()}
        for which in (0, 1)
    )
    return Row(shape, open_share, place(device, threads), ms, wall_ms)


def geometric_mean(values: list[float]) -> float:
    """exp of the mean logarithm."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def peak_memory_ratio(shape: tuple[int, int, int, int], threads: int = 1) -> float:
    """Most memory held beyond the logits in a forward and backward pass, over B T V floats."""
    problem = random_batch(shape, 1.0)
    logits = problem.logits.requires_grad_()
    with cpu_threads(threads):
        most = peak_bytes(lambda: torch.autograd.grad(ours(problem, logits), logits))
    return most / (4 * logits.numel())


def gradient_errors() -> tuple[float, float]:
    """Largest error of a float32 gradient at T = 1500, ours and torch's, against float64."""
    mine, theirs = 0.0, 0.0
    for share in SHARES:
        problem = random_batch(LONG, share)

        def gradient(method: Method, dtype: torch.dtype, problem: Problem = problem) -> Tensor:
            logits = problem.logits.to(dtype, copy=True).requires_grad_()
            (result,) = torch.autograd.grad(method(problem, logits), logits)
            return result.double()

        exact = gradient(reduction, torch.float64)
        mine = max(mine, float((gradient(ours, torch.float32) - exact).abs().max()))
        if share == 1.0:
            theirs = float((gradient(torch_ctc, torch.float32) - exact).abs().max())
    return mine, theirs


def describe() -> str:
    """What is measured, on what."""
    problem = random_batch((1, 2, 3, 1), 1.0)
    path = choose_backend(problem)
    if NATIVE is None:
        return f"{processor()}; path {path}"
    return f"{processor()}; path {path}, {NATIVE.isa_name}, {NATIVE.path}"


def figures(rows: list[Row]) -> dict[str, Any]:
    """The summary of one-thread rows, and what does not depend on time."""
    half, full = (
        [row for row in rows if row.where.startswith("1 thread ") and row.open_share == share]
        for share in SHARES
    )
    mine, theirs = gradient_errors()
    return {
        "speedup_vs_reduction_half_masked": geometric_mean([r.speedup("reduction") for r in half]),
        "speedup_vs_torch_ctc_half_masked": geometric_mean([r.speedup("torch ctc") for r in half]),
        "speedup_vs_torch_ctc_all_masked": geometric_mean([r.speedup("torch ctc") for r in full]),
        "peak_memory_ratio": max(peak_memory_ratio(row.shape) for row in full),
        "max_grad_error_t1500": mine,
        "torch_grad_error_t1500": theirs,
    }
