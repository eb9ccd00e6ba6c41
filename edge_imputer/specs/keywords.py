"""A keyword model: a classifier of words, for a fixed list of them."""

from __future__ import annotations

from typing import Union

import msgspec

from ..errors import SpecError
from .base import Spec
from .conformer import ConformerSpec
from .features import FeatureSpec, MicroSpec, PcenSpec
from .model import AnyEncoderSpec, ModelSpec
from .windowed import WindowedCnnSpec, WindowedCrnnSpec, WindowedSpec

UNKNOWN = "_unknown_"
SILENCE = "_silence_"

AnyFeatureSpec = Union[FeatureSpec, PcenSpec, MicroSpec]  # noqa: UP007 (msgspec reads it on 3.10)
"""Every front end there is."""


class KeywordModelSpec(Spec, frozen=True, kw_only=True, tag="keywords", tag_field="kind"):
    """Everything that defines a keyword model but its weights.

    An encoder over windows (`WindowedCrnnSpec`, `WindowedCnnSpec`) gives the classes' logits
    itself, one score a window. After any other encoder comes a linear classifier of its frames,
    one score a frame.

    Attributes
    ----------
    features : any front end's specification
    encoder : any encoder's specification
        Over windows: with as many `n_classes` as there are classes, see `for_classes`.
    keywords : tuple of str
        In the order of their scores.
    silence : bool
        Whether silence is a class of its own; else it is part of what is no keyword.
    smoothing_ms : int
        A detector's score is the mean of the posteriors of that long; 0: each one as it is.
    """

    features: AnyFeatureSpec
    encoder: AnyEncoderSpec
    keywords: tuple[str, ...]
    silence: bool = False
    smoothing_ms: int = 200

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs: everything else, the keywords, and silence where it is one."""
        return (UNKNOWN, *self.keywords, *([SILENCE] if self.silence else []))

    @property
    def windowed(self) -> bool:
        """Whether the encoder scores windows."""
        return isinstance(self.encoder, WindowedSpec)

    @property
    def frame_s(self) -> float:
        """Seconds from one score to the next."""
        return self.encoder.subsampling * self.features.hop_length / self.features.sample_rate

    @property
    def smoothing_frames(self) -> int:
        """Scores that a detector averages, at least 1."""
        return max(1, round(self.smoothing_ms / (1000 * self.frame_s)))

    @property
    def latency_s(self) -> float:
        """Audio after a keyword in which its score is highest, see `n_scores`."""
        heard = self.input_features if self.windowed else self.encoder.subsampling
        features = self.features
        return 1e-3 * self.smoothing_ms + heard * features.hop_length / features.sample_rate / 2

    @property
    def step_features(self) -> int:
        """Feature frames by which a stream moves on at once."""
        if isinstance(self.encoder, WindowedSpec):
            return self.encoder.hop_frames
        return self.encoder.step_features

    @property
    def input_features(self) -> int:
        """Feature frames that a step reads: those of a window, or just the new ones."""
        if isinstance(self.encoder, WindowedSpec):
            return self.encoder.window_frames
        return self.step_features

    @property
    def step_scores(self) -> int:
        """Scores that a step gives."""
        return self.step_features // self.encoder.subsampling

    def n_scores(self, n_samples: int) -> int:
        """Scores of a recording: one for each encoder frame, or hop of windows, that is whole."""
        return self.features.n_frames(n_samples) // self.encoder.subsampling

    def closing_samples(self, n_samples: int) -> int:
        """Digital silence after a recording that makes its last step whole.

        Only encoders that give several frames a step need any; the silence has no scores itself.
        """
        if isinstance(self.encoder, ConformerSpec) and not self.encoder.attention.streams:
            return 0  # it takes the recording as a whole
        n_steps = -(-self.n_scores(n_samples) // self.step_scores)
        missing = n_steps * self.step_features - self.features.n_frames(n_samples)
        return max(0, missing) * self.features.hop_length

    def class_of(self, label: str | None) -> int:
        """Index of a clip's label among the classes.

        Silence that is no class of its own, other words and near misses are class 0; None, a clip
        without a label, is -1.
        """
        if label is None:
            return -1
        return self.classes.index(label) if label in self.classes else 0

    def check(self) -> None:
        """Raise `SpecError` if any part contradicts itself or another."""
        self.features.check()
        self.encoder.check()
        bad = [w for w in self.keywords if not w.strip() or w in (UNKNOWN, SILENCE)]
        if not self.keywords or bad or len(set(self.keywords)) != len(self.keywords):
            raise SpecError(
                "expected distinct keywords, at least one, none empty and none called "
                f"{UNKNOWN} or {SILENCE}, got {self.keywords!r}"
            )
        if self.smoothing_ms < 0:
            raise SpecError(f"expected smoothing_ms >= 0, got {self.smoothing_ms}")
        n_classes = getattr(self.encoder, "n_classes", None)
        if self.windowed and n_classes != len(self.classes):
            raise SpecError(
                f"expected an encoder with n_classes {len(self.classes)}, for the keywords and "
                f"what is none, got {n_classes}; make one with for_classes"
            )
        if not self.windowed and getattr(self.encoder, "n_tokens", None) is not None:
            raise SpecError(
                "expected an encoder without intermediate CTC branches, which a keyword model "
                "does not train; leave intermediate_ctc and n_tokens out"
            )

    def check_streaming(self) -> None:
        """Raise `SpecError` unless a stream of any length takes constant memory."""
        if isinstance(self.encoder, ConformerSpec):
            self.encoder.attention.check_streaming()


AnyModelSpec = Union[ModelSpec, KeywordModelSpec]  # noqa: UP007 (msgspec reads it on 3.10)
"""A model that writes down speech, or one that knows certain keywords."""


def speech_spec(spec: AnyModelSpec) -> ModelSpec:
    """The same, if it is that of a model that writes down speech.

    Raises
    ------
    SpecError
        It is a keyword model's.
    """
    if isinstance(spec, ModelSpec):
        return spec
    raise SpecError(
        "expected a model that writes down speech, got one that only knows the keywords "
        f"{', '.join(spec.keywords)}; listen for them with KeywordSpotter or edge-imputer spot"
    )


def for_classes(encoder: AnyEncoderSpec, n_classes: int) -> AnyEncoderSpec:
    """The encoder with that many outputs, where it gives the classes' logits itself."""
    if isinstance(encoder, (WindowedCrnnSpec, WindowedCnnSpec)):
        return msgspec.structs.replace(encoder, n_classes=n_classes)
    return encoder
