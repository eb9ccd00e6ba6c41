"""Writes the fused form of a model: a .tflite file, an .onnx file, and what both expect."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge_imputer.bundle import Bundle
from edge_imputer.errors import ExportError
from edge_imputer.imputation import resolve_schedule
from edge_imputer.specs import ModelSpec, speech_spec

from ..file_arrays import same_arrays
from ..graph import Graph
from ..onnx_emitter import write_onnx
from ..tflite_emitter import write_tflite
from ..tflite_reader import read_tflite
from .compose import SAMPLES, Pcm, fuse

FOLDER, STEM = "fused", "model"
METADATA_KEY = "edge_imputer.fused"  # of both files; its value is the content of the .json file


class FusedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a program must know to call a fused model.

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
    flush_ms : int
        Silence after an utterance, at least, before it is filled up to whole calls.
    frame_s : float
        Seconds from one output token to the next.
    schedule : tuple of int
        Frames committed a block in each pass.
    tokens : tuple of str
        What token ids stand for; id 0 is the blank, which is empty.
    zeros : mapping from a state to the number that all of it has before the first call
    """

    sample_rate: int
    pcm: str
    chunk_samples: int
    lead_samples: int
    flush_ms: int
    frame_s: float
    schedule: tuple[int, ...]
    tokens: tuple[str, ...]
    zeros: dict[str, int]


def write_fused(
    folder: str | os.PathLike[str],
    encoder: Graph,
    imputer: Graph,
    spec: ModelSpec,
    *,
    schedule: Sequence[int] | None = None,
    pcm: Pcm = "int16",
) -> FusedRecord:
    """Fuse two quantised graphs and write ``model.tflite``, ``model.onnx`` and ``model.json``.

    Parameters
    ----------
    folder : path
        Made if it is not there.
    encoder, imputer, spec, schedule, pcm : as `fuse` takes them

    Raises
    ------
    ExportError, SpecError
        As `fuse`; or a file does not hold the arrays of the graph.
    """
    graph = fuse(encoder, imputer, spec, schedule=schedule, pcm=pcm)
    record = _record(graph, spec, resolve_schedule(spec.head, None, schedule))
    text = msgspec.json.format(msgspec.json.encode(record)).decode()
    paths = [Path(folder) / f"{STEM}{suffix}" for suffix in (".onnx", ".tflite", ".json")]
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_onnx(graph, paths[0], {METADATA_KEY: text})
    write_tflite(graph, paths[1], {METADATA_KEY: text})
    paths[2].write_text(text + "\n", "utf-8")
    same_arrays(graph, *paths[:2])
    return record


def fuse_bundle(
    bundle: Bundle | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    schedule: Sequence[int] | None = None,
    pcm: Pcm = "int16",
) -> FusedRecord:
    """Write the fused form of a bundle's model, from the integers in its .tflite files.

    Parameters
    ----------
    bundle : Bundle or its path
    folder : path
        Made if it is not there. Not in the bundle: its manifest would not know the files.
    schedule, pcm : as `fuse` takes them

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
    spec = speech_spec(loaded.spec)
    encoder, imputer = (
        read_tflite(
            loaded.file(f"tflite/{name}.tflite"),
            name=name,
            n_states=loaded.manifest.graph(name).n_states,
        )
        for name in ("encoder", "imputer")
    )
    return write_fused(folder, encoder, imputer, spec, schedule=schedule, pcm=pcm)


def _record(graph: Graph, spec: ModelSpec, schedule: tuple[int, ...]) -> FusedRecord:
    features = spec.features
    quants = {name: graph.tensors[name].quant for name, _ in graph.state_pairs}
    return FusedRecord(
        sample_rate=features.sample_rate,
        pcm=graph.tensors[SAMPLES].dtype,
        chunk_samples=spec.chunk_samples,
        lead_samples=features.frame_length - features.hop_length,
        flush_ms=spec.flush_ms,
        frame_s=spec.frame_s,
        schedule=schedule,
        tokens=("", *spec.tokens.characters),
        zeros={name: 0 if quant is None else quant.zero_point for name, quant in quants.items()},
    )
