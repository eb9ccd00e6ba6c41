"""Typed specifications: what a model is, from the microphone to the tokens.

A `ModelSpec` travels unchanged through checkpoint, bundle and firmware pack. Unknown keys are
refused on reading; `check()` methods refuse values that contradict each other.
"""

from __future__ import annotations

from math import prod

import msgspec

from .errors import SpecError

BLANK_ID = 0


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Frozen, unknown keys refused. (Keyword-only is not inherited: each spec says it.)"""


class FeatureSpec(_Spec, frozen=True, kw_only=True):
    """Log-mel front end: power spectrum, HTK mel bands, natural log with a floor.

    A frame is due when its last sample is there (left-aligned, no centring). The output is
    ``(log(max(mel_energy, log_floor)) - mean) / std``.
    """

    sample_rate: int = 16_000
    frame_length: int = 400  # samples, 25 ms
    hop_length: int = 160  # samples, 10 ms
    n_fft: int = 512
    n_mels: int = 40
    f_min_hz: float = 20.0
    f_max_hz: float = 7_600.0
    log_floor: float = 1e-6
    mean: float = 0.0
    std: float = 1.0

    def check(self) -> None:
        """Raise `SpecError` on values that contradict each other."""
        if not 0 < self.hop_length <= self.frame_length <= self.n_fft:
            raise SpecError(
                "expected 0 < hop_length <= frame_length <= n_fft, got "
                f"{self.hop_length}, {self.frame_length}, {self.n_fft}"
            )
        if not 0 <= self.f_min_hz < self.f_max_hz <= self.sample_rate / 2:
            raise SpecError(
                f"expected 0 <= f_min_hz < f_max_hz <= {self.sample_rate / 2} (half the sample "
                f"rate), got {self.f_min_hz} and {self.f_max_hz}"
            )
        if self.n_mels < 1 or self.log_floor <= 0 or self.std <= 0:
            raise SpecError(
                "expected n_mels >= 1, log_floor > 0 and std > 0, got "
                f"{self.n_mels}, {self.log_floor}, {self.std}"
            )

    def n_frames(self, n_samples: int) -> int:
        """Number of whole frames in `n_samples` samples."""
        return max(0, 1 + (n_samples - self.frame_length) // self.hop_length)

    def n_samples(self, n_frames: int) -> int:
        """Fewest samples that give `n_frames` frames."""
        return self.frame_length + (n_frames - 1) * self.hop_length if n_frames > 0 else 0


class ConvSpec(_Spec, frozen=True, kw_only=True):
    """One causal 2-D convolution over (time, frequency), followed by ReLU.

    In time the left context is the last ``kernel_time - stride_time`` frames (the streaming
    state); in frequency the input is zero-padded by ``kernel_freq // 2`` on both sides.
    """

    channels: int
    kernel_time: int = 3
    kernel_freq: int = 3
    stride_time: int = 2
    stride_freq: int = 2

    def out_freq(self, n_freq: int) -> int:
        """Frequency bins after this layer."""
        return (n_freq + 2 * (self.kernel_freq // 2) - self.kernel_freq) // self.stride_freq + 1


class CrnnSpec(_Spec, frozen=True, kw_only=True, tag="crnn", tag_field="kind"):
    """Streaming CRNN: causal convolutions, then unidirectional GRU layers with explicit state."""

    conv: tuple[ConvSpec, ...] = (ConvSpec(channels=8), ConvSpec(channels=24))
    gru_layers: int = 1
    hidden: int = 128

    @property
    def subsampling(self) -> int:
        """Feature frames per encoder frame."""
        return prod(layer.stride_time for layer in self.conv)

    @property
    def d_model(self) -> int:
        """Width of an encoder frame."""
        return self.hidden

    def conv_freq(self, n_mels: int) -> tuple[int, ...]:
        """Frequency bins before the first convolution and after each one."""
        bins = [n_mels]
        for layer in self.conv:
            bins.append(layer.out_freq(bins[-1]))
        return tuple(bins)

    def check(self) -> None:
        """Raise `SpecError` on a network that cannot be built."""
        if not self.conv or self.gru_layers < 1 or self.hidden < 1:
            raise SpecError("expected at least one convolution, one GRU layer and hidden >= 1")
        for layer in self.conv:
            if layer.kernel_time < layer.stride_time or layer.stride_time < 1:
                raise SpecError(
                    "expected kernel_time >= stride_time >= 1 in every convolution, got "
                    f"{layer.kernel_time} and {layer.stride_time}"
                )


def check_schedule(schedule: tuple[int, ...], block_size: int) -> None:
    """Raise `SpecError` unless the passes commit every frame of a block."""
    if min(schedule, default=-1) < 0 or sum(schedule) < block_size:
        raise SpecError(
            f"expected a schedule of commits >= 0 that sum to at least block_size {block_size}, "
            f"got {schedule}; make one with edge_imputer.imputation.schedule"
        )


class ImputerSpec(_Spec, frozen=True, kw_only=True):
    """Imputer head: projected encoder frames plus the embedded partial alignment, light convs.

    Frames are decoded chunk by chunk; a chunk is `chunk_blocks` whole blocks of `block_size`
    frames. A frame sees `left_context` earlier frames and its own chunk, nothing later.
    """

    depth: int = 2
    width: int = 64
    kernel: int = 7  # odd
    block_size: int = 8
    chunk_blocks: int = 1
    schedule: tuple[int, ...] = (1, 1, 1, 1, 1, 1, 1, 1)  # frames committed a block, pass by pass

    @property
    def chunk_size(self) -> int:
        """Encoder frames in a chunk."""
        return self.block_size * self.chunk_blocks

    @property
    def left_context(self) -> int:
        """Encoder frames before the chunk that the head sees."""
        return self.depth * (self.kernel // 2)

    @property
    def window(self) -> int:
        """Encoder frames that one head pass reads: left context and chunk."""
        return self.left_context + self.chunk_size

    def check(self) -> None:
        """Raise `SpecError` on a head that cannot be built."""
        if self.kernel % 2 == 0 or min(self.depth, self.width, self.kernel) < 1:
            raise SpecError(f"expected an odd kernel and depth, width >= 1, got {self}")
        if self.block_size < 1 or self.chunk_blocks < 1:
            raise SpecError(f"expected block_size >= 1 and chunk_blocks >= 1, got {self}")
        check_schedule(self.schedule, self.block_size)


class TokenSpec(_Spec, frozen=True, kw_only=True):
    """Character tokens. Id 0 is the blank, ids 1..n the characters, n + 1 the mask (input only)."""

    characters: tuple[str, ...]

    @property
    def vocabulary_size(self) -> int:
        """Outputs of the head: the characters and the blank."""
        return len(self.characters) + 1

    @property
    def blank_id(self) -> int:
        """Id of the blank."""
        return BLANK_ID

    @property
    def mask_id(self) -> int:
        """Id of a frame that is not filled in yet; the head reads it but never writes it."""
        return len(self.characters) + 1

    def check(self) -> None:
        """Raise `SpecError` on repeated, empty or multi-character tokens."""
        bad = [c for c in self.characters if len(c) != 1]
        if bad or len(set(self.characters)) != len(self.characters) or not self.characters:
            raise SpecError(
                f"expected distinct single characters, at least one, got {self.characters!r}"
            )


class ModelSpec(_Spec, frozen=True, kw_only=True):
    """Everything that defines a model but its weights."""

    features: FeatureSpec
    encoder: CrnnSpec
    head: ImputerSpec
    tokens: TokenSpec
    flush_ms: int = 160  # digital silence that ends an utterance, before rounding up to a chunk

    def check(self) -> None:
        """Raise `SpecError` if any part contradicts itself or another."""
        self.features.check()
        self.encoder.check()
        self.head.check()
        self.tokens.check()
        if self.flush_ms < 0:
            raise SpecError(f"expected flush_ms >= 0, got {self.flush_ms}")

    @property
    def frame_s(self) -> float:
        """Seconds between two encoder frames."""
        f = self.features
        return self.encoder.subsampling * f.hop_length / f.sample_rate

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
