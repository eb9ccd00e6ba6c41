"""Active learning: which clips of a pool to have labelled.

Every clip gets a score from one pass of the encoder; `STRATEGIES` names them, `open_scorer` makes
one, `choose_diverse` picks clips that differ. ``docs/active_learning.md`` says which to take.
"""

from .diversity import choose_diverse
from .options import ScoreOptions
from .scores import ClipScore, ScoredBatch, Scorer, open_scorer
from .strategies import STRATEGIES, Strategy

__all__ = [
    "STRATEGIES",
    "ClipScore",
    "ScoreOptions",
    "ScoredBatch",
    "Scorer",
    "Strategy",
    "choose_diverse",
    "open_scorer",
]
