"""Epochs over a corpus of any size, in batches of about equally long utterances."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import DataError, SpecError

from .plan import Draw, draw_seed, ramp

log = logging.getLogger(__name__)

Int32 = npt.NDArray[np.int32]

BUCKET_RATIO = 1.1  # a bucket's longest utterance over its shortest: padding stays below 10 %
NEIGHBOURS = 1000  # what is replaced or filled up is drawn from so many


class BucketedPlan:
    """Every clip once an epoch, those of about one length together, under a budget of frames.

    Utterances are sorted into buckets of lengths, shuffled within them for every epoch, cut into
    updates whose padded size stays below the budget, and the updates are shuffled. The longest
    come first within an epoch's cutting, so only its last update, of the shortest, is not full;
    it is filled up to `least` with utterances that are then seen twice.

    A million clips cost 8 MB, in arrays: there is no Python object a row.

    Parameters
    ----------
    n_frames : (N,) ints
        Feature frames of every utterance at its longest: see `Featurizer.n_features` and
        `AugmentSpec.longest`.
    max_frames : most feature frames of an update, padding included
    least : fewest utterances of an update: processes times accumulated micro-batches
    largest : most utterances of an update; None: any number
    seed : int
    frame_s : seconds a feature frame
    classes : (N,) ints, or None
        Each row's class in a keyword task; of speech -1, or that of no keyword, see `Draw`.
    window_s : length of every utterance, seconds; None: clips keep their lengths
    n_ramp : updates over which the harder augmentations grow to their full strength

    Raises
    ------
    DataError
        No utterance that fits, or fewer than `least`.
    """

    def __init__(
        self,
        n_frames: npt.ArrayLike,
        *,
        max_frames: int,
        seed: int,
        least: int = 1,
        largest: int | None = None,
        frame_s: float = 0.01,
        classes: npt.ArrayLike | None = None,
        window_s: float | None = None,
        n_ramp: int = 0,
    ) -> None:
        if not 1 <= least <= (largest or least):
            raise SpecError(f"expected 1 <= least <= largest, got {least} and {largest}")
        self.seed = seed
        self.least = least
        self.frame_s = frame_s
        self.window_s = window_s
        self.n_ramp = n_ramp
        self.n_frames = np.asarray(n_frames, np.int32)
        self._classes = None if classes is None else np.asarray(classes, np.int32)
        self._rows, self._ends = self._sorted(max_frames // least, max_frames)
        self._bucket_starts = np.concatenate([[0], self._ends[:-1]])
        self._longest = np.maximum.reduceat(self.n_frames[self._rows], self._bucket_starts)
        self._starts = self._cut(max_frames, largest)
        self._epoch = -1
        self._order = self._rows
        self._updates = np.arange(len(self._starts), dtype=np.int32)

    def _sorted(self, limit: int, max_frames: int) -> tuple[Int32, Int32]:
        """Rows that fit, bucket by bucket from the longest, and where each bucket ends."""
        frames = self.n_frames
        logs = np.log(np.maximum(frames, 1), dtype=np.float32)
        logs /= np.float32(np.log(BUCKET_RATIO))
        buckets = logs.astype(np.uint16)
        del logs
        fits = frames <= limit
        rows = np.empty(np.count_nonzero(fits), np.int32)
        ends = []
        at = 0
        # Bucket by bucket: sorting all rows at once would hold 8 bytes more for each of them.
        for bucket in np.unique(buckets[fits])[::-1]:
            found = np.flatnonzero(fits & (buckets == bucket))[::-1]
            rows[at : at + len(found)] = found
            at += len(found)
            ends.append(at)
        if left_out := len(frames) - len(rows):
            log.warning(
                "%d of %d utterances are longer than %d frames and are left out; raise the budget "
                "of %d frames an update, or split them",
                left_out,
                len(frames),
                limit,
                max_frames,
            )
        if len(rows) < self.least:
            raise DataError(
                f"expected at least {self.least} utterances of at most {limit} frames, got "
                f"{len(rows)} of {len(frames)}; raise the budget of {max_frames} frames"
            )
        return rows, np.array(ends, np.int32)

    def _cut(self, max_frames: int, largest: int | None) -> Int32:
        """Where each update starts in the order of the rows."""
        starts, at = [], 0
        while at < len(self._rows):
            starts.append(at)
            bucket = np.searchsorted(self._ends, at, side="right")
            fitting = max_frames // max(1, int(self._longest[bucket]))
            at += min(fitting, largest or fitting)
        return np.array(starts, np.int32)

    @property
    def updates_per_epoch(self) -> int:
        """Updates that an epoch takes; every epoch takes as many."""
        return len(self._starts)

    def update(self, index: int) -> list[Draw]:
        """Every utterance of update `index`."""
        epoch, within = divmod(index, self.updates_per_epoch)
        self._shuffle(epoch)
        number = int(self._updates[within])
        start = int(self._starts[number])
        rows = self._order[start : self._end(number)]
        if len(rows) < self.least:
            rng = np.random.default_rng((self.seed, epoch, 2))
            before = self._order[max(0, start - NEIGHBOURS) : start]
            rows = np.append(rows, rng.permutation(before)[: self.least - len(rows)])
        template = Draw((), 0, index, 0, 0.0, ramp(index, self.n_ramp), self.window_s)
        return [
            self._draw(row, replace(template, position=position))
            for position, row in enumerate(rows.tolist())
        ]

    def again(self, draw: Draw, attempt: int) -> Draw:
        """Another utterance of about the length, so that the budget holds."""
        rng = np.random.default_rng((self.seed, draw.update, draw.position, attempt))
        # No longer than the longest of its own bucket, which the update was cut for.
        bucket = int(np.flatnonzero(self._longest >= self.n_frames[draw.rows[0]])[-1])
        start = int(self._bucket_starts[bucket])
        stop = min(len(self._rows), start + NEIGHBOURS)
        return self._draw(int(self._rows[rng.integers(start, stop)]), draw, attempt)

    def _end(self, number: int) -> int:
        last = number + 1 == len(self._starts)
        return len(self._rows) if last else int(self._starts[number + 1])

    def _draw(self, row: int, draw: Draw, attempt: int = 0) -> Draw:
        return replace(
            draw,
            rows=(row,),
            seed=draw_seed(self.seed, draw.update, draw.position, attempt),
            seconds=float(self.n_frames[row]) * self.frame_s,
            label=-1 if self._classes is None else int(self._classes[row]),
        )

    def _shuffle(self, epoch: int) -> None:
        """Order the rows and the updates as in `epoch`."""
        if epoch == self._epoch:
            return
        order = self._rows.copy()
        rng = np.random.default_rng((self.seed, epoch, 0))
        start = 0
        for end in self._ends.tolist():
            rng.shuffle(order[start:end])
            start = end
        self._order = order
        self._updates = np.random.default_rng((self.seed, epoch, 1)).permutation(
            np.arange(len(self._starts), dtype=np.int32)
        )
        self._epoch = epoch
