"""A model that listens for keywords, with what is needed to compare it with itself later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_imputer.errors import SpecError

from ..evaluation import KeywordSystem
from ..evaluation.evaluate import REFRACTORY_S
from ..evaluation.keyword_report import KeywordScoring
from ..evaluation.systems import open_keyword_model

DEFAULT_THRESHOLD = 0.5  # of a checkpoint, which carries none


@dataclass(frozen=True)
class Spotter:
    """A keyword detector.

    Attributes
    ----------
    path : Path
    system : KeywordSystem
    identity : str
        What its scores depend on: the model's hash, runtime, keywords, refractory time.
    thresholds : of its keywords, those of a bundle's operating point or `DEFAULT_THRESHOLD`
    refractory_s : float
    """

    path: Path
    system: KeywordSystem
    identity: str
    thresholds: Mapping[str, float]
    refractory_s: float = REFRACTORY_S

    @property
    def keywords(self) -> tuple[str, ...]:
        """What it listens for."""
        return self.system.keywords


def open_spotter(
    path: Path,
    *,
    keywords: Sequence[str] | None = None,
    backend: str = "onnx",
    thresholds: Mapping[str, float] | None = None,
    threshold: float | None = None,
    refractory_s: float = REFRACTORY_S,
) -> Spotter:
    """Open a checkpoint, or a bundle; where it writes text, with keywords given as text.

    Parameters
    ----------
    path : a checkpoint's file, or a bundle's folder
    keywords : see `open_keyword_model`
    backend : runtime of a bundle
    thresholds : by keyword, instead of the model's own
    threshold : of every keyword, instead of all these

    Raises
    ------
    CheckpointError, BundleError
        It cannot be read.
    SpecError, TokenError
        No keywords are known, or others than the model's.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise SpecError(f"expected a threshold from 0 to 1, got {threshold}")
    model = open_keyword_model(path, keywords, backend=backend)
    own = {**model.thresholds, **(thresholds or {})}
    limits = {word: own.get(word, DEFAULT_THRESHOLD) for word in model.system.keywords}
    if threshold is not None:
        limits = dict.fromkeys(limits, threshold)
    identity = KeywordScoring(model.system, refractory_s).identity(model.identity)
    return Spotter(path, model.system, identity, limits, refractory_s)
