"""What every streaming layer is.

A layer is written once and used in two ways: `forward` on whole utterances in training, `step` on
whatever arrives at a time on a device. For every partition of an utterance the steps' outputs,
followed by that of `finish` where something was held back, are those of `forward`; and a clip in a
padded batch has the outputs of the clip alone. Tests hold every layer to both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

State = tuple[Tensor, ...]


class StreamingLayer(nn.Module, ABC):
    """Frames in, frames out: (B, T, D) -> (B, T', D')."""

    @abstractmethod
    def initial_state(self, batch: int = 1) -> State:
        """The state before the first frame: tensors, the batch's dimension stated by each layer."""

    @abstractmethod
    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by a chunk, (B, t, D): its outputs (B, t', D'), and the next state."""

    @abstractmethod
    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Whole utterances of `lengths` (B,) frames: outputs (B, T', D') and their lengths (B,)."""
