"""A graph as text."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.export.dump import dump
from edge_imputer.export.graph import Graph, macs
from edge_imputer.export.onnx_names import value_names

from .chains import STEPS, float_chain
from .graphs import small_model
from .test_lowering import quantised


def graphs() -> dict[str, Graph]:
    model = small_model()
    return {name: getattr(model, name) for name in model._fields if name != "spec"}


@pytest.mark.parametrize("name", graphs())
def test_every_operation_has_a_line(name: str) -> None:
    graph = graphs()[name]
    title, *rest = dump(graph).splitlines()
    assert title.startswith(f"{graph.name}: {'int8' if graph.quantised else 'float32'}, ")
    assert f" {len(graph.ops)} operations, {macs(graph):,} multiply-accumulates" in title
    ends, lines = rest[: -len(graph.ops)], rest[-len(graph.ops) :]
    assert [line.split()[1] for line in ends] == [*graph.inputs, *graph.outputs]
    assert sum(line.endswith("  state") for line in ends) == 2 * graph.n_states
    names = value_names(graph)
    for line, op in zip(lines, graph.ops, strict=True):
        number, kind, *_ = line.split()
        assert kind == op.kind
        assert names[op.output] in (f"t{number}", op.output)
        before, after = line.split(" -> ")
        for part, tensors in ((before, op.inputs), (after, (op.output,))):
            for tensor in (graph.tensors[t] for t in tensors):
                assert f"{tensor.name} {tensor.shape} {tensor.dtype}" in part
                if tensor.quant is not None:
                    assert f"int8[{tensor.quant.scale:.6g}, {tensor.quant.zero_point}]" in part
        for key in op.attrs:
            assert f"  {key}=" in after


@given(kinds=st.lists(st.sampled_from(STEPS), min_size=1, max_size=8), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_bytes_add_up(kinds: list[str], seed: int) -> None:
    """Every constant is counted where it is read first."""
    check_bytes(float_chain(kinds, np.random.default_rng(seed)))


def test_bytes_of_a_weight_that_many_read_are_counted_once() -> None:
    check_bytes(quantised("crnn-windowed")[0])


def check_bytes(graph: Graph) -> None:
    title, *rest = dump(graph).splitlines()
    found = re.search(r"([\d,]+) bytes of constants", title)
    assert found is not None
    sizes = [re.findall(r"([\d,]+) B", line) for line in rest[-len(graph.ops) :]]
    numbers = [[int(size.replace(",", "")) for size in line] for line in sizes]
    assert sum(sum(line[1:]) for line in numbers) == int(found[1].replace(",", ""))
    for (size, *_), op in zip(numbers, graph.ops, strict=True):
        assert size == 4 * np.prod(graph.tensors[op.output].shape)


def test_one_line() -> None:
    graph = small_model().imputer
    line = next(line for line in dump(graph).splitlines() if " fully_connected " in line)
    assert re.fullmatch(
        r" +0 fully_connected  encoder_window \(\d+, 10\) int8\[[\d.]+, -?\d+\], "
        r"input.weight \(8, 10\) int8\[8 scales\], input.bias \(8,\) int32 -> "
        r"input \(\d+, 8\) int8\[[\d.]+, -?\d+\]  relu=False  \d+ B \+ 112 B",
        line,
    )
