"""The text of a C function in the making: its tables, its variables, its calls."""

from __future__ import annotations

import re
from math import prod
from typing import Any

import numpy.typing as npt

from edge_imputer.export.graph import Graph, Op
from edge_imputer.export.memory import tensor_bytes
from edge_imputer.export.op_params import constant_of

from .c_text import Names, struct, table
from .placement import Placement

PARAMETERS = {"features", "state", "encoder_out", "encoder_window", "alignment", "logits", "arena"}


class CFunction:
    """Text of one C function and of the tables it reads.

    Parameters
    ----------
    graph : Graph
        Quantised.
    placement : Placement
        Where its tensors lie.
    signature : str
        Of the C function, whose parameters are the bases of the placement.
    result : str
        The C expression it returns, empty for none.
    """

    def __init__(
        self, graph: Graph, placement: Placement, signature: str, result: str = ""
    ) -> None:
        self.graph = graph
        self.placement = placement
        self.signature = signature
        self.result = result
        self.tables: list[str] = []
        self._body: list[str] = []
        self._variables = Names(PARAMETERS)
        self._constants = Names(set())
        self._declared: set[str] = set()

    def function(self) -> str:
        """The definition of the C function."""
        body = "".join(self._body).lstrip("\n")
        ignored = "".join(
            f"    (void){name};\n"
            for name in ("alignment", "state", "arena")
            if re.search(rf"\b{name}\b", self.signature) and not re.search(rf"\b{name}\b", body)
        )
        result = f"\n    return {self.result};\n" if self.result else ""
        return f"{self.signature} {{\n{ignored}{body}{result}}}\n"

    def _scratch(self, op: Op) -> str:
        """The C expression of an operation's scratch memory."""
        at = self.placement.scratch.get(op.output)
        return "0" if at is None else f"arena + {at}"

    def _comment(self, op: Op) -> None:
        shapes = [self.graph.tensors[name] for name in op.inputs]
        inputs = ", ".join(f"{t.name} {t.shape}" for t in shapes if t.data is None)
        relu = ", relu" if op.attrs.get("relu") else ""
        output = self.graph.tensors[op.output]
        text = f"{op.output}: {op.kind}{relu} of {inputs} -> {output.shape}"
        self._body.append(f"\n    /* {text} */\n")

    def _call(self, function: str, *arguments: object) -> None:
        self._body.append(f"    {function}({', '.join(map(str, arguments))});\n")

    def _moved(self, op: Op) -> tuple[str, str]:
        """The C expressions of an operation's first input and of its output."""
        return self._read(op.inputs[0]), self._write(op.output)

    def _size(self, name: str) -> int:
        """Elements of a tensor."""
        return prod(self.graph.tensors[name].shape)

    def _bytes(self, name: str) -> int:
        return tensor_bytes(self.graph, name)

    def _read(self, name: str) -> str:
        return self._pointer(name, "const int8_t *const")

    def _write(self, name: str) -> str:
        return self._pointer(name, "int8_t *const")

    def _pointer(self, name: str, kind: str) -> str:
        """The expression of a tensor's address; declares a variable at its first use."""
        if self.graph.tensors[name].data is not None:
            return self._table(name, constant_of(self.graph, name, "int8"))
        at = self.placement.places[name]
        if at.offset == 0 and at.base not in ("arena", "state"):
            return at.base
        if name not in self._declared:
            self._declared.add(name)
            self._body.append(f"    {kind} {self._variables[name]} = {at};\n")
        return self._variables[name]

    def _table(self, name: str, values: npt.NDArray[Any]) -> str:
        """Add a table, once; returns its C name."""
        c_name = f"{self.graph.name}_{self._constants[name]}"
        text = table(c_name, values)
        if text not in self.tables:
            self.tables.append(text)
        return c_name

    def _struct(self, kind: str, name: str, fields: dict[str, Any]) -> str:
        """Add a constant struct; returns its address."""
        c_name = f"{self.graph.name}_{self._constants[name]}"
        self.tables.append(struct(kind, c_name, fields))
        return f"&{c_name}"
