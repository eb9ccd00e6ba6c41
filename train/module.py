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

from .config import TrainConfig
from .data import Batch
from .decode import decode
from .encoders import ConformerEncoder, build_encoder
from .encoders.conformer import intermediate_ctc_loss
from .imputer import ImputerHead
from .objective import MASK, best_alignment, imputer_loss, mask_alignment


class ImputerModule(pl.LightningModule):
    """Encoder trained by CTC, head by the Imputer's DP loss on Viterbi alignments.

    A short flat start guides the encoder by evenly spread transcripts. For the first
    `all_masked` share of the updates the head sees masks only (plain CTC); then a random number
    of frames of every block is filled in from the encoder's best alignment.
    """

    def __init__(self, spec: ModelSpec, config: TrainConfig) -> None:
        super().__init__()
        spec.check()
        self.spec = spec
        self.config = config
        self.tokenizer = Tokenizer(spec.tokens)
        self.encoder = build_encoder(spec.encoder, spec.features)
        self.dropout = nn.Dropout(config.dropout)
        self.ctc = nn.Linear(spec.encoder.d_model, spec.tokens.vocabulary_size)
        self.head = ImputerHead(spec.encoder.d_model, spec.head, spec.tokens)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Draw dropout and masks by seed and update alone, so that a resumed run is the same."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.global_step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch: CTC of the encoder and the DP loss of the head, per token."""
        encoder_out, frames, branches = self._encode(batch)
        logits = self.ctc(self.dropout(encoder_out))
        encoder_loss = self._ctc_loss(logits, branches, frames, batch)
        partial = self._roll_in(logits.detach(), frames, batch)
        head_in = encoder_out.detach() if self.config.stop_gradient else encoder_out
        head_loss = self._head_loss(self.dropout(head_in), partial, frames, batch)
        self.log_dict({"ctc": encoder_loss, "imputer": head_loss}, prog_bar=True)
        if not torch.isfinite(encoder_loss + head_loss):
            raise DataError(
                f"the loss is no longer finite at update {self.global_step} (CTC "
                f"{encoder_loss.item()}, Imputer {head_loss.item()}); lower learning_rate in the "
                "recipe, or go on from an earlier checkpoint with other data"
            )
        if self.config.stop_gradient:
            return encoder_loss + head_loss
        weight = self.config.ctc_weight
        return weight * encoder_loss + (1 - weight) * head_loss

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Encoder frames, their number, and the logits of a conformer's intermediate branches."""
        if isinstance(self.encoder, ConformerEncoder):
            return self.encoder.forward_with_branches(batch.features, batch.lengths)
        return *self.encoder(batch.features, batch.lengths), ()

    def _ctc_loss(
        self, logits: Tensor, branches: tuple[Tensor, ...], frames: Tensor, batch: Batch
    ) -> Tensor:
        """CTC of the encoder's own branches; guided by the flat start for the first updates."""
        loss = intermediate_ctc_loss(
            logits,
            branches,
            batch.targets,
            frames,
            batch.target_lengths,
            weight=self.config.intermediate_weight,
            blank_id=BLANK_ID,
            validate=False,
        )
        if self.global_step < self.config.flat_start_updates:
            loss = 0.3 * loss + self._flat_start_loss(logits, frames, batch)
        return loss

    def _head_loss(
        self, encoder_out: Tensor, partial: Tensor, frames: Tensor, batch: Batch
    ) -> Tensor:
        """The Imputer's DP loss given partial alignments, and the penalty on large logits."""
        seen = partial.masked_fill(partial == MASK, self.spec.tokens.mask_id)
        logits: Tensor = self.head(encoder_out, seen)
        loss = imputer_loss(
            logits,
            batch.targets,
            partial,
            frames,
            batch.target_lengths,
            blank_id=BLANK_ID,
            zero_infinity=True,
            validate=False,
        )
        return loss + self.config.logit_penalty * logits.square().mean()

    def _roll_in(self, logits: Tensor, frames: Tensor, batch: Batch) -> Tensor:
        """The partial alignments that the head is shown, `MASK` where open, (B, T)."""
        if self.global_step < self.config.all_masked * self.config.updates:
            return torch.full(logits.shape[:2], MASK, device=logits.device)
        best = best_alignment(
            logits,
            batch.targets,
            frames,
            batch.target_lengths,
            blank_id=BLANK_ID,
            validate=False,
        )
        return mask_alignment(best.tokens, frames, block_size=self.spec.head.block_size)

    @staticmethod
    def _flat_start_loss(logits: Tensor, frames: Tensor, batch: Batch) -> Tensor:
        """Cross entropy against the evenly spread transcript, per frame."""
        losses = F.cross_entropy(logits.transpose(1, 2), batch.flat_start, reduction="none")
        valid = torch.arange(losses.shape[1], device=frames.device) < frames[:, None]
        return losses[valid].mean()

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
