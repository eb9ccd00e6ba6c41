"""PCEN front end: waveform -> (T, n_mels), whole or as it arrives, with the same bits.

Per-channel energy normalisation (Wang et al. 2017, arXiv:1607.05666, section 2): every mel band's
energy is divided by a running mean of itself, which takes out the level of the input and what is
steady in the background, and is then compressed. `PcenSpec` has the formulas. The running mean is
a recursion over frames, so PCEN streams frame by frame; whether the frames are centred only
decides where they are cut. float32 throughout, as in `frontend`.
"""

from __future__ import annotations

import numpy as np

from .frontend import Float32, MelEnergy, StreamingFrames, frame_blocks, stack
from .specs import PcenSpec


class Normaliser:
    """The running mean of a stream's energies, and what PCEN makes of both."""

    def __init__(self, spec: PcenSpec) -> None:
        self.spec = spec
        self._state: Float32 | None = None  # (n_mels,); None before the first frame

    def __call__(self, energy: Float32) -> Float32:
        """Features of the next frames, from their mel energies.

        Parameters
        ----------
        energy : float32, (t, n_mels), t >= 1
            Of a waveform that was multiplied by ``spec.input_scale``.

        Returns
        -------
        features : float32, (t, n_mels)
        """
        spec = self.spec
        out = self._running_mean(energy)
        out += np.float32(spec.epsilon)
        np.power(out, np.float32(-spec.alpha), out=out)
        out *= energy
        out += np.float32(spec.delta)
        np.power(out, np.float32(spec.r), out=out)
        out -= np.power(np.float32(spec.delta), np.float32(spec.r))
        return out

    def _running_mean(self, energy: Float32) -> Float32:
        """M of every frame, (t, n_mels); a new array."""
        mean: Float32 = energy * np.float32(self.spec.s)
        keep = np.float32(1 - self.spec.s)
        state = energy[0] if self._state is None else self._state
        for row in mean:
            row += keep * state
            state = row
        self._state = state.copy()  # the caller goes on with `mean`
        return mean


class Pcen:
    """PCEN features of a whole waveform."""

    def __init__(self, spec: PcenSpec) -> None:
        self.spec = spec
        self._energy = MelEnergy(spec)
        self._gain = np.float32(spec.input_scale**2)

    def __call__(self, waveform: Float32) -> Float32:
        """Compute the features.

        Parameters
        ----------
        waveform : float32, (n,), in -1..1

        Returns
        -------
        features : float32, (spec.n_frames(n), n_mels)
        """
        normalise = Normaliser(self.spec)
        blocks = frame_blocks(waveform, self.spec)
        return stack((normalise(self.energy(frames)) for frames in blocks), self.spec)

    def energy(self, frames: Float32) -> Float32:
        """Mel energies at the input scale, of frames already cut: (t, frame_length) -> (t, n_mels).

        A power of two as the scale is as good here as on the samples: it rounds nothing.
        """
        energy = self._energy(frames)
        energy *= self._gain
        return energy


class StreamingPcen:
    """PCEN features of a stream, equal bit for bit to `Pcen` of the whole."""

    def __init__(self, spec: PcenSpec) -> None:
        self.spec = spec
        self._pcen = Pcen(spec)
        self._frames = StreamingFrames(spec)
        self._normalise = Normaliser(spec)

    def reset(self) -> None:
        """Forget the samples kept and the level; the next push starts a new stream."""
        self._frames.reset()
        self._normalise = Normaliser(self.spec)

    def push(self, pcm: Float32) -> Float32:
        """Take the next samples, any number of them.

        Parameters
        ----------
        pcm : float32, (n,), in -1..1

        Returns
        -------
        features : float32, (t, n_mels)
            The frames whose last sample has arrived; t may be 0.
        """
        blocks = self._frames.push(pcm)
        return stack((self._normalise(self._pcen.energy(f)) for f in blocks), self.spec)

    def finish(self) -> Float32:
        """End the stream: the frames that reach into the padding, (t, n_mels); then `reset`.

        There are some where frames are centred, and none where they are left-aligned.
        """
        last = self.push(np.zeros(self.spec.padding[1], np.float32))
        self.reset()
        return last
