"""Constant-step decoding: chunk by chunk equals the whole utterance at once, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.backends.base import Array, Float32, Int32
from edge_imputer.errors import BackendError, SpecError
from edge_imputer.imputation import (
    ImputedChunk,
    StreamingImputer,
    log_softmax,
    resolve_revisions,
    resolve_schedule,
    schedule,
)
from edge_imputer.specs import ImputerSpec, ModelSpec, TokenSpec, check_schedule

from .fakes import FakeBackend, small_spec


@st.composite
def models(draw: st.DrawFn) -> tuple[ModelSpec, tuple[int, ...]]:
    """A model and a schedule that commits everything, passes without commits included."""
    block = draw(st.integers(1, 4))
    spec = small_spec(
        block_size=block,
        chunk_blocks=draw(st.integers(1, 3)),
        depth=draw(st.integers(1, 3)),
        kernel=draw(st.sampled_from([1, 3, 5])),
        order=draw(st.sampled_from(["confidence", "left-to-right", "non-blank-first"])),
    )
    commits = draw(st.lists(st.integers(0, block), min_size=1, max_size=5))
    missing = block - sum(commits)
    if missing > 0:
        commits.insert(draw(st.integers(0, len(commits))), missing)
    return spec, tuple(commits)


def imputer_of(
    backend: FakeBackend,
    commits: tuple[int, ...],
    *,
    revisions: int = 0,
    keep_trace: bool = False,
) -> StreamingImputer:
    return StreamingImputer(
        backend.imputer_step,
        backend.spec.head,
        backend.spec.tokens,
        context=backend.initial_context(),
        schedule=commits,
        revisions=revisions,
        keep_trace=keep_trace,
    )


def encoder_frames(spec: ModelSpec, n_chunks: int, seed: int) -> Float32:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n_chunks * spec.head.chunk_size, spec.encoder.d_model), np.float32)


def decode_chunks(imputer: StreamingImputer, frames: Array, chunk: int) -> list[ImputedChunk]:
    return [imputer.push_chunk(frames[i : i + chunk]) for i in range(0, len(frames), chunk)]


@dataclass
class Whole:
    """A whole utterance, decoded in K passes over all of it."""

    alignment: Int32
    log_probs: Float32
    committed_at: Int32


def first_by(order: str, logits: Array, log_probs: Float32) -> tuple[float, ...]:
    """What a frame is sorted by; the least is committed first."""
    surest = -float(log_probs.max())
    return {
        "confidence": (surest,),
        "left-to-right": (),
        "non-blank-first": (float(logits.argmax() == 0), surest),
    }[order]


def decode_whole(
    backend: FakeBackend, frames: Array, commits: tuple[int, ...], revisions: int = 0
) -> Whole:
    """The same contract worded for whole utterances: each pass sees the alignment before it."""
    head, tokens = backend.spec.head, backend.spec.tokens
    n_frames, left, chunk = len(frames), head.left_context, head.chunk_size
    padded = np.concatenate([backend.initial_context(), frames])
    alignment = np.full(n_frames, tokens.mask_id, np.int32)
    result = Whole(
        alignment,
        np.zeros((n_frames, tokens.vocabulary_size), np.float32),
        np.full(n_frames, -1, np.int32),
    )
    for step, n_commit in enumerate([*commits, *[None] * revisions]):
        seen = np.concatenate([np.full(left, tokens.blank_id, np.int32), alignment])
        logits = np.concatenate(
            [
                backend.imputer_step(padded[t : t + head.window], seen[t : t + head.window])
                for t in range(0, n_frames, chunk)
            ]
        )
        log_probs = log_softmax(logits)
        if n_commit is None:  # a revision
            alignment[:], result.log_probs = logits.argmax(1), log_probs
            result.committed_at[:] = step
            continue
        for block in range(0, n_frames, head.block_size):
            is_open = [
                t for t in range(block, block + head.block_size) if seen[left + t] == tokens.mask_id
            ]
            is_open.sort(key=lambda t: (*first_by(head.order, logits[t], log_probs[t]), t))
            for t in is_open[:n_commit]:
                alignment[t] = int(np.flatnonzero(logits[t] == logits[t].max())[0])
                result.log_probs[t] = log_probs[t]
                result.committed_at[t] = step
    return result


@settings(deadline=None, max_examples=80)
@given(models(), st.integers(0, 2), st.integers(1, 5), st.integers(0, 9))
def test_chunk_by_chunk_equals_the_whole_utterance_at_once(
    model: tuple[ModelSpec, tuple[int, ...]], revisions: int, n_chunks: int, seed: int
) -> None:
    spec, commits = model
    frames = encoder_frames(spec, n_chunks, seed)
    backend = FakeBackend(spec, seed=seed)
    imputer = imputer_of(backend, commits, revisions=revisions)
    chunks = decode_chunks(imputer, frames, spec.head.chunk_size)
    whole = decode_whole(FakeBackend(spec, seed=seed), frames, commits, revisions)
    for name in ("alignment", "log_probs", "committed_at"):
        streamed = np.concatenate([getattr(chunk, name) for chunk in chunks])
        np.testing.assert_array_equal(streamed, getattr(whole, name), err_msg=name)
    assert [c.first_frame for c in chunks] == [i * spec.head.chunk_size for i in range(n_chunks)]


@settings(deadline=None, max_examples=40)
@given(models(), st.integers(0, 2), st.integers(0, 9))
def test_exactly_k_passes_and_only_revisions_change_what_is_committed(
    model: tuple[ModelSpec, tuple[int, ...]], revisions: int, seed: int
) -> None:
    spec, commits = model
    head, mask = spec.head, spec.tokens.mask_id
    backend = FakeBackend(spec, seed=seed)
    imputer = imputer_of(backend, commits, revisions=revisions, keep_trace=True)
    n_passes = len(commits) + revisions
    for n_chunks, frames in enumerate(np.split(encoder_frames(spec, 3, seed), 3), start=1):
        chunk = imputer.push_chunk(frames)
        assert backend.n_head_calls == n_chunks * n_passes
        assert chunk.trace is not None
        assert chunk.trace.shape == (n_passes, head.chunk_size)
        np.testing.assert_array_equal(chunk.trace[-1], chunk.alignment)
        assert mask not in chunk.trace[len(commits) - 1 :]
        if revisions:
            assert set(chunk.committed_at) == {n_passes - 1}
        for step, partial in enumerate(chunk.trace[: len(commits)]):
            done = partial != mask
            if not revisions:
                np.testing.assert_array_equal(done, chunk.committed_at <= step)
            all_committed = chunk.trace[len(commits) - 1]
            np.testing.assert_array_equal(partial, np.where(done, all_committed, mask))
            per_block = done.reshape(-1, head.block_size).sum(axis=1)
            assert set(per_block) == {min(sum(commits[: step + 1]), head.block_size)}


@settings(deadline=None, max_examples=30)
@given(models(), st.integers(1, 4), st.integers(0, 9))
def test_one_pass_is_ctc_greedy_of_the_fully_masked_head(
    model: tuple[ModelSpec, tuple[int, ...]], n_chunks: int, seed: int
) -> None:
    spec, _ = model
    head, tokens = spec.head, spec.tokens
    frames = encoder_frames(spec, n_chunks, seed)
    backend = FakeBackend(spec, seed=seed)
    chunks = decode_chunks(
        imputer_of(backend, schedule(1, head.block_size)), frames, head.chunk_size
    )
    padded = np.concatenate([backend.initial_context(), frames])
    for i, chunk in enumerate(chunks):
        masked = np.full(head.window, tokens.mask_id, np.int32)
        if i * head.chunk_size < head.left_context:  # before the first frame there are blanks
            masked[: head.left_context - i * head.chunk_size] = tokens.blank_id
        window = padded[i * head.chunk_size :][: head.window]
        greedy = backend.imputer_step(window, masked).argmax(axis=1)
        np.testing.assert_array_equal(chunk.alignment, greedy)


def test_log_probs_are_those_of_the_committed_tokens() -> None:
    spec = small_spec()
    backend = FakeBackend(spec)
    chunk = imputer_of(backend, (1, 1, 1, 1)).push_chunk(encoder_frames(spec, 1, 0))
    np.testing.assert_array_equal(chunk.alignment, chunk.log_probs.argmax(axis=1))
    np.testing.assert_allclose(np.exp(chunk.log_probs).sum(axis=1), 1, atol=1e-5)
    assert chunk.trace is None


def test_reset_starts_a_new_utterance_and_chunks_given_out_stay() -> None:
    spec = small_spec(depth=2)
    frames = encoder_frames(spec, 3, 1)
    imputer = imputer_of(FakeBackend(spec), (2, 2))
    first = decode_chunks(imputer, frames, 4)
    kept = [chunk.alignment.copy() for chunk in first]
    imputer.reset()
    for chunk, again in zip(first, decode_chunks(imputer, frames, 4), strict=True):
        np.testing.assert_array_equal(chunk.alignment, again.alignment)
        np.testing.assert_array_equal(chunk.log_probs, again.log_probs)
    for chunk, alignment in zip(first, kept, strict=True):
        np.testing.assert_array_equal(chunk.alignment, alignment)


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_frames_reach_the_head_in_their_own_dtype(dtype: type) -> None:
    head, tokens = ImputerSpec(depth=1, kernel=3, block_size=2), TokenSpec(characters=("a",))
    seen: list[Array] = []

    def step(frames: Array, alignment: Int32) -> Float32:
        seen.append(frames.copy())
        return np.zeros((2, 2), np.float32)

    context = np.full((1, 3), -7, dtype)  # real zero need not be the integer zero
    imputer = StreamingImputer(step, head, tokens, context=context, schedule=(2,))
    imputer.push_chunk(np.full((2, 3), 1, dtype))
    imputer.push_chunk(np.full((2, 3), 2, dtype))
    assert seen[0].dtype == dtype
    assert [frames[:, 0].tolist() for frames in seen] == [[-7, 1, 1], [1, 2, 2]]


def constant_head(logits: Float32, commits: tuple[int, ...], revisions: int = 0) -> ImputedChunk:
    """One chunk of two blocks of two frames under a head that always says the same."""
    head = ImputerSpec(depth=1, kernel=1, block_size=2, chunk_blocks=2)
    imputer = StreamingImputer(
        lambda frames, alignment: logits,
        head,
        TokenSpec(characters=("a", "b")),
        context=np.zeros((0, 1), np.float32),
        schedule=commits,
        revisions=revisions,
    )
    return imputer.push_chunk(np.zeros((4, 1), np.float32))


def test_a_revision_sees_every_token_and_replaces_it() -> None:
    """A head that writes 0 for a mask, else the token after the one it sees, and surer."""
    head, tokens = ImputerSpec(depth=1, kernel=1, block_size=2), TokenSpec(characters=("a", "b"))

    def step(frames: Array, alignment: Int32) -> Float32:
        following = np.where(alignment == tokens.mask_id, 0, alignment + 1)
        return np.float32(2 + following[:, None]) * np.eye(3, dtype=np.float32)[following]

    for revisions in range(3):
        imputer = StreamingImputer(
            step,
            head,
            tokens,
            context=np.zeros((0, 1), np.float32),
            schedule=(1, 1),
            revisions=revisions,
        )
        chunk = imputer.push_chunk(np.zeros((2, 1), np.float32))
        assert chunk.alignment.tolist() == [revisions] * 2
        assert chunk.committed_at.tolist() == ([1 + revisions] * 2 if revisions else [0, 1])
        logits = np.float32(2 + revisions) * np.eye(3, dtype=np.float32)[[revisions] * 2]
        np.testing.assert_array_equal(chunk.log_probs, log_softmax(logits))


def test_a_head_that_reads_no_alignment_writes_the_same_again() -> None:
    logits = np.float32([[1, 2, 2], [2, 1, 2], [0, 0, 0], [5, 5, 5]])
    once, again = (constant_head(logits, (2,), revisions) for revisions in (0, 2))
    np.testing.assert_array_equal(once.alignment, again.alignment)
    np.testing.assert_array_equal(once.log_probs, again.log_probs)


def test_ties_go_to_the_earlier_frame_and_the_lower_id() -> None:
    chunk = constant_head(np.float32([[1, 2, 2], [2, 1, 2], [0, 0, 0], [5, 5, 5]]), (1, 1))
    assert chunk.alignment.tolist() == [1, 0, 0, 0]
    assert chunk.committed_at.tolist() == [0, 1, 0, 1]


def test_ties_go_to_the_earlier_frame_in_long_blocks_too() -> None:
    # Longer than what sorts that are not stable happen to keep in order.
    logits = np.random.default_rng(0).integers(0, 3, (64, 2)).astype(np.float32)
    head = ImputerSpec(depth=1, kernel=1, block_size=64, schedule=(20, 20, 24))
    imputer = StreamingImputer(
        lambda frames, alignment: logits,
        head,
        TokenSpec(characters=("a",)),
        context=np.zeros((0, 1), np.float32),
        schedule=head.schedule,
    )
    chunk = imputer.push_chunk(np.zeros((64, 1), np.float32))
    margins = np.abs(logits[:, 0] - logits[:, 1]).tolist()
    order = sorted(range(64), key=lambda t: (-margins[t], t))
    assert sorted(order[:20]) == np.flatnonzero(chunk.committed_at == 0).tolist()
    assert sorted(order[20:40]) == np.flatnonzero(chunk.committed_at == 1).tolist()


def test_the_surest_frame_of_each_block_comes_first() -> None:
    chunk = constant_head(np.float32([[0, 1, 0], [0, 0, 9], [9, 0, 0], [0, 1, 0]]), (0, 1, 1, 0))
    assert chunk.committed_at.tolist() == [2, 1, 1, 2]


def test_saturated_frames_still_have_an_order() -> None:
    # In float32 both probabilities are 1; the second frame is the surer one all the same.
    chunk = constant_head(np.float32([[20, 0, 0], [21, 0, 0], [21, 0, 0], [20, 0, 0]]), (1, 1))
    assert chunk.committed_at.tolist() == [1, 0, 0, 1]


@given(st.permutations(range(4)), st.lists(st.floats(-8, 8, width=32), min_size=4, max_size=4))
def test_confidence_does_not_depend_on_the_order_of_tokens(
    order: list[int], logits: list[float]
) -> None:
    row = np.float32(logits)
    np.testing.assert_array_equal(
        log_softmax(row[None])[0, order], log_softmax(row[order][None])[0]
    )


@pytest.mark.parametrize(
    ("n_steps", "expected"),
    [
        (1, (8,)),
        (2, (4, 4)),
        (3, (3, 3, 2)),
        (4, (2, 2, 2, 2)),
        (5, (2, 2, 2, 1, 1)),
        (8, (1,) * 8),
        (10, (1,) * 8 + (0, 0)),
    ],
)
def test_schedule(n_steps: int, expected: tuple[int, ...]) -> None:
    assert schedule(n_steps, 8) == expected


@given(st.integers(1, 40), st.integers(1, 40))
def test_schedule_commits_everything_evenly(n_steps: int, block_size: int) -> None:
    commits = schedule(n_steps, block_size)
    assert (len(commits), sum(commits)) == (n_steps, block_size)
    assert max(commits) - min(commits) <= 1
    assert list(commits) == sorted(commits, reverse=True)
    check_schedule(commits, block_size)


def test_schedule_asked_for() -> None:
    head = ImputerSpec(block_size=4, schedule=(3, 1))
    assert resolve_schedule(head, None, None) == (3, 1)
    assert resolve_schedule(head, 2, None) == (2, 2)
    assert resolve_schedule(head, None, [1, 3]) == (1, 3)
    assert head.n_passes == 2


def test_revisions_asked_for() -> None:
    head = ImputerSpec(revisions=2)
    head.check()
    assert [resolve_revisions(head, n) for n in (None, 0, 1)] == [2, 0, 1]
    assert resolve_revisions(ImputerSpec(), None) == 0
    assert head.n_passes == 10


@pytest.mark.parametrize(
    "call",
    [
        lambda: schedule(0, 8),
        lambda: schedule(1, 0),
        lambda: resolve_schedule(ImputerSpec(), 2, (4, 4)),
        lambda: resolve_schedule(ImputerSpec(), None, (4, 3)),
        lambda: resolve_schedule(ImputerSpec(), None, ()),
        lambda: resolve_schedule(ImputerSpec(), None, (9, -1)),
        lambda: ImputerSpec(schedule=(1, 2)).check(),
        lambda: constant_head(np.zeros((4, 3), np.float32), (1,)),
        lambda: constant_head(np.zeros((4, 3), np.float32), (2,), -1),
        lambda: resolve_revisions(ImputerSpec(), -1),
        lambda: ImputerSpec(revisions=-1).check(),
        lambda: ImputerSpec(mixer="none", schedule=(8,), revisions=1).check(),
    ],
)
def test_schedules_that_cannot_work_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(SpecError, match="expected"):
        call()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    with pytest.raises(BackendError, match="finite logits"):
        constant_head(np.float32([[0, 0, bad]] * 4), (2,))


@pytest.mark.parametrize("shape", [(4, 4), (3, 3), (1, 4, 3)])
def test_logits_of_another_shape_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(BackendError, match=r"expected logits of shape \(4, 3\)"):
        constant_head(np.zeros(shape, np.float32), (2,))


def test_a_context_of_another_model_is_an_error() -> None:
    spec = small_spec(depth=2)
    with pytest.raises(BackendError, match="initial context of 2"):
        StreamingImputer(
            FakeBackend(spec).imputer_step,
            spec.head,
            spec.tokens,
            context=np.zeros((1, 6), np.float32),
            schedule=(4,),
        )
