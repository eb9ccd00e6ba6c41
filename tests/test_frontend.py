"""The log-mel front end: against its definition, and streaming equal to batch to the bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.errors import AudioFormatError, SpecError
from edge_imputer.frontend import (
    BLOCK,
    LogMel,
    StreamingLogMel,
    hz_to_mel,
    mel_filterbank,
    mel_to_hz,
)
from edge_imputer.specs import FeatureSpec

from .fakes import noise

SPEC = FeatureSpec(mean=-4.0, std=3.0)
BATCH = LogMel(SPEC)
SPECS = [
    SPEC,
    FeatureSpec(n_mels=10, hop_length=400),  # frames that only touch
    FeatureSpec(n_mels=12, frame_length=512, hop_length=200),
    FeatureSpec(sample_rate=8_000, frame_length=200, hop_length=80, n_fft=256, f_max_hz=3_800),
]


def definition(waveform: np.ndarray, spec: FeatureSpec) -> np.ndarray:
    """The features as the specification words them, one number at a time, in float64."""

    def mel(hz: float) -> float:
        return 2595 * math.log10(1 + hz / 700)

    def hz(m: float) -> float:
        return 700 * (10 ** (m / 2595) - 1)

    step = (mel(spec.f_max_hz) - mel(spec.f_min_hz)) / (spec.n_mels + 1)
    points = [hz(mel(spec.f_min_hz) + i * step) for i in range(spec.n_mels + 2)]
    n = np.arange(spec.frame_length)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / spec.frame_length)
    k = np.arange(spec.n_fft // 2 + 1)
    dft = np.exp(-2j * np.pi * np.outer(k, n) / spec.n_fft)
    rows = []
    for frame in range((len(waveform) - spec.frame_length) // spec.hop_length + 1):
        samples = waveform[frame * spec.hop_length :][: spec.frame_length].astype(np.float64)
        power = np.abs(dft @ (samples * window)) ** 2
        row = []
        for low, centre, high in zip(points, points[1:], points[2:], strict=False):
            energy = 0.0
            for p, f in zip(power, k * spec.sample_rate / spec.n_fft, strict=True):
                rising, falling = (f - low) / (centre - low), (high - f) / (high - centre)
                energy += max(0.0, min(rising, falling)) * p
            row.append((math.log(max(energy, spec.log_floor)) - spec.mean) / spec.std)
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("spec", SPECS)
def test_equals_its_definition(spec: FeatureSpec) -> None:
    waveform = noise(spec.n_samples(4) + 5)
    waveform[: spec.frame_length] *= np.float32(1e-3)
    np.testing.assert_allclose(LogMel(spec)(waveform), definition(waveform, spec), atol=2e-5)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(SPECS),
    st.lists(
        st.one_of(st.sampled_from([0, 1, 2]), st.integers(0, 900), st.integers(0, 9_000)),
        max_size=12,
    ),
    st.integers(0, 5),
)
def test_streaming_equals_batch_bit_for_bit(spec: FeatureSpec, sizes: list[int], seed: int) -> None:
    waveform = noise(sum(sizes), seed=seed)
    streaming = StreamingLogMel(spec)
    parts = np.split(waveform, np.cumsum(sizes)[:-1]) if sizes else []
    rows = [streaming.push(part) for part in parts]
    taken = 0
    for part, row in zip(parts, rows, strict=True):
        before = spec.n_frames(taken)
        taken += part.size
        assert row.shape == (spec.n_frames(taken) - before, spec.n_mels)  # when it is due
    streamed = np.concatenate([np.zeros((0, spec.n_mels), np.float32), *rows])
    np.testing.assert_array_equal(streamed, LogMel(spec)(waveform))


def test_sample_by_sample() -> None:
    waveform = noise(SPEC.n_samples(3) + 7)
    streaming = StreamingLogMel(SPEC)
    rows = [streaming.push(waveform[i : i + 1]) for i in range(waveform.size)]
    np.testing.assert_array_equal(np.concatenate(rows), BATCH(waveform))
    assert [i for i, row in enumerate(rows) if len(row)] == [399, 559, 719]


def test_reset_forgets_the_samples_kept() -> None:
    streaming = StreamingLogMel(SPEC)
    streaming.push(noise(1_234, seed=1))
    streaming.reset()
    waveform = noise(1_000, seed=2)
    np.testing.assert_array_equal(streaming.push(waveform), BATCH(waveform))


@pytest.mark.parametrize("n", [0, 1, 79, 80, 399, 400, 401, 559, 560, 561, 16_000])
def test_number_of_frames(n: int) -> None:
    expected = 0 if n < 400 else 1 + (n - 400) // 160
    assert BATCH(noise(n)).shape == (expected, SPEC.n_mels)


@pytest.mark.parametrize("n_frames", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1, 3 * BLOCK])
def test_every_row_depends_on_its_own_samples_only(n_frames: int) -> None:
    waveform = noise(SPEC.n_samples(n_frames))
    rows = BATCH(waveform)
    assert len(rows) == n_frames
    for k in {0, n_frames // 2, n_frames - 1}:
        alone = BATCH(waveform[160 * k : 160 * k + 400])
        np.testing.assert_array_equal(alone[0], rows[k])


def test_the_input_may_be_a_strided_view_and_is_not_changed() -> None:
    waveform = noise(2_000)
    kept = waveform.copy()
    np.testing.assert_array_equal(BATCH(waveform[::2]), BATCH(waveform[::2].copy()))
    np.testing.assert_array_equal(waveform, kept)


def test_silence_is_the_floor() -> None:
    rows = BATCH(np.zeros(1_000, np.float32))
    floor = (np.log(np.float32(1e-6)) - np.float32(-4)) / np.float32(3)
    np.testing.assert_array_equal(rows, np.full((4, SPEC.n_mels), floor))


def test_dtype_and_statistics() -> None:
    waveform = noise(4_000)
    raw = LogMel(FeatureSpec())(waveform)
    assert raw.dtype == BATCH(waveform).dtype == np.float32
    np.testing.assert_array_equal(BATCH(waveform), (raw + np.float32(4)) / np.float32(3))


@pytest.mark.parametrize("bad", [np.zeros(800), np.zeros(800, np.int16), np.zeros((2, 800))])
def test_refuses_what_is_not_a_float32_waveform(bad: np.ndarray) -> None:
    with pytest.raises(AudioFormatError, match="float32 waveform"):
        BATCH(bad)  # type: ignore[arg-type]
    with pytest.raises(AudioFormatError, match="check_pcm"):
        StreamingLogMel(SPEC).push(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", SPECS)
def test_filterbank(spec: FeatureSpec) -> None:
    filters = mel_filterbank(spec)
    assert filters.shape == (spec.n_fft // 2 + 1, spec.n_mels)
    assert filters.dtype == np.float32
    assert filters.min() >= 0
    assert filters.max() <= 1
    bins = np.arange(len(filters)) * spec.sample_rate / spec.n_fft
    outside = (bins <= spec.f_min_hz) | (bins >= spec.f_max_hz)
    assert not filters[outside].any()
    # Between the first and the last centre, neighbouring triangles add up to one.
    mels = np.linspace(hz_to_mel(spec.f_min_hz), hz_to_mel(spec.f_max_hz), spec.n_mels + 2)
    first, last = mel_to_hz(mels[1]), mel_to_hz(mels[-2])
    inside = (bins >= first) & (bins <= last)
    np.testing.assert_allclose(filters[inside].sum(axis=1), 1, atol=1e-6)
    assert np.all(np.diff(filters.argmax(axis=0)) >= 0)


def test_mel_scale() -> None:
    hz = np.array([0.0, 20.0, 700.0, 1_000.0, 7_600.0])
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(hz)), hz, atol=1e-9)
    np.testing.assert_allclose(hz_to_mel(1_000.0), 1000.0, atol=0.02)  # by construction of HTK


def test_a_band_without_bins_is_refused() -> None:
    with pytest.raises(SpecError, match=r"mel band \d+ .* holds none of the 257 FFT bins"):
        LogMel(FeatureSpec(n_mels=200))


@pytest.mark.parametrize(
    "spec",
    [
        FeatureSpec(hop_length=0),
        FeatureSpec(frame_length=600),
        FeatureSpec(f_max_hz=9_000),
        FeatureSpec(std=0),
        FeatureSpec(log_floor=0),
    ],
)
def test_contradictory_specs_are_refused(spec: FeatureSpec) -> None:
    with pytest.raises(SpecError, match="expected"):
        LogMel(spec)
