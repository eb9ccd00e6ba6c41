"""The whole way in one command: train, quantise, export, listen, measure, report."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends import Backend, load_backend
from ..bundle import Bundle, Interval, Metrics
from ..errors import DataError, require
from ..events import Event, Final, Keyword, Partial
from ..latency import Latency, measure
from ..metrics import wer, wilson_interval
from .show import console, latency_table, percent, table
from .steps import Corpus, export_checkpoint, load_corpus, recipe, train_checkpoint

if TYPE_CHECKING:
    from edge_imputer.train.corpus import Clip
    from edge_imputer.train.evaluate import Decoded, Disagreement, KeywordFigures

RUNTIMES = ("onnx", "litert", "native")
PASSES: tuple[int | tuple[int, ...], ...] = (1, 2, 4, 8, (5, 1, 1, 1))
N_SEQUENCES = 100
SEQUENCE_CLIPS = (3, 7)
SEQUENCE_SEED = 2020
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
    require("matplotlib", extra="report")
    require("ai_edge_litert.interpreter", extra="litert")
    start = time.monotonic()
    corpus = load_corpus(data, hold_out=hold_out)
    settings = recipe(config, updates=updates, seed=seed)
    console.rule(f"1. Train on {corpus.name}")
    checkpoint = train_checkpoint(corpus, settings, out / "checkpoints")
    console.rule("2. Quantise and export")
    bundle = export_checkpoint(
        checkpoint, corpus, out / "bundle", licence="Apache-2.0" if data is None else "unstated"
    )
    backends = {name: load_backend(bundle, name) for name in RUNTIMES}
    console.rule("3. Measure on held-out clips")
    results = _evaluate(bundle, backends, corpus)
    bundle = _record_metrics(bundle, corpus, results)
    console.rule("4. Listen to a stream on every runtime")
    _listen(bundle, backends, results)
    latencies = measure(backends, bundle.spec, n_steps=8)
    _print_results(bundle, results, latencies)
    seconds = time.monotonic() - start
    figures = _figures(corpus, results, latencies, seconds)
    out.mkdir(parents=True, exist_ok=True)
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf8")
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
    console.print(f"Report: {report}\nBundle: {bundle.path}")
    return figures


@dataclass(frozen=True)
class Results:
    """What was measured on the held-out clips."""

    isolated: dict[str, list[Decoded]]  # by runtime, K = 8
    sequences: list[Clip]
    by_schedule: dict[str, list[Decoded]]  # sequences on onnxruntime
    sequences_by_runtime: dict[str, list[Decoded]]  # K = 8
    keywords: KeywordFigures
    disagreements: list[Disagreement]

    @property
    def accuracy(self) -> Interval:
        """Exact transcripts of isolated clips on onnxruntime."""
        return _exact(self.isolated["onnx"])

    @property
    def agreement(self) -> float:
        """Share of test clips with the same transcript on every runtime."""
        n = len(self.isolated["onnx"]) + len(self.sequences)
        return 1 - len(self.disagreements) / n


def _exact(decoded: Sequence[Decoded]) -> Interval:
    return wilson_interval(sum(d.exact for d in decoded), len(decoded))


def _evaluate(bundle: Bundle, backends: dict[str, Backend], corpus: Corpus) -> Results:
    from edge_imputer.train.corpus import joined_sequences
    from edge_imputer.train.evaluate import decode_clips, disagreements, measure_keywords

    rate = bundle.spec.features.sample_rate
    clips = corpus.clips("test")
    sequences, valid = (
        joined_sequences(c, N_SEQUENCES, sample_rate=rate, seed=s, length=SEQUENCE_CLIPS)
        for c, s in ((clips, SEQUENCE_SEED), (_valid(corpus), SEQUENCE_SEED + 1))
    )
    isolated = {
        name: decode_clips(bundle, b, clips, n_steps=8, label=f"{name}: isolated clips")
        for name, b in backends.items()
    }
    by_schedule = {
        _schedule_name(k): decode_clips(
            bundle,
            backends["onnx"],
            sequences,
            n_steps=k if isinstance(k, int) else None,
            schedule=None if isinstance(k, int) else k,
            label=f"onnx: sequences, K = {_schedule_name(k)}",
        )
        for k in PASSES
    }
    by_runtime = {"onnx": by_schedule["8"]} | {
        name: decode_clips(bundle, b, sequences, n_steps=8, label=f"{name}: sequences")
        for name, b in backends.items()
        if name != "onnx"
    }
    words = _keywords(clips)
    return Results(
        isolated=isolated,
        sequences=sequences,
        by_schedule=by_schedule,
        sequences_by_runtime=by_runtime,
        keywords=measure_keywords(bundle, backends["onnx"], words, valid, sequences),
        disagreements=disagreements(isolated) + disagreements(by_runtime),
    )


def _valid(corpus: Corpus) -> list[Clip]:
    """Clips that thresholds may be chosen on: the valid split, or train where there is none."""
    try:
        return corpus.clips("valid")
    except DataError:
        console.print("No validation split: the keyword threshold is chosen on training clips.")
        return corpus.clips("train")


def _keywords(clips: Sequence[Clip], n: int = 10) -> list[str]:
    """The most frequent words of the test texts, at most `n`."""
    counts = Counter(word for clip in clips for word in clip.text.split())
    return sorted(word for word, _ in counts.most_common(n))


def _schedule_name(k: int | tuple[int, ...]) -> str:
    return str(k) if isinstance(k, int) else "(" + ",".join(map(str, k)) + ")"


def _record_metrics(bundle: Bundle, corpus: Corpus, results: Results) -> Bundle:
    """Write what was measured into the bundle, and load it again."""
    from edge_imputer.export.bundle import update_metrics

    rate = results.by_schedule["8"]
    update_metrics(
        bundle.path,
        Metrics(
            data=f"test split of {corpus.name}",
            digit_accuracy=results.accuracy,
            wer=wer([d.clip.text for d in rate], [d.text for d in rate]),
            keyword_recall=results.keywords.recall,
            keyword_fa_per_hour=results.keywords.fa_per_hour,
            negative_hours=results.keywords.hours,
        ),
        keyword_threshold=results.keywords.threshold,
    )
    return Bundle.load(bundle.path)


def _listen(bundle: Bundle, backends: dict[str, Backend], results: Results) -> None:
    """Push one held-out recording through each runtime as a microphone would."""
    from ..recognizer import Recognizer
    from ..spotter import KeywordSpotter

    clip = results.sequences[0]
    rate = bundle.spec.features.sample_rate
    hop = round(STREAM_CHUNK_S * rate)
    console.print(
        f"said: [bold]{clip.text}[/bold] ({clip.speaker}, {len(clip.waveform) / rate:.2f} s)"
    )
    for name, backend in backends.items():
        recognizer = Recognizer(bundle, backend=backend)
        spotter = KeywordSpotter(bundle, results.keywords.words, backend=backend)
        events: list[Event] = []
        for at in range(0, len(clip.waveform), hop):
            pcm = clip.waveform[at : at + hop]
            events += recognizer.push(pcm, sample_rate=rate)
            events += spotter.push(pcm, sample_rate=rate)
        events += [*recognizer.flush(), *spotter.flush()]
        partials = [e.text for e in events if isinstance(e, Partial)]
        finals = [e.text for e in events if isinstance(e, Final)]
        keywords = [
            f"{e.text} ({e.start_s:.2f} to {e.end_s:.2f} s, {e.confidence:.2f})"
            for e in events
            if isinstance(e, Keyword)
        ]
        console.print(f"[bold]{name}[/bold]  partial: {' | '.join(partials)}")
        console.print(f"{' ' * len(name)}  final:   {' | '.join(finals)}")
        console.print(f"{' ' * len(name)}  keyword: {', '.join(keywords) or 'none'}")


def _print_results(bundle: Bundle, results: Results, latencies: dict[str, Latency]) -> None:
    groups = sorted({d.clip.record.engine or "people" for d in results.isolated["onnx"]})
    speakers = sorted({d.clip.speaker for d in results.isolated["onnx"]})
    rows = [(name, percent(_exact(decoded))) for name, decoded in results.isolated.items()]
    onnx = results.isolated["onnx"]
    for label, key in (("recorded or made by", groups), ("speaker", speakers)):
        for group in key:
            chosen = [
                d for d in onnx if group in ((d.clip.record.engine or "people"), d.clip.speaker)
            ]
            rows.append((f"onnx, {label} {group}", percent(_exact(chosen))))
    table("Isolated held-out clips, exact transcripts, K = 8 (95 % interval)", ["", "exact"], rows)
    table(
        f"{len(results.sequences)} sequences of {SEQUENCE_CLIPS[0]} to {SEQUENCE_CLIPS[1]} "
        "held-out clips: word error rate by schedule (95 % interval)",
        ["schedule, onnx", "passes", "word error rate"],
        [
            (
                name,
                len(name.split(",")) if "," in name else name,
                percent(wer([d.clip.text for d in decoded], [d.text for d in decoded])),
            )
            for name, decoded in results.by_schedule.items()
        ],
    )
    found = results.keywords
    table(
        f"Keywords {', '.join(found.words)}; threshold {found.threshold:.3f} chosen on valid",
        ["", "value"],
        [
            ("recall", percent(found.recall)),
            (
                "false alarms an hour, all keywords",
                f"{found.fa_per_hour:.1f} in {found.hours:.3f} h",
            ),
        ],
    )
    latency_table(latencies, bundle.spec)
    console.print(f"Same transcript on every runtime: {100 * results.agreement:.2f} % of clips")
    for d in results.disagreements:
        console.print(f"  {d.clip} ({d.reference}): {d.texts}, top-two margin {d.margin:.4f} nats")


def _figures(
    corpus: Corpus, results: Results, latencies: dict[str, Latency], seconds: float
) -> dict[str, Any]:
    rates = {
        name: wer([d.clip.text for d in decoded], [d.text for d in decoded]).value
        for name, decoded in results.by_schedule.items()
    }
    return {
        "digit_accuracy": round(results.accuracy.value, 4),
        "digit_accuracy_low": round(results.accuracy.low, 4),
        "digit_accuracy_high": round(results.accuracy.high, 4),
        "n_isolated": results.accuracy.n,
        **{f"wer_k{k}": round(rates[str(k)], 4) for k in (1, 2, 4, 8)},
        "wer_5_1_1_1": round(rates["(5,1,1,1)"], 4),
        "keyword_recall": round(results.keywords.recall.value, 4),
        "keyword_fa_per_hour": round(results.keywords.fa_per_hour, 2),
        "hours": round(results.keywords.hours, 4),
        "seconds_total": round(seconds, 1),
        **{f"us_per_step_{name}": round(lat.step_us, 1) for name, lat in latencies.items()},
        "transcripts_agree": round(results.agreement, 4),
        "disagreements": [
            {"clip": d.clip, "texts": d.texts, "margin": round(d.margin, 4)}
            for d in results.disagreements
        ],
        "data": corpus.name,
    }
