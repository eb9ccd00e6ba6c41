"""Kaldi data folders: wav.scp, text, utt2spk, segments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_imputer.errors import DataError

from ..records import UNKNOWN_SPEAKER, Split
from .base import (
    Adapter,
    AdapterOptions,
    Notes,
    SourceClip,
    draw_split,
    split_of_name,
    subfolders,
)


def clips(root: Path, options: AdapterOptions, notes: Notes) -> Iterator[SourceClip]:
    """Utterances of a data folder, or of all data folders in a folder."""
    folders = _folders(root)
    unknown = sorted(set(options.subset) - {f.name for f in folders})
    if unknown:
        raise DataError(
            f"{root}: expected --subset among {', '.join(f.name for f in folders)}, got "
            f"{', '.join(unknown)}"
        )
    for folder in folders:
        if options.subset and folder.name not in options.subset:
            continue
        split = split_of_name(folder.name)
        if split is None:
            notes.add(f"{folder.name}: splits are drawn by speaker, as its name says of none")
        yield from _utterances(root, folder, split, options, notes)


def _utterances(
    root: Path, folder: Path, split: Split | None, options: AdapterOptions, notes: Notes
) -> Iterator[SourceClip]:
    recordings = dict(_pairs(folder / "wav.scp"))
    texts = dict(_pairs(folder / "text", may_be_empty=True))
    speakers = dict(_pairs(folder / "utt2spk"))
    if not texts:
        notes.add(f"{folder.name}: no file text, so no transcripts")
    segments = _segments(folder, recordings)
    untold = 0
    for utterance, recording, start_s, duration_s in segments:
        if texts and utterance not in texts:
            untold += 1
        speaker = speakers.get(utterance, UNKNOWN_SPEAKER)
        audio, command = _source(root, folder, recording, recordings[recording], options)
        yield SourceClip(
            audio=audio,
            name=f"{folder.name}/{utterance}",
            text=texts.get(utterance, "") if texts else None,
            split=split or draw_split(speaker if speakers else utterance, options),
            speaker=speaker,
            offset_s=start_s,
            duration_s=duration_s,
            command=command,
        )
    if untold:
        notes.add(f"{folder.name}: {untold} utterances are not in its file text")


def _segments(
    folder: Path, recordings: dict[str, str]
) -> Iterator[tuple[str, str, float, float | None]]:
    """Utterance, recording, start and duration in seconds (None: to the end)."""
    path = folder / "segments"
    if not path.is_file():
        yield from ((recording, recording, 0.0, None) for recording in recordings)
        return
    for number, (utterance, rest) in enumerate(_pairs(path), start=1):
        parts = rest.split()
        try:
            recording, start_s, end_s = parts[0], float(parts[1]), float(parts[2])
        except (IndexError, ValueError):
            raise DataError(
                f"{path}, line {number}: expected UTTERANCE RECORDING START END, got "
                f"{utterance} {rest}"
            ) from None
        if recording not in recordings:
            raise DataError(f"{path}, line {number}: no recording {recording} in wav.scp")
        if end_s != -1 and not 0 <= start_s < end_s:
            raise DataError(
                f"{path}, line {number}: expected 0 <= START < END (or END -1, to the end), got "
                f"{start_s:g} and {end_s:g}"
            )
        yield utterance, recording, start_s, None if end_s == -1 else round(end_s - start_s, 6)


def _source(
    root: Path, folder: Path, recording: str, entry: str, options: AdapterOptions
) -> tuple[str, str | None]:
    """Audio file and command of an entry of wav.scp; of a command the file is only a name."""
    if entry.endswith("|"):
        if not options.allow_commands:
            raise DataError(
                f"{folder}/wav.scp: {recording} is a command to run ({entry}). A corpus is data, "
                "and running what it says lets it do anything on this machine. Read the file, and "
                "if you trust it pass --allow-commands; or write the audio to files first"
            )
        return f"{folder}/wav.scp:{recording}", entry[:-1].strip()
    if ".ark" in entry and entry.rsplit(":", 1)[-1].isdigit():
        raise DataError(
            f"{folder}/wav.scp: {recording} lies in an archive ({entry}), which is not read; "
            "write single files, for example with Kaldi's wav-copy"
        )
    path = Path(entry)
    if path.is_absolute():
        return str(path), None
    for base in (folder, root, Path.cwd()):  # Kaldi takes the folder it is run in
        if (base / path).is_file():
            return str((base / path).resolve()), None
    return str(folder / path), None


def _pairs(path: Path, *, may_be_empty: bool = False) -> Iterator[tuple[str, str]]:
    """First word and rest of every line; nothing if there is no such file."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            parts = line.strip().split(maxsplit=1)
            if len(parts) == 2:
                yield parts[0], parts[1]
            elif parts and may_be_empty:
                yield parts[0], ""
            else:
                raise DataError(
                    f"{path}, line {number}: expected a name and a value, got {line.strip()!r}"
                )


def _folders(root: Path) -> list[Path]:
    if (root / "wav.scp").is_file():
        return [root.resolve()]
    return [f for f in subfolders(root) if (f / "wav.scp").is_file()]


def fits(root: Path) -> bool:
    """``wav.scp``, here or one folder below."""
    return bool(_folders(root))


KALDI = Adapter(
    "kaldi",
    "Kaldi data folders: train*, dev*/valid* and test*/eval* by name",
    "wav.scp, text, utt2spk and perhaps segments; here or in folders below",
    clips,
    fits,
    frozenset({"subset", "allow_commands"}),
)
