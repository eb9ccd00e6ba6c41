"""What each kind of bundle makes of a recording, whatever computes its graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_imputer.backends import (
    Backend,
    KeywordBackend,
    load_backend,
    load_keyword_backend,
)
from edge_imputer.backends.stepper import KeywordStepper, Model, Stepper
from edge_imputer.bundle import Bundle
from edge_imputer.keyword_stream import KeywordStream
from edge_imputer.pipeline import StreamingDecoder
from edge_imputer.specs import KeywordModelSpec, ModelSpec
from edge_imputer.tokens import Tokenizer

from .graph import Array

UNTUNED = 0.5  # threshold of a keyword that nobody has chosen one for
AnyBackend = Backend | KeywordBackend
Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Decoded:
    """What came of one clip: text, and the numbers it was read from."""

    text: str
    scores: Array


class Kind(NamedTuple):
    """What is particular to a kind of model.

    `backend` makes one of the bundle's int8 models, `load` one of its files by name, and `decoder`
    what a recording is decoded by.
    """

    backend: Callable[[Bundle, str, Sequence[Model]], AnyBackend]
    load: Callable[[Bundle, str], AnyBackend]
    decoder: Callable[[Bundle, Any], Callable[[Waveform], Decoded]]


def _speech_backend(bundle: Bundle, name: str, models: Sequence[Model]) -> Backend:
    spec = bundle.spec
    assert isinstance(spec, ModelSpec)
    records = bundle.manifest.graph("encoder"), bundle.manifest.graph("imputer")
    return Stepper(name, spec, records, (models[0], models[1]), quantised=True)


def _speech(bundle: Bundle, backend: Backend) -> Callable[[Waveform], Decoded]:
    """Transcripts, by the bundle's own schedule."""
    decoder = StreamingDecoder(bundle, backend=backend)
    tokenizer = Tokenizer(decoder.spec.tokens)

    def decode(waveform: Waveform) -> Decoded:
        chunks = decoder.decode(waveform)
        if not chunks:
            return Decoded("", np.zeros((0, 0), np.float32))
        alignment = np.concatenate([chunk.alignment for chunk in chunks])
        text = tokenizer.decode(tokenizer.collapse(alignment.tolist()))
        return Decoded(text, np.concatenate([chunk.log_probs for chunk in chunks]))

    return decode


def _keyword_backend(bundle: Bundle, name: str, models: Sequence[Model]) -> KeywordBackend:
    spec = bundle.spec
    assert isinstance(spec, KeywordModelSpec)
    (record,), (model,) = bundle.manifest.graphs, models
    return KeywordStepper(name, spec, record, model, quantised=True)


def _keywords(bundle: Bundle, backend: KeywordBackend) -> Callable[[Waveform], Decoded]:
    """The keyword that is heard best, if its score ever reaches its threshold."""
    spec, point = bundle.spec, bundle.manifest.operating_point
    assert isinstance(spec, KeywordModelSpec)
    stream = KeywordStream(spec, backend)
    chosen = point.thresholds if point else {}
    least = np.array([chosen.get(word, UNTUNED) for word in spec.keywords])

    def decode(waveform: Waveform) -> Decoded:
        scores = stream.score(waveform)
        if not len(scores):  # shorter than a step
            return Decoded("", scores)
        over = scores.max(0) - least
        text = spec.keywords[int(over.argmax())] if over.max() >= 0 else ""
        return Decoded(text, scores)

    return decode


KINDS: dict[type, Kind] = {
    ModelSpec: Kind(_speech_backend, load_backend, _speech),
    KeywordModelSpec: Kind(_keyword_backend, load_keyword_backend, _keywords),
}
