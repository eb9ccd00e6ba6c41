"""What a fused graph keeps from call to call, and the features of the samples it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edge_imputer.errors import ExportError
from edge_imputer.quantization import QuantParams
from edge_imputer.specs import FeatureSpec, FrameSpec, PcenSpec

from ..graph import Graph
from .builder import FusedBuilder
from .features import log_mel, mel_energy, pcen, plan

Pcm = Literal["int16", "float32"]
SCALES = {"int16": 2.0**-15, "float32": 1.0}
SAMPLES, KEPT_SAMPLES = "samples", "samples.kept"
LEVEL, BEGUN = "level.kept", "level.begun"
NEXT = ".next"  # after a state's name: what it is in the next call


class States:
    """Inputs that live from call to call, in order, and what they become."""

    def __init__(self, g: FusedBuilder) -> None:
        self.g = g
        self.after: dict[str, str] = {}

    def add(self, name: str, graph: Graph, like: str, shape: tuple[int, ...] | None = None) -> str:
        """A state of a tensor's type and scale, and of its shape if no other is given."""
        tensor = graph.tensors[like]
        self.typed(name, shape or tensor.shape, tensor.dtype)
        self.g.graph.tensors[name].quant = tensor.quant
        return name

    def of(self, graph: Graph, name: str) -> list[str]:
        """A graph's own states, which are named after it."""
        return [self.add(f"{name}.{before}", graph, before) for before, _ in graph.state_pairs]

    def keep_of(self, graph: Graph, name: str, after: Sequence[str]) -> None:
        """What a graph's own states are in the next call."""
        for (before, _), tensor in zip(graph.state_pairs, after, strict=True):
            self.keep(f"{name}.{before}", tensor)

    def typed(self, name: str, shape: tuple[int, ...], dtype: str) -> str:
        """A state without a scale."""
        self.after[name] = ""
        return self.g.input(name, shape, dtype)

    def keep(self, state: str, tensor: str) -> None:
        """What a state is in the next call."""
        self.after[state] = tensor

    def finish(self, outputs: list[str]) -> Graph:
        """The graph, with its outputs; what states become is named after them."""
        graph = self.g.graph
        for state, tensor in self.after.items():
            self.g.rename(tensor, state + NEXT)
        graph.outputs = outputs + [state + NEXT for state in self.after]
        graph.n_states = len(self.after)
        read = {name for op in graph.ops for name in op.inputs}
        for name in [n for n, t in graph.tensors.items() if t.data is not None and n not in read]:
            del graph.tensors[name]  # such as the alignment of a head that looks at none
        return graph


class Source:
    """The features of a call's samples, and of those that were kept from the call before.

    Parameters
    ----------
    g : FusedBuilder
    states : States
        Gets what the front end keeps.
    spec : specification of the front end
    n_samples, pcm : of the input ``samples``

    Raises
    ------
    ExportError
        The front end cannot be written in float32 operations, or not for a stream.
    """

    def __init__(
        self, g: FusedBuilder, states: States, spec: FrameSpec, n_samples: int, pcm: str
    ) -> None:
        if pcm not in SCALES:
            raise ExportError(f"expected samples of {' or '.join(SCALES)}, got {pcm!r}")
        self.spec = _float_front_end(spec)
        self.g, self.states, self.pcm = g, states, pcm
        self.scale = SCALES[pcm]
        g.input(SAMPLES, (n_samples,), pcm)
        self.kept = plan(self.spec).kept
        if self.kept:
            states.typed(KEPT_SAMPLES, (self.kept,), pcm)
            states.keep(KEPT_SAMPLES, self._samples(KEPT_SAMPLES + NEXT, n_samples, self.kept))
        if isinstance(self.spec, PcenSpec):
            self.scale *= self.spec.input_scale
            self.level = states.typed(LEVEL, (self.spec.n_mels, 1), "float32")
            self.begun = states.typed(BEGUN, (1,), "float32")

    def features(self, name: str, first: int, n: int, each: int, quant: QuantParams) -> str:
        """Int8 features (1, n, n_mels, 1) of `n` frames from the call's frame `first` on.

        They are computed for `each` frames at a time, which keeps the spectra small.
        """
        g, parts = self.g, []
        for k in range(first, first + n, each):
            energy = self._energy(f"{name}.{k}", k, min(each, first + n - k))
            if isinstance(self.spec, FeatureSpec):
                energy = log_mel(g, f"{name}.{k}", energy, self.spec)
                energy = self._quantised(f"{name}.{k}.quantised", energy, quant)
            parts.append(energy)
        rows = g.join(name, parts, 1 if isinstance(self.spec, FeatureSpec) else 0)
        if not isinstance(self.spec, PcenSpec):
            return rows
        rows, self.level = pcen(g, f"{name}.pcen", rows, self.level, self.begun, self.spec)
        self.begun = g.scalar("features.one", 1)
        return self._quantised(f"{name}.quantised", rows, quant)

    def finish(self) -> None:
        """Keep what the next call goes on from."""
        if not isinstance(self.spec, PcenSpec):
            return
        g, one = self.g, self.g.scalar("features.one", 1)
        counted = g.binary("add", "level.calls", BEGUN, one)
        self.states.keep(BEGUN, g.binary("minimum", BEGUN + NEXT, counted, one))
        self.states.keep(LEVEL, self.level)

    def _energy(self, name: str, first: int, n: int) -> str:
        """Mel energies of some frames, (n, n_mels)."""
        hop = self.spec.hop_length
        samples = self._samples(f"{name}.samples", first * hop, self.kept + n * hop)
        if self.pcm != "float32":
            samples = self.g.cast(f"{name}.float", samples, "float32")
        return mel_energy(self.g, name, samples, self.spec, self.scale)

    def _quantised(self, name: str, rows: str, quant: QuantParams) -> str:
        image = self.g.reshape(f"{name}.image", rows, (1, *self.g.shape(rows), 1))
        return self.g.quantise(name, image, quant)

    def _samples(self, name: str, begin: int, size: int) -> str:
        """Samples from `begin` on, counted from the first that was kept."""
        g, parts = self.g, []
        if begin < self.kept:
            n_old = min(size, self.kept - begin)
            parts.append(g.slice(f"{name}.old", KEPT_SAMPLES, 0, begin, n_old))
            begin, size = self.kept, size - n_old
        if size:
            parts.append(g.slice(f"{name}.new", SAMPLES, 0, begin - self.kept, size))
        return g.join(name, parts, 0)


def _float_front_end(spec: FrameSpec) -> FeatureSpec | PcenSpec:
    if not isinstance(spec, (FeatureSpec, PcenSpec)):
        raise ExportError(
            f"expected a log-mel or PCEN front end in a fused model, got {type(spec).__name__}: "
            "the microfrontend computes in integers of up to 64 bits, which no file has; give a "
            "device its own, and the model the int8 features"
        )
    if any(spec.padding):
        raise ExportError(
            "expected frames that end with their last sample in a fused model, got centred ones, "
            "which read samples that have not arrived"
        )
    return spec
