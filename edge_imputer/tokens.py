"""Characters and token ids, and the collapse of an alignment to what was said.

Id 0 is the blank, ids 1..n the characters of a `TokenSpec`, n + 1 the mask (head input only).
Text is normalised to NFC, so that one character is one code point wherever Unicode has one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .errors import SpecError, TokenError
from .specs import BLANK_ID, TokenSpec

WORD_SEPARATOR = " "


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, spec: TokenSpec) -> None:
        spec.check()
        unusual = [c for c in spec.characters if unicodedata.normalize("NFC", c) != c]
        if unusual:
            raise SpecError(
                f"expected characters in Unicode form NFC, got {unusual!r}; no text can match "
                "them. Build the set with token_spec_of"
            )
        self.spec = spec
        self._id_of = {c: i for i, c in enumerate(spec.characters, start=BLANK_ID + 1)}

    @property
    def separator_id(self) -> int | None:
        """Id of the space between words; None where the token set has none."""
        return self._id_of.get(WORD_SEPARATOR)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text.

        Raises
        ------
        TokenError
            A character is not in the token set. Positions count in the NFC form, from 0.
        """
        characters = unicodedata.normalize("NFC", text)
        unknown: dict[str, list[int]] = {}
        for position, character in enumerate(characters):
            if character not in self._id_of:
                unknown.setdefault(character, []).append(position)
        if unknown:
            found = "; ".join(
                f"{c!r} (U+{ord(c):04X}) at {', '.join(map(str, where))}"
                for c, where in unknown.items()
            )
            raise TokenError(
                f"{text!r}: expected only the characters {''.join(self.spec.characters)!r}, got "
                f"{found}; spell it with these, or train a model whose transcripts have them"
            )
        return [self._id_of[c] for c in characters]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, without blanks (see `collapse`).

        Raises
        ------
        TokenError
            An id is not a character's: the blank, the mask, or out of range.
        """
        characters = self.spec.characters
        text = []
        for position, token in enumerate(ids):
            if not 1 <= token <= len(characters):
                raise TokenError(
                    f"expected ids of characters, 1 to {len(characters)}, got {token} at position "
                    f"{position}; collapse a whole, fully committed alignment first"
                )
            text.append(characters[token - 1])
        return "".join(text)

    def collapse(self, alignment: Sequence[int] | npt.NDArray[np.integer]) -> list[int]:
        """Merge repeated tokens, then drop blanks (the CTC mapping of an alignment to text)."""
        tokens = np.asarray(alignment, dtype=np.int64)
        keep = tokens != self.spec.blank_id
        keep[1:] &= tokens[1:] != tokens[:-1]
        return [int(token) for token in tokens[keep]]

    def min_frames(self, ids: Sequence[int]) -> int:
        """Fewest encoder frames that can carry `ids`: repeats need a blank between them."""
        return len(ids) + sum(a == b for a, b in pairwise(ids))


def token_spec_of(texts: Iterable[str]) -> TokenSpec:
    """The token set of some transcripts: their distinct characters, sorted by code point."""
    characters = {c for text in texts for c in unicodedata.normalize("NFC", text)}
    spec = TokenSpec(characters=tuple(sorted(characters)))
    spec.check()
    return spec
