"""Training's decoding and the device's: padded batches in torch, chunks as audio arrives in numpy.

Clips of the shipped digits go two ways. In torch: log-mel of whole clips, one padded batch, the
encoder and K passes of the head over everything. In the runtime: samples pushed one piece after
another through the float graphs that export writes. Both must fill in the same alignments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch

from edge_imputer.backends.stepper import Stepper
from edge_imputer.export.build import build_graphs
from edge_imputer.export.simulate import Described, reference_backend
from edge_imputer.imputation import ImputedChunk, schedule
from edge_imputer.pipeline import StreamingDecoder
from edge_imputer.specs import ConvSpec, ModelSpec, TokenSpec
from edge_imputer.train.corpus import Clip, load_clips, read_manifest
from edge_imputer.train.data import Batch, Featurizer, fixed_batches
from edge_imputer.train.decode import decode
from edge_imputer.train.encoder import CrnnEncoder
from edge_imputer.train.imputer import ImputerHead

from .conftest import ROOT
from .graphs import model_spec, modules

DIGITS = ROOT / "train" / "digits"
RATE = 16_000
SCHEDULES = [schedule(k, 8) for k in (1, 2, 8)] + [(5, 1, 1, 1)]
# Float32 sums in another order differ by about 1e-5 here: choices with less between them would
# not have to agree. The seed is one that has no such choice.
SEED, CLEAR = 0, 1e-4


@dataclass(frozen=True)
class Setting:
    """A model with random weights, in torch and for the runtime, and clips to decode."""

    spec: ModelSpec
    encoder: CrnnEncoder
    head: ImputerHead
    backend: Stepper
    clips: list[Clip]  # shortest first
    batch: Batch

    def decoder(self, commits: tuple[int, ...] = (2, 2, 2, 2)) -> StreamingDecoder:
        """The runtime's decoder."""
        return StreamingDecoder(Described(self.spec), backend=self.backend, schedule=commits)


@cache
def setting() -> Setting:
    """The same every time; not to be modified."""
    small = model_spec(
        (ConvSpec(channels=4), ConvSpec(channels=6)), n_mels=16, block_size=8, schedule=(4, 4)
    )
    spec = msgspec.structs.replace(small, tokens=TokenSpec(characters=tuple(" efghinorstuvwxz")))
    encoder, head = modules(spec, SEED)
    clips = digits()
    (batch,) = fixed_batches(clips, Featurizer(spec), batch_size=len(clips))
    spread_tokens(encoder, head, batch)
    backend = reference_backend(*build_graphs(encoder, head, spec), spec)
    return Setting(spec, encoder, head, backend, clips, batch)


@torch.no_grad()
def spread_tokens(encoder: CrnnEncoder, head: ImputerHead, batch: Batch) -> None:
    """Scale the output layer so that every token is likely somewhere, not one everywhere."""
    out, _ = encoder(batch.features, batch.lengths)
    logits = head(out, head.fully_masked(out)).flatten(0, 1)  # (B * T, V)
    std, mean = torch.std_mean(logits, dim=0)
    head.output.weight.mul_(2 / std[:, None])
    head.output.bias.sub_(mean).mul_(2 / std)


def digits() -> list[Clip]:
    """Six held-out clips, the shortest, the longest and four between them."""
    records = sorted(
        (record for record in read_manifest(DIGITS) if record.split == "test"),
        key=lambda record: record.duration_s,
    )
    chosen = [records[k] for k in np.linspace(0, len(records) - 1, 6).astype(int)]
    clips = load_clips(DIGITS, chosen, "test", sample_rate=RATE)
    return sorted(clips, key=lambda clip: len(clip.waveform))


def alignment(chunks: list[ImputedChunk]) -> list[int]:
    """Token ids of all chunks."""
    return [int(token) for chunk in chunks for token in chunk.alignment]


def bits(chunks: list[ImputedChunk]) -> list[tuple[int, bytes, bytes, bytes]]:
    """Everything about chunks, byte for byte."""
    return [
        (c.first_frame, *(a.tobytes() for a in (c.alignment, c.log_probs, c.committed_at)))
        for c in chunks
    ]


@torch.no_grad()
def decode_batch(commits: tuple[int, ...]) -> tuple[list[list[int]], float]:
    """Alignments of the batch in torch, and how close the closest choice in them was, in nats."""
    s, gaps = setting(), []

    def watch(head: ImputerHead, args: tuple[torch.Tensor, torch.Tensor], logits: object) -> None:
        gaps.append(closest_choice(logits, args[1] == head.mask_id, commits[len(gaps)]))

    out, n_frames = s.encoder(s.batch.features, s.batch.lengths)
    valid = torch.arange(out.shape[1]) < n_frames[:, None]

    def closest_choice(logits: torch.Tensor, is_open: torch.Tensor, n_commit: int) -> float:
        """Between a frame's two best tokens; between frames committed now and later."""
        top = logits.log_softmax(-1).topk(2).values
        best = top[..., 0].masked_fill(~is_open, -torch.inf)
        blocks = best.unflatten(1, (-1, s.spec.head.block_size))[valid[:, ::8]]
        ranked = blocks.sort(descending=True).values
        between = ranked[:, n_commit - 1] - ranked[:, n_commit] if n_commit < 8 else top.new_ones(1)
        return float(torch.minimum((top[..., 0] - top[..., 1])[valid].min(), between.min()))

    hook = s.head.register_forward_hook(watch)
    filled = decode(s.head, out, commits)
    hook.remove()
    rows = zip(filled.tolist(), n_frames.tolist(), strict=True)
    return [row[:n] for row, n in rows], min(gaps)
