"""Windowed CRNN: 1.5 s of features in, the scores of the keyword out, ten times a second.

After Arik et al. 2017 (arXiv:1703.05390), section 2. It looks at a whole window in both
directions, and a decision comes at the window's end at the earliest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_imputer.specs import MelSpec, WindowedCrnnSpec

from ..layers.base import State
from ..layers.recurrent import OneBiasGru
from .base import Encoder

# Windows computed at once: those of a long recording would not fit into memory together.
GROUP = 256


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after `size` inputs for ceil(size / stride) outputs: TensorFlow's SAME.

    Where the number is odd, the one left over goes after.
    """
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


class WindowNetwork(nn.Module):
    """One window -> its logits. All shapes inside are constants of the spec.

    The activations are ReLU; there is no batch norm.
    """

    def __init__(self, spec: WindowedCrnnSpec, n_mels: int) -> None:
        super().__init__()
        kernel, stride = (spec.kernel_time, spec.kernel_freq), (spec.stride_time, spec.stride_freq)
        time = same_padding(spec.window_frames, spec.kernel_time, spec.stride_time)
        freq = same_padding(n_mels, spec.kernel_freq, spec.stride_freq)
        self.padding = (*freq, *time)  # as F.pad wants it, the last dimension first
        self.conv = nn.Conv2d(1, spec.channels, kernel, stride)
        self.gru = nn.ModuleList(OneBiasGru(w, spec.hidden) for w in spec.gru_widths(n_mels))
        self.dense = nn.Linear(spec.conv_shape(n_mels)[0] * 2 * spec.hidden, spec.dense)
        self.classifier = nn.Linear(spec.dense, spec.n_classes)
        for layer in (self.conv, self.dense):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        nn.init.xavier_uniform_(self.classifier.weight)
        for parameter in self.parameters():
            if parameter.dim() == 1:  # the biases, but the GRUs', which are 0 already
                nn.init.zeros_(parameter)

    def convolve(self, windows: Tensor) -> Tensor:
        """(N, window_frames, n_mels) -> (N, frames, bins, channels), see `conv_shape`."""
        x = F.relu(self.conv(F.pad(windows.unsqueeze(1), self.padding)))  # (N, C, T', F)
        return x.permute(0, 2, 3, 1)

    def forward(self, windows: Tensor) -> Tensor:
        """(N, window_frames, n_mels) -> (N, n_classes)."""
        x = self.convolve(windows).flatten(2)  # (N, T', F * C): frequency-major, as NHWC
        for gru in self.gru:
            x = gru(x)  # (N, T', 2 * hidden)
        logits: Tensor = self.classifier(F.relu(self.dense(x.flatten(1))))
        return logits


class WindowedCrnnEncoder(Encoder):
    """Feature frames -> logits of the windows that start every ``spec.hop_frames`` frames.

    The first window starts at the first frame, and windows follow until every frame was in one.
    The last is padded with zeros, which is what PCEN makes of digital silence. L seconds of audio,
    at least the window's 1.5, have ceil((L - 1.5) / 0.1) + 1 windows, up to the rounding of L to
    whole frames.

    Windows overlap, but each is computed by itself: the convolution moves by 8 frames and the
    windows by 10, so its outputs coincide in every fourth window only; those at a window's ends
    see its padding, and the GRUs start anew in each.

    `step` allows every partition of the frames, and gives a window's logits with its last frame.
    """

    def __init__(self, spec: WindowedCrnnSpec, features: MelSpec) -> None:
        super().__init__()
        spec.check()
        self.spec = spec
        self.n_mels = features.n_mels
        self.d_model = spec.d_model
        self.subsampling = spec.subsampling
        self.step_frames = 1
        self.receptive_field = spec.window_frames
        self.network = WindowNetwork(spec, features.n_mels)

    def initial_state(self, batch: int = 1) -> State:
        """No frames (batch, 0, n_mels) from the next window's start on, none () of them unscored.

        At most ``window_frames - 1`` are kept.
        """
        return self.network.conv.weight.new_zeros(batch, 0, self.n_mels), torch.tensor(0)

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
