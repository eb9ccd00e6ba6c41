"""Waveform and text to what the network takes: feature frames, token ids, a first alignment."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.errors import InfeasibleTargetError, TokenError
from edge_imputer.frontends import frontend_of
from edge_imputer.specs import (
    BLANK_ID,
    AnyFeatureSpec,
    FeatureSpec,
    KeywordModelSpec,
    ModelSpec,
)
from edge_imputer.tokens import Tokenizer

from .records import Clip, ClipRecord, Waveform

log = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]


class Featurizer:
    """Waveform and text -> feature frames in whole chunks, and token ids or a class.

    Parameters
    ----------
    spec : ModelSpec or KeywordModelSpec
    """

    def __init__(self, spec: ModelSpec | KeywordModelSpec) -> None:
        self.spec = spec
        tokens = spec.tokens if isinstance(spec, ModelSpec) else None
        self.tokenizer = Tokenizer(tokens) if tokens is not None else None
        features: AnyFeatureSpec = spec.features
        if isinstance(features, FeatureSpec):
            features = msgspec.structs.replace(features, mean=0.0, std=1.0)
        self._compute = frontend_of(features)

    @property
    def logarithmic(self) -> bool:
        """Whether features are in nats of energy: then filters of the channel are sums.

        PCEN and the microfrontend divide such a filter out again, the latter before its logarithm:
        over a minute of speech 20 dB less of everything lowered its features by 0.07 of their
        deviation, and log-mel by 0.66. So their channel is varied on the waveform only.
        """
        return isinstance(self.spec.features, FeatureSpec)

    def features(self, waveform: Waveform) -> Float32:
        """Features of an utterance with its closing silence, (T, n_mels), T in whole chunks.

        Log-mel in nats, so that augmentation can work on it; others are as the encoder reads them,
        which `normalize` gives.
        """
        n = self.padded_samples(len(waveform))
        padded = np.zeros(n, np.float32)
        padded[: len(waveform)] = waveform
        return self._compute(padded)

    def padded_samples(self, n_samples: int) -> int:
        """Samples of an utterance with the silence that fills its last chunk."""
        spec = self.spec
        if isinstance(spec, ModelSpec):
            return spec.padded_samples(n_samples)
        n_frames = max(1, spec.features.n_frames(n_samples))
        multiple = spec.encoder.step_features
        whole = -(-n_frames // multiple) * multiple
        return max(n_samples, spec.features.n_samples(whole))

    def n_features(self, n_samples: int) -> int:
        """Feature frames of an utterance of `n_samples` samples."""
        return self.spec.features.n_frames(self.padded_samples(n_samples))

    def n_encoder_frames(self, n_features: int) -> int:
        """Encoder frames of so many feature frames."""
        return n_features // self.spec.encoder.subsampling

    def normalize(self, features: Float32) -> Float32:
        """Subtract the spec's mean and divide by its deviation; only log-mel has them."""
        spec = self.spec.features
        if not isinstance(spec, FeatureSpec):
            return features
        normalized: Float32 = (features - np.float32(spec.mean)) / np.float32(spec.std)
        return normalized

    def mean(self, normalized: Float32) -> float:
        """Mean of features as the encoder reads them; of those without statistics, this clip's."""
        return 0.0 if isinstance(self.spec.features, FeatureSpec) else float(normalized.mean())

    def targets(self, text: str, n_features: int) -> list[int]:
        """Token ids; none where the model has no tokens.

        Raises
        ------
        InfeasibleTargetError
            The utterance is shorter than its transcript needs: T' < tokens + repeats.
        """
        if self.tokenizer is None:
            return []
        ids = self.tokenizer.encode(text)
        needed = self.tokenizer.min_frames(ids)
        frames = self.n_encoder_frames(n_features)
        if needed > frames:
            raise InfeasibleTargetError(
                f"{text!r} needs {needed} encoder frames, its audio gives {frames} of "
                f"{1000 * self.spec.frame_s:.0f} ms; check that the transcript fits the audio"
            )
        return ids

    def flat_start(
        self, spans: Iterable[tuple[str, float, float]], n_features: int
    ) -> npt.NDArray[np.int64]:
        """Spread an utterance's transcript evenly over its speech, see `flat_alignment`."""
        n_frames = self.n_encoder_frames(n_features)
        if self.tokenizer is None:
            return np.full(n_frames, BLANK_ID, np.int64)
        return flat_alignment(spans, self.tokenizer, n_frames, self.spec.frame_s)

    def label(self, record: ClipRecord) -> int:
        """Class of a clip for a keyword model; -1 where there is none."""
        if isinstance(self.spec, KeywordModelSpec):
            return self.spec.class_of(record.label)
        return -1


def flat_alignment(
    spans: Iterable[tuple[str, float, float]], tokenizer: Tokenizer, n_frames: int, frame_s: float
) -> npt.NDArray[np.int64]:
    """A first guess of the alignment: each clip's characters, evenly over its speech.

    Training on it for a moment (a "flat start") gets CTC off its all-blank plateau.

    Parameters
    ----------
    spans : (text, start, end) of each clip, in seconds
    n_frames : encoder frames in the utterance
    frame_s : seconds an encoder frame

    Returns
    -------
    alignment : (n_frames,)
        Token ids; blank outside speech.
    """
    alignment = np.full(n_frames, BLANK_ID, np.int64)
    for text, start_s, end_s in spans:
        ids = tokenizer.encode(text)
        if not ids:  # nothing is said
            continue
        start = min(round(start_s / frame_s), n_frames)
        end = min(max(round(end_s / frame_s), start + len(ids)), n_frames)
        separator = tokenizer.separator_id
        if alignment.any() and separator is not None and alignment[start - 1] == BLANK_ID:
            alignment[start - 1] = separator
        borders = np.linspace(start, end, len(ids) + 1).round().astype(int)
        for token, a, b in zip(ids, borders, borders[1:], strict=False):
            alignment[a:b] = token
    return alignment


def usable_clips(clips: list[Clip], featurizer: Featurizer, *, speed: float = 1.0) -> list[Clip]:
    """Clips that can be trained or validated on; the others are named in the log and left out.

    A clip is left out if its text has a character that the model does not know, or needs more
    encoder frames than the audio gives when it is played `speed` times as fast.
    """
    usable = []
    for clip in clips:
        try:
            featurizer.targets(clip.text, featurizer.n_features(int(len(clip.waveform) / speed)))
        except (InfeasibleTargetError, TokenError) as error:
            log.warning("left out %s: %s", clip.record.audio, error)
            continue
        usable.append(clip)
    return usable


def frame_counts(
    durations: npt.NDArray[np.float32], featurizer: Featurizer
) -> npt.NDArray[np.int32]:
    """Feature frames of many utterances, (N,) seconds -> (N,): never fewer than there will be.

    Durations are rounded up to 0.1 s, so that a million take a moment.
    """
    rate = featurizer.spec.features.sample_rate
    tenths = np.ceil(durations * np.float32(10)).astype(np.int32)
    counts = np.zeros(int(tenths.max(initial=0)) + 1, np.int32)
    for tenth in np.unique(tenths):
        counts[tenth] = featurizer.n_features(int(tenth) * rate // 10)
    found: npt.NDArray[np.int32] = counts[tenths]
    return found
