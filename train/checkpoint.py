"""Checkpoints: Lightning's, with the model's spec, recipe and origin inside."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import msgspec
import torch

from edge_imputer.errors import CheckpointError
from edge_imputer.specs import ModelSpec

from .config import TrainConfig
from .encoders import Encoder
from .imputer import ImputerHead
from .module import ImputerModule

KEY = "edge_imputer"


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a checkpoint was trained on."""

    data: str
    n_clips: int


class SpecCallback(pl.Callback):
    """Writes spec, recipe and origin into every checkpoint."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add plain JSON, so that loading never unpickles classes of ours."""
        assert isinstance(pl_module, ImputerModule)
        checkpoint[KEY] = {
            "spec": msgspec.json.encode(pl_module.spec).decode(),
            "config": msgspec.json.encode(pl_module.config).decode(),
            "origin": msgspec.json.encode(self.origin).decode(),
        }


@dataclass
class Checkpoint:
    """A trained model with everything needed to go on training or to export it."""

    spec: ModelSpec
    config: TrainConfig
    origin: Origin
    module: ImputerModule
    updates: int
    sha256: str

    @property
    def encoder(self) -> Encoder:
        """The encoder, in evaluation mode."""
        return self.module.encoder

    @property
    def head(self) -> ImputerHead:
        """The Imputer head, in evaluation mode."""
        return self.module.head


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint written by `edge_imputer.train.trainer.train`.

    Raises
    ------
    CheckpointError
        No file, not a checkpoint, no spec inside, or weights that do not fit the spec.
    """
    if not path.is_file():
        raise CheckpointError(
            f"expected a checkpoint at {path}, found no file; make one with: edge-imputer train"
        )
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise CheckpointError(f"{path}: not a checkpoint of this project ({error})") from error
    if not isinstance(raw, dict) or KEY not in raw:
        raise CheckpointError(
            f"{path}: the checkpoint carries no model spec; train it with: edge-imputer train"
        )
    try:
        meta = raw[KEY]
        spec = msgspec.json.decode(meta["spec"], type=ModelSpec)
        config = msgspec.json.decode(meta["config"], type=TrainConfig)
        origin = msgspec.json.decode(meta["origin"], type=Origin)
        module = ImputerModule(spec, config)
        module.load_state_dict(raw["state_dict"])
    except (msgspec.DecodeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: spec and weights do not fit: {error}") from error
    module.eval()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Checkpoint(spec, config, origin, module, int(raw["global_step"]), digest)
