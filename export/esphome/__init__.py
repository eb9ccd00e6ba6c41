"""A wake word for ESPHome's micro_wake_word: one keyword model as a streaming .tflite and manifest.

`contract` says what the firmware accepts, `frames` brings a graph to it, `emitter` writes the file,
`arena` measures its memory, `manifest` describes it, `pack` does all of that.
"""

from .manifest import Manifest, MicroSection
from .pack import Pack, write_esphome_pack

__all__ = ["Manifest", "MicroSection", "Pack", "write_esphome_pack"]
