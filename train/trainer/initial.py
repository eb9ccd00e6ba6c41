"""First weights from a model that is trained already: ``--init-from``."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from edge_imputer.bundle import MANIFEST_NAME, Bundle
from edge_imputer.errors import CheckpointError
from edge_imputer.specs import AnyModelSpec

from ..checkpoint import Checkpoint, Origin, decode_ranges, pack, ranges_of, read_raw, unpack
from ..quantisation import Ranges
from ..recipe import Recipe, make_recipe
from ..tasks import Task
from .store import State

log = logging.getLogger(__name__)

WEIGHTS_NAME = "weights.npz"  # float weights in a bundle, by their names in the task
RECIPE_NAME = "recipe.json"  # what they were trained by
RANGES_NAME = "ranges.json"  # by which they were quantised in training, if they were


@dataclass(frozen=True)
class Initial:
    """A model to begin from.

    `ranges` are those that it was quantised by in training, if it was.
    """

    path: Path
    spec: AnyModelSpec
    weights: Mapping[str, Tensor]
    sha256: str
    ranges: Ranges | None = None


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
        return Initial(path, spec, raw["state_dict"], _sha256(path), ranges_of(raw, path))
    if not (path / MANIFEST_NAME).is_file() and (path / "last.ckpt").is_file():
        return read_initial(path / "last.ckpt")
    bundle = Bundle.load(path)
    weights, sha256 = _weights_of(bundle), _sha256(path / WEIGHTS_NAME)
    return Initial(path, bundle.spec, weights, sha256, _ranges_of(bundle))


def checkpoint_of(bundle: Bundle, recipe: Recipe | None = None) -> State:
    """What a bundle was exported from, as far as it says, for `torch.save`.

    Parameters
    ----------
    bundle : Bundle
    recipe : of a bundle that does not carry its own

    Raises
    ------
    CheckpointError
        A bundle of before weights, or of before recipes and none is given.
    """
    weights = _weights_of(bundle)
    if RECIPE_NAME in bundle.manifest.files:
        raw = msgspec.json.decode(bundle.file(RECIPE_NAME).read_bytes())
        recipe = make_recipe(raw, source=str(bundle.file(RECIPE_NAME)))
    if recipe is None:
        raise CheckpointError(
            f"{bundle.path}: the bundle has no {RECIPE_NAME}, the recipe that it was trained by; "
            "give one with --recipe"
        )
    made = bundle.manifest.provenance
    origin = Origin(data=made.data, n_clips=made.n_clips)
    return pack(weights, bundle.spec, recipe, origin, made.updates, _ranges_of(bundle))


def _weights_of(bundle: Bundle) -> dict[str, Tensor]:
    if WEIGHTS_NAME not in bundle.manifest.files:
        raise CheckpointError(
            f"{bundle.path}: the bundle has no {WEIGHTS_NAME}, the weights to train on from; give "
            "the checkpoint that it was exported from, or export that again"
        )
    with np.load(bundle.file(WEIGHTS_NAME), allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _ranges_of(bundle: Bundle) -> Ranges | None:
    """None where the model was not quantised in training, or before bundles said so."""
    if RANGES_NAME not in bundle.manifest.files:
        return None
    path = bundle.file(RANGES_NAME)
    return decode_ranges(path.read_bytes(), path)


def portable(recipe: Recipe) -> Recipe:
    """The recipe without what it names of one machine: folders of data, noises and rooms."""
    replace = msgspec.structs.replace
    section = replace(recipe.data, folder="", hold_out=None, cache=None, noises=None, rooms=None)
    augment = recipe.augment
    if recipe.data.noises is not None:
        augment = replace(augment, noise_files=0.0)
    if recipe.data.rooms is not None:
        augment = replace(augment, room_files=0.0)
    return replace(recipe, data=section, augment=augment)


def write_training(checkpoint: Checkpoint, folder: Path) -> None:
    """Write weights, recipe and ranges into a bundle, so that its model can be trained on."""
    state = checkpoint.task.state_dict()
    arrays = {name: value.detach().cpu().numpy() for name, value in state.items()}
    np.savez(folder / WEIGHTS_NAME, **arrays)
    _write_json(folder / RECIPE_NAME, portable(checkpoint.recipe))
    if checkpoint.ranges is not None:
        _write_json(folder / RANGES_NAME, checkpoint.ranges)


def _write_json(path: Path, value: object) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


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
