"""Search with knowledge of what may be said: exact by enumeration, the same in any chunks."""

from __future__ import annotations

from itertools import product
from math import exp, inf, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_imputer.decoding import (
    Arc,
    Path,
    TokenNgram,
    Viterbi,
    WordGraph,
    lexicon,
    spell_out,
)
from edge_imputer.decoding.network import Network
from edge_imputer.errors import SpecError, TokenError
from edge_imputer.specs import TokenSpec
from edge_imputer.tokens import Tokenizer

SPACED = TokenSpec(characters=(" ", "a", "b"))
UNSPACED = TokenSpec(characters=("a", "b", "c"))
GRAPHS = {
    "words": (lexicon(["a", "ab", "ba", "aa"]), SPACED),
    "weighted words": (lexicon({"a": 3, "bb": 1}, word_penalty=0.7), SPACED),
    "words without a space": (lexicon(["a", "ab", "c"]), UNSPACED),
    "one after the other": (
        WordGraph((Arc(0, "a", 1, -0.3), Arc(0, "b", 1), Arc(1, "ab", 2, -0.1)), {2: (-0.2, ())}),
        SPACED,
    ),
    "equal words to two states": (
        WordGraph((Arc(0, "a", 1), Arc(0, "a", 2, -1.0), Arc(2, "b", 1)), {1: (0.0, ())}),
        SPACED,
    ),
}


def log_probs(rng: np.random.Generator, n_frames: int, tokens: TokenSpec) -> np.ndarray:
    """Random log-probs (T, V)."""
    logits = 2 * rng.standard_normal((n_frames, len(tokens.characters) + 1))
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)


def searched(network: Network, rows: np.ndarray, sizes: list[int] | None = None) -> Path | None:
    viterbi = Viterbi(network)
    at = 0
    for size in sizes or [len(rows)]:
        viterbi.push(rows[at : at + size])
        at += size
    viterbi.push(rows[at:])
    return viterbi.finish()


def readings(graph: WordGraph, text: str, space: bool) -> list[tuple[float, tuple[int, ...]]]:
    """Every way to read a text as a path of the graph: its weight and arcs."""
    found = []

    def read(state: int, rest: str, weight: float, arcs: tuple[int, ...]) -> None:
        over = rest in ("", " ") if arcs and space else rest == ""
        if over and state in graph.finals:
            found.append((weight + graph.finals[state][0], arcs))
        if arcs and space:
            if not rest.startswith(" "):
                return
            rest = rest[1:]
        for number, arc in enumerate(graph.arcs):
            if arc.source == state and rest.startswith(arc.word):
                read(arc.target, rest[len(arc.word) :], weight + arc.weight, (*arcs, number))

    read(0, text, 0.0, ())
    return found


def by_enumeration(graph: WordGraph, rows: np.ndarray, tokens: TokenSpec) -> tuple[float, set]:
    """The best score over all alignments, and the arcs of those that have it."""
    relative = rows.astype(np.float64) - rows.astype(np.float64).max(1, keepdims=True)
    tokenizer = Tokenizer(tokens)
    best: tuple[float, set] = (-inf, set())
    for alignment in product(range(rows.shape[1]), repeat=len(rows)):
        text = tokenizer.decode(tokenizer.collapse(alignment))
        score = float(relative[np.arange(len(rows)), alignment].sum())
        for weight, arcs in readings(graph, text, tokenizer.separator_id is not None):
            total = score + weight
            if total > best[0] + 1e-9:
                best = total, {arcs}
            elif total > best[0] - 1e-9:
                best[1].add(arcs)
    return best


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("n_frames", [1, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_search_equals_enumeration(name: str, n_frames: int, seed: int) -> None:
    graph, tokens = GRAPHS[name]
    rows = log_probs(np.random.default_rng(seed), n_frames, tokens)
    path = searched(spell_out(graph, tokens), rows)
    score, arcs = by_enumeration(graph, rows, tokens)
    if score == -inf:
        assert path is None
    else:
        assert path is not None
        assert path.score == pytest.approx(score, abs=1e-9)
        assert tuple(unit.output for unit in path.units) in arcs


@given(st.integers(0, 10_000), st.lists(st.integers(0, 5), max_size=12))
def test_any_chunks_give_the_same(seed: int, sizes: list[int]) -> None:
    graph, tokens = GRAPHS["weighted words"]
    rows = log_probs(np.random.default_rng(seed), 20, tokens)
    network = spell_out(graph, tokens)
    assert searched(network, rows, sizes) == searched(network, rows)


def spoken(text: str, tokens: TokenSpec, *, sure: float = 0.9) -> np.ndarray:
    """Log-probs of a text, one frame a token, a blank after each, `sure` of them all."""
    ids = [0]
    for token in Tokenizer(tokens).encode(text):
        ids += [token, 0]
    n = len(tokens.characters) + 1
    rows = np.full((len(ids), n), (1 - sure) / (n - 1), np.float32)
    rows[np.arange(len(ids)), ids] = sure
    return np.log(rows)


def test_times_and_confidences_of_words() -> None:
    graph = lexicon(["ab", "ba"])
    path = searched(spell_out(graph, SPACED), spoken("ab ba", SPACED))
    assert path is not None
    assert [(graph.arcs[u.output].word, u.start, u.end) for u in path.units] == [
        ("ab", 1, 3),
        ("ba", 7, 9),
    ]
    assert [u.confidence for u in path.units] == [1.0, 1.0]
    assert path.acoustic == 0.0


def test_a_word_that_was_said_otherwise_costs_its_confidence() -> None:
    rows = spoken("aa", SPACED, sure=0.8)  # only "ab" is allowed
    path = searched(spell_out(lexicon(["ab"]), SPACED), rows)
    assert path is not None
    other = (1 - 0.8) / 3
    assert path.units[0].confidence == pytest.approx(exp((log(other) - log(0.8)) / 2), rel=1e-5)
    assert path.acoustic == pytest.approx(log(other) - log(0.8), rel=1e-5)


def test_too_few_frames_for_anything() -> None:
    graph = WordGraph((Arc(0, "aaa", 1),), {1: (0.0, ())})
    network = spell_out(graph, SPACED)
    assert searched(network, log_probs(np.random.default_rng(0), 4, SPACED)) is None
    assert searched(network, log_probs(np.random.default_rng(0), 5, SPACED)) is not None


def test_silence_is_no_word_of_a_lexicon() -> None:
    path = searched(spell_out(lexicon(["a", "b"]), SPACED), spoken("", SPACED))
    assert path is not None
    assert path.units == ()
    assert path.acoustic == 0.0


def test_long_streams_forget_what_no_path_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, tokens = GRAPHS["words"]
    rows = log_probs(np.random.default_rng(5), 400, tokens)
    network = spell_out(graph, tokens)
    expected = searched(network, rows)
    monkeypatch.setattr("edge_imputer.decoding.viterbi.MOST_LINKS", 10)
    assert searched(network, rows, [7] * 50) == expected


def test_best_so_far_grows_word_by_word() -> None:
    graph = lexicon(["ab", "ba"])
    viterbi = Viterbi(spell_out(graph, SPACED))
    words = []
    for row in spoken("ab ba", SPACED):
        viterbi.push(row[None])
        words.append(" ".join(graph.arcs[unit.output].word for unit in viterbi.best().units))
    assert words[4] == ""  # nobody knows yet that the word is over
    assert words[5] == "ab"


@pytest.mark.parametrize(
    ("words", "says"),
    [([], "at least one"), (["a", "a"], "'a'"), (["a b"], "phrases belong in a grammar")],
)
def test_lexicons_that_are_none(words: list[str], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        lexicon(words)


def test_counts_must_be_positive() -> None:
    with pytest.raises(SpecError, match="counts above 0"):
        lexicon({"a": 0.0})


def test_unknown_characters_are_named() -> None:
    with pytest.raises(TokenError, match="'x'"):
        spell_out(lexicon(["ax"]), SPACED)


def test_a_graph_without_an_end_is_refused() -> None:
    with pytest.raises(SpecError, match="an end"):
        spell_out(WordGraph((Arc(0, "a", 1),), {}), SPACED)


# ------------------------------------------------------------------------------ token n-grams

TEXTS = ["ab a", "ab b", "ba", "a", "abab ba"]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_after_any_history_sum_to_one(order: int) -> None:
    model = TokenNgram.train(TEXTS, order=order)
    for history in ["", "a", "b", " ", "ab", "bb", "ab ", "  b"]:
        before = ["<s>", *history]
        assert sum(exp(model.log_prob(token, before)) for token in model.tokens) == pytest.approx(1)


def test_what_was_seen_is_likelier_than_what_was_not() -> None:
    model = TokenNgram.train(TEXTS, order=3)
    assert model.score("ab ba") > model.score("bb bb")
    assert model.log_prob("b", ["<s>", "a"]) > model.log_prob("a", ["<s>", "a"])


def test_a_unigram_is_counted_by_hand() -> None:
    model = TokenNgram.train(["aab"], order=1)  # a a b </s>: 4 tokens of 3 kinds
    assert exp(model.log_prob("a", [])) == pytest.approx((2 + 3 / 3) / (4 + 3))
    assert exp(model.log_prob("b", ["x"])) == pytest.approx((1 + 3 / 3) / (4 + 3))


def test_arpa_files_come_back(tmp_path) -> None:
    model = TokenNgram.train(TEXTS, order=3)
    model.write_arpa(tmp_path / "model.arpa")
    again = TokenNgram.read_arpa(tmp_path / "model.arpa")
    assert again.order == 3
    assert set(again.tokens) == set(model.tokens)
    for text in ["", "ab", "bb a ", "abab"]:
        assert again.score(text) == pytest.approx(model.score(text), abs=1e-5)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("nothing", "expected n-grams"),
        ("\\1-grams:\nx a\n", "line 2: expected numbers"),
        ("\\foo-grams:\n-1 a\n", "line 1: expected a section"),
        ("\\1-grams:\n-1 a b c\n", "line 2: expected a logarithm"),
    ],
)
def test_files_that_are_no_arpa_models(tmp_path, content: str, says: str) -> None:
    (tmp_path / "x.arpa").write_text(content)
    with pytest.raises(SpecError, match=says):
        TokenNgram.read_arpa(tmp_path / "x.arpa")


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_search_with_an_ngram_equals_enumeration(order: int, seed: int) -> None:
    model = TokenNgram.train(TEXTS, order=order)
    rows = log_probs(np.random.default_rng(seed), 5, SPACED)
    path = searched(model.network(SPACED, weight=0.6, token_bonus=0.2), rows)
    assert path is not None
    relative = rows.astype(np.float64) - rows.astype(np.float64).max(1, keepdims=True)
    tokenizer, best = Tokenizer(SPACED), (-inf, "")
    for alignment in product(range(rows.shape[1]), repeat=len(rows)):
        text = tokenizer.decode(tokenizer.collapse(alignment))
        score = float(relative[np.arange(5), alignment].sum())
        best = max(best, (score + 0.6 * model.score(text) + 0.2 * len(text), text))
    assert path.score == pytest.approx(best[0], abs=1e-9)
    assert tokenizer.decode(unit.output for unit in path.units) == best[1]


def test_spaces_that_are_no_ascii_come_back(tmp_path) -> None:
    model = TokenNgram.train(["a\u00a0b", "b\u2028a c"], order=2)
    model.write_arpa(tmp_path / "x.arpa")
    assert set(TokenNgram.read_arpa(tmp_path / "x.arpa").tokens) == set(model.tokens)


def test_too_many_histories_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_imputer.decoding.ngram.LARGEST", 20)
    with pytest.raises(SpecError, match="smaller order"):
        TokenNgram.train(TEXTS, order=3).network(SPACED)


def test_characters_that_the_ngram_never_saw() -> None:
    with pytest.raises(SpecError, match="'c'"):
        TokenNgram.train(TEXTS).network(UNSPACED)


def test_orders_and_texts_that_are_none() -> None:
    with pytest.raises(SpecError, match="order"):
        TokenNgram.train(TEXTS, order=0)
    with pytest.raises(SpecError, match="texts"):
        TokenNgram.train([])
