"""JSON lines: our own manifests, NeMo's, and others that name the same things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edge_imputer.errors import DataError

from ..records import NEAR_MISS_LABEL, UNKNOWN_SPEAKER, Split
from .base import Adapter, AdapterOptions, Notes, SourceClip, draw_split, split_of_name

# The first key that is there counts.
KEYS = {
    "audio": ("audio", "audio_filepath", "audio_path", "path", "file", "wav", "filename"),
    "text": ("text", "sentence", "transcript", "transcription", "normalized_text"),
    "speaker": ("speaker", "speaker_id", "client_id", "spk"),
    "split": ("split", "subset", "partition"),
    "duration": ("duration_s", "duration"),
    "offset": ("offset_s", "offset"),
    "label": ("label", "command", "keyword"),
    "engine": ("engine",),
}
_SUFFIXES = (".jsonl", ".json")


def clips(root: Path, options: AdapterOptions, notes: Notes) -> Iterator[SourceClip]:
    """Every line of the file, or of the files in the folder; a split may be in a file's name."""
    files = _files(root)
    notes.add(f"read: {', '.join(f.name for f in files)}")
    drawn = 0
    for file in files:
        named = split_of_name(file.stem)
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = _row(file, number, line)
                split = _split(file, number, row, named)
                drawn += split is None
                yield _clip(file, number, row, split, options)
    if drawn:
        notes.add(f"{drawn} lines name no split: it is drawn by speaker, or by file name")


def _row(file: Path, number: int, line: bytes) -> dict[str, Any]:
    """Our names of a line's values; what is null is left out."""
    try:
        row = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file}, line {number}: expected a JSON object; {error}") from error
    values: dict[str, Any] = {}
    for name, keys in KEYS.items():
        key = next((k for k in keys if row.get(k) is not None), None)
        if key is None:
            continue
        wanted = (int, float) if name in ("duration", "offset") else (str, int)
        if not isinstance(row[key], wanted) or isinstance(row[key], bool):
            raise DataError(
                f"{file}, line {number}: expected {key} to be "
                f"{'a number' if float in wanted else 'a text'}, got {row[key]!r}"
            )
        values[name] = float(row[key]) if float in wanted else str(row[key])
    if "audio" not in values:
        raise DataError(
            f"{file}, line {number}: expected one of the keys {', '.join(KEYS['audio'])}, got "
            f"{', '.join(row) or 'none'}"
        )
    return values


def _split(file: Path, number: int, row: dict[str, Any], named: Split | None) -> Split | None:
    if "split" not in row:
        return named
    split = split_of_name(row["split"])
    if split is None:
        raise DataError(
            f"{file}, line {number}: expected a split such as train, valid or test, got "
            f"{row['split']!r}"
        )
    return split


def _clip(
    file: Path, number: int, row: dict[str, Any], split: Split | None, options: AdapterOptions
) -> SourceClip:
    speaker = row.get("speaker", UNKNOWN_SPEAKER)
    part = row.get("offset", 0.0) > 0
    label = row.get("label")
    if label in ("near_miss", "near-miss"):
        label = NEAR_MISS_LABEL
    return SourceClip(
        audio=str(file.parent.resolve() / Path(row["audio"]).expanduser()),
        name=f"{file.stem}/{number:07d}-{Path(row['audio']).stem}",
        text=row.get("text"),
        split=split or draw_split(row["audio"] if speaker == UNKNOWN_SPEAKER else speaker, options),
        speaker=speaker,
        label=label,
        offset_s=row.get("offset", 0.0),
        duration_s=row.get("duration") if part else None,
        stated_s=None if part else row.get("duration"),
        engine=row.get("engine"),
    )


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    return sorted(f for f in root.iterdir() if f.suffix in _SUFFIXES and _is_lines(f))


def _is_lines(file: Path) -> bool:
    """Whether the first line is a JSON object that names audio."""
    with file.open("rb") as source:
        first = source.readline(1 << 20)
    try:
        row = msgspec.json.decode(first)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(row, dict) and any(key in row for key in KEYS["audio"])


def fits(root: Path) -> bool:
    """A file of JSON objects that name audio, or a folder with one."""
    return bool([f for f in _files(root) if _is_lines(f)])


JSONL = Adapter(
    "jsonl",
    "JSON lines: this project's manifests, NeMo's, and alike",
    "*.jsonl or *.json with one object a line: audio (audio_filepath, path), text (sentence), "
    "speaker, split, duration, offset, label; or such a file",
    clips,
    fits,
)
