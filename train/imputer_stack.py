"""The Imputer as in the paper: the alignment goes in before the whole encoder, which runs K times.

Chan et al. 2020 (arXiv:2002.08926), section 3: the embedded partial alignment is added to what the
subsampling convolutions give, and one stack of blocks turns the sum into logits. Here the stack is
a conformer. It costs K encoders where a head costs K light passes (`edge_imputer.train.imputer`).

Streaming. A chunk is final after its K passes, and pass k sees earlier chunks as *they* stood in
their own pass k: the stream keeps K states of the blocks, one a pass. So the chunks of an utterance
one after another, and all at once in K passes, give the same, as with the light head.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from edge_imputer.errors import SpecError
from edge_imputer.specs import ConformerSpec, ImputerSpec, MelSpec, TokenSpec

from .encoders.conformer import ConformerEncoder
from .layers.base import State
from .layers.conformer import ConformerBlock, make_linear


class ImputerStack(nn.Module):
    """Logits of every frame given the features' frames and a partial alignment.

    `edge_imputer.train.decode.decode` takes it in the place of a head, with what `subsample`
    gives in the place of the encoder's output.

    Parameters
    ----------
    encoder : ConformerSpec
        Its chunk must be the head's; without intermediate branches.
    head : ImputerSpec
        With mixer "encoder".
    """

    def __init__(
        self, encoder: ConformerSpec, head: ImputerSpec, features: MelSpec, tokens: TokenSpec
    ) -> None:
        super().__init__()
        _check(encoder, head)
        self.spec = head
        self.blank_id, self.mask_id = tokens.blank_id, tokens.mask_id
        self.vocabulary_size = tokens.vocabulary_size
        self.encoder = ConformerEncoder(encoder, features)
        self.embedding = nn.Embedding(tokens.vocabulary_size + 1, encoder.d_model)
        nn.init.normal_(self.embedding.weight, 0.0, 0.3)
        self.output = make_linear(encoder.d_model, tokens.vocabulary_size)

    @property
    def _blocks(self) -> list[ConformerBlock]:
        return [cast(ConformerBlock, block) for block in self.encoder.blocks]

    # -------------------------------------------------------------------------- utterances

    def subsample(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What is computed once an utterance: (B, T, n_mels) -> (B, T', d_model), lengths (B,)."""
        padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        frames, lengths = self.encoder.stem(x.masked_fill(padding.unsqueeze(-1), 0), lengths)
        return frames, lengths

    def fully_masked(self, frames: Tensor) -> Tensor:
        """The alignment before the first pass: `mask_id` everywhere, (B, T')."""
        return torch.full(frames.shape[:2], self.mask_id, device=frames.device)

    def forward(self, frames: Tensor, alignment: Tensor, lengths: Tensor | None = None) -> Tensor:
        """One pass over whole utterances.

        Parameters
        ----------
        frames : (B, T', d_model)
            From `subsample`.
        alignment : long, (B, T')
        lengths : (B,), optional
            Valid frames; None: all.

        Returns
        -------
        logits : (B, T', vocabulary_size)
        """
        if lengths is None:
            lengths = torch.full((len(frames),), frames.shape[1], device=frames.device)
        x = frames + self.embedding(alignment)
        for block in self._blocks:
            x = block(x, lengths)
        logits: Tensor = self.output(self.encoder.norm(x))
        return logits

    # -------------------------------------------------------------------------- streams

    def initial_state(self, batch: int = 1) -> State:
        """The blocks' state before the first chunk; a stream in K passes keeps K of them."""
        return tuple(kept for block in self._blocks for kept in block.initial_state(batch))

    def step(self, frames: Tensor, alignment: Tensor, state: State) -> tuple[Tensor, State]:
        """One pass over one chunk.

        Parameters
        ----------
        frames : (B, chunk, d_model)
            The chunk, subsampled once by ``encoder.stem.step``.
        alignment : long, (B, chunk)
            As it stood before this pass.
        state : this pass's state after the chunk before

        Returns
        -------
        logits : (B, chunk, vocabulary_size)
        state : for this pass over the next chunk
        """
        x = frames + self.embedding(alignment)
        n_kept = len(state) // len(self._blocks)
        states: State = ()
        for layer, block in enumerate(self._blocks):
            x, kept = block.step(x, state[layer * n_kept : (layer + 1) * n_kept])
            states += kept
        logits: Tensor = self.output(self.encoder.norm(x))
        return logits, states


def _check(encoder: ConformerSpec, head: ImputerSpec) -> None:
    encoder.check()
    head.check()
    if head.mixer != "encoder":
        raise SpecError(f"expected a head with mixer 'encoder', got {head.mixer!r}")
    if encoder.intermediate_ctc:
        raise SpecError("expected an encoder without intermediate_ctc: the stack has one output")
    if encoder.attention.block != head.chunk_size:
        raise SpecError(
            "expected the encoder's chunk to be the head's, got an attention block of "
            f"{encoder.attention.block} frames and a chunk of {head.chunk_size}"
        )
