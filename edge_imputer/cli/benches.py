"""Benchmarks behind ``edge-imputer bench NAME`` and ``make bench-NAME``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.progress import track

from ..backends import BACKENDS, load_backend, load_keyword_backend
from ..bundle import Bundle, Provenance
from ..errors import EdgeImputerError, require
from ..frontend import LogMel, StreamingLogMel
from ..frontends import frontend_of
from ..latency import measure, measure_keywords
from ..specs import (
    EncoderSpec,
    FeatureSpec,
    KeywordModelSpec,
    MicroSpec,
    PcenSpec,
    speech_spec,
)
from .bench_runtimes import bench_runtimes
from .show import keyword_latency_table, latency_table, table

N_STEPS = 8
RUNTIMES = "runtimes"


def run_bench(name: str, bundle: Path | None, presets: Sequence[str] = ()) -> dict[str, Any]:
    """Run one benchmark, print its table, return its figures; `presets` are for ``runtimes``."""
    if name == RUNTIMES and bundle is None:
        return {"bench": name, **bench_runtimes(presets)}
    if name not in BENCHES or presets:
        names = ", ".join([*BENCHES, RUNTIMES])
        raise EdgeImputerError(
            f"expected a benchmark among {names}, got {name!r}; presets go with {RUNTIMES} only, "
            "which takes no bundle"
        )
    return {"bench": name, **BENCHES[name](bundle)}


def bench_latency(bundle: Path | None) -> dict[str, Any]:
    """Encoder step and head pass, or step of a keyword model, on every runtime, side by side."""
    if bundle is not None:
        return _latency(Bundle.load(bundle))
    with tempfile.TemporaryDirectory() as folder:
        return _latency(untrained_bundle(Path(folder) / "bundle"))


def _latency(bundle: Bundle) -> dict[str, Any]:
    spec = bundle.spec
    if isinstance(spec, KeywordModelSpec):
        classifiers = {name: load_keyword_backend(bundle, name) for name in BACKENDS}
        steps = measure_keywords(classifiers, spec)
        keyword_latency_table(steps, spec)
        return {name: {"step_us": us} for name, us in steps.items()}
    backends = {name: load_backend(bundle, name) for name in BACKENDS}
    latencies = measure(backends, spec, n_steps=N_STEPS + spec.head.revisions)
    latency_table(latencies, spec)
    return {name: latency.to_dict() for name, latency in latencies.items()}


def untrained_bundle(out: Path, encoder: EncoderSpec | None = None) -> Bundle:
    """A model with random weights: time does not depend on what it has learnt.

    Its encoder is the default one if none is given.
    """
    require("torch", extra="train")
    import torch

    from edge_imputer.export.bundle import export_bundle
    from edge_imputer.firmware_bridge.emit import write_native
    from edge_imputer.train.encoders import build_encoder
    from edge_imputer.train.imputer import ImputerHead

    from ..specs import CrnnSpec, ImputerSpec, ModelSpec, TokenSpec

    torch.manual_seed(0)
    spec = ModelSpec(
        features=FeatureSpec(),
        encoder=encoder or CrnnSpec(),
        head=ImputerSpec(),
        tokens=TokenSpec(characters=tuple(" efghinorstuvwxz")),
    )
    rng = np.random.default_rng(0)
    return export_bundle(
        out,
        encoder=build_encoder(spec.encoder, spec.features).eval(),
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
    """Features of ten seconds: CPU microseconds a second of audio.

    Log-mel of the whole and in 10 ms pieces, the other front ends of the whole.
    """
    spec = FeatureSpec() if bundle is None else speech_spec(Bundle.load(bundle).spec).features
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
        "pcen": partial(frontend_of(PcenSpec()), waveform),
        "micro": partial(frontend_of(MicroSpec()), waveform),
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


def bench_loss(bundle: Path | None) -> dict[str, Any]:
    """The training loss beside torch's: forward and backward, one thread and two, and a GPU."""
    require("torch", extra="train")
    from edge_imputer.train.objective import benchmark

    plan = benchmark.plan()
    rows = [benchmark.measure(*setting) for setting in track(plan, "measuring")]
    print(benchmark.describe())
    for where in dict.fromkeys(row.where for row in rows):
        table(
            f"Median ms of forward and backward, {where}",
            ["B, T, V, S", "open", *benchmark.METHODS, "vs reduction", "vs torch"],
            [
                (
                    ",".join(map(str, row.shape)),
                    f"{row.open_share:.0%}",
                    *(f"{ms:.2f}" for ms in row.ms.values()),
                    f"{row.speedup('reduction'):.1f}x",
                    f"{row.speedup('torch ctc'):.1f}x",
                )
                for row in rows
                if row.where == where
            ],
        )
    figures = {key: float(f"{value:.4g}") for key, value in benchmark.figures(rows).items()}
    table("Summary: one thread, geometric means", ["figure", "value"], list(figures.items()))
    speedups = [
        {
            "speedup_vs_reduction": round(row.speedup("reduction"), 2),
            "speedup_vs_torch_ctc": round(row.speedup("torch ctc"), 2),
        }
        for row in rows
    ]
    plain: list[dict[str, Any]] = msgspec.to_builtins(rows)
    return {
        **figures,
        "measured_on": benchmark.describe(),
        "rows": [{**row, **more} for row, more in zip(plain, speedups, strict=True)],
    }


def bench_attention(bundle: Path | None) -> dict[str, Any]:
    """Attention against length, dense and sparse: time and memory, forward and backward."""
    require("torch", extra="train")
    from edge_imputer.train.layers import benchmark

    plan = benchmark.plan()
    rows = [row for setting in track(plan, "measuring") for row in benchmark.measure(*setting)]
    print(benchmark.describe())
    for where in dict.fromkeys(row.where for row in rows):
        here = [row for row in rows if row.where == where]
        _by_length(
            f"Median ms of forward and backward, {where}",
            {(row.n_frames, row.method): row.ms for row in here},
        )
        _by_length(
            f"Most memory held beyond the inputs, MiB, {where}",
            {(row.n_frames, row.method): row.memory_bytes / 2**20 for row in here},
        )
    figures = {key: float(f"{value:.4g}") for key, value in benchmark.figures(rows).items()}
    table("Summary: one thread", ["figure", "value"], list(figures.items()))
    by_length: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        by_length.setdefault((row.where, row.n_frames), {})[row.method] = row.ms
    return {
        **figures,
        "measured_on": benchmark.describe(),
        "rows": msgspec.to_builtins(rows),
        "by_length": [
            {"where": where, "n_frames": n, "ms": ms} for (where, n), ms in by_length.items()
        ],
    }


def _by_length(title: str, values: Mapping[tuple[int, str], float]) -> None:
    """A table of values by (frames, method)."""
    lengths, methods = (list(dict.fromkeys(column)) for column in zip(*values, strict=True))
    table(
        title,
        ["frames", *methods],
        [
            (f"{n:,}", *(f"{values[n, m]:,.1f}" if (n, m) in values else "" for m in methods))
            for n in lengths
        ],
    )


def bench_encoders(bundle: Path | None) -> dict[str, Any]:
    """Every preset encoder as a stream: size, work, CPU time, latency."""
    require("torch", extra="train")
    from edge_imputer.train.benchmark import processor
    from edge_imputer.train.encoders.benchmark import CHUNK_MS, measure

    from ..specs import PRESETS

    rows = measure(PRESETS, FeatureSpec() if bundle is None else Bundle.load(bundle).spec.features)
    print(f"{processor()}; one thread, torch, {CHUNK_MS} ms at a time")
    table(
        "Encoders, a second of audio",
        ["encoder", "parameters", "MACs", "median CPU ms", "latency, ms", "state, bytes"],
        [
            (
                row.name,
                f"{row.parameters:,}",
                f"{row.macs_per_s:,}",
                f"{row.ms_per_s_audio:.2f}",
                f"{row.latency_ms:.0f}",
                f"{row.state_bytes:,}",
            )
            for row in rows
        ],
    )
    return {"presets": msgspec.to_builtins(rows), "measured_on": processor()}


def bench_data(bundle: Path | None) -> dict[str, Any]:
    """Files to batches, every augmentation on: CPU time of one core; memory of a million rows."""
    require("torch", extra="train")
    from edge_imputer.train.benchmark import processor
    from edge_imputer.train.data import benchmark

    from .steps import corpus_folder

    rows = benchmark.measure(corpus_folder(None))
    print(f"{processor()}; one core")
    table(
        "From files to batches, every augmentation on for every utterance (CPU time)",
        ["stage", "ms a second of audio", "seconds of audio a CPU second"],
        [(r.stage, f"{r.ms_per_s:.3f}", f"{r.audio_s_per_cpu_s:,.0f}") for r in rows],
    )
    figures = benchmark.figures(rows) | {"rss_growth_mb_1m_rows": benchmark.growth_apart(1_000_000)}
    figures = {key: float(f"{value:.4g}") for key, value in figures.items()}
    table("Summary", ["figure", "value"], list(figures.items()))
    return {**figures, "measured_on": processor(), "rows": msgspec.to_builtins(rows)}


def bench_select(bundle: Path | None) -> dict[str, Any]:
    """A pool scored by every strategy: CPU time of one core; shards; choosing, and its memory."""
    require("lightning", extra="train")
    from edge_imputer.train.active import selection_benchmark as benchmark
    from edge_imputer.train.benchmark import processor

    from .steps import corpus_folder

    with tempfile.TemporaryDirectory() as folder:
        bench = benchmark.Bench(Path(folder), corpus_folder(None))
        rows = bench.rows()
        agree = bench.shards_agree()
    print(processor())
    table(
        "From files to scores",
        ["strategy", "where", "clips", "ms a clip", "clips a second", "seconds of audio a second"],
        [
            (
                row.strategy,
                row.where,
                row.n_clips,
                f"{row.ms_per_clip:.2f}",
                f"{row.clips_per_s:.1f}",
                f"{row.audio_s_per_s:.0f}",
            )
            for row in rows
        ],
    )
    found = benchmark.figures(rows) | benchmark.choosing_figures()
    found |= {"rss_growth_mb_1m_rows": benchmark.growth_apart(1_000_000)}
    by_score = benchmark.growth_apart(1_000_000, benchmark.BY_SCORE)
    found[f"rss_growth_mb_1m_rows, {benchmark.BY_SCORE}"] = by_score
    found = {key: float(f"{value:.4g}") for key, value in found.items()}
    table("Summary", ["figure", "value"], [*found.items(), ("two shards give one's", agree)])
    return {
        **found,
        "two_shards_same": agree,
        "measured_on": processor(),
        "rows": msgspec.to_builtins(rows),
    }


BENCHES: dict[str, Callable[[Path | None], dict[str, Any]]] = {
    "latency": bench_latency,
    "frontend": bench_frontend,
    "loss": bench_loss,
    "attention": bench_attention,
    "encoders": bench_encoders,
    "data": bench_data,
    "select": bench_select,
}
