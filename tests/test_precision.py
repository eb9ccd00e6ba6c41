"""Which sums are int16: what is written between the precisions, and how they are chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edge_imputer.cli.export import write_reports
from edge_imputer.errors import ExportError
from edge_imputer.export.build import build_encoder_graph, build_graphs
from edge_imputer.export.builder import GraphBuilder
from edge_imputer.export.calibration import SOFTMAX_REACH, Calibration, softmax_inputs
from edge_imputer.export.fidelity import Run, decibels, node_fidelity
from edge_imputer.export.graph import Array, Graph
from edge_imputer.export.lowering.attention import masked
from edge_imputer.export.lowering.context import Lowering
from edge_imputer.export.memory import tensor_bytes
from edge_imputer.export.onnx_emitter import onnx_model, write_onnx
from edge_imputer.export.parity import RUNTIMES, load_runtime, same_arrays
from edge_imputer.export.precision import candidates, widened
from edge_imputer.export.quantize import WIDE_HEADROOM, quantise
from edge_imputer.export.quantize_report import GraphReport, graph_report
from edge_imputer.export.reference import Interpreter, run_float, run_int, zero_feeds
from edge_imputer.export.sensitivity import Quantisation, quantise_calibrated
from edge_imputer.export.simulate import calibrate_and_quantise
from edge_imputer.export.tflite_emitter import write_tflite
from edge_imputer.export.tflite_reader import read_tflite
from edge_imputer.quantization import QuantParams, dequantize, quantize

from .c_layers import compile_graphs, run_graphs
from .graphs import feed, model_spec, small_model, waveforms
from .graphs import modules as model_modules
from .test_lowering import SMALL, features, modules

MIXED = Quantisation(precision="mixed", snr_db=90)  # as good as it gets


@cache
def conformer() -> Calibration:
    """A small conformer, calibrated."""
    graph = build_encoder_graph(modules(SMALL["conformer"]))
    calibration = Calibration(graph)
    calibration.run_sequence([c.numpy()[..., np.newaxis] for c in features(graph, 24, seed=5)])
    return calibration


@cache
def mixed() -> Graph:
    """The same with all its sums in int16."""
    calibration = conformer()
    return quantise(widened(calibration.graph, candidates(calibration.graph)), calibration.ranges)


def stream(graph: Graph, n: int = 6) -> list[dict[str, Array]]:
    """Inputs of a stream in integers."""
    quant = graph.tensors["features"].quant
    assert quant is not None
    interpreter, feeds, calls = Interpreter(graph), zero_feeds(graph), []
    for sample in conformer().samples[:n]:
        feeds = feeds | {"features": quantize(sample["features"], quant)}
        calls.append(feeds)
        values = interpreter.run(feeds)
        feeds = feeds | {before: values[after] for before, after in graph.state_pairs}
    return calls


# ------------------------------------------------------------------------------ the graph


def residual() -> Graph:
    """Two branches on a stream that is relu'd in the end."""
    g = GraphBuilder("residual")
    x = g.input("x", (2, 3))
    y = g.unary("tanh", "first", x)
    x = g.binary("add", "one", x, y)
    x = g.binary("sub", "two", x, g.unary("tanh", "second", x))
    g.graph.outputs = [g.unary("relu", "out", x)]
    return g.graph


def test_conversions_stand_where_the_precision_changes_and_once() -> None:
    graph = widened(residual(), ["one", "two"])
    assert [(op.kind, op.inputs, op.output) for op in graph.ops] == [
        ("tanh", ("x",), "first"),
        ("requantise", ("x",), "x.int16"),
        ("requantise", ("first",), "first.int16"),
        ("add", ("x.int16", "first.int16"), "one"),
        ("requantise", ("one",), "one.int8"),
        ("tanh", ("one.int8",), "second"),
        ("requantise", ("second",), "second.int16"),
        ("sub", ("one", "second.int16"), "two"),
        ("requantise", ("two",), "two.int8"),
        ("relu", ("two.int8",), "out"),
    ]
    inputs = feed(graph, np.random.default_rng(0))
    np.testing.assert_array_equal(
        run_float(graph, inputs)["out"], run_float(residual(), inputs)["out"]
    )


def test_types_and_scales_of_both_precisions() -> None:
    ranges = {"x": (-1.0, 3.0), "first": (-1.0, 1.0), "one": (-2.0, 4.0), "two": (-2.0, 4.0)}
    ranges |= {"second": (-1.0, 1.0), "out": (0.0, 4.0)}
    graph = quantise(widened(residual(), ["one", "two"]), ranges)
    wide = {name for name, t in graph.tensors.items() if t.dtype == "int16"}
    assert wide == {"one", "two", "x.int16", "first.int16", "second.int16"}
    x, copy, one = (graph.tensors[name].quant for name in ("x", "x.int16", "one"))
    assert x is not None
    assert copy == QuantParams(scale=x.scale / 128, zero_point=0)
    assert one == QuantParams(scale=float(np.float32(WIDE_HEADROOM * 4 / 32767)), zero_point=0)
    assert tensor_bytes(graph, "one") == 2 * tensor_bytes(graph, "x") == 12
    values = run_int(graph, {"x": np.full((2, 3), 127, np.int8)})  # loud beyond calibration
    assert np.abs(values["one"].astype(int)).max() < 32767


def test_what_cannot_be_int16_is_refused() -> None:
    graph = residual()
    assert candidates(graph) == ["one", "two"]
    for name in ("out", "first", "x", "nothing"):
        with pytest.raises(ExportError, match=f"neither inputs nor outputs, got .'{name}'"):
            widened(graph, [name])
    graph.outputs = ["two"]
    assert candidates(graph) == ["one"]
    with pytest.raises(ExportError, match="expected a float graph"):
        widened(mixed(), [])
    assert widened(graph, []).ops == graph.ops


# ------------------------------------------------------------------------------ runtimes


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_mixed_graph_runs_everywhere(runtime: str, tmp_path: Path) -> None:
    graph = mixed()
    model = load_runtime(graph, runtime, tmp_path)
    worst, shares = 0, []
    for inputs in stream(graph):
        expected = run_int(graph, inputs)
        for name, result in zip(
            graph.outputs, model.run([inputs[n] for n in graph.inputs]), strict=True
        ):
            assert result.dtype == np.int8
            steps = np.abs(result.astype(int) - expected[name])
            worst = max(worst, int(steps.max()))
            shares.append(float((steps > 1).mean()))
    assert worst <= 12
    assert np.mean(shares) < 0.12


def test_mixed_files_hold_the_graph(tmp_path: Path) -> None:
    graph = mixed()
    write_onnx(graph, tmp_path / "x.onnx")
    write_tflite(graph, tmp_path / "x.tflite")
    same_arrays(graph, tmp_path / "x.onnx", tmp_path / "x.tflite")
    again = read_tflite(tmp_path / "x.tflite", n_states=graph.n_states)
    for inputs in stream(graph, 2):
        outs = run_int(again, dict(zip(again.inputs, inputs.values(), strict=True)))
        for name, other in zip(graph.outputs, again.outputs, strict=True):
            np.testing.assert_array_equal(run_int(graph, inputs)[name], outs[other])
    assert onnx_model(graph).opset_import[0].version == 21
    assert onnx_model(small_model().encoder).opset_import[0].version == 17


def test_a_mixed_graph_in_c(tmp_path: Path) -> None:
    """To the byte, over a stream, with what leaves its memory noticed."""
    graph = replace(mixed())  # it is given another name
    calls = stream(graph, 3)
    program = compile_graphs([graph], tmp_path, ("-O1", "-fsanitize=undefined"))
    for inputs, outputs in zip(calls, run_graphs(program, [(graph, calls)])[0], strict=True):
        expected = run_int(graph, inputs)
        for name in graph.outputs:
            np.testing.assert_array_equal(outputs[name], expected[name])


# ------------------------------------------------------------------------------ the choice


@cache
def deep() -> Calibration:
    """A residual stream of many small branches, which int8 rounds again and again."""
    rng, g = np.random.default_rng(0), GraphBuilder("deep")
    x = g.input("x", (4, 16))
    for k in range(10):
        weight = (rng.standard_normal((16, 16)) * 0.06).astype(np.float32)
        branch = g.fully_connected(f"branch{k}", x, weight, np.zeros(16, np.float32))
        x = g.binary("add", f"sum{k}", x, branch)
    g.graph.outputs = [g.unary("tanh", "out", x)]
    calibration = Calibration(g.graph)
    for _ in range(20):
        calibration.run({"x": rng.standard_normal((4, 16)).astype(np.float32)})
    return calibration


def test_fewest_sums_that_meet_the_ratio() -> None:
    """The more is asked for, the more are int16; one fewer would not meet it."""
    calibration = deep()
    _, best = quantise_calibrated(calibration, MIXED)
    assert best.int8_snr_db is not None
    assert list(best.alone_db) == candidates(calibration.graph)
    chosen = []
    for snr_db in (best.int8_snr_db - 0.1, best.int8_snr_db + 1.5, 90.0):
        options = replace(MIXED, snr_db=snr_db)
        graph, choice = quantise_calibrated(calibration, options)
        assert quantise_calibrated(calibration, options)[1] == choice
        assert snr_db == 90.0 or output_snr(calibration, graph) >= snr_db
        chosen.append(choice.wide)
    assert 0 == len(chosen[0]) < len(chosen[1]) < len(chosen[2])
    cheapest = max(chosen[1], key=lambda name: best.alone_db[name])
    fewer = widened(calibration.graph, set(chosen[1]) - {cheapest})
    without = output_snr(calibration, quantise(fewer, calibration.ranges))
    assert without < best.int8_snr_db + 1.5


def output_snr(calibration: Calibration, graph: Graph) -> float:
    return node_fidelity(calibration.graph, graph, calibration.samples)[-1].snr_db


def test_int16_that_mends_nothing_is_not_used() -> None:
    """A sum of int8 that is read as int8 is rounded as often in either precision."""
    g = GraphBuilder("once")
    x = g.input("x", (4, 16))
    total = g.binary("add", "sum", x, g.unary("tanh", "branch", x))
    g.graph.outputs = [g.unary("tanh", "out", total)]
    calibration, rng = Calibration(g.graph), np.random.default_rng(0)
    for _ in range(20):
        calibration.run({"x": rng.standard_normal((4, 16)).astype(np.float32)})
    assert candidates(g.graph) == ["sum"]
    graph, choice = quantise_calibrated(calibration, MIXED)
    assert choice.wide == ()
    assert not graph.wide


def test_int8_is_left_alone_where_it_suffices() -> None:
    spec, encoder, imputer, *int8 = small_model()
    options = Quantisation(precision="mixed", snr_db=5.0)
    graphs = calibrate_and_quantise(encoder, imputer, spec, waveforms(2), options)
    plain = calibrate_and_quantise(encoder, imputer, spec, waveforms(2))
    for graph, same in zip(graphs, plain, strict=True):
        assert onnx_model(graph).SerializeToString() == onnx_model(same).SerializeToString()
    assert [len(graph.ops) for graph in int8] == [len(graph.ops) for graph in graphs]


def test_options_are_checked() -> None:
    with pytest.raises(ExportError, match="min-max, percentile, mse, got 'entropy'"):
        Quantisation(calibration="entropy")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="expected one of int8, mixed, got 'int4'"):
        Quantisation(precision="int4")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="between 0 and 100 dB, got nan"):
        Quantisation(snr_db=float("nan"))


# ------------------------------------------------------------------------------ masks


def attention(scale: float, offset: float) -> tuple[Graph, dict[str, Array]]:
    """Scores of a range, of which half the keys are masked, through softmax, in int8."""
    low = Lowering("attention")
    g = low.g
    x = g.input("x", (2, 6, 8))
    visible = np.tile(np.where(np.arange(8) % 2 == 0, 0.5, -0.5), (1, 6, 1)).astype(np.float32)
    gain = g.constant("gain", np.full((1, 1, 1), scale, np.float32))
    shift = g.constant("shift", np.full((1, 1, 1), offset, np.float32))
    scores = g.binary("add", "scores", g.binary("mul", "scaled", x, gain), shift)
    g.graph.outputs = [g.unary("softmax", "weights", masked(low, "m", scores, visible))]
    calibration = Calibration(g.graph)
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = calibration.run({"x": rng.standard_normal((2, 6, 8)).astype(np.float32)})
    graph = quantise(g.graph, calibration.ranges)
    quant = graph.tensors["x"].quant
    assert quant is not None
    return graph, {"x": quantize(values["x"], quant), "wanted": values["weights"]}


@pytest.mark.parametrize("offset", [0.1, -3.0, 5.0])
@pytest.mark.parametrize("scale", [1e-3, 0.05, 1.0, 20.0])
def test_a_masked_key_has_no_weight(scale: float, offset: float) -> None:
    """However narrow or wide the scores' range is, and wherever it lies."""
    graph, values = attention(scale, offset)
    weights = run_int(graph, {"x": values["x"]})["weights"]
    assert (weights[..., 1::2] == -128).all()
    real = dequantize(weights, QuantParams(scale=1 / 256, zero_point=-128))
    assert np.abs(real - values["wanted"]).max() < 0.08
    assert np.abs(real.sum(-1) - 1).max() < 0.05


def test_what_softmax_reads_reaches_as_far_as_its_int8_weights() -> None:
    assert np.exp(-SOFTMAX_REACH) < 1 / 512
    calibration = conformer()
    inputs = softmax_inputs(calibration.graph)
    assert inputs
    for name in inputs:
        low, high = calibration.ranges[name]
        assert SOFTMAX_REACH <= high - low < 100  # a mask is at -200
        assert name not in calibration.graph.saturating


# ------------------------------------------------------------------------------ the report


def test_report_of_a_choice(tmp_path: Path) -> None:
    calibration = deep()
    graph, choice = quantise_calibrated(calibration, MIXED)
    report = graph_report(calibration, graph, choice)
    assert [node.output for node in report.nodes] == [op.output for op in calibration.graph.ops]
    assert choice.int8_snr_db is not None
    assert report.snr_db > choice.int8_snr_db + 1
    assert 0 < report.kl < 0.1
    write_reports([report], tmp_path)
    figures = json.loads((tmp_path / "quantisation.json").read_text())
    assert figures["graphs"][0]["choice"]["wide"] == list(choice.wide)
    page = (tmp_path / "quantisation.md").read_text()
    assert all(f"| {node.output} | {node.kind} |" in page for node in report.nodes)
    assert (tmp_path / "quantisation.png").stat().st_size > 1000


def test_both_graphs_of_a_model_are_reported() -> None:
    spec = model_spec()
    reports: list[GraphReport] = []
    options = Quantisation(calibration="mse")
    encoder, imputer = build_graphs(*model_modules(spec), spec)
    calibrate_and_quantise(encoder, imputer, spec, waveforms(1), options, reports.append)
    assert [report.graph for report in reports] == ["encoder", "imputer"]
    assert all(report.calibration == "mse" and report.choice.wide == () for report in reports)
    assert all(report.snr_db > 8 and report.n_calls > 3 for report in reports)


def test_command_knows_its_options() -> None:
    from edge_imputer.cli.main import app

    result = CliRunner().invoke(app, ["export", "nothing.ckpt", "--calibration", "entropy"])
    assert result.exit_code == 2
    assert "entropy" in result.output
    result = CliRunner().invoke(app, ["export", "--help"])
    assert all(f"--{name}" in result.output for name in ("precision", "snr-db", "report"))


# ------------------------------------------------------------------------------ long streams


def test_noise_does_not_grow_in_a_stream_whose_states_are_never_reset() -> None:
    small = small_model()
    shape = small.float_encoder.tensors["features"].shape
    rng = np.random.default_rng(2)
    runs = [Run(graph) for graph in (small.float_encoder, small.encoder)]
    signal, noise = [], []
    for _ in range(800):
        chunk = {"features": rng.normal(0, 0.4, shape).astype(np.float32)}
        wanted, found = (run(chunk, "encoder_out") for run in runs)
        signal.append(float(np.square(wanted).sum()))
        noise.append(float(np.square(found - wanted).sum()))
    halves = slice(400), slice(400, 800)
    early, late = (decibels(sum(signal[half]), sum(noise[half])) for half in halves)
    assert late > early - 2
    assert late > 25


def test_activations_beyond_their_range_saturate_and_stay_there() -> None:
    """Not wrap around: what is ten times as loud as calibration is the end of the range."""
    calibration = deep()
    for wide in ([], candidates(calibration.graph)):
        graph = quantise(widened(calibration.graph, wide), calibration.ranges)
        for q, sign in ((127, 1), (-128, -1)):
            x = np.full(graph.tensors["x"].shape, q, np.int8)
            real = Run(graph).real(run_int(graph, {"x": x}), "sum0")
            loud = run_float(calibration.graph, {"x": np.full(x.shape, 10 * sign, np.float32)})[
                "sum0"
            ]
            assert (np.sign(real) == np.sign(loud)).all()


def test_steps_of_one_layer_stay_alike() -> None:
    """They share a scale, which cannot be that of int8 and of int16."""
    graph = build_encoder_graph(modules(SMALL["crnn-windowed"]))
    alike = {name for group in graph.alike for name in group}
    assert alike
    assert not alike & set(candidates(graph))


def test_what_a_gate_needs_is_passed_on_by_requantise() -> None:
    """Terms of an int16 sum before a sigmoid are cut as those of an int8 one are."""
    graph = build_encoder_graph(modules(SMALL["crnn"]))
    calibration = Calibration(graph)
    frames = [40 * c.numpy()[..., np.newaxis] for c in features(graph, 24, seed=5)]
    calibration.run_sequence(frames)
    wide = [name for name in candidates(graph) if name.endswith("rz_sum")]
    assert wide
    int8 = quantise(graph, calibration.ranges)
    mixed = quantise(widened(graph, wide), calibration.ranges)
    for name in wide:
        for x in next(op.inputs for op in graph.ops if op.output == name):
            assert mixed.tensors[x].quant == int8.tensors[x].quant


def test_clipped_is_what_lies_beyond_the_integers() -> None:
    calibration = conformer()
    graph = quantise(calibration.graph, calibration.ranges)
    report = graph_report(calibration, graph, quantise_calibrated(calibration, Quantisation())[1])
    masks = {op.output for op in graph.ops if op.output in graph.saturating}
    shares = {node.output: node.clipped for node in report.nodes if node.output not in masks}
    assert max(shares.values()) < 0.5
    assert min(shares.values()) == 0
