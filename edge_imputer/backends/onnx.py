"""onnxruntime: the int8 QDQ models, or the float32 ones."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _native

from ..bundle import Bundle
from ..errors import BackendError
from ..specs import speech_spec
from .base import Array
from .stepper import Stepper

X86 = frozenset({"x86_64", "amd64", "i386", "i686"})
# onnxruntime's exceptions have no base of their own
ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(e for e in vars(_native).values() if isinstance(e, type) and issubclass(e, Exception)),
)


class OnnxModel:
    """One .onnx file, called with arrays in the order of its inputs. Safe to share by threads.

    Parameters
    ----------
    path : Path
    threads : int
        Threads of one operation. Models of this size gain nothing from more than one.
    integer_kernels : bool, optional
        Whether a quantised model runs in onnxruntime's integer kernels, or in float32 between
        activations that are quantised all the same: each layer within one step of the exact
        integers in both ways. By default it is integers, but not on x86, where those kernels
        are plain loops for int8 activations, and float32 three times as fast.
    """

    def __init__(
        self, path: Path, *, threads: int = 1, integer_kernels: bool | None = None
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised, not printed
        if integer_kernels is None:
            integer_kernels = platform.machine().lower() not in X86
        if integer_kernels:
            options.add_session_config_entry("session.qdqisint8allowed", "1")
        else:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.path = path
        try:
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except ERRORS as error:
            raise BackendError(
                f"onnxruntime could not load {path}: {error}; export the model again"
            ) from error
        self._session = session
        self._inputs = [node.name for node in session.get_inputs()]
        self._outputs = [node.name for node in session.get_outputs()]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call the model; fresh arrays, the inputs are not modified.

        Raises
        ------
        BackendError
            On a wrong number, shape or dtype of inputs, or if the runtime fails.
        """
        # Bound buffers would save about a tenth of the time, but not be safe between threads.
        try:
            feeds = dict(zip(self._inputs, inputs, strict=True))
            outputs: list[Array] = self._session.run(self._outputs, feeds)
        except ERRORS as error:
            raise BackendError(f"onnxruntime could not run {self.path}: {error}") from error
        return outputs


def load_onnx(bundle: Bundle, name: str, *, quantised: bool, threads: int = 1) -> OnnxModel:
    """A bundle's ONNX model of one graph."""
    suffix = ".int8.onnx" if quantised else ".onnx"
    return OnnxModel(bundle.file(f"onnx/{name}{suffix}"), threads=threads)


class OnnxBackend(Stepper):
    """A bundle's ONNX models.

    Parameters
    ----------
    bundle : Bundle
    quantised : bool
        The int8 models (else the float32 ones).
    threads : int
        Threads of one operation.
    """

    def __init__(self, bundle: Bundle, *, quantised: bool = True, threads: int = 1) -> None:
        spec = speech_spec(bundle.spec)
        encoder, imputer = (
            load_onnx(bundle, name, quantised=quantised, threads=threads)
            for name in ("encoder", "imputer")
        )
        records = bundle.manifest.graph("encoder"), bundle.manifest.graph("imputer")
        super().__init__(
            "onnx" if quantised else "onnx-float",
            spec,
            records,
            (encoder, imputer),
            quantised=quantised,
        )
