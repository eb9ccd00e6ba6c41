"""ONNX and TFLite files: valid, the same arrays, every layer within one step in every runtime."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter as LiteRtInterpreter
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_imputer.errors import ExportError, MissingExtraError
from edge_imputer.export.build import build_graphs
from edge_imputer.export.calibration import Calibration
from edge_imputer.export.flatbuffer import ALIGNMENT
from edge_imputer.export.graph import MOVES, SHARES_SCALE, Array, Graph
from edge_imputer.export.onnx_emitter import onnx_model, write_onnx
from edge_imputer.export.onnx_functions import inlined
from edge_imputer.export.parity import (
    RUNTIMES,
    expected_arrays,
    layer_parity,
    load_runtime,
    onnx_arrays,
    same_arrays,
    tflite_arrays,
    tolerance,
)
from edge_imputer.export.parts import in_parts
from edge_imputer.export.quantize import quantise
from edge_imputer.export.reference import Interpreter, run_float, run_int, zero_feeds
from edge_imputer.export.simulate import calibrate_and_quantise
from edge_imputer.export.tflite_emitter import (
    OPERATORS,
    kind_of,
    minimum_runtime,
    tflite_bytes,
    write_tflite,
)
from edge_imputer.quantization import QuantParams

from .graphs import (
    FLOAT_LAYERS,
    LAYERS,
    feed,
    feeds,
    float_layer,
    int_layer,
    model_spec,
    modules,
    raw_int_layer,
    small_model,
    waveforms,
)
from .test_reference import usable

WHOLE = ["encoder", "imputer"]


def quantised(which: str) -> Graph:
    model = small_model()
    return model.encoder if which == "encoder" else model.imputer


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", LAYERS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=6, deadline=None)
def test_every_layer_is_within_one_step(
    tmp_path_factory: pytest.TempPathFactory, kind: str, runtime: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    try:
        graph = int_layer(kind, rng)
    except ExportError as error:
        assume("more than zero width" not in str(error))  # a layer that happens to be dead
        raise
    model = load_runtime(graph, runtime, tmp_path_factory.mktemp("layer"))
    for inputs in feeds(graph, rng):
        expected = run_int(graph, inputs)[graph.outputs[0]]
        result = model.run([inputs[name] for name in graph.inputs])[0]
        assert result.shape == expected.shape
        assert result.dtype == expected.dtype
        assert np.abs(result.astype(int) - expected).max() <= tolerance(runtime, kind)


@pytest.mark.parametrize("kind", LAYERS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_both_files_hold_the_arrays_of_any_layer(
    tmp_path_factory: pytest.TempPathFactory, kind: str, seed: int
) -> None:
    graph = raw_int_layer(kind, np.random.default_rng(seed))
    assume(usable(graph))
    folder = tmp_path_factory.mktemp("layer")
    write_onnx(graph, folder / "x.onnx")
    write_tflite(graph, folder / "x.tflite")
    same_arrays(graph, folder / "x.onnx", folder / "x.tflite")


FLOAT_RUNTIMES = ("onnxruntime", "litert", "litert-reference")


@pytest.mark.parametrize("runtime", FLOAT_RUNTIMES)
@pytest.mark.parametrize("kind", FLOAT_LAYERS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_float_layers_compute_the_same(
    tmp_path_factory: pytest.TempPathFactory, kind: str, runtime: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    graph = float_layer(kind, rng)
    model = load_runtime(graph, runtime, tmp_path_factory.mktemp("layer"))
    inputs = feed(graph, rng)
    result = model.run([inputs[name] for name in graph.inputs])[0]
    expected = run_float(graph, inputs)[graph.outputs[0]]
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("kind", FLOAT_LAYERS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_float_layers_hold_the_same_arrays(
    tmp_path_factory: pytest.TempPathFactory, kind: str, seed: int
) -> None:
    graph, folder = float_layer(kind, np.random.default_rng(seed)), tmp_path_factory.mktemp("layer")
    write_onnx(graph, folder / "x.onnx")
    write_tflite(graph, folder / "x.tflite")
    same_arrays(graph, folder / "x.onnx", folder / "x.tflite")


@pytest.mark.parametrize("runtime", FLOAT_RUNTIMES)
@pytest.mark.parametrize("which", WHOLE)
def test_whole_float_graph(tmp_path: Path, which: str, runtime: str) -> None:
    small = small_model()
    graph = small.float_encoder if which == "encoder" else small.float_imputer
    model, rng = load_runtime(graph, runtime, tmp_path), np.random.default_rng(0)
    for inputs in feeds(graph, rng, 5):
        values = run_float(graph, inputs)
        for name, result in zip(
            graph.outputs, model.run([inputs[n] for n in graph.inputs]), strict=True
        ):
            np.testing.assert_allclose(result, values[name], atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("which", WHOLE)
def test_whole_graph_stays_near_the_integers(tmp_path: Path, which: str, runtime: str) -> None:
    graph = quantised(which)
    model = load_runtime(graph, runtime, tmp_path)
    interpreter, inputs = Interpreter(graph), zero_feeds(graph)
    rng, differences = np.random.default_rng(0), []
    for _ in range(40):
        inputs.update({n: a for n, a in feed(graph, rng).items() if not n.endswith(".state")})
        values = interpreter.run(inputs)
        results = model.run([inputs[name] for name in graph.inputs])
        for name, result in zip(graph.outputs, results, strict=True):
            differences.append(np.abs(result.astype(int) - values[name]).ravel())
        inputs.update({before: values[after] for before, after in graph.state_pairs})
    steps = np.concatenate(differences)
    assert steps.max() <= 3  # a step in one layer may become more in the next
    assert (steps > 0).mean() < 0.05


@pytest.mark.parametrize("which", WHOLE)
def test_layer_parity_report(which: str) -> None:
    graph = quantised(which)
    rows = layer_parity(graph, feeds(graph, np.random.default_rng(0)))
    assert [(r.op, r.kind, r.runtime) for r in rows] == [
        (op.output, op.kind, runtime) for op in graph.ops for runtime in RUNTIMES
    ]
    for row in rows:
        assert row.max_lsb <= 1
        assert row.n == 3 * np.prod(graph.tensors[row.op].shape)
        assert 0 <= row.share <= 1
        assert (row.share > 0) == (row.max_lsb > 0)
        if row.kind in MOVES | SHARES_SCALE:
            assert row.max_lsb == 0


def test_layer_parity_sees_a_layer_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = int_layer("add", np.random.default_rng(0))
    wrong = replace(graph, tensors=dict(graph.tensors))
    name = graph.inputs[0]
    quant = graph.tensors[name].quant
    assert quant is not None
    shifted = QuantParams(scale=quant.scale, zero_point=quant.zero_point ^ 8)
    wrong.tensors[name] = replace(graph.tensors[name], quant=shifted)
    monkeypatch.setattr(
        "edge_imputer.export.runtimes.write_onnx", lambda _, path: write_onnx(wrong, path)
    )
    rows = layer_parity(graph, feeds(graph, np.random.default_rng(0)), ["onnxruntime"])
    assert rows[0].max_lsb > 1
    with pytest.raises(ExportError, match="expected at least one call"):
        layer_parity(graph, [])
    with pytest.raises(ExportError, match="expected a runtime among"):
        layer_parity(graph, feeds(graph, np.random.default_rng(0)), ["tensorrt"])


@pytest.mark.parametrize("name", ["encoder", "imputer"])
def test_models_of_other_specifications_run_everywhere(tmp_path: Path, name: str) -> None:
    spec = model_spec(gru_layers=2, n_mels=9, kernel=1, depth=1, chunk_blocks=2)
    graphs = calibrate_and_quantise(*build_graphs(*modules(spec), spec), spec, waveforms(1))
    graph = graphs[WHOLE.index(name)]
    for runtime in RUNTIMES:
        model = load_runtime(graph, runtime, tmp_path)
        for inputs in feeds(graph, np.random.default_rng(0), 2):
            values = run_int(graph, inputs)
            results = model.run([inputs[n] for n in graph.inputs])
            for output, result in zip(graph.outputs, results, strict=True):
                assert np.abs(result.astype(int) - values[output]).max() <= 5


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    graph = quantised("imputer")
    write_onnx(graph, tmp_path / "x.onnx")
    write_tflite(graph, tmp_path / "x.tflite")
    return tmp_path / "x.onnx", tmp_path / "x.tflite"


@pytest.mark.parametrize("which", WHOLE)
def test_onnx_and_tflite_carry_the_same_arrays(tmp_path: Path, which: str) -> None:
    graph = quantised(which)
    write_onnx(graph, tmp_path / "x.onnx")
    write_tflite(graph, tmp_path / "x.tflite")
    same_arrays(graph, tmp_path / "x.onnx", tmp_path / "x.tflite")
    one, two = onnx_arrays(tmp_path / "x.onnx", graph), tflite_arrays(tmp_path / "x.tflite", graph)
    constants = {n for n, t in graph.tensors.items() if t.data is not None}
    for name in constants:
        assert one[name].tobytes() == two[name].tobytes()
    shared = set(one) & set(two) & {f"{n}/scale" for n in graph.tensors}
    assert {f"{n}/scale" for n in constants if "table" not in n} <= shared
    for name in shared:
        assert one[name].tobytes() == two[name].tobytes()


def changed(graph: Graph, key: str) -> Graph:
    """The graph with one byte of one array changed."""
    name, _, part = key.partition("/")
    tensor = replace(graph.tensors[name])
    if not part:
        assert tensor.data is not None
        tensor.data = tensor.data.copy()
        tensor.data.reshape(-1)[-1] ^= 1
    elif tensor.weight_scales is not None:
        tensor.weight_scales = np.nextafter(tensor.weight_scales, np.float32(1))
    else:
        assert tensor.quant is not None
        scale = float(np.nextafter(np.float32(tensor.quant.scale), np.float32(1)))
        if part == "scale":
            tensor.quant = QuantParams(scale=scale, zero_point=tensor.quant.zero_point)
        else:
            zero_point = tensor.quant.zero_point ^ 1
            tensor.quant = QuantParams(scale=tensor.quant.scale, zero_point=zero_point)
    return replace(graph, tensors={**graph.tensors, name: tensor})


@pytest.mark.parametrize(
    "key",
    [
        "input.weight",
        "conv0.bias",
        "tokens.table",
        "conv1.weight/scale",
        "logits/scale",
        "logits/zero_point",
        "frames/zero_point",
    ],
)
@pytest.mark.parametrize("file", [0, 1], ids=["onnx", "tflite"])
def test_one_array_that_differs_is_found(files: tuple[Path, Path], key: str, file: int) -> None:
    graph = quantised("imputer")
    same_arrays(graph, *files)
    other = changed(graph, key)
    (write_onnx, write_tflite)[file](other, files[file])
    with pytest.raises(ExportError, match=f"x.{('onnx', 'tflite')[file]}: .* differs"):
        same_arrays(graph, *files)


def test_missing_array_is_found(files: tuple[Path, Path]) -> None:
    graph = quantised("imputer")
    more = replace(graph, tensors={**graph.tensors, "lost": graph.tensors["input.weight"]})
    with pytest.raises(ExportError, match=r"x.onnx: expected the array lost, found none"):
        same_arrays(more, *files)


def test_expected_arrays_are_those_of_the_graph() -> None:
    graph = quantised("imputer")
    arrays = expected_arrays(graph)
    x, weight = graph.tensors["encoder_window"].quant, graph.tensors["input.weight"]
    assert x is not None
    assert weight.weight_scales is not None
    product = np.float32(x.scale) * weight.weight_scales
    np.testing.assert_array_equal(arrays["input.bias/scale"], product)
    assert arrays["input.bias/scale"].dtype == np.float32
    assert arrays["input.weight"].dtype == np.int8
    assert arrays["input.bias"].dtype == np.int32


@pytest.mark.parametrize("which", WHOLE)
def test_files_are_deterministic(which: str) -> None:
    graph = quantised(which)
    assert tflite_bytes(graph) == tflite_bytes(graph)
    models = [onnx_model(graph).SerializeToString(deterministic=True) for _ in range(2)]
    assert models[0] == models[1]


@pytest.mark.parametrize("which", WHOLE)
def test_tflite_file_says_what_it_needs(which: str) -> None:
    graph = quantised(which)
    data = tflite_bytes(graph)
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    assert data[4:8] == b"TFL3"
    assert model.version == 3
    assert which in model.description.decode()
    codes = {getattr(schema.BuiltinOperator, o.name): o for o in OPERATORS.values()}
    versions = {codes[code.builtinCode]: code.version for code in model.operatorCodes}
    wanted = {OPERATORS[kind_of(ops)] for ops in in_parts(graph)}
    assert versions == {operator: operator.int8[0] for operator in wanted}
    assert [m.name for m in model.metadata] == [b"min_runtime_version"]
    stated = bytes(model.buffers[model.metadata[0].buffer].data).rstrip(b"\0").decode()
    assert stated == minimum_runtime(graph) == "2.13.0"
    for k, tensor in enumerate(model.subgraphs[0].tensors):
        name = graph.ops[k].output if k < len(graph.ops) else (tensor.name or b"").decode()
        assert (tensor.name or name.encode()) == name.encode()  # others have their number
        quantisation = tensor.quantization
        if name in graph.tensors and graph.tensors[name].dtype == "int8":
            per_channel = graph.tensors[name].weight_scales
            n = 1 if per_channel is None else len(per_channel)
            assert len(quantisation.scale) == len(quantisation.zeroPoint) == n


def test_float_files_ask_for_little(tmp_path: Path) -> None:
    graph = small_model().float_encoder
    model = schema.ModelT.InitFromPackedBuf(tflite_bytes(graph), 0)
    assert {code.version for code in model.operatorCodes} == {1}
    assert minimum_runtime(graph) == "1.14.0"
    assert all(tensor.quantization is None for tensor in model.subgraphs[0].tensors)


@pytest.mark.parametrize("which", WHOLE)
def test_tflite_constants_are_aligned(which: str) -> None:
    data = tflite_bytes(quantised(which))
    model = schema.Model.GetRootAs(data, 0)
    n_aligned = 0
    for k in range(model.BuffersLength()):
        buffer = model.Buffers(k)
        if not buffer.DataIsNone():
            field = buffer._tab.Offset(4)  # the vector of bytes
            assert buffer._tab.Vector(field) % ALIGNMENT == 0
            n_aligned += 1
    assert n_aligned > 5


@pytest.mark.parametrize("which", WHOLE)
def test_tflite_signature_names_inputs_and_outputs(which: str) -> None:
    graph = quantised(which)
    interpreter = LiteRtInterpreter(model_content=tflite_bytes(graph), num_threads=1)
    signature = interpreter.get_signature_list()["serving_default"]
    assert set(signature["inputs"]) == set(graph.inputs)
    assert set(signature["outputs"]) == set(graph.outputs)
    inputs = feed(graph, np.random.default_rng(0))
    by_name: dict[str, Array] = interpreter.get_signature_runner()(**inputs)
    for name in graph.outputs:
        assert np.abs(by_name[name].astype(int) - run_int(graph, inputs)[name]).max() <= 3
    details = interpreter.get_input_details()
    assert [d["name"] for d in details] == graph.inputs


@pytest.mark.parametrize("which", WHOLE)
def test_onnx_inputs_and_outputs_are_those_of_the_graph(which: str) -> None:
    graph = quantised(which)
    model = onnx_model(graph)
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    for values, names in (
        (model.graph.input, graph.inputs),
        (model.graph.output, graph.outputs),
    ):
        assert [v.name for v in values] == names
        for value in values:
            kind = value.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            assert dtype == graph.tensors[value.name].dtype
            shape = tuple(d.dim_value for d in kind.shape.dim)
            assert shape == graph.tensors[value.name].shape


def test_arithmetic_stands_between_quantise_and_dequantise() -> None:
    nodes = inlined(onnx_model(quantised("encoder"))).graph.node
    maker = {name: node for node in nodes for name in node.output}
    users: dict[str, list[str]] = {}
    for node in nodes:
        for name in node.input:
            users.setdefault(name, []).append(node.op_type)
    for node in nodes:
        arithmetic = node.op_type in ("Conv", "Gemm", "Add", "Sub", "Mul", "Sigmoid", "Tanh")
        if arithmetic and set(node.input) & maker.keys():  # else it is the scale of a bias
            assert {maker[name].op_type for name in node.input} == {"DequantizeLinear"}
            assert users[node.output[0]][0] in ("QuantizeLinear", "Relu")


def test_missing_schema_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.schema_py_generated", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edge-imputer\[export\]'"):
        tflite_bytes(quantised("encoder"))


def test_relu_where_the_zero_point_is_not_the_lowest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    graph = float_layer("relu", rng)
    shape = graph.tensors["x"].shape
    calibration = Calibration(graph)
    calibration.run({"x": np.linspace(-3, 1, int(np.prod(shape)), dtype="f4").reshape(shape)})
    ints = quantise(graph, calibration.ranges)
    quant = ints.tensors["x"].quant
    assert quant is not None
    assert quant.zero_point == 63
    x = feed(ints, rng)["x"]
    for runtime in RUNTIMES:
        result = load_runtime(ints, runtime, tmp_path).run([x])[0]
        np.testing.assert_array_equal(result, np.maximum(x, quant.zero_point))
