"""The microfrontend: pymicro-features bit for bit, streaming equal to batch, and its stages."""

from __future__ import annotations

import ctypes
import ctypes.util
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edge_imputer.train
from edge_imputer import microfrontend
from edge_imputer.audio import check_pcm, read_audio
from edge_imputer.errors import AudioFormatError, SpecError
from edge_imputer.fixed_fft import Int16
from edge_imputer.frontend import Float32
from edge_imputer.microfrontend import (
    GAIN_BITS,
    ROUNDED_UP,
    UNIT,
    Channels,
    GainControl,
    Microfrontend,
    StreamingMicrofrontend,
    filterbank,
    gain,
    gain_parabolas,
    hann_window_q12,
    int16_samples,
    log_scaled,
    log_segments,
    quantized,
    rounded_root,
    shrunk,
)
from edge_imputer.specs import AnyFeatureSpec, MicroSpec

from .conftest import import_or_skip
from .fakes import noise
from .test_pcen import digit

SPEC = MicroSpec()
HOP, FRAME = 160, 480
FULL = 32_767
Oracle = Callable[[Int16], Float32]


def as_float(pcm: Int16) -> Float32:
    return check_pcm(pcm, sample_rate=16_000, expected_rate=16_000)


def ours(pcm: Int16) -> Float32:
    return Microfrontend(SPEC)(as_float(pcm))


# ------------------------------------------------------------------------------ pymicro-features


def falling_weight(bin_: int, log1pf: Callable[[float], float]) -> int:
    """Weight of a bin in the triangle below it, as filterbank_util.cc computes it in float32."""
    f = np.float32

    def mel(hz: float) -> np.float32:
        return f(1127) * f(log1pf(float(f(hz) / f(700))))

    low, high = mel(125.0), mel(7500.0)
    spacing = (high - low) / f(41)
    here = mel(bin_ * 31.25)
    upper = next(low + spacing * f(k) for k in range(1, 42) if here <= low + spacing * f(k))
    lower = next(low + spacing * f(k) for k in range(40, -1, -1) if low + spacing * f(k) < here)
    return math.floor((upper - here) / (upper - lower) * f(4096) + f(0.5))


def c_log1pf() -> Callable[[float], float]:
    """The C library's, by which pymicro-features makes its filters."""
    name = ctypes.util.find_library("m")
    if name is None:
        pytest.skip("there is no C library of mathematics to compare with")
    log1pf = ctypes.CDLL(name).log1pf
    log1pf.restype, log1pf.argtypes = ctypes.c_float, [ctypes.c_float]
    return log1pf


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Oracle]:
    """pymicro-features of a whole stream; our filters are rounded as this C library rounds."""
    package = import_or_skip("pymicro_features")
    log1pf = c_log1pf()
    up = tuple(b for b in ROUNDED_UP if falling_weight(b, log1pf) > falling_weight(b, math.log1p))
    monkeypatch.setattr(microfrontend, "ROUNDED_UP", up)
    filterbank.cache_clear()

    def features(pcm: Int16) -> Float32:
        front_end = package.MicroFrontend()
        rows = []
        for start in range(0, pcm.size - HOP + 1, HOP):
            row = front_end.process_samples(pcm[start : start + HOP].tobytes()).features
            rows += [row] if row else []
        return np.array(rows, np.float32).reshape(-1, 40)

    yield features
    filterbank.cache_clear()


def random(n: int, seed: int = 0) -> np.random.Generator:
    return np.random.default_rng((n, seed))


def bursts(n: int) -> np.ndarray:
    """Noise whose level changes by up to 80 dB every 100 ms."""
    levels = 10.0 ** random(n, 1).integers(0, 5, n // 1_600 + 1)
    return random(n).standard_normal(n) * levels.repeat(1_600)[:n]


def lone_minima(n: int) -> np.ndarray:
    """The least sample at the middle of a frame: the only one whose absolute value is no int16."""
    samples = random(n).integers(-1, 2, n)
    samples[FRAME // 2 :: 5 * HOP] = -FULL - 1
    return samples


def spoken(n: int) -> np.ndarray:
    """Digits in a little noise."""
    return digit(n / 16_000)[:n] * FULL + random(n).standard_normal(n) * 20


SIGNALS: dict[str, Callable[[int], np.ndarray]] = {
    "silence": np.zeros,
    "one bit": lambda n: random(n).integers(-1, 2, n),
    "soft noise": lambda n: random(n).standard_normal(n) * 30,
    "loud noise": lambda n: random(n).standard_normal(n) * 12_000,
    "full scale": lambda n: random(n).choice([-FULL - 1, FULL], n),
    "square waves": lambda n: np.sign(np.sin(np.linspace(0.001, 3, n) * np.arange(n))) * 40_000,
    "a tone": lambda n: np.sin(0.3 * np.arange(n)) * FULL,
    "least": lambda n: np.full(n, -FULL - 1),
    "clicks": lambda n: (random(n).random(n) < 1e-3) * random(n, 1).choice([-FULL - 1, FULL, 1], n),
    "lone minima": lone_minima,
    "bursts": bursts,
    "speech": spoken,
    "soft speech": lambda n: spoken(n) / 300,
}


def signal(name: str, n: int) -> Int16:
    return np.rint(SIGNALS[name](n)).clip(-FULL - 1, FULL).astype(np.int16)


@pytest.mark.parametrize("name", SIGNALS)
def test_equals_pymicro_features(name: str, oracle: Oracle) -> None:
    pcm = signal(name, 160_000)
    features = ours(pcm)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, oracle(pcm))
    assert features.any() == (name != "silence")


def test_equals_pymicro_features_after_minutes(oracle: Oracle) -> None:
    pcm = np.concatenate([signal(name, 160_000) for name in SIGNALS] * 3)
    np.testing.assert_array_equal(ours(pcm), oracle(pcm))


def test_equals_pymicro_features_on_every_shipped_voice(oracle: Oracle) -> None:
    folder = Path(edge_imputer.train.__file__).parent / "digits" / "audio"
    clips = [read_audio(path)[0] for path in sorted(folder.rglob("*.ogg"))[::40]]
    assert len(clips) > 10
    pcm = int16_samples(np.concatenate(clips))
    np.testing.assert_array_equal(ours(pcm), oracle(pcm))


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(
        st.tuples(st.sampled_from(sorted(SIGNALS)), st.integers(1, 3_000), st.floats(0, 1)),
        max_size=8,
    ),
)
def test_equals_pymicro_features_on_any_sequence(
    oracle: Oracle, parts: list[tuple[str, int, float]]
) -> None:
    pieces = [(signal(name, n) * level).astype(np.int16) for name, n, level in parts]
    pcm = np.concatenate([*pieces, np.zeros(0, np.int16)])
    np.testing.assert_array_equal(ours(pcm), oracle(pcm))


def test_the_filters_are_those_of_the_c_library() -> None:
    """All but those that hang on the last bit of its logarithm."""
    log1pf = c_log1pf()
    bins, weights = filterbank()
    pairs = {b: w[w > 0].tolist() for b, w in zip(range(257)[bins], weights.T, strict=True)}
    pairs = {b: pair for b, pair in pairs.items() if len(pair) == 2 and b not in ROUNDED_UP}
    assert len(pairs) > 200
    for bin_, pair in pairs.items():
        falling = falling_weight(bin_, log1pf)
        assert pair == [falling, 4096 - falling]


def check_sum(numbers: np.ndarray) -> int:
    return zlib.crc32(numbers.astype("<i4").tobytes())


def test_tables_and_stages_are_those_of_the_library() -> None:
    """Check sums of what the sources that pymicro-features 2.0.2 is built from give."""
    assert check_sum(hann_window_q12()) == 0xD16108C5
    assert check_sum(filterbank()[1]) == 0x66D473B9
    assert check_sum(gain_parabolas()) == 0xF5731EB6
    assert check_sum(log_segments()) == 0xCDE6A4F8
    numbers = np.concatenate([np.arange(1 << 16), np.arange(1 << 18) * 4_093])
    assert check_sum(log_scaled(numbers)) == 4062228263
    assert check_sum(gain(numbers)) == 461102551
    assert check_sum(shrunk(numbers)) == 826766541


# ------------------------------------------------------------------------------ streaming


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.one_of(st.sampled_from([0, 1, HOP]), st.integers(0, 900), st.integers(0, 30_000)),
        max_size=10,
    ),
    st.sampled_from([HOP, 320, FRAME]),
)
def test_streaming_equals_batch(sizes: list[int], hop: int) -> None:
    spec = MicroSpec(hop_length=hop)
    waveform = as_float(signal("bursts", sum(sizes)))
    stream, rows, taken = StreamingMicrofrontend(spec), [], 0
    for part in np.split(waveform, np.cumsum(sizes)[:-1]) if sizes else []:
        rows.append(stream.push(part))
        taken += part.size
        assert sum(len(r) for r in rows) == spec.n_frames(taken)  # due with its last sample
    whole = Microfrontend(spec)(waveform)
    assert whole.shape == (spec.n_frames(waveform.size), 40)
    np.testing.assert_array_equal(np.concatenate([np.empty((0, 40)), *rows]), whole)


def test_reset_begins_anew() -> None:
    stream = StreamingMicrofrontend(SPEC)
    stream.push(noise(5_678, seed=1, level=0.5))
    stream.reset()
    waveform = noise(4_000, seed=2, level=1e-3)
    np.testing.assert_array_equal(stream.push(waveform), Microfrontend(SPEC)(waveform))
    first = Microfrontend(SPEC)
    np.testing.assert_array_equal(first(waveform), first(waveform))  # nothing is kept


@pytest.mark.parametrize("n", [0, 1, 159, 160, 479, 480, 639, 640, 16_000])
def test_number_of_frames(n: int) -> None:
    assert Microfrontend(SPEC)(noise(n)).shape == (max(0, 1 + (n - 480) // 160), 40)
    assert SPEC.n_samples(SPEC.n_frames(16_000)) == 16_000


def test_a_longer_step_takes_fewer_frames() -> None:
    """The frames are cut otherwise, what is done to them is the same."""
    waveform = as_float(signal("speech", 32_000))
    channels, control = Channels(), GainControl(40)
    frames = np.lib.stride_tricks.sliding_window_view(int16_samples(waveform), FRAME)[::320]
    found = Microfrontend(MicroSpec(hop_length=320))(waveform)
    np.testing.assert_array_equal(found, control(channels(frames)) * UNIT)


# ------------------------------------------------------------------------------ samples


def test_int16_samples_come_back() -> None:
    pcm = np.arange(-FULL - 1, FULL + 1).astype(np.int16)
    np.testing.assert_array_equal(int16_samples(as_float(pcm)), pcm)


def test_samples_are_rounded_to_even_and_cut_off() -> None:
    waveform = np.array([0.5, 1.5, -0.5, 2.51, 32_767.5, 40_000, -32_768.5, -40_000], np.float32)
    expected = [0, 2, 0, 3, FULL, FULL, -FULL - 1, -FULL - 1]
    assert int16_samples(waveform / np.float32(2**15)).tolist() == expected


def test_features_are_steps_of_the_unit() -> None:
    features = ours(signal("speech", 64_000))
    values = features * np.float32(25.6)
    np.testing.assert_allclose(values, np.rint(values), atol=1e-3)
    assert 25 < features.max() < 30
    assert features.min() == 0


@given(st.integers(0, 2_000), st.integers(0, 2_000))
def test_quantized_is_the_rule_of_the_firmware(a: int, b: int) -> None:
    low, high = sorted((a, b))
    found = quantized(np.array([low, high], np.uint16) * UNIT)
    assert found.dtype == np.int8
    for value, step in zip((low, high), found, strict=True):
        assert step == min(127, (value * 256 + 666 // 2) // 666 - 128)
        assert abs(min(127, value / 25.6 / 26 * 256 - 128) - step) <= 1
    assert found[0] <= found[1]


def test_the_scale_that_models_declare_is_a_third_of_a_percent_larger() -> None:
    features = np.arange(100, 640, dtype=np.uint16) * UNIT
    declared = (quantized(features) + 128.0) * 26 / 255
    assert np.polyfit(features, declared, 1)[0] == pytest.approx(1.0033, abs=2e-3)
    assert np.abs(declared - 1.0033 * features).max() < 0.06  # half a step


# ------------------------------------------------------------------------------ stages


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_roots_are_rounded(numbers: list[int]) -> None:
    roots = [math.isqrt(n) for n in numbers]
    near = numbers + [m for r in roots for m in (r * r, r * r + r, r * r + r + 1)]
    for x, root in zip(near, rounded_root(np.array(near, np.float64)), strict=True):
        exact = math.isqrt(x)
        exact += x > exact * (exact + 1)
        assert root == (min(exact, 0xFFFF) if x < 2**32 else exact)


def test_the_largest_root_of_32_bits_is_not_rounded_up() -> None:
    assert rounded_root(np.array([2.0**32 - 1, 2.0**32])).tolist() == [0xFFFF, 0x1_0000]


def test_no_amplitude_reaches_20_bits() -> None:
    """On which it rests that nothing wraps around after the filters."""
    for name in ("full scale", "square waves", "a tone", "least", "loud noise"):
        frames = np.lib.stride_tricks.sliding_window_view(signal(name, 32_000), FRAME)[::HOP]
        assert Channels()(frames).max() < 2**20


def test_an_amplitude_is_that_of_the_spectrum() -> None:
    """Of the windowed frame, over 8: a tone between two bands has its power in both."""
    for k in (20, 60, 140):
        tone = np.sin(2 * np.pi * k / 512 * np.arange(FRAME)) * 10_000
        amplitudes = Channels()(tone.astype(np.int16)[None])[0]
        window = hann_window_q12() / 4096
        power = np.sum(np.abs(np.fft.rfft(tone * window, 512)) ** 2)
        assert np.sqrt(np.sum((8.0 * amplitudes) ** 2)) == pytest.approx(np.sqrt(power), rel=0.01)


@given(st.lists(st.integers(0, 2**30), min_size=1, max_size=30))
def test_the_gain_is_a_power_of_the_mean(means: list[int]) -> None:
    found = gain(np.array(means, np.int64))
    level = np.array(means) / 2**7 + 80
    np.testing.assert_allclose(found, 2.0**GAIN_BITS * level**-0.95, rtol=0.02, atol=1.5)
    assert (found >= 0).all()


@given(st.lists(st.integers(0, 2**29), min_size=1, max_size=30))
def test_small_ratios_are_squared(ratios: list[int]) -> None:
    x = np.array(ratios) / 2**12
    expected = np.where(x < 2, x * x / 4, x - 1) * 2**6
    found = shrunk(np.array(ratios, np.int64))
    assert ((found <= expected) & (expected < found + 1)).all()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30))
def test_the_logarithm_is_a_logarithm(numbers: list[int]) -> None:
    found = log_scaled(np.array(numbers, np.int64))
    assert found.dtype == np.uint16
    np.testing.assert_allclose(found, 64 * np.log(np.maximum(numbers, 1)), atol=1.0)


def test_what_is_steady_fades() -> None:
    features = ours(signal("loud noise", 160_000))
    loudness = features.mean(1)
    assert loudness[:5].mean() > 15
    assert loudness[300:].mean() < 4


def test_levels_hardly_matter_to_speech() -> None:
    """What makes log-mel smaller by 4.6 everywhere: noise and gain are relative to the past."""
    loud = digit(8)[:128_000] + noise(128_000, level=1e-2)
    features = [Microfrontend(SPEC)(np.float32(g) * loud)[200:] for g in (1, 0.1)]
    assert features[0].std() > 4
    assert abs(features[0].mean() - features[1].mean()) < 0.1 * features[0].std()


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("bad", [np.zeros(800), np.zeros(800, np.int16), np.zeros((2, 800))])
def test_refuses_what_is_not_a_float32_waveform(bad: np.ndarray) -> None:
    with pytest.raises(AudioFormatError, match="float32 waveform"):
        Microfrontend(SPEC)(bad)
    with pytest.raises(AudioFormatError, match="check_pcm"):
        StreamingMicrofrontend(SPEC).push(bad)


@pytest.mark.parametrize("hop", [0, -160, 100, 496])
def test_a_step_that_the_firmware_cannot_have_is_refused(hop: int) -> None:
    for front_end in (Microfrontend, StreamingMicrofrontend):
        with pytest.raises(SpecError, match="whole milliseconds"):
            front_end(MicroSpec(hop_length=hop))


def test_the_spec_survives_writing_and_has_nothing_else_to_set() -> None:
    spec = MicroSpec(hop_length=320)
    written = msgspec.json.encode(spec)
    assert msgspec.json.decode(written) == {"kind": "micro", "hop_length": 320}
    assert msgspec.json.decode(written, type=AnyFeatureSpec) == spec
    for name in ("n_mels", "sample_rate", "frame_length", "f_min_hz"):
        with pytest.raises(msgspec.ValidationError, match=f"unknown field `{name}`"):
            msgspec.json.decode(f'{{"kind": "micro", "{name}": 40}}', type=AnyFeatureSpec)
        with pytest.raises(TypeError, match=name):
            MicroSpec(**{name: 40})
