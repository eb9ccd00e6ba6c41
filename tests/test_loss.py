"""The DP loss equals enumeration, and has the properties the paper gives it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_imputer.train.alignment import mask_blocks, viterbi_alignment
from edge_imputer.train.loss import imputer_loss

from .brute_force import alignments, collapse, path_log_prob


@st.composite
def cases(draw: st.DrawFn):
    """(log_probs (T, V), target, partial alignment with None where open)."""
    n_frames, vocabulary = draw(st.integers(1, 5)), draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    log_probs = np.log(rng.dirichlet(np.ones(vocabulary), n_frames))
    target = draw(st.lists(st.integers(1, vocabulary - 1), max_size=3))
    partial = draw(
        st.lists(
            st.one_of(st.none(), st.none(), st.integers(0, vocabulary - 1)),
            min_size=n_frames,
            max_size=n_frames,
        )
    )
    return log_probs, target, partial


def loss_of(log_probs, target, partial):
    mask_id = log_probs.shape[1]
    tokens = [mask_id if p is None else p for p in partial]
    return imputer_loss(
        log_probs.unsqueeze(0),
        torch.tensor([tokens]),
        torch.tensor([target or [1]]),
        torch.tensor([len(partial)]),
        torch.tensor([len(target)]),
        mask_id=mask_id,
    )[0]


@settings(max_examples=150, deadline=None)
@given(cases())
def test_loss_equals_enumeration(case):
    log_probs, target, partial = case
    paths = list(alignments(*log_probs.shape, target, partial))
    loss = float(loss_of(torch.from_numpy(log_probs), target, partial))
    if not paths:  # no alignment can explain it: no loss, no gradient
        assert loss == 0.0
        return
    expected = -np.logaddexp.reduce([path_log_prob(log_probs, p, partial) for p in paths])
    assert loss == pytest.approx(expected, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_gradient_is_right_and_zero_on_filled_frames(case):
    log_probs, target, partial = case
    assume(any(True for _ in alignments(*log_probs.shape, target, partial)))
    logits = torch.from_numpy(log_probs).requires_grad_()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return loss_of(x.log_softmax(-1), target, partial)

    assert torch.autograd.gradcheck(loss, logits)
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    filled = torch.tensor([p is not None for p in partial])
    assert torch.all(gradient[filled] == 0)


def test_all_open_is_ctc():
    torch.manual_seed(0)
    log_probs = torch.randn(3, 12, 5).log_softmax(-1)
    targets = torch.randint(1, 5, (3, 4))
    lengths, target_lengths = torch.tensor([12, 9, 10]), torch.tensor([4, 2, 0])
    ours = imputer_loss(
        log_probs, torch.full((3, 12), 5), targets, lengths, target_lengths, mask_id=5
    )
    theirs = F.ctc_loss(
        log_probs.transpose(0, 1), targets, lengths, target_lengths, reduction="none"
    )
    assert torch.equal(ours, theirs)


def test_token_level_not_state_level_consistency():
    """y = [a], T = 3, middle frame blank, p = 1/2: a blank before or after 'a' both count."""
    log_probs = torch.full((3, 2), 0.5, dtype=torch.float64).log()
    assert float(loss_of(log_probs, [1], [None, 0, None]).neg().exp()) == pytest.approx(0.5)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_viterbi_finds_the_best_alignment(case):
    log_probs, target, _ = case
    open_everywhere = [None] * len(log_probs)
    paths = list(alignments(*log_probs.shape, target, open_everywhere))
    alignment, score = viterbi_alignment(
        torch.from_numpy(log_probs)[None],
        torch.tensor([target or [1]]),
        torch.tensor([len(log_probs)]),
        torch.tensor([len(target)]),
    )
    if not paths:
        assert score.item() == -np.inf
        return
    best = max(path_log_prob(log_probs, p, open_everywhere) for p in paths)
    assert score.item() == pytest.approx(best, abs=1e-9)
    assert collapse(alignment[0].tolist()) == target
    assert path_log_prob(log_probs, alignment[0].tolist(), open_everywhere) == pytest.approx(best)


def test_viterbi_in_a_batch_equals_alone():
    torch.manual_seed(1)
    log_probs = torch.randn(4, 16, 5).log_softmax(-1)
    targets = torch.randint(1, 5, (4, 4))
    lengths, target_lengths = torch.tensor([16, 8, 12, 9]), torch.tensor([4, 2, 0, 3])
    together, scores = viterbi_alignment(log_probs, targets, lengths, target_lengths)
    for row, (n, s) in enumerate(zip(lengths.tolist(), target_lengths.tolist(), strict=True)):
        alone, score = viterbi_alignment(
            log_probs[row : row + 1, :n],
            targets[row : row + 1, : max(1, s)],
            torch.tensor([n]),
            torch.tensor([s]),
        )
        assert torch.equal(together[row, :n], alone[0])
        assert torch.all(together[row, n:] == 0)
        assert torch.equal(scores[row], score[0])


def test_dp_loss_never_exceeds_imitation_loss():
    """The Viterbi alignment is one of the summed paths (Chan et al. 2020, section 3.2)."""
    torch.manual_seed(2)
    log_probs = torch.randn(8, 16, 5, dtype=torch.float64).log_softmax(-1)
    targets = torch.randint(1, 5, (8, 4))
    lengths, target_lengths = torch.full((8,), 16), torch.full((8,), 4)
    best, _ = viterbi_alignment(log_probs, targets, lengths, target_lengths)
    partial = mask_blocks(best, 8, mask_id=5)
    dp = imputer_loss(log_probs, partial, targets, lengths, target_lengths, mask_id=5)
    chosen = log_probs.gather(2, best.unsqueeze(-1)).squeeze(-1)
    imitation = -(chosen * (partial == 5)).sum(1)
    assert torch.all(dp <= imitation + 1e-12)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 8), st.integers(0, 2**31 - 1))
@settings(max_examples=50, deadline=None)
def test_mask_blocks_opens_the_same_number_in_every_block(batch, n_blocks, block, seed):
    alignment = torch.randint(0, 5, (batch, n_blocks * block))
    partial = mask_blocks(
        alignment, block, mask_id=9, generator=torch.Generator().manual_seed(seed)
    )
    opened = (partial == 9).view(batch, n_blocks, block).sum(-1)
    assert torch.all(opened == opened[:, :1])
    assert torch.all((opened >= 1) & (opened <= block))
    kept = partial != 9
    assert torch.equal(partial[kept], alignment[kept])
