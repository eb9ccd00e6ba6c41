"""First weights from a model that is trained already: ``--init-from``."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edge_imputer.bundle import MANIFEST_NAME, Bundle
from edge_imputer.errors import CheckpointError

from ..checkpoint import AnyModelSpec, read_raw, unpack
from ..tasks import Task

log = logging.getLogger(__name__)

WEIGHTS_NAME = "weights.npz"  # float weights in a bundle, by their names in the task


@dataclass(frozen=True)
class Initial:
    """A model to begin from."""

    path: Path
    spec: AnyModelSpec
    weights: Mapping[str, Tensor]
    sha256: str


def read_initial(path: Path) -> Initial:
    """Weights of a checkpoint or of a bundle.

    Raises
    ------
    CheckpointError
        Neither, or a bundle of before weights were put in.
    BundleError
        A bundle that is damaged.
    """
    if not path.is_dir():
        raw = read_raw(path)
        spec, _, _ = unpack(raw, path)
        return Initial(path, spec, raw["state_dict"], _sha256(path))
    if not (path / MANIFEST_NAME).is_file() and (path / "last.ckpt").is_file():
        return read_initial(path / "last.ckpt")
    bundle = Bundle.load(path)
    if WEIGHTS_NAME not in bundle.manifest.files:
        raise CheckpointError(
            f"{path}: the bundle has no {WEIGHTS_NAME}, the weights to train on from; give the "
            "checkpoint that it was exported from, or export that again"
        )
    with np.load(bundle.file(WEIGHTS_NAME), allow_pickle=False) as arrays:
        weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return Initial(path, bundle.spec, weights, _sha256(path / WEIGHTS_NAME))


def write_weights(task: Task, folder: Path) -> None:
    """Write a task's weights into a bundle, for `read_initial` to read."""
    arrays = {name: value.detach().cpu().numpy() for name, value in task.state_dict().items()}
    np.savez(folder / WEIGHTS_NAME, **arrays)


def take_over(task: Task, initial: Initial) -> None:
    """Copy the weights that the new model has too, by name and shape; say which it has not.

    Raises
    ------
    CheckpointError
        None fits: it is another network.
    """
    own = task.state_dict()
    fitting = {n: w for n, w in initial.weights.items() if n in own and own[n].shape == w.shape}
    if not any(own[name].is_floating_point() for name in fitting):
        raise CheckpointError(
            f"{initial.path}: none of its weights fits the recipe's network; expected encoder "
            f"{type(initial.spec.encoder).__name__} {initial.spec.encoder}, got "
            f"{task.spec.encoder}"
        )
    task.load_state_dict({**own, **fitting})
    fresh = sorted(set(own) - set(fitting))
    if fresh:
        log.warning(
            "%d of %d weights begin from scratch, %s has none of their shape: %s%s",
            len(fresh),
            len(own),
            initial.path,
            ", ".join(fresh[:4]),
            ", ..." if len(fresh) > 4 else "",
        )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
