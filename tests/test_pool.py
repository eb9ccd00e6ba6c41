"""A pool's clips: fingerprints, junk, what was trained on; and batches by blocks of rows."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from edge_imputer.clip_checks import ClipTask, Finding, check_clip
from edge_imputer.errors import SpecError
from edge_imputer.train.active.fingerprint import (
    NEAR,
    PRINT_BYTES,
    Fingerprinter,
    KnownPrints,
    _bin,
    _count,
    difference,
)
from edge_imputer.train.active.junk import REASONS, JunkFilter, JunkRules
from edge_imputer.train.active.pool import PoolBlocks
from edge_imputer.train.active.score_log import BLOCK, Shard
from edge_imputer.train.active.trained_on import TrainedOn
from edge_imputer.train.checkpoint import load_checkpoint
from edge_imputer.train.data import Featurizer, Manifest
from edge_imputer.train.synthesis import noise_kinds

from .selection_cases import RATE, babble, babbles, pool_row, write_lines, write_model, write_pool

make = Fingerprinter()


def off(a: np.ndarray, b: np.ndarray) -> float:
    return float(difference(a[None], b)[0])


def coded(waveform: np.ndarray, form: str, subtype: str) -> np.ndarray:
    buffer = io.BytesIO()
    sf.write(buffer, waveform, RATE, format=form, subtype=subtype)
    buffer.seek(0)
    return sf.read(buffer, dtype="float32")[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w / 8,
        lambda w: np.round(w * 8_000) / 32_768,
        lambda w: coded(w, "OGG", "VORBIS"),
        lambda w: coded(w, "FLAC", "PCM_16"),
        lambda w: w[160:],
        lambda w: w[:-160],
    ],
    ids=["quieter", "quieter int16", "vorbis", "flac", "later", "shorter"],
)
def test_a_copy_of_a_recording_has_nearly_its_fingerprint(change) -> None:
    far = [off(make(babble(k)), make(change(babble(k)).astype(np.float32))) for k in range(8)]
    assert np.percentile(far, 75) <= NEAR


def test_other_recordings_have_other_fingerprints() -> None:
    prints = [make(babble(k)) for k in range(25)]
    assert {p.shape for p in prints} == {(PRINT_BYTES,)}
    far = [off(a, b) for k, a in enumerate(prints) for b in prints[:k]]
    assert min(far) > NEAR + 0.05


@pytest.mark.parametrize("n_clicks", [1, 2])
def test_clips_are_not_one_because_all_begin_with_a_click(n_clicks: int) -> None:
    """Of a button, at full scale over quiet speech: 10 ms each."""
    rng = np.random.default_rng(1)
    click = 0.99 * np.sign(rng.standard_normal(160))
    recordings = []
    for k in range(20):
        w = np.concatenate([np.zeros(1600), 0.07 * babble(k)])
        w += 1e-4 * rng.standard_normal(len(w))
        for start in (200, 800)[:n_clicks]:
            w[start : start + 160] = click
        recordings.append(w.astype(np.float32))
    prints = [make(w) for w in recordings]
    far = [off(a, b) for k, a in enumerate(prints) for b in prints[:k]]
    assert min(far) > NEAR + 0.05
    for print_, waveform in zip(prints, recordings, strict=True):
        assert off(print_, make(coded(waveform, "FLAC", "PCM_16"))) <= NEAR


def test_prints_of_next_to_nothing_are_nobodys_copies() -> None:
    silence = make(np.zeros(RATE, np.float32))
    click = np.zeros(RATE, np.float32)
    click[8000:8004] = 0.9
    known = KnownPrints()
    for nothing in (silence, make(click)):
        assert off(nothing, nothing) == 1
        known.add(nothing, 1.0)
        assert known.find(nothing, 1.0) is None


def test_the_nearest_is_that_of_all_one_by_one() -> None:
    """Prints of one length, some of them copies in which few or many bits differ."""
    rng = np.random.default_rng(0)
    bits = rng.random((300, 8 * PRINT_BYTES)) < rng.uniform(0.05, 0.7, (300, 1))
    copies = bits[:150] ^ (rng.random((150, 8 * PRINT_BYTES)) < rng.uniform(0, 0.3, (150, 1)))
    prints, asked = np.packbits(bits, axis=1), np.packbits(copies, axis=1)
    known = KnownPrints()
    for print_ in prints:
        known.add(print_, 1.0)
    expected = []
    for print_ in asked:
        far = difference(prints, print_)
        expected.append(int(far.argmin()) if far.min() <= NEAR else None)
    assert [known.find(print_, 1.0) for print_ in asked] == expected
    assert 30 < expected.count(None) < 120


def test_bits_are_counted_by_old_versions_of_numpy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.random.default_rng(0).integers(0, 2**64, (3, 5), dtype=np.uint64)[:, ::2]
    expected = [[bin(int(word)).count("1") for word in row] for row in words]
    assert _count(words).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert _count(words).tolist() == expected


@pytest.mark.parametrize("n", [1, 100, 3200])
def test_short_and_silent_clips_have_a_fingerprint(n: int) -> None:
    assert make(np.zeros(n, np.float32)).shape == (PRINT_BYTES,)
    assert make(babble(0)[:n]).dtype == np.uint8


def test_prints_are_found_by_sound_and_length() -> None:
    known = KnownPrints()
    prints = [make(babble(k)) for k in range(40)]
    for print_, seconds in zip(prints, np.linspace(0.3, 30, 40), strict=True):
        known.add(print_, float(seconds))
    assert len(known) == 40
    for number, seconds in enumerate(np.linspace(0.3, 30, 40)):
        assert known.find(prints[number], float(seconds)) == number
        assert known.find(prints[number], float(seconds) + 0.05) == number
        assert known.find(prints[number], 1.3 * float(seconds) + 0.1) is None
    assert known.find(make(babble(99)), 3.0) is None
    near = prints[7].copy()
    near[0] ^= 0b111
    assert known.find(near, float(np.linspace(0.3, 30, 40)[7])) == 7


def test_the_first_of_two_equal_prints_is_found() -> None:
    known = KnownPrints()
    print_ = make(babble(1))
    assert [known.add(print_, 1.0), known.add(print_, 1.0)] == [0, 1]
    assert known.find(print_, 1.0) == 0


def test_bins_of_lengths_grow_with_them() -> None:
    found = [_bin(seconds) for seconds in np.linspace(0, 40, 4001)]
    assert found == sorted(found)
    assert set(np.diff(found)) <= {0, 1}


def junk_of(waveform: np.ndarray, rules: JunkRules | None = None) -> str | None:
    finding = Finding(
        audio="x",
        duration_s=len(waveform) / RATE,
        sample_rate=RATE,
        peak_db=20 * np.log10(max(1e-10, np.abs(waveform - waveform.mean()).max())),
        clipped=float((np.abs(waveform) >= 1).mean()),
    )
    found = JunkFilter(rules or JunkRules())(finding, waveform.astype(np.float32))
    assert found is None or found[1]
    return None if found is None else found[0]


@pytest.mark.parametrize(
    ("sound", "reason"),
    [
        (lambda rng: np.zeros(RATE), "silent"),
        (lambda rng: 1e-5 * rng.standard_normal(RATE), "silent"),
        (lambda rng: 0.1 * rng.standard_normal(RATE), "noise"),
        (lambda rng: 0.1 * noise_kinds.hum(RATE, rng), "noise"),
        (lambda rng: 0.1 * noise_kinds.steady(RATE, rng), "noise"),
        (lambda rng: 0.1 * noise_kinds.rain(RATE, rng), "noise"),
        (lambda rng: 0.1 * noise_kinds.ticking(2 * RATE, rng), "noise"),
        (lambda rng: np.clip(60 * babble(1), -1, 1), "clipped"),
        (lambda rng: babble(1, 0.15), "too short"),
        (lambda rng: np.tile(babble(1, 1.0), 36), "too long"),
        (lambda rng: babble(1), None),
        (lambda rng: babble(2) + 0.005 * rng.standard_normal(len(babble(2))), None),
    ],
)
def test_junk_is_told_by_what_it_is(sound, reason: str | None) -> None:
    assert junk_of(np.asarray(sound(np.random.default_rng(1)))) == reason


def test_reasons_can_be_overruled_and_lengths_set() -> None:
    rng = np.random.default_rng(0)
    rules = JunkRules(keep=("silent", "noise", "clipped"), min_s=0.1)
    assert junk_of(np.zeros(RATE), rules) is None
    assert junk_of(0.1 * rng.standard_normal(RATE), rules) is None
    assert junk_of(babble(1, 0.15), rules) is None
    with pytest.raises(SpecError, match="0 < shortest < longest"):
        JunkRules(min_s=3, max_s=2).check()


def test_most_real_speech_is_no_junk() -> None:
    from edge_imputer.cli.steps import corpus_folder
    from edge_imputer.train.data import read_clip

    digits = Manifest.open(corpus_folder(None))[::40]
    found = [junk_of(read_clip(digits.folder, record, RATE)) for record in digits]
    assert len(found) > 20
    assert sum(reason is not None for reason in found) <= 0.05 * len(found)


def test_problems_of_clips_are_reasons() -> None:
    from typing import get_args

    from edge_imputer.clip_checks import Problem
    from edge_imputer.train.active.junk import Junk

    assert {*get_args(Problem), *get_args(Junk)} < set(REASONS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m.ckpt")


def blocks_of(pool: Path, model: Path, trained: TrainedOn | None = None, **keys) -> PoolBlocks:
    manifest = Manifest.open(pool)
    numbers = Shard().blocks(len(manifest))
    featurizer = Featurizer(load_checkpoint(model).spec)
    return PoolBlocks(manifest, numbers, featurizer, JunkFilter(JunkRules()), trained, **keys)


def test_what_was_trained_on_is_told_by_place_and_by_sound(tmp_path: Path, model: Path) -> None:
    sounds = babbles(4)
    train = write_pool(tmp_path / "train", sounds)
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "link.wav").symlink_to(tmp_path / "train" / "000.wav")
    sf.write(pool / "copy.ogg", sounds["001.wav"] / 2, RATE)
    sf.write(pool / "new.wav", babble(77), RATE)
    long = np.concatenate([babble(5, 2.0), babble(6, 2.0)])
    sf.write(pool / "long.wav", long, RATE)
    trained_long = pool_row("../pool/long.wav", 2.0)
    write_lines(train, [*map(dict, _rows(train)), trained_long, pool_row("gone.wav", 1.0)])
    rows = [
        pool_row("link.wav", len(sounds["000.wav"]) / RATE),
        pool_row("copy.ogg", len(sounds["001.wav"]) / RATE),
        pool_row("new.wav", 0.8),
        pool_row("long.wav", 2.0, offset_s=2.0),
        pool_row("long.wav", 1.0, offset_s=1.5),
        pool_row("long.wav", 0.0, offset_s=1.0),  # to the end of the file
    ]
    trained = TrainedOn([Manifest.open(train)])
    assert trained.unreadable == 1
    (block,) = blocks_of(write_lines(pool / "pool.jsonl", rows), model, trained)
    assert [(e.reason, e.detail) for e in block.entries] == [
        ("in the training set", "the same part of the file"),
        ("in the training set", "the same sound in another file"),
        ("", ""),
        ("", ""),
        ("in the training set", "the same part of the file"),
        ("in the training set", "the same part of the file"),
    ]


def _rows(path: Path) -> list[dict]:
    from .selection_cases import read_lines

    return read_lines(path)


def test_blocks_hold_every_row_once_and_batches_keep_to_their_seconds(
    tmp_path: Path, model: Path
) -> None:
    sounds = babbles(BLOCK + 6)
    pool = write_pool(tmp_path, sounds)
    rows = [*_rows(pool), pool_row("gone.wav", 1.0)]
    blocks = blocks_of(write_lines(pool, rows), model, batch_s=5.0)
    found = list(blocks)
    assert [entry.row for block in found for entry in block.entries] == list(range(BLOCK + 7))
    assert found[1].entries[-1].reason == "missing"
    for block in found:
        places = sorted(place for held, _ in block.batches for place in held)
        assert places == [k for k, entry in enumerate(block.entries) if not entry.reason]
        for held, batch in block.batches:
            assert len(held) == len(batch.lengths)
            assert batch.features.shape[0] * batch.features.shape[1] <= 500
    seeds = [s for block in found for _, batch in block.batches for s in batch.seeds.tolist()]
    assert len(set(seeds)) == len(sounds)
    assert min(seeds) >= 0


def test_a_clip_is_decoded_and_measured_once(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", babble(0), RATE, subtype="PCM_16")
    finding = check_clip(ClipTask(audio=str(tmp_path / "a.wav")))
    assert finding.duration_s == pytest.approx(0.8)
    assert finding.problem is None
