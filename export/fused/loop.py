"""The passes of an Imputer head over one chunk, decision and all, as operations of a graph.

`edge_imputer.imputation` says what a pass does; here is the same without a branch or a sort, in
operations that TensorFlow Lite Micro has. Decisions are made in float32 on numbers that are small
integers or sums of few bits, so they are exact: every runtime takes the same ones from the same
logits.

A frame's confidence is the probability of its best token. For logits in steps of int8 below the
best one, g, that is ``1 / sum(exp(-scale * g))``, so frames are compared by the sum over all tokens
but the best: a sum of entries of a table, each in two parts of few bits, which no order of adding
changes. Ranks come from comparing the frames of a block by pairs.
"""

from __future__ import annotations

import numpy as np

from edge_imputer.errors import ExportError
from edge_imputer.specs import ModelSpec
from edge_imputer.specs.tokens import BLANK_ID

from ..graph import Array, Graph
from ..op_params import quant_of
from .builder import FusedBuilder

LARGEST_VOCABULARY = 4096
GREATER = 2.0**80  # times the smallest difference of two sums is more than 2
BITS = 24  # of a float32's fraction


def commits(schedule: tuple[int, ...], block_size: int) -> list[int]:
    """Frames that each pass commits a block, without the passes that commit none."""
    left, found = block_size, []
    for asked in schedule:
        found.append(min(asked, left))
        left -= found[-1]
    return [n for n in found if n]


def exponentials(scale: float, n_tokens: int) -> Array:
    """``exp(-scale * g)`` for g in 0..255, as a coarse and a fine part: float32 (256, 2).

    Both are so short that a sum of `n_tokens` of them has no rounding.
    """
    if n_tokens > LARGEST_VOCABULARY:
        raise ExportError(
            f"expected at most {LARGEST_VOCABULARY} tokens in a fused model, got {n_tokens}; "
            "decode outside of the graph, with the encoder and the head in files of their own"
        )
    bits = BITS - int(np.ceil(np.log2(n_tokens)))
    exact = np.exp(-scale * np.arange(256, dtype=np.float64))
    coarse = np.rint(exact * 2.0**bits) / 2.0**bits
    fine = np.rint((exact - coarse) * 2.0 ** (2 * bits)) / 2.0 ** (2 * bits)
    return np.stack([coarse, fine], 1).astype(np.float32)


class Loop:
    """Appends the passes one after the other.

    Attributes
    ----------
    tokens : (C,) float32
        Ids of what is committed, 0 elsewhere.
    spare : (C,) float32
        Of committed frames, the odds against their token: ``1 / probability - 1``.
    open : (C,) float32
        1 for frames that are not committed yet.
    """

    def __init__(self, g: FusedBuilder, imputer: Graph, spec: ModelSpec, frames: str) -> None:
        self.g, self.imputer, self.frames = g, imputer, frames
        self.head, self.mask_id = spec.head, spec.tokens.mask_id
        self.table = exponentials(
            quant_of(imputer, imputer.outputs[0]).scale, spec.tokens.vocabulary_size
        )
        self.tokens = self.spare = ""
        self.open = self.g.shared("loop.ones", np.ones(spec.head.chunk_size, np.float32))
        self.n_done = 0

    def run_pass(self, name: str, before: str | None, n_commit: int) -> str | None:
        """One pass, in which `n_commit` frames of every block are committed.

        Parameters
        ----------
        name : str
            What its activations are named after.
        before : (left_context,) int32, or None where the head has none
            The alignment left of the chunk as it stood before this pass.

        Returns
        -------
        (left_context,) int32, or None: what this pass of the next chunk sees there.
        """
        token, spare, after = self._look(name, before)
        commit = self._commit(name, token, spare, n_commit)
        self.tokens = self._kept(f"{name}.tokens", self.tokens, commit, token)
        self.spare = self._kept(f"{name}.spares", self.spare, commit, spare)
        self.open = self.g.binary("sub", f"{name}.open", self.open, commit)
        self.n_done += n_commit
        return after

    def revise(self, name: str, before: str | None) -> str | None:
        """One pass of revision, once all frames are committed: it finds every frame anew.

        Takes and returns what `run_pass` does.
        """
        self.tokens, self.spare, after = self._look(name, before)
        return after

    def log_probs(self) -> str:
        """Log-probability of every frame's token, (C,)."""
        g = self.g
        likelihood = g.unary(
            "log", "surprise", g.binary("add", "odds", self.spare, self.scalar("one", 1))
        )
        return g.binary("sub", "log_probs", self.scalar("zero", 0), likelihood)

    def scalar(self, name: str, value: float) -> str:
        """A constant that broadcasts."""
        return self.g.scalar(f"loop.{name}", value)

    def _look(self, name: str, before: str | None) -> tuple[str, str, str | None]:
        """Each frame's best token and the odds against it, (C,); what `run_pass` returns."""
        g = self.g
        window = self._alignment(name)
        if before is not None:
            window = g.concat(f"{name}.window", (before, window), 0)
        feeds = dict(zip(self.imputer.inputs, (self.frames, window), strict=True))
        (logits,) = g.inline(self.imputer, "imputer", feeds, f"{name}.head")
        steps = g.cast(f"{name}.steps", logits, "float32")  # (C, V)
        token = g.cast(f"{name}.token", g.arg_max(f"{name}.best", steps), "float32")  # (C,)
        spare = self._spare(name, steps)
        if before is None:
            return token, spare, None
        chunk, left = self.head.chunk_size, self.head.left_context
        return token, spare, g.slice(f"{name}.after", window, 0, chunk, left)

    def _alignment(self, name: str) -> str:
        """The partial alignment, int32 (C,): the mask where nothing is committed."""
        g = self.g
        if self.n_done == self.head.block_size:  # of every block: nothing is open
            return g.cast(f"{name}.ids", self.tokens, "int32")
        if not self.tokens:
            all_masked = np.full(self.head.chunk_size, self.mask_id, np.int32)
            return self.g.shared("loop.masks", all_masked)
        masks = g.binary("mul", f"{name}.masks", self.open, self.scalar("mask", self.mask_id))
        return g.cast(f"{name}.ids", g.binary("add", f"{name}.filled", self.tokens, masks), "int32")

    def _spare(self, name: str, steps: str) -> str:
        """``1 / probability - 1`` of the best token, (C, V) -> (C,)."""
        g = self.g
        n_frames, n_tokens = g.shape(steps)
        gap = g.binary("sub", f"{name}.gap", g.reduce("max", f"{name}.peak", steps), steps)
        ids = g.reshape(f"{name}.gaps", gap, (n_frames * n_tokens,))
        ids = g.cast(f"{name}.entries", ids, "int32")
        table = self.g.shared("loop.exponentials", self.table)
        parts = g.lookup(f"{name}.exponentials", ids, table)
        parts = g.reshape(f"{name}.addends", parts, (n_frames, n_tokens, 2))
        parts = g.transpose(f"{name}.rows", parts, (0, 2, 1))
        parts = g.reduce("sum", f"{name}.sums", parts)  # (C, 2, 1)
        coarse, fine = (
            g.reshape(f"{name}.{part}", g.slice(f"{name}.{part}.sum", parts, 1, k, 1), (n_frames,))
            for k, part in enumerate(("coarse", "fine"))
        )
        rest = g.binary("sub", f"{name}.rest", coarse, self.scalar("one", 1))  # without the best
        return g.binary("add", f"{name}.spare", rest, fine)

    def _commit(self, name: str, token: str, spare: str, n_commit: int) -> str:
        """1 for frames that this pass commits, 0 for others, (C,)."""
        g, head = self.g, self.head
        if self.n_done + n_commit == head.block_size:  # all that are left
            return self.open
        if head.order == "left-to-right":
            block = np.zeros(head.block_size, np.float32)
            block[self.n_done : self.n_done + n_commit] = 1
            return self.g.shared(f"loop.{name}.commit", np.tile(block, head.chunk_blocks))
        ahead = self._ahead(name, token, spare)
        rank = g.reduce("sum", f"{name}.rank", ahead)  # (blocks, B, 1)
        rank = g.reshape(f"{name}.ranks", rank, (head.chunk_size,))
        room = g.binary("sub", f"{name}.room", self.scalar(f"first{n_commit}", n_commit), rank)
        one = self.scalar("one", 1)
        return g.unary("relu", f"{name}.commit", g.binary("minimum", f"{name}.in", room, one))

    def _ahead(self, name: str, token: str, spare: str) -> str:
        """1 where frame j of a block goes before frame i, else 0: (blocks, B (i), B (j)).

        What counts more weighs more than all that counts less: open before committed 8, other
        tokens before the blank 4, the surer 2, the earlier 1.
        """
        g, size = self.g, self.head.block_size
        apart = self._pairs(f"{name}.spare", spare)
        wide = g.binary("mul", f"{name}.wide", apart, self.scalar("greater", GREATER))
        low, high = self.scalar("low", -2), self.scalar("high", 2)
        score = g.binary("maximum", f"{name}.low", wide, low)
        score = g.binary("minimum", f"{name}.surer", score, high)
        earlier = np.tril(np.ones((size, size), np.float32), -1)
        order = self.g.shared("loop.earlier", (earlier - earlier.T)[np.newaxis])
        score = g.binary("add", f"{name}.score", score, order)
        late = self._late(name, token)
        if late:
            score = g.binary("add", f"{name}.all", score, self._pairs(f"{name}.late", late))
        one = self.scalar("one", 1)
        return g.binary("minimum", f"{name}.ahead", g.unary("relu", f"{name}.won", score), one)

    def _late(self, name: str, token: str) -> str:
        """What puts a frame behind others however sure it is, (C,); empty where nothing does."""
        late = ""
        if self.n_done:
            late = self._outweighed(f"{name}.done", self.open, 8)
        if self.head.order == "non-blank-first":
            assert BLANK_ID == 0
            spoken = self.g.binary("minimum", f"{name}.spoken", token, self.scalar("one", 1))
            blank = self._outweighed(f"{name}.blank", spoken, 4)
            late = self.g.binary("add", f"{name}.late", late, blank) if late else blank
        return late

    def _outweighed(self, name: str, first: str, weight: int) -> str:
        """The weight where `first` is 0, nothing where it is 1."""
        rest = self.g.binary("sub", name, self.scalar("one", 1), first)
        return self.g.binary("mul", f"{name}.weight", rest, self.scalar(f"weight{weight}", weight))

    def _pairs(self, name: str, x: str) -> str:
        """Differences ``x[i] - x[j]`` within blocks: (C,) -> (blocks, B, B)."""
        g, head = self.g, self.head
        column = g.reshape(f"{name}.column", x, (head.chunk_blocks, head.block_size, 1))
        row = g.reshape(f"{name}.row", x, (head.chunk_blocks, 1, head.block_size))
        return g.binary("sub", f"{name}.difference", column, row)

    def _kept(self, name: str, kept: str, commit: str, value: str) -> str:
        """What is committed, with what this pass commits."""
        new = self.g.binary("mul", f"{name}.new", commit, value)
        return self.g.binary("add", name, kept, new) if kept else new
