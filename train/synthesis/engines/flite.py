"""Flite: small diphone and statistical voices."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from .base import (
    Availability,
    Gender,
    Speech,
    Voice,
    check_voice,
    decode,
    pitch_factor,
    played_at,
    program,
    run,
)

# Voices built into the program: gender, how they are made, whose recordings.
KNOWN: dict[str, tuple[Gender, str, str]] = {
    "awb": ("male", "parametric", "cmu-awb"),
    "kal": ("male", "diphone, 8 kHz", "cmu-kal"),
    "kal16": ("male", "diphone", "cmu-kal"),
    "rms": ("male", "parametric", "cmu-rms"),
    "slt": ("female", "parametric", "cmu-slt"),
}
SKIPPED = frozenset({"awb_time"})  # says the time of day and nothing else


class Flite:
    """The program ``flite`` with the voices built into it."""

    name = "flite"

    def available(self) -> Availability:
        """Whether the program is on the path."""
        return program("flite", "flite")

    def voices(self) -> list[Voice]:
        """The built-in voices."""
        return list(_voices()) if self.available().ok else []

    def speak(self, text: str, voice: str, *, rate: float = 1.0, pitch: float = 0.0) -> Speech:
        """Say `text`; pitch and formants move together (`played_at`)."""
        check_voice(voice, _voices())
        factor = pitch_factor(pitch)
        with tempfile.TemporaryDirectory() as folder:
            wav, words = Path(folder, "speech.wav"), Path(folder, "words.txt")
            words.write_text(text)
            stretch = f"duration_stretch={factor / rate:.4f}"
            run(["flite", "-voice", voice, "--setf", stretch, "-f", str(words), "-o", str(wav)])
            return played_at(decode(wav, self.name), factor)


@functools.cache
def _voices() -> tuple[Voice, ...]:
    listed = run(["flite", "-lv"]).decode().partition(":")[2].split()
    voices = []
    for name in sorted(set(listed) - SKIPPED):
        gender, quality, person = KNOWN.get(name, (None, None, None))
        voices.append(Voice("flite", name, "en-us", gender, quality, person))
    return tuple(voices)
