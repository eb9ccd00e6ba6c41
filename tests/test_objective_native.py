"""The objective's C kernels: every form gives the truth, whoever calls them and however often."""

from __future__ import annotations

import functools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edge_imputer.errors import ObjectiveError
from edge_imputer.train.benchmark import cpu_threads
from edge_imputer.train.objective import lattice, native
from edge_imputer.train.objective.arguments import MASK, Problem, check_ranges
from edge_imputer.train.objective.native import NativeLibrary

from .c_tools import compile_c
from .conftest import IN_CI, ROOT
from .objective_cases import problems, truth, truth_of

if native.NATIVE is None and not IN_CI:  # in CI it is an error, and found by every test
    pytest.skip("the C kernels are not built: pip install -e .", allow_module_level=True)
assert native.NATIVE is not None
LIBRARY = native.NATIVE
FORMS = [(name, torch.float32) for name in LIBRARY.isas] + [("scalar", torch.float64)]
SEMANTICS = pytest.mark.parametrize("states", [False, True], ids=["token", "state"])
EVERY_FORM = pytest.mark.parametrize(
    ("isa", "dtype"), FORMS, ids=[f"{isa}-{str(dtype)[-2:]}" for isa, dtype in FORMS]
)


def form(isa: str) -> NativeLibrary:
    """The kernels in one form; the one that everybody else uses is left alone."""
    library = NativeLibrary(LIBRARY.path)
    library.isa = library.isas[isa]
    return library


def loss_and_gradient(library: NativeLibrary, problem: Problem) -> tuple[Tensor, Tensor]:
    return native.loss_and_gradient(library, problem, None, gradient=True)


def as_type(problem: Problem, dtype: torch.dtype) -> Problem:
    return problem.with_logits(problem.logits.to(dtype))


# ------------------------------------------------------------------------------ the truth


@functools.cache
def cases(states: bool) -> list[tuple[Problem, tuple[Tensor, Tensor]]]:
    """A thousand utterances, with logits that a float32 holds, and the truth about them."""
    given = problems(seed=101 + states, n_utterances=1000, states=states)
    return [(p, truth(p)) for p in (as_type(problem, torch.float32) for problem in given)]


@SEMANTICS
@EVERY_FORM
def test_every_form_equals_enumeration(isa: str, dtype: torch.dtype, states: bool) -> None:
    library, exact = form(isa), dtype == torch.float64
    n_finite = n_infinite = 0
    for problem, (expected, expected_gradient) in cases(states):
        losses, gradient = loss_and_gradient(library, as_type(problem, dtype))
        assert torch.equal(losses.isinf(), expected.isinf())
        tolerance = 1e-9 if exact else 1e-5
        torch.testing.assert_close(losses.double(), expected, rtol=tolerance, atol=tolerance)
        worst = (gradient - expected_gradient).abs().max()
        assert worst < (1e-9 if exact else 3e-6)
        assert torch.all(gradient[~problem.frame_is_open()] == 0)
        assert torch.all(gradient[expected.isinf()] == 0)
        only, nothing = native.loss_and_gradient(
            library, as_type(problem, dtype), None, gradient=False
        )
        torch.testing.assert_close(only, losses, rtol=1e-12 if exact else 1e-6, atol=0)
        assert nothing.shape == (0,)
        n_infinite += int(expected.isinf().sum())
        n_finite += int(expected.isfinite().sum())
    assert n_finite > 800
    assert n_infinite > 50


@EVERY_FORM
def test_gradient_is_times_the_weight(isa: str, dtype: torch.dtype) -> None:
    library = form(isa)
    weight = torch.tensor([0.25, 3.0, 1.0, 1e-3, 2.0, 7.0, 0.5, 1.5])
    for problem, _ in cases(False)[:20]:
        losses, gradient = loss_and_gradient(library, as_type(problem, dtype))
        same, weighted = native.loss_and_gradient(
            library, as_type(problem, dtype), weight, gradient=True
        )
        assert torch.equal(same, losses)
        expected = gradient * weight[:, None, None].to(dtype)
        torch.testing.assert_close(weighted, expected, rtol=1e-6, atol=1e-6)


def large_problem(seed: int, *, states: bool, share: float, blank: int = 0) -> Problem:
    """Nine utterances of about 200 frames and 30 tokens, 43 kinds of them; `share` is open."""
    rng = np.random.default_rng(seed)
    batch, n_frames, n_tokens, longest = 9, 203, 43, 31
    logits = torch.from_numpy(rng.normal(size=(batch, n_frames, n_tokens)) * 3)
    tokens = rng.integers(0, n_tokens - 1, (batch, longest))
    targets = torch.from_numpy(tokens + (tokens >= blank))
    targets[:, 10:14] = targets[:, 10:11]  # repeats, which need a blank between them
    lengths = torch.from_numpy(rng.integers(150, n_frames + 1, batch))
    sizes = torch.from_numpy(rng.integers(25, longest + 1, batch))
    lengths[0], sizes[0] = n_frames, longest
    partial = torch.full((batch, n_frames), MASK)
    problem = Problem(logits, targets, partial, lengths, sizes, blank, states)
    path = lattice.viterbi_states(problem)
    if not states:
        path = lattice.state_tokens(problem).gather(1, path)
    keep = torch.from_numpy(rng.random((batch, n_frames)) >= share)
    partial[keep] = path[keep]
    return as_type(problem, torch.float32)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
@SEMANTICS
def test_forms_agree_on_larger_problems(states: bool, share: float) -> None:
    for seed, blank in ((0, 0), (1, 42), (2, 17)):
        problem = large_problem(seed, states=states, share=share, blank=blank)
        exact = problem.with_logits(problem.logits.double())
        expected, expected_gradient = lattice.loss_and_gradient(exact, need_gradient=True)
        assert expected_gradient is not None
        assert expected.isfinite().all()
        for isa, dtype in FORMS:
            losses, gradient = loss_and_gradient(form(isa), as_type(problem, dtype))
            double = dtype == torch.float64
            torch.testing.assert_close(
                losses.double(), expected, rtol=1e-12 if double else 3e-7, atol=0
            )
            assert (gradient - expected_gradient).abs().max() < (1e-10 if double else 3e-6)


# ------------------------------------------------------------------------------ alignments


@SEMANTICS
@EVERY_FORM
def test_best_and_random_paths(isa: str, dtype: torch.dtype, states: bool) -> None:
    """Against enumeration in every form; in float64 the very states of the torch implementation."""
    library, rng = form(isa), np.random.default_rng(7)
    n_found = n_none = 0
    for problem, _ in cases(states):
        problem = as_type(problem, dtype)
        uniforms = torch.from_numpy(rng.random((3, *problem.logits.shape[:2])))
        uniforms[0], uniforms[1] = 0.0, 1 - 2**-53
        even = problem.with_logits(torch.zeros_like(problem.logits))
        assert torch.equal(native.best_states(library, even), lattice.viterbi_states(even))
        best = native.best_states(library, problem)
        samples = native.sample_states(library, problem, uniforms)
        if dtype == torch.float64:
            assert torch.equal(best, lattice.viterbi_states(problem))
            assert torch.equal(samples, lattice.sample_states(problem, uniforms))
        for row, length in enumerate(problem.input_lengths.tolist()):
            one = truth_of(problem, row)
            if not len(one.paths):
                assert torch.all(best[row] == -1)
                assert torch.all(samples[:, row] == -1)
                n_none += 1
                continue
            n_found += 1
            every = one.states.tolist()
            highest = one.log_probs[every.index(best[row, :length].tolist())]
            assert highest == pytest.approx(one.log_probs.max(), abs=1e-5)
            assert torch.all(best[row, length:] == 2 * problem.target_lengths[row])
            for sample in samples[:, row]:
                assert sample[:length].tolist() in every
                assert torch.all(sample[length:] == 2 * problem.target_lengths[row])
    assert n_found > 800
    assert n_none > 50


@SEMANTICS
def test_larger_paths_are_those_of_torch(states: bool) -> None:
    """One float64 implementation against the other: continuous logits, so that nothing ties."""
    generator = torch.Generator().manual_seed(3)
    for seed in range(6):
        problem = large_problem(seed, states=states, share=0.6)
        exact = as_type(problem, torch.float64)
        uniforms = torch.rand(4, *exact.logits.shape[:2], generator=generator).double()
        best, random = lattice.viterbi_states(exact), lattice.sample_states(exact, uniforms)
        for isa, dtype in FORMS:
            given, library = as_type(problem, dtype), form(isa)
            assert torch.equal(native.best_states(library, given), best)
            samples = native.sample_states(library, given, uniforms)
            # a float32 sum may fall on the other side of a number that is close to it
            n_other = 0 if dtype == torch.float64 else 1
            assert (samples != random).any(-1).sum() <= n_other


@EVERY_FORM
def test_samples_have_the_posterior(isa: str, dtype: torch.dtype) -> None:
    """Frequencies of every path of some utterances, by a chi-squared statistic."""
    library, generator, n_samples = form(isa), torch.Generator().manual_seed(5), 20_000
    problem = max((p for p, _ in cases(False)), key=lambda p: int(p.frame_is_open().sum()))
    problem = problem.with_logits(problem.logits.clamp(-2, 2))
    uniforms = torch.rand(n_samples, *problem.logits.shape[:2], generator=generator)
    samples = native.sample_states(library, as_type(problem, dtype), uniforms)
    n_paths = 0
    for row, length in enumerate(problem.input_lengths.tolist()):
        one = truth_of(problem, row)
        likely = one.posterior * n_samples > 5
        if likely.sum() < 2:
            continue
        drawn, counts = np.unique(samples[:, row, :length].numpy(), axis=0, return_counts=True)
        found = dict(zip(map(tuple, drawn.tolist()), counts.tolist(), strict=True))
        observed = np.array([found.get(tuple(path), 0) for path in one.states.tolist()])[likely]
        expected = one.posterior[likely] * n_samples
        n_paths += len(expected)
        statistic = float(((observed - expected) ** 2 / expected).sum())
        freedom = len(expected) - 1
        assert statistic < freedom + 5 * np.sqrt(2 * freedom)  # about one in a million
    assert n_paths > 30


# ------------------------------------------------------------------------------ odd inputs

Place = tuple[int | slice, ...]


def odd_problem(dtype: torch.dtype, value: float = 0.0, *places: Place) -> Problem:
    """Five utterances of twelve frames that spell [1, 1, 2], with one value in some places."""
    values = torch.randn(5, 12, 19, generator=torch.Generator().manual_seed(1)).to(dtype)
    for place in places:
        values[place] = value
    targets, lengths = torch.tensor([[1, 1, 2]] * 5), torch.full((5,), 12)
    return Problem(values, targets, torch.full((5, 12), MASK), lengths, torch.full((5,), 3))


ALL = slice(None)
HUGE = [float("inf"), float("nan"), 1e30, 3e38, 5e6, 5e8, 2.0**31]


@pytest.mark.parametrize("value", HUGE, ids=str)
@pytest.mark.parametrize("token", [0, 1, 18])
@EVERY_FORM
def test_broken_logit_breaks_its_utterance_only(
    isa: str, dtype: torch.dtype, token: int, value: float
) -> None:
    """Whether the target has the token or not; nothing hangs, no state is out of range."""
    library = form(isa)
    expected, expected_gradient = loss_and_gradient(library, odd_problem(dtype))
    for frame in (0, 5, 11):
        problem = odd_problem(dtype, value, (2, frame, token))
        problem.partial[2, 3] = 1
        losses, gradient = loss_and_gradient(library, problem)
        assert losses[2].isnan()
        is_open = problem.partial[2] == MASK
        assert gradient[2, is_open].isnan().all()
        assert torch.all(gradient[2, ~is_open] == 0)
        others = torch.tensor([0, 1, 3, 4])
        assert torch.equal(losses[others], expected[others])
        assert torch.equal(gradient[others], expected_gradient[others])
        uniforms = torch.rand(2, 5, 12)
        for states in (
            native.best_states(library, problem),
            *native.sample_states(library, problem, uniforms),
        ):
            assert states[2].min() >= -1
            assert states[2].max() <= 6
            assert torch.all(states[others, -1] >= 5)


@pytest.mark.parametrize("value", [float("-inf"), -1e30, -3e38, -5e6], ids=str)
@EVERY_FORM
def test_impossible_logits(isa: str, dtype: torch.dtype, value: float) -> None:
    """Probability 0 from -2^22 on: no path where one is needed, no NaN where it is not."""
    library = form(isa)
    problem = odd_problem(dtype, value, (0, 4, 18), (1, ALL, 2), (2, ALL, 0), (3, ALL, ALL))
    losses, gradient = loss_and_gradient(library, problem)
    assert torch.all(losses[[1, 2, 3]] == torch.inf)
    assert torch.all(gradient[[1, 2, 3]] == 0)
    reference = problem.with_logits(problem.logits.double())
    expected, expected_gradient = lattice.loss_and_gradient(reference, need_gradient=True)
    assert expected_gradient is not None
    for row in (0, 4):
        assert losses[row].item() == pytest.approx(expected[row].item(), rel=1e-6)
        assert (gradient[row] - expected_gradient[row]).abs().max() < 3e-6
    assert torch.all(native.sample_states(library, problem, torch.rand(2, 5, 12))[:, 1:4] == -1)


@pytest.mark.parametrize("n_blanks", [10, 100, 400])
@pytest.mark.parametrize("blank", [-1e3, -1e5, -4e6])
def test_losses_of_millions_of_nats(blank: float, n_blanks: int) -> None:
    """Right up to 1.8e8 nats below what is likely, and infinite from there on; never NaN."""
    n_frames = 900
    logits = torch.randn(1, n_frames, 5, generator=torch.Generator().manual_seed(2))
    logits[..., 0] = blank
    targets = torch.ones(1, n_blanks + 1, dtype=torch.int64)
    partial, lengths = torch.full((1, n_frames), MASK), torch.tensor([n_frames])
    problem = Problem(logits.double(), targets, partial, lengths, torch.tensor([n_blanks + 1]))
    expected, expected_gradient = lattice.loss_and_gradient(problem, need_gradient=True)
    assert expected_gradient is not None
    for isa, dtype in FORMS:
        losses, gradient = loss_and_gradient(form(isa), as_type(problem, dtype))
        if blank * n_blanks < -(2**28) * np.log(2):
            assert losses.item() == torch.inf
            assert torch.all(gradient == 0)
        else:
            assert losses.item() == pytest.approx(expected.item(), rel=3e-7)
            worst = (gradient - expected_gradient).abs().max()
            assert worst < (1e-7 if dtype == torch.float64 else 3e-6)


@pytest.mark.parametrize("shift", [0.0, 3e6])
@EVERY_FORM
def test_no_path_remains_none(isa: str, dtype: torch.dtype, shift: float) -> None:
    """Where only the blanks between repeats do not fit, and however large the logits are."""
    library, n_frames, size = form(isa), 1200, 900
    logits = torch.randn(1, n_frames, 3, generator=torch.Generator().manual_seed(8)) + shift
    problem = Problem(
        *(logits.to(dtype), torch.ones(1, size, dtype=torch.int64)),
        *(torch.full((1, n_frames), MASK), torch.tensor([n_frames]), torch.tensor([size])),
    )
    losses, gradient = loss_and_gradient(library, problem)
    assert losses.item() == torch.inf
    assert torch.all(gradient == 0)
    for size in (n_frames // 2, n_frames // 2 + 1):  # the most that fit, and one more
        problem.target_lengths[0] = size
        losses, _ = loss_and_gradient(library, problem)
        assert losses.isfinite().item() == (2 * size - 1 <= n_frames)


@EVERY_FORM
def test_shapes_at_the_edges(isa: str, dtype: torch.dtype) -> None:
    """One frame, one token, empty targets, as many tokens as frames, and one too many."""
    library, generator = form(isa), torch.Generator().manual_seed(9)
    for n_frames, n_tokens, size in [
        *((1, 1, 0), (1, 2, 1), (1, 2, 0), (7, 2, 1), (40, 1, 0), (17, 34, 17), (33, 16, 33)),
        *((16, 9, 0), (9, 40, 10), (200, 31, 199)),
    ]:
        logits = torch.randn(2, n_frames, n_tokens, generator=generator).to(dtype)
        targets = torch.arange(size).expand(2, -1) % max(n_tokens - 1, 1) + 1
        lengths = torch.tensor([n_frames, 0])
        problem = Problem(
            *(logits, targets, torch.full((2, n_frames), MASK), lengths, torch.tensor([size, 0]))
        )
        exact = problem.with_logits(logits.double())
        expected, expected_gradient = lattice.loss_and_gradient(exact, need_gradient=True)
        assert expected_gradient is not None
        losses, gradient = loss_and_gradient(library, problem)
        torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=0, atol=3e-6)
        uniforms = torch.rand(2, 2, n_frames, generator=generator, dtype=torch.float64)
        best = native.best_states(library, problem)
        samples = native.sample_states(library, problem, uniforms)
        assert torch.equal(best, lattice.viterbi_states(exact))
        assert torch.equal(samples, lattice.sample_states(exact, uniforms))
        assert losses[1] == 0
        assert torch.all(best[1] == 0)


@pytest.mark.parametrize("logit", [0.0, 0.3465, 0.3467])
def test_equal_logits(logit: float) -> None:
    """Every sum is as large as it can be, e^logit as far from a power of two as it can be."""
    n_frames, size, n_tokens = 300, 100, 3
    targets = torch.arange(size)[None] % 2 + 1
    problem = Problem(
        *(torch.full((1, n_frames, n_tokens), logit), targets, torch.full((1, n_frames), MASK)),
        *(torch.tensor([n_frames]), torch.tensor([size])),
    )
    # with no repeats, the paths are the choices of the 2S places where the state goes on
    n_paths = math.comb(n_frames + size, 2 * size)
    expected = n_frames * math.log(n_tokens) - math.log(n_paths)
    for isa, dtype in FORMS:
        losses, gradient = loss_and_gradient(form(isa), as_type(problem, dtype))
        assert losses.item() == pytest.approx(expected, rel=1e-6)
        assert gradient.sum(-1).abs().max() < 1e-5


@EVERY_FORM
def test_long_audio(isa: str, dtype: torch.dtype) -> None:
    """A hundred thousand frames, an hour: the loss keeps its digits, the gradient its sum of 0."""
    library, n_frames, size = form(isa), 100_000, 40
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(1, n_frames, 5, generator=generator).to(dtype)
    targets = torch.randint(1, 5, (1, size), generator=generator)
    partial = torch.full((1, n_frames), MASK)
    problem = Problem(logits, targets, partial, torch.tensor([n_frames]), torch.tensor([size]))
    losses, gradient = loss_and_gradient(library, problem)
    expected = torch.nn.functional.ctc_loss(
        logits.double().log_softmax(-1).transpose(0, 1),
        *(targets, problem.input_lengths, problem.target_lengths),
        reduction="none",
    )
    double = dtype == torch.float64
    assert losses.item() == pytest.approx(expected.item(), rel=1e-11 if double else 1e-6)
    assert gradient.sum(-1).abs().max() < (1e-9 if double else 1e-5)


def is_refused(check: Callable[[Problem], object], problem: Problem) -> bool:
    try:
        check(problem)
    except ObjectiveError:
        return True
    return False


WRONG = [-(2**63), -2, -1, 0, 1, 3, 5, 9, 2**31, 2**32, 2**63 - 1]


@SEMANTICS
def test_the_kernels_refuse_what_python_refuses(states: bool) -> None:
    rng, n_refused, n_taken = np.random.default_rng(17), 0, 0
    for problem, _ in cases(states):
        tensors = (
            *(problem.targets.clone(), problem.partial.clone()),
            *(problem.input_lengths.clone(), problem.target_lengths.clone()),
        )
        place = int(rng.integers(4))
        if tensors[place].numel():
            tensors[place].view(-1)[rng.integers(tensors[place].numel())] = int(rng.choice(WRONG))
        spoilt = Problem(problem.logits, *tensors, problem.blank_id, problem.states)
        refused = is_refused(check_ranges, spoilt)
        assert refused == is_refused(lambda p: loss_and_gradient(LIBRARY, p), spoilt)
        n_refused += refused
        n_taken += not refused
    assert min(n_refused, n_taken) > 20


# ------------------------------------------------------------------------------ layouts


def every_answer(library: NativeLibrary, problem: Problem, uniforms: Tensor) -> list[Tensor]:
    return [
        *loss_and_gradient(library, problem),
        native.best_states(library, problem),
        native.sample_states(library, problem, uniforms),
    ]


@EVERY_FORM
def test_any_strides(isa: str, dtype: torch.dtype) -> None:
    """Time-first, cut out, expanded, overlapping: the same bits, and a gradient of that layout."""
    library = form(isa)
    problem = as_type(large_problem(4, states=False, share=0.5), dtype)
    problem = problem.with_logits(problem.logits[:1].expand(9, -1, -1).contiguous())
    uniforms = torch.rand(2, 9, 203, generator=torch.Generator().manual_seed(0))
    expected = every_answer(library, problem, uniforms)
    whole = problem.logits
    layouts = {
        "time first": whole.transpose(0, 1).contiguous().transpose(0, 1),
        "cut out": torch.nn.functional.pad(whole, (1, 2, 3, 4))[:, 3:-4, 1:-2],
        "expanded": whole[:1].expand(9, -1, -1),
        "tokens first": whole.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    }
    for name, logits in layouts.items():
        given = problem.with_logits(logits)
        answers = every_answer(library, given, uniforms)
        for answer, wanted in zip(answers, expected, strict=True):
            assert torch.equal(answer, wanted), name
    one_by_one = torch.randn(30, generator=torch.Generator().manual_seed(1)).to(dtype)
    windows = one_by_one.unfold(0, 6, 1)[None, :12]  # rows overlap: strides 1 and 1
    given = Problem(
        *(windows, torch.tensor([[1, 2]]), torch.full((1, 1), MASK).expand(1, 12)),
        *(torch.tensor([12]), torch.tensor([2])),
    )
    copied = given.with_logits(windows.contiguous())
    for answer, wanted in zip(
        every_answer(library, given, uniforms[:, :1, :12]),
        every_answer(library, copied, uniforms[:, :1, :12]),
        strict=True,
    ):
        assert torch.equal(answer, wanted)


# ------------------------------------------------------------------------------ threads


def test_any_number_of_threads_gives_the_same_bits() -> None:
    problem = large_problem(5, states=False, share=0.5)
    uniforms = torch.rand(3, 9, 203, generator=torch.Generator().manual_seed(0))
    for isa, dtype in FORMS:
        library, given = form(isa), as_type(problem, dtype)
        with cpu_threads(1):
            expected = every_answer(library, given, uniforms)
        for n in (2, 7, 200):
            with cpu_threads(n):
                answers = every_answer(library, given, uniforms)
            for answer, wanted in zip(answers, expected, strict=True):
                assert torch.equal(answer, wanted)


def test_calls_beside_each_other_do_not_meet() -> None:
    given = [large_problem(seed, states=seed % 2 == 1, share=0.5) for seed in range(8)]
    uniforms = torch.rand(3, 9, 203, generator=torch.Generator().manual_seed(0))

    def answers(problem: Problem) -> list[Tensor]:
        return every_answer(LIBRARY, problem, uniforms)

    expected = [answers(problem) for problem in given]
    with cpu_threads(2), ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(answers, given * 4), expected * 4, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


# ------------------------------------------------------------------------------ the process


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_ten_thousand_calls_leave_nothing_behind() -> None:
    problem = large_problem(6, states=False, share=0.5)
    problem = Problem(
        problem.logits[:2, :60], problem.targets[:2, :9], problem.partial[:2, :60] * 0 + MASK,
        torch.tensor([60, 50]), torch.tensor([9, 8]),
    )  # fmt: skip
    uniforms = torch.rand(1, 2, 60)

    def call(n: int) -> None:
        for _ in range(n):
            every_answer(LIBRARY, problem, uniforms)

    with cpu_threads(2):
        call(300)
        before = resident_bytes()
        call(3400)  # three calls each
    assert resident_bytes() - before < 3e6


FLOATING_POINT = """
import ctypes, ctypes.util, sys, threading
import numpy as np
import torch
libm = ctypes.CDLL(ctypes.util.find_library("m"))
small = np.array([1e-40], np.float32)

def mode():
    return bool((small * np.float32(0.5))[0] != 0), libm.fegetround()

flush = sys.argv[1] == "flush"
torch.set_flush_denormal(flush)
torch.set_num_threads(3)
before = mode()
assert before == (not flush, 0), before
from edge_imputer.train.objective import imputer_loss, native
assert native.NATIVE is not None
assert mode() == before

def call():
    logits = torch.randn(6, 30, 17, requires_grad=True)
    targets = torch.randint(1, 17, (6, 5))
    lengths = torch.full((6,), 30), torch.full((6,), 5)
    started = mode()
    imputer_loss(logits, targets, torch.full((6, 30), -1), *lengths).backward()
    assert mode() == started, (mode(), started)

for isa in native.NATIVE.isas.values():
    native.NATIVE.isa = isa
    call()
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert mode() == before
print("unchanged")
"""


def python(code: str, *arguments: str, path: Path) -> str:
    """Output of a fresh interpreter that imports from `path` and takes warnings for errors."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    env = {**os.environ, "PYTHONPATH": str(path)}
    result = subprocess.run(command, capture_output=True, text=True, env=env, cwd=path, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import from: links to the packages under their installed names."""
    package = tmp_path_factory.mktemp("layout") / "edge_imputer"
    package.mkdir()
    for path in (ROOT / "edge_imputer").iterdir():
        (package / path.name).symlink_to(path)
    (package / "train").symlink_to(ROOT / "train")
    return package.parent


@pytest.mark.parametrize("mode", ["keep", "flush"])
def test_floating_point_mode_is_left_alone(layout: Path, mode: str) -> None:
    assert python(FLOATING_POINT, mode, path=layout) == "unchanged\n"


# ------------------------------------------------------------------------------ without them


WITHOUT = """
import logging
records = []
class Keep(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())
logging.getLogger().addHandler(Keep())
import torch
from edge_imputer.errors import ObjectiveError
from edge_imputer.train.objective import imputer_loss, native
assert native.NATIVE is None
torch.manual_seed(0)
logits = torch.randn(4, 20, 7, requires_grad=True)
arguments = (torch.randint(1, 7, (4, 5)), torch.full((4, 20), -1),
             torch.full((4,), 20), torch.tensor([5, 0, 3, 4]))
for semantics in ("token", "state"):
    for backend in ("auto", "torch"):
        loss = imputer_loss(logits, *arguments, semantics=semantics, backend=backend)
        loss.backward()
        print(f"{loss.item():.4f}")
try:
    imputer_loss(logits, *arguments, backend="native")
except ObjectiveError as error:
    print(error)
print(len(records), records[0])
"""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder to import from: the objective without its library, and what it needs."""
    package = tmp_path / "edge_imputer"
    package.mkdir()
    for path in (ROOT / "edge_imputer").iterdir():
        (package / path.name).symlink_to(path)
    ignore = shutil.ignore_patterns("__pycache__", "_objective.*")
    (package / "train").mkdir()
    shutil.copy(ROOT / "train" / "__init__.py", package / "train")
    shutil.copytree(ROOT / "train" / "objective", package / "train" / "objective", ignore=ignore)
    return tmp_path


def no_library(objective: Path) -> str:
    return "they were not built"


def damaged_library(objective: Path) -> str:
    (objective / "_objective.so").write_bytes(b"\x7fELF, but no more")
    return "_objective.so"


def library_of_another_version(objective: Path) -> str:
    source = objective / "other.c"
    source.write_text(
        "long long edim_objective_struct_size(void);\n"
        "long long edim_objective_struct_size(void) { return 8; }\n"
    )
    compile_c([source], objective / "_objective.so", ("-shared", "-fPIC"))
    return "was built from other sources; reinstall"


def library_of_something_else(objective: Path) -> str:
    source = objective / "other.c"
    source.write_text("int nothing(void);\nint nothing(void) { return 0; }\n")
    compile_c([source], objective / "_objective.so", ("-shared", "-fPIC"))
    return "edim_objective_struct_size"


@pytest.mark.parametrize(
    "spoil",
    [no_library, damaged_library, library_of_another_version, library_of_something_else],
    ids=lambda spoil: spoil.__name__,
)
def test_without_the_kernels_torch_does_it(copied: Path, spoil: Callable[[Path], str]) -> None:
    reason = spoil(copied / "edge_imputer" / "train" / "objective")
    lines = python(WITHOUT, path=copied).splitlines()
    assert len(set(lines[:4])) == 1
    assert lines[4].startswith("backend 'native': the C kernels were not built; install")
    assert lines[5].startswith("1 the Imputer objective runs without its C kernels (")
    assert reason in lines[5]
