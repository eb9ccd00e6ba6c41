"""How long one encoder step and one pass of the head take, or one step of a keyword model, runtime
by runtime, side by side.

The runtimes take turns, round by round, so that a slow spell of a shared machine hits them all;
the figure is the median over rounds of the thread's CPU time a call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np

from .backends import Backend, KeywordBackend
from .backends.base import Array, Float32, Int32, State
from .specs import KeywordModelSpec, ModelSpec

Key = TypeVar("Key", bound=Hashable)
Turn = Callable[[], None]
"""Makes a number of calls."""


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
    n_steps : passes of the head a chunk, revisions included, for `Latency.step_us`
    rounds : how often the backends take turns
    calls : calls timed together in a turn
    """
    rng = np.random.default_rng(0)
    features = rng.standard_normal((spec.step_features, spec.features.n_mels), np.float32)
    alignment = rng.integers(0, spec.tokens.mask_id + 1, spec.head.window).astype(np.int32)
    turns: dict[tuple[str, str], Turn] = {}
    for name, backend in backends.items():
        turns[name, "encoder"] = _steps(
            backend.encoder_step, backend.initial_state, features, calls
        )
        turns[name, "imputer"] = _passes(backend, features, alignment, calls)
    taken = _medians(turns, rounds, calls)
    return {
        name: Latency(taken[name, "encoder"], taken[name, "imputer"], n_steps) for name in backends
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
    turns = {
        name: _steps(backend.keywords_step, backend.initial_state, features, calls)
        for name, backend in backends.items()
    }
    return _medians(turns, rounds, calls)


def _medians(turns: Mapping[Key, Turn], rounds: int, calls: int) -> dict[Key, float]:
    """Medians over rounds of the CPU microseconds a call, of turns of so many calls."""
    taken: dict[Key, list[float]] = {key: [] for key in turns}
    for turn in range(rounds + 1):
        for key, make_calls in turns.items():
            start = time.thread_time_ns()
            make_calls()
            if turn:  # the first one only warms up
                taken[key].append((time.thread_time_ns() - start) / calls / 1e3)
    return {key: round(float(np.median(times)), 2) for key, times in taken.items()}


def _steps(
    step: Callable[[Float32, State], tuple[Array, State]],
    initial_state: Callable[[], State],
    features: Float32,
    calls: int,
) -> Turn:
    """A turn of steps from the initial state on."""

    def turn() -> None:
        state = initial_state()
        for _ in range(calls):
            _, state = step(features, state)

    return turn


def _passes(backend: Backend, features: Float32, alignment: Int32, calls: int) -> Turn:
    """A turn of passes of the head over what the encoder makes of the features."""
    frames, _ = backend.encoder_step(features, backend.initial_state())
    window = np.stack([frames[-1]] * len(alignment))

    def turn() -> None:
        for _ in range(calls):
            backend.imputer_step(window, alignment)

    return turn
