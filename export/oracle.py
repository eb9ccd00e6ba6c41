"""The same torch modules through Google's own converter, litert-torch: what ours is held against.

It weighs 1.2 GB and asks for versions that contradict our pins, so no extra brings it: where it can
be imported, `make bench-runtimes` has a row of its files.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edge_imputer.errors import ExportError, require
from edge_imputer.train.encoders import Encoder
from edge_imputer.train.imputer import ImputerHead

from .graph import Array


class Order(NamedTuple):
    """Which argument of the module each input of a file is, and at which output each result is."""

    inputs: list[int]
    outputs: list[int]


class _Module(nn.Module):
    """A function of a module as a module."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *arguments: Tensor) -> Any:
        """Its results."""
        return self.function(*arguments)


@dataclass(frozen=True)
class TorchStep:
    """One step of a module, as torch runs it.

    Attributes
    ----------
    module : nn.Module
        Tensors in, tensors out.
    arguments : tuple of Tensor
        That it is traced with.
    """

    module: nn.Module
    arguments: tuple[Tensor, ...]

    @classmethod
    def of_encoder(cls, encoder: Encoder) -> TorchStep:
        """Features (1, T, n_mels) and the states -> encoder frames and the next states."""

        def step(features: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            out, after = encoder.step(features, state)
            return (out, *after)

        generator = torch.Generator().manual_seed(1)
        features = torch.randn(1, encoder.spec.step_features, encoder.n_mels, generator=generator)
        return cls(_Module(encoder, step).eval(), (features, *encoder.initial_state(1)))

    @classmethod
    def of_head(cls, head: ImputerHead, d_model: int) -> TorchStep:
        """Encoder frames (1, window, d_model) and the alignment (1, window) -> logits."""
        generator = torch.Generator().manual_seed(1)
        frames = torch.randn(1, head.spec.window, d_model, generator=generator)
        ids = torch.randint(0, head.vocabulary_size, (1, head.spec.window), generator=generator)
        return cls(_Module(head, lambda *xs: (head.step(*xs),)).eval(), (frames, ids))

    def arrays(self) -> list[Array]:
        """The arguments in numpy; whole numbers as int32, which converted files take."""
        arrays = [argument.numpy() for argument in self.arguments]
        return [a.astype(np.int32) if a.dtype == np.int64 else a for a in arrays]

    @torch.no_grad()
    def expected(self) -> list[Array]:
        """What torch makes of them."""
        return [result.numpy() for result in self.module(*self.arguments)]

    def order_in(self, path: Path) -> Order:
        """How a converted file orders arguments and results, by its signature.

        Raises
        ------
        ExportError
            The file has no signature of all of them.
        """
        schema = require("ai_edge_litert.schema_py_generated", extra="export")
        model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
        subgraph, (signature,) = model.subgraphs[0], model.signatureDefs
        arguments = {n.tensorIndex: _number(n.name.decode()) for n in signature.inputs}
        results = sorted((_number(n.name.decode()), n.tensorIndex) for n in signature.outputs)
        outputs = [int(k) for k in subgraph.outputs]  # one may be several results
        unknown = {int(k) for k in subgraph.inputs} - set(arguments)
        if unknown or not {k for _, k in results} <= set(outputs):
            raise ExportError(f"{path}: expected a signature of all inputs and outputs")
        inputs = [arguments[int(k)] for k in subgraph.inputs]
        return Order(inputs, [outputs.index(k) for _, k in results])


def converted(step: TorchStep, path: Path) -> bool:
    """Write what litert-torch makes of a step, in float32; False where it is not installed."""
    try:
        converter = importlib.import_module("litert_torch")
    except ImportError:
        return False
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():  # it reports its progress
        converter.convert(step.module, step.arguments).export(str(path))
    return True


def _number(name: str) -> int:
    """Of ``args_3`` or ``output_3``."""
    found = re.search(r"(\d+)$", name)
    if found is None:
        raise ExportError(f"expected a numbered argument of a signature, got {name!r}")
    return int(found[1])
