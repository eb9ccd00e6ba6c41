"""Calibration and quantisation: true ranges, shared scales, safe integers, refusals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_imputer.errors import ExportError
from edge_imputer.export.build import build_graphs
from edge_imputer.export.builder import GraphBuilder
from edge_imputer.export.calibration import BINS, Calibration, Histogram
from edge_imputer.export.fidelity import node_fidelity
from edge_imputer.export.graph import SHARES_SCALE, Array, Graph, Op, Tensor
from edge_imputer.export.lowering import GRU_GAP, GRU_STATE
from edge_imputer.export.op_params import AccumulatorParams, op_params
from edge_imputer.export.quantize import (
    OUTPUT_QUANT,
    SATURATION,
    params_of_range,
    quantise,
    saturated_ranges,
    scale_groups,
    weight_scales,
)
from edge_imputer.export.reference import run_float, run_int, zero_feeds
from edge_imputer.export.simulate import calibrate_and_quantise, reference_backend
from edge_imputer.pipeline import StreamingDecoder
from edge_imputer.quantization import QuantParams, dequantize, quantize

from .fakes import Described
from .graphs import feed, int_layer, model_spec, modules, small_model, waveforms


def test_range_of_an_activation_is_the_true_minimum_and_maximum() -> None:
    _, encoder, _, _, _ = small_model()
    calibration, rng = Calibration(encoder), np.random.default_rng(0)
    seen = [calibration.run(feed(encoder, rng)) for _ in range(7)]
    for name, (low, high) in calibration.ranges.items():
        assert low == min(values[name].min() for values in seen)
        assert high == max(values[name].max() for values in seen)
    activations = {n for n, t in encoder.tensors.items() if t.data is None}
    assert set(calibration.ranges) == activations


def test_sequence_carries_the_state() -> None:
    _, encoder, _, _, _ = small_model()
    chunks = [feed(encoder, np.random.default_rng(k))["features"] for k in range(4)]
    results = Calibration(encoder).run_sequence(chunks)
    feeds = zero_feeds(encoder)
    for chunk, result in zip(chunks, results, strict=True):
        values = run_float(encoder, {**feeds, "features": chunk})
        for name in encoder.outputs:
            np.testing.assert_array_equal(result[name], values[name])
        feeds.update({before: values[after] for before, after in encoder.state_pairs})


@given(low=st.floats(-1e6, 1e6), high=st.floats(-1e6, 1e6))
def test_int8_parameters_cover_the_range_and_hold_zero_exactly(low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    assume(max(high, 0) - min(low, 0) > 1e-30)
    params = params_of_range(low, high)
    assert params.scale == np.float32(params.scale)
    ends = dequantize(np.array([-128, 127], np.int8), params)
    assert ends[0] <= min(low, 0) + 0.501 * params.scale
    assert ends[1] >= max(high, 0) - 0.501 * params.scale
    zero = quantize(np.zeros(1, np.float32), params)
    assert zero[0] == params.zero_point
    assert dequantize(zero, params)[0] == 0


@pytest.mark.parametrize("which", ["encoder", "imputer"])
def test_tensors_that_are_not_requantised_share_one_scale(which: str) -> None:
    model = small_model()
    graph = model.encoder if which == "encoder" else model.imputer
    for op in graph.ops:
        if op.kind in SHARES_SCALE or op.kind == "embedding":
            quants = [graph.tensors[n].quant for n in (*op.inputs, op.output)]
            present = [q for q in quants if q is not None]  # token ids have none
            assert all(q == present[0] for q in present)
        if op.kind == "sigmoid":
            assert graph.tensors[op.output].quant == QuantParams(scale=1 / 256, zero_point=-128)
        if op.kind == "tanh":
            assert graph.tensors[op.output].quant == QuantParams(scale=1 / 128, zero_point=0)
    for before, after in graph.state_pairs:
        assert graph.tensors[before].quant == graph.tensors[after].quant


def test_head_reads_frames_as_the_encoder_writes_them() -> None:
    _, _, _, encoder, imputer = small_model()
    assert encoder.tensors["encoder_out"].quant is not None
    assert encoder.tensors["encoder_out"].quant == imputer.tensors["encoder_window"].quant


def test_shared_scale_covers_the_whole_group() -> None:
    _, encoder, _, _, _ = small_model()
    calibration = Calibration(encoder)
    for seed in range(4):
        calibration.run(feed(encoder, np.random.default_rng(seed)))
    quantised = quantise(encoder, calibration.ranges)
    ranges = saturated_ranges(encoder, calibration.ranges)
    for group in scale_groups(encoder):
        low, high = (f(ranges[n][k] for n in group) for k, f in enumerate((min, max)))
        if any(op.output in group and op.kind in ("sigmoid", "tanh") for op in encoder.ops):
            continue
        if encoder.structural_quant.keys() & set(group):
            continue
        for name in group:
            assert quantised.tensors[name].quant == params_of_range(low, high)


@given(seed=st.integers(0, 2**32), exponent=st.integers(-30, 30))
@settings(max_examples=30, deadline=None)
def test_weights_fill_their_range_and_biases_fit(seed: int, exponent: int) -> None:
    rng = np.random.default_rng(seed)
    spread = 10.0 ** rng.uniform(-12, 3, (5, 1))  # channels of very different size
    weight = (rng.standard_normal((5, 7)) * spread).astype(np.float32)
    weight[rng.integers(5)] = 0
    bias = rng.standard_normal(5).astype(np.float32)
    x = QuantParams(scale=float(np.float32(2.0**exponent)), zero_point=0)
    scales = weight_scales(weight, bias, x)
    assert scales.dtype == np.float32
    assert (scales > 0).all()
    assert np.isfinite(scales).all()
    levels = np.abs(np.rint(weight / scales[:, None].astype(np.float64)))
    assert levels.max() <= 127
    wanted = np.abs(bias) / (x.scale * scales.astype(np.float64))
    assert wanted.max() <= 2**30 * (1 + 1e-6)
    untouched = (np.abs(weight).max(1) / 127 > 2 * np.abs(bias) / (x.scale * 2.0**30)) & (
        np.abs(weight).max(1) > 0
    )
    assert (levels.max(1)[untouched] == 127).all()


def test_integers_of_weights_and_biases_are_the_nearest() -> None:
    model = small_model()
    pairs = (model.float_encoder, model.encoder), (model.float_imputer, model.imputer)
    for graph, ints in pairs:
        for op in graph.ops:
            if op.kind not in ("conv2d", "fully_connected"):
                continue
            x, weight, bias = (ints.tensors[name] for name in op.inputs)
            assert x.quant is not None
            assert weight.weight_scales is not None
            scales = weight.weight_scales.astype(np.float64)
            real = graph.tensors[weight.name].data
            assert real is not None
            axes = (slice(None), *[None] * (real.ndim - 1))
            assert weight.data is not None
            assert np.abs(weight.data * scales[axes] - real).max() <= 0.5001 * scales.max()
            assert np.abs(weight.data.astype(int)).max() <= 127
            assert bias.data is not None
            assert bias.data.dtype == np.int32
            real = graph.tensors[bias.name].data
            assert real is not None
            error = bias.data * (x.quant.scale * scales) - real
            assert (np.abs(error) <= 0.5001 * x.quant.scale * scales).all()


def test_decoding_in_integers_stays_close_to_float() -> None:
    spec, float_encoder, float_imputer, encoder, imputer = small_model()
    decoders = [
        StreamingDecoder(Described(spec), backend=reference_backend(*pair, spec))
        for pair in ((float_encoder, float_imputer), (encoder, imputer))
    ]
    for waveform in waveforms(2, seed=5):
        chunks = [decoder.decode(waveform) for decoder in decoders]
        for a, b in zip(*chunks, strict=True):
            assert np.abs(a.log_probs - b.log_probs).max() < 0.35


def test_calibration_meets_every_pass_of_the_schedule() -> None:
    spec = model_spec(schedule=(1, 1, 1, 1))
    encoder, imputer = build_graphs(*modules(spec), spec)
    seen: list[int] = []
    calibration = Calibration(imputer)

    def watch(feeds: Mapping[str, Array]) -> dict[str, Array]:
        seen.append(int((feeds["alignment"] == spec.tokens.mask_id).sum()))
        return calibration.run(feeds)

    runs = (Calibration(encoder).run, watch)
    backend = reference_backend(encoder, imputer, spec, runs)
    chunks = StreamingDecoder(Described(spec), backend=backend).decode(waveforms(1)[0])
    assert len(seen) == 4 * len(chunks)
    # In pass k, k frames of the chunk are filled in, and k of every chunk of the left context.
    assert seen[:4] == [4, 3, 2, 1]


def tiny(weight: float = 1.0, bias: float = 0.0) -> Graph:
    g = GraphBuilder("tiny")
    x = g.input("x", (1, 2))
    matrix = np.array([[weight, 1.0]], np.float32)
    g.graph.outputs = [g.fully_connected("y", x, matrix, np.array([bias], np.float32))]
    return g.graph


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    ranges = {"x": (-1.0, 1.0), "y": (-1.0, 1.0)}
    for graph in (tiny(weight=bad), tiny(bias=bad)):
        with pytest.raises(ExportError, match="with 1 values that are not finite"):
            quantise(graph, ranges)


def test_calibration_refusals() -> None:
    graph = tiny()
    with pytest.raises(ExportError, match="at least one calibration call, got none"):
        _ = Calibration(graph).ranges
    with pytest.raises(ExportError, match="expected a calibrated range for y, got none"):
        quantise(graph, {"x": (-1.0, 1.0)})
    with pytest.raises(ExportError, match="y: expected a range of more than zero width"):
        quantise(graph, {"x": (-1.0, 1.0), "y": (0.0, 0.0)})
    with pytest.raises(ExportError, match="x is not finite on calibration data"):
        Calibration(graph).run({"x": np.array([[math.nan, 0]], np.float32)})
    with pytest.raises(ExportError, match="expected a float graph"):
        Calibration(int_layer("add", np.random.default_rng(0)))


def test_no_calibration_audio_is_refused() -> None:
    spec, encoder, imputer, _, _ = small_model()
    with pytest.raises(ExportError, match="at least one calibration call, got none"):
        calibrate_and_quantise(encoder, imputer, spec, [])


def test_fixed_parameters_win_and_must_not_contradict() -> None:
    graph, ranges = tiny(), {"x": (-1.0, 1.0), "y": (-1.0, 1.0)}
    fixed = QuantParams(scale=0.25, zero_point=3)
    assert quantise(graph, ranges, {"x": fixed}).tensors["x"].quant == fixed
    with pytest.raises(ExportError, match=r"unknown tensors \['z'\]"):
        quantise(graph, ranges, {"z": fixed})
    g = GraphBuilder("gate")
    g.graph.outputs = [g.unary("sigmoid", "y", g.input("x", (1, 2)))]
    with pytest.raises(ExportError, match="y: its parameters are always"):
        quantise(g.graph, ranges, {"y": fixed})
    g = GraphBuilder("joined")
    x, y = g.input("x", (1, 2)), g.input("y", (1, 2))
    g.graph.outputs = [g.concat("z", (x, y), 1)]
    with pytest.raises(ExportError, match="must share one scale"):
        quantise(g.graph, ranges, {"x": fixed, "y": QuantParams(scale=0.5, zero_point=3)})


def test_integers_that_could_overflow_are_refused() -> None:
    wide = {"x": (-1.0, 1.0), "y": (-1e-12, 1e-12)}
    with pytest.raises(ExportError, match=r"past int32|multiplier in \[0"):
        quantise(tiny(), wide)
    for kind in ("add", "sub", "mul"):
        g = GraphBuilder(kind)
        g.graph.outputs = [g.binary(kind, "z", g.input("x", (1, 2)), g.input("y", (1, 2)))]
        with pytest.raises(ExportError, match="too fine beside its inputs"):
            quantise(g.graph, {"x": (-1.0, 1.0), "y": (-1.0, 1.0), "z": (-1e-8, 1e-8)})


def test_scales_that_should_agree_are_checked_again() -> None:
    graph = int_layer("concat", np.random.default_rng(3))
    name = graph.ops[0].inputs[0]
    graph.tensors[name] = replace(graph.tensors[name], quant=QuantParams(scale=9.0, zero_point=0))
    with pytest.raises(ExportError, match="does not requantise"):
        op_params(graph, graph.ops[0])


def test_channel_of_zeros_gives_its_bias() -> None:
    g = GraphBuilder("zeros")
    weight = np.array([[0, 0], [1, -1]], np.float32)
    bias = np.array([0.75, 0.25], np.float32)
    g.graph.outputs = [g.fully_connected("y", g.input("x", (1, 2)), weight, bias)]
    graph = quantise(g.graph, {"x": (-1.0, 1.0), "y": (-2.0, 2.0)})
    quant = graph.tensors["y"].quant
    assert quant is not None
    for q in (-128, 0, 127):
        y = run_int(graph, {"x": np.full((1, 2), q, np.int8)})["y"]
        np.testing.assert_allclose(dequantize(y, quant), [[0.75, 0.25]], atol=quant.scale / 2)


def test_relu_is_clamped_at_the_zero_point() -> None:
    for seed in range(20):
        graph = int_layer("conv2d", np.random.default_rng(seed))
        params = op_params(graph, graph.ops[0])
        assert isinstance(params, AccumulatorParams)
        relu = graph.ops[0].attrs["relu"]
        assert params.clamp == (params.output_zero_point if relu else -128, 127)


def test_weight_with_two_users_needs_one_scale_of_their_inputs() -> None:
    graph = tiny()
    first = graph.ops[0]
    graph.inputs.append("other")
    graph.tensors["other"] = replace(graph.tensors["x"], name="other")
    graph.ops.append(replace(first, inputs=("other", *first.inputs[1:]), output="again"))
    graph.tensors["again"] = replace(graph.tensors["y"], name="again")
    ranges = dict.fromkeys(("x", "y", "other", "again"), (-1.0, 1.0))
    weight = quantise(graph, ranges).tensors[first.inputs[1]]
    np.testing.assert_array_equal(weight.data, quantise(tiny(), ranges).tensors[weight.name].data)
    with pytest.raises(ExportError, match="expected one scale of what it is multiplied with"):
        quantise(graph, {**ranges, "other": (-2.0, 1.0)})


@pytest.mark.parametrize(("kind", "limit"), sorted(SATURATION.items()))
def test_cut_range_of_a_saturating_input_changes_no_output(kind: str, limit: float) -> None:
    """At and beyond the limit the int8 output of the function is its last step."""
    scale, zero_point = OUTPUT_QUANT[kind].scale, OUTPUT_QUANT[kind].zero_point
    x = np.array([limit, 2 * limit, 50.0])
    y = np.stack([np.tanh(x), np.tanh(-x)])
    if kind == "sigmoid":
        y = 1 / (1 + np.exp(-np.stack([x, -x])))
    q = np.clip(np.rint(y / scale) + zero_point, -128, 127)
    assert np.all(q[0] == 127)
    assert np.all(q[1] == -128)


def test_only_inputs_of_saturating_functions_are_cut() -> None:
    graph = Graph(
        name="g",
        tensors={n: Tensor(n, (1, 2)) for n in "abcd"},
        ops=[Op("sigmoid", ("a",), "b"), Op("tanh", ("c",), "d"), Op("relu", ("d",), "e")],
        inputs=["a", "c"],
        outputs=["b", "e"],
    )
    ranges = dict.fromkeys("abcd", (-20.0, 5.0))
    cut = saturated_ranges(graph, ranges)
    assert cut == {**ranges, "a": (-6.5, 5.0), "c": (-3.25, 3.25)}
    graph.ops.append(Op("add", ("a", "c"), "f"))  # now something else reads both
    assert saturated_ranges(graph, ranges) == ranges


def test_what_saturates_behind_a_sum_or_a_move_is_cut_too() -> None:
    graph = Graph(
        name="g",
        tensors={n: Tensor(n, (1, 2)) for n in ("x", "part", "h", "sum", "out", "same")},
        ops=[
            Op("slice", ("x",), "part", {"begin": (0, 0), "size": (1, 2)}),
            Op("add", ("part", "h"), "sum"),
            Op("sigmoid", ("sum",), "out"),
        ],
        inputs=["x", "h"],
        outputs=["out"],
    )
    ranges = {"x": (-70.0, 60.0), "part": (-70.0, 50.0), "h": (-3.0, 2.0), "sum": (-71.0, 51.0)}
    ranges["out"] = (0.0, 1.0)
    cut = saturated_ranges(graph, ranges)
    # Beyond -8.5 the sum is beyond -6.5, whatever h is; h may have to bring back 70.
    assert cut["x"] == cut["part"] == (-8.5, 9.5)
    assert (cut["sum"], cut["h"], cut["out"]) == ((-6.5, 6.5), ranges["h"], ranges["out"])
    graph.ops.append(Op("tanh", ("x",), "same"))  # which needs less of it
    assert saturated_ranges(graph, ranges)["x"] == (-8.5, 9.5)
    graph.ops[-1] = Op("relu", ("x",), "same")  # and this one all
    assert saturated_ranges(graph, ranges)["x"] == ranges["x"]
    assert saturated_ranges(graph, ranges)["part"] == (-8.5, 9.5)


def test_difference_to_the_state_is_never_near_a_half() -> None:
    """Runtimes round halves differently; with calibrated scales one element in 400 did."""
    assert OUTPUT_QUANT["tanh"] == GRU_STATE
    steps = np.arange(-255, 256) * GRU_STATE.scale / GRU_GAP.scale
    assert np.abs(steps).max() < 127
    assert np.abs(steps - np.floor(steps) - 0.5).min() > 1e-3


def test_gru_states_take_the_scale_of_tanh() -> None:
    _, _, _, encoder, imputer = small_model()
    for name, tensor in encoder.tensors.items():
        if name.startswith("gru") and name.endswith("state"):
            assert tensor.quant == GRU_STATE
        if name.endswith(".gap"):
            assert tensor.quant == GRU_GAP
    assert imputer.tensors["encoder_window"].quant == GRU_STATE


# ------------------------------------------------------------------------------ other ranges


@given(seed=st.integers(0, 2**32), share=st.floats(0.6, 1.0))
@settings(max_examples=30, deadline=None)
def test_a_percentile_covers_its_share(seed: int, share: float) -> None:
    """To a bin; however the values come, and however the histogram had to grow."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(rng.normal(), 10 ** rng.uniform(-3, 1), 400) for _ in range(4)]
    histogram = Histogram()
    for part in parts:
        histogram.add(part.astype(np.float32))
    values = np.concatenate(parts).astype(np.float32)
    low, high = histogram.percentile(share)
    inside = np.mean((values >= low) & (values <= high))
    assert inside >= share - 1e-9
    assert histogram.low <= low < high <= histogram.high
    width = 2 * np.abs(values).max() * 2 / BINS
    cut = (1 - share) / 2
    assert low >= np.quantile(values, cut, method="lower") - width
    assert high <= np.quantile(values, 1 - cut, method="higher") + width


def test_the_least_error_clips_outliers_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    plain, spoilt = Histogram(), Histogram()
    bell = rng.uniform(-1, 1, 20_000).astype(np.float32)
    plain.add(bell)
    for _ in range(30):
        spoilt.add(bell)
    spoilt.add(np.array([3.0], np.float32))
    low, high = plain.least_error()
    assert (low, high) == pytest.approx((-1, 1), abs=0.02)
    low, high = spoilt.least_error()
    assert low == pytest.approx(-1, abs=0.02)
    assert 0.9 < high < 1.5  # one value in 600,000 is not worth a third of the steps


def test_methods_of_calibration() -> None:
    encoder = small_model().float_encoder
    rng = np.random.default_rng(0)
    chunks = [
        rng.standard_normal(encoder.tensors["features"].shape).astype(np.float32) for _ in range(60)
    ]
    ranges = {}
    for method in ("min-max", "percentile", "mse"):
        calibration = Calibration(encoder, method, percentile=99.0)  # type: ignore[arg-type]
        calibration.run_sequence(chunks)
        ranges[method] = calibration.ranges
        assert quantise(encoder, calibration.ranges).quantised
    for name, (low, high) in ranges["min-max"].items():
        for method in ("percentile", "mse"):
            assert min(low, 0.0) - 1e-6 <= ranges[method][name][0]
            assert ranges[method][name][1] <= max(high, 0.0) + 1e-6
    x = ranges["percentile"]["features"]
    assert x[0] > ranges["min-max"]["features"][0]
    with pytest.raises(ExportError, match="expected a method among min-max, percentile, mse"):
        Calibration(encoder, "entropy")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="percentile above 50"):
        Calibration(encoder, "percentile", percentile=1.0)


# ------------------------------------------------------------------------------ fidelity


def test_fidelity_of_every_node() -> None:
    small = small_model()
    rng = np.random.default_rng(1)
    shape = small.float_encoder.tensors["features"].shape
    chunks = [rng.normal(0, 0.4, shape).astype(np.float32) for _ in range(30)]
    rows = node_fidelity(small.float_encoder, small.encoder, chunks)
    assert [(row.output, row.kind) for row in rows] == [
        (op.output, op.kind) for op in small.encoder.ops
    ]
    assert all(10 < row.snr_db < 80 for row in rows)
    assert all(0 <= row.clipped < 1 for row in rows)
    loud = node_fidelity(small.float_encoder, small.encoder, [100 * chunk for chunk in chunks])
    assert loud[0].clipped > 0.5
    assert loud[0].snr_db < rows[0].snr_db
    with pytest.raises(ExportError, match="at least one chunk"):
        node_fidelity(small.float_encoder, small.encoder, [])
    with pytest.raises(ExportError, match="one graph in two forms"):
        node_fidelity(small.float_encoder, small.imputer, chunks)
