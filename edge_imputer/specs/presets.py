"""Encoders by name, and from files.

A name is a kind and a size: ``tcn-30k`` has about 30,000 parameters, counted with those of batch
norm, on 40 mel bands; xs, s, m and l stand for 100k, 300k, 1000k and 3000k. To add one, add a line
to `PRESETS`: the tests hold its count to its name within 10 %, and ``edge-imputer info`` and ``make
bench-encoders`` take it up by themselves. A kind that is new besides goes into `AnyEncoderSpec` and
into `edge_imputer.train.encoders.ENCODERS`.

To change one: ``msgspec.structs.replace(preset("tcn-30k"), subsampling=3)``.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import msgspec

from ..errors import SpecError
from .base import Spec
from .conformer import ConformerSpec
from .encoders import ConvSpec, CrnnSpec
from .features import FeatureSpec
from .model import AnyEncoderSpec
from .tcn import TcnSpec
from .windowed import WindowedCnnSpec, WindowedCrnnSpec


def _convs(*channels: int) -> tuple[ConvSpec, ...]:
    return tuple(ConvSpec(channels=c) for c in channels)


PRESETS: dict[str, AnyEncoderSpec] = {
    "crnn-20k": CrnnSpec(conv=_convs(4, 8), hidden=48),
    "crnn-60k": CrnnSpec(conv=_convs(8, 16), hidden=80),
    "crnn-120k": CrnnSpec(conv=_convs(8, 24), hidden=112),
    "crnn-250k": CrnnSpec(conv=_convs(16, 32), gru_layers=2, hidden=120),
    "crnn-windowed-229k": WindowedCrnnSpec(),
    "cnn-windowed-229k": WindowedCnnSpec(),
    "tcn-10k": TcnSpec(channels=16),
    "tcn-30k": TcnSpec(channels=32),
    "tcn-120k": TcnSpec(channels=64, stacks=((1, 2, 4),) * 4),
    "tcn-250k": TcnSpec(channels=96, stacks=((1, 2, 4),) * 4),
    "conformer-xs": ConformerSpec(d_model=40, n_layers=4, subsampling_channels=8),
    "conformer-s": ConformerSpec(d_model=56, n_layers=6),
    "conformer-m": ConformerSpec(d_model=96, n_layers=7, subsampling_channels=32),
    "conformer-l": ConformerSpec(d_model=144, n_layers=9, subsampling_channels=32),
}


def preset(name: str) -> AnyEncoderSpec:
    """The encoder of that name; `SpecError`, with the nearest name, where there is none."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise SpecError(f"expected an encoder among {', '.join(PRESETS)}, got {name!r}{meant}")


class EncoderFile(Spec, frozen=True, kw_only=True):
    """What an encoder's file holds: a table ``encoder``, with its ``kind``, and ``features``."""

    encoder: AnyEncoderSpec
    features: FeatureSpec = FeatureSpec()


def read_encoder(path: Path) -> EncoderFile:
    """An encoder from a TOML or JSON file; `SpecError` where it is none."""
    if path.suffix not in (".toml", ".json"):
        raise SpecError(f"expected a .toml or .json file, got {path}")
    decode = msgspec.toml.decode if path.suffix == ".toml" else msgspec.json.decode
    try:
        file = decode(path.read_bytes(), type=EncoderFile)
    except FileNotFoundError:
        raise SpecError(f"expected an encoder's specification at {path}, found no file") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: {error}") from error
    file.encoder.check()
    file.features.check()
    return file
