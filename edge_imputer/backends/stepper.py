"""What backends have in common once a runtime has loaded the two models of a bundle.

A runtime is a pair of objects with ``run(inputs) -> outputs``, both lists of arrays in the
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
from ..specs import ModelSpec
from .base import Array, Float32, Int32, State


class Model(Protocol):
    """A loaded model file."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call the model; fresh arrays, the inputs are not modified."""
        ...


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
        self._encoder, self._imputer = models
        features, *states = records[0].inputs
        self._chunk_shape = (spec.step_features, spec.features.n_mels)
        self._features_shape = features.shape
        if prod(features.shape) != prod(self._chunk_shape) or len(states) != records[0].n_states:
            raise BackendError(
                f"expected an encoder that takes {self._chunk_shape} features and its states, "
                f"got {[record.shape for record in records[0].inputs]}; export the model again"
            )
        self._features_quant = _quant(features) if quantised else None
        self._logits_quant = _quant(records[1].outputs[0]) if quantised else None
        self._zero_state = tuple(_zeros(record, quantised) for record in states)
        self._zero_context = _zeros(records[1].inputs[0], quantised)[: spec.head.left_context]

    def initial_state(self) -> State:
        """State before the first feature frame: real zeros, in the model's own dtype."""
        return tuple(state.copy() for state in self._zero_state)

    def initial_context(self) -> Array:
        """Encoder frames before the first chunk: (left_context, d_model) of real zeros."""
        context: Array = self._zero_context.copy()
        return context

    def encoder_step(self, features: Float32, state: State) -> tuple[Array, State]:
        """Advance by one step of the encoder, see `Backend`."""
        if features.shape != self._chunk_shape:
            raise BackendError(
                f"expected features of shape {self._chunk_shape}, got {features.shape}"
            )
        quant = self._features_quant
        x: Array = features if quant is None else quantize(features, quant)
        encoder_out, *state_out = self._encoder.run([x.reshape(self._features_shape), *state])
        return encoder_out, tuple(state_out)

    def imputer_step(self, encoder_window: Array, alignment_window: Int32) -> Float32:
        """One pass of the head over a chunk and its left context, see `Backend`."""
        logits: Array = self._imputer.run([encoder_window, alignment_window])[0]
        quant = self._logits_quant
        return logits if quant is None else dequantize(logits, quant)


def _quant(record: TensorRecord) -> QuantParams:
    if record.quant is None:
        raise BackendError(f"expected a scale for {record.name} in the manifest, got null")
    return record.quant


def _zeros(record: TensorRecord, quantised: bool) -> Array:
    if not quantised:
        return np.zeros(record.shape, np.float32)
    return np.full(record.shape, _quant(record).zero_point, np.int8)
