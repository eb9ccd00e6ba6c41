"""Blocks that the backward pass computes anew, instead of keeping what is inside them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, *args: Tensor) -> Tensor:
    """``block(*args)``, of which only the arguments are kept for the backward pass.

    Outputs, gradients and statistics are those of the plain call: dropout draws the same numbers
    again, and batch norm sees the batch a second time without counting it twice.
    """
    contexts = functools.partial(_contexts, block)
    out: Tensor = checkpoint(block, *args, use_reentrant=False, context_fn=contexts)
    return out


def _contexts(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """What the first and the second computation run in."""
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch norm as they are.

    They go into the computation as before, which must keep as many tensors as the first one did,
    but nothing of the batch is added to them.
    """
    norms = [norm for norm in block.modules() if isinstance(norm, _BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
