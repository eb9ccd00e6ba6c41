"""The lattice in plain torch: its losses and gradients are those of enumeration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edge_imputer.train.objective.arguments import MASK, Problem
from edge_imputer.train.objective.lattice import (
    lattice_loss,
    loss_and_gradient,
    sample_states,
    viterbi_states,
)

from .objective_cases import problems, random_problem, truth

BOTH = pytest.mark.parametrize("states", [False, True], ids=["token", "state"])
SEEDS = st.integers(0, 2**32 - 1)


def both(problem: Problem) -> tuple[Tensor, Tensor]:
    loss, gradient = loss_and_gradient(problem, need_gradient=True)
    assert gradient is not None
    return loss, gradient


def long_problem(
    dtype: torch.dtype, shape: tuple[int, int, int, int], scale: float = 2.0
) -> Problem:
    batch, n_frames, n_tokens, n_targets = shape
    rng = torch.Generator().manual_seed(2)
    return Problem(
        scale * torch.randn(batch, n_frames, n_tokens, generator=rng, dtype=dtype),
        torch.randint(1, n_tokens, (batch, n_targets), generator=rng),
        torch.full((1, 1), MASK).expand(batch, n_frames),
        torch.full((batch,), n_frames),
        torch.full((batch,), n_targets),
    )


@BOTH
def test_losses_and_gradients_equal_enumeration(states):
    n_infinite = n_finite = 0
    for problem in problems(1, 1280, states=states):
        logits = problem.logits.requires_grad_()
        loss = lattice_loss(problem.with_logits(logits))
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        expected, expected_gradient = truth(problem)
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12)
        assert torch.all(gradient[~problem.frame_is_open()] == 0)
        assert torch.all(gradient[expected == torch.inf] == 0)
        n_infinite += int((expected == torch.inf).sum())
        n_finite += int((expected < torch.inf).sum())
    assert n_finite >= 1000
    assert n_infinite >= 75


@BOTH
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)],
    ids=["float32", "float16", "bfloat16"],
)
def test_smaller_floats_are_summed_in_float32(states, dtype, tolerance):
    """The loss is that of the rounded logits; their gradient is rounded once, at the end."""
    for problem in problems(2, 200, states=states):
        rounded = problem.with_logits(problem.logits.to(dtype))
        loss, gradient = both(rounded)
        expected, expected_gradient = truth(rounded)
        assert loss.dtype == torch.float32
        assert gradient.dtype == dtype
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=0, atol=tolerance)


@BOTH
def test_gradcheck(states):
    n_checked = 0
    for problem in problems(3, 80, states=states):
        finite = (truth(problem)[0] < torch.inf).nonzero()[:, 0]
        n_checked += len(finite)

        def loss(logits: Tensor, problem: Problem = problem, rows: Tensor = finite) -> Tensor:
            return lattice_loss(problem.with_logits(logits))[rows]

        assert torch.autograd.gradcheck(loss, problem.logits.requires_grad_())
    assert n_checked > 40


def test_all_open_is_ctc():
    problem = long_problem(torch.float64, (3, 40, 7, 9))
    lengths, sizes = torch.tensor([40, 25, 31]), torch.tensor([9, 4, 0])
    problem = Problem(problem.logits, problem.targets, problem.partial, lengths, sizes)
    logits = problem.logits.requires_grad_()
    ours = lattice_loss(problem.with_logits(logits))
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    theirs = F.ctc_loss(log_probs, problem.targets, lengths, sizes, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(x.sum(), logits)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_token_and_state_semantics_differ():
    """y = [a], T = 3, p = 1/2: a blank in the middle is before or after 'a', or before it."""
    arguments = torch.tensor([[1]]), torch.tensor([[MASK, 0, MASK]]), torch.tensor([3])
    half = torch.zeros(1, 3, 2)
    token = lattice_loss(Problem(half, *arguments, torch.tensor([1])))
    state = lattice_loss(Problem(half, *arguments, torch.tensor([1]), states=True))
    assert token.neg().exp().item() == pytest.approx(0.5)
    assert state.neg().exp().item() == pytest.approx(0.25)


@BOTH
def test_what_lies_past_a_length_is_not_read(states):
    for problem in problems(4, 160, states=states):
        outside = ~problem.frame_is_inside()
        place = torch.arange(problem.targets.shape[1])
        garbage = Problem(
            problem.logits.masked_fill(outside.unsqueeze(-1), torch.nan),
            problem.targets.masked_fill(place >= problem.target_lengths[:, None], -5),
            torch.where(outside, torch.randint(-3, 9, outside.shape), problem.partial),
            problem.input_lengths,
            problem.target_lengths,
            problem.blank_id,
            states,
        )
        for clean, dirty in zip(both(problem), both(garbage), strict=True):
            assert torch.equal(clean, dirty)


@BOTH
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_an_utterance_does_not_feel_its_batch(states, seed):
    """Alone, without padding, or in a batch of another order: the same loss and gradient."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, batch=6, states=states)
    loss, gradient = both(problem)
    row = int(rng.integers(6))
    length = max(1, int(problem.input_lengths[row]))
    size = int(problem.target_lengths[row])
    alone = Problem(
        problem.logits[row : row + 1, :length],
        problem.targets[row : row + 1, :size],
        problem.partial[row : row + 1, :length],
        problem.input_lengths[row : row + 1],
        problem.target_lengths[row : row + 1],
        problem.blank_id,
        states,
    )
    alone_loss, alone_gradient = both(alone)
    torch.testing.assert_close(alone_loss, loss[row : row + 1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(alone_gradient[0], gradient[row, :length], rtol=0, atol=1e-12)

    order = torch.from_numpy(rng.permutation(6))
    permuted = Problem(
        problem.logits[order],
        problem.targets[order],
        problem.partial[order],
        problem.input_lengths[order],
        problem.target_lengths[order],
        problem.blank_id,
        states,
    )
    for moved, still in zip(both(permuted), both(problem), strict=True):
        torch.testing.assert_close(moved, still[order], rtol=1e-12, atol=1e-12)


@BOTH
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_filling_in_a_frame_in_every_way_splits_the_sum(states, seed):
    """exp(-loss) is the sum of p(v) exp(-loss of v filled in), over the tokens or states v."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, batch=1, states=states)
    is_open = problem.frame_is_open()[0].nonzero()[:, 0]
    if not len(is_open):
        return
    frame = int(rng.choice(is_open.numpy()))
    p = problem.logits[0, frame].softmax(-1)
    size = int(problem.target_lengths[0])
    target = problem.targets[0, :size].tolist()
    of_state = [problem.blank_id] + [v for t in target for v in (t, problem.blank_id)]
    values = list(enumerate(of_state)) if states else [(v, v) for v in range(len(p))]
    total = 0.0
    for value, token in values:
        partial = problem.partial.clone()
        partial[0, frame] = value
        filled = Problem(
            problem.logits,
            problem.targets,
            partial,
            problem.input_lengths,
            problem.target_lengths,
            problem.blank_id,
            states,
        )
        total += float(p[token] * lattice_loss(filled)[0].neg().exp())
    assert total == pytest.approx(float(lattice_loss(problem)[0].neg().exp()), rel=1e-9)


@BOTH
def test_gradient_rows_sum_to_zero_in_float32(states):
    for problem in problems(5, 80, states=states):
        _, gradient = both(problem.with_logits(problem.logits.float()))
        assert gradient.sum(-1).abs().max() < 1e-6


@BOTH
def test_logits_of_minus_infinity_are_probabilities_of_zero(states):
    rng = np.random.default_rng(6)
    n_finite = 0
    for problem in problems(6, 240, states=states):
        never = torch.from_numpy(rng.random(problem.logits.shape) < 0.2)
        never[..., 0] = False  # every frame can be something
        problem = problem.with_logits(problem.logits.masked_fill(never, -torch.inf))
        loss, gradient = both(problem)
        expected, expected_gradient = truth(problem)
        n_finite += int((expected < torch.inf).sum())
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12)
    assert n_finite > 60


@BOTH
@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=["nan", "inf"])
def test_bad_logits_spoil_their_own_utterance_or_nothing(states, bad):
    n_spoilt = 0
    for problem in problems(7, 80, states=states):
        clean_loss, clean_gradient = both(problem)
        is_open, is_inside = problem.frame_is_open(), problem.frame_is_inside()
        logits = problem.logits.clone()
        logits[..., -1].masked_fill_(is_inside & ~is_open, bad)  # filled-in frames are not read
        spoilt = torch.zeros(len(logits), dtype=torch.bool)
        for row in (0, 3):
            frames = is_open[row].nonzero()[:, 0]
            if len(frames):
                logits[row, frames[-1], 0] = bad
                spoilt[row] = True
        n_spoilt += int(spoilt.sum())
        loss, gradient = both(problem.with_logits(logits))
        assert torch.equal(loss.isnan(), spoilt)
        assert torch.equal(gradient.isnan().all(-1), spoilt[:, None] & is_open)
        assert torch.equal(gradient.isnan().any(-1), spoilt[:, None] & is_open)
        assert torch.equal(loss[~spoilt], clean_loss[~spoilt])
        assert torch.equal(gradient[~spoilt], clean_gradient[~spoilt])
    assert n_spoilt > 8


def test_infinite_losses_have_no_gradient_whatever_is_done_to_them():
    logits = torch.randn(2, 2, 3, dtype=torch.float64).requires_grad_()
    targets, open_ = torch.tensor([[1, 2, 1], [1, 2, 1]]), torch.full((2, 2), MASK)
    problem = Problem(logits, targets, open_, torch.tensor([2, 2]), torch.tensor([3, 1]))
    loss = lattice_loss(problem)
    loss.square().sum().backward()  # its derivative at infinity is infinite
    assert loss.isinf().tolist() == [True, False]
    assert logits.grad is not None
    assert torch.all(logits.grad[0] == 0)
    assert torch.all(logits.grad[1].isfinite())


def test_loss_scales_do_not_overflow_float16():
    problem = long_problem(torch.float16, (1, 12, 5, 4))
    logits = problem.logits.requires_grad_()
    (lattice_loss(problem.with_logits(logits)).sum() * 2.0**17).backward()
    assert logits.grad is not None
    _, gradient = both(problem)
    expected = gradient.float() * 2.0**17
    fits = expected.abs() < 6e4
    torch.testing.assert_close(logits.grad.float()[fits], expected[fits], rtol=1e-3, atol=0)
    assert fits.any()


def test_time_first_logits_are_views():
    problem = long_problem(torch.float64, (3, 20, 6, 5))
    time_first = problem.logits.transpose(0, 1).contiguous().transpose(0, 1)
    assert not time_first.is_contiguous()
    for ours, theirs in zip(both(problem.with_logits(time_first)), both(problem), strict=True):
        assert torch.equal(ours, theirs)


def test_float32_stays_exact_over_many_frames():
    """Long targets and a short one beside them; torch's ctc_loss is 1e-2 off."""
    single = long_problem(torch.float32, (2, 1500, 32, 200), scale=0.3)
    single.target_lengths[1] = 5
    double = single.with_logits(single.logits.double())
    (loss, gradient), (expected, expected_gradient) = both(single), both(double)
    assert (gradient - expected_gradient).abs().max() < 1e-4
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(viterbi_states(single), viterbi_states(double))


def test_is_differentiable_once():
    problem = long_problem(torch.float64, (1, 6, 4, 2))
    logits = problem.logits.requires_grad_()
    loss = lattice_loss(problem.with_logits(logits)).square()
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated only once"):
        gradient.sum().backward()


def test_no_gradient_is_computed_when_none_is_asked_for():
    problem = long_problem(torch.float32, (1, 6, 4, 2))
    assert not lattice_loss(problem).requires_grad
    loss, gradient = loss_and_gradient(problem, need_gradient=False)
    assert gradient is None
    assert torch.equal(loss, both(problem)[0])


@BOTH
def test_stays_on_its_device_without_waiting_for_it(states):
    """The meta device has no values: reading one, or mixing in a tensor of the CPU, raises."""
    example = next(problems(8, 8, states=states))
    fields = vars(example).items()
    meta = Problem(**{k: v.to("meta") if isinstance(v, Tensor) else v for k, v in fields})
    batch, n_frames, _ = meta.logits.shape
    for result, shape in (
        *zip(both(meta), ((batch,), meta.logits.shape), strict=True),
        (viterbi_states(meta), (batch, n_frames)),
        (sample_states(meta, torch.rand(3, batch, n_frames, device="meta")), (3, batch, n_frames)),
    ):
        assert result.device.type == "meta"
        assert result.shape == shape
