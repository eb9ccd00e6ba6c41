"""The cache: what it gives is what would be computed, whoever else writes or is killed."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from edge_imputer.specs import FeatureSpec
from edge_imputer.train.data import (
    Augmenter,
    AugmentSpec,
    BucketedPlan,
    ClipCache,
    Featurizer,
    Manifest,
    ManifestSource,
    frame_counts,
    read_clip,
)
from edge_imputer.train.data.cache import _HEADER_BYTES
from edge_imputer.train.data.loader import MicroBatches

from .processes import run_python
from .speech_cases import RATE, model_spec, write_corpus

CLEAN = AugmentSpec(
    speeds=(1.0,),
    clips_joined=(1, 1),
    room=0.0,
    quiet=1.0,
    gain_db=(0.0, 0.0),
    edge_s=(0.0, 0.0),
)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_corpus(tmp_path / "corpus")


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.glob("??/*") if path.is_file()]


def test_cached_audio_is_the_audio(manifest, tmp_path, monkeypatch) -> None:
    cache = ClipCache(tmp_path / "cache")
    first = [cache.waveform(manifest.folder, record, RATE) for record in manifest]
    assert len(entries(cache.folder)) == len(manifest)
    for waveform, record in zip(first, manifest, strict=True):
        np.testing.assert_array_equal(waveform, read_clip(manifest.folder, record, RATE))

    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("edge_imputer.train.data.cache.read_clip", refuse)
    for waveform, record in zip(first, manifest, strict=True):
        np.testing.assert_array_equal(cache.waveform(manifest.folder, record, RATE), waveform)
    part = cache.waveform(manifest.folder, manifest[3], RATE, (0.1, 0.2))
    np.testing.assert_array_equal(part, first[3][1600:4800])


def test_what_is_not_int16_is_rounded_the_first_time_too(manifest, tmp_path) -> None:
    cache = ClipCache(tmp_path / "cache")
    once, again = (cache.waveform(manifest.folder, manifest[0], 11_025) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    np.testing.assert_allclose(
        once, read_clip(manifest.folder, manifest[0], 11_025), atol=0.51 / 32_768
    )


def test_another_file_or_setting_is_another_entry(manifest, tmp_path) -> None:
    cache = ClipCache(tmp_path / "cache")
    record, path = manifest[0], manifest.folder / manifest[0].audio
    before = cache.waveform(manifest.folder, record, RATE)
    sf.write(path, -sf.read(path)[0], RATE, subtype="PCM_16")
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    after = cache.waveform(manifest.folder, record, RATE)
    assert not np.array_equal(before, after)

    def rows(spec: FeatureSpec, value: float) -> float:
        x = np.full((2, 3), value, np.float32)
        return float(cache.features(manifest.folder, record, spec, {}, lambda: x)[0, 0])

    assert [rows(FeatureSpec(), 1.0), rows(FeatureSpec(n_mels=64), 2.0)] == [1.0, 2.0]
    assert [rows(FeatureSpec(), 3.0), rows(FeatureSpec(n_mels=64), 4.0)] == [1.0, 2.0]


@pytest.mark.parametrize("damage", ["header", "data", "short", "empty"])
def test_a_damaged_entry_is_made_again(manifest, tmp_path, damage) -> None:
    cache = ClipCache(tmp_path / "cache")
    good = cache.waveform(manifest.folder, manifest[0], RATE)
    (path,) = entries(cache.folder)
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[3] ^= 255
    elif damage == "data":
        data[_HEADER_BYTES + 4000] ^= 1
    path.write_bytes({"short": data[:2000], "empty": b""}.get(damage, bytes(data)))
    np.testing.assert_array_equal(cache.waveform(manifest.folder, manifest[0], RATE), good)
    assert path.stat().st_size == len(data)


def test_a_full_cache_takes_no_more(manifest, tmp_path, caplog) -> None:
    cache = ClipCache(tmp_path / "cache", max_bytes=60_000)
    for record in manifest:
        np.testing.assert_array_equal(
            cache.waveform(manifest.folder, record, RATE), read_clip(manifest.folder, record, RATE)
        )
    sizes = sum(path.stat().st_size for path in entries(cache.folder))
    assert 0 < sizes == cache.size() <= 60_000
    assert caplog.text.count("is full") == 1


def test_a_disk_that_is_full_costs_one_warning(manifest, tmp_path, caplog, monkeypatch) -> None:
    cache = ClipCache(tmp_path / "cache")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING):
        for record in manifest:
            assert len(cache.waveform(manifest.folder, record, RATE))
    assert caplog.text.count("No space left on device") == 1
    assert not entries(cache.folder)
    assert cache.size() == 0


def test_a_folder_that_cannot_be_made_costs_one_warning(manifest, tmp_path, caplog) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = ClipCache(tmp_path / "file" / "cache")
    assert len(cache.waveform(manifest.folder, manifest[0], RATE))
    assert caplog.text.count("going on without") == 1


KILLED = """
import os, signal, sys, tests.conftest
from pathlib import Path
from edge_imputer.train.data import ClipCache, Manifest
manifest, cache = Manifest.open(sys.argv[1]), ClipCache(sys.argv[2])
replace = os.replace
def dies(a, b):
    if len(list(Path(sys.argv[2]).glob("??/*"))) > 4:
        print("dying", flush=True)
        os._exit(0)
    replace(a, b)
os.replace = dies
for record in manifest:
    cache.waveform(manifest.folder, record, 16000)
"""


def test_a_killed_writer_leaves_whole_entries(manifest, tmp_path) -> None:
    folder = tmp_path / "cache"
    assert run_python(KILLED, str(manifest.folder), str(folder)).strip() == "dying"
    assert len(list(folder.glob("??/.*.part"))) == 1
    cache = ClipCache(folder)
    for record in manifest:
        np.testing.assert_array_equal(
            cache.waveform(manifest.folder, record, RATE), read_clip(manifest.folder, record, RATE)
        )
    whole = [path for path in entries(folder) if path.suffix != ".part"]
    assert len(whole) == len(manifest)
    assert cache.size() >= sum(path.stat().st_size for path in whole)


TOGETHER = """
import sys, tests.conftest
import numpy as np
from multiprocessing import get_context
from edge_imputer.train.data import ClipCache, Manifest
def work(seed):
    manifest, cache = Manifest.open(sys.argv[1]), ClipCache(sys.argv[2])
    total = 0.0
    for row in np.random.default_rng(seed).permutation(len(manifest)):
        total += float(np.abs(cache.waveform(manifest.folder, manifest[int(row)], 16000)).sum())
    return round(total, 3)
if __name__ == "__main__":
    with get_context("fork").Pool(3) as pool:
        print(len(set(pool.map(work, range(6)))))
"""


def test_several_processes_share_a_cache(manifest, tmp_path) -> None:
    assert run_python(TOGETHER, str(manifest.folder), str(tmp_path / "cache")).strip() == "1"
    cache = ClipCache(tmp_path / "cache")
    assert len(entries(cache.folder)) == len(manifest)


def batches(manifest: Manifest, spec: AugmentSpec, cache: ClipCache | None) -> MicroBatches:
    featurizer = Featurizer(model_spec())
    frames = frame_counts(spec.longest(manifest.durations), featurizer)
    plan = BucketedPlan(frames, max_frames=2000, seed=1)
    source = ManifestSource(manifest, sample_rate=RATE, cache=cache)
    return MicroBatches(plan, source, Augmenter(spec, sample_rate=RATE), featurizer)


def test_clean_features_are_cached_and_still_varied(manifest, tmp_path, monkeypatch) -> None:
    cache = ClipCache(tmp_path / "cache")
    plain = batches(manifest, CLEAN, None)
    kept = batches(manifest, CLEAN, cache)
    for update in range(2 * kept.plan.updates_per_epoch):  # type: ignore[attr-defined]
        a, b = plain.batch(update), kept.batch(update)
        assert a.features.equal(b.features)
        assert a.targets.equal(b.targets)
    assert len(entries(cache.folder)) == len(manifest)

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(Featurizer, "features", refuse)
    first, later = (kept.batch(u) for u in (0, kept.plan.updates_per_epoch))  # type: ignore[attr-defined]
    assert first.features.shape[2] == later.features.shape[2]


def test_waveform_augmentation_caches_the_audio_instead(manifest, tmp_path) -> None:
    cache = ClipCache(tmp_path / "cache")
    loud = AugmentSpec(clips_joined=(1, 1), room=0.0)
    assert loud.on_waveform
    assert not CLEAN.on_waveform
    plain, kept = batches(manifest, loud, None), batches(manifest, loud, cache)
    assert plain.batch(0).features.equal(kept.batch(0).features)
    assert plain.batch(0).features.equal(kept.batch(0).features)
    assert entries(cache.folder)
