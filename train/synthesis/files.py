"""Writing clips, and reading them back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edge_imputer.audio import read_audio
from edge_imputer.errors import AudioError

from .engines.base import Waveform

Format = Literal["ogg", "flac", "wav"]

SETTINGS: dict[str, dict[str, Any]] = {  # of soundfile
    # About 30 kbit/s for a short clip, container included.
    ".ogg": {"format": "OGG", "subtype": "OPUS", "compression_level": 0.92},
    ".flac": {"format": "FLAC", "subtype": "PCM_16"},
    ".wav": {"format": "WAV", "subtype": "PCM_16"},
}


def write_clip(path: Path, waveform: Waveform, sample_rate: int) -> None:
    """Write mono audio whole or not at all; the suffix decides: ogg (Opus), flac or wav."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    settings = SETTINGS[path.suffix]
    try:
        soundfile.write(part, waveform, sample_rate, **settings)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def written_problem(path: Path, waveform: Waveform, sample_rate: int) -> str | None:
    """Decode a written clip and say what is wrong with it, or None."""
    try:
        decoded, rate = read_audio(path)
    except AudioError as error:
        return str(error)
    if rate != sample_rate or abs(len(decoded) - len(waveform)) > 0.02 * sample_rate:
        return f"wrote {len(waveform)} samples at {sample_rate} Hz, read {len(decoded)} at {rate}"
    peak = float(np.abs(decoded).max())
    if not 0.0 < peak < 1.0:
        return f"a peak of {peak:.3f} after the codec"
    return None
