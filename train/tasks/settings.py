"""What a recipe can set of a task: what is trained, by which loss.

The tag ``kind`` says which task it is. Model and training meet here: `make_spec` gives the
specification of the model that the task trains, `edge_imputer.train.tasks.build_task` the task.
"""

from __future__ import annotations

import math
from typing import Literal, Union, get_args

import msgspec

from edge_imputer.errors import SpecError
from edge_imputer.keywords import check_keywords
from edge_imputer.specs import (
    AnyEncoderSpec,
    AnyFeatureSpec,
    ConformerSpec,
    CrnnSpec,
    FeatureSpec,
    ImputerSpec,
    KeywordModelSpec,
    ModelSpec,
    TcnSpec,
    TokenSpec,
    for_classes,
)

RollIn = Literal["viterbi", "sampled"]
HeadLoss = Literal["dp", "imitation"]
MaskPolicy = Literal["block", "confidence", "bernoulli"]
KeywordLoss = Literal["max-pool", "mean-pool"]


class SpeechSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What tasks that write down speech have in common.

    Attributes
    ----------
    dropout : float
        Share of the encoder's outputs that training drops.
    intermediate_weight : float
        Of a conformer's intermediate CTC branches in the encoder's loss.
    flat_start : float
        Share of the updates guided by evenly spread transcripts: CTC alone sits on its all-blank
        plateau for long.
    logit_penalty : float
        Times the mean squared logit: int8 steps stay fine.
    keywords : tuple of str
        What clips labelled ``_hard_`` must not be taken for. They need no transcript, see
        `edge_imputer.train.tasks.restraint`; with no keyword here they are left out.
    restraint : float
        Weight of that loss.
    """

    dropout: float = 0.1
    intermediate_weight: float = 0.5
    flat_start: float = 0.1
    logit_penalty: float = 1e-3
    keywords: tuple[str, ...] = ()
    restraint: float = 1.0

    def check(self) -> None:
        """Raise `SpecError` on values that cannot train."""
        _check_shares(
            dropout=self.dropout,
            intermediate_weight=self.intermediate_weight,
            flat_start=self.flat_start,
        )
        for name in ("logit_penalty", "restraint"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SpecError(f"expected {name} >= 0, and finite, got {getattr(self, name)}")
        if self.keywords:
            check_keywords(self.keywords)


class RivalSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a rival head differs from the task's own; None: as that one. See `ImputerTaskSpec`."""

    head: ImputerSpec | None = None
    loss: HeadLoss | None = None
    roll_in: RollIn | None = None
    mask_policy: MaskPolicy | None = None
    all_masked: float | None = None
    corrupted: float | None = None
    refined: float | None = None
    consistency: float | None = None


class ImputerTaskSpec(SpeechSettings, frozen=True, kw_only=True, tag="imputer", tag_field="kind"):
    """An encoder trained by CTC and an Imputer head that fills in its alignments.

    Attributes
    ----------
    head : ImputerSpec
    loss : str
        "dp" sums over all alignments that agree with what is filled in; "imitation" is the cross
        entropy against the one that the partial alignment was made of.
    roll_in : str
        Which alignment of the encoder's is masked: "viterbi", the best, or "sampled" from all.
    mask_policy : str
        Which frames are masked; see `edge_imputer.train.objective.mask_alignment`.
    all_masked : float
        Share of the updates, the first ones, in which the head sees masks only; 1: it never sees
        anything else, and is but a deeper CTC, to be read in one pass.
    corrupted : float
        Share of the frames shown to the head whose token is drawn anew, as the encoder takes it to
        be: so it meets errors of its kind, and learns not to build on them.
    refined : float
        Share of the utterances of which the head is shown the encoder's whole best alignment,
        errors and all, with every frame to be found anew: what a last pass meets that looks at
        everything again (Chi et al. 2021, arXiv:2010.14233, Align-Refine).
    consistency : float
        Times how far apart the head's answers are where it is shown two partial alignments of an
        utterance, in the frames open in both (Yao et al. 2024, arXiv:2410.05101, CR-CTC, with
        masks in place of augmentation). Above 0 the head looks twice in every update.
    rivals : dict of str to RivalSpec
        Heads that learn beside, each by its own settings, from the same encoder on the same
        batches: to compare what makes a head good, at one encoder's cost. They need
        `stop_gradient`, and have no part in the model unless `Checkpoint.with_rival` chooses one.
    stop_gradient : bool
        Whether the encoder learns by CTC alone. Else its loss weighs `ctc_weight`, the head's one
        minus this.
    ctc_weight : float
    """

    head: ImputerSpec = ImputerSpec()
    loss: HeadLoss = "dp"
    roll_in: RollIn = "viterbi"
    mask_policy: MaskPolicy = "block"
    all_masked: float = 0.2
    corrupted: float = 0.0
    refined: float = 0.0
    consistency: float = 0.0
    rivals: dict[str, RivalSpec] = {}
    stop_gradient: bool = True
    ctc_weight: float = 0.8

    def rival(self, name: str) -> ImputerTaskSpec:
        """The settings of a rival, as if it were the task's own head; `SpecError` if unknown."""
        if name not in self.rivals:
            raise SpecError(f"expected a rival among {', '.join(self.rivals)}, got {name!r}")
        own = self.rivals[name]
        given = {
            key: value for key in own.__struct_fields__ if (value := getattr(own, key)) is not None
        }
        return msgspec.structs.replace(self, rivals={}, **given)

    def check(self) -> None:
        """Raise `SpecError` on values that cannot train."""
        super().check()
        _check_choice("loss", self.loss, HeadLoss)
        _check_choice("roll_in", self.roll_in, RollIn)
        _check_choice("mask_policy", self.mask_policy, MaskPolicy)
        _check_shares(corrupted=self.corrupted)
        for share in ("all_masked", "refined"):
            if not 0 <= getattr(self, share) <= 1:
                raise SpecError(f"expected {share} from 0 to 1, got {getattr(self, share)}")
        if not 0 <= self.consistency < math.inf:
            raise SpecError(f"expected consistency >= 0, and finite, got {self.consistency}")
        self.head.check()
        self._check_rivals()
        if self.head.mixer == "none":
            raise SpecError(
                "expected a head that reads alignments, of convolutions or attention, got mixer "
                "'none'; train a model without one by the task of kind ctc"
            )
        if not self.stop_gradient and not 0.8 <= self.ctc_weight <= 1.0:
            raise SpecError(
                f"expected ctc_weight between 0.8 and 1 without stop_gradient, got "
                f"{self.ctc_weight}: a smaller one was measured to ruin the encoder"
            )

    def _check_rivals(self) -> None:
        if self.rivals and not self.stop_gradient:
            raise SpecError("expected stop_gradient with rivals: the encoder is to be nobody's own")
        for name in self.rivals:
            rival = self.rival(name)
            if not name.isidentifier() or rival.head.chunk_size != self.head.chunk_size:
                raise SpecError(
                    f"rivals: expected names of letters, digits and _, and chunks of "
                    f"{self.head.chunk_size} frames, got {name!r} with {rival.head.chunk_size}"
                )
            rival.check()

    def own_head(self) -> ImputerSpec:
        """The head as it is read: in one pass, where it never sees an alignment."""
        if self.all_masked < 1:
            return self.head
        return msgspec.structs.replace(self.head, schedule=(self.head.block_size,))

    def make_spec(
        self, features: AnyFeatureSpec, encoder: AnyEncoderSpec, tokens: TokenSpec | None = None
    ) -> ModelSpec:
        """The model that this task trains, checked."""
        return _model_spec(features, encoder, self.own_head(), tokens)


class CtcTaskSpec(SpeechSettings, frozen=True, kw_only=True, tag="ctc", tag_field="kind"):
    """Plain CTC; intermediate or self-conditioned where the encoder's specification has branches.

    Attributes
    ----------
    chunk : int
        Encoder frames that a stream is decoded by.
    """

    chunk: int = 8

    @property
    def head(self) -> ImputerSpec:
        """A linear layer, read once."""
        return ImputerSpec(mixer="none", block_size=self.chunk, schedule=(self.chunk,))

    def check(self) -> None:
        """Raise `SpecError` on values that cannot train."""
        super().check()
        if self.chunk < 1:
            raise SpecError(f"expected chunk >= 1, got {self.chunk}")

    def make_spec(
        self, features: AnyFeatureSpec, encoder: AnyEncoderSpec, tokens: TokenSpec | None = None
    ) -> ModelSpec:
        """The model that this task trains, checked."""
        return _model_spec(features, encoder, self.head, tokens)


class KeywordTaskSpec(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    tag="keywords",
    tag_field="kind",
):
    """A classifier of keywords.

    Attributes
    ----------
    keywords : tuple of str
        Empty: the labels of the training clips; `make_spec` takes them from its argument.
    silence : bool
        Whether silence is a class of its own.
    loss : str
        Which of an utterance's scores are trained; see `edge_imputer.train.tasks.KeywordTask`.
    mean_pooled : float
        Share of the updates, the first ones, in which it is their mean, whatever `loss` says.
    class_weights : dict of str to float
        Weight of an utterance's loss by its class's name, 1 where none is given.
    dropout : float
        Share of the encoder's outputs that training drops; not of an encoder's over windows.
    smoothing_ms : int
        See `KeywordModelSpec`.
    """

    keywords: tuple[str, ...] = ()
    silence: bool = False
    loss: KeywordLoss = "max-pool"
    mean_pooled: float = 0.4
    class_weights: dict[str, float] = {}
    dropout: float = 0.1
    smoothing_ms: int = 200

    def check(self) -> None:
        """Raise `SpecError` on values that cannot train."""
        _check_choice("loss", self.loss, KeywordLoss)
        _check_shares(dropout=self.dropout, mean_pooled=self.mean_pooled)
        weights = self.class_weights
        wrong = {name: weight for name, weight in weights.items() if not 0 < weight < math.inf}
        if wrong:
            raise SpecError(f"expected class_weights above 0, got {wrong}")

    def make_spec(
        self,
        features: AnyFeatureSpec,
        encoder: AnyEncoderSpec,
        keywords: tuple[str, ...] | None = None,
    ) -> KeywordModelSpec:
        """The model that this task trains, checked; `keywords` where the recipe names none."""
        words = self.keywords or keywords or ()
        n_classes = 1 + len(words) + self.silence
        spec = KeywordModelSpec(
            features=features,
            encoder=for_classes(encoder, max(2, n_classes)),
            keywords=words,
            silence=self.silence,
            smoothing_ms=self.smoothing_ms,
        )
        spec.check()
        unknown = sorted(set(self.class_weights) - set(spec.classes))
        if unknown:
            raise SpecError(
                f"expected class_weights of the classes {', '.join(spec.classes)}, got {unknown}"
            )
        return spec


TaskSpec = Union[ImputerTaskSpec, CtcTaskSpec, KeywordTaskSpec]  # noqa: UP007 (msgspec, 3.10)


def _model_spec(
    features: AnyFeatureSpec, encoder: AnyEncoderSpec, head: ImputerSpec, tokens: TokenSpec | None
) -> ModelSpec:
    if not isinstance(features, FeatureSpec):
        raise SpecError(
            "expected log-mel features for a model that writes down speech, got "
            f"{type(features).__name__}: its bundle knows no other front end yet"
        )
    if not isinstance(encoder, (CrnnSpec, TcnSpec, ConformerSpec)):
        raise SpecError(
            "expected an encoder that gives frames (crnn, tcn, conformer), got "
            f"{type(encoder).__name__}, which scores windows; it is for the task of kind keywords"
        )
    if tokens is None:
        raise SpecError("expected the tokens that the model writes, got None")
    if isinstance(encoder, ConformerSpec) and encoder.intermediate_ctc:
        encoder = msgspec.structs.replace(encoder, n_tokens=tokens.vocabulary_size)
    spec = ModelSpec(features=features, encoder=encoder, head=head, tokens=tokens)
    spec.check()
    return spec


def _check_shares(**shares: float) -> None:
    wrong = {name: share for name, share in shares.items() if not 0 <= share < 1}
    if wrong:
        raise SpecError(f"expected shares of at least 0 and below 1, got {wrong}")


def _check_choice(name: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise SpecError(f"{name}: expected one of {', '.join(get_args(choices))}, got {value!r}")
