"""Phrases that sound almost like a keyword: what a detector must not fire on."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np

from edge_imputer.errors import SynthesisError

from .distance import VOWELS, distances, edit_costs
from .grammar import grammar_words
from .phones import Phones, phones_of
from .plan import check_text

LABEL = "_near_miss_"
# How often each kind's turn comes, so that no kind fills the list alone.
SHARES = {
    "similar word": 4,
    "two words": 2,
    "rhyme": 2,
    "same start": 2,
    "nonsense": 2,
    "both words": 2,
    "part": 1,
    "order": 1,
}
N_SIMILAR = 40  # words that stand in for each word of the target
N_PAIRS = 10  # and for each of two words at once
N_HALVES = 6  # words for each half of a word
LONGEST_ORDERED = 3  # words whose order is changed
LEAST_NONSENSE = 0.4  # cost below which a made-up word is the target, said sloppily
# Consonant letters that are heard for one another.
CONFUSED = {
    "b": "pdv",
    "c": "gt",
    "d": "tbg",
    "f": "vs",
    "g": "kd",
    "k": "gt",
    "l": "rw",
    "m": "nb",
    "n": "md",
    "p": "bt",
    "r": "lw",
    "s": "zf",
    "t": "dkp",
    "v": "fb",
    "z": "s",
}


@dataclass(frozen=True)
class NearMiss:
    """A phrase that is not the target and sounds like it."""

    text: str
    distance: float  # 0 would sound the same
    kind: str
    phones: Phones


@dataclass(frozen=True)
class Lexicon:
    """Words and their phones."""

    words: tuple[str, ...]
    phones: tuple[Phones, ...]

    @classmethod
    def of(cls, words: Iterable[str]) -> Lexicon:
        """The words' phones, by eSpeak NG."""
        unique = tuple(sorted({word.lower() for word in words}))
        return cls(unique, tuple(phones_of(unique)))

    def nearest(self, phones: Phones, n: int) -> list[str]:
        """The `n` words most like `phones`, without those that sound the same."""
        costs = edit_costs(phones, self.phones)
        return [self.words[i] for i in np.argsort(costs, kind="stable") if costs[i] > 0][:n]


def shipped_words() -> list[str]:
    """The word list that comes with this package, and the words of its grammar."""
    text = (resources.files(__package__) / "words.txt").read_text("utf8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return sorted({*" ".join(lines).split(), *grammar_words()})


@functools.cache
def shipped_lexicon() -> Lexicon:
    """`shipped_words` with their phones."""
    return Lexicon.of(shipped_words())


def near_misses(
    target: str,
    n: int = 50,
    *,
    lexicon: Lexicon | None = None,
    nonsense: bool = True,
    containing: bool = False,
    others: Iterable[str] = (),
) -> list[NearMiss]:
    """Phrases that sound like `target`, the nearest first.

    Words of it are replaced by similar ones, by rhymes, by words with the same start, by two words
    or by made-up ones; it is taken apart and put in another order. Each kind gets its share.

    Parameters
    ----------
    target : str
    n : int
        At most so many.
    lexicon : Lexicon, optional
        Words to choose from; `shipped_lexicon` if not given.
    nonsense : bool
        Also words that do not exist.
    containing : bool
        Also phrases in which the target is heard whole, as in "computers". A detector that hears
        streams fires there, and rightly so: they are left out otherwise.
    others : texts
        Further keywords, in which the same holds.

    Raises
    ------
    SynthesisError
        eSpeak NG is not installed, or the target has nothing to say.
    """
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?", check_text(target).lower())
    if n < 1:
        raise SynthesisError(f"expected one near miss or more, got {n}")
    lexicon = lexicon or shipped_lexicon()
    texts = _candidates(words, phones_of(words), lexicon, nonsense)
    texts.pop(" ".join(words), None)
    wanted, *further = phones_of([" ".join(words), *others])
    phones = phones_of(texts)
    found: dict[str, list[NearMiss]] = {kind: [] for kind in SHARES}
    for text, said, far in zip(texts, phones, distances(wanted, phones), strict=True):
        kind = texts[text]
        sloppy = kind == "nonsense" and far * len(wanted) < LEAST_NONSENSE
        heard = any(contains(said, keyword) for keyword in (wanted, *further))
        if same_sound(said, wanted) or sloppy or (heard and not containing):
            continue
        found[kind].append(NearMiss(text, round(float(far), 4), kind, said))
    return sorted(_shared_out(found, n), key=lambda miss: (miss.distance, miss.text))


def same_sound(a: Phones, b: Phones) -> bool:
    """Whether two strings of phones are homophones; ʌ and ə differ in nothing but stress."""
    return len(a) == len(b) and all(
        p == q or {p, q} == {"ʌ", "ə"} for p, q in zip(a, b, strict=True)
    )


def contains(said: Phones, target: Phones) -> bool:
    """Whether `target` is heard whole within `said`."""
    n = len(target)
    return any(same_sound(said[i : i + n], target) for i in range(len(said) - n + 1))


def _shared_out(found: dict[str, list[NearMiss]], n: int) -> list[NearMiss]:
    """The nearest of each kind in turn, nothing that sounds like one chosen already."""
    queues = {
        kind: iter(sorted(misses, key=lambda miss: (miss.distance, miss.text)))
        for kind, misses in found.items()
    }
    chosen: dict[Phones, NearMiss] = {}
    while queues and len(chosen) < n:
        for kind in list(queues):
            for _ in range(SHARES[kind]):
                miss = next((m for m in queues[kind] if m.phones not in chosen), None)
                if miss is None:
                    del queues[kind]
                    break
                chosen[miss.phones] = miss
    return list(chosen.values())[:n]


def _candidates(
    words: list[str], phones: list[Phones], lexicon: Lexicon, nonsense: bool
) -> dict[str, str]:
    """Texts and the kind of each; what was found first keeps its kind."""
    found: dict[str, str] = {}

    def add(kind: str, replaced: Iterable[str], i: int) -> None:
        for other in replaced:
            found.setdefault(" ".join([*words[:i], other, *words[i + 1 :]]), kind)

    for first in range(len(words)):
        for last in range(first + 1, len(words) + 1):
            if last - first < len(words):
                found.setdefault(" ".join(words[first:last]), "part")
    if 1 < len(words) <= LONGEST_ORDERED:
        for order in itertools.permutations(words):
            found.setdefault(" ".join(order), "order")
    nearest = [lexicon.nearest(said, N_SIMILAR) for said in phones]
    for i, said in enumerate(phones):
        add("rhyme", _rhymes(said, lexicon), i)
        add("same start", _same_start(said, lexicon), i)
        add("similar word", nearest[i], i)
        add("two words", _two_words(said, lexicon), i)
        if nonsense:
            add("nonsense", _nonsense(words[i]), i)
    for i, j in itertools.combinations(range(len(words)), 2):
        for one, other in itertools.product(nearest[i][:N_PAIRS], nearest[j][:N_PAIRS]):
            both = [*words]
            both[i], both[j] = one, other
            found.setdefault(" ".join(both), "both words")
    return found


def _tail(phones: Phones) -> Phones:
    """What rhymes: from the last full vowel on."""
    vowels = [i for i, phone in enumerate(phones) if phone in VOWELS]
    full = [i for i in vowels if phones[i] not in ("ə", "ɪ")] or vowels
    return phones[full[-1] :] if full else phones


def _rhymes(phones: Phones, lexicon: Lexicon) -> list[str]:
    tail = _tail(phones)
    return [
        word
        for word, said in zip(lexicon.words, lexicon.phones, strict=True)
        if len(tail) > 1 and said[-len(tail) :] == tail and said != phones
    ]


def _same_start(phones: Phones, lexicon: Lexicon) -> list[str]:
    """Words that are a start of the target, go on from it, or share half of it and two phones."""
    least = max(2, (len(phones) + 1) // 2)
    return [
        word
        for word, said in zip(lexicon.words, lexicon.phones, strict=True)
        if said[:least] == phones[:least] and said != phones
    ]


def _two_words(phones: Phones, lexicon: Lexicon) -> list[str]:
    """Pairs of words for the two halves of a word, wherever it is cut."""
    pairs = []
    for cut in range(2, len(phones) - 1):
        halves = [_closest(half, lexicon) for half in (phones[:cut], phones[cut:])]
        pairs += [f"{a} {b}" for a, b in itertools.product(*halves)]
    return pairs


def _closest(phones: Phones, lexicon: Lexicon) -> Sequence[str]:
    """Words that sound like `phones`, the same sound included."""
    costs = edit_costs(phones, lexicon.phones)
    return [lexicon.words[i] for i in np.argsort(costs, kind="stable")[:N_HALVES]]


def _nonsense(word: str) -> list[str]:
    """The word with one consonant letter misheard; most of these are no words."""
    return [
        word[:i] + other + word[i + 1 :]
        for i, letter in enumerate(word)
        for other in CONFUSED.get(letter, "")
        if letter not in (word[i - 1 : i], word[i + 1 : i + 2])  # half of a double letter
    ]
