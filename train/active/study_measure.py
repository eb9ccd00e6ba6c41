"""What a model of a study gets wrong, clip by clip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edge_imputer.errors import AudioError, DataError
from edge_imputer.imputation import schedule
from edge_imputer.metrics import edit_distance
from edge_imputer.specs import BLANK_ID

from ..data import Batch, ClipRecord, Featurizer, collate, read_clip
from ..data.batches import Example
from ..decode import decode
from ..tasks import KeywordTask, Task
from ..tasks.keywords import classify, where_likeliest
from ..tasks.speech import SpeechTask

BATCH = 32
ACCEPTED = 0.05  # of clips that are no keyword, at the threshold that misses are counted at


@torch.no_grad()
def count_errors(task: Task, clips: Sequence[ClipRecord]) -> tuple[list[int], list[int]]:
    """Errors in every clip, and what they are counted of.

    Of a model that writes: word errors, decoded in as many passes as a block has frames, and words.
    Of a keyword model: whether a keyword is missed, of 1, at the threshold that lets `ACCEPTED`
    of the other clips pass for keywords: models that take everything for a keyword miss nothing
    otherwise. Without others, whether it is taken for anything else. Other clips count of 0.

    Parameters
    ----------
    task : Task
        In evaluation mode, trained.
    clips : with absolute paths, see `StudyCorpus`

    Raises
    ------
    DataError
        A clip cannot be read: test sets must not shrink unnoticed.
    """
    counted = np.zeros((len(clips), 2), np.int64)
    if isinstance(task, KeywordTask):
        counted[:] = _misses(task, clips)
    else:
        assert isinstance(task, SpeechTask)
        for rows, batch in _batches(task, clips):
            counted[rows] = _word_errors(task, batch, [clips[row].text or "" for row in rows])
    return counted[:, 0].tolist(), counted[:, 1].tolist()


def _batches(task: Task, clips: Sequence[ClipRecord]) -> Iterator[tuple[list[int], Batch]]:
    """Clips of about one length together, without their targets."""
    featurizer = Featurizer(task.spec)
    rate = task.spec.features.sample_rate
    order = sorted(range(len(clips)), key=lambda row: clips[row].duration_s)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        yield rows, collate([_example(clips[row], featurizer, rate) for row in rows])


def _example(record: ClipRecord, featurizer: Featurizer, rate: int) -> Example:
    try:
        waveform = read_clip(Path(), record, rate)
    except AudioError as error:
        raise DataError(f"a clip of the split test cannot be read: {error}") from error
    x = featurizer.features(waveform)
    guess = np.full(featurizer.n_encoder_frames(len(x)), BLANK_ID)
    return Example(featurizer.normalize(x), [], guess, featurizer.label(record))


def _word_errors(task: SpeechTask, batch: Batch, texts: Sequence[str]) -> list[tuple[int, int]]:
    encoder_out, frames = task.encoder(batch.features, batch.lengths)
    block = task.spec.head.block_size
    n_steps = 1 if task.spec.head.mixer == "none" else block
    alignment = decode(task.head, encoder_out, schedule(n_steps, block))
    found = []
    for text, row, n in zip(texts, alignment, frames.tolist(), strict=True):
        words = text.split()
        found.append((edit_distance(words, task.transcript(row[:n]).split()), len(words)))
    return found


def _misses(task: KeywordTask, clips: Sequence[ClipRecord]) -> npt.NDArray[np.int64]:
    n_keywords = len(task.spec.keywords)
    labels, heard = np.zeros((2, len(clips)), np.int64)
    scores = np.zeros(len(clips))  # log-probability of the likeliest keyword
    any_class = np.zeros(len(clips), np.int64)
    for rows, batch in _batches(task, clips):
        logits, n_scores = task.model(batch.features, batch.lengths)
        log_probs = where_likeliest(logits, n_scores, n_keywords)
        best = log_probs[:, 1 : 1 + n_keywords].max(-1)
        labels[rows], scores[rows], heard[rows] = batch.labels, best.values, 1 + best.indices
        any_class[rows] = classify(logits, n_scores, n_keywords)
    is_keyword = (labels >= 1) & (labels <= n_keywords)
    if is_keyword.all():
        missed = any_class != labels
    else:
        threshold = np.quantile(scores[~is_keyword], 1 - ACCEPTED, method="higher")
        missed = (heard != labels) | (scores <= threshold)
    return np.stack([is_keyword & missed, is_keyword], axis=1)
