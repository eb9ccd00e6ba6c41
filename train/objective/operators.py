"""The fast paths as operators of torch: what autograd, torch.compile and autocast see.

``edge_imputer::imputer_loss`` returns the losses and what the backward pass needs: on the CPU the
finished gradient, on CUDA the rows of alpha and beta. Outside of torch.compile `fused_loss` hands
the CPU's gradient over without a copy.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import native
from .arguments import Problem, check_ranges
from .autograd import only_once

if TYPE_CHECKING:
    from types import ModuleType

_SIGNATURE = (
    "Tensor logits, Tensor targets, Tensor partial, Tensor input_lengths, Tensor target_lengths, "
    "int blank_id, bool states, Tensor weight"
)
_LIBRARY: Any = torch.library.Library("edge_imputer", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    f"imputer_loss({_SIGNATURE}, bool gradient, bool validate) -> (Tensor loss, Tensor saved)"
)
_LIBRARY.define(
    f"imputer_loss_backward(Tensor grad_loss, Tensor loss, Tensor saved, {_SIGNATURE}) -> Tensor"
)


@functools.cache
def triton_kernels() -> ModuleType | None:
    """The CUDA kernels, or None where Triton is not installed."""
    try:
        from . import triton_kernels
    except ImportError:
        return None
    return triton_kernels


# ------------------------------------------------------------------ forward


def _loss_cpu(*arguments: Any) -> tuple[Tensor, Tensor]:
    *fields, weight, gradient, _validate = arguments  # the kernels always check ranges
    assert native.NATIVE is not None
    return native.loss_and_gradient(native.NATIVE, Problem(*fields), weight, gradient=gradient)


def _loss_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    *fields, _weight, _gradient, validate = arguments
    problem = Problem(*fields)
    if validate:
        check_ranges(problem)
    kernels = triton_kernels()
    assert kernels is not None
    loss, workspace = kernels.forward(problem)
    return loss, workspace


def _loss_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    logits, targets, *_, gradient, _validate = arguments
    batch, n_frames, _ = logits.shape
    if logits.device.type == "cuda":
        kernels = triton_kernels()
        assert kernels is not None
        size = kernels.workspace_size(batch, n_frames, targets.shape[1])
        return logits.new_empty(batch, dtype=torch.float32), kernels.new_workspace(logits, size)
    rows_in_place = logits if logits.stride(2) == 1 else logits.contiguous()
    saved = torch.empty_like(rows_in_place) if gradient else logits.new_empty(0)
    return logits.new_empty(batch), saved


# ------------------------------------------------------------------ backward


def _factor(grad_loss: Tensor, loss: Tensor, weight: Tensor) -> Tensor:
    """What a finished gradient is still to be multiplied by, (B, 1, 1).

    0 where the loss is infinite: what comes from above may be so too, and 0 times that is not 0.
    """
    return (grad_loss / weight).masked_fill(loss == torch.inf, 0.0)[:, None, None]


def _backward_cpu(grad_loss: Tensor, loss: Tensor, saved: Tensor, *arguments: Any) -> Tensor:
    return saved * _factor(grad_loss, loss, arguments[-1])


def _backward_cuda(grad_loss: Tensor, loss: Tensor, saved: Tensor, *arguments: Any) -> Tensor:
    *fields, _weight = arguments
    kernels = triton_kernels()
    assert kernels is not None
    gradient: Tensor = kernels.backward(Problem(*fields), grad_loss, loss, saved)
    return gradient


def _backward_fake(_grad: Tensor, _loss: Tensor, saved: Tensor, *arguments: Any) -> Tensor:
    logits: Tensor = arguments[0]
    return torch.empty_like(logits if logits.device.type == "cuda" else saved)


_LIBRARY.impl("imputer_loss", _loss_cpu, "CPU")
_LIBRARY.impl("imputer_loss", _loss_cuda, "CUDA")
_LIBRARY.impl("imputer_loss_backward", _backward_cpu, "CPU")
_LIBRARY.impl("imputer_loss_backward", _backward_cuda, "CUDA")
torch.library.register_fake("edge_imputer::imputer_loss", _loss_fake)
torch.library.register_fake("edge_imputer::imputer_loss_backward", _backward_fake)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *fields, weight, _gradient, _validate = inputs
    tensors, ctx.constants = fields[:5], fields[5:]
    ctx.save_for_backward(*output, *tensors, weight)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 10
    loss, saved, *tensors, weight = ctx.saved_tensors
    gradient = torch.ops.edge_imputer.imputer_loss_backward(
        grad_loss, loss, saved, *tensors, *ctx.constants, weight
    )
    if not torch.compiler.is_compiling():
        gradient = only_once(gradient, tensors[0])
    return gradient, *(None,) * 9


torch.library.register_autograd("edge_imputer::imputer_loss", _differentiate, setup_context=_save)


# ------------------------------------------------------------------ eager mode


class _HandedOver(torch.autograd.Function):
    """The CPU path without the copy that a functional backward pass would make.

    The forward pass leaves the gradient as it will be wanted (`weight` foresees the reduction);
    the first backward pass hands it over, scaled in place if the reduction turned out otherwise.
    Any further one, over a retained graph, computes it anew.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, problem: Problem, weight: Tensor) -> Tensor:
        loss, gradient = _call(problem.with_logits(logits), weight, True)
        ctx.save_for_backward(
            logits,
            problem.targets,
            problem.partial,
            problem.input_lengths,
            problem.target_lengths,
            loss,
        )
        ctx.constants = problem.blank_id, problem.states
        ctx.weight, ctx.gradient = weight, gradient
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        as_foreseen = torch.equal(grad_loss, ctx.weight)
        if gradient is None or not as_foreseen or torch.is_grad_enabled():
            *tensors, loss = ctx.saved_tensors
        with torch.no_grad():
            if gradient is None:
                _, gradient = _call(Problem(*tensors, *ctx.constants), ctx.weight, True)
            if not as_foreseen:
                gradient.mul_(_factor(grad_loss, loss, ctx.weight))
        if torch.is_grad_enabled():
            gradient = only_once(gradient, tensors[0])
        return gradient, None, None


def _call(
    problem: Problem, weight: Tensor, gradient: bool, validate: bool = True
) -> tuple[Tensor, Tensor]:
    loss, saved = torch.ops.edge_imputer.imputer_loss(
        problem.logits,
        problem.targets,
        problem.partial,
        problem.input_lengths,
        problem.target_lengths,
        problem.blank_id,
        problem.states,
        weight,
        gradient,
        validate,
    )
    return loss, saved


def fused_loss(problem: Problem, weight: Tensor, *, validate: bool) -> Tensor:
    """Losses (B,) by the kernels of the logits' device.

    Parameters
    ----------
    weight : (B,), positive
        The gradient that each loss is expected to receive. Any other one is right too, and costs
        a pass over the gradient.
    """
    logits = problem.logits
    wanted = torch.is_grad_enabled() and logits.requires_grad
    if wanted and logits.device.type == "cpu" and not torch.compiler.is_compiling():
        unattached = problem.with_logits(logits.detach())  # no reference from the graph to itself
        loss: Tensor = _HandedOver.apply(logits, unattached, weight)  # type: ignore[no-untyped-call]
        return loss
    return _call(problem, weight, wanted, validate)[0]
