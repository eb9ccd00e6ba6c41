"""What listens for keywords along a stream: one class for each kind of model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy.typing as npt

from .audio import ClippingDetector, check_pcm
from .events import Keyword
from .imputation import ImputedChunk
from .keyword_stream import Float32, KeywordStream
from .keywords import KeywordDetector, KeywordHit
from .peaks import Peak, PeakPicker, gap_frames
from .pipeline import StreamingDecoder


class Listener(Protocol):
    """What listens along a stream."""

    def push(self, pcm: npt.NDArray[Any], *, sample_rate: int) -> list[Keyword]:
        """Take the next samples."""

    def flush(self) -> list[Keyword]:
        """End the stream."""

    def reset(self) -> None:
        """Forget it."""

    def whole(self, waveform: Float32) -> list[Keyword]:
        """Listen to a whole recording, and leave the stream as it is."""


class TextListener:
    """Keywords given as text, in what a model writes down."""

    def __init__(
        self, decoder: StreamingDecoder, new_detector: Callable[[], KeywordDetector]
    ) -> None:
        self._decoder, self._new_detector = decoder, new_detector
        self._detector = new_detector()

    def push(self, pcm: npt.NDArray[Any], *, sample_rate: int) -> list[Keyword]:
        """Take the next samples."""
        return self._events(self._heard(self._decoder.push(pcm, sample_rate=sample_rate)))

    def flush(self) -> list[Keyword]:
        """End the stream."""
        hits = self._heard(self._decoder.flush())
        return self._events([*hits, *self._detector.finish()])

    def reset(self) -> None:
        """Forget it."""
        self._decoder.reset()
        self._detector.reset()

    def whole(self, waveform: Float32) -> list[Keyword]:
        """Listen to a whole recording, and leave the stream as it is."""
        old = self._decoder
        decoder = StreamingDecoder(
            old, backend=old.backend, schedule=old.schedule, revisions=old.revisions
        )
        another = TextListener(decoder, self._new_detector)
        hits = another._heard(decoder.decode(waveform))
        return self._events([*hits, *another._detector.finish()])

    def _heard(self, chunks: Iterable[ImputedChunk]) -> list[KeywordHit]:
        return [hit for chunk in chunks for hit in self._detector.push(chunk.log_probs)]

    def _events(self, hits: Iterable[KeywordHit]) -> list[Keyword]:
        seconds = self._decoder.seconds
        return [
            Keyword(hit.keyword, seconds(hit.start), seconds(hit.end + 1), hit.confidence)
            for hit in hits
        ]


class ClassListener:
    """Keywords that a model was trained for."""

    def __init__(
        self, stream: KeywordStream, thresholds: Mapping[str, float], refractory_s: float
    ) -> None:
        self._stream = stream
        self._thresholds = thresholds
        self._columns = [stream.keywords.index(keyword) for keyword in thresholds]
        self._picker = PeakPicker(
            tuple(thresholds.values()), gap_frames(refractory_s, stream.frame_s)
        )
        self._clipping = ClippingDetector()

    def push(self, pcm: npt.NDArray[Any], *, sample_rate: int) -> list[Keyword]:
        """Take the next samples."""
        waveform = check_pcm(
            pcm, sample_rate=sample_rate, expected_rate=self._stream.spec.features.sample_rate
        )
        self._clipping.push(waveform)
        return self._events(self._picker.push(self._chosen(self._stream.push(waveform))))

    def flush(self) -> list[Keyword]:
        """End the stream."""
        peaks = self._picker.push(self._chosen(self._stream.finish()))
        self._clipping = ClippingDetector()
        return self._events([*peaks, *self._picker.finish()])

    def reset(self) -> None:
        """Forget it."""
        self._stream.reset()
        self._picker.reset()
        self._clipping = ClippingDetector()

    def whole(self, waveform: Float32) -> list[Keyword]:
        """Listen to a whole recording, and leave the stream as it is."""
        stream = KeywordStream(self._stream.spec, self._stream.backend)
        picker = self._picker.another()
        peaks = picker.push(self._chosen(stream.score(waveform)))
        return self._events([*peaks, *picker.finish()])

    def _chosen(self, scores: Float32) -> Float32:
        chosen: Float32 = scores[:, self._columns]
        return chosen

    def _events(self, peaks: Iterable[Peak]) -> list[Keyword]:
        names, frame_s = tuple(self._thresholds), self._stream.frame_s
        return [
            Keyword(names[p.keyword], p.frame * frame_s, (p.frame + 1) * frame_s, p.score)
            for p in peaks
        ]
