"""Optimisers, and the learning rate as a pure function of the update.

There is no scheduler with a state of its own: a resumed run computes the same rate from the number
of the update.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edge_imputer.train.recipe import OptimizerSection


def build_optimizer(
    parameters: Iterable[nn.Parameter], section: OptimizerSection
) -> torch.optim.Optimizer:
    """The recipe's optimiser; `set_learning_rate` follows its schedule."""
    rate, decay = section.learning_rate, section.weight_decay
    if section.kind == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=section.betas[0])
    kind = torch.optim.AdamW if section.kind == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, betas=section.betas, eps=section.epsilon, weight_decay=decay)


def rate_factor(section: OptimizerSection, update: int, updates: int) -> float:
    """What the recipe's learning rate is multiplied by in update number `update`, from 0.

    It rises linearly over the warm-up, then follows the schedule. ``noam`` is the inverse square
    root of Vaswani et al. 2017, section 5.3, scaled so that its peak is the recipe's rate.
    """
    rise = section.warmup_updates or max(1, round(section.warmup * updates))
    if update < rise:
        return (update + 1) / rise
    progress = min(1.0, (update - rise) / max(1, updates - rise))
    if section.schedule == "cosine":
        return section.floor + (1 - section.floor) * 0.5 * (1 + math.cos(math.pi * progress))
    if section.schedule == "linear":
        return section.floor + (1 - section.floor) * (1 - progress)
    if section.schedule == "noam":
        return math.sqrt(rise / (update + 1))
    if section.schedule == "steps":
        share = update / updates
        return math.prod(factor for start, factor in section.steps if share >= start)
    return 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` in the next update."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class MovingAverage:
    """Exponential moving average of a module's weights (EMA), buffers included.

    The decay is at most ``(1 + n) / (10 + n)`` after n updates, so that the first, random weights
    are forgotten soon. Integers (counters) are copied.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {name: value.clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the module's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)

    @contextmanager
    def swapped_into(self, module: nn.Module) -> Iterator[None]:
        """The module with the average as its weights, for the time of a ``with``."""
        kept = {name: value.clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.weights)
        try:
            yield
        finally:
            module.load_state_dict(kept)

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        return {"weights": self.weights, "updates": self.updates}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a checkpoint."""
        weights, updates = state["weights"], state["updates"]
        assert isinstance(weights, dict)
        assert isinstance(updates, int)
        self.updates = updates
        for name, value in weights.items():
            self.weights[name].copy_(value)


def mean_weights(states: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of several checkpoints' weights; integers are those of the last one."""
    total: dict[str, Tensor] = {}
    n = 0
    for state in states:
        n += 1
        for name, value in state.items():
            if not value.is_floating_point():
                total[name] = value
            elif name in total:
                total[name] = total[name] + value.double()
            else:
                total[name] = value.double()
    last = state if n else {}
    return {
        name: (value / n).to(last[name].dtype) if value.is_floating_point() else value
        for name, value in total.items()
    }
