"""What a file has in another shape than the graph: slices as one split, long concats as several."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from edge_imputer.export.builder import MOST_JOINED, GraphBuilder
from edge_imputer.export.calibration import Calibration
from edge_imputer.export.graph import Array, Graph
from edge_imputer.export.onnx_emitter import write_onnx
from edge_imputer.export.parity import RUNTIMES, load_runtime, same_arrays
from edge_imputer.export.parts import in_parts
from edge_imputer.export.quantize import quantise
from edge_imputer.export.reference import run_float, run_int
from edge_imputer.export.tflite_emitter import write_tflite
from edge_imputer.export.tflite_reader import read_tflite

from .c_layers import compile_graphs, run_graphs
from .chains import micro_model
from .graphs import feed, feeds
from .test_lowering import quantised as small_encoder

WIDE = MOST_JOINED + 3


@cache
def graph(form: str) -> Graph:
    """A tensor in parts, two of them exchanged, all joined again along another axis."""
    g = GraphBuilder("parts")
    x = g.input("x", (2, 3 * WIDE))
    parts = [g.slice(f"part{k}", x, 1, 3 * k, 3) for k in range(WIDE)]
    halves = [g.slice(f"half{k}", x, 0, k, 1) for k in range(2)]
    parts[0] = g.binary("add", "sum", parts[0], parts[-1])
    joined = g.concat("joined", tuple(parts), 0)
    g.graph.outputs = [joined, halves[0], g.unary("tanh", "tanh", halves[1])]
    if form == "float":
        return g.graph
    calibration = Calibration(g.graph)
    for inputs in feeds(g.graph, np.random.default_rng(0), 4):
        calibration.run(inputs)
    return quantise(g.graph, calibration.ranges)


def sliced(*cuts: tuple[str, int, int, int]) -> list[int]:
    """Sizes of the groups that slices (tensor, axis, begin, size) of two tensors fall into."""
    g = GraphBuilder("slices")
    for name in "xy":
        g.input(name, (4, 6))
    for k, (name, axis, begin, size) in enumerate(cuts):
        g.slice(f"s{k}", name, axis, begin, size)
    return [len(ops) for ops in in_parts(g.graph)]


def test_only_slices_that_are_all_of_a_tensor_are_a_group() -> None:
    thirds = [("x", 1, 0, 2), ("x", 1, 2, 2), ("x", 1, 4, 2)]
    assert sliced(*thirds) == [3]
    assert sliced(*thirds, *thirds) == [3, 3]
    assert sliced(("x", 0, 1, 1), *thirds, ("y", 0, 0, 4)) == [1, 3, 1]
    assert sliced(*thirds[:2]) == [1, 1]  # not all of it
    assert sliced(*thirds[::-1]) == [1, 1, 1]  # another order
    assert sliced(thirds[0], ("y", 1, 2, 2), thirds[2]) == [1, 1, 1]  # another tensor
    assert sliced(("x", 1, 0, 4), ("x", 1, 4, 2)) == [1, 1]  # unequal
    assert sliced(("x", 1, 0, 2), ("x", 1, 2, 4)) == [1, 1]
    assert sliced(("x", 1, 0, 3), ("x", 0, 0, 2), ("x", 0, 2, 2)) == [1, 2]  # another axis
    assert sliced(("x", 1, 0, 6)) == [1]


def check(graph: Graph, inputs: dict[str, Array], results: list[Array]) -> None:
    run = run_int if graph.quantised else run_float
    expected = run(graph, inputs)
    for name, result in zip(graph.outputs, results, strict=True):
        atol = 1 if graph.quantised else 1e-6
        np.testing.assert_allclose(result.astype(float), expected[name].astype(float), atol=atol)


@pytest.mark.parametrize("form", ["int8", "float"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_parts_in_every_runtime(form: str, runtime: str, tmp_path: Path) -> None:
    model = load_runtime(graph(form), runtime, tmp_path)
    for inputs in feeds(graph(form), np.random.default_rng(1)):
        check(graph(form), inputs, model.run(list(inputs.values())))


@pytest.mark.parametrize("form", ["int8", "float"])
def test_parts_in_tflite_micro(micro: ModuleType, form: str) -> None:
    """Which takes at most `MOST_JOINED` inputs of a concat."""
    run = micro_model(micro, graph(form))
    for inputs in feeds(graph(form), np.random.default_rng(1)):
        check(graph(form), inputs, run(inputs))


def test_parts_in_c(tmp_path: Path) -> None:
    program = compile_graphs([graph("int8")], tmp_path, ("-O1",))
    calls = list(feeds(graph("int8"), np.random.default_rng(1)))
    (outs,) = run_graphs(program, [(graph("int8"), calls)])
    for inputs, outputs in zip(calls, outs, strict=True):
        expected = run_int(graph("int8"), inputs)
        for name in graph("int8").outputs:
            np.testing.assert_array_equal(outputs[name], expected[name])


@pytest.mark.parametrize("form", ["int8", "float"])
def test_files_have_one_operation_and_hold_the_graph(form: str, tmp_path: Path) -> None:
    write_onnx(graph(form), tmp_path / "x.onnx")
    write_tflite(graph(form), tmp_path / "x.tflite")
    same_arrays(graph(form), tmp_path / "x.onnx", tmp_path / "x.tflite")
    nodes = onnx.load(tmp_path / "x.onnx").graph.node
    outputs = [list(node.output) for node in nodes if node.op_type == "Split"]
    assert outputs == [[f"t{k}" for k in range(WIDE)], ["half0", f"t{WIDE + 1}"]]
    assert all(node.op_type != "Slice" for node in nodes)


def test_a_split_comes_back_as_slices(tmp_path: Path) -> None:
    write_tflite(graph("int8"), tmp_path / "x.tflite")
    again = read_tflite(tmp_path / "x.tflite")
    assert [op.kind for op in again.ops] == [op.kind for op in graph("int8").ops]
    assert [op.attrs for op in again.ops] == [op.attrs for op in graph("int8").ops]
    inputs = feed(graph("int8"), np.random.default_rng(2))
    check(graph("int8"), inputs, [run_int(again, inputs)[name] for name in again.outputs])


def test_a_concat_of_many_is_several() -> None:
    assert max(len(op.inputs) for op in graph("float").ops) == MOST_JOINED
    g = GraphBuilder("many")
    xs = tuple(g.input(f"x{k}", (1, 2)) for k in range(23))
    g.graph.outputs = [g.concat("y", xs, 0)]
    assert [len(op.inputs) for op in g.graph.ops] == [10, 10, 5]
    inputs = feed(g.graph, np.random.default_rng(0))
    np.testing.assert_array_equal(
        run_float(g.graph, inputs)["y"], np.concatenate(list(inputs.values()))
    )


def test_windowed_crnn_in_tflite_micro(micro: ModuleType) -> None:
    """Its states are more than a concat takes."""
    _, network, calls = small_encoder("crnn-windowed")
    assert max(len(op.inputs) for op in network.ops if op.kind == "concat") == MOST_JOINED
    run = micro_model(micro, network)
    for inputs in calls[:4]:
        (result,), expected = run(inputs), run_int(network, inputs)[network.outputs[0]]
        assert np.abs(result.astype(int) - expected).max() <= 5
