"""Files beside what they compute: their size, their metadata, onnxruntime's own format."""

from __future__ import annotations

import json
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema

from edge_imputer import __version__
from edge_imputer.backends.litert import LiteRtModel
from edge_imputer.backends.onnx import OnnxModel
from edge_imputer.errors import ExportError, MissingExtraError
from edge_imputer.export.build import build_encoder_graph
from edge_imputer.export.builder import GraphBuilder
from edge_imputer.export.calibration import Calibration
from edge_imputer.export.file_arrays import same_arrays
from edge_imputer.export.file_metadata import file_metadata
from edge_imputer.export.graph import Array, Graph
from edge_imputer.export.onnx_emitter import onnx_model, write_onnx
from edge_imputer.export.onnx_functions import inlined
from edge_imputer.export.onnx_names import value_names
from edge_imputer.export.ort_emitter import ort_emitter, write_ort
from edge_imputer.export.parity import load_runtime
from edge_imputer.export.quantize import quantise
from edge_imputer.export.reference import Interpreter, run_float, run_int, zero_feeds
from edge_imputer.export.tflite_emitter import tflite_bytes, write_tflite
from edge_imputer.specs import PRESETS, FeatureSpec, KeywordModelSpec

from .bundles import export_small
from .graphs import feed, feeds, model_spec, small_model
from .model_files import file_texts
from .test_lowering import HEADS, SMALL, features, head, modules, windows
from .test_lowering import quantised as small_encoder

WHOLE = ["encoder", "imputer"]


def graph_of(which: str, form: str) -> Graph:
    model = small_model()
    if form == "int8":
        return model.encoder if which == "encoder" else model.imputer
    return model.float_encoder if which == "encoder" else model.float_imputer


# ------------------------------------------------------------------------------ size


@cache
def preset(name: str) -> tuple[int, Graph]:
    """Parameters of an encoder of random weights, and its quantised graph."""
    encoder = modules(PRESETS[name])
    for parameter in encoder.parameters():
        if not parameter.any():  # arrays of zeros would be shared
            torch.nn.init.uniform_(parameter, -0.1, 0.1)
    graph = build_encoder_graph(encoder)
    calibration = Calibration(graph)
    calibration.run_sequence([c.numpy()[..., np.newaxis] for c in features(graph, 3)])
    n_parameters = sum(parameter.numel() for parameter in encoder.parameters())
    return n_parameters, quantise(graph, calibration.ranges)


@pytest.mark.parametrize("name", PRESETS)
def test_int8_files_are_hardly_larger_than_their_weights(name: str) -> None:
    n_parameters, graph = preset(name)
    limit = 1.15 * n_parameters + 30_000
    assert len(tflite_bytes(graph)) <= limit
    assert onnx_model(graph).ByteSize() <= limit


def test_what_is_equal_is_in_a_file_once(tmp_path: Path) -> None:
    """Shapes, scales, zero points; and constants, whatever their names."""
    _, graph, _ = small_encoder("conformer")
    model = onnx_model(graph)
    contents = Counter((t.data_type, tuple(t.dims), t.raw_data) for t in model.graph.initializer)
    assert set(contents.values()) == {1}
    parsed = schema.ModelT.InitFromPackedBuf(tflite_bytes(graph), 0)
    buffers = Counter(bytes(b.data) for b in parsed.buffers if b.data is not None)
    assert set(buffers.values()) == {1}
    unnamed = [
        (tuple(t.shape), parsed.buffers[t.buffer].data.tobytes())
        for t in parsed.subgraphs[0].tensors
        if t.type == schema.TensorType.INT32 and not t.name
    ]
    assert len(unnamed) == len(set(unnamed)) > 10


def test_what_differs_in_shape_alone_is_not_equal(tmp_path: Path) -> None:
    g = GraphBuilder("shapes")
    x, gain = g.input("x", (4, 4)), np.linspace(-1, 1, 4, dtype=np.float32)
    for k, shape in enumerate([(1, 4), (4, 1)]):
        x = g.binary("mul", f"y{k}", x, g.constant(f"gain{k}", gain.reshape(shape)))
    g.graph.outputs = [x]
    calibration = Calibration(g.graph)
    calibration.run(feed(g.graph, np.random.default_rng(0)))
    for graph in (g.graph, quantise(g.graph, calibration.ranges)):
        write_onnx(graph, tmp_path / "x.onnx")
        write_tflite(graph, tmp_path / "x.tflite")
        same_arrays(graph, tmp_path / "x.onnx", tmp_path / "x.tflite")


def test_short_names_are_none_of_the_graphs(tmp_path: Path) -> None:
    """A tensor of the graph may be called as an activation, a scale or a shape would be."""
    assert value_names(graph_of("encoder", "int8"))["conv0.input"] == "t0"
    g = GraphBuilder("names")
    x = g.binary("add", "i2x3", g.input("t0", (2, 3)), g.input("s0", (2, 3)))
    x = g.reshape("first", x, (3, 2))
    g.graph.outputs = [g.unary("relu", "z-128", g.unary("tanh", "_t1", x))]
    assert value_names(g.graph) == {
        "t0": "t0",
        "s0": "s0",
        "i2x3": "_t0",
        "first": "_t1",
        "_t1": "_t2",
        "z-128": "z-128",
    }
    calibration = Calibration(g.graph)
    calibration.run(feed(g.graph, np.random.default_rng(0)))
    graph = quantise(g.graph, calibration.ranges)
    inputs = feed(graph, np.random.default_rng(1))
    write_onnx(graph, tmp_path / "x.onnx")
    write_tflite(graph, tmp_path / "x.tflite")
    same_arrays(graph, tmp_path / "x.onnx", tmp_path / "x.tflite")
    result = OnnxModel(tmp_path / "x.onnx").run([inputs[name] for name in graph.inputs])[0]
    assert np.abs(result.astype(int) - run_int(graph, inputs)["z-128"]).max() <= 2


def test_slices_have_names() -> None:
    """Without, onnxruntime 1.20 refuses files: nodes that it makes of two slices are namesakes."""
    nodes = onnx_model(graph_of("encoder", "int8")).graph.node
    names = [node.name for node in nodes if node.op_type == "Slice"]
    assert all(names)
    assert len(set(names)) == len(names) > 5


# ------------------------------------------------------------------------------ wrong files


def test_an_operation_that_reads_something_else_is_found(tmp_path: Path) -> None:
    """The arrays are all there, but two layers are wired the wrong way round."""
    graph = graph_of("imputer", "int8")
    write_onnx(graph, tmp_path / "x.onnx")
    write_tflite(graph, tmp_path / "x.tflite")
    model = inlined(onnx.load(tmp_path / "x.onnx"))
    add = next(node for node in model.graph.node if node.op_type == "Add")
    add.input[0], add.input[1] = add.input[1], add.input[0]
    onnx.save(model, tmp_path / "y.onnx")
    with pytest.raises(ExportError, match=r"y.onnx: operation \d+, frames: reads t\d+, not t\d+"):
        same_arrays(graph, tmp_path / "y.onnx", tmp_path / "x.tflite")
    parsed = schema.ModelT.InitFromPackedBuf((tmp_path / "x.tflite").read_bytes(), 0)
    k = next(k for k, op in enumerate(graph.ops) if op.kind == "add")
    operator = parsed.subgraphs[0].operators[k]
    operator.inputs = operator.inputs[::-1].copy()
    (tmp_path / "y.tflite").write_bytes(packed(parsed))
    with pytest.raises(ExportError, match=r"y.tflite: operation \d+, frames: tensor \d+ is not"):
        same_arrays(graph, tmp_path / "x.onnx", tmp_path / "y.tflite")


def packed(model: object) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")  # type: ignore[attr-defined]
    return bytes(builder.Output())


def test_a_file_of_another_graph_is_refused(tmp_path: Path) -> None:
    encoder, imputer = (graph_of(which, "int8") for which in WHOLE)
    write_onnx(imputer, tmp_path / "x.onnx")
    write_tflite(encoder, tmp_path / "x.tflite")
    with pytest.raises(ExportError, match=r"x.onnx: expected the inputs and outputs of encoder"):
        same_arrays(encoder, tmp_path / "x.onnx", tmp_path / "x.tflite")
    with pytest.raises(ExportError, match=r"x.tflite: expected \(\d+, 2, 1\) operators, inputs"):
        same_arrays(imputer, tmp_path / "x.onnx", tmp_path / "x.tflite")


# ------------------------------------------------------------------------------ float .tflite


def float_runs(name: str) -> tuple[Graph, list[dict[str, Array]]]:
    """A small encoder with feeds of a stream, or a head with those of windows."""
    if name in HEADS:
        return head(name)[1], windows(name, 4)
    graph, _, _ = small_encoder(name)
    interpreter, inputs, runs = Interpreter(graph), zero_feeds(graph), []
    for chunk in features(graph, 4, seed=5):
        runs.append({**inputs, "features": chunk.numpy()[..., np.newaxis]})
        values = interpreter.run(runs[-1])
        inputs |= {before: values[after] for before, after in graph.state_pairs}
    return graph, runs


@pytest.mark.parametrize("runtime", ["litert", "litert-reference", "micro", "old_tflite"])
@pytest.mark.parametrize("name", [*SMALL, *HEADS])
def test_float_networks_in_every_tflite(
    tmp_path: Path, request: pytest.FixtureRequest, name: str, runtime: str
) -> None:
    graph, runs = float_runs(name)
    if not runtime.startswith("litert"):
        runtime = request.getfixturevalue(runtime)
    model = load_runtime(graph, runtime, tmp_path)
    for inputs in runs:
        expected = run_float(graph, inputs)
        results = model.run([inputs[key] for key in graph.inputs])
        for key, result in zip(graph.outputs, results, strict=True):
            size = max(1.0, float(np.abs(expected[key]).max()))
            np.testing.assert_allclose(result, expected[key], atol=1e-5 * size)


# ------------------------------------------------------------------------------ metadata

METADATA = {
    "name": "kitchen",
    "graph": "encoder",
    "labels": json.dumps(["yes", "no", "ä", "<blank>"], ensure_ascii=False),
    "features": json.dumps({"n_mels": 40, "hop_length": 160}),
    "licence": "Apache-2.0",
    "version": __version__,
}


@pytest.mark.parametrize("form", ["int8", "float"])
@pytest.mark.parametrize("which", WHOLE)
def test_metadata_comes_back(tmp_path: Path, which: str, form: str) -> None:
    graph = graph_of(which, form)
    write_onnx(graph, tmp_path / "x.onnx", METADATA)
    write_tflite(graph, tmp_path / "x.tflite", METADATA)
    write_ort(graph, tmp_path / "x.ort", METADATA)
    assert {p.key: p.value for p in onnx.load(tmp_path / "x.onnx").metadata_props} == METADATA
    for suffix in ("onnx", "ort"):
        session = onnxruntime.InferenceSession(str(tmp_path / f"x.{suffix}"))
        assert session.get_modelmeta().custom_metadata_map == METADATA
    model = schema.ModelT.InitFromPackedBuf((tmp_path / "x.tflite").read_bytes(), 0)
    found = {m.name.decode(): bytes(model.buffers[m.buffer].data).decode() for m in model.metadata}
    assert found.pop("min_runtime_version").rstrip("\0")
    assert found == METADATA
    assert json.loads(found["labels"])[2] == "ä"


def test_metadata_changes_nothing_else(tmp_path: Path) -> None:
    graph = graph_of("encoder", "int8")
    inputs = feed(graph, np.random.default_rng(0))
    for write, load in ((write_onnx, OnnxModel), (write_tflite, LiteRtModel)):
        results = []
        for metadata in (None, {}, METADATA, dict(reversed(METADATA.items()))):
            path = tmp_path / f"{len(results)}.{write.__name__[6:]}"
            write(graph, path, metadata)
            results.append(load(path).run([inputs[name] for name in graph.inputs]))
        for result in results[1:]:
            for got, wanted in zip(result, results[0], strict=True):
                np.testing.assert_array_equal(got, wanted)
        files = [tmp_path / f"{k}.{write.__name__[6:]}" for k in range(4)]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert files[2].read_bytes() == files[3].read_bytes()  # whatever their order


def test_metadata_under_the_key_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the key min_runtime_version of the metadata is taken"):
        write_tflite(graph_of("encoder", "int8"), tmp_path / "x", {"min_runtime_version": "1"})
    assert not (tmp_path / "x").exists()


# ------------------------------------------------------------------------------ .ort


@pytest.mark.parametrize("form", ["int8", "float"])
@pytest.mark.parametrize("name", ["encoder", "imputer", *SMALL])
def test_ort_file_computes_what_the_onnx_file_does(tmp_path: Path, name: str, form: str) -> None:
    graph = graph_of(name, form) if name in WHOLE else small_encoder(name)[form == "int8"]
    write_onnx(graph, tmp_path / "x.onnx")
    write_ort(graph, tmp_path / "x.ort")
    one = OnnxModel(tmp_path / "x.onnx", integer_kernels=True)
    two = OnnxModel(tmp_path / "x.ort")
    for inputs in feeds(graph, np.random.default_rng(0)):
        arrays = [inputs[name] for name in graph.inputs]
        for wanted, got in zip(one.run(arrays), two.run(arrays), strict=True):
            assert got.dtype == wanted.dtype
            if form == "int8":
                np.testing.assert_array_equal(got, wanted)
            np.testing.assert_allclose(got, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))


def test_ort_needs_onnxruntime_and_its_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graph_of("encoder", "int8")
    with pytest.raises(ExportError, match=r"expected a path that ends in .ort, got \S+x.onnx"):
        write_ort(graph, tmp_path / "x.onnx")
    with pytest.raises(ExportError, match="onnxruntime could not write"):
        write_ort(graph, tmp_path / "missing" / "x.ort")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edge-imputer\[export\]'"):
        write_ort(graph, tmp_path / "x.ort")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------ in a bundle


def test_a_bundle_s_files_say_what_goes_in_and_comes_out(tmp_path: Path) -> None:
    """Labels and front end where the answer is given, the licence everywhere; .ort files too."""
    spec = model_spec()
    bundle = export_small(
        tmp_path / "bundle", licence="CC-BY-4.0", emitters=[ort_emitter(spec, "CC-BY-4.0")]
    )
    for name in WHOLE:
        said = {"licence": "CC-BY-4.0"}
        if name == "imputer":
            said |= {"labels": ["<blank>", *spec.tokens.characters]}  # type: ignore[dict-item]
            said |= {"features": msgspec.to_builtins(spec.features)}
        files = [f"onnx/{name}.{suffix}" for suffix in ("onnx", "int8.onnx", "int8.ort")]
        for file in (*files, f"tflite/{name}.tflite"):
            assert file_texts(bundle.file(file)) == said
    labels = file_texts(bundle.file("tflite/imputer.tflite"))["labels"]
    assert labels.index("<blank>") == spec.tokens.blank_id
    assert len(labels) == spec.tokens.vocabulary_size


def test_a_keyword_model_s_labels_are_its_classes() -> None:
    spec = KeywordModelSpec(
        features=FeatureSpec(), encoder=SMALL["tcn"], keywords=("yes", "no"), silence=True
    )
    said = file_metadata(spec, "unstated", last=True)
    assert json.loads(said["labels"]) == ["_unknown_", "yes", "no", "_silence_"]
    assert json.loads(said["features"])["n_mels"] == 40
    assert file_metadata(spec, "unstated", last=False) == {"licence": '"unstated"'}
