"""Batches: utterances as the network sees them, padded and stacked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edge_imputer.errors import InfeasibleTargetError
from edge_imputer.specs import BLANK_ID

from .features import Featurizer, Float32
from .records import Clip

log = logging.getLogger(__name__)


@dataclass
class Batch:
    """One micro-batch: the padded utterances that one process sees at once."""

    features: Tensor  # (B, T, n_mels) float32
    lengths: Tensor  # (B,) feature frames, whole chunks
    targets: Tensor  # (B, S) token ids
    target_lengths: Tensor  # (B,)
    flat_start: Tensor  # (B, T') token ids: a first guess of the alignment, see `flat_alignment`
    labels: Tensor  # (B,) int64: class of a keyword task, -1 where there is none; see `Draw.label`
    seeds: Tensor  # (B,) int64: what is drawn for an utterance (masks) comes from its seed alone
    n_global: int  # utterances of the whole update, over all processes and micro-batches
    notes: tuple[str, ...] = ()  # clips that were replaced, and why; the loader logs them

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; a `DataLoader` with ``pin_memory`` calls it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Any) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: function(v) for k, v in values.items() if torch.is_tensor(v)})


@dataclass(frozen=True)
class Example:
    """One utterance as the network sees it."""

    features: Float32  # (T, n_mels), normalised
    targets: list[int]
    flat_start: npt.NDArray[np.int64]  # (T',)
    label: int = -1
    seed: int = 0


def collate(
    examples: Sequence[Example], *, n_global: int | None = None, notes: Sequence[str] = ()
) -> Batch:
    """Pad examples into a batch; blank and zeros past an utterance's end.

    Parameters
    ----------
    examples : B utterances, at least one
    n_global : utterances of the whole update; all that there are in this batch by default
    notes : what the loader is to log
    """
    return Batch(
        features=_pad([e.features for e in examples]),
        lengths=torch.tensor([len(e.features) for e in examples]),
        targets=_pad([np.array(e.targets or [BLANK_ID]) for e in examples]),
        target_lengths=torch.tensor([len(e.targets) for e in examples]),
        flat_start=_pad([e.flat_start for e in examples]),
        labels=torch.tensor([e.label for e in examples]),
        seeds=torch.tensor([e.seed for e in examples]),
        n_global=len(examples) if n_global is None else n_global,
        notes=tuple(notes),
    )


def _pad(arrays: Sequence[npt.NDArray[Any]]) -> Tensor:
    """Stack arrays of different lengths, zeros behind: (B, longest, ...)."""
    longest = max(map(len, arrays))
    padded = np.zeros((len(arrays), longest, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(padded)


def fixed_batches(clips: Sequence[Clip], featurizer: Featurizer, batch_size: int) -> list[Batch]:
    """Batches of usable clips (see `usable_clips`) as they are, shortest first."""
    examples = []
    for clip in clips:
        x = featurizer.features(clip.waveform)
        no_guess = np.full(featurizer.n_encoder_frames(len(x)), BLANK_ID)
        try:
            ids = featurizer.targets(clip.text, len(x))
        except InfeasibleTargetError as error:  # clips that fit alone may not fit when joined
            log.warning("left out %s: %s", clip.record.audio, error)
            continue
        label = featurizer.label(clip.record)
        examples.append(Example(featurizer.normalize(x), ids, no_guess, label))
    examples.sort(key=lambda example: len(example.features))
    return [collate(examples[i : i + batch_size]) for i in range(0, len(examples), batch_size)]
