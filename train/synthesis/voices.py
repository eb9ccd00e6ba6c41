"""Which voices speak, and which of them belong to which split."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from edge_imputer.errors import SynthesisError

from .engines import Engine, Voice
from .engines.espeak import same_voice

Split = Literal["train", "valid", "test"]
SplitBy = Literal["voice", "engine", "none"]
EVERYBODY = "*"


def seed_of(*parts: object) -> int:
    """A seed from anything that prints, the same on every run and machine."""
    return zlib.crc32("|".join(map(str, parts)).encode())


def choose_voices(
    engine: Engine,
    n: int | None,
    *,
    seed: int,
    only: Iterable[str] = (),
    skip: Iterable[str] = (),
    effects: bool = False,
    pool: list[Voice] | None = None,
) -> list[Voice]:
    """`n` voices of an engine: accents, variants and genders in turn, effects left out.

    Parameters
    ----------
    engine : Engine
    n : int, optional
        All if not given, or if it has fewer.
    seed : int
    only, skip : patterns of speakers, such as ``espeak:en-us*``
    effects : bool
        Also whispers, robots and the like.
    pool : list of Voice, optional
        To choose from; all of the engine's if not given.
    """
    only, skip = list(only), list(skip)
    pool = [
        voice
        for voice in (engine.voices() if pool is None else pool)
        if (not only or any(fnmatchcase(voice.speaker, pattern) for pattern in only))
        and not any(fnmatchcase(voice.speaker, pattern) for pattern in skip)
        and (effects or voice.quality != "effect" or voice.speaker in only)
    ]
    order = np.random.default_rng([seed, seed_of(engine.name)]).permutation(len(pool))
    left = [pool[i] for i in order]
    if n is None or n >= len(left):
        return sorted(left, key=lambda voice: voice.name)
    used: Counter[tuple[str, str | None]] = Counter()
    chosen = []
    for _ in range(n):
        best = min(left, key=lambda voice: sum(3.0 * used[t] for t in _traits(voice)))
        left.remove(best)
        chosen.append(best)
        used.update(_traits(best))
    return sorted(chosen, key=lambda voice: voice.name)


def _traits(voice: Voice) -> list[tuple[str, str | None]]:
    """What should differ from one chosen voice to the next."""
    accent, _, variant = voice.name.partition("+")
    return [("accent", accent), ("variant", variant), ("gender", voice.gender)]


@dataclass(frozen=True)
class SplitRule:
    """How voices are dealt over the splits.

    What `valid` and `test` name (engines, or patterns of speakers; "*" is everybody, and then there
    is nothing to train on) goes there. Of the rest, shares
    go there by voice; or, with `by` = "engine", nothing more to test; or, with "none", single
    clips, and then voices are not kept apart.
    """

    by: SplitBy = "voice"
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    valid_share: float = 0.1
    test_share: float = 0.1


def split_voices(voices: list[Voice], rule: SplitRule, *, seed: int) -> dict[str, Split]:
    """The split of each speaker; nobody is on two sides, even through two engines.

    Another voice built from the recordings of a person whom `rule` puts into valid or test is
    left out of the result: it may neither be trained on, nor was it asked for.

    Raises
    ------
    SynthesisError
        A name that fits no voice, shares that are none, "engine" without a test engine, or
        nobody left to train on.
    """
    _check_rule(voices, rule)
    identities: dict[str, Split] = {}
    splits: dict[str, Split] = {}
    named: tuple[tuple[Split, tuple[str, ...]], ...] = (("test", rule.test), ("valid", rule.valid))
    for split, names in named:
        for voice in voices:
            fits = any(_fits(voice, name) for name in names)
            if fits and identities.setdefault(voice.identity, split) == split:
                splits[voice.speaker] = split
    rest: dict[str, list[Voice]] = {}
    for voice in voices:
        if voice.speaker not in splits and voice.identity not in identities:
            rest.setdefault(voice.identity, []).append(voice)
    dealt = _deal(list(rest), rule, seed)
    for identity, split in dealt.items():
        splits.update({voice.speaker: split for voice in rest[identity]})
    if "train" not in splits.values() and EVERYBODY not in (*rule.test, *rule.valid):
        raise SynthesisError(
            f"all {len(splits)} voices went to valid and test; expected some to train on: use more "
            f"voices, or name fewer; or name {EVERYBODY!r}, for a corpus only to test with"
        )
    return splits


def _check_rule(voices: list[Voice], rule: SplitRule) -> None:
    for name in (*rule.valid, *rule.test):
        if not any(_fits(voice, name) for voice in voices):
            engines = ", ".join(sorted({voice.engine for voice in voices}))
            raise SynthesisError(
                f"expected an engine or a voice of this corpus to hold out, got {name!r}; "
                f"its engines are {engines}"
            )
    if min(rule.valid_share, rule.test_share) < 0 or rule.valid_share + rule.test_share >= 1:
        raise SynthesisError(
            "expected shares for valid and test of 0 or more and together below 1, got "
            f"{rule.valid_share} and {rule.test_share}"
        )
    if rule.by == "engine" and not any(name in {v.engine for v in voices} for name in rule.test):
        raise SynthesisError("a split by engine needs one to test on, for example --test flite")


def _fits(voice: Voice, name: str) -> bool:
    return voice.engine == name or fnmatchcase(voice.speaker, name)


def _deal(identities: list[str], rule: SplitRule, seed: int) -> dict[str, Split]:
    """Shares of the voices nobody named."""
    if rule.by == "none":
        return dict.fromkeys(identities, "train")
    order = np.random.default_rng([seed, seed_of("splits")]).permutation(len(identities))
    most = max(0, len(identities) - 1)  # somebody is left to train on
    n_test = 0 if rule.test or rule.by == "engine" else _share(rule.test_share, len(identities))
    n_test = min(n_test, most)
    n_valid = 0 if rule.valid else _share(rule.valid_share, len(identities))
    n_valid = min(n_valid, most - n_test)
    dealt: dict[str, Split] = {}
    for place, i in enumerate(order):
        split: Split = "train"
        if place < n_test:
            split = "test"
        elif place < n_test + n_valid:
            split = "valid"
        dealt[identities[i]] = split
    return dealt


def _share(share: float, n: int) -> int:
    """At least one of three or more, where any is asked for."""
    return max(round(share * n), int(n >= 3)) if share else 0


def speakers_of(folder: Path) -> set[str]:
    """Speakers of another corpus, for example one to test on.

    Raises
    ------
    SynthesisError
        It has no manifest, or one whose lines cannot be read.
    """

    class Line(msgspec.Struct):
        speaker: str | None = None

    path = folder / "manifest.jsonl"
    try:
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
        return {msgspec.json.decode(line, type=Line).speaker or "" for line in lines}
    except (OSError, msgspec.DecodeError) as error:
        raise SynthesisError(
            f"expected a corpus folder with manifest.jsonl at {folder}: {error}"
        ) from error


def without_speakers(voices: list[Voice], speakers: set[str], known: list[Voice]) -> list[Voice]:
    """Voices that are none of `speakers`, nor built from the recordings of one.

    Parameters
    ----------
    voices, speakers
        To choose from; to avoid.
    known : list of Voice
        Voices of every engine at hand: says which persons `speakers` are.
    """
    same = {f"espeak:{same_voice(s.partition(':')[2])}" for s in speakers if s.startswith("espeak")}
    avoid = speakers | same
    persons = {v.person for v in known if v.speaker in avoid and v.person}
    return [v for v in voices if v.speaker not in avoid and v.person not in persons]
