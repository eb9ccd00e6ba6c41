"""A speech corpus: a folder with ``manifest.jsonl`` and audio files.

One JSON object a line: ``audio`` (path relative to the folder), ``text`` (null where there is no
transcript), ``speaker`` ("unknown" where the source has no ids), ``split`` (train, valid, test),
``duration_s``, ``sample_rate``. Further keys are allowed and ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

Split = Literal["train", "valid", "test"]
Waveform = npt.NDArray[np.float32]


class ClipRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a manifest. Unknown keys are ignored: corpora add their own."""

    audio: str
    text: str | None
    speaker: str
    split: Split
    duration_s: float
    sample_rate: int
    engine: str | None = None  # speech synthesiser; None for recordings of people


@dataclass(frozen=True)
class Clip:
    """A clip in memory, at the rate it was asked for."""

    record: ClipRecord
    waveform: Waveform

    @property
    def text(self) -> str:
        """The transcript; clips without one are never loaded as training material."""
        return self.record.text or ""

    @property
    def speaker(self) -> str:
        """The speaker's id."""
        return self.record.speaker
