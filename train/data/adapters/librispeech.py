"""LibriSpeech (Panayotov et al. 2015, openslr.org/12), and corpora in its layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_imputer.errors import DataError

from .base import Adapter, AdapterOptions, Notes, SourceClip, split_of_name, subfolders


def clips(root: Path, options: AdapterOptions, notes: Notes) -> Iterator[SourceClip]:
    """Utterances of every subset that is there, or of those asked for."""
    home = _home(root)
    subsets = [f for f in subfolders(home) if split_of_name(f.name)]
    unknown = sorted(set(options.subset) - {f.name for f in subsets})
    if unknown:
        raise DataError(
            f"{home}: expected --subset among {', '.join(f.name for f in subsets)}, got "
            f"{', '.join(unknown)}"
        )
    wanted = [f for f in subsets if not options.subset or f.name in options.subset]
    notes.add(f"subsets: {', '.join(f.name for f in wanted)}")
    stated = _speakers(home / "SPEAKERS.TXT")
    misplaced = []
    for subset in wanted:
        for speaker in subfolders(subset):
            if stated and stated.get(speaker.name) != subset.name:
                misplaced.append(f"{subset.name}/{speaker.name}")
            for chapter in subfolders(speaker):
                yield from _chapter(home, subset, speaker.name, chapter)
    if not stated:
        notes.add("no SPEAKERS.TXT: speakers could not be compared with the subsets")
    elif misplaced:
        notes.add(
            f"{len(misplaced)} speakers are not of their subset by SPEAKERS.TXT, such as "
            f"{misplaced[0]}"
        )


def _chapter(home: Path, subset: Path, speaker: str, chapter: Path) -> Iterator[SourceClip]:
    split = split_of_name(subset.name)
    assert split is not None  # chosen by it
    texts = _transcripts(chapter / f"{speaker}-{chapter.name}.trans.txt")
    spoken = {path.stem for path in chapter.glob("*.flac")}
    for name in sorted(spoken | set(texts)):
        yield SourceClip(
            audio=str(chapter / f"{name}.flac"),
            name=(chapter.relative_to(home) / name).as_posix(),
            text=texts.get(name, ""),  # an empty transcript is dropped, and said to be empty
            split=split,
            speaker=speaker,
        )


def _transcripts(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = path.read_text("utf-8").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line.strip())
    return {pair[0]: pair[1] if len(pair) == 2 else "" for pair in pairs}


def _speakers(path: Path) -> dict[str, str]:
    """Subset of each speaker: lines of ``id | sex | subset | minutes | name``; ``;`` comments."""
    if not path.is_file():
        return {}
    rows = (line.split("|") for line in path.read_text("utf-8").splitlines() if line[:1] != ";")
    return {row[0].strip(): row[2].strip() for row in rows if len(row) >= 3}


def _home(root: Path) -> Path:
    """The archives unpack into a folder LibriSpeech: it and the folder above are both taken."""
    return root / "LibriSpeech" if (root / "LibriSpeech").is_dir() else root


def fits(root: Path) -> bool:
    """A subset with speaker, chapter and ``.trans.txt`` below it."""
    subsets = [f for f in subfolders(_home(root)) if split_of_name(f.name)]
    return any(any(f.glob("*/*/*.trans.txt")) for f in subsets)


LIBRISPEECH = Adapter(
    "librispeech",
    "LibriSpeech: train-* is train, dev-* valid, test-* test",
    "SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-N.flac with SPEAKER-CHAPTER.trans.txt, SPEAKERS.TXT",
    clips,
    fits,
    frozenset({"subset"}),
)
