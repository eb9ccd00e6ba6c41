"""Keyword scores: against every path there is, on cases small enough to list them all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.errors import SpecError, TokenError
from edge_imputer.imputation import log_softmax
from edge_imputer.keywords import KeywordDetector, KeywordScorer
from edge_imputer.specs import TokenSpec

from .fakes import Float32

TOKENS = TokenSpec(characters=(" ", "a", "b"))
BLANK, SPACE = 0, 1
SILENCE = 2  # blanks in a row that count as a boundary, in the brute-force tests


def random_log_probs(n_frames: int, seed: int) -> Float32:
    rng = np.random.default_rng(seed)
    return log_softmax(3 * rng.standard_normal((n_frames, 4), np.float32))


# ------------------------------------------------------------------------------ brute force


@dataclass(frozen=True)
class Path:
    """A keyword's tokens on frames start..end, and the frames its boundaries take."""

    score: float
    start: int
    end: int


def spells(labels: tuple[int, ...], ids: list[int]) -> bool:
    """Whether a CTC labelling without blanks at its ends collapses to `ids`."""
    collapsed = [token for token, _ in itertools.groupby(labels) if token != BLANK]
    return BLANK not in (labels[0], labels[-1]) and collapsed == ids


def word_paths(relative: np.ndarray, ids: list[int], last: int) -> Iterator[Path]:
    """Every way to say the keyword that ends at frame `last`."""
    for start in range(last + 1):
        frames = range(start, last + 1)
        for labels in itertools.product(sorted({BLANK, *ids}), repeat=len(frames)):
            if spells(labels, ids):
                score = sum(relative[t, label] for t, label in zip(frames, labels, strict=True))
                yield Path(float(score), start, last)


def before(relative: np.ndarray, start: int) -> float:
    """Best boundary that ends just before frame `start`."""
    blank = relative[:, BLANK]
    options = [float(blank[:start].sum())]  # the start of the stream, then blanks
    if start >= SILENCE:  # a silence, wherever it began
        options.append(float(blank[start - SILENCE : start].sum()))
    options += [  # a space, then blanks
        float(relative[t, SPACE] + blank[t + 1 : start].sum()) for t in range(start)
    ]
    return max(options)


def after(relative: np.ndarray, end: int, t: int) -> float:
    """Best boundary that begins after frame `end` and is complete exactly at frame `t`."""
    blank = relative[end + 1 : t, BLANK].sum()
    options = [float(blank + relative[t, SPACE])] if t > end else []
    if t - end == SILENCE:
        options.append(float(blank + relative[t, BLANK]))
    return max(options, default=-math.inf)


def best_at(relative: np.ndarray, ids: list[int], t: int, whole_words: bool) -> float:
    """Best score that is complete at frame t; at t = T, by the end of the stream."""
    n_frames = len(relative)
    best = -math.inf
    ends = range(min(t, n_frames - 1) + 1) if whole_words else [t] if t < n_frames else []
    for end in ends:
        for path in word_paths(relative, ids, end):
            score = path.score
            if whole_words and t < n_frames:
                score += before(relative, path.start) + after(relative, end, t)
            elif whole_words:
                score += before(relative, path.start) + float(relative[end + 1 :, BLANK].sum())
            best = max(best, score)
    return best


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from(["a", "aa", "ab", "aba", "a b", "bb"]), min_size=1, unique=True),
    st.integers(0, 5),
    st.integers(0, 10_000),
    st.booleans(),
)
def test_scores_equal_the_best_of_all_paths(
    keywords: list[str], n_frames: int, seed: int, whole_words: bool
) -> None:
    log_probs = random_log_probs(n_frames, seed)
    relative = log_probs.astype(np.float64)
    relative -= relative.max(axis=1, keepdims=True)
    scorer = KeywordScorer(keywords, TOKENS, word_boundaries=whole_words, silence_frames=SILENCE)
    during, end = scorer.push(log_probs), scorer.finish()
    confidence = np.concatenate([during.confidence, end.confidence])
    for k, keyword in enumerate(keywords):
        ids = [TOKENS.characters.index(c) + 1 for c in keyword]
        for t in range(n_frames + 1):
            expected = math.exp(best_at(relative, ids, t, whole_words) / len(ids))
            assert confidence[t, k] == pytest.approx(expected, rel=1e-9), (keyword, t)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["a", "aa", "ab", "aba"]), st.integers(2, 5), st.integers(0, 10_000))
def test_start_and_end_are_those_of_a_best_path(keyword: str, n_frames: int, seed: int) -> None:
    log_probs = random_log_probs(n_frames, seed)
    relative = log_probs.astype(np.float64)
    relative -= relative.max(axis=1, keepdims=True)
    ids = [TOKENS.characters.index(c) + 1 for c in keyword]
    scores = KeywordScorer([keyword], TOKENS, silence_frames=SILENCE).push(log_probs)
    for t in range(n_frames):
        confidence, end = scores.confidence[t, 0], int(scores.end[t, 0])
        if confidence == 0:
            continue
        found = [
            path.score + before(relative, path.start) + after(relative, end, t)
            for path in word_paths(relative, ids, end)
            if path.start == scores.start[t, 0]
        ]
        assert max(found) == pytest.approx(len(ids) * math.log(confidence), abs=1e-9)


# ------------------------------------------------------------------------------ properties


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 7), max_size=6), st.booleans())
def test_streaming_equals_batch_bit_for_bit(seed: int, sizes: list[int], whole_words: bool) -> None:
    log_probs = random_log_probs(sum(sizes), seed)

    def scorer() -> KeywordScorer:
        return KeywordScorer(["a", "ab", "bb"], TOKENS, word_boundaries=whole_words)

    whole = scorer().push(log_probs)
    streaming = scorer()
    parts = [
        streaming.push(part) for part in (np.split(log_probs, np.cumsum(sizes)[:-1]) or [log_probs])
    ]
    for name in ("confidence", "start", "end"):
        streamed = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(streamed, getattr(whole, name))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_keywords_do_not_disturb_each_other(seed: int, n_frames: int) -> None:
    log_probs = random_log_probs(n_frames, seed)
    keywords = ["ab", "a", "bb", "a b"]
    together = KeywordScorer(keywords, TOKENS).push(log_probs)
    for k, keyword in enumerate(keywords):
        alone = KeywordScorer([keyword], TOKENS).push(log_probs)
        np.testing.assert_array_equal(together.confidence[:, k], alone.confidence[:, 0])
        np.testing.assert_array_equal(together.start[:, k], alone.start[:, 0])


def test_reset_and_finish_start_a_new_stream() -> None:
    log_probs = random_log_probs(9, 3)
    scorer = KeywordScorer(["ab"], TOKENS)
    first = scorer.push(log_probs)
    scorer.finish()
    np.testing.assert_array_equal(scorer.push(log_probs).confidence, first.confidence)
    scorer.reset()
    np.testing.assert_array_equal(scorer.push(log_probs).confidence, first.confidence)


# ------------------------------------------------------------------------------ detection

LETTERS = TokenSpec(characters=tuple(" ehnop"))


def heard(alignment: str, *, margin: float = 8.0, tokens: TokenSpec = LETTERS) -> Float32:
    """Log-probs of a model that heard an alignment; a dot is the blank, a space itself."""
    ids = [0 if c == "." else tokens.characters.index(c) + 1 for c in alignment]
    return log_softmax(np.float32(margin) * np.eye(tokens.vocabulary_size, dtype=np.float32)[ids])


def detect(alignment: str, keyword: str = "one", **options: object) -> list[tuple[int, int]]:
    """(start, end) of what fires at threshold 0.5, three blanks being a boundary."""
    scorer = KeywordScorer([keyword], LETTERS, silence_frames=3, **options)  # type: ignore[arg-type]
    detector = KeywordDetector(scorer, [0.5])
    hits = [*detector.push(heard(alignment)), *detector.finish()]
    return [(hit.start, hit.end) for hit in hits]


@pytest.mark.parametrize(
    ("alignment", "expected"),
    [
        ("one", [(0, 2)]),  # the stream is the word
        ("..oo.n.ee..", [(2, 8)]),
        ("one one", [(0, 2), (4, 6)]),
        ("one.. ..one", [(0, 2), (8, 10)]),
        ("one....one....", [(0, 2), (7, 9)]),  # isolated words without a space
        ("one..one", []),  # run together: "oneone" is another word
        ("phone", []),
        ("p.h.o.n.e", []),
        ("hope one", [(5, 7)]),
        ("onep", []),
        ("one p", [(0, 2)]),
        ("p one", [(2, 4)]),
        ("on e", []),
        ("on", []),
        ("oonnee one", [(0, 5), (7, 9)]),
        ("", []),
        ("......", []),
    ],
)
def test_whole_words(alignment: str, expected: list[tuple[int, int]]) -> None:
    assert detect(alignment) == expected


@pytest.mark.parametrize(
    ("alignment", "expected"),
    [
        ("phone", [(2, 4)]),
        ("one..one", [(0, 2), (5, 7)]),
        ("oneone", [(0, 2), (3, 5)]),
        ("p.ooone", [(2, 6)]),
    ],
)
def test_without_word_boundaries(alignment: str, expected: list[tuple[int, int]]) -> None:
    assert detect(alignment, word_boundaries=False) == expected


def test_a_token_set_without_a_space_needs_no_boundaries() -> None:
    tokens = TokenSpec(characters=tuple("ehnop"))
    detector = KeywordDetector(KeywordScorer(["one"], tokens), [0.5])
    hits = detector.push(heard("phone.", tokens=tokens))
    assert [(hit.start, hit.end) for hit in hits] == [(2, 4)]


def test_repeated_letters_need_a_blank_between() -> None:
    assert detect("noon", "noon") == []
    assert detect("no.on", "noon") == [(0, 4)]


def test_phrases() -> None:
    assert detect("no one", "no one") == [(0, 5)]
    assert detect("no. .one hope", "no one") == [(0, 7)]
    assert detect("noone", "no one") == []


def test_confidence_is_one_for_what_the_free_path_spells_and_falls_with_doubt() -> None:
    def confidence(alignment: str, margin: float) -> float:
        scores = KeywordScorer(["one"], LETTERS)
        scores.push(heard(alignment, margin=margin))
        return float(scores.finish().confidence[0, 0])

    assert confidence("one", 8.0) == confidence("one", 1.0) == 1.0
    # One letter heard as another costs its odds, e^-margin, shared by three letters.
    for margin in (1.0, 3.0, 8.0):
        assert confidence("onp", margin) == pytest.approx(math.exp(-margin / 3), rel=1e-5)


def test_what_surrounds_a_keyword_does_not_change_its_confidence() -> None:
    doubtful = heard("one", margin=1.5)
    doubtful[1] = heard("h", margin=0.7)[0]
    around = [heard("hope "), doubtful, heard(" no hope...")]
    scorer = KeywordScorer(["one"], LETTERS)
    alone = scorer.push(np.concatenate([heard(" "), doubtful, heard(" ")])).confidence.max()
    scorer.reset()
    within = scorer.push(np.concatenate(around)).confidence.max()
    assert within == pytest.approx(alone, rel=1e-9)
    assert 0.7 < alone < 0.9


def test_fires_once_at_the_best_frame_and_one_frame_later() -> None:
    tokens = TokenSpec(characters=("a", "b"))
    rows = log_softmax(np.float32([[9, 0, 0], [9, 8, 0], [0, 1, 0], [0, 9, 0], [9, 0, 0]]))
    detector = KeywordDetector(KeywordScorer(["a"], tokens), [0.2])
    assert [detector.push(row[None]) for row in rows[:2]] == [[], []]
    assert detector.push(rows[2:3]) == []  # rises from e^-1 to 1 here
    (hit,) = detector.push(rows[3:4])  # no better any more
    assert (hit.start, hit.end, hit.confidence) == (2, 2, 1.0)
    assert detector.push(rows[4:]) == []
    assert detector.finish() == []


def test_what_is_about_to_fire_fires_at_the_end() -> None:
    tokens = TokenSpec(characters=("a", "b"))
    detector = KeywordDetector(KeywordScorer(["a"], tokens), [0.5])
    assert detector.push(heard(".a", tokens=tokens)) == []
    assert [hit.end for hit in detector.finish()] == [1]
    assert detector.finish() == []


def test_reset_drops_what_was_about_to_fire() -> None:
    tokens = TokenSpec(characters=("a", "b"))
    detector = KeywordDetector(KeywordScorer(["a"], tokens), [0.5])
    detector.push(heard(".a", tokens=tokens))
    detector.reset()
    assert detector.finish() == []


def test_refractory_time_counts_from_end_to_end() -> None:
    for refractory, expected in ((4, 3), (5, 2), (9, 1)):
        detector = KeywordDetector(
            KeywordScorer(["one"], LETTERS), [0.5], refractory_frames=refractory
        )
        hits = [*detector.push(heard("one one one")), *detector.finish()]
        assert len(hits) == expected


def test_thresholds_are_each_keyword_s_own() -> None:
    scorer = KeywordScorer(["one", "nope"], LETTERS)
    detector = KeywordDetector(scorer, [0.3, 0.5])
    hits = [*detector.push(heard("onp hope no", margin=3.0)), *detector.finish()]
    assert [hit.keyword for hit in hits] == ["one"]
    assert hits[0].confidence == pytest.approx(math.exp(-1), rel=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: KeywordScorer([], LETTERS), "at least one"),
        (lambda: KeywordScorer("one", LETTERS), "a list of keywords"),
        (lambda: KeywordScorer([""], LETTERS), "not empty"),
        (lambda: KeywordScorer([" one"], LETTERS), "no space at either end"),
        (lambda: KeywordScorer(["one", "one"], LETTERS), "distinct"),
        (lambda: KeywordScorer(["one"], LETTERS, silence_frames=0), "silence_frames >= 1"),
        (
            lambda: KeywordScorer(["a"], TokenSpec(characters=("a",)), word_boundaries=True),
            "token set with a space",
        ),
        (lambda: KeywordDetector(KeywordScorer(["one"], LETTERS), []), "one a keyword"),
        (lambda: KeywordDetector(KeywordScorer(["one"], LETTERS), [1.5]), "from 0 to 1"),
        (lambda: KeywordDetector(KeywordScorer(["one"], LETTERS), [math.nan]), "from 0 to 1"),
        (
            lambda: KeywordDetector(KeywordScorer(["one"], LETTERS), [0.5], refractory_frames=-1),
            "refractory time >= 0",
        ),
    ],
)
def test_what_cannot_be_listened_for(build: Callable[[], object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build()


def test_letters_that_the_model_does_not_know() -> None:
    with pytest.raises(TokenError, match=r"'x' \(U\+0078\) at 1"):
        KeywordScorer(["ox"], LETTERS)
