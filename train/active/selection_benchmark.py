"""Benchmark of selecting: ``make bench-select``.

CPU time of one core, from files to scores, of pools that the benchmark makes of the shipped
digits: two to five words an utterance, as 16-bit WAV at 16 kHz. The model is the default one with
random weights, which costs what a trained one does. Memory is of a pool of a million rows whose
scores are made up: all is done but decoding and the network, which keep nothing. So is the time of
choosing, from pools that are larger than what can be scored here.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from edge_imputer.tokens import token_spec_of

from ..benchmark import cpu_threads
from ..checkpoint import Origin, pack
from ..data import ClipRecord, Manifest, load_clips, read_manifest, write_manifest
from ..data import benchmark as data_benchmark
from ..data.benchmark import peak_bytes
from ..data.sequences import joined_sequences
from ..recipe import read_recipe
from ..tasks import KeywordTaskSpec, build_task
from .fingerprint import PRINT_BYTES
from .options import ScoreOptions
from .score_log import Entry, ScoreLog, Shard, rows_of
from .selecting import Selection, SelectionOptions
from .strategies import STRATEGIES

RATE = 16_000
WORDS = (2, 5)
SIZES = (64, 128, 256)  # clips
CHOSEN_FROM = (10_000, 100_000)  # clips, of scores that are made up
DEFAULT = SelectionOptions.strategy
BY_SCORE = "egl-sampled"  # whose memory is measured too: it keeps no embeddings
WITHOUT_NETWORK = "read and looked at"


@dataclass(frozen=True)
class Row:
    """What a strategy costs."""

    strategy: str
    n_clips: int
    where: str
    ms_per_clip: float
    audio_s_per_s: float  # seconds of audio in a second

    @property
    def clips_per_s(self) -> float:
        """Clips in a second."""
        return 1000 / self.ms_per_clip


class Bench:
    """The pool, the model, and what is measured of them.

    Parameters
    ----------
    folder : where all is written
    digits : the corpus that clips are made of
    sizes : of the pools, clips
    """

    def __init__(self, folder: Path, digits: Path, sizes: Sequence[int] = SIZES) -> None:
        self.folder = folder
        self.sizes = sizes
        clips = load_clips(digits, read_manifest(digits), "train", sample_rate=RATE)
        joined = joined_sequences(clips, max(sizes), sample_rate=RATE, seed=1, length=WORDS)
        records = []
        for number, clip in enumerate(joined):
            name = f"{number:06d}.wav"
            soundfile.write(folder / name, clip.waveform, RATE, subtype="PCM_16")
            records.append(_record(name, len(clip.waveform) / RATE))
        self.pools = {n: folder / f"pool-{n}.jsonl" for n in sizes}
        for n, path in self.pools.items():
            write_manifest(path, records[:n])
        self.model = write_model(folder / "model.ckpt")

    def rows(self, strategies: Sequence[str] = tuple(STRATEGIES)) -> list[Row]:
        """Reading alone, every strategy, the default one at every size, and on a GPU if any."""
        middle = sorted(self.sizes)[len(self.sizes) // 2]
        plan = [(name, middle, "cpu") for name in (WITHOUT_NETWORK, *strategies)]
        plan += [(DEFAULT, n, "cpu") for n in self.sizes if n != middle]
        if torch.cuda.is_available():
            plan += [(name, max(self.sizes), "cuda") for name in strategies]
        with cpu_threads(1):
            self._timed(DEFAULT, min(self.sizes), "cpu")  # what is loaded once
            return [self._timed(*one) for one in plan]

    def shards_agree(self) -> bool:
        """Whether two shards give the selection of one, byte for byte."""
        chosen = []
        for of in (1, 2):
            selection = self._selection(DEFAULT, min(self.sizes), f"shards-{of}")
            for index in range(of):
                selection.score(Shard(index + 1, of))
            selection.select()
            chosen.append(selection.options.out.read_bytes())
        return chosen[0] == chosen[1]

    def _timed(self, strategy: str, n_clips: int, device: str) -> Row:
        name = DEFAULT if strategy == WITHOUT_NETWORK else strategy
        with tempfile.TemporaryDirectory(dir=self.folder) as out:
            selection = self._selection(name, n_clips, f"{Path(out).name}/scored", device)
            clock = time.process_time if device == "cpu" else time.perf_counter
            if strategy == WITHOUT_NETWORK:
                blocks = selection.blocks(Shard().blocks(n_clips), None)
                start = clock()
                for _ in blocks:
                    pass
            else:
                start = clock()
                selection.score(Shard())
            seconds = clock() - start
        audio_s = float(Manifest.open(self.pools[n_clips]).durations.sum())
        where = "one core (CPU time)" if device == "cpu" else torch.cuda.get_device_name()
        return Row(strategy, n_clips, where, 1000 * seconds / n_clips, audio_s / seconds)

    def _selection(self, strategy: str, n_clips: int, name: str, device: str = "cpu") -> Selection:
        return Selection(
            SelectionOptions(
                self.model,
                self.pools[n_clips],
                self.folder / f"{name}.jsonl",
                budget_s=60.0,
                strategy=strategy,
                device=device,
            )
        )


def write_model(path: Path) -> Path:
    """A checkpoint of the default model with random weights."""
    recipe = read_recipe("digits")
    assert not isinstance(recipe.task, KeywordTaskSpec)
    tokens = token_spec_of([" efghinorstuvwxz"])
    spec = recipe.task.make_spec(recipe.features, recipe.encoder, tokens)
    torch.manual_seed(0)
    task = build_task(spec, recipe.task)
    origin = Origin(data="none, random weights", n_clips=0)
    torch.save(pack(task.state_dict(), spec, recipe, origin, 0), path)
    return path


def _record(name: str, seconds: float) -> ClipRecord:
    return ClipRecord(
        audio=name,
        text=None,
        speaker="unknown",
        split="train",
        duration_s=round(seconds, 6),
        sample_rate=RATE,
    )


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """Clips a second by strategy; and a clip's time in the largest pool over that in the least."""
    cpu = [row for row in rows if row.where.startswith("one core")]
    of_default = sorted((r for r in cpu if r.strategy == DEFAULT), key=lambda r: r.n_clips)
    middle = of_default[len(of_default) // 2]
    found = {"clips_per_s": middle.clips_per_s}
    for row in cpu:
        if row.strategy != WITHOUT_NETWORK and row.n_clips == middle.n_clips:
            found[f"clips_per_s, {row.strategy}"] = row.clips_per_s
    found["clip_time_largest_over_smallest_pool"] = (
        of_default[-1].ms_per_clip / of_default[0].ms_per_clip
    )
    return found


def growth_mb(n_rows: int, strategy: str = DEFAULT) -> float:
    """Memory that a pool's rows take, in MB: run it in a process of its own.

    What counts is the most that was resident at any time since a pool of a few rows went the same
    way: its manifest is opened, its rows are read, their scores written; then they are joined,
    10 hours are chosen, and all files written.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder / "model.ckpt")
        _made_up(folder, model, 1000, strategy).select()
        before = peak_bytes(reset=True)
        _made_up(folder, model, n_rows, strategy).select()
        return (peak_bytes() - before) / 2**20


def growth_apart(n_rows: int, strategy: str = DEFAULT) -> float:
    """`growth_mb` in a process of its own, which nothing else has filled before."""
    return data_benchmark.growth_apart(n_rows, __name__, strategy)


def choosing_figures(sizes: Sequence[int] = CHOSEN_FROM) -> dict[str, float]:
    """Microseconds of CPU a clip, from scores to a twentieth that is chosen, by size of the pool.

    And a clip's time in the largest pool over that in the smallest.
    """
    us = {}
    with tempfile.TemporaryDirectory() as name, cpu_threads(1):
        folder = Path(name)
        model = write_model(folder / "model.ckpt")
        for n in sizes:
            selection = _made_up(folder, model, n, budget_s=sum(_seconds(n)) / 20)
            start = time.process_time()
            selection.choose(selection.scores())
            us[n] = 1e6 * (time.process_time() - start) / n
    found = {f"choosing_us_per_clip, {n} clips": value for n, value in us.items()}
    found["choosing_time_largest_over_smallest_pool"] = us[max(us)] / us[min(us)]
    return found


def _made_up(
    folder: Path, model: Path, n_rows: int, strategy: str = DEFAULT, budget_s: float = 36_000.0
) -> Selection:
    """A selection from a pool whose scores are made up."""
    pool = folder / f"{n_rows}.jsonl"
    rng = np.random.default_rng(0)
    write_manifest(
        pool,
        (
            _record(f"{number // 1000:04d}/{number:08d}.flac", seconds)
            for number, seconds in enumerate(_seconds(n_rows))
        ),
    )
    out = folder / f"{n_rows}-out.jsonl"
    selection = Selection(SelectionOptions(model, pool, out, budget_s, strategy=strategy))
    width = ScoreOptions().dimensions if selection.scorer.needs_embedding else 0
    with ScoreLog(selection.options.folder, Shard(), selection.purpose, n_rows) as scores:
        manifest = Manifest.open(pool)
        for block in scores.blocks:
            rows = rows_of(block, n_rows)
            entries = [_entry(row, manifest[row].duration_s, rng) for row in rows]
            vectors = rng.standard_normal((len(rows), width), np.float32)
            scored = [k for k, entry in enumerate(entries) if not entry.reason and width]
            scores.add(entries, {k: vectors[k] for k in scored})
    return selection


def _seconds(n: int) -> Iterator[float]:
    rng = np.random.default_rng(1)
    for _ in range(n):
        yield float(rng.gamma(4.0, 2.0)) + 0.5


def _entry(row: int, seconds: float, rng: np.random.Generator) -> Entry:
    """A score that is made up; one clip in ten has none, one in twenty repeats another."""
    if row % 10 == 0:
        return Entry(row=row, seconds=seconds, reason="noise", detail="steady")
    sound = hashlib.blake2b(b"%d" % (row - 1 if row % 20 == 2 else row), digest_size=PRINT_BYTES)
    per_second = float(rng.gamma(2.0, 30.0))
    return Entry(
        row=row,
        seconds=seconds,
        score=per_second * seconds,
        per_second=per_second,
        text="one two three four five six",
        confidence=0.5,
        print=sound.hexdigest(),
        file=row + 1,
    )
