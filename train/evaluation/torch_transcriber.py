"""A checkpoint as a transcriber: what was just trained can be measured before it is exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edge_imputer.decoding import Language, SearchedText
from edge_imputer.errors import CheckpointError
from edge_imputer.imputation import resolve_revisions, resolve_schedule
from edge_imputer.specs import ModelSpec
from edge_imputer.tokens import Tokenizer

from ..data import Featurizer
from ..decode import decode_with_log_probs
from .journal import Entry

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint


class TorchTranscriber:
    """The float model of a checkpoint, whole utterances at once, as `Runner.compute`.

    It gives what the streaming decoder of a float bundle gives; int8 is the bundle's.

    Parameters
    ----------
    checkpoint : of a model that writes text
    n_steps, schedule : passes of the head a chunk, or frames committed in each; the model's own
        schedule if neither is given
    revisions : passes after these that look at every frame again; the model's own if None
    language : what may be said; without it the text is what was committed frame by frame

    Raises
    ------
    CheckpointError
        It is a keyword model's.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        n_steps: int | None = None,
        schedule: Sequence[int] | None = None,
        revisions: int | None = None,
        language: Language | None = None,
    ) -> None:
        if not isinstance(checkpoint.spec, ModelSpec):
            raise CheckpointError(
                "expected the checkpoint of a model that writes text, got a keyword model's; "
                "use --task keywords"
            )
        self.spec = checkpoint.spec
        self.sample_rate = self.spec.features.sample_rate
        self._task = checkpoint.task
        self._encoder, self._head = checkpoint.encoder, checkpoint.head
        self._featurizer = Featurizer(self.spec)
        self._tokenizer = Tokenizer(self.spec.tokens)
        self._search = None if language is None else SearchedText(language, self.spec)
        self._schedule = resolve_schedule(self.spec.head, n_steps, schedule)
        self._revisions = resolve_revisions(self.spec.head, revisions)

    def text(self, waveform: npt.NDArray[np.float32]) -> str:
        """Transcribe a recording, float32 (n,)."""
        return self("", waveform).text or ""

    def log_probs(self, waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Log-probabilities of a recording's frames, each of the pass that committed it, (T, V)."""
        found: npt.NDArray[np.float32] = self._decode(waveform)[1].numpy()
        return found

    @torch.no_grad()
    def _decode(self, waveform: npt.NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        features = self._featurizer.normalize(self._featurizer.features(waveform))
        x = torch.from_numpy(features)[None]
        encoder_out, _ = self._encoder(x, torch.tensor([x.shape[1]]))
        alignment, log_probs = decode_with_log_probs(
            self._head, encoder_out, self._schedule, revisions=self._revisions
        )
        return alignment[0], log_probs[0]

    def __call__(self, key: str, waveform: npt.NDArray[np.float32]) -> Entry:
        """Transcribe a clip, for the journal."""
        alignment, log_probs = self._decode(waveform)
        if self._search is not None:
            self._search.reset()
            self._search.push(log_probs.numpy())
            return Entry.of_text(key, self._search.final())
        tokens = self._tokenizer.collapse(alignment.tolist())
        return Entry(key=key, text=self._tokenizer.decode(tokens))


def open_transcriber(
    path: Path,
    *,
    n_steps: int | None = None,
    schedule: Sequence[int] | None = None,
    revisions: int | None = None,
    language: Language | None = None,
) -> tuple[TorchTranscriber, str]:
    """The transcriber of a checkpoint, and the file's hash.

    Raises
    ------
    CheckpointError
        It is not a checkpoint, or not one of a model that writes text.
    """
    from ..checkpoint import load_checkpoint

    loaded = load_checkpoint(path)
    model = TorchTranscriber(
        loaded, n_steps=n_steps, schedule=schedule, revisions=revisions, language=language
    )
    return model, loaded.sha256
