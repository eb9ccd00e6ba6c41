"""Every front end, by its specification: one table."""

from __future__ import annotations

from typing import Any, Protocol

from .frontend import Float32, LogMel
from .microfrontend import Microfrontend
from .pcen import Pcen
from .specs import AnyFeatureSpec, FeatureSpec, MicroSpec, PcenSpec


class FrontEnd(Protocol):
    """Features of a whole waveform."""

    def __call__(self, waveform: Float32) -> Float32:
        """float32 (n,), in -1..1 -> float32 (spec.n_frames(n), n_mels)."""


FRONT_ENDS: dict[type, Any] = {FeatureSpec: LogMel, PcenSpec: Pcen, MicroSpec: Microfrontend}


def frontend_of(spec: AnyFeatureSpec) -> FrontEnd:
    """The front end of a specification."""
    made: FrontEnd = FRONT_ENDS[type(spec)](spec)
    return made
