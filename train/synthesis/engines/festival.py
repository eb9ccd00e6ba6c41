"""Festival: diphone, unit selection and HTS voices, whichever are installed."""

from __future__ import annotations

import functools
import re
import tempfile
from pathlib import Path

from edge_imputer.errors import SynthesisError

from .base import (
    Availability,
    Gender,
    Speech,
    Voice,
    check_voice,
    decode,
    pitch_factor,
    played_at,
    program,
    run,
)

PACKAGES = "festival festvox-kallpc16k"
PERSON = {  # whose recordings; Flite has voices of some of them
    "kal": "cmu-kal",
    "ked": "cmu-ked",
    "slt": "cmu-slt",
    "awb": "cmu-awb",
    "rms": "cmu-rms",
    "bdl": "cmu-bdl",
    "clb": "cmu-clb",
    "jmk": "cmu-jmk",
}
GENDERS: dict[str, Gender] = {"female": "female", "male": "male"}
LANGUAGES = {"american": "en-us", "british": "en-gb", "scottish": "en-gb-scotland"}


class Festival:
    """The program ``festival``, one process an utterance."""

    name = "festival"

    def available(self) -> Availability:
        """Whether the program is on the path and has an English voice."""
        found = program("festival", PACKAGES)
        if found.ok and not _voices():
            return Availability(
                False, "festival has no English voice", "apt-get install festvox-kallpc16k"
            )
        return found

    def voices(self) -> list[Voice]:
        """The installed English voices."""
        return list(_voices()) if program("festival", PACKAGES).ok else []

    def speak(self, text: str, voice: str, *, rate: float = 1.0, pitch: float = 0.0) -> Speech:
        """Say `text`; pitch and formants move together (`played_at`)."""
        check_voice(voice, _voices())
        factor = pitch_factor(pitch)
        quoted = text.replace("\\", " ").replace('"', " ")
        with tempfile.TemporaryDirectory() as folder:
            wav = Path(folder, "speech.wav")
            script = (
                f"(voice_{voice})\n(Parameter.set 'Duration_Stretch {factor / rate:.4f})\n"
                f'(utt.save.wave (SynthText "{quoted}") "{wav}" \'riff)\n'
            )
            said = run(["festival", "--pipe"], text=script)
            if not wav.is_file():  # festival ends with code 0 whatever happens
                raise SynthesisError(f"festival gave no audio for {text!r}: {said[-200:]!r}")
            return played_at(decode(wav, self.name), factor)


@functools.cache
def _voices() -> tuple[Voice, ...]:
    script = '(mapcar (lambda (v) (format t "%l\\n" (voice.description v))) (voice.list))'
    listed = run(["festival", "--pipe"], text=script).decode(errors="replace")
    voices = []
    for line in re.findall(r"^\((\w+) \((\(language.*)", listed, re.MULTILINE):
        name, facts = line
        said = dict(re.findall(r"\((language|gender|dialect) (\w+)\)", facts))
        if said.get("language") not in ("english", "us_english", "british_english"):
            continue
        gender = GENDERS.get(said.get("gender", ""))
        quality = "diphone" if "diphone" in name else "parametric" if "hts" in name else None
        person = next((PERSON[part] for part in name.split("_") if part in PERSON), None)
        language = LANGUAGES.get(said.get("dialect", ""), "en")
        voices.append(Voice("festival", name, language, gender, quality, person))
    return tuple(sorted(voices, key=lambda voice: voice.name))
