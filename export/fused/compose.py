"""Front end, encoder and loop of passes as one graph: samples of a chunk in, its tokens out."""

from __future__ import annotations

from collections.abc import Sequence

from edge_imputer.errors import ExportError
from edge_imputer.imputation import resolve_revisions, resolve_schedule
from edge_imputer.specs import ModelSpec

from ..graph import Graph
from .builder import FusedBuilder, int8_quant
from .loop import Loop, commits
from .streams import Pcm, Source, States

TOKENS = "tokens"
KEPT_FRAMES, KEPT_ALIGNMENTS = "frames.kept", "alignments.kept"


def fuse(
    encoder: Graph,
    imputer: Graph,
    spec: ModelSpec,
    *,
    schedule: Sequence[int] | None = None,
    revisions: int | None = None,
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
    revisions : passes after these that find every frame anew; the model's own if None
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
        The schedule leaves frames open, or revisions are fewer than none.
    """
    spec.check()
    _check(encoder, imputer, spec)
    g = FusedBuilder("fused")
    states = States(g)
    source = Source(g, states, spec.features, spec.chunk_samples, pcm)
    frames = []
    own = states.of(encoder, "encoder")
    for step in range(spec.head.chunk_size // spec.step_frames):
        name, n = f"step{step}", spec.step_features
        quant = int8_quant(encoder, encoder.inputs[0])
        features = source.features(f"{name}.features", step * n, n, spec.encoder.subsampling, quant)
        feeds = dict(zip(encoder.inputs, (features, *own), strict=True))
        out, *own = g.inline(encoder, "encoder", feeds, name)
        frames.append(out)
    states.keep_of(encoder, "encoder", own)
    source.finish()
    window = _window(g, states, g.join("chunk", frames, 0), imputer, spec)
    passes = commits(resolve_schedule(spec.head, None, schedule), spec.head.block_size)
    n_revisions = resolve_revisions(spec.head, revisions)
    loop = _decide(g, states, Loop(g, imputer, spec, window), passes, n_revisions)
    return states.finish([g.cast(TOKENS, loop.tokens, "int32"), loop.log_probs()])


def _window(g: FusedBuilder, states: States, chunk: str, imputer: Graph, spec: ModelSpec) -> str:
    """What the head reads: the chunk's encoder frames after those of its left context."""
    left, like = spec.head.left_context, imputer.inputs[0]
    if not left:
        return chunk
    states.add(KEPT_FRAMES, imputer, like, (left, imputer.tensors[like].shape[1]))
    window = g.concat("frames", (KEPT_FRAMES, chunk), 0)
    states.keep(KEPT_FRAMES, g.slice("frames.last", window, 0, spec.head.chunk_size, left))
    return window


def _decide(
    g: FusedBuilder, states: States, loop: Loop, passes: Sequence[int], n_revisions: int
) -> Loop:
    """All passes; what each of them sees left of the chunk is a row of a state."""
    left, n_passes = loop.head.left_context, len(passes) + n_revisions
    if left:
        states.typed(KEPT_ALIGNMENTS, (n_passes * left,), "int32")
    after = []
    for k in range(n_passes):
        name = f"pass{k}"
        before = g.slice(f"{name}.before", KEPT_ALIGNMENTS, 0, k * left, left) if left else None
        revises = k >= len(passes)
        seen = loop.revise(name, before) if revises else loop.run_pass(name, before, passes[k])
        after += [] if seen is None else [seen]
    if left:
        states.keep(KEPT_ALIGNMENTS, g.join("alignments", after, 0))
    return loop


def _check(encoder: Graph, imputer: Graph, spec: ModelSpec) -> None:
    """Raise unless these are the two graphs of this model."""
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
    written, read = int8_quant(encoder, encoder.outputs[0]), int8_quant(imputer, imputer.inputs[0])
    if written != read:
        raise ExportError(
            "expected a head that reads encoder frames as this encoder writes them, got "
            f"{read} and {written}; quantise them together"
        )
