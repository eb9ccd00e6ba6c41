"""What a speech synthesiser has to offer, and how its programs are run."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import SynthesisError

Waveform = npt.NDArray[np.float32]
Gender = Literal["female", "male"]

TIMEOUT_S = 120.0  # a synthesiser that takes longer for a sentence hangs


@dataclass(frozen=True)
class Availability:
    """Whether an engine can be used here; if not, why, and what to type."""

    ok: bool
    reason: str = ""
    install: str = ""


@dataclass(frozen=True)
class Voice:
    """A voice of an engine. What an engine does not say is None."""

    engine: str
    name: str
    language: str | None = None  # such as "en-us"
    gender: Gender | None = None
    quality: str | None = None  # how it is made; "effect" for whispers, robots and the like
    person: str | None = None  # whose recordings it was built from: two engines may share one

    @property
    def speaker(self) -> str:
        """The speaker's id in manifests, ``ENGINE:VOICE``."""
        return f"{self.engine}:{self.name}"

    @property
    def identity(self) -> str:
        """What must not be on two sides of a split: the person, where known."""
        return self.person or self.speaker


class Speech(NamedTuple):
    """What an engine said."""

    waveform: Waveform  # (n,)
    sample_rate: int  # Hz


class Engine(Protocol):
    """A speech synthesiser; safe to be called from several threads at once."""

    name: str

    def available(self) -> Availability:
        """Whether its program, its packages and its files are here."""
        ...

    def voices(self) -> list[Voice]:
        """English voices, sorted by name; empty where the engine is not available."""
        ...

    def speak(self, text: str, voice: str, *, rate: float = 1.0, pitch: float = 0.0) -> Speech:
        """Say `text`.

        Parameters
        ----------
        text : str
        voice : str
            Name of one of `voices`.
        rate : float
            Factor on the speaking rate; 1 is the voice's own.
        pitch : float
            Semitones above the voice's own pitch.

        Raises
        ------
        SynthesisError
            The engine failed, or gave no audio.
        """
        ...


def check_voice(voice: str, voices: Sequence[Voice]) -> None:
    """Refuse a voice that is not there: some programs would speak with another one instead."""
    if voice not in {one.name for one in voices}:
        some = ", ".join(one.name for one in voices[:8])
        raise SynthesisError(f"expected a voice such as {some or '(none is there)'}, got {voice!r}")


def program(name: str, package: str) -> Availability:
    """Whether an external program is on the path, and the Debian package that brings it."""
    if shutil.which(name):
        return Availability(True)
    return Availability(
        False, f"the program {name} is not on the path", f"apt-get install {package}"
    )


def run(command: Sequence[str], *, text: str = "") -> bytes:
    """Run a synthesiser with `text` on its standard input; what it wrote to its output.

    Raises
    ------
    SynthesisError
        It could not be started, failed, or took longer than `TIMEOUT_S`.
    """
    try:
        done = subprocess.run(
            list(command), input=text.encode(), capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SynthesisError(f"{command[0]} could not be run: {error}") from error
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())[-300:]
        raise SynthesisError(f"{command[0]} ended with code {done.returncode}: {said or 'no word'}")
    return done.stdout


def decode(wav: bytes | Path, engine: str) -> Speech:
    """Decode the wav file that an engine wrote; two channels become their mean.

    Raises
    ------
    SynthesisError
        Not a wav file, or one without samples.
    """
    import soundfile

    try:
        samples, sample_rate = soundfile.read(
            io.BytesIO(wav) if isinstance(wav, bytes) else wav, dtype="float32", always_2d=True
        )
    except (soundfile.LibsndfileError, OSError) as error:
        raise SynthesisError(f"{engine}: expected a wav file, could not read it: {error}") from None
    if not len(samples):
        raise SynthesisError(f"{engine}: expected speech, got a file without samples")
    waveform: Waveform = samples.mean(axis=1, dtype=np.float32)
    return Speech(waveform, int(sample_rate))


def pitch_factor(pitch: float) -> float:
    """The ratio of frequencies of `pitch` semitones."""
    return float(2.0 ** (pitch / 12))


def played_at(speech: Speech, factor: float) -> Speech:
    """Speech played faster by `factor`: pitch and formants rise together.

    An engine without a pitch of its own speaks slower by `factor` first: then the duration stays
    what was asked for, and the voice sounds like that of a smaller person.
    """
    return Speech(speech.waveform, round(speech.sample_rate * factor))
