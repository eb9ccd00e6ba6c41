"""Runs a quantised graph in torch over batches and sequences: the exported integers, trainable."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edge_imputer.errors import ExportError
from edge_imputer.quantization import QuantParams

from ..graph import WEIGHT_AXIS, Graph
from ..op_params import quant_of
from . import exact
from .kernels import Constants, prepare
from .schedule import Delay, Loop, make_schedule

Values = dict[str, Tensor]


class QuantisedGraph:
    """A quantised graph with the integers of `reference.Interpreter`, and gradients.

    Activations are centred steps, see `exact`.

    Parameters
    ----------
    graph : Graph
        Quantised.
    constants : mapping from name to float32 Tensor
        What weights make of the constants that are theirs, see `lowering.untraced`.
    device : torch.device
    """

    def __init__(
        self, graph: Graph, constants: Mapping[str, Tensor], device: torch.device | None = None
    ) -> None:
        if not graph.quantised:
            raise ExportError(f"expected a quantised graph, got {graph.name}, which is float")
        wide = [op.output for op in graph.ops if graph.tensors[op.output].dtype == "int16"]
        if wide:
            raise ExportError(
                f"{graph.name}: expected activations that are all int8 to train with, got int16 in "
                f"{', '.join(wide)}; quantise it with precision int8"
            )
        self.graph = graph
        held = Constants(graph, constants, device or torch.device("cpu"))
        self._kernels = {op.output: prepare(graph, op, held) for op in graph.ops}
        self._inputs = {
            op.output: op.inputs[:1] if op.kind in WEIGHT_AXIS else op.inputs for op in graph.ops
        }
        used = {name for op in graph.ops for name in self._inputs[op.output]}
        self._constants: Values = {
            name: held.activation(name)
            for name, tensor in graph.tensors.items()
            if tensor.data is not None and name in used
        }
        self._schedule = make_schedule(graph)

    def steps(self, name: str, real: Tensor) -> Tensor:
        """Real numbers (N, ...) as steps of a tensor, rounded and cut as the runtime does."""
        return to_steps(real, quant_of(self.graph, name))

    def real(self, name: str, steps: Tensor) -> Tensor:
        """Steps of a tensor as real numbers, float32, as the runtime has them."""
        return steps * quant_of(self.graph, name).scale

    def run(self, feeds: Mapping[str, Tensor], n_steps: int = 1) -> Values:
        """Compute every tensor of a sequence of calls, from states of zeros.

        Parameters
        ----------
        feeds : mapping from input to Tensor, (n_steps * N, *shape)
            Steps, or token ids, of every input that is no state: of all N sequences' first calls,
            then of all their second ones.
        n_steps : int
            Calls.

        Returns
        -------
        dict from tensor to (n_steps * N, *shape); what depends on no input may have 1 instead.
        """
        given = self.graph.inputs[: len(self.graph.inputs) - self.graph.n_states]
        if set(feeds) != set(given):
            raise ExportError(f"{self.graph.name}: expected the inputs {given}, got {list(feeds)}")
        values: Values = {**self._constants, **feeds}
        batch = len(feeds[given[0]])
        for item in self._schedule:
            if isinstance(item, Delay):
                added = values[item.added]
                added = added.expand(batch, *added.shape[1:])
                values[item.state] = _delayed(added, item.axis + 1, item.size, n_steps)
            elif isinstance(item, Loop):
                values.update(self._run_loop(item, values, n_steps, batch // n_steps))
            else:
                values[item.output] = self._call(item.output, values)
        return values

    def _call(self, output: str, values: Values) -> Tensor:
        return self._kernels[output](*[values[name] for name in self._inputs[output]])

    def _run_loop(self, loop: Loop, values: Values, n_steps: int, batch: int) -> Values:
        """What the rest of the graph reads of a loop."""
        outside = {name: values[name] for name in loop.outside if name in values}
        by_step = {
            name: [value] * n_steps
            if len(value) == 1
            else value.reshape(n_steps, -1, *value.shape[1:]).unbind()
            for name, value in outside.items()
        }
        device = next(iter(outside.values())).device
        states = {
            state: torch.zeros(batch, *self.graph.tensors[state].shape, device=device)
            for state, _ in loop.states
        }
        found: dict[str, list[Tensor]] = {name: [] for name in loop.outputs}
        for k in range(n_steps):
            here = {name: parts[k] for name, parts in by_step.items()} | states
            for op in loop.ops:
                here[op.output] = self._call(op.output, here)
            states = {state: here[after] for state, after in loop.states}
            for name, parts in found.items():
                parts.append(here[name])
        return {name: torch.cat(parts) for name, parts in found.items()}


def to_steps(real: Tensor, quant: QuantParams) -> Tensor:
    """Real numbers as centred steps: `edge_imputer.quantization.quantize`, straight-through."""
    # On the same device: torch multiplies by the inverse of a number that is elsewhere.
    scale = torch.tensor(quant.scale, dtype=torch.float32, device=real.device)
    free = (real.detach() / scale).round_()
    low, high = -128 - quant.zero_point, 127 - quant.zero_point
    whole = free.clamp(low, high)
    return exact.rounded(real, whole, whole == free, quant.scale)


def _delayed(added: Tensor, axis: int, size: int, n_steps: int) -> Tensor:
    """The last `size` rows along `axis` before each step: (n_steps * N, ...) -> the same batch."""
    rows = added.reshape(n_steps, -1, *added.shape[1:]).movedim(
        0, axis
    )  # (N, ..., n_steps, rows, ...)
    n_rows = rows.shape[axis + 1]
    rows = rows.flatten(axis, axis + 1)
    before = [0, 0] * (rows.dim() - axis - 1) + [size, 0]
    padded = torch.nn.functional.pad(rows.narrow(axis, 0, (n_steps - 1) * n_rows), before)
    windows = padded.unfold(axis, size, n_rows)  # (N, ..., n_steps, ..., size)
    return windows.movedim(-1, axis + 1).movedim(axis, 0).flatten(0, 1)
