"""Writes a graph of frames as the streaming .tflite file that micro_wake_word loads.

The states of the graph become variables of the file, by their names: read where they are first
needed, so that little is in memory at once, and assigned as soon as they are known. The second
subgraph, which is called once, sets them to real zeros. The last operator makes uint8 of the score.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from edge_imputer.errors import ExportError
from edge_imputer.quantization import QuantParams

from ..graph import Array, Graph, Op, Tensor
from ..tflite_calls import Call
from ..tflite_emitter import OPERATORS, Builtin, TfliteWriter
from .contract import OUTPUT_SCALE, check_file
from .frames import FRAMES

PROBABILITY = "wake_probability"
INITIAL = "initial_states"
VARIABLES = (1, "2.6.0")  # version of their operators, and the first runtime with them


def streaming_bytes(graph: Graph) -> bytes:
    """The streaming .tflite file of a graph that `as_frames` made.

    Raises
    ------
    ExportError
        If the file would not be one that the firmware loads.
    MissingExtraError
        If flatbuffers or ai-edge-litert is not installed.
    """
    if not graph.quantised:
        raise ExportError(f"expected a quantised graph, got {graph.name}, which is float")
    data = _StreamingWriter(graph).finish({})
    check_file(data)
    return data


def probability(score: Array) -> Array:
    """What the last operator makes of the graph's int8 score: uint8, over 256."""
    shifted: Array = (score.astype(np.int16) + 128).astype(np.uint8)
    return shifted


class _StreamingWriter(TfliteWriter):
    """States as variables; slices by the only operator for them that the firmware has."""

    builtins: ClassVar = {
        **OPERATORS,
        "slice": Builtin("STRIDED_SLICE", (2, "1.14.0"), (1, "1.6.0")),
        "call_once": Builtin("CALL_ONCE", VARIABLES, VARIABLES),
        "variable": Builtin("VAR_HANDLE", VARIABLES, VARIABLES),
        "read": Builtin("READ_VARIABLE", VARIABLES, VARIABLES),
        "assign": Builtin("ASSIGN_VARIABLE", VARIABLES, VARIABLES),
        "requantise": Builtin("QUANTIZE", (1, "1.14.0"), (1, "1.14.0")),
    }

    @property
    def interface(self) -> tuple[list[str], list[str]]:
        """Feature frames and the probability; states do not leave the file."""
        return [FRAMES], [PROBABILITY]

    def call_of(self, kind: str, first: Op) -> Call:
        """As it is, but for slices."""
        if kind != "slice":
            return super().call_of(kind, first)
        begin, size = first.attrs["begin"], first.attrs["size"]
        end = [b + n for b, n in zip(begin, size, strict=True)]
        return Call("StridedSliceOptions", {}, (begin, end, [1] * len(begin)))

    def _operators(self) -> list[int]:
        states = dict(self.graph.state_pairs)
        before_of = {after: before for before, after in states.items()}
        handles = {state: self._number(_resource()) for state in states}
        operators = [self._emit("call_once", Call("CallOnceOptions", {"initSubgraphIndex": 1}))]
        operators += [self._variable(*item) for item in handles.items()]
        for op in self.graph.ops:
            for state in [name for name in op.inputs if name in states]:
                tensors = [handles[state]], [self.numbers[state]]
                operators.append(self._emit("read", Call("ReadVariableOptions"), *tensors))
                del states[state]  # later operations find what was read
            operators.append(self._operator((op,)))
            if op.output in before_of:
                kept = [handles[before_of[op.output]], self.numbers[op.output]]
                operators.append(self._emit("assign", Call("AssignVariableOptions"), kept))
        score = self.numbers[self.graph.outputs[0]]
        self._activation(_probability(), PROBABILITY)
        ends = [score], [self.numbers[PROBABILITY]]
        return [*operators, self._emit("requantise", Call("QuantizeOptions"), *ends)]

    def _subgraphs(self) -> list[int]:
        tensors, operators = [], []
        for k, (state, _) in enumerate(self.graph.state_pairs):
            zeros = _zeros(self.graph.tensors[state])
            assert zeros.data is not None
            tensors += [self._tensor(_resource(), "", 0)]
            tensors += [self._tensor(zeros, "", self._buffer(zeros.data))]
            operators.append(self._variable(state, 2 * k))
            kept = [2 * k, 2 * k + 1]
            operators.append(self._emit("assign", Call("AssignVariableOptions"), kept))
        return [*super()._subgraphs(), self._subgraph(INITIAL, tensors, [], [], operators)]

    def _variable(self, state: str, number: int) -> int:
        """The operator that gives a variable by its name."""
        names = {"container": self.file.text(""), "sharedName": self.file.text(state)}
        return self._emit("variable", Call("VarHandleOptions", names), [], [number])

    def _number(self, tensor: Tensor) -> int:
        """Number of a new tensor without a name."""
        self.tensors.append(self._tensor(tensor, "", 0))
        return len(self.tensors) - 1


def _resource() -> Tensor:
    return Tensor("", (), "resource")


def _probability() -> Tensor:
    quant = QuantParams(scale=OUTPUT_SCALE, zero_point=0)
    return Tensor(PROBABILITY, (1, 1), "uint8", quant=quant)


def _zeros(state: Tensor) -> Tensor:
    assert state.quant is not None
    data = np.full(state.shape, state.quant.zero_point, np.int8)
    return Tensor("", state.shape, "int8", data=data, quant=state.quant)
