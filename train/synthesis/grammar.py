"""Sentences of a grammar: voice commands, questions, stories; what may be said to a recogniser."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

import numpy as np

from edge_imputer.decoding import Grammar as JsgfGrammar
from edge_imputer.decoding import parse_jsgf, word_graph
from edge_imputer.errors import SynthesisError

from .jsgf import as_jsgf, draw_text

TextGrammar = Mapping[str, list[str]]
Grammar = TextGrammar | JsgfGrammar

START = "sentence"
DEEPEST = 20  # rules within rules
_RULE = re.compile(r"([a-z]+)\s*=\s*(\S.*)")
_SLOT = re.compile(r"<([a-z]+)>")


def parse_grammar(text: str) -> TextGrammar:
    """Rules of a text grammar: their alternatives by name.

    Raises
    ------
    SynthesisError
        A line that is no rule, a ``<rule>`` that is part of a word, one that is named and missing,
        or one that calls itself.
    """
    rules: dict[str, list[str]] = {}
    for number, line in enumerate(unicodedata.normalize("NFC", text).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _RULE.fullmatch(line.strip())
        if match is None:
            raise SynthesisError(f"grammar, line {number}: expected NAME = A | B, got {line!r}")
        for word in match[2].replace("|", " ").split():
            if {"<", ">"} & set(word) and not _SLOT.fullmatch(word):
                raise SynthesisError(
                    f"grammar, line {number}: expected <rule> with spaces around it, its name of "
                    f"small letters, got {word!r}; write such words out, in a rule of their own"
                )
        rules.setdefault(match[1], []).extend(part.strip() for part in match[2].split("|"))
    for name, alternatives in rules.items():
        for slot in _SLOT.findall(" ".join(alternatives)):
            if slot not in rules:
                raise SynthesisError(f"grammar: {name!r} names the rule {slot!r}, which is missing")
    if START not in rules:
        raise SynthesisError(f"grammar: expected a rule {START!r}, got {', '.join(rules)}")
    for name in rules:
        _check_depth(rules, name, 0)
    return rules


def read_grammar(path: Path) -> Grammar:
    """The grammar of a file: in JSGF where it ends in ``.jsgf`` or ``.gram``, else a text grammar.

    Raises
    ------
    SynthesisError
        No such file, not UTF-8, or `parse_grammar` refuses it; the file is named.
    SpecError
        A grammar in JSGF that could not be searched either, see `edge_imputer.decoding`.
    """
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix in (".jsgf", ".gram"):
            grammar = parse_jsgf(text, source=str(path))
            word_graph(grammar)  # no rule is missing or part of itself
            return grammar
        return parse_grammar(text)
    except (OSError, UnicodeDecodeError) as error:
        raise SynthesisError(f"expected a grammar in UTF-8 at {path}: {error}") from error
    except SynthesisError as error:
        raise SynthesisError(f"{path}: {error}") from None


def _check_depth(rules: TextGrammar, name: str, depth: int) -> None:
    if depth > DEEPEST:
        raise SynthesisError(f"grammar: the rule {name!r} calls itself")
    for slot in set(_SLOT.findall(" ".join(rules[name]))):
        _check_depth(rules, slot, depth + 1)


@functools.cache
def shipped_grammar() -> TextGrammar:
    """The grammar that comes with this package, ``grammar.txt``."""
    return parse_grammar((resources.files(__package__) / "grammar.txt").read_text("utf8"))


def draw_sentence(rng: np.random.Generator, grammar: TextGrammar | None = None) -> str:
    """One sentence, with single spaces; an empty text where empty alternatives were drawn alone."""
    rules = grammar or shipped_grammar()

    def expand(text: str) -> str:
        return _SLOT.sub(lambda slot: expand(str(rng.choice(rules[slot[1]]))), text)

    return " ".join(expand(f"<{START}>").split())


def sentences(
    n: int,
    *,
    seed: int,
    without: Iterable[str] = (),
    not_in: Iterable[str] = (),
    grammar: Grammar | None = None,
) -> list[str]:
    """`n` different sentences; the first ones do not depend on n.

    Parameters
    ----------
    n, seed : int
    without : phrases that no sentence may contain, as whole words
    not_in : sentences that are not wanted again
    grammar : the shipped one if not given; of one in JSGF see `draw_text`

    Raises
    ------
    SynthesisError
        The grammar does not have so many.
    """
    rng = np.random.default_rng([seed, 7])
    banned = [f" {' '.join(phrase.lower().split())} " for phrase in without]
    known = {" ".join(sentence.split()) for sentence in not_in}
    found: dict[str, None] = {}
    for _ in range(20 * n + 100):
        if len(found) == n:
            break
        if isinstance(grammar, JsgfGrammar):
            sentence = draw_text(rng, grammar)
        else:
            sentence = draw_sentence(rng, grammar)
        if not sentence or sentence in known:
            continue
        if not any(phrase in f" {sentence.lower()} " for phrase in banned):
            found[sentence] = None
    if len(found) < n:
        raise SynthesisError(f"expected {n} different sentences, the grammar gave {len(found)}")
    return list(found)


def grammar_words(grammar: Grammar | None = None) -> list[str]:
    """Every word of a grammar, sorted."""
    if isinstance(grammar, JsgfGrammar):
        return sorted(word_graph(grammar).words)
    rules = grammar or shipped_grammar()
    words = {word for parts in rules.values() for part in parts for word in part.split()}
    return sorted(word for word in words if not _SLOT.fullmatch(word))


def grammar_as_jsgf(grammar: Grammar | None = None) -> str:
    """A text grammar, the shipped one if none is given, in JSGF.

    Raises
    ------
    SynthesisError
        It is in JSGF already.
    """
    if isinstance(grammar, JsgfGrammar):
        raise SynthesisError(
            f"expected a text grammar to write in JSGF, got {grammar.name}, which is in JSGF"
        )
    return as_jsgf(grammar or shipped_grammar(), START)
