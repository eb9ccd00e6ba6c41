"""Search with knowledge of what may be said: exact by enumeration, the same in any chunks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from math import exp, inf, log, log10

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
WIDER = TokenSpec(characters=(" ", "a", "b", "x"))
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


def check_search(
    model: TokenNgram, seed: int, score_of: Callable[[str], float], tokens: TokenSpec = SPACED
) -> str:
    """The best text by search, which is that of all alignments with these scores of texts."""
    rows = log_probs(np.random.default_rng(seed), 5, tokens)
    path = searched(model.network(tokens, weight=0.6, token_bonus=0.2), rows)
    assert path is not None
    relative = rows.astype(np.float64) - rows.astype(np.float64).max(1, keepdims=True)
    tokenizer, best = Tokenizer(tokens), (-inf, "")
    for alignment in product(range(rows.shape[1]), repeat=len(rows)):
        text = tokenizer.decode(tokenizer.collapse(alignment))
        score = float(relative[np.arange(5), alignment].sum())
        best = max(best, (score + 0.6 * score_of(text) + 0.2 * len(text), text))
    assert path.score == pytest.approx(best[0], abs=1e-9)
    assert tokenizer.decode(unit.output for unit in path.units) == best[1]
    return best[1]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_search_with_an_ngram_equals_enumeration(order: int, seed: int) -> None:
    model = TokenNgram.train(TEXTS, order=order)
    check_search(model, seed, model.score)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_an_alphabet_may_have_what_the_texts_lack(order: int) -> None:
    """By Witten and Bell's formula down to what is equally likely; nothing is lost or gained."""
    model = TokenNgram.train(TEXTS, order=order, alphabet=WIDER.characters)
    assert set(model.tokens) == {*WIDER.characters, "</s>"}
    for history in product(["<s>", *WIDER.characters], repeat=2):
        following = [exp(model.log_prob(token, history)) for token in model.tokens]
        assert sum(following) == pytest.approx(1)
    counted = [token for text in TEXTS for token in (*text, "</s>")]
    kinds = len(set(counted))
    share = kinds / (len(WIDER.characters) + 1) / (len(counted) + kinds)
    assert exp(model.log_prob("x", ["x"])) == pytest.approx(share)  # no text has anything after x
    texts = [check_search(model, seed, cache(model.score), WIDER) for seed in range(3)]
    assert any("x" in text for text in texts)
    assert TokenNgram.train(TEXTS, order=order, alphabet="ab").score("ab") == pytest.approx(
        TokenNgram.train(TEXTS, order=order).score("ab")
    )


UNKNOWN_ARPA = """\\data\\
ngram 1=5
ngram 2=4

\\1-grams:
-99 <s> -0.2
-0.5 </s>
-0.4 a -0.3
-0.9 <space> -0.1
-0.6 <unk> -0.25

\\2-grams:
-0.3 <s> a
-0.7 a <unk>
-0.2 <unk> a
-0.8 <unk> <unk>

\\end\\
"""


def by_hand(text: str, seen: str = "a ") -> float:
    """The score of a text by that file, where "b" and "x" share what is unknown."""
    probabilities = {"</s>": -0.5, "a": -0.4, " ": -0.9, "?": -0.6}
    backoffs = {"<s>": -0.2, "a": -0.3, " ": -0.1, "?": -0.25}
    pairs = {"<s>a": -0.3, "a?": -0.7, "?a": -0.2, "??": -0.8}
    score, before = 0.0, "<s>"
    for token in [*(c if c in seen else "?" for c in text), "</s>"]:
        score += pairs.get(before + token, backoffs[before] + probabilities[token])
        score -= log10(2) if token == "?" else 0
        before = token
    return score * log(10)


@pytest.mark.parametrize("name", ["<unk>", "<UNK>"])
def test_characters_that_a_file_lacks_share_its_unknown_token(tmp_path, name: str) -> None:
    (tmp_path / "x.arpa").write_text(UNKNOWN_ARPA.replace("<unk>", name))
    read = TokenNgram.read_arpa(tmp_path / "x.arpa")
    model = read.covering(WIDER.characters)
    assert set(model.tokens) == {*WIDER.characters, "</s>"}
    for text in map("".join, product(WIDER.characters, repeat=3)):
        assert model.score(text) == pytest.approx(by_hand(text))
    texts = [check_search(read, seed, cache(by_hand), WIDER) for seed in range(3)]
    assert any("x" in text for text in texts)
    model.write_arpa(tmp_path / "again.arpa")
    again = TokenNgram.read_arpa(tmp_path / "again.arpa").covering(WIDER.characters)
    assert again.score("xab a") == pytest.approx(model.score("xab a"), abs=1e-5)


def test_an_unknown_token_does_not_make_a_model_of_words_one_of_characters(tmp_path) -> None:
    (tmp_path / "x.arpa").write_text("\\1-grams:\n-1 <unk>\n-1 a\n-1 hello\n-1 </s>\n\\end\\")
    model = TokenNgram.read_arpa(tmp_path / "x.arpa")
    with pytest.raises(SpecError, match=r"got ' ': .*a model of words is none"):
        model.network(SPACED)


def test_spaces_that_are_no_ascii_come_back(tmp_path) -> None:
    model = TokenNgram.train(["a\u00a0b", "b\u2028a c"], order=2)
    model.write_arpa(tmp_path / "x.arpa")
    assert set(TokenNgram.read_arpa(tmp_path / "x.arpa").tokens) == set(model.tokens)


def test_too_many_histories_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_imputer.decoding.ngram.LARGEST", 20)
    with pytest.raises(SpecError, match="smaller order"):
        TokenNgram.train(TEXTS, order=3).network(SPACED)


def test_characters_that_the_ngram_never_saw() -> None:
    with pytest.raises(SpecError, match=r"'c': .*alphabet="):
        TokenNgram.train(TEXTS).network(UNSPACED)


def test_orders_and_texts_that_are_none() -> None:
    with pytest.raises(SpecError, match="order"):
        TokenNgram.train(TEXTS, order=0)
    with pytest.raises(SpecError, match="texts"):
        TokenNgram.train([])
    with pytest.raises(SpecError, match="single characters, got 'ab'"):
        TokenNgram.train(TEXTS, alphabet=["a", "ab"])
