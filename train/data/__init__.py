"""Speech data: corpora, utterances, augmentation, features, batches."""

from .augment import Augmenter, AugmentSpec
from .batches import Batch, TrainingBatches, collate, fixed_batches
from .corpus import hold_out, load_clips, read_manifest
from .features import Featurizer, feature_statistics, flat_alignment, usable_clips
from .records import Clip, ClipRecord, Split, Waveform
from .sequences import join_clips, joined_sequences

__all__ = [
    "AugmentSpec",
    "Augmenter",
    "Batch",
    "Clip",
    "ClipRecord",
    "Featurizer",
    "Split",
    "TrainingBatches",
    "Waveform",
    "collate",
    "feature_statistics",
    "fixed_batches",
    "flat_alignment",
    "hold_out",
    "join_clips",
    "joined_sequences",
    "load_clips",
    "read_manifest",
    "usable_clips",
]
