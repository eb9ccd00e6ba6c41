"""A pool of sounds like speech, a tiny model, and what goes wrong with clips of the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch

from edge_imputer.specs import AnyModelSpec, TokenSpec
from edge_imputer.train.checkpoint import Origin, pack
from edge_imputer.train.recipe import Recipe
from edge_imputer.train.tasks import build_task

from .training_cases import tiny_recipe

RATE = 16_000


def babble(seed: int, seconds: float = 0.8) -> np.ndarray:
    """Syllables of a voice: harmonics of a gliding pitch under moving formants, with pauses."""
    rng = np.random.default_rng(seed)
    n = int(seconds * RATE)
    time_s = np.arange(n) / RATE
    knots = np.linspace(0, seconds, 6)
    pitch = np.interp(time_s, knots, rng.uniform(100, 250, 6))
    formant = np.interp(time_s, knots, rng.uniform(300, 2500, 6))
    loud = np.interp(time_s, np.linspace(0, seconds, 12), rng.uniform(0, 1, 12)) ** 2
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    sound = np.zeros(n)
    for harmonic in range(1, 20):
        hz = harmonic * pitch
        sound += np.exp(-(((hz - formant) / 400) ** 2)) * np.sin(harmonic * phase)
    sound = 0.3 * loud * sound / max(1e-9, np.abs(sound).max())
    return (sound + rng.normal(0, 1e-4, n)).astype(np.float32)


def write_pool(folder: Path, sounds: Mapping[str, np.ndarray], **keys: Any) -> Path:
    """A manifest without texts, with a key of its own; the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, sound in sounds.items():
        sf.write(folder / name, sound, RATE, subtype="PCM_16")
        lines.append(pool_row(name, len(sound) / RATE, **keys))
    return write_lines(folder / "pool.jsonl", lines)


def pool_row(name: str, seconds: float, **keys: Any) -> dict[str, Any]:
    base = {"audio": name, "text": None, "speaker": "unknown", "split": "train"}
    return {
        **base,
        "duration_s": round(seconds, 6),
        "sample_rate": RATE,
        "device": "kitchen",
        **keys,
    }


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def babbles(n: int, start: int = 0) -> dict[str, np.ndarray]:
    """Sounds of different lengths, by file name."""
    return {f"{k:03d}.wav": babble(k, 0.5 + 0.1 * (k % 5)) for k in range(start, start + n)}


def write_model(path: Path) -> Path:
    """A checkpoint of a tiny model with random weights."""
    recipe = tiny_recipe("digits")
    tokens = TokenSpec(characters=tuple(" abcdef"))
    return _write(path, recipe, recipe.task.make_spec(recipe.features, recipe.encoder, tokens))


def write_keyword_model(path: Path) -> Path:
    """A checkpoint of a tiny keyword model with random weights."""
    recipe = tiny_recipe("keywords-35", "task.keywords=['ab', 'abba']")
    return _write(path, recipe, recipe.task.make_spec(recipe.features, recipe.encoder))


def _write(path: Path, recipe: Recipe, spec: AnyModelSpec) -> Path:
    torch.manual_seed(0)
    task = build_task(spec, recipe.task)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.mul_(2.0)  # random weights hear next to nothing otherwise
    origin = Origin(data="babble", n_clips=0)
    torch.save(pack(task.state_dict(), spec, recipe, origin, 0), path)
    return path
