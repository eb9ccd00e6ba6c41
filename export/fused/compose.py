"""Front end, encoder and loop of passes as one graph: samples of a chunk in, its tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from edge_imputer.errors import ExportError
from edge_imputer.imputation import resolve_schedule
from edge_imputer.quantization import QuantParams
from edge_imputer.specs import FeatureSpec, ModelSpec

from ..graph import Graph
from .builder import FusedBuilder
from .features import log_mel, plan
from .loop import Loop, commits

Pcm = Literal["int16", "float32"]
SCALES = {"int16": 2.0**-15, "float32": 1.0}
SAMPLES, TOKENS, LOG_PROBS = "samples", "tokens", "log_probs"
KEPT_SAMPLES, KEPT_FRAMES, KEPT_ALIGNMENTS = "samples.kept", "frames.kept", "alignments.kept"
NEXT = ".next"  # after a state's name: what it is in the next call


def fuse(
    encoder: Graph,
    imputer: Graph,
    spec: ModelSpec,
    *,
    schedule: Sequence[int] | None = None,
    pcm: Pcm = "int16",
) -> Graph:
    """One graph of everything from samples to committed tokens.

    The encoder and the head are in it with the integers they have; the features and the decisions
    are float32.

    Parameters
    ----------
    encoder, imputer : Graph
        Quantised, of one step of the encoder and one pass of the head.
    spec : ModelSpec
    schedule : frames committed a block in each pass; the model's own if None
    pcm : "int16" or "float32"
        Type of the samples; float32 are in -1..1.

    Returns
    -------
    Graph
        Inputs ``samples`` (chunk_samples,), then the states; outputs ``tokens`` int32 (C,) and
        ``log_probs`` float32 (C,), then the next states. States are the samples, encoder frames
        and alignments that the next chunk reads again, and the encoder's own. All begin at real
        zero, which is 0, or an int8 state's zero point.

    Raises
    ------
    ExportError
        The graphs are not quantised, or not those of this specification.
    SpecError
        The schedule leaves frames open.
    """
    spec.check()
    _check(encoder, imputer, spec)
    if pcm not in get_args(Pcm):
        raise ExportError(f"expected samples of {' or '.join(get_args(Pcm))}, got {pcm!r}")
    g = FusedBuilder("fused")
    g.input(SAMPLES, (spec.chunk_samples,), pcm)
    states = _States(g)
    source = _Source(g, states, spec.features)
    before = {name: states.add(f"encoder.{name}", encoder, name) for name in _states(encoder)}
    own = list(before.values())
    frames = []
    for step in range(spec.head.chunk_size // spec.step_frames):
        features = _features(g, source, spec, step, _quant(encoder, encoder.inputs[0]))
        feeds = {encoder.inputs[0]: features, **dict(zip(before, own, strict=True))}
        out, *own = g.inline(encoder, "encoder", feeds, f"step{step}")
        frames.append(out)
    for state, after in zip(before.values(), own, strict=True):
        states.keep(state, after)
    window = _window(g, states, g.join("chunk", frames, 0), imputer, spec)
    loop = _decide(g, states, imputer, spec, window, resolve_schedule(spec.head, None, schedule))
    outputs = [g.cast(TOKENS, loop.tokens, "int32"), loop.log_probs()]
    return states.finish(outputs)


class _States:
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
        return graph


class _Source:
    """The samples of a chunk and those kept from the last one, as if they were one array."""

    def __init__(self, g: FusedBuilder, states: _States, spec: FeatureSpec) -> None:
        self.g, self.kept = g, plan(spec).kept
        self.dtype = g.graph.tensors[SAMPLES].dtype
        if self.kept:
            states.typed(KEPT_SAMPLES, (self.kept,), self.dtype)
            n_samples = g.shape(SAMPLES)[0]
            states.keep(KEPT_SAMPLES, self.range(KEPT_SAMPLES + NEXT, n_samples, self.kept))

    def range(self, name: str, begin: int, size: int) -> str:
        """Samples from `begin` on, counted from the first that was kept."""
        g, parts = self.g, []
        if begin < self.kept:
            n_old = min(size, self.kept - begin)
            parts.append(g.slice(f"{name}.old", KEPT_SAMPLES, 0, begin, n_old))
            begin, size = self.kept, size - n_old
        if size:
            parts.append(g.slice(f"{name}.new", SAMPLES, 0, begin - self.kept, size))
        return g.join(name, parts, 0)


def _features(
    g: FusedBuilder, source: _Source, spec: ModelSpec, step: int, quant: QuantParams
) -> str:
    """Features of one step of the encoder, int8 (1, T, n_mels, 1).

    They are computed for one encoder frame at a time, which keeps the spectra small.
    """
    each, hop = spec.encoder.subsampling, spec.features.hop_length
    parts = []
    for k in range(spec.step_frames):
        name = f"features{step}.{k}"
        begin = (step * spec.step_frames + k) * each * hop
        samples = source.range(f"{name}.samples", begin, source.kept + each * hop)
        if source.dtype != "float32":
            samples = g.cast(f"{name}.float", samples, "float32")
        rows = log_mel(g, name, samples, spec.features, SCALES[source.dtype])
        image = g.reshape(f"{name}.image", rows, (1, each, spec.features.n_mels, 1))
        parts.append(g.quantise(name, image, quant))
    return g.join(f"features{step}", parts, 1)


def _window(g: FusedBuilder, states: _States, chunk: str, imputer: Graph, spec: ModelSpec) -> str:
    """What the head reads: the chunk's encoder frames after those of its left context."""
    left, like = spec.head.left_context, imputer.inputs[0]
    if not left:
        return chunk
    states.add(KEPT_FRAMES, imputer, like, (left, imputer.tensors[like].shape[1]))
    window = g.concat("frames", (KEPT_FRAMES, chunk), 0)
    states.keep(KEPT_FRAMES, g.slice("frames.last", window, 0, spec.head.chunk_size, left))
    return window


def _decide(
    g: FusedBuilder,
    states: _States,
    imputer: Graph,
    spec: ModelSpec,
    window: str,
    schedule: tuple[int, ...],
) -> Loop:
    """All passes; what each of them sees left of the chunk is a row of a state."""
    loop = Loop(g, imputer, spec, window)
    passes = commits(schedule, spec.head.block_size)
    left = spec.head.left_context
    if left:
        states.typed(KEPT_ALIGNMENTS, (len(passes) * left,), "int32")
    after = []
    for k, n_commit in enumerate(passes):
        name = f"pass{k}"
        before = g.slice(f"{name}.before", KEPT_ALIGNMENTS, 0, k * left, left) if left else None
        seen = loop.run_pass(name, before, n_commit)
        after += [] if seen is None else [seen]
    if left:
        states.keep(KEPT_ALIGNMENTS, g.join("alignments", after, 0))
    return loop


def _check(encoder: Graph, imputer: Graph, spec: ModelSpec) -> None:
    """Raise unless these are the two graphs of this model."""
    for graph in (encoder, imputer):
        if not graph.quantised:
            raise ExportError(f"expected quantised graphs, got {graph.name} in float; quantise it")
    wanted: dict[str, tuple[int, ...]] = {
        encoder.inputs[0]: (1, spec.step_features, spec.features.n_mels, 1),
        encoder.outputs[0]: (spec.step_frames, spec.encoder.d_model),
    }
    wanted_head: dict[str, tuple[int, ...]] = {
        imputer.inputs[0]: (spec.head.window, spec.encoder.d_model),
        imputer.inputs[1]: (spec.head.window,),
        imputer.outputs[0]: (spec.head.chunk_size, spec.tokens.vocabulary_size),
    }
    for graph, shapes in ((encoder, wanted), (imputer, wanted_head)):
        for name, shape in shapes.items():
            found = graph.tensors[name].shape
            if found != shape:
                raise ExportError(
                    f"{graph.name}: expected {name} to be {shape}, got {found}; fuse the graphs "
                    "of this specification"
                )
    if _quant(encoder, encoder.outputs[0]) != _quant(imputer, imputer.inputs[0]):
        raise ExportError(
            "expected a head that reads encoder frames as this encoder writes them, got "
            f"{_quant(imputer, imputer.inputs[0])} and {_quant(encoder, encoder.outputs[0])}; "
            "quantise them together"
        )


def _quant(graph: Graph, name: str) -> QuantParams:
    quant = graph.tensors[name].quant
    if quant is None or graph.tensors[name].dtype != "int8":
        raise ExportError(f"{graph.name}: expected {name} to be int8, got no scale of it")
    return quant


def _states(graph: Graph) -> list[str]:
    return [before for before, _ in graph.state_pairs]
