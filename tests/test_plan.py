"""Plans: pure functions of seed and update; what is dealt is the update; nothing gets lost."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.errors import DataError, SpecError
from edge_imputer.train.data import AugmentSpec, BucketedPlan, Draw, DrawnPlan, KeywordPlan, Plan
from edge_imputer.train.data.buckets import BUCKET_RATIO
from edge_imputer.train.data.plan import deal, draw_seed, label_shares

LABELS = ["one", "two", "_unknown_", None, "_near_miss_", "_noise_"]
CLASSES = {"_unknown_": 0, "one": 1, "two": 2, "_near_miss_": 0, "_silence_": 3}


def drawn(n: int = 50, seed: int = 1, **values: object) -> DrawnPlan:
    durations = np.random.default_rng(0).uniform(0.3, 1.0, n)
    spec = msgspec.structs.replace(AugmentSpec(), **values)
    return DrawnPlan(durations, np.arange(n) % 5, spec, batch_size=8, seed=seed, n_ramp=10)


def keywords(seed: int = 1, shares: dict[str, float] | None = None) -> KeywordPlan:
    codes = np.random.default_rng(0).integers(len(LABELS), size=200)
    durations = np.where(codes == 2, 30.0, 1.0)
    shares = {"_unknown_": 0.25, "_silence_": 0.125} if shares is None else shares
    return KeywordPlan(
        durations, LABELS, codes, CLASSES, shares=shares, batch_size=16, seed=seed, window_s=1.0
    )


def bucketed(n: int = 300, seed: int = 1, **values: object) -> BucketedPlan:
    frames = np.random.default_rng(0).integers(20, 2000, n)
    return BucketedPlan(frames, seed=seed, **{"max_frames": 6000, **values})


PLANS = {"drawn": drawn, "keywords": keywords, "bucketed": bucketed}


@pytest.fixture(params=PLANS)
def make(request: pytest.FixtureRequest):
    return PLANS[request.param]


def test_an_update_depends_on_seed_and_number_only(make) -> None:
    once, again = make(), make()
    backwards = [again.update(i) for i in reversed(range(30))][::-1]
    assert [once.update(i) for i in range(30)] == backwards
    assert make(seed=2).update(3) != once.update(3)


def test_every_utterance_has_a_seed_of_its_own(make) -> None:
    draws = [draw for i in range(20) for draw in make().update(i)]
    seeds = {draw.seed for draw in draws}
    assert len(seeds) == len(draws)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_what_is_replaced_is_another_utterance_in_the_same_place(make) -> None:
    plan: Plan = make()
    for draw in plan.update(4):
        first, second = plan.again(draw, 1), plan.again(draw, 2)
        assert plan.again(draw, 1) == first
        assert first != second
        assert len({draw.seed, first.seed, second.seed}) == 3
        assert (first.update, first.position) == (draw.update, draw.position)
        assert first.label == draw.label
        assert first.window_s == draw.window_s


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.lists(st.floats(0.1, 20.0), min_size=1, max_size=60),
    world=st.integers(1, 4),
    accumulate=st.integers(1, 3),
)
def test_shares_are_the_update_and_alike(seconds, world, accumulate) -> None:
    draws = [Draw((i,), i, 0, i, s) for i, s in enumerate(seconds)]
    n = world * accumulate
    if len(draws) < n:
        with pytest.raises(SpecError, match=f"at least {n} utterances"):
            deal(draws, n)
        return
    shares = deal(draws, n)
    assert sorted((d for share in shares for d in share), key=lambda d: d.position) == draws
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    # A share's k-th longest is no longer than another share's (k - 1)-th.
    for k in range(1, min(sizes)):
        assert max(s[k].seconds for s in shares) <= min(s[k - 1].seconds for s in shares)


def test_seeds_differ_by_every_number() -> None:
    numbers = [(1, 2), (2, 1), (1, 2, 0), (1, 2, 1), (12,)]
    assert len({draw_seed(*n) for n in numbers}) >= len(numbers) - 1  # a final 0 is no number
    assert draw_seed(1, 2) != draw_seed(1, 2, 1)


# ---- drawn


def test_an_updates_utterances_have_as_many_clips() -> None:
    plan = drawn(clips_joined=(2, 4), isolated=0.4)
    sizes = [{len(d.rows) for d in plan.update(i)} for i in range(200)]
    assert all(len(size) == 1 for size in sizes)
    counts = Counter(size.pop() for size in sizes)
    assert counts[1] / 200 == pytest.approx(0.4, abs=0.12)
    assert set(counts) == {1, 2, 3, 4}


def test_voices_stay_together_as_often_as_asked() -> None:
    plan = drawn(200, clips_joined=(3, 3), isolated=0.0, same_speaker=0.6)
    draws = [d for i in range(60) for d in plan.update(i)]
    one_voice = np.mean([len({row % 5 for row in d.rows}) == 1 for d in draws])
    assert one_voice == pytest.approx(0.6 + 0.4 / 25, abs=0.07)


def test_the_first_updates_are_short_and_gentle() -> None:
    durations = np.ones(9)
    plan = DrawnPlan(durations, None, AugmentSpec(), batch_size=4, seed=1, n_isolated=5, n_ramp=10)
    for i in range(5):
        assert {len(d.rows) for d in plan.update(i)} == {1}
    strengths = [plan.update(i)[0].strength for i in (0, 5, 10, 50)]
    assert strengths == [0.0, 0.5, 1.0, 1.0]


def test_a_plan_needs_clips() -> None:
    with pytest.raises(DataError, match="at least one training clip"):
        DrawnPlan([], None, AugmentSpec(), batch_size=4, seed=1)


# ---- keywords


def test_shares_hold_in_every_update() -> None:
    plan = keywords(shares={"_unknown_": 0.25, "_silence_": 0.125, "_near_miss_": 0.125})
    for i in range(20):
        counts = Counter(draw.label for draw in plan.update(i))
        assert counts[3] in (1, 2, 3)  # 0.125 of 16
        assert 5 <= counts[0] <= 7  # 0.375: unknown and near misses
        assert abs(counts[1] - counts[2]) <= 1  # words share the rest evenly
    total = Counter(draw.label for i in range(200) for draw in plan.update(i))
    for label, share in {0: 0.375, 1: 0.25, 2: 0.25, 3: 0.125}.items():
        assert total[label] / 3200 == pytest.approx(share, abs=0.01)


def test_other_speech_is_cropped_and_silence_is_noise() -> None:
    draws = [draw for i in range(40) for draw in keywords().update(i)]
    silent = [d for d in draws if d.label == 3]
    assert silent
    assert all(d.rows == () and d.window_s == 1.0 for d in silent)
    cropped = [d for d in draws if d.part is not None]
    assert cropped
    assert all(d.label == 0 for d in cropped)
    starts = [d.part[0] for d in cropped if d.part]
    assert min(starts) < 5
    assert max(starts) > 23
    assert max(starts) <= 28.5
    assert {d.part[1] for d in cropped if d.part} == {1.5}
    labels = np.random.default_rng(0).integers(len(LABELS), size=200)
    assert not {LABELS[labels[d.rows[0]]] for d in draws if d.rows} & {None, "_noise_"}


def test_a_named_label_without_clips_gives_its_share_away(caplog) -> None:
    assert label_shares(["a", "b"], {"c": 0.5, "a": 0.25}) == {"a": 0.25, "b": 0.25}
    assert "no clip has the label c" in caplog.text
    with pytest.raises(DataError, match="share above 0"):
        label_shares(["a"], {"a": 0.0, "_silence_": 0.0})
    with pytest.raises(DataError, match="a class for every label"):
        KeywordPlan([1.0], ["new"], [0], {}, shares={}, batch_size=2, seed=1)


# ---- epochs


@settings(max_examples=40, deadline=None)
@given(
    frames=st.lists(st.integers(1, 500), min_size=6, max_size=80),
    max_frames=st.integers(500, 3000),
    least=st.integers(1, 4),
    largest=st.sampled_from([None, 5, 9]),
    epoch=st.integers(0, 3),
)
def test_an_epoch_has_every_utterance_that_fits(frames, max_frames, least, largest, epoch) -> None:
    fit = [i for i, n in enumerate(frames) if n <= max_frames // least]
    if len(fit) < least:
        with pytest.raises(DataError, match="raise the budget"):
            BucketedPlan(frames, max_frames=max_frames, least=least, largest=largest, seed=3)
        return
    plan = BucketedPlan(frames, max_frames=max_frames, least=least, largest=largest, seed=3)
    n = plan.updates_per_epoch
    updates = [plan.update(epoch * n + i) for i in range(n)]
    for update in updates:
        rows = [draw.rows[0] for draw in update]
        assert least <= len(rows) <= (largest or len(frames))
        assert len(rows) * max(frames[row] for row in rows) <= max_frames
        replaced = [plan.again(draw, 1).rows[0] for draw in update]
        assert len(rows) * max(frames[row] for row in [*rows, *replaced]) <= max_frames
    seen = Counter(draw.rows[0] for update in updates for draw in update)
    assert sorted(seen) == fit
    assert sum(seen.values()) - len(fit) < least  # seen twice, to fill the last update


def test_epochs_differ_and_updates_are_of_one_length() -> None:
    plan = bucketed(2000, max_frames=20_000)
    n = plan.updates_per_epoch
    first, second = ([plan.update(e * n + i) for i in range(n)] for e in (0, 1))
    assert [[d.rows for d in u] for u in first] != [[d.rows for d in u] for u in second]
    lengths = [[d.seconds for d in update] for update in first]
    within = [max(u) / min(u) for u in lengths]
    assert np.median(within) < BUCKET_RATIO * 1.02
    longest = [max(u) for u in lengths]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)
    padded = sum(len(u) * max(u) for u in lengths)
    assert padded / sum(map(sum, lengths)) < 1.08


def test_what_is_too_long_is_said(caplog) -> None:
    plan = BucketedPlan([100, 5000, 200], max_frames=1000, seed=1)
    assert "1 of 3 utterances are longer than 1000 frames" in caplog.text
    assert {d.rows[0] for i in range(plan.updates_per_epoch) for d in plan.update(i)} == {0, 2}


def test_a_million_utterances_take_a_moment_and_no_object_each() -> None:
    import time
    import tracemalloc

    frames = np.random.default_rng(0).gamma(4, 200, 1_000_000).astype(np.int32) + 20
    tracemalloc.start()
    start = time.process_time()
    plan = BucketedPlan(frames, max_frames=60_000, seed=1)
    n = sum(len(plan.update(i)) for i in range(0, 2000, 100))
    took = time.process_time() - start
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n > 0
    assert held < 16e6
    assert peak < 60e6
    assert took < 10  # 0.3 s here; most of the bound is for tracing


def test_words_of_no_keyword_share_the_part_of_the_unknown() -> None:
    labels = ["yes", "stop the music", "alexa", "_near_miss_", "_hard_"]
    classes = {"yes": 1, "stop the music": 0, "alexa": 0, "_near_miss_": 0, "_hard_": 0}
    plan = KeywordPlan(
        [1.0] * 10,
        labels,
        [0, 1, 2, 3, 4] * 2,
        classes,
        shares={"_unknown_": 0.25, "_hard_": 0.25},
        batch_size=8,
        seed=1,
    )
    assert plan.shares == {
        "_unknown_": 0.25,
        "_hard_": 0.25,
        "yes": pytest.approx(0.25),
        "_near_miss_": pytest.approx(0.25),
    }
    rows = [draw.rows[0] for k in range(50) for draw in plan.update(k)]
    drawn = [sum(row % 5 in part for row in rows) for part in ((1, 2), (4,), (0,), (3,))]
    assert drawn == [100] * 4
    assert {row % 5 for row in rows} == set(range(5))
