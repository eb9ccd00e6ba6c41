"""The front end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import SpecError
from .base import Spec


class FrameSpec(Spec, frozen=True, kw_only=True):
    """What every front end's specification tells: its rate, its frames, how many bands they have.

    Whether these can be chosen is the specification's own matter.
    """

    if TYPE_CHECKING:

        @property
        def sample_rate(self) -> int:
            """Of the waveform, in Hz."""

        @property
        def frame_length(self) -> int:
            """Samples of a frame."""

        @property
        def hop_length(self) -> int:
            """Samples from one frame to the next."""

        @property
        def n_mels(self) -> int:
            """Bands, the width of a feature frame."""

    @property
    def padding(self) -> tuple[int, int]:
        """Zero samples that are put before and after a waveform."""
        return 0, 0

    def check(self) -> None:
        """Raise `SpecError` on values that contradict each other."""

    def whole_frames(self, n_samples: int) -> int:
        """Number of whole frames in `n_samples` samples, padding counted among them."""
        return max(0, 1 + (n_samples - self.frame_length) // self.hop_length)

    def n_frames(self, n_samples: int) -> int:
        """Number of frames of a waveform of `n_samples` samples."""
        return self.whole_frames(n_samples + sum(self.padding))

    def n_samples(self, n_frames: int) -> int:
        """Fewest samples that give `n_frames` frames."""
        if n_frames < 1:
            return 0
        return self.frame_length + (n_frames - 1) * self.hop_length - sum(self.padding)


class MelSpec(FrameSpec, frozen=True, kw_only=True):
    """What float front ends begin with: frames, their power spectrum, HTK mel bands."""

    sample_rate: int = 16_000
    frame_length: int = 400  # samples, 25 ms
    hop_length: int = 160  # samples, 10 ms
    n_fft: int = 512
    n_mels: int = 40
    f_min_hz: float = 20.0
    f_max_hz: float = 7_600.0

    def check(self) -> None:
        """Raise `SpecError` on values that contradict each other."""
        if not 0 < self.hop_length <= self.frame_length <= self.n_fft:
            raise SpecError(
                "expected 0 < hop_length <= frame_length <= n_fft, got "
                f"{self.hop_length}, {self.frame_length}, {self.n_fft}"
            )
        if not 0 <= self.f_min_hz < self.f_max_hz <= self.sample_rate / 2:
            raise SpecError(
                f"expected 0 <= f_min_hz < f_max_hz <= {self.sample_rate / 2} (half the sample "
                f"rate), got {self.f_min_hz} and {self.f_max_hz}"
            )
        if self.n_mels < 1:
            raise SpecError(f"expected n_mels >= 1, got {self.n_mels}")


class FeatureSpec(MelSpec, frozen=True, kw_only=True, tag="log-mel", tag_field="kind"):
    """Log-mel front end: power spectrum, HTK mel bands, natural log with a floor.

    A frame is due when its last sample is there (left-aligned, no centring). The output is
    ``(log(max(mel_energy, log_floor)) - mean) / std``.
    """

    log_floor: float = 1e-6
    mean: float = 0.0
    std: float = 1.0

    def check(self) -> None:
        """Raise `SpecError` on values that contradict each other."""
        super().check()
        if not (self.log_floor > 0 and self.std > 0):
            raise SpecError(
                f"expected log_floor > 0 and std > 0, got {self.log_floor} and {self.std}"
            )


class PcenSpec(MelSpec, frozen=True, kw_only=True, tag="pcen", tag_field="kind"):
    """PCEN-mel front end: each band's energy over what it has lately been (Wang et al. 2017).

    Per band, with E the mel energy (of the power spectrum) of the waveform times `input_scale`::

        M_t = (1 - s) M_{t-1} + s E_t
        P_t = (E_t / (epsilon + M_t)^alpha + delta)^r - delta^r

    Before the first frame the smoother M holds that frame's energy, so the first output of any
    steady sound is its steady output, at every level. Silence is 0.

    Attributes
    ----------
    s : float
        Share of the newest frame; 0.025 forgets half in 27 frames.
    alpha : float
        How much of the gain is taken out: input g times louder multiplies E / M^alpha by
        g^(2 - 2 alpha), which at the default is 10 % for 20 dB.
    delta, r : float
        Offset and exponent of the compression.
    epsilon : float
        Keeps silence from dividing by zero.
    input_scale : float
        What samples in -1..1 are multiplied by: by default 2^15, which makes them 16-bit integers
        again, so that `epsilon` is far below their rounding. Without it `epsilon` is the energy of
        noise at -85 dB of full scale, and what is quieter comes out smaller. 2^15 is also nearly
        what the published values of the other parameters want, magnitudes of samples in
        -2^31..2^31 as librosa documents them: both multiply E / M^alpha by 1.5, the one by
        (2^30)^(1 - alpha), the other by (2^31)^(1 - alpha).
    centred : bool
        False: left-aligned, a frame is due when its last sample is there. True: frame k is centred
        on sample ``k * hop_length``, so half a frame of zeros goes before the waveform and half a
        frame after it, and n samples have ``1 + n // hop_length`` frames: 151 in 1.5 s, as the
        windowed CRNN wants (Arik et al. 2017).
    """

    s: float = 0.025
    alpha: float = 0.98
    delta: float = 2.0
    r: float = 0.5
    epsilon: float = 1e-6
    input_scale: float = 2.0**15
    centred: bool = False

    @property
    def padding(self) -> tuple[int, int]:
        """Zero samples that are put before and after a waveform."""
        half = self.frame_length // 2
        return (half, self.frame_length - half) if self.centred else (0, 0)

    def check(self) -> None:
        """Raise `SpecError` on values that contradict each other."""
        super().check()
        if not (0 < self.s <= 1 and 0 <= self.alpha <= 1 and 0 < self.r <= 1):
            raise SpecError(
                "expected 0 < s <= 1, 0 <= alpha <= 1 and 0 < r <= 1, got "
                f"{self.s}, {self.alpha} and {self.r}"
            )
        if not (self.delta >= 0 and self.epsilon > 0 and self.input_scale > 0):
            raise SpecError(
                "expected delta >= 0, epsilon > 0 and input_scale > 0, got "
                f"{self.delta}, {self.epsilon} and {self.input_scale}"
            )


class MicroSpec(FrameSpec, frozen=True, kw_only=True, tag="micro", tag_field="kind"):
    """The microfrontend of TensorFlow Lite Micro, as ESPHome's micro_wake_word runs it.

    16 kHz, frames of 30 ms, 40 mel bands from 125 to 7,500 Hz, noise reduction, gain control and a
    logarithm, all in integers: see `edge_imputer.microfrontend`. ESPHome's firmware hard-codes
    everything but the step (``feature_step_size`` of a model's manifest), so there is nothing else
    to set.

    Attributes
    ----------
    hop_length : int
        Samples, whole milliseconds up to a frame's 30. Today's models have 10 ms, which is what
        pymicro-features computes; ESPHome's first ones had 20 ms.
    """

    hop_length: int = 160

    # Without annotations, hence no fields: a recipe or a manifest that sets them is refused.
    sample_rate = 16_000
    frame_length = 480
    n_mels = 40

    def check(self) -> None:
        """Raise `SpecError` on a step that ESPHome cannot be told."""
        samples_per_ms = self.sample_rate // 1000
        if not 0 < self.hop_length <= self.frame_length or self.hop_length % samples_per_ms:
            raise SpecError(
                f"expected hop_length in whole milliseconds of {samples_per_ms} samples, up to the "
                f"frame's {self.frame_length}, got {self.hop_length}"
            )
