"""The demo's report: one HTML file with pictures inside, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..backends import Backend
from ..bundle import Bundle
from ..errors import require
from ..frontend import LogMel
from ..imputation import ImputedChunk
from ..latency import Latency
from ..pipeline import StreamingDecoder
from ..specs import ModelSpec, speech_spec
from ..tokens import Tokenizer
from .page import escape, html_table, picture, write_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_report(
    path: Path,
    bundle: Bundle,
    backend: Backend,
    *,
    waveform: npt.NDArray[np.float32],
    reference: str,
    figures: Mapping[str, Any],
    latencies: Mapping[str, Latency],
) -> Path:
    """Write the report and return its path.

    Parameters
    ----------
    bundle, backend : the model, loaded in one runtime
    waveform : float32, (n,)
        The recording to show, at the model's rate.
    reference : what is said in it
    figures : the demo's figures, shown as a table
    latencies : by runtime
    """
    require("matplotlib", extra="report")
    spec = speech_spec(bundle.spec)
    decoder = StreamingDecoder(
        bundle, backend=backend, n_steps=spec.head.block_size, keep_trace=True
    )
    rate = spec.features.sample_rate
    chunks = [*decoder.push(waveform, sample_rate=rate), *decoder.flush()]
    tokenizer = Tokenizer(spec.tokens)
    alignment = np.concatenate([chunk.alignment for chunk in chunks])
    text = tokenizer.decode(tokenizer.collapse(alignment.tolist()))
    rows = [(k, v) for k, v in figures.items() if k != "disagreements"]
    body = [
        "<h1>Edge Imputer: what it heard, and how</h1>",
        f'<p class="said">Said: <b>{escape(reference)}</b><br>Heard: <b>{escape(text)}</b></p>',
        "<p>A held-out recording: its waveform, its log-mel as the network reads it, and the "
        "alignment as the Imputer fills it in. Every row is one pass of the head; in each block "
        f"of {spec.head.block_size} frames a pass commits what it is surest of (dark when new), "
        f"and what is committed {_kept(decoder.revisions)}. A dot is the blank, an underscore the "
        "space.</p>",
        picture(
            _picture(spec, waveform, chunks), "Waveform, log-mel and the alignment, pass by pass"
        ),
        "<h2>Figures</h2>",
        html_table(["", "value"], rows),
        "<h2>Latency</h2>",
        "<p>Median CPU microseconds a call, one thread, called from Python.</p>",
        html_table(
            ["runtime", "encoder step", "head pass", "encoder step and K passes"],
            [
                (name, f"{lat.encoder_us:.1f}", f"{lat.imputer_us:.1f}", f"{lat.step_us:.1f}")
                for name, lat in latencies.items()
            ],
        ),
    ]
    return write_page(path, "Edge Imputer", body)


def _kept(revisions: int) -> str:
    """What later passes do to what is committed."""
    if not revisions:
        return "never changes"
    return f"changes in passes of revision only, here the last {revisions} (dark where one did)"


def _picture(
    spec: ModelSpec, waveform: npt.NDArray[np.float32], chunks: Sequence[ImputedChunk]
) -> Figure:
    from matplotlib.figure import Figure

    n_frames = sum(len(chunk.alignment) for chunk in chunks)
    end_s = n_frames * spec.frame_s
    figure = Figure(figsize=(18, 10), layout="constrained")
    wave, mel, steps = figure.subplots(3, 1, height_ratios=(1, 2, 3))
    wave.plot(
        np.arange(len(waveform)) / spec.features.sample_rate, waveform, lw=0.4, color="#2b6cb0"
    )
    wave.set(xlim=(0, end_s), ylim=(-1, 1), ylabel="waveform")
    padded = np.pad(waveform, (0, spec.padded_samples(len(waveform)) - len(waveform)))
    mel.imshow(
        LogMel(spec.features)(padded).T,
        origin="lower",
        aspect="auto",
        extent=(0, end_s, 0, spec.features.n_mels),
        cmap="magma",
    )
    mel.set(xlim=(0, end_s), ylabel="mel band")
    _draw_alignment(steps, spec, chunks, n_frames)
    return figure


def _draw_alignment(
    axes: Axes, spec: ModelSpec, chunks: Sequence[ImputedChunk], n_frames: int
) -> None:
    """One row a pass, one column an encoder frame: open, new in this pass, or as before it."""
    trace = np.concatenate([_trace(chunk) for chunk in chunks], axis=1)  # (K, T)
    mask_id = spec.tokens.mask_id
    before = np.concatenate([np.full_like(trace[:1], mask_id), trace[:-1]])
    shade = np.where(trace == mask_id, 0.0, np.where(trace != before, 0.75, 0.3))
    axes.imshow(shade, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    symbols = ["\u00b7", *spec.tokens.characters, ""]
    for row, column in np.ndindex(*trace.shape):
        symbol = symbols[trace[row, column]]
        axes.text(
            column,
            row,
            "_" if symbol == " " else symbol,
            ha="center",
            va="center",
            fontsize=8,
            color="white" if shade[row, column] > 0.5 else "black",
        )
    for border in range(spec.head.block_size, n_frames, spec.head.block_size):
        axes.axvline(border - 0.5, color="#888888", lw=0.6)
    axes.set(
        xlabel=f"encoder frame ({1000 * spec.frame_s:.0f} ms each); lines part the blocks",
        ylabel="pass",
        yticks=range(len(trace)),
        yticklabels=[str(k + 1) for k in range(len(trace))],
    )


def _trace(chunk: ImputedChunk) -> npt.NDArray[np.int32]:
    assert chunk.trace is not None  # the decoder was asked to keep it
    return chunk.trace
