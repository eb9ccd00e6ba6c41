"""Keywords: a classifier of utterances that learns where in them the word is."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from edge_imputer.errors import SpecError
from edge_imputer.specs import SILENCE, KeywordModelSpec, ModelSpec

from ..data import Batch
from ..keyword_model import KeywordModel
from ..layers.dropout import seeded_dropout
from .base import Task
from .settings import KeywordTaskSpec

_DROPOUT = 16  # stream of an utterance's seed; those of the objective are smaller


class KeywordTask(Task):
    """Cross entropy of an utterance's class, of scores that say it somewhere.

    An utterance has many scores and one label; where its word is, is not said. With the loss
    "max-pool" the score that counts is where the keyword is likeliest, and no other keyword may be
    likely anywhere, which is learnt where all others together are likeliest (Sun et al. 2016,
    arXiv:1705.02411; Hou et al. 2020, "Mining effective negative training samples for keyword
    spotting", for the hardest negative). From random weights that learns slowly, because the place
    of the maximum is random too; so for the first `mean_pooled` share of the updates the mean of
    all logits is trained, which wants utterances of one word (Sun et al. begin with a network
    trained by cross entropy, and found it best). The loss "mean-pool" stays with that.

    Of a window network's utterances that fit one window, all of it is plain cross entropy, but for
    the restraint on other keywords.

    Attributes
    ----------
    model : KeywordModel
    """

    spec: KeywordModelSpec
    settings: KeywordTaskSpec

    def __init__(self, spec: ModelSpec | KeywordModelSpec, settings: KeywordTaskSpec) -> None:
        super().__init__()
        if not isinstance(spec, KeywordModelSpec):
            raise SpecError(
                f"expected a keyword model, got {type(spec).__name__}; make it with "
                "settings.make_spec"
            )
        self.spec = spec
        self.settings = settings
        self.model = KeywordModel(spec)
        self.monitor = "balanced_accuracy", "max"
        weights = [settings.class_weights.get(name, 1.0) for name in spec.classes]
        self.register_buffer("weights", torch.tensor(weights), persistent=False)
        self.weights: Tensor

    def losses(self, batch: Batch, update: int, progress: float) -> dict[str, Tensor]:
        """As `Task.losses`; an utterance without a label (-1) has the loss 0."""
        out, n_scores = self.model.encode(batch.features, batch.lengths)
        if not self.spec.windowed and self.training:
            out = seeded_dropout(out, self.settings.dropout, batch.seeds, _DROPOUT)
        logits = self.model.classifier(out).float()
        losses = self.label_losses(logits, n_scores, batch.labels.clamp(min=0), progress)
        usable = (batch.labels >= 0) & (n_scores > 0)
        return {"loss": losses.where(usable, 0.0)}

    def label_losses(
        self, logits: Tensor, n_scores: Tensor, labels: Tensor, progress: float
    ) -> Tensor:
        """Weighted losses of utterances (B,) for their logits (B, T, C) and any labels (B,)."""
        valid = torch.arange(logits.shape[1], device=logits.device) < n_scores[:, None]
        settings = self.settings
        if settings.loss == "max-pool" and progress >= settings.mean_pooled:
            losses = max_pool_loss(logits, labels, valid, self.spec)
        else:
            mean = (logits * valid[:, :, None]).sum(1) / n_scores.clamp(min=1)[:, None]
            losses = torch.nn.functional.cross_entropy(mean, labels, reduction="none")
        return losses * self.weights[labels]

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, tuple[float, float]]:
        """Right utterances by all, in all and of every class."""
        logits, n_scores = self.model(batch.features, batch.lengths)
        found = classify(logits, n_scores, len(self.spec.keywords))
        right = found == batch.labels
        sums: dict[str, tuple[float, float]] = {}
        known = batch.labels >= 0
        sums["accuracy"] = float((right & known).sum()), float(known.sum())
        for index, name in enumerate(self.spec.classes):
            of_class = batch.labels == index
            sums[f"recall/{name}"] = float((right & of_class).sum()), float(of_class.sum())
        return sums

    def summarise(self, sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """As `Task.summarise`, and the mean of the classes' recalls: "balanced_accuracy"."""
        found = super().summarise(sums)
        recalls = [value for name, value in found.items() if name.startswith("recall/")]
        if recalls:
            found["balanced_accuracy"] = sum(recalls) / len(recalls)
        return found


def max_pool_loss(logits: Tensor, labels: Tensor, valid: Tensor, spec: KeywordModelSpec) -> Tensor:
    """Cross entropy where the class is likeliest, and where all other keywords are, (B,).

    Parameters
    ----------
    logits : (B, T, C)
    labels : long, (B,)
    valid : bool, (B, T)
        Scores of the utterance itself. Where there are none, the loss means nothing.
    spec : KeywordModelSpec

    Returns
    -------
    losses : (B,)
        For a keyword, ``-max_t log p(label | t) - log(1 - max_t p(other keywords | t))``. For what
        is none, the second alone, over all keywords, unless silence is a class: then it must be
        told from that somewhere, and silence everywhere, for which the first is the mean over t.
    """
    log_probs = logits.log_softmax(-1)
    own = log_probs.gather(2, labels[:, None, None].expand(-1, log_probs.shape[1], 1)).squeeze(2)
    wrong = torch.zeros(logits.shape[0], logits.shape[2], dtype=torch.bool, device=logits.device)
    wrong[:, 1 : 1 + len(spec.keywords)] = True
    wrong = wrong.scatter(1, labels[:, None], False)
    # log(1 - p(others)) as a sum over the other classes: exact where it is near 0
    rest = log_probs.masked_fill(wrong[:, None], -torch.inf).logsumexp(-1)  # (B, T)
    restraint = -rest.masked_fill(~valid, torch.inf).amin(1)
    likeliest = -own.masked_fill(~valid, -torch.inf).amax(1)
    mean = -(own.masked_fill(~valid, 0.0).sum(1) / valid.sum(1).clamp(min=1))
    if not spec.silence:
        return likeliest.where(labels > 0, 0.0) + restraint
    return mean.where(labels == spec.classes.index(SILENCE), likeliest) + restraint


def classify(logits: Tensor, n_scores: Tensor, n_keywords: int) -> Tensor:
    """The class of every utterance: the likeliest where a keyword is likeliest, (B,).

    Parameters
    ----------
    logits : (B, T, C)
    n_scores : (B,)
    n_keywords : int

    Returns
    -------
    classes : long, (B,)
        0 where an utterance has no score.
    """
    found = where_likeliest(logits, n_scores, n_keywords).argmax(-1)
    return found.where(n_scores > 0, 0)


def where_likeliest(logits: Tensor, n_scores: Tensor, n_keywords: int) -> Tensor:
    """Log-probabilities of the classes where a keyword is likeliest, (B, C).

    Parameters are those of `classify`; of an utterance without a score all classes are as likely.
    """
    log_probs = logits.log_softmax(-1)
    best = log_probs[:, :, 1 : 1 + n_keywords].amax(-1)  # (B, T)
    valid = torch.arange(best.shape[1], device=best.device) < n_scores[:, None]
    if not best.shape[1]:
        return logits.new_zeros(len(logits), logits.shape[2]).log_softmax(-1)
    place = best.masked_fill(~valid, -torch.inf).argmax(1)
    found = log_probs[torch.arange(len(place), device=place.device), place]
    return found.where(n_scores[:, None] > 0, -math.log(logits.shape[2]))
