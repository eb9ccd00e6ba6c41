"""What the model writes."""

from __future__ import annotations

from ..errors import SpecError
from .base import Spec

BLANK_ID = 0


class TokenSpec(Spec, frozen=True, kw_only=True):
    """Character tokens. Id 0 is the blank, ids 1..n the characters, n + 1 the mask (input only)."""

    characters: tuple[str, ...]

    @property
    def vocabulary_size(self) -> int:
        """Outputs of the head: the characters and the blank."""
        return len(self.characters) + 1

    @property
    def blank_id(self) -> int:
        """Id of the blank."""
        return BLANK_ID

    @property
    def mask_id(self) -> int:
        """Id of a frame that is not filled in yet; the head reads it but never writes it."""
        return len(self.characters) + 1

    def check(self) -> None:
        """Raise `SpecError` on repeated, empty or multi-character tokens."""
        bad = [c for c in self.characters if len(c) != 1]
        if bad or len(set(self.characters)) != len(self.characters) or not self.characters:
            raise SpecError(
                f"expected distinct single characters, at least one, got {self.characters!r}"
            )
