"""Encoders: feature frames in, encoder frames out. One table from spec to class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edge_imputer.specs import (
    ConformerSpec,
    CrnnSpec,
    FrameSpec,
    TcnSpec,
    WindowedCnnSpec,
    WindowedCrnnSpec,
)

from .base import Encoder
from .cnn_windowed import WindowedCnnEncoder
from .conformer import ConformerEncoder
from .crnn import CrnnEncoder
from .crnn_windowed import WindowedCrnnEncoder
from .tcn import TcnEncoder
from .windowed import WindowedEncoder

__all__ = [
    "ENCODERS",
    "ConformerEncoder",
    "CrnnEncoder",
    "Encoder",
    "TcnEncoder",
    "WindowedCnnEncoder",
    "WindowedCrnnEncoder",
    "WindowedEncoder",
    "build_encoder",
]

ENCODERS: dict[type, Callable[[Any, Any], Encoder]] = {
    CrnnSpec: CrnnEncoder,
    TcnSpec: TcnEncoder,
    ConformerSpec: ConformerEncoder,
    WindowedCrnnSpec: WindowedCrnnEncoder,
    WindowedCnnSpec: WindowedCnnEncoder,
}


def build_encoder(spec: Any, features: FrameSpec) -> Encoder:
    """The encoder of a specification, with untrained weights.

    Parameters
    ----------
    spec : one of the specs in `ENCODERS`
    features : FrameSpec
        What it is fed.

    Raises
    ------
    SpecError
        If the specification contradicts itself.
    """
    spec.check()
    features.check()
    return ENCODERS[type(spec)](spec, features)
