"""Small corpora for the tests of the data pipeline: made of tones that come and go like words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile as sf

from edge_imputer.specs import CrnnSpec, FeatureSpec, ImputerSpec, ModelSpec
from edge_imputer.tokens import token_spec_of
from edge_imputer.train.data import Clip, ClipRecord, Manifest, write_manifest

RATE = 16_000
WORDS = ("one", "two", "three")


def tone_burst(seconds: float, rng: np.random.Generator, lead_s: float = 0.1) -> np.ndarray:
    """A chord with an envelope, silence before and behind it."""
    n = round(seconds * RATE)
    t = np.arange(n) / RATE
    pitch = rng.uniform(100, 250)
    voice = sum(np.sin(2 * np.pi * k * pitch * t + rng.uniform(0, 6)) / k for k in range(1, 20))
    lead = round(lead_s * RATE)
    envelope = np.zeros(n)
    envelope[lead : n - lead] = np.hanning(n - 2 * lead)
    return (0.2 * voice * envelope).astype(np.float32)


def clips(n: int = 6, seconds: float = 0.6) -> list[Clip]:
    """Clips in memory, of two speakers."""
    rng = np.random.default_rng(0)
    return [
        Clip(
            ClipRecord(
                audio=f"audio/{i}.wav",
                text=WORDS[i % 3],
                speaker=f"s{i % 2}",
                split="train",
                duration_s=seconds,
                sample_rate=RATE,
                label=WORDS[i % 3],
            ),
            tone_burst(seconds, rng),
        )
        for i in range(n)
    ]


def write_corpus(folder: Path, n: int = 12) -> Manifest:
    """A corpus of WAV files of 0.5 to 1.6 s."""
    rng = np.random.default_rng(1)
    (folder / "audio").mkdir(parents=True)
    records = []
    for i in range(n):
        seconds = round(0.5 + 0.1 * (i % 12), 3)
        sf.write(folder / f"audio/{i}.wav", tone_burst(seconds, rng), RATE, subtype="PCM_16")
        records.append(
            ClipRecord(
                audio=f"audio/{i}.wav",
                text=WORDS[i % 3],
                speaker=f"s{i % 2}",
                split="train",
                duration_s=seconds,
                sample_rate=RATE,
                label=WORDS[i % 3],
            )
        )
    write_manifest(folder, records)
    return Manifest.open(folder)


def model_spec() -> ModelSpec:
    """A small model that can write the words."""
    return ModelSpec(
        features=FeatureSpec(mean=-4.0, std=2.0),
        encoder=CrnnSpec(),
        head=ImputerSpec(),
        tokens=token_spec_of([" ", *WORDS]),
    )
