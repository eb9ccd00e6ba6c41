"""Manifests: rows come back as written, bad ones are named, and a million cost little memory."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.errors import AudioFormatError, DataError
from edge_imputer.train.data import ClipRecord, Manifest, manifest, read_clip, write_manifest

from .corpus_trees import RATE, sound
from .processes import ROOT, run_python


def record(i: int, **changes: object) -> ClipRecord:
    plain = ClipRecord(
        audio=f"audio/{i}.wav",
        text=f"word {i}" if i % 5 else None,
        speaker=f"s{i % 3}",
        split=("train", "valid", "test")[i % 3],
        duration_s=0.5 + i,
        sample_rate=RATE,
        label="lamp" if i % 2 else None,
    )
    return msgspec.structs.replace(plain, **changes)


@pytest.fixture
def records(tmp_path: Path) -> list[ClipRecord]:
    made = [record(i) for i in range(20)]
    assert write_manifest(tmp_path, made) == 20
    return made


texts = st.text(max_size=30)
any_record = st.builds(
    ClipRecord,
    audio=texts,
    text=st.none() | texts,
    speaker=texts,
    split=st.sampled_from(["train", "valid", "test"]),
    duration_s=st.floats(0, 1e6),
    sample_rate=st.integers(1, 192_000),
    label=st.none() | texts,
    offset_s=st.floats(0, 1e6),
    engine=st.none() | texts,
)


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(any_record, min_size=1, max_size=8), block=st.integers(1, 300))
def test_rows_come_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[ClipRecord], block: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_manifest(path, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "_BLOCK", block)  # lines lie across the borders of blocks
        opened = Manifest.open(path)
    assert list(opened) == rows
    assert [opened[i] for i in range(len(rows))] == rows
    assert opened.folder == path.parent


def test_rows_are_found_by_number_slice_and_mask(tmp_path, records):
    opened = Manifest.open(tmp_path)
    assert len(opened) == 20
    assert (opened[0], opened[-1], opened[np.int64(7)]) == (records[0], records[-1], records[7])
    assert list(opened[3:9:2]) == records[3:9:2]
    np.testing.assert_array_equal(opened.durations, np.arange(20, dtype=np.float32) + 0.5)
    assert opened.durations.dtype == np.float32
    assert list(opened.where(opened.durations < 3)) == records[:3]
    shuffled = opened.where([5, 1, 5])
    assert list(shuffled) == [records[5], records[1], records[5]]
    assert shuffled.durations.tolist() == [5.5, 1.5, 5.5]
    assert len(opened.where([])) == 0
    with pytest.raises(IndexError):
        opened[20]
    with pytest.raises(DataError, match=r"mask of shape \(20,\).*got bool of shape \(3,\)"):
        opened.where([True, False, True])
    with pytest.raises(ValueError, match="read-only"):
        opened.durations[0] = 1.0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_of_rows_are_the_rows(tmp_path_factory, data):
    """Slices share, masks of most rows number them, others copy: all answer alike."""
    folder = tmp_path_factory.mktemp("rows")
    kept = [record(i) for i in range(20)]
    write_manifest(folder, kept)
    opened = Manifest.open(folder)
    for _ in range(3):
        n = len(kept)
        numbers = st.lists(st.integers(-n, n - 1), max_size=30) if n else st.just([])
        kinds = [st.lists(st.booleans(), min_size=n, max_size=n), numbers]
        border = st.integers(0, n)
        kinds.append(st.tuples(border, border).map(lambda ends: list(range(*sorted(ends)))))
        chosen = data.draw(st.one_of(kinds))
        mask = bool(chosen) and isinstance(chosen[0], bool)
        numbers_of = [i for i, wanted in enumerate(chosen) if wanted] if mask else chosen
        kept = [kept[i] for i in numbers_of]
        opened = pickle.loads(pickle.dumps(opened.where(chosen)))
        assert list(opened) == kept
        assert [opened[i] for i in range(len(kept))] == kept
        assert opened.durations.tolist() == [r.duration_s for r in kept]
        with pytest.raises(IndexError):
            opened[len(kept)]
        with pytest.raises(IndexError):
            opened.where([len(kept) - 1, len(kept)])


def test_neighbouring_rows_are_not_copied(tmp_path, records):
    opened = Manifest.open(tmp_path)
    for chosen in (np.arange(20) > 3, range(4, 20)):
        assert np.shares_memory(opened.where(chosen).durations, opened.durations)


def test_one_split_is_opened_alone(tmp_path, records):
    opened = Manifest.open(tmp_path / "manifest.jsonl", split="valid")
    assert list(opened) == [r for r in records if r.split == "valid"]
    write_manifest(tmp_path, records[:1])
    assert len(Manifest.open(tmp_path, split="test")) == 0


def test_a_column_is_small_integers(tmp_path, records):
    opened = Manifest.open(tmp_path)
    for name in ("speaker", "label", "split", "text", "sample_rate", "engine"):
        column = opened.column(name)
        assert column.codes.dtype == np.int32
        assert [column.values[c] for c in column.codes] == [getattr(r, name) for r in records]
    assert opened.column("speaker").values == ["s0", "s1", "s2"]


def test_keys_at_their_defaults_are_left_out_and_others_ignored(tmp_path, records):
    first, second = (tmp_path / "manifest.jsonl").read_text().splitlines()[:2]
    assert "label" not in json.loads(first)
    assert json.loads(second)["label"] == "lamp"
    (tmp_path / "manifest.jsonl").write_text(second[:-1] + ', "kind": "word"}\r\n\n')
    assert list(Manifest.open(tmp_path)) == [records[1]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{no json", "line 21: "),
        ('{"audio": "x.wav"}', "line 21: .*missing required field"),
        (json.dumps({**msgspec.to_builtins(record(1)), "duration_s": -1}), "line 21: .*>= 0"),
        (json.dumps({**msgspec.to_builtins(record(1)), "split": "dev"}), "line 21: .*'dev'"),
        (json.dumps({**msgspec.to_builtins(record(1)), "sample_rate": 0}), "line 21: .*>= 1"),
        ('{"audio": "\xff"}', "line 21: "),
    ],
)
def test_a_bad_line_is_named_by_number(tmp_path, records, line, message):
    with (tmp_path / "manifest.jsonl").open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match=message):
        Manifest.open(tmp_path)


def test_no_manifest_and_no_lines_are_named(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.jsonl, found none.*data prepare"):
        Manifest.open(tmp_path)
    (tmp_path / "manifest.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match="no lines"):
        Manifest.open(tmp_path)


def test_one_document_is_no_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "_LONGEST_LINE", 1000)
    monkeypatch.setattr(manifest, "_BLOCK", 100)
    (tmp_path / "manifest.jsonl").write_text("[" + "0, " * 1000 + "0]")
    with pytest.raises(DataError, match="line 1: longer than 1000 bytes"):
        Manifest.open(tmp_path)


def test_a_manifest_that_changed_under_its_readers_is_noticed(tmp_path, records):
    late, early = Manifest.open(tmp_path), Manifest.open(tmp_path)
    assert early[1] == records[1]
    (tmp_path / "manifest.jsonl").write_text("{}\n" * 500)
    with pytest.raises(DataError, match="changed since it was opened"):
        late[1]
    with pytest.raises(DataError, match="changed since it was opened"):
        early[1]


def test_a_replaced_manifest_stays_readable_to_who_has_it_open(tmp_path, records):
    opened = Manifest.open(tmp_path)
    assert opened[2] == records[2]
    write_manifest(tmp_path, [record(99)])
    assert opened[3] == records[3]
    assert list(Manifest.open(tmp_path)) == [record(99)]


def test_writing_is_all_or_nothing(tmp_path, records):
    def failing() -> Iterator[ClipRecord]:
        yield record(1)
        raise RuntimeError("no more")

    before = (tmp_path / "manifest.jsonl").read_bytes()
    with pytest.raises(RuntimeError, match="no more"):
        write_manifest(tmp_path, failing())
    assert (tmp_path / "manifest.jsonl").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.jsonl"]


def test_a_pickled_manifest_reads_on(tmp_path, records):
    opened = Manifest.open(tmp_path)
    assert opened[0] == records[0]  # its file is open now
    again = pickle.loads(pickle.dumps(opened.where([4, 2])))
    assert list(again) == [records[4], records[2]]
    assert again.durations.tolist() == [4.5, 2.5]


def test_a_clip_is_a_part_of_its_file(tmp_path):
    from edge_imputer.audio import read_audio

    whole, _ = read_audio(sound(tmp_path / "a.flac", 1.0))
    part = read_clip(tmp_path, record(0, audio="a.flac", offset_s=0.25, duration_s=0.5), RATE)
    np.testing.assert_array_equal(part, whole[RATE // 4 : 3 * RATE // 4])
    rounded = record(0, audio="a.flac", duration_s=0.9995)
    np.testing.assert_array_equal(read_clip(tmp_path, rounded, RATE), whole)
    past = record(0, audio="a.flac", offset_s=0.9, duration_s=0.4)  # Kaldi allows 0.5 s
    np.testing.assert_array_equal(read_clip(tmp_path, past, RATE), whole[int(0.9 * RATE) :])
    slow = read_clip(tmp_path, record(0, audio="a.flac", offset_s=0.5, duration_s=0.5), 8_000)
    assert slow.shape == (4_000,)
    for start, length in ((0.9, 0.7), (1.5, 0.1), (0.2, 0.0)):
        outside = record(0, audio="a.flac", offset_s=start, duration_s=length)
        with pytest.raises(AudioFormatError, match=r"expected a part of its 1\.000 s"):
            read_clip(tmp_path, outside, RATE)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_part_is_the_same_samples_in_every_format(tmp_path, suffix):
    from edge_imputer.audio import read_segment

    path = tmp_path / f"a.{suffix}"
    sf.write(path, np.random.default_rng(0).uniform(-0.3, 0.3, 3 * RATE), RATE)
    whole, _ = read_segment(path)
    for start, length in ((0.0, 0.5), (1.0, 0.5), (2.25, 0.75), (0.013, 2.0)):
        part, rate = read_segment(path, start_s=start, duration_s=length)
        first = round(start * RATE)
        np.testing.assert_allclose(part, whole[first : first + round(length * RATE)], atol=1e-6)
        assert rate == RATE


WORKERS = """
import sys
import tests.conftest  # finds the checkout, in spawned workers too
from edge_imputer.train.data import Manifest

def take(rows):
    return [r.audio for r in rows]

if __name__ == "__main__":
    from torch.utils.data import DataLoader
    opened = Manifest.open(sys.argv[1])
    names = [r.audio for r in opened]
    for context in ("fork", "spawn"):
        loader = DataLoader(
            opened, batch_size=3, num_workers=1, collate_fn=take, multiprocessing_context=context
        )
        assert [name for batch in loader for name in batch] == names, context
    print("same")
"""


def test_forked_and_spawned_workers_read_the_same(tmp_path, records):
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, script, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.stdout == "same\n", done.stderr


MILLION = """
import sys
import tests.conftest
from pathlib import Path
from edge_imputer.train.data.manifest import Manifest

def resident_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return max(int(l.split()[1]) for l in lines if l.startswith(("VmRSS", "VmHWM"))) / 1024

path, n = Path(sys.argv[1]), 1_000_000
with path.open("w") as file:
    for i in range(n):
        file.write(
            f'{{"audio":"clips/{i:08d}.mp3","text":"the text of clip {i}","speaker":"s{i % 20000}",'
            f'"split":"train","duration_s":{1 + i % 15},"sample_rate":48000}}\\n'
        )
before = resident_mb()
opened = Manifest.open(path)
assert len(opened) == n
assert sum(1 for _ in opened) == n
assert opened[n - 1].speaker == "s19999"
speakers = opened.column("speaker")
assert len(speakers.values) == 20_000
assert len(opened.where(opened.durations < 5)) == 266_668
print(resident_mb() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_a_million_rows_cost_at_most_50_mb(tmp_path):
    assert float(run_python(MILLION, str(tmp_path / "big.jsonl"))) <= 50


def test_chosen_rows_alone_are_kept_and_lines_are_as_they_stand(records, tmp_path) -> None:
    file = tmp_path / "manifest.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"audio/7.wav"', b'"audio/7.wav","mine":1'))
    wanted = np.zeros(20, bool)
    wanted[[2, 7, 19]] = True
    some = Manifest.open(tmp_path, rows=wanted)
    assert list(some) == [records[2], records[7], records[19]]
    assert json.loads(some.line(1))["mine"] == 1
    assert len(Manifest.open(tmp_path, split="train", rows=wanted)) == 0
