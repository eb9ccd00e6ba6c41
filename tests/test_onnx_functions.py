"""Alike operations of an ONNX file as calls of one function."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edge_imputer.backends.onnx import OnnxModel
from edge_imputer.export.builder import GraphBuilder
from edge_imputer.export.calibration import Calibration
from edge_imputer.export.graph import Graph
from edge_imputer.export.onnx_emitter import onnx_model
from edge_imputer.export.onnx_functions import DOMAIN, inlined
from edge_imputer.export.quantize import quantise

from .graphs import feed, feeds
from .test_lowering import quantised


def layers(*relu: bool) -> Graph:
    """Linear layers one after the other, each its own weights, with or without ReLU."""
    rng = np.random.default_rng(0)
    g = GraphBuilder("layers")
    x = g.input("x", (1, 4))
    for k, rectified in enumerate(relu):
        weight, bias = (rng.normal(size=s).astype(np.float32) for s in ((4, 4), (4,)))
        x = g.fully_connected(f"y{k}", x, weight, bias, rectified)
    g.graph.outputs = [x]
    calibration = Calibration(g.graph)
    for inputs in feeds(g.graph, rng):
        calibration.run(inputs)
    return quantise(g.graph, calibration.ranges)


def calls(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.domain == DOMAIN]


def test_alike_operations_call_one_function() -> None:
    model = onnx_model(layers(False, False, False))
    assert calls(model) == ["Gemm"] * 3
    (function,) = model.functions
    kinds = [node.op_type for node in function.node]
    assert kinds == ["DequantizeLinear", "Mul", *["DequantizeLinear"] * 2, "Gemm", "QuantizeLinear"]
    assert model.graph.node[1].output == ["t1"]  # what it gives keeps its name
    assert {i.domain for i in model.opset_import} == {"", DOMAIN}


def test_an_operation_like_no_other_stays_as_it_is() -> None:
    model = onnx_model(layers(False))
    assert not model.functions
    assert not calls(model)
    assert {i.domain for i in model.opset_import} == {""}


def test_a_function_for_each_kind_of_operation() -> None:
    _, graph, _ = quantised("conformer")
    model = onnx_model(graph)
    names = [function.name for function in model.functions]
    assert len(names) == len(set(names))
    assert set(names) == set(calls(model))
    bodies = [b"".join(n.SerializeToString() for n in f.node) for f in model.functions]
    assert len(set(bodies)) == len(bodies) > 5


def test_a_model_computes_the_same_with_its_functions_inlined(tmp_path: Path) -> None:
    """And is the smaller for having them."""
    for name in ("conformer", "crnn-windowed"):
        _, graph, _ = quantised(name)
        model = onnx_model(graph)
        flat = inlined(model)
        assert not calls(flat)
        assert not flat.functions
        assert model.ByteSize() < 0.9 * flat.ByteSize()
        results = []
        for k, one in enumerate((model, flat)):
            onnx.save(one, tmp_path / f"{k}.onnx")
            loaded = OnnxModel(tmp_path / f"{k}.onnx")
            inputs = feed(graph, np.random.default_rng(0))
            results.append(loaded.run([inputs[key] for key in graph.inputs]))
        for first, second in zip(*results, strict=True):
            np.testing.assert_array_equal(first, second)


# ------------------------------------------------------------------------------ what is read often


@pytest.mark.parametrize("name", ["conformer", "crnn-windowed"])
def test_what_operations_read_alike_is_made_once(name: str) -> None:
    """Real values of a weight or an activation, a bias's scales: by one node for all readers."""
    _, graph, _ = quantised(name)
    nodes = inlined(onnx_model(graph)).graph.node
    reading = Counter(
        (node.op_type, *node.input, *(a.SerializeToString() for a in node.attribute))
        for node in nodes
        if node.op_type == "DequantizeLinear" or node.output[0].endswith("bs")
    )
    assert len(reading) > 20
    assert set(reading.values()) == {1}


def test_the_file_says_first_what_is_read_later() -> None:
    """Here by both layers, through a function that has what only one reads."""
    rng = np.random.default_rng(0)
    g = GraphBuilder("twice")
    x, weight = g.input("x", (1, 4)), rng.normal(size=(4, 4)).astype(np.float32)
    for k in range(2):
        x = g.fully_connected(f"y{k}", x, weight, np.zeros(4, np.float32), constants="shared")
    g.graph.outputs, g.graph.alike = [x], [("x", "y0", "y1")]
    calibration = Calibration(g.graph)
    for inputs in feeds(g.graph, rng):
        calibration.run(inputs)
    model = onnx_model(quantise(g.graph, calibration.ranges))
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["Mul", "DequantizeLinear", "DequantizeLinear", "Gemm", "Gemm"]
    (function,) = model.functions
    assert [n.op_type for n in function.node] == ["DequantizeLinear", "Gemm", "QuantizeLinear"]
    assert len(function.input) == 5  # x and its two, the real weight and bias


def optimised(model: onnx.ModelProto, path: Path, setting: str) -> onnx.ModelProto:
    """What onnxruntime makes of a model when it loads it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry(setting, "1")
    providers = ["CPUExecutionProvider"]
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    return onnx.load(path)


@pytest.mark.parametrize("name", ["conformer", "crnn-windowed"])
def test_onnxruntime_fuses_what_it_would_without_functions(tmp_path: Path, name: str) -> None:
    _, graph, _ = quantised(name)
    model = onnx_model(graph)
    for setting in ("session.qdqisint8allowed", "session.disable_quant_qdq"):
        one, two = (
            Counter(n.op_type for n in optimised(m, tmp_path / "x.onnx", setting).graph.node)
            for m in (model, inlined(model))
        )
        assert one == two
        assert ("QGemm" in one) is (setting == "session.qdqisint8allowed")


def test_onnxruntime_has_one_float_copy_of_a_weight_that_many_steps_read(tmp_path: Path) -> None:
    _, graph, _ = quantised("crnn-windowed")
    stored = optimised(onnx_model(graph), tmp_path / "x.onnx", "session.disable_quant_qdq")
    n_floats = sum(
        int(np.prod(tensor.dims))
        for tensor in stored.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2
    )
    weights = {op.inputs[1] for op in graph.ops if op.kind == "fully_connected"}
    readers = Counter(op.inputs[1] for op in graph.ops if op.kind == "fully_connected")
    assert max(readers.values()) > 5
    assert n_floats == sum(int(np.prod(graph.tensors[name].shape)) for name in weights)
