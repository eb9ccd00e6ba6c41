"""The manifest of a wake word, version 2, as ESPHome's configuration reads it."""

from __future__ import annotations

import math
from urllib.parse import urlsplit

import msgspec

from edge_imputer.errors import SpecError

from .contract import MINIMUM_VERSION

VERSION = 2
VOICE_ACTIVITY = "vad"  # a wake word that ESPHome takes for something else


class MicroSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the firmware is told of the model.

    Attributes
    ----------
    probability_cutoff : float
        Mean probability from which on the word was heard.
    feature_step_size : int
        Milliseconds from one feature frame to the next.
    sliding_window_size : int
        Probabilities that are averaged.
    tensor_arena_size : int
        Bytes of memory that the model runs in.
    minimum_esphome_version : str
    """

    probability_cutoff: float
    feature_step_size: int
    sliding_window_size: int
    tensor_arena_size: int
    minimum_esphome_version: str = MINIMUM_VERSION


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A wake word's manifest; `model` is the name of the .tflite file beside it."""

    type: str = "micro"
    wake_word: str
    author: str
    website: str | msgspec.UnsetType = msgspec.UNSET
    model: str
    trained_languages: tuple[str, ...]
    version: int = VERSION
    micro: MicroSection

    def check(self) -> None:
        """Raise `SpecError` on what ESPHome would refuse, or take for something else."""
        micro = self.micro
        if not all(language.strip() for language in self.trained_languages):
            raise SpecError(f"expected languages such as en, got {self.trained_languages}")
        if not self.wake_word.strip() or self.wake_word == VOICE_ACTIVITY:
            raise SpecError(
                f"expected a wake word that is neither empty nor {VOICE_ACTIVITY!r}, which ESPHome "
                f"takes for a model of voice activity, got {self.wake_word!r}"
            )
        if not (math.isfinite(micro.probability_cutoff) and 0 < micro.probability_cutoff < 1):
            raise SpecError(
                "expected a probability_cutoff between 0 and 1, such as 0.9, got "
                f"{micro.probability_cutoff}"
            )
        if micro.sliding_window_size < 1:
            raise SpecError(
                f"expected a sliding_window_size of 1 or more, got {micro.sliding_window_size}"
            )
        if self.website is not msgspec.UNSET and not _is_url(self.website):
            raise SpecError(f"expected a website such as https://example.com, got {self.website!r}")

    def to_json(self) -> bytes:
        """The file's content."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def _is_url(text: str) -> bool:
    parts = urlsplit(text)
    return parts.scheme in ("http", "https") and bool(parts.netloc)
