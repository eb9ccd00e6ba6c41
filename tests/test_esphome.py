"""A wake word for ESPHome: the integers of its graph, its file, and what the firmware refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import Builder

from edge_imputer.errors import ExportError, SpecError
from edge_imputer.export.build import build_keyword_graph, build_wake_word_graph
from edge_imputer.export.builder import GraphBuilder
from edge_imputer.export.calibration import Calibration
from edge_imputer.export.esphome import write_esphome_pack
from edge_imputer.export.esphome.contract import INPUT_QUANT, OPERATORS, check_file, check_spec
from edge_imputer.export.esphome.emitter import streaming_bytes
from edge_imputer.export.esphome.frames import as_frames, frame_shape
from edge_imputer.export.esphome.pack import ExactWakeWord
from edge_imputer.export.graph import Graph
from edge_imputer.export.quantize import quantise
from edge_imputer.export.reference import run_int, zero_feeds
from edge_imputer.export.tflite_emitter import tflite_bytes
from edge_imputer.microfrontend import Microfrontend, quantized
from edge_imputer.quantization import quantize
from edge_imputer.specs import (
    ConformerSpec,
    CrnnSpec,
    FeatureSpec,
    MicroSpec,
    TcnSpec,
    WindowedCnnSpec,
    WindowedCrnnSpec,
)

from .esphome_cases import (
    N_FRAMES,
    STEPS,
    changed,
    collect,
    litert,
    small_graph,
    wake_word_model,
)
from .graphs import waveforms

# ------------------------------------------------------------------------------ integers


def test_the_probability_is_that_of_the_model() -> None:
    """The float graph to float32, the integers to the rounding of an untrained network."""
    model = wake_word_model()
    floats = build_wake_word_graph(model)
    features = Microfrontend(MicroSpec())(waveforms()[-1])
    features = features[: len(features) // N_FRAMES * N_FRAMES]
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(features)[None], torch.tensor([len(features)]))
    expected = logits.softmax(-1)[0, :, 1].numpy()
    steps = features.reshape(-1, 1, N_FRAMES, 40, 1)
    found = [out["probability"][0, 0] for out in Calibration(floats).run_sequence(steps)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    exact = ExactWakeWord(small_graph())
    integers = [exact.step(quantized(frames)) for frames in steps[:, 0, :, :, 0]]
    assert np.ptp(expected) > 0.3
    np.testing.assert_allclose(np.array(integers) / 256, expected, atol=0.1)


def test_frames_in_a_row_compute_what_the_graph_did() -> None:
    floats = build_wake_word_graph(wake_word_model())
    watched = Calibration(floats)
    features = Microfrontend(MicroSpec())(waveforms()[-1])[: 20 * N_FRAMES]
    watched.run_sequence(features.reshape(-1, 1, N_FRAMES, 40, 1))
    before = quantise(floats, watched.ranges, {"features": INPUT_QUANT})
    after = as_frames(before)
    assert {op.kind for op in before.ops} - {op.kind for op in after.ops} == {
        "fully_connected",
        "relu",
    }
    feeds, exact = zero_feeds(before), ExactWakeWord(after)
    for frames in STEPS:
        values = run_int(before, {**feeds, "features": frames[np.newaxis, :, :, np.newaxis]})
        feeds |= {name: values[kept] for name, kept in before.state_pairs}
        assert exact.step(frames) == int(values["probability"][0, 0]) + 128


def test_xnnpack_computes_the_exact_integers_but_for_ties() -> None:
    expected = collect(ExactWakeWord(small_graph()).step, STEPS)
    difference = collect(litert(streaming_bytes(small_graph()), "litert"), STEPS) - expected
    assert np.abs(difference).max() <= 2
    assert (difference == 0).mean() > 0.97


def test_the_exact_stream_begins_anew() -> None:
    exact = ExactWakeWord(small_graph())
    first = collect(exact.step, STEPS[:20])
    assert not np.array_equal(collect(exact.step, STEPS[:20]), first)
    exact.reset()
    np.testing.assert_array_equal(collect(exact.step, STEPS[:20]), first)


def test_the_firmware_and_pymicro_wakeword_quantise_features_alike() -> None:
    features = np.arange(0, 667, dtype=np.float32)[:, np.newaxis] * np.float32(10 / 256)
    firmware, declared = quantized(features), quantize(features, INPUT_QUANT)
    assert np.abs(firmware.astype(int) - declared).max() <= 1


# ------------------------------------------------------------------------------ the file


def model_of(data: bytes) -> Any:
    return schema.ModelT.InitFromPackedBuf(data, 0)


def test_the_file_has_the_operators_and_the_interface_of_the_firmware() -> None:
    model = model_of(streaming_bytes(small_graph()))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    assert len(OPERATORS) == 20
    assert {names[code.builtinCode] for code in model.operatorCodes} == {
        *("CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"),
        *("RESHAPE", "CONCATENATION", "STRIDED_SLICE", "ADD", "LOGISTIC", "QUANTIZE"),
        *("CONV_2D", "DEPTHWISE_CONV_2D"),
    }
    main_graph, initial = model.subgraphs
    assert [list(main_graph.tensors[k].shape) for k in main_graph.inputs] == [[1, N_FRAMES, 40]]
    assert [list(main_graph.tensors[k].shape) for k in main_graph.outputs] == [[1, 1]]
    assert len(initial.inputs) == len(initial.outputs) == 0
    assert len(initial.operators) == 2 * small_graph().n_states == 8
    (runtime,) = (m for m in model.metadata if m.name == b"min_runtime_version")
    assert bytes(model.buffers[runtime.buffer].data).rstrip(b"\0") == b"2.6.0"


def broken(change: str) -> bytes:
    """The small model's file with something that the firmware does not take."""
    model = model_of(streaming_bytes(small_graph()))
    main_graph, initial = model.subgraphs
    if change == "operator":
        model.operatorCodes[-1].builtinCode = schema.BuiltinOperator.TANH
    elif change == "shape":
        main_graph.tensors[main_graph.inputs[0]].shape = np.array([1, N_FRAMES, 41], np.int32)
    elif change == "rank":
        main_graph.tensors[main_graph.outputs[0]].shape = np.array([1], np.int32)
    elif change == "scale":
        main_graph.tensors[main_graph.inputs[0]].quantization.scale = np.array([0.1], np.float32)
    elif change == "type":
        main_graph.tensors[main_graph.outputs[0]].type = schema.TensorType.INT8
    elif change == "variables":
        initial.operators = initial.operators[:-1]
    else:
        model.subgraphs = [main_graph]
    builder = Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("operator", "only operators that ESPHome has, .*; got TANH besides"),
        ("shape", r"feature_frames: expected .*, got 9, \(1, 3, 41\)"),
        ("rank", r"wake_probability: expected .*shape \(1, 1\)"),
        ("scale", "feature_frames: expected .*0.10196.* got .*scale=0.10000"),
        ("type", "wake_probability: expected type 3, .* got 9"),
        ("variables", "got 3 that are set, 4 that are assigned"),
        ("subgraph", "a subgraph and one that sets its variables, got 1"),
    ],
)
def test_what_the_firmware_cannot_load_is_refused(change: str, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        check_file(broken(change))
    check_file(streaming_bytes(small_graph()))


def test_an_ordinary_file_is_none_for_the_firmware() -> None:
    with pytest.raises(ExportError, match="got SLICE besides"):
        check_file(tflite_bytes(small_graph()))
    with pytest.raises(ExportError, match="expected a quantised graph"):
        streaming_bytes(build_wake_word_graph(wake_word_model()))


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder": CrnnSpec()}, "got CrnnSpec: its GRU needs TANH and SUB.*wake-word-esphome"),
        ({"encoder": ConformerSpec()}, "got ConformerSpec: its attention needs"),
        ({"encoder": WindowedCrnnSpec()}, "got WindowedCrnnSpec: it scores whole windows"),
        ({"encoder": WindowedCnnSpec()}, "got WindowedCnnSpec: it scores whole windows"),
        ({"features": FeatureSpec()}, "ESPHome's own features .*, got FeatureSpec; train one"),
        ({"keywords": ("on", "off")}, r"got 2 \(on, off\).*task.keywords=\[\"on\"\]"),
        ({"silence": True}, "without a class for silence.*task.silence=false"),
        (
            {"encoder": TcnSpec(stacks=((1,) * 20,))},
            "at most 19 blocks .* room for 20 states, got 20",
        ),
    ],
)
def test_models_that_the_firmware_cannot_run_are_refused(
    changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(ExportError, match=reason):
        check_spec(changed(**changes))


def test_a_pack_of_a_refused_model_writes_nothing(tmp_path: Path) -> None:
    model = wake_word_model(changed(keywords=("on", "off")))
    with pytest.raises(ExportError, match="one keyword"):
        write_esphome_pack(model, waveforms(), tmp_path / "out")
    with pytest.raises(SpecError, match="probability_cutoff"):
        write_esphome_pack(wake_word_model(), [], tmp_path / "out", probability_cutoff=90)
    with pytest.raises(ExportError, match="at least one calibration call"):
        write_esphome_pack(wake_word_model(), [], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ExportError, match="streaming model of one keyword, got the classes"):
        build_wake_word_graph(model)


def test_graphs_that_are_not_of_frames_are_refused() -> None:
    with pytest.raises(ExportError, match=r"frames in a row, .*got the shape \(2, 3, 4, 5\)"):
        frame_shape((2, 3, 4, 5))
    two = wake_word_model(changed(keywords=("on", "off")))
    with pytest.raises(ExportError, match=r"logits: expected one score, got \(1, 3\) of them"):
        as_frames(calibrated(build_keyword_graph(two)))
    for add, reason in (
        (lambda g, x: g.unary("tanh", "y", x), "expected an operation among add, .* got tanh"),
        (lambda g, x: g.reshape("y", x, (1, 4, 1, 4)), "y: expected a reshape that leaves frames"),
        (lambda g, x: g.slice("y", x, 3, 0, 1), "y: expected a part of the frames, each of them"),
        (lambda g, x: g.concat("y", (x, x), 3), "y: expected frames put one after the other"),
        (lambda g, x: g.unary("relu", "y", x), "y: expected a ReLU of what has no negative int8"),
        (
            lambda g, x: g.binary("add", "y", x, g.constant("c", np.ones((1, 1, 1, 8), "f4"))),
            "y: expected activations on both sides",
        ),
        (
            lambda g, x: g.conv2d(
                "y",
                g.input("z", (1, 2, 5, 1)),
                np.ones((3, 1, 2, 1), "f4"),
                np.ones(3, "f4"),
                (1, 1),
                relu=False,
            ),
            "y: expected a convolution over all bands",
        ),
        (
            lambda g, x: g.depthwise_conv2d(
                "y", g.input("z", (1, 2, 5, 1)), np.ones((1, 1, 2, 1), "f4"), np.ones(1, "f4")
            ),
            "y: expected a depthwise convolution over time",
        ),
    ):
        g = GraphBuilder("refused")
        x = g.input("features", (1, 2, 1, 8))
        g.graph.outputs = [add(g, x)]
        with pytest.raises(ExportError, match=reason):
            as_frames(calibrated(g.graph))


def calibrated(graph: Graph) -> Graph:
    """Quantised over random inputs; states are zeros."""
    rng = np.random.default_rng(0)
    watched, feeds = Calibration(graph), zero_feeds(graph)
    for name in graph.inputs[: len(graph.inputs) - graph.n_states]:
        feeds[name] = rng.normal(size=feeds[name].shape).astype(np.float32)
    watched.run(feeds)
    return quantise(graph, watched.ranges)
