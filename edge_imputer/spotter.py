"""Keyword spotting, in a stream or a file.

>>> spotter = KeywordSpotter("bundle", ["seven", "two"])  # doctest: +SKIP
>>> for pcm in microphone:  # doctest: +SKIP
...     for event in spotter.push(pcm, sample_rate=16_000):
...         print(event.text, event.confidence)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from .backends import Backend
from .bundle import Bundle, OperatingPoint
from .errors import SpecError
from .events import Keyword
from .imputation import ImputedChunk
from .keywords import KeywordDetector, KeywordHit, KeywordScorer, check_keywords
from .pipeline import HasSpec, Model, StreamingDecoder, load_waveform, open_model
from .specs import ModelSpec

REFRACTORY_S = 0.3  # faster than anybody says a word twice
SILENCE_S = 0.24


class KeywordSpotter:
    """Listens for keywords given as text, see `edge_imputer.keywords` for how they are scored.

    Parameters
    ----------
    model : Bundle, its path, or anything with ``.spec``
    keywords : sequence of str, or mapping of str to threshold, optional
        Words or phrases; those of the bundle's operating point if not given. A keyword without a
        threshold takes that of the operating point, or else the bundle's own for any word.
    backend : {"onnx", "onnx-float", "litert", "native"} or a loaded Backend
    n_steps, schedule
        Passes of the head a chunk, or frames committed in each; the model's own if both are None.
    refractory_s : float, optional
        Least time between the ends of two events of one keyword. If not given, that of the
        operating point where it has all the thresholds in use, else `REFRACTORY_S`.
    word_boundaries : bool, optional
        Whole words only. True where the token set has a space, if not given.

    Raises
    ------
    SpecError
        No threshold is given and the bundle has none, or a keyword is empty or repeated.
    TokenError
        A keyword has a character that the model does not know.
    """

    def __init__(
        self,
        model: Model,
        keywords: Sequence[str] | Mapping[str, float] | None = None,
        *,
        backend: str | Backend = "onnx",
        n_steps: int | None = None,
        schedule: Sequence[int] | None = None,
        refractory_s: float | None = None,
        word_boundaries: bool | None = None,
    ) -> None:
        described, loaded = open_model(model, backend)
        self._decoder = StreamingDecoder(
            described, backend=loaded, n_steps=n_steps, schedule=schedule
        )
        point = described.manifest.operating_point if isinstance(described, Bundle) else None
        self._thresholds = _thresholds(described, point, keywords)
        if refractory_s is None:
            measured = point is not None and self._thresholds.items() <= point.thresholds.items()
            refractory_s = point.refractory_s if point and measured else REFRACTORY_S
        self._refractory_frames = round(refractory_s / self.spec.frame_s)
        self._word_boundaries = word_boundaries
        self._detector = self._new_detector()

    @property
    def spec(self) -> ModelSpec:
        """The model's specification."""
        return self._decoder.spec

    @property
    def thresholds(self) -> dict[str, float]:
        """The keywords and the least confidence at which each fires."""
        return dict(self._thresholds)

    def push(self, pcm: npt.NDArray[Any], *, sample_rate: int) -> list[Keyword]:
        """Take the next samples, int16 or float32 (n,), any number of them.

        Returns
        -------
        events : one an occurrence, once the word boundary after it was heard

        Raises
        ------
        SampleRateError, AudioFormatError
        """
        chunks = self._decoder.push(pcm, sample_rate=sample_rate)
        return self._events(_push_all(self._detector, chunks))

    def flush(self) -> list[Keyword]:
        """End the stream: the events its end completes. Starts afresh."""
        hits = _push_all(self._detector, self._decoder.flush())
        return self._events([*hits, *self._detector.finish()])

    def reset(self) -> None:
        """Forget the stream so far."""
        self._decoder.reset()
        self._detector.reset()

    def spot(
        self,
        audio: str | os.PathLike[str] | npt.NDArray[Any],
        *,
        sample_rate: int | None = None,
        resample: bool = False,
    ) -> list[Keyword]:
        """All keywords in a whole recording. A stream that is under way here is not disturbed.

        Parameters
        ----------
        audio : path of a mono wav, flac or ogg file, or int16 or float32 (n,)
        sample_rate : int, optional
            Rate of an array, in Hz.
        resample : bool
            Convert audio of another rate; without it such audio is refused.

        Raises
        ------
        AudioNotFoundError, AudioFormatError, SampleRateError
        """
        waveform = load_waveform(
            audio,
            sample_rate=sample_rate,
            expected_rate=self.spec.features.sample_rate,
            resample_to_expected=resample,
        )
        decoder = StreamingDecoder(
            self, backend=self._decoder.backend, schedule=self._decoder.schedule
        )
        detector = self._new_detector()
        hits = _push_all(detector, decoder.decode(waveform))
        return self._events([*hits, *detector.finish()])

    def _new_detector(self) -> KeywordDetector:
        return keyword_detector(
            self.spec,
            self._thresholds,
            refractory_frames=self._refractory_frames,
            word_boundaries=self._word_boundaries,
        )

    def _events(self, hits: Iterable[KeywordHit]) -> list[Keyword]:
        seconds = self._decoder.seconds
        return [
            Keyword(hit.keyword, seconds(hit.start), seconds(hit.end + 1), hit.confidence)
            for hit in hits
        ]


def keyword_detector(
    spec: ModelSpec,
    thresholds: Mapping[str, float],
    *,
    refractory_frames: int | None = None,
    word_boundaries: bool | None = None,
) -> KeywordDetector:
    """The detector behind a spotter, for whoever has the log-probs already.

    Parameters
    ----------
    spec : ModelSpec
    thresholds : keyword -> least confidence
    refractory_frames, word_boundaries : as `KeywordSpotter` has them if not given
    """
    scorer = KeywordScorer(
        tuple(thresholds),
        spec.tokens,
        word_boundaries=word_boundaries,
        silence_frames=max(1, round(SILENCE_S / spec.frame_s)),
    )
    if refractory_frames is None:
        refractory_frames = round(REFRACTORY_S / spec.frame_s)
    return KeywordDetector(scorer, tuple(thresholds.values()), refractory_frames=refractory_frames)


def _push_all(detector: KeywordDetector, chunks: Iterable[ImputedChunk]) -> list[KeywordHit]:
    return [hit for chunk in chunks for hit in detector.push(chunk.log_probs)]


def _thresholds(
    model: HasSpec,
    point: OperatingPoint | None,
    keywords: Sequence[str] | Mapping[str, float] | None,
) -> dict[str, float]:
    """Keyword -> threshold; repeated keywords are refused here, since a dict would hide them."""
    own = {} if point is None else point.thresholds
    if keywords is None:
        if not own:
            raise SpecError(
                "expected keywords, since the model has no operating point that names any; pass "
                "them, or choose one with: edge-imputer evaluate"
            )
        return dict(own)
    if isinstance(keywords, Mapping):
        return {keyword: float(threshold) for keyword, threshold in keywords.items()}
    check_keywords(keywords)
    default = model.manifest.keyword_threshold if isinstance(model, Bundle) else None
    thresholds = {keyword: own.get(keyword, default) for keyword in keywords}
    stated = {keyword: value for keyword, value in thresholds.items() if value is not None}
    if len(stated) < len(thresholds):
        raise SpecError(
            "expected a threshold for every keyword, since the model states none; pass a mapping, "
            f"for example keywords={dict.fromkeys(keywords, 0.5)}"
        )
    return stated
