"""The one trainer: a corpus folder and a recipe in, a checkpoint out."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import lightning.pytorch as pl
import msgspec
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from torch.utils.data import DataLoader, Dataset

from edge_imputer.errors import CheckpointError, DataError
from edge_imputer.specs import FeatureSpec, ModelSpec
from edge_imputer.tokens import token_spec_of

from .checkpoint import Checkpoint, Origin, SpecCallback, load_checkpoint
from .config import TrainConfig
from .data import (
    Augmenter,
    Batch,
    Clip,
    Featurizer,
    TrainingBatches,
    feature_statistics,
    fixed_batches,
    joined_sequences,
    usable_clips,
)
from .module import ImputerModule

log = logging.getLogger(__name__)

CHECKPOINT_NAME = "last.ckpt"


def train(
    train_clips: list[Clip],
    valid_clips: list[Clip],
    config: TrainConfig,
    out: Path,
    *,
    data_name: str,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train a model and return the path of its last checkpoint.

    Parameters
    ----------
    train_clips, valid_clips : transcribed clips at the front end's sample rate
    config : TrainConfig
    out : folder for the checkpoints, ``last.ckpt`` among them
    data_name : what the checkpoint says it was trained on
    resume : go on from ``out/last.ckpt`` where there is one
    progress : show a progress bar

    Raises
    ------
    DataError
        No clip that can be trained on, or a loss that is no longer finite.
    CheckpointError
        The checkpoint to go on from has another recipe or other data.
    """
    config.check()
    pl.seed_everything(config.seed, verbose=False)
    last = out / CHECKPOINT_NAME
    origin = Origin(data=data_name, n_clips=len(train_clips))
    resumed = _resumable(last, config, origin) if resume and last.is_file() else None
    rate = FeatureSpec().sample_rate
    spec = resumed.spec if resumed else _model_spec(train_clips, config)
    train_clips = usable_clips(train_clips, Featurizer(spec), speed=max(config.augment.speeds))
    if not train_clips:
        raise DataError(
            "expected at least one training clip long enough for its transcript, got none"
        )
    augmenter = Augmenter(train_clips, config.augment, sample_rate=rate)
    if resumed is None:
        spec = _with_statistics(spec, augmenter, config)
    featurizer = Featurizer(spec)
    module = ImputerModule(spec, config)
    batches = TrainingBatches(
        augmenter,
        featurizer,
        batch_size=config.batch_size,
        seed=config.seed,
        start=resumed.updates if resumed else 0,
        n_isolated=config.flat_start_updates,
        n_ramp=round(config.augment.ramp * config.updates),
    )
    batches.batch(batches.start)  # what is wrong with the data is said here, not by a worker
    valid_clips = usable_clips(valid_clips, featurizer)
    sequences = joined_sequences(valid_clips, 64, sample_rate=rate, seed=config.seed, length=(3, 7))
    valid = fixed_batches(sequences, featurizer, config.batch_size)
    with _quiet():
        trainer = _trainer(config, out, SpecCallback(origin), progress=progress)
        trainer.fit(
            module,
            DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4),
            DataLoader(cast("Dataset[Batch]", valid), batch_size=None) if valid else None,
            ckpt_path=str(last) if resumed else None,
            weights_only=True,
        )
        trainer.save_checkpoint(last, weights_only=False)
    return last


def _resumable(path: Path, config: TrainConfig, origin: Origin) -> Checkpoint:
    """The checkpoint to go on from, if it was trained by the same recipe on the same data."""
    found = load_checkpoint(path)
    ours = msgspec.to_builtins(config) | msgspec.to_builtins(origin)
    theirs = msgspec.to_builtins(found.config) | msgspec.to_builtins(found.origin)
    changed = sorted(key for key in ours if ours[key] != theirs[key])
    if changed:
        raise CheckpointError(
            f"{path}: cannot resume, this run differs from the checkpoint's in "
            f"{', '.join(changed)}; use the same recipe and data, or train into another folder"
        )
    return found


def _model_spec(clips: list[Clip], config: TrainConfig) -> ModelSpec:
    """The spec of a new model: its tokens are the characters of the texts."""
    if not clips:
        raise DataError("expected at least one training clip, got none")
    if any(clip.text != clip.text.lower() for clip in clips):
        log.warning("some transcripts have capital letters: they become tokens of their own")
    return ModelSpec(
        features=FeatureSpec(),
        encoder=config.encoder,
        head=config.head,
        tokens=token_spec_of([" ", *(clip.text for clip in clips)]),
    )


def _with_statistics(spec: ModelSpec, augmenter: Augmenter, config: TrainConfig) -> ModelSpec:
    """Set mean and standard deviation of the log-mel to the training audio's."""
    mean, std = feature_statistics(augmenter, Featurizer(spec), seed=config.seed)
    if not std > 0.01:
        raise DataError(
            f"expected training audio, got silence: its log-mel varies by {std:.2g} nats only"
        )
    features = msgspec.structs.replace(spec.features, mean=round(mean, 4), std=round(std, 4))
    return msgspec.structs.replace(spec, features=features)


def _trainer(
    config: TrainConfig, out: Path, spec_callback: Callback, *, progress: bool
) -> pl.Trainer:
    callbacks: list[Callback] = [
        spec_callback,
        ModelCheckpoint(
            dirpath=out,
            filename=Path(CHECKPOINT_NAME).stem,
            every_n_train_steps=config.valid_every,
            enable_version_counter=False,
        ),
    ]
    if progress:
        callbacks.append(RichProgressBar(refresh_rate=10) if sys.stdout.isatty() else _Lines())
    return pl.Trainer(
        max_steps=config.updates,
        val_check_interval=min(config.valid_every, config.updates),
        check_val_every_n_epoch=None,
        gradient_clip_val=config.gradient_clip,
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=progress and sys.stdout.isatty(),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )


class _Lines(Callback):
    """Progress where there is no terminal to draw a bar on: a line at every checkpoint."""

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Print the losses and the last word error rates."""
        assert isinstance(pl_module, ImputerModule)
        config = pl_module.config
        done = trainer.global_step
        if done % config.valid_every == 0 or done == config.updates:
            values = (f"{k} {float(v):.3f}" for k, v in sorted(trainer.callback_metrics.items()))
            print(f"update {done} of {config.updates}: {', '.join(values)}", flush=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice on workers, loaders and loggers does not apply to a stream of batches."""
    chatter = logging.getLogger("lightning.pytorch")
    level = chatter.level
    chatter.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", module="torch")
            yield
    finally:
        chatter.setLevel(level)
