"""The slow truth about labelings: all of them, by enumerating every path."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_imputer.train.active.labelings import Labelings


@dataclass(frozen=True)
class Layer:
    """An output layer over T frames of what it reads."""

    inputs: Tensor  # (T, D)
    weight: Tensor  # (V, D), with a gradient
    bias: Tensor  # (V,), with a gradient

    @property
    def log_probs(self) -> Tensor:
        """(T, V), with a graph."""
        return F.linear(self.inputs, self.weight, self.bias).log_softmax(-1)


def random_layer(seed: int, n_frames: int, n_tokens: int, sharpness: float = 1.0) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    normal = [
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((n_frames, 3), (n_tokens, 3), (n_tokens,))
    ]
    return Layer(normal[0], (sharpness * normal[1]).requires_grad_(), normal[2].requires_grad_())


def enumerated(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    """Probability of every labeling that a path through (T, V) spells; blank 0."""
    n_frames, n_tokens = log_probs.shape
    probabilities = log_probs.detach().exp().tolist()
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(n_tokens), repeat=n_frames):
        p = 1.0
        for frame, token in zip(probabilities, path, strict=True):
            p *= frame[token]
        spelled = tuple(token for token, _ in itertools.groupby(path) if token)
        found[spelled] = found.get(spelled, 0.0) + p
    return found


def as_labelings(all_labels: dict[tuple[int, ...], float]) -> Labelings:
    """The same for one utterance, (N, 1, S), weighted by their probabilities."""
    longest = max(1, *map(len, all_labels))
    tokens = torch.zeros(len(all_labels), 1, longest, dtype=torch.long)
    for row, labels in zip(tokens, all_labels, strict=True):
        row[0, : len(labels)] = torch.tensor(labels, dtype=torch.long)
    lengths = torch.tensor([[len(labels)] for labels in all_labels])
    weights = torch.tensor(list(all_labels.values()), dtype=torch.float64)[:, None]
    return Labelings(tokens, lengths, weights)


def torch_loss(log_probs: Tensor, labels: tuple[int, ...]) -> Tensor:
    """-log p(labels) by torch's own CTC, with a graph."""
    targets = torch.tensor([labels], dtype=torch.long).view(1, len(labels))
    lengths = torch.tensor([len(log_probs)]), torch.tensor([len(labels)])
    return F.ctc_loss(log_probs[:, None], targets, *lengths, reduction="sum")


def squared_length(loss: Tensor, parameters: tuple[Tensor, ...]) -> float:
    """Of the loss's gradient with respect to the parameters, by autograd."""
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    return float(sum((g**2).sum() for g in gradients))


def exact_lengths(layer: Layer) -> tuple[Tensor, Tensor]:
    """Probability and squared gradient length of every labeling, (N,) each, by autograd."""
    log_probs = layer.log_probs
    labels = enumerated(log_probs)
    squares = [squared_length(torch_loss(log_probs, y), (layer.weight, layer.bias)) for y in labels]
    return (
        torch.tensor(list(labels.values()), dtype=torch.float64),
        torch.tensor(squares, dtype=torch.float64),
    )
