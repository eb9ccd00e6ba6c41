"""Whether a bundle computes the same everywhere: every runtime at hand, against the exact integers.

Its .onnx and .tflite files must hold the same arrays. Layer by layer, each fed what the exact
integers computed before it, the steps that a runtime is off are held to `parity.tolerance`. And
every runtime listens to the same clips, from its own states on: each pair must write down the same
for nearly all.

A bundle is a list of graphs and a way to decode with them: `decoders` has one for each kind of
model, and nothing here knows what the graphs are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import numpy as np

from edge_imputer.backends.native_library import find_compiler
from edge_imputer.bundle import Bundle
from edge_imputer.errors import BackendError, ExportError
from edge_imputer.metrics import wilson_interval

from .decoders import KINDS, AnyBackend, Decoded, Waveform
from .graph import Array, Graph
from .oracle import ORACLE
from .oracle_backend import load_oracle, oracle_absence
from .parity import LayerParity, layer_parity, same_arrays, tolerance
from .reference import Interpreter
from .runtimes import ALL_RUNTIMES
from .tflite_reader import read_tflite

INTEGERS, FLOAT, NATIVE = "integers", "onnxruntime-float", "native"
FLOATS = FLOAT, ORACLE  # of the float model; all others are of its integers
NAMES = (*ALL_RUNTIMES, NATIVE, *FLOATS)
OLD = "tflite-runtime"
MIN_AGREEMENT = 0.99
Progress = Callable[[Sequence[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class PairAgreement:
    """Two runtimes on the same clips.

    Attributes
    ----------
    first, second : str
    n, same : int
        Clips, and those with the same text.
    bound : float
        Least share of them. A few clips of many are no evidence of less: it is missed where the
        share's 95 % interval lies below it.
    """

    first: str
    second: str
    n: int
    same: int
    bound: float

    @property
    def share(self) -> float:
        """Of clips with the same text."""
        return self.same / self.n


@dataclass(frozen=True)
class KindParity:
    """All layers of one kind in one runtime, as `parity.LayerParity` has a single one."""

    kind: str
    runtime: str
    max_lsb: int
    share: float
    n: int
    tolerance: int
    n_refused: int


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes
    ----------
    bundle : str
        Its name.
    layers : dict from graph to list of LayerParity
    pairs : list of PairAgreement
        Every pair of what decoded, the exact integers among them.
    identical : dict from runtime to float
        Share of clips whose scores are the exact integers', to the byte.
    absent : dict from runtime to str
        What could not be tried here, and why.
    exceeded : list of str
        What is not within its tolerance, a line each; empty if all is well.
    """

    bundle: str
    layers: dict[str, list[LayerParity]]
    pairs: list[PairAgreement]
    identical: dict[str, float]
    absent: dict[str, str]
    exceeded: list[str]

    def by_kind(self) -> list[KindParity]:
        """Layers of all graphs by kind, each in every runtime."""
        found: dict[tuple[str, str], list[LayerParity]] = {}
        for row in chain.from_iterable(self.layers.values()):
            found.setdefault((row.kind, row.runtime), []).append(row)
        return [
            KindParity(
                kind,
                runtime,
                max(row.max_lsb for row in rows),
                sum(row.share * row.n for row in rows) / max(1, sum(row.n for row in rows)),
                sum(row.n for row in rows),
                tolerance(runtime, kind),
                sum(row.refusal is not None for row in rows),
            )
            for (kind, runtime), rows in found.items()
        ]


def verify(
    bundle: Bundle,
    waveforms: Sequence[Waveform],
    *,
    runtimes: Sequence[str] = NAMES,
    n_calls: int = 6,
    min_agreement: float = MIN_AGREEMENT,
    min_float_agreement: float = MIN_AGREEMENT,
    progress: Progress = lambda items, label: items,
) -> Verification:
    """Hold a bundle to the exact integers, which are read back from its .tflite files.

    Parameters
    ----------
    bundle : Bundle
    waveforms : sequence of float32 arrays, (n,)
        At the model's sample rate.
    runtimes : sequence of str
        Of `NAMES`; what is not installed is in the result's `absent`.
    n_calls : int
        Calls of each graph that layers are compared on, spread over the first clip.
    min_agreement : float
        Least share of clips with the same text, for each pair of int8 runtimes, and of float ones.
    min_float_agreement : float
        The same, for an int8 runtime beside a float one: what quantisation may change.
    progress : callable
        Wraps what is gone through, with a label, to show how far it is.

    Raises
    ------
    ExportError
        No clips, no such runtime, or files that are not ours.
    """
    _check(waveforms, runtimes)
    graphs = read_graphs(bundle)
    longest = max(waveforms, key=len)
    calls = _calls(bundle, graphs, longest, n_calls)
    if not all(calls):
        raise ExportError(
            "expected a clip that the model takes at least one step of, got at most "
            f"{len(longest)} samples; give longer ones"
        )
    backends = {
        INTEGERS: KINDS[type(bundle.spec)].backend(
            bundle, INTEGERS, [_Integers(graph) for graph in graphs]
        )
    }
    absent, refused = _open(bundle, graphs, runtimes, backends)
    single = [name for name in runtimes if name in ALL_RUNTIMES and name not in absent]
    layers = {
        graph.name: layer_parity(graph, feeds, single, keep_refusals=True)
        for graph, feeds in progress(list(zip(graphs, calls, strict=True)), "layers")
    }
    decoded = {}
    for name in progress(list(backends), "clips"):
        try:
            decoded[name] = _listen(bundle, backends[name], waveforms)
        except BackendError as error:
            refused.append(f"{name}: {error}")
    pairs = _pairs(decoded, min_agreement, min_float_agreement)
    identical = {
        name: float(np.mean([_same(*both) for both in zip(clips, decoded[INTEGERS], strict=True)]))
        for name, clips in decoded.items()
        if name not in (INTEGERS, *FLOATS)
    }
    exceeded = [*_files_off(bundle, graphs), *refused, *_layers_off(layers), *_pairs_off(pairs)]
    if identical.get(NATIVE, 1) < 1:
        exceeded.append(f"native: gives the exact integers on {identical[NATIVE]:.1%} of the clips")
    return Verification(bundle.manifest.name, layers, pairs, identical, absent, exceeded)


def read_graphs(bundle: Bundle) -> list[Graph]:
    """The exact graphs of a bundle, in the manifest's order, from its .tflite files."""
    return [
        read_tflite(
            bundle.file(f"tflite/{record.name}.tflite"), name=record.name, n_states=record.n_states
        )
        for record in bundle.manifest.graphs
    ]


def _check(waveforms: Sequence[Waveform], runtimes: Sequence[str]) -> None:
    if not len(waveforms):
        raise ExportError("expected at least one clip to compare on, got none")
    unknown = [name for name in runtimes if name not in NAMES]
    if unknown or not runtimes:
        raise ExportError(f"expected runtimes among {', '.join(NAMES)}, got {unknown or 'none'}")


# ------------------------------------------------------------------------------ decoding


class _Integers:
    """The exact integers as a model, which keeps what it is called with if `calls` is a list."""

    def __init__(self, graph: Graph, calls: list[dict[str, Array]] | None = None) -> None:
        self._graph, self._run, self._calls = graph, Interpreter(graph).run, calls

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call the graph."""
        feeds = dict(zip(self._graph.inputs, inputs, strict=True))
        if self._calls is not None:
            self._calls.append({name: array.copy() for name, array in feeds.items()})
        values = self._run(feeds)
        return [values[name] for name in self._graph.outputs]


def _calls(
    bundle: Bundle, graphs: Sequence[Graph], waveform: Waveform, n: int
) -> list[list[dict[str, Array]]]:
    """Inputs of at most n calls of each graph while the exact integers decode a clip."""
    recorded: list[list[dict[str, Array]]] = [[] for _ in graphs]
    models = [_Integers(graph, calls) for graph, calls in zip(graphs, recorded, strict=True)]
    _listen(bundle, KINDS[type(bundle.spec)].backend(bundle, INTEGERS, models), [waveform])
    spread = [np.linspace(0, len(calls) - 1, min(n, len(calls))).round() for calls in recorded]
    return [[calls[int(k)] for k in at] for calls, at in zip(recorded, spread, strict=True)]


def _listen(bundle: Bundle, backend: AnyBackend, waveforms: Iterable[Waveform]) -> list[Decoded]:
    decode = KINDS[type(bundle.spec)].decoder(bundle, backend)
    return [decode(waveform) for waveform in waveforms]


def any_int16(graphs: Iterable[Graph]) -> bool:
    """Whether an activation is int16."""
    return any(t.dtype == "int16" for graph in graphs for t in graph.tensors.values())


def _open(
    bundle: Bundle,
    graphs: Sequence[Graph],
    runtimes: Sequence[str],
    backends: dict[str, AnyBackend],
) -> tuple[dict[str, str], list[str]]:
    """Load a bundle's files; what is absent by runtime, and what was refused."""
    absent: dict[str, str] = {}
    refused = []
    for name in runtimes:
        why = _absence(bundle, name)
        if why is None and name == OLD and any_int16(graphs):
            why = "older than TFLite 2.15, which int16 takes"
        if why is not None:
            absent[name] = why
            continue
        try:
            backends[name] = _backend(bundle, name)
        except BackendError as error:
            refused.append(f"{name}: {error}")
    return absent, refused


def _absence(bundle: Bundle, name: str) -> str | None:
    if name in ALL_RUNTIMES:
        return ALL_RUNTIMES[name].absence()
    if name == ORACLE:
        return oracle_absence(bundle)
    if name == NATIVE:
        if not any(file.startswith("native/") for file in bundle.manifest.files):
            return "the bundle holds no C code"
        try:
            find_compiler()
        except BackendError as error:
            return str(error)
    return None


def _backend(bundle: Bundle, name: str) -> AnyBackend:
    if name == ORACLE:
        return load_oracle(bundle)
    if name in (NATIVE, FLOAT):
        return KINDS[type(bundle.spec)].load(bundle, {NATIVE: "native", FLOAT: "onnx-float"}[name])
    runtime = ALL_RUNTIMES[name]
    ending = {"onnx": "int8.onnx", "tflite": "tflite"}[runtime.suffix]
    files = [
        bundle.file(f"{runtime.suffix}/{record.name}.{ending}") for record in bundle.manifest.graphs
    ]
    return KINDS[type(bundle.spec)].backend(bundle, name, [runtime.open(file) for file in files])


# ------------------------------------------------------------------------------ what is exceeded


def _same(one: Decoded, other: Decoded) -> bool:
    return one.scores.tobytes() == other.scores.tobytes()


def _pairs(
    decoded: dict[str, list[Decoded]], bound: float, float_bound: float
) -> list[PairAgreement]:
    return [
        PairAgreement(
            first,
            second,
            len(decoded[first]),
            sum(a.text == b.text for a, b in zip(decoded[first], decoded[second], strict=True)),
            float_bound if (first in FLOATS) != (second in FLOATS) else bound,
        )
        for first, second in combinations(decoded, 2)
    ]


def _files_off(bundle: Bundle, graphs: Sequence[Graph]) -> list[str]:
    """Files that do not hold the same arrays; the C code's are seen in what it computes."""
    found = []
    for graph in graphs:
        onnx = bundle.file(f"onnx/{graph.name}.int8.onnx")
        tflite = bundle.file(f"tflite/{graph.name}.tflite")
        try:
            same_arrays(graph, onnx, tflite)
        except ExportError as error:
            found.append(str(error))
    return found


def _layers_off(layers: dict[str, list[LayerParity]]) -> list[str]:
    found = []
    for graph, rows in layers.items():
        for row in rows:
            where, most = f"{row.runtime}: {graph}, {row.op}", tolerance(row.runtime, row.kind)
            if row.refusal is not None:
                found.append(f"{where} ({row.kind}): {row.refusal}")
            elif row.max_lsb > most:
                found.append(f"{where} ({row.kind}): {row.max_lsb} steps off, at most {most}")
    return found


def _pairs_off(pairs: list[PairAgreement]) -> list[str]:
    return [
        f"{pair.first} and {pair.second}: the same text for {pair.same} of {pair.n} clips, "
        f"expected {pair.bound:.1%}"
        for pair in pairs
        if wilson_interval(pair.same, pair.n).high < pair.bound
    ]
