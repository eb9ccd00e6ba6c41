"""Mozilla Common Voice, one language: TSV files and ``clips/`` with MP3."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from edge_imputer.errors import DataError

from ..records import Split
from .base import Adapter, AdapterOptions, Notes, SourceClip

SPLITS: dict[str, Split] = {"test": "test", "dev": "valid", "train": "train"}
COLUMNS = ("client_id", "path", "sentence")


def clips(root: Path, options: AdapterOptions, notes: Notes) -> Iterator[SourceClip]:
    """The official train, dev and test; or, with `validated`, all that was validated.

    The official ``train.tsv`` has each sentence once. With `validated`, every clip of
    ``validated.tsv`` is for training that is not of a speaker or clip of dev or test.
    """
    durations = _durations(root / "clip_durations.tsv")
    names = [name for name in SPLITS if (root / f"{name}.tsv").is_file()]
    if options.validated:
        if not (root / "validated.tsv").is_file():
            raise DataError(f"expected {root}/validated.tsv for --validated, found none")
        names = [name for name in names if name != "train"]
    notes.add(f"taken: {', '.join(f'{n}.tsv' for n in names)}")
    reserved: set[str] = set()  # clips and speakers of dev and test
    for name in names:
        for row in _rows(root / f"{name}.tsv"):
            if options.validated:
                reserved |= {row["path"], row["client_id"]}
            yield _clip(root, row, SPLITS[name], durations)
    if options.validated:
        kept_out = 0
        for row in _rows(root / "validated.tsv"):
            if {row["path"], row["client_id"]} & reserved:
                kept_out += 1
            else:
                yield _clip(root, row, "train", durations)
        notes.add(f"validated.tsv: {kept_out} clips of dev, test and their speakers kept out")


def _clip(root: Path, row: dict[str, str], split: Split, durations: dict[str, float]) -> SourceClip:
    file = row["path"] if Path(row["path"]).suffix else f"{row['path']}.mp3"
    return SourceClip(
        audio=str(root / "clips" / file),
        name=f"clips/{Path(file).stem}",
        text=row["sentence"],
        split=split,
        speaker=row["client_id"] or "unknown",
        stated_s=durations.get(file),
    )


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a TSV file; quotes are part of sentences, not of the format."""
    with path.open(encoding="utf-8", newline="") as source:
        rows = csv.reader(source, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = next(rows, [])
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise DataError(
                f"{path}: expected the columns {', '.join(COLUMNS)}, got "
                f"{', '.join(header) or 'an empty file'}"
            )
        for number, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise DataError(
                    f"{path}, line {number}: expected {len(header)} columns, got {len(row)}"
                )
            yield dict(zip(header, row, strict=True))


def _durations(path: Path) -> dict[str, float]:
    """Seconds of each clip by ``clip_durations.tsv``, which newer releases have."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as source:
        rows = csv.reader(source, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows, None)
        return {
            row[0]: float(row[1]) / 1000 for row in rows if len(row) == 2 and _is_number(row[1])
        }


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def fits(root: Path) -> bool:
    """``clips/`` and at least one of the TSV files."""
    names = (*SPLITS, "validated")
    return (root / "clips").is_dir() and any((root / f"{n}.tsv").is_file() for n in names)


COMMON_VOICE = Adapter(
    "common_voice",
    "Mozilla Common Voice, the folder of one language",
    "train.tsv, dev.tsv, test.tsv (client_id, path, sentence), validated.tsv, clips/*.mp3",
    clips,
    fits,
    frozenset({"validated"}),
)
