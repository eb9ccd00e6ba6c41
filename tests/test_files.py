"""Files that are replaced in one step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_imputer.files import replacing, write_atomically


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    return path


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_file_that_cannot_be_written_is_the_old_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def write() -> None:
        with replacing(path) as file:
            file.write(b"new")
            assert path.read_bytes() == b"old"
            if failing == "write":
                full()

    if failing != "write":
        monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        write()
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def test_the_old_file_may_be_kept(path: Path) -> None:
    old = path.with_name("old.txt")
    write_atomically(path, b"new", keep_old=old)
    assert (path.read_bytes(), old.read_bytes()) == (b"new", b"old")
    fresh = path.with_name("fresh.txt")
    write_atomically(fresh, b"first", keep_old=old)
    assert (fresh.read_bytes(), old.read_bytes()) == (b"first", b"old")
    assert fresh.stat().st_mode & 0o777 == 0o644  # not for this user alone, as drafts are


@pytest.mark.parametrize("durable", [True, False])
def test_content_is_on_disk_before_its_name_and_its_name_before_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    done: list[str] = []

    def noting(name: str) -> None:
        real: Callable[..., None] = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args: (done.append(name), real(*args)))

    noting("fsync")
    noting("replace")
    with replacing(path, durable=durable) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert done == (["fsync", "replace", "fsync"] if durable else ["replace"])
