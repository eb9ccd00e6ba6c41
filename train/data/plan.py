"""Which utterances an update is made of: a pure function of a seed and the update's number.

A plan decides, nothing is read: so any process can say what any update holds, a run resumes by
its update number alone, and how many processes and workers there are changes nothing.

`DrawnPlan` draws clips with replacement and joins them, `KeywordPlan` draws labels by their
shares, `BucketedPlan` (`buckets.py`) goes through a corpus epoch by epoch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import DataError, SpecError

from .augment import AugmentSpec
from .records import NOISE_LABEL, SILENCE_LABEL, UNKNOWN_LABEL

log = logging.getLogger(__name__)

UNKNOWN_CLASS = 0  # of a `KeywordModelSpec`: no keyword

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Draw:
    """One utterance of an update: what to read, and the seed of all that is random about it."""

    rows: tuple[int, ...]  # clips in the order they are joined; none: no speech, noise only
    seed: int  # of its augmentation and of what the model draws for it; 0 <= seed < 2 ** 63
    update: int
    position: int  # within the update
    seconds: float  # about how long it will be; only orders the utterances of an update
    strength: float = 1.0  # of the augmentations that are ramped up
    window_s: float | None = None  # cut or filled up to this length, the speech somewhere in it
    part: tuple[float, float] | None = None  # (start, length) in the one clip, seconds
    label: int = -1  # class of a keyword task; `UNKNOWN_CLASS` of a clip without a transcript


class Plan(Protocol):
    """What a loader needs."""

    def update(self, index: int) -> list[Draw]:
        """Every utterance of update `index`, 0, 1, ..."""
        ...

    def again(self, draw: Draw, attempt: int) -> Draw:
        """Another utterance in a draw's place, when it cannot be used; `attempt` is 1, 2, ..."""
        ...


def deal(draws: Sequence[Draw], n_shares: int) -> list[list[Draw]]:
    """Deal an update to micro-batches: sorted by length and interleaved, so that all are alike.

    With `world` processes, micro-batch ``a * world + r`` is the one that process r sees as its
    a-th.

    Raises
    ------
    SpecError
        Fewer utterances than micro-batches.
    """
    if len(draws) < n_shares:
        raise SpecError(
            f"expected updates of at least {n_shares} utterances, one for each micro-batch "
            f"(processes times accumulated), got {len(draws)}; use larger batches"
        )
    ordered = sorted(draws, key=lambda draw: (-draw.seconds, draw.position))
    return [ordered[share::n_shares] for share in range(n_shares)]


def draw_seed(*numbers: int) -> int:
    """One seed from several numbers, 0 <= seed < 2 ** 63."""
    (word,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return int(word >> np.uint64(1))


def ramp(index: int, n_ramp: int) -> float:
    """Strength of what grows over the first `n_ramp` updates."""
    return min(1.0, index / n_ramp) if n_ramp else 1.0


class DrawnPlan:
    """Clips drawn at random, with replacement, and joined: endless variety from a small corpus.

    All utterances of an update are made of about as many clips, so they are about as long.

    Parameters
    ----------
    durations : (N,) seconds
    speakers : (N,) ints, one a speaker
        For the share of utterances that is to be in one voice; None: voices do not matter.
    spec : AugmentSpec
        `clips_joined`, `isolated`, `same_speaker` are used here.
    batch_size : utterances an update
    seed : int
    n_isolated : updates, the first ones, with one clip an utterance: they are short
    n_ramp : updates over which the harder augmentations grow to their full strength
    hard : (N,) bool, or None
        Clips without a transcript that say no keyword: they stay alone, with the label of none.
    hard_share : share of the utterances that are such; None: as the clips are many
    """

    def __init__(
        self,
        durations: npt.ArrayLike,
        speakers: npt.ArrayLike | None,
        spec: AugmentSpec,
        *,
        batch_size: int,
        seed: int,
        n_isolated: int = 0,
        n_ramp: int = 0,
        hard: npt.NDArray[np.bool_] | None = None,
        hard_share: float | None = None,
    ) -> None:
        spec.check()
        self.durations = _checked_durations(durations)
        self.spec = spec
        self.batch_size = batch_size
        self.seed = seed
        self.n_isolated = n_isolated
        self.n_ramp = n_ramp
        hard = np.zeros(len(self.durations), bool) if hard is None else hard
        self._hard, self._plain = (np.flatnonzero(r).astype(np.int32) for r in (hard, ~hard))
        if not len(self._plain):
            raise DataError("expected training clips with a transcript, got hard negatives only")
        self.hard_share = float(np.mean(hard)) if hard_share is None else hard_share
        if speakers is None:
            self._voices = None
        else:  # hard negatives are nobody's: they are joined to nothing
            codes = np.asarray(speakers, np.int32)
            self._voices = _Groups(np.where(hard, codes.max() + np.int32(1), codes))

    def update(self, index: int) -> list[Draw]:
        """Every utterance of update `index`."""
        rng = np.random.default_rng((self.seed, index))
        low, high = self.spec.clips_joined
        alone = rng.random() < self.spec.isolated
        n_clips = 1 if alone else int(rng.integers(low, high + 1))
        if index < self.n_isolated:
            n_clips = 1
        strength = ramp(index, self.n_ramp)
        hard = self._hard_places(rng) if len(self._hard) else set()
        return [
            self._draw(
                n_clips,
                rng,
                Draw((), 0, index, position, 0.0, strength),
                hard=position in hard,
            )
            for position in range(self.batch_size)
        ]

    def _hard_places(self, rng: np.random.Generator) -> set[int]:
        """Positions of hard negatives: their share, rounded up as often as it takes."""
        n = math.floor(self.hard_share * self.batch_size + rng.random())
        return set(rng.permutation(self.batch_size)[:n].tolist())

    def again(self, draw: Draw, attempt: int) -> Draw:
        """Other clips, as many."""
        rng = np.random.default_rng((self.seed, draw.update, draw.position, attempt))
        hard = draw.label == UNKNOWN_CLASS
        return self._draw(len(draw.rows), rng, draw, attempt, hard=hard)

    def _draw(
        self,
        n: int,
        rng: np.random.Generator,
        draw: Draw,
        attempt: int = 0,
        *,
        hard: bool = False,
    ) -> Draw:
        seed = draw_seed(self.seed, draw.update, draw.position, attempt)
        if hard:
            row = int(rng.choice(self._hard))
            seconds = float(self.durations[row])
            return replace(draw, rows=(row,), seed=seed, seconds=seconds, label=UNKNOWN_CLASS)
        first = int(self._plain[rng.integers(len(self._plain))])
        one_voice = rng.random() < self.spec.same_speaker
        if n > 1 and one_voice and self._voices is not None:
            rest = self._voices.like(first, n - 1, rng).tolist()
        else:
            rest = self._plain[rng.integers(len(self._plain), size=n - 1)].tolist()
        rows = (first, *rest)
        return replace(
            draw,
            rows=rows,
            seed=seed,
            seconds=float(self.durations[list(rows)].sum()),
        )


class KeywordPlan:
    """Windows of a keyword task, their labels drawn by shares.

    A label is drawn, then one of its clips. Of clips of other speech (``_unknown_``) and of
    silence any part will do: it is cropped at random, and only that is decoded. Without clips of
    silence, silence is noise alone.

    Parameters
    ----------
    durations : (N,) seconds
    labels : names of the labels, None for clips without one, which are not drawn
        Words of the unknown class count as ``_unknown_``.
    codes : (N,) ints
        Each row's position in `labels`: a manifest's column "label" has both.
    classes : class of every label that may be drawn
        For a `KeywordModelSpec` its `class_of`; see `silence_class` for silence without clips.
    shares : share of the utterances by label
        Those of the labels that are not named have equal parts of what is left.
    window_s : length of every utterance, seconds; None: clips keep their lengths
    """

    def __init__(
        self,
        durations: npt.ArrayLike,
        labels: Sequence[str | int | None],
        codes: npt.ArrayLike,
        classes: Mapping[str, int],
        *,
        shares: Mapping[str, float],
        batch_size: int,
        seed: int,
        window_s: float | None = None,
        n_ramp: int = 0,
        longest_crop_s: float = 2.0,
    ) -> None:
        self.durations = _checked_durations(durations)
        self.batch_size = batch_size
        self.seed = seed
        self.window_s = window_s
        self.n_ramp = n_ramp
        self.crop_s = longest_crop_s if window_s is None else CROP_MARGIN * window_s
        labels, codes = _gather_unknown(labels, codes, classes, shares)
        classes = {UNKNOWN_LABEL: UNKNOWN_CLASS, **classes}
        self._groups = _Groups(codes)
        present = {str(labels[c]): c for c in self._groups.present if labels[c] is not None}
        present.pop(NOISE_LABEL, None)
        if unlabelled := sum(
            self._groups.size(c) for c in self._groups.present if labels[c] is None
        ):
            log.warning("%d clips have no label and are left out of a keyword task", unlabelled)
        self._codes = present
        self.shares = label_shares(sorted(present), shares)
        self._names = list(self.shares)
        if missing := [name for name in self._names if name not in classes]:
            raise DataError(f"expected a class for every label, got none for {missing[:5]}")
        self._classes = [classes[name] for name in self._names]
        self._cumulated = np.cumsum(list(self.shares.values()))

    def update(self, index: int) -> list[Draw]:
        """Every utterance of update `index`."""
        rng = np.random.default_rng((self.seed, index))
        # Evenly spaced points with one random start: shares hold in every update, not on average.
        points = (rng.random() + rng.permutation(self.batch_size)) / self.batch_size
        labels = np.searchsorted(self._cumulated, points * self._cumulated[-1], side="right")
        strength = ramp(index, self.n_ramp)
        return [
            self._draw(int(label), rng, Draw((), 0, index, position, 0.0, strength))
            for position, label in enumerate(np.minimum(labels, len(self._names) - 1))
        ]

    def again(self, draw: Draw, attempt: int) -> Draw:
        """Another clip of a label of the same class."""
        rng = np.random.default_rng((self.seed, draw.update, draw.position, attempt))
        alike = [i for i, c in enumerate(self._classes) if c == draw.label and self._shared(i)]
        weights = np.array([self.shares[self._names[i]] for i in alike])
        label = alike[int(rng.choice(len(alike), p=weights / weights.sum()))]
        return self._draw(label, rng, draw, attempt)

    def _shared(self, label: int) -> bool:
        return self.shares[self._names[label]] > 0

    def _draw(self, label: int, rng: np.random.Generator, draw: Draw, attempt: int = 0) -> Draw:
        name = self._names[label]
        values: dict[str, Any] = {
            "seed": draw_seed(self.seed, draw.update, draw.position, attempt),
            "label": self._classes[label],
            "window_s": self.window_s,
        }
        if name not in self._codes:  # silence without clips of it
            values["window_s"] = values["seconds"] = self.window_s or self.crop_s
            return replace(draw, rows=(), part=None, **values)
        row = self._groups.any_of(self._codes[name], rng)
        seconds = float(self.durations[row])
        part = None
        if name in (UNKNOWN_LABEL, SILENCE_LABEL) and seconds > self.crop_s:
            part = float(rng.uniform(0.0, seconds - self.crop_s)), self.crop_s
            seconds = self.crop_s
        return replace(draw, rows=(row,), part=part, seconds=self.window_s or seconds, **values)


def _gather_unknown(
    labels: Sequence[str | int | None],
    codes: npt.ArrayLike,
    classes: Mapping[str, int],
    shares: Mapping[str, float],
) -> tuple[list[str | int | None], npt.NDArray[np.int64]]:
    """Labels and codes with all words of the unknown class under one label, ``_unknown_``.

    They share its part, however many they are. Labels that `shares` names, and those that are no
    words, keep their own.
    """
    names, numbers = list(labels), np.asarray(codes, np.int64)
    words = [
        i
        for i, name in enumerate(names)
        if isinstance(name, str)
        and name not in shares
        and not name.startswith("_")
        and classes.get(name) == UNKNOWN_CLASS
    ]
    if words:
        if UNKNOWN_LABEL not in names:
            names.append(UNKNOWN_LABEL)
        numbers = np.where(np.isin(numbers, words), names.index(UNKNOWN_LABEL), numbers)
    return names, numbers


CROP_MARGIN = 1.5  # a crop is longer than the window, for it may be played faster


def label_shares(present: Sequence[str], named: Mapping[str, float]) -> dict[str, float]:
    """Shares of all labels: those named, and equal parts of the rest for the others.

    A label that is named but has no clips is left out, with its share given to all others;
    except silence, which needs none.

    Raises
    ------
    DataError
        Nothing is left to draw.
    """
    shares = {}
    for name, share in named.items():
        if name in present or name == SILENCE_LABEL:
            shares[name] = share
        elif share > 0:
            log.warning("no clip has the label %s; its share goes to the others", name)
    others = [name for name in present if name not in shares]
    rest = max(0.0, 1.0 - sum(named.values()))
    shares |= {name: rest / len(others) for name in others}
    if sum(shares.values()) <= 0 or not any(name in present for name in shares):
        raise DataError(
            f"expected clips of labels with a share above 0, got {dict(named)} and the labels "
            f"{', '.join(present[:8]) or 'none'}"
        )
    return shares


class _Groups:
    """Rows by a small integer, in arrays: 8 bytes a row, no Python object for any of them."""

    def __init__(self, codes: npt.NDArray[np.integer[Any]]) -> None:
        self._code = codes.astype(np.int32, copy=False)
        self._rows = np.argsort(self._code, kind="stable").astype(np.int32)
        counts = np.bincount(self._code)
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        self.present: list[int] = np.flatnonzero(counts).tolist()

    def size(self, code: int) -> int:
        return int(self._ends[code] - self._starts[code])

    def any_of(self, code: int, rng: np.random.Generator) -> int:
        return int(self._rows[rng.integers(self._starts[code], self._ends[code])])

    def like(self, row: int, n: int, rng: np.random.Generator) -> Int32:
        """Draw `n` rows of the same group as `row`."""
        code = self._code[row]
        chosen: Int32 = self._rows[rng.integers(self._starts[code], self._ends[code], size=n)]
        return chosen


def _checked_durations(durations: npt.ArrayLike) -> Float32:
    checked = np.asarray(durations, np.float32)
    if checked.ndim != 1 or not len(checked):
        raise DataError(f"expected at least one training clip, got durations {checked.shape}")
    return checked
