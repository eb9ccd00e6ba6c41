"""Runtimes behind one interface: onnxruntime (int8 or float), LiteRT, native C.

>>> backend = load_backend(bundle, "native")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import BackendError
from ..specs import KeywordModelSpec
from .base import Backend, KeywordBackend
from .stepper import KeywordStepper, Model

if TYPE_CHECKING:
    from ..bundle import Bundle

BACKENDS = ("onnx", "onnx-float", "litert", "native")
KEYWORDS = "keywords"  # the graph of a keyword model


def load_backend(bundle: Bundle, name: str = "onnx") -> Backend:
    """Load the models of a bundle that writes down speech into a runtime.

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


def load_keyword_backend(bundle: Bundle, name: str = "onnx") -> KeywordBackend:
    """Load a bundle's keyword model into a runtime.

    Parameters
    ----------
    bundle : Bundle
        Of a `KeywordModelSpec`.
    name : as `load_backend` takes it

    Raises
    ------
    BackendError
        No such backend, or a bundle of another kind of model.
    """
    spec = bundle.spec
    if not isinstance(spec, KeywordModelSpec):
        raise BackendError(
            f"{bundle.path}: expected a keyword model, got one that writes down speech; "
            "load it with load_backend"
        )
    if name not in BACKENDS:
        raise BackendError(f"expected a backend among {', '.join(BACKENDS)}, got {name!r}")
    if name == "native":
        from .native_keywords import NativeKeywordBackend

        return NativeKeywordBackend(bundle)
    quantised = name != "onnx-float"
    model: Model
    if name == "litert":
        from .litert import load_litert

        model = load_litert(bundle, KEYWORDS)
    else:
        from .onnx import load_onnx

        model = load_onnx(bundle, KEYWORDS, quantised=quantised)
    record = bundle.manifest.graph(KEYWORDS)
    return KeywordStepper(name, spec, record, model, quantised=quantised)


__all__ = ["BACKENDS", "Backend", "KeywordBackend", "load_backend", "load_keyword_backend"]
