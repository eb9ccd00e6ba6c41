"""Active learning: which clips of a pool to have labelled.

Every clip gets a score from one pass of the encoder; `STRATEGIES` names them, `open_scorer` makes
one, `choose_diverse` picks clips that differ. ``docs/active_learning.md`` says which to take.
"""

from .diversity import choose_diverse
from .junk import JunkFilter, JunkRules
from .options import ScoreOptions
from .scores import ClipScore, ScoredBatch, Scorer, open_scorer
from .selecting import Selection, SelectionOptions
from .selection_report import SelectionReport
from .strategies import STRATEGIES, Strategy

__all__ = [
    "STRATEGIES",
    "ClipScore",
    "JunkFilter",
    "JunkRules",
    "ScoreOptions",
    "ScoredBatch",
    "Scorer",
    "Selection",
    "SelectionOptions",
    "SelectionReport",
    "Strategy",
    "choose_diverse",
    "open_scorer",
]
