"""Corpora merged, and long recordings of many clips."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile

from edge_imputer.cli.main import main
from edge_imputer.errors import DataError
from edge_imputer.train.data import ClipRecord, Manifest, Split, read_clip, write_manifest
from edge_imputer.train.data.combine import concatenate, join, merge
from edge_imputer.train.improving.continuing import write_corpus
from edge_imputer.train.recipe import read_recipe

RATE = 8000


def corpus(folder: Path, n: int, *, seed: int = 0, split: str = "test") -> Manifest:
    """`n` clips of noise, 0.5 to 1 s, each with a word of its own."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    records = []
    for k in range(n):
        waveform = rng.uniform(-0.5, 0.5, int(rng.integers(RATE // 2, RATE)))
        soundfile.write(folder / f"{k}.wav", waveform, RATE)
        records.append(
            ClipRecord(
                audio=f"{k}.wav",
                text=f"word{seed}x{k}",
                speaker=f"s{k % 3}",
                split=split,  # type: ignore[arg-type]
                duration_s=len(waveform) / RATE,
                sample_rate=RATE,
            )
        )
    write_manifest(folder / "manifest.jsonl", records)
    return Manifest.open(folder)


def test_merged_lines_lead_to_the_same_audio(tmp_path: Path) -> None:
    parts = [corpus(tmp_path / "a", 3), corpus(tmp_path / "deep" / "b", 2, seed=1, split="train")]
    counts = merge(parts, tmp_path / "both", label_by_text=True)
    assert counts == {"test": 3, "train": 2}
    both = Manifest.open(tmp_path / "both")
    before = [(part.folder, record) for part in parts for record in part]
    assert len(both) == 5
    for record, (folder, original) in zip(both, before, strict=True):
        assert record.label == original.text
        assert np.array_equal(
            read_clip(both.folder, record, RATE), read_clip(folder, original, RATE)
        )


def test_paths_lead_to_the_audio_through_links(tmp_path: Path) -> None:
    corpus(tmp_path / "disk" / "far" / "a", 2, split="train")
    (tmp_path / "other" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "a").symlink_to(tmp_path / "disk" / "far" / "a")
    (tmp_path / "runs").symlink_to(tmp_path / "other" / "deep" / "er")
    part = Manifest.open(tmp_path / "a")
    merge([part], tmp_path / "runs" / "out")
    write_corpus(
        part, None, None, tmp_path / "runs" / "more", share=0.3, recipe=read_recipe("wake-word")
    )
    for name in ("out", "more"):
        both = Manifest.open(tmp_path / "runs" / name)
        for record, original in zip(both, part, strict=True):
            heard = read_clip(both.folder, record, RATE)
            assert np.array_equal(heard, read_clip(part.folder, original, RATE))


def test_only_the_splits_asked_for(tmp_path: Path) -> None:
    parts = [corpus(tmp_path / "a", 3), corpus(tmp_path / "b", 2, seed=1, split="train")]
    assert merge(parts, tmp_path / "c", splits=["train"]) == {"train": 2}
    assert [record.label for record in Manifest.open(tmp_path / "c")] == [None, None]
    with pytest.raises(DataError, match="expected clips of the splits"):
        merge(parts, tmp_path / "d", splits=["valid"])
    assert not (tmp_path / "d" / "manifest.jsonl").exists()
    with pytest.raises(DataError, match="folder of its own"):
        merge(parts, tmp_path / "a")
    assert len(Manifest.open(tmp_path / "a")) == 3


def test_sentences_with_a_keyword_are_no_examples_of_other_speech(tmp_path: Path) -> None:
    source = corpus(tmp_path / "a", 4)
    texts = ["stop", "stop the music", "play the music", "unstoppable music"]
    records = [
        msgspec.structs.replace(record, text=text)
        for record, text in zip(source, texts, strict=True)
    ]
    write_manifest(tmp_path / "a" / "manifest.jsonl", records)
    merge([Manifest.open(tmp_path / "a")], tmp_path / "b", exclude=["stop"])
    left = [record.text for record in Manifest.open(tmp_path / "b")]
    assert left == ["stop", "play the music", "unstoppable music"]


def test_long_recordings_hold_every_clip_once_in_full(tmp_path: Path) -> None:
    source = corpus(tmp_path / "a", 40)
    records = concatenate(source, tmp_path / "long", seconds=(3, 6), sample_rate=RATE, seed=1)
    words = " ".join(record.text or "" for record in records).split()
    assert len(words) == len(set(words))
    assert set(words) <= {record.text for record in source}
    assert len(words) > 30  # what is left out is the last, too short recording
    by_word = {record.text: record for record in source}
    for record in Manifest.open(tmp_path / "long"):
        waveform = read_clip(tmp_path / "long", record, RATE)
        assert 3 * 0.9 <= len(waveform) / RATE <= 6 * 1.2
        assert record.duration_s == pytest.approx(len(waveform) / RATE, abs=1e-3)
        spoken = [read_clip(source.folder, by_word[w], RATE) for w in record.text.split()]
        assert np.sum(waveform**2) == pytest.approx(
            sum(np.sum(one**2) for one in spoken), rel=1e-3
        )  # all of every clip, and silence


def test_long_recordings_are_those_of_the_seed(tmp_path: Path) -> None:
    source = corpus(tmp_path / "a", 20)
    first, again, other = (
        concatenate(source, tmp_path / name, seconds=(3, 5), sample_rate=RATE, seed=seed)
        for name, seed in (("x", 1), ("y", 1), ("z", 2))
    )
    assert first == again
    assert first != other


def test_too_little_for_a_recording_is_said(tmp_path: Path) -> None:
    source = corpus(tmp_path / "a", 3)
    with pytest.raises(DataError, match="a recording of 60 s"):
        concatenate(source, tmp_path / "b", seconds=(60, 160), sample_rate=RATE, seed=0)
    with pytest.raises(DataError, match="shortest <= longest"):
        concatenate(source, tmp_path / "b", seconds=(5, 3), sample_rate=RATE, seed=0)


def test_joined_utterances_are_clips_of_one_speaker(tmp_path: Path) -> None:
    source = corpus(tmp_path / "a", 12)
    join(source.folder, list(source), tmp_path / "b", 9, length=(2, 4), sample_rate=RATE, seed=1)
    joined = list(Manifest.open(tmp_path / "b"))
    by_word = {record.text: record for record in source}
    assert [r.speaker for r in joined] == ["s0", "s1", "s2"] * 3
    for record in joined:
        words = (record.text or "").split()
        assert 2 <= len(words) <= 4
        assert {by_word[word].speaker for word in words} == {record.speaker}
        assert (record.split, record.label) == ("test", None)
        heard = read_clip(tmp_path / "b", record, RATE)
        spoken = [read_clip(source.folder, by_word[word], RATE) for word in words]
        assert np.sum(heard**2) == pytest.approx(sum(np.sum(s**2) for s in spoken), rel=1e-3)
    with pytest.raises(DataError, match="fewest <= most"):
        join(source.folder, [*source], tmp_path / "c", 1, length=(3, 2), sample_rate=RATE, seed=1)
    with pytest.raises(DataError, match="which is the corpus"):
        join(source.folder, [*source], tmp_path / "a", 1, length=(1, 2), sample_rate=RATE, seed=1)


def test_joined_utterances_of_two_splits_differ(tmp_path: Path) -> None:
    """Though their clips say the same words in the same order; test draws by the seed alone."""
    source = corpus(tmp_path / "a", 12)
    both = [msgspec.structs.replace(one, split=s) for s in ("train", "test") for one in source]

    def texts(out: str, *splits: Split) -> list[list[str | None]]:
        joined = join(
            source.folder,
            both,
            tmp_path / out,
            9,
            length=(4, 6),
            splits=splits,
            sample_rate=RATE,
            seed=1,
        )
        return [[one.text for one in joined if one.split == split] for split in splits]

    train, test = texts("b", "train", "test")
    assert not set(train) & set(test)
    assert texts("c", "test", "train") == [test, train]
    assert texts("d", "test") == [test]


def test_joining_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*arguments: str, status: int = 0) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["data", "join", str(tmp_path / "a"), str(tmp_path / "b"), *arguments])
        assert (stop.value.code or 0) == status
        return "".join(capsys.readouterr())

    corpus(tmp_path / "a", 12, split="train")
    assert "split 'test'" in command(status=2)
    assert "got dev" in command("--split", "dev", status=2)
    said = command("-n", "4", "--clips", "1", "3", "--hold-out", "s1", "--rate", str(RATE))
    assert "4 utterances of 1 speakers" in said
    rows = list(Manifest.open(tmp_path / "b"))
    assert {(row.speaker, row.split, row.sample_rate) for row in rows} == {("s1", "test", RATE)}
    assert "expected one of the speakers s0, s1, s2" in command("--hold-out", "x", status=2)
