"""Bare .tflite files: less is in them, and every runtime computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edge_imputer.errors import ExportError
from edge_imputer.export import tflite_emitter
from edge_imputer.export.builder import GraphBuilder
from edge_imputer.export.calibration import Calibration
from edge_imputer.export.file_arrays import expected_arrays, same_arrays, tflite_arrays
from edge_imputer.export.graph import Array, Graph
from edge_imputer.export.onnx_emitter import write_onnx
from edge_imputer.export.quantize import quantise
from edge_imputer.export.reference import Interpreter
from edge_imputer.export.runtimes import load_runtime
from edge_imputer.export.tflite_emitter import (
    BIAS_SCALES_KEY,
    TfliteWriter,
    size_limit,
    tflite_bytes,
    write_tflite,
)
from edge_imputer.export.tflite_reader import read_tflite

from .graphs import block_of_everything, feeds, small_model
from .test_emitters import changed
from .test_lowering import SMALL
from .test_lowering import quantised as small_encoder

NAMES = ["everything", "one output", "digits", "head", *SMALL]


def one_output() -> Graph:
    """A fully connected layer with one scale: kernels of the reference have other code for it."""
    rng, g = np.random.default_rng(0), GraphBuilder("score")
    weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 16), 1))
    g.graph.outputs = [g.fully_connected("y", g.input("x", (3, 16)), weight, bias)]
    calibration = Calibration(g.graph)
    for inputs in feeds(g.graph, rng):
        calibration.run(inputs)
    return quantise(g.graph, calibration.ranges)


def graph_of(name: str) -> Graph:
    if name == "everything":
        return block_of_everything(np.random.default_rng(3))
    if name == "one output":
        return one_output()
    model = small_model()
    known = {"digits": model.encoder, "head": model.imputer}
    return known[name] if name in known else small_encoder(name)[1]


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every int8 file is larger than it should be."""
    monkeypatch.setattr(tflite_emitter, "SIZE_LIMIT", (0.0, 0))


def model_of(data: bytes) -> schema.ModelT:
    return schema.ModelT.InitFromPackedBuf(data, 0)


def keys(data: bytes) -> list[str]:
    return [entry.name.decode() for entry in model_of(data).metadata]


IN_EVERY_RUNTIME = [
    (name, runtime)
    for name in NAMES
    for runtime in ("litert", "litert-reference", "micro", "old_tflite")
    if (name, runtime) != ("everything", "old_tflite")  # which has no int16
]


@pytest.mark.parametrize(("name", "runtime"), IN_EVERY_RUNTIME)
def test_runtimes_compute_the_same_of_a_bare_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    name: str,
    runtime: str,
) -> None:
    """In XNNPACK too: layers without scales of their biases would go to other kernels."""
    graph = graph_of(name)
    if not runtime.startswith("litert"):
        runtime = request.getfixturevalue(runtime)
    results: list[list[Array]] = []
    for limit in [(1.15, 30_000), (0.0, 0)]:
        monkeypatch.setattr(tflite_emitter, "SIZE_LIMIT", limit)
        model = load_runtime(graph, runtime, tmp_path)
        runs = feeds(graph, np.random.default_rng(0), 2)
        results.append([out for run in runs for out in model.run([run[n] for n in graph.inputs])])
    for whole, bare in zip(*results, strict=True):
        np.testing.assert_array_equal(bare, whole)


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("name", NAMES)
def test_a_bare_file_has_the_graph_s_arrays(tmp_path: Path, name: str) -> None:
    """The scales of biases too, from what is in it."""
    graph = graph_of(name)
    write_onnx(graph, tmp_path / "x.onnx")
    write_tflite(graph, tmp_path / "x.tflite")
    same_arrays(graph, tmp_path / "x.onnx", tmp_path / "x.tflite")
    expected, found = expected_arrays(graph), tflite_arrays(tmp_path / "x.tflite", graph)
    of_biases = [key for key in expected if key.endswith("bias/scale")]
    assert of_biases
    for key in of_biases:
        assert found[key].tobytes() == expected[key].tobytes()


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("key", ["input.weight", "conv0.bias", "conv1.weight/scale"])
def test_one_array_that_differs_is_found(tmp_path: Path, key: str) -> None:
    graph = graph_of("head")
    write_onnx(graph, tmp_path / "x.onnx")
    write_tflite(changed(graph, key), tmp_path / "x.tflite")
    with pytest.raises(ExportError, match=rf"x.tflite: {key} differs"):
        same_arrays(graph, tmp_path / "x.onnx", tmp_path / "x.tflite")


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("name", NAMES)
def test_a_bare_file_comes_back(tmp_path: Path, name: str) -> None:
    """All of the graph but the names of its constants."""
    graph = graph_of(name)
    write_tflite(graph, tmp_path / "x.tflite")
    again = read_tflite(tmp_path / "x.tflite", name=graph.name, n_states=graph.n_states)
    assert (again.inputs, again.outputs) == (graph.inputs, graph.outputs)
    assert [(op.kind, op.attrs) for op in again.ops] == [(op.kind, op.attrs) for op in graph.ops]
    both = Interpreter(graph), Interpreter(again)
    for inputs in feeds(graph, np.random.default_rng(0), 2):
        first, second = (run.run(inputs) for run in both)
        for output in graph.outputs:
            np.testing.assert_array_equal(first[output], second[output])


def test_what_a_bare_file_leaves_out() -> None:
    graph = graph_of("conformer")
    whole, bare = (model_of(TfliteWriter(graph, bare=b).finish({})) for b in (False, True))
    (one, two) = (model.subgraphs[0] for model in (whole, bare))
    named = {name.encode() for name in (*graph.inputs, *graph.outputs)}
    assert {tensor.name for tensor in two.tensors if tensor.name} == named
    assert {tensor.name for tensor in one.tensors if tensor.name} > named
    layers = [
        list(operator.inputs)
        for operator in one.operators
        if any((one.tensors[k].name or b"").endswith(b".weight") for k in operator.inputs)
    ]
    scales = [[two.tensors[k].quantization.scale for k in numbers[1:]] for numbers in layers]
    assert len(scales) > 5
    for of_weight, of_bias in scales:
        np.testing.assert_array_equal(of_weight, of_bias)
    without = [sum(op.builtinOptions is None for op in part.operators) for part in (one, two)]
    assert without[0] < without[1] < len(two.operators)  # those at their defaults


def test_a_file_is_bare_where_it_would_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so; whatever metadata of others it has besides."""
    graph = graph_of("conformer")
    whole = len(tflite_bytes(graph))
    for limit, wanted in [((0.0, whole), False), ((0.0, whole - 1), True)]:
        monkeypatch.setattr(tflite_emitter, "SIZE_LIMIT", limit)
        for metadata in ({}, {"licence": "x" * 1000}):
            assert (BIAS_SCALES_KEY in keys(tflite_bytes(graph, metadata))) is wanted
    assert whole > len(tflite_bytes(graph)) + 1000


def test_the_limit_counts_every_weight_once() -> None:
    graph = graph_of("digits")
    n_weights = sum(t.data.size for t in graph.tensors.values() if t.data is not None)
    assert size_limit(graph) == int(1.15 * n_weights) + 30_000


def test_float_files_are_never_bare(no_room: None) -> None:
    assert keys(tflite_bytes(small_model().float_encoder)) == ["min_runtime_version"]


def test_metadata_under_the_key_of_a_bare_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the key bias_scales of the metadata is taken"):
        write_tflite(graph_of("head"), tmp_path / "x", {BIAS_SCALES_KEY: "1"})
