"""Sentences from a text grammar: voice commands, questions, stories."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

import numpy as np

from edge_imputer.errors import SynthesisError

Grammar = Mapping[str, list[str]]

START = "sentence"
DEEPEST = 20  # rules within rules
_RULE = re.compile(r"([a-z]+)\s*=\s*(\S.*)")
_SLOT = re.compile(r"<([a-z]+)>")


def parse_grammar(text: str) -> Grammar:
    """Rules of a grammar: their alternatives by name.

    Raises
    ------
    SynthesisError
        A line that is no rule, a rule that is named and missing, or one that calls itself.
    """
    rules: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _RULE.fullmatch(line.strip())
        if match is None:
            raise SynthesisError(f"grammar, line {number}: expected NAME = A | B, got {line!r}")
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
    """The grammar of a text file.

    Raises
    ------
    SynthesisError
        No such file, not UTF-8, or `parse_grammar` refuses it; the file is named.
    """
    try:
        return parse_grammar(path.read_text("utf8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SynthesisError(f"expected a grammar in UTF-8 at {path}: {error}") from error
    except SynthesisError as error:
        raise SynthesisError(f"{path}: {error}") from None


def _check_depth(rules: Grammar, name: str, depth: int) -> None:
    if depth > DEEPEST:
        raise SynthesisError(f"grammar: the rule {name!r} calls itself")
    for slot in set(_SLOT.findall(" ".join(rules[name]))):
        _check_depth(rules, slot, depth + 1)


@functools.cache
def shipped_grammar() -> Grammar:
    """The grammar that comes with this package, ``grammar.txt``."""
    return parse_grammar((resources.files(__package__) / "grammar.txt").read_text("utf8"))


def draw_sentence(rng: np.random.Generator, grammar: Grammar | None = None) -> str:
    """One sentence, lower case, without punctuation."""
    rules = grammar or shipped_grammar()

    def expand(text: str) -> str:
        return _SLOT.sub(lambda slot: expand(str(rng.choice(rules[slot[1]]))), text)

    return expand(f"<{START}>")


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
    grammar : the shipped one if not given

    Raises
    ------
    SynthesisError
        The grammar does not have so many.
    """
    rng = np.random.default_rng([seed, 7])
    banned = [f" {' '.join(phrase.lower().split())} " for phrase in without]
    known = set(not_in)
    found: dict[str, None] = {}
    for _ in range(20 * n + 100):
        if len(found) == n:
            break
        sentence = draw_sentence(rng, grammar)
        if sentence not in known and not any(phrase in f" {sentence} " for phrase in banned):
            found[sentence] = None
    if len(found) < n:
        raise SynthesisError(f"expected {n} different sentences, the grammar gave {len(found)}")
    return list(found)


def grammar_words(grammar: Grammar | None = None) -> list[str]:
    """Every word of a grammar, sorted."""
    text = " ".join(part for rule in (grammar or shipped_grammar()).values() for part in rule)
    return sorted(set(re.findall(r"[a-z']+", _SLOT.sub(" ", text))))
