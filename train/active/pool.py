"""A pool of recordings, read block by block: looked at, and made into batches for the network."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from edge_imputer.audio import resample
from edge_imputer.clip_checks import ClipTask, Finding, read_and_check
from edge_imputer.specs import BLANK_ID

from ..data import Batch, ClipRecord, Featurizer, Manifest, collate
from ..data.batches import Example
from .fingerprint import RATE, Fingerprinter
from .junk import JunkFilter
from .places import file_number
from .score_log import Entry, rows_of
from .trained_on import REASON, TrainedOn

Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    """A block of rows, ready for the network.

    Attributes
    ----------
    entries : list of Entry
        One a row; those that wait for a score have no reason.
    batches : list of (list of int, Batch)
        What is to be scored: places in `entries`, and the utterances.
    """

    entries: list[Entry]
    batches: list[tuple[list[int], Batch]]


@dataclass
class PoolBlocks(Dataset[Block]):
    """The blocks of a shard, for a `DataLoader`.

    Attributes
    ----------
    pool : Manifest
        Texts and labels in it are never looked at.
    numbers : sequence of int
        Of the blocks, see `Shard.blocks`.
    batch_s : float
        Most seconds of a batch, padding included; a longer clip is a batch of its own.
    """

    pool: Manifest
    numbers: Sequence[int]
    featurizer: Featurizer
    junk: JunkFilter
    trained_on: TrainedOn | None = None
    batch_s: float = 60.0

    def __post_init__(self) -> None:
        self._print = Fingerprinter()
        self._home = os.path.realpath(self.pool.folder)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Block:
        entries: list[Entry] = []
        waiting: list[tuple[int, Example]] = []
        for row in rows_of(self.numbers[index], len(self.pool)):
            entry, waveform, seed = self._look(row)
            if not entry.reason:
                waiting.append((len(entries), self._example(waveform, seed)))
            entries.append(entry)
        return Block(entries, list(self._batches(waiting)))

    def __iter__(self) -> Iterator[Block]:
        return (self[index] for index in range(len(self)))

    def _look(self, row: int) -> tuple[Entry, Waveform, int]:
        """What a row is, what the network hears of it, and a seed by its samples."""
        record, folder = self.pool[row], self.pool.folder
        nothing = np.zeros(0, np.float32)

        def left_out(reason: str, detail: str, seconds: float) -> tuple[Entry, Waveform, int]:
            return Entry(row=row, seconds=seconds, reason=reason, detail=detail), nothing, 0

        if self.trained_on is not None and self.trained_on.has_place(folder, record):
            return left_out(REASON, "the same part of the file", record.duration_s)
        off = self.junk.length(record.duration_s)
        if off is not None and record.duration_s > 0:
            return left_out(*off, record.duration_s)  # before hours of it are decoded
        finding, waveform = _read(self.pool, record)
        if finding.problem is not None:
            return left_out(finding.problem, finding.detail, record.duration_s)
        seconds = finding.duration_s
        plain = resample(waveform, from_rate=finding.sample_rate, to_rate=RATE)
        why = self.junk(finding, plain)
        if why is not None:
            return left_out(*why, seconds)
        print_ = self._print(plain)
        if self.trained_on is not None and self.trained_on.has_sound(print_, seconds):
            return left_out(REASON, "the same sound in another file", seconds)
        rate = self.featurizer.spec.features.sample_rate
        if rate != RATE:
            plain = resample(waveform, from_rate=finding.sample_rate, to_rate=rate)
        entry = Entry(
            row=row,
            seconds=seconds,
            print=print_.tobytes().hex(),
            file=file_number(folder, record.audio, below=self._home),
            start=record.offset_s,
        )
        return entry, plain, int(finding.digest[:16], 16) >> 1

    def _example(self, waveform: Waveform, seed: int) -> Example:
        """An utterance without a target."""
        x = self.featurizer.features(waveform)
        guess = np.full(self.featurizer.n_encoder_frames(len(x)), BLANK_ID)
        return Example(self.featurizer.normalize(x), [], guess, seed=seed)

    def _batches(self, waiting: Sequence[tuple[int, Example]]) -> Iterator[tuple[list[int], Batch]]:
        """Batches of about equally long utterances."""
        spec = self.featurizer.spec.features
        most = round(self.batch_s * spec.sample_rate / spec.hop_length)
        ordered = sorted(waiting, key=lambda one: len(one[1].features))
        held: list[tuple[int, Example]] = []
        for one in ordered:
            if held and (len(held) + 1) * len(one[1].features) > most:
                yield _collated(held)
                held = []
            held.append(one)
        if held:
            yield _collated(held)


def _read(pool: Manifest, record: ClipRecord) -> tuple[Finding, Waveform]:
    """A clip decoded and measured."""
    return read_and_check(
        ClipTask(
            audio=str(pool.folder / record.audio),
            offset_s=record.offset_s,
            duration_s=record.duration_s or None,
        )
    )


def _collated(held: Sequence[tuple[int, Example]]) -> tuple[list[int], Batch]:
    return [place for place, _ in held], collate([example for _, example in held])
