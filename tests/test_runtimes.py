"""TFLite Micro and tflite-runtime 2.14 run the same files, each layer within its tolerance."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edge_imputer.errors import BackendError, ExportError, MissingExtraError
from edge_imputer.export.graph import KINDS, Array, Graph
from edge_imputer.export.op_params import op_params, quant_of
from edge_imputer.export.parity import tolerance
from edge_imputer.export.reference import run_float, run_int
from edge_imputer.export.runtimes import ALL_RUNTIMES, RUNTIMES, load_runtime
from edge_imputer.export.tflite_emitter import tflite_bytes
from edge_imputer.export.tflite_runtime import ENVIRONMENT, PYTHON_VARIABLE
from edge_imputer.quantization import QuantParams

from .conftest import ROOT
from .graphs import FLOAT_LAYERS, LAYERS, feeds, float_layer, int_layer, raw_int_layer, small_model
from .test_file_formats import packed
from .test_lowering import SMALL
from .test_lowering import quantised as small_encoder


@pytest.fixture(params=["micro", "old_tflite"])
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.getfixturevalue(request.param)
    return name


def check_layer(runtime: str, layer: Graph, calls: list[dict[str, Array]], folder: Path) -> None:
    """Run a graph of one operation on values of its inputs, which hold its output too."""
    model = load_runtime(layer, runtime, folder)
    for values in calls:
        (result,) = model.run([values[name] for name in layer.inputs])
        expected = values[layer.outputs[0]]
        assert result.shape == expected.shape
        assert result.dtype == expected.dtype
        most = tolerance(runtime, layer.ops[0].kind)
        assert np.abs(result.astype(int) - expected).max() <= most, layer.ops[0]


def whole_graphs() -> dict[str, Graph]:
    model = small_model()
    return {
        "digits": model.encoder,
        "head": model.imputer,
        **{name: small_encoder(name)[1] for name in SMALL if "," not in name},
    }


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("make", [int_layer, raw_int_layer], ids=["calibrated", "arbitrary"])
def test_any_layer_is_within_its_tolerance(
    runtime: str, make: Callable[[str, np.random.Generator], Graph], kind: str, tmp_path: Path
) -> None:
    """They take every operation, with the shapes, types and constants that this project writes."""
    n_run = 0
    for seed in range(14):
        rng = np.random.default_rng(seed)
        try:
            graph = make(kind, rng)
            op_params(graph, graph.ops[0])
        except ExportError:  # a dead layer, or scales that do not fit each other
            continue
        if kind in ("sigmoid", "tanh") and quant_of(graph, graph.inputs[0]).scale >= 2:
            continue  # see below
        calls = [run_int(graph, f) | f for f in feeds(graph, rng, 3)]
        widens = kind == "requantise" and graph.tensors[graph.outputs[0]].dtype == "int16"
        if runtime == "tflite-runtime" and widens:  # newer than it
            with pytest.raises(BackendError, match="could not load"):
                check_layer(runtime, graph, calls, tmp_path)
        else:
            check_layer(runtime, graph, calls, tmp_path)
        n_run += 1
    assert n_run >= 8


@pytest.mark.parametrize("name", ["digits", "head", *(n for n in SMALL if "," not in n)])
def test_every_layer_of_a_network_is_within_its_tolerance(
    runtime: str, name: str, tmp_path: Path
) -> None:
    graph = whole_graphs()[name]
    calls = [run_int(graph, f) | f for f in feeds(graph, np.random.default_rng(0), 2)]
    for index in range(0, len(graph.ops), 1 if len(graph.ops) < 100 else 7):
        check_layer(runtime, graph.single_op(index), calls, tmp_path)


@pytest.mark.parametrize("name", ["digits", "head", *(n for n in SMALL if "," not in n)])
def test_whole_networks_run(runtime: str, name: str, tmp_path: Path) -> None:
    """A step of difference in one layer becomes a few, in some elements."""
    graph = whole_graphs()[name]
    model, differences = load_runtime(graph, runtime, tmp_path), []
    for inputs in feeds(graph, np.random.default_rng(0)):
        values = run_int(graph, inputs)
        results = model.run([inputs[key] for key in graph.inputs])
        for key, result in zip(graph.outputs, results, strict=True):
            assert result.shape == values[key].shape
            differences.append(np.abs(result.astype(int) - values[key]).ravel())
    assert (np.concatenate(differences) > 1).mean() < 0.12


def test_fully_connected_of_one_scale_a_channel_is_within_its_tolerance(
    old_tflite: str, tmp_path: Path
) -> None:
    """The newest operator that our files ask for: version 10, as TFLite 2.13 has it."""
    rng = np.random.default_rng(0)
    graph = int_layer("fully_connected", rng)
    scales = graph.tensors[graph.ops[0].inputs[1]].weight_scales
    assert scales is not None
    assert len(set(scales.tolist())) > 1
    model = schema.ModelT.InitFromPackedBuf(tflite_bytes(graph), 0)
    (code,) = model.operatorCodes
    assert (code.builtinCode, code.version) == (schema.BuiltinOperator.FULLY_CONNECTED, 10)
    calls = [run_int(graph, f) | f for f in feeds(graph, rng, 20)]
    check_layer(old_tflite, graph, calls, tmp_path)


@pytest.mark.parametrize("kind", FLOAT_LAYERS)
def test_float_layers(runtime: str, kind: str, tmp_path: Path) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        graph = float_layer(kind, rng)
        model = load_runtime(graph, runtime, tmp_path)
        for inputs in feeds(graph, rng):
            (result,) = model.run([inputs[name] for name in graph.inputs])
            expected = run_float(graph, inputs)[graph.outputs[0]]
            size = max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(result, expected, atol=1e-5 * size)


@pytest.mark.parametrize("kind", ["sigmoid", "tanh"])
def test_tflite_micro_needs_steps_below_two_before_a_sigmoid(
    micro: str, kind: str, tmp_path: Path
) -> None:
    """It computes LOGISTIC and TANH in fixed point: inputs of steps of 2 lose bits, and from steps
    of 8 on a real zero saturates. What only they read is cut where they are flat: steps of 0.06."""
    for scale, sound in ((0.06, True), (1.0, True), (1.9, True), (8.0, False)):
        graph = int_layer(kind, np.random.default_rng(0))
        graph.tensors["x"].quant = QuantParams(scale=scale, zero_point=0)
        for tensor in graph.tensors.values():
            tensor.shape = (1, 256)
        x = np.arange(-128, 128, dtype=np.int8).reshape(1, 256)
        calls = [run_int(graph, {"x": x})]
        if sound:
            check_layer(micro, graph, calls, tmp_path)
        else:
            with pytest.raises(AssertionError):
                check_layer(micro, graph, calls, tmp_path)


# ------------------------------------------------------------------------------ tolerances


def test_what_moves_bytes_must_be_exact_and_nothing_may_be_two_steps_off() -> None:
    for runtime in ALL_RUNTIMES:
        assert tolerance(runtime, "concat") == tolerance(runtime, "max_pool") == 0
        assert {tolerance(runtime, kind) for kind in KINDS} == {0, 1}
    assert tolerance("litert-reference", "add") < tolerance("litert", "add")


# ------------------------------------------------------------------------------ bad input


def small_layer() -> Graph:
    return int_layer("add", np.random.default_rng(0))


def test_a_runtime_says_what_it_cannot_load_or_run(runtime: str, tmp_path: Path) -> None:
    parsed = schema.ModelT.InitFromPackedBuf(tflite_bytes(small_layer()), 0)
    parsed.operatorCodes[0].builtinCode = schema.BuiltinOperator.CUMSUM + 500
    path = tmp_path / "x.tflite"
    path.write_bytes(packed(parsed))
    with pytest.raises(BackendError, match="could not load"):
        ALL_RUNTIMES[runtime].open(path)
    graph = small_layer()
    model = load_runtime(graph, runtime, tmp_path)
    with pytest.raises(BackendError, match=r"expected inputs|could not run"):
        model.run([np.zeros((3, 3, 3), np.int8)] * len(graph.inputs))
    with pytest.raises(BackendError, match=r"expected|could not run"):
        model.run([np.zeros(graph.tensors[n].shape, np.int8) for n in graph.inputs][:1])
    with pytest.raises(BackendError, match=r"expected inputs|could not run"):
        model.run([np.zeros(graph.tensors[n].shape, np.float32) for n in graph.inputs])


def test_results_are_fresh_arrays(runtime: str, tmp_path: Path) -> None:
    graph = small_layer()
    model = load_runtime(graph, runtime, tmp_path)
    first, second = (
        [inputs[name] for name in graph.inputs]
        for inputs in feeds(graph, np.random.default_rng(0), 2)
    )
    (one,) = model.run(first)
    kept = one.copy()
    model.run(second)
    np.testing.assert_array_equal(one, kept)
    one += 1  # may be written to
    np.testing.assert_array_equal(model.run(first)[0], kept)


def test_its_environment_has_the_pinned_versions(old_tflite: str) -> None:
    text = (ROOT / "constraints-tflite.txt").read_text("utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.MULTILINE))
    assert set(pinned) == {"numpy", "tflite-runtime"}
    code = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
    found = subprocess.run(
        [ENVIRONMENT.find_python(), "-c", code, *pinned], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == list(pinned.values())


def test_many_models_in_one_process_of_the_old_runtime(old_tflite: str, tmp_path: Path) -> None:
    graphs = [int_layer(kind, np.random.default_rng(3)) for kind in ("add", "mul", "tanh")]
    models = [load_runtime(graph, old_tflite, tmp_path) for graph in graphs]
    server = models[0]._server  # type: ignore[attr-defined]
    assert all(model._server is server for model in models)  # type: ignore[attr-defined]
    for graph, model in reversed(list(zip(graphs, models, strict=True))):
        (inputs,) = feeds(graph, np.random.default_rng(0), 1)
        result = model.run([inputs[name] for name in graph.inputs])[0]
        assert np.abs(result.astype(int) - run_int(graph, inputs)[graph.outputs[0]]).max() <= 1
    numbers = {model._number for model in models[1:]}  # type: ignore[attr-defined]
    del model, models[1:]
    gc.collect()
    assert numbers <= set(server.closed)  # the process is told with the next request
    (inputs,) = feeds(graphs[0], np.random.default_rng(0), 1)
    models[0].run([inputs[name] for name in graphs[0].inputs])
    assert not server.closed


def test_without_its_environment_the_old_runtime_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absence = ALL_RUNTIMES["tflite-runtime"].absence
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "python"))
    assert "found no file" in (absence() or "")
    monkeypatch.delenv(PYTHON_VARIABLE)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    with pytest.raises(BackendError, match="make one with: make tflite-runtime"):
        ENVIRONMENT.find_python()
    python = tmp_path / ".venv-tflite" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert ENVIRONMENT.find_python() == python
    assert absence() is None


def test_an_environment_without_the_package_is_an_error_and_is_asked_anew(
    old_tflite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, right = small_layer(), os.environ.get(PYTHON_VARIABLE)
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable)
    with pytest.raises(BackendError, match=r"ended with status 1: .*No module named 'tflite_runt"):
        load_runtime(graph, old_tflite, tmp_path)
    if right is None:
        monkeypatch.delenv(PYTHON_VARIABLE)
    else:
        monkeypatch.setenv(PYTHON_VARIABLE, right)
    load_runtime(graph, old_tflite, tmp_path)


def test_a_process_that_dies_is_an_error(old_tflite: str, tmp_path: Path) -> None:
    graph = small_layer()
    model = load_runtime(graph, old_tflite, tmp_path)
    model._server._process.kill()  # type: ignore[attr-defined]
    (inputs,) = feeds(graph, np.random.default_rng(0), 1)
    arrays = [inputs[name] for name in graph.inputs]
    with pytest.raises(BackendError, match="ended with status -9"):
        model.run(arrays)
    assert load_runtime(graph, old_tflite, tmp_path).run(arrays)


def test_micro_without_its_wheel_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tflite_micro.python.tflite_micro.runtime"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edge-imputer\[dev\]'"):
        load_runtime(small_layer(), "tflite-micro", tmp_path)
    assert "edge-imputer[dev]" in (ALL_RUNTIMES["tflite-micro"].absence() or "")


def test_there_is_no_other_runtime(tmp_path: Path) -> None:
    assert set(RUNTIMES) < set(ALL_RUNTIMES)
    with pytest.raises(
        ExportError, match=r"expected a runtime among onnxruntime, .*got 'tensorrt'"
    ):
        load_runtime(small_layer(), "tensorrt", tmp_path)


# ------------------------------------------------------------------------------ documentation


def test_the_documented_tolerances_are_those_that_are_asserted() -> None:
    text = (ROOT / "docs" / "runtimes.md").read_text("utf-8")
    section = text.split("## Tolerances of a layer")[1].split("##")[0]
    rows = [line.strip("| ").split("|") for line in section.splitlines() if line[:1] == "|"]
    head, _, *rows = [[cell.strip() for cell in row] for row in rows]
    apart = head[1].split(", ")
    assert set(apart) < set(ALL_RUNTIMES)
    stated = {
        (runtime, kind): int(near if runtime in apart else far)
        for kinds, near, far in rows
        for kind in kinds.split(", ")
        for runtime in ALL_RUNTIMES
    }
    assert stated == {
        (runtime, kind): tolerance(runtime, kind) for runtime in ALL_RUNTIMES for kind in KINDS
    }
