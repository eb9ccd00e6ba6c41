"""Speech to text, as it is spoken or from a file.

>>> recognizer = Recognizer("bundle")  # doctest: +SKIP
>>> for pcm in microphone:  # doctest: +SKIP
...     for event in recognizer.push(pcm, sample_rate=16_000):
...         print(event.text)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends import Backend
from .decoding import Language, SearchedText
from .events import Event, Final, Partial, Transcript, Word
from .imputation import ImputedChunk
from .pipeline import Model, StreamingDecoder, load_waveform
from .specs import ModelSpec
from .tokens import Tokenizer


@dataclass
class _Token:
    """A collapsed token: its run of frames and the sum of their log-probabilities."""

    token: int
    start: int  # first encoder frame
    end: int  # one past the last
    log_prob: float


class _Text:
    """The transcript so far: alignments collapsed across chunks, grouped into words."""

    def __init__(self, spec: ModelSpec) -> None:
        self._frame_s = spec.frame_s
        self._blank_id = spec.tokens.blank_id
        self._tokenizer = Tokenizer(spec.tokens)
        self.reset()

    def reset(self) -> None:
        self._tokens: list[_Token] = []
        self._previous = self._blank_id
        self._blank_log_prob = 0.0
        self._n_blank = 0

    def append(self, chunk: ImputedChunk) -> None:
        """Take the next chunk: merge repeats, drop blanks, also across its borders."""
        log_probs = np.take_along_axis(chunk.log_probs, chunk.alignment[:, None], axis=1)[:, 0]
        frames = zip(chunk.alignment.tolist(), log_probs.tolist(), strict=True)
        for frame, (token, log_prob) in enumerate(frames, start=chunk.first_frame):
            if token == self._blank_id:
                self._blank_log_prob += log_prob
                self._n_blank += 1
            elif token == self._previous:
                self._tokens[-1].end = frame + 1
                self._tokens[-1].log_prob += log_prob
            else:
                self._tokens.append(_Token(token, frame, frame + 1, log_prob))
            self._previous = token

    def words(self) -> tuple[Word, ...]:
        """The words so far; one word where the token set has no space."""
        words: list[Word] = []
        group: list[_Token] = []
        for token in self._tokens:
            if token.token != self._tokenizer.separator_id:
                group.append(token)
            elif group:
                words.append(self._word(group))
                group = []
        if group:
            words.append(self._word(group))
        return tuple(words)

    def _word(self, group: list[_Token]) -> Word:
        return Word(
            text=self._tokenizer.decode(token.token for token in group),
            start_s=group[0].start * self._frame_s,
            end_s=group[-1].end * self._frame_s,
            confidence=_confidence(group),
        )

    def partial(self) -> Partial:
        """The text so far as an event."""
        final = self.final()
        return Partial(final.text, final.start_s, final.end_s, final.confidence)

    def final(self) -> Final:
        """The text so far as that of a whole utterance."""
        words = self.words()
        if self._tokens:
            confidence = _confidence(self._tokens)
        else:
            confidence = exp(self._blank_log_prob / self._n_blank)
        return Final(
            text=" ".join(word.text for word in words),
            start_s=words[0].start_s if words else 0.0,
            end_s=words[-1].end_s if words else 0.0,
            confidence=confidence,
            words=words,
        )


def _confidence(tokens: Sequence[_Token]) -> float:
    n_frames = sum(token.end - token.start for token in tokens)
    return exp(sum(token.log_prob for token in tokens) / n_frames)


class Recognizer:
    """Streaming and whole-file speech recognition.

    Flush between utterances: until then the text, and the work a partial costs, grow.

    Confidence, of a word or a text, is the geometric mean of the probabilities of its committed
    frames that are not blank; of an empty text, that of its blank frames. With a language it is how
    near its text is to what was heard without one, see `edge_imputer.decoding.SearchedText`.

    Parameters
    ----------
    model : Bundle, its path, or anything with ``.spec``
    backend : {"onnx", "onnx-float", "litert", "native"} or a loaded Backend
    n_steps : int, optional
        Passes of the head a chunk: fewer are faster, more are surer.
    schedule : sequence of int, optional
        Frames committed a block in each pass. The model's own if neither is given.
    revisions : int, optional
        Passes after these that look at every frame again; the model's own if not given.
    language : Language, optional
        What may be said: a lexicon, a grammar, a token n-gram, see `edge_imputer.decoding`. Without
        it the text is what was committed frame by frame.
    """

    def __init__(
        self,
        model: Model,
        *,
        backend: str | Backend = "onnx",
        n_steps: int | None = None,
        schedule: Sequence[int] | None = None,
        revisions: int | None = None,
        language: Language | None = None,
    ) -> None:
        self._decoder = StreamingDecoder(
            model, backend=backend, n_steps=n_steps, schedule=schedule, revisions=revisions
        )
        self._language = language
        self._text = self._new_text()
        self._said = ""

    @property
    def spec(self) -> ModelSpec:
        """The model's specification."""
        return self._decoder.spec

    def push(self, pcm: npt.NDArray[Any], *, sample_rate: int) -> list[Event]:
        """Take the next samples, int16 or float32 (n,), any number of them.

        Returns
        -------
        events : a `Partial` when the text so far changed, else nothing

        Raises
        ------
        SampleRateError, AudioFormatError
        """
        return self._update(self._decoder.push(pcm, sample_rate=sample_rate))

    def flush(self) -> list[Event]:
        """End the utterance: a `Final`, or nothing if no sample was pushed. Starts afresh."""
        if not self._decoder.n_samples:
            return []
        for chunk in self._decoder.flush():
            self._text.append(chunk)
        final = self._text.final()
        self.reset()
        return [final]

    def reset(self) -> None:
        """Forget the utterance so far."""
        self._decoder.reset()
        self._text.reset()
        self._said = ""

    def _update(self, chunks: list[ImputedChunk]) -> list[Event]:
        if not chunks:
            return []
        for chunk in chunks:
            self._text.append(chunk)
        partial = self._text.partial()
        if partial.text == self._said:
            return []
        self._said = partial.text
        return [partial]

    def transcribe(
        self,
        audio: str | os.PathLike[str] | npt.NDArray[Any],
        *,
        sample_rate: int | None = None,
        resample: bool = False,
    ) -> Transcript:
        """Transcribe a whole recording. A stream that is under way here is not disturbed.

        Parameters
        ----------
        audio : path of a mono wav, flac or ogg file, or int16 or float32 (n,)
        sample_rate : int, optional
            Rate of an array, in Hz.
        resample : bool
            Convert audio of another rate; without it such audio is refused.

        Raises
        ------
        AudioNotFoundError, AudioFormatError, SampleRateError
        """
        rate = self.spec.features.sample_rate
        waveform = load_waveform(
            audio, sample_rate=sample_rate, expected_rate=rate, resample_to_expected=resample
        )
        own = self._decoder
        decoder = StreamingDecoder(
            self, backend=own.backend, schedule=own.schedule, revisions=own.revisions
        )
        text = self._new_text()
        for chunk in decoder.decode(waveform):
            text.append(chunk)
        final = text.final()
        return Transcript(
            final.text,
            final.start_s,
            final.end_s,
            final.confidence,
            final.words,
            waveform.size / rate,
            final.meaning,
        )

    def _new_text(self) -> _Text | SearchedText:
        return (
            _Text(self.spec) if self._language is None else SearchedText(self._language, self.spec)
        )
