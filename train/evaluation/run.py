"""Clips through a model, one at a time: decoded, mixed with noise, journalled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from edge_imputer.errors import AudioError, DataError
from edge_imputer.measured import DataKind

from ..data import read_clip
from .journal import Entry, Journal, entry_key
from .noise import NoiseMixer
from .results import Condition
from .rows import DataSet, Row

log = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]
Compute = Callable[[str, Float32], Entry]
"""Makes an entry: from its key and the waveform."""


@dataclass(frozen=True)
class Heard:
    """What a model made of one clip in one condition."""

    row: Row
    entry: Entry
    seconds: float  # of the clip, without what was put behind it


@dataclass
class Runner:
    """Runs clips through a model.

    Attributes
    ----------
    identity : str
        Hash or name of the model with all settings that its answers depend on.
    compute : from key and waveform to an entry
    sample_rate : int
    journal : Journal
    noise : NoiseMixer or None
    pad_s : float
        Silence put behind each clip, into which noise goes as well.
    progress : bool
    skipped : clips that could not be used, and why; filled in as they come
    """

    identity: str
    compute: Compute
    sample_rate: int
    journal: Journal
    noise: NoiseMixer | None = None
    pad_s: float = 0.0
    progress: bool = True
    skipped: dict[str, str] = field(default_factory=dict)

    def run(
        self, data: DataSet, snr_db: float | None, *, rows: Sequence[Row] | None = None
    ) -> list[Heard]:
        """Every usable clip of a data set in one condition, in the manifest's order."""
        heard = []
        for row in self._shown(data.rows if rows is None else rows, data, snr_db):
            try:
                waveform = read_clip(data.folder, row.record, self.sample_rate)
            except AudioError as error:
                name = f"{data.name}/{row.record.audio}"
                if name not in self.skipped:
                    log.warning("left out %s: %s", name, error)
                self.skipped[name] = str(error)
                continue
            seconds = len(waveform) / self.sample_rate
            heard.append(Heard(row, self._entry(self._condition(waveform, snr_db)), seconds))
        return heard

    def _condition(self, waveform: Float32, snr_db: float | None) -> Float32:
        padded = np.pad(waveform, (0, round(self.pad_s * self.sample_rate)))
        if snr_db is None:
            return padded
        if self.noise is None:
            raise DataError("expected recordings of noise to mix in, got none; give --noise")
        return self.noise.mix(padded, snr_db)

    def _entry(self, waveform: Float32) -> Entry:
        key = entry_key(self.identity, waveform)
        entry = self.journal.get(key)
        if entry is None:
            entry = self.compute(key, waveform)
            self.journal.put(entry)
        return entry

    def _shown(
        self, rows: Sequence[Row], data: DataSet, snr_db: float | None
    ) -> Iterable[Row] | Iterator[Row]:
        noise = "clean" if snr_db is None else f"{snr_db:g} dB"
        return track(
            rows,
            description=f"{data.name} {data.split}, {noise}",
            total=len(rows),
            console=Console(stderr=True),
            disable=not self.progress,
        )


def by_kind(
    data: DataSet, heard: Iterable[Heard], snr_db: float | None
) -> list[tuple[Condition, list[Heard]]]:
    """Recordings of people and generated speech apart, always."""
    groups: dict[DataKind, list[Heard]] = {}
    for one in heard:
        groups.setdefault(one.row.kind, []).append(one)
    return [
        (Condition(data=data.name, split=data.split, kind=kind, snr_db=snr_db), groups[kind])
        for kind in sorted(groups)
    ]


def by_key(
    condition: Condition, heard: Sequence[Heard], key: str
) -> list[tuple[Condition, list[Heard]]]:
    """The same clips by the value of a key of their rows."""
    groups: dict[str, list[Heard]] = {}
    for one in heard:
        groups.setdefault(one.row.group(key), []).append(one)
    return [
        (
            Condition(
                data=condition.data,
                split=condition.split,
                kind=condition.kind,
                snr_db=condition.snr_db,
                by=key,
                group=group,
            ),
            groups[group],
        )
        for group in sorted(groups)
    ]
