"""Enumeration of every alignment: the slow truth that the fast code is held to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt


def collapse(alignment: Sequence[int], blank: int = 0) -> list[int]:
    """Merge repeats, drop blanks."""
    merged = [token for token, _ in itertools.groupby(alignment)]
    return [token for token in merged if token != blank]


def alignments(
    n_frames: int, vocabulary: int, target: Sequence[int], partial: Sequence[int | None]
) -> Iterator[tuple[int, ...]]:
    """Every alignment that collapses to the target and agrees with the partial one."""
    for path in itertools.product(range(vocabulary), repeat=n_frames):
        agrees = all(p is None or p == token for p, token in zip(partial, path, strict=True))
        if agrees and collapse(path) == list(target):
            yield path


def path_log_prob(
    log_probs: npt.NDArray[np.float64], path: Sequence[int], partial: Sequence[int | None]
) -> float:
    """Sum over the open frames only."""
    return float(
        sum(
            log_probs[t, token]
            for t, (token, p) in enumerate(zip(path, partial, strict=True))
            if p is None
        )
    )
