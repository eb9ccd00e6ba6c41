"""Mean and deviation of a run's features, by which they are normalised."""

from __future__ import annotations

import logging

import numpy as np

from edge_imputer.errors import AudioError, DataError

from .augment import Augmenter
from .features import Featurizer
from .loader import Source
from .plan import Plan

log = logging.getLogger(__name__)

PER_UPDATE = 8  # utterances taken of one update: those of an update may all be of one length


def feature_statistics(
    plan: Plan,
    source: Source,
    augmenter: Augmenter,
    featurizer: Featurizer,
    *,
    n: int = 64,
) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel over about `n` training utterances.

    They are the first ones of several updates, augmented at full strength; those that cannot be
    decoded are left out.
    """
    frames = []
    for update in range(-(-n // PER_UPDATE)):
        for draw in plan.update(update)[:PER_UPDATE]:
            try:
                clips = [source.clip(row, draw.part) for row in draw.rows]
            except AudioError as error:
                log.debug("left out of the statistics: %s", error)
                continue
            rng = np.random.default_rng((draw.seed, 0x57A7))
            utterance = augmenter.utterance(clips, rng, window_s=draw.window_s)
            frames.append(featurizer.features(utterance.waveform))
    if not frames:
        raise DataError(f"none of {n} training utterances could be decoded; check the corpus")
    values = np.concatenate(frames)
    return float(values.mean()), float(values.std())
