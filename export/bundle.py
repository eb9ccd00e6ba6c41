"""Writes a bundle: its graphs in every form, the manifest and the model card."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.bundle import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Bundle,
    Manifest,
    Metrics,
    OperatingPoint,
    Provenance,
    file_records,
    write_manifest,
)
from edge_imputer.errors import ExportError, require
from edge_imputer.files import write_atomically
from edge_imputer.specs import AnyModelSpec, ModelSpec

from .build import build_graphs, build_keyword_graph
from .calibration import Calibration
from .card import CARD_NAME, model_card
from .file_metadata import file_metadata
from .graph import Graph
from .quantize_report import GraphReport
from .ranges import Ranges, quantise_by
from .sensitivity import Quantisation
from .simulate import INT8, calibrated, calibrated_keywords, graph_record, quantise_all

if TYPE_CHECKING:
    from edge_imputer.train.encoders import Encoder
    from edge_imputer.train.imputer import ImputerHead
    from edge_imputer.train.keyword_model import KeywordModel

REQUIRED_MODULES = ("onnx", "flatbuffers", "ai_edge_litert.schema_py_generated")
MINIMUM_RUNTIME_VERSION = "0.1.0"  # the oldest edge-imputer that reads what is written here
NO_METRICS = Metrics(
    data=None,
    digit_accuracy=None,
    wer=None,
    keyword_recall=None,
    keyword_fa_per_hour=None,
    negative_hours=None,
)

Emitter = Callable[..., Mapping[str, int] | None]
"""Writes more files into the folder: called with the quantised graphs, encoder and imputer or just
that of a keyword model, and the folder. May return the bytes of working memory its code needs for
one call of each graph, by graph name, for the manifest."""


def export_bundle(
    out: str | os.PathLike[str],
    *,
    encoder: Encoder,
    head: ImputerHead,
    spec: ModelSpec,
    provenance: Provenance,
    calibration: Iterable[npt.NDArray[np.float32]],
    name: str,
    licence: str,
    metrics: Metrics = NO_METRICS,
    keyword_threshold: float | None = None,
    emitters: Sequence[Emitter] = (),
    ranges: Ranges | None = None,
    quantisation: Quantisation = INT8,
    report: Callable[[GraphReport], None] | None = None,
) -> Bundle:
    """Quantise a trained model and write it as a bundle, whole or not at all.

    Parameters
    ----------
    out : path
        Folder to make. A bundle that is there already is replaced; anything else is refused.
    encoder, head : Encoder, ImputerHead
        Trained.
    spec : ModelSpec
        What both were built from.
    provenance : Provenance
    calibration : iterable of float32 arrays, (n,)
        Audio at the model's sample rate, of training or validation clips.
    name, licence : str
        For the manifest and the model card.
    metrics, keyword_threshold : optional
        What was measured; may be filled in later, see `update_metrics`.
    emitters : sequence of callables
        Writers of further files, such as the C emitter of `edge_imputer.firmware_bridge`.
    ranges : Ranges, optional
        Those that the model was quantised by in training: then it is not calibrated, and int8.
    quantisation, report : optional
        See `quantise_all`.

    Returns
    -------
    Bundle, read back and verified

    Raises
    ------
    ExportError
        If the model cannot be quantised or emitted, `out` is something else than a bundle, or
        `quantisation` or `report` is asked for with `ranges`.
    MissingExtraError
        If a library of the ``export`` extra is not installed.
    """
    _check(Path(out))
    floats = build_graphs(encoder, head, spec)

    def calibrate() -> Sequence[Calibration]:
        return calibrated(*floats, spec, calibration, quantisation.calibration)

    described = _Described(
        spec=spec,
        provenance=provenance,
        name=name,
        licence=licence,
        metrics=metrics,
        keyword_threshold=keyword_threshold,
    )
    graphs = _integers(floats, calibrate, ranges, quantisation, report)
    return _write_bundle(Path(out), described, floats, graphs, emitters)


def export_keyword_bundle(
    out: str | os.PathLike[str],
    *,
    model: KeywordModel,
    provenance: Provenance,
    calibration: Iterable[npt.NDArray[np.float32]],
    name: str,
    licence: str,
    emitters: Sequence[Emitter] = (),
    ranges: Ranges | None = None,
    quantisation: Quantisation = INT8,
    report: Callable[[GraphReport], None] | None = None,
) -> Bundle:
    """Quantise a trained keyword model and write it as a bundle, whole or not at all.

    Parameters
    ----------
    out, provenance, calibration, name, licence : as `export_bundle` takes them
    emitters, ranges, quantisation, report : as `export_bundle` takes them
    model : KeywordModel
        Trained, in evaluation mode.

    Returns
    -------
    Bundle, read back and verified

    Raises
    ------
    ExportError, MissingExtraError
        As `export_bundle`.
    SpecError
        If the model cannot run in a stream.
    """
    _check(Path(out))
    spec = model.spec
    spec.check_streaming()
    floats = (build_keyword_graph(model),)

    def calibrate() -> Sequence[Calibration]:
        return [calibrated_keywords(*floats, spec, calibration, quantisation.calibration)]

    described = _Described(spec=spec, provenance=provenance, name=name, licence=licence)
    graphs = _integers(floats, calibrate, ranges, quantisation, report)
    return _write_bundle(Path(out), described, floats, graphs, emitters)


@dataclass(frozen=True, kw_only=True)
class _Described:
    """What a manifest says of a model besides its graphs and files."""

    spec: AnyModelSpec
    provenance: Provenance
    name: str
    licence: str
    metrics: Metrics = NO_METRICS
    keyword_threshold: float | None = None


def _check(target: Path) -> None:
    """Refuse what cannot be written, before anything is calibrated for it."""
    for module in REQUIRED_MODULES:
        require(module, extra="export")
    _check_target(target)


def _integers(
    floats: tuple[Graph, ...],
    calibrate: Callable[[], Sequence[Calibration]],
    ranges: Ranges | None,
    quantisation: Quantisation,
    report: Callable[[GraphReport], None] | None,
) -> tuple[Graph, ...]:
    """The integer graphs: by the ranges that are given, or else calibrated."""
    if ranges is not None:
        if quantisation != INT8 or report is not None:
            raise ExportError(
                "expected ranges alone, got a quantisation or a report too: a model is exported in "
                "the int8 that it was trained in; leave them out, or leave out the ranges to "
                "calibrate it anew"
            )
        return quantise_by(floats, ranges)
    return quantise_all(calibrate(), quantisation, report)


def _write_bundle(
    target: Path,
    described: _Described,
    floats: tuple[Graph, ...],
    graphs: tuple[Graph, ...],
    emitters: Sequence[Emitter],
) -> Bundle:
    """Write everything, read it back, put it in place."""
    with _new_folder(target) as folder:
        _write_models(floats, graphs, folder, described)
        arenas: dict[str, int] = {}
        for emit in emitters:
            arenas.update(emit(*graphs, folder) or {})
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            minimum_runtime_version=MINIMUM_RUNTIME_VERSION,
            name=described.name,
            spec=described.spec,
            graphs=tuple(graph_record(graph, arenas.get(graph.name)) for graph in graphs),
            keyword_threshold=described.keyword_threshold,
            operating_point=None,
            metrics=described.metrics,
            licence=described.licence,
            provenance=described.provenance,
            files={},
        )
        _write_card_and_manifest(folder, manifest)
        Bundle.load(folder)  # what cannot be read back must not be put in place
    return Bundle.load(target)


def update_metrics(
    path: str | os.PathLike[str], metrics: Metrics, keyword_threshold: float | None
) -> Bundle:
    """Put measured figures into a bundle's manifest and model card.

    Parameters
    ----------
    path : path
        A bundle.
    metrics : Metrics
    keyword_threshold : float or None
        None where none was chosen.

    Raises
    ------
    BundleNotFoundError, BundleSchemaError, BundleIntegrityError
        If the folder is not a sound bundle; it is left as it is then.
    """
    return _update(path, metrics=metrics, keyword_threshold=keyword_threshold)


def update_operating_point(path: str | os.PathLike[str], point: OperatingPoint | None) -> Bundle:
    """Put an operating point into a bundle's manifest and model card; None takes it out.

    Raises
    ------
    BundleNotFoundError, BundleSchemaError, BundleIntegrityError
        If the folder is not a sound bundle; it is left as it is then.
    """
    return _update(path, operating_point=point)


def _update(path: str | os.PathLike[str], **changes: object) -> Bundle:
    """Write a sound bundle's manifest and model card anew, with other values of some keys."""
    bundle = Bundle.load(path)
    _write_card_and_manifest(bundle.path, msgspec.structs.replace(bundle.manifest, **changes))
    return Bundle.load(bundle.path)


def _write_models(
    floats: tuple[Graph, ...], graphs: tuple[Graph, ...], folder: Path, described: _Described
) -> None:
    """Write every model file."""
    # Imported here, so that a missing extra is said in one line before.
    from .onnx_emitter import write_onnx
    from .parity import same_arrays
    from .tflite_emitter import write_tflite

    for kind in ("onnx", "tflite"):
        (folder / kind).mkdir()
    for float_graph, graph in zip(floats, graphs, strict=True):
        said = file_metadata(described.spec, described.licence, last=graph is graphs[-1])
        write_onnx(float_graph, folder / "onnx" / f"{graph.name}.onnx", said)
        onnx_path = folder / "onnx" / f"{graph.name}.int8.onnx"
        tflite_path = folder / "tflite" / f"{graph.name}.tflite"
        write_onnx(graph, onnx_path, said)
        write_tflite(graph, tflite_path, said)
        same_arrays(graph, onnx_path, tflite_path)


def _write_card_and_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the card, then the manifest with the sha256 of all files."""
    write_atomically(folder / CARD_NAME, model_card(manifest).encode())
    records = file_records(folder)
    if manifest.files:  # an update: files that somebody put beside the bundle's are not ours
        records = {name: records[name] for name in records if name in manifest.files}
    write_manifest(folder, msgspec.structs.replace(manifest, files=records))


def _check_target(target: Path) -> None:
    """Refuse to replace what is not a bundle."""
    if not target.exists():
        return
    if not target.is_dir() or (any(target.iterdir()) and not (target / MANIFEST_NAME).is_file()):
        raise ExportError(
            f"{target} exists and is not a bundle (a folder with {MANIFEST_NAME}); it is left "
            "alone: give another folder, or remove it"
        )


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of `target` in the end, or vanishes on an error."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        folder, old = Path(scratch) / "new", Path(scratch) / "old"
        folder.mkdir()
        yield folder
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(folder, target)
        except OSError:
            if old.exists():
                os.rename(old, target)
            raise
