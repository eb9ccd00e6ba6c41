"""What may be said: a graph of words, from a start to its ends.

A lexicon is one state with a loop for every word; a grammar (see `grammar`) has more states. What a
word means rides on its arc, as `Marker` values.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite, log
from typing import Literal

from ..errors import SpecError


@dataclass(frozen=True)
class Marker:
    """Something met between two words: where a rule begins or ends, or a tag.

    Attributes
    ----------
    kind : {"begin", "end", "tag"}
    text : str
        The rule's name, or the tag.
    """

    kind: Literal["begin", "end", "tag"]
    text: str


@dataclass(frozen=True)
class Arc:
    """One word from state to state.

    Attributes
    ----------
    source, target : int
    word : str
    weight : float
        Natural logarithm, added to a path's score; 0 costs nothing.
    markers : tuple of Marker
        What stands before the word.
    """

    source: int
    word: str
    target: int
    weight: float = 0.0
    markers: tuple[Marker, ...] = ()


@dataclass(frozen=True)
class WordGraph:
    """Arcs of words over states; state 0 is the start.

    Attributes
    ----------
    arcs : tuple of Arc
    finals : mapping from state to (weight, markers)
        Where an utterance may end, and what stands after its last word.
    """

    arcs: tuple[Arc, ...]
    finals: Mapping[int, tuple[float, tuple[Marker, ...]]] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """Every word there is, once, in the order of first use."""
        return tuple(dict.fromkeys(arc.word for arc in self.arcs))

    @property
    def rules(self) -> tuple[str, ...]:
        """Every rule of a grammar that words were written out of, once; none of a lexicon."""
        markers = [m for arc in self.arcs for m in arc.markers]
        markers += [m for _, at_end in self.finals.values() for m in at_end]
        return tuple(dict.fromkeys(m.text for m in markers if m.kind == "begin"))

    def path(self, text: str) -> tuple[int, ...] | None:
        """Numbers of the arcs that say a text, split at white space; None if no way does.

        Of several ways that with the best weight, of equals the first.
        """
        ways: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
        for word in unicodedata.normalize("NFC", text).split():
            further: dict[int, tuple[float, tuple[int, ...]]] = {}
            for number, arc in enumerate(self.arcs):
                if arc.word != word or arc.source not in ways:
                    continue
                weight, way = ways[arc.source]
                weight += arc.weight
                if arc.target not in further or weight > further[arc.target][0]:
                    further[arc.target] = weight, (*way, number)
            ways = further
        ended = [
            (ways[state][0] + weight, ways[state][1])
            for state, (weight, _) in self.finals.items()
            if state in ways
        ]
        return max(ended, key=lambda end: end[0])[1] if ended else None

    def says(self, text: str) -> bool:
        """Whether some way through the graph says a text, split at white space."""
        return self.path(text) is not None


def lexicon(words: Iterable[str] | Mapping[str, float], *, word_penalty: float = 0.0) -> WordGraph:
    """Any sequence of the words, or none of them.

    Parameters
    ----------
    words : words, or a mapping from word to how often it is used
        Counts, of any sum: a word of share p costs ``-log p``. Without counts words cost nothing.
    word_penalty : float
        What every word costs besides: larger values give fewer, longer words.

    Raises
    ------
    SpecError
        No word, an empty one, one with a space, or one twice; a count that is not positive.
    """
    if isinstance(words, Mapping):
        words = {unicodedata.normalize("NFC", word): count for word, count in words.items()}
    else:
        words = [unicodedata.normalize("NFC", word) for word in words]
    listed = list(words)
    spaced = [word for word in listed if not word or word != "".join(word.split())]
    if not listed or spaced or len(set(listed)) != len(listed):
        raise SpecError(
            "expected distinct words, at least one, none empty or with a space in it, got "
            f"{_some(spaced or _repeated(listed))}; phrases belong in a grammar"
        )
    weights = dict.fromkeys(listed, 0.0)
    if isinstance(words, Mapping):
        if bad := [word for word, count in words.items() if not (isfinite(count) and count > 0)]:
            raise SpecError(f"expected counts above 0, got those of {_some(bad)}")
        total = sum(words.values())
        weights = {word: log(count / total) for word, count in words.items()}
    arcs = (Arc(0, word, 0, weight - word_penalty) for word, weight in weights.items())
    return WordGraph(tuple(arcs), {0: (0.0, ())})


def _repeated(words: list[str]) -> list[str]:
    return [word for word in dict.fromkeys(words) if words.count(word) > 1]


def _some(words: list[str]) -> str:
    return f"{', '.join(map(repr, words[:5]))}{' ...' if len(words) > 5 else ''}" or "none"
