"""What the C code of both kinds of model has in common: loading it, checking it, calling a step."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendError
from .native_library import compile_library

if TYPE_CHECKING:
    from ..bundle import Bundle
    from .base import Array, Float32, State

API_VERSION = 2  # EDIM_API_VERSION in edge_imputer.h
FOLDER = "native/"


class NativeStream:
    """A graph that takes features and a state, as C code.

    The state is one int8 array, (state_bytes,). Calls copy into buffers whose addresses are bound
    once, because taking an array's address costs as much as a tenth of a step. A lock guards the
    buffers, so that streams may run in several threads.

    Parameters
    ----------
    library : ctypes.PyDLL
    name : str
        Of the graph: its functions are ``edim_NAME_step_f32`` and ``edim_NAME_reset``.
    features_shape : (n_frames, n_mels)
    state_bytes : int
    out : array
        Where a step writes; a copy is given back.
    arena : int8 array
        Working memory.

    Attributes
    ----------
    lock : threading.Lock
        Guards `arena` too: for others who work in it.
    """

    def __init__(
        self,
        library: ctypes.PyDLL,
        name: str,
        features_shape: tuple[int, int],
        state_bytes: int,
        *,
        out: Array,
        arena: Array,
    ) -> None:
        self.lock = threading.Lock()
        self._features = np.zeros(features_shape, np.float32)
        self._state = np.zeros(state_bytes, np.int8)
        self._out, self._arena = out, arena
        self._step = getattr(library, f"edim_{name}_step_f32")
        self._step.restype = None
        self._arguments = addresses(self._features, self._state, out, arena)
        reset = getattr(library, f"edim_{name}_reset")
        reset.restype = None
        reset(*addresses(self._state))
        self._initial = self._state.copy()

    def initial_state(self) -> State:
        """Int8 values of real zeros, in a tuple of one array; an empty one for windows."""
        return (self._initial.copy(),)

    def step(self, features: Float32, state: State) -> tuple[Array, State]:
        """Its output and the next state."""
        before = state[0]
        if features.shape != self._features.shape:
            raise unexpected("features", self._features, features)
        if before.shape != self._state.shape or before.dtype != np.int8:
            raise unexpected("state", self._state, before)
        with self.lock:
            self._features[:] = features
            self._state[:] = before
            self._step(*self._arguments)
            return self._out.copy(), (self._state.copy(),)


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


def check_version(api_version: int) -> None:
    """Refuse C code of another interface."""
    if api_version != API_VERSION:
        raise BackendError(
            f"expected C code of interface version {API_VERSION}, got {api_version}; export "
            "the model again with this version of edge-imputer"
        )


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
