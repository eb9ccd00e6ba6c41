"""What commands do: find a corpus or an encoder, read a recipe, train, export."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundle import Bundle, Provenance
from ..errors import CheckpointError, DataError, SpecError, require
from ..specs import PRESETS, FeatureSpec, ModelSpec, preset
from ..specs.presets import EncoderFile, read_encoder

if TYPE_CHECKING:
    from edge_imputer.export.bundle import Emitter
    from edge_imputer.export.quantize_report import GraphReport
    from edge_imputer.export.sensitivity import Quantisation
    from edge_imputer.train.data import Clip, ClipRecord, Split
    from edge_imputer.train.layers.inspect import EncoderInfo
    from edge_imputer.train.recipe import Recipe

DATA_VARIABLE = "EDGE_IMPUTER_DATA"
SHIPPED = "shipped digits"
N_CALIBRATION = 96


@dataclass(frozen=True)
class Corpus:
    """A corpus folder and the records in use."""

    folder: Path
    name: str
    records: list[ClipRecord]
    _loaded: dict[Split, list[Clip]] = field(default_factory=dict, repr=False, compare=False)

    def clips(self, split: Split) -> list[Clip]:
        """One split, loaded when first asked for."""
        from edge_imputer.train.data import load_clips

        if split not in self._loaded:
            rate = FeatureSpec().sample_rate
            self._loaded[split] = load_clips(self.folder, self.records, split, sample_rate=rate)
        return self._loaded[split]


def load_corpus(data: Path | None, *, hold_out: str | None = None) -> Corpus:
    """The corpus at `data`, or the shipped digits.

    A relative path that does not exist is looked up below ``$EDGE_IMPUTER_DATA``.
    """
    require("torch", extra="train")
    from edge_imputer.train import data as corpora

    folder = corpus_folder(data)
    records = corpora.read_manifest(folder)
    name = SHIPPED if data is None else folder.resolve().name
    if hold_out is not None:
        records = corpora.hold_out(records, hold_out)
        name += f", {hold_out} held out"
    return Corpus(folder, name, records)


def corpus_folder(data: Path | None) -> Path:
    """Where a corpus is; None: the shipped digits."""
    if data is None:
        from edge_imputer import train

        return Path(train.__file__).parent / "digits"
    return corpus_path(data)


def corpus_path(data: Path) -> Path:
    """`data`, or what lies there below ``$EDGE_IMPUTER_DATA`` if it is relative and not here."""
    root = os.environ.get(DATA_VARIABLE)
    if not data.exists() and not data.is_absolute() and root:
        return Path(root) / data
    return data


def describe_encoder(what: str) -> EncoderInfo | None:
    """What the encoder of that name, or in that file, is made of; None if `what` is a folder.

    A preset goes before a folder of its name; ``./NAME`` is the folder.
    """
    path = Path(what)
    if path.suffix in (".toml", ".json"):
        file = read_encoder(path)
    elif what not in PRESETS and (path.exists() or path.name != what):
        return None
    else:
        try:
            file = EncoderFile(encoder=preset(what))
        except SpecError as error:
            raise SpecError(f"found no bundle folder {what}, nor an encoder: {error}") from None
    require("torch", extra="train")
    from edge_imputer.train.layers.inspect import describe

    return describe(file.encoder, file.features)


def recipe(
    path: Path | None, *, updates: int | None, seed: int | None, settings: Sequence[str] = ()
) -> Recipe:
    """The recipe of that file or name, or the digits', with what the command line changes."""
    require("lightning", extra="train")
    from edge_imputer.train.recipe import read_recipe

    changes = {"run.updates": updates, "run.seed": seed}
    given = [f"{key}={value}" for key, value in changes.items() if value is not None]
    return read_recipe(path or "digits", [*settings, *given])


def refuse_to_overwrite(out: Path) -> None:
    """Raise if `out` holds a checkpoint that training afresh would replace."""
    from edge_imputer.train.trainer.store import LAST, PREVIOUS

    for path in (out / LAST, out / PREVIOUS):
        if path.exists():
            raise CheckpointError(
                f"{path} exists; go on from it with --resume, or train into another folder with "
                "--out"
            )


def train_checkpoint(corpus: Corpus, recipe: Recipe, out: Path, *, resume: bool = False) -> Path:
    """Train on a corpus' train split, look at its valid split, return the result's path."""
    require("lightning", extra="train")
    from edge_imputer.train.trainer import train

    try:
        valid = corpus.clips("valid")
    except DataError:
        valid = []  # a corpus may have none; then nothing is validated on
    return train(corpus.clips("train"), valid, recipe, out, data_name=corpus.name, resume=resume)


def export_checkpoint(
    checkpoint: Path,
    corpus: Corpus,
    out: Path,
    *,
    name: str | None = None,
    licence: str = "unstated",
    emitters: Sequence[Emitter] = (),
    quantisation: Quantisation | None = None,
    report: Path | None = None,
) -> Bundle:
    """Quantise on a corpus' train split and write every artefact.

    `licence` is that of the model, which the training data decides: only its owner can state it.
    `name` is the folder's if not given.
    `emitters` see the quantised graphs besides the C emitter.
    `quantisation` is int8 between minima and maxima if not given; `report` is a folder for what it
    cost, node by node.
    """
    from edge_imputer.export.bundle import REQUIRED_MODULES, export_bundle
    from edge_imputer.export.sensitivity import Quantisation

    for module in ("lightning", *REQUIRED_MODULES):
        require(module, extra="export")
    from edge_imputer.firmware_bridge.emit import write_native
    from edge_imputer.train.checkpoint import load_checkpoint
    from edge_imputer.train.data import joined_sequences
    from edge_imputer.train.trainer import write_training

    from .. import __version__

    loaded = load_checkpoint(checkpoint)
    if not isinstance(loaded.spec, ModelSpec):
        raise CheckpointError(
            f"{checkpoint}: expected a model that writes down speech, got one of keywords, which "
            "has no exporter yet; `edge-imputer evaluate` takes it as it is"
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
    provenance = Provenance(
        data=loaded.origin.data,
        n_clips=loaded.origin.n_clips,
        seed=loaded.recipe.run.seed,
        updates=loaded.updates,
        checkpoint_sha256=loaded.sha256,
        created_by=f"edge-imputer {__version__}",
    )
    reports: list[GraphReport] = []
    bundle = export_bundle(
        out,
        encoder=loaded.encoder,
        head=loaded.head,
        spec=loaded.spec,
        provenance=provenance,
        calibration=[clip.waveform for clip in clips],
        name=name or out.resolve().name,
        licence=licence,
        emitters=[
            write_native,
            lambda encoder, imputer, folder: write_training(loaded, folder),
            *emitters,
        ],
        quantisation=quantisation or Quantisation(),
        report=None if report is None else reports.append,
    )
    if report is not None:
        from .exporting import write_reports

        write_reports(reports, report)
    return bundle
