"""The Imputer: an encoder trained by CTC, a head trained to fill in its alignments."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_imputer.errors import SpecError
from edge_imputer.imputation import schedule
from edge_imputer.specs import BLANK_ID, KeywordModelSpec, ModelSpec

from ..data import Batch
from ..decode import decode
from ..imputer import ImputerHead
from ..objective import (
    MASK,
    Alignment,
    best_alignment,
    imitation_loss,
    imputer_loss,
    mask_alignment,
    sample_alignment,
)
from ..objective.seeded import random_bits, random_uniform
from .settings import ImputerTaskSpec, RollIn
from .speech import ENCODER_DROPOUT, HEAD_DROPOUT, SpeechTask, per_token

# Streams of an utterance's seed, besides those of `speech.py`.
CORRUPTED, DRAWN, REFINED, AGAIN = 18, 19, 20, 21


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
    rivals : torch.nn.ModuleDict of ImputerHead
    """

    settings: ImputerTaskSpec

    def __init__(self, spec: ModelSpec | KeywordModelSpec, settings: ImputerTaskSpec) -> None:
        if not isinstance(spec, ModelSpec) or spec.head != settings.own_head():
            raise SpecError(
                "expected a model with the head of the task's settings, got "
                f"{getattr(spec, 'head', type(spec).__name__)}; make it with settings.make_spec"
            )
        super().__init__(spec, settings)
        d_model = spec.encoder.d_model
        self.ctc = nn.Linear(d_model, spec.tokens.vocabulary_size)
        self.rivals = nn.ModuleDict()
        for name in settings.rivals:
            if hasattr(self.rivals, name):
                raise SpecError(f"rivals: {name!r} is a name that torch needs; choose another")
            head = settings.rival(name).own_head()
            self.rivals[name] = ImputerHead(d_model, head, spec.tokens)
        self.monitor = f"wer_k{1 if settings.all_masked == 1 else spec.head.block_size}", "min"

    def losses(self, batch: Batch, update: int, progress: float) -> dict[str, Tensor]:
        """As `Task.losses`: "ctc" of the encoder and "imputer" of the head, per token.

        A rival's loss is there as "name/loss".
        """
        encoder_out, frames, branches = self.encode(batch)
        logits = self.ctc(self.drop(encoder_out, batch, ENCODER_DROPOUT))
        encoder_loss = self.encoder_loss(logits, branches, frames, batch, progress)
        encoder_loss, restraint = self.restrain(encoder_loss, logits, frames, batch)
        settings = self.settings
        head_in = encoder_out.detach() if settings.stop_gradient else encoder_out
        dropped = self.drop(head_in, batch, HEAD_DROPOUT)
        given = _Given(dropped, logits.detach(), frames, batch, batch.seeds)
        head_loss, head_restraint = self._head_loss(self.head, settings, given, progress)
        losses = encoder_loss + restraint, head_loss + head_restraint
        if settings.stop_gradient:
            loss = losses[0] + losses[1]
        else:
            loss = settings.ctc_weight * losses[0] + (1 - settings.ctc_weight) * losses[1]
        found = {"ctc": encoder_loss.detach(), "imputer": head_loss.detach()}
        for name in settings.rivals:
            rival_loss, rival_restraint = self._head_loss(
                self.rivals[name], settings.rival(name), given, progress
            )
            loss = loss + rival_loss + rival_restraint
            found[f"{name}/loss"] = rival_loss.detach()
        return {"loss": loss, **found, **self.reported(restraint + head_restraint)}

    def clipped_groups(self) -> list[list[nn.Parameter]]:
        """As `Task.clipped_groups`: a rival's gradient leaves those of the others as they are."""
        rivals = [list(rival.parameters()) for rival in self.rivals.values()]
        theirs = {id(parameter) for group in rivals for parameter in group}
        return [[p for p in self.parameters() if id(p) not in theirs], *rivals]

    def _head_loss(
        self, head: nn.Module, settings: ImputerTaskSpec, given: _Given, progress: float
    ) -> tuple[Tensor, Tensor]:
        """A head's loss given partial alignments, with its penalties; restraint."""
        seen = self._look(head, settings, given, progress)
        if not settings.consistency or progress < settings.all_masked:
            return seen.loss, seen.restraint
        again = self._look(head, settings, given.with_other_masks(), progress)
        apart = _disagreement(seen, again, given.frames)
        loss = (seen.loss + again.loss) / 2 + settings.consistency * per_token(apart, given.batch)
        return loss, (seen.restraint + again.restraint) / 2

    def _look(
        self, head: nn.Module, settings: ImputerTaskSpec, given: _Given, progress: float
    ) -> _Look:
        """What a head makes of one partial alignment an utterance."""
        batch, frames = given.batch, given.frames
        all_masked = progress < settings.all_masked
        alignment = None
        if not all_masked or settings.loss == "imitation":
            alignment = given.alignment(settings.roll_in)
        if alignment is None or all_masked:
            partial = torch.full(given.ctc_logits.shape[:2], MASK, device=frames.device)
        else:
            partial = _mask(alignment, given, settings)
            # Without a transcript nothing can be filled in.
            partial = partial.masked_fill(self.untranscribed(batch)[:, None], MASK)
        partial, shown = _shown(partial, given, settings, all_masked)
        logits: Tensor = head(
            given.head_in, shown.masked_fill(shown == MASK, self.spec.tokens.mask_id)
        )
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
        return _Look(losses + self.logit_penalty(logits, frames), restraint, logits, partial)

    def heard_errors(
        self, batch: Batch, encoder_out: Tensor, frames: Tensor
    ) -> dict[str, tuple[float, float]]:
        """As `SpeechTask.heard_errors`; of rivals at K = block size.

        Of heads that learn to revise (`refined`) "wer_k1r1" too: all at once, and looked at again.
        """
        found = super().heard_errors(batch, encoder_out, frames)
        block = self.spec.head.block_size
        for name in self.settings.rivals:
            steps = 1 if self.settings.rival(name).all_masked == 1 else block
            head = cast("ImputerHead", self.rivals[name])
            alignment = decode(head, encoder_out, schedule(steps, block))
            found[f"{name}/wer_k{steps}"] = self.word_errors(batch, alignment, frames)
        for prefix, head in self._revisers().items():
            alignment = decode(head, encoder_out, (head.spec.block_size,), revisions=1)
            found[f"{prefix}wer_k1r1"] = self.word_errors(batch, alignment, frames)
        return found

    def _revisers(self) -> dict[str, ImputerHead]:
        """The heads that learn to revise, by what goes before the names of their measures."""
        heads = {"": (self.head, self.settings)}
        for name, rival in self.rivals.items():
            heads[f"{name}/"] = cast("ImputerHead", rival), self.settings.rival(name)
        return {
            prefix: head
            for prefix, (head, settings) in heads.items()
            if settings.refined and settings.all_masked < 1
        }


@dataclass
class _Given:
    """What the heads of an update learn from: the same for all of them.

    Attributes
    ----------
    head_in : (B, T, d_model)
    ctc_logits : (B, T, V), the encoder's own
    frames : (B,)
    seeds : long, (B,), of masks and errors
    """

    head_in: Tensor
    ctc_logits: Tensor
    frames: Tensor
    batch: Batch
    seeds: Tensor
    _alignments: dict[RollIn, Alignment] = field(default_factory=dict)

    def with_other_masks(self) -> _Given:
        """The same, with other frames masked and other errors."""
        return replace(self, seeds=random_bits(self.seeds, AGAIN, ()))

    def alignment(self, roll_in: RollIn) -> Alignment:
        """The encoder's alignments of the targets, one an utterance."""
        if roll_in not in self._alignments:
            batch = self.batch
            arguments = self.ctc_logits, batch.targets, self.frames, batch.target_lengths
            self._alignments[roll_in] = (
                best_alignment(*arguments, blank_id=BLANK_ID, validate=False)
                if roll_in == "viterbi"
                else sample_alignment(
                    *arguments, blank_id=BLANK_ID, seeds=batch.seeds, validate=False
                )
            )
        return self._alignments[roll_in]


@dataclass(frozen=True)
class _Look:
    """What a head made of partial alignments.

    Attributes
    ----------
    loss, restraint : (B,)
    logits : (B, T, V)
    partial : (B, T), `MASK` where the head had to find the token
    """

    loss: Tensor
    restraint: Tensor
    logits: Tensor
    partial: Tensor


def _disagreement(one: _Look, other: _Look, frames: Tensor) -> Tensor:
    """How far two looks are apart in the frames that both had to find, a sum over them, (B,).

    The mean of the two Kullback-Leibler divergences, each to what the other says, taken as given
    (Yao et al. 2024, arXiv:2410.05101, CR-CTC).
    """
    first, second = (look.logits.float().log_softmax(-1) for look in (one, other))
    to_second, to_first = (
        F.kl_div(mine, theirs.detach(), reduction="none", log_target=True).sum(-1)
        for mine, theirs in ((first, second), (second, first))
    )
    inside = torch.arange(first.shape[1], device=frames.device) < frames[:, None]
    both = (one.partial == MASK) & (other.partial == MASK) & inside
    return ((to_second + to_first) / 2).masked_fill(~both, 0.0).sum(1)


def _mask(alignment: Alignment, given: _Given, settings: ImputerTaskSpec) -> Tensor:
    """The partial alignments that agree with a transcript, `MASK` where open, (B, T)."""
    policy = settings.mask_policy
    return mask_alignment(
        alignment.tokens,
        given.frames,
        policy=policy,
        block_size=settings.head.block_size,
        confidence=alignment.frame_scores if policy == "confidence" else None,
        seeds=given.seeds,
    )


def _shown(
    partial: Tensor, given: _Given, settings: ImputerTaskSpec, all_masked: bool
) -> tuple[Tensor, Tensor]:
    """What the loss takes as filled in, and what the head is shown: with the encoder's errors."""
    seeds, n_frames = given.seeds.to(partial.device), partial.shape[1]
    shown = partial
    if settings.corrupted and not all_masked:
        replaced = random_uniform(seeds, CORRUPTED, (n_frames,)) < settings.corrupted
        shown = torch.where(replaced & (partial != MASK), _drawn(given, seeds), partial)
    if settings.refined and not all_masked:
        whole = random_uniform(seeds, REFINED, (1,)) < settings.refined
        inside = torch.arange(n_frames, device=partial.device) < given.frames[:, None]
        best = given.ctc_logits.argmax(-1).masked_fill(~inside, MASK)
        shown = torch.where(whole, best, shown)
        partial = partial.masked_fill(whole, MASK)
    return partial, shown


def _drawn(given: _Given, seeds: Tensor) -> Tensor:
    """A token of every frame, drawn from what the encoder takes it to be, (B, T)."""
    probabilities = given.ctc_logits.float().softmax(-1)
    point = random_uniform(seeds, DRAWN, (probabilities.shape[1],))
    below = probabilities.cumsum(-1) < point[:, :, None]
    return below.sum(-1).clamp(max=probabilities.shape[2] - 1)
