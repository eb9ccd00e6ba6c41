"""What ``edge-imputer synthesize`` does besides synthesising: texts, voices, progress."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SynthesisError
from ..files import write_atomically

if TYPE_CHECKING:
    from edge_imputer.train.synthesis import Engine, Estimate, Made, Phrase, Voice


def phrases_to_say(
    text: list[str] | None,
    files: list[Path] | None,
    sentence_files: list[Path] | None,
    digits: bool,
    speech_commands: bool,
    commands: int,
    n_near_misses: int,
    clips_each: int,
    seed: int,
) -> list[Phrase]:
    """Everything to say, with its label: a word's own; none for sentences without keywords."""
    from edge_imputer.train.synthesis import (
        DIGITS,
        SPEECH_COMMANDS,
        Phrase,
        near_misses,
        read_texts,
        sentences,
    )
    from edge_imputer.train.synthesis.near_misses import LABEL as NEAR_MISS
    from edge_imputer.train.synthesis.plan import UNKNOWN, check_text

    if n_near_misses and not text:
        raise SynthesisError("expected a TEXT to find near misses of, got --near-misses alone")

    given = [check_text(one) for one in text or []]
    words = [*given, *(line for path in files or [] for line in read_texts(path))]
    words += [*(DIGITS if digits else ()), *(SPEECH_COMMANDS if speech_commands else ())]
    phrases = [Phrase(word, word) for word in dict.fromkeys(words)]
    for target in given if n_near_misses else []:
        for miss in near_misses(target, n_near_misses, others=words):
            phrases.append(Phrase(miss.text, NEAR_MISS, clips=clips_each))
    label = UNKNOWN if phrases else None
    lines = [line for path in sentence_files or [] for line in read_texts(path)]
    for sentence in [*lines, *sentences(commands, seed=seed, without=words)]:
        phrases.append(Phrase(sentence, label, clips=clips_each, apart=True))
    return phrases


def print_texts(
    n: int,
    without: Sequence[Path],
    not_in: Sequence[Path],
    grammar: Path | None,
    jsgf: Path | None,
    words: Path | None,
    seed: int,
) -> None:
    """Print `n` sentences of a grammar; write it in JSGF, and its words, where asked to."""
    from edge_imputer.train.synthesis import (
        grammar_as_jsgf,
        grammar_words,
        read_grammar,
        read_texts,
        sentences,
    )

    if not (n or jsgf or words):
        raise SynthesisError("expected how many sentences, or a file for --jsgf or --words")
    rules = read_grammar(grammar) if grammar else None
    banned = [phrase for path in without for phrase in read_texts(path)]
    known = [sentence for path in not_in for sentence in read_texts(path)]
    for sentence in sentences(n, seed=seed, without=banned, not_in=known, grammar=rules):
        print(sentence)
    if jsgf:
        write_atomically(jsgf, grammar_as_jsgf(rules).encode())
    if words:
        write_atomically(words, "".join(f"{word}\n" for word in grammar_words(rules)).encode())


def per_engine(option: str, values: list[str] | None, engines: list[Engine]) -> dict[str, int]:
    """Numbers such as ``20`` for every engine, or ``espeak=20`` for one."""
    numbers: dict[str, int] = {}
    names = [engine.name for engine in engines]
    for value in values or []:
        name, _, number = value.rpartition("=")
        if not number.isdecimal() or int(number) < 1 or name not in ("", *names):
            raise SynthesisError(
                f"expected {option} N or ENGINE=N with an engine of {', '.join(names)} and a "
                f"number of 1 or more, got {value!r}"
            )
        numbers.update({name: int(number)} if name else dict.fromkeys(names, int(number)))
    return numbers


def cast_voices(
    engines: list[Engine],
    counts: dict[str, int],
    not_in: list[Path] | None,
    seed: int,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
) -> list[Voice]:
    """Voices of each engine, so many of each, none of them of the corpora `not_in`."""
    from edge_imputer.train.synthesis import choose_voices, open_engines
    from edge_imputer.train.synthesis.voices import speakers_of, without_speakers

    avoid = {speaker for folder in not_in or [] for speaker in speakers_of(folder)}
    known = [v for one in open_engines() for v in one.voices()] if avoid else []
    cast: list[Voice] = []
    for one in engines:
        pool = without_speakers(one.voices(), avoid, known)
        n = counts.get(one.name)
        cast += choose_voices(one, n, seed=seed, only=only, skip=skip, pool=pool)
    return cast


class ClipProgress:
    """A bar on stderr; the estimate comes first."""

    def __init__(self, total: int, *, go_on: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._go_on = go_on
        self._console = Console(stderr=True)
        self._bar = Progress(console=self._console)
        self._task = self._bar.add_task("clips", total=total)

    def __enter__(self) -> ClipProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def estimate(self, estimate: Estimate) -> bool:
        """Say how long it will take."""
        each = ", ".join(f"{name} {s * 1000:.0f} ms" for name, s in estimate.clip_s.items())
        done = f", {estimate.n_present} of them present" if estimate.n_present else ""
        self._console.print(
            f"{estimate.n_clips} clips{done}; about {_duration(estimate.seconds)} "
            f"(a clip takes: {each or 'nothing left to make'})"
        )
        self._bar.update(self._task, completed=estimate.n_present)
        return self._go_on

    def done(self, n: int, total: int) -> None:
        """`n` of `total` are there."""
        self._bar.update(self._task, completed=n, total=total)

    def clip(self, made: Made) -> None:
        """One more."""
        self._bar.update(self._task, completed=made.n_present + made.n_made + len(made.dropped))


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def report(made: Made, out: Path) -> None:
    """Print what a run came to: clips made, made again, left out."""
    print(f"{out}: {made.n_made} clips made in {_duration(made.seconds)}, {made.n_present} present")
    for problem, n in made.retried.most_common():
        print(f"  made again {n} times: {problem}")
    if made.dropped:
        print(f"  left out {len(made.dropped)}, see {out / 'dropped.jsonl'}; the first:")
        for one in made.dropped[:3]:
            print(f"    {one.text!r} by {one.speaker}: {one.problems[-1]}")
