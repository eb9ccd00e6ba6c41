"""Multi-head self-attention of a streaming encoder, with rotary positions.

`forward` takes whole utterances, `step` one block of a stream; they give the same. What a stream
keeps is of constant size: the frames just before the chunk, and the summaries of the last blocks.

Positions are rotary (Su et al. 2021, arXiv:2104.09864): queries and keys are turned by angles that
grow with their frame, so that scores depend on distances alone. Keys are kept unturned and turned
by their distance to the chunk at hand: a stream has no position, and loses none after hours.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edge_imputer.specs import AttentionSpec

from .attention import sees, sparse_attention
from .base import State

Angles = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

ROTARY_BASE = 10_000.0


class SelfAttention(nn.Module):
    """Attention of frames to frames of their own utterance.

    Parameters
    ----------
    d_model : int
        Width of a frame; `spec.heads` must divide it into even parts.
    spec : AttentionSpec
    """

    def __init__(self, d_model: int, spec: AttentionSpec) -> None:
        super().__init__()
        spec.check(d_model)
        self.spec = spec
        self.window = stream_window(spec) if spec.streams else None
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        for weight in (*self.qkv.weight.chunk(3), self.out.weight):
            nn.init.xavier_uniform_(weight)
        for linear in (self.qkv, self.out):
            nn.init.zeros_(linear.bias)

    @torch.no_grad()
    def scale_residual(self, n_layers: int) -> None:
        """Make the output projection's weights smaller by sqrt(2 N), N the depth of the encoder.

        Each of N layers adds an attention and a feed-forward branch; so scaled at the start, the
        sum of all keeps its size however deep the encoder is (Child et al. 2019, section 5.2).
        """
        self.out.weight.mul_((2 * n_layers) ** -0.5)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Attend within whole utterances.

        Parameters
        ----------
        x : (B, T, d_model)
        lengths : (B,) or None
            Valid frames; None: all.

        Returns
        -------
        (B, T, d_model), 0 past the lengths.
        """
        q, k, v = self._project(x)
        angles = first_angles(x.shape[1], q.shape[3])
        out = sparse_attention(turn(q, angles), turn(k, angles), v, lengths, self.spec)
        out = self._join(out)
        if lengths is None:
            return out
        frame = torch.arange(x.shape[1], device=x.device)
        return out.masked_fill((frame >= lengths[:, None])[:, :, None], 0)

    def initial_state(self, batch: int = 1) -> State:
        """The state before the first chunk.

        Returns
        -------
        Those of these that the pattern needs, floats in the weights' type, zeros:

        - summaries of earlier blocks, (batch, heads, memory_frames, 2 d): keys beside values
        - frames just before the chunk, (batch, heads, past_frames, 2 d)
        - blocks seen, up to those that can be remembered, int32, (batch,)

        Raises
        ------
        SpecError
            If the pattern cannot stream in constant memory.
        """
        self.spec.check_streaming()
        weight = self.out.weight
        heads = self.spec.heads
        kept = [
            weight.new_zeros(batch, heads, frames, 2 * weight.shape[0] // heads)
            for frames in (self.spec.memory_frames, self.spec.past_frames)
            if frames
        ]
        if not kept:
            return ()
        return (*kept, torch.zeros(batch, dtype=torch.int32, device=weight.device))

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Attend from the next block of a stream.

        Parameters
        ----------
        chunk : (B, block, d_model)
            The last chunk of a stream may be shorter; after it there is no other.
        state : from `initial_state` or the previous call

        Returns
        -------
        out : like `chunk`
        state : tuple of tensors of the same shapes
        """
        spec, window, n_frames = self.spec, self._window(), chunk.shape[1]
        if not 1 <= n_frames <= spec.block:
            raise ValueError(
                f"expected a chunk of {spec.block} frames, or fewer at the end, got {n_frames}"
            )
        q, k, v = self._project(chunk)
        new = torch.cat([k, v], -1)
        keys, values = torch.cat([*state[:-1], new], 2).chunk(2, -1)  # (B, H, M, d)
        n_keys = keys.shape[2]
        seen = torch.as_tensor(window.seen[:, :n_frames, :n_keys], device=chunk.device)
        if state:
            age = torch.as_tensor(window.age[:n_keys], device=chunk.device)
            seen = seen & (age <= state[-1][:, None])[:, None, None]  # (B, 1, 1, M)
        width = q.shape[3]
        q = turn(q, angles_of(np.arange(n_frames), width))
        keys = turn(keys, angles_of(window.position[:n_keys], width))
        scores = (q @ keys.transpose(-1, -2)) * width**-0.5
        weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1)
        out = weights.masked_fill(~seen, 0) @ values  # 0 where a head sees nothing
        return self._join(out), self._remember(new, state)

    def _remember(self, new: Tensor, state: State) -> State:
        """The state after a chunk with these keys and values, (B, H, T, 2 d)."""
        if not state:
            return state
        *kept, n_blocks = state
        summaries = new[:, :, -self.spec.summaries :]
        added = [summaries, new] if self.spec.memory_frames else [new]
        kept = [
            torch.cat([old, more], 2)[:, :, -old.shape[2] :]
            for old, more in zip(kept, added, strict=False)
        ]
        return (*kept, (n_blocks + 1).clamp(max=int(self._window().age.max())))

    def _window(self) -> Window:
        if self.window is None:
            self.spec.check_streaming()  # raises
        assert self.window is not None
        return self.window

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, H, T, d) each."""
        heads = self.spec.heads
        qkv = self.qkv(x).unflatten(2, (3, heads, x.shape[2] // heads))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def _join(self, x: Tensor) -> Tensor:
        """Project the heads' outputs (B, H, T, d) to (B, T, d_model)."""
        out: Tensor = self.out(x.transpose(1, 2).flatten(2))
        return out


# ------------------------------------------------------------------------------ positions


def angles_of(frame: npt.NDArray[np.int64], width: int) -> Angles:
    """Cosine and sine of every frame's angles, (T, width / 2) each.

    In float64: at frame 100,000, an hour on, a float32 angle would be wrong by 0.004.
    """
    angle = frame[:, None] * ROTARY_BASE ** (-2 * np.arange(width // 2) / width)
    return np.cos(angle), np.sin(angle)


@functools.lru_cache(maxsize=4)
def _angles_table(n_frames: int, width: int) -> Angles:
    return angles_of(np.arange(n_frames), width)


def first_angles(n_frames: int, width: int) -> Angles:
    """Angles of frames 0 to `n_frames`, from a table of the next power of two."""
    cos, sin = _angles_table(1 << max(n_frames - 1, 0).bit_length(), width)
    return cos[:n_frames], sin[:n_frames]


def turn(x: Tensor, angles: Angles) -> Tensor:
    """Turn every pair of channels (c, c + d / 2) of (..., T, d) by its frame's angle."""
    cos, sin = (torch.as_tensor(a, dtype=x.dtype, device=x.device) for a in angles)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


# ------------------------------------------------------------------------------ a stream's keys


@dataclass(frozen=True)
class Window:
    """The keys of one step: summaries of earlier blocks, frames before the chunk, the chunk.

    Attributes
    ----------
    position : int, (M,)
        Frames from the chunk's start.
    age : int, (M,)
        How many blocks the stream must have seen for this key to be one.
    seen : bool, (heads, block, M)
    """

    position: npt.NDArray[np.int64]
    age: npt.NDArray[np.int64]
    seen: npt.NDArray[np.bool_]


@functools.lru_cache(maxsize=64)
def stream_window(spec: AttentionSpec) -> Window:
    """What a step of `spec` looks at."""
    block, past = spec.block, spec.past_frames
    ends = np.arange(-(spec.memory_blocks or 0) + 1, 1)[:, None] * block
    summaries = (ends + np.arange(-spec.summaries, 0)).reshape(-1)[: spec.memory_frames]
    position = np.concatenate([summaries, np.arange(-past, block)])
    age = -(np.minimum(position, 0) // block)
    before = int(age.max()) * block
    i, j = torch.arange(before, before + block), torch.as_tensor(before + position)
    seen = sees(spec, i[:, None], j, length=before + block).numpy().copy()
    seen[:, :, : len(summaries)] &= summaries < -past  # else it is among the frames before
    return Window(position, age, seen)
