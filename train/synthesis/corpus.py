"""Making the clips of a plan: side by side, resumable, with a manifest of what is usable."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edge_imputer.errors import SynthesisError
from edge_imputer.files import write_atomically

from .engines import Engine
from .files import write_clip, written_problem
from .phones import n_phones_of
from .plan import Job
from .rows import MANIFEST, journaled, read_journaled, write_lines
from .shaping import SAMPLE_RATE, Dress, cut_speech, dress
from .voices import Split

DROPPED = "dropped.jsonl"
SETTINGS = "synthesis.json"
ATTEMPTS = 4


class ClipRow(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the manifest: the keys of `ClipRecord`, and how the clip was made."""

    audio: str
    text: str
    speaker: str
    split: Split
    duration_s: float
    sample_rate: int
    engine: str
    label: str | None
    rate: float  # factor on the speaking rate
    pitch: float  # semitones
    take: int
    seed: int  # of the clip: a plan that asks for another one makes it anew


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """A clip that no attempt made usable."""

    audio: str
    text: str
    speaker: str
    problems: list[str]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What clips of one folder have in common."""

    seed: int
    dress: Dress


@dataclass(frozen=True)
class Estimate:
    """How long it will take, from one clip of each engine."""

    n_clips: int
    n_present: int  # made by an earlier run
    seconds: float
    clip_s: dict[str, float]  # of each engine, on one core


@dataclass
class Made:
    """What a run came to."""

    n_made: int = 0
    n_present: int = 0
    seconds: float = 0.0
    dropped: list[Dropped] = field(default_factory=list)
    retried: Counter[str] = field(default_factory=Counter)  # problems that another attempt mended


def make_clip(
    job: Job, engine: Engine, n_phones: float, how: Dress, out: Path
) -> tuple[ClipRow | None, list[str]]:
    """Make one clip, again with other draws while it is unusable.

    Returns
    -------
    row : ClipRow or None
        None where no attempt gave a usable clip.
    problems : list of str
        What was wrong with the attempts that failed.
    """
    path, problems = out / job.audio, []
    for attempt in range(ATTEMPTS):
        rng = job.rng(attempt)
        low, high = how.rate
        share = (job.take + rng.random()) / job.n_takes  # takes share out the range of rates
        rate = round(low * (high / low) ** share, 3)
        pitch = round(float(rng.uniform(*how.pitch)), 2)
        try:
            speech = engine.speak(job.phrase.text, job.voice.name, rate=rate, pitch=pitch)
        except SynthesisError as error:
            problems.append(str(error))
            continue
        cut = cut_speech(speech, job.phrase.text, n_phones, rate)
        if cut.problem is not None:
            problems.append(cut.problem)
            continue
        clip = dress(cut.waveform, how, rng)
        write_clip(path, clip, SAMPLE_RATE)
        problem = written_problem(path, clip, SAMPLE_RATE)
        if problem is None:
            return _row(job, len(clip), rate, pitch), problems
        problems.append(problem)
    path.unlink(missing_ok=True)
    return None, problems


def _row(job: Job, n_samples: int, rate: float, pitch: float) -> ClipRow:
    return ClipRow(
        audio=job.audio,
        text=job.phrase.text,
        speaker=job.voice.speaker,
        split=job.split,
        duration_s=round(n_samples / SAMPLE_RATE, 4),
        sample_rate=SAMPLE_RATE,
        engine=job.voice.engine,
        label=job.phrase.label,
        rate=rate,
        pitch=pitch,
        take=job.take,
        seed=job.seed,
    )


def synthesize(
    jobs: list[Job],
    engines: Iterable[Engine],
    out: Path,
    *,
    settings: Settings,
    workers: int = 1,
    voices_apart: bool = True,
    on_estimate: Callable[[Estimate], bool] = lambda estimate: True,
    on_clip: Callable[[Made], None] = lambda made: None,
) -> Made:
    """Make every clip of a plan that the folder does not hold yet.

    A thread drives each of `workers` engine processes; which of them makes a clip changes nothing
    about it. A run that was stopped goes on where it was, and the manifest comes out the same.

    Parameters
    ----------
    jobs, engines
        The plan, and the engines of its voices.
    out : Path
        The corpus folder.
    settings : Settings
        Must be those of the clips that are there.
    workers : int
    voices_apart : bool
        Refuse a speaker in two splits, also with the clips that are there.
    on_estimate
        Called once, before the bulk of the work; a false answer ends the run there.
    on_clip
        Called after each clip, in the calling thread.

    Raises
    ------
    SynthesisError
        Ranges that are none, clips of other settings or splits in the folder, or no clip could be
        made.
    OSError
        A file could not be written; what was made is kept.
    """
    settings.dress.check()
    by_name = {engine.name: engine for engine in engines}
    out.mkdir(parents=True, exist_ok=True)
    _check_settings(out, settings)
    rows = {row.audio: row for row in read_rows(out) if (out / row.audio).is_file()}
    if voices_apart:
        _check_apart(rows.values(), jobs, out)
    planned = {job.audio: job.seed for job in jobs}
    if len(planned) < len(jobs):
        raise SynthesisError("expected voices whose names differ in letters or digits")
    todo = [job for job in jobs if job.audio not in rows or rows[job.audio].seed != job.seed]
    phones = dict(zip(texts := _texts(todo), n_phones_of(texts), strict=True))
    made = Made(n_present=len(jobs) - len(todo))
    start = time.monotonic()

    def make(job: Job) -> tuple[Job, ClipRow | None, list[str]]:
        engine = by_name[job.voice.engine]
        return job, *make_clip(job, engine, phones[job.phrase.text], settings.dress, out)

    with journaled(out, rows) as add:
        for job, row, problems in _results(todo, make, workers, len(jobs), on_estimate):
            if row is None:
                rows.pop(job.audio, None)
                made.dropped.append(_dropped(job, problems))
            else:
                add(row)
                made.n_made += 1
                made.retried.update(_kind(problem) for problem in problems)
            made.seconds = time.monotonic() - start
            on_clip(made)
    write_lines(out / DROPPED, made.dropped)
    if jobs and not rows:
        raise SynthesisError(f"none of {len(jobs)} clips could be made; see {out / DROPPED}")
    return made


def _texts(jobs: list[Job]) -> list[str]:
    return sorted({job.phrase.text for job in jobs})


def _results(
    todo: list[Job],
    make: Callable[[Job], tuple[Job, ClipRow | None, list[str]]],
    workers: int,
    n_jobs: int,
    on_estimate: Callable[[Estimate], bool],
) -> Iterator[tuple[Job, ClipRow | None, list[str]]]:
    """Make one clip of each engine to see how long they take, then the others side by side."""
    first: dict[str, Job] = {}
    for job in todo:
        first.setdefault(job.voice.engine, job)
    clip_s = {}
    for name, job in sorted(first.items()):
        start = time.monotonic()
        yield make(job)
        clip_s[name] = time.monotonic() - start
    counts = Counter(job.voice.engine for job in todo)
    cores = min(workers, os.cpu_count() or 1)
    seconds = sum((n - 1) * clip_s[name] for name, n in counts.items()) / cores
    if not on_estimate(Estimate(n_jobs, n_jobs - len(todo), seconds, clip_s)):
        return
    probed = {id(job) for job in first.values()}
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(make, job) for job in todo if id(job) not in probed]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:  # an error or Ctrl-C: what has not begun is given up
            pool.shutdown(cancel_futures=True)


def _kind(problem: str) -> str:
    """A problem without its numbers, to count by."""
    return "duration" if "phones" in problem else problem.split(" of ")[0][:60]


def _dropped(job: Job, problems: list[str]) -> Dropped:
    return Dropped(
        audio=job.audio, text=job.phrase.text, speaker=job.voice.speaker, problems=problems
    )


def read_rows(out: Path) -> list[ClipRow]:
    """Rows of the manifest and of the journal that an interrupted run left; none at first.

    Raises
    ------
    SynthesisError
        A manifest that this package did not write.
    """
    return read_journaled(out, ClipRow, "a synthetic clip")


def _check_settings(out: Path, settings: Settings) -> None:
    path = out / SETTINGS
    if path.is_file():
        try:
            present = msgspec.json.decode(path.read_bytes(), type=Settings)
        except msgspec.DecodeError as error:
            raise SynthesisError(f"{path}: expected the settings of a corpus: {error}") from error
        if present != settings:
            raise SynthesisError(
                f"{out} holds clips made with {present}, got {settings}; "
                "use the same seed and ranges, or another folder"
            )
        return
    if (out / MANIFEST).exists():
        raise SynthesisError(
            f"{out} holds another corpus ({MANIFEST} without {SETTINGS}); use a folder of its own"
        )
    write_atomically(path, msgspec.json.format(msgspec.json.encode(settings), indent=2) + b"\n")


def _check_apart(rows: Iterable[ClipRow], jobs: list[Job], out: Path) -> None:
    splits: dict[str, Split] = {row.speaker: row.split for row in rows}
    for job in jobs:
        other = splits.setdefault(job.voice.speaker, job.split)
        if other != job.split:
            raise SynthesisError(
                f"{job.voice.speaker} is in the split {other!r} of {out}, and would be in "
                f"{job.split!r}: choose the same voices and splits as before, or another folder"
            )
