"""A training recipe: everything that can be set of a run, typed, in sections.

Read by `read_recipe`; a recipe is a TOML file, shipped ones lie in ``recipes/``. The defaults are
the digits recipe's, the demo's: small data, a few minutes on two cores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Union

import msgspec

from edge_imputer.errors import SpecError
from edge_imputer.specs import AnyEncoderSpec, AnyFeatureSpec, ConformerSpec, CrnnSpec, FeatureSpec
from edge_imputer.specs.base import Spec

from .data import AugmentSpec
from .quantisation import QuantisationSection
from .recipe_reader import apply_override, convert, read_tables, recipe_path, with_presets
from .tasks.settings import ImputerTaskSpec, TaskSpec

# Of sections that do not say their kind: as the defaults of `Recipe` are.
KINDS = {"features": "log-mel", "encoder": "crnn", "task": "imputer", "batches": "drawn"}

Precision = Literal["auto", "32", "bf16", "fp16"]
Result = Literal["last", "best", "average-last", "average-best"]


class DataSection(Spec, frozen=True, kw_only=True):
    """What is trained on.

    Attributes
    ----------
    folder : str
        A corpus folder; relative ones are looked up below ``$EDGE_IMPUTER_DATA`` too. ``digits``:
        the shipped digits. Empty: to be given by ``--data``, which goes before it in any case.
    hold_out : str or None
        A speaker to leave out of training.
    characters : str
        What transcripts may hold besides the space; empty: whatever the training transcripts hold.
        An utterance with another character is named and left out.
    valid_joined : pair of int
        Fewest and most clips that are joined to a validation utterance; 1, 1: clips as they are.
    valid_utterances : int
        Most validation utterances; 0: all clips there are. Needed where clips are joined.
    workers : int
        Processes that load and augment, for every training process.
    cache : str or None
        A folder to keep decoded audio in, for corpora that are slow to decode.
    noises : str or None
        A folder of recorded noises, besides the corpus' own, for ``augment.noise_files``.
    rooms : str or None
        A folder of recorded room responses, for ``augment.room_files``.
    """

    folder: str = "digits"
    hold_out: str | None = None
    characters: str = ""
    valid_joined: tuple[int, int] = (3, 7)
    valid_utterances: int = 64
    workers: int = 1
    cache: str | None = None
    noises: str | None = None
    rooms: str | None = None

    def check(self) -> None:
        """Raise `SpecError` on values that cannot be."""
        low, high = self.valid_joined
        if not 1 <= low <= high or (high > 1 and self.valid_utterances < 1):
            raise SpecError(
                "data: expected 1 <= fewest <= most in valid_joined, and valid_utterances >= 1 "
                f"where clips are joined, got {self.valid_joined} and {self.valid_utterances}"
            )
        _at_least("data", 0, valid_utterances=self.valid_utterances, workers=self.workers)


class DrawnBatches(Spec, frozen=True, kw_only=True, tag="drawn", tag_field="kind"):
    """Utterances drawn at random, with replacement, and made of several clips: for small corpora.

    Attributes
    ----------
    size : int
        Utterances an update, over all processes and accumulated micro-batches.
    shares : dict of str to float
        Share of the utterances by label (keyword tasks); a word's label, or ``_unknown_``,
        ``_silence_``, ``_near_miss_``. Labels not named share what is left evenly. In a task that
        writes down speech only ``_hard_`` can have one, see ``task.keywords``.
    utterance_s : float
        Length of a keyword task's utterances, in seconds; 0: one window of a network over windows,
        else as long as the clips are. Longer than a window, they also show it parts of words.
    """

    size: int = 16
    utterance_s: float = 0.0
    shares: dict[str, float] = msgspec.field(default_factory=dict)

    def check(self) -> None:
        """Raise `SpecError` on values that cannot be."""
        _at_least("batches", 1, size=self.size)
        _at_least("batches", 0, utterance_s=self.utterance_s)
        if any(not 0 <= share <= 1 for share in self.shares.values()) or (
            sum(self.shares.values()) > 1 + 1e-9
        ):
            raise SpecError(f"batches.shares: expected a sum of 1 or less, got {self.shares}")


class BucketedBatches(Spec, frozen=True, kw_only=True, tag="bucketed", tag_field="kind"):
    """Every clip once an epoch, those of about one length together, under a budget of frames.

    Attributes
    ----------
    frames : int
        Feature frames an update, padding included, over all processes and micro-batches.
    least, largest : int
        Fewest and most utterances an update. There cannot be more micro-batches (processes times
        `run.accumulate`) than `least`, nor an utterance longer than `frames` by `least`; for any
        number up to it the updates are the same.
    """

    frames: int = 60_000
    least: int = 8
    largest: int = 256

    def check(self) -> None:
        """Raise `SpecError` on values that cannot be."""
        _at_least("batches", 1, frames=self.frames, least=self.least)
        _at_least("batches", self.least, largest=self.largest)


BatchesSection = Union[DrawnBatches, BucketedBatches]  # noqa: UP007 (msgspec reads it on 3.10)


class OptimizerSection(Spec, frozen=True, kw_only=True):
    """Optimiser and the schedule of its learning rate.

    Attributes
    ----------
    kind : str
    learning_rate : float
        At its highest.
    betas, epsilon : of Adam; ``sgd`` takes the first beta as its momentum
    weight_decay : float
    gradient_clip : float
        Largest norm of an update's gradient; 0: any.
    schedule : str
        After the warm-up: ``cosine`` or ``linear`` down to `floor` times the rate, ``noam``
        (inverse square root), ``steps``, ``constant``.
    warmup : float
        Share of the updates over which the rate rises.
    warmup_updates : int
        The same in updates; goes before `warmup` where it is not 0.
    floor : float
        Last rate over the highest.
    steps : tuple of pairs
        (share of the updates, factor of the rate from there), for ``steps``.
    """

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 4e-3
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    gradient_clip: float = 1.0
    schedule: Literal["cosine", "linear", "noam", "steps", "constant"] = "cosine"
    warmup: float = 0.05
    warmup_updates: int = 0
    floor: float = 0.01
    steps: tuple[tuple[float, float], ...] = ()

    def check(self) -> None:
        """Raise `SpecError` on values that cannot train."""
        for name in ("learning_rate", "epsilon"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise SpecError(f"optimizer.{name}: expected one above 0, and finite, got {value}")
        _at_least(
            "optimizer",
            0,
            weight_decay=self.weight_decay,
            gradient_clip=self.gradient_clip,
            warmup_updates=self.warmup_updates,
        )
        shares = {"warmup": self.warmup, "betas.0": self.betas[0], "betas.1": self.betas[1]}
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise SpecError(f"optimizer.{name}: expected 0 or more and below 1, got {share}")
        if not 0 <= self.floor <= 1:
            raise SpecError(f"optimizer.floor: expected 0 to 1, got {self.floor}")
        if any(not (0 <= share < 1 and 0 < factor < math.inf) for share, factor in self.steps):
            raise SpecError(
                "optimizer.steps: expected pairs of a share of the updates and a factor above 0, "
                f"got {self.steps}"
            )
        if bool(self.steps) != (self.schedule == "steps"):
            raise SpecError(
                "optimizer.steps: expected pairs where the schedule is steps and only there, got "
                f"{self.steps} and {self.schedule!r}"
            )


class RunSection(Spec, frozen=True, kw_only=True):
    """How long, in which numbers, and what is kept.

    Attributes
    ----------
    updates : int
        Steps of the optimiser.
    seed : int
    precision : str
        ``auto``: bf16 on a GPU, 32 elsewhere. ``fp16`` scales the loss, on a GPU only.
    accumulate : int
        Micro-batches that a process splits its part of an update into: less memory, same update.
    ema : float
        Decay of the moving average of the weights, which is validated and kept; 0: none.
    valid_every : int
        Updates between two looks at the validation split.
    checkpoint_every : int
        Updates between two checkpoints; 0: as `valid_every`.
    log_every : int
        Updates a row of ``train.csv`` is the mean of.
    monitor : str
        Measure that chooses the best checkpoint and stops early, such as ``-wer`` (a minus where
        less is better); empty: the task's own.
    patience : int
        Looks at the validation split without a better `monitor` after which the run stops; 0: none.
    result : str
        What the run gives: its ``last`` weights, the ``best``, or the mean of the `average` last or
        best ones (``average-last``, ``average-best``).
    average : int
    max_bad_updates : int
        Updates in a row whose loss or gradient is not finite, and which are skipped, before the run
        ends.
    """

    updates: int = 3600
    seed: int = 1
    precision: Precision = "auto"
    accumulate: int = 1
    ema: float = 0.0
    valid_every: int = 400
    checkpoint_every: int = 0
    log_every: int = 10
    monitor: str = ""
    patience: int = 0
    result: Result = "last"
    average: int = 5
    max_bad_updates: int = 10

    @property
    def checkpoint_interval(self) -> int:
        """Updates between two checkpoints."""
        return self.checkpoint_every or self.valid_every

    def check(self) -> None:
        """Raise `SpecError` on values that cannot be."""
        _at_least(
            "run",
            1,
            updates=self.updates,
            accumulate=self.accumulate,
            valid_every=self.valid_every,
            log_every=self.log_every,
            average=self.average,
            max_bad_updates=self.max_bad_updates,
        )
        _at_least(
            "run", 0, seed=self.seed, checkpoint_every=self.checkpoint_every, patience=self.patience
        )
        if not 0 <= self.ema < 1:
            raise SpecError(f"run.ema: expected a decay from 0 to below 1, got {self.ema}")


class Recipe(Spec, frozen=True, kw_only=True):
    """How to train: see the sections."""

    description: str = ""
    data: DataSection = DataSection()
    features: AnyFeatureSpec = FeatureSpec()
    encoder: AnyEncoderSpec = CrnnSpec()
    task: TaskSpec = ImputerTaskSpec()
    augment: AugmentSpec = AugmentSpec()
    batches: BatchesSection = DrawnBatches()
    optimizer: OptimizerSection = OptimizerSection()
    run: RunSection = RunSection()
    quantisation: QuantisationSection = QuantisationSection()

    @property
    def float_updates(self) -> int:
        """Updates before those that are quantisation aware."""
        return self.run.updates - self.quantisation.updates

    def check(self) -> None:
        """Raise `SpecError` on values that cannot train; what the data decides is checked later."""
        for name in self.__struct_fields__[1:]:
            section = getattr(self, name)
            if isinstance(section, ConformerSpec) and section.intermediate_ctc:
                section = msgspec.structs.replace(section, n_tokens=2)  # as many as the data has
            try:
                section.check()
            except SpecError as error:
                text = str(error)
                raise SpecError(text if text.startswith(name) else f"{name}: {text}") from error
        if self.float_updates < 0:
            raise SpecError(
                f"quantisation.updates: expected at most run.updates, {self.run.updates}, got "
                f"{self.quantisation.updates}"
            )
        if self.quantisation.updates and self.float_updates and self.run.patience:
            raise SpecError(
                "quantisation.updates: a run that stops early (run.patience) may not come to them; "
                "train without, then go on with --init-from and as many run.updates"
            )


def read_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from a TOML file, or a shipped one by name, with what ``--set`` changes.

    Parameters
    ----------
    name : a file's path, or a name of `shipped_recipes`
    overrides : ``section.key=value``, the value in TOML or a string without quotes

    Raises
    ------
    SpecError
        Where there is no such recipe, a key is not known, or a value is of a wrong type or cannot
        train: with the key's full path, what was expected and what came.
    """
    path = recipe_path(str(name))
    return make_recipe(read_tables(path), overrides, source=str(path))


def make_recipe(
    tables: dict[str, Any], overrides: Iterable[str] = (), *, source: str = "recipe"
) -> Recipe:
    """A recipe from a TOML file's tables, see `read_recipe`."""
    recipe = _converted(tables, source)
    overrides = list(overrides)
    if overrides:
        tables = msgspec.to_builtins(recipe)
        tables = msgspec.json.decode(msgspec.json.encode(tables))  # lists, which can be changed
        for setting in overrides:
            apply_override(tables, setting)
        recipe = _converted(tables, source)
    try:
        recipe.check()
    except SpecError as error:
        raise SpecError(f"{source}: {error}") from error
    return recipe


def _converted(tables: dict[str, Any], source: str) -> Recipe:
    tables = with_presets(tables)
    for section, kind in KINDS.items():
        if isinstance(tables.get(section), dict):
            tables = {**tables, section: {"kind": kind, **tables[section]}}
    return convert(tables, Recipe, source)


def _at_least(section: str, least: int, /, **values: float) -> None:
    for name, value in values.items():
        if not least <= value < math.inf:
            finite = ", and finite" if math.isinf(value) else ""
            raise SpecError(f"{section}.{name}: expected {least} or more{finite}, got {value}")
