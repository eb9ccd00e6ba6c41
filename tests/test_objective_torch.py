"""The loss as a citizen of torch: autograd's graphs, compile, autocast, DDP, memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from edge_imputer.train.benchmark import cpu_threads, peak_bytes
from edge_imputer.train.objective import MASK, ImputerLoss, imputer_loss, native
from edge_imputer.train.objective.arguments import Problem

from .objective_cases import problems, random_problem
from .processes import run_python, run_ranks


def arguments(problem: Problem) -> tuple[Tensor, ...]:
    return (
        problem.targets,
        problem.partial,
        problem.input_lengths,
        problem.target_lengths,
    )


def larger(dtype: torch.dtype = torch.float32) -> Problem:
    """Four utterances of 30 frames, half of them filled in."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 30, 11, generator=generator, dtype=dtype)
    targets = torch.randint(1, 11, (4, 5), generator=generator)
    partial = torch.full((4, 30), MASK)
    partial[:, ::2] = 0
    sizes = torch.tensor([5, 4, 0, 3])
    return Problem(logits, targets, partial, torch.tensor([30, 28, 30, 17]), sizes)


# ------------------------------------------------------------------------------ autograd


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("factor", [1.0, 0.25, 65536.0])
def test_a_retained_graph_gives_the_same_gradient_again(reduction: str, factor: float) -> None:
    """The first backward pass takes the gradient away; a second one computes it anew."""
    problem = larger()
    logits = problem.logits.requires_grad_()
    loss = imputer_loss(logits, *arguments(problem), reduction=reduction).sum() * factor
    first, second, third = (
        torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(3)
    )
    assert torch.equal(first, second)
    assert torch.equal(second, third)
    plain = imputer_loss(logits, *arguments(problem), reduction=reduction, backend="torch").sum()
    (expected,) = torch.autograd.grad(plain * factor, logits)
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-5 * factor)


def test_every_utterance_may_weigh_differently() -> None:
    problem = larger(torch.float64)
    logits = problem.logits.requires_grad_()
    weight = torch.tensor([0.5, 0.0, -2.0, 3.0], dtype=torch.float64)
    gradients = [
        torch.autograd.grad(
            (imputer_loss(logits, *arguments(problem), reduction="none", backend=b) * weight).sum(),
            logits,
        )[0]
        for b in ("native", "torch")
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_logits_changed_in_place_are_noticed_when_they_are_needed_again() -> None:
    problem = larger()
    leaf = problem.logits.requires_grad_()
    logits = leaf * 2
    loss = imputer_loss(logits, *arguments(problem))
    torch.autograd.grad(loss, leaf, retain_graph=True)
    with torch.no_grad():
        logits.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, leaf)


def test_without_gradients_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = larger()
    asked: list[bool] = []
    compute = native.loss_and_gradient

    def watched(*args, gradient: bool):
        asked.append(gradient)
        return compute(*args, gradient=gradient)

    monkeypatch.setattr(native, "loss_and_gradient", watched)
    logits = problem.logits.requires_grad_()
    expected = imputer_loss(logits, *arguments(problem))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            loss = imputer_loss(logits, *arguments(problem))
        assert not loss.requires_grad
        assert loss == expected.detach()
    assert imputer_loss(logits.detach(), *arguments(problem)) == expected.detach()
    assert asked == [True, False, False, False]


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_what_comes_from_above_may_be_infinite_where_the_loss_is(backend: str) -> None:
    """Squared, an infinite loss asks for an infinite gradient; it has none."""
    targets, lengths = torch.tensor([[1, 1], [1, 2]]), torch.tensor([2, 2])
    logits = torch.randn(2, 2, 3, requires_grad=True)
    masked = torch.full((2, 2), MASK)
    losses = imputer_loss(
        logits, targets, masked, lengths, lengths, reduction="none", backend=backend
    )
    assert losses[0].isinf()
    (gradient,) = torch.autograd.grad(losses.square().sum(), logits)
    assert torch.all(gradient[0] == 0)
    assert gradient[1].isfinite().all()
    assert torch.any(gradient[1] != 0)


def test_masks_changed_in_place_are_noticed_when_they_are_needed_again() -> None:
    problem = larger()
    logits = problem.logits.requires_grad_()
    loss = imputer_loss(logits, *arguments(problem))
    torch.autograd.grad(loss, logits, retain_graph=True)
    problem.partial[0, 0] = MASK
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, logits)


def test_the_operator_too_is_differentiable_once() -> None:
    problem = larger()
    logits = problem.logits.requires_grad_()
    loss, _ = torch.ops.edge_imputer.imputer_loss(
        logits, *arguments(problem), 0, False, torch.ones(4), True, True
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated only once"):
        gradient.square().sum().backward()


# ------------------------------------------------------------------------------ torch.library


def test_operator_is_registered_as_torch_wants_it() -> None:
    """Schema, fake kernel, autograd and tracing, by torch's own checks."""
    for problem in problems(seed=41, n_utterances=16):
        weight = torch.ones(8, dtype=torch.float64)
        for logits in (problem.logits, problem.logits.transpose(1, 2).contiguous().transpose(1, 2)):
            torch.library.opcheck(
                torch.ops.edge_imputer.imputer_loss.default,
                (
                    logits.requires_grad_(),
                    *arguments(problem),
                    *(problem.blank_id, False, weight, True, True),
                ),
            )


@pytest.mark.parametrize(
    ("backend", "reduction", "transposed"),
    [
        ("aot_eager", "none", False),
        ("aot_eager", "mean", True),
        ("inductor", "mean", False),
        ("inductor", "mean", True),
    ],
)
def test_compiles_without_a_break(backend: str, reduction: str, transposed: bool) -> None:
    problem = larger()
    layer = nn.Conv1d(30, 30, 1) if transposed else nn.Linear(11, 11)
    criterion = ImputerLoss(reduction=reduction, zero_infinity=True)

    def step(features: Tensor) -> Tensor:
        logits = layer(features)
        if transposed:  # tokens are not next to each other, as after a convolution
            logits = logits.transpose(1, 2).contiguous().transpose(1, 2)
        return criterion(logits, *arguments(problem)).sum()

    loss = step(problem.logits)
    expected = torch.autograd.grad(loss, list(layer.parameters()))
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    again = compiled(problem.logits)
    gradients = torch.autograd.grad(again, list(layer.parameters()))
    torch.testing.assert_close(again, loss)
    for ours, eager in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def test_under_autocast_it_takes_bfloat16_and_sums_in_float32() -> None:
    problem = larger()
    layer = nn.Linear(11, 11)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(problem.logits)
        assert logits.dtype == torch.bfloat16
        loss = imputer_loss(logits, *arguments(problem))
    assert loss.dtype == torch.float32
    expected = imputer_loss(logits.detach().float(), *arguments(problem))
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


# ------------------------------------------------------------------------------ processes


def train_one_half(rank: int, port: int, out: str) -> None:
    """One of two processes: its half of the batch, gradients averaged by DDP."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(11, 11))
    problem = larger()
    half = slice(2 * rank, 2 * rank + 2)
    logits = model(problem.logits[half])
    rest = [tensor[half] for tensor in arguments(problem)]
    imputer_loss(logits, *rest, reduction="mean").backward()
    if rank == 0:
        torch.save([p.grad for p in model.parameters()], out)
    dist.destroy_process_group()


def test_distributed_data_parallel(tmp_path: Path) -> None:
    # Processes of their own, not forks: a fork of a process with a compiler's threads can hang.
    out = tmp_path / "gradients.pt"
    run_ranks(2, "tests.test_objective_torch", "train_one_half", str(out))
    torch.manual_seed(0)
    model = nn.Linear(11, 11)
    problem = larger()
    imputer_loss(model(problem.logits), *arguments(problem), reduction="mean").backward()
    gradients = torch.load(out, weights_only=True)
    for ours, alone in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(ours, alone.grad)


FORK = """
import torch, multiprocessing as mp
import tests.conftest
from tests.test_objective_torch import arguments, imputer_loss, larger
torch.set_num_threads(2)
problem = larger()
expected = imputer_loss(problem.logits, *arguments(problem)).item()
context = mp.get_context("fork")
queue = context.SimpleQueue()
work = lambda: queue.put(imputer_loss(problem.logits, *arguments(problem)).item())
process = context.Process(target=work, daemon=True)
process.start()
process.join(60)
assert process.exitcode == 0, process.exitcode
assert queue.get() == expected
"""


def test_in_a_forked_worker() -> None:
    """A forked process may use the loss although its parent has used threads."""
    run_python(FORK)


# ------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "shape", [(32, 100, 32, 20), (32, 250, 64, 60), (16, 500, 256, 120), (16, 1500, 1024, 200)]
)
def test_memory_beyond_the_logits_is_little_more_than_the_gradient(
    shape: tuple[int, int, int, int], threads: int
) -> None:
    batch, n_frames, n_tokens, size = shape
    problem = Problem(
        torch.randn(batch, n_frames, n_tokens),
        torch.randint(1, n_tokens, (batch, size)),
        torch.full((batch, n_frames), MASK),
        torch.full((batch,), n_frames),
        torch.full((batch,), size),
    )
    gradient = 4 * batch * n_frames * n_tokens
    logits = problem.logits.requires_grad_()
    with cpu_threads(threads):
        most = peak_bytes(lambda: imputer_loss(logits, *arguments(problem)).backward())
    assert gradient <= most <= 1.2 * gradient


def test_the_gradient_is_freed_with_the_graph() -> None:
    import gc
    import weakref

    gc.disable()
    try:
        problem = random_problem(np.random.default_rng(0))
        logits = problem.logits.requires_grad_() * 1
        loss = imputer_loss(
            logits, *arguments(problem), blank_id=problem.blank_id, zero_infinity=True
        )
        alive = weakref.ref(logits)
        del logits, loss
        assert alive() is None  # no cycle that only the garbage collector would find
    finally:
        gc.enable()
