"""Writes a graph in onnxruntime's own format (.ort), for builds of it without ONNX and optimisers.

onnxruntime itself makes the file of the ONNX model, optimised once: at level ``extended``, which
fuses nodes and puts the integer kernels of a quantised graph in, but lays nothing out for one
processor, as level ``all`` would. The bytes are not the same from run to run, because onnxruntime
writes initialisers in the order of a hash table; what it computes is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge_imputer.errors import ExportError, require
from edge_imputer.specs import AnyModelSpec

from .file_metadata import file_metadata
from .graph import Graph
from .onnx_emitter import onnx_model

OPTIMISATION = "ORT_ENABLE_EXTENDED"


def write_ort(graph: Graph, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a graph as an .ort file, float32 or int8 as the graph is, and load it once.

    It computes what the .onnx file does: if the graph is quantised, bit for bit what its integer
    kernels do. It runs in the onnxruntime that made it and in newer ones.

    Parameters
    ----------
    graph : Graph
    path : path
        Ending in ``.ort``, by which onnxruntime knows the format.
    metadata : mapping from key to text, optional
        Kept in the file, as an .onnx file has it.

    Raises
    ------
    ExportError
        If the path ends otherwise, the graph cannot be emitted, or onnxruntime fails.
    MissingExtraError
        If onnxruntime is not installed.
    """
    if Path(path).suffix != ".ort":
        raise ExportError(f"expected a path that ends in .ort, got {path}")
    runtime = require("onnxruntime", extra="export")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, not printed
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, OPTIMISATION)
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    model = onnx_model(graph, metadata).SerializeToString(deterministic=True)
    providers = ["CPUExecutionProvider"]
    try:
        runtime.InferenceSession(model, options, providers=providers)
        runtime.InferenceSession(str(path), providers=providers)
    except Exception as error:  # onnxruntime's have no base of their own
        raise ExportError(f"{graph.name}: onnxruntime could not write {path}: {error}") from error


def ort_emitter(spec: AnyModelSpec, licence: str) -> Callable[..., None]:
    """An emitter for `export_bundle`: ``onnx/NAME.int8.ort`` of every graph.

    Parameters
    ----------
    spec, licence : the bundle's, for the files' metadata
    """

    def emit(*graphs_and_folder: Any) -> None:
        *graphs, folder = graphs_and_folder
        for graph in graphs:
            said = file_metadata(spec, licence, last=graph is graphs[-1])
            write_ort(graph, folder / "onnx" / f"{graph.name}.int8.ort", said)

    return emit
