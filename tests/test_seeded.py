"""What is drawn for an utterance depends on its seed: not on its batch, padding or device."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edge_imputer.errors import ObjectiveError
from edge_imputer.train.layers.dropout import seeded_dropout
from edge_imputer.train.objective import MASK, mask_alignment, sample_alignment
from edge_imputer.train.objective.seeded import random_bits, random_uniform

SEEDS = st.integers(-(2**63), 2**63 - 1)
POLICIES = ("block", "confidence", "bernoulli")


def unsigned(bits: Tensor) -> list[int]:
    return [value % 2**64 for value in bits.flatten().tolist()]


def splitmix64(start: int, n: int) -> list[int]:
    """The generator as published (Steele, Lea and Flood 2014, figure 17), in whole numbers."""
    out = []
    for _ in range(n):
        start = (start + 0x9E3779B97F4A7C15) % 2**64
        out.append(mix(start))
    return out


def mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_the_reference_is_splitmix64() -> None:
    # The first outputs from seed 1234567 that implementations publish as their test.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert splitmix64(1234567, 3) == expected


@given(SEEDS, st.integers(0, 40))
def test_bits_are_splitmix64s(seed: int, stream: int) -> None:
    start = mix((seed % 2**64) ^ mix(0x9E3779B97F4A7C15 * (stream + 1) % 2**64))
    bits = random_bits(torch.tensor([seed]), stream, (3, 2))
    assert unsigned(bits) == splitmix64(start, 6)


def test_numbers_are_uniform_and_independent() -> None:
    seeds = torch.arange(200)  # neighbours, as a counter gives them
    x = random_uniform(seeds, 0, (500,), torch.float64)
    y = random_uniform(seeds, 1, (500,), torch.float64)
    assert 0 <= x.min() < 1e-4
    assert 1 - 1e-4 < x.max() < 1
    counts = torch.histc(x.float(), 20, 0, 1)  # 5,000 each; 5 standard deviations are 345
    assert (counts - 5000).abs().max() < 345
    # Correlations over 99,000 pairs or more; 5 standard deviations are 0.016.
    for a, b in ((x, y), (x[1:], x[:-1]), (x[:, 1:], x[:, :-1])):
        pair = torch.stack([a.flatten(), b.flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 0.016


@given(st.lists(SEEDS, min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 9))
def test_longer_draws_begin_alike(seeds: list[int], n: int, more: int) -> None:
    long = random_uniform(torch.tensor(seeds), 5, (n + more, 3))
    short = random_uniform(torch.tensor(seeds[:1]), 5, (n, 3))
    assert torch.equal(long[:1, :n], short)


UTTERANCES = st.lists(st.tuples(SEEDS, st.integers(0, 21)), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(UTTERANCES, st.sampled_from(POLICIES), st.integers(1, 9), st.integers(0, 11), st.data())
def test_masks_are_an_utterances_own(
    utterances: list[tuple[int, int]], policy: str, block: int, padding: int, data: st.DataObject
) -> None:
    seeds = torch.tensor([seed for seed, _ in utterances])
    lengths = torch.tensor([length for _, length in utterances])
    n = int(lengths.max()) + padding
    alignment = torch.randint(0, 9, (len(seeds), n))
    confidence = torch.randn(len(seeds), n)

    def masked(rows: slice, n: int) -> Tensor:
        known = confidence[rows, :n] if policy == "confidence" else None
        return mask_alignment(
            alignment[rows, :n],
            lengths[rows],
            policy=policy,
            block_size=block,
            confidence=known,
            seeds=seeds[rows],
        )

    together = masked(slice(None), n)
    cut = data.draw(st.integers(0, len(seeds)))  # as two processes would have them
    assert torch.equal(torch.cat([masked(slice(cut), n), masked(slice(cut, None), n)]), together)
    for i, length in enumerate(lengths.tolist()):
        alone = masked(slice(i, i + 1), length)
        assert torch.equal(together[i, :length], alone[0])
        assert (together[i, length:] == MASK).all()


@pytest.mark.parametrize("policy", ["block", "confidence"])
def test_seeded_masks_leave_every_number_of_frames_open(policy: str) -> None:
    """Every number of 1..block_size equally often, and random places under "block"."""
    seeds = torch.arange(4000)
    alignment = torch.zeros(4000, 16, dtype=torch.long)
    confidence = torch.arange(16.0).expand(4000, -1) if policy == "confidence" else None
    lengths = torch.full((4000,), 16)
    partial = mask_alignment(
        alignment, lengths, policy=policy, confidence=confidence, block_size=8, seeds=seeds
    )
    is_open = (partial == MASK).view(4000, 2, 8)
    n_open = is_open.sum(-1)
    assert (n_open[:, 0] == n_open[:, 1]).all()
    counts = n_open[:, 0].bincount(minlength=9)
    assert counts[0] == 0
    assert (counts[1:] - 500).abs().max() < 5 * 21  # 5 standard deviations
    if policy == "block":
        share = is_open.float().mean(0)  # 4.5 of 8 at every place
        assert (share - 4.5 / 8).abs().max() < 5 * 0.008
        assert (is_open[:, 0] != is_open[:, 1]).any(-1).float().mean() > 0.7


def test_seeds_and_a_generator_contradict() -> None:
    alignment, lengths = torch.zeros(2, 8, dtype=torch.long), torch.tensor([8, 8])
    with pytest.raises(ObjectiveError, match="or a generator, got both"):
        mask_alignment(alignment, lengths, seeds=torch.tensor([1, 2]), generator=torch.Generator())
    with pytest.raises(ObjectiveError, match=r"seeds: expected shape \(2,\), got \(3,\)"):
        mask_alignment(alignment, lengths, seeds=torch.arange(3))
    with pytest.raises(ObjectiveError, match="seeds: expected int32 or int64, got"):
        mask_alignment(alignment, lengths, seeds=torch.rand(2))


@settings(max_examples=25, deadline=None)
@given(UTTERANCES, st.integers(0, 5), st.sampled_from([None, 3]))
def test_samples_are_an_utterances_own(
    utterances: list[tuple[int, int]], padding: int, n_samples: int | None
) -> None:
    seeds = torch.tensor([seed for seed, _ in utterances])
    lengths = torch.tensor([length for _, length in utterances])
    n = int(lengths.max()) + padding
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(len(seeds), max(1, n), 4, generator=generator, dtype=torch.float64)
    targets = torch.tensor([[1, 2, 1]]).expand(len(seeds), -1)
    sizes = (lengths // 3).clamp(max=3)
    together = sample_alignment(
        logits, targets, lengths, sizes, seeds=seeds, n_samples=n_samples
    ).states
    for i, length in enumerate(lengths.tolist()):
        alone = sample_alignment(
            logits[i : i + 1, : max(1, length)],
            targets[i : i + 1],
            lengths[i : i + 1],
            sizes[i : i + 1],
            seeds=seeds[i : i + 1],
            n_samples=n_samples,
        ).states
        assert torch.equal(together[..., i, :length], alone[..., 0, :length])


def test_seeded_samples_follow_the_posterior() -> None:
    """One token in three even frames: its 6 places are equally likely."""
    n = 6000
    states = sample_alignment(
        torch.zeros(n, 3, 2),
        torch.ones(n, 1, dtype=torch.long),
        torch.full((n,), 3),
        torch.ones(n, dtype=torch.long),
        seeds=torch.arange(n),
    ).tokens
    _, counts = torch.unique(states, dim=0, return_counts=True)
    assert len(counts) == 6
    assert (counts - 1000).abs().max() < 5 * 29


@settings(max_examples=30, deadline=None)
@given(st.lists(SEEDS, min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 9))
def test_dropout_is_an_utterances_own(seeds: list[int], n_frames: int, width: int) -> None:
    x = torch.ones(len(seeds), n_frames + 3, width)
    together = seeded_dropout(x, 0.4, torch.tensor(seeds), 7)
    alone = seeded_dropout(x[-1:, :n_frames], 0.4, torch.tensor(seeds[-1:]), 7)
    assert torch.equal(together[-1:, :n_frames], alone)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    x = torch.ones(64, 100, 50)  # 320,000 numbers; 5 standard deviations of a share are 0.005
    for rate in (0.1, 0.5, 0.9):
        out = seeded_dropout(x, rate, torch.arange(64), 0)
        assert abs((out == 0).float().mean() - rate) < 0.005
        assert torch.allclose(out[out != 0], torch.tensor(1 / (1 - rate)))
        assert not torch.equal(out, seeded_dropout(x, rate, torch.arange(64), 1))
    assert seeded_dropout(x, 0.0, torch.arange(64), 0) is x


def test_dropouts_gradient_is_its_mask() -> None:
    x = torch.randn(3, 4, 5, requires_grad=True)
    out = seeded_dropout(x, 0.5, torch.arange(3), 0)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, 2 * (out != 0).float())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same() -> None:
    seeds = torch.arange(-5, 5) * 2**59 + 3
    assert torch.equal(random_bits(seeds, 3, (7, 5)), random_bits(seeds.cuda(), 3, (7, 5)).cpu())
    x = torch.randn(10, 7, 6)
    out = seeded_dropout(x.cuda(), 0.3, seeds.cuda(), 2).cpu()
    assert torch.equal(out, seeded_dropout(x, 0.3, seeds, 2))
    lengths, alignment = torch.full((10,), 40), torch.zeros(10, 40, dtype=torch.long)
    for policy in ("block", "bernoulli"):
        ours = mask_alignment(alignment, lengths, policy=policy, seeds=seeds)
        theirs = mask_alignment(alignment.cuda(), lengths.cuda(), policy=policy, seeds=seeds.cuda())
        assert torch.equal(ours, theirs.cpu())
