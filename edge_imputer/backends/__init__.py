"""Runtimes behind one interface: onnxruntime (int8 or float), LiteRT, native C.

>>> backend = load_backend(bundle, "native")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import BackendError
from .base import Backend

if TYPE_CHECKING:
    from ..bundle import Bundle

BACKENDS = ("onnx", "onnx-float", "litert", "native")


def load_backend(bundle: Bundle, name: str = "onnx") -> Backend:
    """Load a bundle's models into a runtime.

    Parameters
    ----------
    bundle : Bundle
    name : {"onnx", "onnx-float", "litert", "native"}
        ``onnx`` is the int8 QDQ model in onnxruntime, the default.
    """
    if name in ("onnx", "onnx-float"):
        from .onnx import OnnxBackend

        return OnnxBackend(bundle, quantised=name == "onnx")
    if name == "litert":
        from .litert import LiteRtBackend

        return LiteRtBackend(bundle)
    if name == "native":
        from .native import NativeBackend

        return NativeBackend(bundle)
    raise BackendError(f"expected a backend among {', '.join(BACKENDS)}, got {name!r}")


__all__ = ["BACKENDS", "Backend", "load_backend"]
