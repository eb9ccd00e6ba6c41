"""Generated noises: what they sound like, by measurement, and the corpus of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_imputer.audio import read_audio
from edge_imputer.errors import SynthesisError
from edge_imputer.train.data import read_manifest
from edge_imputer.train.synthesis import (
    DEFAULT_KINDS,
    NoisePlan,
    corpus_talkers,
    engine_talkers,
    make_noise,
    parse_kinds,
    synthesize_noises,
)
from edge_imputer.train.synthesis.files import write_clip
from edge_imputer.train.synthesis.noise_kinds import BABBLE, KINDS
from edge_imputer.train.synthesis.noises import LEVEL_DBFS, NoiseRow
from edge_imputer.train.synthesis.shaping import CEILING, SAMPLE_RATE
from edge_imputer.train.synthesis.sounds import coloured, ring, wander

from .speech_engines import ToneEngine, burst, run_command

RNG = np.random.default_rng
SECONDS = 4.0
Wave = np.ndarray


def noise(kind: str, seed: int = 0) -> Wave:
    row = NoiseRow(audio="x", speaker="x", split="train", duration_s=SECONDS,
                   sample_rate=SAMPLE_RATE, kind=kind, seed=seed)  # fmt: skip
    return make_noise(row)


def spectrum(x: Wave) -> tuple[Wave, Wave]:
    """Frequencies and power, (n / 2 + 1,)."""
    power = np.abs(np.fft.rfft(x * np.hanning(len(x)))) ** 2
    return np.fft.rfftfreq(len(x), 1 / SAMPLE_RATE), power


def crest_db(x: Wave) -> float:
    return float(20 * np.log10(np.abs(x).max() / np.sqrt(np.mean(x**2))))


def share(x: Wave, low_hz: float, high_hz: float) -> float:
    """Share of the power between two frequencies."""
    hz, power = spectrum(x)
    return float(power[(hz >= low_hz) & (hz < high_hz)].sum() / power.sum())


def tonality(x: Wave) -> float:
    """Share of the power in the strongest 1 % of the bins."""
    power = np.sort(spectrum(x)[1])
    return float(power[-len(power) // 100 :].sum() / power.sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_every_noise_is_levelled_repeatable_and_never_silent_or_clipped(
    kind: str, seed: int
) -> None:
    x = noise(kind, seed)
    assert x.dtype == np.float32
    assert x.shape == (SECONDS * SAMPLE_RATE,)
    assert np.isfinite(x).all()
    np.testing.assert_array_equal(x, noise(kind, seed))
    assert not np.array_equal(x, noise(kind, seed + 100))
    assert np.abs(x).max() <= CEILING + 1e-6
    level_dbfs = 10 * np.log10(np.mean(x**2))
    # An impulsive one stays below the range where its peaks would be clipped.
    assert level_dbfs <= LEVEL_DBFS[1] + 0.1
    assert level_dbfs >= LEVEL_DBFS[0] - 0.1 or np.abs(x).max() > 0.85
    quiet = x.reshape(-1, SAMPLE_RATE // 100)
    assert (np.abs(quiet).max(axis=1) > 1e-5).all()
    assert abs(float(x.mean())) < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_hum_is_harmonics_of_the_mains(seed: int) -> None:
    x = noise("hum", seed)
    hz, power = spectrum(x)
    peak = hz[power.argmax()]
    mains = min((50.0, 60.0), key=lambda f: abs(peak / f - round(peak / f)))
    on_grid = np.abs(hz / mains - np.round(hz / mains)) * mains < 3.0
    assert power[on_grid & (hz > 40)].sum() / power.sum() > 0.95
    assert share(x, 40, 1_500) > 0.9


@given(exponent=st.floats(0, 2), seed=st.integers(0, 999))
def test_coloured_noise_falls_with_its_exponent(exponent: float, seed: int) -> None:
    x = coloured(1 << 16, exponent, RNG(seed))
    assert np.mean(x**2) == pytest.approx(1.0, rel=1e-3)
    hz, power = spectrum(x)
    edges = np.geomspace(100, 6_400, 13)
    levels = [np.log(power[(hz >= a) & (hz < b)].mean()) for a, b in itertools.pairwise(edges)]
    slope = np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), levels, 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.15)


@pytest.mark.parametrize(
    ("kind", "low_db", "high_db"),
    [
        ("steady", 9, 17),
        ("fan", 8, 18),
        ("hum", 3, 15),
        ("chords", 5, 20),
        ("beeps", 2, 20),
        ("clicks", 20, 50),
        ("ticking", 20, 50),
        ("door", 15, 50),
        ("dishes", 14, 50),
        ("rain", 12, 40),
    ],
)
def test_crest_factors_tell_steady_from_impulsive(kind: str, low_db: float, high_db: float) -> None:
    for seed in range(3):
        assert low_db < crest_db(noise(kind, seed)) < high_db, seed


@pytest.mark.parametrize(
    ("kind", "low_hz", "high_hz", "least"),
    [
        ("wind", 0, 1_500, 0.9),
        ("door", 0, 1_000, 0.6),
        ("rain", 1_000, 8_000, 0.75),
        ("dishes", 1_200, 8_000, 0.9),
        ("clicks", 800, 8_000, 0.85),
        ("beeps", 600, 8_000, 0.9),
        ("chords", 90, 4_000, 0.95),
        ("melody", 120, 7_900, 0.9),
    ],
)
def test_noises_lie_in_their_bands(kind: str, low_hz: float, high_hz: float, least: float) -> None:
    for seed in range(3):
        assert share(noise(kind, seed), low_hz, high_hz) > least, seed


def test_music_and_beeps_are_tonal_and_air_and_water_are_not() -> None:
    tonal = {k: min(tonality(noise(k, s)) for s in range(4)) for k in ("chords", "beeps", "hum")}
    noisy = {k: max(tonality(noise(k, s)) for s in range(4)) for k in ("rain", "clicks")}
    assert min(tonal.values()) > 0.8
    assert max(noisy.values()) < 0.5


def test_beeps_come_and_go_and_ticks_are_even() -> None:
    for seed in range(5):
        envelope = np.abs(noise("beeps", seed)).reshape(-1, SAMPLE_RATE // 100).max(axis=1)
        on = envelope > 0.3 * envelope.max()
        assert 0.05 < on.mean() < 0.9
        ticks = np.abs(noise("ticking", seed)).reshape(-1, SAMPLE_RATE // 100).max(axis=1)
        at = np.flatnonzero(ticks > 0.3 * ticks.max())
        at = at[np.concatenate([[True], np.diff(at) > 8])]
        gaps = np.diff(at) / 100
        assert np.abs(gaps / 0.25 - np.round(gaps / 0.25)).max() < 0.15


def test_building_blocks() -> None:
    curve = wander(16_000, 0.2, RNG(1))
    assert curve.shape == (16_000,)
    assert np.abs(curve).max() <= 1
    assert np.abs(np.diff(curve)).max() < 0.01
    stroke = ring(np.array([1_000.0, 9_000.0]), np.array([0.1, 0.1]), RNG(1))
    assert len(stroke) == 1_600
    assert np.abs(stroke[-160:]).max() < 0.01 < np.abs(stroke[:160]).max()
    assert share(np.pad(stroke, (0, 14_400)), 800, 1_200) > 0.95  # the one above 8 kHz is left out


# ---------------------------------------------------------------- babble


def speech_corpus(folder: Path) -> Path:
    """Three speakers in train, one in test; tones of a pitch each."""
    lines = []
    for i, (speaker, split) in enumerate(
        [("a", "train"), ("b", "train"), ("c", "train"), ("d", "test")]
    ):
        audio = f"{speaker}.flac"
        write_clip(folder / audio, burst(20_000, SAMPLE_RATE, 200.0 + 100 * i), SAMPLE_RATE)
        lines.append(
            f'{{"audio":"{audio}","text":"yes","speaker":"{speaker}","split":"{split}"}}\n'
        )
    (folder / "manifest.jsonl").write_text("".join(lines))
    return folder


def babble_row(split: str, seed: int = 0) -> NoiseRow:
    return NoiseRow(audio="x", speaker="x", split=split, duration_s=SECONDS,  # type: ignore[arg-type]
                    sample_rate=SAMPLE_RATE, kind=BABBLE, seed=seed)  # fmt: skip


def test_babble_is_the_split_s_speakers_at_once(tmp_path: Path) -> None:
    talkers = corpus_talkers(speech_corpus(tmp_path))
    x = make_noise(babble_row("train"), talkers)
    np.testing.assert_array_equal(x, make_noise(babble_row("train"), talkers))
    voices = [share(x, hz - 20, hz + 20) for hz in (200, 300, 400)]
    assert sum(voices) > 0.9
    assert sorted(voices)[1] > 0.05  # of two at least
    assert share(x, 480, 520) < 0.01  # the speaker of another split
    assert share(make_noise(babble_row("test"), talkers), 480, 520) > 0.9
    with pytest.raises(SynthesisError, match="no speech in 'valid'"):
        make_noise(babble_row("valid"), talkers)
    with pytest.raises(SynthesisError, match="expected speech to make babble of"):
        make_noise(babble_row("train"))
    with pytest.raises(SynthesisError, match="expected a corpus folder of speech"):
        corpus_talkers(tmp_path / "nowhere")


def test_engines_babble_with_other_voices_in_each_split() -> None:
    engine = ToneEngine(n_voices=12)
    talkers = engine_talkers([engine], engine.voices(), seed=1)
    heard = {}
    for split in ("train", "valid", "test"):
        rows = talkers(split, 20, RNG(1))  # type: ignore[arg-type]
        assert len(rows) == 20
        assert min(map(len, rows)) >= 4 * SAMPLE_RATE
        peaks = [hz[power.argmax()] for hz, power in map(spectrum, rows)]
        heard[split] = {round((float(peak) - 150) / 20) for peak in peaks}
    assert not heard["train"] & heard["test"]
    assert not heard["train"] & heard["valid"]


# ---------------------------------------------------------------- the corpus


def test_the_default_kinds_are_all_there_and_differ_between_splits() -> None:
    kinds = [kind for of_split in DEFAULT_KINDS.values() for kind in of_split]
    assert sorted(kinds) == sorted([*KINDS, BABBLE])
    rows = NoisePlan(1.0, DEFAULT_KINDS).rows()
    hours = {s: sum(r.duration_s for r in rows if r.split == s) / 3600 for s in DEFAULT_KINDS}
    assert hours == pytest.approx({"train": 0.8, "valid": 0.1, "test": 0.1}, abs=0.01)
    assert len({row.seed for row in rows}) == len(rows)


def test_kinds_are_parsed_and_checked() -> None:
    assert parse_kinds([]) == DEFAULT_KINDS
    kinds = parse_kinds(["train=hum, fan", "test=rain"])
    assert kinds == {"train": ("hum", "fan"), "test": ("rain",)}
    for bad in ("hum", "dev=hum", "train="):
        with pytest.raises(SynthesisError, match="expected kinds such as test=rain,beeps"):
            parse_kinds([bad])
    with pytest.raises(SynthesisError, match="got 'hum' in train and test"):
        NoisePlan(1.0, {"train": ["hum"], "test": ["hum"]}).rows()
    with pytest.raises(SynthesisError, match=r"expected kinds of noise among steady, .*'hiss'"):
        NoisePlan(1.0, {"train": ["hiss"]}).rows()
    with pytest.raises(SynthesisError, match="at least one kind"):
        NoisePlan(1.0, {"train": []}).rows()
    for hours, clip_s in ((0.0, 10.0), (float("nan"), 10.0), (1.0, 0.1), (1.0, 1e9)):
        with pytest.raises(SynthesisError, match="expected more than 0 hours"):
            NoisePlan(hours, {"train": ["hum"]}, clip_s).rows()


def test_a_corpus_of_noises_is_repeatable_and_goes_on(tmp_path: Path) -> None:
    plan = NoisePlan(0.01, {"train": ["hum", "clicks"], "test": ["beeps"]}, clip_s=2.0, seed=4)
    rows = synthesize_noises(plan, tmp_path / "a")
    synthesize_noises(plan, tmp_path / "b", workers=3)
    files = [
        {p.relative_to(tmp_path / d): p.read_bytes() for p in (tmp_path / d).rglob("*.*")}
        for d in "ab"
    ]
    assert files[0] == files[1]
    records = read_manifest(tmp_path / "a")
    assert len(records) == len(rows) == 18
    for record in records:
        waveform, rate = read_audio(tmp_path / "a" / record.audio)
        assert (len(waveform), rate) == (2 * SAMPLE_RATE, SAMPLE_RATE)
        assert (record.text, record.label) == (None, "_noise_")
    assert {r.speaker for r in records if r.split == "test"} == {"noise:beeps"}
    lost = tmp_path / "a" / records[3].audio
    lost.unlink()
    made = []
    synthesize_noises(plan, tmp_path / "a", on_clip=lambda done, total: made.append((done, total)))
    assert made == [(18, 18)]
    assert lost.read_bytes() == files[0][lost.relative_to(tmp_path / "a")]
    (tmp_path / "a" / "manifest.jsonl").write_text("{}\n")
    with pytest.raises(SynthesisError, match="use a folder of its own"):
        synthesize_noises(plan, tmp_path / "a")


def test_noises_of_a_killed_run_are_not_made_again(tmp_path: Path) -> None:
    """Killed twice, both times in the middle of a line: no manifest, and the journal is read."""
    plan = NoisePlan(0.005, {"train": ["hum"]}, clip_s=2.0)
    n = len(plan.rows())
    for n_made in (1, 2):
        journal = b""

        def stop(done: int, total: int, n_made: int = n_made) -> None:
            nonlocal journal
            journal = (tmp_path / "manifest.part.jsonl").read_bytes()
            if done == n_made:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            synthesize_noises(plan, tmp_path, on_clip=stop)
        (tmp_path / "manifest.jsonl").unlink()
        (tmp_path / "manifest.part.jsonl").write_bytes(journal + b'{"audio": "ha')
    made: list[int] = []
    synthesize_noises(plan, tmp_path, on_clip=lambda done, total: made.append(done))
    assert made == list(range(3, n + 1))
    assert len(read_manifest(tmp_path)) == n
    assert not (tmp_path / "manifest.part.jsonl").exists()


def test_the_command_makes_noises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "noises")
    kinds = ["--kinds", "train=hum,babble", "--kinds", "test=rain"]
    speech = str(speech_corpus(tmp_path))
    options = ["--hours", "0.005", "--clip-s", "3", "--speech", speech]
    run_command("noises", out, *kinds, *options)
    assert "test: 0.00 h of rain" in capsys.readouterr().out
    assert {r.speaker for r in read_manifest(Path(out))} == {
        "noise:babble",
        "noise:hum",
        "noise:rain",
    }
