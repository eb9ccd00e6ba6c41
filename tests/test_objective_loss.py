"""The Imputer loss: every path against enumeration, and the properties the paper gives it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edge_imputer.errors import ObjectiveError
from edge_imputer.train.objective import (
    MASK,
    ImputerLoss,
    best_alignment,
    ctc_loss,
    imitation_loss,
    imputer_loss,
    mask_alignment,
)
from edge_imputer.train.objective.arguments import Problem, check_ranges, make_problem
from edge_imputer.train.objective.loss import Backend

from .objective_cases import problems, random_problem, truth

BACKENDS: tuple[Backend, ...] = ("native", "torch")


def loss_of(problem: Problem, logits: Tensor | None = None, **options) -> Tensor:
    """`imputer_loss` of a batch, one value an utterance."""
    return imputer_loss(
        problem.logits if logits is None else logits,
        problem.targets,
        problem.partial,
        problem.input_lengths,
        problem.target_lengths,
        **{
            "blank_id": problem.blank_id,
            "reduction": "none",
            "semantics": "state" if problem.states else "token",
            **options,
        },
    )


def value_and_gradient(problem: Problem, **options) -> tuple[Tensor, Tensor]:
    logits = problem.logits.detach().clone().requires_grad_()
    losses = loss_of(problem, logits, **options)
    losses.sum().backward()
    assert logits.grad is not None
    return losses.detach(), logits.grad


# ------------------------------------------------------------------------------ the truth


@pytest.mark.parametrize("states", [False, True], ids=["token", "state"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_enumeration(backend: Backend, states: bool, dtype: torch.dtype) -> None:
    n_infinite = 0
    for problem in problems(seed=11, n_utterances=1000, states=states):
        expected, expected_gradient = truth(problem)
        given_ = problem.with_logits(problem.logits.to(dtype))
        losses, gradient = value_and_gradient(given_, backend=backend)
        assert losses.dtype == dtype
        assert torch.equal(losses.isinf(), expected.isinf())
        n_infinite += int(expected.isinf().sum())
        exact = dtype == torch.float64
        torch.testing.assert_close(
            losses.double(), expected, rtol=1e-10 if exact else 2e-6, atol=1e-9 if exact else 2e-5
        )
        torch.testing.assert_close(
            gradient.double(), expected_gradient, rtol=0, atol=1e-9 if exact else 3e-5
        )
        never = problem.partial != MASK
        assert torch.all(gradient[never | ~problem.frame_is_inside()] == 0)
        assert torch.all(gradient[expected.isinf()] == 0)
    assert n_infinite > 50


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: Backend) -> None:
    rng = np.random.default_rng(5)
    for states in (False, True):
        problem = random_problem(rng, batch=5, states=states)

        def loss(logits: Tensor, problem: Problem = problem) -> Tensor:
            return loss_of(problem, logits, backend=backend, zero_infinity=True)

        assert torch.autograd.gradcheck(loss, problem.logits.clone().requires_grad_())


def test_no_gradient_of_the_gradient() -> None:
    problem = random_problem(np.random.default_rng(0))
    logits = problem.logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        loss_of(problem, logits, zero_infinity=True).sum(), logits, create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiated only once"):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_masked_is_ctc(backend: Backend) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 40, 9, dtype=torch.float64)
    targets = torch.randint(1, 9, (6, 12))
    lengths, sizes = torch.tensor([40, 30, 40, 25, 3, 40]), torch.tensor([12, 10, 0, 12, 5, 1])
    ours = ctc_loss(logits, targets, lengths, sizes, reduction="none", backend=backend)
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    theirs = F.ctc_loss(log_probs, targets, lengths, sizes, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    masked = torch.full((6, 40), MASK)
    same = imputer_loss(logits, targets, masked, lengths, sizes, reduction="none", backend=backend)
    assert torch.equal(ours, same)


def test_token_and_state_semantics_differ() -> None:
    """y = [a], T = 3, the middle frame blank, p = 1/2: the blank may be before or after the a."""
    logits = torch.zeros(1, 3, 2)
    rest = (torch.tensor([3]), torch.tensor([1]))
    target = torch.tensor([[1]])
    token = imputer_loss(logits, target, torch.tensor([[-1, 0, -1]]), *rest)
    assert math.exp(-token.item()) == pytest.approx(0.5)
    for state in (0, 2):
        partial = torch.tensor([[-1, state, -1]])
        forced = imputer_loss(logits, target, partial, *rest, semantics="state")
        assert math.exp(-forced.item()) == pytest.approx(0.25)


# ------------------------------------------------------------------------------ properties

seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.booleans(), st.sampled_from(BACKENDS))
@settings(max_examples=60, deadline=None)
def test_batch_order_does_not_matter(seed: int, states: bool, backend: Backend) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, batch=6, states=states)
    order = torch.from_numpy(rng.permutation(6))
    shuffled = Problem(
        problem.logits[order],
        problem.targets[order],
        problem.partial[order],
        problem.input_lengths[order],
        problem.target_lengths[order],
        problem.blank_id,
        states,
    )
    losses, gradient = value_and_gradient(problem, backend=backend)
    other, other_gradient = value_and_gradient(shuffled, backend=backend)
    # Where a row lies in a vector register may change torch's last bit, not the kernels'.
    exact = 0.0 if backend == "native" else 1e-12
    torch.testing.assert_close(losses[order], other, rtol=exact, atol=exact)
    torch.testing.assert_close(gradient[order], other_gradient, rtol=exact, atol=exact)


@given(seeds, st.booleans(), st.sampled_from(BACKENDS), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_padding_does_not_matter(seed: int, states: bool, backend: Backend, extra: int) -> None:
    problem = random_problem(np.random.default_rng(seed), batch=5, states=states)
    padded = replace(
        problem,
        logits=F.pad(problem.logits, (0, 0, 0, extra), value=3.0),
        targets=F.pad(problem.targets, (0, extra), value=10**12),
        partial=F.pad(problem.partial, (0, extra), value=-(10**12)),
    )
    losses, gradient = value_and_gradient(problem, backend=backend)
    other, other_gradient = value_and_gradient(padded, backend=backend)
    torch.testing.assert_close(losses, other, rtol=1e-12, atol=1e-12)
    end = gradient.shape[1]
    torch.testing.assert_close(gradient, other_gradient[:, :end], rtol=0, atol=1e-12)
    assert torch.all(other_gradient[:, end:] == 0)


@given(seeds, st.sampled_from(BACKENDS))
@settings(max_examples=60, deadline=None)
def test_an_open_frame_is_a_sum_over_its_tokens(seed: int, backend: Backend) -> None:
    """exp(-loss) = sum over v of p(v) exp(-loss with the frame fixed to v)."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, batch=5)
    frame, n_tokens = int(rng.integers(problem.logits.shape[1])), problem.logits.shape[2]
    whole = loss_of(problem, backend=backend).neg().exp()
    probabilities = problem.logits[:, frame].softmax(-1)
    parts = []
    for token in range(n_tokens):
        partial = problem.partial.clone()
        partial[:, frame] = token
        fixed = loss_of(replace(problem, partial=partial), backend=backend)
        parts.append(probabilities[:, token] * fixed.neg().exp())
    is_open = problem.frame_is_open()[:, frame]
    torch.testing.assert_close(whole[is_open], torch.stack(parts).sum(0)[is_open])


@given(seeds, st.sampled_from(BACKENDS))
@settings(max_examples=60, deadline=None)
def test_gradient_is_softmax_minus_posterior(seed: int, backend: Backend) -> None:
    """The posterior is a distribution a frame; over all frames no token is missed."""
    problem = random_problem(np.random.default_rng(seed), batch=5)
    losses, gradient = value_and_gradient(problem, backend=backend)
    posterior = problem.logits.softmax(-1) - gradient
    possible = problem.frame_is_open() & losses.isfinite()[:, None]
    assert torch.all(posterior[possible] >= -1e-12)
    torch.testing.assert_close(
        posterior[possible].sum(-1), torch.ones(int(possible.sum()), dtype=torch.float64)
    )
    for row in range(5):  # tokens that the target does not have are never expected
        size, length = int(problem.target_lengths[row]), int(problem.input_lengths[row])
        known = {problem.blank_id, *problem.targets[row, :size].tolist()}
        absent = [t for t in range(problem.logits.shape[2]) if t not in known]
        frames = possible[row, :length]
        assert torch.all(posterior[row, :length][frames][:, absent].abs() < 1e-12)


@given(seeds, st.sampled_from(BACKENDS), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_never_exceeds_the_imitation_loss(seed: int, backend: Backend, block: int) -> None:
    """The imitated alignment is one of the summed paths (Chan et al. 2020, section 3.2)."""
    problem = random_problem(np.random.default_rng(seed), batch=6)
    arguments = (problem.targets, problem.input_lengths, problem.target_lengths)
    best = best_alignment(problem.logits, *arguments, blank_id=problem.blank_id)
    possible = best.log_prob.isfinite()
    generator = torch.Generator().manual_seed(seed % 2**31)
    partial = mask_alignment(
        best.tokens, problem.input_lengths, block_size=block, generator=generator
    )
    dp = loss_of(replace(problem, partial=partial), backend=backend)
    imitation = imitation_loss(
        problem.logits,
        best.tokens,
        partial,
        problem.input_lengths,
        problem.target_lengths,
        blank_id=problem.blank_id,
        reduction="none",
    )
    assert imitation[possible].isfinite().all()
    assert torch.all((dp <= imitation + 1e-9)[possible])


@pytest.mark.parametrize("backend", BACKENDS)
def test_everything_filled_in_costs_nothing(backend: Backend) -> None:
    torch.manual_seed(3)
    logits = torch.randn(2, 5, 4)
    partial = torch.tensor([[1, 1, 0, 2, 2], [0, 3, 0, 3, 0]])
    targets, sizes = torch.tensor([[1, 2], [3, 3]]), torch.tensor([2, 2])
    problem = Problem(logits, targets, partial, torch.tensor([5, 5]), sizes)
    losses, gradient = value_and_gradient(problem, backend=backend)
    assert torch.equal(losses, torch.zeros(2))
    assert torch.all(gradient == 0)


# ------------------------------------------------------------------------------ long and sharp


def long_problem(n_frames: int, n_tokens: int, size: int, scale: float, share: float) -> Problem:
    """Two long utterances, `share` of the frames open."""
    generator = torch.Generator().manual_seed(n_frames)
    logits = torch.randn(2, n_frames, n_tokens, generator=generator, dtype=torch.float64) * scale
    targets = torch.randint(1, n_tokens, (2, size), generator=generator)
    lengths, sizes = torch.tensor([n_frames, n_frames - 9]), torch.tensor([size, size - 3])
    best = best_alignment(logits, targets, lengths, sizes)
    keep = torch.rand(best.tokens.shape, generator=generator) >= share
    partial = torch.where(keep, best.tokens, MASK)
    return Problem(logits, targets, partial, lengths, sizes)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_float32_stays_exact_on_long_audio(scale: float, share: float) -> None:
    problem = long_problem(1500, 64, 120, scale, share)
    problem = problem.with_logits(problem.logits.float().double())  # the same numbers in both
    expected, expected_gradient = value_and_gradient(problem, backend="torch")
    exact, exact_gradient = value_and_gradient(problem, backend="native")
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(exact_gradient, expected_gradient, rtol=0, atol=1e-8)
    single = problem.with_logits(problem.logits.float())
    losses, gradient = value_and_gradient(single, backend="native")
    torch.testing.assert_close(losses.double(), expected, rtol=3e-7, atol=0)
    assert (gradient - expected_gradient).abs().max() < 1e-6


def test_path_that_only_the_end_decides() -> None:
    """All frames but the last few believe in blanks: states far below the best must survive."""
    n_frames, size = 800, 150
    logits = torch.zeros(1, n_frames, 4)
    logits[:, :, 0] = 90.0  # e^-13500 for the whole target: below what a double could hold
    targets = torch.arange(size)[None] % 3 + 1
    rest = (torch.tensor([n_frames]), torch.tensor([size]))
    problem = Problem(logits, targets, torch.full((1, n_frames), MASK), *rest)
    exact, expected_gradient = value_and_gradient(
        problem.with_logits(logits.double()), backend="torch"
    )
    losses, gradient = value_and_gradient(problem, backend="native")
    assert losses.item() == pytest.approx(exact.item(), rel=1e-6)
    assert losses.item() > 10_000
    assert (gradient - expected_gradient).abs().max() < 1e-5


# ------------------------------------------------------------------------------ odd logits


@pytest.mark.parametrize("backend", BACKENDS)
def test_impossible_tokens_and_broken_logits(backend: Backend) -> None:
    torch.manual_seed(4)
    logits = torch.randn(5, 6, 4, dtype=torch.float64)
    logits[0, :, 3] = -torch.inf  # a token that cannot be: fine, the target does without it
    logits[1, :, 2] = -torch.inf  # a token that the target needs
    logits[2, 3, 3] = torch.nan
    logits[3, 2, 0] = torch.inf
    targets = torch.tensor([[1, 2]] * 5)
    partial = torch.full((5, 6), MASK)
    problem = Problem(logits, targets, partial, torch.full((5,), 6), torch.full((5,), 2))
    for dtype in (torch.float64, torch.float32):
        given_ = problem.with_logits(logits.to(dtype))
        losses, gradient = value_and_gradient(given_, backend=backend)
        expected, expected_gradient = truth(given_)
        for row in (0, 4):
            assert losses[row].item() == pytest.approx(expected[row].item(), rel=1e-5)
            torch.testing.assert_close(
                gradient[row].double(), expected_gradient[row], rtol=0, atol=1e-5
            )
        assert losses[1] == torch.inf
        assert torch.all(gradient[1] == 0)
        assert losses[2].isnan()
        assert losses[3].isnan()
        if backend == "native":
            assert gradient[2:4].isnan().all()


@pytest.mark.parametrize("states", [False, True], ids=["token", "state"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_filled_in_frames_may_hold_anything(backend: Backend, states: bool) -> None:
    problem = random_problem(np.random.default_rng(8), batch=5, states=states)
    expected, expected_gradient = value_and_gradient(problem, backend=backend)
    spoilt = problem.logits.clone()
    spoilt[~problem.frame_is_open()] = torch.nan
    losses, gradient = value_and_gradient(problem.with_logits(spoilt), backend=backend)
    assert torch.equal(losses, expected)
    assert torch.equal(gradient, expected_gradient)


# ------------------------------------------------------------------------------ reductions


@pytest.mark.parametrize("backend", BACKENDS)
def test_reductions_are_those_of_torch(backend: Backend) -> None:
    torch.manual_seed(6)
    targets = torch.randint(1, 5, (4, 6))
    lengths, sizes = torch.tensor([20, 18, 20, 20]), torch.tensor([6, 3, 0, 5])
    for reduction in ("none", "sum", "mean"):
        ours = torch.randn(4, 20, 5, dtype=torch.float64, requires_grad=True)
        theirs = ours.detach().clone().requires_grad_()
        a = ctc_loss(ours, targets, lengths, sizes, reduction=reduction, backend=backend)
        log_probs = theirs.log_softmax(-1).transpose(0, 1)
        b = F.ctc_loss(log_probs, targets, lengths, sizes, reduction=reduction)
        torch.testing.assert_close(a, b)
        (3 * a).sum().backward()
        (3 * b).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_infinity(backend: Backend) -> None:
    targets, lengths = torch.tensor([[1, 1], [1, 2]]), torch.tensor([2, 2])
    for zero, first in ((False, torch.inf), (True, 0.0)):
        logits = torch.randn(2, 2, 3, requires_grad=True)
        losses = ctc_loss(
            logits, targets, lengths, lengths, reduction="none", zero_infinity=zero, backend=backend
        )
        losses.sum().backward()
        assert losses[0] == first
        assert losses[1].isfinite()
        assert torch.all(logits.grad[0] == 0)
        assert torch.any(logits.grad[1] != 0)


# ------------------------------------------------------------------------------ layouts, types


def layouts() -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "contiguous": lambda x: x.contiguous(),
        "time first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        "every other token": lambda x: x.repeat_interleave(2, -1)[..., ::2],
        "cut out": lambda x: F.pad(x, (2, 3, 1, 2))[:, 1:-2, 2:-3],
        "tokens first": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    }


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_layout(backend: Backend, layout: str) -> None:
    problem = random_problem(np.random.default_rng(9), batch=6)
    expected, expected_gradient = value_and_gradient(problem, backend=backend)
    leaf = problem.logits.clone().requires_grad_()
    losses = loss_of(problem, layouts()[layout](leaf), backend=backend)
    losses.sum().backward()
    assert torch.equal(losses, expected)
    torch.testing.assert_close(leaf.grad, expected_gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
def test_integer_types_and_concatenated_targets(integer: torch.dtype) -> None:
    for problem in problems(seed=21, n_utterances=80):
        expected = loss_of(problem)
        flat = torch.cat(
            [row[:n] for row, n in zip(problem.targets, problem.target_lengths, strict=True)]
        )
        losses = imputer_loss(
            problem.logits,
            flat.to(integer),
            problem.partial.to(integer),
            problem.input_lengths.to(integer),
            problem.target_lengths.to(integer),
            blank_id=problem.blank_id,
            reduction="none",
        )
        assert torch.equal(losses, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_computed_in_float32(backend: Backend, dtype: torch.dtype) -> None:
    problem = random_problem(np.random.default_rng(10), batch=6)
    half = problem.with_logits(problem.logits.to(dtype))
    losses, gradient = value_and_gradient(half, backend=backend)
    assert losses.dtype == torch.float32
    assert gradient.dtype == dtype
    expected, expected_gradient = value_and_gradient(
        half.with_logits(half.logits.float()), backend=backend
    )
    assert torch.equal(losses, expected)
    torch.testing.assert_close(gradient, expected_gradient.to(dtype))


def test_module_is_the_function() -> None:
    problem = random_problem(np.random.default_rng(12), states=True)
    module = ImputerLoss(
        blank_id=problem.blank_id, reduction="sum", zero_infinity=True, semantics="state"
    )
    arguments = (
        problem.logits,
        problem.targets,
        problem.partial,
        problem.input_lengths,
        problem.target_lengths,
    )
    expected = loss_of(problem, reduction="sum", zero_infinity=True)
    assert torch.equal(module(*arguments), expected)
    assert "semantics='state'" in repr(module)


# ------------------------------------------------------------------------------ errors


def good() -> dict[str, Tensor]:
    """A valid call: four utterances of 16 frames, 32 tokens."""
    torch.manual_seed(0)
    return {
        "logits": torch.randn(4, 16, 32),
        "targets": torch.randint(1, 32, (4, 5)),
        "partial_alignment": torch.full((4, 16), MASK),
        "input_lengths": torch.tensor([16, 12, 16, 16]),
        "target_lengths": torch.tensor([5, 3, 0, 5]),
    }


def with_value(name: str, place: tuple[int, ...], value: int) -> dict[str, Tensor]:
    arguments = good()
    arguments[name][place] = value
    return arguments


def with_tensor(name: str, tensor: object) -> dict[str, object]:
    return {**good(), name: tensor}


BAD_VALUES = {
    "token 57 at [3, 4] is outside 0..31": with_value("targets", (3, 4), 57),
    "token -2 at [1, 1] is outside 0..31": with_value("targets", (1, 1), -2),
    "targets: token 0 at [0, 2] is the blank": with_value("targets", (0, 2), 0),
    "partial_alignment: token 57 at [3, 12] is outside 0..31": with_value(
        "partial_alignment", (3, 12), 57
    ),
    "partial_alignment: token -2 at [0, 0] is outside": with_value("partial_alignment", (0, 0), -2),
    "input_lengths: 17 at [2] is outside 0..16": with_value("input_lengths", (2,), 17),
    "input_lengths: -1 at [0] is outside 0..16": with_value("input_lengths", (0,), -1),
    "target_lengths: 6 at [3] is outside 0..5": with_value("target_lengths", (3,), 6),
    "target_lengths: -3 at [1] is outside 0..5": with_value("target_lengths", (1,), -3),
}


@pytest.mark.parametrize("message", BAD_VALUES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_out_of_range_are_named(backend: Backend, message: str) -> None:
    with pytest.raises(ObjectiveError) as caught:
        imputer_loss(**BAD_VALUES[message], backend=backend)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_out_of_range_are_named(backend: Backend) -> None:
    arguments = with_value("partial_alignment", (1, 4), 7)  # S = 3: states 0..6
    with pytest.raises(ObjectiveError, match=r"state 7 at \[1, 4\] is outside 0\.\.2S"):
        imputer_loss(**arguments, semantics="state", backend=backend)


def test_what_lies_past_the_lengths_is_not_looked_at() -> None:
    arguments = good()
    arguments["targets"][1, 3] = 99
    arguments["partial_alignment"][1, 12] = -99
    assert imputer_loss(**arguments).isfinite()


BAD_TENSORS = {
    "logits: expected (batch, frames, tokens), none of them 0, got (16, 32)": with_tensor(
        "logits", torch.randn(16, 32)
    ),
    "logits: expected (batch, frames, tokens), none of them 0, got (4, 0, 32)": with_tensor(
        "logits", torch.randn(4, 0, 32)
    ),
    "logits: expected float32, float64, float16, bfloat16, got torch.int64": with_tensor(
        "logits", torch.zeros(4, 16, 32, dtype=torch.int64)
    ),
    "logits: expected a tensor, got list": with_tensor("logits", [[0.0]]),
    "targets: expected (4, S), or 1-D and concatenated, got (3, 5)": with_tensor(
        "targets", torch.ones(3, 5, dtype=torch.int64)
    ),
    "targets: expected 13 concatenated tokens (the sum of target_lengths), got 12": with_tensor(
        "targets", torch.ones(12, dtype=torch.int64)
    ),
    "targets: expected int32 or int64, got torch.float32": with_tensor("targets", torch.ones(4, 5)),
    "partial_alignment: expected shape (4, 16), got (16, 4)": with_tensor(
        "partial_alignment", torch.full((16, 4), MASK)
    ),
    "partial_alignment: expected int32 or int64, got torch.bool": with_tensor(
        "partial_alignment", torch.zeros(4, 16, dtype=torch.bool)
    ),
    "input_lengths: expected shape (4,), got (3,)": with_tensor(
        "input_lengths", torch.tensor([16, 16, 16])
    ),
    "target_lengths: expected a tensor of integers, got list": with_tensor(
        "target_lengths", [5, 3, 0, 5]
    ),
    "logits are on cpu": with_tensor("targets", torch.ones(4, 5, dtype=torch.int64, device="meta")),
}


@pytest.mark.parametrize("message", BAD_TENSORS)
def test_wrong_tensors_are_named(message: str) -> None:
    with pytest.raises(ObjectiveError) as caught:
        imputer_loss(**BAD_TENSORS[message])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"blank_id": 32}, "blank_id: expected 0..31, got 32"),
        ({"reduction": "average"}, "reduction: expected 'none', 'mean' or 'sum', got 'average'"),
        ({"semantics": "label"}, "semantics: expected 'token' or 'state', got 'label'"),
        ({"backend": "cuda"}, "backend: expected 'auto', 'native', 'triton' or 'torch'"),
        ({"backend": "triton"}, "backend 'triton' runs on CUDA, logits are on cpu"),
    ],
)
def test_wrong_options_are_named(option: dict[str, object], message: str) -> None:
    with pytest.raises(ObjectiveError) as caught:
        imputer_loss(**good(), **option)
    assert message in str(caught.value)


def test_check_ranges_accepts_what_the_kernels_accept() -> None:
    for states in (False, True):
        for problem in problems(seed=31, n_utterances=160, states=states):
            check_ranges(problem)
            again = make_problem(
                problem.logits,
                problem.targets,
                problem.partial,
                problem.input_lengths,
                problem.target_lengths,
                blank_id=problem.blank_id,
                semantics="state" if states else "token",
            )
            assert torch.equal(again.partial, problem.partial)
