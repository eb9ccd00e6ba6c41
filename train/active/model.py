"""The model whose ignorance is measured: of a checkpoint, the folder of a run, or a bundle."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from edge_imputer.bundle import Bundle
from edge_imputer.errors import CheckpointError
from edge_imputer.specs import AnyModelSpec

from ..checkpoint import load_checkpoint
from ..improving.improve import model_file
from ..tasks import Task
from ..trainer import RECIPE_NAME, WEIGHTS_NAME, checkpoint_of


@dataclass(frozen=True)
class OpenedModel:
    """A model in float, in evaluation mode.

    Attributes
    ----------
    path : Path
    task : Task
    spec : ModelSpec or KeywordModelSpec
    identity : str
        Hash of what its scores depend on.
    data : str
        What it was trained on, as it says itself.
    """

    path: Path
    task: Task
    spec: AnyModelSpec
    identity: str
    data: str


def open_model(path: Path) -> OpenedModel:
    """Open a checkpoint (.ckpt), the folder of a run, or a bundle that has its weights.

    Raises
    ------
    CheckpointError
        It is none of these, or a bundle of before weights were put in.
    BundleError
        A bundle that is damaged.
    """
    file = model_file(path)
    if file.is_file():
        loaded = load_checkpoint(file)
        return OpenedModel(path, loaded.task, loaded.spec, loaded.sha256, loaded.origin.data)
    bundle = Bundle.load(file)
    files = bundle.manifest.files
    if WEIGHTS_NAME in files and RECIPE_NAME not in files:
        raise CheckpointError(
            f"{path}: the bundle has no {RECIPE_NAME}, the recipe that it was trained by; give the "
            "checkpoint that it was exported from, or export that again"
        )
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "bundle.ckpt"
        torch.save(checkpoint_of(bundle), copy)
        loaded = load_checkpoint(copy)
    parts = [files[name].sha256 for name in (WEIGHTS_NAME, RECIPE_NAME)]
    identity = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return OpenedModel(path, loaded.task, loaded.spec, identity, loaded.origin.data)
