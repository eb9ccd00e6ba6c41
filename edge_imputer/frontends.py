"""Every front end, by its specification: one table for each form."""

from __future__ import annotations

from typing import Any, Protocol

from .frontend import Float32, LogMel, StreamingLogMel
from .microfrontend import Microfrontend, StreamingMicrofrontend
from .pcen import Pcen, StreamingPcen
from .specs import AnyFeatureSpec, FeatureSpec, MicroSpec, PcenSpec


class FrontEnd(Protocol):
    """Features of a whole waveform."""

    def __call__(self, waveform: Float32) -> Float32:
        """float32 (n,), in -1..1 -> float32 (spec.n_frames(n), n_mels)."""


class StreamingFrontEnd(Protocol):
    """Features of a stream, equal bit for bit to those of the whole."""

    def reset(self) -> None:
        """Start a new stream."""

    def push(self, pcm: Float32) -> Float32:
        """float32 (n,), in -1..1 -> float32 (t, n_mels), what is due; t may be 0."""


FRONT_ENDS: dict[type, Any] = {FeatureSpec: LogMel, PcenSpec: Pcen, MicroSpec: Microfrontend}
STREAMING: dict[type, Any] = {
    FeatureSpec: StreamingLogMel,
    PcenSpec: StreamingPcen,
    MicroSpec: StreamingMicrofrontend,
}


def frontend_of(spec: AnyFeatureSpec) -> FrontEnd:
    """The front end of a specification."""
    made: FrontEnd = FRONT_ENDS[type(spec)](spec)
    return made


def streaming_frontend_of(spec: AnyFeatureSpec) -> StreamingFrontEnd:
    """The front end of a specification, for a stream.

    What frames of a recording's end reach beyond it, ``spec.padding[1]`` zeros, is the caller's to
    push.
    """
    made: StreamingFrontEnd = STREAMING[type(spec)](spec)
    return made
