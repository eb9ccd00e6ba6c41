"""The Imputer head: fills in a partial alignment (Chan et al. 2020, arXiv:2002.08926, section 3).

Encoder frames and the embedded partial alignment are added, and a few light layers, convolutions
or self-attention, turn them into logits. A frame sees `left_context` earlier frames and its own
chunk. The alignment of the left context is seen as it stood *in the same pass*: so the chunks of an
utterance can be decoded one after another, as they arrive, or all at once in K passes, with the
same result; and with everything masked (K = 1) decoding is CTC greedy decoding, bit for bit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_imputer.errors import SpecError
from edge_imputer.specs import ImputerSpec, TokenSpec


class WindowAttention(nn.Module):
    """Self-attention over a window, then a feed-forward layer, each after a norm and added."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.RMSNorm(width, elementwise_affine=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        for linear in (self.qkv, self.out, self.up, self.down):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)
        with torch.no_grad():  # the branches' sum keeps its size (Child et al. 2019, section 5.2)
            for linear in (self.out, self.down):
                linear.weight.mul_((2 * depth) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, window, width) -> the same; every frame sees the whole window."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(2, (3, self.heads, -1)).unbind(2)
        seen = F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v)))
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.silu(self.up(self.norms[1](x))))
        return out


class ImputerHead(nn.Module):
    """Logits of every frame given the encoder's frames and a partial alignment.

    With the mixer "none" it is a linear layer that does not look at the alignment: CTC.
    """

    def __init__(self, d_model: int, spec: ImputerSpec, tokens: TokenSpec) -> None:
        super().__init__()
        self.spec = spec
        self.blank_id = tokens.blank_id
        self.mask_id = tokens.mask_id
        self.vocabulary_size = tokens.vocabulary_size
        if spec.mixer == "none":
            self.output = nn.Linear(d_model, tokens.vocabulary_size)
            return
        self.input = nn.Linear(d_model, spec.width)
        self.embedding = nn.Embedding(tokens.vocabulary_size + 1, spec.width)
        nn.init.normal_(self.embedding.weight, 0.0, 0.3)
        if spec.mixer == "conv":
            self.conv = nn.ModuleList(
                nn.Conv1d(spec.width, spec.width, spec.kernel) for _ in range(spec.depth)
            )
        elif spec.mixer == "attention":
            self.place = nn.Parameter(torch.randn(spec.window, spec.width) * 0.3)
            self.attention = nn.ModuleList(
                WindowAttention(spec.width, spec.heads, spec.depth) for _ in range(spec.depth)
            )
            self.norm = nn.RMSNorm(spec.width, elementwise_affine=False)
        else:
            raise SpecError(
                f"expected a head of convolutions or attention, got {spec.mixer!r}; for the whole "
                "encoder use edge_imputer.train.imputer_stack.ImputerStack"
            )
        self.output = nn.Linear(spec.width, tokens.vocabulary_size)

    def step(self, encoder_window: Tensor, alignment_window: Tensor) -> Tensor:
        """One pass over chunks with their left context.

        Parameters
        ----------
        encoder_window : (N, left_context + chunk_size, d_model)
            Zeros before the first frame.
        alignment_window : long, (N, left_context + chunk_size)
            Blank before the first frame, `mask_id` where nothing is committed.

        Returns
        -------
        logits : (N, chunk_size, vocabulary_size)
        """
        mixed = encoder_window
        if self.spec.mixer != "none":
            x = self.input(encoder_window) + self.embedding(alignment_window)
            mixed = self._convolve(x) if self.spec.mixer == "conv" else self._attend(x)
        logits: Tensor = self.output(mixed)
        return logits

    def _convolve(self, x: Tensor) -> Tensor:
        """(N, window, width) -> (N, chunk_size, width)."""
        x = x.transpose(1, 2)  # (N, width, window)
        half = self.spec.kernel // 2
        for conv in self.conv:  # the past is real context, the future beyond the chunk is zero
            x = x[:, :, half:] + F.relu(conv(F.pad(x, (0, half))))
        return x.transpose(1, 2)

    def _attend(self, x: Tensor) -> Tensor:
        """(N, window, width) -> (N, chunk_size, width)."""
        x = x + self.place
        for layer in self.attention:
            x = layer(x)
        normed: Tensor = self.norm(x[:, self.spec.left_context :])
        return normed

    def forward(self, encoder_out: Tensor, alignment: Tensor) -> Tensor:
        """One pass over whole utterances, all chunks at once.

        Parameters
        ----------
        encoder_out : (B, T, d_model), T a multiple of the chunk size
        alignment : long, (B, T)

        Returns
        -------
        logits : (B, T, vocabulary_size)
        """
        batch, n_frames, _ = encoder_out.shape
        chunk, left = self.spec.chunk_size, self.spec.left_context
        if n_frames % chunk:
            raise ValueError(f"expected whole chunks of {chunk} frames, got {n_frames} frames")
        frames = F.pad(encoder_out, (0, 0, left, 0)).unfold(1, self.spec.window, chunk)
        tokens = F.pad(alignment, (left, 0), value=self.blank_id).unfold(1, self.spec.window, chunk)
        logits = self.step(frames.flatten(0, 1).transpose(1, 2), tokens.flatten(0, 1))
        return logits.view(batch, n_frames, self.vocabulary_size)

    def fully_masked(self, encoder_out: Tensor) -> Tensor:
        """The alignment before the first pass: `mask_id` everywhere, (B, T)."""
        return torch.full(
            encoder_out.shape[:2], self.mask_id, dtype=torch.long, device=encoder_out.device
        )
