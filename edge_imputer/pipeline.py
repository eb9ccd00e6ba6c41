"""From samples to committed chunks: the engine under the recogniser and the keyword spotter.

::

    PCM -> check_pcm -> StreamingLogMel -> backend.encoder_step, a frame or a block of them
        -> StreamingImputer, one chunk a time -> ImputedChunk
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .audio import ClippingDetector, check_pcm, load_audio, resample
from .backends import Backend, KeywordBackend, load_backend, load_keyword_backend
from .bundle import Bundle
from .errors import AudioFormatError, BackendError, SampleRateError
from .frontend import StreamingLogMel
from .imputation import ImputedChunk, StreamingImputer, resolve_revisions, resolve_schedule
from .specs import AnyModelSpec, speech_spec

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


class HasSpec(Protocol):
    """A model description: a `Bundle`, or anything else that knows its spec."""

    @property
    def spec(self) -> AnyModelSpec:
        """The model's specification."""
        ...


Model = HasSpec | str | os.PathLike[str]


def describe_model(model: Model) -> HasSpec:
    """The bundle, loaded if a path is given; or what is described already."""
    return Bundle.load(model) if isinstance(model, (str, os.PathLike)) else model


def speech_backend(model: HasSpec, backend: str | Backend | KeywordBackend) -> Backend:
    """The backend of a model that writes down speech, loaded if a name is given.

    Raises
    ------
    BackendError
        A backend is named for a model that is not a bundle, or one of keyword models is given.
    """
    if isinstance(backend, str):
        return load_backend(_bundle(model, backend), backend)
    if isinstance(backend, KeywordBackend):
        raise BackendError(
            f"expected a Backend for a model that writes down speech, got {type(backend).__name__}"
            ", which is of a keyword model; load it with load_backend"
        )
    return backend


def keyword_backend(model: HasSpec, backend: str | Backend | KeywordBackend) -> KeywordBackend:
    """The backend of a keyword model, loaded if a name is given.

    Raises
    ------
    BackendError
        A backend is named for a model that is not a bundle, or one of another kind is given.
    """
    if isinstance(backend, str):
        return load_keyword_backend(_bundle(model, backend), backend)
    if not isinstance(backend, KeywordBackend):
        raise BackendError(
            f"expected a KeywordBackend for a keyword model, got {type(backend).__name__}; load it "
            "with load_keyword_backend"
        )
    return backend


def _bundle(model: HasSpec, backend: str) -> Bundle:
    if isinstance(model, Bundle):
        return model
    raise BackendError(
        f"expected a loaded backend for a {type(model).__name__}, got the name {backend!r}; "
        "pass a Backend object, or a Bundle"
    )


def load_waveform(
    audio: str | os.PathLike[str] | Array,
    *,
    sample_rate: int | None,
    expected_rate: int,
    resample_to_expected: bool,
) -> Float32:
    """A whole recording, from a file or an array, at the model's rate.

    Parameters
    ----------
    audio : path, or int16 or float32 (n,), n >= 1
    sample_rate : int or None
        Rate of an array; None for a file, which knows its own.
    expected_rate : int
        Rate the model was trained for, in Hz.
    resample_to_expected : bool
        Convert audio of another rate instead of refusing it.

    Raises
    ------
    AudioNotFoundError, AudioFormatError, SampleRateError
    """
    if isinstance(audio, (str, os.PathLike)):
        if sample_rate is not None:
            raise SampleRateError(
                f"{Path(audio)}: expected no sample_rate for a file, which states its own, got "
                f"{sample_rate}; leave it out"
            )
        return load_audio(audio, sample_rate=expected_rate, resample=resample_to_expected)
    if sample_rate is None:
        raise SampleRateError(
            f"expected the sample rate of the array, got None; pass sample_rate={expected_rate}"
        )
    if resample_to_expected:
        checked = check_pcm(audio, sample_rate=sample_rate, expected_rate=sample_rate)
        waveform = resample(checked, from_rate=sample_rate, to_rate=expected_rate)
    else:
        waveform = check_pcm(audio, sample_rate=sample_rate, expected_rate=expected_rate)
    if not waveform.size:
        raise AudioFormatError("expected audio, got an array with no samples")
    ClippingDetector().push(waveform)
    return waveform


class StreamingDecoder:
    """Decodes a stream of samples to committed chunks.

    An utterance ends with `flush`, which pushes digital silence up to
    ``spec.padded_samples(n)`` and starts afresh: the same as decoding the padded waveform whole.

    Parameters
    ----------
    model : Bundle, its path, or anything with ``.spec``
    backend : name of a backend, or one that is loaded
        A loaded backend may be shared: the state is held here.
    n_steps, schedule
        Passes of the head a chunk, or frames committed in each; the model's own if both are None.
    revisions : int, optional
        Passes after these that look at every frame again; the model's own if None.
    keep_trace : bool
        Keep every pass's partial alignment in the chunks.
    """

    def __init__(
        self,
        model: Model,
        *,
        backend: str | Backend = "onnx",
        n_steps: int | None = None,
        schedule: Sequence[int] | None = None,
        revisions: int | None = None,
        keep_trace: bool = False,
    ) -> None:
        described = describe_model(model)
        spec = self.spec = speech_spec(described.spec)
        spec.check_streaming()
        self.backend = speech_backend(described, backend)
        self.schedule = resolve_schedule(spec.head, n_steps, schedule)
        self.revisions = resolve_revisions(spec.head, revisions)
        self._log_mel = StreamingLogMel(spec.features)
        context = self.backend.initial_context()
        self._imputer = StreamingImputer(
            self.backend.imputer_step,
            spec.head,
            spec.tokens,
            context=context,
            schedule=self.schedule,
            revisions=self.revisions,
            keep_trace=keep_trace,
        )
        self._features = np.empty((spec.step_features, spec.features.n_mels), np.float32)
        self._chunk = np.empty((spec.head.chunk_size, context.shape[1]), context.dtype)
        self.reset()

    def reset(self) -> None:
        """Forget the utterance so far; the next push starts a new one."""
        self.n_samples = 0
        self._clipping = ClippingDetector()
        self._log_mel.reset()
        self._imputer.reset()
        self._state = self.backend.initial_state()
        self._n_features = 0  # feature frames waiting for a whole step of the encoder
        self._n_frames = 0  # encoder frames waiting for a whole chunk

    def push(self, pcm: Array, *, sample_rate: int) -> list[ImputedChunk]:
        """Take the next samples, any number of them.

        Parameters
        ----------
        pcm : int16 or float32, (n,)
        sample_rate : int
            Rate of `pcm`, in Hz; must be the model's.

        Returns
        -------
        chunks : the chunks that `pcm` completes, often none

        Raises
        ------
        SampleRateError, AudioFormatError
            Nothing of `pcm` was taken then; the stream can go on.
        """
        waveform = check_pcm(
            pcm, sample_rate=sample_rate, expected_rate=self.spec.features.sample_rate
        )
        self._clipping.push(waveform)
        return self._advance(waveform)

    def flush(self) -> list[ImputedChunk]:
        """End the utterance and return its last chunks; nothing if no sample was pushed."""
        if not self.n_samples:
            return []
        n_silence = self.spec.padded_samples(self.n_samples) - self.n_samples
        chunks = self._advance(np.zeros(n_silence, np.float32))
        self.reset()
        return chunks

    def decode(self, waveform: Float32) -> list[ImputedChunk]:
        """Decode a whole utterance, float32 (n,), n >= 1, that was checked on loading."""
        self.reset()
        return [*self._advance(waveform), *self.flush()]

    def seconds(self, frame: int) -> float:
        """Time of an encoder frame's start, since the utterance's first sample."""
        return frame * self.spec.frame_s

    def _advance(self, waveform: Float32) -> list[ImputedChunk]:
        self.n_samples += waveform.size
        chunks: list[ImputedChunk] = []
        log_mel = self._log_mel.push(waveform)  # (t, n_mels)
        while len(log_mel):
            n_new = min(len(self._features) - self._n_features, len(log_mel))
            self._features[self._n_features : self._n_features + n_new] = log_mel[:n_new]
            self._n_features += n_new
            log_mel = log_mel[n_new:]
            if self._n_features == len(self._features):
                self._n_features = 0
                self._encode(chunks)
        return chunks

    def _encode(self, chunks: list[ImputedChunk]) -> None:
        """One step of the encoder, and a decoded chunk when that completes one."""
        frames, self._state = self.backend.encoder_step(self._features, self._state)
        self._chunk[self._n_frames : self._n_frames + len(frames)] = frames
        self._n_frames += len(frames)
        if self._n_frames == len(self._chunk):
            self._n_frames = 0
            chunks.append(self._imputer.push_chunk(self._chunk))
