"""Windowed CRNN: 1.5 s of features in, the scores of the keyword out, ten times a second.

After Arik et al. 2017 (arXiv:1703.05390), section 2. It looks at a whole window in both
directions, and a decision comes at the window's end at the earliest.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edge_imputer.specs import FrameSpec, WindowedCrnnSpec

from ..layers.recurrent import OneBiasGru
from .windowed import WindowedEncoder, init_relu_network, same_padding


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
        init_relu_network([self.conv, self.dense], [self.classifier])

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


class WindowedCrnnEncoder(WindowedEncoder):
    """Feature frames -> logits of the windows, each a `WindowNetwork`'s; see `WindowedEncoder`.

    Each window is computed by itself: the convolution moves by 8 frames and the windows by 10, so
    its outputs coincide in every fourth window only; those at a window's ends see its padding, and
    the GRUs start anew in each.
    """

    def __init__(self, spec: WindowedCrnnSpec, features: FrameSpec) -> None:
        spec.check()
        super().__init__(spec, features, WindowNetwork(spec, features.n_mels))
