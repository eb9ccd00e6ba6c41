"""Scores of a pool, or of a shard of it: read in workers, scored here, written block by block."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from edge_imputer.errors import DataError

from ..data.loader import outlive_signals
from .pool import Block, PoolBlocks
from .score_log import Entry, ScoreLog
from .scores import Scorer

PREFETCH = 2  # blocks that a worker is ahead


def score_pool(
    blocks: PoolBlocks,
    scorer: Scorer,
    scores: ScoreLog,
    *,
    device: str = "cpu",
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Score what a log has not yet.

    Parameters
    ----------
    blocks : of the log's shard
    scorer : with its model on `device`
    scores : the log
    device : "cpu" or "cuda"
    workers : processes that read and look at clips; 0: this one does
    progress : called with the shard's clips done, and all of them

    Raises
    ------
    DataError
        Memory ran out, or the log cannot be written.
    """
    rest = replace(blocks, numbers=blocks.numbers[scores.blocks_done :])
    if progress is not None:
        progress(scores.rows_done, scores.n_rows)
    place = torch.device(device)
    for block in _loaded(rest, workers):
        entries, embeddings = _scored(block, scorer, place)
        scores.add(entries, embeddings)
        if progress is not None:
            progress(scores.rows_done, scores.n_rows)


def _loaded(blocks: PoolBlocks, workers: int) -> Any:
    """The blocks in their order, whatever the number of workers."""
    if not workers or len(blocks) < 2:
        return blocks
    return DataLoader(
        blocks,
        batch_size=None,
        shuffle=False,
        num_workers=min(workers, len(blocks)),
        prefetch_factor=PREFETCH,
        worker_init_fn=outlive_signals,
    )


def _scored(
    block: Block, scorer: Scorer, device: torch.device
) -> tuple[list[Entry], dict[int, npt.NDArray[np.float32]]]:
    """Entries with their scores, and embeddings of those that have one, by place."""
    entries = list(block.entries)
    found: dict[int, npt.NDArray[np.float32]] = {}
    for places, batch in block.batches:
        try:
            given = scorer.score(batch.to(device))
        except torch.OutOfMemoryError as error:
            raise DataError(
                f"out of memory on {' x '.join(map(str, batch.features.shape[:2]))} frames; lower "
                "--batch-seconds, or --longest"
            ) from error
        for row, (place, score) in enumerate(zip(places, given.scores, strict=True)):
            if score is None or not math.isfinite(score.score):
                detail = given.problems.get(row, "expected a finite score")
                values: dict[str, Any] = {"reason": "no score", "detail": detail, "print": ""}
            else:
                values = msgspec.structs.asdict(score)
                if given.embeddings is not None:
                    found[place] = given.embeddings[row]
            entries[place] = msgspec.structs.replace(entries[place], **values)
    return entries, found
