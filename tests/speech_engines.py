"""Speech synthesisers for tests: one made of tones, and the real ones where they are installed."""

from __future__ import annotations

import numpy as np
import pytest

from edge_imputer.errors import SynthesisError
from edge_imputer.train.synthesis import Availability, Engine, Speech, Voice
from edge_imputer.train.synthesis.engines import make_engines

from .conftest import IN_CI


def real_engine(name: str) -> Engine:
    """An installed synthesiser; CI has it, elsewhere the test is skipped where it is missing."""
    engine = make_engines()[name]
    found = engine.available()
    if not found.ok:
        message = f"{name}: {found.reason}; {found.install}"
        if IN_CI:
            pytest.fail(message)
        pytest.skip(message)
    return engine


def run_command(*arguments: str) -> None:
    """Run ``edge-imputer synthesize``; an error of it ends the test."""
    from edge_imputer.cli.main import main

    with pytest.raises(SystemExit) as ended:
        main(["synthesize", *arguments])
    assert not ended.value.code


def burst(n: int, sample_rate: int, hz: float) -> np.ndarray:
    """A tone that swells and dies away, (n,)."""
    t = np.arange(n) / sample_rate
    swell = np.sqrt(np.abs(np.sin(np.pi * t / t[-1])))
    return (0.5 * np.sin(2 * np.pi * hz * t) * swell).astype(np.float32)


class ToneEngine:
    """Says a text as a tone of 80 ms a letter; `broken` maps texts to what it gives instead."""

    def __init__(self, name: str = "tone", n_voices: int = 6) -> None:
        self.name = name
        self.n_voices = n_voices
        self.broken: dict[str, np.ndarray | SynthesisError] = {}
        self.spoken: list[str] = []

    def available(self) -> Availability:
        return Availability(True)

    def voices(self) -> list[Voice]:
        return [
            Voice(self.name, f"v{i}", "en-us", ("female", "male")[i % 2])  # type: ignore[arg-type]
            for i in range(self.n_voices)
        ]

    def speak(self, text: str, voice: str, *, rate: float = 1.0, pitch: float = 0.0) -> Speech:
        self.spoken.append(text)
        given = self.broken.get(text)
        if isinstance(given, SynthesisError):
            raise given
        if given is not None:
            return Speech(given, 22_050)
        hz = (150 + 20 * int(voice[1:])) * 2 ** (pitch / 12)
        n = int(22_050 * 0.08 * sum(c.isalnum() for c in text) / rate)
        return Speech(burst(n, 22_050, hz), 22_050)
