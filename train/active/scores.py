"""Scores of clips: how much a model would learn from their labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edge_imputer.errors import SpecError

from ..data import Batch
from ..objective.seeded import random_bits
from ..tasks import CtcTask, ImputerTask, KeywordTask, Task
from .heard import Heard
from .keywords import HeardKeywords
from .options import ScoreOptions
from .speech import HeardSpeech
from .strategies import STRATEGIES, STREAM, Asked, Strategy

Float32 = npt.NDArray[np.float32]


class ClipScore(msgspec.Struct, frozen=True):
    """What one clip gives, whatever the strategy.

    Attributes
    ----------
    score : float
        Of the whole clip, finite; the larger, the more there is to learn.
    per_second : float
        The score by the seconds of audio, with the silence that fills the last chunk. What is
        ranked by default: so that a budget in hours is spent on what teaches most for its length.
    text : str
        What the model hears; of a keyword model, the class.
    confidence : float
        In (0, 1]: of speech, the probability of `text` by frame (its root of as many frames).
    """

    score: float
    per_second: float
    text: str
    confidence: float


@dataclass(frozen=True, eq=False)
class ScoredBatch:
    """Scores of a batch, in its order.

    Attributes
    ----------
    scores : list of ClipScore or None
        None: the clip cannot be scored.
    embeddings : float32, (B, D), or None
        Of strategies that choose by them; zeros where there is no score.
    problems : mapping of int to str
        For every clip without a score, by its place in the batch, what is wrong with it.
    """

    scores: list[ClipScore | None]
    embeddings: Float32 | None
    problems: Mapping[int, str]


class Scorer(Protocol):
    """What gives clips their scores.

    Attributes
    ----------
    name : str
        The strategy.
    needs_embedding : bool
        Whether clips are chosen by `choose_diverse`, from embeddings; else the highest are taken.
    weighted : bool
        Whether `choose_diverse` is given the scores `per_second` as weights; else all weigh 1.
    """

    name: str
    needs_embedding: bool
    weighted: bool

    def score(self, batch: Batch) -> ScoredBatch:
        """Scores of a batch of any task; labels and targets are not looked at."""
        ...


def open_scorer(strategy: str, task: Task, *, seed: int = 0, **options: Any) -> Scorer:
    """What gives clips their scores by a strategy.

    Parameters
    ----------
    strategy : a name of `STRATEGIES`
    task : Task
        Of any kind; it is set to evaluation mode.
    seed : int
        What is drawn for a clip depends on this and on the seed that its batch has for it, on
        nothing else: so the seeds of a pool's batches should differ from clip to clip.
    **options
        Fields of `ScoreOptions`, of those that the strategy takes.

    Raises
    ------
    SpecError
        An unknown strategy, option or parameter, one that the strategy does not take, or a value
        that no score can be computed with.
    """
    if strategy not in STRATEGIES:
        raise SpecError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    chosen = STRATEGIES[strategy]
    unknown = sorted(set(options) - set(chosen.options))
    if unknown:
        takes = ", ".join(chosen.options) or "no options"
        raise SpecError(f"the strategy {strategy} takes {takes}; got {', '.join(unknown)}")
    if seed < 0:
        raise SpecError(f"seed: expected 0 or more, got {seed}")
    settings = ScoreOptions(**options)
    settings.check()
    return _TaskScorer(strategy, chosen, task, settings, seed)


class _TaskScorer:
    """A strategy with a task."""

    def __init__(
        self, name: str, strategy: Strategy, task: Task, options: ScoreOptions, seed: int
    ) -> None:
        self.name = name
        self.needs_embedding = strategy.needs_embedding
        self.weighted = strategy.weighted
        self._strategy = strategy
        self._task = task.eval()
        self._options = options
        self._seed = seed
        self._parameters = _named_parameters(task, options.parameters)
        features = task.spec.features
        self._frame_s = features.hop_length / features.sample_rate

    def score(self, batch: Batch) -> ScoredBatch:
        """As `Scorer.score`."""
        if self._parameters and len(batch.lengths) > 1:  # the backward passes are a clip's own
            ones = [self.score(part) for part in _clips(batch)]
            return _together(ones)
        deep = bool(self._parameters)
        with torch.set_grad_enabled(deep), _recurrent_gradients() if deep else nullcontext():
            seconds = batch.lengths.to(torch.float64) * self._frame_s
            seeds = random_bits(batch.seeds, STREAM + 1 + self._seed, (1,))[:, 0]
            heard = _hear(self._task, batch, self._options, seeds)
            asked = Asked(heard, self._parameters, seeds, seconds)
            values, embeddings = self._strategy.function(asked)
            return _finish(heard, values, embeddings, seconds)


def _recurrent_gradients() -> AbstractContextManager[None]:
    """While this is open, recurrent layers in evaluation mode have gradients on a GPU too.

    cuDNN's have none ("cudnn RNN backward can only be called in training mode"); torch's own do.
    """
    found: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=False)
    return found


def _hear(task: Task, batch: Batch, options: ScoreOptions, seeds: Tensor) -> Heard:
    if isinstance(task, (CtcTask, ImputerTask)):
        return HeardSpeech(task, batch, options, seeds)
    if isinstance(task, KeywordTask):
        return HeardKeywords(task, batch, options)
    raise SpecError(f"expected a task that can be scored, got {type(task).__name__}")


def _finish(
    heard: Heard, values: Tensor, embeddings: Tensor | None, seconds: Tensor
) -> ScoredBatch:
    """Scores as plain numbers, and what is wrong with clips that have none."""
    problems: dict[int, str] = {}
    scores: list[ClipScore | None] = []
    confidences = heard.doubt()[1].tolist()
    rows = zip(
        heard.texts(),
        confidences,
        values.tolist(),
        seconds.tolist(),
        heard.first.n_frames.tolist(),
        heard.first.finite.tolist(),
        strict=True,
    )
    for row, (text, confidence, value, duration, n_frames, finite) in enumerate(rows):
        if n_frames < 1:
            problems[row] = "too short: expected one frame of the encoder at least, got none"
        elif not finite:
            problems[row] = (
                "expected finite scores of every frame, got NaN or infinity; look at its audio"
            )
        elif not math.isfinite(value):
            problems[row] = f"expected a finite score, got {value}"
        if row in problems:
            scores.append(None)
            continue
        least = min(1.0, max(confidence, np.finfo(np.float64).tiny))
        scores.append(ClipScore(value, value / duration, text, least))
    found = None
    if embeddings is not None:
        found = embeddings.detach().to("cpu", torch.float32).numpy()
        found = found.copy()
        found[sorted(problems)] = 0
    return ScoredBatch(scores, found, problems)


def _named_parameters(task: Task, names: Sequence[str]) -> tuple[nn.Parameter, ...]:
    known = dict(task.named_parameters())
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SpecError(
            f"parameters: expected names of the model's, such as {list(known)[-1]}, got "
            f"{', '.join(unknown)}"
        )
    return tuple(known[name] for name in names)


def _clips(batch: Batch) -> list[Batch]:
    """The clips of a batch, each alone, without padding that it does not need."""
    parts = []
    for row, n in enumerate(batch.lengths.tolist()):
        rows = slice(row, row + 1)
        own = {f.name: getattr(batch, f.name) for f in fields(batch)}
        own = {name: value[rows] for name, value in own.items() if torch.is_tensor(value)}
        parts.append(replace(batch, **{**own, "features": batch.features[rows, :n]}))
    return parts


def _together(parts: Sequence[ScoredBatch]) -> ScoredBatch:
    """Batches of one clip as one."""
    embeddings = [part.embeddings for part in parts if part.embeddings is not None]
    problems = {row: part.problems[0] for row, part in enumerate(parts) if part.problems}
    return ScoredBatch(
        [part.scores[0] for part in parts],
        np.concatenate(embeddings) if embeddings else None,
        problems,
    )
