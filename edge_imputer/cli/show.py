"""Tables for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ..bundle import Bundle, Interval
from ..claims import operating_point_lines, rate_number, share_text
from ..latency import Latency
from ..specs import AnyModelSpec, KeywordModelSpec, ModelSpec

if TYPE_CHECKING:
    from edge_imputer.train.layers.inspect import EncoderInfo

# Texts come from corpora and models: "[/b]" and ":cat:" in them are no markup.
# A pipe has no width: tables get one that holds them.
console = Console(
    markup=False,
    emoji=False,
    highlight=False,
    soft_wrap=True,
    width=None if sys.stdout.isatty() else 120,
)


def say(*parts: object) -> None:
    """Print a line verbatim, the parts a space apart."""
    console.print(*(Text(str(part)) for part in parts))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; the first column is text, the others are numbers."""
    drawn = Table(title=Text(title), title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        drawn.add_column(Text(column), justify="left" if index == 0 else "right")
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    console.print(drawn)


def percent(interval: Interval) -> str:
    """``97.5 % (93.1 to 99.2, n 120)``."""
    return share_text(interval)


def latency_table(latencies: Mapping[str, Latency], spec: ModelSpec) -> None:
    """Microseconds by runtime, with ratios to the first."""
    first = next(iter(latencies.values()))
    table(
        "Latency: median CPU microseconds, one thread, called from Python",
        ["runtime", "encoder step", "head pass", "step (K passes)", "ratio", "real-time factor"],
        [
            (
                name,
                f"{lat.encoder_us:.1f}",
                f"{lat.imputer_us:.1f}",
                f"{lat.step_us:.1f} (K = {lat.n_steps})",
                f"{lat.step_us / first.step_us:.2f}",
                f"{lat.real_time_factor(spec):.4f}",
            )
            for name, lat in latencies.items()
        ],
    )


def keyword_latency_table(latencies: Mapping[str, float], spec: KeywordModelSpec) -> None:
    """Microseconds by runtime, with ratios to the first."""
    first = next(iter(latencies.values()))
    step_us = 1e6 * spec.frame_s * spec.step_scores
    what = "window" if spec.windowed else "step"
    table(
        f"Latency: median CPU microseconds a {what}, one thread, called from Python",
        ["runtime", what, "ratio", "real-time factor"],
        [
            (name, f"{us:.1f}", f"{us / first:.2f}", f"{us / step_us:.4f}")
            for name, us in latencies.items()
        ],
    )


def _model_facts(spec: AnyModelSpec) -> list[tuple[str, object]]:
    if isinstance(spec, KeywordModelSpec):
        window_s = spec.input_features * spec.features.hop_length / spec.features.sample_rate
        return [
            ("keywords", ", ".join(spec.keywords)),
            ("a score every", f"{1000 * spec.frame_s:.0f} ms"),
            *([("window", f"{1000 * window_s:.0f} ms")] if spec.windowed else []),
            ("smoothing", f"{spec.smoothing_ms} ms"),
        ]
    return [
        ("encoder frame", f"{1000 * spec.frame_s:.0f} ms"),
        ("chunk", f"{1000 * spec.frame_s * spec.head.chunk_size:.0f} ms"),
        ("schedule", ", ".join(map(str, spec.head.schedule))),
        ("revisions", spec.head.revisions),
        ("characters", "".join(spec.tokens.characters)),
    ]


def bundle_summary(bundle: Bundle) -> None:
    """What a bundle holds."""
    manifest = bundle.manifest
    spec = manifest.spec
    facts: list[tuple[str, object]] = [
        ("name", manifest.name),
        ("schema version", manifest.schema_version),
        ("licence", manifest.licence),
        ("trained on", f"{manifest.provenance.data}, {manifest.provenance.n_clips} clips"),
        ("sample rate", f"{spec.features.sample_rate} Hz"),
        *_model_facts(spec),
        ("keyword threshold", manifest.keyword_threshold),
    ]
    table("Bundle", ["", "value"], facts)
    table(
        "Models",
        ["model", "MACs a call", "weights, bytes", "arena, bytes", "state, bytes"],
        [
            (g.name, g.macs, g.weight_bytes, g.arena_bytes, _state_bytes(g.inputs, g.n_states))
            for g in manifest.graphs
        ],
    )
    metrics = manifest.metrics
    measured = [
        (name, percent(value))
        for name, value in (
            ("isolated clips, exact", metrics.digit_accuracy),
            ("word error rate of sequences", metrics.wer),
            ("keyword recall", metrics.keyword_recall),
        )
        if value is not None
    ]
    if metrics.keyword_fa_per_hour is not None:
        hours = f"{metrics.negative_hours:.2f} h" if metrics.negative_hours else "no hours given"
        often = rate_number(metrics.keyword_fa_per_hour)
        measured.append(("keyword false alarms an hour", f"{often} in {hours}"))
    table(f"Measured on {metrics.data or 'nothing yet'}", ["", "value"], measured)
    if manifest.operating_point is not None:
        say("Operating point")
        for line in operating_point_lines(manifest.operating_point):
            say(f"  {line}")
        say()
    table(
        "Files",
        ["file", "bytes"],
        [(name, record.bytes) for name, record in manifest.files.items()],
    )


def encoder_summary(name: str, info: EncoderInfo) -> None:
    """Layers and totals of an encoder."""
    table(
        f"{name}: layers, in a step of {info.step_ms:.0f} ms",
        ["layer", "output", "parameters", "MACs a second", "state, bytes"],
        [
            (
                layer.name or "(elsewhere)",
                " x ".join(map(str, layer.output)),
                f"{layer.parameters:,}",
                f"{layer.macs_per_s:,}",
                f"{layer.state_bytes:,}",
            )
            for layer in info.layers
        ],
    )
    reach = info.receptive_field_ms
    facts = [
        ("parameters", f"{info.parameters:,}"),
        ("multiply-accumulates a second of audio", f"{info.macs_per_s:,}"),
        ("state, bytes in float32", f"{info.state_bytes:,}"),
        ("encoder frame", f"{info.frame_ms:.0f} ms"),
        (
            "algorithmic latency, the window of a feature frame included",
            f"{info.latency_ms:.0f} ms",
        ),
        ("receptive field", "all since the start" if reach is None else f"{reach:,.0f} ms"),
    ]
    table(f"{name}: in all", ["", "value"], facts)


def _state_bytes(inputs: Sequence[object], n_states: int) -> int:
    total = 0
    for tensor in inputs[len(inputs) - n_states :]:
        size = 1
        for n in tensor.shape:  # type: ignore[attr-defined]
            size *= n
        total += size
    return total


class ClipProgress:
    """A bar of clips done and the time left on stderr, where that is a terminal. A context."""

    def __init__(self, what: str) -> None:
        self._bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("clips", total=None)

    def __enter__(self) -> ClipProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show how many of all are done."""
        self._bar.update(self._task, completed=done, total=total)
