"""Which clips a synthetic corpus has: text, voice, take, split and seed of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from edge_imputer.errors import SynthesisError

from .engines import Voice
from .files import Format
from .voices import Split, SplitRule, seed_of, split_voices

UNKNOWN = "_unknown_"  # label of speech that is none of the keywords (`train/data/records.py`)
LONGEST_TEXT = 400  # characters


@dataclass(frozen=True)
class Phrase:
    """Something to say.

    `clips` is how many clips it gets, each in another voice; None is every voice. A phrase that is
    `apart` belongs to one split: sentences that a model is tested on are not trained on.
    """

    text: str
    label: str | None = None
    clips: int | None = None
    apart: bool = False


@dataclass(frozen=True)
class Job:
    """One clip to make."""

    phrase: Phrase
    voice: Voice
    split: Split
    take: int
    n_takes: int
    seed: int
    audio: str  # path relative to the corpus

    def rng(self, attempt: int) -> np.random.Generator:
        """Randomness of one attempt, the same on every run."""
        return np.random.default_rng([self.seed, attempt])


def check_text(text: str) -> str:
    """A text in single spaces.

    Raises
    ------
    SynthesisError
        Nothing to say, too long, or characters that no synthesiser reads.
    """
    clean = " ".join(text.split())
    if not re.search(r"[^\W_]", clean) or len(clean) > LONGEST_TEXT or not clean.isprintable():
        raise SynthesisError(
            f"expected a text of 1 to {LONGEST_TEXT} printable characters with a letter or a "
            f"digit, got {text[:80]!r}"
        )
    return clean


def make_plan(
    phrases: Iterable[Phrase],
    voices: list[Voice],
    rule: SplitRule,
    *,
    seed: int,
    variants: Mapping[str, int] | int = 1,
    suffix: Format = "flac",
) -> list[Job]:
    """Every clip of a corpus, in a fixed shuffled order, so that a part of it is balanced.

    Parameters
    ----------
    phrases : texts, each once
    voices : who speaks
    rule : how voices are split
    seed : decides everything
    variants : takes of a phrase in a voice, each at another rate and pitch; or that of each engine
    suffix : file format

    Raises
    ------
    SynthesisError
        No phrase or voice, or `split_voices` refuses the rule.
    """
    unique = {phrase.text: phrase for phrase in reversed(list(phrases))}
    if not unique or not voices:
        raise SynthesisError(
            f"expected at least one text and one voice, got {len(unique)} and {len(voices)}"
        )
    splits = split_voices(voices, rule, seed=seed)
    speaking = [voice for voice in voices if voice.speaker in splits]
    jobs = []
    for phrase in sorted(unique.values(), key=lambda phrase: phrase.text):
        rng = np.random.default_rng([seed, seed_of(phrase.text)])
        for voice in _cast(phrase, speaking, splits, rule, rng):
            n_takes = variants if isinstance(variants, int) else variants.get(voice.engine, 1)
            for take in range(n_takes if phrase.clips is None else 1):
                jobs.append(_job(phrase, voice, splits, rule, (take, n_takes), seed, suffix))
    order = np.random.default_rng([seed, seed_of("order")]).permutation(len(jobs))
    return [jobs[i] for i in order]


def _cast(
    phrase: Phrase,
    voices: list[Voice],
    splits: dict[str, Split],
    rule: SplitRule,
    rng: np.random.Generator,
) -> list[Voice]:
    """The voices that say a phrase."""
    if phrase.apart and rule.by != "none":
        split = _draw_split(rule, rng)
        for name in (split, "train"):
            if of_split := [v for v in voices if splits[v.speaker] == name]:
                voices = of_split
                break
    if phrase.clips is None or phrase.clips >= len(voices):
        return voices
    return [voices[i] for i in rng.choice(len(voices), size=phrase.clips, replace=False)]


def _draw_split(rule: SplitRule, rng: np.random.Generator) -> Split:
    draw = rng.random()
    if draw < rule.test_share:
        return "test"
    return "valid" if draw < rule.test_share + rule.valid_share else "train"


def _job(
    phrase: Phrase,
    voice: Voice,
    splits: dict[str, Split],
    rule: SplitRule,
    takes: tuple[int, int],
    seed: int,
    suffix: str,
) -> Job:
    take, n_takes = takes
    own = seed_of(seed, voice.speaker, phrase.text, take)
    split = splits[voice.speaker]
    if rule.by == "none":  # single clips; a sentence that is kept apart goes whole
        key = seed_of(seed, phrase.text) if phrase.apart else own
        if split == "train":
            split = _draw_split(rule, np.random.default_rng(key))
    folder = re.sub(r"[^\w.-]", "_", voice.name)
    audio = f"audio/{voice.engine}/{folder}/{slug(phrase.text)}_{take}.{suffix}"
    return Job(phrase, voice, split, take, n_takes, own, audio)


def slug(text: str) -> str:
    """A file name for a text; with a checksum where the name does not say it all."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return name if name.replace("_", " ") == text else f"{name[:40]}-{seed_of(text):08x}"
