"""What every encoder is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

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
    receptive_field : int or None
        Feature frames that one encoder frame depends on at most; None: all since the start.
    """

    spec: Any
    n_mels: int
    d_model: int
    subsampling: int
    receptive_field: int | None = None

    @property
    def step_features(self) -> int:
        """Feature frames of the shortest step; longer ones are multiples of it."""
        step: int = self.spec.step_features
        return step

    def _check_features(self, x: Tensor, *, multiple_of: int = 1) -> None:
        """Refuse what is not (B, T, n_mels), T a multiple."""
        if x.dim() != 3 or x.shape[2] != self.n_mels or x.shape[1] % multiple_of:
            whole = f" with T a multiple of {multiple_of}" if multiple_of > 1 else ""
            raise ValueError(
                f"expected features (B, T, {self.n_mels}){whole}, got {tuple(x.shape)}"
            )
