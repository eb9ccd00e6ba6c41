"""Waveform and text to what the network takes: log-mel frames, token ids, a first alignment."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.errors import InfeasibleTargetError, TokenError
from edge_imputer.frontend import LogMel
from edge_imputer.specs import BLANK_ID, ModelSpec
from edge_imputer.tokens import Tokenizer

from .augment import Augmenter
from .records import Clip, Waveform

log = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]


class Featurizer:
    """Waveform and text -> log-mel frames in whole chunks, and token ids."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.tokenizer = Tokenizer(spec.tokens)
        self.log_mel = LogMel(msgspec.structs.replace(spec.features, mean=0.0, std=1.0))

    def features(self, waveform: Waveform) -> Float32:
        """Log-mel of an utterance with its closing silence, (T, n_mels), T in whole chunks.

        In nats, so that augmentation can work on it; `normalize` gives what the encoder reads.
        """
        n = self.spec.padded_samples(len(waveform))
        return self.log_mel(np.pad(waveform, (0, n - len(waveform))))

    def normalize(self, log_mel: Float32) -> Float32:
        """Subtract the spec's mean and divide by its standard deviation."""
        features = self.spec.features
        normalized: Float32 = (log_mel - np.float32(features.mean)) / np.float32(features.std)
        return normalized

    def targets(self, text: str, n_features: int) -> list[int]:
        """Token ids.

        Raises
        ------
        InfeasibleTargetError
            The utterance is shorter than its transcript needs: T' < tokens + repeats.
        """
        ids = self.tokenizer.encode(text)
        needed = self.tokenizer.min_frames(ids)
        frames = n_features // self.spec.encoder.subsampling
        if needed > frames:
            raise InfeasibleTargetError(
                f"{text!r} needs {needed} encoder frames, its audio gives {frames} of "
                f"{1000 * self.spec.frame_s:.0f} ms; check that the transcript fits the audio"
            )
        return ids


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
        n_chunks = featurizer.spec.n_chunks(int(len(clip.waveform) / speed))
        try:
            featurizer.targets(clip.text, n_chunks * featurizer.spec.chunk_features)
        except (InfeasibleTargetError, TokenError) as error:
            log.warning("left out %s: %s", clip.record.audio, error)
            continue
        usable.append(clip)
    return usable


def feature_statistics(
    augmenter: Augmenter, featurizer: Featurizer, *, seed: int, n: int = 64
) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel over `n` training utterances."""
    rng = np.random.default_rng((seed, 0x57A7))
    utterances = (augmenter.utterance(augmenter.n_clips(rng), rng) for _ in range(n))
    frames = np.concatenate([featurizer.features(u.waveform) for u in utterances])
    return float(frames.mean()), float(frames.std())
