"""What the recogniser and the keyword spotter say: a small frozen vocabulary.

Times are seconds since the first sample of the utterance (of the stream, until it is flushed).
They are those of whole encoder frames, so the last may lie within the closing silence.
Confidences are in (0, 1]; that of a text is 0 where a grammar allows nothing that short.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Word:
    """A recognised word: from the first frame of its first character to the last of its last."""

    text: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True)
class Meaning:
    """What a grammar makes of the words.

    Attributes
    ----------
    rules : tuple of (name, text)
        Every rule that was used and the words it covers, in the order in which they begin.
    tags : tuple of str
        Tags on the way, in order.
    """

    rules: tuple[tuple[str, str], ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def intent(self) -> str | None:
        """The public rule that was said, which begins first; None where nothing was."""
        return self.rules[0][0] if self.rules else None

    @property
    def slots(self) -> dict[str, str]:
        """Rule -> the words of its first use."""
        return dict(reversed(self.rules))


@dataclass(frozen=True)
class Partial:
    """The text so far; the utterance goes on.

    What it says is committed; but with a language (a lexicon, a grammar, an n-gram) it is the best
    so far, and may change.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with ``"event": "partial"``."""
        return {"event": "partial", **asdict(self)}


@dataclass(frozen=True)
class Final:
    """A whole utterance. `words` is empty, and both times 0, where nothing was recognised.

    Attributes
    ----------
    meaning : Meaning or None
        What a grammar makes of it; None without a grammar.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float
    words: tuple[Word, ...]
    meaning: Meaning | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with ``"event": "final"``."""
        return {"event": "final", **asdict(self)}


@dataclass(frozen=True)
class Keyword:
    """A keyword that was heard."""

    text: str
    start_s: float
    end_s: float
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with ``"event": "keyword"``."""
        return {"event": "keyword", **asdict(self)}


@dataclass(frozen=True)
class Transcript:
    """What a whole recording says."""

    text: str
    start_s: float
    end_s: float
    confidence: float
    words: tuple[Word, ...]
    duration_s: float
    meaning: Meaning | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


Event = Partial | Final | Keyword
