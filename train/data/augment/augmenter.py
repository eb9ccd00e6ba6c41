"""From clips to an utterance as a microphone in some room would have sent it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr

from edge_imputer.errors import SpecError

from ..records import Clip, Waveform
from .channel import band_limit, lose_packets, overload, through_codec
from .features import mask_blocks, tilt_bands, warp_mels, warp_time
from .levels import active_level, scale_to_snr, speech_span
from .noise import NoiseBank, NoiseKind, colour_tracks
from .rooms import RoomBank, generated_rooms
from .spec import AugmentSpec

Float32 = npt.NDArray[np.float32]

Span = tuple[str, float, float]  # text, start and end in seconds

_SILENT = 1e-10  # mean square below which a clip has no level to relate noise to
_TILT_KNOTS = 5


@dataclass(frozen=True)
class Utterance:
    """A training utterance, where each of its clips speaks, and what was mixed."""

    waveform: Waveform
    text: str
    spans: tuple[Span, ...]  # of each clip
    speech: Waveform  # as it was mixed: in its room, before noise and the channel
    noise: Waveform | None  # as it was mixed


class Augmenter:
    """Makes varied utterances from clips; which clips is a plan's matter.

    Parameters
    ----------
    spec : AugmentSpec
    sample_rate : Hz
    noises : NoiseBank, or None for generated colours alone
    recorded_rooms : RoomBank of recorded responses, or None

    Raises
    ------
    SpecError
        The spec contradicts itself, or wants recordings that are not given.
    """

    def __init__(
        self,
        spec: AugmentSpec,
        *,
        sample_rate: int,
        noises: NoiseBank | None = None,
        recorded_rooms: RoomBank | None = None,
    ) -> None:
        spec.check()
        self.spec = spec
        self.sample_rate = sample_rate
        self.noises = noises or NoiseBank(colour_tracks(sample_rate, *spec.noise_colour))
        self.recorded_rooms = recorded_rooms
        self.rooms = None
        if spec.room > 0 and spec.room_files < 1:
            self.rooms = generated_rooms(
                sample_rate, spec.n_rooms, spec.room_rt60_s, spec.room_distance_m
            )
        wanted = {
            "noise_files": (spec.noise_files, self.noises.has("recorded")),
            "babble": (spec.babble, self.noises.has("babble")),
            "room_files": (spec.room * spec.room_files, recorded_rooms is not None),
        }
        for name, (share, given) in wanted.items():
            if share > 0 and not given:
                raise SpecError(
                    f"augment.{name} is {getattr(spec, name)}, but there are no recordings for it; "
                    "name their folder, or set it to 0"
                )

    def utterance(
        self,
        clips: Sequence[Clip],
        rng: np.random.Generator,
        strength: float = 1.0,
        *,
        window_s: float | None = None,
    ) -> Utterance:
        """A new utterance: clips at some speed, joined, in a room, with noise, over some line.

        Parameters
        ----------
        clips : n clips; joining stops before the speech gets longer than the spec allows. None:
            noise alone, for which a window is needed.
        rng : everything random comes from it
        strength : 0 to 1, scales what is ramped up in training
        window_s : length of the utterance, the speech somewhere in it; None: as long as it gets
        """
        if window_s is None:
            speech, spans = self.joined(clips, rng)
        else:
            speech, spans = self.windowed(clips, window_s, rng)
        if self._happens(strength * self.spec.room, rng) and len(clips):
            speech = self.in_room(speech, rng)
        noise = None if self._happens(self.spec.quiet, rng) else self.noise(speech, rng)
        waveform = speech if noise is None else speech + noise
        # As loud as full scale allows: cut peaks would change the ratio of speech to noise, and
        # overload is the channel's matter.
        peak = float(np.abs(waveform).max(initial=0.0))
        gain = min(10 ** (rng.uniform(*self.spec.gain_db) / 20), 1 / max(peak, 1e-9))
        waveform = np.clip(waveform * np.float32(gain), -1.0, 1.0)  # of the last bit, if anything
        waveform = self.channel(waveform, rng, strength)
        return Utterance(
            waveform, " ".join(c.text for c in clips[: len(spans)]), spans, speech, noise
        )

    def joined(
        self, clips: Sequence[Clip], rng: np.random.Generator
    ) -> tuple[Waveform, tuple[Span, ...]]:
        """Clips at some speed with silence before, between and after, as many as fit."""
        spec, rate = self.spec, self.sample_rate
        gaps = rng.uniform(*spec.gap_s, size=len(clips) + 1)
        gaps[[0, -1]] = rng.uniform(*spec.edge_s, size=2)
        speeds = rng.integers(len(spec.speeds), size=len(clips)).tolist()
        played, spans, at, total_s = [], [], round(gaps[0] * rate), 0.0
        for number, (clip, gap, speed) in enumerate(zip(clips, gaps[1:], speeds, strict=True)):
            waveform = at_speed(clip.waveform, spec.speeds[speed], sample_rate=rate)
            total_s += len(waveform) / rate
            if number and total_s > spec.longest_s:
                break
            start, end = speech_span(waveform, sample_rate=rate)
            spans.append((clip.text, at / rate + start, at / rate + end))
            played.append((at, waveform))
            at += len(waveform) + round(gap * rate)
        last, waveform = played[-1]
        out = np.zeros(last + len(waveform) + round(gaps[-1] * rate), np.float32)
        for at, waveform in played:
            out[at : at + len(waveform)] = waveform
        return out, tuple(spans)

    def windowed(
        self, clips: Sequence[Clip], window_s: float, rng: np.random.Generator
    ) -> tuple[Waveform, tuple[Span, ...]]:
        """One clip at some speed in a window of a given length, shifted at random.

        The window holds all of the speech if that fits, else a random part of it.
        """
        rate = self.sample_rate
        out = np.zeros(round(window_s * rate), np.float32)
        if not clips:
            return out, ()
        (clip,) = clips
        speed = self.spec.speeds[int(rng.integers(len(self.spec.speeds)))]
        waveform = at_speed(clip.waveform, speed, sample_rate=rate)
        start, end = speech_span(waveform, sample_rate=rate)
        borders = round(start * rate), round(end * rate) - len(out)
        first = int(rng.integers(min(borders), max(borders) + 1))  # the window's in the clip
        source = waveform[max(0, first) : first + len(out)]
        at = max(0, -first)
        source = source[: len(out) - at]
        out[at : at + len(source)] = source
        shift = first / rate
        span = (clip.text, max(0.0, start - shift), min(window_s, end - shift))
        return out, (span,)

    def in_room(self, waveform: Waveform, rng: np.random.Generator) -> Waveform:
        """The waveform in one of the rooms."""
        bank = self.rooms
        if self._happens(self.spec.room_files, rng) or bank is None:
            bank = self.recorded_rooms
        assert bank is not None  # checked at the start
        return bank.convolve(waveform, int(rng.integers(len(bank))))

    def noise(self, speech: Waveform, rng: np.random.Generator) -> Waveform:
        """Noise at some level to add to speech; at a level of its own where nobody speaks."""
        spec = self.spec
        point = rng.random()
        kind: NoiseKind = "colour"
        if point < spec.noise_files + spec.babble:
            kind = "recorded" if point < spec.noise_files else "babble"
        noise = self.noises.piece(kind, len(speech), rng)
        snr_db, silence_db = rng.uniform(*spec.snr_db), rng.uniform(*spec.silence_db)
        level = active_level(speech, sample_rate=self.sample_rate)
        if level < _SILENT:
            return scale_to_snr(noise, 1.0, -silence_db)
        return scale_to_snr(noise, level, snr_db)

    def channel(
        self, waveform: Waveform, rng: np.random.Generator, strength: float = 1.0
    ) -> Waveform:
        """Overload, a narrow band, a codec, lost packets: each with its share."""
        spec, rate = self.spec, self.sample_rate
        if self._happens(strength * spec.clipping, rng):
            waveform = overload(waveform, rng.uniform(*spec.clipping_db))
        if self._happens(strength * spec.band_limit, rng):
            waveform = band_limit(waveform, sample_rate=rate)
        if self._happens(strength * spec.codec, rng):
            name = spec.codecs[int(rng.integers(len(spec.codecs)))]
            waveform = through_codec(waveform, name, sample_rate=rate)
        if self._happens(strength * spec.packet_loss, rng):
            lost = rng.uniform(*spec.packet_loss_rate)
            waveform = lose_packets(waveform, lost, rng, sample_rate=rate)
        return waveform

    def features(
        self, log_mel: Float32, rng: np.random.Generator, strength: float = 1.0
    ) -> Float32:
        """Vary a log-mel, (T, n_mels), in nats: vocal tract, channel, band. A new array."""
        spec = self.spec
        x = log_mel
        if spec.mel_warp:
            x = warp_mels(x, strength * rng.uniform(-spec.mel_warp, spec.mel_warp))
        x = tilt_bands(x, strength * rng.normal(0.0, spec.tilt, _TILT_KNOTS))
        if self._happens(strength * spec.low_pass, rng):
            n_mels = x.shape[1]
            x[:, rng.integers(n_mels // 2, n_mels) :] = x.min()
        return x

    def masked(
        self,
        x: Float32,
        rng: np.random.Generator,
        strength: float = 1.0,
        *,
        mean: float = 0.0,
    ) -> Float32:
        """SpecAugment on features as the encoder reads them, (T, n_mels): time warp, masks.

        `mean` is theirs, 0 where they are normalised. A new array.
        """
        spec = self.spec
        n_frames = len(x)
        fill = float(x.min()) if spec.mask_fill == "floor" else mean
        reach = int(strength * spec.time_warp)
        if reach > 0 and n_frames > 2 * spec.time_warp + 2:
            point = int(rng.integers(reach + 1, n_frames - reach - 1))
            x = warp_time(x, point, int(rng.integers(-reach, reach + 1)))
        else:
            x = x.copy()
        mask_blocks(x, spec.masks, spec.mask_mel, rng, axis=1, fill=fill, strength=strength)
        longest = min(spec.mask_time, int(spec.mask_share * n_frames))
        mask_blocks(x, spec.masks, longest, rng, axis=0, fill=fill, strength=strength)
        return x

    @staticmethod
    def _happens(share: float, rng: np.random.Generator) -> bool:
        return bool(rng.random() < share)


def at_speed(waveform: Waveform, speed: float, *, sample_rate: int) -> Waveform:
    """Tempo and pitch together, as a tape played faster: resampling to another length."""
    if speed == 1.0:
        return waveform
    # High quality: soxr's others take as long (0.11 ms a second of audio) or less by a third.
    resampled: Waveform = soxr.resample(waveform, sample_rate * speed, sample_rate, quality="HQ")
    return resampled
