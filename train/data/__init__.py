"""Speech data: corpora, utterances, augmentation, features, batches."""

from .augment import Augmenter, AugmentSpec, NoiseBank, RoomBank
from .batches import Batch, collate, fixed_batches
from .buckets import BucketedPlan
from .cache import ClipCache
from .corpus import hold_out, load_clips, read_clip, read_manifest
from .features import Featurizer, flat_alignment, frame_counts, usable_clips
from .loader import ClipsInMemory, ManifestSource, Source, loader
from .manifest import Column, Manifest, write_manifest
from .plan import Draw, DrawnPlan, KeywordPlan, Plan
from .records import Clip, ClipRecord, Split, Waveform
from .sequences import join_clips, joined_sequences
from .statistics import feature_statistics

__all__ = [
    "AugmentSpec",
    "Augmenter",
    "Batch",
    "BucketedPlan",
    "Clip",
    "ClipCache",
    "ClipRecord",
    "ClipsInMemory",
    "Column",
    "Draw",
    "DrawnPlan",
    "Featurizer",
    "KeywordPlan",
    "Manifest",
    "ManifestSource",
    "NoiseBank",
    "Plan",
    "RoomBank",
    "Source",
    "Split",
    "Waveform",
    "collate",
    "feature_statistics",
    "fixed_batches",
    "flat_alignment",
    "frame_counts",
    "hold_out",
    "join_clips",
    "joined_sequences",
    "load_clips",
    "loader",
    "read_clip",
    "read_manifest",
    "usable_clips",
    "write_manifest",
]
