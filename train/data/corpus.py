"""Corpus folders: their manifest's lines, and their clips in memory."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from edge_imputer.audio import read_segment, resample
from edge_imputer.errors import AudioError, DataError

from .manifest import Manifest
from .records import Clip, ClipRecord, Split, Waveform

log = logging.getLogger(__name__)


def read_manifest(folder: Path) -> list[ClipRecord]:
    """Read all records of a small corpus; `Manifest` reads large ones as they are needed.

    Raises
    ------
    DataError
        No manifest, a line that is not a record (its number is named), or no line at all.
    """
    return list(Manifest.open(folder))


def read_clip(folder: Path, record: ClipRecord, sample_rate: int) -> Waveform:
    """Decode a record's audio, that part of its file alone, resampled to `sample_rate`.

    Parameters
    ----------
    folder
        The folder that audio paths are relative to, `Manifest.folder`.

    Returns
    -------
    waveform : float32, (samples,)

    Raises
    ------
    AudioError
        The file is missing, cannot be decoded, or does not reach as far as the record says.
    """
    waveform, rate = read_segment(
        folder / record.audio, start_s=record.offset_s, duration_s=record.duration_s
    )
    return resample(waveform, from_rate=rate, to_rate=sample_rate)


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
            waveform, rate = read_segment(
                folder / record.audio, start_s=record.offset_s, duration_s=record.duration_s
            )
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
