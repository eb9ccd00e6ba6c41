"""The phones of a text, as eSpeak NG says it: broad American English."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from edge_imputer.errors import SynthesisError

from .engines import EspeakNg
from .engines.base import run

Phones = tuple[str, ...]

VOICE = "en-us"
SYMBOLS = (  # longest first: a token of eSpeak NG may hold several phones
    "tʃ dʒ eɪ aɪ ɔɪ aʊ oʊ p b t d k ɡ f v θ ð s z ʃ ʒ h m n ŋ l ɹ j w i ɪ ɛ æ ɑ ɔ ʊ u ʌ ə ɜ"
).split()
# Allophones and lengths that keep no two English words apart become one symbol.
MERGED = {
    "ː": "",
    "ˈ": "",
    "ˌ": "",
    "ʔ": "t",
    "ɾ": "t",
    "ɚ": "əɹ",
    "ɝ": "ɜɹ",
    "ɜːɹ": "ɜɹ",
    "ɐ": "ə",
    "ᵻ": "ɪ",
    "ɫ": "l",
    "n̩": "ən",
    "l̩": "əl",
    "ɬ": "l",
    "x": "k",
    "g": "ɡ",
    "r": "ɹ",
    "e": "ɛ",
    "o": "ɔ",  # "hoarse" and "horse"
    "a": "æ",
    "ɒ": "ɑ",
    "̃": "",
}
_KEEP = re.compile("|".join(sorted(map(re.escape, [*SYMBOLS, *MERGED]), key=len, reverse=True)))


def phones_of(texts: Iterable[str]) -> list[Phones]:
    """The phones of each text, by one call of eSpeak NG.

    Raises
    ------
    SynthesisError
        eSpeak NG is not installed, or a text has nothing to say.
    """
    texts = list(texts)
    found = EspeakNg().available()
    if not found.ok:
        raise SynthesisError(f"phonetics need eSpeak NG: {found.reason}; {found.install}")
    lines = [" ".join(re.sub(r"[^\w' ]", " ", text).split()) for text in texts]
    for text, line in zip(texts, lines, strict=True):
        if not re.search(r"[^\W_]", line):
            raise SynthesisError(f"expected a text with letters or digits, got {text!r}")
    if not lines:
        return []
    command = ["espeak-ng", "-q", "--ipa", "--sep=_", "-v", VOICE]
    said = run(command, text="\n".join(lines) + "\n").decode().splitlines()
    if len(said) != len(lines):  # a long text comes back as several lines: then each on its own
        said = [" ".join(run(command, text=line + "\n").decode().split("\n")) for line in lines]
    return [_parse(line) for line in said]


@functools.cache
def _token(token: str) -> Phones:
    """Phones in one token of eSpeak NG, such as ``ˈaɪɚ``."""
    phones: list[str] = []
    for part in _KEEP.findall(token.replace("əʊ", "oʊ").replace("ɜːɹ", "ɜɹ")):
        if part in MERGED:
            phones += _token(MERGED[part]) if MERGED[part] else ()
        else:
            phones.append(part)
    return tuple(phones)


def _parse(line: str) -> Phones:
    phones = [p for token in re.split(r"[_\s]+", line) for p in _token(token)]
    # ɜ is never without ɹ in this accent; eSpeak NG writes both ways.
    full = [q for i, p in enumerate(phones) for q in _rhotic(p, phones[i + 1 : i + 2])]
    # "writer" and "water": a second ɹ between vowels is heard as one.
    return tuple(p for i, p in enumerate(full) if i == 0 or (p, full[i - 1]) != ("ɹ", "ɹ"))


def _rhotic(phone: str, after: list[str]) -> list[str]:
    return ["ɜ", "ɹ"] if phone == "ɜ" and after != ["ɹ"] else [phone]


def n_phones_of(texts: Iterable[str]) -> list[float]:
    """How many phones each text has; without eSpeak NG, four for five letters."""
    texts = list(texts)
    if EspeakNg().available().ok:
        return [float(max(1, len(phones))) for phones in phones_of(texts)]
    return [max(1.0, 0.8 * sum(c.isalnum() for c in text)) for text in texts]
