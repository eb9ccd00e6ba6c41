"""The fixed-point FFT: a Fourier transform within its roundings, and kissfft's numbers."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_imputer.fixed_fft import Int16, real_fft

# Sizes, and check sums of what kissfft gives for `signals` at full scale (FIXED_POINT=16; the copy
# that pymicro-features 2.0.2 is built from).
KISSFFT = {8: 3908052671, 32: 93187659, 128: 3463475873, 512: 3270048418}


def signals(n: int, level: int = 32_767) -> Int16:
    """Something like noise, tones, steps and clicks, (n, 64), by integers alone."""
    i, k = np.arange(n)[:, None], np.arange(1, 17)
    phase = i * k * 1_777 % 65_536
    parts = [
        (i * i * k * 40_503 + i * 12_345) % 65_536 - 32_768,
        np.abs(phase - 32_768) * 2 - 32_768,  # triangles
        np.where(phase < 32_768, 32_767, -32_768),
        np.where((i * 7 + k * 3) % n < 2, -32_768, 0),
    ]
    return (np.concatenate(parts, axis=1).clip(-32_768, 32_767) * level // 32_767).astype(np.int16)


@pytest.mark.parametrize("n", KISSFFT)
def test_is_what_kissfft_gives(n: int) -> None:
    """Also where sums wrap around, as they do here."""
    spectrum = real_fft(signals(n))
    assert zlib.crc32(spectrum.astype("<i2").tobytes()) == KISSFFT[n]


@pytest.mark.parametrize("n", KISSFFT)
def test_is_a_fourier_transform_over_n(n: int) -> None:
    x = signals(n, level=12_000)  # whose sums do not
    real, imaginary = real_fft(x).astype(np.float64)
    expected = np.fft.rfft(x, axis=0) / n
    assert np.abs(real - expected.real).max() < 6
    assert np.abs(imaginary - expected.imag).max() < 6
    assert not imaginary[[0, n // 2]].any()


@given(st.sampled_from([*KISSFFT]), st.lists(st.integers(0, 63), max_size=6))
def test_a_signal_does_not_know_the_others(n: int, columns: list[int]) -> None:
    x = signals(n)
    kept = x.copy()
    np.testing.assert_array_equal(real_fft(x[:, columns]), real_fft(x)[:, :, columns])
    np.testing.assert_array_equal(x, kept)
