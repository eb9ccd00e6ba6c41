"""The Imputer: an encoder trained by CTC, a head trained to fill in its alignments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_imputer.errors import SpecError
from edge_imputer.specs import BLANK_ID, KeywordModelSpec, ModelSpec

from ..data import Batch
from ..objective import (
    MASK,
    Alignment,
    best_alignment,
    imitation_loss,
    imputer_loss,
    mask_alignment,
    sample_alignment,
)
from .settings import ImputerTaskSpec
from .speech import ENCODER_DROPOUT, HEAD_DROPOUT, SpeechTask, per_token


class ImputerTask(SpeechTask):
    """Encoder trained by CTC, head by the Imputer's loss on the encoder's own alignments.

    A short flat start guides the encoder by evenly spread transcripts. For the first `all_masked`
    share of the updates the head sees masks only, which with the "dp" loss is plain CTC; then a
    random number of frames of every block is filled in (Chan et al. 2020, arXiv:2002.08926,
    sections 3.1 to 3.3).

    Attributes
    ----------
    ctc : torch.nn.Linear
        What reads the encoder in training; the model that is exported does without.
    """

    settings: ImputerTaskSpec

    def __init__(self, spec: ModelSpec | KeywordModelSpec, settings: ImputerTaskSpec) -> None:
        if not isinstance(spec, ModelSpec) or spec.head != settings.head:
            raise SpecError(
                "expected a model with the head of the task's settings, got "
                f"{getattr(spec, 'head', type(spec).__name__)}; make it with settings.make_spec"
            )
        super().__init__(spec, settings)
        self.ctc = nn.Linear(spec.encoder.d_model, spec.tokens.vocabulary_size)
        self.monitor = f"wer_k{spec.head.block_size}", "min"

    def losses(self, batch: Batch, update: int, progress: float) -> dict[str, Tensor]:
        """As `Task.losses`: "ctc" of the encoder and "imputer" of the head, per token."""
        encoder_out, frames, branches = self.encode(batch)
        logits = self.ctc(self.drop(encoder_out, batch, ENCODER_DROPOUT))
        encoder_loss = self.encoder_loss(logits, branches, frames, batch, progress)
        encoder_loss, restraint = self.restrain(encoder_loss, logits, frames, batch)
        head_in = encoder_out.detach() if self.settings.stop_gradient else encoder_out
        head_loss, head_restraint = self._head_loss(
            self.drop(head_in, batch, HEAD_DROPOUT), logits.detach(), frames, batch, progress
        )
        losses = encoder_loss + restraint, head_loss + head_restraint
        if self.settings.stop_gradient:
            loss = losses[0] + losses[1]
        else:
            weight = self.settings.ctc_weight
            loss = weight * losses[0] + (1 - weight) * losses[1]
        found = {"loss": loss, "ctc": encoder_loss.detach(), "imputer": head_loss.detach()}
        return {**found, **self.reported(restraint + head_restraint)}

    def _head_loss(
        self, head_in: Tensor, ctc_logits: Tensor, frames: Tensor, batch: Batch, progress: float
    ) -> tuple[Tensor, Tensor]:
        """The head's loss given partial alignments, with the penalty on large logits; restraint."""
        settings = self.settings
        all_masked = progress < settings.all_masked
        alignment = None
        if not all_masked or settings.loss == "imitation":
            alignment = self._align(ctc_logits, frames, batch)
        if alignment is None or all_masked:
            partial = torch.full(ctc_logits.shape[:2], MASK, device=ctc_logits.device)
        else:
            partial = self._mask(alignment, frames, batch)
            # Without a transcript nothing can be filled in.
            partial = partial.masked_fill(self.untranscribed(batch)[:, None], MASK)
        seen = partial.masked_fill(partial == MASK, self.spec.tokens.mask_id)
        logits: Tensor = self.head(head_in, seen)
        if settings.loss == "imitation":
            assert alignment is not None
            losses = imitation_loss(
                logits,
                alignment.tokens,
                partial,
                frames,
                batch.target_lengths,
                blank_id=BLANK_ID,
                reduction="none",
                zero_infinity=True,
            )
        else:
            losses = imputer_loss(
                logits,
                batch.targets,
                partial,
                frames,
                batch.target_lengths,
                blank_id=BLANK_ID,
                reduction="none",
                zero_infinity=True,
                validate=False,
            )
        losses, restraint = self.restrain(per_token(losses, batch), logits, frames, batch)
        return losses + self.logit_penalty(logits, frames), restraint

    def _align(self, logits: Tensor, frames: Tensor, batch: Batch) -> Alignment:
        """The encoder's alignments of the targets, one an utterance."""
        arguments = logits, batch.targets, frames, batch.target_lengths
        if self.settings.roll_in == "viterbi":
            return best_alignment(*arguments, blank_id=BLANK_ID, validate=False)
        return sample_alignment(*arguments, blank_id=BLANK_ID, seeds=batch.seeds, validate=False)

    def _mask(self, alignment: Alignment, frames: Tensor, batch: Batch) -> Tensor:
        """The partial alignments that the head is shown, `MASK` where open, (B, T)."""
        policy = self.settings.mask_policy
        return mask_alignment(
            alignment.tokens,
            frames,
            policy=policy,
            block_size=self.spec.head.block_size,
            confidence=alignment.frame_scores if policy == "confidence" else None,
            seeds=batch.seeds,
        )
