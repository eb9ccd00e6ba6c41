"""How near every runtime comes to the exact integers.

Each layer is run alone, on what the reference computed before it, so that the steps a runtime is
off do not add up and every layer can be blamed for its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_imputer.backends.stepper import Model
from edge_imputer.errors import BackendError, ExportError
from edge_imputer.specs import ModelSpec

from .file_arrays import expected_arrays, onnx_arrays, same_arrays, tflite_arrays
from .graph import MOVES, SHARES_SCALE, Array, Graph, Op
from .reference import Interpreter
from .runtimes import RUNTIMES, load_runtime
from .simulate import Run, decode_watched

__all__ = [
    "RUNTIMES",
    "LayerParity",
    "decoded_feeds",
    "expected_arrays",
    "layer_parity",
    "load_runtime",
    "onnx_arrays",
    "same_arrays",
    "tflite_arrays",
    "tolerance",
]
_EXACT = MOVES | SHARES_SCALE
_SUMS = frozenset({"add", "sub"})  # in the integers that the reference took over from TFLite
_ALSO_EXACT = {"litert-reference": _SUMS, "tflite-micro": _SUMS}


def tolerance(runtime: str, kind: str) -> int:
    """Steps of its int8 output that a layer may be off the exact integers in a runtime.

    None where bytes are moved or compared; one where a runtime rounds in floating point, or twice,
    what the exact integers round once. It holds for graphs with calibrated scales.
    """
    return int(kind not in _EXACT | _ALSO_EXACT.get(runtime, frozenset()))


@dataclass(frozen=True)
class LayerParity:
    """One layer in one runtime, against the exact integers.

    Attributes
    ----------
    op, kind : str
        Name of the layer's output, and its operation.
    runtime : str
        One of `runtimes.ALL_RUNTIMES`.
    max_lsb : int
        Largest difference, in steps of the int8 output.
    share : float
        Proportion of elements that differ.
    n : int
        Elements compared.
    refusal : str or None
        What the runtime said if it does not run this layer; nothing is compared then.
    """

    op: str
    kind: str
    runtime: str
    max_lsb: int
    share: float
    n: int
    refusal: str | None = None


def decoded_feeds(
    encoder: Graph, imputer: Graph, spec: ModelSpec, waveforms: Iterable[npt.NDArray[np.float32]]
) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    """Inputs of every call of both graphs while the exact integers decode real audio.

    Parameters
    ----------
    encoder, imputer : Graph
        Quantised.
    spec : ModelSpec
    waveforms : iterable of float32 arrays, (n,)
        At the model's sample rate.
    """
    recorded: tuple[list[dict[str, Array]], list[dict[str, Array]]] = ([], [])

    def recorder(graph: Graph, into: list[dict[str, Array]]) -> Run:
        interpreter = Interpreter(graph)

        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            into.append({name: value.copy() for name, value in feeds.items()})
            return interpreter.run(feeds)

        return run

    runs = recorder(encoder, recorded[0]), recorder(imputer, recorded[1])
    decode_watched(encoder, imputer, spec, runs, waveforms)
    return recorded


def layer_parity(
    graph: Graph,
    feeds: Iterable[Mapping[str, Array]],
    runtimes: Iterable[str] = RUNTIMES,
    *,
    keep_refusals: bool = False,
) -> list[LayerParity]:
    """Compare every layer of a quantised graph in every runtime with the exact integers.

    Parameters
    ----------
    graph : Graph
    feeds : iterable of inputs by name
        Calls to compare on; each is run through the whole reference once.
    runtimes : iterable of str
    keep_refusals : bool
        A layer that a runtime does not run gets a row that says so, instead of an error.

    Returns
    -------
    list of LayerParity, layer by layer, one row a runtime

    Raises
    ------
    ExportError
        No calls, or no such runtime.
    BackendError
        A runtime refuses a layer.
    """
    interpreter = Interpreter(graph)
    calls = [interpreter.run(feed) for feed in feeds]
    if not calls:
        raise ExportError(f"{graph.name}: expected at least one call to compare on, got none")
    rows, runtimes = [], tuple(runtimes)
    with tempfile.TemporaryDirectory() as scratch:
        for index, op in enumerate(graph.ops):
            layer = graph.single_op(index)
            for runtime in runtimes:
                try:
                    model = load_runtime(layer, runtime, Path(scratch))
                    rows.append(_compare(layer, op, runtime, model, calls))
                except BackendError as error:
                    if not keep_refusals:
                        raise
                    rows.append(LayerParity(op.output, op.kind, runtime, 0, 0, 0, str(error)))
    return rows


def _compare(
    layer: Graph, op: Op, runtime: str, model: Model, calls: list[dict[str, Array]]
) -> LayerParity:
    steps = [
        np.abs(
            model.run([values[name] for name in layer.inputs])[0].astype(np.int64)
            - values[op.output]
        )
        for values in calls
    ]
    differences = np.concatenate([step.ravel() for step in steps])
    return LayerParity(
        op=op.output,
        kind=op.kind,
        runtime=runtime,
        max_lsb=int(differences.max()),
        share=float((differences > 0).mean()),
        n=differences.size,
    )
