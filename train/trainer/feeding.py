"""From a recipe and clips to the model's spec, a plan of updates, and batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from lightning.fabric import Fabric

from edge_imputer.errors import DataError, SpecError
from edge_imputer.specs import AnyModelSpec, ConformerSpec, FeatureSpec, KeywordModelSpec, ModelSpec
from edge_imputer.tokens import token_spec_of

from ..data import (
    Batch,
    BucketedPlan,
    Clip,
    DrawnPlan,
    Featurizer,
    KeywordPlan,
    Plan,
    feature_statistics,
    frame_counts,
    loader,
)
from ..data.loader import MicroBatches
from ..data.plan import UNKNOWN_CLASS
from ..data.records import HARD_LABEL, SILENCE_LABEL
from ..recipe import BucketedBatches, DrawnBatches, Recipe
from ..tasks import KeywordTaskSpec
from .initial import Initial
from .sources import (
    Material,
    characters_of,
    hard_rows,
    labelled,
    usable_speech,
    validation_clips,
)
from .surroundings import make_augmenter

log = logging.getLogger(__name__)

SILENT_STD = 0.01  # nats; the log-mel of any speech varies by more


@dataclass(frozen=True)
class Feed:
    """What the loop reads."""

    spec: AnyModelSpec
    train: Material  # the clips that the task can use
    featurizer: Featurizer
    batches: Callable[..., Iterable[Batch]]  # (start=update): this process's micro-batches
    valid: list[Clip]
    valid_batch_size: int


def make_feed(
    train: Material,
    valid: Material | None,
    recipe: Recipe,
    fabric: Fabric,
    initial: Initial | None,
    out: Path,
) -> Feed:
    """Everything that a run reads. A model to go on from decides features and outputs.

    Raises
    ------
    DataError
        No clip that the task can use; silence only.
    """
    if not len(train):
        raise DataError("expected at least one training clip, got none")
    augmenter = make_augmenter(train, recipe, out)
    speech = not isinstance(recipe.task, KeywordTaskSpec)
    if not speech:
        train = labelled(train)
        valid = valid and _any_labelled(valid)
    spec = _spec(train, recipe, initial)
    if isinstance(spec.encoder, ConformerSpec) and not spec.encoder.attention.streams:
        log.warning("the model cannot stream: it is for whole recordings, and is not exported")
    featurizer = Featurizer(spec)
    if speech:
        fastest = max(recipe.augment.speeds)
        hard = bool(recipe.task.keywords)
        train = usable_speech(train, featurizer, fastest=fastest, split="training", hard=hard)
        valid = valid and _any_usable(valid, featurizer)
    plan = make_plan(train, recipe, spec, featurizer, fabric.world_size * recipe.run.accumulate)
    if initial is None and _unmeasured(spec.features):
        mean, std = feature_statistics(plan, train.source, augmenter, featurizer)
        spec = _with_statistics(spec, mean, std)
        featurizer = Featurizer(spec)

    def batches(start: int) -> Iterable[Batch]:
        feeding = loader(
            plan,
            train.source,
            augmenter,
            featurizer,
            rank=fabric.global_rank,
            world=fabric.world_size,
            accumulate=recipe.run.accumulate,
            start=start,
            stop=recipe.run.updates,
            workers=recipe.data.workers,
            pin_memory=fabric.device.type == "cuda",
        )
        cast("MicroBatches", feeding.dataset).batch(
            start
        )  # what is wrong with the data is said here, not by a worker
        return feeding

    clips = []
    if valid is not None:
        clips = validation_clips(valid, featurizer, recipe.data, seed=recipe.run.seed)
    size = recipe.batches.size if isinstance(recipe.batches, DrawnBatches) else 32
    return Feed(spec, train, featurizer, batches, clips, min(size, 64))


def _any_usable(valid: Material, featurizer: Featurizer) -> Material | None:
    """The validation clips that can be used; None where there are none, which is said."""
    try:
        return usable_speech(valid, featurizer, fastest=1.0, split="validation")
    except DataError as error:
        log.warning("nothing is validated on: %s", error)
        return None


def _any_labelled(valid: Material) -> Material | None:
    try:
        return labelled(valid)
    except DataError as error:
        log.warning("nothing is validated on: %s", error)
        return None


def _spec(train: Material, recipe: Recipe, initial: Initial | None) -> AnyModelSpec:
    """The model's spec. Tokens or keywords are those of the model that it begins from."""
    features: Any = recipe.features
    if initial is not None and type(initial.spec.features) is type(features):
        features = initial.spec.features
    if isinstance(recipe.task, KeywordTaskSpec):
        words: tuple[str, ...] | None = None
        if initial is not None and isinstance(initial.spec, KeywordModelSpec):
            words = initial.spec.keywords
        elif not recipe.task.keywords:
            labels = (label for label in train.column("label")[0] if label is not None)
            words = tuple(sorted(label for label in labels if not label.startswith("_")))
        return recipe.task.make_spec(features, recipe.encoder, words)
    if initial is not None and isinstance(initial.spec, ModelSpec):
        tokens = initial.spec.tokens
    else:
        tokens = token_spec_of([" ", recipe.data.characters or characters_of(train)])
    return recipe.task.make_spec(features, recipe.encoder, tokens)


def _unmeasured(features: Any) -> bool:
    """Whether mean and deviation are to be measured: a recipe that gives them decides."""
    return isinstance(features, FeatureSpec) and (features.mean, features.std) == (0.0, 1.0)


def _with_statistics(spec: AnyModelSpec, mean: float, std: float) -> AnyModelSpec:
    """Set mean and standard deviation of the log-mel to the training audio's."""
    if not std > SILENT_STD:
        raise DataError(
            f"expected training audio, got silence: its log-mel varies by {std:.2g} nats only"
        )
    features = msgspec.structs.replace(spec.features, mean=round(mean, 4), std=round(std, 4))
    return msgspec.structs.replace(spec, features=features)


def make_plan(
    train: Material, recipe: Recipe, spec: AnyModelSpec, featurizer: Featurizer, shares: int
) -> Plan:
    """Which utterances every update is made of; it is dealt to `shares` micro-batches."""
    run, batches = recipe.run, recipe.batches
    n_ramp = round(recipe.augment.ramp * run.updates)
    if isinstance(batches, BucketedBatches):
        return _bucketed(train, recipe, spec, featurizer, shares, n_ramp)
    if isinstance(spec, KeywordModelSpec):
        labels, codes = train.column("label")
        classes = {str(label): spec.class_of(label) for label in labels if label is not None}
        classes.setdefault(SILENCE_LABEL, spec.class_of(SILENCE_LABEL))
        return KeywordPlan(
            train.durations,
            labels,
            codes,
            classes,
            shares=batches.shares,
            batch_size=batches.size,
            seed=run.seed,
            window_s=_utterance_s(spec, batches.utterance_s),
            n_ramp=n_ramp,
        )
    if others := sorted(set(batches.shares) - {HARD_LABEL}):
        raise SpecError(
            f"batches.shares: expected {HARD_LABEL} alone with a task that writes down speech, got "
            f"{', '.join(others)}; labels are drawn by shares in a keyword task"
        )
    hard_share = batches.shares.get(HARD_LABEL)
    hard = hard_rows(train) if recipe.task.keywords else None  # else none is among them
    if hard_share and (hard is None or not hard.any()):
        log.warning("no clip is labelled %s, or task.keywords names none; no share", HARD_LABEL)
    _, speakers = train.column("speaker")
    return DrawnPlan(
        train.durations,
        speakers,
        recipe.augment,
        batch_size=batches.size,
        seed=run.seed,
        n_isolated=round(getattr(recipe.task, "flat_start", 0.0) * run.updates),
        n_ramp=n_ramp,
        hard=hard,
        hard_share=hard_share,
    )


def _bucketed(
    train: Material,
    recipe: Recipe,
    spec: AnyModelSpec,
    featurizer: Featurizer,
    shares: int,
    n_ramp: int,
) -> Plan:
    assert isinstance(recipe.batches, BucketedBatches)
    if shares > recipe.batches.least:
        raise SpecError(
            f"batches.least: expected at least {shares}, the processes times run.accumulate, got "
            f"{recipe.batches.least}"
        )
    rate = spec.features.sample_rate
    classes = None
    window_s = None
    if isinstance(spec, KeywordModelSpec):
        labels, codes = train.column("label")
        classes = np.array([spec.class_of(label) for label in labels])[codes]
        window_s = _window_s(spec)
    elif recipe.task.keywords:  # else no hard negative is among them
        classes = np.where(hard_rows(train), np.int32(UNKNOWN_CLASS), np.int32(-1))
    if window_s is None:
        n_frames = frame_counts(recipe.augment.longest(train.durations), featurizer)
    else:  # whatever the clips' lengths, that is what is cut out of them
        n_frames = np.full(len(train), featurizer.n_features(round(window_s * rate)), np.int32)
    return BucketedPlan(
        n_frames,
        max_frames=recipe.batches.frames,
        seed=recipe.run.seed,
        least=recipe.batches.least,
        largest=recipe.batches.largest,
        frame_s=spec.features.hop_length / rate,
        classes=classes,
        window_s=window_s,
        n_ramp=n_ramp,
    )


def _utterance_s(spec: KeywordModelSpec, wanted: float) -> float | None:
    """Length of every utterance of a keyword task: as asked for, but no shorter than a window."""
    window = _window_s(spec)
    return max(window or 0.0, wanted) or None


def _window_s(spec: KeywordModelSpec) -> float | None:
    """Length of every utterance of a network over windows: one window."""
    if not spec.windowed:
        return None
    n_samples = spec.features.n_samples(spec.encoder.window_frames)  # type: ignore[union-attr]
    return n_samples / spec.features.sample_rate
