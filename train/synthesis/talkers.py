"""Speech for babble: from a corpus, or said by the engines at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from edge_imputer.audio import read_audio, resample
from edge_imputer.errors import EdgeImputerError, SynthesisError

from .engines import Engine, Voice
from .engines.base import Waveform
from .grammar import draw_sentence
from .noises import Talkers
from .shaping import SAMPLE_RATE, cut_speech
from .voices import Split, SplitRule, split_voices

TALKER_S = 4.0  # speech of a talker before it repeats
ATTEMPTS = 20


class _Line(msgspec.Struct):
    """What is needed of a manifest's line; other keys are ignored."""

    audio: str
    split: Split
    text: str | None = None
    speaker: str | None = None


def corpus_talkers(folder: Path) -> Talkers:
    """Talkers from a corpus folder: a speaker of the split each, clips at random.

    Where speakers are not known, a talker is a row of clips of anybody.

    Raises
    ------
    SynthesisError
        No manifest; later, a split without speech in it.
    """
    path = folder / "manifest.jsonl"
    try:
        lines = [msgspec.json.decode(x, type=_Line) for x in path.read_bytes().splitlines() if x]
    except (OSError, msgspec.DecodeError) as error:
        raise SynthesisError(f"expected a corpus folder of speech at {folder}: {error}") from error
    speech: dict[Split, dict[str, list[str]]] = {}
    for line in lines:
        if line.text is not None:
            speakers = speech.setdefault(line.split, {})
            speakers.setdefault(line.speaker or "unknown", []).append(line.audio)

    def talkers(split: Split, n: int, rng: np.random.Generator) -> list[Waveform]:
        speakers = speech.get(split)
        if not speakers:
            raise SynthesisError(f"{folder} has no speech in {split!r} to make babble of")
        names = sorted(speakers)
        chosen = rng.choice(len(names), size=n, replace=len(names) < n)
        return [_row(folder, speakers[names[i]], rng) for i in chosen]

    return talkers


def _row(folder: Path, clips: Sequence[str], rng: np.random.Generator) -> Waveform:
    """Clips at random until they last `TALKER_S`."""
    parts: list[Waveform] = []
    while sum(map(len, parts)) < TALKER_S * SAMPLE_RATE:
        waveform, rate = read_audio(folder / clips[int(rng.integers(len(clips)))])
        parts.append(resample(waveform, from_rate=rate, to_rate=SAMPLE_RATE))
    return np.concatenate(parts)


def engine_talkers(engines: Sequence[Engine], cast: list[Voice], *, seed: int) -> Talkers:
    """Talkers by the engines: sentences of the grammar, nobody's voice in two splits.

    `cast` are the voices to use.
    """
    splits = split_voices(cast, SplitRule(), seed=seed)
    by_name = {engine.name: engine for engine in engines}

    def talkers(split: Split, n: int, rng: np.random.Generator) -> list[Waveform]:
        voices = [voice for voice in cast if splits.get(voice.speaker) == split]
        if not voices:
            raise SynthesisError(f"no voice is left for the babble of {split!r}; install engines")
        chosen = rng.choice(len(voices), size=n, replace=len(voices) < n)
        return [_talk(by_name[voices[i].engine], voices[i], rng) for i in chosen]

    return talkers


def _talk(engine: Engine, voice: Voice, rng: np.random.Generator) -> Waveform:
    """Sentences until they last `TALKER_S`."""
    parts: list[Waveform] = []
    problem = ""
    for _ in range(ATTEMPTS):
        if sum(map(len, parts)) >= TALKER_S * SAMPLE_RATE:
            return np.concatenate(parts)
        text, rate = draw_sentence(rng), float(rng.uniform(0.85, 1.25))
        try:
            said = engine.speak(text, voice.name, rate=rate)
            cut = cut_speech(said, text, 0.8 * len(text), rate)
        except EdgeImputerError as error:
            problem = str(error)
            continue
        if cut.problem is None:
            parts.append(cut.waveform)
        problem = cut.problem or problem
    raise SynthesisError(f"{voice.speaker} gave no speech to make babble of: {problem}")
