"""Fixed-point requantisation against scalar arithmetic written the way the C kernels are."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_imputer.errors import ExportError
from edge_imputer.export.fixed_point import (
    INT32_MAX,
    INT32_MIN,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    quantize_multipliers,
    requantize,
    rounding_divide_by_pot,
    saturating_rounding_doubling_high_mul,
)

int32 = st.integers(INT32_MIN, INT32_MAX)
edges = st.sampled_from([INT32_MIN, INT32_MIN + 1, -(2**30), -1, 0, 1, 2**30, INT32_MAX])
reals = st.floats(2.0**-40, 2.0**30, allow_nan=False)


def c_high_mul(a: int, b: int) -> int:
    """gemmlowp: a nudge that follows the sign, then C's division towards zero."""
    if a == b == INT32_MIN:
        return INT32_MAX
    nudged = a * b + (1 << 30 if a * b >= 0 else 1 - (1 << 30))
    return nudged // 2**31 if nudged >= 0 else -(-nudged // 2**31)


def c_divide_by_pot(x: int, exponent: int) -> int:
    """gemmlowp: shift, and one more where the remainder is past the half."""
    mask = (1 << exponent) - 1
    return (x >> exponent) + ((x & mask) > (mask >> 1) + (x < 0))


def c_multiply(x: int, multiplier: int, shift: int) -> int:
    left, right = max(shift, 0), max(-shift, 0)
    return c_divide_by_pot(c_high_mul(x * (1 << left), multiplier), right)


def half_away(x: Fraction) -> int:
    return int(math.copysign(math.floor(abs(x) + Fraction(1, 2)), x))


@given(a=int32 | edges, b=int32 | edges)
def test_high_mul_equals_c(a: int, b: int) -> None:
    result = int(saturating_rounding_doubling_high_mul(a, b))
    assert result == c_high_mul(a, b)
    exact = Fraction(a * b, 2**31)
    assert result == min(math.floor(exact + Fraction(1, 2)), INT32_MAX)


@given(x=int32 | edges, exponent=st.integers(0, 31))
def test_divide_by_pot_rounds_halves_away_from_zero(x: int, exponent: int) -> None:
    result = int(rounding_divide_by_pot(x, exponent))
    assert result == c_divide_by_pot(x, exponent)
    assert result == half_away(Fraction(x, 2**exponent))


@given(x=int32 | edges, multiplier=st.integers(2**30, INT32_MAX), shift=st.integers(-31, 8))
def test_multiply_equals_c_and_is_near_the_exact_product(
    x: int, multiplier: int, shift: int
) -> None:
    if shift > 0:  # what op_params guarantees
        x >>= shift
    result = int(multiply_by_quantized_multiplier(x, multiplier, shift))
    assert result == c_multiply(x, multiplier, shift)
    exact = x * multiplier * Fraction(2) ** (shift - 31)
    assert abs(result - exact) <= Fraction(1, 2) + Fraction(1, 2) ** (1 + max(-shift, 0))


@given(x=int32 | edges, multiplier=st.integers(2**30, INT32_MAX), shift=st.integers(-31, 30))
def test_requantize_rounds_the_exact_product_once(x: int, multiplier: int, shift: int) -> None:
    exact = x * multiplier * Fraction(2) ** (shift - 31)
    assert int(requantize(x, multiplier, shift)) == math.floor(exact + Fraction(1, 2))


@given(
    x=st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=20),
    real=st.lists(st.floats(1e-6, 100), min_size=3, max_size=3),
)
def test_arrays_equal_scalars(x: list[int], real: list[float]) -> None:
    multipliers, shifts = quantize_multipliers(np.array(real))
    result = multiply_by_quantized_multiplier(np.array(x)[:, np.newaxis], multipliers, shifts)
    pairs = [quantize_multiplier(r) for r in real]
    assert result.tolist() == [[c_multiply(v, m, s) for m, s in pairs] for v in x]


@given(real=reals)
def test_quantize_multiplier_is_the_nearest(real: float) -> None:
    multiplier, shift = quantize_multiplier(real)
    if real < 2.0**-32:
        assert (multiplier, shift) == (0, 0)
        return
    assert 2**30 <= multiplier <= INT32_MAX
    assert shift >= -31
    error = abs(multiplier * Fraction(2) ** (shift - 31) - Fraction(real))
    assert error <= Fraction(real) / 2**31


@pytest.mark.parametrize(
    ("real", "expected"),
    [
        (0.0, (0, 0)),
        (1.0, (2**30, 1)),
        (0.5, (2**30, 0)),
        (0.75, (3 << 29, 0)),
        (math.nextafter(1, 0), (2**30, 1)),  # rounds up to a whole power of two
        (2.0**-32, (2**30, -31)),
        (math.nextafter(2.0**-32, 0), (2**30, -31)),
        (2.0**-33, (0, 0)),
    ],
)
def test_quantize_multiplier_at_the_edges(real: float, expected: tuple[int, int]) -> None:
    assert quantize_multiplier(real) == expected


@pytest.mark.parametrize("real", [-1e-9, math.nan, math.inf, 2.0**31])
def test_quantize_multiplier_refuses(real: float) -> None:
    with pytest.raises(ExportError, match="expected a requantisation multiplier"):
        quantize_multiplier(real)
