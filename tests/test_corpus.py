"""Manifests, joining and augmentation: what comes in wrong is named, what comes out is usable."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile as sf

from edge_imputer.errors import DataError, InfeasibleTargetError
from edge_imputer.specs import CrnnSpec, FeatureSpec, ImputerSpec, ModelSpec
from edge_imputer.tokens import token_spec_of
from edge_imputer.train.data import (
    Clip,
    Featurizer,
    fixed_batches,
    hold_out,
    join_clips,
    joined_sequences,
    load_clips,
    read_manifest,
    usable_clips,
)

RATE = 16_000


def write_corpus(folder: Path, n: int = 6, rate: int = RATE) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    (folder / "audio").mkdir(parents=True)
    rows = []
    for i in range(n):
        name = f"audio/{i}.flac"
        sf.write(folder / name, rng.uniform(-0.3, 0.3, rate // 2), rate, subtype="PCM_16")
        rows.append(
            {
                "audio": name,
                "text": ("one", "two", "three")[i % 3],
                "speaker": f"s{i % 2}",
                "split": "test" if i >= n - 2 else "train",
                "duration_s": 0.5,
                "sample_rate": rate,
                "microphone": "a key that only this corpus has",
            }
        )
    write_manifest(folder, rows)
    return rows


def write_manifest(folder: Path, rows: list[dict[str, object]]) -> None:
    (folder / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    write_corpus(tmp_path)
    return load_clips(tmp_path, read_manifest(tmp_path), "train", sample_rate=RATE)


@pytest.fixture
def featurizer() -> Featurizer:
    return Featurizer(
        ModelSpec(
            features=FeatureSpec(mean=-4.0, std=2.0),
            encoder=CrnnSpec(),
            head=ImputerSpec(),
            tokens=token_spec_of([" one two three"]),
        )
    )


def test_missing_manifest_is_named(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.jsonl"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 2"),
        ('{"audio": "x.wav"}', "line 2.*missing required field"),
        ('{"audio": 3}', "line 2"),
    ],
)
def test_bad_manifest_line_is_named(tmp_path, line, message):
    write_corpus(tmp_path)
    path = tmp_path / "manifest.jsonl"
    first, *_ = path.read_text().splitlines()
    path.write_text(first + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path)


def test_empty_manifest_is_refused(tmp_path):
    (tmp_path / "manifest.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no lines"):
        read_manifest(tmp_path)


def test_bad_clip_is_reported_and_skipped(tmp_path, caplog):
    write_corpus(tmp_path)
    (tmp_path / "audio/0.flac").write_bytes(b"not audio")
    (tmp_path / "audio/1.flac").unlink()
    with caplog.at_level(logging.WARNING):
        clips = load_clips(tmp_path, read_manifest(tmp_path), "train", sample_rate=RATE)
    assert len(clips) == 2
    assert "0.flac" in caplog.text
    assert "1.flac" in caplog.text


def test_no_clip_at_all_is_an_error(tmp_path):
    rows = write_corpus(tmp_path)
    write_manifest(tmp_path, [{**row, "text": None} for row in rows])
    with pytest.raises(DataError, match="no clip"):
        load_clips(tmp_path, read_manifest(tmp_path), "train", sample_rate=RATE)


def test_clips_are_resampled(tmp_path):
    write_corpus(tmp_path, rate=8_000)
    clips = load_clips(tmp_path, read_manifest(tmp_path), "test", sample_rate=RATE)
    assert [len(c.waveform) for c in clips] == [RATE // 2] * 2


def test_file_decides_over_a_wrong_manifest(tmp_path, caplog):
    rows = write_corpus(tmp_path, rate=8_000)
    write_manifest(tmp_path, [{**row, "sample_rate": RATE, "text": " one\ttwo "} for row in rows])
    with caplog.at_level(logging.WARNING):
        clips = load_clips(tmp_path, read_manifest(tmp_path), "test", sample_rate=RATE)
    assert [len(c.waveform) for c in clips] == [RATE // 2] * 2
    assert "16000 Hz by the manifest, 8000 by the file" in caplog.text
    assert clips[0].text == "one two"


def test_no_clips_make_no_sequences():
    assert joined_sequences([], 3, sample_rate=RATE, seed=1, length=(1, 2)) == []


def test_hold_out_keeps_the_speaker_out_of_training(tmp_path):
    write_corpus(tmp_path, n=12)
    records = hold_out(read_manifest(tmp_path), "s1")
    assert {r.speaker for r in records if r.split == "train"} == {"s0"}
    assert {r.speaker for r in records if r.split == "test"} == {"s1"}
    assert sum(r.split == "test" for r in records) == 6  # every clip of s1, whatever its split was
    with pytest.raises(DataError, match="s0, s1, got 'nobody'"):
        hold_out(read_manifest(tmp_path), "nobody")


def test_join_keeps_every_sample_and_gap(clips):
    waveform, text = join_clips(clips[:2], np.array([0.1, 0.2, 0.3]), sample_rate=RATE)
    assert text == "one two"
    assert len(waveform) == sum(len(c.waveform) for c in clips[:2]) + round(0.6 * RATE)
    assert not waveform[: RATE // 10].any()
    np.testing.assert_array_equal(
        waveform[RATE // 10 :][: len(clips[0].waveform)], clips[0].waveform
    )


def test_sequences_keep_to_one_speaker_and_repeat(clips):
    first, again = (
        joined_sequences(clips, 6, sample_rate=RATE, seed=3, length=(2, 4)) for _ in range(2)
    )
    assert [c.text for c in first] == [c.text for c in again]
    assert {c.speaker for c in first} == {"s0", "s1"}
    assert all(2 <= len(c.text.split()) <= 4 for c in first)


def test_unusable_clips_are_named_and_left_out(clips, featurizer, caplog):
    def with_text(text: str) -> Clip:
        return Clip(msgspec.structs.replace(clips[0].record, text=text), clips[0].waveform)

    short, foreign = with_text("one " * 40 + "two"), with_text("jazz")
    with pytest.raises(InfeasibleTargetError, match="needs 163 encoder frames"):
        featurizer.targets(short.text, 64)
    with caplog.at_level(logging.WARNING):
        assert usable_clips([short, clips[1], foreign], featurizer) == [clips[1]]
    assert "needs 163 encoder frames" in caplog.text
    assert "'j'" in caplog.text
    assert caplog.text.count(clips[0].record.audio) == 2
    (batch,) = fixed_batches([short, clips[1]], featurizer, 4)  # a sequence may not fit either
    assert batch.features.shape[0] == 1
