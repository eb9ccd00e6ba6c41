"""A tiny corpus and tiny models for the trainer's tests: seconds of tones, thousands of weights."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import soundfile as sf

from edge_imputer.train.data import ClipRecord, write_manifest
from edge_imputer.train.recipe import Recipe, read_recipe

RATE = 16_000
WORDS = ("ab", "ba", "abba")
TONES_HZ = {"a": 440.0, "b": 1320.0}
SMALL_CRNN = "encoder={kind='crnn', hidden=12, conv=[{channels=4}, {channels=4}]}"
SMALL_CONFORMER = (
    "encoder.d_model=16",
    "encoder.subsampling_channels=2",
    "encoder.kernel=3",
)
# What makes any run tiny and quick: no room responses, no processes that load.
TINY = (
    "data.workers=0",
    "augment.room=0",
    "run.updates=2",
    "run.valid_every=2",
    "data.valid_utterances=4",
)
SIZES: dict[str, tuple[str, ...]] = {
    "digits": (SMALL_CRNN, "task.head.width=8", "batches.size=4"),
    "keywords-35": (SMALL_CRNN, "batches.size=6"),
    **dict.fromkeys(
        ("wake-word", "wake-word-hard"),
        (
            "encoder.channels=4",
            "encoder.hidden=4",
            "encoder.dense=8",
            "batches.size=6",
            "augment.babble=0",
        ),
    ),
    "wake-word-esphome": (
        "encoder.channels=4",
        "encoder.stacks=[[1], [2]]",
        "task.keywords=['ab']",
        "batches.size=6",
    ),
    **dict.fromkeys(
        ("words-35", "words-35-hard"),
        (
            "task.keywords=['ab', 'abba']",
            "encoder.channels=4",
            "encoder.hidden=4",
            "encoder.dense=8",
            "batches.size=6",
            "augment.noise_files=0",
        ),
    ),
    "ctc": (*SMALL_CONFORMER, "batches.size=4"),
    "ctc-selfconditioned": (*SMALL_CONFORMER, "batches.size=4"),
    "imputer-dp": (*SMALL_CONFORMER, "task.head.width=8", "batches.size=4"),
    "imputer-imitation": (*SMALL_CONFORMER, "task.head.width=8", "batches.size=4"),
    **dict.fromkeys(
        ("librispeech-100", "librispeech-960", "voice-commands-small", "voice-commands"),
        (*SMALL_CONFORMER, "task.head.width=8", "batches.frames=1200", "batches.least=2"),
    ),
    "speech-commands-35": (SMALL_CRNN, "batches.size=6"),
    "speech-commands-12": (SMALL_CRNN, "batches.size=6", "task.keywords=['ab', 'abba']"),
}


def tiny_recipe(name: str = "digits", *settings: str) -> Recipe:
    """A shipped recipe with sizes that take a second."""
    return read_recipe(name, [*TINY, *SIZES[name], *settings])


def tone_word(word: str, rng: np.random.Generator) -> np.ndarray:
    """A word as a tone for every letter, 0.12 s each, with a click-free envelope."""
    n = int(0.12 * RATE)
    time_s = np.arange(n) / RATE
    envelope = np.sin(np.pi * np.arange(n) / n)
    pitch = rng.uniform(0.9, 1.1)
    parts = [envelope * np.sin(2 * np.pi * TONES_HZ[c] * pitch * time_s) for c in word]
    edge = np.zeros(int(rng.uniform(0.03, 0.08) * RATE))
    return np.concatenate([edge, *(0.3 * part for part in parts), edge]).astype(np.float32)


def write_corpus(folder: Path, *, per_word: int = 4, noise: bool = True) -> Path:
    """A corpus folder: words of tones by two speakers in train and one in valid, and a noise."""
    rng = np.random.default_rng(5)
    records = []
    folder.mkdir(parents=True, exist_ok=True)
    for split, speakers in (("train", ("ann", "bob")), ("valid", ("cyd",))):
        for speaker in speakers:
            for word in WORDS:
                for take in range(per_word if split == "train" else 2):
                    waveform = tone_word(word, rng)
                    name = f"{speaker}-{word}-{take}.wav"
                    sf.write(folder / name, waveform, RATE, subtype="PCM_16")
                    seconds = len(waveform) / RATE
                    records.append(_record(name, word, word, speaker, split, seconds))
    if noise:
        sf.write(folder / "hum.wav", rng.uniform(-0.1, 0.1, 2 * RATE), RATE, subtype="PCM_16")
        records.append(_record("hum.wav", None, "_noise_", "unknown", "train", 2.0))
    write_manifest(folder, records)
    return folder


def _record(
    audio: str, text: str | None, label: str, speaker: str, split: str, seconds: float
) -> ClipRecord:
    row = {"audio": audio, "text": text, "label": label, "speaker": speaker, "split": split}
    return msgspec.convert({**row, "duration_s": seconds, "sample_rate": RATE}, ClipRecord)
