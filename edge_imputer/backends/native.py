"""The model's own C code, compiled on this machine: the integers a microcontroller computes.

The fastest backend: no interpreter stands between the call and the kernels. It needs a C
compiler, once a model; see `native_library` for where the result is kept.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BackendError
from ..specs import ModelSpec, speech_spec
from .native_code import (
    NativeStream,
    addresses,
    check_constants,
    check_version,
    load_library,
    unexpected,
)

if TYPE_CHECKING:
    from ..bundle import Bundle
    from .base import Array, Float32, Int32, State


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

    The streaming state is one int8 array, (state_bytes,). Streams may run in several threads, which
    take turns in the C code.

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
        spec = speech_spec(bundle.spec)
        library = self.library = load_library(bundle)
        self.info = _model_info(library)
        _check(self.info, spec, bundle)
        info = self.info
        arena = np.zeros(info.arena_bytes, np.int8)
        self._encoder = NativeStream(
            library,
            "encoder",
            (info.feature_frames, info.n_mels),
            info.state_bytes,
            out=np.zeros((info.step_frames, info.d_model), np.int8),
            arena=arena,
        )
        self._window = np.zeros((info.window, info.d_model), np.int8)
        self._alignment = np.zeros(info.window, np.int32)
        self._logits = np.zeros((info.chunk_size, info.vocabulary_size), np.float32)
        self._impute = library.edim_imputer_step_f32
        self._impute_arguments = addresses(self._window, self._alignment, self._logits, arena)

    def initial_state(self) -> State:
        """Int8 values of real zeros, in a tuple of one array."""
        return self._encoder.initial_state()

    def initial_context(self) -> Array:
        """Encoder frames before the first chunk: (left_context, d_model) of real zeros."""
        left = self.info.window - self.info.chunk_size
        return np.full((left, self.info.d_model), self.info.encoder_zero_point, np.int8)

    def encoder_step(self, features: Float32, state: State) -> tuple[Array, State]:
        """Advance by one step of the encoder, see `Backend.encoder_step`."""
        return self._encoder.step(features, state)

    def imputer_step(self, encoder_window: Array, alignment_window: Int32) -> Float32:
        """One pass of the head, see `Backend.imputer_step`."""
        if encoder_window.shape != self._window.shape or encoder_window.dtype != np.int8:
            raise unexpected("encoder_window", self._window, encoder_window)
        if alignment_window.shape != self._alignment.shape:
            raise unexpected("alignment_window", self._alignment, alignment_window)
        with self._encoder.lock:
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


def _model_info(library: ctypes.PyDLL) -> ModelInfo:
    library.edim_model.restype = ctypes.POINTER(ModelInfo)
    info: ModelInfo = library.edim_model().contents
    check_version(info.api_version)
    return info


def _check(info: ModelInfo, spec: ModelSpec, bundle: Bundle) -> None:
    """Refuse C code of another model than the manifest describes."""
    manifest = bundle.manifest
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
