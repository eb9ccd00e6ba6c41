"""New corpora of old ones: several merged into one, and recordings joined of several clips."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import soundfile

from edge_imputer.errors import DataError

from .corpus import load_clips, read_clip
from .manifest import Manifest, write_manifest
from .records import Clip, ClipRecord, Split, Waveform
from .sequences import join_clips, joined_sequences

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
GAPS_S = (0.1, 0.6)  # silence between the clips of a long recording


def merge(
    parts: Sequence[Manifest],
    out: Path,
    *,
    splits: Iterable[str] = SPLITS,
    label_by_text: bool = False,
    exclude: Collection[str] = (),
) -> Counter[Split]:
    """Write one corpus folder whose lines are those of several; no audio is copied.

    Parameters
    ----------
    parts : the corpora, in order
    out : folder; paths in its manifest lead from there to the audio
    splits : leave out lines of the others
    label_by_text : label clips that have no label with their text, for keyword tasks
    exclude : words; clips that say one of them beside others are left out: as examples of other
        speech they would teach that the word is none

    Returns
    -------
    counts : clips by split

    Raises
    ------
    DataError
        No line is left, or `out` is the folder of a part.
    """
    if any(out.resolve() == part.folder.resolve() for part in parts):
        raise DataError(f"expected a folder of its own to write, got {out}, which is a part")
    home = out.resolve()  # `..` of a link leads from what it links to
    wanted, unwanted, counts = set(splits), set(exclude), Counter[Split]()
    if not wanted <= set(SPLITS):
        raise DataError(f"expected splits among {', '.join(SPLITS)}, got {sorted(wanted)}")

    def lines() -> Iterator[ClipRecord]:
        for part in parts:
            folder = part.folder.resolve()
            for record in part:
                words = (record.text or "").split()
                if record.split not in wanted or (len(words) > 1 and unwanted & set(words)):
                    continue
                counts[record.split] += 1
                label = record.text if label_by_text and not record.label else record.label
                audio = os.path.relpath(folder / record.audio, home)
                yield msgspec.structs.replace(record, audio=audio, label=label)

    out.mkdir(parents=True, exist_ok=True)
    write_manifest(out / "manifest.jsonl", lines())
    if not counts:
        (out / "manifest.jsonl").unlink()
        raise DataError(f"expected clips of the splits {sorted(wanted)}, the corpora have none")
    return counts


def concatenate(
    corpus: Manifest, out: Path, *, seconds: tuple[float, float], sample_rate: int, seed: int
) -> list[ClipRecord]:
    """Write long recordings: the clips of a corpus one after another, each once.

    A recording holds clips of one split in any voices, with 0.1 to 0.6 s of silence between them,
    until it is as long as drawn from `seconds`; what remains too short is left out.

    Parameters
    ----------
    corpus : clips with transcripts
    out : folder for ``manifest.jsonl`` and ``audio/*.flac``
    seconds : shortest and longest recording
    sample_rate : Hz
    seed : of the order, the lengths and the gaps

    Raises
    ------
    DataError
        No clip has a transcript, or there is too little for one recording.
    """
    low, high = seconds
    if not 0 < low <= high:
        raise DataError(f"expected 0 < shortest <= longest seconds, got {seconds}")
    rng = np.random.default_rng(seed)
    records: list[ClipRecord] = []
    (out / "audio").mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        rows = [row for row, one in enumerate(corpus) if one.split == split and one.text]
        order = [rows[k] for k in rng.permutation(len(rows))]
        for group in _groups(corpus, order, seconds, rng):
            clips = [Clip(one, read_clip(corpus.folder, one, sample_rate)) for one in group]
            gaps = rng.uniform(*GAPS_S, len(clips) + 1)
            waveform, text = join_clips(clips, gaps, sample_rate=sample_rate)
            speakers = {one.speaker for one in group}
            speaker = speakers.pop() if len(speakers) == 1 else "several"
            like = msgspec.structs.replace(group[0], split=split, speaker=speaker, text=text)
            name = f"audio/{split}-{len(records):04d}.flac"
            records.append(_written(out, name, waveform, sample_rate, like))
    if not records:
        raise DataError(
            f"expected transcribed clips for a recording of {low:g} s or more, got "
            f"{float(corpus.durations.sum()):.0f} s of clips"
        )
    write_manifest(out / "manifest.jsonl", records)
    return records


def join(
    folder: Path,
    records: Sequence[ClipRecord],
    out: Path,
    n: int,
    *,
    length: tuple[int, int],
    splits: Sequence[Split] = ("test",),
    sample_rate: int,
    seed: int,
) -> list[ClipRecord]:
    """Write utterances of several clips of one speaker each, see `joined_sequences`.

    Parameters
    ----------
    folder, records : the corpus; clips of a split are held in memory
    out : folder for ``manifest.jsonl`` and ``audio/*.flac``
    n : utterances of each split
    length : fewest and most clips of an utterance
    splits : of the clips that are joined
    sample_rate : Hz
    seed : of the clips, their number and the gaps; every split draws others by it

    Raises
    ------
    DataError
        A split has no clip with a transcript, or `length` is no range.
    """
    if not 1 <= length[0] <= length[1]:
        raise DataError(f"expected 1 <= fewest <= most clips of an utterance, got {length}")
    if out.resolve() == folder.resolve():
        raise DataError(f"expected a folder of its own to write, got {out}, which is the corpus")
    written: list[ClipRecord] = []
    (out / "audio").mkdir(parents=True, exist_ok=True)
    for split in splits:
        clips = load_clips(folder, records, split, sample_rate=sample_rate)
        # With the seed alone, clips of the same words in the same order would give the same texts.
        own = [seed, SPLITS[::-1].index(split)]  # of test what the seed alone gives: numpy adds 0s
        for clip in joined_sequences(clips, n, sample_rate=sample_rate, seed=own, length=length):
            name = f"audio/{split}-{len(written):04d}.flac"
            written.append(_written(out, name, clip.waveform, sample_rate, clip.record))
    write_manifest(out / "manifest.jsonl", written)
    return written


def _written(
    out: Path, name: str, waveform: Waveform, sample_rate: int, like: ClipRecord
) -> ClipRecord:
    """Write a recording; its record has the text, speaker, split and engine of `like`."""
    soundfile.write(out / name, np.clip(waveform, -1, 1), sample_rate)
    return ClipRecord(
        audio=name,
        text=" ".join((like.text or "").split()),
        speaker=like.speaker,
        split=like.split,
        duration_s=len(waveform) / sample_rate,
        sample_rate=sample_rate,
        engine=like.engine,
    )


def _groups(
    corpus: Manifest, order: list[int], seconds: tuple[float, float], rng: np.random.Generator
) -> Iterator[list[ClipRecord]]:
    """Cut the order into groups, none longer than drawn; one shorter than allowed is dropped."""
    between = sum(GAPS_S) / 2
    group: list[ClipRecord] = []
    length, limit = GAPS_S[1], rng.uniform(*seconds)
    for row in order:
        more = float(corpus.durations[row]) + between
        if group and length + more > limit:
            if length >= seconds[0]:
                yield group
            group, length, limit = [], GAPS_S[1], rng.uniform(*seconds)
        group.append(corpus[row])
        length += more
    if length >= seconds[0] and group:
        yield group
