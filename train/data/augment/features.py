"""What is done to features: vocal tract, channel, SpecAugment."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


def warp_mels(x: Float32, warp: float) -> Float32:
    """Stretch the mel axis by ``1 + warp``, by linear interpolation between bands.

    Parameters
    ----------
    x : (T, n_mels)
    warp : relative; the last band is repeated past the end
    """
    n_mels = x.shape[1]
    position = np.clip(np.arange(n_mels, dtype=np.float32) * np.float32(1 + warp), 0, n_mels - 1)
    low = position.astype(np.int64)
    high = np.minimum(low + 1, n_mels - 1)
    weight = position - low.astype(np.float32)
    # As a product with a sparse matrix: a quarter of the time of picking columns.
    matrix = np.zeros((n_mels, n_mels), np.float32)
    bands = np.arange(n_mels)
    matrix[low, bands] = 1 - weight
    matrix[high, bands] += weight
    return x @ matrix


def tilt_bands(x: Float32, knots: npt.NDArray[np.float64]) -> Float32:
    """Add a smooth filter to a log-mel: piecewise linear between knots, in nats, over the bands."""
    at = np.linspace(0, len(knots) - 1, x.shape[1])
    return x + np.interp(at, np.arange(len(knots)), knots).astype(np.float32)


def warp_time(x: Float32, point: int, shift: int) -> Float32:
    """Move frame `point` to ``point + shift``; what is before and after is stretched to fit.

    Linear interpolation between frames, (T, n_mels) -> (T, n_mels): SpecAugment's time warping
    (Park et al. 2019, section 2), with the two ends fixed.
    """
    n = len(x)
    source = np.interp(np.arange(n), [0, point + shift, n - 1], [0, point, n - 1])
    low = np.minimum(source.astype(np.int64), n - 2)
    weight = (source - low).astype(np.float32)[:, None]
    warped: Float32 = x[low] * (1 - weight) + x[low + 1] * weight
    return warped


def mask_blocks(
    x: Float32,
    n_masks: int,
    longest: int,
    rng: np.random.Generator,
    *,
    axis: int,
    fill: float,
    strength: float = 1.0,
) -> None:
    """Fill random blocks of frames (axis 0) or bands (axis 1) of x, (T, n_mels), in place.

    SpecAugment's masks (Park et al. 2019, section 2): widths uniform from 0 to `longest`, times
    `strength`.
    """
    size = x.shape[axis]
    for _ in range(n_masks):
        width = min(int(strength * rng.integers(longest + 1)), size)
        start = rng.integers(size - width + 1)
        if axis:
            x[:, start : start + width] = fill
        else:
            x[start : start + width] = fill
