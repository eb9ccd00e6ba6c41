"""From scores to the clips to label: under a budget of time, each recording once."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import DataError, SpecError

from .diversity import choose_diverse
from .fingerprint import PRINT_BYTES, KnownPrints, Print
from .places import KnownPlaces
from .score_log import Entry
from .score_table import ScoreTable

Rows = npt.NDArray[np.int32]

CANDIDATES = 20_000  # clips that differences are looked for among, at least
CANDIDATE_BUDGETS = 3.0  # or so many times the budget
CENTRES = 2_000  # times that distances are computed anew
BELOW = 20  # clips just below the cut that are shown
_CHUNK = 1024  # entries read at a time


@dataclass(frozen=True)
class Choosing:
    """How clips are chosen.

    Attributes
    ----------
    budget_s : float
        Never exceeded.
    diverse : bool
        By embeddings, see `choose_diverse`; else the highest first.
    weighted : bool
        Whether scores weigh in `choose_diverse`. If not, nothing is ranked: of repeats any stays.
    seed : int
    candidates : int
        Of a diverse choice: clips to choose from, at least. With scores that weigh, those of the
        highest; else any. At least three budgets of time are taken.
    """

    budget_s: float
    diverse: bool = False
    weighted: bool = False
    seed: int = 0
    candidates: int = CANDIDATES

    def check(self) -> None:
        """Raise `SpecError` on a budget of nothing."""
        if not (np.isfinite(self.budget_s) and self.budget_s > 0 and self.candidates > 0):
            raise SpecError(
                f"expected a budget above 0 h and candidates, got {self.budget_s / 3600:g} h and "
                f"{self.candidates}"
            )


@dataclass
class Choice:
    """What was chosen.

    Attributes
    ----------
    rows : int32, (K,)
        Rows of the pool, the first to label first.
    seconds : float
        Of all of them.
    n_scored, scored_s : that there was a score for
    repeats : int32, (R, 2)
        Rows that were left out, and the chosen ones whose recordings they repeat, by sound or by
        their part of the file.
    cut : float
        The lowest score among the chosen.
    below : int32, (M,)
        The best rows that were not chosen, and repeat nothing.
    """

    rows: Rows
    seconds: float = 0.0
    n_scored: int = 0
    scored_s: float = 0.0
    repeats: Rows = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    cut: float = 0.0
    below: Rows = field(default_factory=lambda: np.zeros(0, np.int32))


def choose(table: ScoreTable, how: Choosing) -> Choice:
    """Choose the clips to label.

    Clips of equal scores are taken in the pool's order. One that no longer fits the budget is
    passed over, for a shorter one.

    Raises
    ------
    DataError
        No clip has a score, or none is as short as the budget.
    """
    how.check()
    scored = np.flatnonzero(table.state == 0).astype(np.int32)
    if not len(scored):
        raise DataError("no clip of the pool has a score: there is nothing to choose from")
    walk = _Walk(table)
    if how.diverse:
        rows = _diverse(table, scored, how, walk)
    else:
        rows = np.fromiter(walk.fill(_by_score(table, scored), how.budget_s), np.int32)
    if not len(rows):
        shortest = float(table.seconds[scored].min())
        raise DataError(
            f"no clip fits the budget of {how.budget_s / 3600:g} h; the shortest takes "
            f"{shortest:.1f} s"
        )
    met = walk.repeats()
    repeats = met[np.isin(met[:, 1], rows)]  # not of candidates that were not chosen
    return Choice(
        rows=rows,
        seconds=float(table.seconds[rows].sum(dtype=np.float64)),
        n_scored=len(scored),
        scored_s=float(table.seconds[scored].sum(dtype=np.float64)),
        repeats=repeats,
        cut=float(table.key[rows].min()),
        below=_below(table, scored, rows, repeats),
    )


def _by_score(table: ScoreTable, scored: Rows) -> Rows:
    """Rows from the highest score to the lowest, as they are in the pool where it is equal."""
    falling = table.key[scored]
    np.negative(falling, out=falling)
    order: Rows = scored[np.argsort(falling, kind="stable")]
    return order


class _Walk:
    """Goes through rows and takes every recording once."""

    def __init__(self, table: ScoreTable) -> None:
        self._table = table
        self._known = KnownPrints()
        self._places = KnownPlaces()
        self._row_of = array("i")  # by the number of its fingerprint and its place
        self._repeats = array("i")  # rows by turns, as in `Choice.repeats`

    def repeats(self) -> Rows:
        """Rows that were met and repeat others, (R, 2)."""
        return np.array(self._repeats, np.int32).reshape(-1, 2)

    def fill(self, order: Rows, budget_s: float) -> Iterator[int]:
        """Rows in the order given until the budget is spent."""
        left = budget_s
        seconds = self._table.seconds
        longest = float(seconds[order].max(initial=0.0))
        while len(order):
            if left < longest:
                order = order[seconds[order] <= left]
            chunk, order = order[:_CHUNK], order[_CHUNK:]
            for entry in self._table.entries(chunk):
                if entry.seconds <= left and self._is_new(entry):
                    left -= entry.seconds
                    yield entry.row

    def know(self, rows: Rows) -> None:
        """Take rows that are no repeats."""
        for entry in self._table.entries(rows):
            self._keep(entry, self._print(entry))

    def _is_new(self, entry: Entry) -> bool:
        print_ = self._print(entry)
        known = self._places.find(entry.file, entry.start, entry.seconds)
        if known is None:
            known = self._known.find(print_, entry.seconds)
        if known is None:
            self._keep(entry, print_)
            return True
        self._repeats.extend((entry.row, self._row_of[known]))
        return False

    def _keep(self, entry: Entry, print_: Print) -> None:
        self._known.add(print_, entry.seconds)
        self._places.add(entry.file, entry.start, entry.seconds)
        self._row_of.append(entry.row)

    @staticmethod
    def _print(entry: Entry) -> Print:
        print_ = np.frombuffer(bytes.fromhex(entry.print), np.uint8)
        if len(print_) != PRINT_BYTES:
            raise DataError(
                f"row {entry.row}: expected a fingerprint of {PRINT_BYTES} bytes, got "
                f"{len(print_)}; score the pool anew"
            )
        return print_


def _diverse(table: ScoreTable, scored: Rows, how: Choosing, walk: _Walk) -> Rows:
    """Rows that differ from one another, in the order in which they were chosen."""
    rows = _candidates(table, scored, how, walk)
    seconds = np.fromiter((entry.seconds for entry in table.entries(rows)), np.float64)
    n_wanted = how.budget_s * len(rows) / max(seconds.sum(), 1e-9)
    chosen = choose_diverse(
        table.embeddings(rows),
        np.maximum(table.key[rows], 0) if how.weighted else np.ones(len(rows)),
        seconds,
        how.budget_s,
        how.seed,
        picks=max(1, round(n_wanted / CENTRES)),
    )
    found: Rows = rows[chosen]
    return found


def _candidates(table: ScoreTable, scored: Rows, how: Choosing, walk: _Walk) -> Rows:
    """Rows to look for differences among; what they were drawn from is let go of."""
    if how.weighted:
        order = _by_score(table, scored)
    else:
        order = np.random.default_rng(how.seed).permutation(scored)
    order = order[table.seconds[order] <= how.budget_s]
    wanted_s = CANDIDATE_BUDGETS * how.budget_s
    rows, seconds = array("i"), 0.0
    for row in walk.fill(order, float("inf")):
        rows.append(row)
        seconds += float(table.seconds[row])
        if len(rows) >= how.candidates and seconds >= wanted_s:
            break
    return np.array(rows, np.int32)


def _below(table: ScoreTable, scored: Rows, rows: Rows, repeats: Rows) -> Rows:
    """The best rows that were not chosen and repeat nothing; a few, to listen to."""
    free = np.ones(len(table), bool)
    free[rows] = False
    free[repeats[:, 0]] = False
    walk = _Walk(table)
    walk.know(rows)
    rest = walk.fill(_by_score(table, scored[free[scored]]), float("inf"))
    return np.fromiter(islice(rest, BELOW), np.int32)
