"""Whether a run may go on from a checkpoint: the same recipe, the same data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edge_imputer.errors import CheckpointError

from ..checkpoint import Origin
from ..recipe import Recipe

# What may be another in a resumed run, as may the number of processes: updates hold the same
# utterances and compute the same, to the rounding of sums where `run.accumulate` changes (and but
# for batch norm then, whose statistics are a micro-batch's). With another number of `run.updates`,
# shares of the updates (schedule, ramps) are shares of the new number from there on.
FREE = frozenset(
    {
        "description",
        "data.folder",  # what it is called and how many clips it has is compared instead
        "data.workers",
        "data.cache",
        "run.accumulate",
        "run.updates",
        "run.valid_every",
        "run.checkpoint_every",
        "run.log_every",
        "run.patience",
        "run.max_bad_updates",
    }
)


def check_same(
    path: Path, recipe: Recipe, origin: Origin, old_recipe: Recipe, old_origin: Origin
) -> None:
    """Raise `CheckpointError` if a checkpoint's run was another one."""
    ours = flat(msgspec.to_builtins(recipe)) | msgspec.to_builtins(origin)
    theirs = flat(msgspec.to_builtins(old_recipe)) | msgspec.to_builtins(old_origin)
    missing = object()
    changed = sorted(
        key
        for key in (ours.keys() | theirs.keys()) - FREE
        if ours.get(key, missing) != theirs.get(key, missing)
    )
    if changed:
        raise CheckpointError(
            f"{path}: cannot resume, this run differs from the checkpoint's in "
            f"{', '.join(changed)}; use the same recipe and data, or train into another folder "
            "(with --init-from to begin from these weights)"
        )
    if recipe.run.updates < old_recipe.run.updates:
        raise CheckpointError(
            f"{path}: cannot resume with run.updates {recipe.run.updates}, it was begun with "
            f"{old_recipe.run.updates}; give as many or more"
        )


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested tables by the dotted paths of their values; lists are values."""
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{path}.{key}" if path else str(key))
    return found
