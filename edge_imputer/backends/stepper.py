"""What backends have in common once a runtime has loaded the models of a bundle.

A model of a runtime is an object with ``run(inputs) -> outputs``, both lists of arrays in the
order of the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Protocol

import numpy as np

from ..bundle import GraphRecord, TensorRecord
from ..errors import BackendError
from ..quantization import QuantParams, dequantize, quantize
from ..specs import KeywordModelSpec, ModelSpec
from .base import Array, Float32, Int32, State


class Model(Protocol):
    """A loaded model file."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call the model; fresh arrays, the inputs are not modified."""
        ...


class _Streamed:
    """A loaded model that takes features and its states.

    Parameters
    ----------
    record : from the manifest
        Names, shapes, scales and zero points.
    model : Model
    features_shape : (n_frames, n_mels)
        What the specification says it takes.
    quantised : bool
        Whether it reads and writes int8 (else float32).
    """

    def __init__(
        self, record: GraphRecord, model: Model, features_shape: tuple[int, int], *, quantised: bool
    ) -> None:
        features, *states = record.inputs
        if prod(features.shape) != prod(features_shape) or len(states) != record.n_states:
            raise BackendError(
                f"expected {record.name} to take {features_shape} features and its states, "
                f"got {[one.shape for one in record.inputs]}; export the model again"
            )
        self._model = model
        self._shape, self._features_shape = features_shape, features.shape
        self._quant = _quant(features) if quantised else None
        self._zero_state = tuple(_zeros(one, quantised) for one in states)

    def initial_state(self) -> State:
        """State before the first feature frame: real zeros, in the model's own dtype."""
        return tuple(state.copy() for state in self._zero_state)

    def step(self, features: Float32, state: State) -> tuple[Array, State]:
        """Its output and the next state."""
        if features.shape != self._shape:
            raise BackendError(f"expected features of shape {self._shape}, got {features.shape}")
        x: Array = features if self._quant is None else quantize(features, self._quant)
        out, *state_out = self._model.run([x.reshape(self._features_shape), *state])
        return out, tuple(state_out)


class Stepper:
    """Encoder step and Imputer pass over two loaded models.

    Parameters
    ----------
    name : str
        Of the backend.
    spec : ModelSpec
    records : (encoder, imputer) from the manifest
        Names, shapes, scales and zero points.
    models : (encoder, imputer)
    quantised : bool
        Whether the models read and write int8 (else float32).
    """

    def __init__(
        self,
        name: str,
        spec: ModelSpec,
        records: tuple[GraphRecord, GraphRecord],
        models: tuple[Model, Model],
        *,
        quantised: bool,
    ) -> None:
        self.name = name
        shape = spec.step_features, spec.features.n_mels
        self._encoder = _Streamed(records[0], models[0], shape, quantised=quantised)
        self._imputer = models[1]
        self._logits_quant = _quant(records[1].outputs[0]) if quantised else None
        self._zero_context = _zeros(records[1].inputs[0], quantised)[: spec.head.left_context]

    def initial_state(self) -> State:
        """State before the first feature frame: real zeros, in the model's own dtype."""
        return self._encoder.initial_state()

    def initial_context(self) -> Array:
        """Encoder frames before the first chunk: (left_context, d_model) of real zeros."""
        context: Array = self._zero_context.copy()
        return context

    def encoder_step(self, features: Float32, state: State) -> tuple[Array, State]:
        """Advance by one step of the encoder, see `Backend`."""
        return self._encoder.step(features, state)

    def imputer_step(self, encoder_window: Array, alignment_window: Int32) -> Float32:
        """One pass of the head over a chunk and its left context, see `Backend`."""
        logits: Array = self._imputer.run([encoder_window, alignment_window])[0]
        return _real(logits, self._logits_quant)


class KeywordStepper:
    """A keyword model over a loaded one, see `KeywordBackend`.

    Parameters
    ----------
    name : str
        Of the backend.
    spec : KeywordModelSpec
    record : from the manifest
    model : Model
    quantised : bool
    """

    def __init__(
        self,
        name: str,
        spec: KeywordModelSpec,
        record: GraphRecord,
        model: Model,
        *,
        quantised: bool,
    ) -> None:
        self.name = name
        shape = spec.input_features, spec.features.n_mels
        self._model = _Streamed(record, model, shape, quantised=quantised)
        self._logits_quant = _quant(record.outputs[0]) if quantised else None

    def initial_state(self) -> State:
        """State before the first feature frame: real zeros, in the model's own dtype."""
        return self._model.initial_state()

    def keywords_step(self, features: Float32, state: State) -> tuple[Float32, State]:
        """Score the next feature frames, see `KeywordBackend`."""
        logits, state = self._model.step(features, state)
        return _real(logits, self._logits_quant), state


def _real(logits: Array, quant: QuantParams | None) -> Float32:
    return logits if quant is None else dequantize(logits, quant)


def _quant(record: TensorRecord) -> QuantParams:
    if record.quant is None:
        raise BackendError(f"expected a scale for {record.name} in the manifest, got null")
    return record.quant


def _zeros(record: TensorRecord, quantised: bool) -> Array:
    if not quantised:
        return np.zeros(record.shape, np.float32)
    return np.full(record.shape, _quant(record).zero_point, np.int8)
