"""The strategies: by what clips are ranked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..objective.seeded import random_uniform
from .gradients import project
from .heard import Heard, How

STREAM = 32  # of an utterance's seed; streams above this are those of a scorer's own seed


@dataclass(frozen=True)
class Asked:
    """What a strategy's function is given."""

    heard: Heard
    parameters: tuple[nn.Parameter, ...]
    seeds: Tensor  # (B,)
    seconds: Tensor  # (B,)

    def expected_length(self, how: How) -> Tensor:
        """Expected gradient length, the mean over the loss's readouts, (B,)."""
        found = self.heard.hypotheses(how)
        squared = self.heard.options.squared
        return torch.stack(
            [h.expected_length(self.parameters, squared=squared) for h in found]
        ).mean(0)

    def gradient(self) -> Tensor:
        """Of the output layer, as if what is heard was right, (B, V, D + 1)."""
        found = self.heard.hypotheses("best")
        return torch.stack([h.gradients()[0] for h in found]).mean(0)


@dataclass(frozen=True)
class Strategy:
    """How clips are scored.

    Attributes
    ----------
    meaning : str
        For people.
    function : callable
        What is `Asked` -> scores (B,), and embeddings (B, D) or None.
    options : tuple of str
        Which of `ScoreOptions` it takes.
    needs_embedding, weighted : bool
        See `Scorer`.
    """

    meaning: str
    function: Callable[[Asked], tuple[Tensor, Tensor | None]]
    options: tuple[str, ...] = ()
    needs_embedding: bool = False
    weighted: bool = False


def _random(asked: Asked) -> tuple[Tensor, None]:
    uniform = random_uniform(asked.seeds, STREAM, (1,), torch.float64)[:, 0]
    return uniform * asked.seconds, None  # so that clips of any length are as likely by the second


def _least_confidence(asked: Asked) -> tuple[Tensor, None]:
    return asked.heard.doubt()[0], None


def _entropy(asked: Asked) -> tuple[Tensor, None]:
    return asked.heard.entropy(), None


def _egl(asked: Asked) -> tuple[Tensor, None]:
    return asked.expected_length("likeliest"), None


def _egl_sampled(asked: Asked) -> tuple[Tensor, None]:
    return asked.expected_length("drawn"), None


def _egl_bound(asked: Asked) -> tuple[Tensor, None]:
    return asked.heard.bound(), None


def _badge(asked: Asked) -> tuple[Tensor, Tensor]:
    gradient = asked.gradient()
    by_second = asked.seconds.clamp(min=1e-9).to(gradient).rsqrt()
    embedding = project(gradient * by_second[:, None, None], asked.heard.options.dimensions)
    return gradient.square().sum((1, 2)), embedding


def _egl_diversity(asked: Asked) -> tuple[Tensor, Tensor]:
    embedding = project(asked.gradient(), asked.heard.options.dimensions)
    return asked.expected_length("drawn"), nn.functional.normalize(embedding, dim=1)


_LENGTH = ("loss", "n_masks", "squared")
STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        "random": Strategy("any clip is as good as another", _random),
        "least-confidence": Strategy(
            "the model is least sure of what it hears", _least_confidence, ("loss",)
        ),
        "entropy": Strategy(
            "the model is undecided between tokens", _entropy, ("loss", "entropy", "n_samples")
        ),
        "egl": Strategy(
            "its label would move the model most, over the likeliest labels",
            _egl,
            (*_LENGTH, "n_best", "renormalise", "parameters"),
        ),
        "egl-sampled": Strategy(
            "its label would move the model most, over labels drawn as the model believes in them",
            _egl_sampled,
            (*_LENGTH, "n_samples", "parameters"),
        ),
        "egl-bound": Strategy(
            "its label would move the model most, by an upper bound", _egl_bound, _LENGTH
        ),
        "badge": Strategy(
            "it moves the model elsewhere than the others that are chosen",
            _badge,
            ("loss", "n_masks", "dimensions"),
            needs_embedding=True,
        ),
        "egl-diversity": Strategy(
            "its label would move the model most, and elsewhere than the others that are chosen",
            _egl_diversity,
            (*_LENGTH, "n_samples", "parameters", "dimensions"),
            needs_embedding=True,
            weighted=True,
        ),
    }
)
"""Every strategy by its name."""
