"""Whether a recording can be trained on: it is decoded whole and looked at. Needs no torch.

`check_clips` runs in processes of its own, one batch of clips at a time; what it finds is plain
data, and what to do about it is decided elsewhere (`edge_imputer.train.data.prepare`).
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from .audio import CLIP_LEVEL, CLIP_RUN, read_segment, resample
from .errors import AudioError, AudioNotFoundError
from .files import replacing

Float32 = npt.NDArray[np.float32]
Problem = Literal["missing", "empty", "truncated", "channels", "not finite", "unreadable"]

COMMAND_LIMIT_S = 120.0
_SILENT_DB = -200.0  # what zero samples are called
# Words of `edge_imputer.audio`'s errors -> what is wrong; a test holds them together.
_PROBLEMS: tuple[tuple[str, Problem], ...] = (
    ("expected audio, got", "empty"),
    ("the file is truncated", "truncated"),
    ("expected one channel", "channels"),
    ("expected finite samples", "not finite"),
)


class ClipTask(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A clip to look at, and where to put a copy of it."""

    audio: str
    offset_s: float = 0.0
    duration_s: float | None = None  # None: to the end
    command: str | None = None  # run it, and decode what it prints instead of the file
    copy_to: str | None = None  # .wav or .flac
    copy_rate: int | None = None  # Hz; as it is if None


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What a clip turned out to be."""

    audio: str
    offset_s: float = 0.0
    part_s: float | None = None  # `ClipTask.duration_s`
    problem: Problem | None = None  # then `detail` says more, and nothing below is known
    detail: str = ""
    size: int = 0  # of the file, bytes
    changed_ns: int = 0  # its time of change
    duration_s: float = 0.0
    sample_rate: int = 0
    peak_db: float = 0.0  # dB of full scale, without the mean
    clipped: float = 0.0  # share of samples in runs at full scale
    digest: str = ""  # of samples and rate
    copy_size: int = 0  # of the copy that was made of it, bytes; 0: there is none
    copy_digest: str = ""  # of the copy's bytes, see `copy_digest`


def check_clips(tasks: list[ClipTask]) -> list[Finding]:
    """Look at clips. What cannot be decoded is a finding; a copy that cannot be written raises.

    Raises
    ------
    OSError
        A copy could not be written, for example because the disk is full.
    """
    return [check_clip(task) for task in tasks]


def start_worker() -> None:
    """Set up a process that checks clips: it leaves interrupts to its parent, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # returns when it is gone, killed or not
        os._exit(1)


def check_clip(task: ClipTask) -> Finding:
    """Decode a clip and measure it; see `check_clips`."""
    return read_and_check(task)[0]


def read_and_check(task: ClipTask) -> tuple[Finding, Float32]:
    """Decode a clip and measure it; its samples besides, none where there is a problem."""
    facts: dict[str, object] = {
        "audio": task.audio,
        "offset_s": task.offset_s,
        "part_s": task.duration_s,
    }
    try:
        facts["size"], facts["changed_ns"] = stamp(task)
        waveform, rate = _decode(task)
    except (AudioError, OSError, subprocess.SubprocessError) as error:
        text = " ".join(str(error).split())
        facts |= {"problem": _problem(error, text), "detail": text.removeprefix(f"{task.audio}: ")}
        return Finding(**facts), np.zeros(0, np.float32)  # type: ignore[arg-type]
    if task.copy_to is not None:
        copy = write_copy(Path(task.copy_to), waveform, rate, task.copy_rate)
        facts |= {"copy_size": len(copy), "copy_digest": copy_digest(copy)}
    facts |= {
        "duration_s": round(len(waveform) / rate, 6),
        "sample_rate": rate,
        "peak_db": round(_peak_db(waveform), 2),
        "clipped": round(_clipped(waveform), 6),
        "digest": hashlib.blake2b(
            waveform.tobytes(), digest_size=16, salt=rate.to_bytes(8, "little")
        ).hexdigest(),
    }
    return Finding(**facts), waveform  # type: ignore[arg-type]


def stamp(task: ClipTask) -> tuple[int, int]:
    """Size and time of change of a clip's file; zeros of a command and of no file."""
    if task.command is not None:
        return 0, 0
    try:
        state = os.stat(task.audio)
    except (FileNotFoundError, ValueError):  # ValueError: a NUL in it, as no file's name has
        return 0, 0
    return state.st_size, state.st_mtime_ns


def _decode(task: ClipTask) -> tuple[Float32, int]:
    if task.command is None:
        return read_segment(task.audio, start_s=task.offset_s, duration_s=task.duration_s)
    printed = subprocess.run(
        task.command,
        shell=True,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=COMMAND_LIMIT_S,
    ).stdout
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        file.write(printed)
        file.flush()
        return read_segment(file.name, start_s=task.offset_s, duration_s=task.duration_s)


def _problem(error: Exception, text: str) -> Problem:
    if isinstance(error, FileNotFoundError | AudioNotFoundError):
        return "missing"
    return next((problem for words, problem in _PROBLEMS if words in text), "unreadable")


def _peak_db(waveform: Float32) -> float:
    peak = float(np.abs(waveform - waveform.mean()).max())
    return 20 * float(np.log10(peak)) if peak > 0 else _SILENT_DB


def _clipped(waveform: Float32) -> float:
    """Share of the samples that are in runs of `CLIP_RUN` or more at full scale."""
    full = np.abs(waveform) >= CLIP_LEVEL
    if not full.any():
        return 0.0
    edges = np.flatnonzero(np.diff(np.concatenate([[False], full, [False]]).astype(np.int8)))
    runs = edges[1::2] - edges[::2]
    return float(runs[runs >= CLIP_RUN].sum()) / waveform.size


def write_copy(path: Path, waveform: Float32, rate: int, copy_rate: int | None) -> memoryview:
    """Write a clip as 16-bit wav or flac, whole or not at all, and return the file's bytes.

    It is encoded in memory first: a full disk is then an OSError of the file, not of the encoder.
    It does not wait for the disk, which would take several times as long as all else; a power cut
    is told by `copy_digest`.
    """
    import soundfile

    if copy_rate is not None:
        waveform, rate = resample(waveform, from_rate=rate, to_rate=copy_rate), copy_rate
    encoded = io.BytesIO()
    soundfile.write(
        encoded,
        np.clip(waveform, -1.0, 1.0),
        rate,
        format=path.suffix[1:].upper(),
        subtype="PCM_16",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=False) as file:
        file.write(encoded.getbuffer())
    return encoded.getbuffer()


def copy_digest(content: bytes | memoryview) -> str:
    """What tells a copy's bytes from those that a power cut left in their place."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
