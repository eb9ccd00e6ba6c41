"""Audio in: what is accepted comes out exactly, what is not says why."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_imputer import train
from edge_imputer.audio import (
    CLIP_RUN,
    ClippingDetector,
    ClippingWarning,
    _check_complete,
    check_pcm,
    load_audio,
    read_audio,
    resample,
)
from edge_imputer.errors import AudioError, AudioFormatError, AudioNotFoundError, SampleRateError

from .fakes import noise

RATE = 16_000


@pytest.fixture
def samples() -> np.ndarray:
    """Half a second of int16 noise."""
    return (noise(RATE // 2) * 32_768).astype(np.int16)


def write(path: Path, samples: np.ndarray, rate: int = RATE, **options: Any) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


# ------------------------------------------------------------------------------ good files


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_lossless_files_come_back_to_the_bit(
    tmp_path: Path, samples: np.ndarray, suffix: str
) -> None:
    path = write(tmp_path / f"clip.{suffix}", samples)
    waveform = load_audio(path, sample_rate=RATE)
    assert waveform.dtype == np.float32
    np.testing.assert_array_equal(
        waveform, check_pcm(samples, sample_rate=RATE, expected_rate=RATE)
    )


def test_ogg_is_read(tmp_path: Path, samples: np.ndarray) -> None:
    path = write(tmp_path / "clip.ogg", samples)
    waveform, rate = read_audio(str(path))
    assert (waveform.dtype, waveform.shape, rate) == (np.float32, samples.shape, RATE)


def test_float_wav_is_read(tmp_path: Path) -> None:
    waveform = noise(1000)
    path = write(tmp_path / "clip.wav", waveform, subtype="FLOAT")
    np.testing.assert_array_equal(load_audio(path, sample_rate=RATE), waveform)


def test_wav_with_other_chunks_before_the_samples(tmp_path: Path, samples: np.ndarray) -> None:
    data = write(tmp_path / "plain.wav", samples).read_bytes()
    note = struct.pack("<4sI", b"note", 5) + b"hello\0"  # an odd chunk is padded
    path = tmp_path / "chunks.wav"
    path.write_bytes(data[:12] + note + data[12:])
    assert load_audio(path, sample_rate=RATE).size == samples.size
    path.write_bytes((data[:12] + note + data[12:])[:-200])
    with pytest.raises(AudioFormatError, match="truncated"):
        load_audio(path, sample_rate=RATE)


def test_wav_written_to_a_pipe_has_no_length_and_is_read(
    tmp_path: Path, samples: np.ndarray
) -> None:
    data = bytearray(write(tmp_path / "clip.wav", samples).read_bytes())
    where = data.index(b"data") + 4
    data[4:8] = data[where : where + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "clip.wav").write_bytes(data)
    assert load_audio(tmp_path / "clip.wav", sample_rate=RATE).size == samples.size


# ------------------------------------------------------------------------------ sample rates


def test_another_rate_is_refused_unless_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.wav", noise(8_000), rate=8_000)
    with pytest.raises(SampleRateError, match=r"expected 16000 Hz, got 8000 Hz.*resample=True"):
        load_audio(path, sample_rate=RATE)
    assert load_audio(path, sample_rate=RATE, resample=True).size == RATE


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_the_tone(rate: int) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32) / 2
    converted = resample(tone, from_rate=rate, to_rate=RATE)
    wanted = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE) / 2
    assert (converted.dtype, converted.size) == (np.float32, RATE)
    middle = slice(RATE // 4, 3 * RATE // 4)
    np.testing.assert_allclose(converted[middle], wanted[middle], atol=1e-3)


def test_resampling_to_the_same_rate_changes_nothing() -> None:
    waveform = noise(100)
    np.testing.assert_array_equal(resample(waveform, from_rate=RATE, to_rate=RATE), waveform)


def test_resampling_refuses_rates_that_are_none() -> None:
    with pytest.raises(SampleRateError, match="positive sample rates"):
        resample(noise(10), from_rate=0, to_rate=RATE)


# ------------------------------------------------------------------------------ bad files


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AudioNotFoundError, match="found none at") as caught:
        load_audio(tmp_path / "none.wav", sample_rate=RATE)
    assert isinstance(caught.value, FileNotFoundError)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(AudioFormatError, match="got a folder"):
        load_audio(tmp_path, sample_rate=RATE)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "raw"])
def test_empty_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    path.touch()
    with pytest.raises(AudioFormatError, match="empty file"):
        load_audio(path, sample_rate=RATE)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_file_without_samples(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"clip.{suffix}", np.zeros(0, np.int16))
    with pytest.raises(AudioFormatError, match=r"no samples|empty file"):
        load_audio(path, sample_rate=RATE)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("wav", {}),
        ("wav", {"endian": "BIG"}),
        ("flac", {}),
        ("ogg", {"subtype": "VORBIS"}),
        ("ogg", {"subtype": "OPUS"}),
    ],
)
def test_truncated_file(
    tmp_path: Path, samples: np.ndarray, suffix: str, options: dict[str, Any], kept: float
) -> None:
    path = write(tmp_path / f"clip.{suffix}", samples, **options)
    assert load_audio(path, sample_rate=RATE).size == samples.size
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(AudioFormatError, match=r"truncated|cut short"):
        load_audio(path, sample_rate=RATE)


def ogg_pages(data: bytes) -> list[bytes]:
    """The pages of an ogg file whose samples do not happen to hold the page mark."""
    return [b"OggS" + rest for rest in data.split(b"OggS")[1:]]


def test_ogg_cut_anywhere(tmp_path: Path, samples: np.ndarray) -> None:
    path = write(tmp_path / "clip.ogg", samples)
    data = path.read_bytes()
    pages = ogg_pages(data)
    assert len(pages) > 2
    borders = np.cumsum([len(page) for page in pages])[:-1]
    last = int(borders[-1])  # within the last page: mark, flags, segment table, body
    for kept in (*borders, 4, last + 2, last + 5, last + 26, last + 27, last + 28, len(data) - 1):
        path.write_bytes(data[:kept])
        with pytest.raises(AudioFormatError, match="truncated"):
            load_audio(path, sample_rate=RATE)


def test_ogg_with_a_tag_after_its_end_is_read(tmp_path: Path, samples: np.ndarray) -> None:
    path = write(tmp_path / "clip.ogg", samples)
    path.write_bytes(path.read_bytes() + b"TAG" + bytes(125))
    assert load_audio(path, sample_rate=RATE).size == samples.size


def test_shipped_clips_are_whole() -> None:
    shipped = sorted((Path(train.__file__).parent / "digits" / "audio").rglob("*.ogg"))
    assert len(shipped) > 1000
    for path in shipped:
        _check_complete(path)


@pytest.mark.parametrize("suffix", ["aiff", "au", "w64", "mp3"])
def test_other_formats_are_refused(tmp_path: Path, samples: np.ndarray, suffix: str) -> None:
    path = write(tmp_path / f"clip.{suffix}", samples)
    with pytest.raises(AudioFormatError, match=r"expected a wav, flac or ogg file, got .*ffmpeg"):
        load_audio(path, sample_rate=RATE)


@pytest.mark.parametrize(("promised", "refused"), [(10_000, True), (2**62, False)])
def test_decoder_that_returns_fewer_samples_than_the_header_says(
    tmp_path: Path,
    samples: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    promised: int,
    refused: bool,
) -> None:
    path = write(tmp_path / "clip.flac", samples)
    # Today's libsndfile raises on such files; older ones return what there is. A stream of
    # unknown length promises a huge count.
    monkeypatch.setattr(soundfile.SoundFile, "frames", property(lambda self: promised))
    if refused:
        with pytest.raises(AudioFormatError, match="promises 10000 samples, got 8000"):
            load_audio(path, sample_rate=RATE)
    else:
        assert load_audio(path, sample_rate=RATE).size == samples.size


@pytest.mark.parametrize("kept", [1, 4, 11, 20, 43])
def test_wav_cut_within_its_header(tmp_path: Path, samples: np.ndarray, kept: int) -> None:
    path = write(tmp_path / "clip.wav", samples)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(AudioFormatError, match=r"could not decode|no samples|truncated"):
        load_audio(path, sample_rate=RATE)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "raw", "txt"])
def test_not_audio(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    path.write_bytes(b"this is a text file, not a recording. " * 20)
    with pytest.raises(AudioFormatError, match="could not decode"):
        load_audio(path, sample_rate=RATE)


def test_stereo_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.wav", np.stack([noise(100), noise(100)], axis=1))
    with pytest.raises(AudioFormatError, match=r"expected one channel, got 2.*-ac 1"):
        load_audio(path, sample_rate=RATE)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_file_with_samples_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    waveform = noise(100)
    waveform[17] = bad
    path = write(tmp_path / "clip.wav", waveform, subtype="FLOAT")
    with pytest.raises(AudioFormatError, match="at sample 17"):
        load_audio(path, sample_rate=RATE)


# ------------------------------------------------------------------------------ arrays


def test_int16_is_scaled() -> None:
    pcm = np.array([-32_768, -1, 0, 1, 32_767], np.int16)
    waveform = check_pcm(pcm, sample_rate=RATE, expected_rate=RATE)
    assert waveform.dtype == np.float32
    np.testing.assert_array_equal(waveform * 32_768, pcm)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_no_samples_are_fine(dtype: type) -> None:
    assert check_pcm(np.zeros(0, dtype), sample_rate=RATE, expected_rate=RATE).shape == (0,)


@pytest.mark.parametrize(
    ("pcm", "message"),
    [
        (np.zeros(4), r"got float64.*astype\(np\.float32\)"),
        (np.zeros(4, np.int32), "got int32"),
        (np.zeros(4, np.uint8), "got uint8"),
        (np.zeros((4, 2), np.float32), r"got shape \(4, 2\).*pcm\[:, 0\]"),
        (np.zeros((), np.float32), r"got shape \(\)"),
        ([0.0, 1.0], "got list"),
        (b"\0\0", "np.frombuffer"),
        (np.array([0, np.nan, 0], np.float32), "nan at sample 1"),
        (np.array([0, 0, np.inf], np.float32), "inf at sample 2"),
        (np.array([-np.inf, 0], np.float32), "-inf at sample 0"),
        (np.array([0, 12_345], np.float32), "peak of 12345; divide int16"),
    ],
)
def test_bad_arrays(pcm: Any, message: str) -> None:
    with pytest.raises(AudioFormatError, match=message):
        check_pcm(pcm, sample_rate=RATE, expected_rate=RATE)


def test_wrong_rate_of_an_array() -> None:
    with pytest.raises(SampleRateError, match="expected audio at 16000 Hz, got 44100 Hz") as caught:
        check_pcm(noise(4), sample_rate=44_100, expected_rate=RATE)
    assert isinstance(caught.value, AudioError)


# ------------------------------------------------------------------------------ clipping


def is_clipped(waveform: np.ndarray) -> bool:
    """Three neighbours at full scale, spelled out."""
    loud = [abs(x) >= 32_767 / 32_768 for x in waveform.tolist()]
    return any(all(loud[i : i + CLIP_RUN]) for i in range(len(loud) - CLIP_RUN + 1))


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, -1.0, 32_767 / 32_768]), max_size=7)),
)
@example([[1.0, 1.0], [0.0], [1.0]])
@example([[1.0, 1.0], [], [1.0]])
def test_clipping_is_noticed_however_the_stream_is_cut(parts: list[list[float]]) -> None:
    detector = ClippingDetector()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for part in parts:
            detector.push(np.array(part, np.float32))
    whole = np.array([x for part in parts for x in part])
    assert len(caught) == is_clipped(whole)  # once a stream, however often


@pytest.mark.parametrize("value", [32_767, -32_768])
def test_clipped_file_warns_and_loads(tmp_path: Path, value: int) -> None:
    path = write(tmp_path / "clip.wav", np.array([0, value, value, value, 0], np.int16))
    with pytest.warns(ClippingWarning, match=r"clip\.wav is clipped.*Lower the recording gain"):
        assert load_audio(path, sample_rate=RATE).size == 5
    path = write(tmp_path / "clip.wav", np.array([0, value, value, 0, value], np.int16))
    assert load_audio(path, sample_rate=RATE).size == 5  # a warning would be an error here
