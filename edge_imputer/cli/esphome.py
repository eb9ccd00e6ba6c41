"""From a keyword checkpoint to a wake word of ESPHome."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, require
from ..specs import KeywordModelSpec
from .steps import Corpus, calibration_audio


def export_esphome(checkpoint: Path, corpus: Corpus, out: Path, **settings: Any) -> Path:
    """Quantise on a corpus' train split and write the two files; the manifest's path.

    `settings` are those of `edge_imputer.export.esphome.write_esphome_pack`.

    Raises
    ------
    CheckpointError
        If the checkpoint is not one of keywords.
    DataError
        If the corpus is not one that the model was trained on.
    """
    for module in ("lightning", "flatbuffers", "ai_edge_litert.schema_py_generated"):
        require(module, extra="esphome")
    from edge_imputer.export.esphome import write_esphome_pack
    from edge_imputer.export.esphome.contract import TRAIN
    from edge_imputer.train.checkpoint import load_checkpoint
    from edge_imputer.train.keyword_model import KeywordModel

    loaded = load_checkpoint(checkpoint)
    if not isinstance(loaded.spec, KeywordModelSpec):
        raise CheckpointError(
            f"{checkpoint}: expected a model of one keyword, got one that writes down speech, "
            f"whose GRU or attention ESPHome cannot run; {TRAIN}"
        )
    if loaded.ranges is not None:
        warnings.warn(
            "ESPHome's features have a scale of their own: the ranges that the model was trained "
            "by are calibrated anew, and its integers are others than those of training",
            stacklevel=2,
        )
    waveforms = calibration_audio(loaded, corpus)
    model = loaded.task.model
    assert isinstance(model, KeywordModel)
    pack = write_esphome_pack(model, waveforms, out, **settings)
    return pack.manifest_path
