"""What may be said to a recogniser, and the text that it then makes of a stream of log-probs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Protocol

from ..errors import SpecError
from ..events import Final, Meaning, Partial, Word
from ..imputation import ImputedChunk
from ..specs import ModelSpec, TokenSpec
from ..tokens import WORD_SEPARATOR
from .grammar import meaning, word_graph
from .jsgf import Grammar, parse_jsgf
from .network import Network, spell_out
from .ngram import TokenNgram
from .viterbi import Float32, Unit, Viterbi
from .viterbi import Path as BestPath
from .word_graph import WordGraph, lexicon


class Language(Protocol):
    """What may be said."""

    def network(self, tokens: TokenSpec) -> Network:
        """The network to search, for a model's tokens."""
        ...

    def words(self, units: Sequence[Unit], tokens: TokenSpec) -> list[tuple[str, list[Unit]]]:
        """Words, each with the units that it is made of."""
        ...

    def meaning(self, units: Sequence[Unit]) -> Meaning | None:
        """What they mean, where there is a grammar."""
        ...


@dataclass(frozen=True)
class GraphLanguage:
    """The words of a graph: of a lexicon, or of the grammar that it was written out of."""

    graph: WordGraph
    grammar: Grammar | None = None

    def network(self, tokens: TokenSpec) -> Network:
        """A node a letter."""
        return spell_out(self.graph, tokens)

    def words(self, units: Sequence[Unit], tokens: TokenSpec) -> list[tuple[str, list[Unit]]]:
        """Every unit is a word."""
        return [(self.graph.arcs[unit.output].word, [unit]) for unit in units]

    def meaning(self, units: Sequence[Unit]) -> Meaning | None:
        """Rules and tags of a grammar."""
        if self.grammar is None:
            return None
        return meaning(self.graph, [unit.output for unit in units])


@dataclass(frozen=True)
class NgramLanguage:
    """Any text, with the probabilities of a token n-gram.

    Attributes
    ----------
    ngram : TokenNgram
    weight, token_bonus : float
        As `TokenNgram.network` takes them.
    """

    ngram: TokenNgram
    weight: float = 0.5
    token_bonus: float = 0.0

    def network(self, tokens: TokenSpec) -> Network:
        """A node a history."""
        return self.ngram.network(tokens, weight=self.weight, token_bonus=self.token_bonus)

    def words(self, units: Sequence[Unit], tokens: TokenSpec) -> list[tuple[str, list[Unit]]]:
        """Units are characters; words are what stands between spaces."""
        words: list[tuple[str, list[Unit]]] = [("", [])]
        for unit in units:
            character = tokens.characters[unit.output - 1]
            if character == WORD_SEPARATOR:
                words.append(("", []))
            else:
                text, said = words[-1]
                words[-1] = text + character, [*said, unit]
        return [word for word in words if word[1]]

    def meaning(self, units: Sequence[Unit]) -> Meaning | None:
        """There is none."""
        return None


def of_words(
    words: Iterable[str] | Mapping[str, float], *, word_penalty: float = 0.0
) -> GraphLanguage:
    """Any sequence of these words, see `lexicon`."""
    return GraphLanguage(lexicon(words, word_penalty=word_penalty))


def of_grammar(text: str, *, source: str = "grammar") -> GraphLanguage:
    """What the public rules of a grammar in JSGF say."""
    try:
        grammar = parse_jsgf(text, source=source)
        return GraphLanguage(word_graph(grammar), grammar)
    except RecursionError:
        raise SpecError(f"{source}: its groups are nested too deeply; use fewer") from None


def read_language(path: str | os.PathLike[str]) -> Language:
    """What may be said, from a file, by its ending.

    ``.jsgf`` or ``.gram``: a grammar. ``.arpa``: a token n-gram. ``.txt``: words, one a line, each
    alone or with a tab and how often it is used.

    Raises
    ------
    SpecError
        Another ending, a file that cannot be read, or what it holds is wrong.
    """
    path = Path(path)
    if path.suffix == ".arpa":
        return NgramLanguage(TokenNgram.read_arpa(path))
    if path.suffix not in (".jsgf", ".gram", ".txt"):
        raise SpecError(
            "expected a grammar (.jsgf, .gram), words (.txt) or an n-gram model (.arpa), got "
            f"{path}"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read ({error})") from error
    if path.suffix != ".txt":
        return of_grammar(text, source=str(path))
    return of_words(_listed(text, path))


def _listed(text: str, path: Path) -> list[str] | dict[str, float]:
    """Words, or words with counts, of a file."""
    lines = [line.split("\t") for line in text.splitlines() if line.strip()]
    if all(len(line) == 1 for line in lines):
        return [line[0].strip() for line in lines]
    counts: dict[str, float] = {}
    for line in lines:
        try:
            word, count = line
            if word.strip() in counts:
                raise SpecError(f"{path}: expected every word once, got {word.strip()!r} again")
            counts[word.strip()] = float(count)
        except ValueError:
            raise SpecError(
                f"{path}: expected a word a line, all of them or none with a tab and a count, got "
                f"{' '.join(line)!r}"
            ) from None
    return counts


class SearchedText:
    """The transcript so far by the best path of a language, for `Recognizer`.

    A partial text may change, until the utterance is over: it is the best so far. The confidence of
    a word is ``exp(score / tokens)`` of its path against the free path, as that
    of a keyword; that of a text takes the whole path, so that what was said besides counts too.
    """

    def __init__(self, language: Language, spec: ModelSpec) -> None:
        self._language, self._spec = language, spec
        self._viterbi = Viterbi(language.network(spec.tokens))

    def reset(self) -> None:
        """Start a new utterance."""
        self._viterbi.reset()

    def append(self, chunk: ImputedChunk) -> None:
        """Take the next chunk."""
        self.push(chunk.log_probs)

    def push(self, log_probs: Float32) -> None:
        """Take the next frames' log-probs, float32 (T, V)."""
        self._viterbi.push(log_probs)

    def partial(self) -> Partial:
        """The words that are over on the best path so far."""
        final = self._final(self._viterbi.best())
        return Partial(final.text, final.start_s, final.end_s, final.confidence)

    def final(self) -> Final:
        """The best path that may end here."""
        path = self._viterbi.finish()
        if path is None:
            return Final("", 0.0, 0.0, 0.0, (), self._language.meaning(()))
        return self._final(path)

    def _final(self, path: BestPath) -> Final:
        words = tuple(
            self._word(text, units)
            for text, units in self._language.words(path.units, self._spec.tokens)
        )
        n_tokens = sum(len(word.text) for word in words)
        return Final(
            text=WORD_SEPARATOR.join(word.text for word in words),
            start_s=words[0].start_s if words else 0.0,
            end_s=words[-1].end_s if words else 0.0,
            confidence=exp(path.acoustic / max(1, n_tokens)),
            words=words,
            meaning=self._language.meaning(path.units),
        )

    def _word(self, text: str, units: list[Unit]) -> Word:
        frame_s, score = self._spec.frame_s, 1.0
        for unit in units:
            score *= unit.confidence
        return Word(
            text=text,
            start_s=units[0].start * frame_s,
            end_s=(units[-1].end + 1) * frame_s,
            confidence=score ** (1 / len(units)),
        )
