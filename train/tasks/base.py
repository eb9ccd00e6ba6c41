"""What every task is: a model, and what it learns from a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from edge_imputer.specs import KeywordModelSpec, ModelSpec

from ..data import Batch
from .settings import TaskSpec


class Task(nn.Module, ABC):
    """A model with its losses and measures, without anything of the trainer.

    Losses are per utterance, so that the trainer can average over the whole update, whichever
    process and micro-batch an utterance came in; and what is drawn for an utterance in `losses`
    (masks, dropout of the task's own) comes from ``batch.seeds`` alone. Dropout inside an encoder
    is torch's, from the global generator.

    Attributes
    ----------
    spec : ModelSpec or KeywordModelSpec
        The model.
    settings : TaskSpec
        How it is trained.
    monitor : tuple of str and str
        A name of `summarise`, and "min" or "max": which of two models validation prefers.
    """

    spec: ModelSpec | KeywordModelSpec
    settings: TaskSpec
    monitor: tuple[str, str]

    @abstractmethod
    def losses(self, batch: Batch, update: int, progress: float) -> dict[str, Tensor]:
        """Losses of every utterance of a batch.

        Parameters
        ----------
        batch : Batch
        update : int
            Updates that were made before.
        progress : float
            ``update`` divided by the number of updates planned, from 0 to below 1.

        Returns
        -------
        dict of str to Tensor (B,)
            "loss": what is trained, the weighted sum of the others, which are without gradient.
        """

    @abstractmethod
    def validate(self, batch: Batch) -> dict[str, tuple[float, float]]:
        """Measures of a batch, each a numerator and a denominator: both are summed, see above."""

    def clipped_groups(self) -> list[list[nn.Parameter]]:
        """Weights whose gradients are clipped by one norm: all, unless their losses are apart."""
        return [list(self.parameters())]

    def summarise(self, sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """Measures of all validation batches, from the sums of what `validate` gave.

        What nothing was counted for is left out.
        """
        return {name: above / below for name, (above, below) in sums.items() if below}
