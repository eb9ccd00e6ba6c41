"""Keywords by their text: any word that the token set can spell, without training for it.

A keyword's CTC automaton (its tokens, a blank allowed between any two and required between equal
ones) may be entered at any frame. Its best path is compared with the free path, which takes the
best token of every frame::

    score = sum over the path's frames of (log p(path) - log p(best token))  <= 0
    confidence = exp(score / number of tokens)                               in (0, 1]

so a keyword that the free path spells has confidence 1, whatever the rest of the utterance is,
and a doubtful letter costs the odds of the letter that was heard instead.

Word boundaries
---------------
"one" should not fire inside "phone". Where the token set has a space, the path therefore starts
and ends at a word boundary, and pays for it like for its tokens. A boundary is

- a space, with any number of blanks between it and the word; or
- the start or the end of the stream, with only blanks between; or
- a silence: `silence_frames` blanks in a row. Spaces are what transcripts such as "seven three
  one" teach between words; isolated words in a long stream may come without any.

So a keyword is reported when the boundary after it is heard: with the next word's space, after
`silence_frames` frames, or when the stream ends. Without a space in the token set, or with
``word_boundaries=False``, a keyword may start and end anywhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import SpecError
from .specs import TokenSpec
from .tokens import Tokenizer

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

SILENCE_FRAMES = 6  # blanks in a row that count as a word boundary: 240 ms at 40 ms a frame


@dataclass(frozen=True)
class KeywordScores:
    """Best path of every keyword that is complete at each of T frames, K keywords.

    Attributes
    ----------
    confidence : float64, (T, K)
        0 where no path can be complete.
    start, end : int64, (T, K)
        First and last frame of the keyword's tokens on that path.
    """

    confidence: Float64
    start: Int64
    end: Int64


class _Automaton:
    """The states of all keywords in one row: token, blank, token, ... of each, one after another.

    Entering a state is allowed from itself, from the state before (`from_previous`) and, for a
    token unlike the token before it, from the token before (`from_token`); forbidden moves carry
    -inf.
    """

    def __init__(self, keywords: Sequence[Sequence[int]], blank_id: int) -> None:
        labels: list[int] = []
        from_previous: list[float] = []
        from_token: list[float] = []
        first, last = [], []
        for ids in keywords:
            first.append(len(labels))
            for position, token in enumerate(ids):
                if position:
                    labels.append(blank_id)
                    from_previous.append(0.0)
                    from_token.append(-np.inf)
                labels.append(token)
                from_previous.append(0.0 if position else -np.inf)
                differs = position > 0 and ids[position - 1] != token
                from_token.append(0.0 if differs else -np.inf)
            last.append(len(labels) - 1)
        self.labels = np.array(labels)  # (N,)
        self.from_previous = np.array(from_previous)  # (N,)
        self.from_token = np.array(from_token)  # (N,)
        self.first, self.last = np.array(first), np.array(last)  # (K,)


class KeywordScorer:
    """Scores keywords against the per-frame log-probs of a stream, exactly and frame by frame.

    A frame costs a few vector operations over all states of all keywords.

    Parameters
    ----------
    keywords : texts, spelled with the token set's characters
    tokens : TokenSpec
    word_boundaries : bool, optional
        Whole words only. True where the token set has a space, if not given.
    silence_frames : int
        Blanks in a row that count as a word boundary.

    Raises
    ------
    SpecError
        No keyword, an empty or repeated one, or word boundaries without a space.
    TokenError
        A keyword has a character that the model does not know.
    """

    def __init__(
        self,
        keywords: Sequence[str],
        tokens: TokenSpec,
        *,
        word_boundaries: bool | None = None,
        silence_frames: int = SILENCE_FRAMES,
    ) -> None:
        tokenizer = Tokenizer(tokens)
        self._space = tokenizer.separator_id
        if word_boundaries is None:
            word_boundaries = self._space is not None
        elif word_boundaries and self._space is None:
            raise SpecError(
                "expected a token set with a space for word boundaries, got "
                f"{''.join(tokens.characters)!r}; pass word_boundaries=False"
            )
        if silence_frames < 1:
            raise SpecError(f"expected silence_frames >= 1, got {silence_frames}")
        check_keywords(keywords)
        ids = [tokenizer.encode(keyword) for keyword in keywords]
        self.keywords = tuple(keywords)
        self.word_boundaries = word_boundaries
        self.silence_frames = silence_frames
        self._blank_id = tokens.blank_id
        self._automaton = _Automaton(ids, tokens.blank_id)
        self._n_tokens = np.array([len(one) for one in ids])
        self.reset()

    def reset(self) -> None:
        """Start a new stream."""
        n_states, n_keywords = len(self._automaton.labels), len(self.keywords)
        self._frame = 0
        # Two states that nothing can come from stand before the first, for the shifted views.
        self._score = np.full(n_states + 2, -np.inf)
        self._start = np.zeros(n_states + 2, np.int64)
        self._before = 0.0  # best score of standing at a boundary: the stream starts at one
        # The word is over and only blanks followed: score, start, end of each keyword.
        self._after = np.full(n_keywords, -np.inf)
        self._after_start = np.zeros(n_keywords, np.int64)
        self._after_end = np.zeros(n_keywords, np.int64)
        # The last silence_frames frames: score and start at each keyword's last token, blank score.
        self._recent: deque[tuple[Float64, Int64, float]] = deque(maxlen=self.silence_frames)

    def push(self, log_probs: Float32) -> KeywordScores:
        """Take the next frames' log-probs, float32 (T, V); T may be 0."""
        relative = log_probs.astype(np.float64)
        relative -= relative.max(axis=1, keepdims=True)  # (T, V), 0 for each frame's best token
        shape = (len(relative), len(self.keywords))
        score = np.empty(shape)
        start, end = np.empty(shape, np.int64), np.empty(shape, np.int64)
        for t, row in enumerate(relative):
            score[t], start[t], end[t] = self._step(row)
        return self._scores(score, start, end)

    def finish(self) -> KeywordScores:
        """What the end of the stream completes, as one more frame (T = 1); then `reset`."""
        if self.word_boundaries:
            ended, ended_start = self._at_last()
            better = ended > self._after
            score = np.where(better, ended, self._after)
            start = np.where(better, ended_start, self._after_start)
            end = np.where(better, self._frame - 1, self._after_end)
        else:
            score = np.full(len(self.keywords), -np.inf)
            start = end = np.zeros(len(self.keywords), np.int64)
        self.reset()
        return self._scores(score[None], start[None], end[None])

    def _scores(self, score: Float64, start: Int64, end: Int64) -> KeywordScores:
        return KeywordScores(np.exp(score / self._n_tokens), start, end)

    def _at_last(self) -> tuple[Float64, Int64]:
        """Score and start of the best path that stands at each keyword's last token, (K,)."""
        last = self._automaton.last + 2
        return self._score[last], self._start[last]

    def _step(self, row: Float64) -> tuple[Float64, Int64, Int64]:
        """Advance by one frame: score, start and end of every keyword complete at it, (K,)."""
        if not self.word_boundaries:
            self._move(row)
            self._frame += 1
            score, start = self._at_last()
            return score, start, np.full(len(score), self._frame - 1)
        complete = self._leave(row)
        self._move(row)
        self._stand(row)
        self._frame += 1
        return complete

    def _move(self, row: Float64) -> None:
        """One frame inside the keywords. On ties a path stays where it is."""
        a = self._automaton
        score, start = self._score[2:].copy(), self._start[2:].copy()
        enters = score[a.first] < self._before
        score[a.first[enters]] = self._before
        start[a.first[enters]] = self._frame
        for moved, origin in (
            (self._score[1:-1] + a.from_previous, self._start[1:-1]),
            (self._score[:-2] + a.from_token, self._start[:-2]),
        ):
            better = moved > score
            np.copyto(score, moved, where=better)
            np.copyto(start, origin, where=better)
        score += row[a.labels]
        self._score[2:], self._start[2:] = score, start

    def _stand(self, row: Float64) -> None:
        """Best score of standing at a boundary after this frame, see the module's docstring."""
        blank = float(row[self._blank_id])
        after_space = float(row[self._space])
        self._before = max(self._before + blank, after_space)
        self._recent.append((*self._at_last(), blank))
        if len(self._recent) == self.silence_frames:
            silence = sum(one[2] for one in self._recent)
            self._before = max(self._before, silence)

    def _leave(self, row: Float64) -> tuple[Float64, Int64, Int64]:
        """Paths whose boundary ends at this frame: a space, or a silence long enough."""
        score, start = self._at_last()
        end = np.full(len(score), self._frame - 1)
        better = score > self._after  # the frame before was the keyword's last, or already blank
        np.copyto(self._after, score, where=better)
        np.copyto(self._after_start, start, where=better)
        np.copyto(self._after_end, end, where=better)
        complete = self._after + row[self._space]
        complete_start, complete_end = self._after_start.copy(), self._after_end.copy()
        blank = row[self._blank_id]
        if len(self._recent) == self.silence_frames:
            # The oldest frame kept was the keyword's last; the others and this one are blank.
            score, start, _ = self._recent[0]
            silence = score + sum(one[2] for one in list(self._recent)[1:]) + blank
            better = silence > complete
            np.copyto(complete, silence, where=better)
            np.copyto(complete_start, start, where=better)
            np.copyto(complete_end, self._frame - self.silence_frames, where=better)
        self._after += blank
        return complete, complete_start, complete_end


def check_keywords(keywords: Sequence[str]) -> None:
    """Raise `SpecError` on no keyword, or one that is empty, repeated or padded with spaces."""
    if isinstance(keywords, str) or not keywords:
        raise SpecError(f"expected a list of keywords, at least one, got {keywords!r}")
    unusual = [k for k in keywords if not k or k != k.strip() or list(keywords).count(k) > 1]
    if unusual:
        raise SpecError(
            "expected distinct keywords that are not empty and have no space at either end, got "
            f"{unusual!r}; remove or strip them"
        )


@dataclass(frozen=True)
class KeywordHit:
    """One occurrence of a keyword, in encoder frames; `end` is its last."""

    keyword: str
    start: int
    end: int
    confidence: float


class KeywordDetector:
    """Turns scores into one hit an occurrence.

    A keyword fires when its confidence has reached the threshold and the next frame brings no
    better one: at the local maximum, one frame after it. It fires again only for an occurrence
    that starts after the last one's end and ends at least `refractory_frames` after it.
    With a threshold so low that unfinished words reach it, the hit may be the unfinished one; to
    choose a threshold, take the greatest confidence of `KeywordScorer` instead.

    Parameters
    ----------
    scorer : KeywordScorer
        Owned by the detector from now on.
    thresholds : one confidence in [0, 1] a keyword
    refractory_frames : int
    """

    def __init__(
        self, scorer: KeywordScorer, thresholds: Sequence[float], *, refractory_frames: int = 0
    ) -> None:
        if len(thresholds) != len(scorer.keywords):
            raise SpecError(
                f"expected {len(scorer.keywords)} thresholds, one a keyword, got {len(thresholds)}"
            )
        if not all(0 <= threshold <= 1 for threshold in thresholds):
            raise SpecError(f"expected thresholds from 0 to 1, got {list(thresholds)}")
        if refractory_frames < 0:
            raise SpecError(f"expected a refractory time >= 0, got {refractory_frames} frames")
        self.scorer = scorer
        self.thresholds = np.asarray(thresholds, np.float64)
        self.refractory_frames = refractory_frames
        self.reset()

    def reset(self) -> None:
        """Start a new stream."""
        self.scorer.reset()
        self._pending: dict[int, KeywordHit] = {}
        self._last_end = [-1 - self.refractory_frames] * len(self.thresholds)

    def push(self, log_probs: Float32) -> list[KeywordHit]:
        """Take the next frames' log-probs, float32 (T, V), and return what fired, in order."""
        return self._pick(self.scorer.push(log_probs))

    def finish(self) -> list[KeywordHit]:
        """End the stream: what was about to fire, and what its end completes; then `reset`."""
        hits = self._pick(self.scorer.finish())
        hits += [self._fire(keyword) for keyword in sorted(self._pending)]
        self.reset()
        return hits

    def _pick(self, scores: KeywordScores) -> list[KeywordHit]:
        hits = []
        reached = (scores.confidence >= self.thresholds) & (scores.confidence > 0)
        for t in range(len(reached)):
            if not self._pending and not reached[t].any():
                continue
            rising = {
                int(k): hit
                for k in np.flatnonzero(reached[t])
                if (hit := self._candidate(scores, t, int(k))) is not None
            }
            hits += [self._fire(k) for k in sorted(set(self._pending) - set(rising))]
            self._pending.update(rising)
        return hits

    def _candidate(self, scores: KeywordScores, t: int, keyword: int) -> KeywordHit | None:
        """The path complete at frame t, if it is new and better than the one pending."""
        start, end = int(scores.start[t, keyword]), int(scores.end[t, keyword])
        confidence = float(scores.confidence[t, keyword])
        last = self._last_end[keyword]
        if start <= last or end < last + self.refractory_frames:
            return None
        pending = self._pending.get(keyword)
        if pending is not None and confidence <= pending.confidence:
            return None
        return KeywordHit(self.scorer.keywords[keyword], start, end, confidence)

    def _fire(self, keyword: int) -> KeywordHit:
        hit = self._pending.pop(keyword)
        self._last_end[keyword] = hit.end
        return hit
