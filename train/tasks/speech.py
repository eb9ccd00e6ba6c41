"""What tasks that write down speech have in common: an encoder with CTC, and word errors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_imputer.imputation import schedule
from edge_imputer.metrics import edit_distance
from edge_imputer.specs import BLANK_ID, ModelSpec
from edge_imputer.tokens import Tokenizer

from ..data import Batch
from ..data.plan import UNKNOWN_CLASS
from ..decode import decode
from ..encoders import ConformerEncoder, build_encoder
from ..encoders.conformer import intermediate_ctc_loss
from ..imputer import ImputerHead
from ..layers.dropout import seeded_dropout
from .base import Task
from .restraint import Restraint
from .settings import SpeechSettings

# Streams of an utterance's seed; those of the objective are smaller.
ENCODER_DROPOUT, HEAD_DROPOUT = 16, 17

# CTC's share beside the flat start's cross entropy, while that lasts.
GUIDED_CTC = 0.3


class SpeechTask(Task):
    """An encoder, and a head that writes its alignment.

    Attributes
    ----------
    encoder : Encoder
    head : ImputerHead
    """

    spec: ModelSpec
    settings: SpeechSettings  # type: ignore[assignment]  # what the union's members have in common

    def __init__(self, spec: ModelSpec, settings: SpeechSettings) -> None:
        super().__init__()
        self.spec = spec
        self.settings = settings
        self.tokenizer = Tokenizer(spec.tokens)
        self.encoder = build_encoder(spec.encoder, spec.features)
        self.head = ImputerHead(spec.encoder.d_model, spec.head, spec.tokens)
        self._restraint = Restraint(spec, settings.keywords) if settings.keywords else None

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Encoder frames, their number, and the logits of a conformer's intermediate branches."""
        if isinstance(self.encoder, ConformerEncoder):
            return self.encoder.forward_with_branches(batch.features, batch.lengths)
        return *self.encoder(batch.features, batch.lengths), ()

    def drop(self, encoder_out: Tensor, batch: Batch, stream: int) -> Tensor:
        """Dropout by the utterances' seeds; none in evaluation."""
        rate = self.settings.dropout if self.training else 0.0
        return seeded_dropout(encoder_out, rate, batch.seeds, stream)

    def encoder_loss(
        self,
        logits: Tensor,
        branches: tuple[Tensor, ...],
        frames: Tensor,
        batch: Batch,
        progress: float,
    ) -> Tensor:
        """CTC of the encoder's own branches, (B,); guided by the flat start at first."""
        loss = per_token(
            intermediate_ctc_loss(
                logits,
                branches,
                batch.targets,
                frames,
                batch.target_lengths,
                weight=self.settings.intermediate_weight,
                blank_id=BLANK_ID,
                reduction="none",
                validate=False,
            ),
            batch,
        )
        if progress < self.settings.flat_start:
            loss = GUIDED_CTC * loss + flat_start_loss(logits, frames, batch)
        return loss

    def untranscribed(self, batch: Batch) -> Tensor:
        """Which utterances are hard negatives: their targets are empty and mean nothing; (B,)."""
        if self._restraint is None:
            return torch.zeros_like(batch.labels, dtype=torch.bool)
        return batch.labels == UNKNOWN_CLASS

    def restrain(
        self, losses: Tensor, logits: Tensor, frames: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """The losses, (B,), without those of hard negatives; what keeps keywords out of these."""
        hard = self.untranscribed(batch)
        nothing = torch.zeros_like(losses)
        if self._restraint is None or not hard.any():
            return losses, nothing
        restraint = self.settings.restraint * self._restraint.losses(logits[hard], frames[hard])
        return losses.masked_fill(hard, 0.0), nothing.masked_scatter(hard, restraint.to(nothing))

    def reported(self, restraint: Tensor) -> dict[str, Tensor]:
        """The restraint as a loss of its own, where keywords are to be kept out of anything."""
        return {"restraint": restraint.detach()} if self._restraint is not None else {}

    def logit_penalty(self, logits: Tensor, frames: Tensor) -> Tensor:
        """The weighted mean squared logit of every utterance, (B,)."""
        return self.settings.logit_penalty * frame_mean(logits.square().mean(-1), frames)

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, tuple[float, float]]:
        """Word errors over words, at K = 1 and, where the head reads alignments, K = block size."""
        return self.heard_errors(batch, *self.encoder(batch.features, batch.lengths))

    def heard_errors(
        self, batch: Batch, encoder_out: Tensor, frames: Tensor
    ) -> dict[str, tuple[float, float]]:
        """What `validate` gives, of a batch that the encoder has heard."""
        block = self.spec.head.block_size
        found: dict[str, tuple[float, float]] = {}
        for n_steps in {1, 1 if self.spec.head.mixer == "none" else block}:
            alignment = decode(self.head, encoder_out, schedule(n_steps, block))
            found[f"wer_k{n_steps}"] = self.word_errors(batch, alignment, frames)
        return found

    def word_errors(self, batch: Batch, alignment: Tensor, frames: Tensor) -> tuple[float, float]:
        """Word errors of alignments (B, T), and the number of words."""
        errors, n_words = 0, 0
        for target, size, row, n in zip(
            batch.targets, batch.target_lengths, alignment, frames, strict=True
        ):
            words = self.tokenizer.decode(target[:size].tolist()).split()
            errors += edit_distance(words, self.transcript(row[:n]).split())
            n_words += len(words)
        return float(errors), float(n_words)

    def transcript(self, alignment: Tensor) -> str:
        """Text of one alignment, (T,)."""
        return self.tokenizer.decode(self.tokenizer.collapse(alignment.tolist()))


def per_token(losses: Tensor, batch: Batch) -> Tensor:
    """Losses of utterances (B,) by their targets' lengths, as `ctc_loss` does for its mean."""
    return losses / batch.target_lengths.clamp(min=1)


def frame_mean(values: Tensor, frames: Tensor) -> Tensor:
    """Mean of every utterance's own frames: (B, T) -> (B,); 0 where it has none."""
    valid = torch.arange(values.shape[1], device=values.device) < frames[:, None]
    return values.masked_fill(~valid, 0.0).sum(1) / frames.clamp(min=1)


def flat_start_loss(logits: Tensor, frames: Tensor, batch: Batch) -> Tensor:
    """Cross entropy against the evenly spread transcript, the mean over frames, (B,)."""
    losses = F.cross_entropy(logits.transpose(1, 2), batch.flat_start, reduction="none")
    return frame_mean(losses, frames)
