"""How long one encoder step and one pass of the head take, or one step of a keyword model, runtime
by runtime, side by side.

The runtimes take turns, round by round, so that a slow spell of a shared machine hits them all;
the figure is the median over rounds of the thread's CPU time a call.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from .backends import Backend, KeywordBackend
from .backends.base import Array, Float32
from .specs import KeywordModelSpec, ModelSpec


@dataclass(frozen=True)
class Latency:
    """Median CPU microseconds a call, one thread, Python call included."""

    encoder_us: float
    imputer_us: float
    n_steps: int

    @property
    def step_us(self) -> float:
        """One encoder step and `n_steps` passes of the head."""
        return self.encoder_us + self.n_steps * self.imputer_us

    def real_time_factor(self, spec: ModelSpec) -> float:
        """CPU seconds a second of audio, networks only."""
        chunk_s = spec.head.chunk_size * spec.frame_s
        chunk_us = spec.head.chunk_size * self.encoder_us + self.n_steps * self.imputer_us
        return chunk_us * 1e-6 / chunk_s

    def to_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return {**asdict(self), "step_us": self.step_us}


def measure(
    backends: Mapping[str, Backend],
    spec: ModelSpec,
    *,
    n_steps: int,
    rounds: int = 60,
    calls: int = 25,
) -> dict[str, Latency]:
    """Time every backend on the same random features and partial alignments.

    Parameters
    ----------
    backends : name -> loaded backend
    n_steps : passes of the head a chunk, for `Latency.step_us`
    rounds : how often the backends take turns
    calls : calls timed together in a turn
    """
    rng = np.random.default_rng(0)
    features = rng.standard_normal((spec.step_features, spec.features.n_mels), np.float32)
    alignment = rng.integers(0, spec.tokens.mask_id + 1, spec.head.window).astype(np.int32)
    encoder_us: dict[str, list[float]] = {name: [] for name in backends}
    imputer_us: dict[str, list[float]] = {name: [] for name in backends}
    windows = {
        name: np.stack([_warm(b, features)] * spec.head.window) for name, b in backends.items()
    }
    for _ in range(rounds):
        for name, backend in backends.items():
            state = backend.initial_state()
            start = time.thread_time_ns()
            for _ in range(calls):
                _, state = backend.encoder_step(features, state)
            encoder_us[name].append((time.thread_time_ns() - start) / calls / 1e3)
            start = time.thread_time_ns()
            for _ in range(calls):
                backend.imputer_step(windows[name], alignment)
            imputer_us[name].append((time.thread_time_ns() - start) / calls / 1e3)
    return {
        name: Latency(
            round(float(np.median(encoder_us[name])), 2),
            round(float(np.median(imputer_us[name])), 2),
            n_steps,
        )
        for name in backends
    }


def measure_keywords(
    backends: Mapping[str, KeywordBackend],
    spec: KeywordModelSpec,
    *,
    rounds: int = 60,
    calls: int = 25,
) -> dict[str, float]:
    """Time every backend's steps on the same random features.

    Parameters
    ----------
    backends : name -> loaded backend
    rounds : how often the backends take turns
    calls : calls timed together in a turn

    Returns
    -------
    Median CPU microseconds a step, one thread, Python call included, by name
    """
    rng = np.random.default_rng(0)
    features = rng.standard_normal((spec.input_features, spec.features.n_mels), np.float32)
    taken: dict[str, list[float]] = {name: [] for name in backends}
    for turn in range(rounds + 1):
        for name, backend in backends.items():
            state = backend.initial_state()
            start = time.thread_time_ns()
            for _ in range(calls):
                _, state = backend.keywords_step(features, state)
            if turn:  # the first one only warms up
                taken[name].append((time.thread_time_ns() - start) / calls / 1e3)
    return {name: round(float(np.median(times)), 2) for name, times in taken.items()}


def _warm(backend: Backend, features: Float32) -> Array:
    """A few calls before the clock runs; returns an encoder frame."""
    state = backend.initial_state()
    for _ in range(20):
        frames, state = backend.encoder_step(features, state)
    frame: Array = frames[-1]
    return frame
