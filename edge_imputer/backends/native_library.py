"""Compiles a bundle's C sources into a shared library, once, and keeps it in the user's cache.

The file name holds a hash of everything that decides the machine code: the sources, the compiler
and its predefined macros (its version and the processor's instruction set), and the flags. So a
changed source or another machine never gets an old library.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import BackendError

CACHE_VARIABLE = "EDGE_IMPUTER_CACHE"
COMPILERS = ("cc", "gcc", "clang")
NATIVE_FLAG = "-march=native"
FLAGS = ("-std=c99", "-O3", "-fPIC", "-shared")  # never -ffast-math: features are rounded in C
TIMEOUT_S = 300


def cache_folder() -> Path:
    """``$EDGE_IMPUTER_CACHE``, or ``edge-imputer`` below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-imputer"


def compile_library(sources: Mapping[str, bytes]) -> Path:
    """Compile C sources, or find the library that the same sources gave before.

    Parameters
    ----------
    sources : mapping from file name to content
        C files and the headers that they include, all in one folder.

    Returns
    -------
    Path
        The shared library.

    Raises
    ------
    BackendError
        If there is no C compiler, it refuses the sources, or the cache cannot be written.
    """
    compiler = find_compiler()
    flags, macros = _flags(compiler)
    folder = cache_folder() / "native"
    library = folder / f"edim-{_key(sources, [*compiler, *flags], macros)}.so"
    if library.is_file():
        return library
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            for name, content in sources.items():
                Path(work, name).write_bytes(content)
            units = sorted(name for name in sources if name.endswith(".c"))
            _compile([*compiler, *flags, *units, "-o", library.name], Path(work))
            os.replace(Path(work, library.name), library)  # in one step: never half a file
    except OSError as error:
        raise BackendError(
            f"the compiled model could not be kept in {folder} ({error}); "
            f"set {CACHE_VARIABLE} to a folder that can be written"
        ) from error
    return library


def find_compiler() -> list[str]:
    """The command of the C compiler: ``$CC``, or the first of `COMPILERS` that is installed."""
    chosen = shlex.split(os.environ.get("CC", ""))
    for name in chosen[:1] or COMPILERS:
        path = shutil.which(name)
        if path is not None:
            return [path, *chosen[1:]]
    looked = f"CC={chosen[0]}" if chosen else ", ".join(COMPILERS)
    raise BackendError(
        f"the native backend compiles the model, but no C compiler was found ({looked}); install "
        "one (for example: apt install gcc), name one in the variable CC, or use another backend, "
        "such as onnx"
    )


def _flags(compiler: Sequence[str]) -> tuple[list[str], bytes]:
    """The flags this compiler takes, and the macros it predefines under them."""
    probe = ["-dM", "-E", "-x", "c", os.devnull]
    for flags in ([*FLAGS, NATIVE_FLAG], [*FLAGS]):
        result = _run([*compiler, *flags, *probe])
        if result.returncode == 0:
            return flags, result.stdout
    raise _no_compiler(compiler, result.stderr.decode(errors="replace").strip())


def _compile(command: Sequence[str], folder: Path) -> None:
    result = _run(command, folder)
    if result.returncode != 0:
        message = result.stderr.decode(errors="replace").strip()
        raise BackendError(
            f"the C compiler refused the model's sources:\n{message}\n"
            f"The command was: {shlex.join(command)}. Try another compiler in the variable CC, "
            "export the model again, or use another backend, such as onnx"
        )


def _run(command: Sequence[str], folder: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise _no_compiler(command[:1], str(error)) from error


def _no_compiler(command: Sequence[str], message: str) -> BackendError:
    return BackendError(
        f"{shlex.join(command)} does not work as a C compiler: {message}; name another one in "
        "the variable CC, or use another backend, such as onnx"
    )


def _key(sources: Mapping[str, bytes], command: Sequence[str], macros: bytes) -> str:
    """Hash of everything that decides the machine code, each part with its length."""
    digest = hashlib.sha256()
    parts = [*(part.encode() for part in command), macros]
    for name in sorted(sources):
        parts += [name.encode(), sources[name]]
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]
