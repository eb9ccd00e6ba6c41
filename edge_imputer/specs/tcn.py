"""The encoder of temporal convolutions alone."""

from __future__ import annotations

from ..errors import SpecError
from .base import Spec


class TcnSpec(Spec, frozen=True, kw_only=True, tag="tcn", tag_field="kind"):
    """Streaming encoder of depthwise-separable temporal convolutions, of the MDTC family.

    A causal strided convolution over all bands, then residual blocks in stacks; see
    `edge_imputer.train.encoders.TcnEncoder`.

    Attributes
    ----------
    channels : int
        Width of every layer, and of an encoder frame.
    subsampling : int
        Feature frames per encoder frame: 1, 2, 3 or 4.
    stem_kernel : int
        Feature frames that the first convolution sees.
    kernel : int
        Taps of every depthwise convolution.
    stacks : tuple of tuple of int
        Dilation of every block's depthwise convolution, in encoder frames, stack by stack.
    sum_stacks : bool
        Whether the output is the sum of all stacks' outputs, scales together (MDTC), or the last
        one's.
    """

    channels: int = 32
    subsampling: int = 4
    stem_kernel: int = 5
    kernel: int = 5
    stacks: tuple[tuple[int, ...], ...] = ((1, 2),) * 5
    sum_stacks: bool = True

    @property
    def step_features(self) -> int:
        """Feature frames of the shortest step of a stream; longer ones are multiples of it."""
        return self.subsampling

    @property
    def d_model(self) -> int:
        """Width of an encoder frame."""
        return self.channels

    @property
    def dilations(self) -> tuple[int, ...]:
        """The blocks' dilations, in order."""
        return tuple(dilation for stack in self.stacks for dilation in stack)

    @property
    def receptive_field(self) -> int:
        """Feature frames that one encoder frame depends on."""
        past = (self.kernel - 1) * sum(self.dilations)
        return self.stem_kernel + self.subsampling * past

    def check(self) -> None:
        """Raise `SpecError` on a network that cannot be built."""
        if self.channels < 1:
            raise SpecError(f"expected channels >= 1, got {self.channels}")
        if not 1 <= self.subsampling <= 4:
            raise SpecError(f"expected subsampling 1, 2, 3 or 4, got {self.subsampling}")
        if self.stem_kernel < self.subsampling:
            raise SpecError(
                "expected stem_kernel >= subsampling, or feature frames would be skipped, got "
                f"{self.stem_kernel} and {self.subsampling}"
            )
        if self.kernel < 2:
            raise SpecError(f"expected a kernel of at least 2 taps, got {self.kernel}")
        if not self.stacks or not all(self.stacks) or min(self.dilations) < 1:
            raise SpecError(
                "expected stacks of at least one block, each a dilation >= 1, such as "
                f"((1, 2, 4), (1, 2, 4)), got {self.stacks}"
            )
