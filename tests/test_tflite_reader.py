"""A .tflite file gives back the very graph that it was written from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_imputer.errors import ExportError
from edge_imputer.export.graph import Graph
from edge_imputer.export.reference import Interpreter, run_int
from edge_imputer.export.tflite_emitter import tflite_bytes, write_tflite
from edge_imputer.export.tflite_reader import read_tflite

from .graphs import LAYERS, feed, raw_int_layer, small_model
from .test_lowering import SMALL, quantised
from .test_reference import usable


@pytest.mark.parametrize("kind", LAYERS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=8, deadline=None)
def test_any_layer_comes_back(
    tmp_path_factory: pytest.TempPathFactory, kind: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    graph = raw_int_layer(kind, rng)
    assume(usable(graph))
    path = tmp_path_factory.mktemp("layer") / "x.tflite"
    write_tflite(graph, path)
    again = read_tflite(path)
    assert again.quantised
    assert [op.kind for op in again.ops] == [graph.ops[0].kind]
    inputs = feed(graph, rng)
    renamed = dict(zip(again.inputs, inputs.values(), strict=True))
    np.testing.assert_array_equal(
        run_int(again, renamed)[again.outputs[0]], run_int(graph, inputs)[graph.outputs[0]]
    )


def graphs() -> dict[str, Graph]:
    model = small_model()
    return {"digits": model.encoder, "head": model.imputer, **{n: quantised(n)[1] for n in SMALL}}


@pytest.mark.parametrize("name", ["digits", "head", *SMALL])
def test_whole_graphs_come_back(name: str, tmp_path: Path) -> None:
    """With their states; and written again they are the same bytes but for names."""
    graph = graphs()[name]
    write_tflite(graph, tmp_path / "x.tflite")
    again = read_tflite(tmp_path / "x.tflite", name=graph.name, n_states=graph.n_states)
    assert again.inputs == graph.inputs
    assert again.outputs == graph.outputs
    assert again.state_pairs == graph.state_pairs
    assert [op.kind for op in again.ops] == [op.kind for op in graph.ops]
    rng, both = np.random.default_rng(0), (Interpreter(graph), Interpreter(again))
    for _ in range(3):
        inputs = feed(graph, rng)
        first, second = (run.run(inputs) for run in both)
        for output in graph.outputs:
            np.testing.assert_array_equal(first[output], second[output])
    write_tflite(again, tmp_path / "y.tflite")
    twice = read_tflite(tmp_path / "y.tflite", name=graph.name, n_states=graph.n_states)
    assert tflite_bytes(twice) == tflite_bytes(again)


def test_what_is_no_file_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    for content in (b"", b"not a model at all", b"\0" * 64):
        path.write_bytes(content)
        with pytest.raises(ExportError, match=r"expected a \.tflite file, got something else"):
            read_tflite(path)
