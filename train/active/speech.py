"""What is heard of speech: labelings of CTC and of an Imputer head."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from edge_imputer.errors import SpecError

from ..data import Batch
from ..objective import MASK, mask_alignment
from ..objective.seeded import random_bits
from ..tasks import CtcTask, ImputerTask
from .gradients import label_gradients, path_bound
from .heard import Heard, How, Hypotheses, Readout, recorded_inputs
from .labelings import Labelings, best_labeling, sample_labelings
from .nbest import likeliest_labelings
from .options import ScoreOptions

_STREAM = 21  # of an utterance's seed, for those of its roll-ins


class HeardSpeech(Heard):
    """A batch as a model that writes down speech hears it.

    The loss of a `CtcTask` is CTC. That of an `ImputerTask` is its head's, given roll-ins as in
    training, but of what the model itself hears: the encoder's best path, of which random frames
    are masked, by the task's policy and the utterance's seed. What is heard, and how sure of it
    the model is, comes from the first pass, in which all is masked.

    Parameters
    ----------
    task : CtcTask or ImputerTask
        In evaluation mode.
    batch : Batch
    options : ScoreOptions
    seeds : long, (B,)
        Of what is drawn for each utterance.

    Raises
    ------
    SpecError
        The loss asked for is the head's, of a model that has none.
    """

    def __init__(
        self, task: CtcTask | ImputerTask, batch: Batch, options: ScoreOptions, seeds: Tensor
    ) -> None:
        self._task, self.options = task, options
        self._seeds = seeds
        self._has_head = isinstance(task, ImputerTask) and options.loss != "ctc"
        if options.loss == "imputer" and not self._has_head:
            raise SpecError(
                "loss: expected ctc or auto of a model without an Imputer head, got 'imputer'"
            )
        self._encoder_out, self._n_frames = task.encoder(batch.features, batch.lengths)
        if isinstance(task, ImputerTask) and not self._has_head:
            logits = task.ctc(self._encoder_out)
            self.first = Readout.of(logits, self._encoder_out, self._n_frames)
        else:
            self.first = self._read(task.head.fully_masked(self._encoder_out))

    def texts(self) -> list[str]:
        """What greedy decoding writes."""
        tokens = best_labeling(self.first.log_probs, self._n_frames)
        return [
            self._task.tokenizer.decode(row[:n])
            for row, n in zip(tokens.tokens[0].tolist(), tokens.lengths[0].tolist(), strict=True)
        ]

    def doubt(self) -> tuple[Tensor, Tensor]:
        """Least confidence of all frames, ``T (1 - c)``, and c = p(best labeling) ** (1 / T)."""
        best = best_labeling(self.first.log_probs, self._n_frames)
        losses, _ = label_gradients(self.first.log_probs, self._n_frames, best)
        per_frame = losses[0] / self._n_frames.clamp(min=1)
        return -torch.expm1(-per_frame) * self._n_frames, torch.exp(-per_frame)

    def entropy(self) -> Tensor:
        """Of the frames' tokens, summed; or of the labeling, the mean of -log p(y) over draws."""
        log_probs = self.first.log_probs
        if self.options.entropy == "frame":
            inside = torch.arange(log_probs.shape[1], device=log_probs.device)
            inside = inside < self._n_frames[:, None]
            frames: Tensor = torch.special.entr(log_probs.exp()).sum(-1)
            return frames.masked_fill(~inside, 0.0).sum(1)
        n = self.options.n_samples
        drawn = sample_labelings(log_probs, self._n_frames, n, self._seeds)
        return label_gradients(log_probs, self._n_frames, drawn)[0].mean(0)

    def hypotheses(self, how: How) -> list[Hypotheses]:
        """The most probable labelings, draws, or the best one, of every readout of the loss."""
        options = self.options
        found = []
        seeds = self._drawn_seeds(len(self._readouts))
        for readout, own in zip(self._readouts, seeds, strict=True):
            log_probs, n_frames = readout.log_probs, readout.n_frames
            labels: Labelings
            if how == "likeliest":
                labels = likeliest_labelings(log_probs, n_frames, options.n_best)
            elif how == "drawn":
                labels = sample_labelings(log_probs, n_frames, options.n_samples, own)
            else:
                labels = best_labeling(log_probs, n_frames)
            losses, delta = label_gradients(log_probs, n_frames, labels)
            weights = labels.weights
            if how == "likeliest":
                log_weights = (-losses).where(weights > 0, -torch.inf)
                # Of a long clip that is unclear, no probability is above 0 in float32.
                weights = log_weights.softmax(0) if options.renormalise else log_weights.exp()
            found.append(Hypotheses(readout, weights, delta))
        return found

    def bound(self) -> Tensor:
        """`path_bound`, the mean over the loss's readouts."""
        bounds = [
            path_bound(r.log_probs, r.inputs, r.n_frames, squared=self.options.squared)
            for r in self._readouts
        ]
        return torch.stack(bounds).mean(0)

    def _read(self, alignment: Tensor, filled: Tensor | None = None) -> Readout:
        """The head given an alignment, (B, T)."""
        head = self._task.head
        with recorded_inputs(head.output) as inputs:
            logits = head(self._encoder_out, alignment)
        shape = (*logits.shape[:2], inputs[0].shape[-1])
        return Readout.of(logits, inputs[0].reshape(shape), self._n_frames, filled)

    @functools.cached_property
    def _readouts(self) -> list[Readout]:
        """What the loss is computed from: of an Imputer head, one a roll-in."""
        task = self._task
        if not (self._has_head and isinstance(task, ImputerTask)):
            return [self.first]
        path_scores, path = task.ctc(self._encoder_out).detach().log_softmax(-1).max(-1)
        policy = task.settings.mask_policy
        readouts = []
        for own in self._drawn_seeds(self.options.n_masks):
            partial = mask_alignment(
                path,
                self._n_frames,
                policy=policy,
                block_size=task.spec.head.block_size,
                confidence=path_scores if policy == "confidence" else None,
                seeds=own,
            )
            seen = partial.masked_fill(partial == MASK, task.spec.tokens.mask_id)
            readouts.append(self._read(seen, partial))
        return readouts

    def _drawn_seeds(self, n: int) -> tuple[Tensor, ...]:
        """`n` seeds of every utterance, each (B,); one more changes none of the others."""
        return random_bits(self._seeds, _STREAM, (n,)).unbind(1)
