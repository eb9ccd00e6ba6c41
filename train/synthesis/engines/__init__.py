"""Speech synthesisers behind one interface, whichever of them are installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge_imputer.errors import SynthesisError

from .base import Availability, Engine, Speech, Voice
from .espeak import EspeakNg
from .festival import Festival
from .flite import Flite
from .kokoro import Kokoro
from .piper import Piper

__all__ = [
    "ENGINES",
    "Availability",
    "Engine",
    "EspeakNg",
    "Festival",
    "Flite",
    "Kokoro",
    "Piper",
    "Speech",
    "Voice",
    "make_engines",
    "open_engines",
]

ENGINES: dict[str, Callable[[], Engine]] = {
    "espeak": EspeakNg,
    "flite": Flite,
    "festival": Festival,
    "piper": Piper,
    "kokoro": Kokoro,
}


def make_engines(
    *, piper_voices: Path | None = None, kokoro_voices: Path | None = None
) -> dict[str, Engine]:
    """Every engine by name, available or not; folders of voices as in `Piper` and `Kokoro`."""
    given: dict[str, Engine] = {"piper": Piper(piper_voices), "kokoro": Kokoro(kokoro_voices)}
    return {name: given.get(name) or make() for name, make in ENGINES.items()}


def open_engines(
    names: list[str] | None = None,
    *,
    piper_voices: Path | None = None,
    kokoro_voices: Path | None = None,
) -> list[Engine]:
    """The engines named, or every one that is available.

    Raises
    ------
    SynthesisError
        An unknown name, an engine that is not available (with the reason and what to install), or
        none at all.
    """
    engines = make_engines(piper_voices=piper_voices, kokoro_voices=kokoro_voices)
    for name in names or []:
        if name not in engines:
            raise SynthesisError(f"expected one of the engines {', '.join(engines)}, got {name!r}")
        found = engines[name].available()
        if not found.ok:
            raise SynthesisError(f"{name} is not available: {found.reason}; {found.install}")
    chosen = [engines[name] for name in dict.fromkeys(names or engines)]
    usable = [engine for engine in chosen if engine.available().ok]
    if not usable:
        raise SynthesisError(
            "expected a speech synthesiser, found none; install one, for example: "
            "apt-get install espeak-ng flite festival festvox-kallpc16k"
        )
    return usable
