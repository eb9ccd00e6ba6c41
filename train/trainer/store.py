"""What a run keeps on disk: its last state, the one before, the best weights, and those to average.

::

    OUT/
      last.ckpt, previous.ckpt   everything needed to go on; the second where the first is broken
      best.ckpt                  weights of the best validation
      weights-001200.ckpt        weights to average, where the recipe asks for it
      averaged.ckpt              their mean, in the end

Every file is written beside its place, synced and renamed into it: whatever happens meanwhile, the
file that was there stays whole.
"""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path
from typing import Any

import msgspec
import torch

from edge_imputer.errors import CheckpointError, TrainingError
from edge_imputer.files import write_atomically

from ..checkpoint import KEY, read_raw
from ..recipe import RunSection
from .optimization import mean_weights

log = logging.getLogger(__name__)

LAST, PREVIOUS, BEST, AVERAGED = "last.ckpt", "previous.ckpt", "best.ckpt", "averaged.ckpt"
State = dict[str, Any]


class Kept(msgspec.Struct, kw_only=True):
    """Which weights are kept and why: part of a run's state, so that a resumed run goes on with it.

    `best` is the measure of ``best.ckpt``, the larger the better; `waited` counts validations since
    then; `weights` are (measure or update, file) of those to average.
    """

    best: float | None = None
    best_update: int = 0
    waited: int = 0
    weights: list[tuple[float, str]] = []


class Store:
    """The files of one run. One process of several writes.

    Parameters
    ----------
    folder : where
    section : RunSection
    """

    def __init__(self, folder: Path, section: RunSection) -> None:
        self.folder = folder
        self.section = section
        self.kept = Kept()
        self._earlier: set[str] = set()  # weights that `previous.ckpt` still counts on
        self._last_is_whole = True

    def newest(self) -> State | None:
        """The state to go on from: the last one, or the one before if the last cannot be read.

        None where there is neither file.

        Raises
        ------
        CheckpointError
            Both are broken, or the only one is.
        """
        broken = None
        for name in (LAST, PREVIOUS):
            path = self.folder / name
            if not path.is_file():
                continue
            try:
                return read_raw(path)
            except CheckpointError as error:
                log.warning("%s; looking for the checkpoint before it", error)
                broken = error
                self._last_is_whole = False
        if broken is not None:
            raise CheckpointError(
                f"{broken}; no checkpoint of {self.folder} can be read: train into another folder"
            )
        return None

    def resume(self, kept: Any) -> None:
        """Go on with what a state says is kept."""
        self.kept = msgspec.convert(kept, Kept)
        self._earlier = {name for _, name in self.kept.weights}

    def improved(self, value: float, update: int) -> bool:
        """Note a validation's measure; whether it is the best one yet."""
        if self.kept.best is not None and not value > self.kept.best:
            self.kept.waited += 1
            return False
        self.kept.best, self.kept.best_update, self.kept.waited = value, update, 0
        return True

    def begin_anew(self) -> None:
        """Forget what was best: what follows is measured otherwise, or is another thing."""
        self.kept = Kept()

    @property
    def out_of_patience(self) -> bool:
        """Whether the run should stop early."""
        return 0 < self.section.patience <= self.kept.waited

    def keep_best(self, weights: State) -> None:
        """Write the weights of the best validation."""
        self._write(BEST, weights)

    def keep_for_average(self, weights: State, update: int, rank: float) -> None:
        """Write weights that may be averaged in the end: the `average` ones of highest `rank`."""
        name = f"weights-{update:06d}.ckpt"
        chosen = sorted([*self.kept.weights, (rank, name)], reverse=True)[: self.section.average]
        if name in {kept for _, kept in chosen}:
            self._write(name, weights)
        self.kept.weights = sorted(chosen)

    def save(self, state: State) -> None:
        """Write the run's state; the one that was last is kept as the one before."""
        data = serialised(state)
        self._write(LAST, data, keep_old=self.folder / PREVIOUS if self._last_is_whole else None)
        self._last_is_whole = True
        now = {name for _, name in self.kept.weights}
        for path in self.folder.glob("weights-*.ckpt"):
            if path.name not in now | self._earlier:
                path.unlink()
        self._earlier = now

    def result(self) -> Path:
        """The file that the recipe wants of the run; the mean of weights is computed now."""
        wanted = self.section.result
        if wanted == "last" or (wanted == "best" and self.kept.best is None):
            return self.folder / LAST
        if wanted == "best":
            return self.folder / BEST
        names = [name for _, name in self.kept.weights]
        if not names:
            return self.folder / LAST
        raw = [read_raw(self.folder / name) for name in names]
        mean = {**raw[-1], "state_dict": mean_weights(item["state_dict"] for item in raw)}
        mean[KEY] = {**mean[KEY], "averaged": names}
        self._write(AVERAGED, mean)
        return self.folder / AVERAGED

    def _write(self, name: str, state: State | bytes, keep_old: Path | None = None) -> None:
        path = self.folder / name
        data = state if isinstance(state, bytes) else serialised(state)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data, keep_old=keep_old)
        except OSError as error:
            reason = error.strerror or str(error)
            raise TrainingError(
                f"{path}: could not write {len(data)} bytes ({reason}); {self._whole()}. Make "
                "room, then go on with --resume"
            ) from error

    def _whole(self) -> str:
        """What is left to go on from."""
        for name in (LAST, PREVIOUS):
            if (self.folder / name).is_file():
                return f"{self.folder / name} is whole"
        return "there is no earlier checkpoint"


def serialised(state: State) -> bytes:
    """A state in torch's file format."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def remove_run(folder: Path) -> None:
    """Remove the files of an earlier run, so that none of them is taken for the new one's."""
    names = (LAST, PREVIOUS, BEST, AVERAGED)
    for path in (*folder.glob("weights-*.ckpt"), *(folder / name for name in names)):
        path.unlink(missing_ok=True)
    os.makedirs(folder, exist_ok=True)
