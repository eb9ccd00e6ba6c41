"""How much to vary the training audio: every augmentation's share and ranges, checked."""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.errors import SpecError

CodecName = Literal["mu-law", "adpcm", "gsm", "vorbis"]
MaskFill = Literal["floor", "mean"]

Seconds = TypeVar("Seconds", float, npt.NDArray[np.float32])
_Pair = tuple[float, float]


class AugmentSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much to vary the training audio. Ranges are uniform, shares are of the utterances.

    Joining, voices and speed come first, then the room, noise, the microphone (gain, clipping)
    and the line (band, codec, lost packets); filters and masks work on the features. What the
    defaults leave at 0 is off. Over the first `ramp` of a run, the shares of room, clipping, band,
    codec and packet loss, and what is done to features, grow from 0. `mel_warp`, `tilt` and
    `low_pass` are done to log-mel only.
    """

    speeds: tuple[float, ...] = (0.78, 0.87, 0.95, 1.05, 1.15, 1.28)  # tempo and pitch
    clips_joined: tuple[int, int] = (2, 4)
    longest_s: float = 8.0  # joining stops before the speech gets longer than this
    isolated: float = 0.4  # share of updates with one clip an utterance
    same_speaker: float = 0.6  # share of sequences in one voice
    gap_s: _Pair = (0.02, 0.35)
    edge_s: _Pair = (0.0, 0.45)  # silence before and after: the shift in time
    gain_db: _Pair = (-15.0, 6.0)
    # Speech-active level over the noise's, see `active_level`. Before levels were measured so, and
    # while noise had power below hearing, the same noise was called 5 to 45 dB.
    snr_db: _Pair = (13.0, 53.0)
    quiet: float = 0.1  # share without added noise
    noise_colour: _Pair = (0.0, 2.0)  # exponent: 0 white, 1 pink, 2 brown
    noise_files: float = 0.0  # share of the noise that is recorded, where there are recordings
    babble: float = 0.0  # share of the noise that is other speech, several voices at once
    silence_db: _Pair = (-75.0, -35.0)  # level of noise where nobody speaks, dB of full scale
    room: float = 0.3  # share in a room
    room_files: float = 0.0  # share of the rooms that are recorded, where there are recordings
    room_rt60_s: _Pair = (0.05, 0.35)  # reverberation time
    room_distance_m: _Pair = (0.2, 0.8)  # speaker to microphone
    n_rooms: int = 64  # different rooms
    clipping: float = 0.0  # share of overloaded microphones
    clipping_db: _Pair = (2.0, 12.0)  # how far the peak is above where it is clipped
    band_limit: float = 0.0  # share sampled at 8 kHz in between: nothing above 4 kHz is left
    codec: float = 0.0  # share that went through a codec
    codecs: tuple[CodecName, ...] = ("mu-law", "adpcm", "gsm", "vorbis")
    packet_loss: float = 0.0  # share with lost packets
    packet_loss_rate: _Pair = (0.01, 0.1)  # share of the packets lost, in bursts
    mel_warp: float = 0.15  # largest relative shift of the mel axis (vocal tract length)
    tilt: float = 0.7  # standard deviation, in nats, of a smooth filter over the mel bands
    low_pass: float = 0.15  # share cut at a random band in the upper half
    ramp: float = 0.3  # share of a run's updates over which the harder ones grow
    time_warp: int = 0  # SpecAugment's W: frames that a point in time is moved by, at most
    masks: int = 2  # SpecAugment masks in time and in frequency, each
    mask_time: int = 12  # longest time mask, feature frames
    mask_mel: int = 6  # widest frequency mask, bands
    mask_share: float = 1.0  # of an utterance that one time mask may cover (Park et al.'s p)
    mask_fill: MaskFill = "floor"  # what masks are filled with: the least value, or the mean

    def check(self) -> None:
        """Raise `SpecError` on values that nothing can be drawn from."""
        if not self.speeds or min(self.speeds) <= 0:
            raise SpecError(f"expected speeds above 0, at least one, got {self.speeds}")
        low, high = self.clips_joined
        if not 1 <= low <= high:
            raise SpecError(f"expected 1 <= fewest <= most clips_joined, got {self.clips_joined}")
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise SpecError(f"expected {name} from 0 to 1, got {getattr(self, name)}")
        if self.noise_files + self.babble > 1:
            raise SpecError(
                "expected noise_files and babble to be 1 at most together, got "
                f"{self.noise_files} and {self.babble}"
            )
        for name in _RANGES:
            low_value, high_value = getattr(self, name)
            if not low_value <= high_value:
                raise SpecError(
                    f"expected {name} as lowest, highest, got {low_value}, {high_value}"
                )
        for name in ("gap_s", "edge_s", "noise_colour", "clipping_db", "packet_loss_rate"):
            if getattr(self, name)[0] < 0:
                raise SpecError(f"expected {name} of at least 0, got {getattr(self, name)}")
        self._check_rooms()
        counts = {n: getattr(self, n) for n in ("masks", "mask_time", "mask_mel", "time_warp")}
        if min(counts.values()) < 0 or min(self.mel_warp, self.tilt) < 0:
            raise SpecError(
                f"expected {', '.join(counts)}, mel_warp and tilt of at least 0, got {counts}, "
                f"{self.mel_warp} and {self.tilt}"
            )
        if not self.codecs or self.packet_loss_rate[1] >= 1:
            raise SpecError(
                "expected at least one of codecs and a packet_loss_rate below 1, got "
                f"{self.codecs} and {self.packet_loss_rate}"
            )

    def _check_rooms(self) -> None:
        if self.n_rooms < 1 or self.room_rt60_s[0] <= 0 or self.room_rt60_s[1] > 1.0:
            raise SpecError(
                "expected n_rooms of at least 1 and room_rt60_s above 0 and up to 1, got "
                f"{self.n_rooms} and {self.room_rt60_s}"
            )
        if self.room_distance_m[0] <= 0:
            raise SpecError(f"expected room_distance_m above 0, got {self.room_distance_m}")

    def longest(self, duration_s: Seconds) -> Seconds:
        """Longest that one clip of `duration_s` can become: one, or an array of them."""
        return duration_s / min(self.speeds) + 2 * self.edge_s[1]

    @property
    def on_waveform(self) -> bool:
        """Whether any augmentation changes the waveform; if none does, features can be cached."""
        shares = (self.room, self.clipping, self.band_limit, self.codec, self.packet_loss)
        return (
            any(shares)
            or self.quiet < 1
            or self.gain_db != (0.0, 0.0)
            or self.edge_s != (0.0, 0.0)
            or set(self.speeds) != {1.0}
            or (self.clips_joined != (1, 1) and self.isolated < 1)
        )


_SHARES = (
    "isolated",
    "same_speaker",
    "quiet",
    "noise_files",
    "babble",
    "room",
    "room_files",
    "clipping",
    "band_limit",
    "codec",
    "packet_loss",
    "low_pass",
    "ramp",
    "mask_share",
)
_RANGES = (
    "gap_s",
    "edge_s",
    "gain_db",
    "snr_db",
    "noise_colour",
    "silence_db",
    "room_rt60_s",
    "room_distance_m",
    "clipping_db",
    "packet_loss_rate",
)
