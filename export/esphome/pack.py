"""Writes the two files that make a wake word of ESPHome: the model and its manifest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.files import write_atomically
from edge_imputer.frontends import frontend_of

from ..build import FEATURES, build_wake_word_graph
from ..calibration import Calibration
from ..graph import Array, Graph
from ..quantize import quantise
from ..reference import Interpreter, zero_feeds
from .arena import arena_size
from .contract import INPUT_QUANT, check_spec
from .emitter import probability, streaming_bytes
from .frames import FRAMES, SCORE, as_frames
from .manifest import Manifest, MicroSection

if TYPE_CHECKING:
    from edge_imputer.train.keyword_model import KeywordModel

CUTOFF = 0.9  # to begin with; most of ESPHome's own models have 0.85 to 0.97


@dataclass(frozen=True)
class Pack:
    """What was written.

    Attributes
    ----------
    manifest_path, model_path : Path
    manifest : Manifest
    graph : Graph
        The quantised network, whose integers `ExactWakeWord` computes.
    """

    manifest_path: Path
    model_path: Path
    manifest: Manifest
    graph: Graph


def write_esphome_pack(
    model: KeywordModel,
    calibration: Iterable[npt.NDArray[np.float32]],
    out: str | os.PathLike[str],
    *,
    wake_word: str | None = None,
    author: str = "unstated",
    website: str | None = None,
    trained_languages: Sequence[str] = (),
    probability_cutoff: float = CUTOFF,
    sliding_window_size: int | None = None,
) -> Pack:
    """Quantise a keyword model and write it for ESPHome's micro_wake_word.

    Parameters
    ----------
    model : KeywordModel
        Trained: a `TcnSpec` encoder on `MicroSpec` features, one keyword, no class for silence.
    calibration : iterable of float32 arrays, (n,)
        Audio at 16 kHz, of training or validation clips.
    out : path
        Folder for ``NAME.json`` and ``NAME.tflite``, NAME being the wake word in letters that
        ESPHome's file names can have; both are replaced where they are.
    wake_word : str, optional
        As Home Assistant shows it; the model's keyword if not given.
    author, website, trained_languages : optional
        For the manifest; languages as ``en``.
    probability_cutoff : float
        Mean probability above which the word was heard.
    sliding_window_size : int, optional
        Probabilities of which that is the mean; as many as the model's `smoothing_ms` if not given.

    Raises
    ------
    ExportError
        If ESPHome cannot run such a model, with the reason, or it cannot be quantised.
    SpecError
        On a manifest that ESPHome would refuse.
    MissingExtraError
        If a library of the ``esphome`` extra is not installed.
    """
    spec = model.spec
    check_spec(spec)
    word = spec.keywords[0] if wake_word is None else wake_word
    name = file_name(word)
    manifest = Manifest(
        wake_word=word,
        author=author,
        website=msgspec.UNSET if website is None else website,
        model=f"{name}.tflite",
        trained_languages=tuple(trained_languages),
        micro=MicroSection(
            probability_cutoff=probability_cutoff,
            feature_step_size=1000 * spec.features.hop_length // spec.features.sample_rate,
            sliding_window_size=(
                spec.smoothing_frames if sliding_window_size is None else sliding_window_size
            ),
            tensor_arena_size=0,
        ),
    )
    manifest.check()  # before what takes its time
    graph = wake_word_graph(model, calibration)
    data = streaming_bytes(graph)
    micro = msgspec.structs.replace(manifest.micro, tensor_arena_size=arena_size(graph, data))
    manifest = msgspec.structs.replace(manifest, micro=micro)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / manifest.model, data)
    write_atomically(folder / f"{name}.json", manifest.to_json())
    return Pack(folder / f"{name}.json", folder / manifest.model, manifest, graph)


def file_name(wake_word: str) -> str:
    """The wake word in small letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", wake_word.lower()).strip("_") or "wake_word"


def wake_word_graph(model: KeywordModel, calibration: Iterable[npt.NDArray[np.float32]]) -> Graph:
    """The quantised graph of a pack, calibrated on waveforms, with the input's fixed scale."""
    floats = build_wake_word_graph(model)
    frontend = frontend_of(model.spec.features)
    _, n_frames, n_mels, _ = floats.tensors[FEATURES].shape
    watched = Calibration(floats)
    for waveform in calibration:
        features = frontend(waveform)
        n_steps = len(features) // n_frames
        steps = features[: n_steps * n_frames].reshape(n_steps, 1, n_frames, n_mels, 1)
        watched.run_sequence(steps)
    return as_frames(quantise(floats, watched.ranges, {FEATURES: INPUT_QUANT}))


class ExactWakeWord:
    """The integers of a pack's graph, step by step, as devices compute them but for how they round.

    Parameters
    ----------
    graph : Graph
        Of `wake_word_graph`.

    Attributes
    ----------
    n_frames : int
        Feature frames of one step.
    """

    def __init__(self, graph: Graph) -> None:
        self._interpreter = Interpreter(graph)
        self._states = graph.state_pairs
        self._first = zero_feeds(graph)
        self.n_frames = graph.tensors[FRAMES].shape[1]
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self._feeds = dict(self._first)

    def step(self, frames: Array) -> int:
        """The probability, 0 to 255 over 256, after int8 frames (n_frames, n_mels)."""
        values = self._interpreter.run({**self._feeds, FRAMES: frames[np.newaxis]})
        self._feeds.update({before: values[after] for before, after in self._states})
        return int(probability(values[SCORE])[0, 0])
