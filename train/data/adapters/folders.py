"""Corpora whose folders say everything: FSDD, words, wake words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from edge_imputer.errors import DataError

from ..records import (
    NEAR_MISS_LABEL,
    NOISE_LABEL,
    SILENCE_LABEL,
    UNKNOWN_LABEL,
    UNKNOWN_SPEAKER,
    Split,
)
from .base import (
    Adapter,
    AdapterOptions,
    Notes,
    SourceClip,
    audio_files,
    draw_split,
    has_audio,
    relative_name,
    speaker_of,
    split_of_name,
    subfolders,
)

DIGITS = tuple("zero one two three four five six seven eight nine".split())
_FSDD_NAME = re.compile(r"(\d)_(.+)_(\d+)")
_SPECIAL = {
    "unknown": UNKNOWN_LABEL,
    "silence": SILENCE_LABEL,
    "noise": NOISE_LABEL,
    "background_noise": NOISE_LABEL,
}
# Folder names of the three kinds of clips, those of Mycroft Precise among them.
_KINDS = {
    "positive": "positive",
    "positives": "positive",
    "wake_word": "positive",
    "negative": "negative",
    "negatives": "negative",
    "not_wake_word": "negative",
    "near_miss": "near_miss",
    "near_misses": "near_miss",
}


def fsdd_clips(root: Path, options: AdapterOptions, notes: Notes) -> Iterator[SourceClip]:
    """Free Spoken Digit Dataset: recordings 0 to 4 of a digit test, as its README says.

    It has no valid split: recordings 5 to 9 are taken for it.
    """
    notes.add("the same speakers are in all splits; recordings 0-4 test, 5-9 valid (ours)")
    strange = []
    for path in audio_files(root / "recordings"):
        name = _FSDD_NAME.fullmatch(path.stem)
        if name is None:
            strange.append(path.name)
            continue
        digit, speaker, index = DIGITS[int(name[1])], name[2], int(name[3])
        yield SourceClip(
            audio=str(path),
            name=relative_name(path, root),
            text=digit,
            split="test" if index < 5 else "valid" if index < 10 else "train",
            speaker=speaker,
            label=digit,
        )
    if strange:
        notes.add(f"{len(strange)} files not named DIGIT_SPEAKER_INDEX, such as {strange[0]}")


def fsdd_fits(root: Path) -> bool:
    """``recordings/`` with files named like 7_jackson_32.wav."""
    folder = root / "recordings"
    return folder.is_dir() and any(_FSDD_NAME.fullmatch(p.stem) for p in audio_files(folder))


def word_clips(root: Path, options: AdapterOptions, notes: Notes) -> Iterator[SourceClip]:
    """Folders named after the words in them, with or without split folders above."""
    for split, home in _split_homes(root, options, notes):
        for folder in subfolders(home):
            if split_of_name(folder.name) and not has_audio(folder):
                continue  # a split folder beside word folders
            special = _SPECIAL.get(folder.name.strip("_").lower())
            for path in audio_files(folder, deep=True):
                speaker = speaker_of(path.stem, options)
                yield SourceClip(
                    audio=str(path),
                    name=relative_name(path, root),
                    text=None if special else folder.name.replace("_", " "),
                    split=split or _drawn(root, path, speaker, options),
                    speaker=speaker,
                    label=special or folder.name.lower(),
                )


def words_fit(root: Path) -> bool:
    """At least two folders of audio files, perhaps below split folders."""
    return any(sum(map(has_audio, subfolders(home))) >= 2 for _, home in _homes(root))


def wake_word_clips(root: Path, options: AdapterOptions, notes: Notes) -> Iterator[SourceClip]:
    """Positives say the keyword; negatives and near misses do not, whatever else they say."""
    keyword = options.keyword or root.resolve().name.replace("_", " ").replace("-", " ").lower()
    if options.keyword is None:
        notes.add(f"the keyword is {keyword!r}, by the folder's name; --keyword states another")
    homes = _split_homes(root, options, notes)
    found = [(split, _kind_folders(home)) for split, home in homes]
    missing = {"positive", "negative"} - {kind for _, kinds in found for kind, _ in kinds}
    if missing:
        raise DataError(f"{root}: expected folders positive and negative, found no {missing.pop()}")
    words = {"positive": keyword, "negative": UNKNOWN_LABEL, "near_miss": NEAR_MISS_LABEL}
    for split, kinds in found:
        for kind, folder in kinds:
            for path in audio_files(folder, deep=True):
                speaker = speaker_of(path.stem, options)
                yield SourceClip(
                    audio=str(path),
                    name=relative_name(path, root),
                    text=keyword if kind == "positive" else None,
                    split=split or _drawn(root, path, speaker, options),
                    speaker=speaker,
                    label=words[kind],
                )


def wake_word_fits(root: Path) -> bool:
    """Folders of positives and of negatives, perhaps below split folders."""
    kinds = {kind for _, home in _homes(root) for kind, _ in _kind_folders(home)}
    return {"positive", "negative"} <= kinds


def _kind_folders(home: Path) -> list[tuple[str, Path]]:
    named = ((_KINDS.get(f.name.lower().replace("-", "_")), f) for f in subfolders(home))
    return [(kind, folder) for kind, folder in named if kind is not None]


def _homes(root: Path) -> list[tuple[Split | None, Path]]:
    """Folder of each split; of None the corpus itself, for what lies in no split folder."""
    homes: list[tuple[Split | None, Path]] = []
    for folder in subfolders(root):
        split = split_of_name(folder.name)
        if split is not None and any(has_audio(f) for f in subfolders(folder)):
            homes.append((split, folder))
    inside = {folder for _, folder in homes}
    if any(has_audio(f) for f in subfolders(root) if f not in inside):
        homes.insert(0, (None, root))
    return homes


def _split_homes(
    root: Path, options: AdapterOptions, notes: Notes
) -> list[tuple[Split | None, Path]]:
    """Folders and their splits. None, for clips whose split is drawn, only where no folder says.

    Mycroft Precise has the training clips at the top and ``test/`` beside them.
    """
    homes = _homes(root)
    if not any(split is None for split, _ in homes):
        return homes
    if len(homes) == 1:
        by = "speaker" if options.speaker_pattern else "file name (the speakers are not known)"
        notes.add(f"splits are drawn by the hash of each {by}")
        return homes
    notes.add("clips outside the split folders are for training")
    return [(split or "train", folder) for split, folder in homes]


def _drawn(root: Path, path: Path, speaker: str, options: AdapterOptions) -> Split:
    known = speaker != UNKNOWN_SPEAKER
    return draw_split(speaker if known else relative_name(path, root), options)


FSDD = Adapter(
    "fsdd",
    "Free Spoken Digit Dataset",
    "recordings/DIGIT_SPEAKER_INDEX.wav",
    fsdd_clips,
    fsdd_fits,
)
WORDS = Adapter(
    "words",
    "folders named after the words in them",
    "WORD/*.wav, or train|valid|test/WORD/*.wav; _unknown_, _silence_, _noise_ are special",
    word_clips,
    words_fit,
    frozenset({"speaker_pattern"}),
)
WAKE_WORD = Adapter(
    "wake_word",
    "positives and negatives of a wake word, and near misses",
    "positive/, negative/ and perhaps near_miss/, or the same below train|valid|test/; also "
    "wake-word/ and not-wake-word/, as of Mycroft Precise",
    wake_word_clips,
    wake_word_fits,
    frozenset({"keyword", "speaker_pattern"}),
)
