"""Corpora in the layouts they are published in: one adapter each, in one table."""

from .base import Adapter, AdapterOptions, Notes, SourceClip
from .common_voice import COMMON_VOICE
from .folders import FSDD, WAKE_WORD, WORDS
from .jsonl import JSONL
from .kaldi import KALDI
from .lhotse_manifests import LHOTSE, export_lhotse
from .librispeech import LIBRISPEECH
from .speech_commands import SPEECH_COMMANDS

# From the most particular layout to the most general: the first that fits is suggested first.
ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        SPEECH_COMMANDS,
        LIBRISPEECH,
        COMMON_VOICE,
        FSDD,
        WAKE_WORD,
        KALDI,
        LHOTSE,
        JSONL,
        WORDS,
    )
}

__all__ = ["ADAPTERS", "Adapter", "AdapterOptions", "Notes", "SourceClip", "export_lhotse"]
