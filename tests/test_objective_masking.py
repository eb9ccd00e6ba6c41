"""Masks leave what the decoder meets: counted, placed and drawn as each policy says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edge_imputer.errors import ObjectiveError
from edge_imputer.train.objective.arguments import MASK
from edge_imputer.train.objective.masking import mask_alignment

POLICIES = ("block", "confidence", "bernoulli")
SEEDS = st.integers(0, 2**31 - 1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def options(policy: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"confidence": torch.rand(shape)} if policy == "confidence" else {}


def n_committed(masked: Tensor, length: int, block_size: int) -> list[tuple[int, int]]:
    """(frames, frames left open) of every block of an utterance."""
    blocks = [
        masked[start : min(start + block_size, length)] for start in range(0, length, block_size)
    ]
    return [(len(block), int(block.sum())) for block in blocks]


@settings(max_examples=150, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    lengths=st.lists(st.integers(0, 21), min_size=1, max_size=5),
    block_size=st.integers(1, 9),
    seed=SEEDS,
)
def test_what_is_not_masked_is_kept(policy, lengths, block_size, seed):
    n_frames = max(1, *lengths)
    alignment = torch.randint(0, 40, (len(lengths), n_frames), generator=seeded(seed))
    partial = mask_alignment(
        alignment,
        torch.tensor(lengths),
        policy=policy,
        block_size=block_size,
        generator=seeded(seed),
        **options(policy, alignment.shape),
    )
    assert partial.dtype == torch.int64
    assert partial.shape == alignment.shape
    kept = partial != MASK
    assert torch.equal(partial[kept], alignment[kept])
    for row, length in enumerate(lengths):
        assert not kept[row, length:].any()


@pytest.mark.parametrize("policy", ["block", "confidence"])
@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    block_size=st.integers(1, 9),
    seed=SEEDS,
)
def test_every_block_has_the_same_number_of_open_frames(policy, lengths, block_size, seed):
    alignment = torch.zeros(len(lengths), 40, dtype=torch.int64)
    partial = mask_alignment(
        alignment,
        torch.tensor(lengths),
        policy=policy,
        block_size=block_size,
        generator=seeded(seed),
        **options(policy, alignment.shape),
    )
    for row, length in zip(partial, lengths, strict=True):
        blocks = n_committed(row == MASK, length, block_size)
        if length < block_size:
            assert all(0 <= n_open <= width for width, n_open in blocks)
            continue
        n = blocks[0][1]
        assert 1 <= n <= block_size
        assert all(n_open == max(0, width - (block_size - n)) for width, n_open in blocks)


def test_block_sizes_and_places_are_uniform():
    """n over 1..3, and given n every choice of frames, equally often: 4 standard deviations."""
    n_draws = 21_000
    alignment, lengths = torch.zeros(n_draws, 6, dtype=torch.int64), torch.full((n_draws,), 6)
    partial = mask_alignment(alignment, lengths, block_size=3, generator=seeded(0))
    masked = (partial == MASK).view(n_draws, 2, 3)
    n = masked[:, 0].sum(-1)
    choice = masked.long() @ torch.tensor([1, 2, 4])
    expected = {(1, c): 1 / 9 for c in (1, 2, 4)} | {(2, c): 1 / 9 for c in (3, 5, 6)}
    expected[3, 7] = 1 / 3
    for (size, code), p in expected.items():
        for block in (0, 1):
            count = int(((n == size) & (choice[:, block] == code)).sum())
            assert abs(count - n_draws * p) < 4 * math.sqrt(n_draws * p * (1 - p))
    same = (choice[:, 0] == choice[:, 1]) & (n < 3)  # the blocks of an utterance do not follow
    p = (1 / 3) * 2 / 3
    assert abs(int(same.sum()) - n_draws * p) < 4 * math.sqrt(n_draws * p * (1 - p))


@settings(max_examples=100, deadline=None)
@given(
    length=st.integers(1, 20), block_size=st.integers(1, 6), levels=st.integers(1, 9), seed=SEEDS
)
def test_confidence_leaves_open_what_a_decoder_would(length, block_size, levels, seed):
    """It commits, one by one, the most confident frame of every block, the earlier of equals."""
    confidence = torch.randint(0, levels, (1, 20), generator=seeded(seed)) / levels
    partial = mask_alignment(
        torch.zeros(1, 20, dtype=torch.int64),
        torch.tensor([length]),
        policy="confidence",
        block_size=block_size,
        confidence=confidence,
        generator=seeded(seed),
    )
    open_now = [list(range(s, min(s + block_size, length))) for s in range(0, length, block_size)]
    left_open = []
    for _ in range(block_size):
        left_open.append(sorted(frame for block in open_now for frame in block))
        for block in open_now:
            if block:
                block.remove(max(block, key=lambda t: (float(confidence[0, t]), -t)))
    assert (partial[0, :length] == MASK).nonzero()[:, 0].tolist() in left_open


def test_confidence_takes_nan_for_the_least():
    confidence = torch.tensor([[0.1, math.nan, -math.inf, 0.2]])
    arguments = torch.zeros(1, 4, dtype=torch.int64), torch.tensor([4])
    seen = set()
    for seed in range(40):
        partial = mask_alignment(
            *arguments,
            policy="confidence",
            block_size=4,
            confidence=confidence,
            generator=seeded(seed),
        )
        seen.add(tuple((partial[0] == MASK).nonzero()[:, 0].tolist()))
    assert seen == {(2,), (1, 2), (0, 1, 2), (0, 1, 2, 3)}  # of NaN and -inf, the later one


def test_bernoulli_rates():
    alignment, lengths = torch.zeros(400, 50, dtype=torch.int64), torch.full((400,), 50)

    def share(rate: float | None) -> Tensor:
        partial = mask_alignment(
            alignment, lengths, policy="bernoulli", rate=rate, generator=seeded(1)
        )
        return (partial == MASK).double().mean(1)

    assert torch.all(share(0.0) == 0)
    assert torch.all(share(1.0) == 1)
    assert abs(float(share(0.3).mean()) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 20_000)
    drawn = share(None)  # a rate ~ U[0, 1] each: mean 1/2, variance 1/12 and 1/6 of 1/50 more
    variance = 1 / 12 + 1 / 6 / 50
    assert abs(float(drawn.mean()) - 0.5) < 4 * math.sqrt(variance / 400)
    assert float(drawn.var()) == pytest.approx(variance, rel=0.2)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_generator_alone_decides(policy):
    alignment, lengths = torch.zeros(4, 30, dtype=torch.int64), torch.tensor([30, 8, 17, 0])
    more = options(policy, alignment.shape)

    def draw(generator: torch.Generator | None) -> Tensor:
        return mask_alignment(alignment, lengths, policy=policy, generator=generator, **more)

    before = torch.get_rng_state()
    first, again, other = draw(seeded(3)), draw(seeded(3)), draw(seeded(4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    assert torch.equal(draw(None), first)  # without one, the CPU's default generator


@pytest.mark.parametrize("policy", POLICIES)
def test_smaller_integers_and_missing_alignments(policy):
    """Any integer type; the -1 of an utterance without an alignment stays MASK."""
    states = torch.tensor([[0, 1, 2, 2], [-1, -1, -1, -1]], dtype=torch.int32)
    lengths = torch.tensor([4, 4], dtype=torch.int32)
    more = options(policy, states.shape)
    partial = mask_alignment(states, lengths, policy=policy, generator=seeded(0), **more)
    wide = mask_alignment(states.long(), lengths, policy=policy, generator=seeded(0), **more)
    assert torch.equal(partial, wide)
    assert torch.all(partial[1] == MASK)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"policy": "blocks"}, "policy: expected 'block', 'confidence', 'bernoulli', got 'blocks'"),
    ({"block_size": 0}, "block_size: expected 1 frame or more, got 0"),
    ({"policy": "confidence"}, "confidence: policy 'confidence' needs it; pass Alignment"),
    ({"confidence": torch.rand(2, 5)}, "confidence: policy 'block' does not use it; leave"),
    (
        {"policy": "confidence", "confidence": torch.rand(2, 4)},
        "confidence: expected the alignment's shape and device, (2, 5) on cpu, got (2, 4)",
    ),
    (
        {"policy": "confidence", "confidence": torch.zeros(2, 5, dtype=torch.int64)},
        "confidence: expected a tensor of floats, got torch.int64",
    ),
    ({"rate": 0.5}, "rate: policy 'block' does not use it; leave it out"),
    ({"policy": "bernoulli", "rate": 1.5}, "rate: expected a probability, 0..1, got 1.5"),
    ({"policy": "bernoulli", "rate": math.nan}, "rate: expected a probability, 0..1, got nan"),
    ({"alignment": torch.rand(2, 5)}, "alignment: expected a tensor of integers, got torch.fl"),
    ({"alignment": [[1, 2]]}, "alignment: expected a tensor of integers, got list"),
    (
        {"alignment": torch.zeros(3, 2, 5, dtype=torch.int64)},
        "alignment: expected (batch, frames), got (3, 2, 5); flatten samples with",
    ),
    ({"input_lengths": torch.tensor([5])}, "input_lengths: expected shape (2,), got (1,)"),
    ({"input_lengths": torch.tensor([5, 6])}, "input_lengths: 6 at [1] is outside 0..5"),
]


@pytest.mark.parametrize(("changed", "message"), BAD)
def test_bad_arguments_are_refused(changed, message):
    arguments = {
        "alignment": torch.zeros(2, 5, dtype=torch.int64),
        "input_lengths": torch.tensor([5, 3]),
    }
    with pytest.raises(ObjectiveError) as refused:
        mask_alignment(**(arguments | changed))
    assert str(refused.value).startswith(message)
