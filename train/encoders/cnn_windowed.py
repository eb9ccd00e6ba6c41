"""Windowed CNN: the control for the windowed CRNN, of the same size and over the same windows.

After ``cnn-trad-fpool3`` of Sainath and Parada 2015 (Interspeech, section 3); `WindowedCnnSpec`
says what is theirs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edge_imputer.specs import FrameSpec, WindowedCnnSpec

from .windowed import WindowedEncoder, init_relu_network


class CnnNetwork(nn.Module):
    """One window -> its logits. ReLU after the convolutions and the dense layer; no batch norm."""

    def __init__(self, spec: WindowedCnnSpec, n_mels: int) -> None:
        super().__init__()
        spec.check(n_mels)
        kernels = tuple(zip(spec.kernel_time, spec.kernel_freq, strict=True))
        self.pool_freq = spec.pool_freq
        self.first = nn.Conv2d(1, spec.channels[0], kernels[0], (spec.stride_time, 1))
        self.second = nn.Conv2d(*spec.channels, kernels[1])
        n_frames, n_bands = spec.conv_shapes(n_mels)[1]
        self.linear = nn.Linear(n_frames * n_bands * spec.channels[1], spec.linear)
        self.dense = nn.Linear(spec.linear, spec.dense)
        self.classifier = nn.Linear(spec.dense, spec.n_classes)
        init_relu_network([self.first, self.second, self.dense], [self.linear, self.classifier])

    def convolve(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """(N, window_frames, n_mels) -> each convolution's (N, channels, frames, bands)."""
        first = F.max_pool2d(F.relu(self.first(windows.unsqueeze(1))), (1, self.pool_freq))
        return first, F.relu(self.second(first))

    def forward(self, windows: Tensor) -> Tensor:
        """(N, window_frames, n_mels) -> (N, n_classes)."""
        x = self.convolve(windows)[1].permute(0, 2, 3, 1)  # NHWC, as the windowed CRNN's
        logits: Tensor = self.classifier(F.relu(self.dense(self.linear(x.flatten(1)))))
        return logits


class WindowedCnnEncoder(WindowedEncoder):
    """Feature frames -> logits of the windows, each a `CnnNetwork`'s; see `WindowedEncoder`."""

    def __init__(self, spec: WindowedCnnSpec, features: FrameSpec) -> None:
        spec.check()
        super().__init__(spec, features, CnnNetwork(spec, features.n_mels))
