"""The end of a run in which the forward pass is the exported int8 graph, if a recipe wants it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
import numpy as np

from edge_imputer.errors import SpecError
from edge_imputer.frontend import Float32
from edge_imputer.specs import AnyModelSpec, ModelSpec

from ..data import joined_sequences
from ..quantisation import Quantiser, Ranges
from ..recipe import Recipe
from ..tasks import Task
from .optimization import rate_factor
from .sources import Material

log = logging.getLogger(__name__)


class QuantisedEnd:
    """The quantisation aware updates of a run: when they are, their ranges, their task.

    Parameters
    ----------
    recipe : Recipe
        With ``quantisation.updates``.
    quantiser : Quantiser
    waveforms : callable
        The audio that gives the ranges; called once they are needed.

    Attributes
    ----------
    ranges : Ranges or None
        None until the end has begun, but where the first weights come with theirs.
    """

    def __init__(
        self, recipe: Recipe, quantiser: Quantiser, waveforms: Callable[[], list[Float32]]
    ) -> None:
        self._recipe, self._quantiser, self._waveforms = recipe, quantiser, waveforms
        self.ranges: Ranges | None = None
        self._task: tuple[Task] | None = None

    def includes(self, update: int) -> bool:
        """Whether the update after so many belongs to it."""
        return update >= self._recipe.float_updates

    def begin(self, task: Task) -> bool:
        """Make the quantised task of a task; True if its ranges had to be calibrated first."""
        if self._task is not None:
            return False
        fresh = self.ranges is None
        if self.ranges is None:
            section = self._recipe.quantisation
            training = task.training
            self.ranges = self._quantiser.ranges(
                task.eval(), self._waveforms(), section.calibration
            )
            task.train(training)
        self._task = (self._quantiser.quantised(task, self.ranges),)
        return fresh

    @property
    def task(self) -> Task | None:
        """The quantised task; None until the end has begun."""
        return self._task[0] if self._task is not None else None


def make_end(
    recipe: Recipe, quantiser: Quantiser | None, material: Material, spec: AnyModelSpec
) -> QuantisedEnd | None:
    """The quantisation aware end of a recipe's run; None where it has none.

    Raises
    ------
    SpecError
        The recipe has one, and there is no quantiser.
    """
    if not recipe.quantisation.updates:
        return None
    if quantiser is None:
        raise SpecError(
            "quantisation.updates: training in the exported integers needs a quantiser; give "
            "train(..., quantiser=edge_imputer.export.qat.ExportQuantiser()), or set it to 0"
        )
    return QuantisedEnd(recipe, quantiser, lambda: calibration_audio(material, recipe, spec))


def calibration_audio(material: Material, recipe: Recipe, spec: AnyModelSpec) -> list[Float32]:
    """Training audio, chosen by the recipe's seed: clips, joined to sequences for speech."""
    n, seed = recipe.quantisation.calibration_clips, recipe.run.seed
    rows = np.random.default_rng(seed).permutation(len(material))[:n]
    clips = material.where(np.sort(rows)).clips()
    if isinstance(spec, ModelSpec):
        rate = spec.features.sample_rate
        clips = joined_sequences(clips, n, sample_rate=rate, seed=seed, length=(1, 4))
    return [clip.waveform for clip in clips]


def learning_rate(recipe: Recipe, update: int) -> float:
    """Of the update after so many: of the float ones, or of the quantisation aware ones."""
    optimizer, n = recipe.optimizer, recipe.float_updates
    if update < n:
        return optimizer.learning_rate * rate_factor(optimizer, update, n)
    section = recipe.quantisation
    highest = section.learning_rate * optimizer.learning_rate
    by_share = msgspec.structs.replace(optimizer, warmup_updates=0)  # a count is of the whole run
    return highest * rate_factor(by_share, update - n, section.updates)
