"""What operations of an ONNX file do alike is in it once, as a function of the model's.

An operation in int8 is three to six nodes, which say the same for every layer but for what they
read: a function has the nodes, and a call of it the names. onnxruntime puts the nodes back in the
place of the calls when it loads a file, before anything else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx
from onnx import FunctionProto, NodeProto, helper, inliner

DOMAIN = "q"  # of the functions
AROUND = ("DequantizeLinear", "QuantizeLinear", "Mul", "Transpose", "Reshape")
Body = tuple[bytes, ...]


def folded(
    groups: Sequence[Sequence[NodeProto]], opset: int
) -> tuple[list[NodeProto], list[FunctionProto]]:
    """Nodes of a graph, and the functions that they call.

    Parameters
    ----------
    groups : nodes of one operation after the other
        Of a group, others read what nothing in the group reads.
    opset : int
        That the nodes are of.
    """
    bodies = [_body(group) for group in groups]
    count = Counter(nodes for _, _, nodes in bodies)
    functions: dict[Body, FunctionProto] = {}
    names: Counter[str] = Counter()
    nodes: list[NodeProto] = []
    for group, (inputs, outputs, body) in zip(groups, bodies, strict=True):
        if len(group) == 1 or count[body] == 1:
            nodes += group
            continue
        if body not in functions:
            kind = next((n.op_type for n in group if n.op_type not in AROUND), "Mul")
            name = f"{kind}{names[kind] or ''}"
            names[kind] += 1
            functions[body] = _function(name, len(inputs), len(outputs), body, opset)
        call = helper.make_node(functions[body].name, inputs, outputs, domain=DOMAIN)
        nodes.append(call)
    return nodes, list(functions.values())


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the functions' nodes in the place of the calls."""
    return inliner.inline_local_functions(model)


def _body(group: Sequence[NodeProto]) -> tuple[list[str], list[str], Body]:
    """What a group reads from elsewhere, what it gives, and its nodes with names by position."""
    made = [name for node in group for name in node.output]
    read = list(dict.fromkeys(name for node in group for name in node.input))
    inputs = [name for name in read if name not in made]
    outputs = [name for name in made if name not in read]
    called = dict(zip(inputs, _parameters("x", len(inputs)), strict=True))
    called |= dict(zip(outputs, _parameters("y", len(outputs)), strict=True))
    inner = [name for name in made if name in read]
    called |= dict(zip(inner, _parameters("v", len(inner)), strict=True))
    nodes = []
    for node in group:
        renamed = NodeProto()
        renamed.CopyFrom(node)
        renamed.input[:] = [called[name] for name in node.input]
        renamed.output[:] = [called[name] for name in node.output]
        nodes.append(renamed.SerializeToString(deterministic=True))
    return inputs, outputs, tuple(nodes)


def _function(name: str, n_inputs: int, n_outputs: int, body: Body, opset: int) -> FunctionProto:
    return helper.make_function(
        DOMAIN,
        name,
        _parameters("x", n_inputs),
        _parameters("y", n_outputs),
        [NodeProto.FromString(node) for node in body],
        [helper.make_opsetid("", opset)],
    )


def _parameters(letter: str, n: int) -> list[str]:
    return [f"{letter}{k}" for k in range(n)]
