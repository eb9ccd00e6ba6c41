"""A script in another Python environment, asked over its stdin and stdout.

Some libraries cannot be installed beside ours. A `make` target builds an environment of their own,
and a script of this package runs there, which imports nothing else of it. A question is a line of
JSON, then as many bytes as it says under ``bytes``, and an answer is the same; ``error`` in one is
what failed. ``close`` lists what a script keeps, by number, and nobody will ask for again.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_imputer.errors import BackendError


@dataclass(frozen=True)
class Environment:
    """Where a script runs.

    Attributes
    ----------
    package : str
        What is installed there, for messages.
    folder : str
        Of the environment, beside the one that this code runs in.
    variable : str
        Of the process' environment; names a python to take in its place.
    target : str
        Of `make`, that makes it.
    script : Path
    """

    package: str
    folder: str
    variable: str
    target: str
    script: Path

    @property
    def remedy(self) -> str:
        """How to come by it."""
        by = f"make {self.target}; or name its python in the variable {self.variable}"
        return f"make one with: {by}"

    def find_python(self) -> Path:
        """The python that ``$variable`` names, or the one in `folder`.

        Raises
        ------
        BackendError
            There is none.
        """
        named = os.environ.get(self.variable)
        if named:
            if not Path(named).is_file():
                raise BackendError(f"expected a python at {self.variable}={named}, found no file")
            return Path(named)
        python = Path(sys.prefix).parent / self.folder / "bin" / "python"  # wheels are for Linux
        if not python.is_file():
            raise BackendError(
                f"found no environment with {self.package} at {python}; {self.remedy}"
            )
        return python

    def absence(self) -> str | None:
        """Why it is not to be had here, in a line; None where it is."""
        try:
            self.find_python()
        except BackendError as error:
            return str(error)
        return None

    def process(self) -> PythonProcess:
        """The script, started at the first call.

        Raises
        ------
        BackendError
            There is no such environment.
        """
        key = self, self.find_python()
        if key not in _PROCESSES:
            _PROCESSES[key] = PythonProcess(*key)
        return _PROCESSES[key]


class RefusedError(Exception):
    """What the script said."""


class PythonProcess:
    """The process, and one question at a time.

    Attributes
    ----------
    environment : Environment
    closed : list of int
        What nobody will ask for again; the script is told with the next question.
    """

    def __init__(self, environment: Environment, python: Path) -> None:
        self.closed: list[int] = []
        self.environment, self._python, self._lock = environment, python, threading.Lock()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [python, "-I", environment.script],  # without the folder of the script on its path
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        atexit.register(self.close)

    def ask(self, request: dict[str, Any], content: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Its answer.

        Raises
        ------
        RefusedError
            It is an error.
        BackendError
            The process has ended.
        """
        with self._lock:
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None
            assert stdout is not None
            closed = [self.closed.pop() for _ in range(len(self.closed))]
            line = json.dumps({**request, "bytes": len(content), "close": closed}).encode()
            try:
                stdin.write(line + b"\n" + content)
                stdin.flush()
            except OSError:
                raise self._died() from None
            answer = stdout.readline()
            if not answer:
                raise self._died()
            found: dict[str, Any] = json.loads(answer)
            result = stdout.read(found["bytes"])
        if "error" in found:
            raise RefusedError(found["error"])
        return found, result

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._stderr.close()

    def _died(self) -> BackendError:
        status = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()
        said = [line for line in lines if line.strip() and not line.startswith("INFO:")]
        last = said[-1] if said else "it said nothing"
        remedy = f"; {self.environment.remedy}" if "No module named" in last else ""
        _PROCESSES.pop((self.environment, self._python), None)  # who asks next gets a new one
        return BackendError(
            f"{self._python}: {self.environment.package} ended with status {status}: {last}{remedy}"
        )


_PROCESSES: dict[tuple[Environment, Path], PythonProcess] = {}
