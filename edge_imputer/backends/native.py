"""The model's own C code, compiled on this machine: the integers a microcontroller computes.

The fastest backend: no interpreter stands between the call and the kernels. It needs a C
compiler, once a model; see `native_library` for where the result is kept.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendError
from ..specs import speech_spec
from .native_library import compile_library

if TYPE_CHECKING:
    from ..bundle import Bundle
    from .base import Array, Float32, Int32, State

API_VERSION = 2  # EDIM_API_VERSION in edge_imputer.h
FOLDER = "native/"


class ModelInfo(ctypes.Structure):
    """``edim_model_info`` in edge_imputer.h."""

    _fields_ = (
        ("api_version", ctypes.c_int32),
        ("feature_frames", ctypes.c_int32),
        ("n_mels", ctypes.c_int32),
        ("step_frames", ctypes.c_int32),
        ("d_model", ctypes.c_int32),
        ("window", ctypes.c_int32),
        ("chunk_size", ctypes.c_int32),
        ("vocabulary_size", ctypes.c_int32),
        ("mask_id", ctypes.c_int32),
        ("state_bytes", ctypes.c_int32),
        ("arena_bytes", ctypes.c_int32),
        ("feature_zero_point", ctypes.c_int32),
        ("encoder_zero_point", ctypes.c_int32),
        ("logit_zero_point", ctypes.c_int32),
        ("feature_scale", ctypes.c_float),
        ("encoder_scale", ctypes.c_float),
        ("logit_scale", ctypes.c_float),
    )


class NativeBackend:
    """A bundle's C code behind the interface of every backend.

    The streaming state is one int8 array, (state_bytes,). Calls copy into buffers whose addresses
    are bound once, because taking an array's address costs as much as a tenth of a step. A lock
    guards the buffers, so that streams may run in several threads.

    Parameters
    ----------
    bundle : Bundle

    Attributes
    ----------
    library : ctypes.PyDLL
        The compiled model; its functions are those of edge_imputer.h.
    info : ModelInfo
        Its sizes and quantisation.

    Raises
    ------
    BackendError
        Without a C compiler, or if the C code and the manifest contradict each other.
    BundleIntegrityError
        If the bundle holds no C code.
    """

    name = "native"

    def __init__(self, bundle: Bundle) -> None:
        library = self.library = load_library(bundle)
        self.info = _model_info(library)
        _check(self.info, bundle)
        info = self.info
        self._lock = threading.Lock()
        self._features = np.zeros((info.feature_frames, info.n_mels), np.float32)
        self._state = np.zeros(info.state_bytes, np.int8)
        self._encoder_out = np.zeros((info.step_frames, info.d_model), np.int8)
        self._window = np.zeros((info.window, info.d_model), np.int8)
        self._alignment = np.zeros(info.window, np.int32)
        self._logits = np.zeros((info.chunk_size, info.vocabulary_size), np.float32)
        arena = self._arena = np.zeros(info.arena_bytes, np.int8)
        self._encode = library.edim_encoder_step_f32
        self._encode.restype = None
        self._impute = library.edim_imputer_step_f32
        self._encode_arguments = addresses(self._features, self._state, self._encoder_out, arena)
        self._impute_arguments = addresses(self._window, self._alignment, self._logits, arena)
        library.edim_encoder_reset.restype = None
        library.edim_encoder_reset(*addresses(self._state))
        self._initial = self._state.copy()

    def initial_state(self) -> State:
        """Int8 values of real zeros, in a tuple of one array."""
        return (self._initial.copy(),)

    def initial_context(self) -> Array:
        """Encoder frames before the first chunk: (left_context, d_model) of real zeros."""
        left = self.info.window - self.info.chunk_size
        return np.full((left, self.info.d_model), self.info.encoder_zero_point, np.int8)

    def encoder_step(self, features: Float32, state: State) -> tuple[Array, State]:
        """Advance by one step of the encoder, see `Backend.encoder_step`."""
        before = state[0]
        if features.shape != self._features.shape:
            raise unexpected("features", self._features, features)
        if before.shape != self._state.shape or before.dtype != np.int8:
            raise unexpected("state", self._state, before)
        with self._lock:
            self._features[:] = features
            self._state[:] = before
            self._encode(*self._encode_arguments)
            return self._encoder_out.copy(), (self._state.copy(),)

    def imputer_step(self, encoder_window: Array, alignment_window: Int32) -> Float32:
        """One pass of the head, see `Backend.imputer_step`."""
        if encoder_window.shape != self._window.shape or encoder_window.dtype != np.int8:
            raise unexpected("encoder_window", self._window, encoder_window)
        if alignment_window.shape != self._alignment.shape:
            raise unexpected("alignment_window", self._alignment, alignment_window)
        with self._lock:
            self._window[:] = encoder_window
            self._alignment[:] = alignment_window
            status = self._impute(*self._impute_arguments)
            logits: Float32 = self._logits.copy()
        if status != 0:
            raise BackendError(
                f"expected tokens in [0, {self.info.mask_id}] in the alignment, "
                f"got {np.asarray(alignment_window).tolist()}"
            )
        return logits


def load_library(bundle: Bundle) -> ctypes.PyDLL:
    """Compile and load the bundle's C code.

    As a `PyDLL`: a step takes microseconds, so it keeps the interpreter lock, which could take
    milliseconds to get back.
    """
    bundle.file(f"{FOLDER}edim_model.c")  # says what to do where a bundle was exported without
    names = [
        name
        for name in bundle.manifest.files
        if name.startswith(FOLDER) and name.endswith((".c", ".h"))
    ]
    path = compile_library(
        {name.removeprefix(FOLDER): bundle.file(name).read_bytes() for name in names}
    )
    try:
        return ctypes.PyDLL(str(path))
    except OSError as error:
        raise BackendError(
            f"the compiled model {path} could not be loaded ({error}); delete it, and it is "
            "compiled again"
        ) from error


def _model_info(library: ctypes.PyDLL) -> ModelInfo:
    library.edim_model.restype = ctypes.POINTER(ModelInfo)
    info: ModelInfo = library.edim_model().contents
    check_version(info.api_version)
    return info


def check_version(api_version: int) -> None:
    """Refuse C code of another interface."""
    if api_version != API_VERSION:
        raise BackendError(
            f"expected C code of interface version {API_VERSION}, got {api_version}; export "
            "the model again with this version of edge-imputer"
        )


def _check(info: ModelInfo, bundle: Bundle) -> None:
    """Refuse C code of another model than the manifest describes."""
    spec, manifest = speech_spec(bundle.spec), bundle.manifest
    expected: dict[str, int | float] = {
        "feature_frames": spec.step_features,
        "step_frames": spec.step_frames,
        "n_mels": spec.features.n_mels,
        "d_model": spec.encoder.d_model,
        "window": spec.head.window,
        "chunk_size": spec.head.chunk_size,
        "vocabulary_size": spec.tokens.vocabulary_size,
        "mask_id": spec.tokens.mask_id,
    }
    encoder, imputer = manifest.graph("encoder"), manifest.graph("imputer")
    records = {"feature": encoder.inputs, "encoder": encoder.outputs, "logit": imputer.outputs}
    for name, (record, *_) in records.items():
        if record.quant is not None:
            expected[f"{name}_scale"] = float(np.float32(record.quant.scale))
            expected[f"{name}_zero_point"] = record.quant.zero_point
    expected["arena_bytes"] = max(encoder.arena_bytes, imputer.arena_bytes)
    check_constants(info, expected, bundle)


def check_constants(
    info: ctypes.Structure, expected: Mapping[str, int | float], bundle: Bundle
) -> None:
    """Refuse C code whose constants are not those of the manifest."""
    found = {name: getattr(info, name) for name in expected}
    wrong = {name: (value, found[name]) for name, value in expected.items() if found[name] != value}
    if wrong:
        text = ", ".join(f"{k}: {ours} and {theirs}" for k, (ours, theirs) in wrong.items())
        raise BackendError(
            f"{bundle.path}: manifest and C code are of two models ({text}); export it again"
        )


def addresses(*arrays: npt.NDArray[Any]) -> tuple[ctypes.c_void_p, ...]:
    """Arguments of a C call; the arrays must outlive them and never be resized."""
    return tuple(ctypes.c_void_p(array.ctypes.data) for array in arrays)


def unexpected(name: str, expected: Array, found: Array) -> BackendError:
    """The error for an array of another shape or type than expected."""
    return BackendError(
        f"expected {name} of shape {expected.shape} and dtype {expected.dtype}, "
        f"got {found.shape} and {found.dtype}"
    )
