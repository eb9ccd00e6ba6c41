"""What encoders cost, side by side: ``make bench-encoders``.

Every encoder streams noise by itself, one thread, batch of one, as torch runs it: its norms are
not folded, and calls of small operations weigh more than on a device. Encoders take turns, so that
a busy machine slows them alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from edge_imputer.specs import AnyEncoderSpec, FrameSpec

from ..benchmark import cpu_threads, timed
from ..layers.base import State
from ..layers.inspect import inspect_encoder
from . import Encoder, build_encoder

CHUNK_MS = 320  # what the default model is fed at a time
ROUNDS = 60


@dataclass(frozen=True)
class Row:
    """One encoder.

    Attributes
    ----------
    name : str
    parameters, macs_per_s, latency_ms, state_bytes
        As in `edge_imputer.train.layers.inspect`.
    ms_per_s_audio : float
        Median CPU milliseconds a second of audio, fed by `CHUNK_MS`, or the next whole step.
    """

    name: str
    parameters: int
    macs_per_s: int
    ms_per_s_audio: float
    latency_ms: float
    state_bytes: int


def measure(presets: Mapping[str, AnyEncoderSpec], features: FrameSpec) -> list[Row]:
    """A row for each encoder."""
    torch.manual_seed(0)
    built = {name: build_encoder(spec, features).eval() for name, spec in presets.items()}
    with cpu_threads(1):
        streams = {name: stream(encoder, features) for name, encoder in built.items()}
        times: dict[str, list[float]] = {name: [] for name in built}
        for _ in range(ROUNDS):
            for name, step in streams.items():
                times[name].append(step())
    rows = []
    for name, encoder in built.items():
        info = inspect_encoder(encoder, features)
        rows.append(
            Row(
                name=name,
                parameters=info.parameters,
                macs_per_s=info.macs_per_s,
                ms_per_s_audio=float(f"{statistics.median(times[name]):.3g}"),
                latency_ms=info.latency_ms,
                state_bytes=info.state_bytes,
            )
        )
    return rows


def stream(encoder: Encoder, features: FrameSpec) -> Callable[[], float]:
    """A call that feeds a stream's next chunk, and gives CPU ms a second of audio.

    The stream has warmed up: a second and more has gone through it.
    """
    step_ms = 1e3 * encoder.step_features * features.hop_length / features.sample_rate
    n_steps = max(1, -int(-CHUNK_MS // step_ms))
    chunk = torch.randn(1, n_steps * encoder.step_features, features.n_mels)
    state: State = encoder.initial_state(1)

    @torch.no_grad()
    def advance() -> None:
        nonlocal state
        _, state = encoder.step(chunk, state)

    for _ in range(1 + int(2000 // (n_steps * step_ms))):
        advance()
    return lambda: timed(advance)[0] / (n_steps * step_ms / 1e3)
