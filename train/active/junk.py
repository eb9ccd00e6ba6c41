"""What is not worth a label: silence, noise, clipping, and what cannot be read or is too long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.clip_checks import Finding
from edge_imputer.errors import SpecError
from edge_imputer.frontend import LogMel
from edge_imputer.specs import FeatureSpec

from ..data.verdicts import SILENT_DB

Waveform = npt.NDArray[np.float32]
Junk = Literal["silent", "noise", "clipped", "too short", "too long"]

# Shares and levels below were chosen on speech and noise; docs/active_learning.md has the figures.
CLIPPED_SHARE = 0.01  # of the samples
STEADY_DB = 1.7  # the least that levels of mel bands vary by where somebody speaks
VOICED = 0.45  # the least periodicity of the most periodic tenth of the louder frames
PITCH_HZ = (60.0, 400.0)
DB_PER_NAT = 10 / np.log(10)
RATE = FeatureSpec().sample_rate
_SMOOTH = 5  # feature frames: one frame of noise varies by itself
_WINDOW_S, _HOP_S = 0.04, 0.02


class JunkRules(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a clip.

    Attributes
    ----------
    min_s, max_s : float
        Its length, seconds.
    keep : tuple of str
        Reasons that do not count: silent, noise, clipped.
    """

    min_s: float = 0.2
    max_s: float = 35.0
    keep: tuple[Literal["silent", "noise", "clipped"], ...] = ()

    def check(self) -> None:
        """Raise `SpecError` on lengths that no clip has."""
        if not 0 < self.min_s < self.max_s:
            raise SpecError(
                f"expected 0 < shortest < longest clip, got {self.min_s:g} and {self.max_s:g} s"
            )


class JunkFilter:
    """Says of a clip why it is not worth a label.

    Parameters
    ----------
    rules : JunkRules
    """

    def __init__(self, rules: JunkRules) -> None:
        rules.check()
        self.rules = rules
        self._log_mel = LogMel(FeatureSpec())

    def length(self, seconds: float) -> tuple[Junk, str] | None:
        """Why a clip of that length is left out, and how much it is off; None: it is not."""
        rules = self.rules
        if seconds < rules.min_s:
            return "too short", f"{seconds:.2f} s, expected {rules.min_s:g} s or more"
        if seconds > rules.max_s:
            return "too long", f"{seconds:.1f} s, expected {rules.max_s:g} s or less: cut it up"
        return None

    def __call__(self, finding: Finding, waveform: Waveform) -> tuple[Junk, str] | None:
        """Why a clip is left out, with particulars; None: it is not.

        Parameters
        ----------
        finding : what `edge_imputer.clip_checks` says of its samples
        waveform : float32, (n,), at `RATE`
        """
        off = self.length(finding.duration_s)
        if off is not None:
            return off
        keep = self.rules.keep
        if "silent" not in keep and finding.peak_db < SILENT_DB:
            return "silent", f"peak {finding.peak_db:.0f} dBFS"
        if "clipped" not in keep and finding.clipped > CLIPPED_SHARE:
            return "clipped", f"{100 * finding.clipped:.1f} % of the samples"
        if "noise" not in keep:
            return self._noise(waveform)
        return None

    def _noise(self, waveform: Waveform) -> tuple[Junk, str] | None:
        varies = self.variation_db(waveform)
        if varies < STEADY_DB:
            return "noise", f"steady: bands vary by {varies:.1f} dB"
        periodic = self.periodicity(waveform)
        if periodic < VOICED:
            return "noise", f"nothing in it is voiced: periodicity {periodic:.2f}"
        return None

    def variation_db(self, waveform: Waveform) -> float:
        """How much the level of a mel band varies over 50 ms steps: deviation, mean over bands."""
        nats = self._log_mel(waveform)
        if len(nats) < 2 * _SMOOTH:
            return float("inf")  # too short to tell
        sums = np.cumsum(np.vstack([np.zeros((1, nats.shape[1])), nats]), axis=0)
        smooth = (sums[_SMOOTH:] - sums[:-_SMOOTH]) / _SMOOTH
        return float(smooth.std(axis=0).mean() * DB_PER_NAT)

    def periodicity(self, waveform: Waveform) -> float:
        """Largest autocorrelation at lags of a voice's pitch, 1 for a periodic sound.

        Of the louder half of the frames it is the 90th percentile.
        """
        width, hop = round(_WINDOW_S * RATE), round(_HOP_S * RATE)
        padded = np.pad(waveform, (0, max(0, width - len(waveform))))
        frames = np.lib.stride_tricks.sliding_window_view(padded, width)[::hop]
        power = np.einsum("tn,tn->t", frames, frames)
        frames = frames[power >= np.median(power)]
        frames = frames - frames.mean(axis=1, keepdims=True)
        size = 1 << int(np.ceil(np.log2(2 * width)))
        spectrum = np.fft.rfft(frames, size)
        correlation = np.fft.irfft((spectrum * spectrum.conj()).real, size)[:, :width]
        lags = slice(*(round(RATE / hz) for hz in reversed(PITCH_HZ)))
        overlap = width / (width - np.arange(width)[lags])
        energy = np.maximum(correlation[:, :1], 1e-12)
        return float(np.percentile((correlation[:, lags] / energy * overlap).max(axis=1), 90))


REASONS: Sequence[str] = (
    # In the order in which a clip is looked at; a score log's states count from here.
    "",
    "missing",
    "empty",
    "truncated",
    "channels",
    "not finite",
    "unreadable",
    "in the training set",
    "too short",
    "too long",
    "silent",
    "clipped",
    "noise",
    "no score",
)
"""Why a clip has no score, the first: it has one."""
