"""Running out of memory: where it was, and what to lower."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from edge_imputer.errors import TrainingError

from ..data import Batch

MICRO_BATCHES = (
    "raise run.accumulate, which may change in a resumed run: same updates, smaller "
    "micro-batches. In a new run, batches.frames or batches.size can be lower"
)
VALIDATION = (
    "in a new run, batches.size or data.valid_joined can be lower; in this one, free memory that "
    "other programs hold"
)


def frames_of(batch: Batch) -> str:
    """A batch's utterances by its frames."""
    return " x ".join(str(n) for n in batch.features.shape[:2]) + " frames"


@contextmanager
def enough_memory(when: str, what: str, advice: str, go_on: Callable[[], str]) -> Iterator[None]:
    """Say when memory ran out and on what, what to lower, and what is left of the run.

    Raises
    ------
    TrainingError
        In place of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0] if str(error) else "no more was said"
        raise TrainingError(
            f"{when}: out of memory on {what} ({reason}); {advice}. {go_on()}"
        ) from error
