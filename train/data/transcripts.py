"""Transcripts as they are trained on: one case, one kind of space, known characters."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'"})


def normalize(text: str, *, remove_punctuation: bool = False) -> str:
    """Lower case, Unicode's composed form (NFC), single spaces.

    Parameters
    ----------
    text
        As the corpus has it.
    remove_punctuation
        Turn punctuation and symbols into spaces; the apostrophe stays, typographic ones become
        plain. It decides what a model learns to write, so nothing does it unasked.
    """
    text = unicodedata.normalize("NFC", text.lower())
    if remove_punctuation:
        text = "".join(_kept(c) for c in text.translate(APOSTROPHES))
    return " ".join(text.split())


def _kept(character: str) -> str:
    if character == "'" or unicodedata.category(character)[0] not in "PS":
        return character
    return " "


def unknown_characters(text: str, known: frozenset[str]) -> Counter[str]:
    """How often each character that is not known occurs; the space is always known."""
    return Counter(c for c in text if c not in known and c != " ")


def show_characters(counts: Iterable[tuple[str, int]]) -> str:
    """``'é' (U+00E9) 12, 'ß' (U+00DF) 3``."""
    return ", ".join(f"{c!r} (U+{ord(c):04X}) {n}" for c, n in counts)
