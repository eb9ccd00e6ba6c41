"""The Imputer's objective: the loss that sums over alignments, and the alignments themselves.

Usable on its own with any acoustic model in torch; see ``docs/objective.md``.

>>> from edge_imputer.train.objective import MASK, imputer_loss, best_alignment, mask_alignment
>>> best = best_alignment(logits, targets, input_lengths, target_lengths)
>>> partial = mask_alignment(best.tokens, input_lengths, block_size=8)
>>> loss = imputer_loss(logits, targets, partial, input_lengths, target_lengths)
"""

from .alignment import Alignment, TokenSpan, best_alignment, sample_alignment
from .arguments import MASK
from .imitation import imitation_loss
from .loss import ImputerLoss, ctc_loss, imputer_loss
from .masking import mask_alignment

__all__ = [
    "MASK",
    "Alignment",
    "ImputerLoss",
    "TokenSpan",
    "best_alignment",
    "ctc_loss",
    "imitation_loss",
    "imputer_loss",
    "mask_alignment",
    "sample_alignment",
]
