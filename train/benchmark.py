"""What the benchmarks of training code share: threads, time, memory, the machine's name."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch


@contextlib.contextmanager
def cpu_threads(n_threads: int) -> Iterator[None]:
    """Let torch use so many threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(call: Callable[[], object], device: str = "cpu") -> tuple[float, float]:
    """CPU and clock milliseconds of one call; on CUDA, GPU time twice."""
    if device == "cuda":
        start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end), start.elapsed_time(end)
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return (time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3


def peak_bytes(call: Callable[[], object], device: str = "cpu") -> int:
    """Most memory that torch held at once during a call, beyond what it held before."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes lines on stderr
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def place(device: str, n_threads: int = 1) -> str:
    """Where a row was measured: "1 thread (CPU time)", or the GPU's name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{n_threads} thread{'s' * (n_threads > 1)} (CPU time)"


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
