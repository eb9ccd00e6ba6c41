"""Decoding with knowledge of what may be said: a lexicon, a grammar, or which token follows which.

::

    words        -> WordGraph  \
    JSGF grammar -> WordGraph   -> Network -> Viterbi, frame by frame -> units, with confidences
    TokenNgram   ------------- /
"""

from __future__ import annotations

from .grammar import meaning, word_graph
from .jsgf import Grammar, parse_jsgf
from .language import (
    GraphLanguage,
    Language,
    NgramLanguage,
    SearchedText,
    of_grammar,
    of_words,
    read_language,
)
from .network import Network, spell_out
from .ngram import TokenNgram
from .viterbi import Path, Unit, Viterbi
from .word_graph import Arc, WordGraph, lexicon

__all__ = [
    "Arc",
    "Grammar",
    "GraphLanguage",
    "Language",
    "Network",
    "NgramLanguage",
    "Path",
    "SearchedText",
    "TokenNgram",
    "Unit",
    "Viterbi",
    "WordGraph",
    "lexicon",
    "meaning",
    "of_grammar",
    "of_words",
    "parse_jsgf",
    "read_language",
    "spell_out",
    "word_graph",
]
