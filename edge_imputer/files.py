"""Files that are replaced in one step: who reads one sees the old or the new one, and whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PART_SUFFIX = ".part"  # of what is being written; a process that is killed leaves it


def write_atomically(path: Path, data: bytes, *, keep_old: Path | None = None) -> None:
    """Make or replace a file: after a crash it is the old one or the new one, and whole.

    `keep_old` is where the old one goes.

    Raises
    ------
    OSError
        If it cannot be written; the old file is as it was.
    """
    with replacing(path, keep_old=keep_old) as file:
        file.write(data)


@contextmanager
def replacing(
    path: Path, *, keep_old: Path | None = None, durable: bool = True
) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` in the end, or vanishes on an error.

    Parameters
    ----------
    path
        In a folder that is there.
    keep_old
        Where the old file goes.
    durable
        Wait for the disk. Without, a power cut may leave a file of the right name and size that
        holds something else: for what is made again at need, or is told by a digest.

    Raises
    ------
    OSError
        If it cannot be written; the old file is as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART_SUFFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(name, 0o644)
        if keep_old is not None and path.exists():
            os.replace(path, keep_old)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """See a renaming on disk; systems that cannot sync a folder do it in their own time."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network mounts refuse it; the file itself is there
            os.fsync(handle)
    finally:
        os.close(handle)
