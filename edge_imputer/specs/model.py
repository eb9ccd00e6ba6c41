"""A whole model."""

from __future__ import annotations

from typing import Union

from ..errors import SpecError
from .base import Spec
from .conformer import ConformerSpec
from .encoders import CrnnSpec
from .features import FeatureSpec
from .head import ImputerSpec
from .tcn import TcnSpec
from .tokens import TokenSpec
from .windowed import WindowedCnnSpec, WindowedCrnnSpec

# Union in full, because msgspec reads these on 3.10.
EncoderSpec = Union[CrnnSpec, TcnSpec, ConformerSpec]  # noqa: UP007
AnyEncoderSpec = Union[EncoderSpec, WindowedCrnnSpec, WindowedCnnSpec]  # noqa: UP007
"""Also what scores windows instead of giving frames for an Imputer head."""


def check_pair(encoder: EncoderSpec, head: ImputerSpec) -> None:
    """Raise `SpecError` unless this encoder and this head make a model."""
    if head.mixer == "encoder":
        raise SpecError(
            "expected a head of convolutions or attention, got 'encoder': the whole stack is "
            "built by edge_imputer.train.imputer_stack.ImputerStack, not from a ModelSpec yet"
        )
    if not isinstance(encoder, ConformerSpec) or not encoder.attention.streams:
        return
    block = encoder.attention.block
    if head.chunk_size % block:
        raise SpecError(
            "expected the head's chunk to be whole chunks of the encoder, got "
            f"{head.chunk_size} frames and an attention block of {block}"
        )


class ModelSpec(Spec, frozen=True, kw_only=True, tag="speech", tag_field="kind"):
    """Everything that defines a model that writes down speech but its weights."""

    features: FeatureSpec
    encoder: EncoderSpec
    head: ImputerSpec
    tokens: TokenSpec
    flush_ms: int = 160  # digital silence that ends an utterance, before rounding up to a chunk

    def check(self) -> None:
        """Raise `SpecError` if any part contradicts itself or another."""
        self.features.check()
        self.encoder.check()
        self.head.check()
        self.tokens.check()
        check_pair(self.encoder, self.head)
        n_tokens = getattr(self.encoder, "n_tokens", None)
        if n_tokens not in (None, self.tokens.vocabulary_size):
            raise SpecError(
                f"expected intermediate branches of {self.tokens.vocabulary_size} tokens, as many "
                f"as the model has, got n_tokens {n_tokens}"
            )
        if self.flush_ms < 0:
            raise SpecError(f"expected flush_ms >= 0, got {self.flush_ms}")

    def check_streaming(self) -> None:
        """Raise `SpecError` unless a stream of any length takes constant memory.

        A model that cannot stream can be trained, and evaluated on whole recordings.
        """
        if isinstance(self.encoder, ConformerSpec):
            self.encoder.attention.check_streaming()

    @property
    def frame_s(self) -> float:
        """Seconds between two encoder frames."""
        f = self.features
        return self.encoder.subsampling * f.hop_length / f.sample_rate

    @property
    def step_features(self) -> int:
        """Feature frames that the encoder takes at once in a stream."""
        return self.encoder.step_features

    @property
    def step_frames(self) -> int:
        """Encoder frames that it gives for them."""
        return self.step_features // self.encoder.subsampling

    @property
    def chunk_features(self) -> int:
        """Feature frames in a chunk."""
        return self.head.chunk_size * self.encoder.subsampling

    def n_chunks(self, n_samples: int) -> int:
        """Chunks an utterance of `n_samples` samples is decoded in.

        An utterance is its audio followed by digital silence: at least `flush_ms`, and up to a
        whole number of chunks. So every frame has a chunk, and none is cut off.
        """
        f = self.features
        wanted = n_samples + self.flush_ms * f.sample_rate // 1000
        return max(1, -(-max(0, wanted - f.frame_length + f.hop_length) // self.chunk_samples))

    @property
    def chunk_samples(self) -> int:
        """Samples by which a chunk moves on."""
        return self.chunk_features * self.features.hop_length

    def padded_samples(self, n_samples: int) -> int:
        """Samples of an utterance with its closing silence, see `n_chunks`."""
        return self.features.n_samples(self.n_chunks(n_samples) * self.chunk_features)
