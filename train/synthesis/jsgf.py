"""Sentences of grammars in JSGF, and text grammars written in it.

One grammar then serves three ends: to say what may be said to a recogniser, to draw what it is
trained on, and to tell another recogniser the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import numpy as np

from edge_imputer.decoding import Grammar as JsgfGrammar
from edge_imputer.decoding.jsgf import (
    Alternatives,
    Expansion,
    Reference,
    Repeat,
    Tagged,
    Word,
)

ONCE_MORE = 0.5  # chance that what may be repeated is said once more
_PLAIN = re.compile(r"(?:[\w'-]+|<\w+>)")


def draw_text(rng: np.random.Generator, grammar: JsgfGrammar) -> str | None:
    """One sentence of a grammar; None where it came to ``<VOID>``, or to saying nothing.

    Public rules are equally likely, alternatives by their weights, what is optional every second
    time. The grammar must be one that `edge_imputer.decoding.word_graph` takes.
    """
    words = _draw(rng, grammar, Reference(str(rng.choice(grammar.public))))
    return " ".join(words) if words else None


def _draw(rng: np.random.Generator, grammar: JsgfGrammar, expansion: Expansion) -> list[str] | None:
    """Words of an expansion; None where it cannot be said."""
    if isinstance(expansion, Word):
        return [expansion.text]
    if isinstance(expansion, Tagged):
        return _draw(rng, grammar, expansion.part)
    if isinstance(expansion, Reference):
        if expansion.rule in ("NULL", "VOID"):
            return [] if expansion.rule == "NULL" else None
        return _draw(rng, grammar, grammar.rules[expansion.rule])
    if isinstance(expansion, Alternatives):
        weights = np.array(expansion.weights)
        if not weights.any():
            return None
        chosen = rng.choice(len(weights), p=weights / weights.sum())
        return _draw(rng, grammar, expansion.parts[chosen])
    parts: list[Expansion]
    if isinstance(expansion, Repeat):
        parts = [expansion.part] * expansion.least
        while rng.random() < ONCE_MORE:
            parts.append(expansion.part)
    else:
        parts = list(expansion.parts)
    words: list[str] = []
    for part in parts:
        said = _draw(rng, grammar, part)
        if said is None:
            return None
        words += said
    return words


def as_jsgf(rules: Mapping[str, list[str]], start: str, *, name: str = "texts") -> str:
    """A text grammar in JSGF: the same sentences, as likely as before.

    Parameters
    ----------
    rules : alternatives by rule, empty or not, ``<rule>`` standing for one of another's
    start : the rule to begin with, the public one
    name : of the grammar
    """
    lines = ["#JSGF V1.0;", f"grammar {name};", ""]
    for rule, alternatives in rules.items():
        counts = Counter(alternatives)
        # Weights are given to all alternatives of a rule or to none.
        weighted = max(counts.values()) > 1
        parts = [(f"/{n}/ " if weighted else "") + _quoted(text) for text, n in counts.items()]
        public = "public " if rule == start else ""
        lines.append(f"{public}<{rule}> = {' | '.join(parts)};")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """An alternative; words with signs that mean something in JSGF are quoted."""
    words = (
        word if _PLAIN.fullmatch(word) else '"' + re.sub(r'(["\\])', r"\\\1", word) + '"'
        for word in text.split()
    )
    return " ".join(words) or "<NULL>"
