"""int16: the C kernels compute the bytes of the reference, and what int16 may not be is refused."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.errors import ExportError
from edge_imputer.export.builder import GraphBuilder
from edge_imputer.export.graph import Array, Graph
from edge_imputer.export.op_params import RequantiseParams, SumParams, op_params
from edge_imputer.export.reference import run_int
from edge_imputer.quantization import QuantParams

from .c_tools import SOURCES, compile_c
from .graphs import int_layer
from .test_kernels import BUILDS, Factor, Guarded, Sum, address

I32 = ctypes.c_int32
Int16 = npt.NDArray[np.int16]
EDGES = np.array([-32768, -32767, -129, -128, -1, 0, 1, 127, 255, 256, 32767], np.int16)
SCALES = st.floats(-14, -2).map(lambda e: float(np.float32(2.0**e)))
EXAMPLES = settings(max_examples=20, deadline=None)


class Rescale(ctypes.Structure):
    _fields_ = (("output", Factor), ("input_zero_point", I32), ("output_zero_point", I32))


@pytest.fixture(scope="module", params=BUILDS)
def library(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    out = tmp_path_factory.mktemp("wide") / f"{request.param}.so"
    flags = ("-shared", "-fPIC", *BUILDS[request.param])
    return ctypes.CDLL(str(compile_c([SOURCES / "edim_kernels.c"], out, flags)))


def at_odd_address(values: Int16) -> tuple[ctypes.c_void_p, Array]:
    """Bytes of int16 at an address that is no multiple of two, and what keeps them alive."""
    memory = np.zeros(values.nbytes + 2, np.int8)
    start = 1 - memory.ctypes.data % 2
    memory[start : start + values.nbytes] = np.frombuffer(values.astype("<i2").tobytes(), np.int8)
    return ctypes.c_void_p(memory.ctypes.data + start), memory


def graph_of(kind: str, n: int, quants: dict[str, tuple[str, QuantParams]]) -> Graph:
    """One operation on (n,), with types and parameters of its tensors."""
    g = GraphBuilder("layer")
    inputs = [g.input(name, (n,)) for name in quants if name != "y"]
    g.graph.outputs = [
        g.requantise("y", *inputs) if kind == "requantise" else g.binary(kind, "y", *inputs)
    ]
    for name, (dtype, quant) in quants.items():
        g.graph.tensors[name].dtype, g.graph.tensors[name].quant = dtype, quant
    return g.graph


def symmetric(scale: float) -> tuple[str, QuantParams]:
    return "int16", QuantParams(scale=scale, zero_point=0)


@pytest.mark.parametrize("kind", ["add", "sub"])
@EXAMPLES
@given(a=SCALES, b=SCALES, seed=st.integers(0, 2**32), finer=st.floats(-2, 8))
def test_sums(library: ctypes.CDLL, kind: str, a: float, b: float, seed: int, finer: float) -> None:
    rng = np.random.default_rng(seed)
    pairs = [p.ravel() for p in np.meshgrid(EDGES, EDGES)]
    x, y = (np.r_[p, rng.integers(-32768, 32768, 500).astype(np.int16)] for p in pairs)
    out = float(np.float32(max(a, b) * 2.0**-finer))
    graph = graph_of(kind, len(x), {"a": symmetric(a), "b": symmetric(b), "y": symmetric(out)})
    expected = run_int(graph, {"a": x, "b": y})["y"]
    assert expected.dtype == np.int16
    params = op_params(graph, graph.ops[0])
    assert isinstance(params, SumParams)
    factors = [Factor(*pair) for pair in zip(params.multipliers, params.shifts, strict=True)]
    (at_x, _x), (at_y, _y) = at_odd_address(x), at_odd_address(y)
    result = Guarded(2 * len(x))
    getattr(library, f"edim_{kind}16")(
        ctypes.byref(Sum(*factors, 0, 0, 0)), at_x, at_y, I32(len(x)), address(result.array)
    )
    np.testing.assert_array_equal(result.check().view("<i2"), expected)
    sign = 1 if kind == "add" else -1
    real = x.astype(np.float64) * a + sign * y.astype(np.float64) * b
    assert np.abs(expected - np.clip(real / out, -32768, 32767)).max() < 0.76


@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "widen"])
@EXAMPLES
@given(scale=SCALES, ratio=st.floats(-3, 12), zero_point=st.integers(-128, 127))
def test_every_value_in_the_other_precision(
    library: ctypes.CDLL, wide: bool, scale: float, ratio: float, zero_point: int
) -> None:
    """To int8, or to int16 by any factor; by 128 nothing is rounded."""
    narrow = "int8", QuantParams(scale=float(np.float32(scale * 2.0**ratio)), zero_point=zero_point)
    x = np.arange(-128, 128, dtype=np.int8) if wide else np.arange(-(2**15), 2**15, dtype=np.int16)
    ends = {"x": narrow, "y": symmetric(scale)} if wide else {"x": symmetric(scale), "y": narrow}
    graph = graph_of("requantise", len(x), ends)
    expected = run_int(graph, {"x": x})["y"]
    params = op_params(graph, graph.ops[0])
    assert isinstance(params, RequantiseParams)
    rescale = Rescale(Factor(params.multiplier, params.shift), *params.zero_points)
    at_x, _x = at_odd_address(x) if not wide else (address(x), x)
    result = Guarded(expected.nbytes)
    kernel = library.edim_widen if wide else library.edim_narrow
    kernel(ctypes.byref(rescale), at_x, I32(len(x)), address(result.array))
    np.testing.assert_array_equal(result.check().view(expected.dtype), expected)


def test_an_int16_copy_has_every_value() -> None:
    """What the quantiser writes between the precisions: 128 steps for one, none rounded."""
    for seed in range(30):
        graph = int_layer("requantise", np.random.default_rng(seed))
        if graph.tensors["y"].dtype == "int16":
            break
    x = np.arange(-128, 128, dtype=np.int8)
    for tensor in graph.tensors.values():
        tensor.shape = x.shape
    quant = graph.tensors["x"].quant
    assert quant is not None
    np.testing.assert_array_equal(
        run_int(graph, {"x": x})["y"], 128 * (x.astype(int) - quant.zero_point)
    )


def test_precisions_that_no_runtime_has_are_refused() -> None:
    wide = int_layer("wide_add", np.random.default_rng(0))
    op = wide.ops[0]
    assert isinstance(op_params(wide, op), SumParams)
    with pytest.raises(ExportError, match=r"expected mul of int8 .* got \['int16'\]; requantise"):
        op_params(wide, replace(op, kind="mul"))
    with pytest.raises(ExportError, match=r"expected requantise .* got \['int16'\]"):
        op_params(wide, replace(op, kind="requantise", inputs=op.inputs[:1]))
    shifted = replace(wide.tensors["a"], quant=QuantParams(scale=0.1, zero_point=3))
    with pytest.raises(ExportError, match="a zero point of 0 of a, which is int16"):
        op_params(replace(wide, tensors=wide.tensors | {"a": shifted}), op)
    narrow = replace(wide.tensors["a"], dtype="int8")
    with pytest.raises(ExportError, match=r"got \['int16', 'int8'\]"):
        op_params(replace(wide, tensors=wide.tensors | {"a": narrow}), op)
    row = replace(wide.tensors["a"], shape=(1,))
    with pytest.raises(ExportError, match="of one shape"):
        op_params(replace(wide, tensors=wide.tensors | {"a": row}), op)


def test_an_int16_that_would_be_too_fine_is_refused() -> None:
    ends = {"x": symmetric(1.0), "y": ("int8", QuantParams(scale=1e-6, zero_point=0))}
    graph = graph_of("requantise", 2, ends)
    with pytest.raises(ExportError, match="too fine beside its input's"):
        op_params(graph, graph.ops[0])
