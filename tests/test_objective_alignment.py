"""Best and random alignments are those of enumeration; token times are where the tokens are."""

from __future__ import annotations

import doctest
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edge_imputer.errors import ObjectiveError
from edge_imputer.train.objective import alignment as alignment_module
from edge_imputer.train.objective.alignment import (
    Alignment,
    TokenSpan,
    best_alignment,
    sample_alignment,
)
from edge_imputer.train.objective.arguments import MASK, Problem
from edge_imputer.train.objective.lattice import (
    lattice_loss,
    loss_and_gradient,
    sample_states,
    viterbi_states,
)

from .objective_cases import Ints, Truth, problems, random_problem, truth_of

BOTH = pytest.mark.parametrize("states", [False, True], ids=["token", "state"])
SEEDS = st.integers(0, 2**32 - 1)


def arguments(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return problem.logits, problem.targets, problem.input_lengths, problem.target_lengths


def given_partial(problem: Problem) -> dict[str, Any]:
    return {
        "partial_alignment": problem.partial,
        "blank_id": problem.blank_id,
        "semantics": "state" if problem.states else "token",
    }


def best(problem: Problem) -> Alignment:
    return best_alignment(*arguments(problem), **given_partial(problem))


def sampled(problem: Problem, seed: int, n_samples: int | None = None) -> Alignment:
    return sample_alignment(
        *arguments(problem),
        **given_partial(problem),
        n_samples=n_samples,
        generator=torch.Generator().manual_seed(seed),
    )


def seeded_problem(seed: int, *, states: bool, batch: int = 6) -> Problem:
    return random_problem(np.random.default_rng(seed), batch=batch, states=states)


def possible(one: Truth) -> Truth:
    """Without the paths of probability 0."""
    keep = one.log_probs > -np.inf
    return Truth(one.paths[keep], one.states[keep], one.log_probs[keep], one.loss, one.gradient)


@BOTH
def test_best_alignment_is_the_best_of_all(states):
    n_found = n_none = 0
    for problem in problems(11, 1280, states=states):
        found = best(problem)
        for row, length in enumerate(problem.input_lengths.tolist()):
            one = truth_of(problem, row)
            if not len(one.paths):
                assert found.log_prob[row] == -torch.inf
                assert torch.all(found.tokens[row] == problem.blank_id)
                assert torch.all(found.states[row] == -1)
                n_none += 1
                continue
            assert found.log_prob[row].item() == pytest.approx(one.log_probs.max(), abs=1e-12)
            index = one.paths.tolist().index(found.tokens[row, :length].tolist())
            assert one.log_probs[index] == pytest.approx(one.log_probs.max(), abs=1e-12)
            assert found.states[row, :length].tolist() == one.states[index].tolist()
            assert torch.all(found.tokens[row, length:] == problem.blank_id)
            assert torch.all(found.states[row, length:] == 2 * problem.target_lengths[row])
            n_found += 1
    assert n_found >= 1000
    assert n_none >= 75


@BOTH
def test_of_equally_probable_paths_the_one_that_stays_is_best(states):
    """Walking back, the later state: staying before a step, a step before two."""
    n_ties = 0
    for problem in problems(12, 960, states=states):
        even = problem.with_logits(torch.zeros_like(problem.logits))
        found = viterbi_states(even)
        for row, length in enumerate(problem.input_lengths.tolist()):
            one = truth_of(even, row)
            if len(one.paths):
                expected = max(path[::-1] for path in one.states.tolist())[::-1]
                assert found[row, :length].tolist() == expected
                n_ties += len(one.paths) > 1
    assert n_ties > 120


@BOTH
def test_logits_of_minus_infinity_are_never_chosen(states):
    rng = np.random.default_rng(13)
    n_none = 0
    for problem in problems(13, 960, states=states):
        never = torch.from_numpy(rng.random(problem.logits.shape) < 0.25)
        never[..., 0] = False
        problem = problem.with_logits(problem.logits.masked_fill(never, -torch.inf))
        found, random = best(problem), sampled(problem, 0)
        for row in range(len(never)):
            one = possible(truth_of(problem, row))
            highest = one.log_probs.max() if len(one.paths) else -np.inf
            assert found.log_prob[row].item() == pytest.approx(highest, abs=1e-12)
            assert bool(random.log_prob[row] > -torch.inf) == (len(one.paths) > 0)
            n_none += not len(one.paths)
    assert n_none > 60


def reference_walk(one: Truth, uniforms: Tensor, last: int) -> list[int]:
    """States drawn backwards from enumerated paths, in the order and from the numbers promised."""
    paths, weights = one.states, one.posterior
    state, walked = last, []
    for t in range(paths.shape[1] - 1, -1, -1):
        candidates = [state, state - 1, state - 2]
        mass = np.array([weights[paths[:, t] == candidate].sum() for candidate in candidates])
        index = int(np.argmax(np.cumsum(mass) > float(uniforms[t]) * mass.sum()))
        state = candidates[index]
        keep = paths[:, t] == state
        paths, weights = paths[keep], weights[keep]
        walked.append(state)
    return walked[::-1]


@BOTH
def test_samples_follow_their_uniform_numbers(states):
    """What any other implementation is fed the same numbers for."""
    generator = torch.Generator().manual_seed(0)
    n_walks = 0
    for problem in problems(14, 240, states=states):
        shape = (3, *problem.logits.shape[:2])
        uniforms = torch.rand(shape, generator=generator, dtype=torch.float64)
        drawn = sample_states(problem, uniforms)
        assert drawn.shape == shape
        for row, length in enumerate(problem.input_lengths.tolist()):
            one, last = truth_of(problem, row), 2 * int(problem.target_lengths[row])
            for sample in range(3):
                states_of_row = drawn[sample, row]
                if not len(one.paths):
                    assert torch.all(states_of_row == -1)
                    continue
                expected = reference_walk(one, uniforms[sample, row], last)
                assert states_of_row[:length].tolist() == expected
                assert torch.all(states_of_row[length:] == last)
                n_walks += 1
    assert n_walks > 600


def test_extreme_uniform_numbers_give_possible_paths():
    for number in (0.0, 1 - 2.0**-24):
        for problem in problems(15, 80):
            problem = problem.with_logits(problem.logits.float())
            shape = (1, *problem.logits.shape[:2])
            drawn = sample_states(problem, torch.full(shape, number))[0]
            for row, length in enumerate(problem.input_lengths.tolist()):
                one = truth_of(problem, row)
                if len(one.paths):
                    assert drawn[row, :length].tolist() in one.states.tolist()


@BOTH
def test_samples_come_as_often_as_their_posterior(states):
    """Every path of 480 utterances within 5 standard deviations, in 3,000 samples."""
    n_samples, n_paths = 3000, 0
    for problem in problems(16, 480, states=states):
        drawn = sampled(problem, 1, n_samples)
        for row, length in enumerate(problem.input_lengths.tolist()):
            one = truth_of(problem, row)
            if not len(one.paths) or not length:
                continue
            paths, counts = np.unique(drawn.tokens[:, row, :length], axis=0, return_counts=True)
            count = {tuple(path): int(n) for path, n in zip(paths.tolist(), counts, strict=True)}
            assert set(count) <= set(map(tuple, one.paths.tolist()))
            for path, p in zip(one.paths.tolist(), one.posterior, strict=True):
                deviation = math.sqrt(n_samples * p * (1 - min(p, 1)))
                assert abs(count.get(tuple(path), 0) - n_samples * p) <= 5 * deviation + 1
                n_paths += len(one.paths) > 1
    assert n_paths > 300


@BOTH
def test_the_mean_sample_is_softmax_minus_gradient(states):
    """E[one-hot of the token] is the posterior that the loss's gradient holds."""
    n_samples = 3000
    for problem in problems(17, 240, states=states):
        loss, gradient = loss_and_gradient(problem, need_gradient=True)
        assert gradient is not None
        posterior = (problem.logits.softmax(-1) - gradient).clamp(0, 1)
        tokens = sampled(problem, 2, n_samples).tokens
        one_hot = torch.nn.functional.one_hot(tokens, problem.logits.shape[2])
        mean = one_hot.double().mean(0)
        deviation = (posterior * (1 - posterior) / n_samples).sqrt()
        counted = problem.frame_is_open() & (loss < torch.inf)[:, None]
        assert torch.all(((mean - posterior).abs() <= 5 * deviation + 1 / n_samples)[counted])


@BOTH
@settings(max_examples=80, deadline=None)
@given(seed=SEEDS)
def test_no_alignment_beats_the_sum(states, seed):
    problem = seeded_problem(seed, states=states)
    most = -lattice_loss(problem) + 1e-12
    assert torch.all(best(problem).log_prob <= most)
    samples = sampled(problem, seed % 1000, 5)
    assert torch.all(samples.log_prob <= most)
    assert torch.all(samples.log_prob <= best(problem).log_prob + 1e-12)


@BOTH
@settings(max_examples=80, deadline=None)
@given(seed=SEEDS)
def test_times_are_where_the_tokens_are(states, seed):
    problem = seeded_problem(seed, states=states)
    samples = sampled(problem, seed % 1000, 2)
    for found in (best(problem), samples.sample(0), samples.sample(1)):
        spans = found.spans()
        for row, (length, size) in enumerate(
            zip(problem.input_lengths.tolist(), problem.target_lengths.tolist(), strict=True)
        ):
            starts, ends = found.token_starts[row].tolist(), found.token_ends[row].tolist()
            if found.log_prob[row] == -torch.inf:
                assert spans[row] == []
                assert set(starts + ends) <= {-1}
                assert torch.all(found.frame_scores[row] == -torch.inf)
                assert torch.all(found.token_scores[row] == -torch.inf)
                continue
            assert set(starts[size:] + ends[size:]) <= {-1}
            assert torch.all(found.token_scores[row, size:] == 0)
            check_utterance(problem, found, row, length)
            expected = merged(found, row, length, problem.blank_id)
            assert [span[:3] for span in spans[row]] == [span[:3] for span in expected]
            assert [s.token for s in spans[row]] == problem.targets[row, :size].tolist()
            scores = [span.score for span in expected]
            assert [span.score for span in spans[row]] == pytest.approx(scores, abs=1e-12)
            for k, span in enumerate(expected):
                assert (starts[k], ends[k]) == (span.start, span.end)
                mean = found.frame_scores[row, int(span.start) : int(span.end)].mean()
                assert found.token_scores[row, k].item() == pytest.approx(mean.item(), abs=1e-12)


def check_utterance(problem: Problem, found: Alignment, row: int, length: int) -> None:
    """Scores are the log-probabilities of open frames, and agree with the partial alignment."""
    tokens, is_open = found.tokens[row], problem.frame_is_open()[row]
    log_probs = problem.logits[row].log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(found.frame_scores[row], log_probs.where(is_open, 0.0))
    torch.testing.assert_close(found.log_prob[row], found.frame_scores[row].sum())
    fixed = (problem.partial[row] != MASK)[:length].nonzero()[:, 0]
    values = (found.states if problem.states else found.tokens)[row]
    assert torch.equal(values[fixed], problem.partial[row][fixed])


def merged(found: Alignment, row: int, length: int, blank: int) -> list[TokenSpan]:
    """As torchaudio's merge_tokens: runs of equal tokens that are not blank."""
    spans, start = [], 0
    probabilities = found.frame_scores[row].exp()
    for token, run in itertools.groupby(found.tokens[row, :length].tolist()):
        end = start + len(list(run))
        if token != blank:
            spans.append(TokenSpan(token, start, end, float(probabilities[start:end].mean())))
        start = end
    return spans


def test_times_in_seconds():
    logits = torch.zeros(1, 6, 3)
    logits[0, torch.arange(6), torch.tensor([1, 1, 0, 2, 2, 2])] = 20.0
    found = best_alignment(logits, torch.tensor([[1, 2]]), torch.tensor([6]), torch.tensor([2]))
    (frames,), (seconds,) = found.spans(), found.spans(frame_s=0.04)
    assert [span[:3] for span in frames] == [(1, 0, 2), (2, 3, 6)]
    assert [span[:3] for span in seconds] == [
        (1, 0.0, pytest.approx(0.08)),
        (2, pytest.approx(0.12), pytest.approx(0.24)),
    ]
    assert all(span.score > 0.999 for span in frames)


def test_the_examples_of_the_documentation_run():
    tests = doctest.testmod(alignment_module, extraglobs={"torch": torch})
    assert tests.attempted >= 4
    assert not tests.failed


@BOTH
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_an_utterance_does_not_feel_its_batch(states, seed):
    """Alone and without padding, or with garbage past its lengths: the same alignment."""
    problem = seeded_problem(seed, states=states)
    uniforms = torch.rand(2, *problem.logits.shape[:2], dtype=torch.float64)
    together = viterbi_states(problem), sample_states(problem, uniforms)
    for row, (length, size) in enumerate(
        zip(problem.input_lengths.tolist(), problem.target_lengths.tolist(), strict=True)
    ):
        if not length:
            continue
        alone = Problem(
            problem.logits[row : row + 1, :length],
            problem.targets[row : row + 1, :size],
            problem.partial[row : row + 1, :length],
            problem.input_lengths[row : row + 1],
            problem.target_lengths[row : row + 1],
            problem.blank_id,
            states,
        )
        assert torch.equal(viterbi_states(alone)[0], together[0][row, :length])
        drawn = sample_states(alone, uniforms[:, row : row + 1, :length])
        assert torch.equal(drawn[:, 0], together[1][:, row, :length])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_smaller_floats_are_computed_in_float32(dtype):
    problem = seeded_problem(3, states=False)
    small = problem.with_logits(problem.logits.to(dtype))
    wide = problem.with_logits(small.logits.float())
    for ours, theirs in ((best(small), best(wide)), (sampled(small, 0, 2), sampled(wide, 0, 2))):
        assert ours.frame_scores.dtype == torch.float32
        assert torch.equal(ours.states, theirs.states)
        assert torch.equal(ours.log_prob, theirs.log_prob)


def test_samples_share_a_first_dimension():
    problem = seeded_problem(4, states=False)
    single, many = sampled(problem, 5), sampled(problem, 5, 3)
    for name, field in vars(many).items():
        assert field.shape == (3, *getattr(single, name).shape), name
        assert torch.equal(getattr(many.sample(1), name), field[1])
    assert not many.tokens.requires_grad
    assert not torch.equal(many.states[0], many.states[1])
    with pytest.raises(ObjectiveError, match=r"got 3 samples; take one with alignment.sample"):
        many.spans()
    with pytest.raises(ObjectiveError, match=r"sample: expected an alignment from sample_align"):
        single.sample(0)


def test_the_generator_alone_decides():
    problem = seeded_problem(4, states=False)
    before = torch.get_rng_state()
    first, again, other = (sampled(problem, seed, 4).states for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(sampled(problem, 5).states, sampled(problem, 5, 1).states[0])
    torch.manual_seed(5)
    drawn = sample_alignment(*arguments(problem), **given_partial(problem), n_samples=4)
    assert torch.equal(drawn.states, first)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_logits_in_open_frames_leave_no_alignment(bad):
    logits = torch.randn(3, 5, 4)
    partial = torch.full((3, 5), MASK)
    partial[1, 2] = 1
    logits[0, 2, 3] = logits[1, 2, 3] = logits[2, 4, 3] = bad  # open, filled in, past the end
    batch = torch.tensor([[1], [1], [1]]), torch.tensor([5, 5, 4]), torch.tensor([1, 1, 1])
    for found in (
        best_alignment(logits, *batch, partial_alignment=partial),
        sample_alignment(logits, *batch, partial_alignment=partial),
    ):
        assert found.log_prob.isnan().tolist() == [True, False, False]
        assert torch.all(found.states[0] == -1)
        assert torch.all(found.tokens[0] == 0)
        assert found.spans()[0] == []
        assert torch.all(found.log_prob[1:] > -torch.inf)


def test_targets_may_be_concatenated_and_lengths_int32():
    problem = seeded_problem(8, states=False)
    sizes = problem.target_lengths.tolist()
    joined = [problem.targets[row, :size] for row, size in enumerate(sizes)]
    found = best_alignment(
        problem.logits,
        torch.cat(joined).int(),
        problem.input_lengths.int(),
        problem.target_lengths.int(),
        **given_partial(problem),
    )
    assert torch.equal(found.states, best(problem).states)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"logits": torch.zeros(5, 3)}, "logits: expected (batch, frames, tokens)"),
    ({"targets": torch.tensor([[3], [1]])}, "targets: token 3 at [0, 0] is outside 0..2"),
    ({"targets": torch.tensor([[1], [0]])}, "targets: token 0 at [1, 0] is the blank"),
    ({"input_lengths": torch.tensor([5, 6])}, "input_lengths: 6 at [1] is outside 0..5"),
    ({"target_lengths": torch.tensor([2, 1])}, "target_lengths: 2 at [0] is outside 0..1"),
    (
        {"partial_alignment": torch.full((2, 5), 3)},
        "partial_alignment: token 3 at [0, 0] is outside 0..2 and not MASK (-1)",
    ),
    (
        {"partial_alignment": torch.full((2, 5), 3), "semantics": "state"},
        "partial_alignment: state 3 at [0, 0] is outside 0..2S and not MASK (-1)",
    ),
    ({"semantics": "word"}, "semantics: expected 'token' or 'state', got 'word'"),
    ({"blank_id": 3}, "blank_id: expected 0..2, got 3"),
]


@pytest.mark.parametrize("align", [best_alignment, sample_alignment])
@pytest.mark.parametrize(("changed", "message"), BAD)
def test_bad_arguments_are_refused(align, changed, message):
    good = {
        "logits": torch.zeros(2, 5, 3),
        "targets": torch.tensor([[1], [2]]),
        "input_lengths": torch.tensor([5, 5]),
        "target_lengths": torch.tensor([1, 1]),
    }
    with pytest.raises(ObjectiveError) as refused:
        align(**(good | changed))
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("n_samples", [0, -1])
def test_no_samples_are_refused(n_samples):
    problem = seeded_problem(4, states=False)
    with pytest.raises(ObjectiveError, match="n_samples: expected 1 or more, or None"):
        sample_alignment(*arguments(problem), n_samples=n_samples)


def test_paths_never_go_back() -> None:
    """States rise by at most two, over 300 frames, where enumeration cannot go."""
    logits = torch.randn(2, 300, 12, generator=torch.Generator().manual_seed(0))
    targets: Ints = np.random.default_rng(0).integers(1, 12, (2, 60))
    lengths, sizes = torch.tensor([300, 170]), torch.tensor([60, 41])
    batch = torch.from_numpy(targets), lengths, sizes
    samples = sample_alignment(logits, *batch, n_samples=3)
    for found in (best_alignment(logits, *batch), *map(samples.sample, range(3))):
        moves = found.states.diff(dim=1)
        assert torch.all((moves >= 0) & (moves <= 2))
        for row, (length, size) in enumerate(((300, 60), (170, 41))):
            spelled = [span.token for span in found.spans()[row]]
            assert spelled == targets[row, :size].tolist()
            assert found.token_ends[row].max() <= length
            assert torch.all(found.token_starts[row, 1:size] >= found.token_ends[row, : size - 1])
