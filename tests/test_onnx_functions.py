"""Alike operations of an ONNX file as calls of one function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

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
        assert model.ByteSize() < 0.85 * flat.ByteSize()
        results = []
        for k, one in enumerate((model, flat)):
            onnx.save(one, tmp_path / f"{k}.onnx")
            loaded = OnnxModel(tmp_path / f"{k}.onnx")
            inputs = feed(graph, np.random.default_rng(0))
            results.append(loaded.run([inputs[key] for key in graph.inputs]))
        for first, second in zip(*results, strict=True):
            np.testing.assert_array_equal(first, second)
