"""The one trainer: a corpus and a recipe in, a checkpoint out.

On Lightning's Fabric, which brings processes, devices and number formats. The loop is ours
(`loop.py`): a run that was killed anywhere goes on to the same weights, bit for bit, and every
fault has a stated end.
"""

from .initial import (
    RANGES_NAME,
    RECIPE_NAME,
    WEIGHTS_NAME,
    Initial,
    checkpoint_of,
    read_initial,
    write_training,
)
from .run import train
from .sources import Material, of_clips, of_manifest, read_corpus
from .store import AVERAGED, BEST, LAST, PREVIOUS

CHECKPOINT_NAME = LAST

__all__ = [
    "AVERAGED",
    "BEST",
    "CHECKPOINT_NAME",
    "LAST",
    "PREVIOUS",
    "RANGES_NAME",
    "RECIPE_NAME",
    "WEIGHTS_NAME",
    "Initial",
    "Material",
    "checkpoint_of",
    "of_clips",
    "of_manifest",
    "read_corpus",
    "read_initial",
    "train",
    "write_training",
]
