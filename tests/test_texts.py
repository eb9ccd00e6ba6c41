"""Sentences drawn from grammars in JSGF, text grammars written in it, and the shipped example."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edge_imputer.decoding import (
    GraphLanguage,
    meaning,
    parse_jsgf,
    read_language,
    word_graph,
)
from edge_imputer.errors import SpecError, SynthesisError
from edge_imputer.events import Meaning
from edge_imputer.train.synthesis import (
    grammar_as_jsgf,
    grammar_words,
    read_grammar,
    sentences,
)
from edge_imputer.train.synthesis.grammar import parse_grammar, shipped_grammar
from edge_imputer.train.synthesis.jsgf import draw_text

from .speech_engines import run_command

COFFEE = Path(__file__).resolve().parent.parent / "docs" / "examples" / "coffee.jsgf"


def jsgf(body: str) -> str:
    return f"#JSGF V1.0;\ngrammar test;\n{body}"


def drawn(body: str, n: int = 300, seed: int = 0) -> list[str | None]:
    grammar, rng = parse_jsgf(jsgf(body)), np.random.default_rng(seed)
    return [draw_text(rng, grammar) for _ in range(n)]


# ------------------------------------------------------------------------------ draws


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("public <a> = x [y] {tag} (z | w);", {"x z", "x w", "x y z", "x y w"}),
        ("public <a> = x; public <b> = y <NULL>;", {"x", "y"}),
        ("public <a> = /0/ x | y | <VOID> z;", {"y", None}),
        ("public <a> = [x];", {"x", None}),
        ('public <a> = <b> | I; <b> = "flat white";', {"flat white", "I"}),
    ],
)
def test_draws_are_what_the_grammar_says(body: str, expected: set[str | None]) -> None:
    assert set(drawn(body)) == expected


def test_repeats_are_drawn_short_and_long() -> None:
    lengths = Counter(len((text or "").split()) for text in drawn("public <a> = x+;", 2000))
    assert min(lengths) == 1
    assert lengths[1] == pytest.approx(1000, abs=100)
    assert lengths[2] == pytest.approx(500, abs=80)
    assert None in drawn("public <a> = x*;")


def test_weights_are_kept_to() -> None:
    counts = Counter(drawn("public <a> = /3/ x | /1/ y;", 2000))
    assert counts["x"] == pytest.approx(1500, abs=100)


def test_sentences_of_a_grammar_in_jsgf() -> None:
    grammar = read_grammar(COFFEE)
    many = sentences(200, seed=3, grammar=grammar)
    assert many == [*sentences(50, seed=3, grammar=grammar), *many[50:]]
    assert many != sentences(200, seed=4, grammar=grammar)
    assert len(set(many)) == 200
    language = read_language(COFFEE)
    assert isinstance(language, GraphLanguage)
    assert all(language.graph.says(text) for text in many)
    assert grammar_words(grammar) == sorted(language.graph.words)
    kept = sentences(50, seed=3, grammar=grammar, without=["Latte"], not_in=many[:20])
    assert not any("latte" in text.split() for text in kept)
    assert not set(kept) & set(many[:20])
    with pytest.raises(SynthesisError, match="expected 3 different sentences"):
        sentences(3, seed=0, grammar=parse_jsgf(jsgf("public <a> = x | y;")))


# ------------------------------------------------------------------------------ text grammars


def test_a_text_grammar_in_jsgf_says_the_same() -> None:
    text = "sentence = <what> | <what> | what's 50% (now)\nwhat = a <b> | so be it\nb = c | d"
    rules = parse_grammar(text)
    written = grammar_as_jsgf(rules)
    assert "public <sentence> = /2/ <what> | /1/ what's" in written
    grammar = parse_jsgf(written)
    found = Counter(draw_text(rng, grammar) for rng in [np.random.default_rng(0)] * 3000)
    assert set(found) == {"a c", "a d", "so be it", "what's 50% (now)"}
    assert found["so be it"] == pytest.approx(1000, abs=100)
    assert set(sentences(4, seed=0, grammar=rules)) == set(found)


def test_sentences_with_empty_alternatives_have_single_spaces() -> None:
    """Else one that is not wanted would come again; nothing is no sentence."""
    rules = parse_grammar("sentence = turn <please> on | <please>\nplease = please |")
    assert set(sentences(3, seed=0, grammar=rules)) == {"turn on", "turn please on", "please"}
    assert sentences(1, seed=0, grammar=rules, without=["please"]) == ["turn on"]
    for unwanted in (["turn on"], ["turn   on"]):
        kept = sentences(2, seed=0, grammar=rules, not_in=unwanted)
        assert set(kept) == {"turn please on", "please"}
    assert sentences(1, seed=0, grammar=rules, without=["turn on", "please on"]) == ["please"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sentence = turn <pol> on\npol = please |", {"turn please on", "turn on"}),
        ("sentence = a | | <b> | <b>\nb = | c | c", {"a", "c"}),  # nothing is no sentence
        ("sentence = mach es grün | 7up 7up | cafe\u0301", {"mach es grün", "7up 7up", "café"}),
        ('sentence = Stop! | <b>\nb = a "b\\c" | and/or;', {"Stop!", 'a "b\\c"', "and/or;"}),
    ],
)
def test_whatever_a_text_grammar_draws_is_in_its_other_forms(text: str, expected: set[str]) -> None:
    rules = parse_grammar(text)
    found = sentences(len(expected), seed=0, grammar=rules)
    assert set(found) == expected
    grammar, rng = parse_jsgf(grammar_as_jsgf(rules)), np.random.default_rng(0)
    assert {draw_text(rng, grammar) for _ in range(100)} - {None} == expected
    assert grammar_words(rules) == sorted({word for one in expected for word in one.split()})
    assert sorted(word_graph(grammar).words) == grammar_words(rules)


def test_the_shipped_text_grammar_can_be_searched() -> None:
    graph = word_graph(parse_jsgf(grammar_as_jsgf()))  # within the limit of a search
    assert all(graph.says(text) for text in sentences(200, seed=1))
    assert sorted(graph.words) == grammar_words()
    assert not graph.says(" ".join(sentences(2, seed=1)))
    assert "sentence" in shipped_grammar()


def test_grammars_from_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run_command("texts", "5", "--grammar", str(COFFEE), "--seed", "3")
    drawn_texts = capsys.readouterr().out.splitlines()
    assert drawn_texts == sentences(5, seed=3, grammar=read_grammar(COFFEE))
    run_command("texts", "--jsgf", f"{tmp_path}/texts.jsgf", "--words", f"{tmp_path}/words.txt")
    assert capsys.readouterr().out == ""
    assert (tmp_path / "texts.jsgf").read_text() == grammar_as_jsgf()
    assert (tmp_path / "words.txt").read_text().split() == grammar_words()
    with pytest.raises(AssertionError):
        run_command("texts")
    assert "expected how many sentences, or a file" in capsys.readouterr().err
    with pytest.raises(AssertionError):
        run_command("texts", "--grammar", str(COFFEE), "--jsgf", f"{tmp_path}/again.jsgf")
    assert "got coffee, which is in JSGF" in capsys.readouterr().err
    assert not (tmp_path / "again.jsgf").exists()


def test_grammars_that_cannot_be_drawn_from(tmp_path: Path) -> None:
    path = tmp_path / "x.jsgf"
    path.write_text(jsgf("public <a> = b <c>;"))
    with pytest.raises(SpecError, match="got <c>, which nothing defines"):
        read_grammar(path)
    path.write_text(jsgf("public <a> = b <a>;"))
    with pytest.raises(SpecError, match="part of itself"):
        read_grammar(path)
    with pytest.raises(SynthesisError, match=re.escape(str(tmp_path / "none.gram"))):
        read_grammar(tmp_path / "none.gram")


# ------------------------------------------------------------------------------ the example

# Every value of the valid split of real/coffee_commands.
VALUES = {
    "coffeeDrink": "drip coffee, house coffee, mocha, cappuccino, iced mocha, latte, americano, "
    "espresso, iced coffee, coffee",
    "milkAmount": "cream, skim milk, whole milk, a bit of almond milk, a lot of almond milk, "
    "a little bit of skim milk, a little bit of soy milk, a bit of whole milk, "
    "a little bit of cream, some soy milk, a bit of skim milk, a lot of cream, "
    "lots of almond milk, almond milk, a bit of milk, lots of skim milk, a little bit of milk, "
    "soy milk, some milk, lots of whole milk, a lot of skim milk",
    "numberOfShots": "single shot, double shot, triple shot",
    "size": "small, medium, large, eight ounce, twelve ounce, sixteen ounce, twenty ounce",
    "roast": "light roast, medium roast, dark roast",
    "sugarAmount": "sweetener, brown sugar, sugar, a lot of sugar, a bit of sweetener, "
    "lots of sugar, a lot of sweetener, lots of sweetener, a bit of sugar, some sweetener, "
    "some brown sugar, a little bit of sweetener, a little bit of brown sugar",
}


def understood(language: GraphLanguage, text: str) -> Meaning:
    path = language.graph.path(text)
    assert path is not None, text
    return meaning(language.graph, path)


def test_the_coffee_grammar_knows_the_values_of_its_task() -> None:
    language = read_language(COFFEE)
    assert isinstance(language, GraphLanguage)
    for slot, values in VALUES.items():
        for value in values.split(", "):
            drink = value if slot == "coffeeDrink" else "latte"
            before = value if slot in ("size", "roast", "numberOfShots") else "small"
            after = value if slot in ("milkAmount", "sugarAmount") else "sugar"
            text = f"can i have a {before} {drink} with {after} please"
            meant = understood(language, text)
            assert meant.slots.get(slot) == value
            assert meant.intent == "orderDrink"
    both = "large dark roast double shot iced mocha with a lot of cream and some brown sugar"
    slots = understood(language, both).slots
    assert {name: slots[name] for name in VALUES} == {
        "coffeeDrink": "iced mocha",
        "milkAmount": "a lot of cream",
        "numberOfShots": "double shot",
        "size": "large",
        "roast": "dark roast",
        "sugarAmount": "some brown sugar",
    }
