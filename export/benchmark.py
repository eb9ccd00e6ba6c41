"""What a preset costs in every runtime: ``make bench-runtimes``.

Presets are built with random weights and quantised on noise, since time does not depend on what a
model has learnt: an encoder with the default Imputer head, or a classifier over windows. Each graph
is called from Python by one thread; the runtimes take turns, round by round, so that a slow spell
of a shared machine hits them all, and a figure is the median over rounds of the thread's CPU time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edge_imputer.backends.stepper import Model
from edge_imputer.errors import BackendError
from edge_imputer.specs import FeatureSpec, ImputerSpec, ModelSpec, TokenSpec, preset
from edge_imputer.train.encoders import build_encoder
from edge_imputer.train.encoders.windowed import WindowedEncoder
from edge_imputer.train.imputer import ImputerHead

from .build import build_encoder_graph, build_graphs
from .calibration import Calibration
from .graph import Array, Graph
from .memory import weight_bytes
from .oracle import ENVIRONMENT, ORACLE, TorchStep, as_arrays, convert
from .oracle import quantise as quantise_converted
from .quantize import quantise
from .reference import Interpreter, zero_feeds
from .runtimes import ALL_RUNTIMES, load_runtime
from .simulate import calibrate_and_quantise

FLOAT, INT8 = "float32", "int8"
NATIVE = "native"
FORMS = (
    ("onnxruntime", FLOAT),
    ("onnxruntime", INT8),
    ("litert", FLOAT),
    ("litert", INT8),
    ("tflite-micro", INT8),
)
"""Runtimes, and the form of our graphs in them; native C comes from outside."""
TOKENS = TokenSpec(characters=tuple(" efghinorstuvwxz"))
DEFAULT_PRESETS = ("crnn-120k", "tcn-30k", "cnn-windowed-229k", "conformer-s")
ROUNDS, TURN_S, MOST_CALLS = 21, 2e-3, 50
N_CHECKED = 3  # calls that outputs are compared on
# How far outputs may be off, see `Row`: each layer may be one step off, and a window's 38 steps of
# GRUs were seen to end 2.4 off.
RELATIVE, STEPS = 1e-4, 3.0


@dataclass(frozen=True)
class Part:
    """One graph of a model.

    Attributes
    ----------
    floats, ints : Graph
    calls_per_s : float
        A second of audio.
    step : TorchStep
        The module that the graph is of, for another converter.
    """

    floats: Graph
    ints: Graph
    calls_per_s: float
    step: TorchStep


@dataclass(frozen=True)
class Row:
    """A preset in a runtime.

    Attributes
    ----------
    preset, runtime, dtype : str
    us_per_step : float or None
        CPU microseconds of one call of the encoder; None where the runtime refuses the model.
    ms_per_s_audio : float or None
        CPU milliseconds a second of audio, all graphs.
    bytes : int
        Of the files; of native C the tables of constants.
    agrees_with_reference : bool or None
        Whether outputs are what `Interpreter` computes from the same inputs: a float's within
        1e-4 of the largest, int8 within 3 steps (root mean square) after all layers, and of
        native C every byte. litert-torch's float file is held to torch; None of its int8 file,
        which has integers of its own.
    refusal : str or None
        What the runtime said.
    """

    preset: str
    runtime: str
    dtype: str
    us_per_step: float | None
    ms_per_s_audio: float | None
    bytes: int
    agrees_with_reference: bool | None
    refusal: str | None = None


@dataclass(frozen=True)
class _Contender:
    """A model loaded in a runtime: a callable a part, that calls it once."""

    runtime: str
    dtype: str
    calls: list[Callable[[], object]]
    bytes: int
    agrees: bool | None


def build(name: str) -> list[Part]:
    """The graphs of a preset with random weights."""
    torch.manual_seed(0)
    features, rng = FeatureSpec(), np.random.default_rng(0)
    encoder = build_encoder(preset(name), features).eval()
    rate = features.sample_rate / features.hop_length
    if isinstance(encoder, WindowedEncoder):
        floats = build_encoder_graph(encoder)
        calibration = Calibration(floats)
        shape = floats.tensors[floats.inputs[0]].shape
        calibration.run_sequence([rng.standard_normal(shape, np.float32) for _ in range(2)])
        quantised = quantise(floats, calibration.ranges)
        step = TorchStep.of_window(encoder)
        return [Part(floats, quantised, rate / encoder.spec.hop_frames, step)]
    head = ImputerSpec()
    spec = ModelSpec(features=features, encoder=encoder.spec, head=head, tokens=TOKENS)
    imputer = ImputerHead(encoder.d_model, head, TOKENS).eval()
    graphs = build_graphs(encoder, imputer, spec)
    noise = rng.standard_normal(2 * features.sample_rate, np.float32) * np.float32(0.1)
    ints = calibrate_and_quantise(*graphs, spec, [noise])
    steps = (
        TorchStep.of_stream(encoder, encoder.step_features, encoder.n_mels),
        TorchStep.of_head(imputer, encoder.d_model),
    )
    passes = head.n_passes * rate / spec.chunk_features
    return [
        Part(graphs[0], ints[0], rate / spec.step_features, steps[0]),
        Part(graphs[1], ints[1], passes, steps[1]),
    ]


def measure(
    name: str, folder: Path, compile_graph: Callable[[Graph], Model] | None, *, rounds: int = ROUNDS
) -> list[Row]:
    """A row for each runtime that is installed.

    Parameters
    ----------
    name : a preset's
    folder : where files are written
    compile_graph : of a quantised graph its C code, loaded; None where there is no compiler
    rounds : how often the runtimes take turns
    """
    parts = build(name)
    found: list[_Contender] = []
    rows: dict[tuple[str, str], Row] = {}
    makers: dict[tuple[str, str], Callable[[], _Contender]] = {
        (runtime, dtype): lambda r=runtime, d=dtype: _ours(parts, r, d, folder)  # type: ignore[misc]
        for runtime, dtype in FORMS
        if ALL_RUNTIMES[runtime].absence() is None
    }
    if compile_graph is not None:
        makers[NATIVE, INT8] = lambda: _native(parts, compile_graph)
    if ENVIRONMENT.absence() is None:
        makers[ORACLE, FLOAT] = lambda: _oracle(parts, folder, FLOAT)
        makers[ORACLE, INT8] = lambda: _oracle(parts, folder, INT8)
    for (runtime, dtype), make in makers.items():
        try:
            found.append(make())
        except BackendError as error:
            rows[runtime, dtype] = Row(name, runtime, dtype, None, None, 0, False, str(error))
    for one, us in zip(found, _take_turns(found, rounds), strict=True):
        per_s = sum(u * part.calls_per_s for u, part in zip(us, parts, strict=True)) / 1e3
        rows[one.runtime, one.dtype] = Row(
            name, one.runtime, one.dtype, round(us[0], 1), round(per_s, 3), one.bytes, one.agrees
        )
    return list(rows.values())


def beside_oracle(rows: Sequence[Row]) -> list[dict[str, str | float]]:
    """By preset, of each type: ``TYPE_us`` of our file on LiteRT, of a step of the encoder,
    ``TYPE_theirs_us`` of litert-torch's, and ``TYPE_ratio``, the first over the second."""
    times = {(r.preset, r.runtime, r.dtype): r.us_per_step for r in rows}
    found: dict[str, dict[str, str | float]] = {}
    for (name, runtime, dtype), theirs in times.items():
        ours = times.get((name, "litert", dtype))
        if runtime == ORACLE and theirs and ours:
            row = found.setdefault(name, {"preset": name})
            row |= {f"{dtype}_us": ours, f"{dtype}_theirs_us": theirs}
            row[f"{dtype}_ratio"] = round(ours / theirs, 3)
    return list(found.values())


# ------------------------------------------------------------------------------ contenders


def _ours(parts: Sequence[Part], runtime: str, dtype: str, folder: Path) -> _Contender:
    place = folder / f"{runtime}-{dtype}"
    place.mkdir(parents=True)
    graphs = [part.floats if dtype == FLOAT else part.ints for part in parts]
    models = [load_runtime(graph, runtime, place) for graph in graphs]
    size = sum(path.stat().st_size for path in place.iterdir())
    return _contender(runtime, dtype, graphs, models, size)


def _native(parts: Sequence[Part], compile_graph: Callable[[Graph], Model]) -> _Contender:
    graphs = [part.ints for part in parts]
    models = [compile_graph(graph) for graph in graphs]
    return _contender(NATIVE, INT8, graphs, models, sum(map(weight_bytes, graphs)))


def _contender(
    runtime: str, dtype: str, graphs: Sequence[Graph], models: Sequence[Model], size: int
) -> _Contender:
    calls, agrees = [], True
    for graph, model in zip(graphs, models, strict=True):
        feeds, expected = _stream(graph)
        results = [model.run(inputs) for inputs in feeds]
        agrees &= _agree(results, expected, exact=runtime == NATIVE)
        calls.append(_call(model, feeds[-1]))
    return _Contender(runtime, dtype, calls, size, agrees)


def _call(model: Model, inputs: list[Array]) -> Callable[[], object]:
    return lambda: model.run(inputs)


def _oracle(parts: Sequence[Part], folder: Path, dtype: str) -> _Contender:
    """What litert-torch makes of the same modules; the int8 file is made of the float one."""
    calls, size, agrees = [], 0, True
    for part in parts:
        floats = folder / f"{part.floats.name}.{ORACLE}.tflite"
        if dtype == FLOAT:
            file = convert(part.step, floats)
        else:
            file = quantise_converted(part.step, floats, floats.with_suffix(".int8.tflite"))
        arguments = part.step.calls(N_CHECKED)
        results = [file.run(as_arrays(one)) for one in arguments]
        agrees &= _agree(results, [part.step.results(one) for one in arguments], exact=False)
        calls.append(_call(file.model, file.feeds(as_arrays(arguments[-1]))))
        size += file.path.stat().st_size
    return _Contender(ORACLE, dtype, calls, size, agrees if dtype == FLOAT else None)


def _stream(graph: Graph) -> tuple[list[list[Array]], list[list[Array]]]:
    """Inputs of a few calls, the states handed on by the reference, and its outputs."""
    rng, run, feeds = np.random.default_rng(1), Interpreter(graph).run, zero_feeds(graph)
    states = dict(graph.state_pairs)
    rows = [graph.tensors[op.inputs[1]].shape[0] for op in graph.ops if op.kind == "embedding"]
    inputs, outputs = [], []
    for _ in range(N_CHECKED):
        for name in [n for n in graph.inputs if n not in states]:
            tensor = graph.tensors[name]
            if tensor.dtype == "int32":
                feeds[name] = rng.integers(0, min(rows, default=1), tensor.shape).astype(np.int32)
            elif tensor.dtype == "int8":
                feeds[name] = rng.integers(-64, 64, tensor.shape).astype(np.int8)
            else:
                feeds[name] = rng.standard_normal(tensor.shape).astype(np.float32)
        values = run(feeds)
        inputs.append([feeds[name] for name in graph.inputs])
        outputs.append([values[name] for name in graph.outputs])
        feeds = feeds | {before: values[after] for before, after in states.items()}
    return inputs, outputs


def _agree(results: list[list[Array]], expected: list[list[Array]], *, exact: bool) -> bool:
    """Whether outputs are the reference's, see `Row`."""
    for got, wanted in zip(zip(*results, strict=True), zip(*expected, strict=True), strict=True):
        off = np.stack(got).astype(np.float64) - np.stack(wanted)
        if wanted[0].dtype == np.int8:
            least = 0.0 if exact else STEPS
            right = float(np.sqrt(np.square(off).mean())) <= least
        else:
            right = float(np.abs(off).max()) <= RELATIVE * max(1.0, float(np.abs(wanted).max()))
        if not right:
            return False
    return True


def _take_turns(contenders: Sequence[_Contender], rounds: int) -> list[list[float]]:
    """CPU microseconds a call of each part of each contender, the median over rounds.

    Each turn begins with a call that is not timed, since whoever went before left the caches full
    of something else, and each round with another contender.
    """
    calls = [call for one in contenders for call in one.calls]
    n_calls = [_enough(call) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    for first in range(rounds):
        for k in range(len(calls)):
            at = (first + k) % len(calls)
            calls[at]()
            times[at].append(_timed(calls[at], n_calls[at]))
    medians = iter([statistics.median(t) for t in times])
    return [[next(medians) for _ in one.calls] for one in contenders]


def _enough(call: Callable[[], object]) -> int:
    """Calls that fill a turn, after two that warm up."""
    call()
    return max(1, min(MOST_CALLS, round(TURN_S * 1e6 / max(1.0, _timed(call, 1)))))


def _timed(call: Callable[[], object], n: int) -> float:
    start = time.thread_time_ns()
    for _ in range(n):
        call()
    return (time.thread_time_ns() - start) / n / 1e3
