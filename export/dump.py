"""A graph as text: one line an operation."""

from __future__ import annotations

from typing import Any

import numpy as np

from .graph import Graph, Op, Tensor, macs


def dump(graph: Graph) -> str:
    """What a graph computes, as text to read and to compare.

    A line of an operation has its number, which is that of its tensor in the .tflite file and of
    the value ``tk`` in the .onnx file; its kind; its inputs and its output with shape, type, scale
    and zero point; its attributes; the bytes of its output, and those of constants that no
    operation before reads.

    ::

        2 fully_connected  x (1, 8) int8[0.031, -4], up.weight (16, 8) int8[16 scales], up.bias
          (16,) int32 -> up (1, 16) int8[0.058, 12]  relu=True  16 B + 192 B
    """
    lines, seen = [_title(graph)], set[str]()
    befores, afters = zip(*graph.state_pairs, strict=True) if graph.n_states else ((), ())
    lines += [_end(graph, "input", name, name in befores) for name in graph.inputs]
    lines += [_end(graph, "output", name, name in afters) for name in graph.outputs]
    for number, op in enumerate(graph.ops):
        lines.append(_line(graph, number, op, seen))
        seen.update(op.inputs)
    return "\n".join(lines) + "\n"


def _title(graph: Graph) -> str:
    constants = sum(_bytes(t) for t in graph.tensors.values() if t.data is not None)
    return (
        f"{graph.name}: {'int8' if graph.quantised else 'float32'}, {len(graph.ops)} operations, "
        f"{macs(graph):,} multiply-accumulates, {constants:,} bytes of constants"
    )


def _end(graph: Graph, which: str, name: str, is_state: bool) -> str:
    return f"{which:6} {_tensor(graph.tensors[name])}{'  state' if is_state else ''}"


def _line(graph: Graph, number: int, op: Op, seen: set[str]) -> str:
    inputs = ", ".join(_tensor(graph.tensors[name]) for name in op.inputs)
    attributes = "".join(f"  {key}={_value(value)}" for key, value in op.attrs.items())
    size = f"{_bytes(graph.tensors[op.output]):,} B"
    new = {name for name in op.inputs if graph.tensors[name].data is not None} - seen
    if new:
        size += f" + {sum(_bytes(graph.tensors[name]) for name in new):,} B"
    output = _tensor(graph.tensors[op.output])
    return f"{number:6} {op.kind:16} {inputs} -> {output}{attributes}  {size}"


def _tensor(tensor: Tensor) -> str:
    text = f"{tensor.name} {tensor.shape} {tensor.dtype}"
    if tensor.quant is not None:
        return f"{text}[{tensor.quant.scale:.6g}, {tensor.quant.zero_point}]"
    if tensor.weight_scales is not None:
        return f"{text}[{len(tensor.weight_scales)} scales]"
    return text


def _value(value: Any) -> str:
    return str(value).replace(" ", "")


def _bytes(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
