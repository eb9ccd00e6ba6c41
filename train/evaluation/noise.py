"""Noisy conditions: recordings of noise mixed into clips at a stated signal-to-noise ratio."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.audio import read_audio, resample
from edge_imputer.errors import DataError

from ..data import Split
from ..data.augment import active_level, scale_to_snr
from ..data.manifest import find_manifest, read_rows

Float32 = npt.NDArray[np.float32]


class _NoiseRow(msgspec.Struct, frozen=True, kw_only=True):
    audio: str
    split: Split


def mix_at_snr(speech: Float32, noise: Float32, snr_db: float, *, sample_rate: int) -> Float32:
    """Add noise so that the speech is `snr_db` above it.

    The level of the speech is that of its active frames, the level of the noise that of all its
    samples here, as augmentation has them in training (`edge_imputer.train.data.augment`). What
    would clip is turned down as a whole.

    Parameters
    ----------
    speech, noise : float32, (n,)
    snr_db : float
    sample_rate : int

    Raises
    ------
    DataError
        Speech or noise is digital silence: no ratio exists.
    """
    level = active_level(speech, sample_rate=sample_rate)
    if not (level > 0 and noise.any()):
        raise DataError("expected speech and noise with a sound in them, got digital silence")
    mixed = speech + scale_to_snr(noise, level, snr_db)
    peak = np.float32(max(1.0, float(np.abs(mixed).max())))
    quiet: Float32 = mixed / peak
    return quiet


class NoiseMixer:
    """Recordings of noise, one of which is drawn for every clip by the seed and the clip itself.

    Parameters
    ----------
    path : Path
        Corpus folder or manifest; ``text`` and ``speaker`` do not matter.
    split : Split
        Use these rows only, so that noises of training are not heard again.
    sample_rate, seed : int

    Raises
    ------
    DataError
        No row of the split.
    """

    def __init__(self, path: Path, split: Split, *, sample_rate: int, seed: int) -> None:
        file = find_manifest(path)
        decode = msgspec.json.Decoder(_NoiseRow).decode
        rows = [row for row in read_rows(file, decode) if row.split == split]
        if not rows:
            raise DataError(
                f"{file} has no noise of the split {split!r}; expected at least one recording, so "
                "that noises heard in training are not used again"
            )
        self.name = file.parent.name
        self.files = [file.parent / row.audio for row in rows]
        self.sample_rate = sample_rate
        self.seed = seed
        self._loaded: dict[Path, Float32] = {}

    def mix(self, waveform: Float32, snr_db: float) -> Float32:
        """A clip with noise: which, and from where on, depends on the seed and the samples only.

        The same clip gets the same stretch of noise at every SNR. Digital silence stays as it is.

        Raises
        ------
        DataError
            Every recording of noise is digital silence.
        """
        if not waveform.any():
            return waveform
        digest = hashlib.sha256(waveform.tobytes()).digest()
        rng = np.random.default_rng([self.seed, *np.frombuffer(digest[:16], np.uint32)])
        stretch = self._stretch(len(waveform), rng)
        return mix_at_snr(waveform, stretch, snr_db, sample_rate=self.sample_rate)

    def _stretch(self, n: int, rng: np.random.Generator) -> Float32:
        """Noise with a sound in it, (n,): what is silent where it was drawn is drawn anew."""
        left = list(self.files)
        while left:
            noise = self._load(left.pop(int(rng.integers(len(left)))))
            if not noise.any():
                continue
            stretch = _from(noise, int(rng.integers(len(noise))), n)
            if stretch.any():
                return stretch
            return _from(noise, int(rng.choice(np.flatnonzero(noise))), n)
        raise DataError(
            f"expected noise with a sound in it, got digital silence in all {len(self.files)} "
            f"recordings of {self.name}; give others"
        )

    def _load(self, file: Path) -> Float32:
        if file not in self._loaded:
            waveform, rate = read_audio(file)
            self._loaded[file] = resample(waveform, from_rate=rate, to_rate=self.sample_rate)
        return self._loaded[file]


def _from(noise: Float32, start: int, n: int) -> Float32:
    """n samples from `start` on, round and round where the recording is too short."""
    return np.resize(np.roll(noise, -start), n)
