"""Typed specifications: what a model is, from the microphone to the tokens.

A `ModelSpec` travels unchanged through checkpoint, bundle and firmware pack. Unknown keys are
refused on reading; `check()` methods refuse values that contradict each other.
"""

from __future__ import annotations

from .attention import AttentionSpec
from .conformer import ConformerSpec
from .encoders import ConvSpec, CrnnSpec, WindowedCrnnSpec
from .features import FeatureSpec, MelSpec, PcenSpec
from .head import ImputerSpec, check_schedule
from .model import EncoderSpec, ModelSpec, check_pair
from .presets import PRESETS, AnyEncoderSpec, preset
from .tcn import TcnSpec
from .tokens import BLANK_ID, TokenSpec

__all__ = [
    "BLANK_ID",
    "PRESETS",
    "AnyEncoderSpec",
    "AttentionSpec",
    "ConformerSpec",
    "ConvSpec",
    "CrnnSpec",
    "EncoderSpec",
    "FeatureSpec",
    "ImputerSpec",
    "MelSpec",
    "ModelSpec",
    "PcenSpec",
    "TcnSpec",
    "TokenSpec",
    "WindowedCrnnSpec",
    "check_pair",
    "check_schedule",
    "preset",
]
