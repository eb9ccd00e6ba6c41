"""What every backend is: models with explicit state, called with numpy arrays.

The integer backends (ONNX QDQ, LiteRT, native C) read and write the same int8 arrays; the float
backend reads and writes float32. Whoever calls them holds the state, so one backend serves any
number of streams.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]

State = tuple[Array, ...]


class Backend(Protocol):
    """A loaded model: one encoder step and one pass of the Imputer head."""

    name: str

    def initial_state(self) -> State:
        """State before the first feature frame: real zeros, in the model's own dtype."""
        ...

    def encoder_step(self, features: Float32, state: State) -> tuple[Array, State]:
        """Advance by one step of the encoder: one frame, or a block of them.

        Parameters
        ----------
        features : float32, (spec.step_features, n_mels)
            The next feature frames.
        state : tuple of arrays
            From `initial_state` or the previous call; not modified.

        Returns
        -------
        encoder_out : (spec.step_frames, d_model), int8 or float32
        state : tuple of arrays
        """
        ...

    def imputer_step(self, encoder_window: Array, alignment_window: Int32) -> Float32:
        """One pass of the head over a chunk and its left context.

        Parameters
        ----------
        encoder_window : (left_context + chunk_size, d_model), as `encoder_step` returns them
        alignment_window : int32, (left_context + chunk_size,)
            Token ids, `mask_id` where nothing is committed yet.

        Returns
        -------
        logits : float32, (chunk_size, vocabulary_size)
        """
        ...

    def initial_context(self) -> Array:
        """Encoder frames before the first chunk: (left_context, d_model) of real zeros."""
        ...


@runtime_checkable
class KeywordBackend(Protocol):
    """A loaded keyword model: one step of it, or one window."""

    name: str

    def initial_state(self) -> State:
        """State before the first feature frame; nothing for windows."""
        ...

    def keywords_step(self, features: Float32, state: State) -> tuple[Float32, State]:
        """Score the next feature frames.

        Parameters
        ----------
        features : float32, (spec.input_features, n_mels)
            The next feature frames, or a whole window.
        state : tuple of arrays
            From `initial_state` or the previous call; not modified.

        Returns
        -------
        logits : float32, (spec.step_scores, len(spec.classes))
        state : tuple of arrays
        """
        ...
