"""The whole way in one command: train, quantise, export, listen, measure, report."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends import Backend, load_backend
from ..backends.native_library import find_compiler
from ..bundle import Bundle, Metrics
from ..errors import require
from ..events import Event, Final, Keyword, Partial
from ..latency import measure
from ..specs import speech_spec
from .measure import Results, compare_with_integers, evaluate, figures_of, print_results
from .show import console, latency_table, say
from .steps import Corpus, export_checkpoint, load_corpus, recipe, train_checkpoint

if TYPE_CHECKING:
    from edge_imputer.export.graph import Graph
    from edge_imputer.train.data import Clip

RUNTIMES = ("onnx", "litert", "native")
N_STEPS_TIMED = 8
STREAM_CHUNK_S = 0.1  # what a microphone driver hands over at a time


def run_demo(
    data: Path | None,
    out: Path,
    *,
    hold_out: str | None = None,
    config: Path | None = None,
    updates: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Run everything and return the figures, also written to ``out/figures.json``."""
    _check_tools()
    start = time.monotonic()
    corpus = load_corpus(data, hold_out=hold_out)
    clips = corpus.clips("test")
    settings = recipe(config, updates=updates, seed=seed)
    console.rule(f"1. Train on {corpus.name}")
    checkpoint = train_checkpoint(corpus, settings, out / "checkpoints")
    console.rule("2. Quantise and export")
    graphs: list[tuple[Graph, Graph]] = []
    bundle = export_checkpoint(
        checkpoint,
        corpus,
        out / "bundle",
        name=f"{corpus.name}, demo",
        licence="Apache-2.0" if data is None else "unstated",
        emitters=[lambda encoder, imputer, _: graphs.append((encoder, imputer))],
    )
    backends = {name: load_backend(bundle, name) for name in RUNTIMES}
    console.rule("3. Measure on held-out clips")
    results = evaluate(bundle, backends, clips, corpus)
    bundle = _record_metrics(bundle, corpus, results)
    console.rule("4. Listen to a stream on every runtime")
    _listen(bundle, backends, results)
    console.rule("5. Compare the runtimes")
    parity = compare_with_integers(bundle, *graphs[0], backends["native"], results.sequences)
    spec = speech_spec(bundle.spec)
    latencies = measure(backends, spec, n_steps=N_STEPS_TIMED + spec.head.revisions)
    latency_table(latencies, spec)
    console.rule("6. Results")
    print_results(results)
    figures = {
        **figures_of(results),
        **{f"us_per_step_{name}": round(lat.step_us, 1) for name, lat in latencies.items()},
        **parity,
        "data": corpus.name,
        "seconds_total": round(time.monotonic() - start, 1),
    }
    from ..report import write_report

    report = write_report(
        out / "report.html",
        bundle,
        backends["onnx"],
        waveform=results.sequences[0].waveform,
        reference=results.sequences[0].text,
        figures=figures,
        latencies=latencies,
    )
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf8")
    say(f"Report: {report}\nBundle: {bundle.path}")
    return figures


def _check_tools() -> None:
    """What is missing is said before minutes of training, not after."""
    require("matplotlib", extra="demo")
    require("ai_edge_litert.interpreter", extra="demo")
    require("lightning", extra="demo")
    from edge_imputer.export.bundle import REQUIRED_MODULES

    for module in REQUIRED_MODULES:
        require(module, extra="demo")
    find_compiler()


def _record_metrics(bundle: Bundle, corpus: Corpus, results: Results) -> Bundle:
    """Write what was measured into the bundle, and load it again."""
    from edge_imputer.export.bundle import update_metrics

    keywords = results.keywords
    update_metrics(
        bundle.path,
        Metrics(
            data=f"test split of {corpus.name}",
            digit_accuracy=results.accuracy,
            wer=results.own_wer,
            keyword_recall=keywords.recall if keywords else None,
            keyword_fa_per_hour=None,  # the sequences hold keywords only: no negatives were heard
            negative_hours=None,
        ),
        keyword_threshold=keywords.threshold if keywords else None,
    )
    return Bundle.load(bundle.path)


def _listen(bundle: Bundle, backends: dict[str, Backend], results: Results) -> None:
    """Push one held-out recording through each runtime as a microphone would."""
    clip = results.sequences[0]
    seconds = len(clip.waveform) / bundle.spec.features.sample_rate
    say(f"said: {clip.text} ({clip.speaker}, {seconds:.2f} s)")
    words = results.keywords.words if results.keywords else []
    for name, backend in backends.items():
        events = _stream(bundle, backend, clip, words)
        partials = [e.text for e in events if isinstance(e, Partial)]
        finals = [e.text for e in events if isinstance(e, Final)]
        keywords = [
            f"{e.text} ({e.start_s:.2f} to {e.end_s:.2f} s, {e.confidence:.2f})"
            for e in events
            if isinstance(e, Keyword)
        ]
        say(f"{name:8} partial: {' | '.join(partials)}")
        say(f"{'':8} final:   {' | '.join(finals)}")
        say(f"{'':8} keyword: {', '.join(keywords) or 'none'}")


def _stream(bundle: Bundle, backend: Backend, clip: Clip, words: Sequence[str]) -> list[Event]:
    """Events of the recogniser and of the keyword spotter, in the order they come."""
    from ..recognizer import Recognizer
    from ..spotter import KeywordSpotter

    rate = bundle.spec.features.sample_rate
    hop = round(STREAM_CHUNK_S * rate)
    recognizer = Recognizer(bundle, backend=backend)
    spotter = KeywordSpotter(bundle, words, backend=backend) if words else None
    events: list[Event] = []
    for at in range(0, len(clip.waveform), hop):
        pcm = clip.waveform[at : at + hop]
        events += recognizer.push(pcm, sample_rate=rate)
        if spotter:
            events += spotter.push(pcm, sample_rate=rate)
    events += recognizer.flush()
    if spotter:
        events += spotter.flush()
    return events
