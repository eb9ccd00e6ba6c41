"""Viterbi over a network, frame by frame: exact, without a beam (token passing, Young et al. 1989).

Every node has two states, its token and the blanks after it (the CTC topology, Graves et al. 2006).
A state keeps its best path as a score and a link to the last unit that was over on it; links form a
tree, so what a stream costs in memory grows with what was said, not with its frames. Scores are
relative to the free path, which takes every frame's best token: 0 is as good as that, as
`edge_imputer.keywords` has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

import numpy as np
import numpy.typing as npt

from .network import NOTHING, START, Bool, Float64, Int64, Network

Float32 = npt.NDArray[np.float32]

MOST_LINKS = 4096  # at least, until those that no path needs are forgotten


@dataclass(frozen=True)
class Unit:
    """A word, or a token, on the best path.

    Attributes
    ----------
    output : int
        Which one, of the network's units.
    start, end : int
        Frames of its first and of its last token.
    confidence : float
        ``exp(score / tokens)``, in (0, 1]: 1 where the free path says the same.
    """

    output: int
    start: int
    end: int
    confidence: float


@dataclass(frozen=True)
class Path:
    """The best path so far, or to the end.

    Attributes
    ----------
    units : tuple of Unit
    score : float
        Of the whole path, weights included.
    acoustic : float
        Without weights: log p(path) - log p(free path), at most 0.
    """

    units: tuple[Unit, ...]
    score: float
    acoustic: float


class Viterbi:
    """Best path through a network for a stream of log-probs.

    Parameters
    ----------
    network : Network
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        n = len(network.label)
        self._n = n
        label, source, target = network.label, network.source, network.target
        self._must_pause = label[source] == label[target]  # (A,): a blank stands between
        self._first_arc = np.flatnonzero(np.r_[True, target[1:] != target[:-1]][: len(target)])
        self._entered = target[self._first_arc]  # (E,) nodes with ways into them, ascending
        self._group = np.repeat(
            np.arange(len(self._entered)), np.diff(np.r_[self._first_arc, len(target)])
        )  # (A,): which of them an arc leads to
        self._here = np.arange(n)
        self.reset()

    def reset(self) -> None:
        """Start a new utterance."""
        # Row 0: at the node's token; row 1: at blanks after it.
        self._score = np.full(2 * self._n, -np.inf)
        self._score[self._n + START] = 0.0
        self._acoustic = np.zeros(2 * self._n)
        self._base = np.zeros(2 * self._n)  # acoustic score before the unit that is under way
        self._start = np.zeros(2 * self._n, np.int64)
        self._end = np.zeros(2 * self._n, np.int64)
        self._link = np.full(2 * self._n, NOTHING)
        self._links = _Links()
        self._limit = MOST_LINKS
        self.n_frames = 0

    def push(self, log_probs: Float32) -> None:
        """Take the next frames' log-probs, float32 (T, V); T may be 0."""
        relative = log_probs.astype(np.float64)
        relative -= relative.max(axis=1, keepdims=True, initial=-np.inf)
        for row in relative:
            self._frame(row)
        if len(self._links) > self._limit:
            self._link = self._links.keep(self._link)
            self._limit = max(MOST_LINKS, 2 * len(self._links))  # forgetting costs what is kept

    def _frame(self, row: Float64) -> None:
        net, n, at = self.network, self._n, self._here
        token, blank = self._score[:n], self._score[n:]
        after_token = token > blank
        best = np.where(after_token, token, blank)
        came_from = np.concatenate([at, np.where(after_token, at, n + at)])  # (2 N,)
        scores = np.concatenate([token, best])
        enters, arc = self._best_ways(blank, best)
        better = enters > token[self._entered]
        nodes, arcs = self._entered[better], arc[better]
        source = net.source[arcs]
        from_token = after_token[source] & ~self._must_pause[arcs]
        came_from[nodes] = np.where(from_token, source, n + source)
        scores[nodes] = enters[better]
        self._move(came_from, nodes, arcs)
        said = np.concatenate([row[net.label], np.full(n, row[net.blank_id])])
        said[START] = -np.inf  # the start has no token of its own
        self._score = scores + said
        self._acoustic += said
        self._end[:n] = self.n_frames
        self.n_frames += 1

    def _best_ways(self, blank: Float64, best: Float64) -> tuple[Float64, Int64]:
        """The best way into every node that has one: its score and arc, (E,) each."""
        net = self.network
        ways = np.where(self._must_pause, blank[net.source], best[net.source]) + net.weight
        if not len(ways):
            return ways, net.source
        enters = np.maximum.reduceat(ways, self._first_arc)
        hits = np.flatnonzero(ways == enters[self._group])[::-1]
        arc = self._first_arc.copy()
        arc[self._group[hits]] = hits  # the first of equals is written last
        return enters, arc

    def _move(self, came_from: Int64, nodes: Int64, arcs: Int64) -> None:
        """Every state takes over what it came from; units that are over become links."""
        net = self.network
        for name in ("_acoustic", "_base", "_start", "_end", "_link"):
            setattr(self, name, getattr(self, name)[came_from])
        over = net.output[arcs] != NOTHING
        ended = nodes[over]
        self._link[ended] = self._links.add(
            self._link[ended],
            net.output[arcs[over]],
            self._start[ended],
            self._end[ended],
            self._acoustic[ended] - self._base[ended],
        )
        begun = nodes[net.begins[nodes]]
        self._start[begun] = self.n_frames
        self._base[begun] = self._acoustic[begun]

    def best(self) -> Path:
        """The best path so far, of the units that are over on it."""
        return self._path(int(self._score.argmax()), 0.0, NOTHING)

    def finish(self) -> Path | None:
        """The best path that may end here; None if there is none, for too few frames."""
        ends = self._score + np.tile(self.network.final, 2)
        state = int(ends.argmax())
        if ends[state] == -np.inf:
            return None
        node = state % self._n
        return self._path(
            state, float(self.network.final[node]), int(self.network.final_output[node])
        )

    def _path(self, state: int, weight: float, output: int) -> Path:
        units = self._links.trace(int(self._link[state]))
        if output != NOTHING:
            score = float(self._acoustic[state] - self._base[state])
            units.append((output, int(self._start[state]), int(self._end[state]), score))
        return Path(
            tuple(
                Unit(number, start, end, exp(score / int(self.network.n_tokens[number])))
                for number, start, end, score in units
            ),
            float(self._score[state]) + weight,
            float(self._acoustic[state]),
        )


class _Links:
    """A tree of units that are over, leaves to root: each knows the one before it."""

    def __init__(self) -> None:
        self._table = np.empty((4, 64), np.int64)  # before, output, start, end
        self._scores = np.empty(64)
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def add(self, before: Int64, output: Int64, start: Int64, end: Int64, score: Float64) -> Int64:
        """New links; their numbers."""
        n = len(before)
        while self._n + n > len(self._scores):
            self._table = np.concatenate([self._table, np.empty_like(self._table)], 1)
            self._scores = np.concatenate([self._scores, np.empty_like(self._scores)])
        new = np.arange(self._n, self._n + n)
        self._table[:, new] = before, output, start, end
        self._scores[new] = score
        self._n += n
        return new

    def trace(self, link: int) -> list[tuple[int, int, int, float]]:
        """(output, start, end, score) of all units up to a link, in order."""
        units = []
        while link != NOTHING:
            before, output, start, end = self._table[:, link].tolist()
            units.append((output, start, end, float(self._scores[link])))
            link = before
        return units[::-1]

    def keep(self, ends: Int64) -> Int64:
        """Forget what leads to none of these links; what their numbers are then."""
        wanted: Bool = np.zeros(self._n, np.bool_)
        reached = np.unique(ends[ends != NOTHING])
        while len(reached):
            wanted[reached] = True
            before = self._table[0, reached]
            before = np.unique(before[before != NOTHING])
            reached = before[~wanted[before]]
        number = np.append(np.cumsum(wanted) - 1, NOTHING)  # of NOTHING: NOTHING
        kept = np.flatnonzero(wanted)
        self._table[:, : len(kept)] = self._table[:, kept]
        self._scores[: len(kept)] = self._scores[kept]
        self._n = len(kept)
        self._table[0, : self._n] = number[self._table[0, : self._n]]
        result: Int64 = number[ends]
        return result
