"""What values are called in an ONNX file.

Files of small networks would be half names, so the others are short. The output of operation k is
``tk``, where k is its line in `dump`; ``tkf`` is its real value, ``tky`` that before it is
quantised, ``tkn`` its int8 value with channels first. Scales are ``s0``, ``s1``..., zero points
``z-128``, shapes ``i1x8x56``; what has the same value is one initialiser.
"""

from __future__ import annotations

import re

from .graph import Graph


def value_names(graph: Graph) -> dict[str, str]:
    """What the file calls every tensor of a graph: inputs, outputs and constants as the graph does,
    the output of operation k ``tk``."""
    prefix = prefix_of(graph)
    numbered = {op.output: f"{prefix}t{k}" for k, op in enumerate(graph.ops)}
    return numbered | {name: name for name in _kept_names(graph)}


def _kept_names(graph: Graph) -> list[str]:
    constants = (name for name, tensor in graph.tensors.items() if tensor.data is not None)
    return [*graph.inputs, *graph.outputs, *constants]


def prefix_of(graph: Graph) -> str:
    """What short names begin with, so that they are none of the graph's."""
    kept, prefix = _kept_names(graph), ""
    while any(re.match(prefix + "[tsiz][-0-9]", name) for name in kept):
        prefix += "_"
    return prefix
