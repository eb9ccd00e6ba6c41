"""Writing clips, and reading them back."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edge_imputer.audio import read_audio
from edge_imputer.errors import AudioError
from edge_imputer.files import replacing

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

    encoded = io.BytesIO()  # in memory first: a full disk is then an error of the file
    soundfile.write(encoded, waveform, sample_rate, **SETTINGS[path.suffix])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=False) as file:
        file.write(encoded.getbuffer())


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
