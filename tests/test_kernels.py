"""Every C kernel computes the bytes of the numpy reference, in every way it can be compiled."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_imputer.errors import ExportError
from edge_imputer.export.build import GraphBuilder
from edge_imputer.export.fixed_point import requantize
from edge_imputer.export.graph import Graph
from edge_imputer.export.op_params import (
    AccumulatorParams,
    MulParams,
    SumParams,
    TableParams,
    op_params,
)
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
    _fields_ = (("size", I32 * 4), ("source_stride", I32 * 3), ("target_stride", I32 * 3))


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
    rows = np.ascontiguousarray(weight.reshape(len(weight), -1))
    arrays = [
        rows,
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
    depth = weight.data[0].size
    top = 127 * 255 * depth
    bias.data = rng.integers(-top, top + 1, bias.shape).astype(np.int32)
    # outputs of a few hundred steps, some channels far above or below: every clamp is met
    typical = 73 * 73 * np.sqrt(depth) / 64
    x, y = graph.tensors[graph.ops[0].inputs[0]].quant, graph.tensors[graph.outputs[0]].quant
    assert x is not None
    assert y is not None
    real = np.exp2(rng.uniform(-spread, spread, len(weight.data))) / typical
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
    else:
        _, kernel_time, kernel_freq, _ = graph.tensors[op.inputs[1]].shape
        conv = Conv(
            *x.shape[2:], kernel_time, kernel_freq, *op.attrs["stride"], *expected.shape[1:3]
        )
        arguments = [address(x), address(y.array), address(scratch.array)]
        kernels.edim_conv2d(ctypes.byref(layer), ctypes.byref(conv), *arguments)
    scratch.check()
    np.testing.assert_array_equal(y.check().reshape(expected.shape), expected)


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
    box = Box((I32 * 4)(*size), *((I32 * 3)(*strides(shape)) for shape in shapes))
    target = Guarded(expected.size)
    offsets = [int(np.ravel_multi_index(b, shape)) for b, shape in zip(before, shapes, strict=True)]
    kernels.edim_copy_box(
        ctypes.byref(box),
        ctypes.c_void_p(source.ctypes.data + offsets[0]),
        ctypes.c_void_p(target.array.ctypes.data + offsets[1]),
    )
    np.testing.assert_array_equal(target.check().reshape(shapes[1]), expected)


def test_the_planner_knows_the_sizes_of_the_header() -> None:
    header = (SOURCES / "edim_kernels.h").read_text()
    for name, value in {"EDIM_TILE": TILE, "EDIM_SHALLOW": SHALLOW}.items():
        assert f"#define {name} {value}\n" in header


def test_a_kernel_that_writes_too_far_is_noticed() -> None:
    buffer = Guarded(3)
    buffer._all[GUARD + 3] = 1
    with pytest.raises(AssertionError, match="past the end"):
        buffer.check()
