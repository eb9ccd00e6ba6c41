"""Clips in memory through a bundle: the same decoder that runs on a device.

Every clip is pushed through the streaming decoder and flushed, as a microphone would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.progress import track

from edge_imputer.backends import Backend
from edge_imputer.bundle import Bundle, Interval
from edge_imputer.metrics import wilson_interval
from edge_imputer.pipeline import StreamingDecoder
from edge_imputer.specs import ModelSpec
from edge_imputer.spotter import keyword_detector
from edge_imputer.tokens import Tokenizer

from ..data import Clip
from .error_rates import word_errors


@dataclass(frozen=True)
class Decoded:
    """What one runtime made of one clip."""

    clip: Clip
    text: str
    alignment: npt.NDArray[np.int32]  # (T,)
    log_probs: npt.NDArray[np.float32]  # (T, V), of the pass in which each frame was committed

    @property
    def exact(self) -> bool:
        """Whether the transcript is the reference, word for word."""
        return self.text.split() == self.clip.text.split()

    @property
    def margins(self) -> npt.NDArray[np.float32]:
        """Log-probability of each frame's best token minus that of the second best, (T,)."""
        top = np.partition(self.log_probs, -2, axis=1)
        return top[:, -1] - top[:, -2]


@dataclass(frozen=True)
class Disagreement:
    """A clip that the runtimes transcribe differently."""

    clip: str
    reference: str
    texts: dict[str, str]
    margin: float  # least top-two margin of the frames where they differ, in nats


def decode_clips(
    bundle: Bundle,
    backend: Backend,
    clips: Iterable[Clip],
    *,
    n_steps: int | None = None,
    schedule: tuple[int, ...] | None = None,
    revisions: int | None = None,
    label: str | None = None,
) -> list[Decoded]:
    """Transcribe clips with one runtime.

    Parameters
    ----------
    bundle, backend : the model and the runtime it is loaded in
    clips : at the model's sample rate
    n_steps, schedule : passes of the head a chunk; the bundle's own if both are None
    revisions : passes after these that look at every frame again; the bundle's own if None
    label : show a progress bar with this text
    """
    decoder = StreamingDecoder(
        bundle, backend=backend, n_steps=n_steps, schedule=schedule, revisions=revisions
    )
    tokenizer = Tokenizer(decoder.spec.tokens)
    rate = decoder.spec.features.sample_rate
    clips = list(clips)
    decoded = []
    for clip in track(clips, description=label) if label else clips:
        decoder.reset()
        chunks = [*decoder.push(clip.waveform, sample_rate=rate), *decoder.flush()]
        alignment = np.concatenate([chunk.alignment for chunk in chunks])
        log_probs = np.concatenate([chunk.log_probs for chunk in chunks])
        text = tokenizer.decode(tokenizer.collapse(alignment.tolist()))
        decoded.append(Decoded(clip, text, alignment, log_probs))
    return decoded


def word_error_rate(decoded: Sequence[Decoded]) -> Interval:
    """Word errors over reference words, with a bootstrap interval over clips."""
    return word_errors([d.clip.text for d in decoded], [d.text for d in decoded]).interval()


def disagreements(by_runtime: dict[str, list[Decoded]]) -> list[Disagreement]:
    """Clips on which the runtimes' transcripts are not all the same, with their margins."""
    found = []
    for row in zip(*by_runtime.values(), strict=True):
        texts = {name: d.text for name, d in zip(by_runtime, row, strict=True)}
        if len(set(texts.values())) == 1:
            continue
        differs = np.any([d.alignment != row[0].alignment for d in row[1:]], axis=0)
        margin = min(float(d.margins[differs].min()) for d in row)
        found.append(Disagreement(row[0].clip.record.audio, row[0].clip.text, texts, margin))
    return found


@dataclass(frozen=True)
class KeywordFigures:
    """Keyword spotting in sequences, at a threshold chosen on other clips."""

    words: list[str]
    threshold: float
    recall: Interval
    n_extra: int  # detections beyond what is said; there is no other speech in the sequences
    hours: float


def measure_keywords(
    words: list[str], valid: list[Decoded], test: list[Decoded], spec: ModelSpec
) -> KeywordFigures:
    """Listen for `words` in sequences; the threshold is the one with the best F1 on `valid`.

    In a sequence a word counts as found as often as it fires, at most as often as it is said.
    """
    candidates = [round(0.05 * k, 2) for k in range(1, 20)]
    counts = [_count_keywords(words, t, valid, spec) for t in candidates]
    f1 = [2 * hits / (said + fired) if said + fired else 0.0 for hits, fired, said in counts]
    best = np.flatnonzero(np.isclose(f1, max(f1)))
    threshold = candidates[best[len(best) // 2]]  # the middle of a plateau
    hits, fired, said = _count_keywords(words, threshold, test, spec)
    seconds = sum(len(d.clip.waveform) for d in test) / spec.features.sample_rate
    return KeywordFigures(
        words, threshold, wilson_interval(hits, said), fired - hits, seconds / 3600
    )


def _count_keywords(
    words: list[str], threshold: float, decoded: list[Decoded], spec: ModelSpec
) -> tuple[int, int, int]:
    """(found, fired, said) over all clips."""
    detector = keyword_detector(spec, dict.fromkeys(words, threshold))
    hits = fired = said = 0
    for one in decoded:
        events = [*detector.push(one.log_probs), *detector.finish()]
        found = Counter(event.keyword for event in events)
        spoken = Counter(word for word in one.clip.text.split() if word in words)
        hits += (found & spoken).total()
        fired += found.total()
        said += spoken.total()
    return hits, fired, said
