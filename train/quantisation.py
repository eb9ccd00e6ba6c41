"""What training knows of quantisation: its settings, the ranges it works by, what a quantiser does.

Graphs and integers are the exporter's, which training does not import: whoever starts a run hands
its `Quantiser` in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

from edge_imputer.errors import SpecError
from edge_imputer.frontend import Float32
from edge_imputer.specs.base import Spec

if TYPE_CHECKING:
    from .tasks import Task

CalibrationMethod = Literal["min-max", "percentile", "mse"]
Ranges = Mapping[str, Mapping[str, tuple[float, float]]]
"""Minimum and maximum of every activation, by graph and activation; frozen once they are known."""


class QuantisationSection(Spec, frozen=True, kw_only=True):
    """The end of a run, in which the forward pass is the exported int8 graph.

    Attributes
    ----------
    updates : int
        The last so many updates are quantisation aware; 0: none. They are a training of its own
        with respect to the learning rate: it rises and falls anew, as the optimiser's does before
        over the other updates.
    learning_rate : float
        At its highest there, as a share of ``optimizer.learning_rate``.
    calibration_clips : int
        Training utterances whose activations give the ranges, once, before the first such update.
    calibration : str
        Which range of an activation's values is covered: all (``min-max``), without the outermost
        (``percentile``), or that of the least mean square error (``mse``).
    """

    updates: int = 0
    learning_rate: float = 0.1
    calibration_clips: int = 96
    calibration: CalibrationMethod = "min-max"

    def check(self) -> None:
        """Raise `SpecError` on values that cannot be."""
        for name, least in {"updates": 0, "calibration_clips": 1}.items():
            if getattr(self, name) < least:
                raise SpecError(
                    f"quantisation.{name}: expected {least} or more, got {getattr(self, name)}"
                )
        if not 0 < self.learning_rate <= 10:
            raise SpecError(
                "quantisation.learning_rate: expected a share of the optimiser's above 0 and at "
                f"most 10, got {self.learning_rate}"
            )


class Quantiser(Protocol):
    """Makes the exported integers of a task's model something to train."""

    def ranges(self, task: Task, waveforms: Iterable[Float32], method: CalibrationMethod) -> Ranges:
        """Ranges of what the float model meets in audio at its sample rate."""
        ...

    def quantised(self, task: Task, ranges: Ranges) -> Task:
        """The same task with the exported integers as its forward pass.

        It has no weights of its own: its losses are functions of those of `task`, as they are when
        it is called. It validates what it trains.
        """
        ...
