"""Sparse attention: every path against a masked matrix, and what the patterns promise."""

from __future__ import annotations

from functools import partial
from typing import get_args

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from edge_imputer.errors import SpecError
from edge_imputer.specs import AttentionSpec
from edge_imputer.specs.attention import Direction, HeadMode, Pattern
from edge_imputer.train.benchmark import peak_bytes
from edge_imputer.train.layers import key_sets
from edge_imputer.train.layers.attention import pattern_mask, sparse_attention

from .attention_cases import HEADS, masked_attention, masks, random_frames, specs, with_gradients

PATTERNS, DIRECTIONS = get_args(Pattern), get_args(Direction)
SPARSE = PATTERNS[1:]


def assert_equals_masked(spec: AttentionSpec, n_frames: int, lengths: list[int] | None) -> None:
    """Output and gradients, to 1e-12."""
    ends = None if lengths is None else torch.tensor(lengths)
    frames = random_frames(2 if lengths is None else len(lengths), n_frames, heads=spec.heads)
    mask = masks(spec, n_frames, ends)
    sparse = with_gradients(lambda q, k, v: sparse_attention(q, k, v, ends, spec), frames)
    dense = with_gradients(partial(masked_attention, mask=mask), frames)
    for ours, theirs in zip(sparse, dense, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12, msg=lambda m: f"{spec}: {m}")


# ------------------------------------------------------------------------------ the definition


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_the_masked_matrix(pattern: Pattern, direction: Direction) -> None:
    found = list(specs(pattern, direction))
    assert found
    for spec in found:
        for n_frames, lengths in ((20, None), (23, None), (3, None), (23, [23, 11, 0, 16])):
            assert_equals_masked(spec, n_frames, lengths)


@pytest.mark.parametrize("tile", [1, 40, 300])
def test_tiles_add_up(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    """Tests are small: without this everything would be one tile."""
    monkeypatch.setattr(key_sets, "TILE_SCORES_CPU", tile)
    monkeypatch.setattr(key_sets, "SHORTEST", 2)
    for spec in specs():
        if spec.left_context < 2 and spec.lookahead != 0:
            assert_equals_masked(spec, 38, [38, 21])


@st.composite
def any_spec(draw: st.DrawFn) -> AttentionSpec:
    pattern, direction = draw(st.sampled_from(PATTERNS)), draw(st.sampled_from(DIRECTIONS))
    heads, block = draw(st.integers(2, 5)), draw(st.integers(1, 9))
    small = st.integers(1, 4)
    far = pattern not in ("dense", "local")
    return AttentionSpec(
        pattern=pattern,
        heads=heads,
        block=block,
        summaries=draw(st.integers(1, block)),
        left_context=draw(st.integers(0, 20)) if "local" in pattern else 0,
        memory_blocks=draw(st.none() | small) if far and direction != "bidirectional" else None,
        head_mode=draw(st.sampled_from(get_args(HeadMode))) if far else "merged",
        direction=direction,
        lookahead=draw(st.none() | st.integers(0, block - 1)) if direction == "chunk" else None,
    )


@settings(max_examples=150, deadline=None)
@given(any_spec(), st.integers(1, 40), st.data())
def test_equals_the_masked_matrix_of_any_shape(
    spec: AttentionSpec, n_frames: int, data: st.DataObject
) -> None:
    spec.check()
    lengths = data.draw(st.none() | st.lists(st.integers(0, n_frames), min_size=1, max_size=3))
    assert_equals_masked(spec, n_frames, lengths)


def test_the_default_pattern_drawn_out() -> None:
    """Two blocks of four, and one of two that is not full; one summary, one frame of context."""
    spec = AttentionSpec(heads=1, block=4, summaries=1, left_context=1)
    bidirectional = msgspec.structs.replace(spec, direction="bidirectional")
    causal = msgspec.structs.replace(spec, direction="causal")

    def drawn(spec: AttentionSpec) -> list[str]:
        return ["".join(".x"[seen] for seen in row) for row in pattern_mask(spec, 11, 10)[0].int()]

    padding = ["..........."]
    first, second, third = "xxxx.......", "...xxxxx...", "...x...xxx."
    assert drawn(spec) == [first] * 4 + [second] * 4 + [third] * 2 + padding
    assert drawn(causal)[:6] == [
        "x..........",
        "xx.........",
        "xxx........",
        "xxxx.......",
        "...xx......",
        "...xxx.....",
    ]
    first, second, third = "xxxxx..x.x.", "...xxxxxxx.", "...x...xxx."
    assert drawn(bidirectional) == [first] * 4 + [second] * 4 + [third] * 2 + padding


# ------------------------------------------------------------------------------ padding


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_padded_equals_alone(pattern: Pattern, direction: Direction) -> None:
    """Also where the padding is not a number: it is no key, no summary, and has no gradient."""
    lengths = torch.tensor([31, 17, 2, 0])
    frames = random_frames(4, 31)
    padding = torch.arange(31) >= lengths[:, None]
    broken = [x.masked_fill(padding[:, None, :, None], torch.nan) for x in frames[:3]]
    for spec in specs(pattern, direction):
        if spec.lookahead or spec.left_context == 1:
            continue
        out, *gradients = with_gradients(
            lambda q, k, v, spec=spec: sparse_attention(q, k, v, lengths, spec),
            [*broken, frames[3]],
        )
        for row, n in enumerate(lengths.tolist()):
            alone = with_gradients(
                lambda q, k, v, spec=spec: sparse_attention(q, k, v, None, spec),
                [x[row : row + 1, :, :n] for x in frames],
            )
            for padded, single in zip((out, *gradients), alone, strict=True):
                torch.testing.assert_close(padded[row, :, :n], single[0], rtol=0, atol=1e-12)
                assert not padded[row, :, n:].any()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_head_that_sees_nothing_gives_zero(direction: Direction) -> None:
    """Split heads: before the first summary there is nothing far."""
    spec = AttentionSpec(heads=2, block=4, head_mode="split", direction=direction, lookahead=None)
    out, *gradients = with_gradients(
        lambda q, k, v: sparse_attention(q, k, v, None, spec), random_frames(1, 12, heads=2)
    )
    nothing = {"bidirectional": 0, "chunk": 0, "causal": 2}[direction]
    assert not out[0, 1, :nothing].any()
    assert out[0, 1, nothing:].all()
    assert all(gradient.isfinite().all() for gradient in gradients)


# ------------------------------------------------------------------------------ what is promised


@pytest.mark.parametrize("head_mode", get_args(HeadMode))
@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
@pytest.mark.parametrize("pattern", ["fixed", "strided", "local+fixed"])
def test_two_hops_reach_everything(
    pattern: Pattern, direction: Direction, head_mode: HeadMode
) -> None:
    """Child et al., section 4.2: two layers connect all pairs, a last block's frames too."""
    for block in (1, 3, 8):
        spec = AttentionSpec(
            pattern=pattern,
            heads=2,
            block=block,
            summaries=1,
            head_mode=head_mode,
            direction=direction,
        )
        for n_frames in (1, 7, 8, 23, 60, 65):
            one = pattern_mask(spec, n_frames).any(0).double()
            two = (one @ one) > 0
            wanted = torch.ones_like(two)
            assert torch.equal(two, wanted if direction == "bidirectional" else wanted.tril())


def test_one_set_alone_does_not_reach_everything() -> None:
    one = pattern_mask(AttentionSpec(pattern="local", direction="bidirectional"), 60)[0].double()
    assert not ((one @ one) > 0).all()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("pattern", SPARSE)
def test_union_with_one_block_is_dense(pattern: Pattern, direction: Direction) -> None:
    dense = AttentionSpec(pattern="dense", heads=HEADS, block=16, direction=direction)
    union = msgspec.structs.replace(dense, pattern=pattern)
    lengths = torch.tensor([16, 13])
    for n_frames, ends in ((16, None), (11, None), (16, lengths)):
        frames = random_frames(2, n_frames)
        for ours, theirs in zip(
            with_gradients(lambda *x, ends=ends: sparse_attention(*x, ends, union), frames),
            with_gradients(lambda *x, ends=ends: sparse_attention(*x, ends, dense), frames),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_all_context_is_dense() -> None:
    dense = AttentionSpec(pattern="dense", heads=HEADS, direction="causal")
    local = msgspec.structs.replace(dense, pattern="local", left_context=40)
    *qkv, _ = random_frames(1, 37)
    out = sparse_attention(*qkv, None, local)
    torch.testing.assert_close(out, sparse_attention(*qkv, None, dense), rtol=0, atol=1e-12)


class Sizes(TorchDispatchMode):
    """Records the shape of everything that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[torch.Size] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.shapes.add(tensor.shape)
        return out


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("head_mode", get_args(HeadMode))
@pytest.mark.parametrize("pattern", SPARSE)
def test_no_matrix_of_all_pairs(
    pattern: Pattern, head_mode: HeadMode, direction: Direction
) -> None:
    if pattern == "local" and head_mode == "split":
        return
    n_frames = 1024
    spec = AttentionSpec(
        pattern=pattern, heads=2, block=32, head_mode=head_mode, direction=direction
    )
    frames = [x.float() for x in random_frames(2, n_frames, heads=2)]
    for lengths in (None, torch.tensor([n_frames, n_frames - 30])):
        with Sizes() as sizes:
            with_gradients(lambda *x, ends=lengths: sparse_attention(*x, ends, spec), frames)
        assert max(shape.numel() for shape in sizes.shapes) <= key_sets.TILE_SCORES_CPU
        assert n_frames**2 > key_sets.TILE_SCORES_CPU


@pytest.mark.parametrize("pattern", SPARSE)
def test_memory_grows_no_faster_than_n_sqrt_n(pattern: Pattern) -> None:
    def peak(n_frames: int, block: int) -> int:
        spec = AttentionSpec(pattern=pattern, heads=2, block=block, direction="bidirectional")
        frames = [x.float() for x in random_frames(1, n_frames, heads=2, width=16)]
        call = partial(with_gradients, lambda *x: sparse_attention(*x, None, spec), frames)
        call()
        return peak_bytes(call)

    assert peak(16_384, 128) <= 4**1.5 * peak(4096, 64)


# ------------------------------------------------------------------------------ types, autograd


def test_float32_is_accurate() -> None:
    frames = random_frames(1, 500, width=16)
    for pattern in SPARSE:
        spec = AttentionSpec(pattern=pattern, heads=HEADS, direction="bidirectional")
        results = [
            with_gradients(
                lambda q, k, v, spec=spec: sparse_attention(q, k, v, None, spec),
                [x.to(dtype) for x in frames],
            )
            for dtype in (torch.float32, torch.float64)
        ]
        for single, exact in zip(*results, strict=True):
            torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-5)


def test_large_scores_do_not_overflow() -> None:
    q, k, v, d_out = (x.float() for x in random_frames(1, 40))
    spec = AttentionSpec(heads=HEADS)
    out, *gradients = with_gradients(
        lambda q, k, v: sparse_attention(q, k, v, None, spec), [200 * q, 200 * k, v, d_out]
    )
    expected = masked_attention(200 * q, 200 * k, v, masks(spec, 40, None))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    frames = [x.to(dtype) for x in random_frames(1, 60)]
    spec = AttentionSpec(heads=HEADS)
    half = with_gradients(lambda q, k, v: sparse_attention(q, k, v, None, spec), frames)
    mask = masks(spec, 60, None)
    exact = with_gradients(partial(masked_attention, mask=mask), [x.float() for x in frames])
    step = torch.finfo(dtype).eps
    for ours, theirs in zip(half, exact, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), theirs, rtol=step, atol=2 * step)


def test_autocast_does_not_reach_the_scores() -> None:
    frames = [x.float() for x in random_frames(1, 60)]
    spec = AttentionSpec(heads=HEADS)
    plain = with_gradients(lambda q, k, v: sparse_attention(q, k, v, None, spec), frames)
    with torch.autocast("cpu", torch.bfloat16):
        cast = with_gradients(lambda q, k, v: sparse_attention(q, k, v, None, spec), frames)
    assert all(map(torch.equal, plain, cast))


def test_recomputation_changes_nothing() -> None:
    frames = random_frames(2, 33)
    spec = AttentionSpec(heads=HEADS, left_context=3)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sparse_attention(q, k, v, None, spec)

    def recomputed(*qkv: Tensor) -> Tensor:
        out = checkpoint(attention, *qkv, use_reentrant=False)
        assert isinstance(out, Tensor)
        return out

    kept, again = with_gradients(attention, frames), with_gradients(recomputed, frames)
    assert all(map(torch.equal, kept, again))


def test_no_gradient_of_the_gradient() -> None:
    q, k, v, _ = random_frames(1, 20)
    out = sparse_attention(q.requires_grad_(), k, v, None, AttentionSpec(heads=HEADS))
    with pytest.raises(RuntimeError, match="differentiated only once"):
        torch.autograd.grad(out.sum(), q, create_graph=True)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_nothing_gives_nothing(pattern: Pattern) -> None:
    *qkv, _ = random_frames(2, 0)
    spec = AttentionSpec(pattern=pattern, heads=HEADS)
    assert sparse_attention(*qkv, None, spec).shape == (2, HEADS, 0, 2)


def test_wrong_shapes_are_refused() -> None:
    q, k, v, _ = random_frames(2, 8)
    with pytest.raises(ValueError, match=r"expected q, k and v of one shape \(B, 4, T, D\)"):
        sparse_attention(q, k, v, None, AttentionSpec(heads=4))
    with pytest.raises(ValueError, match="of one shape"):
        sparse_attention(q, k[:, :, 1:], v, None, AttentionSpec(heads=HEADS))
    with pytest.raises(ValueError, match=r"expected lengths \(2,\), got \(3,\)"):
        sparse_attention(q, k, v, torch.tensor([1, 2, 3]), AttentionSpec(heads=HEADS))


# ------------------------------------------------------------------------------ specs


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"heads": 0}, "heads, block and summaries >= 1"),
        ({"block": -1}, "heads, block and summaries >= 1"),
        ({"summaries": 0}, "heads, block and summaries >= 1"),
        ({"summaries": 9}, r"as many summaries as a block has frames \(8\), got 9"),
        ({"left_context": -1}, "left_context >= 0"),
        ({"pattern": "fixed", "left_context": 2}, "unless the pattern is local or local\\+fixed"),
        ({"pattern": "strided", "left_context": 2}, "unless the pattern is local"),
        ({"pattern": "local", "head_mode": "split"}, "a pattern of two sets"),
        ({"pattern": "dense", "head_mode": "split"}, "a pattern of two sets"),
        ({"heads": 1, "head_mode": "split"}, "two heads or more"),
        ({"memory_blocks": 0}, "memory_blocks >= 1"),
        ({"memory_blocks": 3, "direction": "bidirectional"}, "expected None with local\\+fixed"),
        ({"memory_blocks": 3, "pattern": "local"}, "expected None with local, chunk, got 3"),
        ({"lookahead": 2, "direction": "causal"}, "direction causal, got 2"),
        ({"lookahead": 2, "direction": "bidirectional"}, "direction bidirectional, got 2"),
        ({"lookahead": 8}, "within the chunk, which is a block: 0 to 7 frames, got 8"),
        ({"lookahead": -1}, "0 to 7 frames, got -1"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, object], reason: str) -> None:
    AttentionSpec().check()
    with pytest.raises(SpecError, match=reason):
        AttentionSpec(**fields).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("d_model", [0, -8, 30, 36])
def test_heads_must_divide_the_width(d_model: int) -> None:
    AttentionSpec(heads=4).check(40)
    with pytest.raises(SpecError, match="d_model must be a multiple of 8"):
        AttentionSpec(heads=4).check(d_model)


def test_what_streams() -> None:
    assert AttentionSpec(memory_blocks=4).streams
    assert AttentionSpec(pattern="local", direction="causal").streams
    AttentionSpec(pattern="strided", memory_blocks=4).check_streaming()
    for spec, reason in (
        (AttentionSpec(direction="bidirectional"), "first frame sees the last one"),
        (AttentionSpec(pattern="dense"), "keeps every frame"),
        (AttentionSpec(), "expected memory_blocks"),
    ):
        assert not spec.streams
        with pytest.raises(SpecError, match=reason):
            spec.check_streaming()


def test_unknown_fields_and_values_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `blocks`"):
        msgspec.convert({"blocks": 8}, AttentionSpec)
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value 'axial'"):
        msgspec.convert({"pattern": "axial"}, AttentionSpec)
    spec = AttentionSpec(block=16, memory_blocks=2)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=AttentionSpec) == spec
