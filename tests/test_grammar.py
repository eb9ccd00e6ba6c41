"""Grammars: what JSGF says, what a path through them means, and texts searched with them."""

from __future__ import annotations

import json
import re
import unicodedata
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_imputer import Recognizer
from edge_imputer.audio import load_audio
from edge_imputer.decoding import (
    TokenNgram,
    Viterbi,
    WordGraph,
    meaning,
    of_grammar,
    of_words,
    parse_jsgf,
    read_language,
    spell_out,
    word_graph,
)
from edge_imputer.decoding.jsgf import Alternatives, Reference, Repeat, Sequence, Tagged, Word
from edge_imputer.decoding.language import SearchedText
from edge_imputer.errors import SpecError
from edge_imputer.imputation import ImputedChunk
from edge_imputer.specs import ModelSpec, TokenSpec

from .graphs import model_spec
from .test_cli import clip, run
from .test_decoding import spoken

__all__ = ["clip"]  # a fixture

COFFEE = """#JSGF V1.0 UTF-8 en;
/* What a barista
   understands. */
grammar coffee;
public <order> = [please] <count> <drink> {order} [<with>]*;
<count> = a {1} | /3/ two {2};
<drink> = latte | "flat white"; // two kinds
<with> = with (milk | sugar)+;
"""


def sentences(graph: WordGraph, most: int = 200) -> list[tuple[str, tuple[int, ...]]]:
    """What a graph says, short sentences first."""
    found: list[tuple[str, tuple[int, ...]]] = []
    queue: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for state, arcs in islice(queue, most * 4):
        if state in graph.finals:
            found.append((" ".join(graph.arcs[n].word for n in arcs), arcs))
        queue += [
            (arc.target, (*arcs, n)) for n, arc in enumerate(graph.arcs) if arc.source == state
        ]
        if len(found) >= most:
            break
    return found


def grammar(body: str) -> str:
    return f"#JSGF V1.0;\ngrammar test;\n{body}"


def said(body: str, most: int = 200) -> set[str]:
    return {text for text, _ in sentences(word_graph(parse_jsgf(grammar(body))), most)}


def test_expansions_as_they_are_read() -> None:
    rules = parse_jsgf(COFFEE).rules
    assert rules["count"] == Alternatives(
        (Tagged(Word("a"), "1"), Tagged(Word("two"), "2")), (1.0, 3.0)
    )
    assert rules["drink"] == Alternatives(
        (Word("latte"), Sequence((Word("flat"), Word("white")))), (1.0, 1.0)
    )
    milk = Alternatives((Word("milk"), Word("sugar")), (1.0, 1.0))
    assert rules["with"] == Sequence((Word("with"), Repeat(milk, 1)))
    order = rules["order"]
    assert isinstance(order, Sequence)
    assert order.parts[2] == Tagged(Reference("drink"), "order")
    assert parse_jsgf(COFFEE).public == ("order",)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("public <a> = x;", {"x"}),
        ("public <a> = x | y z;", {"x", "y z"}),
        ("public <a> = [x] y;", {"y", "x y"}),
        ("public <a> = (x | y) (z | w);", {"x z", "x w", "y z", "y w"}),
        ("public <a> = x; public <b> = y;", {"x", "y"}),
        ("public <a> = <b> | <NULL> x | <VOID> y; <b> = z;", {"x", "z"}),
        ("public <a> = /0/ x | /2/ y;", {"y"}),
        (r'public <a> = "x \" y";', {'x " y'}),
        ("public <a> = x [y [z]];", {"x", "x y", "x y z"}),
    ],
)
def test_what_a_grammar_lets_one_say(body: str, expected: set[str]) -> None:
    assert said(body) == expected


def test_repeats() -> None:
    assert {"", "x", "x x", "x x x"} <= said("public <a> = x*;", 5)
    assert {"x", "x x", "x x x"} <= said("public <a> = x+;", 5)
    assert "" not in said("public <a> = x+;", 5)
    assert {"x y", "x x y"} <= said("public <a> = (x*)+ y;", 6)  # a circle of empty steps ends


def test_weights_are_shares_of_the_largest_beside_them() -> None:
    graph = word_graph(parse_jsgf(COFFEE))
    weights = {arc.word: arc.weight for arc in graph.arcs}
    assert weights["two"] == weights["latte"] == 0
    assert weights["a"] == pytest.approx(np.log(1 / 3))


def test_what_a_path_means() -> None:
    graph = word_graph(parse_jsgf(COFFEE))
    found = dict(sentences(graph))
    meant = meaning(graph, found["please two flat white with milk sugar"])
    assert meant.slots == {
        "order": "please two flat white with milk sugar",
        "count": "two",
        "drink": "flat white",
        "with": "with milk sugar",
    }
    assert meant.tags == ("2", "order")
    half = meaning(graph, found["a flat white"][:2])  # nothing is over yet
    assert half.slots == {"order": "a flat", "count": "a", "drink": "flat"}


def test_the_path_of_a_text_is_the_best_one() -> None:
    body = "public <a> = /1/ x <b> | /3/ x <c> | y; <b> = z; <c> = z;"
    graph = word_graph(parse_jsgf(grammar(body)))
    path = graph.path(" x  z ")
    assert path is not None
    assert meaning(graph, path).slots == {"a": "x z", "c": "z"}
    assert sum(graph.arcs[number].weight for number in path) == 0.0
    assert [graph.path(text) for text in ("x", "z", "", "x z y")] == [None] * 4
    for text, arcs in sentences(word_graph(parse_jsgf(COFFEE)), 30):
        assert word_graph(parse_jsgf(COFFEE)).path(text) == arcs


def test_rules_used_twice_are_listed_twice() -> None:
    body = "public <a> = <d> and <d>; <d> = x | y;"
    graph = word_graph(parse_jsgf(grammar(body)))
    meant = meaning(graph, dict(sentences(graph))["x and y"])
    assert meant.rules == (("a", "x and y"), ("d", "x"), ("d", "y"))
    assert meant.slots["d"] == "x"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("grammar x;", "expected a grammar that begins with #JSGF"),
        (grammar("<a> = x;"), "expected a public rule, got ['a']"),
        (grammar("public <a> = x"), "line 3: expected ';', got 'the end of the grammar'"),
        (grammar("public <a> = (x;"), "line 3: expected ')', got ';'"),
        (grammar("public <a> =\n | x;"), "line 4: expected a word, a <rule> or a group, got '|'"),
        (grammar("public <a> = x; <a> = y;"), "not defined already"),
        (grammar("import <com.x>;"), "write what would be imported into this file"),
        (grammar("public <a> = /x/ y;"), "cannot read '/'"),
        (grammar("public <a> = /1e/ y;"), "expected a weight"),
        (grammar("public <a> = x {tag;"), "cannot read '{'"),
        ("#JSGF V1.0;\nrule x;", "line 2: expected 'grammar'"),
    ],
)
def test_texts_that_are_no_grammar(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=re.escape(says)):
        parse_jsgf(text)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("public <a> = <b>;", "got <b>, which nothing defines"),
        ("public <a> = x <b>; <b> = [<a>];", "a -> b -> a"),
        ("public <a> = <NULL>;", "expected words to say"),
        ("public <a> = x <VOID>;", "expected words to say"),
    ],
)
def test_grammars_that_say_nothing_or_never_end(body: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        word_graph(parse_jsgf(grammar(body)))


def test_grammars_that_grow_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_imputer.decoding.grammar.LARGEST", 10)
    with pytest.raises(SpecError, match="beyond 10"):
        word_graph(parse_jsgf(grammar("public <a> = <b> <b> <b> <b>; <b> = x | y | z;")))


def test_phrases_end_in_one_place() -> None:
    """So that what follows them is written out once, not once a phrase."""
    body = "public <a> = (a b | c d | e f)+;"
    assert len(word_graph(parse_jsgf(grammar(body))).arcs) == 3 * 2 + 3
    assert {"a b", "c d e f"} <= said(body, 20)


def test_rules_by_their_full_names() -> None:
    assert said("public <a> = <test.b>; <b> = x;") == {"x"}


@pytest.mark.parametrize("body", ["(" * 3000 + "x" + ")" * 3000, "x" + "*" * 3000])
def test_groups_that_are_nested_too_deeply(body: str) -> None:
    with pytest.raises(SpecError, match="nested too deeply"):
        of_grammar(grammar(f"public <a> = {body};"))


# ------------------------------------------------------------------------------ texts of a stream

LETTERS = TokenSpec(characters=tuple(" abcdefghijklmnopqrstuvwxyz"))


def spec_of(tokens: TokenSpec) -> ModelSpec:
    return msgspec.structs.replace(model_spec(), tokens=tokens)


def heard(text: str, sure: float = 0.6) -> np.ndarray:
    return spoken(text, LETTERS, sure=sure)


def chunk(rows: np.ndarray) -> ImputedChunk:
    nobody = np.zeros(0, np.int32)
    return ImputedChunk(0, nobody, rows, nobody, None)


def searched(language: object, rows: np.ndarray) -> SearchedText:
    spec = spec_of(LETTERS)
    text = SearchedText(language, spec)  # type: ignore[arg-type]
    for at in range(0, len(rows), 8):
        text.append(chunk(rows[at : at + 8]))
    return text


def test_a_misspelt_order_is_put_right_and_understood() -> None:
    final = searched(of_grammar(COFFEE), heard("tvo flet wite")).final()
    assert final.text == "two flat white"
    assert final.meaning is not None
    assert final.meaning.slots["drink"] == "flat white"
    assert 0 < final.confidence < 1
    assert [word.text for word in final.words] == ["two", "flat", "white"]
    right = searched(of_grammar(COFFEE), heard("two flat white")).final()
    assert right.confidence == 1.0
    assert all(a.confidence < b.confidence for a, b in zip(final.words, right.words, strict=True))


def test_partials_grow_and_a_text_can_start_anew() -> None:
    rows = heard("two latte with milk")
    text = searched(of_grammar(COFFEE), rows[:20])
    assert text.partial().text == "two latte"
    text.reset()
    text.append(
        ImputedChunk(0, np.zeros(0, np.int32), heard("a latte"), np.zeros(0, np.int32), None)
    )
    assert text.final().text == "a latte"


def test_nothing_that_a_grammar_allows_is_a_text_without_confidence() -> None:
    final = searched(of_grammar(COFFEE), heard("x")).final()
    assert (final.text, final.words, final.confidence) == ("", (), 0.0)
    assert final.meaning is not None
    assert final.meaning.slots == {}


def test_texts_are_compared_in_one_form_of_unicode(tmp_path: Path) -> None:
    """Files with a mark of byte order, and letters with their accents apart."""
    cafe = unicodedata.normalize("NFD", "café")
    tokens = TokenSpec(characters=tuple(" acfé"))
    (tmp_path / "words.txt").write_text(f"\ufeff{cafe}\nfa\n")
    (tmp_path / "x.jsgf").write_text(grammar(f"public <a> = {cafe};"))
    rows = spoken("café", tokens)
    for name in ("words.txt", "x.jsgf"):
        text = SearchedText(read_language(tmp_path / name), spec_of(tokens))
        text.append(chunk(rows))
        assert text.final().text == "café"
    model = TokenNgram.train([cafe, "fa ca"])
    assert model.score("café") > model.score("éfac")
    model.network(tokens)


def test_words_and_times() -> None:
    spec = spec_of(LETTERS)
    final = searched(of_words(["seven", "two"]), heard("two sevem")).final()
    assert final.text == "two seven"
    assert final.meaning is None
    assert final.words[0].start_s == pytest.approx(1 * spec.frame_s)
    assert final.words[0].end_s == pytest.approx(6 * spec.frame_s)


def test_languages_from_files(tmp_path) -> None:
    (tmp_path / "words.txt").write_text("two\nseven\n\n")
    (tmp_path / "counts.txt").write_text("two\t3\nseven\t1\n")
    (tmp_path / "coffee.jsgf").write_text(COFFEE)
    TokenNgram.train(["two latte", "a latte"], order=3).write_arpa(tmp_path / "n.arpa")
    rows = heard("two seven")
    for name in ("words.txt", "counts.txt"):
        assert searched(read_language(tmp_path / name), rows).final().text == "two seven"
    latte = heard("two latte")
    assert searched(read_language(tmp_path / "coffee.jsgf"), latte).final().text == "two latte"
    chars = tuple(sorted(set("two latte")))
    few = TokenSpec(characters=chars)
    text = SearchedText(read_language(tmp_path / "n.arpa"), spec_of(few))
    text.append(
        ImputedChunk(
            0, np.zeros(0, np.int32), spoken("two latte", few), np.zeros(0, np.int32), None
        )
    )
    assert [word.text for word in text.final().words] == ["two", "latte"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.csv", "", "expected a grammar"),
        ("x.txt", "a\t1\nb\n", "expected a word a line"),
        ("x.txt", "a\t1\na\t2\n", "every word once"),
        ("x.txt", "", "at least one"),
        ("x.jsgf", "hello", "x.jsgf: expected a grammar that begins"),
    ],
)
def test_files_that_say_nothing(tmp_path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SpecError, match=says):
        read_language(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        read_language(tmp_path / "no.txt")


def test_a_network_without_a_way_in_still_hears_silence() -> None:
    viterbi = Viterbi(spell_out(word_graph(parse_jsgf(COFFEE)), LETTERS))
    viterbi.push(np.zeros((0, 28), np.float32))
    assert viterbi.finish() is None
    assert viterbi.best().units == ()


# ------------------------------------------------------------------------------ in use


def digits_file(folder: Path) -> Path:
    path = folder / "digits.txt"
    path.write_text("\n".join("zero one two three four five six seven eight nine".split()))
    return path


def test_a_recogniser_that_listens_for_words(capsys, untrained_bundle, clip, tmp_path) -> None:
    words = digits_file(tmp_path)
    shown = run(capsys, "transcribe", untrained_bundle, clip, "--language", words, "--json")
    found = json.loads(shown)
    assert set(found["text"].split()) <= set(words.read_text().split())
    recognizer = Recognizer(untrained_bundle, language=read_language(words))
    waveform = load_audio(clip, sample_rate=16_000)
    for part in np.array_split(waveform, 5):
        recognizer.push(part, sample_rate=16_000)
    (final,) = recognizer.flush()
    assert final.text == found["text"]
    assert final.confidence == pytest.approx(found["confidence"])


def test_evaluation_with_a_language(capsys, untrained_bundle, tmp_path) -> None:
    from edge_imputer import train

    corpus = Path(train.__file__).parent / "digits"
    manifest = tmp_path / "few.jsonl"
    rows = [r for r in (corpus / "manifest.jsonl").read_text().splitlines() if '"test"' in r][:4]
    manifest.write_text("\n".join(rows).replace('"audio/', f'"{corpus}/audio/'))
    out = tmp_path / "out"
    words = digits_file(tmp_path)
    run(capsys, "evaluate", untrained_bundle, "-d", manifest, "--language", words, "--out", out)
    report = json.loads((out / "evaluation.json").read_text())
    assert report["run"]["settings"]["language"] == "digits.txt"
    texts = [json.loads(r)["text"] for r in (out / "journal.jsonl").read_text().splitlines()]
    assert len(texts) == 4
    assert {word for text in texts for word in text.split()} <= set(words.read_text().split())
