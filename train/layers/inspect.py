"""What an encoder is made of and what it costs, measured on the encoder itself as it streams.

Nothing is worked out from formulas of layers: the encoder runs, and whatever convolutions and
matrix products torch then does are counted, in the layer that does them. So the figures hold for
every encoder that streams, attention included.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edge_imputer.errors import SpecError
from edge_imputer.specs import AnyEncoderSpec, FrameSpec

from ..encoders import Encoder, build_encoder
from .base import State

WARM_UP_LIMIT_S = 60


@dataclass(frozen=True)
class LayerInfo:
    """One layer, and what it does in the shortest step of a stream.

    Attributes
    ----------
    name : str
        Its name in the encoder; empty: whatever is in no layer.
    kind : str
        Its class.
    output : tuple of int
        Shape of its last output in a step, without the batch.
    parameters : int
        Numbers that are learnt, batch norm's among them.
    macs_per_s : int
        Multiply-accumulates a second of audio, in convolutions and products of matrices, those of
        recurrent layers and attention too. Elementwise products are none, nor norms, which fold.
    state_bytes : int
        State that it is given, as torch keeps it: 4 bytes a number. int8 takes a quarter.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs_per_s: int
    state_bytes: int


@dataclass(frozen=True)
class EncoderInfo:
    """An encoder's layers and totals.

    Attributes
    ----------
    layers : tuple of LayerInfo
        Their parameters, MACs and state add up to the totals.
    parameters, macs_per_s, state_bytes : int
        As in `LayerInfo`; a state that grows at first is measured full.
    frame_ms : float
        From one encoder frame to the next.
    step_ms : float
        Audio of the shortest step.
    latency_ms : float
        Algorithmic latency: the longest time from a sound to the instant when the encoder frame
        that it falls into can come out, if computing took none. Encoder frame u holds the sound
        from sample ``u * subsampling * hop_length`` on, and comes out with the last sample of the
        last feature frame that the encoder must be fed first; feature frame k ends at
        ``k * hop_length + frame_length``. So counted are the other feature frames of its own
        encoder frame, the rest of its chunk, lookahead, and the front end's window. It is found by
        feeding the shortest steps and seeing what comes out when.
    receptive_field_ms : float or None
        Audio that one encoder frame depends on at most; None: all since the stream's start.
    """

    layers: tuple[LayerInfo, ...]
    parameters: int
    macs_per_s: int
    state_bytes: int
    frame_ms: float
    step_ms: float
    latency_ms: float
    receptive_field_ms: float | None


def describe(spec: AnyEncoderSpec, features: FrameSpec) -> EncoderInfo:
    """What an encoder of that specification is made of and costs; weights are random."""
    return inspect_encoder(build_encoder(spec, features).eval(), features)


def inspect_encoder(encoder: Encoder, features: FrameSpec) -> EncoderInfo:
    """Stream noise through an encoder and note what each layer does.

    Parameters
    ----------
    encoder : Encoder
        In evaluation mode.
    features : FrameSpec
        What it was built for.

    Raises
    ------
    SpecError
        If nothing comes out of it within a minute of audio.
    """
    stream = Stream(encoder, features)
    frame_s = features.hop_length / features.sample_rate
    while not stream.n_out:
        if stream.n_fed * frame_s > WARM_UP_LIMIT_S:
            raise SpecError(f"expected an encoder frame within {WARM_UP_LIMIT_S} s, got none")
        stream.step()
    n_steps = -(-features.sample_rate // (encoder.step_features * features.hop_length))  # >= 1 s
    meter = Meter(encoder)
    for _ in range(n_steps):
        stream.state = tuple(tensor.clone() for tensor in stream.state)
        with meter.measuring(stream.state):
            stream.step()
    layers = tuple(meter.layers(n_steps * encoder.step_features * frame_s))
    back = encoder.receptive_field
    ms = 1e3 / features.sample_rate  # a sample's
    return EncoderInfo(
        layers=layers,
        parameters=sum(layer.parameters for layer in layers),
        macs_per_s=sum(layer.macs_per_s for layer in layers),
        state_bytes=sum(layer.state_bytes for layer in layers),
        frame_ms=encoder.subsampling * features.hop_length * ms,
        step_ms=encoder.step_features * features.hop_length * ms,
        latency_ms=stream.latency_samples * ms,
        receptive_field_ms=None if back is None else features.n_samples(back) * ms,
    )


class Stream:
    """An encoder that is fed noise by its shortest steps, and what has come out of it."""

    def __init__(self, encoder: Encoder, features: FrameSpec) -> None:
        self.encoder, self.features = encoder, features
        self.state: State = encoder.initial_state(1)
        self.n_fed = self.n_out = self.latency_samples = 0
        self.random = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def step(self) -> None:
        """Feed one step."""
        n, hop = self.encoder.step_features, self.features.hop_length
        chunk = torch.randn(1, n, self.features.n_mels, generator=self.random)
        out, self.state = self.encoder.step(chunk, self.state)
        self.n_fed += n
        if out.shape[1]:  # the first of what comes out has waited longest
            end = (self.n_fed - 1) * hop + self.features.frame_length - self.features.padding[0]
            waited = end - self.n_out * self.encoder.subsampling * hop
            self.latency_samples = max(self.latency_samples, waited)
        self.n_out += out.shape[1]


class Meter:
    """Counts what the layers of an encoder do while it takes a step.

    A layer is what its class makes one: a module that can be `fused` into one convolution, or else
    has a `step` and no such module within. Elsewhere it is a module without modules. Work belongs
    to the innermost layer that is called, by its `forward` or its `step`. Counted are torch's
    convolutions and products of matrices; a layer that multiplies otherwise says how much by a
    method ``extra_macs(out)``, given its output.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.modules = {"": encoder, **dict(_layers(encoder))}
        self.macs: Counter[str] = Counter()
        self.state_bytes: Counter[str] = Counter()
        self.outputs: dict[str, tuple[int, ...]] = {}

    @contextlib.contextmanager
    def measuring(self, state: State) -> Iterator[None]:
        """Watch one step that begins in `state`, whose tensors share no memory."""
        self._given = {_address(x): x.numel() * x.element_size() for x in state if x.numel()}
        self._taken: Counter[str] = Counter()
        self._calls = [""]  # layers that are being called, the innermost last
        self._flops = 0
        with contextlib.ExitStack() as stack:
            for name, module in self.modules.items():
                if name:
                    stack.enter_context(self._watching(name, module))
            # Written out as products of matrices: the counter knows no fused kernel of CPUs.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            self._counter = stack.enter_context(FlopCounterMode(display=False))
            yield
            self._settle()
        self._taken[""] = sum(self._given.values())
        if self._taken.total() >= self.state_bytes.total():
            self.state_bytes = self._taken

    def layers(self, seconds: float) -> Iterator[LayerInfo]:
        """The layers that hold or do anything, after `seconds` of audio."""
        parameters = {name: _n_parameters(module) for name, module in self.modules.items()}
        parameters[""] -= sum(n for name, n in parameters.items() if name)
        for name, module in self.modules.items():
            info = LayerInfo(
                name=name,
                kind=type(module).__name__,
                output=self.outputs.get(name, ()),
                parameters=parameters[name],
                macs_per_s=round(self.macs[name] / seconds),
                state_bytes=self.state_bytes[name],
            )
            if info.parameters or info.macs_per_s or info.state_bytes:
                yield info

    @contextlib.contextmanager
    def _watching(self, name: str, module: nn.Module) -> Iterator[None]:
        """Stand between a layer and whoever calls it."""
        methods = [method for method in ("forward", "step") if hasattr(module, method)]
        for method in methods:
            setattr(module, method, self._watched(name, module, getattr(module, method)))
        try:
            yield
        finally:
            for method in methods:
                delattr(module, method)

    def _watched(
        self, name: str, module: nn.Module, call: Callable[..., Any]
    ) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self._calls[-1] == name:  # a forward that calls its own step
                return call(*args, **kwargs)
            for tensor in _tensors(args):
                self._taken[name] += self._given.pop(_address(tensor), 0)
            self._settle()
            self._calls.append(name)
            result = call(*args, **kwargs)
            self._settle()
            self._calls.pop()
            out = next(_tensors((result,)))
            self.outputs[name] = tuple(out.shape[1:])
            extra_macs = getattr(module, "extra_macs", None)
            if extra_macs is not None:
                self.macs[name] += extra_macs(out)
            return result

        return watched

    def _settle(self) -> None:
        """Ascribe what was computed since the last time to the layer that is being called."""
        flops = self._counter.get_total_flops()
        self.macs[self._calls[-1]] += (flops - self._flops) // 2
        self._flops = flops


def _layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers within a module, see `Meter`, in the order in which they were made."""
    for name, child in module.named_children():
        within = any(_says(m) for m in child.modules() if m is not child)
        has_children = next(child.children(), None) is not None
        if hasattr(child, "fused") or not has_children or (_says(child) and not within):
            yield prefix + name, child
        else:
            yield from _layers(child, f"{prefix}{name}.")


def _says(module: nn.Module) -> bool:
    """Whether the class makes it a layer."""
    return hasattr(module, "step") or hasattr(module, "fused")


def _tensors(values: tuple[Any, ...]) -> Iterator[Tensor]:
    """Tensors in nested tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
