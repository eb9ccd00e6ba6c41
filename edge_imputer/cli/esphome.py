"""From a keyword checkpoint to a wake word of ESPHome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError, DataError, require
from ..specs import KeywordModelSpec
from .steps import N_CALIBRATION, SHIPPED, Corpus


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
    from edge_imputer.train.data import joined_sequences
    from edge_imputer.train.keyword_model import KeywordModel

    loaded = load_checkpoint(checkpoint)
    if not isinstance(loaded.spec, KeywordModelSpec):
        raise CheckpointError(
            f"{checkpoint}: expected a model of one keyword, got one that writes down speech, "
            f"whose GRU or attention ESPHome cannot run; {TRAIN}"
        )
    if corpus.name == SHIPPED and not loaded.origin.data.startswith(SHIPPED):
        raise DataError(
            f"{checkpoint} was trained on {loaded.origin.data}, not on the {SHIPPED}: quantisation "
            "needs audio like that it will hear; pass --data FOLDER"
        )
    clips = joined_sequences(
        corpus.clips("train"),
        N_CALIBRATION,
        sample_rate=loaded.spec.features.sample_rate,
        seed=loaded.recipe.run.seed,
        length=(1, 4),
    )
    model = loaded.task.model
    assert isinstance(model, KeywordModel)
    pack = write_esphome_pack(model, [clip.waveform for clip in clips], out, **settings)
    return pack.manifest_path
