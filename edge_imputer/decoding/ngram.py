"""A model of which token follows which: token n-grams, for speech that no lexicon covers.

Witten-Bell interpolation (Witten and Bell 1991; Chen and Goodman 1998, section 2.5): after a
history h, with n(h) tokens seen of t(h) kinds,

    p(c | h) = (count(h c) + t(h) p(c | shorter h)) / (n(h) + t(h))

and every token equally likely where there is no history left: of those in the texts, or of an
alphabet that has more. Saved and read in the ARPA format of the language modelling toolkits, where
the space is ``<space>`` and ``<unk>`` stands for every token that the texts lack.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import SpecError
from ..files import write_atomically
from ..specs import TokenSpec
from ..tokens import WORD_SEPARATOR, Tokenizer
from .network import START, Network, NetworkBuilder

BEGIN, END, SPACE, UNKNOWN = "<s>", "</s>", "<space>", "<unk>"
LARGEST = 100_000  # arcs of a network: 10 ms a frame or so

Gram = tuple[str, ...]


class TokenNgram:
    """Log-probabilities of a token after those before it.

    Parameters
    ----------
    order : int
        Tokens of the longest history, and one.
    log_probs : mapping from n-gram to natural logarithm
        For every history that is known, those of all tokens need not be there.
    backoffs : mapping from history to natural logarithm
        What a token that is not costs besides its probability after a history shorter by one.
    unseen : characters that are `UNKNOWN` in these tables
        They share its probability equally. See `covering`.

    Attributes
    ----------
    tokens : tuple of str
        Everything that may follow, `END` among them.
    """

    def __init__(
        self,
        order: int,
        log_probs: dict[Gram, float],
        backoffs: dict[Gram, float],
        unseen: Iterable[str] = (),
    ) -> None:
        self.order, self._log_probs, self._backoffs = order, log_probs, backoffs
        self._unseen = frozenset(unseen)
        known = [gram[0] for gram in log_probs if len(gram) == 1]
        self.tokens = (*(t for t in known if t not in (BEGIN, UNKNOWN)), *sorted(self._unseen))

    @classmethod
    def train(
        cls, texts: Iterable[str], *, order: int = 3, alphabet: Iterable[str] = ()
    ) -> TokenNgram:
        """Count the tokens of transcripts.

        Parameters
        ----------
        texts : iterable of str
        order : int
            Ordinary text has few enough histories of 3 tokens for a search; of 4 only little text.
        alphabet : iterable of characters
            What may be said besides what the texts have, such as ``spec.tokens.characters``: a
            character that they lack has its share of the equally likely tokens.

        Raises
        ------
        SpecError
            No text, an order below 1, or an alphabet of something else than characters.
        """
        characters = set(alphabet)
        strange = sorted(character for character in characters if len(character) != 1)
        if strange:
            raise SpecError(f"expected an alphabet of single characters, got {strange[0]!r}")
        if order < 1:
            raise SpecError(f"expected an order of at least 1, got {order}")
        following: defaultdict[Gram, Counter[str]] = defaultdict(Counter)
        for text in texts:
            said = [BEGIN, *unicodedata.normalize("NFC", text), END]
            for at in range(1, len(said)):
                for length in range(min(order - 1, at) + 1):
                    following[tuple(said[at - length : at])][said[at]] += 1
        if not following:
            raise SpecError("expected texts to count tokens in, got none")
        tokens = sorted({*following[()], *characters})
        probabilities: dict[Gram, float] = {}
        backoffs: dict[Gram, float] = {}
        for history in sorted(following, key=len):
            counts = following[history]
            kinds, total = len(counts), sum(counts.values())
            for token in tokens if not history else sorted(counts):
                gram = (*history, token)
                lower = probabilities[gram[1:]] if history else 1 / len(tokens)
                probabilities[gram] = (counts[token] + kinds * lower) / (total + kinds)
            if history:
                backoffs[history] = math.log(kinds / (total + kinds))
        return cls(order, {gram: math.log(p) for gram, p in probabilities.items()}, backoffs)

    def log_prob(self, token: str, history: Sequence[str]) -> float:
        """Natural logarithm of a token's probability after others, of which the last ones count.

        Raises
        ------
        SpecError
            The model does not know the token.
        """
        known = self._last(history)
        name = self._name(token)
        if (name,) not in self._log_probs:
            some = ", ".join(map(repr, self.tokens[:10]))
            raise SpecError(
                f"expected one of the model's {len(self.tokens)} tokens ({some} ...), "
                f"got {token!r}: "
                "it must know every character of the recogniser; train it with "
                "TokenNgram.train(texts, alphabet=...), or with <unk> (a model of words is none)"
            )
        cost = -math.log(len(self._unseen)) if name is not token else 0.0
        gram = (*known, name)
        while gram not in self._log_probs:
            cost += self._backoffs.get(gram[:-1], 0.0)
            gram = gram[1:]
        return cost + self._log_probs[gram]

    def score(self, text: str) -> float:
        """Natural logarithm of a whole text's probability."""
        said = [BEGIN, *text, END]
        return sum(self.log_prob(said[at], said[:at]) for at in range(1, len(said)))

    def history(self, tokens: Sequence[str]) -> Gram:
        """The longest end of these tokens that tells anything about what follows."""
        known = self._last(tokens)
        while known and known not in self._backoffs:
            known = known[1:]
        return known

    def covering(self, characters: Iterable[str]) -> TokenNgram:
        """The same model for these characters too, where it has `UNKNOWN` for what it never saw.

        Those that it lacks share the probability of that equally, and are alike as histories. A
        model without it, or of words, is given back as it is: it does not know them.
        """
        known = {token for token in self.tokens if token != END}
        missing = set(characters) - known
        if not missing or (UNKNOWN,) not in self._log_probs or any(len(t) > 1 for t in known):
            return self
        unseen = self._unseen | missing
        return TokenNgram(self.order, self._log_probs, self._backoffs, unseen)

    def _name(self, token: str) -> str:
        """What the tables call a token."""
        return UNKNOWN if token in self._unseen else token

    def _last(self, tokens: Sequence[str]) -> Gram:
        """Those of the tokens before that can tell anything, by the tables' names."""
        last = tuple(tokens)[-(self.order - 1) :] if self.order > 1 else ()
        return tuple(self._name(token) for token in last)

    def write_arpa(self, path: str | os.PathLike[str]) -> None:
        """Write the model in the ARPA format, with base-10 logarithms of seven digits."""
        grams = {(BEGIN,): -99 * math.log(10), **self._log_probs}
        lengths = range(1, self.order + 1)
        by_length = {n: [gram for gram in grams if len(gram) == n] for n in lengths}
        lines = ["\\data\\", *(f"ngram {n}={len(by_length[n])}" for n in lengths)]
        for n in lengths:
            lines += ["", f"\\{n}-grams:"]
            for gram in by_length[n]:
                words = " ".join(SPACE if token == WORD_SEPARATOR else token for token in gram)
                line = f"{grams[gram] / math.log(10):.7f}\t{words}"
                if gram in self._backoffs:
                    line += f"\t{self._backoffs[gram] / math.log(10):.7f}"
                lines.append(line)
        write_atomically(Path(path), ("\n".join([*lines, "", "\\end\\", ""])).encode())

    @classmethod
    def read_arpa(cls, path: str | os.PathLike[str]) -> TokenNgram:
        """Read a model in the ARPA format.

        Raises
        ------
        SpecError
            The file is no such model; says the line.
        """
        log_probs: dict[Gram, float] = {}
        backoffs: dict[Gram, float] = {}
        n = 0
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"{path}: cannot be read as an ARPA model ({error})") from error
        for number, line in enumerate(text.split("\n"), 1):
            if line.startswith("\\") and line.endswith("-grams:"):
                n = _length(line, f"{path}, line {number}")
            elif line.startswith("\\end\\"):
                break
            elif n and line.strip():
                _read_gram(line, n, f"{path}, line {number}", log_probs, backoffs)
        if not log_probs:
            raise SpecError(f"{path}: expected n-grams in the ARPA format, got none")
        log_probs.pop((BEGIN,), None)
        return cls(n, log_probs, backoffs)

    def network(
        self, tokens: TokenSpec, *, weight: float = 1.0, token_bonus: float = 0.0
    ) -> Network:
        """The network of all texts, a node a history; its units are token ids.

        Parameters
        ----------
        tokens : TokenSpec
            All of its characters must be known to the model, or it must have `UNKNOWN`.
        weight : float
            What the model's log-probabilities are multiplied by.
        token_bonus : float
            What every token is worth besides: larger values give longer texts.

        Raises
        ------
        SpecError
            A character is unknown, or there are too many histories.
        """
        model = self.covering(tokens.characters)
        ids = {character: Tokenizer(tokens).encode(character)[0] for character in tokens.characters}
        builder = NetworkBuilder(tokens.blank_id)
        places: dict[tuple[Gram, str], int] = {}  # (history, last token) -> node
        begin = model.history([BEGIN])
        queue: list[tuple[Gram, str]] = [(begin, "")]
        places[begin, ""] = START
        n_arcs = 0
        for history, last in queue:
            node = places[history, last]
            unit = ids[last] if last else -1
            for character in tokens.characters:
                following = model.history([*history, character]), character
                if following not in places:
                    places[following] = builder.node(ids[character], begins=True)
                    queue.append(following)
                cost = weight * model.log_prob(character, history) + token_bonus
                builder.arc(node, places[following], cost, unit)
                n_arcs += 1
            if n_arcs > LARGEST:
                raise SpecError(
                    f"expected at most {LARGEST} ways from history to history, got more: "
                    f"{self.order}-grams of {len(ids)} characters; use a smaller order"
                )
            builder.end(node, weight * model.log_prob(END, history), unit)
        return builder.finish([1] * (tokens.mask_id + 1))


def _length(line: str, where: str) -> int:
    """Tokens of an n-gram in the section that a line begins."""
    try:
        return int(line[1:-7])
    except ValueError:
        raise SpecError(f"{where}: expected a section such as \\2-grams:, got {line!r}") from None


def _read_gram(
    line: str, n: int, where: str, log_probs: dict[Gram, float], backoffs: dict[Gram, float]
) -> None:
    """One line of an ARPA file into the two tables."""
    parts = re.split("[ \t]+", line.strip(" \t\r"))
    if len(parts) not in (n + 1, n + 2):
        raise SpecError(f"{where}: expected a logarithm, {n} tokens and perhaps a backoff: {line}")
    names = {SPACE: WORD_SEPARATOR, UNKNOWN.upper(): UNKNOWN}
    gram = tuple(names.get(word, word) for word in parts[1 : n + 1])
    try:
        log_probs[gram] = float(parts[0]) * math.log(10)
        if len(parts) == n + 2:
            backoffs[gram] = float(parts[-1]) * math.log(10)
    except ValueError:
        raise SpecError(f"{where}: expected numbers in base 10, got {line!r}") from None
