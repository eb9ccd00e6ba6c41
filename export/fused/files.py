"""Writes the fused form of a model: a .tflite file, an .onnx file, and what both expect."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_imputer.bundle import Bundle
from edge_imputer.errors import ExportError, SpecError
from edge_imputer.imputation import resolve_revisions, resolve_schedule
from edge_imputer.specs import FrameSpec, KeywordModelSpec, ModelSpec

from ..file_arrays import same_arrays
from ..file_metadata import UNSTATED, file_metadata
from ..graph import Graph
from ..onnx_emitter import write_onnx
from ..tflite_emitter import write_tflite
from ..tflite_reader import read_tflite
from .compose import fuse
from .keywords import fuse_keywords
from .streams import SAMPLES, Pcm

FOLDER, STEM = "fused", "model"
METADATA_KEY = "edge_imputer.fused"  # of both files; its value is the content of the .json file


class FusedCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a program must know to call any fused model.

    Attributes
    ----------
    sample_rate : int
        In Hz.
    pcm : str
        Type of the samples, "int16", or "float32" in -1..1.
    chunk_samples : int
        Samples of a call.
    lead_samples : int
        Samples that the first frame reads before those of the first call. Real zeros are that much
        silence before the utterance; its own first samples, put at the end of ``samples.kept``,
        make the frames those of the Python pipeline.
    frame_s : float
        Seconds from one row of the outputs to the next.
    zeros : mapping from a state to the number that all of it has before the first call
    """

    sample_rate: int
    pcm: str
    chunk_samples: int
    lead_samples: int
    frame_s: float
    zeros: dict[str, int]


class FusedRecord(FusedCall, frozen=True, kw_only=True):
    """How to call a fused model that writes text.

    Attributes
    ----------
    flush_ms : int
        Silence after an utterance, at least, before it is filled up to whole calls.
    schedule : tuple of int
        Frames committed a block in each pass.
    revisions : int
        Passes after these, which find every frame anew.
    tokens : tuple of str
        What token ids stand for; id 0 is the blank, which is empty.
    """

    flush_ms: int
    schedule: tuple[int, ...]
    revisions: int
    tokens: tuple[str, ...]


class FusedKeywordRecord(FusedCall, frozen=True, kw_only=True):
    """How to call a fused keyword model.

    Attributes
    ----------
    classes : tuple of str
        What the columns of ``probabilities`` stand for.
    smoothing_frames : int
        Rows of which a detector takes the mean.
    """

    classes: tuple[str, ...]
    smoothing_frames: int


def write_fused(
    folder: str | os.PathLike[str],
    encoder: Graph,
    imputer: Graph,
    spec: ModelSpec,
    *,
    schedule: Sequence[int] | None = None,
    revisions: int | None = None,
    pcm: Pcm = "int16",
    licence: str = UNSTATED,
) -> FusedRecord:
    """Fuse two quantised graphs and write ``model.tflite``, ``model.onnx`` and ``model.json``.

    Parameters
    ----------
    folder : path
        Made if it is not there.
    encoder, imputer, spec, schedule, revisions, pcm : as `fuse` takes them
    licence : of the model, for the metadata of both files

    Raises
    ------
    ExportError, SpecError
        As `fuse`; or a file does not hold the arrays of the graph.
    """
    graph = fuse(encoder, imputer, spec, schedule=schedule, revisions=revisions, pcm=pcm)
    record = FusedRecord(
        **_call(graph, spec.features, spec.frame_s),
        flush_ms=spec.flush_ms,
        schedule=resolve_schedule(spec.head, None, schedule),
        revisions=resolve_revisions(spec.head, revisions),
        tokens=("", *spec.tokens.characters),
    )
    _write(Path(folder), graph, record, file_metadata(spec, licence, last=True))
    return record


def write_fused_keywords(
    folder: str | os.PathLike[str],
    graph: Graph,
    spec: KeywordModelSpec,
    *,
    pcm: Pcm = "int16",
    licence: str = UNSTATED,
) -> FusedKeywordRecord:
    """The same of a keyword model.

    Parameters
    ----------
    folder : path
        Made if it is not there.
    graph, spec, pcm : as `fuse_keywords` takes them
    licence : of the model, for the metadata of both files

    Raises
    ------
    ExportError
        As `fuse_keywords`; or a file does not hold the arrays of the graph.
    """
    fused = fuse_keywords(graph, spec, pcm=pcm)
    record = FusedKeywordRecord(
        **_call(fused, spec.features, spec.frame_s),
        classes=spec.classes,
        smoothing_frames=spec.smoothing_frames,
    )
    _write(Path(folder), fused, record, file_metadata(spec, licence, last=True))
    return record


def fuse_bundle(
    bundle: Bundle | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    schedule: Sequence[int] | None = None,
    revisions: int | None = None,
    pcm: Pcm = "int16",
) -> FusedRecord | FusedKeywordRecord:
    """Write the fused form of a bundle's model, from the integers in its .tflite files.

    Parameters
    ----------
    bundle : Bundle or its path
    folder : path
        Made if it is not there. Not in the bundle: its manifest would not know the files.
    schedule, revisions, pcm : as `fuse` takes them

    Raises
    ------
    BundleError, ExportError, SpecError
    """
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    if Path(folder).resolve().is_relative_to(loaded.path.resolve()):
        raise ExportError(
            f"expected a folder outside of the bundle {loaded.path}, got {folder}; "
            "`edge-imputer export --fused` writes a bundle with the fused form in it"
        )
    graphs = [
        read_tflite(
            loaded.file(f"tflite/{record.name}.tflite"),
            name=record.name,
            n_states=record.n_states,
        )
        for record in loaded.manifest.graphs
    ]
    spec, licence = loaded.spec, loaded.manifest.licence
    if isinstance(spec, KeywordModelSpec):
        if schedule is not None or revisions is not None:
            raise SpecError(
                "expected no schedule and no revisions for a keyword model, which has no head"
            )
        return write_fused_keywords(folder, graphs[0], spec, pcm=pcm, licence=licence)
    return write_fused(
        folder,
        graphs[0],
        graphs[1],
        spec,
        schedule=schedule,
        revisions=revisions,
        pcm=pcm,
        licence=licence,
    )


def _call(graph: Graph, features: FrameSpec, frame_s: float) -> dict[str, Any]:
    """The fields of a `FusedCall`."""
    samples = graph.tensors[SAMPLES]
    quants = {name: graph.tensors[name].quant for name, _ in graph.state_pairs}
    return {
        "sample_rate": features.sample_rate,
        "pcm": samples.dtype,
        "chunk_samples": samples.shape[0],
        "lead_samples": features.frame_length - features.hop_length,
        "frame_s": frame_s,
        "zeros": {name: 0 if quant is None else quant.zero_point for name, quant in quants.items()},
    }


def _write(folder: Path, graph: Graph, record: FusedCall, said: dict[str, str]) -> None:
    """All three files; the other two say what a bundle's do, and how to call them."""
    text = msgspec.json.format(msgspec.json.encode(record)).decode()
    onnx_path, tflite_path, json_path = (
        folder / f"{STEM}{suffix}" for suffix in (".onnx", ".tflite", ".json")
    )
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {METADATA_KEY: text, **said}
    write_onnx(graph, onnx_path, metadata)
    write_tflite(graph, tflite_path, metadata)
    json_path.write_text(text + "\n", "utf-8")
    same_arrays(graph, onnx_path, tflite_path)
