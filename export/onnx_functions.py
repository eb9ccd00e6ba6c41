"""What operations of an ONNX file do alike is in it once, as a function of the model's.

An operation in int8 is three to six nodes, which say the same for every layer but for what they
read: a function has the nodes, and a call of it the names. onnxruntime puts the nodes back in the
place of the calls when it loads a file, before anything else, and fuses them as it would have.

What several operations make of a stored value before they compute with it stays outside, once (see
`shared`). Were it in the functions, onnxruntime in float32 would have a copy of a GRU's weight for
every step that is written out, more than caches hold, and take 40 % more time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import onnx
from onnx import FunctionProto, NodeProto, helper, inliner

DOMAIN = "q"  # of the functions
AROUND = ("DequantizeLinear", "QuantizeLinear", "Mul", "Transpose", "Reshape")
READING = ("DequantizeLinear", "Transpose", "Reshape")  # how an operation makes numbers of bytes
Body = tuple[bytes, ...]
Groups = Sequence[Sequence[NodeProto]]


def shared(groups: Groups) -> list[list[NodeProto]]:
    """The groups, but what several of them make alike of what is stored is made once.

    It is a group of its own, before the first that reads it: real values of activations and
    weights, in whatever layout, and scales of biases.

    Parameters
    ----------
    groups : nodes of one operation after the other
    """
    made = {name for group in groups for node in group for name in node.output}
    keys: dict[str, tuple[Hashable, ...]] = {}  # what makes a value, by the value's name
    first: dict[tuple[Hashable, ...], str] = {}
    for group in groups:
        inner = {name for node in group for name in node.input}
        for node in group:
            if node.output[0] in inner and (node.op_type in READING or not made & {*node.input}):
                inputs = [first[keys[name]] if name in keys else name for name in node.input]
                attrs = [a.SerializeToString(deterministic=True) for a in node.attribute]
                key = (node.op_type, *inputs, *attrs)
                keys[node.output[0]] = key
                first.setdefault(key, node.output[0])
    count = Counter(keys.values())
    names = {name: first[key] for name, key in keys.items() if count[key] > 1}
    result = []
    for group in groups:
        renamed = [_renamed(node, lambda name: names.get(name, name)) for node in group]
        result += [[node] for node in renamed if names.get(node.output[0]) == node.output[0]]
        result.append([node for node in renamed if node.output[0] not in names])
    return result


def _renamed(node: NodeProto, name_of: Callable[[str], str]) -> NodeProto:
    """A copy of a node that reads what other names stand for."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [name_of(name) for name in node.input]
    return copy


def folded(groups: Groups, opset: int) -> tuple[list[NodeProto], list[FunctionProto]]:
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
        renamed = _renamed(node, called.__getitem__)
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
