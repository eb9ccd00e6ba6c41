"""The numpy reference as a backend: real decoding over graphs, to calibrate and to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import numpy as np
import numpy.typing as npt

from edge_imputer.backends.stepper import KeywordStepper, Stepper
from edge_imputer.bundle import GraphName, GraphRecord, TensorRecord
from edge_imputer.errors import ExportError
from edge_imputer.keyword_stream import KeywordStream
from edge_imputer.pipeline import StreamingDecoder
from edge_imputer.quantization import QuantParams
from edge_imputer.specs import KeywordModelSpec, ModelSpec

from .calibration import Calibration, Method
from .graph import Array, Graph, macs
from .memory import plan, weight_bytes
from .quantize_report import GraphReport, graph_report
from .ranges import quantise_in_order
from .reference import Interpreter
from .sensitivity import Quantisation, quantise_calibrated

Run = Callable[[Mapping[str, Array]], dict[str, Array]]


@dataclass(frozen=True)
class _Described:
    """The least that decoding asks of a model."""

    spec: ModelSpec


class _GraphModel:
    """A graph called as runtimes are: lists of arrays in the order of its inputs and outputs."""

    def __init__(self, graph: Graph, run: Run) -> None:
        self._graph, self._run = graph, run

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call the graph."""
        values = self._run(dict(zip(self._graph.inputs, inputs, strict=True)))
        return [values[name] for name in self._graph.outputs]


def reference_backend(
    encoder: Graph, imputer: Graph, spec: ModelSpec, runs: tuple[Run, Run] | None = None
) -> Stepper:
    """A backend that computes in numpy: float32, or the exact integers of a quantised pair.

    Parameters
    ----------
    encoder, imputer : Graph
        Both float, or both quantised.
    spec : ModelSpec
    runs : (encoder, imputer), optional
        How to run them, if not by `Interpreter`: so that somebody can watch.
    """
    if encoder.quantised != imputer.quantised:
        raise ExportError("expected two float or two quantised graphs, got one of each")
    if runs is None:
        runs = Interpreter(encoder).run, Interpreter(imputer).run
    return Stepper(
        "reference" if encoder.quantised else "reference-float",
        spec,
        (graph_record(encoder), graph_record(imputer)),
        (_GraphModel(encoder, runs[0]), _GraphModel(imputer, runs[1])),
        quantised=encoder.quantised,
    )


def decode_watched(
    encoder: Graph,
    imputer: Graph,
    spec: ModelSpec,
    runs: tuple[Run, Run],
    waveforms: Iterable[npt.NDArray[np.float32]],
) -> None:
    """Decode real audio by the model's own schedule, for what `runs` see of it.

    Parameters
    ----------
    encoder, imputer, spec, runs : as `reference_backend` takes them
    waveforms : iterable of float32 arrays, (n,)
        At the model's sample rate.
    """
    backend = reference_backend(encoder, imputer, spec, runs)
    decoder = StreamingDecoder(_Described(spec), backend=backend)
    for waveform in waveforms:
        decoder.decode(waveform)


INT8 = Quantisation()


def calibrated(
    encoder: Graph,
    imputer: Graph,
    spec: ModelSpec,
    waveforms: Iterable[npt.NDArray[np.float32]],
    method: Method = "min-max",
) -> tuple[Calibration, Calibration]:
    """What decoding real audio meets in both graphs.

    Every utterance is decoded in float, with the model's own schedule, so that the head is
    calibrated on the partial alignments it will see.

    Parameters
    ----------
    encoder, imputer : Graph
        Float.
    spec : ModelSpec
    waveforms : iterable of float32 arrays, (n,)
        At the model's sample rate.
    method : as `Calibration` takes it
    """
    calibrations = Calibration(encoder, method), Calibration(imputer, method)
    decode_watched(encoder, imputer, spec, (calibrations[0].run, calibrations[1].run), waveforms)
    return calibrations


def quantise_all(
    calibrations: Sequence[Calibration],
    options: Quantisation = INT8,
    report: Callable[[GraphReport], None] | None = None,
) -> tuple[Graph, ...]:
    """The integer forms of a model's graphs over what they met, see `quantise_in_order`.

    Parameters
    ----------
    calibrations : of each graph, in that order
    options : Quantisation, optional
        Whether sums may be int16; if unset all is int8.
    report : callable, optional
        Told what each graph lost, node by node; measured only for who asks.

    Raises
    ------
    ExportError
        On no audio, or on what `quantise` refuses.
    """
    by_graph = {calibration.graph.name: calibration for calibration in calibrations}

    def one(graph: Graph, fixed: Mapping[str, QuantParams]) -> Graph:
        calibration = by_graph[graph.name]
        integers, choice = quantise_calibrated(calibration, options, fixed)
        if report is not None:
            report(graph_report(calibration, integers, choice))
        return integers

    return quantise_in_order([calibration.graph for calibration in calibrations], one)


def calibrate_and_quantise(
    encoder: Graph,
    imputer: Graph,
    spec: ModelSpec,
    waveforms: Iterable[npt.NDArray[np.float32]],
    options: Quantisation = INT8,
    report: Callable[[GraphReport], None] | None = None,
) -> tuple[Graph, Graph]:
    """Quantise both graphs over what decoding real audio meets in them.

    Parameters
    ----------
    encoder, imputer, spec, waveforms : as `calibrated` takes them
    options, report : as `quantise_all` takes them

    Raises
    ------
    ExportError
        On no audio, or on what `quantise` refuses.
    """
    seen = calibrated(encoder, imputer, spec, waveforms, options.calibration)
    int_encoder, int_imputer = quantise_all(seen, options, report)
    return int_encoder, int_imputer


def keyword_reference(
    graph: Graph, spec: KeywordModelSpec, run: Run | None = None
) -> KeywordStepper:
    """A keyword model's backend that computes in numpy: float32, or its exact integers.

    Parameters
    ----------
    graph : Graph
    spec : KeywordModelSpec
    run : optional
        How to run it, if not by `Interpreter`: so that somebody can watch.
    """
    return KeywordStepper(
        "reference" if graph.quantised else "reference-float",
        spec,
        graph_record(graph),
        _GraphModel(graph, Interpreter(graph).run if run is None else run),
        quantised=graph.quantised,
    )


def calibrated_keywords(
    graph: Graph,
    spec: KeywordModelSpec,
    waveforms: Iterable[npt.NDArray[np.float32]],
    method: Method = "min-max",
) -> Calibration:
    """What listening to real audio meets in a keyword model's graph.

    Parameters
    ----------
    graph : Graph
        Float.
    spec : KeywordModelSpec
    waveforms : iterable of float32 arrays, (n,)
        At the model's sample rate. Each is a stream of its own; but of a model over windows all are
        one, with a window of silence at its end, so that speech meets every place of a window.
    method : as `Calibration` takes it
    """
    calibration = Calibration(graph, method)
    stream = KeywordStream(spec, keyword_reference(graph, spec, calibration.run))
    for waveform in waveforms:
        stream.push(waveform)
        if not spec.windowed:
            stream.finish()
    if spec.windowed:
        stream.push(np.zeros(spec.input_features * spec.features.hop_length, np.float32))
    return calibration


def graph_record(graph: Graph, arena_bytes: int | None = None) -> GraphRecord:
    """The manifest's record of a graph.

    Parameters
    ----------
    graph : Graph
    arena_bytes : int, optional
        Scratch memory of one call; that of `memory.plan` where nobody knows better.
    """
    if graph.name not in get_args(GraphName):
        raise ExportError(
            f"expected a graph named {', '.join(get_args(GraphName))}, got {graph.name!r}"
        )
    return GraphRecord(
        name=cast(GraphName, graph.name),
        inputs=tuple(_tensor_record(graph, name) for name in graph.inputs),
        outputs=tuple(_tensor_record(graph, name) for name in graph.outputs),
        n_states=graph.n_states,
        macs=macs(graph),
        arena_bytes=plan(graph)[1] if arena_bytes is None else arena_bytes,
        weight_bytes=weight_bytes(graph),
    )


def _tensor_record(graph: Graph, name: str) -> TensorRecord:
    tensor = graph.tensors[name]
    return TensorRecord(
        name=name,
        shape=tensor.shape,
        dtype="int32" if tensor.dtype == "int32" else "int8",  # floats have the same records
        quant=tensor.quant,
    )
