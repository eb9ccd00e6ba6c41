"""The float graphs of a model: one step of its encoder and one pass of its head, or one step of a
keyword model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from edge_imputer.errors import ExportError
from edge_imputer.specs import ModelSpec, WindowedSpec

from .graph import Graph
from .lowering import Lowering

if TYPE_CHECKING:
    from edge_imputer.train.encoders import Encoder
    from edge_imputer.train.imputer import ImputerHead
    from edge_imputer.train.imputer_stack import ImputerStack
    from edge_imputer.train.keyword_model import KeywordModel

FEATURES, ENCODER_OUT = "features", "encoder_out"
ENCODER_WINDOW, ALIGNMENT, LOGITS = "encoder_window", "alignment", "logits"
PROBABILITY = "probability"


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


def build_wake_word_graph(model: KeywordModel) -> Graph:
    """One step of a model of one keyword, with the keyword's probability instead of logits.

    Inputs as `build_keyword_graph` has them; output ``probability`` (T', 1), then the next states.
    A softmax over two classes is the logistic function of their logits' difference, which is folded
    into the classifier.

    Raises
    ------
    ExportError
        If the model has other classes than one keyword and what is none.
    """
    if len(model.spec.classes) != 2 or not isinstance(model.classifier, nn.Linear):
        raise ExportError(
            f"expected a streaming model of one keyword, got the classes {model.spec.classes}"
        )
    low = Lowering("wake_word")
    frames = low(model.encoder, ENCODER_OUT, _features(low, model.encoder))
    weight, bias = (low.array(p) for p in (model.classifier.weight, model.classifier.bias))
    logit = low.g.fully_connected(LOGITS, frames, weight[1:] - weight[:1], bias[1:] - bias[:1])
    return low.finish([low.g.unary("sigmoid", PROBABILITY, logit)], model)


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


def build_stack_graphs(stack: ImputerStack) -> tuple[Graph, Graph]:
    """Float graphs of the Imputer whose alignment goes in before the whole encoder.

    Returns
    -------
    encoder : Graph
        What is computed once a chunk: ``features`` (1, T, n_mels, 1) and the states of the
        convolutions that subsample -> ``encoder_out`` (chunk_size, d_model), the next states.
    imputer : Graph
        One pass: ``encoder_window`` (chunk_size, d_model), ``alignment`` int32 (chunk_size,), then
        the states of the blocks -> ``logits`` (chunk_size, vocabulary_size), the next states. A
        stream in K passes keeps K of these states, one a pass; see `ImputerStack`.

    Raises
    ------
    SpecError
        Its attention cannot stream in constant memory.
    ExportError
        There is no graph for it.
    """
    stem, low = stack.encoder.stem, Lowering("encoder")
    frames = low(stem, "stem", _features(low, stack.encoder))
    shape = low.g.shape(frames)
    encoder = low.finish([low.g.reshape(ENCODER_OUT, frames, shape)], stem)
    low = Lowering("imputer")
    window = low.g.input(ENCODER_WINDOW, shape)
    ids = low.g.input(ALIGNMENT, shape[:1], "int32")
    logits = low(stack, LOGITS, window, ids)
    blocks, norm = stack.encoder.blocks, stack.encoder.norm
    return encoder, low.finish([logits], stack.embedding, blocks, norm, stack.output)
