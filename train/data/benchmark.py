"""Benchmark of the way from files to batches: ``make bench-data``.

CPU time of one core, on corpora that the benchmark makes of the shipped digits: joined to
utterances of about 6 s, as 16-bit WAV, FLAC and Opus at 16 kHz. Every augmentation is on at once,
for every utterance (`FULL`): that is more than any recipe asks for.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from edge_imputer.errors import DataError
from edge_imputer.specs import CrnnSpec, FeatureSpec, ImputerSpec, ModelSpec
from edge_imputer.tokens import token_spec_of

from ..benchmark import cpu_threads
from .augment import (
    Augmenter,
    AugmentSpec,
    NoiseBank,
    at_speed,
    babble_track,
    band_limit,
    colour_tracks,
    lose_packets,
    overload,
    recorded_tracks,
    through_codec,
)
from .batches import collate
from .buckets import BucketedPlan
from .cache import ClipCache
from .corpus import load_clips, read_clip, read_manifest
from .features import Featurizer, frame_counts
from .loader import ManifestSource, MicroBatches
from .manifest import Manifest, write_manifest
from .records import ClipRecord, Waveform
from .sequences import joined_sequences

RATE = 16_000
FORMATS = {"WAV": ("wav", "PCM_16"), "FLAC": ("flac", "PCM_16"), "Opus": ("ogg", "OPUS")}
UTTERANCES = 32
WORDS = (8, 12)
BATCH = 16
SHARE_OF_KIND = 1 / 3  # noise is generated, recorded and babble in equal parts

FULL = AugmentSpec(
    speeds=(0.9, 1.1),
    clips_joined=(1, 1),
    quiet=0.0,
    noise_files=SHARE_OF_KIND,
    babble=SHARE_OF_KIND,
    room=1.0,
    clipping=1.0,
    band_limit=1.0,
    codec=1.0,
    packet_loss=1.0,
    low_pass=1.0,
    time_warp=40,
    masks=2,
    mask_time=40,
)


@dataclass(frozen=True)
class Row:
    """One stage's cost."""

    stage: str
    ms_per_s: float  # CPU milliseconds for a second of audio

    @property
    def audio_s_per_cpu_s(self) -> float:
        """Seconds of audio in a second of CPU time."""
        return 1000 / self.ms_per_s


def measure(digits: Path, *, n_utterances: int = UTTERANCES, rounds: int = 3) -> list[Row]:
    """Every stage alone, and the whole from each kind of source.

    Parameters
    ----------
    digits : the corpus to make the benchmark's of
    n_utterances : of the corpora made
    rounds : the median of so many is taken; the stages take turns
    """
    with tempfile.TemporaryDirectory() as name, cpu_threads(1):
        bench = _Bench(Path(name), digits, n_utterances)
        runs = {**bench.stages(), **bench.wholes()}
        times: dict[str, list[float]] = {stage: [] for stage in runs}
        for warm in [False] + [True] * rounds:
            for stage, run in runs.items():
                start = time.process_time()
                seconds = run()
                if warm:
                    times[stage].append(1000 * (time.process_time() - start) / seconds)
        return [Row(stage, float(np.median(values))) for stage, values in times.items()]


class _Bench:
    """The corpora, and what is run on them. A run returns the seconds of audio it worked on."""

    def __init__(self, folder: Path, digits: Path, n_utterances: int) -> None:
        clips = load_clips(digits, read_manifest(digits), "train", sample_rate=RATE)
        utterances = joined_sequences(clips, n_utterances, sample_rate=RATE, seed=1, length=WORDS)
        self.manifests = {
            name: _write(folder / name, [(u.waveform, u.text) for u in utterances], name)
            for name in FORMATS
        }
        self.cache = ClipCache(folder / "cache")
        self.waveforms = [u.waveform for u in utterances]
        self.seconds = sum(map(len, self.waveforms)) / RATE
        rng = np.random.default_rng(0)
        # Any recordings will do: what they sound like does not change the time.
        tracks = recorded_tracks(self.waveforms[:8], folder / "noise")
        babble = babble_track((c.waveform for c in clips), rng, sample_rate=RATE)
        noises = NoiseBank(colour_tracks(RATE, 0.0, 2.0), tracks, (babble,))
        self.augmenter = Augmenter(FULL, sample_rate=RATE, noises=noises)
        spec = ModelSpec(
            features=FeatureSpec(mean=-4.0, std=3.0),
            encoder=CrnnSpec(),
            head=ImputerSpec(),
            tokens=token_spec_of([" ", *(u.text for u in utterances)]),
        )
        self.featurizer = Featurizer(spec)
        self.log_mels = [self.featurizer.features(w) for w in self.waveforms]
        batches = self._batches(self.manifests["WAV"], None)
        self.examples = [batches.example(draw) for draw in batches.plan.update(0)]

    def stages(self) -> dict[str, Callable[[], float]]:
        """Every stage alone, on what the stages before it would give."""
        augment, rng = self.augmenter, np.random.default_rng(0)

        def each(function: Callable[[Waveform], object]) -> Callable[[], float]:
            def run() -> float:
                for waveform in self.waveforms:
                    function(waveform)
                return self.seconds

            return run

        def on_features(function: Callable[[Waveform], object]) -> Callable[[], float]:
            def run() -> float:
                for log_mel in self.log_mels:
                    function(log_mel)
                return self.seconds

            return run

        stages: dict[str, Callable[[], float]] = {
            **{f"decode, {n}": self._decode(n) for n in FORMATS},
            "decode, cached int16": self._decode_cached(),
            "speed": each(lambda w: at_speed(w, 0.9, sample_rate=RATE)),
            "room": each(lambda w: augment.in_room(w, rng)),
            "noise at SNR": each(lambda w: augment.noise(w, rng)),
            "clipping": each(lambda w: overload(w, 6.0)),
            "band limit": each(lambda w: band_limit(w, sample_rate=RATE)),
        }
        for codec in FULL.codecs:
            stages[f"codec, {codec}"] = each(
                lambda w, codec=codec: through_codec(w, codec, sample_rate=RATE)  # type: ignore[misc]
            )
        return stages | {
            "packet loss": each(lambda w: lose_packets(w, 0.05, rng, sample_rate=RATE)),
            "features": each(self.featurizer.features),
            "warp, tilt, low pass": on_features(lambda x: augment.features(x, rng)),
            "SpecAugment": on_features(lambda x: augment.masked(x, rng)),
            "collate": self._collate,
        }

    def wholes(self) -> dict[str, Callable[[], float]]:
        """From files to batches, all augmentations on."""
        wav = self.manifests["WAV"]
        return {
            "whole, WAV": self._whole(wav, None),
            "whole, cached int16": self._whole(wav, self.cache),
            "whole, FLAC": self._whole(self.manifests["FLAC"], None),
            "whole, Opus": self._whole(self.manifests["Opus"], None),
        }

    def _decode(self, name: str) -> Callable[[], float]:
        manifest = self.manifests[name]

        def run() -> float:
            for record in manifest:
                read_clip(manifest.folder, record, RATE)
            return self.seconds

        return run

    def _decode_cached(self) -> Callable[[], float]:
        manifest = self.manifests["Opus"]

        def run() -> float:
            for record in manifest:
                self.cache.waveform(manifest.folder, record, RATE)
            return self.seconds

        return run

    def _collate(self) -> float:
        collate(self.examples)
        return sum(len(e.features) for e in self.examples) / 100

    def _whole(self, manifest: Manifest, cache: ClipCache | None) -> Callable[[], float]:
        batches = self._batches(manifest, cache)
        assert isinstance(batches.plan, BucketedPlan)
        n_updates = batches.plan.updates_per_epoch

        def run() -> float:
            for update in range(n_updates):
                batches.batch(update)
            return self.seconds

        return run

    def _batches(self, manifest: Manifest, cache: ClipCache | None) -> MicroBatches:
        source = ManifestSource(manifest, sample_rate=RATE, cache=cache)
        frames = frame_counts(FULL.longest(manifest.durations), self.featurizer)
        plan = BucketedPlan(frames, max_frames=BATCH * int(frames.max()), largest=BATCH, seed=1)
        return MicroBatches(plan, source, self.augmenter, self.featurizer)


def _write(folder: Path, utterances: list[tuple[Waveform, str]], form: str) -> Manifest:
    """A corpus in one format."""
    folder.mkdir()
    ending, subtype = FORMATS[form]
    records = []
    for number, (waveform, text) in enumerate(utterances):
        name = f"{number}.{ending}"
        soundfile.write(folder / name, waveform, RATE, subtype=subtype)
        records.append(
            ClipRecord(
                audio=name,
                text=text,
                speaker="digits",
                split="train",
                duration_s=len(waveform) / RATE,
                sample_rate=RATE,
            )
        )
    write_manifest(folder, records)
    return Manifest.open(folder)


def figures(rows: list[Row]) -> dict[str, float]:
    """The figure that is held to a bar: the whole, from int16 WAV files."""
    (whole,) = (row for row in rows if row.stage == "whole, WAV")
    return {"audio_s_per_cpu_s": whole.audio_s_per_cpu_s}


def growth_mb(n_rows: int, n_updates: int = 2000) -> float:
    """Memory that a manifest and its plan take, in MB: run it in a process of its own.

    A manifest of `n_rows` rows is written, and what training does with it before it decodes the
    first clip is done: its split is opened, the clips that the model can write are sought, and
    planned in epochs; then `n_updates` updates' rows are drawn and read. What counts is the most
    that was resident at any time since the modules were loaded and a manifest of a few rows went
    the same way.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n in (1000, n_rows):
            (folder / str(n)).mkdir()
            write_manifest(folder / str(n), _rows(n))
        _draw(folder / "1000", 10)
        before = peak_bytes(reset=True)
        _draw(folder / str(n_rows), n_updates)
        return (peak_bytes() - before) / 2**20


def growth_apart(n_rows: int, module: str = __name__, *more: str) -> float:
    """A module's `growth_mb` in a process of its own, which nothing else has filled before."""
    code = f"from {module} import growth_mb; print(growth_mb{(n_rows, *more)})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"could not measure memory: {done.stderr.strip()[-500:]}")
    return float(done.stdout)


def _rows(n: int) -> Iterator[ClipRecord]:
    rng = np.random.default_rng(0)
    for number in range(n):
        yield ClipRecord(
            audio=f"train/{number // 1000:04d}/{number:08d}.flac",
            text="one two three four five six" if number % 100 else None,  # that is left out
            speaker=f"speaker-{number % 2000}",
            split="train",
            duration_s=round(float(rng.gamma(4.0, 2.0)) + 0.5, 3),
            sample_rate=RATE,
        )


def _draw(folder: Path, n_updates: int) -> None:
    # The trainer is built on this package, and only this benchmark looks back at it.
    from ..recipe import read_recipe
    from ..tasks import KeywordTaskSpec
    from ..trainer.feeding import make_plan
    from ..trainer.sources import read_corpus, usable_speech

    recipe = read_recipe("librispeech-100")
    assert not isinstance(recipe.task, KeywordTaskSpec)
    tokens = token_spec_of([" ", recipe.data.characters or ""])
    spec = recipe.task.make_spec(recipe.features, recipe.encoder, tokens)
    featurizer = Featurizer(spec)
    whole, _ = read_corpus(folder, recipe.data, RATE)
    usable = usable_speech(whole, featurizer, fastest=max(recipe.augment.speeds), split="training")
    plan = make_plan(usable, recipe, spec, featurizer, 1)
    assert isinstance(usable.source, ManifestSource)
    for update in range(n_updates):
        for draw in plan.update(update):
            usable.source.manifest[draw.rows[0]]


def peak_bytes(reset: bool = False) -> int:
    """The most memory that was resident, or, with `reset`, what is now; then it starts anew."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("expected VmHWM in /proc/self/status; memory is measured on Linux alone")
