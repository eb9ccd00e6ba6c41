"""What attention costs against length, dense and sparse: ``make bench-attention``.

Compared is one forward and backward pass of the attention core, from given queries, keys and
values, in both directions. Methods take turns, so that a busy machine slows them alike. Blocks
have about sqrt(c n) frames, c summaries each.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_imputer.specs import AttentionSpec

from ..benchmark import cpu_threads, peak_bytes, place, processor, timed
from .attention import sparse_attention

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
HEADS, WIDTH = 4, 64
SPARSE = {
    "local": AttentionSpec(pattern="local", direction="bidirectional"),
    "fixed": AttentionSpec(pattern="fixed", head_mode="split", direction="bidirectional"),
    "strided": AttentionSpec(pattern="strided", head_mode="split", direction="bidirectional"),
    "local+fixed": AttentionSpec(direction="bidirectional"),
    "local+fixed, c = 8": AttentionSpec(summaries=8, direction="bidirectional"),
}
DENSE, KEPT, FLEX = "dense", "dense, scores kept", "flex_attention"
ONCE_FROM = {DENSE: 8192, KEPT: 1024}  # from these lengths on they are slow, and measured once
KEPT_TO = 4096  # beyond, the scores take gigabytes
SLOPE_FROM, COMPARED_AT = 1024, 4096

Method = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One method at one length.

    Attributes
    ----------
    method : str
    n_frames : int
    block : int or None
        Frames of a block; None for dense attention.
    where : str
        As in "1 thread (CPU time)".
    ms, wall_ms : float
        Median CPU or GPU time, and time by the clock.
    memory_bytes : int
        Most held at once, beyond queries, keys, values and the output's gradient.
    """

    method: str
    n_frames: int
    block: int | None
    where: str
    ms: float
    wall_ms: float
    memory_bytes: int


def sized(spec: AttentionSpec, n_frames: int) -> AttentionSpec:
    """With blocks of the power of two next to sqrt(c n): near and far set are then as large."""
    block = 1 << math.floor(math.log2(spec.summaries * n_frames) / 2 + 0.5)
    return msgspec.structs.replace(spec, block=block)


def sparse(spec: AttentionSpec) -> Method:
    """The attention under test."""
    return lambda q, k, v: sparse_attention(q, k, v, None, spec)


def kept_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense attention as its formula stands there, with a (T, T) matrix a head."""
    scores: Tensor = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.softmax(-1) @ v


def flex_rule(spec: AttentionSpec) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """`pattern_mask` of a bidirectional `local+fixed` in whole blocks, for flex_attention."""

    def sees(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        same_block = i // spec.block == j // spec.block
        return same_block | (j % spec.block >= spec.block - spec.summaries)

    return sees


def flex(spec: AttentionSpec, n_frames: int) -> Method:
    """torch's flex_attention on a GPU; on a CPU it has no gradient."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(flex_rule(spec), None, None, n_frames, n_frames, device="cuda")
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


def methods(n_frames: int, device: str) -> dict[str, Method]:
    """What is compared at one length."""
    found: dict[str, Method] = {DENSE: F.scaled_dot_product_attention}
    if n_frames <= KEPT_TO:
        found[KEPT] = kept_scores
    found |= {name: sparse(sized(spec, n_frames)) for name, spec in SPARSE.items()}
    if device == "cuda":
        found[FLEX] = flex(sized(SPARSE["local+fixed"], n_frames), n_frames)
    return found


def plan() -> list[tuple[int, str]]:
    """Length and device of every measurement."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [(n_frames, device) for device in devices for n_frames in LENGTHS]


def measure(n_frames: int, device: str = "cpu") -> list[Row]:
    """All methods at one length: in float32 on the CPU, in bfloat16 on a GPU."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    *inputs, d_out = torch.randn(4, 1, HEADS, n_frames, WIDTH, device=device, dtype=dtype)
    for x in inputs:
        x.requires_grad_()

    def both_ways(method: Method) -> Callable[[], object]:
        return lambda: torch.autograd.grad(method(*inputs), inputs, d_out)

    calls = {name: both_ways(method) for name, method in methods(n_frames, device).items()}
    with cpu_threads(1):
        memory = {name: peak_bytes(call, device) for name, call in calls.items()}  # and warms up
        times = take_turns(calls, n_frames, device)
    return [
        Row(
            name,
            n_frames,
            sized(SPARSE[name], n_frames).block if name in SPARSE else None,
            place(device),
            statistics.median(ms for ms, _ in times[name]),
            statistics.median(wall_ms for _, wall_ms in times[name]),
            memory[name],
        )
        for name in calls
    ]


def take_turns(
    calls: dict[str, Callable[[], object]], n_frames: int, device: str
) -> dict[str, list[tuple[float, float]]]:
    """CPU and clock milliseconds, round by round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(max(3, min(25, 65_536 // n_frames))):
        for name, call in calls.items():
            slow = device == "cpu" and n_frames >= ONCE_FROM.get(name, math.inf)
            if turn == 0 or not slow:
                times[name].append(timed(call, device))
    return times


def slope(rows: list[Row], method: str) -> float:
    """Least-squares slope of log time on log length, from `SLOPE_FROM` on."""
    points = [
        (math.log(row.n_frames), math.log(row.ms))
        for row in rows
        if row.method == method and row.n_frames >= SLOPE_FROM
    ]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def figures(rows: list[Row]) -> dict[str, float]:
    """The summary of the CPU's rows: of `local+fixed` where no pattern is named."""
    rows = [row for row in rows if row.where.startswith("1 thread ")]
    compared = {row.method: row for row in rows if row.n_frames == COMPARED_AT}
    ours = compared["local+fixed"]
    return {
        "loglog_slope": slope(rows, ours.method),
        f"speedup_vs_dense_{COMPARED_AT}": compared[DENSE].ms / ours.ms,
        f"memory_ratio_vs_dense_{COMPARED_AT}": ours.memory_bytes / compared[DENSE].memory_bytes,
        f"memory_ratio_vs_kept_scores_{COMPARED_AT}": (
            ours.memory_bytes / compared[KEPT].memory_bytes
        ),
    } | {f"loglog_slope, {name}": slope(rows, name) for name in (DENSE, *SPARSE)}


def describe() -> str:
    """What is measured, on what."""
    return (
        f"{processor()}; {HEADS} heads of {WIDTH}, batch 1; dense is torch's "
        f"scaled_dot_product_attention, measured once from {ONCE_FROM[DENSE]:,} frames on"
    )
