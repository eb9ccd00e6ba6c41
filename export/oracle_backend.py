"""A bundle's float model as litert-torch converts it, to be held to the bundle's own files.

The torch modules are made of the weights and the recipe that a bundle carries to be trained on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge_imputer.backends import Backend, KeywordBackend
from edge_imputer.backends.stepper import KeywordStepper, Stepper
from edge_imputer.bundle import Bundle, GraphRecord, TensorRecord
from edge_imputer.errors import CheckpointError
from edge_imputer.specs import ModelSpec
from edge_imputer.train.checkpoint import Checkpoint, checkpoint_from
from edge_imputer.train.encoders.windowed import WindowedEncoder
from edge_imputer.train.tasks import KeywordTask

from .graph import Array
from .oracle import ENVIRONMENT, ORACLE, TorchStep, as_arrays, convert


def oracle_absence(bundle: Bundle) -> str | None:
    """Why litert-torch cannot be tried on a bundle here, in a line; None where it can."""
    absence = ENVIRONMENT.absence()
    if absence is not None:
        return absence
    try:
        _read(bundle)
    except CheckpointError as error:
        return str(error)
    return None


def load_oracle(bundle: Bundle) -> Backend | KeywordBackend:
    """Convert a bundle's float model, and load it in LiteRT.

    Raises
    ------
    BackendError
        litert-torch is not here, or refuses the model.
    CheckpointError
        The bundle does not carry the weights and the recipe.
    """
    spec, checkpoint = bundle.spec, _read(bundle)
    with tempfile.TemporaryDirectory() as folder:
        models = [
            _StepModel(step, Path(folder) / f"{record.name}.tflite")
            for step, record in zip(_steps(checkpoint), bundle.manifest.graphs, strict=True)
        ]
    first, *others = zip(bundle.manifest.graphs, models, strict=True)
    record = _with_states(*first)
    if not isinstance(spec, ModelSpec):
        return KeywordStepper(ORACLE, spec, record, models[0], quantised=False)
    ((head_record, head),) = others
    return Stepper(ORACLE, spec, (record, head_record), (models[0], head), quantised=False)


def _read(bundle: Bundle) -> Checkpoint:
    from edge_imputer.train.trainer.initial import checkpoint_of  # imports the whole trainer

    return checkpoint_from(checkpoint_of(bundle), bundle.path)


def _steps(checkpoint: Checkpoint) -> list[TorchStep]:
    """Of each graph of a bundle, in the manifest's order."""
    task = checkpoint.task
    if not isinstance(task, KeywordTask):
        encoder = checkpoint.encoder
        step = TorchStep.of_stream(encoder, encoder.step_features, encoder.n_mels)
        return [step, TorchStep.of_head(checkpoint.head, encoder.d_model)]
    encoder = task.model.encoder
    if isinstance(encoder, WindowedEncoder):
        return [TorchStep.of_window(encoder)]
    return [TorchStep.of_stream(task.model, encoder.step_features, encoder.n_mels)]


class _StepModel:
    """A converted step, called as a bundle's models are: without a batch's dimension."""

    def __init__(self, step: TorchStep, path: Path) -> None:
        self.arguments = as_arrays(step.arguments)
        self._file = convert(step, path)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Its result (n, size), and the next states as torch has them."""
        both = zip(inputs, self.arguments, strict=True)
        result, *states = self._file.run([x.reshape(a.shape).astype(a.dtype) for x, a in both])
        return [result.reshape(-1, result.shape[-1]), *states]


def _with_states(record: GraphRecord, model: _StepModel) -> GraphRecord:
    """A graph's record with the states of the torch module, which are others."""
    states = [
        TensorRecord(name=f"state{k}", shape=array.shape, dtype="int8", quant=None)
        for k, array in enumerate(model.arguments[1:])
    ]
    return msgspec.structs.replace(record, inputs=(record.inputs[0], *states), n_states=len(states))
