"""The FFT of real int16 signals in 16-bit fixed point, many at once, with kissfft's very bits.

What TensorFlow Lite Micro's microfrontend runs is kissfft (Mark Borgerding), compiled with
``FIXED_POINT=16``, and a model that is to see the same numbers on a device must be trained on its
roundings. The method:

1. A real signal of n samples is n / 2 complex ones, the even samples and i times the odd ones.
2. They are transformed by decimation in time with radix 4. Each stage divides its input by 4, as a
   product with 8191 / 2^15, and multiplies it by twiddles in Q15, each time rounding half up.
3. The two halves of that spectrum, divided by 2, are added, turned and halved, rounding down.

So the result is the transform divided by n, but for the roundings. Sums wrap around in 16 bits,
which a signal at full scale can reach; only integers are used, so it is the same on every machine.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Int16 = npt.NDArray[np.int16]
Int32 = npt.NDArray[np.int32]

_ONE = 32_767  # of Q15, as kissfft has it
_HALF = 1 << 14
_BITS = 15


def real_fft(x: Int16) -> Int16:
    """Spectrum of real signals, divided by their length.

    Parameters
    ----------
    x : int16, (n, T)
        T signals of n = 2 * 4^k samples, one a column.

    Returns
    -------
    spectrum : int16, (2, n // 2 + 1, T)
        Real and imaginary parts.
    """
    n, t = x.shape
    half = n // 2
    z = np.ascontiguousarray(x.reshape(half, 2, t).swapaxes(0, 1))  # (2, n / 2, T)
    m = 1
    while m < half:
        z = _radix_4(z.reshape(2, 4, half // (4 * m), m, t)).reshape(2, half, t)
        m *= 4
    return _of_real_signals(z)


def _radix_4(z: Int16) -> Int16:
    """Combine each four transforms of m points into one of 4 m, groups of them at once.

    The four that belong together are as far apart as can be, and what comes out stands together:
    so the samples can come in their order, and the next stage finds its four in the same way.

    Parameters
    ----------
    z : int16, (2, 4, groups, m, T)
        Real and imaginary parts.

    Returns
    -------
    z : int16, (2, groups, 4, m, T)
    """
    _, _, groups, m, t = z.shape
    scaled = _rounded(np.multiply(z, np.int32(_ONE // 4), dtype=np.int32))
    turned = scaled[:, 1:]
    if m > 1:  # else by one in Q15, which leaves numbers this small as they are
        turned = _turned(turned.astype(np.int32), _twiddles(4 * groups * m, m, t))
    even, odd = scaled[:, 0] + turned[:, 1], scaled[:, 0] - turned[:, 1]
    total, difference = turned[:, 0] + turned[:, 2], turned[:, 0] - turned[:, 2]
    out = np.empty((2, groups, 4, m, t), np.int16)
    np.add(even, total, out=out[:, :, 0])
    np.subtract(even, total, out=out[:, :, 2])
    # Minus and plus i times the difference.
    np.add(odd[0], difference[1], out=out[0, :, 1])
    np.subtract(odd[1], difference[0], out=out[1, :, 1])
    np.subtract(odd[0], difference[1], out=out[0, :, 3])
    np.add(odd[1], difference[0], out=out[1, :, 3])
    return out


def _of_real_signals(z: Int16) -> Int16:
    """The spectrum (2, n / 2 + 1, T) of real signals, from that of their halves, (2, n / 2, T)."""
    half, t = z.shape[1:]
    scaled = _rounded(np.multiply(z, np.int32(_ONE // 2), dtype=np.int32))
    low = scaled[:, 1 : half // 2 + 1]
    high = scaled[:, : half // 2 - 1 : -1]
    total, difference = np.empty_like(low), np.empty_like(low)
    np.add(low[0], high[0], out=total[0])
    np.subtract(low[1], high[1], out=total[1])
    np.subtract(low[0], high[0], out=difference[0])
    np.add(low[1], high[1], out=difference[1])
    turned = _turned(difference.astype(np.int32), _real_twiddles(half, t)).astype(np.int32)
    out = np.zeros((2, half + 1, t), np.int16)
    out[:, 1 : half // 2 + 1] = (total + turned) >> 1
    out[0, half - 1 : half // 2 - 1 : -1] = (total[0] - turned[0]) >> 1
    out[1, half - 1 : half // 2 - 1 : -1] = (turned[1] - total[1]) >> 1
    out[0, 0] = scaled[0, 0] + scaled[1, 0]
    out[0, half] = scaled[0, 0] - scaled[1, 0]
    return out


def _turned(z: Int32, by: Int32) -> Int16:
    """Complex products of z, (2, ...), with numbers in Q15, (2, ...), rounded half up."""
    product, crossed = z * by[0], z * by[1]  # both parts of z, by the real and the imaginary one
    product[0] -= crossed[1]
    product[1] += crossed[0]
    return _rounded(product)


def _rounded(x: Int32) -> Int16:
    """x / 2^15, rounded half up; x is written over."""
    x += _HALF
    x >>= _BITS
    return x.astype(np.int16)


@lru_cache(maxsize=16)
def _twiddles(n: int, m: int, t: int) -> Int32:
    """Powers of the n-th root of one for a stage with m points, (2, 3, 1, m, t)."""
    power = np.arange(1, 4)[:, None] * np.arange(m) * (n // (4 * m))  # (3, m)
    return _repeated(_q15(-2 * np.pi * power / n), t)[:, :, None]


@lru_cache(maxsize=4)
def _real_twiddles(n: int, t: int) -> Int32:
    """What the spectrum's halves are turned by, (2, n / 2, t)."""
    return _repeated(_q15(-np.pi * (np.arange(1, n // 2 + 1) / n + 0.5)), t)


def _repeated(numbers: Int32, t: int) -> Int32:
    """(...) -> (..., t): products are quicker than where numpy repeats them itself."""
    return np.repeat(numbers[..., None], t, axis=-1)


def _q15(phase: npt.NDArray[np.float64]) -> Int32:
    """Cosine and sine of phases, (...) -> (2, ...), in Q15."""
    numbers = _ONE * np.stack([np.cos(phase), np.sin(phase)])
    rounded: Int32 = np.floor(0.5 + numbers).astype(np.int32)
    return rounded
