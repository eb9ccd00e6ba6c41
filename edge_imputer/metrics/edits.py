"""Levenshtein distance, for validation during training and wherever only a count is needed.

Evaluation reports align words and characters with jiwer (`edge_imputer.train.evaluation`); the
runtime does not need that library, so that this stays here. Both count the same errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DataError


@dataclass(frozen=True)
class Edits:
    """Least edits that turn references into hypotheses."""

    substitutions: int
    deletions: int
    insertions: int
    n_reference: int

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference token: the word error rate, where tokens are words."""
        if not self.n_reference:
            raise DataError("expected at least one reference token, got none: no error rate exists")
        return self.errors / self.n_reference

    def __add__(self, other: Edits) -> Edits:
        return Edits(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.n_reference + other.n_reference,
        )


def edits(reference: Sequence[object], hypothesis: Sequence[object]) -> Edits:
    """Levenshtein alignment of two sequences.

    Of the alignments with the fewest edits, one with the most substitutions is counted.
    """
    # cost[j] = (errors, deletions + insertions, deletions) of the prefix seen against j tokens
    cost = [(j, j, 0) for j in range(len(hypothesis) + 1)]
    for i, wanted in enumerate(reference, start=1):
        diagonal, cost[0] = cost[0], (i, i, i)
        for j, found in enumerate(hypothesis, start=1):
            up, left = cost[j], cost[j - 1]
            cost[j] = min(
                (diagonal[0] + (wanted != found), diagonal[1], diagonal[2]),
                (up[0] + 1, up[1] + 1, up[2] + 1),
                (left[0] + 1, left[1] + 1, left[2]),
            )
            diagonal = up
    errors, indels, deletions = cost[-1]
    return Edits(errors - indels, deletions, indels - deletions, len(reference))


def edit_distance(reference: Sequence[object], hypothesis: Sequence[object]) -> int:
    """Fewest substitutions, deletions and insertions between two sequences."""
    return edits(reference, hypothesis).errors
