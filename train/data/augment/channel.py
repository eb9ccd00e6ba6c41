"""Microphone and line: overload, band limits, codecs, lost packets."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from edge_imputer.errors import AudioFormatError

from ..records import Waveform
from .spec import CodecName

Float32 = npt.NDArray[np.float32]

PACKET_S = 0.02
NARROW_BAND_HZ = 8_000


def overload(waveform: Waveform, over_db: float) -> Waveform:
    """Clip at `over_db` below the peak, as an overloaded microphone does."""
    limit = float(np.abs(waveform).max()) * 10 ** (-over_db / 20)
    clipped: Float32 = np.clip(waveform, -limit, limit)
    return clipped


def band_limit(waveform: Waveform, *, sample_rate: int) -> Waveform:
    """Sample at 8 kHz and back: nothing above 4 kHz is left; no shift in time."""
    if sample_rate <= NARROW_BAND_HZ:
        return waveform
    # soxr's high quality takes no longer than its medium and low ones here (0.08 ms a second).
    narrow = soxr.resample(waveform, sample_rate, NARROW_BAND_HZ, quality="HQ")
    return fitted(soxr.resample(narrow, NARROW_BAND_HZ, sample_rate, quality="HQ"), len(waveform))


def mu_law(waveform: Waveform) -> Waveform:
    """Through 8-bit mu-law (ITU-T G.711) and back."""
    codes = np.clip(waveform * np.float32(32_768), -32_768, 32_767).astype(np.int16)
    decoded: Float32 = _mu_law_table()[codes.view(np.uint16)]
    return decoded


@cache
def _mu_law_table() -> Float32:
    """What every int16, read as uint16, becomes: (65536,)."""
    values = np.arange(65_536, dtype=np.uint16).view(np.int16).astype(np.int64)
    magnitude = np.minimum(np.abs(values), 32_635) + 132
    exponent = np.floor(np.log2(magnitude)).astype(np.int64) - 7
    mantissa = (magnitude >> (exponent + 3)) & 15
    decoded = (((mantissa << 3) + 132) << exponent) - 132
    table: Float32 = (np.where(values < 0, -decoded, decoded) / 32_768).astype(np.float32)
    return table


def adpcm(waveform: Waveform, *, sample_rate: int) -> Waveform:
    """Through 4-bit IMA ADPCM, as intercoms and old answering machines use it."""
    return _through(waveform, sample_rate, "WAV", "IMA_ADPCM")


def gsm(waveform: Waveform, *, sample_rate: int) -> Waveform:
    """Through GSM 06.10 full rate at 8 kHz, 13 kbit/s: a mobile phone of old."""
    narrow = soxr.resample(waveform, sample_rate, NARROW_BAND_HZ, quality="HQ")
    decoded = _through(narrow, NARROW_BAND_HZ, "WAV", "GSM610")
    return fitted(soxr.resample(decoded, NARROW_BAND_HZ, sample_rate, quality="HQ"), len(waveform))


def vorbis(waveform: Waveform, *, sample_rate: int) -> Waveform:
    """Through Ogg Vorbis at its lowest quality, a lossy codec that drops bands."""
    return _through(waveform, sample_rate, "OGG", "VORBIS", compression_level=1.0)


def through_codec(waveform: Waveform, name: CodecName, *, sample_rate: int) -> Waveform:
    """Encode and decode: (n,) -> (n,), in time with the original."""
    if name == "mu-law":
        return mu_law(waveform)
    codec = {"adpcm": adpcm, "gsm": gsm, "vorbis": vorbis}[name]
    return codec(waveform, sample_rate=sample_rate)


def _through(
    waveform: Waveform,
    sample_rate: int,
    container: str,
    codec: str,
    compression_level: float | None = None,
) -> Waveform:
    """Encode into memory and decode again, by libsndfile."""
    encoded = io.BytesIO()
    try:
        with soundfile.SoundFile(
            encoded,
            "w",
            sample_rate,
            1,
            format=container,
            subtype=codec,
            compression_level=compression_level,
        ) as file:
            file.write(np.clip(waveform, -1.0, 1.0))
        encoded.seek(0)
        decoded, _ = soundfile.read(encoded, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise AudioFormatError(
            f"libsndfile {soundfile.__libsndfile_version__} could not encode {codec} ({error}); "
            "leave it out of the recipe's codecs"
        ) from error
    return fitted(decoded, len(waveform))


def fitted(waveform: Waveform, n: int) -> Waveform:
    """The first n samples, or zeros behind."""
    if len(waveform) >= n:
        head: Float32 = waveform[:n]
        return head
    out = np.zeros(n, np.float32)
    out[: len(waveform)] = waveform
    return out


def lose_packets(
    waveform: Waveform,
    rate: float,
    rng: np.random.Generator,
    *,
    sample_rate: int,
    burst: float = 2.0,
) -> Waveform:
    """Lose packets of 20 ms in bursts; what is lost is the packet before, fading out.

    A Gilbert model: a loss is followed by another with probability ``1 - 1 / burst``, so that
    bursts have `burst` packets in the mean and `rate` of all packets are lost. The concealment is
    the simplest of those in use: the last packet again, at half the level each time.
    """
    length = round(PACKET_S * sample_rate)
    n = len(waveform) // length
    lost = _gilbert(n, rate, burst, rng)
    out = waveform.copy()
    packets = out[: n * length].reshape(n, length)
    for k in np.flatnonzero(lost):
        packets[k] = packets[k - 1] * np.float32(0.5) if k else 0.0
    lossy: Float32 = out
    return lossy


def _gilbert(n: int, rate: float, burst: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which of n packets are lost: alternating runs with geometric lengths."""
    lost = np.zeros(n, bool)
    if rate <= 0:
        return lost
    good = burst * (1 - rate) / rate  # mean length of a run without loss
    at = 0 if rng.random() < rate else int(rng.geometric(1 / max(1.0, good)))
    while at < n:
        length = int(rng.geometric(1 / burst))
        lost[at : at + length] = True
        at += length + int(rng.geometric(1 / max(1.0, good)))
    return lost
