"""`edge-imputer select`: shards, resuming, budget, repeats, outputs and what is refused."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from edge_imputer.cli.main import main
from edge_imputer.cli.select import chosen_device
from edge_imputer.errors import CheckpointError, DataError, SpecError
from edge_imputer.train.active import JunkRules, Selection, SelectionOptions, SelectionReport
from edge_imputer.train.active import selecting as selecting_module
from edge_imputer.train.active import trained_on as trained_on_module
from edge_imputer.train.active.choosing import Choosing, choose
from edge_imputer.train.active.folder import _Recordings, pool_file
from edge_imputer.train.active.score_log import BLOCK, Entry, ScoreLog, Shard, is_complete
from edge_imputer.train.active.score_table import ScoreTable, shards_in
from edge_imputer.train.active.writing import clip_id
from edge_imputer.train.data import ClipRecord, Manifest, read_clip

from .selection_cases import (
    RATE,
    babble,
    babbles,
    pool_row,
    read_lines,
    write_keyword_model,
    write_lines,
    write_model,
    write_pool,
)

N_CLIPS = 2 * BLOCK + 9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m.ckpt")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three blocks: babble, and all that a pool of the field has besides."""
    folder = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(0)
    path = write_pool(folder, babbles(N_CLIPS - 6))
    sf.write(folder / "copy.ogg", babble(3, 0.8) / 2, RATE)
    sf.write(folder / "noise.wav", 0.1 * rng.standard_normal(RATE), RATE)
    sf.write(folder / "silence.wav", np.zeros(RATE), RATE)
    (folder / "broken.wav").write_bytes(b"RIFF no audio")
    names = ("copy.ogg", "noise.wav", "silence.wav", "broken.wav", "gone.wav", "000.wav")
    seconds = (0.8, 1.0, 1.0, 1.0, 1.0, 0.5)
    rows = [pool_row(name, s) for name, s in zip(names, seconds, strict=True)]
    return write_lines(path, [*read_lines(path), *rows])


def selection(model: Path, pool: Path, out: Path, hours: float = 0.01, **keys) -> Selection:
    keys = {"strategy": "egl-bound", **keys}
    return Selection(SelectionOptions(model, pool, out, 3600 * hours, **keys))


def run(model: Path, pool: Path, out: Path, of: int = 1, **keys) -> SelectionReport:
    opened = selection(model, pool, out, **keys)
    for index in reversed(range(of)):
        opened.score(Shard(index + 1, of))
    return opened.select()


@pytest.fixture(scope="module")
def whole(model: Path, pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A selection in one go; its folder."""
    out = tmp_path_factory.mktemp("whole")
    run(model, pool, out / "to_label.jsonl", export="label-studio")
    return out


def test_every_clip_is_chosen_or_left_out_with_a_reason(
    model: Path, pool: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    report = run(model, pool, tmp_path / "to_label.jsonl", hours=1)
    left_out = {reason: tally.clips for reason, tally in report.left_out.items()}
    assert left_out == {"missing": 1, "noise": 1, "repeated": 2, "silent": 1, "unreadable": 1}
    assert report.all.clips == N_CLIPS
    assert report.scored.clips == N_CLIPS - 4
    assert report.chosen.clips == N_CLIPS - 6
    listed = read_lines(tmp_path / "to_label/left_out.jsonl")
    names = {line["audio"]: line["reason"] for line in listed}
    assert {name for name, reason in names.items() if reason != "repeated"} == {
        "noise.wav", "silence.wav", "broken.wav", "gone.wav"
    }  # fmt: skip
    assert len(names.keys() & {"003.wav", "copy.ogg"}) == 1
    assert names["000.wav"] == "repeated"
    assert all(line["detail"] for line in listed)
    assert json.loads((tmp_path / "to_label/report.json").read_text())["chosen"]["clips"] == (
        N_CLIPS - 6
    )


def test_chosen_rows_are_the_pool_s_with_what_was_found(whole: Path, pool: Path) -> None:
    rows = read_lines(whole / "to_label.jsonl")
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    by_second = [row["per_second"] for row in rows]
    assert by_second == sorted(by_second, reverse=True)
    assert sum(row["duration_s"] for row in rows) <= 36
    assert sum(row["duration_s"] for row in rows) > 35
    for row in rows:
        assert row["device"] == "kitchen"
        assert row["strategy"] == "egl-bound"
        assert 0 < row["confidence"] <= 1
        assert (whole / row["audio"]).resolve().parent == pool.parent
        assert set(row["heard"]) <= set(" abcdef")
    assert len({row["clip"] for row in rows}) == len(rows)
    best = rows[0]["better_than"]
    assert best == pytest.approx(1 - 1 / (N_CLIPS - 4), abs=2 / N_CLIPS)


def test_chosen_rows_say_how_long_their_clips_are(model: Path, pool: Path, tmp_path: Path) -> None:
    """A pool's 0 s is "to the end of the file": a labelled clip of 0 s could not be read."""
    rows = [pool_row("001.wav", 0.0), pool_row("002.wav", 0.0, offset_s=0.2)]
    rows.append(pool_row("003.wav", 0.3, offset_s=0.1))
    some = write_lines(pool.parent / "to the end.jsonl", rows)
    report = run(model, some, tmp_path / "to_label.jsonl")
    chosen = Manifest.open(tmp_path / "to_label.jsonl")
    seconds = {Path(record.audio).name: record.duration_s for record in chosen}
    assert seconds == {"001.wav": 0.6, "002.wav": 0.5, "003.wav": 0.3}
    assert report.chosen.hours * 3600 == pytest.approx(float(chosen.durations.sum()), abs=1e-5)
    for record in chosen:
        assert len(read_clip(chosen.folder, record, RATE)) == round(RATE * record.duration_s)
    assert "<td>0.50</td>" in (tmp_path / "to_label/index.html").read_text()


@pytest.mark.parametrize("of", [2, 3])
def test_shards_give_the_selection_of_one(
    model: Path, pool: Path, whole: Path, tmp_path: Path, of: int
) -> None:
    run(model, pool, tmp_path / "to_label.jsonl", of)
    assert _names(tmp_path) == _names(whole)
    assert _scores(tmp_path) == _scores(whole)
    left = [read_lines(f / "to_label/left_out.jsonl") for f in (tmp_path, whole)]
    assert left[0] == left[1]


def _names(folder: Path) -> list[tuple[str, float]]:
    rows = read_lines(folder / "to_label.jsonl")
    return [(Path(row["audio"]).name, row["per_second"]) for row in rows]


def _scores(folder: Path) -> list[dict]:
    files = (folder / "to_label").glob("scores-*-of-*.jsonl")
    return sorted((e for f in files for e in read_lines(f)[1:]), key=lambda e: e["row"])


def test_batches_of_any_size_give_the_selection(
    model: Path, pool: Path, whole: Path, tmp_path: Path
) -> None:
    run(model, pool, tmp_path / "to_label.jsonl", batch_s=2.0, workers=1)
    assert [n for n, _ in _names(tmp_path)] == [n for n, _ in _names(whole)]
    np.testing.assert_allclose(
        [s for _, s in _names(tmp_path)], [s for _, s in _names(whole)], rtol=1e-5
    )


@pytest.mark.parametrize("strategy", ["random", "egl-diversity", "badge"])
def test_strategies_choose_by_their_seed(model: Path, pool: Path, tmp_path: Path, strategy) -> None:
    some = write_lines(pool.parent / f"{strategy}.jsonl", read_lines(pool)[:40])
    found = []
    for name, seed, of in (("a", 0, 1), ("b", 0, 2), ("c", 1, 1)):
        run(model, some, tmp_path / name / "to_label.jsonl", of, strategy=strategy, seed=seed,
            hours=0.003)  # fmt: skip
        found.append(_names(tmp_path / name))
    assert found[0] == found[1] != found[2]
    assert sum(r["duration_s"] for r in read_lines(tmp_path / "a/to_label.jsonl")) <= 10.8


KILLED = """
import os, sys
import tests.conftest
from pathlib import Path
from edge_imputer.train.active import Selection, SelectionOptions
from edge_imputer.train.active.score_log import Shard
model, pool, out = map(Path, sys.argv[1:])
def progress(what, done, total):
    if done >= 64:
        os.kill(os.getpid(), 9)
options = SelectionOptions(model, pool, out, 36.0, strategy="egl-diversity")
Selection(options, progress).score(Shard())
"""


def test_a_killed_run_goes_on_where_it_was(model: Path, pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed/to_label.jsonl"
    command = [sys.executable, "-c", KILLED, str(model), str(pool), str(out)]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()
    scores = out.parent / "to_label/scores-1-of-1.jsonl"
    assert len(scores.read_text().splitlines()) == 1 + BLOCK
    with scores.open("ab") as file:  # and it was killed within a line
        file.write(b'{"row":64,"seconds":1.0,"sc')
    with (scores.with_suffix(".f32")).open("ab") as file:
        file.write(b"x" * 100)
    seen = []
    opened = Selection(
        SelectionOptions(model, pool, out, 36.0, strategy="egl-diversity"),
        lambda what, done, total: seen.append((done, total)),
    )
    opened.score(Shard())
    assert seen == [(64, N_CLIPS), (128, N_CLIPS), (N_CLIPS, N_CLIPS)]
    opened.select()
    run(model, pool, tmp_path / "whole/to_label.jsonl", strategy="egl-diversity")
    assert _names(tmp_path / "killed") == _names(tmp_path / "whole")


def test_scores_of_something_else_are_not_taken(
    model: Path, pool: Path, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"made otherwise \(seed\).*another name with --out"):
        selection(model, pool, whole / "to_label.jsonl", seed=1).score(Shard())
    with pytest.raises(DataError, match=r"made otherwise .rules"):
        selection(model, pool, whole / "to_label.jsonl", rules=JunkRules(max_s=9)).select()
    with pytest.raises(DataError, match="file of its own"):
        selection(model, pool, pool)
    with pytest.raises(DataError, match="expected scores, found none"):
        selection(model, pool, tmp_path / "to_label.jsonl").select()
    opened = selection(model, pool, tmp_path / "to_label.jsonl")
    opened.score(Shard(2, 2))
    with pytest.raises(DataError, match=r"1 of 2 shards.*--shard 1/2"):
        opened.select()


def test_scores_serve_any_budget(model: Path, pool: Path, whole: Path, tmp_path: Path) -> None:
    def progress(*_: object) -> None:
        raise AssertionError("scored again")

    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "to_label.jsonl"
    options = SelectionOptions(model, pool, out, 10.0, strategy="egl-bound", export="tsv")
    opened = Selection(options, progress)
    opened.score(Shard())
    opened.select()
    chosen = _names(tmp_path)
    assert 5 < len(chosen) < len(_names(whole))
    assert chosen[:5] == _names(whole)[:5]
    table = (tmp_path / "to_label/tasks.tsv").read_text().splitlines()
    assert table[0].split("\t") == ["audio", "text", "clip", "rank", "heard"]
    assert len(table) == 1 + len(chosen)


def test_a_budget_larger_than_the_pool_takes_all_and_says_so(
    model: Path, pool: Path, tmp_path: Path
) -> None:
    some = write_lines(pool.parent / "few.jsonl", read_lines(pool)[:5])
    report = run(model, some, tmp_path / "to_label.jsonl", hours=2)
    assert report.chosen.clips == 5
    assert "the budget of 2 h is larger than what the pool has" in report.warnings[0]
    assert "no --trained-on" in report.warnings[1]


def test_a_folder_of_recordings_is_a_pool(model: Path, pool: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    (folder / "monday").mkdir(parents=True)
    for name in ("000.wav", "001.wav"):
        shutil.copy(pool.parent / name, folder / "monday")
    (folder / "broken.ogg").write_bytes(b"no audio")
    report = run(model, folder, tmp_path / "to_label.jsonl")
    assert report.chosen.clips == 2
    assert list(report.left_out) == ["unreadable"]
    rows = read_lines(tmp_path / "to_label.jsonl")
    assert {row["duration_s"] for row in rows} == {0.5, 0.6}
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"or recordings .*found neither"):
        run(model, empty, tmp_path / "to_label.jsonl")


def test_a_folder_is_listed_once(model: Path, pool: Path, tmp_path: Path) -> None:
    """What is written into it, by an earlier selection too, is not of the pool."""
    folder = tmp_path / "saved"
    folder.mkdir()
    for name in ("000.wav", "001.wav"):
        shutil.copy(pool.parent / name, folder)
    out = folder / "to_label.jsonl"
    run(model, folder, out, export="tsv")
    assert len(list((folder / "to_label/audio").iterdir())) == 2
    listed = (folder / "to_label/pool.jsonl").read_bytes()
    assert run(model, folder, out).all.clips == 2
    shutil.copy(pool.parent / "002.wav", folder)
    report = run(model, folder, out)
    assert report.all.clips == 2
    assert "1 recordings were added since" in report.warnings[0]
    assert "another name with --out" in report.warnings[0]
    assert run(model, folder, tmp_path / "all.jsonl").chosen.clips == 3
    other = tmp_path / "other"
    shutil.copytree(pool.parent, other, ignore=shutil.ignore_patterns("*.jsonl", "1*"))
    with pytest.raises(DataError, match=r"lists recordings that are not in .*other"):
        selection(model, other, out)
    assert (folder / "to_label/pool.jsonl").read_bytes() == listed


def test_recordings_are_listed_in_the_order_of_their_paths(tmp_path: Path) -> None:
    """Folder by folder; not what is no recording, the list's own folder, or behind a link."""
    home = tmp_path / "saved"
    names = ["a.wav", "a/b.WAV", "a/b/c.flac", "a0.ogg", "a-.mp3", "ä.wav", "z/y/x.wav", "B.wav"]
    for name in (*names, "notes.txt", "to_label/audio/1.flac", "wav"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    (home / "b").symlink_to(home / "a")
    (home / "c.wav").symlink_to(home / "gone.wav")
    (home / "d.wav").mkdir()
    listed, notes = pool_file(home, home / "to_label")
    found = [row["audio"] for row in read_lines(listed)]
    assert found == sorted(str(home / name) for name in [*names, "c.wav"])
    assert not notes
    for name in ("a/0.wav", "zz.wav"):
        (home / name).touch()
    (home / "a0.ogg").unlink()
    _, (note,) = pool_file(home, home / "to_label")
    assert note.startswith("2 recordings were added")
    assert str(home / "a/0.wav") in note


def test_folders_that_cannot_be_listed_are_left_out_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "saved/lost").mkdir(parents=True)
    (tmp_path / "saved/a.wav").touch()
    scan = os.scandir

    def refusing(path: str) -> object:
        if path.endswith("lost/"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    _, notes = pool_file(tmp_path / "saved", tmp_path / "to_label")
    assert len(notes) == 1
    assert re.search(r"^1 folders .* such as .*/lost/ \(Permission denied\)", notes[0])


def test_listing_recordings_takes_little_memory(tmp_path: Path) -> None:
    """As names, not as paths: and those of a folder at a time."""
    for number in range(40):
        (tmp_path / f"{number:02d}").mkdir()
        for part in range(100):
            (tmp_path / f"{number:02d}" / f"{part:03d}.wav").touch()
    tracemalloc.start()
    n_files = sum(1 for _ in _Recordings("").below(f"{tmp_path}/"))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_files == 4000
    assert most < 100_000


def test_what_was_trained_on_is_left_out_and_heard_once(
    model: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the options to the report, in shards: the second hears the training set no more."""
    some = write_lines(pool.parent / "trained.jsonl", read_lines(pool)[: BLOCK + 6])
    sounds = babbles(2) | {"late.wav": babble(65, 0.5)}
    train = write_pool(tmp_path / "train", sounds)  # by sound; and by place
    late = tmp_path / "train/late.wav"
    late.rename(tmp_path / "away.wav")
    by_place = [pool_row(str(pool.parent / "005.wav"), 0.5)]
    write_lines(train, [*read_lines(train), *by_place])
    heard = []

    def listen(folder: Path, record: ClipRecord, rate: int) -> np.ndarray:
        heard.append(Path(record.audio).name)
        return read_clip(folder, record, rate)

    monkeypatch.setattr(trained_on_module, "read_clip", listen)
    opened = selection(model, some, tmp_path / "to_label.jsonl", hours=1, trained_on=[train])
    opened.score(Shard(1, 2))
    assert heard == ["000.wav", "001.wav", "late.wav", "005.wav"]
    assert opened.notes[0].startswith("1 clips of the training set cannot be read")
    (tmp_path / "away.wav").rename(late)
    heard.clear()
    opened.score(Shard(2, 2))
    assert heard == ["late.wav"]  # which could not be read before
    (kept,) = (tmp_path / "to_label").glob("trained-on-*.prints")
    assert kept.stat().st_size == 4 * 36
    heard.clear()
    opened.score(Shard(1, 3))
    assert heard == []
    kept.write_bytes(b"damaged")
    opened.score(Shard(2, 3))
    assert len(heard) == 4
    report = opened.select()
    assert report.left_out["in the training set"].clips == 4
    assert report.chosen.clips == BLOCK + 2
    assert not any("no --trained-on" in warning for warning in report.warnings)
    left_out = read_lines(tmp_path / "to_label/left_out.jsonl")
    assert {line["audio"]: line["detail"] for line in left_out} == {
        "000.wav": "the same sound in another file",
        "001.wav": "the same sound in another file",
        "065.wav": "the same sound in another file",
        "005.wav": "the same part of the file",
    }


def test_nothing_is_written_over_a_corpus(model: Path, pool: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "lamp"
    manifest = write_pool(corpus, babbles(2)).rename(corpus / "manifest.jsonl")
    (corpus / "report.json").write_text("of the corpus")
    before = {path: path.read_bytes() for path in corpus.iterdir()}
    out = tmp_path / "lamp.jsonl"
    for given in (pool, manifest, corpus):
        with pytest.raises(DataError, match=r"lamp, where a corpus is; give another name"):
            selection(model, given, out)
    for given, trained in ((corpus, ()), (manifest, ()), (pool, [corpus])):
        with pytest.raises(DataError, match=r"file of its own to write, got .*manifest.jsonl"):
            selection(model, given, manifest, trained_on=trained)
    manifest.unlink()
    with pytest.raises(DataError, match="where a corpus is"):
        selection(model, corpus, out)  # a folder of recordings
    write_lines(corpus / "pool.jsonl", [pool_row("000.wav", 0.5)])
    with pytest.raises(DataError, match="where a corpus is"):
        selection(model, corpus / "pool.jsonl", out)
    del before[manifest]
    assert {path: path.read_bytes() for path in before} == before
    assert not out.exists()


def test_names_that_are_not_utf8_are_left_out_with_a_note(
    model: Path, pool: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    try:
        shutil.copy(pool.parent / "001.wav", os.fsencode(folder) + b"/caf\xe9.wav")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(DataError, match="found neither; 1 recordings whose names are not UTF-8"):
        selection(model, folder, tmp_path / "to_label.jsonl")
    shutil.copy(pool.parent / "000.wav", folder)
    for _ in range(2):
        report = run(model, folder, tmp_path / "to_label.jsonl")
        assert report.all.clips == 1
        assert r"caf\xe9.wav" in report.warnings[0]


def test_paths_that_no_file_has_are_reported(model: Path, pool: Path, tmp_path: Path) -> None:
    names = {"a\0b.wav": "missing", "c" * 300 + ".wav": "unreadable", "": "unreadable"}
    rows = [pool_row(name, 1.0) for name in names]
    some = write_lines(pool.parent / "odd.jsonl", [*rows, pool_row("001.wav", 0.6)])
    for trained_on in ((), (some,)):
        out = tmp_path / f"{len(trained_on)}.jsonl"
        opened = selection(model, some, out, trained_on=trained_on, embed=True)
        opened.score(Shard())
        if trained_on:
            assert opened.notes[0].startswith("3 clips of the training set cannot be read")
            continue
        assert opened.select().chosen.clips == 1
        left_out = read_lines(tmp_path / "0/left_out.jsonl")
        assert {line["audio"]: line["reason"] for line in left_out} == names


def test_a_keyword_model_chooses_too(pool: Path, tmp_path: Path) -> None:
    keywords = write_keyword_model(tmp_path / "k.ckpt")
    some = write_lines(pool.parent / "keywords.jsonl", read_lines(pool)[:8])
    report = run(keywords, some, tmp_path / "to_label.jsonl", strategy="egl")
    assert report.chosen.clips == 8
    heard = {row["heard"] for row in read_lines(tmp_path / "to_label.jsonl")}
    assert heard <= {"ab", "abba", "_unknown_", "_silence_", ""}


def test_a_bundle_without_weights_is_refused(untrained_bundle: Path, pool: Path, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="has no weights"):
        selection(untrained_bundle, pool, tmp_path / "to_label.jsonl")


def test_the_page_plays_every_clip_and_filters_by_reason(whole: Path) -> None:
    page = (whole / "to_label/index.html").read_text()
    reasons = re.findall(r'<tr data-reason="([^"]+)">', page)
    assert set(reasons) >= {"chosen", "just below", "noise", "silent", "missing"}
    options = re.findall(r'<option value="([^"]*)">', page)
    assert set(options) == {"", *reasons}
    sources = re.findall(r'<audio [^>]*src="([^"]+)"', page)
    assert len(sources) == len(reasons)
    paths = [source.partition("#t=0,")[0] for source in sources]
    there = [(whole / "to_label" / path).resolve().is_file() for path in paths]
    assert all(re.search(r"#t=0,[0-9.]+$", source) for source in sources)
    assert there.count(False) == 1  # what is missing
    assert "data:image/png;base64," in page
    assert (whole / "to_label/scores.png").read_bytes()[:4] == b"\x89PNG"


def test_audio_can_be_put_into_the_page(model: Path, pool: Path, tmp_path: Path) -> None:
    row = pool_row("001.wav", 0.3, offset_s=0.2)
    few = write_lines(pool.parent / "part.jsonl", [row, pool_row("<b>.wav", 0.5)])
    for embed in (True, False):
        run(model, few, tmp_path / f"{embed}.jsonl", embed=embed)
    page = (tmp_path / "True/index.html").read_text()
    (audio,) = re.findall(r"data:audio/flac;base64,([^\"]+)", page)
    path = tmp_path / "a.flac"
    path.write_bytes(base64.b64decode(audio))
    assert len(sf.read(path)[0]) == pytest.approx(0.3 * RATE, abs=1)
    assert "<b>" not in page
    linked = (tmp_path / "False/index.html").read_text()
    assert "001.wav#t=0.2,0.5" in linked


def test_tasks_of_label_studio_have_audio_and_what_is_heard(whole: Path) -> None:
    rows = read_lines(whole / "to_label.jsonl")
    tasks = json.loads((whole / "to_label/tasks.json").read_text())
    assert [task["data"]["clip"] for task in tasks] == [row["clip"] for row in rows]
    for task, row in zip(tasks, rows, strict=True):
        url = task["data"]["audio"]
        assert url.startswith("/data/local-files/?d=to_label/audio/")
        copy = whole / url.removeprefix("/data/local-files/?d=")
        assert sf.info(copy).duration == pytest.approx(row["duration_s"], abs=1e-3)
        if row["heard"]:
            (result,) = task["predictions"][0]["result"]
            assert result["value"]["text"] == [row["heard"]]
            assert (result["type"], result["from_name"]) == ("textarea", "transcription")
    config = (whole / "to_label/label_config.xml").read_text()
    assert 'value="$audio"' in config
    assert 'name="transcription"' in config


# What needs no model: tables of scores that are made up.


def made_up(folder: Path, entries: list[Entry], of: int = 1) -> ScoreTable:
    purpose = {"model": "none"}
    for index in range(of):
        shard = Shard(index + 1, of)
        with ScoreLog(folder, shard, purpose, len(entries)) as log:
            for block in log.blocks:
                log.add(entries[block * BLOCK : (block + 1) * BLOCK])
    return ScoreTable.read(shards_in(folder, purpose), purpose, len(entries))


def entry(row: int, per_second: float, seconds: float = 1.0, print_: int | None = None) -> Entry:
    rng = np.random.default_rng(row if print_ is None else print_)
    return Entry(
        row=row, seconds=seconds, score=per_second, per_second=per_second, confidence=0.5,
        print=rng.bytes(32).hex(), file=row + 1,
    )  # fmt: skip


def test_equal_scores_are_taken_in_the_pool_s_order(tmp_path: Path) -> None:
    entries = [entry(k, 1.0 if k % 2 else 2.0) for k in range(150)]
    chosen = choose(made_up(tmp_path, entries, 2), Choosing(100.0)).rows.tolist()
    assert chosen == [*range(0, 150, 2), *range(1, 50, 2)]


def test_the_budget_is_filled_with_what_fits(tmp_path: Path) -> None:
    entries = [entry(0, 9.0, 6.0), entry(1, 8.0, 5.0), entry(2, 7.0, 3.5), entry(3, 6.0, 0.5)]
    choice = choose(made_up(tmp_path, entries), Choosing(10.0))
    assert choice.rows.tolist() == [0, 2, 3]
    assert choice.seconds == 10.0
    assert choice.below.tolist() == [1]
    assert choice.cut == 6.0
    with pytest.raises(DataError, match=r"no clip fits the budget.*shortest takes 0.5 s"):
        choose(made_up(tmp_path, entries), Choosing(0.4))
    with pytest.raises(SpecError, match="budget above 0 h"):
        choose(made_up(tmp_path, entries), Choosing(0.0))


def test_a_recording_is_chosen_once_and_the_better_one(tmp_path: Path) -> None:
    entries = [entry(0, 1.0, print_=5), entry(1, 3.0, print_=5), entry(2, 2.0)]
    entries.append(entry(3, 4.0, 2.0, print_=5))  # of another length
    choice = choose(made_up(tmp_path, entries), Choosing(100.0))
    assert choice.rows.tolist() == [3, 1, 2]
    assert choice.repeats.tolist() == [[0, 1]]


def test_parts_of_a_file_that_overlap_are_repeats(model: Path, pool: Path, tmp_path: Path) -> None:
    """By whatever path; of those that touch, and of other files, all are chosen."""
    folder = tmp_path / "pool"
    folder.mkdir()
    sf.write(folder / "a.wav", np.concatenate([babble(k, 1.0) for k in range(200, 203)]), RATE)
    (folder / "link.wav").symlink_to(folder / "a.wav")
    parts = [("a.wav", 0.0, 1.0), ("a.wav", 0.98, 1.02), ("link.wav", 0.0, 0.7)]
    parts += [("a.wav", 2.0, 0.0), ("a.wav", 0.0, 1.5)]
    rows = [pool_row(name, seconds, offset_s=start) for name, start, seconds in parts]
    some = write_lines(folder / "parts.jsonl", rows)
    report = run(model, some, tmp_path / "to_label.jsonl", hours=1)
    chosen = read_lines(tmp_path / "to_label.jsonl")
    spans = sorted((row["offset_s"], row["offset_s"] + row["duration_s"]) for row in chosen)
    assert all(one[1] - other[0] < 0.05 for one, other in itertools.pairwise(spans))
    assert report.left_out["repeated"].clips == 5 - len(chosen) >= 2
    assert (2.0, 3.0) in spans


def test_clips_that_end_elsewhere_have_ids_of_their_own() -> None:
    ids = {clip_id("a.wav", *part) for part in ((0.0, 1.0), (0.0, 2.0), (1.0, 1.0), (0, 1))}
    assert len(ids) == 3


@pytest.mark.parametrize("weighted", [True, False])
def test_of_a_diverse_choice_repeats_are_of_the_chosen(tmp_path: Path, weighted: bool) -> None:
    """Each recording is there twice, and few are chosen."""
    entries = [entry(k, 1.0 + k % 7, print_=k // 2) for k in range(60)]
    rng = np.random.default_rng(0)
    embeddings = {place: rng.standard_normal(4).astype(np.float32) for place in range(60)}
    with ScoreLog(tmp_path, Shard(), {}, 60) as log:
        log.add(entries, embeddings)
    table = ScoreTable.read([log.path], {}, 60)
    choice = choose(table, Choosing(5.0, diverse=True, weighted=weighted))
    chosen = choice.rows.tolist()
    assert len(chosen) == 5
    assert sorted(choice.repeats.tolist()) == sorted([row ^ 1, row] for row in chosen)
    recordings = [row // 2 for row in [*chosen, *choice.below.tolist()]]
    assert len(set(recordings)) == len(recordings) == 25


def diverse(folder: Path, entries: list[Entry]) -> ScoreTable:
    """A block of scores with embeddings at random."""
    rng = np.random.default_rng(0)
    embeddings = {k: rng.standard_normal(4).astype(np.float32) for k in range(len(entries))}
    with ScoreLog(folder, Shard(), {}, len(entries)) as log:
        log.add(entries, embeddings)
    return ScoreTable.read([log.path], {}, len(entries))


def test_clips_that_would_teach_nothing_are_chosen_last(tmp_path: Path) -> None:
    table = diverse(tmp_path, [entry(k, float(k % 2)) for k in range(8)])
    how = Choosing(6.0, diverse=True, weighted=True)
    chosen = choose(table, how).rows.tolist()
    assert sorted(chosen[:4]) == [1, 3, 5, 7]
    assert len(chosen) == 6


def test_a_diverse_choice_is_among_clips_that_fit_the_budget(tmp_path: Path) -> None:
    """Though the candidates of the highest scores are longer than all of it."""
    entries = [entry(k, 9.0 - k, 10.0 if k < 6 else 1.0) for k in range(9)]
    for weighted in (True, False):
        how = Choosing(2.0, diverse=True, weighted=weighted, candidates=1)
        table = diverse(tmp_path / str(weighted), entries)
        assert set(choose(table, how).rows.tolist()) < {6, 7, 8}


def test_what_is_just_below_repeats_nothing(tmp_path: Path) -> None:
    """Half of what ranks below the chosen repeats them, or what is shown already."""
    sounds = [*range(10), *range(10), *(k // 2 for k in range(20, 80))]
    entries = [entry(k, 100.0 - k, print_=sound) for k, sound in enumerate(sounds)]
    choice = choose(made_up(tmp_path, entries), Choosing(10.0))
    assert choice.rows.tolist() == list(range(10))
    assert choice.below.tolist() == list(range(20, 60, 2))


def test_nothing_to_choose_from_is_an_error(tmp_path: Path) -> None:
    entries = [Entry(row=0, seconds=1.0, reason="noise", detail="steady")]
    with pytest.raises(DataError, match="no clip of the pool has a score"):
        choose(made_up(tmp_path, entries), Choosing(1.0))


def test_damaged_scores_are_named(tmp_path: Path) -> None:
    entries = [entry(k, 1.0) for k in range(3)]
    table = made_up(tmp_path, entries)
    assert [e.row for e in table.entries([2, 0])] == [2, 0]
    path = tmp_path / "scores-1-of-1.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[3], lines[3]]))
    with pytest.raises(DataError, match="expected the score of row 1, got that of row 2"):
        made_up(tmp_path, entries)
    path.write_bytes(b"".join([*lines[:2], b"no\n", lines[3]]))
    with pytest.raises(DataError, match="the line of row 1 is damaged"):
        made_up(tmp_path, entries)
    path.write_bytes(b"hello\n")
    with pytest.raises(DataError, match="not a file of scores"):
        made_up(tmp_path, entries)


@pytest.mark.parametrize("left", [0, 128])
def test_lost_embeddings_are_not_replaced_by_zeros(tmp_path: Path, left: int) -> None:
    entries = [entry(k, 1.0) for k in range(2 * BLOCK)]
    embeddings = {place: np.ones(3, np.float32) for place in range(BLOCK)}
    with ScoreLog(tmp_path, Shard(), {}, len(entries)) as log:
        log.add(entries[:BLOCK], embeddings)
    file = log.path.with_suffix(".f32")
    for lose in (lambda: file.write_bytes(file.read_bytes()[:left]), file.unlink):
        lose()
        for _ in range(2):
            with (
                ScoreLog(tmp_path, Shard(), {}, len(entries)) as log,
                pytest.raises(DataError, match=r"embeddings of 64 .*scores-1-of-1.jsonl .*anew"),
            ):
                log.add(entries[BLOCK:], embeddings)
    log.path.unlink()
    with ScoreLog(tmp_path, Shard(), {}, len(entries)) as log:
        log.add(entries[:BLOCK], embeddings)
        log.add(entries[BLOCK:], embeddings)
    table = ScoreTable.read([log.path], {}, len(entries))
    assert (table.embeddings([0, 70]) == 1).all()


def test_embeddings_are_those_of_the_rows_asked_for(tmp_path: Path) -> None:
    entries = [entry(k, 1.0) for k in range(3 * BLOCK)]
    vectors = np.arange(6 * BLOCK, dtype=np.float32).reshape(3, BLOCK, 2)
    for index in (1, 2):
        with ScoreLog(tmp_path, Shard(index, 2), {}, len(entries)) as log:
            for block in log.blocks:
                embeddings = dict(enumerate(vectors[block]))
                log.add(entries[block * BLOCK : (block + 1) * BLOCK], embeddings)
    table = ScoreTable.read(shards_in(tmp_path, {}), {}, len(entries))
    rows = np.random.default_rng(0).permutation(len(entries))[:100]
    assert (table.embeddings(rows) == vectors.reshape(-1, 2)[rows]).all()
    assert table.embeddings([]).shape[0] == 0


def test_a_set_that_is_scored_is_taken_before_one_that_is_not(tmp_path: Path) -> None:
    entries = [entry(k, 1.0 + k) for k in range(2 * BLOCK)]
    with ScoreLog(tmp_path, Shard(), {"model": "none"}, len(entries)) as log:
        log.add(entries[:BLOCK])  # and then it was killed
    assert choose(made_up(tmp_path, entries, 2), Choosing(3.0)).rows.tolist() == [127, 126, 125]
    assert len(shards_in(tmp_path, {"model": "none"})) == 2
    assert len(shards_in(tmp_path, {"model": "other"})) == 1


def test_a_shard_is_complete_when_all_of_its_rows_are_there(tmp_path: Path) -> None:
    entries = [entry(k, 1.0) for k in range(BLOCK + 5)]
    purpose = {"model": "none"}
    with ScoreLog(tmp_path, Shard(), purpose, len(entries)) as log:
        log.add(entries[:BLOCK])
        assert not is_complete(log.path, purpose)
        log.add(entries[BLOCK:])
        assert is_complete(log.path, purpose)
        assert not is_complete(log.path, {"model": "other"})


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2"])
def test_shards_are_parsed(text: str) -> None:
    with pytest.raises(SpecError, match="expected a shard such as 2/8"):
        Shard.parse(text)
    assert Shard.parse("2/8") == Shard(2, 8)


def test_shards_have_every_row_once() -> None:
    for n in (0, 1, BLOCK, 5 * BLOCK + 1):
        assert sum(Shard(k, 3).n_rows(n) for k in (1, 2, 3)) == n


# The command.


def output(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_the_command_scores_shards_and_merges(
    capsys, model: Path, pool: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "to_label.jsonl"
    same = ("select", model, "--pool", pool, "--budget-hours", 0.01, "--strategy", "egl-bound",
            "--out", out, "--workers", 0, "--device", "cpu")  # fmt: skip
    for part in ("1/2", "2/2"):
        code, text, err = output(capsys, *same, "--shard", part)
        assert code == 0, err
        assert "--merge" in text
        assert not out.exists()
    code, text, err = output(capsys, *same, "--merge")
    assert code == 0, err
    assert text.splitlines()[-1] == str(out)
    assert "left out: noise" in text
    assert _names(tmp_path) == _names(whole)
    code, text, _ = output(capsys, *same, "--json")
    assert json.loads(text)["chosen"]["clips"] == len(_names(whole))


def test_processes_of_one_command_share_the_work(
    capsys, model: Path, pool: Path, whole: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(selecting_module, "WAIT_S", 0.01)
    out = tmp_path / "to_label.jsonl"
    same = ("select", model, "--pool", pool, "--budget-hours", 0.01, "--strategy", "egl-bound",
            "--out", out, "--workers", 0)  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        code, _, err = output(capsys, *same)
        assert code == 0, err
        assert out.exists() == (rank == 0)
    assert _names(tmp_path) == _names(whole)
    (tmp_path / "to_label/scores-2-of-2.done").unlink()  # merging waits for nobody
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        out.unlink(missing_ok=True)
        assert output(capsys, *same, "--merge")[0] == 0
        assert out.exists() == (rank == 0)
    monkeypatch.setenv("RANK", "2")
    assert "expected RANK below WORLD_SIZE" in output(capsys, *same)[2]


@pytest.mark.parametrize(("rank", "gpus"), [("0", 1), ("7", 1), ("3", 4)])
def test_a_process_takes_a_gpu_that_it_is_shown(
    monkeypatch: pytest.MonkeyPatch, rank: str, gpus: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert chosen_device(None) == f"cuda:{int(rank) % gpus}"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--strategy", "nonsense"), "expected one of random"),
        (("--strategy", "random", "--set", "n_samples=3"), "takes no options; got n_samples"),
        (("--set", "n_samples=many"), "--set n_samples=many"),
        (("--set", "nothing"), "expected KEY=VALUE"),
        (("--strategy", "badge", "--rank-by", "score"), "badge ranks nothing"),
        (("--budget-hours", "-1"), "budget above 0 h"),
        (("--shard", "3/2"), "such as 2/8"),
        (("--shard", "1/2", "--merge"), "give one of the two"),
        (("--out", "chosen.txt"), "expected a file such as to_label.jsonl"),
        (("--shortest", "5", "--longest", "2"), "0 < shortest < longest"),
        (("--device", "tpu"), "expected cpu or cuda"),
        (("--trained-on", "nowhere"), "found none at nowhere"),
    ],
)
def test_what_cannot_be_is_refused(
    capsys, model: Path, pool: Path, tmp_path: Path, args, message: str, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = output(capsys, "select", model, "--pool", pool, "--budget-hours", 1, *args)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not out
    assert os.listdir(tmp_path) == []
