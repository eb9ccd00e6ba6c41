"""What commands do: find a corpus or an encoder, read a recipe, train, export."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle import Bundle, Provenance
from ..errors import CheckpointError, DataError, SpecError, require
from ..frontend import Float32
from ..specs import (
    PRESETS,
    AnyModelSpec,
    FeatureSpec,
    KeywordModelSpec,
    preset,
    speech_spec,
)
from ..specs.presets import EncoderFile, read_encoder

if TYPE_CHECKING:
    from edge_imputer.export.bundle import Emitter
    from edge_imputer.export.graph import Graph
    from edge_imputer.export.quantize_report import GraphReport
    from edge_imputer.export.sensitivity import Quantisation
    from edge_imputer.train.checkpoint import Checkpoint
    from edge_imputer.train.data import Clip, ClipRecord, Split
    from edge_imputer.train.layers.inspect import EncoderInfo
    from edge_imputer.train.quantisation import Quantiser
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
    return train(
        corpus.clips("train"),
        valid,
        recipe,
        out,
        data_name=corpus.name,
        resume=resume,
        quantiser=quantiser_of(recipe),
    )


def quantiser_of(recipe: Recipe) -> Quantiser | None:
    """What a recipe with quantisation aware updates trains with."""
    if not recipe.quantisation.updates:
        return None
    require("torch", extra="train")
    from edge_imputer.export.qat import ExportQuantiser

    return ExportQuantiser()


def calibration_audio(loaded: Checkpoint, corpus: Corpus) -> list[Float32]:
    """Sequences of a corpus' train clips, to calibrate a checkpoint's model with.

    Raises
    ------
    DataError
        If the corpus is not one that the model was trained on.
    """
    from edge_imputer.train.data import joined_sequences

    if corpus.name == SHIPPED and not loaded.origin.data.startswith(SHIPPED):
        raise DataError(
            f"expected the data that the model was trained on, {loaded.origin.data}, got the "
            f"{SHIPPED}: quantisation needs audio like that it will hear; pass --data FOLDER"
        )
    clips = joined_sequences(
        corpus.clips("train"),
        N_CALIBRATION,
        sample_rate=loaded.spec.features.sample_rate,
        seed=loaded.recipe.run.seed,
        length=(1, 4),
    )
    return [clip.waveform for clip in clips]


def export_checkpoint(
    checkpoint: Path,
    corpus: Corpus,
    out: Path,
    *,
    name: str | None = None,
    licence: str = "unstated",
    emitters: Sequence[Emitter] = (),
    fused: bool = False,
    ort: bool = False,
    quantisation: Quantisation | None = None,
    report: Path | None = None,
) -> Bundle:
    """Quantise on a corpus' train split and write every artefact.

    `licence` is that of the model, which the training data decides: only its owner can state it.
    `name` is the folder's if not given.
    `emitters` see the quantised graphs besides the C emitter.
    With `fused`, the folder ``fused`` holds the whole model as one graph; `ort` adds onnxruntime's
    own files. `quantisation` is int8 between minima and maxima if not given; `report` is a folder
    for what it cost, node by node. A model that was trained in its integers has its own ranges.
    """
    from edge_imputer.export.bundle import (
        REQUIRED_MODULES,
        export_bundle,
        export_keyword_bundle,
    )

    for module in ("lightning", *REQUIRED_MODULES):
        require(module, extra="export")
    from edge_imputer.export.ort_emitter import ort_emitter
    from edge_imputer.firmware_bridge.emit import write_native
    from edge_imputer.firmware_bridge.keywords import write_native_keywords
    from edge_imputer.train.checkpoint import load_checkpoint
    from edge_imputer.train.tasks import KeywordTask
    from edge_imputer.train.trainer import write_training

    from .. import __version__

    loaded = load_checkpoint(checkpoint)
    if loaded.ranges is not None and (quantisation is not None or report is not None):
        raise SpecError(
            f"{checkpoint} was trained in its integers, whose ranges are its own: leave out "
            "--calibration, --precision, --snr-db and --report"
        )
    if fused and isinstance(loaded.spec, KeywordModelSpec) and loaded.spec.windowed:
        raise SpecError("expected no --fused with a model over windows, which overlap")
    waveforms = [] if loaded.ranges is not None else calibration_audio(loaded, corpus)
    quantised_by: dict[str, Any] = {"calibration": waveforms, "ranges": loaded.ranges}
    if quantisation is not None:
        quantised_by["quantisation"] = quantisation
    reports: list[GraphReport] = []
    if report is not None:
        quantised_by["report"] = reports.append
    provenance = Provenance(
        data=loaded.origin.data,
        n_clips=loaded.origin.n_clips,
        seed=loaded.recipe.run.seed,
        updates=loaded.updates,
        checkpoint_sha256=loaded.sha256,
        created_by=f"edge-imputer {__version__}",
    )
    name = name or out.resolve().name
    if ort:
        emitters = [*emitters, ort_emitter(loaded.spec, licence)]

    def with_training(*graphs_and_folder: Any) -> None:
        write_training(loaded, graphs_and_folder[-1])

    fusing = [_fused_emitter(loaded.spec, licence)] if fused else []
    if isinstance(loaded.task, KeywordTask):
        hop_frames = loaded.task.spec.step_features

        def native(graph: Graph, folder: Path) -> dict[str, int]:
            return write_native_keywords(graph, hop_frames, folder)

        bundle = export_keyword_bundle(
            out,
            model=loaded.task.model,
            provenance=provenance,
            name=name,
            licence=licence,
            emitters=[native, with_training, *emitters, *fusing],
            **quantised_by,
        )
    else:
        bundle = export_bundle(
            out,
            encoder=loaded.encoder,
            head=loaded.head,
            spec=speech_spec(loaded.spec),
            provenance=provenance,
            name=name,
            licence=licence,
            emitters=[write_native, with_training, *emitters, *fusing],
            **quantised_by,
        )
    if report is not None:
        from .export import write_reports

        write_reports(reports, report)
    return bundle


def _fused_emitter(spec: AnyModelSpec, licence: str) -> Emitter:
    from edge_imputer.export.fused.files import FOLDER, write_fused, write_fused_keywords

    def emit(*graphs_and_folder: Any) -> None:
        *graphs, folder = graphs_and_folder
        if isinstance(spec, KeywordModelSpec):
            write_fused_keywords(folder / FOLDER, graphs[0], spec, licence=licence)
        else:
            write_fused(folder / FOLDER, graphs[0], graphs[1], spec, licence=licence)

    return emit
