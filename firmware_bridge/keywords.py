"""Writes a quantised keyword model as C99: the files of `emit`, with one graph and its step."""

from __future__ import annotations

from pathlib import Path

from edge_imputer.errors import ExportError
from edge_imputer.export.graph import Graph
from edge_imputer.export.op_params import quant_of

from .emit import macros_of, reset_function, state_bytes, streaming_step, write_sources

RESET = "void edim_keywords_reset(int8_t *state)"
# C99 has no array of no bytes, which a state may be: hence the pointer.
STEP = (
    "void edim_keywords_step(const int8_t features[EDIM_FEATURES], int8_t *state,\n"
    "                        int8_t logits[EDIM_LOGITS], int8_t arena[EDIM_ARENA_BYTES])"
)


def write_native_keywords(graph: Graph, hop_frames: int, folder: Path) -> dict[str, int]:
    """Write ``folder/native``; the same graph gives the same bytes.

    Parameters
    ----------
    graph : Graph
        Quantised, as `edge_imputer.export.build.build_keyword_graph` lays it out.
    hop_frames : int
        Feature frames by which a step moves on, `KeywordModelSpec.step_features`.
    folder : Path
        The bundle folder.

    Returns
    -------
    dict from the graph's name to the bytes of scratch memory that one call needs

    Raises
    ------
    ExportError
        If the graph is not quantised, or of another form.
    """
    sizes = _sizes(graph, hop_frames)
    step = streaming_step(graph, "logits", STEP)
    return write_sources(folder, sizes, reset_function(graph, RESET), [step])


def _sizes(graph: Graph, hop_frames: int) -> dict[str, str]:
    if not graph.quantised:
        raise ExportError("expected a quantised graph; quantise it first")
    n = graph.n_states
    features, logits = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    fits = (
        len(graph.inputs) == len(graph.outputs) == n + 1
        and features.shape == (1, *features.shape[1:3], 1)
        and len(logits.shape) == 2
    )
    if not fits:
        raise ExportError(
            f"{graph.name}: expected features (1, T, F, 1) to logits (N, C) besides the states, "
            f"got {graph.inputs} of which the first is {features.shape}, and {graph.outputs} of "
            f"which the first is {logits.shape}, with {n} states"
        )
    sizes = {
        "FEATURE_FRAMES": features.shape[1],
        "HOP_FRAMES": hop_frames,
        "N_MELS": features.shape[2],
        "STEP_SCORES": logits.shape[0],
        "N_CLASSES": logits.shape[1],
        "STATE_BYTES": state_bytes(graph),
    }
    quants = {
        "FEATURE": quant_of(graph, features.name),
        "LOGIT": quant_of(graph, logits.name),
    }
    return macros_of(sizes, quants)
