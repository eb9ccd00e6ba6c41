"""What the recogniser and the keyword spotter say: a small frozen vocabulary.

Times are seconds since the first sample of the utterance (of the stream, until it is flushed).
They are those of whole encoder frames, so the last may lie within the closing silence.
Confidences are in (0, 1].
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
class Partial:
    """The text so far. What it says is committed; the utterance goes on."""

    text: str
    start_s: float
    end_s: float
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with ``"event": "partial"``."""
        return {"event": "partial", **asdict(self)}


@dataclass(frozen=True)
class Final:
    """A whole utterance. `words` is empty, and both times 0, where nothing was recognised."""

    text: str
    start_s: float
    end_s: float
    confidence: float
    words: tuple[Word, ...]

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


Event = Partial | Final | Keyword
