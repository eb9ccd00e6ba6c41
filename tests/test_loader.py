"""Loading: the same batches from any number of workers, processes, and after any interruption."""

from __future__ import annotations

import logging
from itertools import islice
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.errors import DataError, SpecError
from edge_imputer.microfrontend import Microfrontend
from edge_imputer.specs import (
    AnyFeatureSpec,
    FeatureSpec,
    KeywordModelSpec,
    MicroSpec,
    PcenSpec,
    TcnSpec,
    WindowedCrnnSpec,
)
from edge_imputer.train.data import (
    Augmenter,
    AugmentSpec,
    Batch,
    BucketedPlan,
    ClipsInMemory,
    Draw,
    DrawnPlan,
    Featurizer,
    KeywordPlan,
    ManifestSource,
    Plan,
    feature_statistics,
    frame_counts,
    loader,
)
from edge_imputer.train.data.loader import MicroBatches

from .processes import run_python
from .speech_cases import RATE, clips, model_spec, write_corpus


def micro_batches(batch_size: int = 6, seed: int = 1, **values: int) -> MicroBatches:
    source = ClipsInMemory(clips(8), sample_rate=RATE)
    spec = AugmentSpec(room=0.5, codec=0.2, packet_loss=0.2, n_rooms=4)
    plan = DrawnPlan(source.durations, source.speakers, spec, batch_size=batch_size, seed=seed)
    augmenter = Augmenter(spec, sample_rate=RATE)
    return MicroBatches(plan, source, augmenter, Featurizer(model_spec()), **values)


def assert_equal(a: Batch, b: Batch) -> None:
    for name, value in vars(a).items():
        other = getattr(b, name)
        same = torch.equal(value, other) if torch.is_tensor(value) else value == other
        assert same, name


def utterances(batch: Batch) -> dict[int, tuple[torch.Tensor, list[int]]]:
    """What is in a batch without its padding, by seed."""
    return {
        int(seed): (x[:n], targets[:s].tolist())
        for seed, x, n, targets, s in zip(
            batch.seeds,
            batch.features,
            batch.lengths,
            batch.targets,
            batch.target_lengths,
            strict=True,
        )
    }


@settings(max_examples=12, deadline=None)
@given(world=st.integers(1, 3), accumulate=st.integers(1, 2), update=st.integers(0, 99))
def test_processes_and_micro_batches_together_are_the_update(world, accumulate, update) -> None:
    whole = micro_batches().batch(update)
    assert whole.n_global == 6
    found: dict[int, tuple[torch.Tensor, list[int]]] = {}
    for rank in range(world):
        for share in range(accumulate):
            part = micro_batches(rank=rank, world=world, accumulate=accumulate).batch(update, share)
            assert part.n_global == 6
            assert not set(utterances(part)) & set(found)
            found |= utterances(part)
    expected = utterances(whole)
    assert found.keys() == expected.keys()
    for seed, (x, targets) in expected.items():
        assert torch.equal(found[seed][0], x)
        assert found[seed][1] == targets


def test_a_resumed_run_goes_on_as_an_unbroken_one() -> None:
    unbroken = list(islice(micro_batches(accumulate=2), 8))
    resumed = list(islice(micro_batches(accumulate=2, start=2), 4))
    for a, b in zip(unbroken[4:], resumed, strict=True):
        assert_equal(a, b)
    other = micro_batches(seed=2).batch(0)
    assert not torch.equal(other.seeds, micro_batches().batch(0).seeds)


SAME = """
import sys, tests.conftest, numpy as np, torch
from tests.test_loader import micro_batches, assert_equal
from edge_imputer.train.data import loader
m = micro_batches()
def run(workers):
    parts = m.plan, m.source, m.augmenter, m.featurizer
    return list(loader(*parts, world=2, rank=1, accumulate=2, start=3, stop=7, workers=workers))
expected = run(0)
assert len(expected) == 8
for workers in (1, 3):
    found = run(workers)
    assert len(found) == 8
    for a, b in zip(expected, found):
        assert_equal(a, b)
print("same")
"""


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    assert run_python(SAME).strip() == "same"


ERROR = """
import tests.conftest
from tests.test_loader import broken_source
from edge_imputer.errors import DataError
from edge_imputer.train.data import loader
try:
    list(loader(*broken_source(), stop=4, workers=2))
except DataError as error:
    print(error)
"""


def broken_source() -> tuple[Plan, ClipsInMemory, Augmenter, Featurizer]:
    m = micro_batches()
    assert isinstance(m.source, ClipsInMemory)
    bad = m.source.clips[3]
    object.__setattr__(bad, "waveform", "no array")
    return m.plan, m.source, m.augmenter, m.featurizer


def test_an_error_in_a_worker_names_the_clip() -> None:
    said = run_python(ERROR)
    assert "audio/3.wav" in said
    assert "could not prepare" in said
    assert "update 0" in said


def test_a_corrupt_clip_costs_one_warning_and_is_replaced(tmp_path, caplog) -> None:
    manifest = write_corpus(tmp_path)
    (tmp_path / "audio/4.wav").write_bytes(b"RIFF, and nothing that follows from it")

    def run(workers: int) -> list[Batch]:
        source = ManifestSource(manifest, sample_rate=RATE)
        spec = AugmentSpec(clips_joined=(1, 1), room=0.0)
        plan = DrawnPlan(manifest.durations, None, spec, batch_size=8, seed=1)
        augmenter = Augmenter(spec, sample_rate=RATE)
        return list(loader(plan, source, augmenter, Featurizer(model_spec()), stop=6))

    with caplog.at_level(logging.WARNING):
        first = run(0)
    warnings = [r for r in caplog.records if "audio/4.wav" in r.getMessage()]
    assert len(warnings) == 1
    assert "replaced by another clip" in warnings[0].getMessage()
    assert sum(len(batch.notes) for batch in first) > 1  # it was drawn more than once
    assert all(len(batch.lengths) == 8 for batch in first)
    for a, b in zip(first, run(0), strict=True):
        assert_equal(a, b)


def test_a_corpus_that_cannot_be_used_stops_with_a_reason(tmp_path) -> None:
    manifest = write_corpus(tmp_path, 4)
    for path in (tmp_path / "audio").iterdir():
        path.write_bytes(b"")
    source = ManifestSource(manifest, sample_rate=RATE)
    plan = DrawnPlan(manifest.durations, None, AugmentSpec(), batch_size=2, seed=1)
    run = MicroBatches(
        plan, source, Augmenter(AugmentSpec(), sample_rate=RATE), Featurizer(model_spec())
    )
    with pytest.raises(DataError, match=r"20 utterances in a row could not be used.*audio/\d"):
        run.batch(0)


def test_nothing_but_infeasible_audio_stops_training_with_a_reason() -> None:
    import msgspec

    clip = clips(1)[0]
    long = type(clip)(msgspec.structs.replace(clip.record, text="one " * 60), clip.waveform)
    run = micro_batches()
    run.source = ClipsInMemory([long], sample_rate=RATE)
    run.plan = DrawnPlan([0.6], None, AugmentSpec(), batch_size=2, seed=1)
    with pytest.raises(DataError, match="too short for its transcript"):
        run.batch(0)


def test_batches_are_whole_chunks_and_feasible() -> None:
    run = micro_batches()
    spec = model_spec()
    for index in range(5):
        batch = run.batch(index)
        assert torch.all(batch.lengths % spec.chunk_features == 0)
        assert torch.isfinite(batch.features).all()
        assert torch.all(batch.target_lengths <= batch.lengths // 4)
        assert batch.flat_start.shape[1] == batch.features.shape[1] // 4
        assert torch.all(batch.labels == -1)
        for x, n in zip(batch.features, batch.lengths, strict=True):
            assert not x[n:].any()  # padding


def test_bucketed_batches_stay_below_their_budget(tmp_path) -> None:
    manifest = write_corpus(tmp_path)
    featurizer = Featurizer(model_spec())
    spec = AugmentSpec(clips_joined=(1, 1))
    frames = frame_counts(spec.longest(manifest.durations), featurizer)
    plan = BucketedPlan(frames, max_frames=1200, seed=1)
    source = ManifestSource(manifest, sample_rate=RATE)
    run = loader(
        plan, source, Augmenter(spec, sample_rate=RATE), featurizer, stop=plan.updates_per_epoch
    )
    batches = list(run)
    assert sum(len(b.lengths) for b in batches) == len(manifest)
    for batch in batches:
        n, t, _ = batch.features.shape
        assert n * t <= 1200


def test_frame_counts_are_never_too_few() -> None:
    featurizer = Featurizer(model_spec())
    durations = np.random.default_rng(0).uniform(0.05, 20, 500).astype(np.float32)
    counts = frame_counts(durations, featurizer)
    exact = np.array([featurizer.n_features(int(s * RATE)) for s in durations])
    assert np.all(counts >= exact)
    assert np.all(counts - exact <= model_spec().chunk_features)


@pytest.mark.parametrize(
    "spec",
    [
        KeywordModelSpec(features=PcenSpec(), encoder=TcnSpec(), keywords=("one", "two")),
        KeywordModelSpec(features=MicroSpec(), encoder=TcnSpec(), keywords=("one", "two")),
        KeywordModelSpec(
            features=PcenSpec(centred=True),
            encoder=WindowedCrnnSpec(n_classes=3),
            keywords=("one", "two"),
        ),
    ],
)
def test_keyword_batches_have_classes_and_one_length(spec: KeywordModelSpec) -> None:
    source = ClipsInMemory(clips(9), sample_rate=RATE)
    labels = ["one", "two", "three"]
    plan = KeywordPlan(
        source.durations,
        labels,
        np.arange(9) % 3,
        {label: spec.class_of(label) for label in [*labels, "_silence_"]},
        shares={"_silence_": 0.25},
        batch_size=8,
        seed=1,
        window_s=1.5,
    )
    augmenter = Augmenter(AugmentSpec(room=0.0), sample_rate=RATE)
    batch = MicroBatches(plan, source, augmenter, Featurizer(spec)).batch(3)
    assert set(batch.labels.tolist()) == {0, 1, 2}
    assert len(set(batch.lengths.tolist())) == 1
    assert torch.isfinite(batch.features).all()
    assert batch.target_lengths.sum() == 0
    if spec.windowed:
        assert batch.lengths[0] == 151


def keyword_batches(features: AnyFeatureSpec, spec: AugmentSpec) -> MicroBatches:
    source = ClipsInMemory(clips(8), sample_rate=RATE)
    model = KeywordModelSpec(features=features, encoder=TcnSpec(), keywords=("one",))
    plan = DrawnPlan(source.durations, source.speakers, spec, batch_size=6, seed=1)
    return MicroBatches(plan, source, Augmenter(spec, sample_rate=RATE), Featurizer(model))


@pytest.mark.parametrize("features", [PcenSpec(), MicroSpec()])
def test_the_channel_of_features_that_divide_it_out_is_the_waveforms(
    features: AnyFeatureSpec,
) -> None:
    """A filter added to them would be none that a device could hear; masks are."""
    heavy = AugmentSpec(room=0.0, tilt=5.0, mel_warp=0.5, low_pass=1.0, masks=0, ramp=0.0)
    light = AugmentSpec(room=0.0, tilt=0.0, mel_warp=0.0, low_pass=0.0, masks=0, ramp=0.0)
    assert_equal(*(keyword_batches(features, spec).batch(0) for spec in (heavy, light)))
    x = keyword_batches(FeatureSpec(), heavy).batch(0).features
    assert not torch.equal(x, keyword_batches(FeatureSpec(), light).batch(0).features)


def test_microfrontend_batches_are_the_front_ends_values() -> None:
    """Neither normalised nor scaled: what a device's model gets, over 25.6."""
    plain = AugmentSpec(
        speeds=(1.0,), clips_joined=(1, 1), edge_s=(0, 0), gain_db=(0, 0), quiet=1, room=0, masks=0
    )
    run = keyword_batches(MicroSpec(), plain)
    batch = run.batch(0)
    assert batch.features.max() > 20
    for draw, x, n in zip(run.plan.update(0), batch.features, batch.lengths, strict=True):
        waveform = run.source.clip(draw.rows[0], None).waveform
        expected = Microfrontend(MicroSpec())(waveform)
        np.testing.assert_array_equal(x[: len(expected)], expected)
        assert 0 <= n - len(expected) < 4  # silence fills up an encoder frame


@pytest.mark.parametrize("fill", ["floor", "mean"])
def test_masks_are_filled_with_what_they_say(fill: Literal["floor", "mean"]) -> None:
    """Features that are not normalised have a mean of their own."""
    masks = AugmentSpec(room=0.0, masks=1, mask_mel=30, mask_time=0, mask_fill=fill, ramp=0.0)
    without = AugmentSpec(room=0.0, masks=0, ramp=0.0)
    for features in (MicroSpec(), PcenSpec(), FeatureSpec(mean=-4.0, std=3.0)):
        masked, whole = (keyword_batches(features, s).batch(0) for s in (masks, without))
        for x, y, n in zip(masked.features, whole.features, whole.lengths, strict=True):
            filled = x[:n][x[:n] != y[:n]].unique()
            level = y[:n].min() if fill == "floor" else y[:n].mean()
            if fill == "mean" and isinstance(features, FeatureSpec):
                level = torch.tensor(0.0)
            torch.testing.assert_close(filled, level.expand(len(filled)), rtol=1e-4, atol=1e-4)
            assert len(filled) <= 1


def test_a_part_is_all_that_is_decoded(tmp_path) -> None:
    manifest = write_corpus(tmp_path)
    source = ManifestSource(manifest, sample_rate=RATE)
    whole, part = source.clip(11), source.clip(11, (0.4, 0.5))
    np.testing.assert_array_equal(part.waveform, whole.waveform[6400 : 6400 + 8000])
    memory = ClipsInMemory([whole], sample_rate=RATE).clip(0, (0.4, 0.5))
    np.testing.assert_array_equal(memory.waveform, part.waveform)


def test_statistics_are_those_of_the_features() -> None:
    run = micro_batches()
    run.augmenter = Augmenter(
        AugmentSpec(room=0.0, masks=0, low_pass=0.0, tilt=0.0), sample_rate=RATE
    )
    parts = run.plan, run.source, run.augmenter, run.featurizer
    mean, std = feature_statistics(*parts, n=160)
    assert feature_statistics(*parts, n=160) == (mean, std)
    batches = [run.batch(update) for update in range(20)]
    normalized = torch.cat(
        [x[:n] for b in batches for x, n in zip(b.features, b.lengths, strict=True)]
    )
    spec = run.featurizer.spec.features
    assert isinstance(spec, FeatureSpec)
    assert mean == pytest.approx(float(normalized.mean()) * spec.std + spec.mean, abs=0.4)
    assert std == pytest.approx(float(normalized.std()) * spec.std, rel=0.1)


def test_a_batch_moves_with_all_it_has() -> None:
    batch = micro_batches().batch(0).to(torch.device("meta"))
    assert batch.features.device.type == batch.seeds.device.type == "meta"
    assert batch.n_global == 6


@pytest.mark.parametrize("values", [{"rank": 1}, {"accumulate": 0}, {"workers": -1}])
def test_a_share_that_is_none_is_refused(values: dict[str, int]) -> None:
    run = micro_batches()
    with pytest.raises(SpecError, match="rank < world"):
        loader(run.plan, run.source, run.augmenter, run.featurizer, **values)


def test_more_shares_than_utterances_are_refused() -> None:
    with pytest.raises(SpecError, match="at least 8 utterances"):
        micro_batches(world=4, accumulate=2).batch(0)


def test_a_draw_of_noise_alone_is_named() -> None:
    run = micro_batches()
    draw = Draw((), 1, 0, 0, 1.0)  # without a window: an error of the plan's, not of the audio
    with pytest.raises(DataError, match="noise without a clip"):
        run._usable(draw, [])
