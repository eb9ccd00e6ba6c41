"""Clips that teach something and differ: greedy k-means++ seeding under a budget of seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import SpecError

Array = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

CHUNK = 65_536  # rows read at a time


def choose_diverse(
    embeddings: Array,
    weights: npt.ArrayLike,
    durations: npt.ArrayLike,
    budget_s: float,
    seed: int,
    *,
    picks: int = 1,
) -> npt.NDArray[np.int64]:
    """Choose clips one after another, each far from those before (Arthur and Vassilvitskii 2007).

    The next clip is drawn with a probability in proportion to ``weight * D^2``, D its distance from
    the nearest one that is chosen; the first by ``weight * ||embedding||^2``, as if a clip at the
    origin, which would teach nothing, had been chosen already (Ash et al. 2020, BADGE,
    arXiv:1906.03671, begin with the largest). Clips that no longer fit the budget are not drawn.
    Once all have distance 0, the rest is drawn by weight: doubles come last, and after them what
    weighs nothing.

    Parameters
    ----------
    embeddings : (N, D)
        May be a memory map: rows are read in chunks, once for every `picks` clips.
    weights : (N,)
        Not negative; 0: last.
    durations : (N,)
        Seconds, positive.
    budget_s : float
        Never exceeded.
    seed : int
    picks : int
        Clips drawn before distances are computed anew, for very large pools; 1 is k-means++.

    Returns
    -------
    chosen : int64, (K,)
        Rows, in the order in which they were chosen.

    Raises
    ------
    SpecError
        Shapes that differ, or numbers that are not as described.
    """
    weight, seconds = np.asarray(weights, np.float64), np.asarray(durations, np.float64)
    _check(embeddings, weight, seconds, budget_s, picks)
    rng = np.random.default_rng(seed)
    norms = _squared_norms(embeddings)
    if not np.isfinite(norms).all():
        raise SpecError(
            "expected finite embeddings; clips without a score have none, leave them out"
        )
    distances = norms.copy()
    free = np.ones(len(weight), bool)
    chosen: list[int] = []
    left = float(budget_s)
    while True:
        free &= seconds <= left
        drawn = _draw((weight * distances * free, weight * free, free), picks, rng)
        taken = []
        for row in drawn:
            if seconds[row] <= left:
                taken.append(row)
                left -= seconds[row]
        if not taken:
            return np.array(chosen, np.int64)
        chosen += taken
        free[taken] = False
        _approach(distances, embeddings, norms, taken)


def _draw(masses: Sequence[npt.NDArray[Any]], n: int, rng: np.random.Generator) -> list[int]:
    """Up to n different rows in proportion to their mass, by the first that is not 0 everywhere."""
    for mass in masses:
        total = np.cumsum(mass)
        if len(total) and total[-1] > 0:
            places = np.searchsorted(total, rng.random(n) * total[-1], side="right")
            return list(dict.fromkeys(places.tolist()))
    return []


def _approach(
    distances: Float64,
    embeddings: Array,
    norms: Float64,
    new: list[int],
) -> None:
    """Lower squared distances (N,) to those from the nearest of the new rows."""
    centres = np.asarray(embeddings[new], np.float32)
    for start in range(0, len(distances), CHUNK):
        part = slice(start, start + CHUNK)
        near = norms[part, None] + norms[new] - 2.0 * (embeddings[part] @ centres.T)
        near[near < 1e-5 * norms[part, None]] = 0.0  # what rounding leaves of a double
        np.minimum(distances[part], near.min(1), out=distances[part])


def _squared_norms(embeddings: Array) -> Float64:
    norms = np.empty(len(embeddings))
    for start in range(0, len(norms), CHUNK):
        rows = np.asarray(embeddings[start : start + CHUNK], np.float32)
        norms[start : start + CHUNK] = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    return norms


def _check(
    embeddings: Array,
    weights: Float64,
    durations: Float64,
    budget_s: float,
    picks: int,
) -> None:
    n = len(embeddings)
    if embeddings.ndim != 2 or weights.shape != (n,) or durations.shape != (n,):
        raise SpecError(
            "expected embeddings (N, D) with N weights and durations, got "
            f"{embeddings.shape}, {weights.shape} and {durations.shape}"
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise SpecError("weights: expected finite numbers that are not negative")
    if not (np.isfinite(durations).all() and (durations > 0).all()):
        raise SpecError("durations: expected finite seconds above 0")
    if not budget_s >= 0 or picks < 1:
        raise SpecError(
            f"expected a budget of 0 s or more and 1 pick or more, got {budget_s} and {picks}"
        )
