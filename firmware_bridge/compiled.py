"""Any quantised graph as C code in this process: what a device computes, and how long it takes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_imputer.backends.native_library import compile_library
from edge_imputer.errors import BackendError
from edge_imputer.export.graph import Graph

from .placement import Place, place
from .step import Step

Array = npt.NDArray[Any]
SOURCES = Path(__file__).parent / "src"
KERNELS = ("edim_kernels.c", "edim_kernels.h")
HEAD = '#include "edim_kernels.h"\n\n#define EDIM_TOKEN_OUT_OF_RANGE 1\n\n'
FUNCTION = "edim_graph"


class CompiledGraph:
    """One graph, called with arrays in the order of its inputs; states change in place inside.

    Parameters
    ----------
    graph : Graph
        Quantised.

    Raises
    ------
    BackendError
        Without a C compiler.
    ExportError
        If the graph has no C code.
    """

    def __init__(self, graph: Graph) -> None:
        inputs = {name: Place(f"in{k}", 0) for k, name in enumerate(graph.inputs)}
        outputs = {name: Place(f"out{k}", 0) for k, name in enumerate(graph.outputs)}
        outputs |= {after: inputs[before] for before, after in graph.state_pairs}
        plan = place(graph, inputs, outputs)
        self._buffers = {
            at.base: np.zeros(graph.tensors[name].shape, graph.tensors[name].dtype)
            for name, at in (*outputs.items(), *inputs.items())
        }
        self._inputs = [self._buffers[inputs[name].base] for name in graph.inputs]
        self._outputs = [self._buffers[outputs[name].base] for name in graph.outputs]
        self._buffers["arena"] = np.zeros(max(1, plan.arena_bytes), np.int8)
        self._call = self._compile(Step(graph, plan, self._signature(), result="0"))
        self._arguments = [ctypes.c_void_p(b.ctypes.data) for b in self._buffers.values()]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call the graph; fresh arrays, the inputs are not modified.

        Raises
        ------
        BackendError
            On a wrong number, shape or dtype of inputs, or a token out of range.
        """
        given, expected = (
            [(a.shape, a.dtype) for a in arrays] for arrays in (inputs, self._inputs)
        )
        if given != expected:
            raise BackendError(f"expected inputs {expected}, got {given}")
        for buffer, array in zip(self._inputs, inputs, strict=True):
            buffer[...] = array
        if self._call(*self._arguments) != 0:
            raise BackendError("expected tokens that the embedding's table has, got others")
        return [buffer.copy() for buffer in self._outputs]

    def _signature(self) -> str:
        parameters = ", ".join(f"{b.dtype.name}_t *{name}" for name, b in self._buffers.items())
        return f"int32_t {FUNCTION}({parameters})"

    def _compile(self, step: Step) -> Any:
        prototype = f"{step.signature};\n"
        text = "\n".join([HEAD, prototype, *step.tables, step.function()])
        sources = {name: (SOURCES / name).read_bytes() for name in KERNELS}
        library = ctypes.PyDLL(str(compile_library({**sources, "graph.c": text.encode()})))
        return library[FUNCTION]  # an int32, which ctypes takes functions to return
