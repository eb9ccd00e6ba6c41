"""Word and character error rates, their intervals, and which errors they are made of.

Alignments are jiwer's. Only training and evaluation need it: a device counts no errors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import jiwer
import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.errors import DataError
from edge_imputer.measured import Interval
from edge_imputer.metrics import (
    Edits,
    PairedDifference,
    bootstrap_ratio,
    clopper_pearson,
    paired_difference,
    poisson_interval,
)

N_RESAMPLES = 1000

Operation = Literal["substitution", "deletion", "insertion"]


@dataclass(frozen=True)
class Alignment:
    """One utterance's tokens side by side; None where a token was left out or put in."""

    pairs: tuple[tuple[str | None, str | None], ...]  # (reference, hypothesis)

    @property
    def edits(self) -> Edits:
        """How many errors of each kind."""
        kinds = Counter(map(_kind, self.pairs))
        said = sum(wanted is not None for wanted, _ in self.pairs)
        return Edits(kinds["substitution"], kinds["deletion"], kinds["insertion"], said)

    def lines(self) -> tuple[str, str]:
        """Reference and hypothesis under each other, with stars where one has nothing."""
        above, below = [], []
        for wanted, found in self.pairs:
            width = max(len(wanted or ""), len(found or ""))
            same = wanted == found
            above.append((wanted or "*" * width).ljust(width))
            below.append((found or "*" * width) if same else (found or "*" * width).upper())
            below[-1] = below[-1].ljust(width)
        return " ".join(above).rstrip(), " ".join(below).rstrip()


@dataclass(frozen=True)
class Errors:
    """Errors of every utterance of a set.

    Attributes
    ----------
    alignments : one an utterance
    counts, sizes : float64, (N,)
        Errors and reference tokens of each.
    """

    alignments: tuple[Alignment, ...]
    counts: npt.NDArray[np.float64]
    sizes: npt.NDArray[np.float64]

    @property
    def total(self) -> Edits:
        """Edits of the whole set."""
        return sum((one.edits for one in self.alignments), Edits(0, 0, 0, 0))

    def interval(self, *, seed: int = 0, blocks: Sequence[str] | None = None) -> Interval:
        """All errors over all reference tokens, with its interval, see `ratio_interval`.

        Parameters
        ----------
        seed : int
        blocks : sequence of str, optional
            One name an utterance, such as its speaker: blocks are resampled instead.

        Raises
        ------
        DataError
            No reference token at all.
        """
        return ratio_interval(self.counts, self.sizes, seed=seed, blocks=blocks)

    def compare(self, other: Errors, *, seed: int = 0) -> PairedDifference:
        """This rate minus that of another system on the same utterances, paired bootstrap."""
        if not np.array_equal(self.sizes, other.sizes):
            raise DataError("expected two systems on the same utterances in the same order")
        return paired_difference(
            self.counts, other.counts, self.sizes, n_resamples=N_RESAMPLES, seed=seed
        )

    def frequent(self, n: int = 15) -> list[tuple[Operation, str, str, int]]:
        """The most frequent errors: kind, reference, hypothesis, count; in a stable order."""
        found = Counter(
            (kind, wanted or "", heard or "")
            for one in self.alignments
            for wanted, heard in one.pairs
            if (kind := _kind((wanted, heard))) is not None
        )
        ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
        return [(*error, count) for error, count in ordered[:n]]


def ratio_interval(
    counts: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.float64],
    *,
    seed: int = 0,
    blocks: Sequence[str] | None = None,
) -> Interval:
    """Sum of `counts` over sum of `sizes`, (N,) each, with a 95 % bootstrap interval.

    Where all that is resampled has one rate (no error at all, every clip wrong, one clip) a
    bootstrap would be sure of it. The interval is then exact, tokens taken as independent: Clopper
    and Pearson's, or Poisson's of more counts than tokens.

    Parameters
    ----------
    counts, sizes : float64, (N,)
        Whole numbers, or halves (`sizes`; n is then rounded up), of each utterance.
    seed : int
    blocks : sequence of str, optional
        One name an utterance: blocks are resampled instead.

    Raises
    ------
    DataError
        The sizes sum to nothing.
    """
    n = ceil(sizes.sum())
    if n and _has_one_rate(counts, sizes, blocks):
        total = int(counts.sum())
        exact = clopper_pearson(total, n) if total <= n else poisson_interval(total, n)
        return msgspec.structs.replace(exact, value=float(counts.sum() / sizes.sum()))
    return bootstrap_ratio(counts, sizes, n=n, n_resamples=N_RESAMPLES, seed=seed, blocks=blocks)


def _has_one_rate(
    counts: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64], blocks: Sequence[str] | None
) -> bool:
    if blocks is not None:
        index = np.unique(np.asarray(blocks), return_inverse=True)[1]
        counts = np.bincount(index, counts).astype(np.float64)
        sizes = np.bincount(index, sizes).astype(np.float64)
    # Products of whole numbers and halves: exact, which quotients are not.
    return bool((counts * sizes.sum() == sizes * counts.sum()).all())


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Align words, split at white space.

    Raises
    ------
    DataError
        Not one hypothesis a reference.
    """
    return _errors(
        [text.split() for text in references], [text.split() for text in hypotheses], words=True
    )


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Align characters, white space as single spaces, which count as characters.

    Raises
    ------
    DataError
        Not one hypothesis a reference.
    """
    return _errors(
        [list(" ".join(text.split())) for text in references],
        [list(" ".join(text.split())) for text in hypotheses],
        words=False,
    )


def _errors(
    references: Sequence[list[str]], hypotheses: Sequence[list[str]], *, words: bool
) -> Errors:
    if len(references) != len(hypotheses):
        raise DataError(
            f"expected one hypothesis a reference, got {len(references)} references and "
            f"{len(hypotheses)} hypotheses"
        )
    alignments = tuple(
        _align(wanted, found, words=words)
        for wanted, found in zip(references, hypotheses, strict=True)
    )
    edits = [one.edits for one in alignments]
    return Errors(
        alignments,
        np.array([e.errors for e in edits], np.float64),
        np.array([e.n_reference for e in edits], np.float64),
    )


def _align(reference: list[str], hypothesis: list[str], *, words: bool) -> Alignment:
    if words:
        output: jiwer.WordOutput | jiwer.CharacterOutput = jiwer.process_words(
            " ".join(reference), " ".join(hypothesis)
        )
    else:
        output = jiwer.process_characters("".join(reference), "".join(hypothesis))
    pairs: list[tuple[str | None, str | None]] = []
    for chunk in output.alignments[0]:
        wanted: list[str | None] = list(reference[chunk.ref_start_idx : chunk.ref_end_idx])
        found: list[str | None] = list(hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx])
        width = max(len(wanted), len(found))
        pairs += zip(
            wanted + [None] * (width - len(wanted)),
            found + [None] * (width - len(found)),
            strict=True,
        )
    return Alignment(tuple(pairs))


def _kind(pair: tuple[str | None, str | None]) -> Operation | None:
    wanted, found = pair
    if wanted == found:
        return None
    if wanted is None:
        return "insertion"
    return "deletion" if found is None else "substitution"
