"""Labelings and gradients of active learning, against the enumeration of all of them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.specs import TokenSpec
from edge_imputer.tokens import Tokenizer
from edge_imputer.train.active.gradients import (
    label_gradients,
    layer_gradients,
    lengths_of,
    path_bound,
    project,
)
from edge_imputer.train.active.labelings import best_labeling, collapse, sample_labelings
from edge_imputer.train.active.nbest import likeliest_labelings
from edge_imputer.train.objective import MASK, imputer_loss
from edge_imputer.train.objective.reduction import clamp_to_alignment

from .active_cases import (
    Layer,
    as_labelings,
    enumerated,
    exact_lengths,
    random_layer,
    squared_length,
    torch_loss,
)

layers = st.builds(
    random_layer,
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.integers(2, 3),
    st.sampled_from([0.3, 1.0, 4.0]),
)


def frames(layer: Layer) -> torch.Tensor:
    return torch.tensor([len(layer.inputs)])


@settings(max_examples=40)
@given(layers)
def test_all_labelings_are_sure_and_teach_nothing_on_average(layer):
    log_probs = layer.log_probs.detach()
    labels = as_labelings(enumerated(log_probs))
    losses, delta = label_gradients(log_probs[None], frames(layer), labels)
    torch.testing.assert_close((-losses).exp(), labels.weights, rtol=1e-10, atol=1e-12)
    assert float(labels.weights.sum()) == pytest.approx(1, abs=1e-12)
    mean = (labels.weights[..., None, None] * delta).sum(0)
    assert float(mean.abs().max()) < 1e-12


@settings(max_examples=25, deadline=None)
@given(layers)
def test_the_closed_form_is_autograds(layer):
    log_probs = layer.log_probs
    labels = enumerated(log_probs)
    _, delta = label_gradients(log_probs.detach()[None], frames(layer), as_labelings(labels))
    found = layer_gradients(delta, layer.inputs[None])
    for y, gradient in zip(labels, found[:, 0], strict=True):
        loss = torch_loss(log_probs, y)
        weight, bias = torch.autograd.grad(loss, (layer.weight, layer.bias), retain_graph=True)
        assert float((gradient[:, :-1] - weight).abs().max()) < 1e-10
        assert float((gradient[:, -1] - bias).abs().max()) < 1e-10
        expected = squared_length(loss, (layer.weight, layer.bias))
        assert float(lengths_of(gradient, squared=True)) == pytest.approx(expected, rel=1e-10)
        assert float(lengths_of(gradient, squared=False)) == pytest.approx(math.sqrt(expected))


@settings(max_examples=25, deadline=None)
@given(layers)
def test_the_bound_is_above_the_exact_expectation(layer):
    p, squares = exact_lengths(layer)
    log_probs, n = layer.log_probs.detach()[None], frames(layer)
    bound = path_bound(log_probs, layer.inputs[None], n, squared=True)
    assert float(bound) >= float(p @ squares) * (1 - 1e-9)
    root = path_bound(log_probs, layer.inputs[None], n, squared=False)
    assert float(root) >= float(p @ squares.sqrt()) * (1 - 1e-9)


def test_the_bound_is_the_expectation_of_one_frame():
    """There a path is a labeling."""
    layer = random_layer(3, 1, 3)
    p, squares = exact_lengths(layer)
    bound = path_bound(
        layer.log_probs.detach()[None], layer.inputs[None], frames(layer), squared=True
    )
    assert float(bound) == pytest.approx(float(p @ squares), rel=1e-12)


@pytest.mark.parametrize("sharpness", [0.5, 3.0])
def test_draws_are_unbiased(sharpness):
    n = 4000
    layer = random_layer(11, 4, 3, sharpness)
    p, squares = exact_lengths(layer)
    exact = float(p @ squares)
    log_probs = layer.log_probs.detach()[None]
    drawn = sample_labelings(log_probs, frames(layer), n, torch.tensor([5]))
    _, delta = label_gradients(log_probs, frames(layer), drawn)
    lengths = lengths_of(layer_gradients(delta, layer.inputs[None]), squared=True)
    error = math.sqrt(float(p @ (squares - exact) ** 2) / n)
    assert abs(float((drawn.weights * lengths).sum()) - exact) < 3 * error
    counts: dict[tuple[int, ...], int] = {}
    for row, size in zip(drawn.tokens[:, 0].tolist(), drawn.lengths[:, 0].tolist(), strict=True):
        counts[tuple(row[:size])] = counts.get(tuple(row[:size]), 0) + 1
    for y, probability in enumerated(log_probs[0]).items():
        deviation = math.sqrt(n * probability * (1 - probability))
        assert abs(counts.get(y, 0) - n * probability) < 4 * deviation + 1


@settings(max_examples=30, deadline=None)
@given(st.lists(layers, min_size=1, max_size=3), st.integers(0, 3))
def test_a_beam_of_all_finds_all_labelings(many, extra):
    """In one padded batch, each utterance with its own number of labelings."""
    longest = max(len(layer.inputs) for layer in many)
    log_probs = torch.zeros(len(many), longest + extra, 3, dtype=torch.float64).log_softmax(-1)
    for row, layer in zip(log_probs, many, strict=True):
        row[: len(layer.inputs)] = -torch.inf
        row[: len(layer.inputs), : layer.weight.shape[0]] = layer.log_probs.detach()
    n_frames = torch.cat([frames(layer) for layer in many])
    found = likeliest_labelings(log_probs, n_frames, 40)
    for i, layer in enumerate(many):
        truth = enumerated(layer.log_probs)
        rows = zip(
            found.tokens[:, i].tolist(),
            found.lengths[:, i].tolist(),
            found.weights[:, i].tolist(),
            strict=True,
        )
        labels = [tuple(row[:size]) for row, size, exists in rows if exists]
        assert sorted(labels) == sorted(truth)
        ordered = [truth[y] for y in labels]
        assert all(after <= before + 1e-12 for before, after in itertools.pairwise(ordered))
        assert found.weights[:, i].tolist() == [1.0] * len(labels) + [0.0] * (40 - len(labels))


def test_a_narrow_beam_has_distinct_labelings_that_are_likely():
    """Wider beams only find more; of long utterances the best is at least greedy decoding's."""
    generator = torch.Generator().manual_seed(2)
    log_probs = (3 * torch.randn(4, 60, 6, generator=generator)).double().log_softmax(-1)
    n_frames = torch.tensor([60, 41, 1, 22])
    greedy, _ = label_gradients(log_probs, n_frames, best_labeling(log_probs, n_frames))
    before = None
    for n in (1, 5, 20):
        found = likeliest_labelings(log_probs, n_frames, n)
        losses, _ = label_gradients(log_probs, n_frames, found)
        for i in range(4):
            real = found.weights[:, i] > 0
            rows = zip(found.tokens[:, i][real].tolist(), found.lengths[:, i][real], strict=True)
            assert len({tuple(row[:size]) for row, size in rows}) == int(real.sum())
        total = (found.weights * (-losses).exp()).sum(0)
        assert (total <= 1 + 1e-9).all()
        assert before is None or (total >= before).all()
        before = total
    assert (losses.amin(0) <= greedy[0] + 1e-9).all()


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=7), min_size=1, max_size=4))
def test_collapse_is_the_tokenizers(paths):
    tokenizer = Tokenizer(TokenSpec(characters=(" ", "a", "b")))
    longest = max(map(len, paths)) + 1
    padded = torch.tensor([path + [3] * (longest - len(path)) for path in paths])
    tokens, lengths = collapse(padded, torch.tensor([len(path) for path in paths]))
    found = [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    assert found == [tokenizer.collapse(path) for path in paths]
    assert not any(any(row[n:]) for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True))


@settings(max_examples=25, deadline=None)
@given(layers, st.lists(st.integers(-1, 2), min_size=4, max_size=4))
def test_what_an_imputer_is_shown_is_certain(layer, shown):
    """CTC over certain frames is the Imputer's loss, with its gradient; open frames sum to 1."""
    n, n_tokens = len(layer.inputs), layer.weight.shape[0]
    partial = torch.tensor([shown[:n]]).clamp(max=n_tokens - 1)
    logits = torch.nn.functional.linear(layer.inputs, layer.weight, layer.bias)[None]
    log_probs = clamp_to_alignment(logits.detach().log_softmax(-1), partial)
    truth = {y: p for y, p in enumerated(log_probs[0]).items() if p > 0}
    labels = as_labelings(truth)
    losses, delta = label_gradients(log_probs, frames(layer), labels)
    assert float((-losses).exp().sum()) == pytest.approx(1, abs=1e-12)
    assert float((labels.weights[..., None, None] * delta).sum(0).abs().max()) < 1e-12
    assert (delta[:, partial != MASK].abs() < 1e-14).all()
    gradients = layer_gradients(delta, layer.inputs[None])
    for i, y in enumerate(truth):
        targets = torch.tensor([y or (1,)])
        sizes = frames(layer), torch.tensor([len(y)])
        loss = imputer_loss(logits, targets, partial, *sizes, reduction="sum")
        assert float(losses[i]) == pytest.approx(float(loss.detach()), abs=1e-10)
        expected = squared_length(loss, (layer.weight, layer.bias))
        assert float(lengths_of(gradients[i], squared=True)) == pytest.approx(expected, abs=1e-10)
    bound = path_bound(log_probs, layer.inputs[None], frames(layer), squared=True)
    exact = (labels.weights * lengths_of(gradients, squared=True)).sum()
    assert float(bound) >= float(exact) * (1 - 1e-9)


def test_a_projection_keeps_distances():
    gradients = torch.randn(40, 20, 50, generator=torch.Generator().manual_seed(1))
    small = project(gradients, 256)
    assert small.shape == (40, 256)
    ratio = torch.pdist(small) / torch.pdist(gradients.flatten(1))
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert ratio.std() < 1.5 * math.sqrt(1 / (2 * 256))
    torch.testing.assert_close(project(gradients, 1000), gradients.flatten(1))
