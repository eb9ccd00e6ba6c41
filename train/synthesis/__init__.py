"""Synthetic speech and noise: engines behind one interface, near misses, corpora of clips."""

from .corpus import Estimate, Made, Settings, synthesize
from .engines import ENGINES, Availability, Engine, Speech, Voice, open_engines
from .grammar import grammar_as_jsgf, grammar_words, read_grammar, sentences
from .near_misses import Lexicon, NearMiss, near_misses
from .noises import DEFAULT_KINDS, NoisePlan, make_noise, parse_kinds, synthesize_noises
from .plan import Job, Phrase, make_plan
from .shaping import Dress
from .talkers import corpus_talkers, engine_talkers
from .texts import DIGITS, SPEECH_COMMANDS, read_texts
from .voices import SplitRule, choose_voices, split_voices

__all__ = [
    "DEFAULT_KINDS",
    "DIGITS",
    "ENGINES",
    "SPEECH_COMMANDS",
    "Availability",
    "Dress",
    "Engine",
    "Estimate",
    "Job",
    "Lexicon",
    "Made",
    "NearMiss",
    "NoisePlan",
    "Phrase",
    "Settings",
    "Speech",
    "SplitRule",
    "Voice",
    "choose_voices",
    "corpus_talkers",
    "engine_talkers",
    "grammar_as_jsgf",
    "grammar_words",
    "make_noise",
    "make_plan",
    "near_misses",
    "open_engines",
    "parse_kinds",
    "read_grammar",
    "read_texts",
    "sentences",
    "split_voices",
    "synthesize",
    "synthesize_noises",
]
