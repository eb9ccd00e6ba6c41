"""Evaluation: error rates of transcripts, misses and false alarms of keywords, reports."""

from .commands import tells_commands_only
from .decoded import (
    Decoded,
    Disagreement,
    KeywordFigures,
    decode_clips,
    disagreements,
    measure_keywords,
    word_error_rate,
)
from .error_rates import Alignment, Errors, character_errors, word_errors
from .evaluate import Options, spot_and_count, transcribe_and_count, understand_and_count
from .events import ScoredEvent, pick_events
from .journal import Entry, Journal
from .noise import NoiseMixer, mix_at_snr
from .page import write_html
from .results import CommandReport, Comparison, KeywordReport, Report, TranscriptReport, write_json
from .sweep import Choice, DetPoint, Scores, choose_threshold
from .systems import KeywordSystem, TextKeywordSystem

__all__ = [
    "Alignment",
    "Choice",
    "CommandReport",
    "Comparison",
    "Decoded",
    "DetPoint",
    "Disagreement",
    "Entry",
    "Errors",
    "Journal",
    "KeywordFigures",
    "KeywordReport",
    "KeywordSystem",
    "NoiseMixer",
    "Options",
    "Report",
    "ScoredEvent",
    "Scores",
    "TextKeywordSystem",
    "TranscriptReport",
    "character_errors",
    "choose_threshold",
    "decode_clips",
    "disagreements",
    "measure_keywords",
    "mix_at_snr",
    "pick_events",
    "spot_and_count",
    "tells_commands_only",
    "transcribe_and_count",
    "understand_and_count",
    "word_error_rate",
    "word_errors",
    "write_html",
    "write_json",
]
