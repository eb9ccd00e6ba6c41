"""The Imputer loss and CTC, from raw logits: what users call."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from edge_imputer.errors import ObjectiveError

from . import native
from .arguments import Problem, Reduction, Semantics, check_ranges, make_problem
from .lattice import lattice_loss
from .operators import fused_loss, triton_kernels
from .reduction import reduction_loss

Backend = Literal["auto", "native", "triton", "torch"]


def imputer_loss(
    logits: Tensor,
    targets: Tensor,
    partial_alignment: Tensor | None,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *,
    blank_id: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
    semantics: Semantics = "token",
    validate: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    """Minus the log-probability of the targets given a partial alignment.

    The sum runs over every alignment that collapses to the target and agrees with what is filled
    in; each is the product of its open frames' probabilities (Chan et al. 2020, section 3.2).
    With every frame open it is CTC.

    Parameters
    ----------
    logits : float, (B, T, V)
        Raw scores; the log-softmax is part of the loss. Any strides: time-first scores go in as
        ``scores.transpose(0, 1)`` and are read in place. float16 and bfloat16 are computed in
        float32. A logit of -inf has probability 0. The kernels take one of -4,194,304 or less for
        that too, one above 4,194,304 for an overflow (the loss is NaN), and a loss above 1.8e8 for
        infinite.
    targets : integer, (B, S) padded with anything, or concatenated (sum of target_lengths,)
        Token ids without blanks.
    partial_alignment : integer, (B, T), or None
        `MASK` (-1) where a frame is open. Elsewhere a token id or the blank, or, with state
        semantics, a CTC state: 2k for the k-th blank, 2k + 1 for target token k. None: all open.
    input_lengths, target_lengths : integer, (B,)
        Frames and tokens of each utterance; what lies past them is ignored.
    blank_id : int
    reduction : "none", "mean" or "sum"
        As in `torch.nn.functional.ctc_loss`: the mean divides each loss by its target's length
        (1 if empty) and averages over the batch.
    zero_infinity : bool
        Count impossible utterances as 0 instead of infinity. They never have a gradient.
    semantics : "token" or "state"
        Whether a filled-in frame fixes what is spelled (the paper), or the very CTC state.
    validate : bool
        Check the range of every integer. On the CPU that costs next to nothing; on a GPU it waits
        for the device once a call.
    backend : "auto", "native", "triton" or "torch"
        The C kernels (CPU), the Triton kernels (CUDA), or plain torch (anywhere). "auto" takes
        the first that fits.

    Returns
    -------
    Tensor
        In nats; (B,) if `reduction` is "none", else a scalar. float64 for float64 logits, else
        float32.

    Raises
    ------
    ObjectiveError
        Also a ValueError: a shape, type, device or value that is not as described.
    """
    problem = make_problem(
        logits,
        targets,
        partial_alignment,
        input_lengths,
        target_lengths,
        blank_id=blank_id,
        semantics=semantics,
    )
    return _reduced_loss(problem, reduction, zero_infinity, validate, backend)


def ctc_loss(
    logits: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *,
    blank_id: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
    validate: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    """CTC from raw logits (Graves et al. 2006): `imputer_loss` with every frame open.

    With the kernels, faster than `torch.nn.functional.ctc_loss` and with gradients that stay exact
    on long audio; the "torch" path is that function. Note that `logits` are batch-first and not
    normalised. Parameters as in `imputer_loss`.
    """
    problem = make_problem(logits, targets, None, input_lengths, target_lengths, blank_id=blank_id)
    return _reduced_loss(problem, reduction, zero_infinity, validate, backend)


class ImputerLoss(nn.Module):
    """`imputer_loss` as a module; the arguments are those of the function.

    Examples
    --------
    >>> criterion = ImputerLoss(zero_infinity=True)
    >>> loss = criterion(logits, targets, partial_alignment, input_lengths, target_lengths)
    """

    def __init__(
        self,
        *,
        blank_id: int = 0,
        reduction: Reduction = "mean",
        zero_infinity: bool = False,
        semantics: Semantics = "token",
        validate: bool = True,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.blank_id = blank_id
        self.reduction: Reduction = reduction
        self.zero_infinity = zero_infinity
        self.semantics: Semantics = semantics
        self.validate = validate
        self.backend: Backend = backend

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        partial_alignment: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
    ) -> Tensor:
        """Loss of one batch; see `imputer_loss`."""
        return imputer_loss(
            logits,
            targets,
            partial_alignment,
            input_lengths,
            target_lengths,
            blank_id=self.blank_id,
            reduction=self.reduction,
            zero_infinity=self.zero_infinity,
            semantics=self.semantics,
            validate=self.validate,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        return (
            f"blank_id={self.blank_id}, reduction={self.reduction!r}, "
            f"zero_infinity={self.zero_infinity}, semantics={self.semantics!r}"
        )


def _reduced_loss(
    problem: Problem, reduction: str, zero_infinity: bool, validate: bool, backend: str
) -> Tensor:
    weight = reduction_weight(reduction, problem.logits, problem.target_lengths)
    chosen = choose_backend(problem) if backend == "auto" else _require(problem, backend)
    if chosen != "triton":  # which reads half precision as it is
        problem = problem.at_least_float32()
    if chosen != "torch":
        losses = fused_loss(problem, weight, validate=validate)
    else:
        if validate:
            check_ranges(problem)
        if problem.states:
            losses = lattice_loss(problem)
        else:
            losses = reduction_loss(problem, zero_infinity=zero_infinity)
    if zero_infinity:
        losses = losses.masked_fill(losses.isinf(), 0.0)
    return losses if reduction == "none" else (losses * weight).sum()


def reduction_weight(reduction: str, like: Tensor, target_lengths: Tensor) -> Tensor:
    """The factor of each utterance's loss in the reduced one, (B,)."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    ones = torch.ones(len(target_lengths), dtype=dtype, device=like.device)
    if reduction in ("none", "sum"):
        return ones
    if reduction == "mean":
        return ones / len(target_lengths) / target_lengths.clamp(min=1)
    raise ObjectiveError(f"reduction: expected 'none', 'mean' or 'sum', got {reduction!r}")


def choose_backend(problem: Problem) -> str:
    """The fastest path that takes this batch."""
    device, dtype = problem.logits.device.type, problem.logits.dtype
    if device == "cpu" and native.NATIVE is not None:
        return "native"
    if device == "cuda" and dtype != torch.float64 and (kernels := triton_kernels()) is not None:
        return "triton" if kernels.supported(problem) else "torch"
    return "torch"


def _require(problem: Problem, backend: str) -> str:
    """The path that was asked for by name."""
    device = problem.logits.device.type
    if backend == "torch":
        return backend
    if backend == "native":
        if device != "cpu":
            raise ObjectiveError(
                f"backend 'native' runs on the CPU, logits are on {device}; use backend='auto'"
            )
        if native.NATIVE is None:
            raise ObjectiveError(
                "backend 'native': the C kernels were not built; install edge-imputer again where "
                "there is a C compiler, or leave it to backend='auto'"
            )
        return backend
    if backend == "triton":
        if device != "cuda":
            raise ObjectiveError(
                f"backend 'triton' runs on CUDA, logits are on {device}; use backend='auto'"
            )
        kernels = triton_kernels()
        if kernels is None:
            raise ObjectiveError("backend 'triton': expected the package triton; pip install it")
        if not kernels.supported(problem):
            raise ObjectiveError(
                "backend 'triton' takes float16, bfloat16 and float32 logits and targets of "
                f"{kernels.LONGEST} tokens, got {problem.logits.dtype} and "
                f"{problem.targets.shape[1]}; use backend='torch'"
            )
        return backend
    raise ObjectiveError(
        f"backend: expected 'auto', 'native', 'triton' or 'torch', got {backend!r}"
    )
