"""Google's Speech Commands, versions 1 and 2 (Warden 2018, arXiv:1804.03209).

Splits are the official ones: a hash of the file's name up to ``_nohash_``, so that a speaker is in
one split, and new recordings move no old ones. The task of 12 classes has ten words, and as many
examples of `UNKNOWN_LABEL` and of `SILENCE_LABEL` as 10 % of the ten words' clips, split by split.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge_imputer.audio import audio_length
from edge_imputer.errors import AudioError, DataError

from ..records import NOISE_LABEL, SILENCE_LABEL, UNKNOWN_LABEL, Split
from .base import (
    Adapter,
    AdapterOptions,
    Notes,
    SourceClip,
    audio_files,
    hash_share,
    relative_name,
    subfolders,
)

MAX_NUM_WAVS_PER_CLASS = 2**27 - 1
SHARE_PERCENT = 10.0  # of valid, of test, and of unknown words and silence
NOISE_FOLDER = "_background_noise_"
COMMANDS = tuple("yes no up down left right on off stop go".split())
WORDS_V1 = frozenset(COMMANDS) | frozenset(
    "zero one two three four five six seven eight nine bed bird cat dog happy house marvin sheila "
    "tree wow".split()
)
WORDS_V2 = WORDS_V1 | frozenset("backward follow forward learn visual".split())
LISTS: dict[str, Split] = {"validation_list.txt": "valid", "testing_list.txt": "test"}
# The noises are a few minutes long and have no split: each split gets a part of each of them.
NOISE_PARTS: dict[Split, tuple[float, float]] = {
    "train": (0.0, 0.8),
    "valid": (0.8, 0.9),
    "test": (0.9, 1.0),
}
SILENCE_S = 1.0


def which_set(file_name: str) -> Split:
    """Official split of a clip (the data set's README, `which_set`), by its name without folder."""
    speaker = file_name.split("_nohash_")[0]
    number = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % (MAX_NUM_WAVS_PER_CLASS + 1)
    percentage = number * (100.0 / MAX_NUM_WAVS_PER_CLASS)
    if percentage < SHARE_PERCENT:
        return "valid"
    return "test" if percentage < 2 * SHARE_PERCENT else "train"


def clips(root: Path, options: AdapterOptions, notes: Notes) -> Iterator[SourceClip]:
    """Words, then noises, then silence if 12 classes are asked for."""
    words = [f.name for f in subfolders(root) if f.name in WORDS_V2]
    n_words = _version(root, words, notes)
    classes = n_words if options.classes is None else options.classes
    if classes not in (12, n_words):
        raise DataError(
            f"{root}: this version of Speech Commands has {n_words} words; expected --classes 12 "
            f"or {n_words}, got {classes}"
        )
    found = [clip for word in words for clip in _word_clips(root, word)]
    _compare_lists(root, found, notes)
    if classes == 12:
        found, wanted = _twelve_classes(found)
    noises = _noises(root, notes)
    yield from found
    for path, duration_s in noises:
        for split, (low, high) in NOISE_PARTS.items():
            start, end = round(low * duration_s, 3), round(high * duration_s, 3)
            yield SourceClip(
                audio=str(path),
                name=f"{relative_name(path, root)}-{split}",
                text=None,
                split=split,
                label=NOISE_LABEL,
                offset_s=start,
                duration_s=round(end - start, 3),
            )
    if classes == 12:
        for split, n in wanted.items():
            yield from _silence(root, noises, split, math.ceil(n * SHARE_PERCENT / 100), notes)


def _version(root: Path, words: list[str], notes: Notes) -> int:
    """Words of the version that a folder holds: 35 if a word that came with version 2 is there."""
    version, all_words = (2, WORDS_V2) if set(words) - WORDS_V1 else (1, WORDS_V1)
    notes.add(f"Speech Commands version {version}: {len(words)} of its {len(all_words)} words")
    missing = sorted(all_words - set(words))
    if missing:
        notes.add(f"no folder for the words {', '.join(missing)}")
    others = sorted(
        f.name for f in subfolders(root) if f.name not in WORDS_V2 and f.name != NOISE_FOLDER
    )
    if others:
        notes.add(f"left out, as no words of Speech Commands: {', '.join(others)}")
    return len(all_words)


def _word_clips(root: Path, word: str) -> Iterator[SourceClip]:
    for path in audio_files(root / word):
        yield SourceClip(
            audio=str(path),
            name=relative_name(path, root),
            text=word,
            split=which_set(path.name),
            speaker=path.stem.split("_nohash_")[0],
            label=word,
        )


def _compare_lists(root: Path, found: list[SourceClip], notes: Notes) -> None:
    """Report clips whose split by the hash is not the one of the lists beside the audio."""
    present = {name: split for name, split in LISTS.items() if (root / name).is_file()}
    if not present:
        notes.add("no validation_list.txt or testing_list.txt; splits by the hash alone")
        return
    stated: dict[str, Split] = {}
    for name, split in present.items():
        for line in (root / name).read_text("utf-8").split():
            stated[line.removesuffix(".wav")] = split
    different = [c.name for c in found if stated.get(c.name, c.split) != c.split]
    if len(present) == len(LISTS):
        different += [c.name for c in found if c.split != "train" and c.name not in stated]
    verdict = f"{len(different)} clips differ, such as {different[0]}" if different else "agree"
    notes.add(f"splits by the hash and by {' and '.join(present)}: {verdict}")


def _twelve_classes(found: list[SourceClip]) -> tuple[list[SourceClip], dict[Split, int]]:
    """Clips of the ten words and the chosen unknown ones, and how many of the ten by split."""
    kept = [c for c in found if c.text in COMMANDS]
    wanted: dict[Split, int] = {"train": 0, "valid": 0, "test": 0}
    for clip in kept:
        wanted[clip.split] += 1
    others = sorted((c for c in found if c.text not in COMMANDS), key=lambda c: hash_share(c.name))
    for split, n in wanted.items():
        chosen = [c for c in others if c.split == split][: math.ceil(n * SHARE_PERCENT / 100)]
        kept += [
            msgspec.structs.replace(c, label=UNKNOWN_LABEL)
            for c in sorted(chosen, key=lambda c: c.name)
        ]
    return kept, wanted


def _noises(root: Path, notes: Notes) -> list[tuple[Path, float]]:
    """Background recordings and their seconds."""
    folder = root / NOISE_FOLDER
    if not folder.is_dir():
        notes.add(f"no {NOISE_FOLDER}: no noises, and no examples of silence")
        return []
    noises = []
    for path in audio_files(folder):
        try:
            n_samples, rate = audio_length(path)
        except AudioError as error:
            notes.add(f"left out a noise: {error}")
            continue
        noises.append((path, n_samples / rate))
    return noises


def _silence(
    root: Path, noises: list[tuple[Path, float]], split: Split, n: int, notes: Notes
) -> Iterator[SourceClip]:
    """`n` parts of one second of this split's part of the noises, evenly spread; they overlap."""
    low, high = NOISE_PARTS[split]
    long_enough = [(p, d) for p, d in noises if (high - low) * d > SILENCE_S]
    if noises and not long_enough:
        notes.add(f"no noise is long enough for silence in {split}; expected {10 * SILENCE_S:g} s")
    for index, (path, duration_s) in enumerate(long_enough):
        here = (n - index + len(long_enough) - 1) // len(long_enough)
        room = (high - low) * duration_s - SILENCE_S
        for k in range(here):
            offset_s = round(low * duration_s + room * k / max(1, here), 4)
            yield SourceClip(
                audio=str(path),
                name=f"_silence_/{path.stem}-{split}-{k:05d}",
                text=None,
                split=split,
                label=SILENCE_LABEL,
                offset_s=offset_s,
                duration_s=SILENCE_S,
            )


def fits(root: Path) -> bool:
    """Most of the ten commands are folders, with the names that the data set gives its clips."""
    words = [f for f in subfolders(root) if f.name in WORDS_V2]
    named = sum(any("_nohash_" in p.name for p in audio_files(f)[:3]) for f in words[:5])
    return len(words) >= 3 and named > 0


SPEECH_COMMANDS = Adapter(
    "speech_commands",
    "Google Speech Commands v1 and v2: 12, 30 or 35 classes, official splits",
    "word folders with SPEAKER_nohash_N.wav, _background_noise_/, validation_list.txt, "
    "testing_list.txt",
    clips,
    fits,
    frozenset({"classes"}),
)
