"""CTC: plain, with intermediate branches, or self-conditioned on them."""

from __future__ import annotations

from torch import Tensor

from edge_imputer.errors import SpecError
from edge_imputer.specs import KeywordModelSpec, ModelSpec

from ..data import Batch
from ..encoders import ConformerEncoder
from .settings import CtcTaskSpec
from .speech import ENCODER_DROPOUT, SpeechTask


class CtcTask(SpeechTask):
    """Encoder and a linear layer, trained by CTC.

    Where the encoder's specification names intermediate branches, all share that layer (Lee and
    Watanabe 2021, arXiv:2102.03216; Nozaki and Komatsu 2021, arXiv:2104.02724).
    """

    settings: CtcTaskSpec

    def __init__(self, spec: ModelSpec | KeywordModelSpec, settings: CtcTaskSpec) -> None:
        if not isinstance(spec, ModelSpec) or spec.head != settings.head:
            raise SpecError(
                "expected a model with a linear head (mixer none) over chunks of "
                f"{settings.chunk} frames, got {getattr(spec, 'head', type(spec).__name__)}; make "
                "it with settings.make_spec"
            )
        super().__init__(spec, settings)
        if isinstance(self.encoder, ConformerEncoder) and self.encoder.ctc is not None:
            self.encoder.ctc = self.head.output
        self.monitor = "wer_k1", "min"

    def losses(self, batch: Batch, update: int, progress: float) -> dict[str, Tensor]:
        """As `Task.losses`: "ctc" per token; the loss has the penalty on large logits besides."""
        encoder_out, frames, branches = self.encode(batch)
        dropped = self.drop(encoder_out, batch, ENCODER_DROPOUT)
        logits = self.head(dropped, self.head.fully_masked(dropped))
        loss = self.encoder_loss(logits, branches, frames, batch, progress)
        loss, restraint = self.restrain(loss, logits, frames, batch)
        total = loss + restraint + self.logit_penalty(logits, frames)
        return {"loss": total, "ctc": loss.detach(), **self.reported(restraint)}
