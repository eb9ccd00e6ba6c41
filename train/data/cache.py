"""Decoded audio and features on disk, so that what is costly is done once.

What can be cached depends on the augmentation. As soon as it touches the waveform (speed, room,
noise, gain, ...), every utterance is new and its features cannot be kept: then the decoded audio
is, as int16 at the model's rate. Without any, the features of the clean clip are kept, and what is
done to features (warp, filters, masks) still varies.

An entry is one file, named by what it is made of: the source file's path, size and time of
change, the part of it, and the settings. It is written beside its place and moved there, so that
a reader sees all of it or nothing, whoever is killed when; it carries a checksum, and a damaged
one counts as missing. Entries are memory-mapped on reading.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.files import PART_SUFFIX, replacing
from edge_imputer.specs import AnyFeatureSpec

from .corpus import read_clip
from .records import ClipRecord, Waveform

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

INT16_SCALE = np.float32(1 / 32_768)
STALE_S = 3600.0  # a temporary file this old belongs to nobody any more


class _Header(msgspec.Struct, frozen=True, array_like=True):
    """What stands before the array's bytes, padded to `_HEADER_BYTES`."""

    magic: str
    dtype: str
    shape: tuple[int, ...]
    crc32: int


_MAGIC = "edge-imputer cache 1"
_HEADER_BYTES = 128


class ClipCache:
    """A folder of arrays, shared by any number of processes.

    When `max_bytes` are reached nothing is added any more; nothing is thrown out either: of a
    corpus that is read epoch by epoch, whichever part is kept helps as much as any other. A disk
    that is full or cannot be written costs one warning, and the run goes on without adding.

    Parameters
    ----------
    folder : made if it is not there
    max_bytes : size that the entries may reach
    """

    def __init__(self, folder: str | os.PathLike[str], *, max_bytes: int = 20 * 2**30) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.adding = True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked() as state:
                if not state.get():
                    state.set(self._clean())
        except OSError as error:
            self._give_up(error)

    def waveform(
        self,
        folder: Path,
        record: ClipRecord,
        sample_rate: int,
        part: tuple[float, float] | None = None,
    ) -> Waveform:
        """A clip's audio as `read_clip` gives it, rounded to int16: the same whether cached or not.

        Parameters
        ----------
        part : (start, length) in seconds: only that much of a cached clip is read from the disk

        Raises
        ------
        AudioError
            The clip is not cached and cannot be decoded.
        """

        def decode() -> Array:
            samples = np.rint(read_clip(folder, record, sample_rate) * np.float32(32_768))
            rounded: Array = np.clip(samples, -32_768, 32_767).astype(np.int16)
            return rounded

        samples = self.get("int16", folder, record, {"sample_rate": sample_rate}, decode)
        if part is not None:
            start, length = (round(seconds * sample_rate) for seconds in part)
            samples = samples[start : start + length]
        waveform: Waveform = samples.astype(np.float32)
        waveform *= INT16_SCALE
        return waveform

    def features(
        self,
        folder: Path,
        record: ClipRecord,
        spec: AnyFeatureSpec,
        settings: dict[str, Any],
        compute: Callable[[], Array],
    ) -> npt.NDArray[np.float32]:
        """Features of a clean clip, (T, n_mels); a read-only view where they are cached.

        Parameters
        ----------
        spec : front end
        settings : what else they depend on, for example how a clip is padded
        compute : what gives them
        """
        known = {**settings, "spec": msgspec.to_builtins(spec)}
        found: npt.NDArray[np.float32] = self.get("features", folder, record, known, compute)
        return found

    def get(
        self,
        kind: str,
        folder: Path,
        record: ClipRecord,
        settings: dict[str, Any],
        compute: Callable[[], Array],
    ) -> Array:
        """The array of an entry; computed, and kept if there is room, where there is none."""
        path = self._path(kind, folder, record, settings)
        if path is None:
            return compute()
        found = _read(path)
        if found is not None:
            return found
        array = np.ascontiguousarray(compute())
        if self.adding:
            try:
                self._add(path, array)
            except OSError as error:
                self._give_up(error)
        return array

    def size(self) -> int:
        """Bytes that the entries take, at most."""
        with self._locked() as state:
            return state.get()

    def _path(
        self, kind: str, folder: Path, record: ClipRecord, settings: dict[str, Any]
    ) -> Path | None:
        """Where an entry belongs; None where the source cannot be told from another."""
        file = folder / record.audio
        try:
            state = file.stat()
        except OSError:
            return None
        identity = [kind, str(file.resolve()), state.st_size, state.st_mtime_ns]
        parts = [*identity, record.offset_s, record.duration_s, settings]
        key = hashlib.blake2b(msgspec.json.encode(parts, order="sorted"), digest_size=20)
        name = key.hexdigest()
        return self.folder / name[:2] / name[2:]

    def _add(self, path: Path, array: Array) -> None:
        """Write an entry beside its place and move it there."""
        data = array.tobytes()
        header = _Header(_MAGIC, array.dtype.str, array.shape, zlib.crc32(data))
        n_bytes = _HEADER_BYTES + array.nbytes
        with self._locked() as state:  # taken first: whoever is killed leaves too high a sum
            if state.get() + n_bytes > self.max_bytes:
                log.warning("the cache %s is full; nothing is added any more", self.folder)
                self.adding = False
                return
            state.set(state.get() + n_bytes)
        path.parent.mkdir(exist_ok=True)
        try:
            with replacing(path, durable=False) as target:
                target.write(msgspec.json.encode(header).ljust(_HEADER_BYTES))
                target.write(data)
        except BaseException:
            with self._locked() as state:
                state.set(state.get() - n_bytes)
            raise

    def _give_up(self, error: OSError) -> None:
        log.warning("the cache %s cannot be written (%s); going on without", self.folder, error)
        self.adding = False

    def _clean(self) -> int:
        """Remove what killed processes left; return the size of the rest."""
        n_bytes = 0
        for path in self.folder.glob("??/*"):
            state = path.stat()
            if path.suffix == PART_SUFFIX:
                if time.time() - state.st_mtime > STALE_S:
                    path.unlink(missing_ok=True)
            else:
                n_bytes += state.st_size
        return n_bytes

    @contextmanager
    def _locked(self) -> Iterator[_Counter]:
        """The counter of bytes, for this process alone."""
        descriptor = os.open(self.folder / "size", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if sys.platform != "win32":  # there, two processes may go over the limit a little
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield _Counter(descriptor)
        finally:
            os.close(descriptor)


class _Counter:
    """A number in a file; written over in one piece, so that a kill leaves the old or the new."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def get(self) -> int:
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return int(os.read(self._descriptor, 20) or b"0")

    def set(self, value: int) -> None:
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, b"%020d" % value)


def _read(path: Path) -> Array | None:
    """An entry's array, memory-mapped and read-only; None where it is missing or damaged."""
    try:
        with path.open("rb") as file:
            header = msgspec.json.decode(file.read(_HEADER_BYTES), type=_Header)
        dtype = np.dtype(header.dtype)
        if header.magic != _MAGIC or not np.prod(header.shape):
            return None
        array = np.memmap(path, dtype, "r", _HEADER_BYTES, header.shape)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, msgspec.DecodeError) as error:
        log.debug("%s is damaged and made again: %s", path, error)
        return None
    if zlib.crc32(array.data) != header.crc32:
        return None
    return array.view(np.ndarray)
