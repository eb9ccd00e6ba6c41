"""Random graphs of several operations: every emitter computes what the reference does.

A difference of a step may grow in the operations after it, so every operation is held to what the
reference makes of the very values that the runtime itself gave it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_imputer.backends.stepper import Model
from edge_imputer.errors import ExportError
from edge_imputer.export.graph import MOVES, Array, Graph
from edge_imputer.export.onnx_emitter import write_onnx
from edge_imputer.export.op_params import quant_of
from edge_imputer.export.parity import RUNTIMES, load_runtime, same_arrays
from edge_imputer.export.reference import Interpreter, run_int
from edge_imputer.export.tflite_emitter import write_tflite

from .c_layers import compile_graphs, run_graphs
from .chains import STEPS, float_chain, int_chain
from .graphs import feed, feeds

KINDS = st.lists(st.sampled_from(STEPS), min_size=1, max_size=8)
SEEDS = st.integers(0, 2**32)
REFUSED = (
    "zero width",  # an activation that is always zero
    "too fine",
    "could pass int32",
    "could reach",
    "must share one scale",  # a sigmoid and a tanh, side by side
)
Run = Callable[[dict[str, Array]], list[Array]]


def quantised(kinds: list[str], seed: int) -> Graph:
    """A chain that can be quantised, and whose sigmoids TFLite Micro computes soundly."""
    try:
        graph = int_chain(kinds, np.random.default_rng(seed))
    except ExportError as error:
        assume(not any(text in str(error) for text in REFUSED))
        raise
    for op in graph.ops:
        if op.kind not in ("sigmoid", "tanh", "mean"):
            continue
        before, after = (quant_of(graph, name).scale for name in (op.inputs[0], op.output))
        if op.kind != "mean":
            assume(before < 2)
        else:  # else the rows have none, and what is left of it is the rounding of floats
            assume(before < 1000 * after)
    return graph


def opened(graph: Graph) -> Graph:
    """The graph with every activation among its outputs."""
    return replace(graph, outputs=[op.output for op in graph.ops])


def runner(graph: Graph, model: Model) -> Run:
    """A loaded file as a function of named inputs."""
    return lambda inputs: model.run([inputs[name] for name in graph.inputs])


def check_every_operation(graph: Graph, run: Run, inputs: dict[str, Array], atol: float) -> None:
    """Hold every operation of an opened graph to the reference, on the values it was given."""
    results = dict(zip(graph.outputs, run(inputs), strict=True))
    values = {**inputs, **results}
    for k, op in enumerate(graph.ops):
        alone = graph.single_op(k)
        expected = Interpreter(alone).run({n: values[n] for n in alone.inputs})[op.output]
        got = values[op.output]
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        steps = 1.0 if graph.quantised else max(1.0, float(np.abs(expected).max()))
        limit = 0 if op.kind in MOVES else atol * steps
        assert np.abs(got.astype(np.float64) - expected).max() <= limit, op


@pytest.mark.parametrize("runtime", RUNTIMES)
@given(kinds=KINDS, seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_integers_in_every_runtime(
    tmp_path_factory: pytest.TempPathFactory, runtime: str, kinds: list[str], seed: int
) -> None:
    graph = opened(quantised(kinds, seed))
    model = load_runtime(graph, runtime, tmp_path_factory.mktemp("chain"))
    rng = np.random.default_rng(seed)
    for inputs in feeds(graph, rng):
        check_every_operation(graph, runner(graph, model), inputs, atol=1)


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert", "litert-reference"])
@given(kinds=KINDS, seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_floats_in_every_runtime(
    tmp_path_factory: pytest.TempPathFactory, runtime: str, kinds: list[str], seed: int
) -> None:
    graph = opened(float_chain(kinds, np.random.default_rng(seed)))
    model = load_runtime(graph, runtime, tmp_path_factory.mktemp("chain"))
    inputs = feed(graph, np.random.default_rng(seed))
    check_every_operation(graph, runner(graph, model), inputs, atol=1e-5)


@pytest.mark.parametrize("make", [quantised, float_chain], ids=["int8", "float"])
@given(kinds=KINDS, seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_in_tflite_micro(
    tmp_path_factory: pytest.TempPathFactory,
    micro: str,
    make: Callable[..., Graph],
    kinds: list[str],
    seed: int,
) -> None:
    graph = opened(make(kinds, seed if make is quantised else np.random.default_rng(seed)))
    model = load_runtime(graph, micro, tmp_path_factory.mktemp("chain"))
    inputs = feed(graph, np.random.default_rng(seed))
    atol = 1 if graph.quantised else 1e-5
    check_every_operation(graph, runner(graph, model), inputs, atol)


@given(kinds=KINDS, seed=SEEDS, as_floats=st.booleans())
@settings(max_examples=60, deadline=None)
def test_files_hold_the_graph(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], seed: int, as_floats: bool
) -> None:
    """Its arrays where its operations read them, and the same bytes every time."""
    rng = np.random.default_rng(seed)
    graph = float_chain(kinds, rng) if as_floats else quantised(kinds, seed)
    folder = tmp_path_factory.mktemp("chain")
    for name in ("x", "y"):
        write_onnx(graph, folder / f"{name}.onnx")
        write_tflite(graph, folder / f"{name}.tflite")
    same_arrays(graph, folder / "x.onnx", folder / "x.tflite")
    for suffix in ("onnx", "tflite"):
        assert (folder / f"x.{suffix}").read_bytes() == (folder / f"y.{suffix}").read_bytes()


@given(kinds=KINDS, seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_an_activation_computes_the_same_with_and_without_a_name(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], seed: int
) -> None:
    """Opened graphs name all of them, others number them."""
    graph = quantised(kinds, seed)
    inputs = feed(graph, np.random.default_rng(seed))
    for runtime in ("onnxruntime", "litert"):
        results = [
            load_runtime(g, runtime, tmp_path_factory.mktemp("chain")).run(list(inputs.values()))
            for g in (graph, opened(graph))
        ]
        np.testing.assert_array_equal(results[0][-1], results[1][-1])


def test_integers_in_c(tmp_path: Path) -> None:
    """To the byte, every activation."""
    graphs: list[Graph] = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        kinds = [str(kind) for kind in rng.choice(STEPS, rng.integers(2, 9))]
        try:
            graphs.append(int_chain(kinds, rng))
        except ExportError:  # see `quantised`
            continue
    assert len(graphs) > 40
    program = compile_graphs(graphs, tmp_path, ("-O1",))
    calls = [(graph, list(feeds(graph, np.random.default_rng(0)))) for graph in graphs]
    for (graph, called), results in zip(calls, run_graphs(program, calls), strict=True):
        for inputs, outputs in zip(called, results, strict=True):
            expected = run_int(graph, inputs)
            for name in graph.outputs:
                np.testing.assert_array_equal(outputs[name], expected[name])
