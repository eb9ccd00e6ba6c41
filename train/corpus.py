"""A speech corpus: a folder with ``manifest.jsonl`` and audio files.

One JSON object a line: ``audio`` (path relative to the folder), ``text`` (null where there is no
transcript), ``speaker`` ("unknown" where the source has no ids), ``split`` (train, valid, test),
``duration_s``, ``sample_rate``. Further keys are allowed and ignored.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.audio import read_audio, resample
from edge_imputer.errors import AudioError, DataError

log = logging.getLogger(__name__)

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


def read_manifest(folder: Path) -> list[ClipRecord]:
    """Records of a corpus folder.

    Raises
    ------
    DataError
        No manifest, a line that is not a record (its number is named), or no line at all.
    """
    path = folder / "manifest.jsonl"
    if not path.is_file():
        raise DataError(
            f"expected a corpus folder with manifest.jsonl, found none at {folder}; "
            "see CONTRIBUTING.md, 'Add a corpus'"
        )
    decoder = msgspec.json.Decoder(ClipRecord)
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            records.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
    if not records:
        raise DataError(f"{path} has no lines; expected one JSON object a clip")
    return records


def hold_out(records: Iterable[ClipRecord], speaker: str) -> list[ClipRecord]:
    """Make one speaker unseen: train and valid on the others, test on all of that speaker's clips.

    Raises
    ------
    DataError
        The corpus has no such speaker.
    """
    records = list(records)
    if speaker not in {r.speaker for r in records}:
        known = ", ".join(sorted({r.speaker for r in records}))
        raise DataError(f"expected one of the speakers {known}, got {speaker!r}")
    seen = [r for r in records if r.speaker != speaker and r.split != "test"]
    unseen = [msgspec.structs.replace(r, split="test") for r in records if r.speaker == speaker]
    return seen + unseen


def load_clips(
    folder: Path, records: Iterable[ClipRecord], split: Split, *, sample_rate: int
) -> list[Clip]:
    """Load a split's transcribed clips, resampled to `sample_rate`.

    A clip that cannot be read is reported in the log and skipped; a manifest that states another
    sample rate than the file has is reported. White space in texts becomes single spaces.

    Raises
    ------
    DataError
        No clip of the split could be loaded.
    """
    clips, bad, rates = [], [], Counter[int]()
    for record in records:
        if record.split != split or record.text is None:
            continue
        try:
            waveform, rate = read_audio(folder / record.audio)
            waveform = resample(waveform, from_rate=rate, to_rate=sample_rate)
        except AudioError as error:
            bad.append(error)
            log.warning("skipped a clip: %s", error)
            continue
        if rate != record.sample_rate:
            log.warning(
                "%s: %d Hz by the manifest, %d by the file", record.audio, record.sample_rate, rate
            )
        rates[rate] += 1
        text = " ".join(record.text.split())
        clips.append(Clip(msgspec.structs.replace(record, text=text), waveform))
    if not clips:
        raise DataError(
            f"{folder}: no clip with a transcript could be loaded for the split {split!r} "
            f"({len(bad)} could not be read); expected at least one"
        )
    for rate, count in rates.items():
        if rate != sample_rate:
            log.info("%s: resampled %d clips from %d to %d Hz", folder, count, rate, sample_rate)
    return clips


def join_clips(
    clips: list[Clip], gaps_s: npt.NDArray[np.float64], *, sample_rate: int
) -> tuple[Waveform, str]:
    """One utterance of several clips with silence before, between and after.

    Parameters
    ----------
    clips : n clips
    gaps_s : (n + 1,)
        Seconds of digital silence before each clip and after the last.

    Returns
    -------
    waveform : float32, (samples,)
    text : the transcripts joined by spaces
    """
    parts = []
    for clip, gap in zip(clips, gaps_s, strict=False):
        parts += [np.zeros(round(gap * sample_rate), np.float32), clip.waveform]
    parts.append(np.zeros(round(gaps_s[-1] * sample_rate), np.float32))
    return np.concatenate(parts), " ".join(clip.text for clip in clips)


def joined_sequences(
    clips: list[Clip], n_sequences: int, *, sample_rate: int, seed: int, length: tuple[int, int]
) -> list[Clip]:
    """Sequences of clips of one speaker each, `length[0]` to `length[1]` clips long.

    Speakers take turns, so that each is heard about equally often; a speaker with few clips
    repeats them. Gaps are 0.05 to 0.3 s. No clips, no sequences.
    """
    if not clips:
        return []
    rng = np.random.default_rng(seed)
    by_speaker: dict[str, list[Clip]] = {}
    for clip in clips:
        by_speaker.setdefault(clip.speaker, []).append(clip)
    speakers = sorted(by_speaker)
    sequences = []
    for index in range(n_sequences):
        pool = by_speaker[speakers[index % len(speakers)]]
        n = int(rng.integers(length[0], length[1] + 1))
        chosen = [pool[i] for i in rng.integers(len(pool), size=n)]
        waveform, text = join_clips(chosen, rng.uniform(0.05, 0.3, n + 1), sample_rate=sample_rate)
        record = msgspec.structs.replace(
            chosen[0].record,
            audio=f"sequence-{index:04d}",
            text=text,
            duration_s=len(waveform) / sample_rate,
            sample_rate=sample_rate,
        )
        sequences.append(Clip(record, waveform))
    return sequences
