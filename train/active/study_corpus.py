"""The corpus of a study: labels that are hidden until they are asked for, and noise in the pool."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_imputer.errors import DataError

from ..data import ClipRecord, Manifest, write_manifest
from ..data.manifest import find_manifest, read_rows
from ..data.records import NOISE_LABEL, SILENCE_LABEL, record_of_anyone

ROW = "study_row"  # key of a pool's rows: their number here
LEAST_NOISE_S = 0.5  # shorter recordings are not cut up


class StudyCorpus:
    """Labelled clips that a study pretends not to know the labels of.

    Rows are numbers: of clips to train on first, then of pieces of noise.

    Parameters
    ----------
    folder : Path
        A corpus with the splits train, test and, where the recipe wants it, valid.
    words : bool
        Whether a label counts, of a keyword task; else the transcript.
    noises : Path or None
        A corpus of noise to hide in the pool.
    noise_share : float
        Of the pool's seconds, 0 to below 1.
    seed : int
        Of the pieces of noise.

    Raises
    ------
    DataError
        No clips to train on or to test on, or no noise to hide.
    """

    def __init__(
        self,
        folder: Path,
        *,
        words: bool,
        noises: Path | None = None,
        noise_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        whole = Manifest.open(folder)
        self.folder = whole.folder
        self._train: list[ClipRecord] = []
        self._valid: list[ClipRecord] = []
        self.test: list[ClipRecord] = []
        self._to_mix: list[ClipRecord] = []  # of augmentation, always at hand
        parts = {"train": self._train, "valid": self._valid, "test": self.test}
        for record in whole:
            if record.label == NOISE_LABEL:
                self._to_mix.append(self._absolute(record, whole.folder))
            elif (record.label if words else record.text) is not None:
                parts[record.split].append(self._absolute(record, whole.folder))
        if not self._train or not self.test:
            raise DataError(
                f"{folder}: expected {'labelled' if words else 'transcribed'} clips of the splits "
                f"train and test, got {len(self._train)} and {len(self.test)}"
            )
        self.n_clips = len(self._train)
        if noises is not None and noise_share > 0:
            self._train += self._pieces(noises, noise_share, seed)
        self.durations = np.array([record.duration_s for record in self._train])

    def __len__(self) -> int:
        return len(self._train)

    @property
    def hours(self) -> float:
        """Of everything that can be labelled, noise included."""
        return float(self.durations.sum() / 3600)

    @property
    def identity(self) -> str:
        """Hash of all that models are trained, validated and tested on."""
        every = [self._train, self._valid, self.test, self._to_mix]
        return hashlib.sha256(msgspec.json.encode(every)).hexdigest()

    def characters(self) -> str:
        """All that transcripts to train on hold: what a model can write must not depend on luck."""
        return "".join(sorted({c for r in self._train for c in " ".join((r.text or "").split())}))

    def keywords(self) -> tuple[str, ...]:
        """All labels to train on that are words."""
        labels = {r.label for r in self._train if r.label is not None}
        return tuple(sorted(label for label in labels if not label.startswith("_")))

    def base(self, seed: int, hours: float) -> list[int]:
        """Clips that are labelled from the start: drawn at random, without noise."""
        order = np.random.default_rng([seed, 1]).permutation(self.n_clips)
        fits = np.cumsum(self.durations[order]) <= 3600 * hours
        if not fits[0]:
            raise DataError(
                f"expected a base that holds a clip, got {3600 * hours:.1f} s; one takes "
                f"{self.durations[order[0]]:.1f} s"
            )
        return sorted(order[fits].tolist())

    def write_pool(self, file: Path, labelled: Iterable[int]) -> int:
        """Write what is not labelled yet, without a word of what is said in it; how many clips."""
        known = set(labelled)
        rows = [row for row in range(len(self)) if row not in known]
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as lines:
            for row in rows:
                lines.write(msgspec.json.encode(_unlabelled(self._train[row], row)) + b"\n")
        return len(rows)

    def write_labelled(self, folder: Path, labelled: Sequence[int]) -> None:
        """A corpus to train on: these clips with their labels, and the split valid."""
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(folder, self._answers(labelled))

    def _answers(self, labelled: Sequence[int]) -> Iterator[ClipRecord]:
        for row in sorted(labelled):
            yield self._train[row]
        yield from self._valid
        yield from self._to_mix

    def _pieces(self, noises: Path, share: float, seed: int) -> list[ClipRecord]:
        """Pieces of noise as long as the clips, which a listener finds nothing said in."""
        folder = find_manifest(noises).parent
        recordings = [
            self._absolute(record, folder)
            for record in read_rows(noises, _recording)
            if record.duration_s >= LEAST_NOISE_S
        ]
        if not recordings:
            raise DataError(f"{noises}: expected recordings of {LEAST_NOISE_S} s or more, got none")
        rng = np.random.default_rng([seed, 2])
        lengths = np.array([r.duration_s for r in recordings])
        wanted_s = share / (1 - share) * sum(r.duration_s for r in self._train)
        pieces: list[ClipRecord] = []
        while wanted_s > 0:
            record = recordings[int(rng.choice(len(recordings), p=lengths / lengths.sum()))]
            clip_s = self._train[int(rng.integers(self.n_clips))].duration_s
            seconds = min(clip_s, record.duration_s)
            start = record.offset_s + rng.uniform(0, record.duration_s - seconds)
            pieces.append(
                msgspec.structs.replace(
                    record,
                    text="",
                    label=SILENCE_LABEL,
                    split="train",
                    offset_s=round(start, 3),
                    duration_s=round(seconds, 3),
                )
            )
            wanted_s -= seconds
        return pieces

    @staticmethod
    def _absolute(record: ClipRecord, folder: Path) -> ClipRecord:
        return msgspec.structs.replace(record, audio=os.path.abspath(folder / record.audio))


def _unlabelled(record: ClipRecord, row: int) -> dict[str, Any]:
    """What may be known of a clip before it is labelled."""
    hidden = msgspec.structs.replace(record, text=None, label=None, speaker="unknown", engine=None)
    return {**msgspec.to_builtins(hidden), ROW: row}


def rows_chosen(file: Path) -> list[int]:
    """The numbers of the rows that a selection chose, in its order."""
    with file.open("rb") as lines:
        return [int(msgspec.json.decode(line)[ROW]) for line in lines]


def _recording(line: bytes) -> ClipRecord:
    return record_of_anyone(msgspec.json.decode(line, type=dict[str, Any]))
