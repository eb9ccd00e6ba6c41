"""The way from a plan to batches, in worker processes: read, augment, compute, collate.

Every batch is a pure function of the plan and of its place in it. So neither the number of
workers nor where a run was resumed changes what a model sees.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import msgspec
import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from edge_imputer.errors import (
    AudioError,
    DataError,
    InfeasibleTargetError,
    SpecError,
    TokenError,
)

from .augment import Augmenter, Span, speech_span
from .batches import Batch, Example, collate
from .cache import ClipCache
from .corpus import read_clip
from .features import Featurizer, Float32
from .manifest import Manifest
from .plan import Draw, Plan, deal
from .records import Clip, ClipRecord

log = logging.getLogger(__name__)

ATTEMPTS = 20  # utterances tried in one's place before the corpus is called unusable
PREFETCH = 4  # batches that a worker is ahead
GRACE_S = 30  # from a SIGTERM to a worker until it ends, unless its training process does


CleanFeatures = tuple[Float32, str, tuple[Span, ...]]


class Source(Protocol):
    """Where clips come from."""

    def __len__(self) -> int: ...

    def clip(self, row: int, part: tuple[float, float] | None = None) -> Clip:
        """Clip `row`, or a part of it: (start, length) in seconds.

        Raises
        ------
        AudioError
            It cannot be decoded.
        """
        ...

    def clean_features(self, row: int, featurizer: Featurizer) -> CleanFeatures:
        """Features of a clip as it is, its text, and where it speaks."""
        ...

    def name(self, row: int) -> str:
        """What messages call the clip."""
        ...


class ClipsInMemory:
    """Clips that are there already, see `load_clips`."""

    def __init__(self, clips: Sequence[Clip], *, sample_rate: int) -> None:
        self.clips = clips
        self.sample_rate = sample_rate

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def durations(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Seconds, (N,)."""
        return np.array([len(c.waveform) / self.sample_rate for c in self.clips], np.float32)

    @property
    def speakers(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """One number a speaker, (N,)."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(c.speaker, len(numbers)) for c in self.clips], np.int32)

    def clip(self, row: int, part: tuple[float, float] | None = None) -> Clip:
        """Clip `row`, or a part of it."""
        clip = self.clips[row]
        if part is None:
            return clip
        start, length = (round(s * self.sample_rate) for s in part)
        return Clip(clip.record, clip.waveform[start : start + length])

    def clean_features(self, row: int, featurizer: Featurizer) -> CleanFeatures:
        """Features of a clip as it is, its text, and where it speaks."""
        return _clean_features(self.clips[row], featurizer, self.sample_rate)

    def name(self, row: int) -> str:
        """The clip's file."""
        return self.clips[row].record.audio


class ManifestSource:
    """Clips of a manifest, decoded when they are drawn; through a cache where one is given."""

    def __init__(
        self, manifest: Manifest, *, sample_rate: int, cache: ClipCache | None = None
    ) -> None:
        self.manifest = manifest
        self.sample_rate = sample_rate
        self.cache = cache

    def __len__(self) -> int:
        return len(self.manifest)

    def clip(self, row: int, part: tuple[float, float] | None = None) -> Clip:
        """Clip `row`, or a part of it; only that part is decoded."""
        record = self.manifest[row]
        if part is not None and self.cache is None:
            record = _part_of(record, *part)
            return Clip(_tidied(record), read_clip(self.manifest.folder, record, self.sample_rate))
        if self.cache is None:
            waveform = read_clip(self.manifest.folder, record, self.sample_rate)
        else:
            waveform = self.cache.waveform(self.manifest.folder, record, self.sample_rate, part)
        return Clip(_tidied(record), waveform)

    def clean_features(self, row: int, featurizer: Featurizer) -> CleanFeatures:
        """Features of a clip as it is, its text, and where it speaks.

        With a cache they are computed once; where in the clip the speech is, is then not known,
        and it is taken to be all of it.
        """
        if self.cache is None:
            return _clean_features(self.clip(row), featurizer, self.sample_rate)
        record = _tidied(self.manifest[row])

        def compute() -> Float32:
            waveform = read_clip(self.manifest.folder, record, self.sample_rate)
            return featurizer.features(waveform)

        spec = featurizer.spec.features
        # A second tells how a featurizer pads: to which chunks.
        settings = {"padding": [featurizer.n_features(n) for n in range(0, self.sample_rate, 160)]}
        x = self.cache.features(self.manifest.folder, record, spec, settings, compute)
        text = record.text or ""
        return x, text, ((text, 0.0, record.duration_s),)

    def name(self, row: int) -> str:
        """The clip's file."""
        return str(self.manifest.folder / self.manifest[row].audio)


def _clean_features(clip: Clip, featurizer: Featurizer, sample_rate: int) -> CleanFeatures:
    span = clip.text, *speech_span(clip.waveform, sample_rate=sample_rate)
    return featurizer.features(clip.waveform), clip.text, (span,)


def _part_of(record: ClipRecord, start_s: float, length_s: float) -> ClipRecord:
    start = min(start_s, record.duration_s)
    return msgspec.structs.replace(
        record,
        offset_s=record.offset_s + start,
        duration_s=min(length_s, record.duration_s - start),
    )


def _tidied(record: ClipRecord) -> ClipRecord:
    """The record with white space in its text as single spaces."""
    if record.text is None:
        return record
    return msgspec.structs.replace(record, text=" ".join(record.text.split()))


@dataclass
class MicroBatches(IterableDataset[Batch]):
    """The micro-batches of one process, in the order it trains on them.

    Worker w of n makes every n-th of them, and a `DataLoader` takes the workers' in turns: the
    order is the same for any number of workers.
    """

    plan: Plan
    source: Source
    augmenter: Augmenter
    featurizer: Featurizer
    rank: int = 0
    world: int = 1
    accumulate: int = 1
    start: int = 0
    stop: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in count(first, step):
            update, share = divmod(number, self.accumulate)
            if self.stop is not None and self.start + update >= self.stop:
                return
            yield self.batch(self.start + update, share)

    def batch(self, update: int, share: int = 0) -> Batch:
        """Micro-batch number `share` of an update, 0 to accumulate - 1.

        Raises
        ------
        DataError
            No utterance that can be used was found in one's place; or something went wrong that
            is no fault of the audio, with the clip it went wrong at.
        """
        draws = self.plan.update(update)
        mine = deal(draws, self.world * self.accumulate)[share * self.world + self.rank]
        notes: list[str] = []
        examples = [self._usable(draw, notes) for draw in mine]
        return collate(examples, n_global=len(draws), notes=notes)

    def _usable(self, draw: Draw, notes: list[str]) -> Example:
        """The utterance of a draw, or of another one in its place."""
        drawn = draw
        why: Exception | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                drawn = self.plan.again(draw, attempt)
            try:
                return self.example(drawn)
            except (InfeasibleTargetError, TokenError, AudioError) as error:
                if isinstance(error, (AudioError, TokenError)):
                    # The error alone names the file: once a clip, whatever it is joined to.
                    notes.append(f"a clip is replaced by another clip: {error}")
                log.debug("drawn again: %s", error)
                why = error
            except Exception as error:
                raise DataError(
                    f"update {draw.update}: could not prepare {self._names(drawn)}: "
                    f"{type(error).__name__}: {error}"
                ) from error
        raise DataError(
            f"update {draw.update}: {ATTEMPTS} utterances in a row could not be used, the last "
            f"one, of {self._names(drawn)}, because: {why}; if it is too short for its transcript, "
            "check that the manifest's texts belong to its audio"
        ) from why

    def _names(self, draw: Draw) -> str:
        return " + ".join(self.source.name(row) for row in draw.rows) or "noise without a clip"

    def example(self, draw: Draw) -> Example:
        """One utterance, augmented, as the network sees it."""
        rng = np.random.default_rng(draw.seed)
        if self._cacheable(draw):
            x, text, spans = self.source.clean_features(draw.rows[0], self.featurizer)
        else:
            clips = [self.source.clip(row, draw.part) for row in draw.rows]
            utterance = self.augmenter.utterance(clips, rng, draw.strength, window_s=draw.window_s)
            x, text, spans = (
                self.featurizer.features(utterance.waveform),
                utterance.text,
                utterance.spans,
            )
        ids = self.featurizer.targets(text, len(x))
        if self.featurizer.logarithmic:
            x = self.augmenter.features(x, rng, draw.strength)
        x = self.featurizer.normalize(x)
        x = self.augmenter.masked(x, rng, draw.strength, mean=self.featurizer.mean(x))
        flat = self.featurizer.flat_start(spans, len(x))
        return Example(x, ids, flat, draw.label, draw.seed)

    def _cacheable(self, draw: Draw) -> bool:
        """Whether nothing changes a draw's waveform: its features are then those of the clip."""
        whole = len(draw.rows) == 1 and draw.window_s is None and draw.part is None
        return whole and not self.augmenter.spec.on_waveform


class BatchLoader(DataLoader[Batch]):
    """A `DataLoader` that says once, in the training process, which clips had to be replaced."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        said: set[str] = set()
        for batch in super().__iter__():
            for note in batch.notes:
                if note not in said:
                    log.warning("%s", note)
                    said.add(note)
            yield batch


def loader(
    plan: Plan,
    source: Source,
    augmenter: Augmenter,
    featurizer: Featurizer,
    *,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    start: int = 0,
    stop: int | None = None,
    workers: int = 0,
    pin_memory: bool = False,
) -> BatchLoader:
    """Micro-batches of one process: update `start` first, `accumulate` of them an update.

    Parameters
    ----------
    plan, source, augmenter, featurizer
        What is drawn, from where, and what becomes of it.
    rank, world : number of this process, and of processes
    accumulate : micro-batches that a process sees in an update
    start, stop : first update, and the one to stop before; None: never
    workers : processes that prepare batches; 0: this one does

    Returns
    -------
    BatchLoader
        A `DataLoader` of `Batch`. An error in a worker is raised in this process and names the
        clip. Clips that cannot be decoded are replaced, with one warning each.
    """
    if not (0 <= rank < world and accumulate >= 1 and workers >= 0):
        raise SpecError(
            "expected 0 <= rank < world, accumulate >= 1 and workers >= 0, got "
            f"{rank}, {world}, {accumulate} and {workers}"
        )
    batches = MicroBatches(
        plan, source, augmenter, featurizer, rank, world, accumulate, start, stop
    )
    return BatchLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=outlive_signals if workers else None,
    )


def outlive_signals(worker: int) -> None:
    """Let the training process answer a signal that all of its processes get.

    Ctrl-C reaches the workers too, and so does the SIGTERM of a service manager. A worker that
    ended at once would take the run's last checkpoint with it. It ends with its training process;
    or, where that only ends the worker, after a moment.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
