"""Batches for the trainer: drawn, augmented and turned into log-mel in a worker process.

Batch i depends on the seed and i alone, so a resumed run sees what an unbroken one would.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset

from edge_imputer.errors import DataError, InfeasibleTargetError
from edge_imputer.specs import BLANK_ID

from .augment import Augmenter
from .features import Featurizer, Float32, flat_alignment
from .records import Clip

log = logging.getLogger(__name__)


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
