"""The float graphs of a model: one step of its encoder and one pass of its head, or one step of a
keyword model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_imputer.errors import ExportError
from edge_imputer.specs import ModelSpec, WindowedSpec

from .graph import Graph
from .lowering import Lowering

if TYPE_CHECKING:
    from edge_imputer.train.encoders import Encoder
    from edge_imputer.train.imputer import ImputerHead
    from edge_imputer.train.keyword_model import KeywordModel

FEATURES, ENCODER_OUT = "features", "encoder_out"
ENCODER_WINDOW, ALIGNMENT, LOGITS = "encoder_window", "alignment", "logits"


def build_graphs(
    encoder: Encoder, head: ImputerHead, spec: ModelSpec, *, traced: bool = False
) -> tuple[Graph, Graph]:
    """Float graphs of one encoder step and one pass of the Imputer head.

    Parameters
    ----------
    encoder : Encoder
    head : ImputerHead
    spec : ModelSpec
        What both were built from.
    traced : bool
        Whether constants are `lowering.TracedArray`, functions of the weights with a gradient.

    Returns
    -------
    encoder : Graph
        Inputs ``features`` (1, T, n_mels, 1), the frames of one step, then the states, such as one
        (1, left, F, C) a convolution that looks back. Outputs ``encoder_out`` (T', d_model), then
        the next states.
    imputer : Graph
        Inputs ``encoder_window`` (window, d_model) and ``alignment`` int32 (window,); output
        ``logits`` (chunk_size, vocabulary_size).

    Raises
    ------
    ExportError
        If the modules and the specification do not belong together, or there is no graph for them.
    """
    spec.check()
    spec.check_streaming()
    built_from = (encoder.spec, encoder.n_mels, head.spec)
    if built_from != (spec.encoder, spec.features.n_mels, spec.head):
        raise ExportError("expected modules built from this specification, got those of another")
    if head.vocabulary_size != spec.tokens.vocabulary_size:
        raise ExportError(
            f"expected a head with {spec.tokens.vocabulary_size} outputs, "
            f"got {head.vocabulary_size}"
        )
    return (
        build_encoder_graph(encoder, traced=traced),
        build_imputer_graph(head, encoder.d_model, traced=traced),
    )


def build_encoder_graph(encoder: Encoder, *, traced: bool = False) -> Graph:
    """One step of an encoder, or one window, as `build_graphs` has it."""
    low = Lowering("encoder", traced=traced)
    return low.finish([low(encoder, ENCODER_OUT, _features(low, encoder))], encoder)


def build_keyword_graph(model: KeywordModel, *, traced: bool = False) -> Graph:
    """One step of a keyword model, or one window.

    Input ``features`` (1, T, n_mels, 1), then the states; output ``logits`` (T', n_classes), then
    the next states. A model over windows has no states, and T is its whole window.
    """
    low = Lowering("keywords", traced=traced)
    features = _features(low, model.encoder)
    if model.spec.windowed:
        return low.finish([low(model.encoder, LOGITS, features)], model)
    frames = low(model.encoder, ENCODER_OUT, features)
    return low.finish([low(model.classifier, LOGITS, frames)], model)


def _features(low: Lowering, encoder: Encoder) -> str:
    """The input: the feature frames of one step, or of one window."""
    n_frames = encoder.step_features
    if isinstance(encoder.spec, WindowedSpec):
        n_frames = encoder.spec.window_frames
    return low.g.input(FEATURES, (1, n_frames, encoder.n_mels, 1))


def build_imputer_graph(head: ImputerHead, d_model: int, *, traced: bool = False) -> Graph:
    """One pass of a head, as `build_graphs` has it."""
    low = Lowering("imputer", traced=traced)
    frames = low.g.input(ENCODER_WINDOW, (head.spec.window, d_model))
    ids = low.g.input(ALIGNMENT, (head.spec.window,), "int32")
    return low.finish([low(head, LOGITS, frames, ids)], head)
