"""The imitation loss is the loss of one alignment, and the Imputer loss never exceeds it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edge_imputer.errors import ObjectiveError
from edge_imputer.train.objective.alignment import best_alignment, sample_alignment
from edge_imputer.train.objective.arguments import MASK
from edge_imputer.train.objective.imitation import imitation_loss
from edge_imputer.train.objective.lattice import loss_and_gradient

from .objective_cases import problems, random_problem, truth_of

SEEDS = st.integers(0, 2**32 - 1)
BOTH = pytest.mark.parametrize("states", [False, True], ids=["token", "state"])


def test_is_the_cross_entropy_of_open_frames():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 9, 5, generator=generator, dtype=torch.float64).requires_grad_()
    tokens = torch.randint(0, 5, (3, 9), generator=generator)
    lengths = torch.tensor([9, 4, 0])
    masked = torch.rand(3, 9, generator=generator) < 0.6
    counted = masked & (torch.arange(9) < lengths[:, None])
    spelled = [len(collapsed(row[:n])) for row, n in zip(tokens, lengths.tolist(), strict=True)]
    losses = imitation_loss(
        logits,
        tokens,
        tokens.masked_fill(masked, MASK),
        lengths,
        torch.tensor(spelled),
        reduction="none",
    )
    per_frame = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
    expected = (per_frame * counted).sum(1)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    weights = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(x @ weights, logits)[0] for x in (losses, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    assert torch.all(ours[~counted] == 0)


def collapsed(tokens: Tensor) -> list[int]:
    merged = tokens.unique_consecutive().tolist()
    return [token for token in merged if token != 0]


@BOTH
@settings(max_examples=80, deadline=None)
@given(seed=SEEDS)
def test_imputer_loss_never_exceeds_it(states, seed):
    """For the best alignment and every sample; they are equal where there is one alignment."""
    problem = random_problem(np.random.default_rng(seed), states=states)
    lengths, sizes = problem.input_lengths, problem.target_lengths
    given_: dict[str, Any] = {"partial_alignment": problem.partial, "blank_id": problem.blank_id}
    batch = problem.logits, problem.targets, lengths, sizes
    semantics = "state" if states else "token"
    imputer, gradient = loss_and_gradient(problem, need_gradient=True)
    samples = sample_alignment(*batch, **given_, semantics=semantics, n_samples=4)
    best = best_alignment(*batch, **given_, semantics=semantics)
    for tokens in (best.tokens, *samples.tokens):
        logits = problem.logits.clone().requires_grad_()
        imitation = imitation_loss(
            logits,
            tokens,
            problem.partial,
            lengths,
            sizes,
            blank_id=problem.blank_id,
            reduction="none",
            semantics=semantics,
        )
        assert torch.all(imputer <= imitation.detach() + 1e-12)
        assert torch.equal(imputer.isinf(), imitation.isinf())
        (imitation_gradient,) = torch.autograd.grad(imitation.sum(), logits)
        for row in range(len(tokens)):
            if len(truth_of(problem, row).paths) == 1:
                torch.testing.assert_close(imitation[row].detach(), imputer[row])
                assert gradient is not None
                torch.testing.assert_close(imitation_gradient[row], gradient[row])


def test_gradcheck():
    for problem in problems(21, 24):
        best = best_alignment(
            problem.logits,
            problem.targets,
            problem.input_lengths,
            problem.target_lengths,
            partial_alignment=problem.partial,
            blank_id=problem.blank_id,
        )
        finite = (best.log_prob > -torch.inf).nonzero()[:, 0]
        rows = best.tokens[finite], problem.partial[finite]
        lengths = problem.input_lengths[finite], problem.target_lengths[finite]
        for reduction in ("mean", "sum"):
            loss = functools.partial(
                imitation_loss,
                alignment=rows[0],
                partial_alignment=rows[1],
                input_lengths=lengths[0],
                target_lengths=lengths[1],
                blank_id=problem.blank_id,
                reduction=reduction,
            )
            assert torch.autograd.gradcheck(loss, problem.logits[finite].requires_grad_())


def test_reductions_are_those_of_ctc_loss():
    """One frame a token and no room for a blank: the CTC sum has this one alignment."""
    logits = torch.randn(2, 3, 5)
    tokens, lengths = torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1])
    for reduction in ("none", "sum", "mean"):
        ours = imitation_loss(logits, tokens, None, lengths, lengths, reduction=reduction)
        log_probs = logits.log_softmax(-1).transpose(0, 1)
        theirs = F.ctc_loss(log_probs, tokens, lengths, lengths, reduction=reduction)
        torch.testing.assert_close(ours, theirs)


def test_a_target_that_does_not_fit_is_not_learnt():
    """best_alignment answers it with blanks; they do not spell it."""
    logits = torch.randn(2, 2, 3, requires_grad=True)
    targets, lengths = torch.tensor([[1, 2, 1], [1, 0, 0]]), torch.tensor([2, 2])
    sizes = torch.tensor([3, 1])
    best = best_alignment(logits, targets, lengths, sizes)
    batch = logits, best.tokens, None, lengths, sizes
    losses = imitation_loss(*batch, reduction="none")
    assert losses.isinf().tolist() == [True, False]
    losses.square().sum().backward()
    assert logits.grad is not None
    assert torch.all(logits.grad[0] == 0)
    assert torch.all(logits.grad[1].isfinite())
    assert imitation_loss(*batch, zero_infinity=True, reduction="none")[0] == 0
    mean = imitation_loss(*batch, zero_infinity=True)
    assert mean.item() == pytest.approx(losses[1].item() / 2)


@pytest.mark.parametrize("semantics", ["token", "state"])
def test_an_alignment_that_contradicts_what_is_known_is_not_learnt(semantics):
    tokens, lengths = torch.tensor([[1, 1, 0], [1, 1, 0]]), torch.tensor([3, 3])
    known = torch.tensor([[MASK, 1, MASK], [MASK, MASK, MASK]])
    wrong = known.clone()
    wrong[0, 1] = 0  # a blank, or the first blank
    for partial, infinite in ((known, False), (wrong, True)):
        losses = imitation_loss(
            torch.zeros(2, 3, 3),
            tokens,
            partial,
            lengths,
            torch.tensor([1, 1]),
            reduction="none",
            semantics=semantics,
        )
        assert losses.isinf().tolist() == [infinite, False]


def test_frames_that_do_not_count_may_hold_anything():
    """NaN past the end and under filled-in frames: no trace in the loss or the gradient."""
    clean = torch.randn(2, 4, 3)
    dirty = clean.clone()
    dirty[0, 3], dirty[1, 1] = torch.nan, torch.nan
    tokens = torch.tensor([[1, 1, 2, 77], [1, 0, 2, 2]])
    partial = torch.tensor([[MASK, MASK, MASK, MASK], [MASK, 0, MASK, MASK]])
    lengths = torch.tensor([3, 4]), torch.tensor([2, 2])
    results = []
    for values in (clean, dirty):
        logits = values.requires_grad_()
        loss = imitation_loss(logits, tokens, partial, *lengths)
        results.append((loss.detach(), *torch.autograd.grad(loss, logits)))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.all(results[1][1][0, 3] == 0)
    assert torch.all(results[1][1][1, 1] == 0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_logits_in_open_frames_are_nan(bad):
    logits = torch.randn(2, 3, 3)
    logits[0, 1, 2] = bad
    tokens, lengths = torch.tensor([[1, 1, 0], [1, 1, 0]]), torch.tensor([3, 3])
    losses = imitation_loss(logits, tokens, None, lengths, torch.tensor([1, 1]), reduction="none")
    assert losses.isnan().tolist() == [True, False]


def test_a_token_of_probability_zero_makes_it_infinite():
    logits = torch.zeros(1, 2, 3)
    logits[0, 0, 1] = -torch.inf
    tokens = torch.tensor([[1, 2]])
    lengths = torch.tensor([2]), torch.tensor([2])
    logits.requires_grad_()
    loss = imitation_loss(logits, tokens, None, *lengths)
    loss.backward()
    assert loss.item() == torch.inf
    assert logits.grad is not None
    assert torch.all(logits.grad == 0)


def test_float16_is_computed_in_float32_and_scaled_without_overflow():
    logits = torch.randn(1, 3, 4).half().requires_grad_()
    tokens, lengths = torch.tensor([[1, 2, 3]]), torch.tensor([3])
    loss = imitation_loss(logits, tokens, None, lengths, lengths)
    wide = imitation_loss(logits.detach().float(), tokens, None, lengths, lengths)
    assert torch.equal(loss.detach(), wide)
    (gradient,) = torch.autograd.grad(loss * 2.0**17 / 16, logits)
    assert gradient.dtype == torch.float16
    assert torch.all(gradient.isfinite())


def test_no_frame_counts_where_all_are_known():
    tokens, lengths = torch.tensor([[1, 0, 2]]), (torch.tensor([3]), torch.tensor([2]))
    assert imitation_loss(torch.randn(1, 3, 4), tokens, tokens, *lengths).item() == 0


BAD: list[tuple[dict[str, Any], str]] = [
    ({"reduction": "max"}, "reduction: expected 'mean', 'sum' or 'none', got 'max'"),
    ({"logits": torch.zeros(4, 3)}, "logits: expected (batch, frames, tokens)"),
    ({"alignment": torch.zeros(2, 4)}, "alignment: expected int32 or int64, got torch.float32"),
    (
        {"alignment": torch.zeros(2, 3, dtype=torch.int64)},
        "alignment: expected shape (2, 4), got (2, 3)",
    ),
    (
        {"alignment": torch.tensor([[1, 1, 1, 1], [1, MASK, 1, 1]])},
        "alignment: token -1 at [1, 1] is outside 0..2",
    ),
    ({"input_lengths": torch.tensor([4, 5])}, "input_lengths: 5 at [1] is outside 0..4"),
    ({"target_lengths": torch.tensor([1])}, "target_lengths: expected shape (2,), got (1,)"),
    (
        {"partial_alignment": torch.zeros(2, 5, dtype=torch.int64)},
        "partial_alignment: expected shape (2, 4), got (2, 5)",
    ),
]


@pytest.mark.parametrize(("changed", "message"), BAD)
def test_bad_arguments_are_refused(changed, message):
    good = {
        "logits": torch.zeros(2, 4, 3),
        "alignment": torch.ones(2, 4, dtype=torch.int64),
        "partial_alignment": None,
        "input_lengths": torch.tensor([4, 4]),
        "target_lengths": torch.tensor([1, 1]),
    }
    with pytest.raises(ObjectiveError) as refused:
        imitation_loss(**(good | changed))
    assert str(refused.value).startswith(message)
