"""What is heard of keywords: all classes, so nothing is drawn and expectations are exact."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data import Batch
from ..tasks import KeywordTask
from ..tasks.keywords import where_likeliest
from .heard import Heard, How, Hypotheses, Readout, recorded_inputs
from .options import ScoreOptions

TRAINED = 1.0  # the progress whose loss counts: that of the last updates


class HeardKeywords(Heard):
    """A batch as a keyword model hears it.

    An utterance's classes have the probabilities that `classify` decides by: those where a keyword
    is likeliest; of a model trained by the mean of its logits, that mean's. For the latter the
    expected length is, without class weights, ``(1 - sum_c p_c^2) (||mean h||^2 + 1)``.

    Parameters
    ----------
    task : KeywordTask
        In evaluation mode.
    batch : Batch
    options : ScoreOptions
    """

    def __init__(self, task: KeywordTask, batch: Batch, options: ScoreOptions) -> None:
        self._task, self.options = task, options
        model = task.model
        # Windows are classified inside the encoder's network.
        layer: Any = model.encoder.network if task.spec.windowed else model
        with recorded_inputs(layer.classifier) as groups:
            logits, n_scores = model(batch.features, batch.lengths)
        if groups:  # windows are computed some at a time
            inputs = torch.cat([g.reshape(len(logits), -1, g.shape[-1]) for g in groups], 1)
        else:
            inputs = logits.new_zeros(*logits.shape[:2], 1)
        self.first = Readout.of(logits, inputs, n_scores)
        self._class_log_probs = self._classes()

    def texts(self) -> list[str]:
        """Names of the classes."""
        names = self._task.spec.classes
        return [names[index] for index in self._class_log_probs.argmax(-1).tolist()]

    def doubt(self) -> tuple[Tensor, Tensor]:
        """Least confidence ``1 - p``, and the probability p of the best class."""
        best = self._class_log_probs.amax(-1)
        return -torch.expm1(best), best.exp()

    def entropy(self) -> Tensor:
        """Of the class."""
        entropies: Tensor = torch.special.entr(self._class_log_probs.exp()).sum(-1)
        return entropies

    def hypotheses(self, how: How) -> list[Hypotheses]:
        """All classes, however they are asked for; or the best one."""
        n_classes = len(self._task.spec.classes)
        readout = self.first
        batch = len(readout.logits)
        if how == "best":
            labels = self._class_log_probs.argmax(-1)[None]
            weights = torch.ones_like(labels, dtype=readout.logits.dtype)
        else:
            labels = torch.arange(n_classes, device=readout.logits.device)[:, None]
            labels = labels.expand(n_classes, batch)
            weights = self._class_log_probs.exp().T
        repeated = readout.logits.detach().expand(len(labels), -1, -1, -1).flatten(0, 1)
        repeated = repeated.clone().requires_grad_()
        n_scores = readout.n_frames.repeat(len(labels))
        with torch.enable_grad():
            losses = self._task.label_losses(repeated, n_scores, labels.flatten(), TRAINED)
            losses = losses.where(n_scores > 0, 0.0)
            (delta,) = torch.autograd.grad(losses.sum(), repeated)
        return [Hypotheses(readout, weights, delta.view(len(labels), *readout.logits.shape))]

    def bound(self) -> Tensor:
        """The expected length itself, which costs no more."""
        (found,) = self.hypotheses("drawn")
        return found.expected_length((), squared=self.options.squared)

    def _classes(self) -> Tensor:
        """Log-probabilities of each utterance's classes, (B, C)."""
        task, readout = self._task, self.first
        if task.settings.loss == "max-pool":
            n_keywords = len(task.spec.keywords)
            return where_likeliest(readout.logits.detach(), readout.n_frames, n_keywords)
        mean = readout.logits.detach().sum(1) / readout.n_frames.clamp(min=1)[:, None]
        return mean.log_softmax(-1)
