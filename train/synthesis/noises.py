"""A corpus of generated noises, whose kinds differ from split to split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np

from edge_imputer.errors import SynthesisError

from .engines.base import Waveform
from .files import Format, write_clip, written_problem
from .noise_kinds import BABBLE, KINDS, babble
from .rows import journaled, read_journaled
from .shaping import CEILING, SAMPLE_RATE
from .voices import Split, seed_of

# What a model is tested with it has not been trained with: no kind is in two splits.
DEFAULT_KINDS: dict[Split, tuple[str, ...]] = {
    "train": ("steady", "hum", "fan", "clicks", "door", "chords", "percussion", BABBLE),
    "valid": ("wind", "ticking"),
    "test": ("rain", "dishes", "beeps", "melody"),
}
SHARES: dict[Split, float] = {"train": 0.8, "valid": 0.1, "test": 0.1}
LEVEL_DBFS = (-40.0, -20.0)  # root mean square
FLOOR_DBFS = (-75.0, -62.0)  # white noise under everything: no digital silence
N_TALKERS = (4, 9)
LABEL = "_noise_"  # to mix into others, no example of any class (`train/data/records.py`)

Talkers = Callable[[Split, int, np.random.Generator], list[Waveform]]


class NoiseRow(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the manifest: the keys of `ClipRecord`, the kind and the seed."""

    audio: str
    text: None = None
    speaker: str
    split: Split
    duration_s: float
    sample_rate: int
    label: str = LABEL
    kind: str
    seed: int


@dataclass(frozen=True)
class NoisePlan:
    """Hours and kinds of a corpus of noises.

    `kinds` may not share a kind between splits; a split without kinds gets no clips, and its share
    of the hours goes to the others.
    """

    hours: float
    kinds: Mapping[Split, Sequence[str]]
    clip_s: float = 10.0
    seed: int = 0
    suffix: Format = "flac"

    def rows(self) -> list[NoiseRow]:
        """Every clip to make.

        Raises
        ------
        SynthesisError
            Kinds that are unknown or in two splits, or no time for one clip of each.
        """
        self._check()
        used = {split: kinds for split, kinds in self.kinds.items() if kinds}
        total = sum(SHARES[split] for split in used)
        rows = []
        for split, kinds in used.items():
            n = round(self.hours * 3600 * SHARES[split] / total / self.clip_s)
            for i in range(max(n, len(kinds))):  # one of each kind at least
                rows.append(self._row(split, kinds[i % len(kinds)], i // len(kinds)))
        return sorted(rows, key=lambda row: row.audio)

    def _row(self, split: Split, kind: str, i: int) -> NoiseRow:
        return NoiseRow(
            audio=f"audio/{kind}/{kind}_{i:05d}.{self.suffix}",
            speaker=f"noise:{kind}",
            split=split,
            duration_s=round(round(self.clip_s * SAMPLE_RATE) / SAMPLE_RATE, 4),
            sample_rate=SAMPLE_RATE,
            kind=kind,
            seed=seed_of(self.seed, kind, i, self.clip_s),
        )

    def _check(self) -> None:
        if not (0 < self.hours < 10_000 and 0.5 <= self.clip_s <= 600):
            raise SynthesisError(
                "expected more than 0 hours of noise in clips of 0.5 to 600 s, got "
                f"{self.hours} h and {self.clip_s} s"
            )
        owner: dict[str, Split] = {}
        for split, kinds in self.kinds.items():
            for kind in kinds:
                if kind not in KINDS and kind != BABBLE:
                    raise SynthesisError(
                        f"expected kinds of noise among {', '.join([*KINDS, BABBLE])}, got {kind!r}"
                    )
                if owner.setdefault(kind, split) != split:
                    raise SynthesisError(
                        f"expected each kind in one split, got {kind!r} in {owner[kind]} and "
                        f"{split}: a model would be tested on what it was trained with"
                    )
        if not owner:
            raise SynthesisError("expected at least one kind of noise, got none")


def parse_kinds(options: Sequence[str]) -> dict[Split, tuple[str, ...]]:
    """Kinds of each split from ``train=hum,fan`` and so on; `DEFAULT_KINDS` without any."""
    if not options:
        return dict(DEFAULT_KINDS)
    kinds: dict[Split, tuple[str, ...]] = {}
    for option in options:
        split, _, names = option.partition("=")
        for known in get_args(Split):
            if split == known and names:
                kinds[known] = tuple(name.strip() for name in names.split(","))
        if split not in kinds:
            raise SynthesisError(f"expected kinds such as test=rain,beeps, got {option!r}")
    return kinds


def make_noise(row: NoiseRow, talkers: Talkers | None = None) -> Waveform:
    """The noise of a row, (n,) float32 at `SAMPLE_RATE`; its seed decides every sample.

    Raises
    ------
    SynthesisError
        Babble without anybody to talk.
    """
    rng = np.random.default_rng(row.seed)
    n = round(row.duration_s * SAMPLE_RATE)
    if row.kind == BABBLE:
        if talkers is None:
            raise SynthesisError("expected speech to make babble of, got none")
        people = talkers(row.split, int(rng.integers(*N_TALKERS)), rng)
        noise = babble(people, n, rng)
    else:
        noise = KINDS[row.kind](n, rng)
    level_db, floor_db = rng.uniform(*LEVEL_DBFS), rng.uniform(*FLOOR_DBFS)
    gain = 10 ** (level_db / 20) / (float(np.sqrt(np.mean(noise**2))) + 1e-12)
    noise = noise * min(gain, CEILING / float(np.abs(noise).max()))
    noise += rng.standard_normal(n) * 10 ** (floor_db / 20)
    noise *= min(1.0, CEILING / float(np.abs(noise).max()))
    return np.asarray(noise, np.float32)


def synthesize_noises(
    plan: NoisePlan,
    out: Path,
    *,
    talkers: Talkers | None = None,
    workers: int = 1,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> list[NoiseRow]:
    """Write a corpus of noises; clips that are there, also of a run that was killed, are kept.

    Parameters
    ----------
    plan : NoisePlan
    out : Path
        A folder of its own.
    talkers : optional
        Speech of so many people of a split, for babble.
    workers : int
        Clips made at once; changes nothing about them.
    on_clip
        Called with the clips done and all of them.

    Raises
    ------
    SynthesisError
        The plan, or another corpus in the folder.
    """
    rows = plan.rows()
    present = {row.audio: row for row in read_journaled(out, NoiseRow, "a generated noise")}
    done = {r.audio: r for r in rows if present.get(r.audio) == r and (out / r.audio).is_file()}
    todo = [row for row in rows if row.audio not in done]

    def make(row: NoiseRow) -> NoiseRow:
        waveform = make_noise(row, talkers)
        write_clip(out / row.audio, waveform, SAMPLE_RATE)
        problem = written_problem(out / row.audio, waveform, SAMPLE_RATE)
        if problem is not None:
            raise SynthesisError(f"{out / row.audio}: {problem}")
        return row

    with journaled(out, done) as add, ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(make, row) for row in todo]
        try:
            for future in as_completed(futures):
                add(future.result())
                on_clip(len(done), len(rows))
        finally:
            pool.shutdown(cancel_futures=True)
    return rows
