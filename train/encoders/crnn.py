"""Streaming CRNN encoder: causal convolutions, then GRU layers with explicit state.

After Arik et al. 2017 (arXiv:1703.05390), section 2, made causal: convolution in time looks at
the past only, and the GRU runs forwards, so that `step` on a device equals `forward` in training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from edge_imputer.specs import CrnnSpec, FrameSpec

from ..layers.base import State
from ..layers.conv import CausalConv2d
from ..layers.recurrent import make_gru
from .base import Encoder


class CrnnEncoder(Encoder):
    """Log-mel frames -> encoder frames.

    Every layer looks at the past only, so frames past an utterance's end cannot reach the ones
    before it; in training they have no part in the batch statistics either.
    """

    def __init__(self, spec: CrnnSpec, features: FrameSpec) -> None:
        super().__init__()
        self.spec = spec
        self.n_mels = features.n_mels
        self.d_model = spec.d_model
        self.subsampling = spec.subsampling
        channels = [1, *(layer.channels for layer in spec.conv)]
        self.conv = nn.ModuleList(
            CausalConv2d(c, layer) for c, layer in zip(channels, spec.conv, strict=False)
        )
        self.freq = spec.conv_freq(features.n_mels)
        widths = [channels[-1] * self.freq[-1], *[spec.hidden] * (spec.gru_layers - 1)]
        self.gru = nn.ModuleList(make_gru(width, spec.hidden) for width in widths)

    @property
    def _conv_layers(self) -> Iterable[CausalConv2d]:
        return cast(Iterable[CausalConv2d], self.conv)

    def initial_state(self, batch: int = 1) -> State:
        """Zero state: one tensor a convolution, then one (1, batch, hidden) a GRU layer."""
        layers = zip(self._conv_layers, self.freq, strict=False)
        conv = [layer.initial_state(batch, n_freq) for layer, n_freq in layers]
        zeros = conv[0].new_zeros(1, batch, self.spec.hidden)
        return (*conv, *[zeros] * len(self.gru))

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by whole encoder frames.

        Parameters
        ----------
        chunk : (B, T, n_mels), T a multiple of ``spec.subsampling``
        state : from `initial_state` or the previous call

        Returns
        -------
        encoder_out : (B, T / subsampling, hidden)
        state : tuple of tensors
        """
        self._check_features(chunk, multiple_of=self.subsampling)
        if not chunk.shape[1]:  # less than a kernel is no convolution's input
            return chunk.new_zeros(len(chunk), 0, self.d_model), state
        states: list[Tensor] = []
        x = chunk.unsqueeze(1)  # (B, 1, T, n_mels)
        for layer, s in zip(self._conv_layers, state, strict=False):
            x, s = layer.step(x, s)
            states.append(s)
        out, last = self._recur(x, state[len(self.conv) :])
        return out, (*states, *last)

    def _recur(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The GRU layers, on what the convolutions give: (B, C, T, F) -> (B, T, hidden), state."""
        x = x.permute(0, 2, 3, 1).flatten(2)  # (B, T, F * C): frequency-major, as NHWC
        states: State = ()
        for gru, s in zip(self.gru, state, strict=True):
            x, s = gru(x, s)
            states += (s,)
        return x, states

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode whole utterances.

        Parameters
        ----------
        x : (B, T, n_mels)
            T a multiple of ``spec.subsampling``.
        lengths : (B,)
            Valid feature frames, multiples of ``spec.subsampling``.

        Returns
        -------
        encoder_out : (B, T / subsampling, hidden)
        encoder_out_lens : (B,)
        """
        self._check_features(x, multiple_of=self.subsampling)
        state = self.initial_state(x.shape[0])[len(self.conv) :]
        x = x.unsqueeze(1)  # (B, 1, T, n_mels)
        for layer, spec in zip(self._conv_layers, self.spec.conv, strict=True):
            lengths = lengths // spec.stride_time
            x = layer(x, lengths)
        return self._recur(x, state)[0], lengths
