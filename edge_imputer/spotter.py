"""Keyword spotting, in a stream or a file, by either kind of model.

>>> spotter = KeywordSpotter("bundle", ["seven", "two"])  # doctest: +SKIP
>>> for pcm in microphone:  # doctest: +SKIP
...     for event in spotter.push(pcm, sample_rate=16_000):
...         print(event.text, event.confidence)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any

import numpy.typing as npt

from .backends import Backend, KeywordBackend
from .bundle import Bundle, OperatingPoint
from .errors import SpecError
from .events import Keyword
from .keyword_stream import KeywordStream
from .keywords import KeywordDetector, KeywordScorer, check_keywords
from .listeners import ClassListener, Listener, TextListener
from .pipeline import (
    HasSpec,
    Model,
    StreamingDecoder,
    describe_model,
    keyword_backend,
    load_waveform,
    speech_backend,
)
from .specs import KeywordModelSpec, ModelSpec

REFRACTORY_S = 0.3  # faster than anybody says a word twice
SILENCE_S = 0.24


class KeywordSpotter:
    """Listens for keywords.

    A model that writes down speech listens for any text, see `edge_imputer.keywords` for how that
    is scored; a keyword model for what it was trained for, see `edge_imputer.keyword_stream`. It
    does not tell where a word begins: its events are of the frame in which the score was highest,
    up to ``spec.latency_s`` after the word.

    Parameters
    ----------
    model : Bundle, its path, or anything with ``.spec``
    keywords : sequence of str, or mapping of str to threshold, optional
        Words or phrases; those of the bundle's operating point if not given, or else all that a
        keyword model has. A keyword without a threshold takes that of the operating point, or
        else the bundle's own for any word.
    backend : {"onnx", "onnx-float", "litert", "native"} or a loaded Backend or KeywordBackend
    n_steps, schedule
        Passes of the head a chunk, or frames committed in each; the model's own if both are None.
        Not for keyword models.
    revisions : int, optional
        Passes after these that look at every frame again; the model's own if not given. Not for
        keyword models.
    refractory_s : float, optional
        Least time between the ends of two events of one keyword. If not given, that of the
        operating point where it has all the thresholds in use, else `REFRACTORY_S`.
    word_boundaries : bool, optional
        Whole words only. True where the token set has a space, if not given. Not for keyword
        models.

    Attributes
    ----------
    spec : ModelSpec or KeywordModelSpec
    refractory_s : float
        Least time between the ends of two events of one keyword.

    Raises
    ------
    SpecError
        No threshold is given and the bundle has none, a keyword is empty or repeated, or a keyword
        model does not know it.
    TokenError
        A keyword has a character that the model does not know.
    """

    def __init__(
        self,
        model: Model,
        keywords: Sequence[str] | Mapping[str, float] | None = None,
        *,
        backend: str | Backend | KeywordBackend = "onnx",
        n_steps: int | None = None,
        schedule: Sequence[int] | None = None,
        revisions: int | None = None,
        refractory_s: float | None = None,
        word_boundaries: bool | None = None,
    ) -> None:
        described = describe_model(model)
        self.spec = described.spec
        point = described.manifest.operating_point if isinstance(described, Bundle) else None
        self._thresholds = _thresholds(described, point, keywords)
        if refractory_s is None:
            measured = point is not None and self._thresholds.items() <= point.thresholds.items()
            refractory_s = point.refractory_s if point and measured else REFRACTORY_S
        if not 0 <= refractory_s < inf:
            raise SpecError(f"expected refractory_s of 0 or more seconds, got {refractory_s}")
        self.refractory_s = refractory_s
        self._listener: Listener
        if isinstance(self.spec, ModelSpec):
            loaded = speech_backend(described, backend)
            decoder = StreamingDecoder(
                described, backend=loaded, n_steps=n_steps, schedule=schedule, revisions=revisions
            )
            detector = partial(
                keyword_detector,
                self.spec,
                self._thresholds,
                refractory_frames=round(refractory_s / self.spec.frame_s),
                word_boundaries=word_boundaries,
            )
            self._listener = TextListener(decoder, detector)
        else:
            passes = {"n_steps": n_steps, "schedule": schedule, "revisions": revisions}
            _refuse(**passes, word_boundaries=word_boundaries)
            classifier = keyword_backend(described, backend)
            self._listener = ClassListener(
                KeywordStream(self.spec, classifier), self._thresholds, refractory_s
            )

    @property
    def thresholds(self) -> dict[str, float]:
        """The keywords and the least confidence at which each fires."""
        return dict(self._thresholds)

    def push(self, pcm: npt.NDArray[Any], *, sample_rate: int) -> list[Keyword]:
        """Take the next samples, int16 or float32 (n,), any number of them.

        Returns
        -------
        events : one an occurrence, once it is certain
            Of text: when the word boundary after it was heard. Of a keyword model: one score after
            its peak, see `edge_imputer.peaks`.

        Raises
        ------
        SampleRateError, AudioFormatError
        """
        return self._listener.push(pcm, sample_rate=sample_rate)

    def flush(self) -> list[Keyword]:
        """End the stream: the events its end completes. Starts afresh."""
        return self._listener.flush()

    def reset(self) -> None:
        """Forget the stream so far."""
        self._listener.reset()

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
        return self._listener.whole(waveform)


def _refuse(**options: object) -> None:
    """Raise `SpecError` on options that are given."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise SpecError(
            f"{', '.join(given)} belongs to models that write down speech; leave it out for a "
            "keyword model"
        )


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


def own_keywords(model: HasSpec) -> tuple[str, ...]:
    """What a model listens for if nobody says: its operating point's keywords, or all it knows.

    Raises
    ------
    SpecError
        A model that writes down speech, and names none.
    """
    point = model.manifest.operating_point if isinstance(model, Bundle) else None
    if point is not None:
        return tuple(point.thresholds)
    if isinstance(model.spec, KeywordModelSpec):
        return model.spec.keywords
    raise SpecError(
        "expected keywords, since the model has no operating point that names any; pass them, or "
        "choose one with: edge-imputer evaluate"
    )


def _thresholds(
    model: HasSpec,
    point: OperatingPoint | None,
    keywords: Sequence[str] | Mapping[str, float] | None,
) -> dict[str, float]:
    """Keyword -> threshold; repeated keywords are refused here, since a dict would hide them."""
    if keywords is None:
        keywords = own_keywords(model)
    check_keywords(tuple(keywords) if isinstance(keywords, Mapping) else keywords)
    if isinstance(model.spec, KeywordModelSpec):
        _check_known(keywords, model.spec)
    if isinstance(keywords, Mapping):
        return {keyword: float(threshold) for keyword, threshold in keywords.items()}
    own = {} if point is None else point.thresholds
    default = model.manifest.keyword_threshold if isinstance(model, Bundle) else None
    thresholds = {keyword: own.get(keyword, default) for keyword in keywords}
    stated = {keyword: value for keyword, value in thresholds.items() if value is not None}
    if len(stated) < len(thresholds):
        raise SpecError(
            "expected a threshold for every keyword, since the model states none; pass a mapping "
            f"such as keywords={dict.fromkeys(keywords[:1], 0.5)}, --threshold 0.5 on the command "
            "line, or choose one with: edge-imputer evaluate --write"
        )
    return stated


def _check_known(keywords: Iterable[str], spec: KeywordModelSpec) -> None:
    """Refuse keywords that a keyword model was not trained for."""
    unknown = [keyword for keyword in keywords if keyword not in spec.keywords]
    if unknown:
        raise SpecError(
            f"expected keywords that the model was trained for, {', '.join(spec.keywords)}, got "
            f"{', '.join(unknown)}; leave them out, or train a model for them"
        )
