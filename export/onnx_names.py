"""What an ONNX file calls the tensors of a graph: short, where nobody asks by name."""

from __future__ import annotations

import re

from .graph import Graph


def value_names(graph: Graph) -> dict[str, str]:
    """What the file calls every tensor of a graph: inputs, outputs and constants as the graph does,
    the output of operation k ``tk``."""
    kept = kept_names(graph)
    numbered = {op.output: f"{prefix_of(kept)}t{k}" for k, op in enumerate(graph.ops)}
    return numbered | {name: name for name in kept}


def kept_names(graph: Graph) -> list[str]:
    """Names that the file takes over: of inputs, outputs and constants."""
    constants = (name for name, tensor in graph.tensors.items() if tensor.data is not None)
    return [*graph.inputs, *graph.outputs, *constants]


def prefix_of(kept: list[str]) -> str:
    """What short names begin with, so that they are none of those kept."""
    prefix = ""
    while any(re.match(prefix + "[tsiz][-0-9]", name) for name in kept):
        prefix += "_"
    return prefix
