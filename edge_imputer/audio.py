"""Audio in: files and arrays become mono float32 waveforms in [-1, 1], or a clear error.

Nothing is changed silently: no channel is picked, no rate is converted unless asked for.
"""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .errors import AudioFormatError, AudioNotFoundError, SampleRateError

# soundfile and soxr are imported where they are used: a stream of arrays needs neither.

Float32 = npt.NDArray[np.float32]

CLIP_LEVEL = 32_767 / 32_768  # the largest int16, as float
CLIP_RUN = 3  # consecutive samples at full scale that count as clipping
MAX_PEAK = 8.0  # float samples beyond this are integers somebody forgot to scale

_INT16_SCALE = np.float32(1 / 32_768)
_READ_BLOCK = 1 << 20  # samples
_WAV_SIZE_UNKNOWN = 0x7FFF_0000  # writers to a pipe put a size at or above this
_OGG_PAGE_HEADER = 27  # bytes, before the segment table
_OGG_END_OF_STREAM = 4  # flag
_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG")  # libsndfile's names of the three containers
_CORPUS_FORMATS = (*_FORMATS, "MP3")  # what corpora are published in
_OVERSHOOT_S = 0.5  # how far a segment may reach past the end, as in Kaldi's extract-segments


class ClippingWarning(UserWarning):
    """The recording is clipped: runs of samples at full scale."""


class ClippingDetector:
    """Warns once a stream when `CLIP_RUN` consecutive samples are at full scale.

    A run may cross the border between two pushes.

    Parameters
    ----------
    source : str
        What the warning calls the stream, for example its file.
    """

    def __init__(self, source: str = "the audio") -> None:
        self._source = source
        self._run = 0  # full-scale samples at the end of what was seen
        self._warned = False

    def push(self, waveform: Float32) -> None:
        """Look at the next samples of the stream, float32 (n,)."""
        if self._warned or not waveform.size:
            return
        if max(waveform.max(), -waveform.min()) < CLIP_LEVEL:
            self._run = 0
            return
        quiet = np.flatnonzero(np.abs(waveform) < CLIP_LEVEL)
        # Positions of quiet samples, with the run carried in before and the end after them.
        edges = np.concatenate([[-1 - self._run], quiet, [waveform.size]])
        self._run = int(edges[-1] - edges[-2]) - 1
        if np.diff(edges).max() > CLIP_RUN:
            self._warned = True
            warnings.warn(
                f"{self._source} is clipped ({CLIP_RUN} or more consecutive samples at full "
                "scale); recognition suffers. Lower the recording gain",
                ClippingWarning,
                stacklevel=3,
            )


def check_pcm(pcm: npt.NDArray[Any], *, sample_rate: int, expected_rate: int) -> Float32:
    """Check samples from a microphone or a decoder and return them as float32.

    Parameters
    ----------
    pcm : int16 or float32, (n,)
        int16 is scaled by 1/32768; n may be 0. Clipping is `ClippingDetector`'s to notice.
    sample_rate : int
        Rate of `pcm`, in Hz.
    expected_rate : int
        Rate the model was trained for.

    Returns
    -------
    waveform : float32, (n,)

    Raises
    ------
    SampleRateError, AudioFormatError
    """
    if sample_rate != expected_rate:
        raise SampleRateError(
            f"expected audio at {expected_rate} Hz, got {sample_rate} Hz; open the microphone at "
            f"{expected_rate} Hz, or convert with edge_imputer.audio.resample(waveform, "
            f"from_rate={sample_rate}, to_rate={expected_rate})"
        )
    if not isinstance(pcm, np.ndarray):
        raise AudioFormatError(
            f"expected a numpy array of int16 or float32, got {type(pcm).__name__}; "
            "for bytes use np.frombuffer(data, dtype=np.int16)"
        )
    if pcm.ndim != 1:
        raise AudioFormatError(
            f"expected mono samples of shape (n,), got shape {pcm.shape}; "
            "pass one channel, for example pcm[:, 0]"
        )
    if pcm.dtype == np.int16:
        scaled: Float32 = pcm * _INT16_SCALE
        return scaled
    if pcm.dtype != np.float32:
        raise AudioFormatError(
            f"expected int16 or float32 samples, got {pcm.dtype}; "
            "convert samples in [-1, 1] with pcm.astype(np.float32)"
        )
    _check_range(pcm, source="samples")
    return pcm


def _check_range(waveform: Float32, *, source: str) -> None:
    """Refuse NaN, infinity and samples that were never scaled to [-1, 1]."""
    if not waveform.size:
        return
    peak = max(float(waveform.max()), -float(waveform.min()))  # NaN and inf survive max and min
    if not np.isfinite(peak):
        where = int(np.flatnonzero(~np.isfinite(waveform))[0])
        raise AudioFormatError(
            f"{source}: expected finite samples, got {waveform[where]} at sample {where}; "
            "look for a failing driver or a division by zero before this call"
        )
    if peak > MAX_PEAK:
        raise AudioFormatError(
            f"{source}: expected float samples in [-1, 1], got a peak of {peak:g}; "
            "divide int16 values by 32768, or pass them as int16"
        )


def read_audio(path: str | os.PathLike[str]) -> tuple[Float32, int]:
    """Read a mono wav, flac or ogg file whole.

    Returns
    -------
    waveform : float32, (n,), n >= 1
    sample_rate : int

    Raises
    ------
    AudioNotFoundError
        There is no such file.
    AudioFormatError
        Empty, unreadable, truncated, of another format, not mono, or with samples that are not
        finite.
    """
    file = Path(path)
    _check_present(file)
    _check_complete(file)
    waveform, sample_rate = _decode(file, _FORMATS)
    _check_range(waveform, source=str(file))
    return waveform, sample_rate


def read_segment(
    path: str | os.PathLike[str], *, start_s: float = 0.0, duration_s: float | None = None
) -> tuple[Float32, int]:
    """Read a part of a file of a corpus: mono wav, flac, ogg or mp3. Only that part is decoded.

    Parameters
    ----------
    path
        The file.
    start_s, duration_s : float
        The part, in seconds; without a duration, to the end. A part may reach 0.5 s past the
        end, as in Kaldi's segments: it then ends with the file.

    Returns
    -------
    waveform : float32, (n,), n >= 1
    sample_rate : int

    Raises
    ------
    AudioNotFoundError, AudioFormatError
        As `read_audio`; or the part lies outside the file.
    """
    file = Path(path)
    _check_present(file)
    if start_s == 0.0:
        _check_complete(file)
    waveform, sample_rate = _decode(file, _CORPUS_FORMATS, start_s, duration_s)
    _check_range(waveform, source=str(file))
    return waveform, sample_rate


def audio_length(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Samples and sample rate of a file, by its header alone.

    Raises
    ------
    AudioNotFoundError, AudioFormatError
    """
    import soundfile

    file = Path(path)
    _check_present(file)
    try:
        info = soundfile.info(str(file))
    except (soundfile.LibsndfileError, TypeError) as error:
        raise AudioFormatError(
            f"{file}: expected an audio file, could not read its header ({error})"
        ) from error
    return int(info.frames), int(info.samplerate)


def _check_present(file: Path) -> None:
    if not file.exists():
        raise AudioNotFoundError(f"expected an audio file, found none at {file}; check the path")
    if not file.is_file():
        raise AudioFormatError(f"{file}: expected an audio file, got a folder; name one file")
    if file.stat().st_size == 0:
        raise AudioFormatError(
            f"{file}: expected audio, got an empty file; record or copy it again"
        )


def _decode(
    file: Path, formats: tuple[str, ...], start_s: float = 0.0, duration_s: float | None = None
) -> tuple[Float32, int]:
    import soundfile

    try:
        with soundfile.SoundFile(file) as source:
            if source.format not in formats:
                raise AudioFormatError(
                    f"{file}: expected a wav, flac or ogg file, got {source.format}; "
                    f"convert it, for example: ffmpeg -i {file.name} {file.stem}.flac"
                )
            if source.channels != 1:
                raise AudioFormatError(
                    f"{file}: expected one channel, got {source.channels}; "
                    f"make it mono, for example: ffmpeg -i {file.name} -ac 1 mono.wav"
                )
            sample_rate = int(source.samplerate)
            start, promised = 0, source.frames
            left: float = np.inf
            if start_s or duration_s is not None:
                start, promised = _part(file, promised, sample_rate, start_s, duration_s)
                _skip(source, start)
                left = promised
            blocks = []  # block by block: a header may promise more than memory holds
            while (block := source.read(int(min(_READ_BLOCK, left)), dtype="float32")).size:
                blocks.append(block)
                left -= block.size
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless .raw
        raise AudioFormatError(
            f"{file}: expected a wav, flac or ogg file, could not decode it ({error}); "
            "it may be cut short or of another format. Copy or convert it again"
        ) from error
    if not blocks:
        raise AudioFormatError(
            f"{file}: expected audio, got a file with no samples; record or copy it again"
        )
    waveform = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    # Formats whose header does not know the length promise a huge count.
    if promised < 1 << 40 and waveform.size < promised:
        raise _truncated(file, f"{promised} samples", f"{waveform.size}")
    return waveform, sample_rate


def _skip(source: Any, n_samples: int) -> None:
    """Go to a sample; libsndfile does not seek exactly in mp3, which is decoded up to it."""
    if source.format != "MP3":
        source.seek(n_samples)
        return
    while n_samples > 0 and (n_read := len(source.read(min(_READ_BLOCK, n_samples)))):
        n_samples -= n_read


def _part(
    file: Path, n_samples: int, sample_rate: int, start_s: float, duration_s: float | None
) -> tuple[int, int]:
    """First sample and number of samples of a part of a file of `n_samples`."""
    start = round(start_s * sample_rate)
    wanted = n_samples - start if duration_s is None else round(duration_s * sample_rate)
    overshoot = start + wanted - n_samples
    if start < 0 or wanted < 1 or start >= n_samples or overshoot > _OVERSHOOT_S * sample_rate:
        raise AudioFormatError(
            f"{file}: expected a part of its {n_samples / sample_rate:.3f} s, got "
            f"{wanted / sample_rate:.3f} s from {start_s:.3f} s on; correct the manifest or the "
            "segments"
        )
    if abs(overshoot) <= sample_rate / 1000:  # manifests round durations: no sample is cut off
        return start, n_samples - start
    return start, wanted - max(0, overshoot)


def _check_complete(file: Path) -> None:
    """Refuse a wav or ogg file that is cut short.

    libsndfile reads what is there of them and says nothing; of a flac file it says so.
    """
    with file.open("rb") as source:
        start = source.read(12)
        if start[:4] in (b"RIFF", b"RIFX") and start[8:] == b"WAVE":
            _check_wav_length(file, source, "<4sI" if start[:4] == b"RIFF" else ">4sI")
        elif start[:4] == b"OggS":
            source.seek(0)
            _check_ogg_pages(file, source)


def _check_wav_length(file: Path, source: BinaryIO, chunk_header: str) -> None:
    """Refuse a wav file whose data chunk is longer than the file; `source` is at the chunks."""
    while len(header := source.read(8)) == 8:
        name, size = struct.unpack(chunk_header, header)
        if name == b"data":
            present = file.stat().st_size - source.tell()
            if present < size < _WAV_SIZE_UNKNOWN:
                raise _truncated(file, f"{size} bytes of samples", f"{present}")
            return
        source.seek(size + size % 2, os.SEEK_CUR)


def _check_ogg_pages(file: Path, source: BinaryIO) -> None:
    """Refuse an ogg file whose last page is incomplete or does not end the stream (RFC 3533)."""
    n_bytes = file.stat().st_size
    ended = False
    while (header := source.read(_OGG_PAGE_HEADER))[:4] == b"OggS":
        n_segments = header[26] if len(header) == _OGG_PAGE_HEADER else 1
        segments = source.read(n_segments)
        missing = source.tell() + sum(segments) - n_bytes
        if len(segments) < n_segments or missing > 0:
            raise _truncated(file, "a whole page", f"a part, {n_bytes} bytes into the file")
        ended = bool(header[5] & _OGG_END_OF_STREAM)
        source.seek(sum(segments), os.SEEK_CUR)
    if not ended:  # what follows the end, such as a tag of another program, does no harm
        raise _truncated(file, "a page that ends the stream", "none")


def _truncated(file: Path, promised: str, found: str) -> AudioFormatError:
    return AudioFormatError(
        f"{file}: the header promises {promised}, got {found}: the file is truncated; "
        "record or copy it again"
    )


def load_audio(
    path: str | os.PathLike[str], *, sample_rate: int, resample: bool = False
) -> Float32:
    """Read a mono file at a given rate.

    Parameters
    ----------
    path : path of a wav, flac or ogg file
    sample_rate : int
        Rate wanted, in Hz.
    resample : bool
        Convert a file of another rate (soxr, high quality). Without it such a file is refused.

    Returns
    -------
    waveform : float32, (n,), n >= 1

    Raises
    ------
    AudioNotFoundError, AudioFormatError, SampleRateError
    """
    waveform, rate = read_audio(path)
    if rate != sample_rate:
        if not resample:
            raise SampleRateError(
                f"{path}: expected {sample_rate} Hz, got {rate} Hz; "
                "pass resample=True to convert it"
            )
        waveform = _soxr(waveform, rate, sample_rate)
    ClippingDetector(str(path)).push(waveform)
    return waveform


def resample(waveform: Float32, *, from_rate: int, to_rate: int) -> Float32:
    """Convert the sample rate of a whole waveform (soxr, high quality).

    Parameters
    ----------
    waveform : float32, (n,)
    from_rate, to_rate : int
        In Hz.

    Returns
    -------
    waveform : float32, about ``n * to_rate / from_rate`` samples
    """
    if from_rate < 1 or to_rate < 1:
        raise SampleRateError(f"expected positive sample rates in Hz, got {from_rate}, {to_rate}")
    checked = check_pcm(waveform, sample_rate=from_rate, expected_rate=from_rate)
    return checked if from_rate == to_rate else _soxr(checked, from_rate, to_rate)


def _soxr(waveform: Float32, from_rate: int, to_rate: int) -> Float32:
    import soxr

    converted: Float32 = soxr.resample(waveform, from_rate, to_rate, quality="HQ")
    return converted
