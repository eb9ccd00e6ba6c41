"""Every C kernel computes the bytes of the numpy reference, in every way it can be compiled."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_imputer.errors import ExportError
from edge_imputer.export.builder import GraphBuilder
from edge_imputer.export.fixed_point import requantize
from edge_imputer.export.graph import WEIGHT_AXIS, Graph
from edge_imputer.export.op_params import (
    EXP_BITS,
    LONGEST_ROW,
    LONGEST_SOFTMAX,
    NORM_BITS,
    AccumulatorParams,
    MatmulParams,
    MeanParams,
    MulParams,
    NormParams,
    SoftmaxParams,
    SumParams,
    TableParams,
    op_params,
)
from edge_imputer.export.quantize import OUTPUT_QUANT
from edge_imputer.export.reference import run_int
from edge_imputer.firmware_bridge.placement import SHALLOW, TILE
from edge_imputer.quantization import QuantParams

from .c_tools import SOURCES, compile_c

Int8 = npt.NDArray[np.int8]
BUILDS = {
    "native": ("-O3", "-march=native"),
    "signed": ("-O3", "-DEDIM_UNSIGNED_ACTIVATIONS=0"),
    "unsigned": ("-Os", "-DEDIM_UNSIGNED_ACTIVATIONS=1"),
    "undefined": ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"),
}
GUARD = 4096  # bytes on both sides of what a kernel may write
EXAMPLES = settings(max_examples=40, deadline=None)
I32, POINTER = ctypes.c_int32, ctypes.c_void_p


class Factor(ctypes.Structure):
    _fields_ = (("multiplier", I32), ("shift", I32))


class Linear(ctypes.Structure):
    _fields_ = (
        *((n, POINTER) for n in ("weight", "bias", "weight_sum", "multiplier", "shift")),
        *((n, I32) for n in ("rows", "depth", "input_zero_point", "output_zero_point")),
        ("output_min", I32),
    )


class Conv(ctypes.Structure):
    _fields_ = tuple(
        (n, I32)
        for n in (
            *("freq", "channels", "kernel_time", "kernel_freq"),
            *("stride_time", "stride_freq", "out_time", "out_freq"),
        )
    )


class Window(ctypes.Structure):
    _fields_ = tuple(
        (n, I32)
        for n in (
            *("freq", "channels", "kernel_time", "kernel_freq", "stride_time", "stride_freq"),
            *("dilation_time", "dilation_freq", "out_time", "out_freq"),
        )
    )


class Matmul(ctypes.Structure):
    _fields_ = (
        ("output", Factor),
        *((n, I32) for n in ("x_zero_point", "y_zero_point", "output_zero_point")),
        *((n, I32) for n in ("batch", "n", "depth", "columns", "transposed")),
    )


class Average(ctypes.Structure):
    _fields_ = (
        ("output", Factor),
        *((n, I32) for n in ("input_zero_point", "output_zero_point", "depth")),
    )


class Broadcast(ctypes.Structure):
    _fields_ = (("size", I32 * 4), ("x_stride", I32 * 4), ("y_stride", I32 * 4))


class Sum(ctypes.Structure):
    _fields_ = (
        *((n, Factor) for n in ("x", "y", "output")),
        *((n, I32) for n in ("x_zero_point", "y_zero_point", "output_zero_point")),
    )


class Product(ctypes.Structure):
    _fields_ = (
        ("output", Factor),
        *((n, I32) for n in ("x_zero_point", "y_zero_point", "output_zero_point")),
    )


class Box(ctypes.Structure):
    _fields_ = (("size", I32 * 4), ("source_stride", I32 * 4), ("target_stride", I32 * 3))


@pytest.fixture(scope="session", params=BUILDS)
def kernels(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    """The kernels as a shared library."""
    out = tmp_path_factory.mktemp("kernels") / f"{request.param}.so"
    flags = ("-shared", "-fPIC", *BUILDS[request.param])
    return ctypes.CDLL(str(compile_c([SOURCES / "edim_kernels.c"], out, flags)))


class Guarded:
    """Memory for a kernel to write, with known bytes around it."""

    def __init__(self, size: int) -> None:
        self._all = np.full(size + 2 * GUARD, 0x55, np.int8)
        self.array: Int8 = self._all[GUARD : GUARD + size]

    def check(self) -> Int8:
        """What was written, if nothing was written around it."""
        assert (self._all[:GUARD] == 0x55).all(), "written before the start"
        assert (self._all[GUARD + self.array.size :] == 0x55).all(), "written past the end"
        return self.array


def address(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def linear_struct(graph: Graph) -> tuple[Linear, list[npt.NDArray[Any]]]:
    """The C parameters of a graph of one linear operation, and the arrays they point to."""
    op = graph.ops[0]
    params = op_params(graph, op)
    assert isinstance(params, AccumulatorParams)
    weight, bias = (graph.tensors[name].data for name in op.inputs[1:])
    assert weight is not None
    assert bias is not None
    rows = np.moveaxis(weight, WEIGHT_AXIS[op.kind], 0).reshape(len(bias), -1)
    arrays = [
        np.ascontiguousarray(weight),
        bias,
        rows.sum(axis=1, dtype=np.int32),
        params.multipliers.astype(np.int32),
        params.shifts.astype(np.int8),
    ]
    layer = Linear(
        *map(address, arrays),
        *rows.shape,
        params.input_zero_point,
        params.output_zero_point,
        params.clamp[0],
    )
    return layer, arrays


def quants() -> st.SearchStrategy[QuantParams]:
    return st.builds(
        lambda e, z: QuantParams(scale=float(np.float32(2.0**e)), zero_point=z),
        st.floats(-9, 3),
        st.integers(-128, 127),
    )


def quantised(g: GraphBuilder, output: str, quant: dict[str, QuantParams]) -> Graph:
    """Finish a graph of one operation with parameters given by hand."""
    graph = g.graph
    graph.outputs = [output]
    for name, params in quant.items():
        graph.tensors[name].quant = params
        graph.tensors[name].dtype = "int8"
    return graph


def random_linear(graph: Graph, rng: np.random.Generator, spread: float) -> None:
    """Replace a linear operation's constants by integers of every size."""
    weight, bias = (graph.tensors[name] for name in graph.ops[0].inputs[1:])
    assert weight.data is not None
    weight.data = rng.integers(-127, 128, weight.shape).astype(np.int8)
    depth = weight.data.size // bias.shape[0]
    top = 127 * 255 * depth
    bias.data = rng.integers(-top, top + 1, bias.shape).astype(np.int32)
    # outputs of a few hundred steps, some channels far above or below: every clamp is met
    typical = 73 * 73 * np.sqrt(depth) / 64
    x, y = graph.tensors[graph.ops[0].inputs[0]].quant, graph.tensors[graph.outputs[0]].quant
    assert x is not None
    assert y is not None
    real = np.exp2(rng.uniform(-spread, spread, bias.shape[0])) / typical
    weight.weight_scales = (real * y.scale / x.scale).astype(np.float32)
    weight.dtype, bias.dtype = "int8", "int32"


def check_linear(kernels: ctypes.CDLL, graph: Graph, x: Int8, scratch_bytes: int) -> None:
    """Run the only operation of a graph in C and in numpy."""
    op = graph.ops[0]
    try:
        expected = run_int(graph, {op.inputs[0]: x})[op.output]
    except ExportError:  # an accumulator that could overflow
        assume(False)
    layer, _arrays = linear_struct(graph)
    y, scratch = Guarded(expected.size), Guarded(scratch_bytes)
    if op.kind == "fully_connected":
        arguments = [address(x), I32(len(x)), address(y.array), address(scratch.array)]
        kernels.edim_fully_connected(ctypes.byref(layer), *arguments)
    elif op.kind == "depthwise_conv2d":
        kernel = graph.tensors[op.inputs[1]].shape[1:3]
        window = window_struct(x, kernel, op.attrs, expected)
        arguments = [address(x), address(y.array)]
        kernels.edim_depthwise_conv2d(ctypes.byref(layer), ctypes.byref(window), *arguments)
    else:
        _, kernel_time, kernel_freq, _ = graph.tensors[op.inputs[1]].shape
        conv = Conv(
            *x.shape[2:], kernel_time, kernel_freq, *op.attrs["stride"], *expected.shape[1:3]
        )
        arguments = [address(x), address(y.array), address(scratch.array)]
        kernels.edim_conv2d(ctypes.byref(layer), ctypes.byref(conv), *arguments)
    scratch.check()
    np.testing.assert_array_equal(y.check().reshape(expected.shape), expected)


def window_struct(x: Int8, kernel: tuple[int, ...], attrs: dict[str, Any], y: Int8) -> Window:
    """The C parameters of an operation on windows."""
    dilation = attrs.get("dilation", (1, 1))
    return Window(*x.shape[2:], *kernel, *attrs["stride"], *dilation, *y.shape[1:3])


seeds = st.integers(0, 2**32 - 1)
depths = st.one_of(st.integers(1, 40), st.sampled_from([48, 63, 64, 65, 96, 144, 240, 300]))


@EXAMPLES
@given(
    n=st.integers(1, 9),
    rows=st.integers(1, 70),
    depth=depths,
    relu=st.booleans(),
    spread=st.floats(0, 8),
    x_quant=quants(),
    y_quant=quants(),
    seed=seeds,
)
def test_fully_connected(
    kernels: ctypes.CDLL,
    n: int,
    rows: int,
    depth: int,
    relu: bool,
    spread: float,
    x_quant: QuantParams,
    y_quant: QuantParams,
    seed: int,
) -> None:
    g = GraphBuilder("layer")
    x = g.input("x", (n, depth))
    y = g.fully_connected("y", x, np.zeros((rows, depth)), np.zeros(rows), relu)
    graph = quantised(g, y, {x: x_quant, y: y_quant})
    rng = np.random.default_rng(seed)
    random_linear(graph, rng, spread)
    values = rng.integers(-128, 128, (n, depth)).astype(np.int8)
    check_linear(kernels, graph, values, TILE * depth)


@EXAMPLES
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    extra=st.tuples(st.integers(0, 5), st.integers(0, 8)),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    relu=st.booleans(),
    spread=st.floats(0, 8),
    x_quant=quants(),
    y_quant=quants(),
    seed=seeds,
)
def test_conv2d(
    kernels: ctypes.CDLL,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    extra: tuple[int, int],
    channels: tuple[int, int],
    relu: bool,
    spread: float,
    x_quant: QuantParams,
    y_quant: QuantParams,
    seed: int,
) -> None:
    c_in, c_out = channels
    g = GraphBuilder("layer")
    x = g.input("x", (1, kernel[0] + extra[0], kernel[1] + extra[1], c_in))
    y = g.conv2d("y", x, np.zeros((c_out, *kernel, c_in)), np.zeros(c_out), stride, relu)
    graph = quantised(g, y, {x: x_quant, y: y_quant})
    rng = np.random.default_rng(seed)
    random_linear(graph, rng, spread)
    depth = kernel[0] * kernel[1] * c_in
    values = rng.integers(-128, 128, graph.tensors[x].shape).astype(np.int8)
    scratch_bytes = (c_out if depth < SHALLOW else TILE) * depth
    check_linear(kernels, graph, values, scratch_bytes)


@EXAMPLES
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    extra=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    channels=st.one_of(st.integers(1, 40), st.sampled_from([31, 32, 33, 63, 64, 65, 100])),
    relu=st.booleans(),
    spread=st.floats(0, 8),
    x_quant=quants(),
    y_quant=quants(),
    seed=seeds,
)
def test_depthwise_conv2d(
    kernels: ctypes.CDLL,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    extra: tuple[int, int],
    channels: int,
    relu: bool,
    spread: float,
    x_quant: QuantParams,
    y_quant: QuantParams,
    seed: int,
) -> None:
    size = [(k - 1) * d + 1 + e for k, d, e in zip(kernel, dilation, extra, strict=True)]
    g = GraphBuilder("layer")
    x = g.input("x", (1, *size, channels))
    weight, bias = np.zeros((1, *kernel, channels)), np.zeros(channels)
    y = g.depthwise_conv2d("y", x, weight, bias, stride=stride, dilation=dilation, relu=relu)
    graph = quantised(g, y, {x: x_quant, y: y_quant})
    rng = np.random.default_rng(seed)
    random_linear(graph, rng, spread)
    values = rng.integers(-128, 128, graph.tensors[x].shape).astype(np.int8)
    check_linear(kernels, graph, values, 0)


@EXAMPLES
@given(
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    extra=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    channels=st.integers(1, 70),
    quant=quants(),
    seed=seeds,
)
def test_max_pool(
    kernels: ctypes.CDLL,
    size: tuple[int, int],
    stride: tuple[int, int],
    extra: tuple[int, int],
    channels: int,
    quant: QuantParams,
    seed: int,
) -> None:
    g = GraphBuilder("layer")
    x = g.input("x", (1, size[0] + extra[0], size[1] + extra[1], channels))
    graph = quantised(g, g.max_pool("y", x, size, stride), {"x": quant, "y": quant})
    values = np.random.default_rng(seed).integers(-128, 128, graph.tensors[x].shape)
    values = values.astype(np.int8)
    expected = run_int(graph, {"x": values})["y"]
    y = Guarded(expected.size)
    window = window_struct(values, size, graph.ops[0].attrs, expected)
    kernels.edim_max_pool(ctypes.byref(window), address(values), address(y.array))
    np.testing.assert_array_equal(y.check().reshape(expected.shape), expected)


@EXAMPLES
@given(
    batch=st.integers(1, 3),
    n=st.integers(1, 9),
    depth=depths,
    columns=st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65])),
    transposed=st.booleans(),
    parameters=st.tuples(quants(), quants(), st.integers(-128, 127)),
    spread=st.floats(-4, 4),
    extreme=st.booleans(),
    seed=seeds,
)
def test_batch_matmul(
    kernels: ctypes.CDLL,
    batch: int,
    n: int,
    depth: int,
    columns: int,
    transposed: bool,
    parameters: tuple[QuantParams, QuantParams, int],
    spread: float,
    extreme: bool,
    seed: int,
) -> None:
    a_quant, b_quant, zero_point = parameters
    typical = a_quant.scale * b_quant.scale * 73 * 73 * np.sqrt(depth) / 64
    out = QuantParams(scale=float(np.float32(typical * 2**spread)), zero_point=zero_point)
    g = GraphBuilder("layer")
    a = g.input("a", (batch, n, depth))
    b = g.input("b", (batch, columns, depth) if transposed else (batch, depth, columns))
    y = g.batch_matmul("y", a, b, transposed=transposed)
    graph = quantised(g, y, {a: a_quant, b: b_quant, y: out})
    try:
        params = op_params(graph, graph.ops[0])
    except ExportError:  # an accumulator that could overflow
        assume(False)
    assert isinstance(params, MatmulParams)
    rng = np.random.default_rng(seed)
    values = [rng.integers(-128, 128, graph.tensors[name].shape).astype(np.int8) for name in (a, b)]
    if extreme:  # the largest sums of each sign
        values = [rng.choice(np.array([-128, 127], np.int8), value.shape) for value in values]
    expected = run_int(graph, {"a": values[0], "b": values[1]})[y]
    matmul = Matmul(
        Factor(params.multiplier, params.shift),
        *params.zero_points,
        *(batch, n, depth, columns, int(transposed)),
    )
    target, scratch = Guarded(expected.size), Guarded(TILE * depth if transposed else 0)
    arrays = [*values, target.array, scratch.array]
    kernels.edim_batch_matmul(ctypes.byref(matmul), *map(address, arrays))
    scratch.check()
    np.testing.assert_array_equal(target.check().reshape(expected.shape), expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("values", [(-128, -128), (-128, 127), (127, -128), (127, 127)])
def test_deepest_products_do_not_overflow(
    kernels: ctypes.CDLL, transposed: bool, values: tuple[int, int]
) -> None:
    depth = 2**15 - 1
    g = GraphBuilder("layer")
    shapes = ((1, 1, depth), (1, 1, depth) if transposed else (1, depth, 1))
    a, b = (g.input(name, shape) for name, shape in zip("ab", shapes, strict=True))
    y = g.batch_matmul("y", a, b, transposed=transposed)
    for zero_a in (-128, 0, 127):
        for zero_b in (-128, 0, 127):
            quant = {
                a: QuantParams(scale=1.0, zero_point=zero_a),
                b: QuantParams(scale=1.0, zero_point=zero_b),
                y: QuantParams(scale=2.0**24, zero_point=0),
            }
            graph = quantised(g, y, quant)
            params = op_params(graph, graph.ops[0])
            assert isinstance(params, MatmulParams)
            x = [np.full(s, value, np.int8) for s, value in zip(shapes, values, strict=True)]
            expected = run_int(graph, {"a": x[0], "b": x[1]})[y]
            matmul = Matmul(
                Factor(params.multiplier, params.shift),
                *params.zero_points,
                *(1, 1, depth, 1, int(transposed)),
            )
            out, scratch = Guarded(1), Guarded(TILE * depth)
            arrays = [*x, out.array, scratch.array]
            kernels.edim_batch_matmul(ctypes.byref(matmul), *map(address, arrays))
            np.testing.assert_array_equal(out.check(), expected.ravel())


EDGES = [0, 1, 2, 3, 2**15, 2**30 - 1, 2**30, 2**30 + 1, 2**31 - 2, 2**31 - 1]


@EXAMPLES
@given(
    accumulator=st.lists(
        st.one_of(st.sampled_from(EDGES), st.integers(0, 2**31 - 1)), min_size=1, max_size=40
    ),
    sign=st.sampled_from([1, -1]),
    multiplier=st.one_of(st.sampled_from([0, 2**30, 2**31 - 1]), st.integers(2**30, 2**31 - 1)),
    shift=st.integers(-31, 30),
    zero_point=st.integers(-128, 127),
)
def test_requantisation_of_every_int32(
    kernels: ctypes.CDLL,
    accumulator: list[int],
    sign: int,
    multiplier: int,
    shift: int,
    zero_point: int,
) -> None:
    sums = sign * (np.array(accumulator, np.int64) >> max(shift, 0))  # fits after a left shift
    rows = len(sums)
    tables = [
        np.zeros((rows, 1), np.int8),
        sums.astype(np.int32),
        np.zeros(rows, np.int32),
        np.full(rows, multiplier, np.int32),
        np.full(rows, shift, np.int8),
    ]
    layer = Linear(*map(address, tables), rows, 1, -128, zero_point, -128)
    x, y, scratch = np.zeros(1, np.int8), Guarded(rows), Guarded(TILE)
    kernels.edim_fully_connected(
        ctypes.byref(layer), address(x), I32(1), address(y.array), address(scratch.array)
    )
    scaled = requantize(sums, multiplier, shift) + zero_point
    np.testing.assert_array_equal(y.check(), np.clip(scaled, -128, 127))


ALL = np.arange(-128, 128).astype(np.int8)
ALL_X, ALL_Y = (np.ascontiguousarray(a.ravel()) for a in np.meshgrid(ALL, ALL))


def binary_graph(
    kind: str, shape: tuple[int, ...], parameters: tuple[QuantParams, QuantParams, QuantParams]
) -> Graph:
    g = GraphBuilder("layer")
    x, y = g.input("x", shape), g.input("y", shape)
    out = g.binary(kind, "out", x, y)
    return quantised(g, out, dict(zip((x, y, out), parameters, strict=True)))


def binary_struct(graph: Graph) -> ctypes.Structure:
    try:
        params = op_params(graph, graph.ops[0])
    except ExportError:  # an output scale too fine for the inputs
        assume(False)
    if isinstance(params, SumParams):
        factors = (Factor(*pair) for pair in zip(params.multipliers, params.shifts, strict=True))
        return Sum(*factors, *params.zero_points)
    assert isinstance(params, MulParams)
    return Product(Factor(params.multiplier, params.shift), *params.zero_points)


@settings(EXAMPLES, max_examples=15)
@given(parameters=st.tuples(quants(), quants(), quants()))
@pytest.mark.parametrize("kind", ["add", "sub", "mul"])
def test_sums_and_products_of_all_pairs(
    kernels: ctypes.CDLL, kind: str, parameters: tuple[QuantParams, QuantParams, QuantParams]
) -> None:
    graph = binary_graph(kind, ALL_X.shape, parameters)
    constants = binary_struct(graph)
    expected = run_int(graph, {"x": ALL_X, "y": ALL_Y})["out"]
    kernel = getattr(kernels, f"edim_{kind}")
    out = Guarded(ALL_X.size)
    n = I32(ALL_X.size)
    kernel(ctypes.byref(constants), address(ALL_X), address(ALL_Y), n, address(out.array))
    np.testing.assert_array_equal(out.check(), expected)
    for k in range(2):  # in place
        x, y = ALL_X.copy(), ALL_Y.copy()
        target = (x, y)[k]
        kernel(ctypes.byref(constants), address(x), address(y), n, address(target))
        np.testing.assert_array_equal(target, expected)


def test_minimum_of_all_pairs(kernels: ctypes.CDLL) -> None:
    out, n = Guarded(ALL_X.size), I32(ALL_X.size)
    kernels.edim_minimum(address(ALL_X), address(ALL_Y), n, address(out.array))
    np.testing.assert_array_equal(out.check(), np.minimum(ALL_X, ALL_Y))
    for k in range(2):  # in place
        x, y = ALL_X.copy(), ALL_Y.copy()
        kernels.edim_minimum(address(x), address(y), n, address((x, y)[k]))
        np.testing.assert_array_equal((x, y)[k], np.minimum(ALL_X, ALL_Y))


def broadcast_strides(shape: tuple[int, ...]) -> list[int]:
    return [0 if n == 1 else s for n, s in zip(shape, [*strides(shape), 1], strict=True)]


@settings(EXAMPLES, max_examples=25)
@given(
    outer=st.tuples(*[st.integers(1, 4)] * 3),
    inner=st.one_of(st.integers(2, 8), st.sampled_from([31, 32, 33, 70])),
    repeated=st.tuples(*[st.integers(0, 2)] * 4),
    parameters=st.tuples(quants(), quants(), quants()),
    seed=seeds,
)
@pytest.mark.parametrize("kind", ["add", "sub", "mul", "minimum"])
def test_elements_that_are_repeated(
    kernels: ctypes.CDLL,
    kind: str,
    outer: tuple[int, ...],
    inner: int,
    repeated: tuple[int, ...],
    parameters: tuple[QuantParams, QuantParams, QuantParams],
    seed: int,
) -> None:
    shape = (*outer, inner)
    shapes = [
        tuple(1 if which == k else n for n, which in zip(shape, repeated, strict=True))
        for k in range(2)
    ]
    if kind == "minimum":
        parameters = (parameters[0],) * 3
    g = GraphBuilder("layer")
    names = (g.input("x", shapes[0]), g.input("y", shapes[1]))
    out = g.binary(kind, "out", *names)
    graph = quantised(g, out, dict(zip((*names, out), parameters, strict=True)))
    rng = np.random.default_rng(seed)
    values = [rng.integers(-128, 128, s).astype(np.int8) for s in shapes]
    constants = [] if kind == "minimum" else [ctypes.byref(binary_struct(graph))]
    expected = run_int(graph, dict(zip(names, values, strict=True)))[out]
    target = Guarded(expected.size)
    spread = Broadcast((I32 * 4)(*shape), *((I32 * 4)(*broadcast_strides(s)) for s in shapes))
    arrays = map(address, (*values, target.array))
    getattr(kernels, f"edim_{kind}_broadcast")(*constants, ctypes.byref(spread), *arrays)
    np.testing.assert_array_equal(target.check().reshape(shape), expected)


def row_graph(kind: str, shape: tuple[int, ...], quant: QuantParams, out: QuantParams) -> Graph:
    g = GraphBuilder("layer")
    x = g.input("x", shape)
    y = g.mean("y", x) if kind == "mean" else g.unary(kind, "y", x)
    return quantised(g, y, {"x": quant, "y": OUTPUT_QUANT.get(kind, out)})


def check_rows(kernels: ctypes.CDLL, graph: Graph, x: Int8) -> None:
    """Run the only operation of a graph, one on rows, in C and in numpy; also in place."""
    try:
        params = op_params(graph, graph.ops[0])
    except ExportError:  # an output scale too fine for the input
        assume(False)
    expected = run_int(graph, {"x": x})["y"]
    out = Guarded(expected.size)
    rows, depth = x.shape
    if isinstance(params, MeanParams):
        average = Average(Factor(params.multiplier, params.shift), *params.zero_points, depth)
        kernels.edim_mean(ctypes.byref(average), address(x), I32(rows), address(out.array))
        np.testing.assert_array_equal(out.check(), expected.ravel())
        return
    place = x.copy()
    for source, target in ((x, out.array), (place, place)):
        arguments = (address(source), I32(rows), I32(depth), address(target))
        if isinstance(params, SoftmaxParams):
            kernels.edim_softmax(address(params.table), *arguments)
        else:
            assert isinstance(params, NormParams)
            kernels.edim_l2_norm(I32(params.zero_point), *arguments)
    np.testing.assert_array_equal(out.check().reshape(x.shape), expected)
    np.testing.assert_array_equal(place, expected)


lengths = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 500, 511, 1024]))
LONGEST = {"softmax": LONGEST_SOFTMAX, "l2_norm": LONGEST_ROW, "mean": LONGEST_ROW}


@EXAMPLES
@given(
    rows=st.integers(1, 5),
    depth=lengths,
    center=st.integers(-128, 127),
    spread=st.integers(0, 255),
    parameters=st.tuples(quants(), quants()),
    seed=seeds,
)
@pytest.mark.parametrize("kind", LONGEST)
def test_rows(
    kernels: ctypes.CDLL,
    kind: str,
    rows: int,
    depth: int,
    center: int,
    spread: int,
    parameters: tuple[QuantParams, QuantParams],
    seed: int,
) -> None:
    depth = min(depth, LONGEST[kind])
    x = center + np.random.default_rng(seed).integers(-spread, spread + 1, (rows, depth))
    graph = row_graph(kind, (rows, depth), *parameters)
    check_rows(kernels, graph, np.clip(x, -128, 127).astype(np.int8))


@pytest.mark.parametrize("kind", LONGEST)
def test_longest_rows_do_not_overflow(kernels: ctypes.CDLL, kind: str) -> None:
    x = np.repeat(np.array([[-128], [-1], [0], [127]], np.int8), LONGEST[kind], axis=1)
    for zero_point in (-128, 0, 127):
        quant = QuantParams(scale=0.5, zero_point=zero_point)
        for scale in (2.0**-10, 0.5, 8.0):
            out = QuantParams(scale=scale, zero_point=-zero_point - 1)
            check_rows(kernels, row_graph(kind, x.shape, quant, out), x)


def test_integer_root_of_the_largest_and_of_squares(tmp_path: Path) -> None:
    source = tmp_path / "root.c"
    source.write_text(
        '#include "edim_kernels.c"\n'
        "uint32_t root_of(uint64_t x);\n"
        "uint32_t root_of(uint64_t x) {\n    return integer_root(x);\n}\n"
    )
    flags = ("-O2", "-shared", "-fPIC", f"-I{SOURCES}")
    library = ctypes.CDLL(str(compile_c([source], tmp_path / "root.so", flags)))
    root_of = library.root_of
    root_of.argtypes, root_of.restype = [ctypes.c_uint64], ctypes.c_uint32
    rng = np.random.default_rng(0)
    roots = [0, 1, 2, 3, 2**25, 2**26 - 1, 2**26, *rng.integers(0, 2**26, 2000).tolist()]
    for root in roots:
        for x in (root * root - 1, root * root, root * root + 1):
            if 0 <= x < 2**52:
                assert root_of(x) == math.isqrt(x)


@settings(EXAMPLES, max_examples=20)
@given(x_quant=quants(), n=st.integers(1, 256))
@pytest.mark.parametrize(
    ("kind", "y_quant"),
    [
        ("sigmoid", QuantParams(scale=1 / 256, zero_point=-128)),
        ("tanh", QuantParams(scale=1 / 128, zero_point=0)),
    ],
)
def test_lookup(
    kernels: ctypes.CDLL, kind: str, y_quant: QuantParams, x_quant: QuantParams, n: int
) -> None:
    g = GraphBuilder("layer")
    out = g.unary(kind, "out", g.input("x", (n,)))
    graph = quantised(g, out, {"x": x_quant, out: y_quant})
    params = op_params(graph, graph.ops[0])
    assert isinstance(params, TableParams)
    x = np.ascontiguousarray(ALL[:n])
    y = Guarded(n)
    kernels.edim_lookup(address(params.table), address(x), I32(n), address(y.array))
    np.testing.assert_array_equal(y.check(), run_int(graph, {"x": x})[out])


def test_relu(kernels: ctypes.CDLL) -> None:
    for zero_point in range(-128, 128):
        y = Guarded(ALL.size)
        kernels.edim_relu(I32(zero_point), address(ALL), I32(ALL.size), address(y.array))
        np.testing.assert_array_equal(y.check(), np.maximum(ALL, zero_point))


@EXAMPLES
@given(
    rows=st.integers(1, 12), width=st.integers(1, 70), n=st.integers(1, 12), seed=seeds, bad=seeds
)
def test_embedding(
    kernels: ctypes.CDLL, rows: int, width: int, n: int, seed: int, bad: int
) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(-128, 128, (rows, width)).astype(np.int8)
    ids = rng.integers(0, rows, n).astype(np.int32)
    out = Guarded(n * width)
    shape = (I32(rows), I32(width))

    def gather(tokens: npt.NDArray[np.int32]) -> int:
        arguments = (address(tokens), I32(n), address(out.array))
        status: int = kernels.edim_embedding(address(table), *shape, *arguments)
        return status

    assert gather(ids) == 0
    np.testing.assert_array_equal(out.check().reshape(n, width), table[ids])
    for wrong in (-1, rows, -(2**31), 2**31 - 1):
        ids[bad % n] = wrong
        assert gather(ids) == -1
    out.check()


def strides(shape: tuple[int, ...]) -> list[int]:
    return [int(np.prod(shape[axis + 1 :])) for axis in range(3)]


@EXAMPLES
@given(
    size=st.tuples(*[st.integers(1, 5)] * 4),
    around=st.tuples(*[st.integers(0, 2)] * 16),
    seed=seeds,
)
def test_copy_box(
    kernels: ctypes.CDLL, size: tuple[int, ...], around: tuple[int, ...], seed: int
) -> None:
    before = [around[:4], around[4:8]]
    shapes = [
        tuple(map(sum, zip(size, before[k], around[8 + 4 * k : 12 + 4 * k], strict=True)))
        for k in range(2)
    ]
    source = np.random.default_rng(seed).integers(-128, 128, shapes[0]).astype(np.int8)
    expected = np.full(shapes[1], 0x55, np.int8)
    inside = [
        tuple(slice(b, b + n) for b, n in zip(before[k], size, strict=True)) for k in range(2)
    ]
    expected[inside[1]] = source[inside[0]]
    source_strides = [*strides(shapes[0]), 1]
    box = Box((I32 * 4)(*size), (I32 * 4)(*source_strides), (I32 * 3)(*strides(shapes[1])))
    target = Guarded(expected.size)
    offsets = [int(np.ravel_multi_index(b, shape)) for b, shape in zip(before, shapes, strict=True)]
    kernels.edim_copy_box(
        ctypes.byref(box),
        ctypes.c_void_p(source.ctypes.data + offsets[0]),
        ctypes.c_void_p(target.array.ctypes.data + offsets[1]),
    )
    np.testing.assert_array_equal(target.check().reshape(shapes[1]), expected)


@EXAMPLES
@given(shape=st.tuples(*[st.integers(1, 6)] * 4), perm=st.permutations(range(4)), seed=seeds)
def test_copy_box_transposes(
    kernels: ctypes.CDLL, shape: tuple[int, ...], perm: list[int], seed: int
) -> None:
    source = np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)
    expected = source.transpose(perm)
    apart = [*strides(shape), 1]
    box = Box(
        (I32 * 4)(*expected.shape),
        (I32 * 4)(*(apart[axis] for axis in perm)),
        (I32 * 3)(*strides(expected.shape)),
    )
    target = Guarded(source.size)
    kernels.edim_copy_box(ctypes.byref(box), address(source), address(target.array))
    np.testing.assert_array_equal(target.check().reshape(expected.shape), expected)


def test_the_planner_knows_the_sizes_of_the_header() -> None:
    header = (SOURCES / "edim_kernels.h").read_text()
    sizes = {"EDIM_TILE": TILE, "EDIM_SHALLOW": SHALLOW, "EDIM_NORM_BITS": NORM_BITS}
    for name, value in sizes.items():
        assert f"#define {name} {value}\n" in header
    assert f"in units of 2^-{EXP_BITS}" in header
    assert (256 << EXP_BITS) + (LONGEST_SOFTMAX << EXP_BITS) // 2 < 2**31  # of a softmax


def test_a_kernel_that_writes_too_far_is_noticed() -> None:
    buffer = Guarded(3)
    buffer._all[GUARD + 3] = 1
    with pytest.raises(AssertionError, match="past the end"):
        buffer.check()
