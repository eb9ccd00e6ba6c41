"""A model that listens for keywords, with what is needed to compare it with itself later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_imputer import __version__
from edge_imputer.backends import load_backend
from edge_imputer.bundle import Bundle
from edge_imputer.errors import SpecError

from ..evaluation import KeywordSystem, TextKeywordSystem
from ..evaluation.evaluate import REFRACTORY_S, SAMPLE_RATE
from ..evaluation.systems import bundle_identity, open_checkpoint

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
    threshold: float | None = None,
    refractory_s: float = REFRACTORY_S,
) -> Spotter:
    """Open a keyword model's checkpoint, or a bundle with keywords given as text.

    Parameters
    ----------
    path : a checkpoint's file, or a bundle's folder
    keywords : texts to listen for with a bundle; those of its operating point if not given
    backend : runtime of a bundle
    threshold : of every keyword, instead of the model's own

    Raises
    ------
    CheckpointError, BundleError
        It cannot be read, or is the checkpoint of a model that writes text.
    SpecError, TokenError
        No keywords are known, or others than the model's.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise SpecError(f"expected a threshold from 0 to 1, got {threshold}")
    if path.is_file():
        system, model = open_checkpoint(path)
        if keywords is not None and not set(keywords) <= set(system.keywords):
            raise SpecError(
                f"{path} listens for {', '.join(system.keywords)} and for nothing else, got "
                f"{', '.join(keywords)}"
            )
        own: Mapping[str, float] = {}
    else:
        system, model, own = _of_bundle(Bundle.load(path), keywords, backend)
    thresholds = {word: own.get(word, DEFAULT_THRESHOLD) for word in system.keywords}
    if threshold is not None:
        thresholds = dict.fromkeys(thresholds, threshold)
    settings = msgspec.json.encode([__version__, model, system.keywords, refractory_s]).decode()
    return Spotter(path, system, f"keywords {settings}", thresholds, refractory_s)


def _of_bundle(
    bundle: Bundle, keywords: Sequence[str] | None, backend: str
) -> tuple[KeywordSystem, str, Mapping[str, float]]:
    point = bundle.manifest.operating_point
    own = {} if point is None else point.thresholds
    if not (keywords or own):
        raise SpecError(
            "expected keywords, since the bundle has no operating point that names any; "
            "give --keyword WORD, once for each"
        )
    rate = bundle.spec.features.sample_rate
    if rate != SAMPLE_RATE:
        raise SpecError(f"expected a model of {SAMPLE_RATE} Hz, got {rate} Hz")
    system = TextKeywordSystem(bundle, load_backend(bundle, backend), tuple(keywords or own))
    return system, f"{bundle_identity(bundle)} {backend}", own
