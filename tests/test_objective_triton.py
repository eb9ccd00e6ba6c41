"""The Triton kernels, interpreted on the CPU, against enumeration; compiled, without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edge_imputer.train.objective.arguments import MASK, Problem
from edge_imputer.train.objective.reduction import reduction_loss

from .conftest import IN_CI
from .objective_cases import problems, random_problem, truth

if not IN_CI:
    pytest.importorskip("triton", reason="the Triton kernels need Triton (Linux)")

from .triton_tools import compiled_elsewhere, interpreted

pytestmark = pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # maxima of NaN


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    with interpreted() as module:
        yield module


def lay_out(kernels: ModuleType, patch: pytest.MonkeyPatch, *shape: int) -> None:
    """Warps, registers and unrolled steps other than those for the targets' length."""
    layout = kernels._Shape(*shape)
    patch.setattr(kernels._Shape, "of", lambda _: layout)


@pytest.fixture
def quick(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Without unrolled steps: the interpreter's time goes into those past a short walk's end."""
    lay_out(kernels, monkeypatch, 1, 1, 1)
    return kernels


def run(kernels: ModuleType, problem: Problem, grad: Tensor | None = None) -> tuple[Tensor, Tensor]:
    loss, workspace = kernels.forward(problem)
    if grad is None:
        grad = torch.ones_like(loss)
    return loss, kernels.backward(problem, grad, loss, workspace)


def single(problem: Problem) -> Problem:
    return problem.with_logits(problem.logits.float())


def assert_as_enumerated(
    kernels: ModuleType, problem: Problem, tolerance: float = 1e-6
) -> tuple[Tensor, Tensor]:
    losses, gradients = truth(problem)
    loss, gradient = run(kernels, problem)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), gradients, rtol=tolerance, atol=tolerance)
    assert (gradient[~problem.frame_is_open()] == 0).all()
    assert (gradient[loss.isinf()] == 0).all()
    return loss, gradient


# ------------------------------------------------------------------------------ values


@pytest.mark.parametrize("states", [False, True], ids=["token", "state"])
@pytest.mark.parametrize("seed", range(4))
def test_random_cases_agree_with_enumeration(quick: ModuleType, seed: int, states: bool) -> None:
    """1,024 utterances: repeats, empty targets, unequal lengths, all, half or nothing open."""
    for problem in problems(seed, 128, states=states):
        assert_as_enumerated(quick, single(problem))


@pytest.mark.parametrize("states", [False, True], ids=["token", "state"])
def test_the_layout_for_short_targets_agrees_with_enumeration(
    kernels: ModuleType, states: bool
) -> None:
    for problem in problems(7, 16, states=states):
        assert_as_enumerated(kernels, single(problem))


@pytest.mark.parametrize("shape", [(1, 2, 4), (2, 2, 2), (4, 1, 8), (1, 3, 1)])
def test_every_layout_agrees_with_enumeration(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]
) -> None:
    lay_out(kernels, monkeypatch, *shape)
    for problem in problems(8, 8, states=shape[1] == 2):
        assert_as_enumerated(kernels, single(problem))


def long_problem(n_frames: int, n_tokens: int, longest: int) -> Problem:
    """Two utterances, half open and all open, with a repeat; the second is shorter."""
    rng = np.random.default_rng(0)
    targets = rng.integers(1, n_tokens, (2, longest))
    targets[:, 1] = targets[:, 0]
    alignment = np.zeros(n_frames, np.int64)
    alignment[np.linspace(0, n_frames - 1, longest).astype(int)] = targets[0]
    alignment[1] = 0
    partial = np.full((2, n_frames), MASK)
    kept = rng.random(n_frames) < 0.5
    partial[0, kept] = alignment[kept]
    return Problem(
        torch.from_numpy(rng.normal(size=(2, n_frames, n_tokens)).astype(np.float32)) * 2,
        torch.from_numpy(targets),
        torch.from_numpy(partial),
        torch.tensor([n_frames, n_frames - 5]),
        torch.tensor([longest, longest - 3]),
    )


def worst_gradient(kernels: ModuleType, problem: Problem) -> float:
    """Largest error of the gradient beside the reduction in float64."""
    exact = problem.with_logits(problem.logits.double().requires_grad_())
    losses = reduction_loss(exact, zero_infinity=False)
    (gradient,) = torch.autograd.grad(losses.sum(), exact.logits)
    loss, ours = run(kernels, problem)
    torch.testing.assert_close(loss.double(), losses.detach(), rtol=1e-6, atol=1e-6)
    return float((ours - gradient).abs().max())


def test_targets_of_two_registers_agree_with_the_reduction(kernels: ModuleType) -> None:
    assert kernels._Shape.of(33).registers == 2
    assert worst_gradient(kernels, long_problem(54, 13, 33)) < 1e-6


@pytest.mark.slow
def test_gradient_stays_exact_over_1500_frames(kernels: ModuleType) -> None:
    """Where float32 log-space is off by 1e-2, this is off by 3e-7."""
    assert worst_gradient(kernels, long_problem(1500, 1024, 200)) < 1e-5


def test_sums_in_another_order_than_the_batch_make_no_difference(quick: ModuleType) -> None:
    problem = single(random_problem(np.random.default_rng(3)))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    fields = ("logits", "targets", "partial", "input_lengths", "target_lengths")
    shuffled = replace(problem, **{name: getattr(problem, name)[order] for name in fields})
    for ours, theirs in zip(run(quick, shuffled), run(quick, problem), strict=True):
        assert torch.equal(ours, theirs[order])


# ------------------------------------------------------------------------------ kinds of logits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_it_is(quick: ModuleType, dtype: torch.dtype) -> None:
    """Arithmetic is float32; only the gradient is rounded (by the interpreter, towards 0)."""
    for problem in problems(11, 8):
        half = problem.with_logits(problem.logits.to(dtype))
        _, gradient = assert_as_enumerated(quick, half, tolerance=2.0 * torch.finfo(dtype).eps)
        assert gradient.dtype == dtype


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (2, 1, 0)])
def test_any_strides_are_read_in_place(quick: ModuleType, order: tuple[int, int, int]) -> None:
    """Time-first (1, 0, 2), and tokens that do not follow each other."""
    problem = single(random_problem(np.random.default_rng(5), batch=3))
    back = torch.argsort(torch.tensor(order)).tolist()
    strided = problem.logits.permute(order).contiguous().permute(back)
    every_other = problem.logits.repeat_interleave(2, dim=0)[::2]
    expected = run(quick, problem)
    for logits in (strided, every_other):
        loss, gradient = run(quick, problem.with_logits(logits))
        assert gradient.stride() == torch.empty_like(logits).stride()
        assert torch.equal(loss, expected[0])
        assert torch.equal(gradient, expected[1])


def test_integers_may_be_views(quick: ModuleType) -> None:
    """Expanded masks, columns of larger tables, a gradient of stride 0."""
    problem = single(random_problem(np.random.default_rng(6)))
    batch, n_frames, _ = problem.logits.shape
    views = replace(
        problem,
        targets=problem.targets.t().contiguous().t(),
        partial=torch.full((1, 1), MASK).expand(batch, n_frames),
    )
    plain = replace(views, targets=problem.targets, partial=views.partial.clone())
    grad = torch.tensor(0.5).expand(batch)
    for ours, theirs in zip(run(quick, views, grad), run(quick, plain, grad), strict=True):
        assert torch.equal(ours, theirs)


def test_large_logits_keep_their_precision(quick: ModuleType) -> None:
    """exp(x) is taken of x itself: x - logsumexp, rounded, would be off by 1e-3 at 20,000."""
    rng = np.random.default_rng(9)
    for scale, offset in ((1e3, 0.0), (1e4, 0.0), (1.0, 1e4), (1.0, -1e4)):
        problem = random_problem(rng)
        assert_as_enumerated(
            quick, single(problem.with_logits(problem.logits * scale / 40 + offset))
        )


def test_impossible_tokens(quick: ModuleType) -> None:
    """-inf, and what people put in its place: probability 0, alignments through them lost."""
    rng = np.random.default_rng(10)
    problem = single(random_problem(rng))
    hidden = torch.from_numpy(rng.random(problem.logits.shape) < 0.3)
    hidden[..., 0] = False
    exact = problem.with_logits(problem.logits.masked_fill(hidden, -torch.inf))
    loss, gradient = assert_as_enumerated(quick, exact)
    for low in (torch.finfo(torch.float32).min, -1e9):
        ours = run(quick, problem.with_logits(problem.logits.masked_fill(hidden, low)))
        assert torch.equal(ours[0], loss)
        assert torch.equal(ours[1], gradient)


def test_a_frame_without_a_possible_token_makes_the_utterance_impossible(
    quick: ModuleType,
) -> None:
    """As for the C kernels."""
    problem = Problem(
        torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(3)),
        torch.tensor([[1], [2]]),
        torch.full((2, 3), MASK),
        torch.tensor([3, 3]),
        torch.tensor([1, 1]),
    )
    problem.logits[0, 1] = -torch.inf
    loss, gradient = run(quick, problem)
    assert loss.isinf().tolist() == [True, False]
    assert (gradient[0] == 0).all()
    assert gradient[1].isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e7])
def test_nan_and_overflow_spoil_only_their_utterance(quick: ModuleType, bad: float) -> None:
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2))
    partial = torch.full((3, 4), MASK)
    partial[:, 0] = 0
    spoilt = logits.clone()
    spoilt[1, 2, 3] = bad
    spoilt[0, 0, 1] = bad  # a filled-in frame: nobody looks
    spoilt[2, 3, 1] = bad  # past the end
    targets, lengths = torch.tensor([[1, 2], [1, 1], [3, 4]]), torch.tensor([4, 4, 3])
    problem = Problem(spoilt, targets, partial, lengths, torch.tensor([2, 2, 1]))
    loss, gradient = run(quick, problem)
    expected = run(quick, problem.with_logits(logits))
    assert loss[1].isnan()
    assert gradient[1, 1:].isnan().all()
    assert (gradient[1, 0] == 0).all()
    for row in (0, 2):
        assert loss[row] == expected[0][row]
        assert torch.equal(gradient[row], expected[1][row])


# ------------------------------------------------------------------------------ gradients


def test_incoming_gradients_scale_utterances_and_never_reach_infinite_ones(
    quick: ModuleType,
) -> None:
    problem = single(random_problem(np.random.default_rng(4)))
    loss, gradient = run(quick, problem)
    assert loss.isinf().any()
    assert loss.isfinite().any()
    grad = torch.linspace(-1.0, 2.0, 8).masked_fill(loss.isinf(), torch.nan)
    _, scaled = run(quick, problem, grad)
    expected = gradient * grad.nan_to_num()[:, None, None]
    torch.testing.assert_close(scaled, expected, rtol=1e-6, atol=1e-7)


def test_backward_may_be_repeated(quick: ModuleType) -> None:
    problem = single(random_problem(np.random.default_rng(14), batch=3))
    loss, workspace = quick.forward(problem)
    before, ones = workspace.clone(), torch.ones(8)
    first = quick.backward(problem, ones, loss, workspace)
    assert torch.equal(quick.backward(problem, ones, loss, workspace), first)
    assert torch.equal(workspace, before)


def test_no_bit_depends_on_memory_that_was_not_written(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets of one token, over and over; whatever the memory held before, the same gradient."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 9, 4, generator=generator)
    targets = torch.tensor([[2, 2, 2, 3, 2]]).expand(3, 5)
    lengths = torch.tensor([9, 7, 1]), torch.tensor([4, 5, 1])
    problem = Problem(logits, targets, torch.full((3, 9), MASK), *lengths)

    def filled(tensor: Tensor) -> Tensor:
        as_bytes = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        as_bytes.random_(generator=generator)
        return tensor

    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: filled(new_empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: filled(empty_like(*a, **k)))
    first, second = run(kernels, problem), run(kernels, problem)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    monkeypatch.undo()
    assert worst_gradient(kernels, problem) < 1e-6


# ------------------------------------------------------------------------------ limits


def test_exponents_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every int32 operation checked, with logits that come near impossible ones."""
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).zero_())
    with interpreted(check_overflow=True) as kernels:
        for states in (False, True):
            (problem,) = problems(21, 8, states=states)
            assert_as_enumerated(kernels, single(problem))
        problem = random_problem(np.random.default_rng(22))
        extreme = problem.logits.sign() * 2**21.9
        extreme[::2, :, 1] = -torch.inf
        loss, gradient = run(kernels, problem.with_logits(extreme.float()))
        assert not loss.isnan().any()
        assert gradient.isfinite().all()


def test_unchecked_integers_touch_no_foreign_memory(quick: ModuleType) -> None:
    """Ranges are checked elsewhere, at the price of a synchronisation; here they only must not
    crash."""
    problem = single(random_problem(np.random.default_rng(12)))
    wild = replace(
        problem,
        targets=problem.targets + 10**12,
        partial=problem.partial * 10**12,
        input_lengths=torch.tensor([-5, 0, 1, 10**9, 3, 2, -(10**15), 99]),
        target_lengths=torch.tensor([3, -1, 10**9, 10**12, 0, 2, -4, 1]),
    )
    loss, gradient = run(quick, wild)
    assert loss.shape == (8,)
    assert gradient.shape == problem.logits.shape


def test_sizes_and_limits(kernels: ModuleType) -> None:
    for problem in map(single, problems(31, 16)):
        batch, n_frames, _ = problem.logits.shape
        longest = problem.targets.shape[1]
        _, workspace = kernels.forward(problem)
        assert workspace.dtype == kernels.WORKSPACE_DTYPE
        assert workspace.shape == (kernels.workspace_size(batch, n_frames, longest),)
        assert kernels.supported(problem)
        assert not kernels.supported(problem.with_logits(problem.logits.double()))
    longest = kernels.LONGEST
    targets = torch.zeros(1, 1, dtype=torch.int64).expand(8, longest + 1)
    assert not kernels.supported(replace(problem, targets=targets))
    assert kernels.supported(replace(problem, targets=targets[:, 1:]))
    for tokens in (0, 31, 32, 63, 64, 127, 128, 1023, 1024, longest):
        layout = kernels._Shape.of(tokens)
        assert tokens < layout.states
        assert layout.warps <= 16
        assert 8 % layout.unrolled == 0


# ------------------------------------------------------------------------------ compiler


def test_kernels_compile_for_gpus_without_spills_or_atomics(tmp_path: Path) -> None:
    """For compute capabilities 8.0 and 9.0, by the compiler and assembler that Triton brings."""
    found = compiled_elsewhere(tmp_path, "80:20", "90:200:4,2,1")
    assert len(found) == 10
    for kernel in found:
        assert kernel["spilled"] == 0, kernel
        assert kernel["atomics"] == 0, kernel
    walks: list[dict[str, Any]] = [k for k in found if "half" in k["kernel"]]
    for walk in walks:
        if walk["warps"] == 1:
            assert walk["shuffles"] > 0
            assert walk["barriers"] == 0
        else:
            assert walk["shuffles"] == 0
            assert walk["barriers"] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("states", [False, True], ids=["token", "state"])
def test_a_gpu_agrees_with_enumeration_to_the_same_bit_every_time(states: bool) -> None:
    from edge_imputer.train.objective import triton_kernels

    for problem in problems(51, 200, states=states):
        losses, gradients = truth(single(problem))
        on_gpu = replace(
            single(problem),
            **{
                name: getattr(problem, name).cuda()
                for name in ("targets", "partial", "input_lengths", "target_lengths")
            },
        )
        on_gpu = on_gpu.with_logits(problem.logits.float().cuda())
        loss, gradient = run(triton_kernels, on_gpu)
        torch.testing.assert_close(loss.cpu().double(), losses, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient.cpu().double(), gradients, rtol=1e-5, atol=1e-5)
        again = run(triton_kernels, on_gpu)
        assert torch.equal(again[0], loss)
        assert torch.equal(again[1], gradient)
