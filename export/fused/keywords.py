"""A keyword model with its front end as one graph: samples of a step in, probabilities out."""

from __future__ import annotations

from edge_imputer.errors import ExportError
from edge_imputer.specs import KeywordModelSpec

from ..graph import Graph
from .builder import FusedBuilder, int8_quant
from .streams import Pcm, Source, States

PROBABILITIES = "probabilities"


def fuse_keywords(graph: Graph, spec: KeywordModelSpec, *, pcm: Pcm = "int16") -> Graph:
    """One graph from samples to the probabilities of the classes.

    Parameters
    ----------
    graph : Graph
        Quantised, of one step of a keyword model, as `build.build_keyword_graph` has it.
    spec : KeywordModelSpec
        Of log-mel or PCEN features; not of windows.
    pcm : "int16" or "float32"
        Type of the samples; float32 are in -1..1.

    Returns
    -------
    Graph
        Inputs ``samples``, those of one step, then the states; outputs ``probabilities`` float32
        (T', n_classes), one row a score, not smoothed, then the next states. All begin at real
        zero.

    Raises
    ------
    ExportError
        The graph is not quantised or not that of the specification, or the front end or the
        windows have no fused form.
    """
    spec.check()
    if spec.windowed:
        raise ExportError(
            "expected a keyword model that streams, got one over windows, whose features overlap "
            "from one call to the next: keep them outside, and call the model on each window"
        )
    shape, logits = graph.tensors[graph.inputs[0]].shape, graph.outputs[0]
    g = FusedBuilder("fused")
    states = States(g)
    source = Source(g, states, spec.features, shape[1] * spec.features.hop_length, pcm)
    found = shape[2], graph.tensors[logits].shape[-1]
    if found != (spec.features.n_mels, len(spec.classes)):
        raise ExportError(
            f"{graph.name}: expected {spec.features.n_mels} bands in and {len(spec.classes)} "
            f"classes out, got {found[0]} and {found[1]}; fuse the graph of this specification"
        )
    quant = int8_quant(graph, graph.inputs[0])
    features = source.features("features", 0, shape[1], spec.encoder.subsampling, quant)
    feeds = dict(zip(graph.inputs, (features, *states.of(graph, graph.name)), strict=True))
    out, *own = g.inline(graph, graph.name, feeds, "step")
    states.keep_of(graph, graph.name, own)
    source.finish()
    quant = int8_quant(graph, logits)
    steps = g.cast("steps", out, "float32")
    centred = g.binary("sub", "centred", steps, g.scalar("logits.zero", quant.zero_point))
    real = g.binary("mul", "logits", centred, g.scalar("logits.scale", quant.scale))
    return states.finish([g.unary("softmax", PROBABILITIES, real)])
