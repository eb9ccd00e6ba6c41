"""Log-mel and PCEN features as operations of a graph, a few frames at once.

A Fourier transform of N points is one of P and one of Q points, N = P Q (Cooley and Tukey 1965).
With ``n = Q n1 + n2`` and ``k = k1 + P k2``::

    A[k1, n2] = sum over n1 of  x[n] exp(-2 pi i k1 n / N)
    X[k]      = sum over n2 of  A[k1, n2] exp(-2 pi i k2 n2 / Q)

Q is what the hop and N are both multiples of. Then samples are rows of Q, frames begin at rows, and
the first sum, the window, and the cutting into frames are one bank of filters along each of the Q
columns; the second is one matrix for all k1. Samples are real, so k1 up to P / 2 gives all X, some
as their conjugates. At 512 points and a hop of 160, P is 16 and Q is 32: 11,600 constants, while
the matrix of the whole transform has 205,000.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np

from edge_imputer.frontend import hann_window, mel_filterbank
from edge_imputer.specs import FeatureSpec, MelSpec, PcenSpec

from ..graph import Array
from .builder import FusedBuilder

MEL_GROUPS = 4  # of neighbouring bands, which read few bins each: most of the matrix is zeros

LEAST_POWER = 1e-30


@dataclass(frozen=True)
class Plan:
    """How frames lie in rows of samples, and how many terms each sum has.

    Attributes
    ----------
    row : int
        Samples a row, Q.
    frame_rows, hop_rows : int
        Rows that a frame reads, and by which the next one begins later.
    n_first : int
        Values of k1, P // 2 + 1.
    """

    row: int
    frame_rows: int
    hop_rows: int
    n_first: int

    @property
    def kept(self) -> int:
        """Samples that a frame reads before its newest hop.

        Frames end with a row, so the first ones of these may be in no frame.
        """
        return (self.frame_rows - self.hop_rows) * self.row


def plan(spec: MelSpec) -> Plan:
    """The plan of a specification."""
    row = gcd(spec.hop_length, spec.n_fft)
    return Plan(
        row, -(-spec.frame_length // row), spec.hop_length // row, spec.n_fft // row // 2 + 1
    )


def filters(spec: MelSpec, scale: float) -> Array:
    """The first sum, windowed: float32 (1, frame_rows, 1, row * 2 n_first).

    Of each of the Q columns n2, for each k1 a real and an imaginary part.
    """
    p = plan(spec)
    n = np.arange(p.frame_rows * p.row).reshape(p.frame_rows, p.row, 1)
    window = np.zeros(n.size)
    window[n.size - spec.frame_length :] = hann_window(spec.frame_length)
    angle = 2 * np.pi * n * np.arange(p.n_first) / spec.n_fft  # (frame_rows, row, n_first)
    parts = np.stack([np.cos(angle), -np.sin(angle)], -1) * (scale * window.reshape(*n.shape, 1))
    return parts.reshape(1, p.frame_rows, 1, -1).astype(np.float32)


def second(spec: MelSpec) -> Array:
    """The second sum: float32 (2 Q, 2 Q), from n2 to k2 in `bin_order`, real parts first."""
    p = plan(spec)
    angle = 2 * np.pi * np.outer(_order(p.row), np.arange(p.row)) / p.row  # (k2, n2)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.block([[cos, sin], [-sin, cos]]).astype(np.float32)


def _order(n: int) -> Array:
    """0, n - 1, 1, n - 2...: the order of k2 in which frequency rises."""
    order = np.empty(n, np.int64)
    order[::2], order[1::2] = np.arange((n + 1) // 2), np.arange(n - 1, (n - 1) // 2, -1)
    return order


def mel_matrix(spec: MelSpec) -> Array:
    """Mel weights as the second sum has the bins: float32 (n_mels, n_first, row)."""
    p = plan(spec)
    k = np.arange(p.n_first)[:, np.newaxis] + spec.n_fft // p.row * _order(p.row)
    bins, where = np.unique(np.minimum(k, spec.n_fft - k), return_index=True)  # each of them once
    weights = np.zeros((spec.n_mels, k.size), np.float32)
    weights[:, where] = mel_filterbank(spec)[bins].T
    return weights.reshape(spec.n_mels, *k.shape)


def mel_energy(g: FusedBuilder, name: str, samples: str, spec: MelSpec, scale: float) -> str:
    """Energies of the mel bands of some frames.

    Parameters
    ----------
    g : FusedBuilder
    name : str
        What the activations are named after; constants are the same for every call.
    samples : float32, (kept + n * hop_length,)
        The frames' own, after `Plan.kept` earlier ones.
    spec : MelSpec
    scale : float
        What samples are multiplied by.

    Returns
    -------
    energy : float32, (n, n_mels)
    """
    p = plan(spec)
    rows = g.reshape(f"{name}.rows", samples, (1, g.shape(samples)[0] // p.row, 1, p.row))
    bank = filters(spec, scale)
    y = g.filter_bank(f"{name}.bank", rows, bank, _zeros(bank.shape[3]), p.hop_rows)
    n = g.shape(y)[1]
    y = g.reshape(f"{name}.columns", y, (n, p.row, 2 * p.n_first))
    y = g.transpose(f"{name}.parts", y, (0, 2, 1))
    y = g.reshape(f"{name}.first", y, (n * p.n_first, 2 * p.row))
    matrix = second(spec)
    y = g.fully_connected(
        f"{name}.second", y, matrix, _zeros(len(matrix)), constants="features.second"
    )
    squares = []
    for k, part in enumerate(("real", "imaginary")):
        half = g.slice(f"{name}.{part}", y, 1, k * p.row, p.row)
        squares.append(g.binary("mul", f"{name}.{part}.square", half, half))
    power = g.binary("add", f"{name}.power", *squares)  # (n * n_first, row)
    return _bands(g, name, power, mel_matrix(spec))


def log_mel(g: FusedBuilder, name: str, energy: str, spec: FeatureSpec) -> str:
    """Log-mel features of energies, float32 (n, n_mels), as `edge_imputer.frontend` has them."""
    floor = g.scalar("features.floor", spec.log_floor)
    y = g.unary("log", f"{name}.log", g.binary("maximum", f"{name}.floored", energy, floor))
    y = g.binary("sub", f"{name}.centred", y, g.scalar("features.mean", spec.mean))
    return g.binary("mul", f"{name}.scaled", y, g.scalar("features.gain", 1 / spec.std))


def pcen(
    g: FusedBuilder, name: str, energy: str, level: str, begun: str, spec: PcenSpec
) -> tuple[str, str]:
    """PCEN features of energies, as `edge_imputer.pcen` has them.

    The running mean is a matrix on the frames of the call, and what is left of the mean before.

    Parameters
    ----------
    energy : float32, (n, n_mels)
        Of samples at the input scale.
    level : float32, (n_mels, 1)
        The running mean before the first of these frames; zeros before the first of all.
    begun : float32, (1,)
        0 before the first frame of all, which gives the mean its value; then 1.

    Returns
    -------
    features : float32, (n, n_mels)
    level : float32, (n_mels, 1)
        After the last of these frames.
    """
    n = g.shape(energy)[0]
    age = np.subtract.outer(np.arange(n), np.arange(n))  # of a frame's energy in another's mean
    weights = np.where(age >= 0, spec.s * (1 - spec.s) ** np.maximum(age, 0), 0).astype(np.float32)
    fade = ((1 - spec.s) ** np.arange(1, n + 1, dtype=np.float64)).astype(np.float32)[np.newaxis]
    rows = g.transpose(f"{name}.bands", energy, (1, 0))  # (n_mels, n)
    first = g.slice(f"{name}.first_energy", rows, 1, 0, 1)
    new = g.binary("sub", f"{name}.new", g.scalar("features.one", 1), begun)
    given = g.binary("mul", f"{name}.given", first, new)
    before = g.binary("add", f"{name}.before", level, given)
    mean = g.fully_connected(
        f"{name}.recent", rows, weights, _zeros(n), constants="features.smoother"
    )
    faded = g.binary("mul", f"{name}.faded", before, g.shared("features.fade", fade))
    mean = g.binary("add", f"{name}.level", mean, faded)
    after = g.slice(f"{name}.level.last", mean, 1, n - 1, 1)
    y = g.binary("add", f"{name}.above", mean, g.scalar("features.epsilon", spec.epsilon))
    y = _power(g, f"{name}.inverse", y, "features.alpha", -spec.alpha)
    y = g.binary("mul", f"{name}.normalised", rows, y)
    # Without an offset silence is 0, which has no logarithm, but so small a number's root is 0 too.
    offset = ("add", spec.delta) if spec.delta else ("maximum", LEAST_POWER)
    y = g.binary(offset[0], f"{name}.offset", y, g.scalar("features.delta", offset[1]))
    y = _power(g, f"{name}.root", y, "features.r", spec.r)
    y = g.binary("sub", f"{name}.least", y, g.scalar("features.least", spec.delta**spec.r))
    return g.transpose(f"{name}.frames", y, (1, 0)), after


def _power(g: FusedBuilder, name: str, x: str, constant: str, exponent: float) -> str:
    """A power of positive numbers."""
    logarithm = g.unary("log", f"{name}.log", x)
    scaled = g.binary("mul", f"{name}.scaled", logarithm, g.scalar(constant, exponent))
    return g.unary("exp", name, scaled)


def _bands(g: FusedBuilder, name: str, power: str, weights: Array) -> str:
    """(n * n_first, row) -> (n, n_mels), by groups of bands and the columns that they read."""
    n_first = weights.shape[1]
    n = g.shape(power)[0] // n_first
    groups = []
    for k, bands in enumerate(np.array_split(weights, min(MEL_GROUPS, len(weights)))):
        columns = np.flatnonzero(bands.any((0, 1)))
        begin, end = int(columns[0]), int(columns[-1]) + 1
        part = g.slice(f"{name}.mel{k}.bins", power, 1, begin, end - begin)
        part = g.reshape(f"{name}.mel{k}.rows", part, (n, n_first * (end - begin)))
        matrix = np.ascontiguousarray(bands[:, :, begin:end]).reshape(len(bands), -1)
        groups.append(
            g.fully_connected(
                f"{name}.mel{k}", part, matrix, _zeros(len(bands)), constants=f"features.mel{k}"
            )
        )
    return g.join(f"{name}.mel", groups, 1)


def _zeros(n: int) -> Array:
    return np.zeros(n, np.float32)
