"""The PCEN front end: its definition, streaming equal to batch, and levels that do not matter."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_imputer.train
from edge_imputer.audio import read_audio
from edge_imputer.errors import AudioFormatError, SpecError
from edge_imputer.frontend import Float32
from edge_imputer.pcen import Normaliser, Pcen, StreamingPcen
from edge_imputer.specs import FeatureSpec, PcenSpec

from .fakes import noise
from .test_frontend import definition as log_mel_definition

SPEC = PcenSpec()
CENTRED = PcenSpec(centred=True)
SPECS = [
    SPEC,
    CENTRED,
    PcenSpec(n_mels=12, frame_length=399, hop_length=200, s=0.3, alpha=0.6, delta=1, centred=True),
    PcenSpec(n_mels=10, hop_length=400, s=1, alpha=1, delta=0, r=0.25, epsilon=1, input_scale=1),
]
GAIN = np.float32(10)  # 20 dB
TWO_SECONDS = 200  # frames


def speech_like(seconds: float, *, seed: int = 0) -> Float32:
    """Coloured noise in syllables of random loudness, a quarter of a second each."""
    rng = np.random.default_rng(seed)
    n = int(seconds * 16_000)
    white = rng.standard_normal(n + 8)
    coloured = np.convolve(white, 0.6 ** np.arange(9), "valid")  # louder at low frequencies
    times = np.arange(n) / 4_000
    loudness = 10 ** rng.uniform(-2, 0, int(times[-1]) + 2)
    return np.asarray(
        0.1 * coloured * np.interp(times, np.arange(loudness.size), loudness), np.float32
    )


def digit(seconds: float) -> Float32:
    """A shipped clip, with a short pause after it, again and again."""
    folder = Path(edge_imputer.train.__file__).parent / "digits" / "audio"
    waveform, rate = read_audio(min(folder.rglob("*.ogg")))
    assert rate == SPEC.sample_rate
    period = np.pad(waveform, (0, 1_600))
    return np.tile(period, int(seconds * rate / period.size) + 1)


def definition(waveform: Float32, spec: PcenSpec) -> np.ndarray:
    """PCEN as the specification words it, in float64."""
    mel = FeatureSpec(
        frame_length=spec.frame_length,
        hop_length=spec.hop_length,
        n_mels=spec.n_mels,
        log_floor=1e-300,
    )
    if spec.centred:
        half = spec.frame_length // 2
        waveform = np.pad(waveform, (half, spec.frame_length - half))
    energies = np.exp(log_mel_definition(waveform, mel)) * spec.input_scale**2
    smoother, rows = energies[0], []
    for energy in energies:
        smoother = (1 - spec.s) * smoother + spec.s * energy
        ratio = energy / (spec.epsilon + smoother) ** spec.alpha
        rows.append((ratio + spec.delta) ** spec.r - spec.delta**spec.r)
    return np.array(rows)


@pytest.mark.parametrize("spec", SPECS)
def test_equals_its_definition(spec: PcenSpec) -> None:
    waveform = noise(5_005)
    waveform[:2_000] *= np.float32(1e-2)
    features = Pcen(spec)(waveform)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, definition(waveform, spec), rtol=2e-5, atol=2e-6)


# ------------------------------------------------------------------------------ streaming


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(SPECS),
    st.lists(
        st.one_of(st.sampled_from([0, 1, 160]), st.integers(0, 900), st.integers(0, 9_000)),
        max_size=12,
    ),
    st.integers(0, 5),
)
def test_streaming_equals_batch(spec: PcenSpec, sizes: list[int], seed: int) -> None:
    waveform = noise(sum(sizes), seed=seed)
    stream, rows, taken = StreamingPcen(spec), [], 0
    for part in np.split(waveform, np.cumsum(sizes)[:-1]) if sizes else []:
        rows.append(stream.push(part))
        taken += part.size
        due = spec.whole_frames(spec.padding[0] + taken)
        assert sum(len(r) for r in rows) == due  # a frame comes with its last sample
    rows.append(stream.finish())
    whole = Pcen(spec)(waveform)
    assert whole.shape == (spec.n_frames(waveform.size), spec.n_mels)
    np.testing.assert_array_equal(np.concatenate(rows), whole)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(st.just(1), st.integers(1, 70)), min_size=1, max_size=8))
def test_the_recursion_streams_by_frames(sizes: list[int]) -> None:
    rng = np.random.default_rng(len(sizes))
    energy = np.exp(rng.uniform(-20, 25, (sum(sizes), SPEC.n_mels))).astype(np.float32)
    kept = energy.copy()
    streaming = Normaliser(SPEC)
    rows = [streaming(part) for part in np.split(energy, np.cumsum(sizes)[:-1])]
    np.testing.assert_array_equal(np.concatenate(rows), Normaliser(SPEC)(energy))
    np.testing.assert_array_equal(energy, kept)


def test_single_frames_of_seconds_of_speech() -> None:
    waveform = digit(2)
    stream = StreamingPcen(SPEC)
    rows = [stream.push(hop) for hop in np.split(waveform, range(160, waveform.size, 160))]
    assert {len(r) for r in rows[3:-1]} == {1}
    np.testing.assert_allclose(np.concatenate(rows), Pcen(SPEC)(waveform), rtol=0, atol=1e-6)
    assert stream.finish().shape == (0, SPEC.n_mels)  # left-aligned: nothing was held back


@pytest.mark.parametrize("spec", [SPEC, CENTRED])
@pytest.mark.parametrize("end", ["reset", "finish"])
def test_reset_and_finish_begin_anew(spec: PcenSpec, end: str) -> None:
    stream = StreamingPcen(spec)
    stream.push(noise(1_234, seed=1, level=0.5))
    getattr(stream, end)()
    waveform = noise(2_000, seed=2, level=1e-3)
    rows = [stream.push(waveform), stream.finish()]
    np.testing.assert_array_equal(np.concatenate(rows), Pcen(spec)(waveform))


# ------------------------------------------------------------------------------ frames


@pytest.mark.parametrize("n", [0, 1, 159, 160, 161, 399, 400, 16_000, 24_000])
def test_number_of_frames(n: int) -> None:
    assert Pcen(CENTRED)(noise(n)).shape == (1 + n // 160, 40) == (CENTRED.n_frames(n), 40)
    assert Pcen(SPEC)(noise(n)).shape == (max(0, 1 + (n - 400) // 160), 40)


def test_an_odd_frame_length_has_as_many_centred_frames() -> None:
    spec = SPECS[2]
    assert spec.frame_length % 2
    for n in (199, 200, 201, 4_000):
        assert spec.n_frames(n) == 1 + n // spec.hop_length
        assert spec.n_samples(spec.n_frames(n)) == n // spec.hop_length * spec.hop_length


def test_a_window_of_the_paper_is_151_frames() -> None:
    assert CENTRED.n_frames(24_000) == 151
    assert CENTRED.n_samples(151) == 24_000
    assert SPEC.n_samples(151) == 24_400
    assert SPEC.n_frames(24_000) == 148


def test_frames_are_centred_on_their_hop() -> None:
    click = np.zeros(16_000, np.float32)
    click[50 * 160] = 1
    energy = Pcen(PcenSpec(centred=True, s=1, alpha=0, delta=0, r=1, input_scale=1))(click)
    total = energy.sum(1)
    assert total.argmax() == 50
    assert total[49] == pytest.approx(total[51], rel=1e-4)  # the Hann window's two sides
    assert np.flatnonzero(total).tolist() == [49, 50, 51]


# ------------------------------------------------------------------------------ levels


@pytest.mark.parametrize("waveform", [speech_like(5), speech_like(5, seed=1), digit(5)])
def test_20_db_louder_is_within_10_percent_after_2_s(waveform: Float32) -> None:
    soft, loud = Pcen(SPEC)(waveform), Pcen(SPEC)(GAIN * waveform)
    soft, loud = soft[TWO_SECONDS:], loud[TWO_SECONDS:]
    assert soft.mean() > 0.3  # there is something to compare
    assert np.all(np.abs(loud - soft) <= 0.1 * soft + 1e-6)  # every frame and band
    assert np.linalg.norm(loud - soft) > 0.02 * np.linalg.norm(soft)  # alpha is not quite 1
    without = PcenSpec(alpha=0)
    soft, loud = Pcen(without)(waveform)[TWO_SECONDS:], Pcen(without)(GAIN * waveform)[TWO_SECONDS:]
    assert np.median(loud / np.maximum(soft, 1e-6)) > 5  # what the gain does otherwise


@pytest.mark.parametrize("waveform", [speech_like(6), digit(6)])
def test_becoming_20_db_louder_is_forgotten_after_2_s(waveform: Float32) -> None:
    """The smoother begins at the soft level, so this is its memory and not its initial value."""
    step = waveform.copy()
    step[32_000:] *= GAIN
    steady, stepped = Pcen(SPEC)(waveform), Pcen(SPEC)(step)

    def distance(at: int) -> float:
        a, b = steady[at : at + 50], stepped[at : at + 50]
        return float(np.linalg.norm(b - a) / np.linalg.norm(a))

    assert distance(200) > 0.3  # just after the step
    assert distance(200 + TWO_SECONDS) < 0.1


def test_quiet_sounds_are_as_independent_of_the_level() -> None:
    waveform = np.float32(10 ** (-95 / 20)) * speech_like(4)
    for scale, holds in ((SPEC.input_scale, True), (1.0, False)):
        pcen = Pcen(PcenSpec(input_scale=scale))
        soft, loud = pcen(waveform)[TWO_SECONDS:], pcen(GAIN * waveform)[TWO_SECONDS:]
        assert np.all(np.abs(loud - soft) <= 0.1 * soft + 1e-6) == holds


def test_a_scale_of_a_power_of_two_rounds_nothing() -> None:
    waveform = speech_like(1)
    scaled = Pcen(PcenSpec(input_scale=1))(np.float32(2**15) * waveform)
    np.testing.assert_array_equal(Pcen(SPEC)(waveform), scaled)


@pytest.mark.parametrize("level", [1e-4, 0.5])
def test_a_steady_sound_is_steady_from_its_first_frame(level: float) -> None:
    """The smoother begins with the first frame's energy."""
    hum = level * np.sin(2 * np.pi * 0.025 * np.arange(16_000))  # four periods a hop
    features = Pcen(SPEC)(hum.astype(np.float32))
    band = features[0].argmax()
    np.testing.assert_allclose(features[:, band], features[-1, band], rtol=1e-4)
    energy = np.float32(1e4) * np.ones((3, SPEC.n_mels), np.float32)
    expected = (1e4 / (1e-6 + 1e4) ** 0.98 + 2) ** 0.5 - 2**0.5
    np.testing.assert_allclose(Normaliser(SPEC)(energy), expected, rtol=1e-5)


def test_silence_is_zero_and_what_follows_is_bounded() -> None:
    waveform = np.concatenate([np.zeros(160_000, np.float32), noise(16_000)])
    features = Pcen(SPEC)(waveform)
    assert not features[: SPEC.n_frames(160_000)].any()
    assert np.isfinite(features).all()
    assert features.max() < 10  # the smoother has a share s of the onset at once


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("bad", [np.zeros(800), np.zeros(800, np.int16), np.zeros((2, 800))])
def test_refuses_what_is_not_a_float32_waveform(bad: np.ndarray) -> None:
    with pytest.raises(AudioFormatError, match="float32 waveform"):
        Pcen(CENTRED)(bad)
    with pytest.raises(AudioFormatError, match="check_pcm"):
        StreamingPcen(SPEC).push(bad)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"s": 0.0}, "0 < s <= 1"),
        ({"s": 1.5}, "0 < s <= 1"),
        ({"alpha": -0.1}, "0 <= alpha <= 1"),
        ({"r": 0.0}, "0 < r <= 1"),
        ({"r": float("nan")}, "0 < r <= 1"),
        ({"delta": -1.0}, "delta >= 0"),
        ({"epsilon": 0.0}, "epsilon > 0"),
        ({"input_scale": 0.0}, "input_scale > 0"),
        ({"hop_length": 0}, "hop_length"),
        ({"f_max_hz": 9_000.0}, "half the sample rate"),
        ({"n_mels": 0}, "n_mels >= 1"),
        ({"n_mels": 200}, "holds none of the 257 FFT bins"),
    ],
)
def test_contradictory_specs_are_refused(changes: dict[str, float], reason: str) -> None:
    spec = PcenSpec(**changes)  # type: ignore[arg-type]
    for front_end in (Pcen, StreamingPcen):
        with pytest.raises(SpecError, match=reason):
            front_end(spec)


def test_the_spec_survives_writing() -> None:
    spec = PcenSpec(s=0.1, centred=True)
    written = msgspec.json.encode(spec)
    assert msgspec.json.decode(written)["kind"] == "pcen"
    assert msgspec.json.decode(written, type=PcenSpec) == spec
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(b'{"kind": "pcen", "gain": 1}', type=PcenSpec)
