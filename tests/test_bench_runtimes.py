"""What `make bench-runtimes` computes and writes, on small models; native C of any graph."""

from __future__ import annotations

import ast
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edge_imputer.cli import bench_runtimes as command
from edge_imputer.cli.main import main
from edge_imputer.errors import BackendError, EdgeImputerError
from edge_imputer.export import benchmark, oracle
from edge_imputer.export.benchmark import (
    FLOAT,
    FORMS,
    INT8,
    NATIVE,
    Row,
    build,
    measure,
)
from edge_imputer.export.graph import Array, Graph
from edge_imputer.export.oracle import ORACLE, as_arrays
from edge_imputer.export.reference import run_float, run_int
from edge_imputer.export.runtimes import ALL_RUNTIMES, load_runtime
from edge_imputer.firmware_bridge.compiled import CompiledGraph
from edge_imputer.specs import PRESETS

from .graphs import feeds, small_model
from .processes import run_python
from .test_lowering import SMALL, quantised


@pytest.fixture(autouse=True)
def _no_oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """litert-torch takes its time: `test_litert_oracle` has it."""
    monkeypatch.setenv(oracle.ENVIRONMENT.variable, str(tmp_path / "no python"))


@pytest.fixture
def small_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets of two encoders that take no time, one of them over windows."""
    for name in ("crnn", "cnn-windowed"):
        monkeypatch.setitem(PRESETS, name, SMALL[name])
    monkeypatch.setattr(benchmark, "TURN_S", 1e-4)


# ------------------------------------------------------------------------------ native C


@pytest.mark.parametrize("name", ["digits", "head", "cnn-windowed"])
def test_any_graph_as_c_gives_the_integers(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = small_model()
    graphs = {"digits": model.encoder, "head": model.imputer}
    graph = graphs[name] if name in graphs else quantised(name)[1]
    compiled = CompiledGraph(graph)
    for inputs in feeds(graph, np.random.default_rng(0)):
        given = [inputs[key] for key in graph.inputs]
        kept = [array.copy() for array in given]
        results, values = compiled.run(given), run_int(graph, inputs)
        for key, result in zip(graph.outputs, results, strict=True):
            np.testing.assert_array_equal(result, values[key])
            assert result.dtype == values[key].dtype
        for array, before in zip(given, kept, strict=True):
            np.testing.assert_array_equal(array, before)
        again = compiled.run(given)
        for one, other in zip(results, again, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one is not other


def test_c_refuses_other_arrays_and_tokens() -> None:
    graph = small_model().imputer
    compiled = CompiledGraph(graph)
    (inputs,) = feeds(graph, np.random.default_rng(0), 1)
    window, ids = (inputs[name] for name in graph.inputs)
    with pytest.raises(BackendError, match="expected inputs"):
        compiled.run([window.astype(np.float32), ids])
    with pytest.raises(BackendError, match="expected inputs"):
        compiled.run([window])
    with pytest.raises(BackendError, match="expected tokens that the embedding's table has"):
        compiled.run([window, np.full_like(ids, 99)])


# ------------------------------------------------------------------------------ rows


def test_rows_of_a_streaming_preset(small_presets: None, tmp_path: Path) -> None:
    rows = measure("crnn", tmp_path, CompiledGraph, rounds=2)
    here = [(r, d) for r, d in FORMS if ALL_RUNTIMES[r].absence() is None]
    assert [(r.runtime, r.dtype) for r in rows] == [*here, (NATIVE, INT8)]
    # a step is 40 ms; 8 passes a chunk of 320 ms
    assert [part.calls_per_s for part in build("crnn")] == [25, 25]
    for row in rows:
        assert row.preset == "crnn"
        assert row.agrees_with_reference
        assert row.refusal is None
        assert row.us_per_step is not None
        assert row.ms_per_s_audio is not None
        assert row.ms_per_s_audio > 25 * row.us_per_step / 1e3 * 0.99  # and the head
        assert row.bytes > 1000
    sizes = {(r.runtime, r.dtype): r.bytes for r in rows}
    assert sizes["litert", FLOAT] > sizes["litert", INT8] > sizes[NATIVE, INT8]


def test_rows_of_windows_and_without_a_compiler(small_presets: None, tmp_path: Path) -> None:
    rows = measure("cnn-windowed", tmp_path, None, rounds=1)
    assert NATIVE not in {row.runtime for row in rows}
    (part,) = build("cnn-windowed")
    assert part.calls_per_s == 10
    for row in rows:
        assert row.us_per_step is not None
        assert row.ms_per_s_audio == pytest.approx(row.us_per_step / 100, abs=1e-3)


def test_a_runtime_that_refuses_has_a_row(
    small_presets: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(graph: Graph, runtime: str, folder: Path) -> object:
        if runtime == "tflite-micro":
            raise BackendError("too many inputs")
        return load_runtime(graph, runtime, folder)

    monkeypatch.setattr(benchmark, "load_runtime", refuse)
    rows = {(r.runtime, r.dtype): r for r in measure("cnn-windowed", tmp_path, None, rounds=1)}
    row = rows["tflite-micro", INT8]
    assert row == Row("cnn-windowed", "tflite-micro", INT8, None, None, 0, False, "too many inputs")
    assert rows["litert", INT8].refusal is None


def test_a_runtime_that_computes_something_else_does_not_agree(
    small_presets: None, tmp_path: Path
) -> None:
    class Off(CompiledGraph):
        def run(self, inputs: Sequence[Array]) -> list[Array]:
            first, *others = super().run(inputs)
            first.flat[0] ^= 1
            return [first, *others]

    rows = measure("cnn-windowed", tmp_path, Off, rounds=1)
    assert [r.runtime for r in rows if not r.agrees_with_reference] == [NATIVE]


def test_agreement_is_within_steps_or_a_share_of_the_largest() -> None:
    floats = [[np.array([[-200.0, 1.0]], np.float32)]]
    near, far = [[floats[0][0] + 0.01]], [[floats[0][0] + 0.03]]
    assert benchmark._agree(near, floats, exact=False)
    assert not benchmark._agree(far, floats, exact=False)
    ints = [[np.zeros((4,), np.int8)]]
    assert benchmark._agree([[np.full(4, 3, np.int8)]], ints, exact=False)
    assert not benchmark._agree([[np.full(4, 4, np.int8)]], ints, exact=False)
    assert not benchmark._agree([[np.full(4, 1, np.int8)]], ints, exact=True)


def test_the_median_is_of_rounds_in_which_runtimes_take_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    clock = itertools.count(0, 5_000_000)  # 5 ms between two looks at it: one call fills a turn
    monkeypatch.setattr(time, "thread_time_ns", lambda: next(clock))
    contenders = [
        benchmark._Contender(name, INT8, [lambda name=name: order.append(name)], 0, True)  # type: ignore[misc]
        for name in "ab"
    ]
    assert benchmark._take_turns(contenders, 3) == [[5000.0], [5000.0]]
    turns = ["a", "b", "b", "a", "a", "b"]  # each begins with a call that is not timed
    assert order == ["a", "a", "b", "b", *(name for name in turns for _ in range(2))]


# ------------------------------------------------------------------------------ the oracle


def test_without_its_environment_there_is_no_row_and_how_to_make_one_is_said(
    small_presets: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(oracle.ENVIRONMENT.variable, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    rows = measure("cnn-windowed", tmp_path, None, rounds=1)
    assert ORACLE not in {row.runtime for row in rows}
    assert "make one with: make litert-oracle" in (oracle.ENVIRONMENT.absence() or "")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_steps_for_the_converter_compute_what_our_graphs_do(
    small_presets: None, index: int
) -> None:
    part = build("crnn")[index] if index < 2 else build("cnn-windowed")[0]
    arguments = part.step.arguments
    feeds = {
        name: array.reshape(part.floats.tensors[name].shape)
        for name, array in zip(part.floats.inputs, as_arrays(arguments), strict=True)
    }
    wanted = run_float(part.floats, feeds)[part.floats.outputs[0]]  # states have other layouts
    got = part.step.results(arguments)[0]
    np.testing.assert_allclose(got.reshape(wanted.shape), wanted, atol=1e-5)


def test_ratios_are_of_the_encoders_step() -> None:
    def row(name: str, runtime: str, us: float | None, dtype: str = FLOAT) -> Row:
        return Row(name, runtime, dtype, us, 1.0, 1, True)

    rows = [row("a", "litert", 9.0), row("a", ORACLE, 10.0), row("b", "litert", 1.0)]
    rows += [row("a", "litert", 4.0, INT8), row("a", ORACLE, 2.0, INT8), row("b", ORACLE, None)]
    floats = {"float32_us": 9.0, "float32_theirs_us": 10.0, "float32_ratio": 0.9}
    ints = {"int8_us": 4.0, "int8_theirs_us": 2.0, "int8_ratio": 2.0}
    assert benchmark.beside_oracle(rows) == [{"preset": "a", **floats, **ints}]


# ------------------------------------------------------------------------------ the command


@pytest.fixture
def quick(small_presets: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    cost = {"export_s": 1.5, "export_peak_mb": 400.0}
    monkeypatch.setattr(command, "export_apart", lambda name: cost)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_the_command_prints_a_table_and_one_json_object(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("runtimes", "--preset", "cnn-windowed", "--out", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "cnn-windowed: median CPU time" in printed
    figures = json.loads(printed.splitlines()[-1])
    assert figures == json.loads((tmp_path / "runtimes.json").read_text("utf-8"))
    assert figures["bench"] == "runtimes"
    assert figures["export_s"] == 1.5
    assert {(row["preset"], row["runtime"]) for row in figures["rows"]} >= {
        ("cnn-windowed", "native"),
        ("cnn-windowed", "onnxruntime"),
    }
    keys = {"preset", "runtime", "dtype", "us_per_step", "ms_per_s_audio", "bytes"}
    assert keys | {"agrees_with_reference"} <= set(figures["rows"][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("runtimes", "--preset", "tcn-30"), "did you mean tcn-30k"),
        (("latency", "--preset", "tcn-30k"), "presets go with runtimes only"),
        (("runtimes", "--bundle", "x"), "which takes no bundle"),
        (("nothing",), "expected a benchmark among latency"),
    ],
)
def test_bad_arguments(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_export_of_windows_is_not_timed() -> None:
    with pytest.raises(EdgeImputerError, match="expected an encoder that streams"):
        command.export_cost("cnn-windowed-229k")


def test_memory_of_another_process_is_its_own() -> None:
    """What a process that starts another holds does not count for that one."""
    held = np.ones(300 << 20, np.uint8)
    code = f"import tests.conftest; from {command.__name__} import _peak_mb; print(_peak_mb())"
    assert 5 < float(run_python(code)) < 250 < held.nbytes / 1e6


@pytest.mark.slow
def test_the_largest_preset_is_exported_in_half_a_minute_and_2_gb() -> None:
    code = f"import tests.conftest; from {command.__name__} import *; print(export_cost(LARGEST))"
    cost = ast.literal_eval(run_python(code))
    assert 0 < cost["export_s"] <= 30
    assert 100 < cost["export_peak_mb"] <= 2000
