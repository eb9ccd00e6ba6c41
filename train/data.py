"""Batches for the trainer: drawn, augmented and turned into log-mel in a worker process.

Batch i depends on the seed and i alone, so a resumed run sees what an unbroken one would.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset

from edge_imputer.errors import DataError, InfeasibleTargetError, TokenError
from edge_imputer.frontend import LogMel
from edge_imputer.specs import BLANK_ID, ModelSpec
from edge_imputer.tokens import Tokenizer

from .augment import Augmenter
from .corpus import Clip, Waveform

log = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]


@dataclass
class Batch:
    """Padded utterances."""

    features: Tensor  # (B, T, n_mels)
    lengths: Tensor  # (B,) feature frames, whole chunks
    targets: Tensor  # (B, S) token ids
    target_lengths: Tensor  # (B,)
    flat_start: Tensor  # (B, T') token ids: a first guess of the alignment, see `flat_alignment`

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(*(t.to(device) for t in vars(self).values()))


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


@dataclass(frozen=True)
class Example:
    """One utterance as the network sees it."""

    features: Float32  # (T, n_mels), normalised
    targets: list[int]
    flat_start: npt.NDArray[np.int64]  # (T',)


def collate(examples: list[Example]) -> Batch:
    """Pad examples into a batch; blank and zeros past an utterance's end."""
    return Batch(
        features=_pad([e.features for e in examples]),
        lengths=torch.tensor([len(e.features) for e in examples]),
        targets=_pad([np.array(e.targets or [BLANK_ID]) for e in examples]),
        target_lengths=torch.tensor([len(e.targets) for e in examples]),
        flat_start=_pad([e.flat_start for e in examples]),
    )


def _pad(arrays: Sequence[npt.NDArray[Any]]) -> Tensor:
    return pad_sequence([torch.from_numpy(a) for a in arrays], batch_first=True)


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


class TrainingBatches(IterableDataset[Batch]):
    """Endless augmented batches, starting at batch `start`.

    The first `n_isolated` batches of a run have one clip an utterance: they are short. Over the
    first `n_ramp` batches the harder augmentations grow to their full strength.
    """

    def __init__(
        self,
        augmenter: Augmenter,
        featurizer: Featurizer,
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        n_isolated: int = 0,
        n_ramp: int = 0,
    ) -> None:
        super().__init__()
        self.augmenter = augmenter
        self.featurizer = featurizer
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.n_isolated = n_isolated
        self.n_ramp = n_ramp

    def __iter__(self) -> Iterator[Batch]:
        index = self.start
        while True:
            yield self.batch(index)
            index += 1

    def batch(self, index: int) -> Batch:
        """Batch number `index`. An utterance too short for its text is drawn again."""
        rng = np.random.default_rng((self.seed, index))
        spec = self.featurizer.spec
        examples: list[Example] = []
        n_clips = 1 if index < self.n_isolated else self.augmenter.n_clips(rng)
        strength = min(1.0, index / self.n_ramp) if self.n_ramp else 1.0
        for _ in range(20 * self.batch_size):
            utterance = self.augmenter.utterance(n_clips, rng, strength)
            x = self.featurizer.features(utterance.waveform)
            try:
                ids = self.featurizer.targets(utterance.text, len(x))
            except InfeasibleTargetError as error:
                log.debug("drawn again: %s", error)
                continue
            x = self.featurizer.normalize(self.augmenter.features(x, rng, strength))
            n_frames = len(x) // spec.encoder.subsampling
            flat = flat_alignment(
                utterance.spans, self.featurizer.tokenizer, n_frames, spec.frame_s
            )
            examples.append(Example(x, ids, flat))
            if len(examples) == self.batch_size:
                return collate(examples)
        raise DataError(
            "nearly every training utterance is too short for its transcript; "
            "check that the manifest's texts belong to its audio"
        )


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


def fixed_batches(clips: list[Clip], featurizer: Featurizer, batch_size: int) -> list[Batch]:
    """Batches of usable clips (see `usable_clips`) as they are, shortest first."""
    examples = []
    for clip in clips:
        x = featurizer.features(clip.waveform)
        no_guess = np.full(len(x) // featurizer.spec.encoder.subsampling, BLANK_ID)
        try:
            ids = featurizer.targets(clip.text, len(x))
        except InfeasibleTargetError as error:  # clips that fit alone may not fit when joined
            log.warning("left out %s: %s", clip.record.audio, error)
            continue
        examples.append(Example(featurizer.normalize(x), ids, no_guess))
    examples.sort(key=lambda example: len(example.features))
    return [collate(examples[i : i + batch_size]) for i in range(0, len(examples), batch_size)]


def feature_statistics(
    augmenter: Augmenter, featurizer: Featurizer, *, seed: int, n: int = 64
) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel over `n` training utterances."""
    rng = np.random.default_rng((seed, 0x57A7))
    utterances = (augmenter.utterance(augmenter.n_clips(rng), rng) for _ in range(n))
    frames = np.concatenate([featurizer.features(u.waveform) for u in utterances])
    return float(frames.mean()), float(frames.std())
