"""Arrays that remember how they came from a module's weights: numpy outside, torch inside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_imputer.errors import ExportError

from ..graph import Graph

_UFUNCS: dict[Any, Any] = {np.add: torch.add, np.subtract: torch.sub, np.multiply: torch.mul}


class TracedArray(np.lib.mixins.NDArrayOperatorsMixin):
    """A float32 array of a lowering whose elements have a gradient.

    It has what lowerings do with weights: sums and products with other arrays, indexing, other
    orders and shapes. Whatever else is tried with it raises, so that no gradient is lost unseen.

    Attributes
    ----------
    tensor : Tensor
    """

    dtype = np.dtype(np.float32)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return tuple(self.tensor.shape)

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: Any) -> TracedArray:
        return TracedArray(self.tensor[index])

    def transpose(self, *axes: int) -> TracedArray:
        """The axes in another order."""
        return TracedArray(self.tensor.permute(*axes))

    def reshape(self, *shape: int) -> TracedArray:
        """The same elements in another shape."""
        return TracedArray(self.tensor.reshape(*shape))

    def copy(self) -> TracedArray:
        """The same in C order."""
        return TracedArray(self.tensor.contiguous())

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise ExportError(
            "a lowering turns weights into a plain array, by which they would lose their gradient; "
            f"use operators, indexing or a method of {type(self).__name__}"
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if ufunc not in _UFUNCS or method != "__call__" or options:
            raise ExportError(
                f"a lowering computes {ufunc.__name__} of weights; expected one of "
                f"{', '.join(known.__name__ for known in _UFUNCS)}, which have a gradient"
            )
        return TracedArray(_UFUNCS[ufunc](*(self._tensor_of(value) for value in inputs)))

    def _tensor_of(self, value: Any) -> Tensor:
        if isinstance(value, TracedArray):
            return value.tensor
        return torch.tensor(np.array(value, np.float32), device=self.tensor.device)


def untraced(graph: Graph) -> tuple[Graph, dict[str, Tensor]]:
    """A graph of traced constants as the float graph of their values, and the constants by name."""
    tensors = dict(graph.tensors)
    traced: dict[str, Tensor] = {}
    for name, tensor in graph.tensors.items():
        data: Any = tensor.data
        if isinstance(data, TracedArray):
            traced[name] = data.tensor
            values = data.tensor.detach().cpu().numpy()
            tensors[name] = replace(tensor, data=np.ascontiguousarray(values))
    return replace(graph, tensors=tensors), traced
