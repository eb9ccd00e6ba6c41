"""The streaming conformer."""

from __future__ import annotations

from typing import Literal

import msgspec

from ..errors import SpecError
from .attention import AttentionSpec
from .base import Spec
from .encoders import ConvSpec

Norm = Literal["rms", "layer"]


class ConformerSpec(Spec, frozen=True, kw_only=True, tag="conformer", tag_field="kind"):
    """Streaming conformer (Gulati et al. 2020, arXiv:2005.08100), encoded chunk by chunk.

    Strided convolutions, then blocks of feed-forward, self-attention, causal depthwise convolution
    and feed-forward; see `edge_imputer.train.encoders.ConformerEncoder`. A chunk is a block of the
    attention; `with_chunk` gives the same network another one.

    Attributes
    ----------
    d_model : int
        Width of every block, and of an encoder frame.
    n_layers : int
        Blocks.
    feed_forward : int
        Width of the feed-forward layers, as a multiple of `d_model`.
    subsampling : int
        Feature frames per encoder frame: 2, 4 or 8, by as many halvings.
    subsampling_channels : int
        Channels of the convolutions that subsample.
    kernel : int
        Taps of the depthwise convolutions, in encoder frames; they see the past only.
    attention : AttentionSpec
        In encoder frames. To stream: direction "chunk" or "causal" and a bounded memory, see
        `AttentionSpec.check_streaming`.
    norm : str
        Before each branch and at the end: "rms" or "layer", with a scale for each channel and no
        offset. In integers "rms" is the simpler and no worse: it subtracts no mean, so it is one
        sum of squares, exact in int32, and one inverse root a frame. The scales go into the linear
        layer that follows (`ConformerBlock.fold_norms`), so that every channel leaves a norm about
        equally large, which is what one scale of integers for them all wants. The convolutions
        have batch norm, which goes into theirs.
    dropout : float
        Share of each branch's outputs that training drops.
    scaled_init : bool
        Whether each branch's last weights begin 1/sqrt(2 n_layers) as large, so that the sum of
        all keeps its size however deep the encoder is (Child et al. 2019, section 5.2).
    recompute : bool
        Whether the backward pass computes blocks anew instead of keeping what is inside them: less
        memory in training, for about 40 % more time.
    intermediate_ctc : tuple of int
        Layers, counted from 1, after which a CTC branch is read in training; all share one head.
    self_conditioned : bool
        Whether what these branches read is fed back to the layers that follow (Nozaki and Komatsu
        2021, arXiv:2104.02724). Then they are computed in a stream too.
    n_tokens : int or None
        Outputs of the branches, the blank among them; None where there are none.
    """

    d_model: int = 64
    n_layers: int = 4
    feed_forward: int = 2
    subsampling: int = 4
    subsampling_channels: int = 16
    kernel: int = 15
    attention: AttentionSpec = AttentionSpec(left_context=8, memory_blocks=8)
    norm: Norm = "rms"
    dropout: float = 0.1
    scaled_init: bool = True
    recompute: bool = False
    intermediate_ctc: tuple[int, ...] = ()
    self_conditioned: bool = False
    n_tokens: int | None = None

    @property
    def conv(self) -> tuple[ConvSpec, ...]:
        """The convolutions that subsample, each by 2 in time and in frequency."""
        n_halvings = self.subsampling.bit_length() - 1
        return (ConvSpec(channels=self.subsampling_channels),) * n_halvings

    @property
    def step_features(self) -> int:
        """Feature frames of a chunk, which is the shortest step of a stream."""
        return self.attention.block * self.subsampling

    def with_chunk(self, n_frames: int) -> ConformerSpec:
        """The same network, with the same weights, encoded by chunks of `n_frames` feature frames.

        The attention's context is left as it is, in encoder frames and in chunks.

        Raises
        ------
        SpecError
            If a chunk is no whole number of encoder frames, or too short for the attention.
        """
        if n_frames < 1 or n_frames % self.subsampling:
            raise SpecError(
                "expected a chunk of whole encoder frames, a multiple of the subsampling "
                f"{self.subsampling}, got {n_frames} feature frames"
            )
        attention = msgspec.structs.replace(self.attention, block=n_frames // self.subsampling)
        spec = msgspec.structs.replace(self, attention=attention)
        spec.check()
        return spec

    def check(self) -> None:
        """Raise `SpecError` on a network that cannot be built."""
        sizes = self.d_model, self.n_layers, self.feed_forward, self.subsampling_channels
        if min(sizes) < 1:
            raise SpecError(
                "expected d_model, n_layers, feed_forward and subsampling_channels >= 1, got "
                f"{', '.join(map(str, sizes))}"
            )
        if self.subsampling not in (2, 4, 8):
            raise SpecError(f"expected subsampling 2, 4 or 8, got {self.subsampling}")
        if self.kernel < 2:
            raise SpecError(f"expected a kernel of at least 2 taps, got {self.kernel}")
        if self.norm not in ("rms", "layer"):
            raise SpecError(f"expected norm rms or layer, got {self.norm!r}")
        if not 0 <= self.dropout < 1:
            raise SpecError(f"expected 0 <= dropout < 1, got {self.dropout}")
        self.attention.check(self.d_model)
        self._check_branches()

    def _check_branches(self) -> None:
        layers = self.intermediate_ctc
        if any(not 1 <= layer < self.n_layers for layer in layers):
            raise SpecError(
                f"expected intermediate_ctc after layers 1 to {self.n_layers - 1} of "
                f"{self.n_layers}, got {layers}; after the last one is the encoder's own output"
            )
        if list(layers) != sorted(set(layers)):
            raise SpecError(f"expected intermediate_ctc in rising order, each once, got {layers}")
        if self.self_conditioned and not layers:
            raise SpecError(
                "self_conditioned feeds intermediate CTC branches back: expected intermediate_ctc "
                "to name the layers, got none"
            )
        if layers and (self.n_tokens is None or self.n_tokens < 2):
            raise SpecError(
                "intermediate_ctc needs n_tokens, the blank and at least one token, got "
                f"{self.n_tokens}"
            )
        if not layers and self.n_tokens is not None:
            raise SpecError(
                "n_tokens is the size of intermediate CTC branches: expected None without "
                f"intermediate_ctc, got {self.n_tokens}"
            )
