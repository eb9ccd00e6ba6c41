"""Keyword detectors as evaluation sees them: audio in, a score of every keyword a frame out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.backends import Backend
from edge_imputer.bundle import Bundle
from edge_imputer.errors import CheckpointError
from edge_imputer.pipeline import StreamingDecoder
from edge_imputer.spotter import keyword_detector

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
    """Keywords given as text, scored on what a bundle hears; as `KeywordSpotter` does.

    Parameters
    ----------
    bundle, backend : the model and the runtime it is loaded in
    keywords : texts that the model's characters can spell
    n_steps : passes of the head a chunk; the bundle's own schedule if None

    Raises
    ------
    SpecError, TokenError
        No keyword, a repeated one, or one with a character that the model does not know.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        keywords: Sequence[str],
        *,
        n_steps: int | None = None,
    ) -> None:
        self.keywords = tuple(keywords)
        self.latency_s = 0.0  # the end of a recording completes what is pending
        self.frame_s = bundle.spec.frame_s
        self._scorer = keyword_detector(bundle.spec, dict.fromkeys(keywords, 1.0)).scorer
        self._decoder = StreamingDecoder(bundle, backend=backend, n_steps=n_steps)

    def score(self, waveform: Float32) -> Float32:
        """Confidences, each at the last frame of its word, (T, K).

        A word is complete again with every boundary that may follow it, as long as blanks do: at
        its last frame these are one, as the spotter takes them for one.
        """
        self._scorer.reset()
        found = [self._scorer.push(c.log_probs) for c in self._decoder.decode(waveform)]
        found.append(self._scorer.finish())
        confidence = np.concatenate([one.confidence for one in found])  # (T + 1, K)
        last = np.maximum(0, np.concatenate([one.end for one in found]))  # nothing ends before 0
        scores = np.zeros(confidence.shape, np.float32)
        keyword = np.broadcast_to(np.arange(len(self.keywords)), last.shape)
        np.maximum.at(scores, (last, keyword), confidence.astype(np.float32))
        return scores


def bundle_identity(bundle: Bundle) -> str:
    """A hash of what a bundle computes: its spec and models, not its figures or model card."""
    models = {
        name: record.sha256 for name, record in sorted(bundle.manifest.files.items()) if "/" in name
    }
    content = msgspec.json.encode([bundle.spec, models])
    return hashlib.sha256(content).hexdigest()


def open_checkpoint(path: Path) -> tuple[KeywordSystem, str]:
    """The detector of a keyword model's checkpoint, and the file's hash.

    Raises
    ------
    CheckpointError
        It is not a checkpoint, or not one of a keyword model.
    """
    from ..checkpoint import load_checkpoint
    from ..keyword_model import KeywordModel, TorchKeywordSystem

    loaded = load_checkpoint(path)
    models = [m for m in loaded.task.modules() if isinstance(m, KeywordModel)]
    if len(models) != 1:
        raise CheckpointError(
            f"{path}: expected the checkpoint of a keyword model, got one that writes text; "
            "export it (edge-imputer export) and evaluate the bundle"
        )
    return TorchKeywordSystem(models[0]), loaded.sha256
