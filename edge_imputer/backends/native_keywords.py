"""The C code of a keyword model, compiled on this machine, see `native`."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BackendError
from ..specs import KeywordModelSpec
from .native_code import NativeStream, check_constants, check_version, load_library

if TYPE_CHECKING:
    from ..bundle import Bundle, Manifest
    from .base import Float32, State


class KeywordsInfo(ctypes.Structure):
    """``edim_keywords_info`` in edge_imputer.h."""

    _fields_ = (
        ("api_version", ctypes.c_int32),
        ("feature_frames", ctypes.c_int32),
        ("hop_frames", ctypes.c_int32),
        ("n_mels", ctypes.c_int32),
        ("step_scores", ctypes.c_int32),
        ("n_classes", ctypes.c_int32),
        ("state_bytes", ctypes.c_int32),
        ("arena_bytes", ctypes.c_int32),
        ("feature_zero_point", ctypes.c_int32),
        ("logit_zero_point", ctypes.c_int32),
        ("feature_scale", ctypes.c_float),
        ("logit_scale", ctypes.c_float),
    )


class NativeKeywordBackend:
    """A bundle's C code behind the interface of every keyword backend.

    The streaming state is one int8 array, (state_bytes,). As in `NativeBackend`, streams may run in
    several threads.

    Parameters
    ----------
    bundle : Bundle
        Of a `KeywordModelSpec`.

    Attributes
    ----------
    library : ctypes.PyDLL
        The compiled model; its functions are those of edge_imputer.h.
    info : KeywordsInfo
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
        info = self.info = _info(library, bundle)
        self._stream = NativeStream(
            library,
            "keywords",
            (info.feature_frames, info.n_mels),
            info.state_bytes,
            out=np.zeros((info.step_scores, info.n_classes), np.float32),
            arena=np.zeros(info.arena_bytes, np.int8),
        )

    def initial_state(self) -> State:
        """Int8 values of real zeros, in a tuple of one array; an empty one for windows."""
        return self._stream.initial_state()

    def keywords_step(self, features: Float32, state: State) -> tuple[Float32, State]:
        """Score the next feature frames, see `KeywordBackend`."""
        return self._stream.step(features, state)


def _info(library: ctypes.PyDLL, bundle: Bundle) -> KeywordsInfo:
    """Sizes and quantisation of the C code, which must be those of the bundle's model."""
    spec = bundle.spec
    if not isinstance(spec, KeywordModelSpec) or not hasattr(library, "edim_keywords"):
        raise BackendError(
            f"{bundle.path}: expected a keyword model and its C code; export the model again"
        )
    library.edim_keywords.restype = ctypes.POINTER(KeywordsInfo)
    info: KeywordsInfo = library.edim_keywords().contents
    check_version(info.api_version)
    check_constants(info, _expected(spec, bundle.manifest), bundle)
    return info


def _expected(spec: KeywordModelSpec, manifest: Manifest) -> dict[str, int | float]:
    """What the manifest says of the constants."""
    record = manifest.graph("keywords")
    expected: dict[str, int | float] = {
        "feature_frames": spec.input_features,
        "hop_frames": spec.step_features,
        "n_mels": spec.features.n_mels,
        "step_scores": spec.step_scores,
        "n_classes": len(spec.classes),
        "arena_bytes": record.arena_bytes,
    }
    for name, tensor in (("feature", record.inputs[0]), ("logit", record.outputs[0])):
        if tensor.quant is not None:
            expected[f"{name}_scale"] = float(np.float32(tensor.quant.scale))
            expected[f"{name}_zero_point"] = tensor.quant.zero_point
    return expected
