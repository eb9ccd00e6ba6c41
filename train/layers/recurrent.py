"""Recurrent layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def make_gru(width: int, hidden: int) -> nn.GRU:
    """A GRU layer with orthogonal recurrent weights, which CTC learns from sooner."""
    gru = nn.GRU(width, hidden, batch_first=True)
    init_gru(gru)
    return gru


def init_gru(gru: nn.GRU) -> None:
    """Set a GRU's weights, gate by gate: recurrent ones orthogonal, biases 0."""
    for name, parameter in gru.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
            continue
        recurrent = name.startswith("weight_hh")
        for gate in torch.split(parameter.data, gru.hidden_size):  # reset, update, new
            (nn.init.orthogonal_ if recurrent else nn.init.xavier_uniform_)(gate)


class OneBiasGru(nn.Module):
    """A bidirectional GRU layer with one bias a gate, as textbooks and papers have it.

    With x a frame and h the state, in each direction::

        r, z = sigmoid(W x + b + U h)
        n = tanh(W_n x + b_n + r * (U_n h))
        h' = (1 - z) * n + z * h

    torch's GRU adds a second bias to ``U h``, which is redundant but in n. Here there is none: the
    one bias is the weight of an input that is always 1, so torch's fast kernels serve, and every
    parameter is trained. That the state goes through U before r and not after (Cho et al. 2014
    have both forms in different versions) is the form of those kernels, of ONNX's
    ``linear_before_reset`` and of this project's integers; the number of parameters is the same.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width + 1, hidden, bias=False, batch_first=True, bidirectional=True)
        init_gru(self.gru)
        for name, parameter in self.gru.named_parameters():
            if name.startswith("weight_ih"):
                nn.init.zeros_(parameter.data[:, -1])  # the biases

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, 2 * hidden): forwards, then backwards."""
        out: Tensor = self.gru(F.pad(x, (0, 1), value=1.0))[0]
        return out
