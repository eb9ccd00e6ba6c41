"""The one exception tree. Every message says what was expected, what came, and what to do.

::

    EdgeImputerError
    ├── AudioError             a file or an array of samples that cannot be used
    │   ├── AudioNotFoundError (also FileNotFoundError)
    │   ├── SampleRateError    the rate differs from the model's
    │   └── AudioFormatError   wrong dtype, shape, channel count; NaN; empty; truncated
    ├── TokenError             a transcript with a character outside the token set
    ├── SpecError              a specification that contradicts itself
    ├── DataError              a manifest or corpus that cannot be read
    │   └── InfeasibleTargetError  more tokens than encoder frames can carry
    ├── SynthesisError         a speech synthesiser is missing or failed, or no corpus can be made
    ├── ObjectiveError         (also ValueError) tensors the loss cannot be computed from
    ├── BundleError            a model folder that cannot be trusted
    │   ├── BundleNotFoundError    (also FileNotFoundError)
    │   ├── BundleSchemaError      unknown, missing or newer manifest fields
    │   └── BundleIntegrityError   a file missing, or with another sha256
    ├── BackendError           a runtime that failed to load or run a model
    ├── ExportError            a graph that cannot be quantised or emitted
    ├── CheckpointError        a checkpoint without a spec, or of another shape
    ├── TrainingError          a run that had to end; its last checkpoint is whole
    │   └── TrainingStopped        somebody asked it to end: SIGTERM, Ctrl-C
    └── MissingExtraError      (also ImportError) an optional dependency is not installed
"""

from __future__ import annotations

import importlib
from types import ModuleType


class EdgeImputerError(Exception):
    """Base of every error this package raises on purpose."""


class AudioError(EdgeImputerError):
    """Audio that cannot be used."""


class AudioNotFoundError(AudioError, FileNotFoundError):
    """The audio file does not exist."""


class SampleRateError(AudioError):
    """The sample rate is not the one the model was trained for."""


class AudioFormatError(AudioError):
    """Wrong dtype, shape or channel count, NaN, empty or truncated audio."""


class TokenError(EdgeImputerError):
    """A transcript holds a character that the token set does not have."""


class SpecError(EdgeImputerError):
    """A specification that contradicts itself."""


class DataError(EdgeImputerError):
    """A manifest or corpus that cannot be read."""


class InfeasibleTargetError(DataError):
    """A transcript needs more encoder frames than its audio gives."""


class SynthesisError(EdgeImputerError):
    """A speech synthesiser is missing or failed, or no corpus can be made of what was asked for."""


class ObjectiveError(EdgeImputerError, ValueError):
    """Tensors of the wrong shape, type, device or range for the training objective."""


class BundleError(EdgeImputerError):
    """A model bundle that cannot be trusted."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """The bundle folder or its manifest does not exist."""


class BundleSchemaError(BundleError):
    """The manifest has unknown or missing fields, or a newer schema."""


class BundleIntegrityError(BundleError):
    """A file of the bundle is missing or was altered."""


class BackendError(EdgeImputerError):
    """A runtime failed to load or run a model."""


class ExportError(EdgeImputerError):
    """A graph that cannot be quantised or emitted."""


class CheckpointError(EdgeImputerError):
    """A checkpoint that carries no spec, or weights of another shape."""


class TrainingError(EdgeImputerError):
    """A training run that had to end; the message names the checkpoint to go on from."""


class TrainingStopped(TrainingError):
    """A training run that was asked to end by a signal, and wrote a checkpoint before it did.

    Attributes
    ----------
    exit_code : int
        What the command exits with: 128 and the signal's number, as shells have it.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class MissingExtraError(EdgeImputerError, ImportError):
    """An optional dependency is not installed."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency, or say in one line how to install it.

    Parameters
    ----------
    module : str
        Dotted module name, for example ``"torch"``.
    extra : str
        The extra of this distribution that brings it.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise MissingExtraError(
            f"{module} could not be imported ({error}); "
            f"install it with: pip install 'edge-imputer[{extra}]'"
        ) from error
