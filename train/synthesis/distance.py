"""How alike two strings of phones sound: an edit distance weighted by articulation.

Substitutions cost what the places, manners and voices of two consonants, or the tongue positions of
two vowels, lie apart, after the idea of Kondrak 2000, "A new algorithm for the alignment of
phonetic sequences"; the weights are our own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .phones import SYMBOLS, Phones

# Place of articulation from the lips (0) to the glottis (1), manner from closed (0) to open (1).
_PLACE = {
    0.0: "p b m w",
    0.1: "f v",
    0.25: "θ ð",
    0.35: "t d s z n l ɹ",
    0.5: "ʃ ʒ tʃ dʒ",
    0.65: "j",
    0.8: "k ɡ ŋ",
    1.0: "h",
}
_MANNER = {
    0.0: "p b t d k ɡ",
    0.2: "tʃ dʒ",
    0.4: "f v θ ð s z ʃ ʒ h",
    0.55: "m n ŋ",
    0.75: "l ɹ",
    0.9: "w j",
}
_VOICED = frozenset("b d ɡ v ð z ʒ dʒ m n ŋ l ɹ w j".split())
_NASAL = frozenset("m n ŋ".split())
# Start and end of vowels: height (0 high), backness (0 front), rounding.
_VOWELS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    name: ((h, b, r), (h2, b2, r2))
    for name, h, b, r, h2, b2, r2 in (
        ("i", 0.0, 0.0, 0, 0.0, 0.0, 0),
        ("ɪ", 0.2, 0.15, 0, 0.2, 0.15, 0),
        ("ɛ", 0.6, 0.1, 0, 0.6, 0.1, 0),
        ("æ", 0.85, 0.1, 0, 0.85, 0.1, 0),
        ("ɑ", 1.0, 0.8, 0, 1.0, 0.8, 0),
        ("ɔ", 0.7, 1.0, 1, 0.7, 1.0, 1),
        ("ʊ", 0.2, 0.85, 1, 0.2, 0.85, 1),
        ("u", 0.0, 1.0, 1, 0.0, 1.0, 1),
        ("ʌ", 0.7, 0.7, 0, 0.7, 0.7, 0),
        ("ə", 0.5, 0.5, 0, 0.5, 0.5, 0),
        ("ɜ", 0.55, 0.5, 0, 0.55, 0.5, 0),
        ("eɪ", 0.4, 0.05, 0, 0.15, 0.1, 0),
        ("aɪ", 0.95, 0.4, 0, 0.2, 0.15, 0),
        ("ɔɪ", 0.65, 1.0, 1, 0.2, 0.15, 0),
        ("aʊ", 0.95, 0.5, 0, 0.2, 0.85, 1),
        ("oʊ", 0.45, 0.95, 1, 0.2, 0.85, 1),
    )
}
VOWELS = frozenset(_VOWELS)
_GLIDES = {("j", "i"): 0.4, ("j", "ɪ"): 0.45, ("w", "u"): 0.4, ("w", "ʊ"): 0.45, ("ɹ", "ɜ"): 0.4}
DIFFERENT = 0.1  # any two phones are at least this far apart
UNLIKE = 1.2  # a consonant and a vowel
DROPPED = 0.7  # a phone that only one of the two has
WEAK = {"ə": 0.45, "ɪ": 0.55, "h": 0.5, "ɹ": 0.55}  # those that are easily missed


def _feature(table: dict[float, str], phone: str) -> float:
    return next(value for value, phones in table.items() if phone in phones.split())


def phone_cost(a: str, b: str) -> float:
    """Cost of hearing phone `b` for phone `a`, 0 to 1.2; symmetric."""
    if a == b:
        return 0.0
    if a in VOWELS and b in VOWELS:
        apart = [
            0.6 * abs(p[0] - q[0]) + 0.35 * abs(p[1] - q[1]) + 0.1 * abs(p[2] - q[2])
            for p, q in zip(_VOWELS[a], _VOWELS[b], strict=True)
        ]
        return DIFFERENT + sum(apart) / 2
    if a in VOWELS or b in VOWELS:
        return _GLIDES.get((a, b), _GLIDES.get((b, a), UNLIKE))
    return min(
        1.0,
        DIFFERENT
        + 0.45 * abs(_feature(_PLACE, a) - _feature(_PLACE, b))
        + 0.5 * abs(_feature(_MANNER, a) - _feature(_MANNER, b))
        + 0.2 * ((a in _VOICED) != (b in _VOICED))
        + 0.2 * ((a in _NASAL) != (b in _NASAL)),
    )


@functools.cache
def _costs() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], dict[str, int]]:
    """Substitutions (n + 1, n + 1), drops (n + 1,), and the number of each phone; n is padding."""
    n = len(SYMBOLS)
    substitute = np.zeros((n + 1, n + 1))
    substitute[:n, :n] = [[phone_cost(a, b) for b in SYMBOLS] for a in SYMBOLS]
    drop = np.array([*(WEAK.get(phone, DROPPED) for phone in SYMBOLS), 0.0])
    return substitute, drop, {phone: i for i, phone in enumerate(SYMBOLS)}


def edit_costs(target: Phones, others: Sequence[Phones]) -> npt.NDArray[np.float64]:
    """Cost of turning `target` into each of `others`, (n,), in units of a phone.

    The dynamic programme of Wagner and Fischer 1974, over all of `others` at once.
    """
    substitute, drop, number = _costs()
    longest = max((len(other) for other in others), default=0)
    padding = len(SYMBOLS)
    words = np.full((len(others), longest), padding)
    for row, other in zip(words, others, strict=True):
        row[: len(other)] = [number[phone] for phone in other]
    # best[:, j]: cheapest way from the target read so far to the first j phones; padding is free.
    best = np.concatenate([np.zeros((len(others), 1)), np.cumsum(drop[words], axis=1)], axis=1)
    for phone in (number[p] for p in target):
        row = np.empty_like(best)
        row[:, 0] = best[:, 0] + drop[phone]
        stay = best[:, 1:] + drop[phone]
        pair = best[:, :-1] + substitute[phone, words]
        # Nothing of the target is heard as padding: its column repeats the one before.
        pair[words == padding] = np.inf
        cheapest = np.minimum(stay, pair)
        for j in range(longest):
            row[:, j + 1] = np.minimum(cheapest[:, j], row[:, j] + drop[words[:, j]])
        best = row
    result: npt.NDArray[np.float64] = best[:, -1]
    return result


def distances(target: Phones, others: Sequence[Phones]) -> npt.NDArray[np.float64]:
    """`edit_costs` a phone of the target, (n,): 0 sounds the same, about 0.6 is unrelated."""
    return edit_costs(target, others) / max(1, len(target))
