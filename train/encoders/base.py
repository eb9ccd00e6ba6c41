"""What every encoder is."""

from __future__ import annotations

from typing import Any

from ..layers.base import StreamingLayer


class Encoder(StreamingLayer):
    """Feature frames (B, T, n_mels) in, encoder frames (B, T', d_model) out.

    Built from its specification and that of the features. Encoder frame u belongs to the feature
    frames from ``u * subsampling`` on.

    Attributes
    ----------
    spec : Spec
        What it was built from.
    n_mels : int
        Width of a feature frame.
    d_model : int
        Width of an encoder frame.
    subsampling : int
        Feature frames per encoder frame.
    step_frames : int
        Feature frames of the shortest step; longer ones are multiples of it.
    receptive_field : int or None
        Feature frames that one encoder frame depends on at most; None: all since the start.
    """

    spec: Any
    n_mels: int
    d_model: int
    subsampling: int
    step_frames: int
    receptive_field: int | None = None
