"""Keyword detectors as evaluation sees them: audio in, a score of every keyword a frame out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.backends import Backend, load_backend, load_keyword_backend
from edge_imputer.bundle import Bundle
from edge_imputer.errors import SpecError
from edge_imputer.keyword_stream import KeywordStream
from edge_imputer.keywords import check_keywords
from edge_imputer.pipeline import StreamingDecoder
from edge_imputer.specs import AnyModelSpec, KeywordModelSpec, ModelSpec
from edge_imputer.spotter import keyword_detector

from ..checkpoint import load_checkpoint
from ..keyword_model import TorchKeywordSystem
from ..tasks import KeywordTask
from .torch_transcriber import TorchTranscriber

SAMPLE_RATE = 16_000  # of every keyword system

Float32 = npt.NDArray[np.float32]


class KeywordSystem(Protocol):
    """Anything that listens for keywords. A score depends on the audio so far, and its latency."""

    @property
    def keywords(self) -> tuple[str, ...]:
        """What it listens for."""
        ...

    @property
    def frame_s(self) -> float:
        """Seconds from one frame of scores to the next."""
        ...

    @property
    def latency_s(self) -> float:
        """Audio that must follow a keyword until its score is due, in seconds."""
        ...

    def score(self, waveform: Float32) -> Float32:
        """Score a recording, float32 (n,) at 16 kHz: (T, K) in [0, 1], as a stream would give."""
        ...


class TextKeywordSystem:
    """Keywords given as text, scored on what a model hears; as `KeywordSpotter` does.

    Parameters
    ----------
    spec : ModelSpec
    hear : what the model makes of a recording, float32 (n,): log-probs of its frames, in parts
    keywords : texts that the model's characters can spell

    Raises
    ------
    SpecError, TokenError
        No keyword, a repeated one, or one with a character that the model does not know.
    """

    def __init__(
        self,
        spec: ModelSpec,
        hear: Callable[[Float32], Iterable[Float32]],
        keywords: Sequence[str],
    ) -> None:
        check_keywords(keywords)
        self.keywords = tuple(keywords)
        self.latency_s = 0.0  # the end of a recording completes what is pending
        self.frame_s = spec.frame_s
        self._scorer = keyword_detector(spec, dict.fromkeys(keywords, 1.0)).scorer
        self._hear = hear

    @classmethod
    def of_bundle(
        cls,
        bundle: Bundle,
        backend: Backend,
        keywords: Sequence[str],
        *,
        n_steps: int | None = None,
        revisions: int | None = None,
    ) -> TextKeywordSystem:
        """A bundle in a runtime, as a stream; its own passes where nothing is given."""
        decoder = StreamingDecoder(bundle, backend=backend, n_steps=n_steps, revisions=revisions)
        return cls(decoder.spec, lambda x: (c.log_probs for c in decoder.decode(x)), keywords)

    def score(self, waveform: Float32) -> Float32:
        """Confidences, each at the last frame of its word, (T, K).

        A word is complete again with every boundary that may follow it, as long as blanks do: at
        its last frame these are one, as the spotter takes them for one.
        """
        self._scorer.reset()
        found = [self._scorer.push(log_probs) for log_probs in self._hear(waveform)]
        found.append(self._scorer.finish())
        confidence = np.concatenate([one.confidence for one in found])  # (T + 1, K)
        last = np.maximum(0, np.concatenate([one.end for one in found]))  # nothing ends before 0
        scores = np.zeros(confidence.shape, np.float32)
        keyword = np.broadcast_to(np.arange(len(self.keywords)), last.shape)
        np.maximum.at(scores, (last, keyword), confidence.astype(np.float32))
        return scores


@dataclass(frozen=True)
class KeywordModel:
    """A model that listens for keywords, opened.

    Attributes
    ----------
    system : KeywordSystem
    name : of the model, for people
    identity : a hash of what its scores depend on
    thresholds : that it carries, by keyword
    """

    system: KeywordSystem
    name: str
    identity: str
    thresholds: Mapping[str, float]


def open_keyword_model(
    path: Path,
    keywords: Sequence[str] | None = None,
    *,
    backend: str = "onnx",
    n_steps: int | None = None,
    revisions: int | None = None,
) -> KeywordModel:
    """Open a checkpoint's file or a bundle's folder.

    Parameters
    ----------
    path : Path
    keywords : texts to listen for; None: those of a keyword model, of a bundle's operating point,
        or that a checkpoint's recipe names
    backend : runtime of a bundle
    n_steps, revisions : passes of the head a chunk, and those after them that look at every frame
        again; the model's own if None

    Raises
    ------
    CheckpointError, BundleError
        It cannot be read.
    SpecError, TokenError
        No keywords are known, or others than the model can have.
    """
    if path.is_file():
        return _of_checkpoint(path, keywords, n_steps, revisions)
    return _of_bundle(Bundle.load(path), keywords, backend, n_steps, revisions)


def passes_name(n_steps: int | None, schedule: Sequence[int] | None, revisions: int | None) -> str:
    """``4``, ``5,1,1,1`` or ``own``; where revisions are asked for, ``4 + 1 of revision``."""
    name = str(n_steps or "own") if schedule is None else ",".join(map(str, schedule))
    return name if revisions is None else f"{name} + {revisions} of revision"


def _of_bundle(
    bundle: Bundle,
    keywords: Sequence[str] | None,
    backend: str,
    n_steps: int | None,
    revisions: int | None,
) -> KeywordModel:
    point = bundle.manifest.operating_point
    own = {} if point is None else point.thresholds
    name, identity = bundle.manifest.name, bundle_identity(bundle)
    _check_rate(bundle.spec)
    if isinstance(bundle.spec, KeywordModelSpec):
        _check_own_keywords(bundle.path, keywords, bundle.spec)
        stream = KeywordStream(bundle.spec, load_keyword_backend(bundle, backend))
        return KeywordModel(stream, name, f"{identity} {backend}", own)
    if not (keywords or own):
        raise SpecError(
            "expected keywords, since the bundle has no operating point that names any; "
            "give --keyword WORD, once for each"
        )
    loaded = load_backend(bundle, backend)
    system = TextKeywordSystem.of_bundle(
        bundle, loaded, keywords or [*own], n_steps=n_steps, revisions=revisions
    )
    how = f"{backend}, {passes_name(n_steps, None, revisions)} passes"
    return KeywordModel(system, name, f"{identity} {how}", own)


def _of_checkpoint(
    path: Path, keywords: Sequence[str] | None, n_steps: int | None, revisions: int | None
) -> KeywordModel:
    loaded = load_checkpoint(path)
    if isinstance(loaded.task, KeywordTask):
        system = TorchKeywordSystem(loaded.task.model)
        _check_own_keywords(path, keywords, system.spec)
        return KeywordModel(system, path.name, loaded.sha256, {})
    wanted = keywords or getattr(loaded.recipe.task, "keywords", ())
    if not wanted:
        raise SpecError(
            f"{path}: expected keywords, since the model writes text and its recipe names none; "
            "give --keyword WORD, once for each"
        )
    transcriber = TorchTranscriber(loaded, n_steps=n_steps, revisions=revisions)
    _check_rate(transcriber.spec)
    text = TextKeywordSystem(transcriber.spec, lambda x: [transcriber.log_probs(x)], wanted)
    how = f"torch, {passes_name(n_steps, None, revisions)} passes"
    return KeywordModel(text, path.name, f"{loaded.sha256} {how}", {})


def _check_own_keywords(path: Path, keywords: Sequence[str] | None, spec: KeywordModelSpec) -> None:
    if keywords is not None and set(keywords) != set(spec.keywords):
        raise SpecError(
            f"{path} listens for {', '.join(spec.keywords)} and for nothing else, got "
            f"{', '.join(keywords)}; leave --keyword out"
        )


def _check_rate(spec: AnyModelSpec) -> None:
    if spec.features.sample_rate != SAMPLE_RATE:
        raise SpecError(f"expected a model of {SAMPLE_RATE} Hz, got {spec.features.sample_rate} Hz")


def bundle_identity(bundle: Bundle) -> str:
    """A hash of what a bundle computes: its spec and models, not its figures or model card."""
    models = {
        name: record.sha256 for name, record in sorted(bundle.manifest.files.items()) if "/" in name
    }
    content = msgspec.json.encode([bundle.spec, models])
    return hashlib.sha256(content).hexdigest()
