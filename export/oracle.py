"""The same torch modules through Google's own converter, litert-torch: what ours is held against.

It weighs gigabytes and its pins contradict ours, so it has an environment of its own, which
`make litert-oracle` makes. A module goes there as an exported program, `torch.export`'s .pt2, and
comes back as a .tflite file: see `litert_torch_server`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_imputer.backends.litert import LiteRtModel
from edge_imputer.errors import BackendError, ExportError, require
from edge_imputer.quantization import QuantParams, dequantize, quantize
from edge_imputer.train.encoders.windowed import WindowedEncoder
from edge_imputer.train.imputer import ImputerHead
from edge_imputer.train.layers.base import StreamingLayer

from .graph import Array
from .python_process import Environment, RefusedError

ORACLE = "litert-torch"
ENVIRONMENT = Environment(
    ORACLE,
    ".venv-litert",
    "EDGE_IMPUTER_LITERT_PYTHON",
    "litert-oracle",
    Path(__file__).with_name("litert_torch_server.py"),
)
N_CALIBRATED = 8  # calls


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
        Tensors in, tensors out: an input, then the states; a result, then the next states.
    arguments : tuple of Tensor
        That it is traced with; states are zeros.
    """

    module: nn.Module
    arguments: tuple[Tensor, ...]

    @classmethod
    def of_stream(cls, layer: StreamingLayer, n_frames: int, n_mels: int) -> TorchStep:
        """A step of what takes features (1, n_frames, n_mels), an encoder or a keyword model.

        States of no elements are no arguments: they are the same at every step, and the converter's
        quantiser stumbles over them. Others are copied: layers may begin with one tensor of zeros,
        and torch traces that as one argument.
        """
        state = [one.clone() for one in layer.initial_state(1)]
        kept = [k for k, one in enumerate(state) if one.numel()]

        def step(features: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
            before = list(state)
            for k, one in zip(kept, given, strict=True):
                before[k] = one
            out, after = layer.step(features, tuple(before))
            return (out, *(after[k] for k in kept))

        features = torch.randn(1, n_frames, n_mels, generator=_seeded())
        return cls(_Module(layer, step).eval(), (features, *(state[k] for k in kept)))

    @classmethod
    def of_window(cls, encoder: WindowedEncoder) -> TorchStep:
        """A window of features (1, window_frames, n_mels) -> its logits."""
        shape = 1, encoder.spec.window_frames, encoder.n_mels
        features = torch.randn(shape, generator=_seeded())
        return cls(_Module(encoder.network, lambda x: (encoder.network(x),)).eval(), (features,))

    @classmethod
    def of_head(cls, head: ImputerHead, d_model: int) -> TorchStep:
        """Encoder frames (1, window, d_model) and the alignment (1, window) -> logits."""
        generator = _seeded()
        frames = torch.randn(1, head.spec.window, d_model, generator=generator)
        ids = torch.randint(0, head.vocabulary_size, (1, head.spec.window), generator=generator)
        return cls(_Module(head, lambda *xs: (head.step(*xs),)).eval(), (frames, ids))

    @torch.no_grad()
    def calls(self, n: int) -> list[tuple[Tensor, ...]]:
        """Arguments of calls one after the other: noise, and the states of the call before."""
        found, generator = [self.arguments], _seeded()
        for _ in range(n - 1):
            first, *rest = found[-1]
            states = self.module(*found[-1])[1:]
            noise = torch.randn(first.shape, generator=generator)
            found.append((noise, *rest[: len(rest) - len(states)], *states))
        return found

    @torch.no_grad()
    def results(self, arguments: Sequence[Tensor]) -> list[Array]:
        """What torch makes of them."""
        return [result.numpy() for result in self.module(*arguments)]

    @torch.no_grad()
    def write_program(self, path: Path) -> None:
        """Write what torch traces, a .pt2 file."""
        with warnings.catch_warnings():  # of torch's own GRU, and of how it copies what it traced
            warnings.filterwarnings("ignore", "The tensor attributes", UserWarning)
            warnings.simplefilter("ignore", FutureWarning)
            torch.export.save(torch.export.export(self.module, self.arguments), path)


def as_arrays(tensors: Sequence[Tensor]) -> list[Array]:
    """In numpy; whole numbers as int32, which converted files take."""
    arrays = [tensor.numpy() for tensor in tensors]
    return [a.astype(np.int32) if a.dtype == np.int64 else a for a in arrays]


def convert(step: TorchStep, path: Path) -> ConvertedFile:
    """Write what litert-torch makes of a step, in float32.

    Raises
    ------
    BackendError
        Its environment is not here, or it refuses the module.
    """
    program = path.with_suffix(".pt2")
    step.write_program(program)
    _ask({"convert": str(program.resolve()), "to": str(path.resolve())})
    return ConvertedFile(path)


def quantise(step: TorchStep, floats: Path, path: Path) -> ConvertedFile:
    """Write what its quantiser makes of such a file, in int8 calibrated on noise.

    Raises
    ------
    BackendError
        Its environment is not here, or it refuses the file.
    """
    calls = [as_arrays(arguments) for arguments in step.calls(N_CALIBRATED)]
    calibration = path.with_suffix(".npz")
    stacked: dict[str, Any] = {
        f"args_{k}": np.stack(each) for k, each in enumerate(zip(*calls, strict=True))
    }
    np.savez(calibration, **stacked)
    files = {"quantise": floats, "to": path, "calibration": calibration}
    _ask({name: str(file.resolve()) for name, file in files.items()})
    return ConvertedFile(path, signed=floats)


class ConvertedFile:
    """A .tflite file of a step, called with the step's arguments in their order.

    A file has an order of its own, by its signature, and may have one output for several results.

    Parameters
    ----------
    path : Path
    signed : Path, optional
        The file whose signature says so, if it is another: the quantiser keeps the order, but its
        signature still names tensors that are no outputs any more.

    Attributes
    ----------
    path : Path
    model : LiteRtModel
        To be called with `feeds`.

    Raises
    ------
    BackendError
        LiteRT does not take the file.
    ExportError
        The file has no signature of all of its inputs and outputs.
    """

    def __init__(self, path: Path, signed: Path | None = None) -> None:
        self.path = path
        signing = _read(signed or path)
        (signature,) = signing.signatureDefs
        orders = signing.subgraphs[0].inputs, signing.subgraphs[0].outputs
        self._inputs, self._outputs = (
            _order(signed or path, tensors, entries)
            for tensors, entries in zip(orders, (signature.inputs, signature.outputs), strict=True)
        )
        subgraph = _read(path).subgraphs[0]
        self._input_quant = [_quant(subgraph, subgraph.inputs[at]) for at in self._inputs]
        self._output_quant = [_quant(subgraph, subgraph.outputs[at]) for at in self._outputs]
        self.model = LiteRtModel(path)

    def feeds(self, arrays: Sequence[Array]) -> list[Array]:
        """A step's arguments as the file takes them."""
        found: list[Array] = [np.zeros(0)] * len(arrays)
        for array, at, quant in zip(arrays, self._inputs, self._input_quant, strict=True):
            found[at] = array if quant is None else quantize(array, quant)
        return found

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """A step's results for its arguments."""
        results = self.model.run(self.feeds(arrays))
        return [
            results[at] if quant is None else dequantize(results[at], quant)
            for at, quant in zip(self._outputs, self._output_quant, strict=True)
        ]


def _read(path: Path) -> Any:
    schema = require("ai_edge_litert.schema_py_generated", extra="export")
    return schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)


def _order(path: Path, tensors: Sequence[int], entries: Sequence[Any]) -> list[int]:
    """Where among a file's tensors those of a signature are: ``args_0``, ``args_1`` and so on."""
    numbered = sorted((_number(entry.name.decode()), int(entry.tensorIndex)) for entry in entries)
    indices = [int(index) for index in tensors]
    if {index for _, index in numbered} != set(indices):
        raise ExportError(f"{path}: expected a signature of all inputs and outputs")
    return [indices.index(index) for _, index in numbered]


def _quant(subgraph: Any, index: int) -> QuantParams | None:
    found = subgraph.tensors[index].quantization
    if found is None or found.scale is None or not len(found.scale):
        return None
    return QuantParams(scale=float(found.scale[0]), zero_point=int(found.zeroPoint[0]))


def _ask(request: dict[str, str]) -> None:
    try:
        ENVIRONMENT.process().ask(request)
    except RefusedError as error:
        raise BackendError(f"{ORACLE} could not {next(iter(request))} it: {error}") from None


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _number(name: str) -> int:
    """Of ``args_3`` or ``output_3``."""
    found = re.search(r"(\d+)$", name)
    if found is None:
        raise ExportError(f"expected a numbered argument of a signature, got {name!r}")
    return int(found[1])
