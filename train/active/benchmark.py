"""What scores cost: clips a second of every strategy."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

import torch

from edge_imputer.errors import DataError

from ..benchmark import cpu_threads, timed
from ..data import Batch
from ..tasks import Task
from .scores import Scorer, open_scorer
from .strategies import STRATEGIES

ROUNDS = 3


def time_strategies(
    task: Task, batches: Sequence[Batch], *, device: str = "cpu"
) -> dict[str, float]:
    """Clips a second, of features to scores, by the strategy's name.

    Strategies take turns, so that a busy machine slows them alike, after a batch to warm up; the
    median of a few rounds counts. Reading audio and computing features is not in it.

    Parameters
    ----------
    task : Task
        On the device.
    batches : Batch
        As they are to be scored; on the CPU, they are moved as they are scored.
    device : str
        "cpu": of one thread, by its CPU time; or "cuda".
    """
    n_clips = sum(len(batch.lengths) for batch in batches)
    if not n_clips:
        raise DataError("expected clips to time the strategies on, got none")
    scorers = {name: open_scorer(name, task) for name in STRATEGIES}
    place = next(task.parameters()).device
    times: dict[str, list[float]] = {name: [] for name in scorers}
    with cpu_threads(1):
        for scorer in scorers.values():
            scorer.score(batches[0].to(place))
        for _ in range(ROUNDS):
            for name, scorer in scorers.items():
                calls = [partial(_score, scorer, batch, place) for batch in batches]
                times[name].append(sum(timed(call, device)[0] for call in calls))
    return {name: n_clips / (statistics.median(ms) * 1e-3) for name, ms in times.items()}


def _score(scorer: Scorer, batch: Batch, place: torch.device) -> None:
    scorer.score(batch.to(place))
