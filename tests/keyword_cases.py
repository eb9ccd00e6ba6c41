"""Small keyword models, one of every encoder."""

from __future__ import annotations

import msgspec
import torch

from edge_imputer.specs import (
    AnyEncoderSpec,
    AnyFeatureSpec,
    AttentionSpec,
    ConformerSpec,
    ConvSpec,
    CrnnSpec,
    FeatureSpec,
    KeywordModelSpec,
    MicroSpec,
    PcenSpec,
    TcnSpec,
    WindowedCnnSpec,
    WindowedCrnnSpec,
)
from edge_imputer.train.keyword_model import KeywordModel

MEL = FeatureSpec(n_mels=20)
PCEN = PcenSpec(n_mels=20, centred=True)
MICRO = MicroSpec()
FEATURES = {"log-mel": MEL, "pcen": PCEN, "micro": MICRO}
WORDS = ("yes", "no")
ENCODERS: dict[str, AnyEncoderSpec] = {
    "crnn": CrnnSpec(conv=(ConvSpec(channels=2), ConvSpec(channels=3)), hidden=5),
    "tcn": TcnSpec(channels=4, subsampling=3, stacks=((1,), (2,))),
    "conformer": ConformerSpec(
        d_model=8,
        n_layers=2,
        subsampling_channels=2,
        kernel=3,
        attention=AttentionSpec(heads=2, block=4, left_context=4, memory_blocks=2),
    ),
    "crnn-windowed": WindowedCrnnSpec(
        channels=2, hidden=2, dense=4, window_frames=31, hop_frames=7, n_classes=3
    ),
    "cnn-windowed": WindowedCnnSpec(
        channels=(2, 2),
        kernel_time=(6, 2),
        linear=3,
        dense=4,
        stride_time=3,
        window_frames=31,
        hop_frames=10,
        n_classes=3,
    ),
}


def spec(name: str, features: AnyFeatureSpec = MEL, **changes: object) -> KeywordModelSpec:
    made = KeywordModelSpec(features=features, encoder=ENCODERS[name], keywords=WORDS)
    return msgspec.structs.replace(made, **changes)


def model(name: str, features: AnyFeatureSpec = MEL, **changes: object) -> KeywordModel:
    torch.manual_seed(0)
    return KeywordModel(spec(name, features, **changes)).eval()
