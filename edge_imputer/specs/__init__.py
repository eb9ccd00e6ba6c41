"""Typed specifications: what a model is, from the microphone to the tokens.

A `ModelSpec` or a `KeywordModelSpec` travels unchanged through checkpoint, bundle and firmware
pack. Unknown keys are refused on reading; `check()` methods refuse values that contradict each
other.
"""

from __future__ import annotations

from .attention import AttentionSpec
from .conformer import ConformerSpec
from .encoders import ConvSpec, CrnnSpec
from .features import FeatureSpec, FrameSpec, MelSpec, MicroSpec, PcenSpec
from .head import ImputerSpec, check_revisions, check_schedule
from .keywords import (
    SILENCE,
    UNKNOWN,
    AnyFeatureSpec,
    AnyModelSpec,
    KeywordModelSpec,
    for_classes,
    speech_spec,
)
from .model import AnyEncoderSpec, EncoderSpec, ModelSpec, check_pair
from .presets import PRESETS, preset
from .tcn import TcnSpec
from .tokens import BLANK_ID, TokenSpec
from .windowed import WindowedCnnSpec, WindowedCrnnSpec, WindowedSpec

__all__ = [
    "BLANK_ID",
    "PRESETS",
    "SILENCE",
    "UNKNOWN",
    "AnyEncoderSpec",
    "AnyFeatureSpec",
    "AnyModelSpec",
    "AttentionSpec",
    "ConformerSpec",
    "ConvSpec",
    "CrnnSpec",
    "EncoderSpec",
    "FeatureSpec",
    "FrameSpec",
    "ImputerSpec",
    "KeywordModelSpec",
    "MelSpec",
    "MicroSpec",
    "ModelSpec",
    "PcenSpec",
    "TcnSpec",
    "TokenSpec",
    "WindowedCnnSpec",
    "WindowedCrnnSpec",
    "WindowedSpec",
    "check_pair",
    "check_revisions",
    "check_schedule",
    "for_classes",
    "preset",
    "speech_spec",
]
