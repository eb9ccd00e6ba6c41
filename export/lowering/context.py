"""From a torch module to operations of a graph, by a table of types.

A lowering is a function ``(lowering, module, name, x) -> output`` of tensor names; `lowers` enters
it for a type of module. What reads a weight does so through the `Lowering`, which knows in the end
which weights nobody read: a module that computes something the graph does not is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from edge_imputer.errors import ExportError

from ..builder import GraphBuilder
from ..graph import Array, Graph
from .traced import TracedArray

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)

LOWERINGS: dict[type[nn.Module], Function] = {}


def lowers(*types: type[nn.Module]) -> Callable[[F], F]:
    """Enter a lowering into the table."""

    def enter(function: F) -> F:
        LOWERINGS.update(dict.fromkeys(types, function))
        return function

    return enter


class Lowering:
    """One graph in the making.

    Parameters
    ----------
    name : str
        The graph's.
    traced : bool
        Whether constants that come from weights are `TracedArray`, with a gradient.

    Attributes
    ----------
    g : GraphBuilder
    """

    def __init__(self, name: str, *, traced: bool = False) -> None:
        self.g = GraphBuilder(name)
        self._traced = traced
        self._next: dict[str, str] = {}  # state -> what it is in the next call
        self._read: set[int] = set()

    def __call__(self, module: nn.Module, name: str, *inputs: str, **options: Any) -> str:
        """Append what a module computes; the name of its output.

        Raises
        ------
        ExportError
            There is no lowering for its type.
        """
        lowering = next((LOWERINGS[t] for t in type(module).__mro__ if t in LOWERINGS), None)
        if lowering is None:
            raise ExportError(
                f"{name}: expected a module that can be exported, got {type(module).__name__}; "
                f"there are lowerings for {', '.join(sorted(t.__name__ for t in LOWERINGS))}"
            )
        output: str = lowering(self, module, name, *inputs, **options)
        return output

    def array(self, tensor: Tensor | None) -> Array:
        """A parameter or buffer, float32, which is read now."""
        if tensor is None:
            raise ExportError(f"{self.g.graph.name}: expected a weight, got none")
        self._read.add(id(tensor))
        return self._as_array(tensor)

    def fused(self, module: nn.Module, function: Callable[[], Iterable[Tensor]]) -> list[Array]:
        """Weights that a function of a module's computes from all of its own, in float64."""
        self._read |= {id(t) for t in (*module.parameters(), *module.buffers())}
        with torch.set_grad_enabled(self._traced and torch.is_grad_enabled()):
            return [self._as_array(tensor) for tensor in function()]

    def _as_array(self, tensor: Tensor) -> Array:
        if self._traced:
            return cast(Array, TracedArray(tensor.float()))
        array: Array = tensor.detach().cpu().numpy().astype(np.float32)
        return array

    def state(self, name: str, shape: tuple[int, ...]) -> str:
        """A tensor that lives from call to call; zeros before the first."""
        self._next[self.g.input(name, shape)] = ""
        return name

    def keep(self, state: str, tensor: str) -> None:
        """What a state is in the next call."""
        self._next[state] = tensor

    def finish(self, outputs: list[str], *modules: nn.Module) -> Graph:
        """The graph, once every weight of these modules is read.

        Raises
        ------
        ExportError
            A weight was not, or a state has no successor.
        """
        graph = self.g.graph
        if forgotten := [state for state, after in self._next.items() if not after]:
            raise ExportError(f"{graph.name}: nothing is kept in the states {forgotten}")
        unread = [
            name
            for module in modules
            for name, tensor in module.state_dict(keep_vars=True).items()
            if id(tensor) not in self._read and not name.endswith("num_batches_tracked")
        ]
        if unread:
            raise ExportError(
                f"expected to export every weight of the {graph.name}, but nothing reads "
                f"{', '.join(sorted(unread))}: the module changed, and the exporter did not"
            )
        graph.outputs = [*outputs, *self._next.values()]
        graph.n_states = len(self._next)
        return graph
