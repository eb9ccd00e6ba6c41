"""eSpeak NG: formant synthesis, many accents and variants."""

from __future__ import annotations

import functools

import numpy as np

from .base import Availability, Gender, Speech, Voice, decode, program, run

WORDS_PER_MINUTE = 165  # at a rate of 1; its own 175 is brisk for single words
# Semitones above its own pitch that --pitch gives, measured on en-us in eSpeak NG 1.51.
PITCHES = ((-3.9, 0), (-2.4, 25), (0.0, 50), (4.4, 75), (9.0, 99))
# 1.51 ignores a variant after en-gb; plain "en" is the same British voice and takes them.
RENAMED = {"en-gb": "en"}
SAME = {"caleb": "klatt", "klatt6": "klatt"}  # variants that sound alike, to the last sample
EFFECTS = frozenset(  # whispers, robots and jokes: not what people sound like
    "whisper whisperf croak Demonic UniRobot anikaRobot announcer robosoft robosoft2 robosoft3 "
    "robosoft4 robosoft5 robosoft6 robosoft7 robosoft8 fast Storm RicishayMax RicishayMax2 "
    "RicishayMax3 Tweaky kaukovalta Mr_serious".split()
)


class EspeakNg:
    """The program ``espeak-ng``; a voice is an accent, or ``ACCENT+VARIANT``."""

    name = "espeak"  # as in the manifests of this project

    def available(self) -> Availability:
        """Whether the program is on the path."""
        return program("espeak-ng", "espeak-ng")

    def voices(self) -> list[Voice]:
        """Every English accent alone and with every variant, MBROLA's left out."""
        return list(_voices()) if self.available().ok else []

    def speak(self, text: str, voice: str, *, rate: float = 1.0, pitch: float = 0.0) -> Speech:
        """Say `text`; the pitch moves the fundamental frequency alone."""
        semitones, settings = np.array(PITCHES).T
        number = round(float(np.interp(pitch, semitones, settings)))
        speed = str(max(80, min(450, round(WORDS_PER_MINUTE * rate))))
        command = ["espeak-ng", "-v", voice, "-s", speed, "-p", str(number), "--stdin", "--stdout"]
        return decode(run(command, text=text), self.name)


def _listed(which: str) -> list[tuple[str, Gender | None, str]]:
    """Language, gender and file of each line of ``espeak-ng --voices``; files hold no MBROLA."""
    lines = run(["espeak-ng", f"--voices={which}"]).decode().splitlines()[1:]
    rows = []
    genders: dict[str, Gender] = {"F": "female", "M": "male"}
    for line in lines:
        _, language, age_gender, _, file = line.split(maxsplit=4)
        file = file.split("  ")[0].split(" (")[0].strip()
        if not file.startswith("mb/"):
            rows.append((language, genders.get(age_gender[-1:]), file))
    return rows


@functools.cache
def _voices() -> tuple[Voice, ...]:
    accents = {
        RENAMED.get(language, language): (language, gender)
        for language, gender, file in _listed("en")
        if not file.startswith("!v/")
    }
    variants = {
        file.removeprefix("!v/"): gender
        for _, gender, file in _listed("variant")
        if " " not in file  # the name could not be passed on
    }
    voices = []
    for accent, (language, gender) in accents.items():
        voices.append(Voice("espeak", accent, language, gender, "formant"))
        for variant, of_variant in variants.items():
            quality = "effect" if variant in EFFECTS else "formant"
            same = SAME.get(variant, variant)
            person = f"{accent}+{same}" if same in SAME.values() else None
            name = f"{accent}+{variant}"
            voices.append(Voice("espeak", name, language, of_variant or gender, quality, person))
    return tuple(sorted(voices, key=lambda voice: voice.name))


def same_voice(name: str) -> str:
    """The name under which a voice is listed: ``en-gb`` and ``en-gb+f2`` both sound as ``en``."""
    accent = name.partition("+")[0]
    return RENAMED.get(accent, name)
