"""Files of another converter: called in a step's order, and timed beside ours. The converter is a
stand-in; `test_litert_oracle` has the real one."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor, nn

from edge_imputer.errors import BackendError, ExportError
from edge_imputer.export import benchmark, oracle
from edge_imputer.export.benchmark import FLOAT, INT8, Part
from edge_imputer.export.builder import GraphBuilder
from edge_imputer.export.oracle import ORACLE, ConvertedFile, TorchStep, as_arrays, convert
from edge_imputer.export.tflite_emitter import tflite_bytes
from edge_imputer.train.layers.base import StreamingLayer

from .graphs import float_layer
from .test_file_formats import packed


class Difference(nn.Module):
    """Two results, which are one tensor in a file: what a converter makes of a state."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return y - x, y - x


STEP = TorchStep(Difference(), (torch.linspace(-1, 1, 6).reshape(2, 3), torch.ones(2, 3)))
SERVER = """
import json, pathlib, shutil, sys
for line in sys.stdin:
    request = json.loads(line)
    whole = "convert" in request and pathlib.Path(request["convert"]).stat().st_size
    if whole:
        shutil.copy(sys.argv[0] + ".tflite", request["to"])
    answer = {} if whole else {"error": "ValueError: too small"}
    print(json.dumps({**answer, "bytes": 0}), flush=True)
"""


def converted_file(path: str, *, signed: bool = True) -> None:
    """What litert-torch might write of `Difference`: y goes in first, and a signature says so."""
    g = GraphBuilder("difference")
    y, x = g.input("y", (2, 3)), g.input("x", (2, 3))
    g.graph.outputs = [g.binary("sub", "out", y, x)]
    model = schema.ModelT.InitFromPackedBuf(tflite_bytes(g.graph), 0)
    subgraph = model.subgraphs[0]
    (first, second), (out,) = subgraph.inputs, subgraph.outputs
    subgraph.outputs = [out, out]

    def named(name: str, index: int) -> schema.TensorMapT:
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, int(index)
        return entry

    signature = schema.SignatureDefT()
    signature.signatureKey = "serving_default"
    signature.inputs = [named("args_0", second), named("args_1", first)][: 2 if signed else 1]
    signature.outputs = [named("output_0", out), named("output_1", out)]
    model.signatureDefs = [signature]
    Path(path).write_bytes(packed(model))


@pytest.fixture
def fake_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for litert-torch's environment: it converts to `converted_file`, and no more."""
    script = tmp_path / "server.py"
    script.write_text(SERVER, "utf-8")
    converted_file(f"{script}.tflite")
    environment = replace(oracle.ENVIRONMENT, script=script)
    for module in (oracle, benchmark):
        monkeypatch.setattr(module, "ENVIRONMENT", environment)
    monkeypatch.setenv(environment.variable, sys.executable)
    return script


def test_a_converted_file_takes_arguments_in_its_own_order(
    fake_converter: Path, tmp_path: Path
) -> None:
    file = convert(STEP, tmp_path / "x.tflite")
    x, y = as_arrays(STEP.arguments)
    assert [array is other for array, other in zip(file.feeds([x, y]), (y, x), strict=True)]
    for result in file.run([x, y]):
        np.testing.assert_array_equal(result, y - x)
    graph = float_layer("add", np.random.default_rng(0))
    parts = [Part(graph, graph, 1.0, STEP)]
    contender = benchmark._oracle(parts, tmp_path, FLOAT)
    assert (contender.runtime, contender.dtype, contender.agrees) == (ORACLE, FLOAT, True)
    assert contender.bytes == file.path.stat().st_size
    with pytest.raises(BackendError, match="litert-torch could not quantise it: ValueError: too s"):
        benchmark._oracle(parts, tmp_path, INT8)


def test_a_file_that_computes_something_else_does_not_agree(
    fake_converter: Path, tmp_path: Path
) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return y + x, y + x

    graph = float_layer("add", np.random.default_rng(0))
    part = Part(graph, graph, 1.0, TorchStep(Sum(), STEP.arguments))
    assert benchmark._oracle([part], tmp_path, FLOAT).agrees is False


def test_a_converter_that_dies_is_an_error_and_is_started_anew(
    fake_converter: Path, tmp_path: Path
) -> None:
    text = fake_converter.read_text("utf-8")
    fake_converter.write_text("raise SystemExit('no memory')", "utf-8")
    with pytest.raises(BackendError, match="litert-torch ended with status 1: no memory"):
        convert(STEP, tmp_path / "x.tflite")
    fake_converter.write_text(text, "utf-8")
    assert convert(STEP, tmp_path / "x.tflite").path.is_file()


def test_a_file_without_a_whole_signature_is_refused(tmp_path: Path) -> None:
    converted_file(str(tmp_path / "x.tflite"), signed=False)
    with pytest.raises(ExportError, match="expected a signature of all inputs and outputs"):
        ConvertedFile(tmp_path / "x.tflite")


def test_calls_hand_states_on_and_leave_out_those_of_no_elements() -> None:
    class Sums(StreamingLayer):
        def initial_state(self, batch: int = 1) -> tuple[Tensor, ...]:
            return torch.zeros(batch, 0, 3), torch.zeros(batch, 3)

        def step(self, chunk: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
            total = state[1] + chunk.sum(1)
            return total, (state[0], total)

        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            raise NotImplementedError

    step = TorchStep.of_stream(Sums(), 2, 3)
    assert [tuple(one.shape) for one in step.arguments] == [(1, 2, 3), (1, 3)]
    total = np.zeros((1, 3), np.float32)
    for features, state in step.calls(3):
        np.testing.assert_array_equal(state.numpy(), total)
        total = total + features.sum(1).numpy()
        for result in step.results([features, state]):
            np.testing.assert_array_equal(result, total)
