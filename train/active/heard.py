"""What one pass of a model tells of a batch, whatever is scored then."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..objective.reduction import clamp_to_alignment
from .gradients import deep_lengths, layer_gradients, lengths_of
from .options import ScoreOptions

How = Literal["likeliest", "drawn", "best"]
"""Which of an utterance's labels count: the most probable, random ones, or what is heard."""


@dataclass(frozen=True)
class Readout:
    """An output layer over a batch.

    Attributes
    ----------
    logits : (B, T, V)
        With the graph that made them, where gradients are on.
    inputs : (B, T, D)
        What the layer read.
    log_probs : (B, T, V)
        Log-softmax of the logits; certain where a frame was filled in: 0 at its token, else -inf.
    n_frames : (B,)
        Each utterance's own; what follows is of its padding.
    finite : bool, (B,)
        Whether all that is an utterance's own is. Of others, and of padding, all is 0.
    """

    logits: Tensor
    inputs: Tensor
    log_probs: Tensor
    n_frames: Tensor

    finite: Tensor

    @staticmethod
    def of(
        logits: Tensor, inputs: Tensor, n_frames: Tensor, filled: Tensor | None = None
    ) -> Readout:
        """What a layer gave for what it read; `filled`, (B, T), is `MASK` in open frames."""
        inside = torch.arange(logits.shape[1], device=logits.device) < n_frames[:, None]
        good = (logits.isfinite().all(-1) & inputs.isfinite().all(-1)) | ~inside
        finite = good.all(1)
        usable = (inside & finite[:, None])[..., None]
        logits, inputs = logits.where(usable, 0.0), inputs.where(usable, 0.0)
        log_probs = logits.detach().log_softmax(-1)
        if filled is not None:
            log_probs = clamp_to_alignment(log_probs, filled)
        return Readout(logits, inputs.detach(), log_probs, n_frames, finite)


@dataclass(frozen=True)
class Hypotheses:
    """Labels that an utterance may have, and what the model would learn from each.

    Attributes
    ----------
    readout : Readout
    weights : (N, B)
        What each counts.
    delta : (N, B, T, V)
        Gradients of -log p(label) with respect to the readout's logits.
    """

    readout: Readout
    weights: Tensor
    delta: Tensor

    def gradients(self) -> Tensor:
        """Of the output layer, (N, B, V, D + 1); see `layer_gradients`."""
        return layer_gradients(self.delta, self.readout.inputs)

    def expected_length(self, parameters: tuple[nn.Parameter, ...], *, squared: bool) -> Tensor:
        """Expected length of the gradient, (B,); of the output layer's where no other is given."""
        if parameters:
            lengths = deep_lengths(self.readout.logits, self.delta, parameters, squared=squared)
            lengths = lengths[:, None]
        else:
            lengths = lengths_of(self.gradients(), squared=squared)
        # A labeling that cannot be weighs nothing, whatever its length; a weight of NaN stays one.
        return (self.weights * lengths).where(self.weights != 0, 0.0).sum(0)


class Heard(ABC):
    """One pass of a model over a batch.

    Attributes
    ----------
    options : ScoreOptions
    first : Readout
        What is heard.
    """

    options: ScoreOptions
    first: Readout

    @abstractmethod
    def texts(self) -> list[str]:
        """What is heard in each utterance."""

    @abstractmethod
    def doubt(self) -> tuple[Tensor, Tensor]:
        """Least confidence of each utterance, and the confidence it is made of: (B,), (B,)."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """In nats, (B,)."""

    @abstractmethod
    def hypotheses(self, how: How) -> list[Hypotheses]:
        """Labels and their gradients, for every readout of the loss, over which one averages."""

    @abstractmethod
    def bound(self) -> Tensor:
        """An upper bound of the expected gradient length, (B,)."""


@contextmanager
def recorded_inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What a layer reads while this is open, call by call."""
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
    try:
        yield inputs
    finally:
        handle.remove()
