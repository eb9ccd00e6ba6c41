"""Piper: neural voices, one ONNX file each, which the user brings."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from edge_imputer.errors import SynthesisError

from .base import Availability, Speech, Voice, decode, pitch_factor, played_at, program, run

VARIABLE = "PIPER_VOICES"


class Piper:
    """The program ``piper`` (PyPI: piper-tts) with the voices of a folder.

    Its voices draw random numbers that cannot be seeded: another run gives other samples.

    Parameters
    ----------
    folder : Path, optional
        Holds ``NAME.onnx`` and ``NAME.onnx.json`` a voice; ``$PIPER_VOICES`` if not given.
    """

    name = "piper"

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or (Path(os.environ[VARIABLE]) if VARIABLE in os.environ else None)

    def available(self) -> Availability:
        """Whether the program is on the path and the folder has a voice."""
        found = program("piper", "piper-tts")
        if not found.ok:
            return Availability(False, found.reason, "pip install piper-tts")
        if self._folder is None:
            return Availability(False, "no folder with voices", f"set {VARIABLE} to a folder")
        if not self._models():
            return Availability(
                False,
                f"{self._folder} has no NAME.onnx with NAME.onnx.json beside it",
                f"put a voice of Piper there, or set {VARIABLE} to another folder",
            )
        return found

    def _models(self) -> list[Path]:
        if self._folder is None:
            return []
        return sorted(
            path for path in self._folder.glob("*.onnx") if Path(f"{path}.json").is_file()
        )

    def voices(self) -> list[Voice]:
        """English voices of the folder; one with several speakers is ``NAME#ID`` each."""
        voices = []
        for path in self._models() if self.available().ok else []:
            try:
                config = json.loads(Path(f"{path}.json").read_text("utf8"))
                language = str(config.get("language", {}).get("code", "")) or None
                speakers = int(config.get("num_speakers", 1))
            except (ValueError, AttributeError) as error:
                raise SynthesisError(f"{path}.json: expected Piper's settings: {error}") from error
            if language and not language.startswith("en"):
                continue
            language = language.lower().replace("_", "-") if language else None
            names = [path.stem] if speakers < 2 else [f"{path.stem}#{i}" for i in range(speakers)]
            voices += [Voice("piper", name, language, None, "neural") for name in names]
        return voices

    def speak(self, text: str, voice: str, *, rate: float = 1.0, pitch: float = 0.0) -> Speech:
        """Say `text`; pitch and formants move together (`played_at`)."""
        if self._folder is None:
            raise SynthesisError(f"expected a folder with Piper's voices; set {VARIABLE}")
        factor = pitch_factor(pitch)
        model, _, speaker = voice.partition("#")
        with tempfile.TemporaryDirectory() as folder:
            wav = Path(folder, "speech.wav")
            command = ["piper", "--model", str(self._folder / f"{model}.onnx")]
            command += ["--length-scale", f"{factor / rate:.4f}", "--output-file", str(wav)]
            run([*command, *(["--speaker", speaker] if speaker else [])], text=text + "\n")
            return played_at(decode(wav, self.name), factor)
