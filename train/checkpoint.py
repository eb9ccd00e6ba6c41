"""Checkpoints: weights with the model's spec, recipe and origin inside, in torch's file format.

What is ours is plain JSON and tensors, so that loading never unpickles a class.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from torch import Tensor

from edge_imputer.errors import CheckpointError, SpecError
from edge_imputer.specs import AnyModelSpec, KeywordModelSpec, ModelSpec

from .encoders import Encoder
from .imputer import ImputerHead
from .quantisation import Ranges
from .recipe import Recipe, make_recipe
from .tasks import ImputerTaskSpec, Task, build_task

KEY = "edge_imputer"
FORMAT = 2  # 1: lightning's, with a flat recipe and no keyword models


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a checkpoint was trained on."""

    data: str
    n_clips: int
    init_from: str | None = None  # sha256 of what its first weights were taken from


@dataclass
class Checkpoint:
    """A trained model with everything needed to go on training or to export it.

    `ranges` are those that it was quantised by in training, if it was: to be exported by them.
    """

    spec: AnyModelSpec
    recipe: Recipe
    origin: Origin
    task: Task
    updates: int
    sha256: str
    ranges: Ranges | None = None

    def with_rival(self, name: str) -> Checkpoint:
        """The model with a rival head in the place of its own; see `ImputerTaskSpec.rivals`.

        Raises
        ------
        SpecError
            It has no rival of that name.
        """
        settings = self.recipe.task
        if not isinstance(settings, ImputerTaskSpec) or not isinstance(self.spec, ModelSpec):
            raise SpecError(f"expected a model with rival heads, got one without: no {name!r}")
        own = settings.rival(name)
        spec = msgspec.structs.replace(self.spec, head=own.own_head())
        task = build_task(spec, own)
        weights = self.task.state_dict()
        kept = {key: w for key, w in weights.items() if not key.startswith(("head.", "rivals."))}
        of_rival = f"rivals.{name}."
        chosen = {
            "head." + key.removeprefix(of_rival): w
            for key, w in weights.items()
            if key.startswith(of_rival)
        }
        task.load_state_dict({**kept, **chosen})
        recipe = msgspec.structs.replace(self.recipe, task=own)
        return dataclasses.replace(self, spec=spec, recipe=recipe, task=task.eval(), ranges=None)

    @property
    def encoder(self) -> Encoder:
        """The encoder, in evaluation mode."""
        return cast("Encoder", self.task.encoder)

    @property
    def head(self) -> ImputerHead:
        """The Imputer head, in evaluation mode."""
        return cast("ImputerHead", self.task.head)


def pack(
    weights: dict[str, Tensor],
    spec: AnyModelSpec,
    recipe: Recipe,
    origin: Origin,
    updates: int,
    ranges: Ranges | None = None,
) -> dict[str, Any]:
    """What a checkpoint file holds of a model, for `torch.save`."""
    meta = {
        "format": FORMAT,
        "kind": "keywords" if isinstance(spec, KeywordModelSpec) else "speech",
        "spec": msgspec.json.encode(spec).decode(),
        "recipe": msgspec.json.encode(recipe).decode(),
        "origin": msgspec.json.encode(origin).decode(),
        "updates": updates,
    }
    if ranges is not None:
        meta["ranges"] = msgspec.json.encode(ranges).decode()
    return {KEY: meta, "state_dict": weights}


def ranges_of(raw: dict[str, Any], path: Path) -> Ranges | None:
    """The ranges that a model was quantised by in training; None where it was not."""
    text = raw[KEY].get("ranges")
    return None if text is None else decode_ranges(text, path)


def decode_ranges(text: str | bytes, path: Path) -> Ranges:
    """Ranges from JSON.

    Raises
    ------
    CheckpointError
        It is something else.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, dict[str, tuple[float, float]]])
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{path}: its ranges cannot be read: {error}") from error


def read_raw(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, of an older format brought to the present one.

    Raises
    ------
    CheckpointError
        No file, not a checkpoint, or no spec inside.
    """
    if not path.is_file():
        raise CheckpointError(
            f"expected a checkpoint at {path}, found no file; make one with: edge-imputer train"
        )
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint of this project ({reason})") from error
    if not isinstance(raw, dict) or KEY not in raw:
        raise CheckpointError(
            f"{path}: the checkpoint carries no model spec; train it with: edge-imputer train"
        )
    version = raw[KEY].get("format", 1)
    if version > FORMAT:
        raise CheckpointError(
            f"{path}: format {version} is newer than {FORMAT}, the newest that this version reads; "
            "upgrade with: pip install -U edge-imputer"
        )
    try:
        return _from_1(raw) if version == 1 else raw
    except (KeyError, TypeError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{path}: a checkpoint of format 1 without {error}") from error


def unpack(raw: dict[str, Any], path: Path) -> tuple[AnyModelSpec, Recipe, Origin]:
    """Spec, recipe and origin of what `read_raw` read."""
    try:
        meta = raw[KEY]
        spec: AnyModelSpec
        if meta["kind"] == "keywords":
            spec = msgspec.json.decode(meta["spec"], type=KeywordModelSpec)
        else:
            spec = msgspec.json.decode(meta["spec"], type=ModelSpec)
        recipe = make_recipe(msgspec.json.decode(meta["recipe"]), source="recipe")
        origin = msgspec.json.decode(meta["origin"], type=Origin)
    except (msgspec.DecodeError, KeyError, SpecError) as error:
        raise CheckpointError(f"{path}: spec and recipe cannot be read: {error}") from error
    return spec, recipe, origin


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint written by `edge_imputer.train.trainer.train`.

    Raises
    ------
    CheckpointError
        No file, not a checkpoint, no spec inside, or weights that do not fit the spec.
    """
    raw = read_raw(path)
    return checkpoint_from(raw, path, hashlib.sha256(path.read_bytes()).hexdigest())


def checkpoint_from(raw: dict[str, Any], path: Path, sha256: str = "") -> Checkpoint:
    """What `read_raw` read, or `trainer.initial.checkpoint_of` made of a bundle at `path`.

    Raises
    ------
    CheckpointError
        Its spec, its recipe and its weights do not fit.
    """
    spec, recipe, origin = unpack(raw, path)
    try:
        task = build_task(spec, recipe.task)
        task.load_state_dict(raw["state_dict"])
    except (KeyError, RuntimeError, SpecError) as error:
        raise CheckpointError(f"{path}: spec and weights do not fit: {error}") from error
    task.eval()
    updates, ranges = int(raw[KEY]["updates"]), ranges_of(raw, path)
    return Checkpoint(spec, recipe, origin, task, updates, sha256, ranges)


def _from_1(raw: dict[str, Any]) -> dict[str, Any]:
    """Format 2 has a recipe in sections, and the task of the model in it."""
    meta = raw[KEY]
    old = msgspec.json.decode(meta["config"])
    task = ("ctc_weight", "intermediate_weight", "stop_gradient", "flat_start", "all_masked")
    recipe = {
        "encoder": old["encoder"],
        "task": {
            "kind": "imputer",
            "head": old["head"],
            **{name: old[name] for name in (*task, "dropout", "logit_penalty") if name in old},
        },
        "batches": {"kind": "drawn", "size": old["batch_size"]},
        "optimizer": {
            name: old[name] for name in ("learning_rate", "warmup", "weight_decay", "gradient_clip")
        },
        "run": {name: old[name] for name in ("updates", "seed", "valid_every")},
    }
    spec = msgspec.json.decode(meta["spec"])
    meta = {
        **meta,
        "format": FORMAT,
        "kind": "speech",
        "spec": msgspec.json.encode(spec).decode(),
        "recipe": msgspec.json.encode(recipe).decode(),
        "updates": int(raw["global_step"]),
    }
    return {KEY: meta, "state_dict": raw["state_dict"]}
