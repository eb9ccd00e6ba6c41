"""How each graph is quantised: by which calibration, and in which sums int16 is worth its bytes.

What int8 costs is measured, at the first output of a graph, on what calibration met, with the
states handed on: the power of the difference to float. A sum's own cost is how much that grows if
this sum is int8 and all others are int16. The most expensive ones become int16, the fewest that
meet a signal to noise ratio. Everything is exact integers, so the same audio gives the same choice.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import ExportError
from edge_imputer.quantization import QuantParams

from .calibration import Calibration, Method
from .fidelity import Run, decibels
from .graph import Graph
from .precision import candidates, widened
from .quantize import quantise

Precision = Literal["int8", "mixed"]
SNR_DB = 30.0  # an error of 3 % of the output's size
LEAST_GAIN_DB = 1.0  # for which int16 is used at all
TOLERANCE_DB = 0.5  # below the best that there is, where that does not meet the ratio


@dataclass(frozen=True)
class Quantisation:
    """How to quantise.

    Attributes
    ----------
    calibration : str
        Of ranges, see `Calibration`: "min-max", "percentile" or "mse".
    precision : str
        "int8": all activations. "mixed": int16 in as few sums as `snr_db` takes, in none where int8
        meets it.
    snr_db : float
        Signal to quantisation noise that "mixed" wants at the first output of every graph.
    """

    calibration: Method = "min-max"
    precision: Precision = "int8"
    snr_db: float = SNR_DB

    def __post_init__(self) -> None:
        for value, known in ((self.calibration, Method), (self.precision, Precision)):
            if value not in get_args(known):
                raise ExportError(f"expected one of {', '.join(get_args(known))}, got {value!r}")
        if not 0 < self.snr_db < 100:
            raise ExportError(
                f"expected a signal to noise ratio between 0 and 100 dB, got {self.snr_db}"
            )


@dataclass(frozen=True)
class Choice:
    """Which sums of a graph are int16, and why.

    Attributes
    ----------
    wide : tuple of str
        Their names; none where int8 was asked for or was enough, or int16 is no better.
    int8_snr_db : float or None
        At the first output with all in int8, where there are any.
    alone_db : mapping
        By sum, the ratio that would be left if it were int8 and all the others int16: the lower,
        the more it needs int16.
    """

    wide: tuple[str, ...] = ()
    int8_snr_db: float | None = None
    alone_db: Mapping[str, float] = field(default_factory=dict)


def quantise_calibrated(
    calibration: Calibration,
    options: Quantisation,
    fixed: Mapping[str, QuantParams] | None = None,
) -> tuple[Graph, Choice]:
    """The integer form of a calibrated graph, and how it was chosen.

    Parameters
    ----------
    calibration : Calibration
        That has seen calls of the float graph.
    options : Quantisation
    fixed : as `quantise` takes it

    Raises
    ------
    ExportError
        On what `quantise` refuses.
    """
    trial, none = _Trial(calibration, fixed), Choice()
    if options.precision == "int8":
        return trial.graph(()), none
    int8, sums = trial.snr_db(()), candidates(calibration.graph)
    if not sums or int8 >= options.snr_db:
        return trial.graph(()), none
    best = trial.snr_db(sums)
    if best < int8 + LEAST_GAIN_DB:
        return trial.graph(()), none
    alone = {name: trial.snr_db([n for n in sums if n != name]) for name in sums}
    order = sorted(sums, key=lambda name: alone[name])  # stable: equals in the graph's order
    goal = min(options.snr_db, best - TOLERANCE_DB)
    n_wide = 1 + bisect_left(range(1, len(sums)), goal, key=lambda n: trial.snr_db(order[:n]))
    wide = tuple(name for name in sums if name in order[:n_wide])
    return trial.graph(wide), Choice(wide, int8, alone)


class _Trial:
    """One graph with int16 in any of its sums, on the inputs that calibration kept."""

    def __init__(self, calibration: Calibration, fixed: Mapping[str, QuantParams] | None) -> None:
        self._floats, self._samples = calibration.graph, calibration.samples
        self._ranges, self._fixed = calibration.ranges, fixed
        self._wanted = self._output(self._floats)

    def graph(self, wide: Iterable[str]) -> Graph:
        return quantise(widened(self._floats, wide), self._ranges, self._fixed)

    def snr_db(self, wide: Iterable[str]) -> float:
        error = self._output(self.graph(wide)) - self._wanted
        return decibels(float(np.square(self._wanted).sum()), float(np.square(error).sum()))

    def _output(self, graph: Graph) -> npt.NDArray[np.float64]:
        run, name = Run(graph), graph.outputs[0]
        return np.stack([run(sample, name) for sample in self._samples]).astype(np.float64)
