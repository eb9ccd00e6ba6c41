"""From samples to the scores of a keyword model, in a stream of any length.

::

    samples -> streaming front end -> a step of the network, or a window of it every hop
        -> softmax -> mean of the last `spec.smoothing_ms`

Score t is of the audio up to ``(t + 1) * spec.frame_s``, and what the last feature frame reaches
beyond. Before a stream windows hold zeros. A recording ends with digital silence until its last
step is whole, see `KeywordModelSpec.closing_samples`; that silence has no scores of its own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .backends.base import KeywordBackend
from .frontends import streaming_frontend_of
from .imputation import log_softmax
from .specs import KeywordModelSpec

Float32 = npt.NDArray[np.float32]


class Smoother:
    """Running mean of scores, the same however a stream is cut.

    Parameters
    ----------
    n_keywords : int
    n : int
        Scores that are averaged, or as many as there are.
    """

    def __init__(self, n_keywords: int, n: int) -> None:
        self._shape = (n - 1, n_keywords)
        self.reset()

    def reset(self) -> None:
        """Start a new stream."""
        self._last = np.zeros(self._shape)
        self._n_seen = 0

    def push(self, scores: Float32) -> Float32:
        """Take the next scores: (T, K) -> (T, K), 0..1."""
        history = np.concatenate([self._last, scores.astype(np.float64)])
        n = len(self._last) + 1
        total = np.zeros(scores.shape)
        for lag in range(n):  # from the oldest on, in one order for all
            total += history[lag : lag + len(scores)]
        seen = np.minimum(n, self._n_seen + 1 + np.arange(len(scores)))
        self._last = history[len(scores) :]
        self._n_seen += len(scores)
        mean: Float32 = (total / seen[:, None]).astype(np.float32)
        return mean.clip(0, 1)


def smoothed(scores: Float32, n: int) -> Float32:
    """Mean of the last n scores, or of as many as there are: (T, K) -> (T, K)."""
    return Smoother(scores.shape[1], n).push(scores)


class KeywordStream:
    """Scores of all keywords of a model along a stream.

    Parameters
    ----------
    spec : KeywordModelSpec
    backend : KeywordBackend
        May be shared: the state is held here.

    Attributes
    ----------
    keywords : tuple of str
        In the order of their scores.
    frame_s, latency_s : float
        As the specification has them.
    """

    def __init__(self, spec: KeywordModelSpec, backend: KeywordBackend) -> None:
        spec.check_streaming()
        self.spec, self.backend = spec, backend
        self.keywords, self.frame_s, self.latency_s = spec.keywords, spec.frame_s, spec.latency_s
        self._frontend = streaming_frontend_of(spec.features)
        self._smoother = Smoother(len(spec.keywords), spec.smoothing_frames)
        self._input = np.empty((spec.input_features, spec.features.n_mels), np.float32)
        self.reset()

    def reset(self) -> None:
        """Start a new stream."""
        self._frontend.reset()
        self._smoother.reset()
        self._input[:] = 0
        self._n_new = 0  # feature frames waiting for a whole step
        self._n_samples = 0
        self._n_scores = 0
        self._state = self.backend.initial_state()

    def push(self, waveform: Float32) -> Float32:
        """Take the next samples, float32 (n,) in -1..1: the scores that are due, (T, K)."""
        self._n_samples += waveform.size
        return self._smooth(self._posteriors(waveform))

    def finish(self) -> Float32:
        """End the stream: the scores that were waiting, (T, K); then `reset`."""
        spec = self.spec
        n_silence = spec.features.padding[1] + spec.closing_samples(self._n_samples)
        posteriors = self._posteriors(np.zeros(n_silence, np.float32))
        scores = self._smooth(posteriors[: spec.n_scores(self._n_samples) - self._n_scores])
        self.reset()
        return scores

    def score(self, waveform: Float32) -> Float32:
        """Scores of a whole recording, (T, K)."""
        self.reset()
        return np.concatenate([self.push(waveform), self.finish()])

    def _posteriors(self, waveform: Float32) -> Float32:
        """Probabilities of all classes, (T, C), of the steps that the samples complete."""
        features = self._frontend.push(waveform)  # (t, n_mels)
        step = self.spec.step_features
        new = self._input[-step:]  # a view: before it stands the rest of a window
        logits = [np.empty((0, len(self.spec.classes)), np.float32)]
        while len(features):
            n = min(step - self._n_new, len(features))
            new[self._n_new : self._n_new + n] = features[:n]
            self._n_new += n
            features = features[n:]
            if self._n_new == step:
                found, self._state = self.backend.keywords_step(self._input, self._state)
                logits.append(found)
                self._input[:-step] = self._input[step:].copy()
                self._n_new = 0
        posteriors: Float32 = np.exp(log_softmax(np.concatenate(logits)))
        return posteriors

    def _smooth(self, posteriors: Float32) -> Float32:
        self._n_scores += len(posteriors)
        return self._smoother.push(posteriors[:, 1 : 1 + len(self.keywords)])
