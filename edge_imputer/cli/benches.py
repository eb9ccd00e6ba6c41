"""Benchmarks behind ``edge-imputer bench NAME`` and ``make bench-NAME``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import BACKENDS, load_backend
from ..bundle import Bundle, Provenance
from ..errors import EdgeImputerError, require
from ..frontend import LogMel, StreamingLogMel
from ..latency import measure
from ..specs import FeatureSpec
from .show import latency_table, table

N_STEPS = 8


def run_bench(name: str, bundle: Path | None) -> dict[str, Any]:
    """Run one benchmark, print its table, return its figures."""
    if name not in BENCHES:
        raise EdgeImputerError(f"expected a benchmark among {', '.join(BENCHES)}, got {name!r}")
    return {"bench": name, **BENCHES[name](bundle)}


def bench_latency(bundle: Path | None) -> dict[str, Any]:
    """Encoder step and head pass on every runtime, side by side."""
    if bundle is not None:
        return _latency(Bundle.load(bundle))
    with tempfile.TemporaryDirectory() as folder:
        return _latency(untrained_bundle(Path(folder) / "bundle"))


def _latency(bundle: Bundle) -> dict[str, Any]:
    backends = {name: load_backend(bundle, name) for name in BACKENDS}
    latencies = measure(backends, bundle.spec, n_steps=N_STEPS)
    latency_table(latencies, bundle.spec)
    return {name: latency.to_dict() for name, latency in latencies.items()}


def untrained_bundle(out: Path) -> Bundle:
    """A default model with random weights: time does not depend on what it has learnt."""
    require("torch", extra="train")
    import torch

    from edge_imputer.export.bundle import export_bundle
    from edge_imputer.firmware_bridge.emit import write_native
    from edge_imputer.train.encoder import CrnnEncoder
    from edge_imputer.train.imputer import ImputerHead

    from ..specs import CrnnSpec, ImputerSpec, ModelSpec, TokenSpec

    torch.manual_seed(0)
    spec = ModelSpec(
        features=FeatureSpec(),
        encoder=CrnnSpec(),
        head=ImputerSpec(),
        tokens=TokenSpec(characters=tuple(" efghinorstuvwxz")),
    )
    rng = np.random.default_rng(0)
    return export_bundle(
        out,
        encoder=CrnnEncoder(spec.encoder, spec.features).eval(),
        head=ImputerHead(spec.encoder.d_model, spec.head, spec.tokens).eval(),
        spec=spec,
        provenance=Provenance(
            data="none, random weights",
            n_clips=0,
            seed=0,
            updates=0,
            checkpoint_sha256="",
            created_by="edge-imputer bench",
        ),
        calibration=[rng.standard_normal(32_000, np.float32) * np.float32(0.1)],
        name="untrained",
        licence="Apache-2.0",
        emitters=[write_native],
    )


def bench_frontend(bundle: Path | None) -> dict[str, Any]:
    """Log-mel of ten seconds, whole and in 10 ms pieces: CPU microseconds a second of audio."""
    spec = FeatureSpec() if bundle is None else Bundle.load(bundle).spec.features
    seconds, rounds = 10, 15
    waveform = np.random.default_rng(0).standard_normal(seconds * spec.sample_rate, np.float32)
    batch, streaming = LogMel(spec), StreamingLogMel(spec)
    pieces = np.split(waveform, seconds * 100)

    def stream() -> None:
        streaming.reset()
        for piece in pieces:
            streaming.push(piece)

    runs: dict[str, Callable[[], object]] = {
        "batch": lambda: batch(waveform),
        "streaming, 10 ms": stream,
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, call in runs.items():
            start = time.thread_time_ns()
            call()
            times[name].append((time.thread_time_ns() - start) / 1e3 / seconds)
    figures = {name: round(float(np.median(t)), 1) for name, t in times.items()}
    table(
        "Front end: median CPU microseconds a second of audio",
        ["form", "us", "ratio"],
        [(name, us, f"{us / figures['batch']:.2f}") for name, us in figures.items()],
    )
    return {name.split(",")[0] + "_us_per_s": us for name, us in figures.items()}


BENCHES: dict[str, Callable[[Path | None], dict[str, Any]]] = {
    "latency": bench_latency,
    "frontend": bench_frontend,
}
