"""A speech corpus: a folder with ``manifest.jsonl`` and audio files.

One JSON object a line: ``audio`` (path relative to the folder, or absolute), ``text`` (null where
there is no transcript), ``speaker`` ("unknown" where the source has no ids), ``split`` (train,
valid, test), ``duration_s``, ``sample_rate``; optional ``label`` (class of a keyword task),
``offset_s`` (where the clip starts inside its file) and ``engine``. Further keys are allowed and
ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

Split = Literal["train", "valid", "test"]
Waveform = npt.NDArray[np.float32]

UNKNOWN_SPEAKER = "unknown"

# Labels that are no words.
UNKNOWN_LABEL = "_unknown_"  # speech that is none of the keywords
SILENCE_LABEL = "_silence_"  # no speech: quiet, or the sound of a room
NEAR_MISS_LABEL = "_near_miss_"  # speech that sounds like a keyword and is none
HARD_LABEL = "_hard_"  # what a trained model took for a keyword and is none
NOISE_LABEL = "_noise_"  # a long recording to mix into others; no example of any class

Seconds = Annotated[float, msgspec.Meta(ge=0.0)]


class ClipRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a manifest. Unknown keys are ignored: corpora add their own."""

    audio: str
    text: str | None
    speaker: str
    split: Split
    duration_s: Seconds
    sample_rate: Annotated[int, msgspec.Meta(ge=1)]
    engine: str | None = None  # speech synthesiser; None for recordings of people
    label: str | None = None  # the word, or one of the labels above
    offset_s: Seconds = 0.0  # start inside the audio file


def record_of_anyone(keys: Mapping[str, Any]) -> ClipRecord:
    """A record of recordings whose ``speaker`` may be missing or null, as that of noise is."""
    return msgspec.convert({**keys, "speaker": keys.get("speaker") or UNKNOWN_SPEAKER}, ClipRecord)


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
