"""The Lightning module: encoder, its CTC branch, the Imputer head, and one training step."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_imputer.errors import DataError
from edge_imputer.imputation import schedule
from edge_imputer.metrics import edit_distance
from edge_imputer.specs import BLANK_ID, ModelSpec
from edge_imputer.tokens import Tokenizer

from .alignment import mask_blocks, viterbi_alignment
from .config import TrainConfig
from .data import Batch
from .decode import decode
from .encoder import CrnnEncoder
from .imputer import ImputerHead
from .loss import imputer_loss


class ImputerModule(pl.LightningModule):
    """Encoder trained by CTC, head by the Imputer's DP loss on Viterbi alignments.

    A short flat start guides the encoder by evenly spread transcripts. For the first
    `all_masked` share of the updates the head sees masks only (plain CTC); then a random number
    of frames of every block is filled in from the encoder's best alignment.
    """

    def __init__(self, spec: ModelSpec, config: TrainConfig) -> None:
        super().__init__()
        self.spec = spec
        self.config = config
        self.tokenizer = Tokenizer(spec.tokens)
        self.encoder = CrnnEncoder(spec.encoder, spec.features)
        self.dropout = nn.Dropout(config.dropout)
        self.ctc = nn.Linear(spec.encoder.d_model, spec.tokens.vocabulary_size)
        self.head = ImputerHead(spec.encoder.d_model, spec.head, spec.tokens)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Draw dropout and masks by seed and update alone, so that a resumed run is the same."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.global_step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch: CTC of the encoder and the DP loss of the head, per token."""
        encoder_out, frames = self.encoder(batch.features, batch.lengths)
        log_probs = self.ctc(self.dropout(encoder_out)).log_softmax(-1)
        ctc_loss = self._ctc_loss(log_probs, frames, batch)
        alignment = self._roll_in(log_probs.detach(), frames, batch)
        head_in = encoder_out.detach() if self.config.stop_gradient else encoder_out
        head_loss = self._head_loss(self.dropout(head_in), alignment, frames, batch)
        self.log_dict({"ctc": ctc_loss, "imputer": head_loss}, prog_bar=True)
        if not torch.isfinite(ctc_loss + head_loss):
            raise DataError(
                f"the loss is no longer finite at update {self.global_step} (CTC "
                f"{ctc_loss.item()}, Imputer {head_loss.item()}); lower learning_rate in the "
                "recipe, or go on from an earlier checkpoint with other data"
            )
        if self.config.stop_gradient:
            return ctc_loss + head_loss
        weight = self.config.ctc_weight
        return weight * ctc_loss + (1 - weight) * head_loss

    def _ctc_loss(self, log_probs: Tensor, frames: Tensor, batch: Batch) -> Tensor:
        """CTC of the encoder's own branch; guided by the flat start for the first updates."""
        losses = F.ctc_loss(
            log_probs.transpose(0, 1),
            batch.targets,
            frames,
            batch.target_lengths,
            blank=BLANK_ID,
            reduction="none",
        )
        loss = self._per_token(losses, batch)
        if self.global_step < self.config.flat_start_updates:
            loss = 0.3 * loss + self._flat_start_loss(log_probs, frames, batch)
        return loss

    def _head_loss(
        self, encoder_out: Tensor, alignment: Tensor, frames: Tensor, batch: Batch
    ) -> Tensor:
        """The Imputer's DP loss given partial alignments, and the penalty on large logits."""
        logits: Tensor = self.head(encoder_out, alignment)
        losses = imputer_loss(
            logits.log_softmax(-1),
            alignment,
            batch.targets,
            frames,
            batch.target_lengths,
            mask_id=self.spec.tokens.mask_id,
        )
        penalty = self.config.logit_penalty * logits.square().mean()
        return self._per_token(losses, batch) + penalty

    def _roll_in(self, log_probs: Tensor, frames: Tensor, batch: Batch) -> Tensor:
        """The partial alignments the head is shown, (B, T)."""
        mask_id = self.spec.tokens.mask_id
        if self.global_step < self.config.all_masked * self.config.updates:
            return torch.full(log_probs.shape[:2], mask_id, device=log_probs.device)
        alignment, _ = viterbi_alignment(log_probs, batch.targets, frames, batch.target_lengths)
        return mask_blocks(alignment, self.spec.head.block_size, mask_id=mask_id)

    @staticmethod
    def _flat_start_loss(log_probs: Tensor, frames: Tensor, batch: Batch) -> Tensor:
        """Cross entropy against the evenly spread transcript, per frame."""
        losses = F.nll_loss(log_probs.transpose(1, 2), batch.flat_start, reduction="none")
        valid = torch.arange(losses.shape[1], device=frames.device) < frames[:, None]
        return losses[valid].mean()

    @staticmethod
    def _per_token(loss: Tensor, batch: Batch) -> Tensor:
        return (loss / batch.target_lengths.clamp(min=1)).mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Word error rate at K = 1 and K = block size, over the whole validation split."""
        encoder_out, frames = self.encoder(batch.features, batch.lengths)
        block = self.spec.head.block_size
        references = [
            self.tokenizer.decode(row[:n].tolist()).split()
            for row, n in zip(batch.targets, batch.target_lengths, strict=True)
        ]
        n_words = sum(map(len, references))
        for n_steps in (1, block):
            alignment = decode(self.head, encoder_out, schedule(n_steps, block))
            errors = sum(
                edit_distance(words, self.transcript(row[:n]).split())
                for words, row, n in zip(references, alignment, frames, strict=True)
            )
            self.log(
                f"wer_k{n_steps}",
                errors / max(1, n_words),
                batch_size=max(1, n_words),
                prog_bar=True,
            )

    def transcript(self, alignment: Tensor) -> str:
        """Text of one alignment, (T,)."""
        return self.tokenizer.decode(self.tokenizer.collapse(alignment.tolist()))

    def configure_optimizers(self) -> Any:
        """AdamW; the learning rate rises, then falls along a cosine to 1 %."""
        config = self.config
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        rise = max(1, round(config.warmup * config.updates))

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / rise
            progress = (step - rise) / max(1, config.updates - rise)
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
