"""Streaming conformer encoder, with intermediate CTC and self-conditioning as options.

After Gulati et al. 2020 (arXiv:2005.08100); the branches after Lee and Watanabe 2021
(arXiv:2102.03216), their feedback after Nozaki and Komatsu 2021 (arXiv:2104.02724).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from edge_imputer.specs import BLANK_ID, ConformerSpec, FrameSpec

from ..layers.base import State
from ..layers.conformer import ConformerBlock, make_linear, make_norm
from ..layers.recompute import recomputed
from ..layers.self_attention import stream_window
from ..layers.subsampling import Subsampling
from ..objective import ctc_loss
from ..objective.arguments import Reduction
from .base import Encoder


class ConformerEncoder(Encoder):
    """Log-mel frames -> encoder frames, by chunks.

    A frame sees its chunk and what the attention keeps of earlier ones; no frame of a later chunk
    reaches it, however deep the encoder is, nor does padding. What is left of an encoder frame
    when an utterance ends is dropped: n feature frames have ``n // subsampling`` encoder frames.

    `step` allows every partition of the feature frames, and gives encoder frames chunk by chunk;
    `finish` gives those of a last chunk that was not full.

    Attributes
    ----------
    ctc : torch.nn.Linear or None
        What reads the intermediate branches, where there are any. It takes what `norm` gives, as
        the encoder's output is: so ``ctc(encoder_out)`` are the final logits of the head that all
        branches share, which training wants.
    """

    def __init__(self, spec: ConformerSpec, features: FrameSpec) -> None:
        super().__init__()
        spec.check()
        self.spec = spec
        self.n_mels = features.n_mels
        self.d_model = spec.d_model
        self.subsampling = spec.subsampling
        self.receptive_field = receptive_field(spec)
        self.stem = Subsampling(features.n_mels, spec.conv, spec.d_model)
        self.blocks = nn.ModuleList(ConformerBlock(spec) for _ in range(spec.n_layers))
        self.norm = make_norm(spec)
        self.ctc = make_linear(spec.d_model, spec.n_tokens) if spec.n_tokens else None
        self.feedback = (
            make_linear(spec.n_tokens, spec.d_model)
            if spec.n_tokens and spec.self_conditioned
            else None
        )
        if spec.scaled_init:
            for block in self._blocks:
                block.scale_residual(spec.n_layers)

    @property
    def _blocks(self) -> Iterable[ConformerBlock]:
        return cast(Iterable[ConformerBlock], self.blocks)

    # -------------------------------------------------------------------------- streams

    def initial_state(self, batch: int = 1) -> State:
        """The state before the first feature frame.

        Returns
        -------
        - feature frames of a chunk that is not full yet, (batch, 0, n_mels) at first, always
          fewer than a chunk; none for whoever steps by whole chunks
        - the stem's, then each block's tensors, of constant shapes: see `Subsampling` and
          `ConformerBlock`

        Raises
        ------
        SpecError
            If the attention cannot stream in constant memory.
        """
        stem = self.stem.initial_state(batch)
        blocks = [kept for block in self._blocks for kept in block.initial_state(batch)]
        return (stem[0].new_zeros(batch, 0, self.n_mels), *stem, *blocks)

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Take the next feature frames, any number of them.

        Parameters
        ----------
        chunk : (B, t, n_mels)
        state : from `initial_state` or the previous call

        Returns
        -------
        encoder_out : (B, t', d_model)
            Of the chunks that are full now; t' may be 0.
        state : tuple of tensors
        """
        self._check_features(chunk)
        frames, kept = torch.cat([state[0], chunk], 1), state[1:]
        n = frames.shape[1] // self.step_features * self.step_features
        outs = [frames.new_zeros(len(frames), 0, self.d_model)]
        for start in range(0, n, self.step_features):
            out, kept = self._advance(frames[:, start : start + self.step_features], kept)
            outs.append(out)
        return torch.cat(outs, 1), (frames[:, n:], *kept)

    def finish(self, state: State) -> Tensor:
        """Encoder frames of the last chunk (B, t', d_model), which is not full; t' may be 0."""
        frames = state[0]
        n = frames.shape[1] // self.subsampling * self.subsampling
        if not n:
            return frames.new_zeros(len(frames), 0, self.d_model)
        return self._advance(frames[:, :n], state[1:])[0]

    def _advance(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Encode one chunk, of whole encoder frames."""
        n_stem = len(self.stem.conv)
        x, states = self.stem.step(chunk, state[:n_stem])
        n_kept = (len(state) - n_stem) // self.spec.n_layers
        for layer, block in enumerate(self._blocks, 1):
            start = n_stem + (layer - 1) * n_kept
            x, kept = block.step(x, state[start : start + n_kept])
            states += kept
            if self.feedback is not None and layer in self.spec.intermediate_ctc:
                x, _ = self._branch(x)
        return self.norm(x), states

    # -------------------------------------------------------------------------- utterances

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode whole utterances.

        Parameters
        ----------
        x : (B, T, n_mels)
        lengths : (B,)
            Valid feature frames; what stands after them has no effect.

        Returns
        -------
        encoder_out : (B, T // subsampling, d_model)
        encoder_out_lens : (B,)
        """
        out, lengths, _ = self._encode(x, lengths, self.spec.self_conditioned)
        return out, lengths

    def forward_with_branches(
        self, x: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """`forward`, and the logits of the intermediate CTC branches, for training.

        Returns
        -------
        encoder_out : (B, T // subsampling, d_model)
        encoder_out_lens : (B,)
        branches : tuple of (B, T // subsampling, n_tokens)
            One for each layer of ``spec.intermediate_ctc``; see `intermediate_ctc_loss`.
        """
        return self._encode(x, lengths, bool(self.spec.intermediate_ctc))

    def _encode(
        self, x: Tensor, lengths: Tensor, branching: bool
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        self._check_features(x)
        layers = self.spec.intermediate_ctc if branching else ()
        if x.shape[1] < self.subsampling:  # not one encoder frame
            empty = tuple(x.new_zeros(len(x), 0, self.spec.n_tokens or 0) for _ in layers)
            return x.new_zeros(len(x), 0, self.d_model), torch.zeros_like(lengths), empty
        padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]  # (B, T)
        x, lengths = self.stem(x.masked_fill(padding[:, :, None], 0), lengths)
        recompute = self.spec.recompute and torch.is_grad_enabled()
        branches = []
        for layer, block in enumerate(self._blocks, 1):
            x = recomputed(block, x, lengths) if recompute else block(x, lengths)
            if layer in layers:
                x, logits = self._branch(x)
                branches.append(logits)
        return self.norm(x), lengths, tuple(branches)

    def _branch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Read a branch: x with its feedback, where there is one, and the logits."""
        assert self.ctc is not None
        logits: Tensor = self.ctc(self.norm(x))
        return x if self.feedback is None else x + self.feedback(logits.softmax(-1)), logits


def receptive_field(spec: ConformerSpec) -> int | None:
    """Feature frames that one encoder frame depends on at most; None: no bound."""
    attention = spec.attention
    if not attention.streams:
        return None
    window, block = stream_window(attention), attention.block
    seen = [window.position[window.seen[:, place].any(0)] for place in range(block)]
    widest = 0
    for place in range(block):
        first = last = place
        for _ in range(spec.n_layers):
            first -= spec.kernel - 1
            first += int(seen[first % block].min()) - first % block
            last += int(seen[last % block].max()) - last % block
        widest = max(widest, last - first + 1)
    stem, stride = 0, 1  # feature frames that an encoder frame reads before its own
    for conv in spec.conv:
        stem += stride * (conv.kernel_time - conv.stride_time)
        stride *= conv.stride_time
    return widest * spec.subsampling + stem


def intermediate_ctc_loss(
    logits: Tensor,
    branches: Sequence[Tensor],
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *,
    weight: float = 0.5,
    blank_id: int = BLANK_ID,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
    validate: bool = True,
) -> Tensor:
    """CTC of the final logits and of the intermediate branches: (1 - w) final + w mean(branches).

    Parameters
    ----------
    logits : (B, T, V)
        The final ones: ``encoder.ctc(encoder_out)`` for the head that the branches share, or those
        of a head of its own.
    branches : sequence of (B, T, V)
        As `ConformerEncoder.forward_with_branches` gives them; without any, plain CTC.
    weight : float
        The branches' share w: 0.5 with self-conditioning and 0.3 without, in the papers.
    targets, input_lengths, target_lengths, blank_id, reduction, zero_infinity, validate
        As in `edge_imputer.train.objective.ctc_loss`.

    Returns
    -------
    Tensor
        In nats; (B,) if `reduction` is "none", else a scalar.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"expected a weight in 0..1, got {weight}")
    losses = [
        ctc_loss(
            scores,
            targets,
            input_lengths,
            target_lengths,
            blank_id=blank_id,
            reduction=reduction,
            zero_infinity=zero_infinity,
            validate=validate,
        )
        for scores in (logits, *branches)
    ]
    if not branches:
        return losses[0]
    return (1 - weight) * losses[0] + weight * torch.stack(losses[1:]).mean(0)
