"""What all adapters share: the clips they describe, their options, and how splits are drawn."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import msgspec

from edge_imputer.errors import DataError

from ..records import UNKNOWN_SPEAKER, Split

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3"})
_SPLIT_NAME = re.compile(r"(train|dev|valid|val|test|eval)(?![a-z])|(training|validation|testing)")
_SPLITS: dict[str, Split] = {"tr": "train", "de": "valid", "va": "valid", "te": "test"}


class SourceClip(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A clip as its corpus describes it; whether that is true is found out in `prepare`."""

    audio: str  # absolute path
    name: str  # unique in the corpus, with "/": what a copy of the clip is called
    text: str | None
    split: Split
    speaker: str = UNKNOWN_SPEAKER
    label: str | None = None
    offset_s: float = 0.0
    duration_s: float | None = None  # of the part that is meant; None: to the end of the file
    stated_s: float | None = None  # what the metadata say of the whole file
    command: str | None = None  # prints the audio file on its standard output (Kaldi's pipes)
    engine: str | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Options of single adapters, and the shares of drawn splits. None: as the adapter has it."""

    classes: int | None = None  # speech_commands: 12, or all words (30 in v1, 35 in v2)
    subset: tuple[str, ...] = ()  # librispeech, kaldi: folders to take; all of them if empty
    validated: bool | None = None  # common_voice: take validated.tsv for training
    keyword: str | None = None  # wake_word: what the positives say
    speaker_pattern: str | None = None  # words, wake_word: finds the speaker in a file's name
    allow_commands: bool | None = None  # kaldi: run the commands in wav.scp
    valid_share: float | None = None  # of drawn splits, or out of training where valid is missing
    test_share: float | None = None  # of drawn splits

    def __post_init__(self) -> None:
        valid, test = self.shares
        if not (valid >= 0 and test >= 0 and valid + test < 1):
            raise DataError(
                f"expected shares of valid and test of 0 or more that leave some for training, "
                f"got {valid:g} and {test:g}"
            )
        if self.speaker_pattern is not None:
            _one_group(self.speaker_pattern)

    @property
    def shares(self) -> tuple[float, float]:
        """Shares of valid and test in drawn splits, a tenth each if unset."""
        valid, test = self.valid_share, self.test_share
        return 0.1 if valid is None else valid, 0.1 if test is None else test

    def given(self) -> set[str]:
        """Names of the adapters' own options that were set."""
        shared = {"valid_share", "test_share"}
        unset = (None, ())
        return {
            f.name
            for f in fields(self)
            if f.name not in shared and getattr(self, f.name) not in unset
        }


@dataclass
class Notes:
    """What an adapter found worth telling about the corpus as a whole."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Take a line of the report."""
        self.lines.append(line)


Clips = Callable[[Path, AdapterOptions, Notes], Iterator[SourceClip]]


@dataclass(frozen=True)
class Adapter:
    """One layout in which a corpus is published."""

    name: str
    title: str  # one line
    layout: str  # the files it expects, in words
    clips: Clips
    fits: Callable[[Path], bool]  # whether a folder has this layout, from a look at a few names
    options: frozenset[str] = frozenset()  # the names of `AdapterOptions` it knows


def hash_share(key: str) -> float:
    """Map a text to [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha1(key.encode()).digest()[:8], "big") / 2**64


def draw_split(key: str, options: AdapterOptions) -> Split:
    """Split of a speaker or a file by its name alone: adding files moves no other."""
    share, (valid, test) = hash_share(key), options.shares
    if share < test:
        return "test"
    return "valid" if share < test + valid else "train"


def with_valid(clips: list[SourceClip], options: AdapterOptions, notes: Notes) -> list[SourceClip]:
    """Move a share of training to valid, where that is asked for and the corpus has no valid."""
    if not options.valid_share or any(clip.split == "valid" for clip in clips):
        return clips
    notes.add(f"valid is {options.valid_share:g} of training, by speaker where speakers are known")

    def moved(clip: SourceClip) -> bool:
        key = clip.name if clip.speaker == UNKNOWN_SPEAKER else clip.speaker
        return clip.split == "train" and hash_share(f"valid {key}") < (options.valid_share or 0)

    return [msgspec.structs.replace(c, split="valid") if moved(c) else c for c in clips]


def split_of_name(name: str) -> Split | None:
    """``train-clean-100`` -> train, ``dev`` -> valid, ``eval2000`` -> test; None for others."""
    found = _SPLIT_NAME.match(name.lower())
    if found is None:
        return None
    return "test" if found[0] == "eval" else _SPLITS[found[0][:2]]


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, by name; hidden ones left out."""
    with os.scandir(folder) as entries:
        return sorted(
            Path(entry.path)
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(".")
        )


def audio_files(folder: Path, *, deep: bool = False) -> list[Path]:
    """Audio files of a folder, by name; those of its subfolders too if `deep`."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if os.path.splitext(entry.name)[1].lower() in AUDIO_SUFFIXES:
                found.append(Path(entry.path))
            elif deep and entry.is_dir():
                found += audio_files(Path(entry.path), deep=True)
    return sorted(found)


def has_audio(folder: Path) -> bool:
    """Whether a folder itself holds an audio file."""
    with os.scandir(folder) as entries:
        return any(os.path.splitext(e.name)[1].lower() in AUDIO_SUFFIXES for e in entries)


def relative_name(path: Path, root: Path) -> str:
    """Name of a clip that is a whole file: its path below the corpus, without the ending."""
    return path.relative_to(root).with_suffix("").as_posix()


def speaker_of(stem: str, options: AdapterOptions) -> str:
    """Speaker by `speaker_pattern`, or "unknown".

    Raises
    ------
    DataError
        The pattern finds no speaker in this name.
    """
    if options.speaker_pattern is None:
        return UNKNOWN_SPEAKER
    found = _one_group(options.speaker_pattern).search(stem)
    if found is None or not found[1]:
        raise DataError(
            f"the pattern {options.speaker_pattern!r} finds no speaker in the file name {stem!r}; "
            "expected a regular expression whose group is the speaker, such as '^([^_]+)_'"
        )
    return found[1]


def _one_group(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"{pattern!r} is no regular expression: {error}") from error
    if compiled.groups != 1:
        raise DataError(
            f"expected a pattern with one group, the speaker, such as '^([^_]+)_', got {pattern!r}"
        )
    return compiled
