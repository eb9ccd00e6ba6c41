"""Networks over windows, slid over utterances and streams."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_imputer.specs import FrameSpec, WindowedSpec

from ..layers.base import State
from .base import Encoder

# Windows computed at once: those of a long recording would not fit into memory together.
GROUP = 256


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after `size` inputs for ceil(size / stride) outputs: TensorFlow's SAME.

    Where the number is odd, the one left over goes after.
    """
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def init_relu_network(
    relu: Iterable[nn.Linear | nn.Conv2d], linear: Iterable[nn.Linear | nn.Conv2d]
) -> None:
    """Set the weights of layers that ReLU follows, and of layers that nothing does; biases 0."""
    for layer in relu:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    for layer in linear:
        nn.init.xavier_uniform_(layer.weight)
    for layer in (*relu, *linear):
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)


class WindowedEncoder(Encoder):
    """Feature frames -> logits of the windows that start every ``spec.hop_frames`` frames.

    The first window starts at the first frame, and windows follow until every frame was in one.
    The last is padded with zeros, which is what PCEN makes of digital silence. L seconds of audio,
    at least the window's 1.5, have ceil((L - 1.5) / 0.1) + 1 windows, up to the rounding of L to
    whole frames.

    Windows overlap, but each is computed by itself, by `network`: (N, window_frames, n_mels) ->
    (N, n_classes).

    `step` allows every partition of the frames, and gives a window's logits with its last frame.
    """

    def __init__(self, spec: WindowedSpec, features: FrameSpec, network: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.n_mels = features.n_mels
        self.d_model = spec.d_model
        self.subsampling = spec.subsampling
        self.receptive_field = spec.window_frames
        self.network = network

    def initial_state(self, batch: int = 1) -> State:
        """No frames (batch, 0, n_mels) from the next window's start on, none () of them unscored.

        At most ``window_frames - 1`` are kept.
        """
        weight = next(self.network.parameters())
        return weight.new_zeros(batch, 0, self.n_mels), torch.tensor(0)

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Take the next frames, any number of them.

        Parameters
        ----------
        chunk : (B, t, n_mels)
        state : from `initial_state` or the previous call

        Returns
        -------
        logits : (B, n, n_classes)
            Of the windows whose last frame has arrived; n may be 0.
        state : tuple of tensors
        """
        self._check_features(chunk)
        frames, unscored = state
        frames = torch.cat([frames, chunk], 1)
        n = max(0, 1 + (frames.shape[1] - self.spec.window_frames) // self.spec.hop_frames)
        unscored = torch.tensor(frames.shape[1] - self._span(n)) if n else unscored + chunk.shape[1]
        return self._slide(frames, n), (frames[:, n * self.spec.hop_frames :], unscored)

    def finish(self, state: State) -> Tensor:
        """Logits of the last window (B, 1, n_classes), padded, or none (B, 0, n_classes).

        There is none where the last frame was the last of a window.
        """
        frames, unscored = state
        return self._slide(frames, int(unscored > 0))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Score whole utterances.

        Parameters
        ----------
        x : (B, T, n_mels)
        lengths : (B,)
            Valid feature frames; what stands after them has no effect.

        Returns
        -------
        logits : (B, spec.n_windows(T), n_classes)
            After an utterance's own windows come those of its padding.
        n_windows : (B,)
            Each utterance's own.
        """
        self._check_features(x)
        padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]  # (B, T)
        x = x.masked_fill(padding[:, :, None], 0)
        beyond = (lengths - self.spec.window_frames).clamp(min=0)
        hop = self.spec.hop_frames
        n_windows = torch.where(lengths > 0, 1 + (beyond + hop - 1) // hop, 0)
        return self._slide(x, self.spec.n_windows(x.shape[1])), n_windows

    def scores(self, features: Tensor) -> Tensor:
        """Probabilities of the classes in every window: (B, T, n_mels) -> (B, n, n_classes)."""
        lengths = torch.full(features.shape[:1], features.shape[1], device=features.device)
        return self.forward(features, lengths)[0].softmax(-1)

    def _span(self, n_windows: int) -> int:
        """Frames from the first window's start to the last one's end."""
        span: int = self.spec.window_frames + (n_windows - 1) * self.spec.hop_frames
        return span

    def _slide(self, x: Tensor, n: int) -> Tensor:
        """The first n windows of x (B, T, n_mels), padded where it ends before them."""
        if not n or not len(x):
            return x.new_zeros(len(x), n, self.spec.n_classes)
        x = F.pad(x, (0, 0, 0, max(0, self._span(n) - x.shape[1])))
        windows = x.unfold(1, self.spec.window_frames, self.spec.hop_frames)[:, :n]
        windows = windows.transpose(2, 3)  # (B, n, window_frames, n_mels), a view
        groups = torch.split(windows, max(1, GROUP // len(x)), 1)
        logits = [self.network(group.flatten(0, 1)).unflatten(0, (len(x), -1)) for group in groups]
        return torch.cat(logits, 1)
