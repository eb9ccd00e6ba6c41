"""LiteRT: the int8 .tflite models, with XNNPACK or TFLite's reference kernels."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..bundle import Bundle
from ..errors import BackendError, require
from ..specs import speech_spec
from .base import Array
from .stepper import Stepper

_STDERR = 2
_STDERR_LOCK = threading.Lock()
_GREETING = b"INFO: Created TensorFlow Lite XNNPACK delegate"


@contextmanager
def _no_greeting() -> Iterator[None]:
    """Drop the line that LiteRT's C++ prints on stderr when it loads; it has no switch for it.

    What else arrives on stderr meanwhile, from any thread, is kept and passed on afterwards.
    """
    with _STDERR_LOCK, ExitStack() as stack:
        with suppress(OSError):  # no stderr, or nowhere to keep what arrives: drop nothing
            stderr = os.dup(_STDERR)
            stack.callback(os.close, stderr)
            kept = stack.enter_context(tempfile.TemporaryFile())
            stack.callback(_restore_stderr, stderr, kept)
            os.dup2(kept.fileno(), _STDERR)
        yield


def _restore_stderr(stderr: int, kept: BinaryIO) -> None:
    os.dup2(stderr, _STDERR)
    kept.seek(0)
    for line in kept:
        if not line.startswith(_GREETING):
            os.write(_STDERR, line)


class LiteRtModel:
    """One .tflite file, called with arrays in the order of its inputs.

    An interpreter has one set of buffers, so that threads that share it take turns.

    Parameters
    ----------
    path : Path
    threads : int
        Threads of one operation. Models of this size gain nothing from more than one.
    reference_kernels : bool
        TFLite's reference kernels in place of the fast ones; slow, for comparisons.
    """

    def __init__(self, path: Path, *, threads: int = 1, reference_kernels: bool = False) -> None:
        module = require("ai_edge_litert.interpreter", extra="litert")
        resolvers = module.OpResolverType
        try:
            with _no_greeting():
                interpreter = module.Interpreter(
                    model_path=str(path),
                    num_threads=threads,
                    experimental_op_resolver_type=(
                        resolvers.BUILTIN_REF if reference_kernels else resolvers.AUTO
                    ),
                )
                interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise BackendError(
                f"LiteRT could not load {path}: {error}; export the model again"
            ) from error
        self.path = path
        self._interpreter = interpreter
        self._lock = threading.Lock()
        self._inputs = [detail["index"] for detail in interpreter.get_input_details()]
        self._outputs = [detail["index"] for detail in interpreter.get_output_details()]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call the model; fresh arrays, the inputs are not modified.

        Raises
        ------
        BackendError
            On a wrong number, shape or dtype of inputs, or if the runtime fails.
        """
        interpreter = self._interpreter
        try:
            with self._lock:
                for index, array in zip(self._inputs, inputs, strict=True):
                    interpreter.set_tensor(index, array)
                interpreter.invoke()
                return [interpreter.get_tensor(index) for index in self._outputs]
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"LiteRT could not run {self.path}: {error}") from error


def load_litert(bundle: Bundle, name: str, *, threads: int = 1) -> LiteRtModel:
    """A bundle's .tflite model of one graph."""
    return LiteRtModel(bundle.file(f"tflite/{name}.tflite"), threads=threads)


class LiteRtBackend(Stepper):
    """A bundle's .tflite models.

    Parameters
    ----------
    bundle : Bundle
    threads : int
        Threads of one operation.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        spec = speech_spec(bundle.spec)
        encoder, imputer = (
            load_litert(bundle, name, threads=threads) for name in ("encoder", "imputer")
        )
        records = bundle.manifest.graph("encoder"), bundle.manifest.graph("imputer")
        super().__init__("litert", spec, records, (encoder, imputer), quantised=True)
