"""Compiling C in tests: with the compiler of this machine, which CI must have."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import pytest

from .conftest import IN_CI, ROOT

FIRMWARE = ROOT / "firmware_bridge"
SOURCES, HEADERS = FIRMWARE / "src", FIRMWARE / "include"
WARNINGS = (
    "-std=c99 -Wall -Wextra -Wconversion -Wpedantic -Wshadow -Wstrict-prototypes "
    "-Wmissing-prototypes -Werror"
).split()


def missing(message: str) -> NoReturn:
    """Skip a test for want of something; in CI, fail it."""
    if IN_CI:
        pytest.fail(message)
    pytest.skip(message)


def tool(name: str) -> str:
    """Path of a program; without it the test is skipped, but in CI it fails."""
    path = shutil.which(name)
    if path is None:
        missing(f"{name} is not installed")
    return path


def run(*command: str | Path, cwd: Path | None = None, stdin: bytes = b"") -> bytes:
    """Run a program that must succeed; its standard output."""
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, input=stdin, capture_output=True, check=False
    )
    assert result.returncode == 0, f"{command}:\n{result.stderr.decode(errors='replace')}"
    return result.stdout


def compile_c(
    sources: Iterable[Path],
    out: Path,
    flags: Iterable[str],
    *,
    compiler: str = "gcc",
    libraries: Iterable[str] = (),
) -> Path:
    """Compile with every warning an error; headers next to the sources are found."""
    sources = list(sources)
    folders = dict.fromkeys(["-I" + str(source.parent) for source in sources])
    inputs: tuple[str | Path, ...] = (*flags, *folders, *sources, *libraries)
    run(tool(compiler), *WARNINGS, *inputs, "-o", out)
    return out
