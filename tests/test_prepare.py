"""Preparing a corpus: what is dropped and why, and that an interruption loses nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from edge_imputer.audio import CLIP_LEVEL
from edge_imputer.cli.main import main
from edge_imputer.clip_checks import ClipTask, check_clip
from edge_imputer.errors import DataError
from edge_imputer.train.data import ClipRecord, Manifest, prepare, read_clip, write_manifest
from edge_imputer.train.data.adapters import AdapterOptions
from edge_imputer.train.data.prepare import prepare_corpus
from edge_imputer.train.data.summary import summarize
from edge_imputer.train.data.transcripts import normalize
from edge_imputer.train.data.verdicts import Rules

from . import corpus_trees as trees
from .conftest import import_or_skip
from .corpus_trees import RATE, sound
from .processes import ROOT, run_python

LETTERS = "abcdefghijklmnopqrstuvwxyz'"


def jsonl(root: Path, rows: list[dict[str, Any]]) -> Path:
    """A corpus of the rows, each with the keys that most have."""
    root.mkdir(parents=True, exist_ok=True)
    usual = {"text": "one", "speaker": "ann", "split": "train"}
    path = root / "rows.jsonl"
    path.write_text("".join(json.dumps({**usual, **row}) + "\n" for row in rows))
    return path


def dropped(out: Path) -> dict[str, tuple[str, str]]:
    """Reason and detail by file name."""
    lines = (out / "dropped.jsonl").read_text().splitlines()
    return {Path(d["audio"]).name: (d["reason"], d["detail"]) for d in map(json.loads, lines)}


def kept(out: Path) -> list[str]:
    return [Path(r.audio).name for r in Manifest.open(out)]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """One good clip, and one of each kind that cannot be decoded."""
    root = tmp_path / "in"
    good = sound(root / "good.wav", 0.5)
    (root / "empty.wav").write_bytes(b"")
    sf.write(root / "no_samples.wav", np.zeros(0, np.float32), RATE)
    (root / "truncated.wav").write_bytes(good.read_bytes()[:-400])
    flac = sound(root / "cut.flac", 0.5).read_bytes()
    (root / "cut.flac").write_bytes(flac[: len(flac) // 2])
    (root / "text.wav").write_text("this is no audio")
    (root / "folder.wav").mkdir()
    sf.write(root / "stereo.wav", np.full((4000, 2), 0.1), RATE)
    noisy = np.random.default_rng(0).uniform(-0.3, 0.3, 4000).astype(np.float32)
    noisy[77] = np.nan
    sf.write(root / "nan.wav", noisy, RATE, subtype="FLOAT")
    names = [p.name for p in sorted(root.iterdir())] + ["absent.wav"]
    return jsonl(root, [{"audio": name} for name in names])


def test_what_cannot_be_decoded_is_dropped_with_its_reason(tmp_path, broken):
    report = prepare_corpus("jsonl", broken, tmp_path / "out")
    assert kept(tmp_path / "out") == ["good.wav"]
    reasons = dropped(tmp_path / "out")
    assert {name: reason for name, (reason, _) in reasons.items()} == {
        "absent.wav": "missing",
        "empty.wav": "empty",
        "no_samples.wav": "empty",
        "truncated.wav": "truncated",
        "cut.flac": "unreadable",
        "text.wav": "unreadable",
        "folder.wav": "unreadable",
        "stereo.wav": "channels",
        "nan.wav": "not finite",
    }
    assert "sample 77" in reasons["nan.wav"][1]
    assert report.found == 10
    assert report.dropped["unreadable"]["clips"] == 3
    assert report.kept["train"] == {"clips": 1, "hours": 0.0001, "speakers": 1}
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["dropped"]["empty"]["clips"] == 2
    assert saved["dropped"]["missing"]["examples"][0].startswith(str(tmp_path))


def test_what_should_not_be_trained_on_is_dropped_or_kept_on_demand(tmp_path):
    root = tmp_path / "in"
    sound(root / "good.wav", 0.5)
    sf.write(root / "silent.wav", np.full(8000, 0.2) + 1e-5, RATE)  # an offset is no sound
    sound(root / "short.wav", 0.1)
    sound(root / "long.wav", 2.0)
    sound(root / "cut_short.wav", 0.5)
    sound(root / "untold.wav", 0.5)
    rows = [
        {"audio": "good.wav"},
        {"audio": "silent.wav"},
        {"audio": "short.wav"},
        {"audio": "long.wav"},
        {"audio": "cut_short.wav", "duration": 1.0},
        {"audio": "untold.wav", "text": " \t"},
    ]
    path = jsonl(root, rows)
    out = tmp_path / "out"
    report = prepare_corpus("jsonl", path, out, rules=Rules(min_s=0.2, max_s=1.0))
    assert dropped(out) == {
        "silent.wav": ("silent", "peak -200 dBFS"),
        "short.wav": ("too short", "0.10 s"),
        "long.wav": ("too long", "2.00 s"),
        "cut_short.wav": ("duration", "0.50 s, where the corpus says 1.00 s"),
        "untold.wav": ("no text", "the transcript is empty"),
    }
    assert kept(out) == ["good.wav"]
    assert not report.warnings
    rules = Rules(keep=("silent", "duration", "no text"))
    report = prepare_corpus("jsonl", path, out, rules=rules)
    assert len(kept(out)) == 6
    assert {k: t["clips"] for k, t in report.warnings.items()} == {
        "silent": 1, "duration": 1, "no text": 1,
    }  # fmt: skip


def test_silence_and_noise_may_be_silent_and_repeated(tmp_path):
    root = tmp_path / "in"
    for name in ("a", "b"):
        (root / "_silence_").mkdir(parents=True, exist_ok=True)
        sf.write(root / "_silence_" / f"{name}.wav", np.zeros(4000), RATE)
    for i in range(3):
        sound(root / "lamp" / f"{i}.wav", 0.2)
    report = prepare_corpus("words", root, tmp_path / "out")
    assert not report.dropped
    assert len(kept(tmp_path / "out")) == 5


def test_clipping_low_rates_and_longer_audio_are_warned_of(tmp_path):
    root = tmp_path / "in"
    loud = np.random.default_rng(1).uniform(-0.3, 0.3, 8000)
    loud[100:120] = 1.0
    sf.write(root.mkdir() or root / "loud.wav", loud, RATE)
    sound(root / "phone.wav", 0.5, rate=8_000)
    sound(root / "longer.wav", 1.0)
    rows = [{"audio": "loud.wav"}, {"audio": "phone.wav"}, {"audio": "longer.wav", "duration": 0.5}]
    report = prepare_corpus("jsonl", jsonl(root, rows), tmp_path / "out")
    assert len(kept(tmp_path / "out")) == 3
    examples = {kind: tally["examples"] for kind, tally in report.warnings.items()}
    assert examples == {
        "clipped": ["rows/0000001-loud: 0.2 % of the samples"],
        "lower rate": ["rows/0000002-phone: 8000 Hz"],
        "longer than stated": ["rows/0000003-longer: 1.00 s, where the corpus says 0.50 s"],
    }


def test_clipping_counts_runs_only(tmp_path):
    waveform = np.zeros(1000, np.float32)
    waveform[[10, 20, 21]] = 1.0  # a sample and a pair
    waveform[30:33] = -1.0
    waveform[997:] = CLIP_LEVEL
    sf.write(tmp_path / "a.wav", waveform, RATE, subtype="FLOAT")
    assert check_clip(ClipTask(audio=str(tmp_path / "a.wav"))).clipped == 6 / 1000


def test_the_same_audio_twice_is_dropped_where_it_would_leak(tmp_path):
    root = tmp_path / "in"
    for name in ("a", "b", "c"):
        sound(root / f"{name}.wav", 0.3, seed=5)
    sound(root / "other.wav", 0.3, seed=6)
    sf.write(root / "b.flac", sf.read(root / "b.wav")[0], RATE)  # the same samples
    rows = [
        {"audio": "a.wav", "split": "train"},
        {"audio": "other.wav", "split": "train"},
        {"audio": "b.flac", "split": "test", "text": "two"},
        {"audio": "c.wav", "split": "test"},
    ]
    prepare_corpus("jsonl", jsonl(root, rows), tmp_path / "out")
    assert kept(tmp_path / "out") == ["other.wav", "b.flac"]
    reasons = dropped(tmp_path / "out")
    assert reasons["a.wav"] == (
        "repeated", "the audio of rows/0000003-b (test), whose text is 'two'",
    )  # fmt: skip
    assert reasons["c.wav"][0] == "repeated"


def test_unknown_characters_are_counted_and_named(tmp_path):
    out = tmp_path / "out"
    root = trees.common_voice(tmp_path / "in")
    rules = Rules(characters=LETTERS + ",.!?")
    report = prepare_corpus("common_voice", root, out, rules=rules)
    assert report.unknown_characters == {'"': 2, "’": 2, "ŷ": 1}
    assert kept(out) == ["common_voice_cy_17000001.mp3"]
    reasons = dropped(out)
    assert len(reasons) == report.dropped["characters"]["clips"] == 3
    assert reasons["common_voice_cy_17000003.mp3"] == ("characters", "'ŷ’' in 'dyma’r tŷ.'")


def test_punctuation_is_removed_on_demand(tmp_path):
    out = tmp_path / "out"
    root = trees.common_voice(tmp_path / "in")
    rules = Rules(characters=LETTERS + "ŷ", remove_punctuation=True)
    report = prepare_corpus("common_voice", root, out, rules=rules)
    assert not report.dropped
    texts = {r.text for r in Manifest.open(out)}
    assert texts == {"bore da gymru", "dywedodd na", "dyma'r tŷ", "ble mae'r ci"}


@given(st.text(), st.booleans())
def test_normalizing_twice_changes_nothing(text, remove):
    once = normalize(text, remove_punctuation=remove)
    assert normalize(once, remove_punctuation=remove) == once
    assert once == once.strip()
    assert "  " not in once


def test_speakers_in_several_splits_are_reported(tmp_path):
    report = prepare_corpus("fsdd", trees.fsdd(tmp_path / "in"), tmp_path / "out")
    assert report.shared_speakers == {
        name: ["test", "train", "valid"] for name in ("jackson", "yweweler")
    }


def test_valid_is_taken_out_of_training_where_there_is_none(tmp_path):
    rows = []
    for i in range(40):
        sound(tmp_path / "in" / f"{i}.wav", 0.05)
        rows.append({"audio": f"{i}.wav", "speaker": f"s{i % 20}"})
    path = jsonl(tmp_path / "in", rows)
    assert {r.split for r in _prepared(path, tmp_path / "a")} == {"train"}
    found = _prepared(path, tmp_path / "b", options=AdapterOptions(valid_share=0.3))
    speakers = {s: {r.speaker for r in found if r.split == s} for s in ("train", "valid")}
    assert not speakers["train"] & speakers["valid"]
    assert 2 <= len(speakers["valid"]) <= 10


def _prepared(path: Path, out: Path, **options: Any) -> list[ClipRecord]:
    prepare_corpus("jsonl", path, out, **options)
    return list(Manifest.open(out))


# ------------------------------------------------------------------------- copies


def test_copies_are_the_clips_at_the_rate_asked_for(tmp_path):
    root = trees.kaldi(tmp_path / "in")
    prepare_corpus("kaldi", root, tmp_path / "plain")
    prepare_corpus("kaldi", root, tmp_path / "flac", copy="flac")
    prepare_corpus("kaldi", root, tmp_path / "wav", copy="wav", rules=Rules(rate=8_000))
    plain, flac, wav = (list(Manifest.open(tmp_path / n)) for n in ("plain", "flac", "wav"))
    for a, b, c in zip(plain, flac, wav, strict=True):
        assert (b.offset_s, b.sample_rate, c.sample_rate) == (0.0, 16_000, 8_000)
        assert not Path(b.audio).is_absolute()
        assert (c.audio[-4:], b.duration_s) == (".wav", a.duration_s)
        np.testing.assert_allclose(
            read_clip(tmp_path / "plain", a, RATE), read_clip(tmp_path / "flac", b, RATE), atol=1e-4
        )
        n = round(8_000 * a.duration_s)
        assert abs(sf.info(tmp_path / "wav" / c.audio).frames - n) <= 1


def test_a_copy_that_was_cut_short_is_made_again(tmp_path, many):
    out = tmp_path / "out"
    prepare_corpus("words", many, out, copy="flac")
    copies = sorted((out / "audio").rglob("*.flac"))
    whole = [path.read_bytes() for path in copies]
    copies[0].write_bytes(b"")
    copies[1].write_bytes(whole[1][:-9])
    copies[2].unlink()
    prepare_corpus("words", many, out, copy="flac")
    assert [path.read_bytes() for path in copies] == whole


def test_copies_are_not_written_into_the_corpus_they_are_of(tmp_path, many):
    (tmp_path / "link").symlink_to(many)
    for out in (many / "out", many, tmp_path / "link" / "out"):
        with pytest.raises(DataError, match="outside of"):
            prepare_corpus("words", many, out, copy="flac")
    assert sorted(path.name for path in many.iterdir()) == ["door", "lamp"]


def test_relative_paths_lead_to_the_audio_through_links(tmp_path, many):
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "other" / "deep")
    prepare_corpus("words", many, tmp_path / "runs" / "out", relative=True)
    prepared = Manifest.open(tmp_path / "runs" / "out")
    assert not Path(prepared[0].audio).is_absolute()
    assert len(read_clip(prepared.folder, prepared[0], RATE)) == round(0.02 * RATE)


def test_copies_of_dropped_clips_are_removed(tmp_path):
    root = tmp_path / "in"
    for word in ("lamp", "door"):
        sound(root / word / "a.wav", 0.3)
        sound(root / word / "b.wav", 0.1)
    for _ in range(2):  # the second run makes and removes them again
        prepare_corpus("words", root, tmp_path / "out", copy="flac", rules=Rules(min_s=0.2))
        copies = sorted(p.relative_to(tmp_path / "out").as_posix()
                        for p in (tmp_path / "out" / "audio").rglob("*.*"))  # fmt: skip
        assert copies == ["audio/door/a.flac", "audio/lamp/a.flac"]
        assert sorted(r.audio for r in Manifest.open(tmp_path / "out")) == copies


def test_copies_stay_inside_the_folder_and_apart(tmp_path):
    rows = []
    for name in ("a.wav", "a.flac", "A.wav"):
        sound(tmp_path / "in" / "data" / "t" / name, 0.2)
    (tmp_path / "in" / "data" / "t" / "wav.scp").write_text(
        "../../evil a.wav\n..%2f..evil a.flac\n/evil A.wav\n"
    )
    prepare_corpus("kaldi", tmp_path / "in" / "data", tmp_path / "out", copy="flac")
    rows = [r.audio for r in Manifest.open(tmp_path / "out")]
    assert len(set(rows)) == 3
    for audio in rows:
        target = (tmp_path / "out" / audio).resolve()
        assert target.is_file()
        assert target.is_relative_to(tmp_path / "out" / "audio")


# ------------------------------------------------------------------------- interruptions

PREPARE = """
import multiprocessing, os, resource, signal, sys
import tests.conftest
from pathlib import Path
from edge_imputer.errors import DataError
from edge_imputer.train.data.prepare import prepare_corpus

root, out, stop, limit, workers, copy = sys.argv[1:7]
seen = []

def progress(done, total):
    seen.append(done)
    if int(stop) and done >= int(stop):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    prepare_corpus(
        "words", Path(root), Path(out), workers=int(workers), copy=copy, progress=progress
    )
except DataError as error:
    print(error)
    sys.exit(2)
print(seen[0])
"""


def run_prepare(
    root: Path, out: Path, *, stop: int = 0, limit: int = 0, workers: int = 1, copy: str = "none"
) -> subprocess.CompletedProcess[str]:
    arguments = map(str, (root, out, stop, limit, workers, copy))
    return subprocess.run(
        [sys.executable, "-c", PREPARE, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """100 clips, one of them corrupt."""
    root = tmp_path / "in"
    for i in range(50):
        sound(root / "lamp" / f"{i}.wav", 0.02)
        sound(root / "door" / f"{i}.wav", 0.02)
    (root / "lamp" / "33.wav").write_bytes(b"RIFF")
    return root


def outputs(out: Path) -> dict[str, bytes]:
    return {n: (out / n).read_bytes() for n in ("manifest.jsonl", "dropped.jsonl", "report.json")}


@pytest.mark.parametrize("copy", ["none", "flac"])
def test_a_killed_run_goes_on_to_the_same_manifest(tmp_path, many, copy):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    prepare_corpus("words", many, whole, copy=copy)
    killed = run_prepare(many, out, stop=50, copy=copy)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "manifest.jsonl").exists()
    journal = out / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 64  # two whole chunks
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])  # the last line was not finished
    seen: list[int] = []
    prepare_corpus("words", many, out, copy=copy, progress=lambda done, _: seen.append(done))
    assert seen == [63, 95, 100]
    assert outputs(out) == outputs(whole)
    seen.clear()
    prepare_corpus("words", many, out, copy=copy, progress=lambda done, _: seen.append(done))
    assert seen == [100]  # nothing is left to be done
    assert outputs(out) == outputs(whole)


def test_copies_that_a_power_cut_emptied_are_made_again(tmp_path, many):
    """Their names, sizes and findings are on disk, their content is not."""
    whole, out = tmp_path / "whole", tmp_path / "cut"
    prepare_corpus("words", many, whole, copy="flac")
    run_prepare(many, out, stop=64, copy="flac")
    lost = sorted((out / "audio").rglob("*.flac"))[10:13]
    for path in lost:
        path.write_bytes(bytes(path.stat().st_size))
    seen: list[int] = []
    prepare_corpus("words", many, out, copy="flac", progress=lambda done, _: seen.append(done))
    assert seen == [61, 93, 100]
    assert outputs(out) == outputs(whole)
    for path in lost:
        assert path.read_bytes() == (whole / path.relative_to(out)).read_bytes()


def test_copies_are_on_disk_before_the_manifest_and_not_read_after_it(tmp_path, many, monkeypatch):
    synced: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "sync", lambda: synced.append((tmp_path / "manifest.jsonl").exists()))
        prepare_corpus("words", many, tmp_path, copy="flac")
    assert synced == [False]
    monkeypatch.setattr(prepare, "copy_digest", lambda _: pytest.fail("a copy was read"))
    seen: list[int] = []
    prepare_corpus("words", many, tmp_path, copy="flac", progress=lambda done, _: seen.append(done))
    assert seen == [100]


def test_the_processes_of_a_killed_run_end_with_it(tmp_path, many):
    killed = run_prepare(many, tmp_path / "out", stop=32, workers=2)  # returns when pipes close
    assert killed.returncode == -signal.SIGKILL
    children = [int(pid) for pid in killed.stdout.split()]
    assert len(children) == 2
    limit = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/stat").exists() and not _is_zombie(pid) for pid in children):
        assert time.monotonic() < limit, f"still running: {children}"
        time.sleep(0.05)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_changed_clip_is_looked_at_again(tmp_path, many):
    out = tmp_path / "out"
    prepare_corpus("words", many, out)
    sound(many / "lamp" / "33.wav", 0.02)
    (many / "door" / "7.wav").unlink()
    seen: list[int] = []
    prepare_corpus("words", many, out, progress=lambda done, _: seen.append(done))
    assert seen == [98, 99]  # one clip is new, one is gone
    assert len(kept(out)) == 99


def test_a_journal_for_another_purpose_is_begun_anew(tmp_path, many):
    out = tmp_path / "out"
    prepare_corpus("words", many, out)
    seen: list[int] = []
    prepare_corpus("words", many, out, copy="wav", progress=lambda done, _: seen.append(done))
    assert seen[0] == 0
    (out / "journal.jsonl").write_text("no journal")
    prepare_corpus("words", many, out, progress=lambda done, _: seen.append(done))
    assert len(kept(out)) == 99


def test_several_processes_find_the_same(tmp_path, many):
    prepare_corpus("words", many, tmp_path / "one", copy="flac")
    done = run_prepare(many, tmp_path / "two", workers=2, copy="flac")
    assert done.returncode == 0, done.stdout + done.stderr
    assert outputs(tmp_path / "two") == outputs(tmp_path / "one")


@pytest.mark.parametrize(("limit", "workers", "copy"), [(12_000, 2, "none"), (400, 1, "wav")])
def test_a_full_disk_is_one_error_and_loses_nothing(tmp_path, many, limit, workers, copy):
    out = tmp_path / "out"
    full = run_prepare(many, out, limit=limit, workers=workers, copy=copy)
    assert full.returncode == 2, full.stderr
    assert re.fullmatch(r"could not write .* \(File too large\); make room .*\n", full.stdout)
    assert not (out / "manifest.jsonl").exists()
    assert not list(out.rglob(".*.wav*"))  # no half copy
    assert (out / "journal.jsonl").is_file()
    seen: list[int] = []
    prepare_corpus("words", many, out, copy=copy, progress=lambda done, _: seen.append(done))
    assert (32 <= seen[0] < 64) if copy == "none" else seen[0] == 0  # clips that were done already
    prepare_corpus("words", many, tmp_path / "whole", copy=copy)
    assert outputs(out) == outputs(tmp_path / "whole")


DYING = """
import sys
import tests.conftest
from edge_imputer.clip_checks import ClipTask
from edge_imputer.train.data import checking

checking.CHUNK = 3
tasks = [ClipTask(audio=name, command="kill -9 $PPID" if name == "bomb" else f"cat {name}")
         for name in sys.argv[1:]]
found = [f for chunk in checking.check_all(tasks, 2) for f in chunk]
assert [f.audio for f in found] == sys.argv[1:]
print([f.audio for f in found if f.problem], [f.detail for f in found if f.problem])
"""


def test_a_clip_that_kills_its_process_stops_no_other(tmp_path):
    names = [str(sound(tmp_path / f"{i}.wav", 0.1)) for i in range(8)]
    printed = run_python(DYING, *names[:5], "bomb", *names[5:])
    assert printed == "['bomb'] ['the process that decoded it died']\n"


# ------------------------------------------------------------------------- bad input


def refused(*args: object, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        prepare_corpus(*args, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_another_layout_names_the_adapter_that_fits(tmp_path):
    root = trees.kaldi(tmp_path / "in")
    message = refused("librispeech", root, tmp_path / "out")
    assert "expected SUBSET/SPEAKER/CHAPTER/" in message
    assert "found dev/, train/" in message
    assert f"edge-imputer data prepare kaldi {root}" in message
    (tmp_path / "empty").mkdir()
    message = refused("fsdd", tmp_path / "empty", tmp_path / "out")
    assert "found an empty folder; name the folder that holds these" in message
    assert not (tmp_path / "out").exists()


def test_bad_roots_names_and_options_are_named(tmp_path):
    assert "expected a corpus among speech_commands, " in refused("timit", tmp_path, tmp_path)
    assert "found nothing at" in refused("fsdd", tmp_path / "absent", tmp_path)
    root = trees.fsdd(tmp_path / "in")
    message = refused("fsdd", root, tmp_path / "out", options=AdapterOptions(classes=12))
    assert message == "fsdd knows no option classes; it has none"
    options = AdapterOptions(keyword="x")
    message = refused("kaldi", root, tmp_path / "out", options=options)
    assert message == "kaldi knows no option keyword; it takes allow_commands, subset"
    assert "found a file" in refused("jsonl", root / "recordings/0_jackson_0.wav", tmp_path)


def test_an_unreadable_corpus_is_named(tmp_path, monkeypatch):
    root = trees.fsdd(tmp_path / "in")
    scandir = os.scandir

    def failing(path: Any) -> Any:
        if Path(path).name == "recordings":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    message = refused("fsdd", root, tmp_path / "out")
    assert f"{root}/recordings could not be read (Permission denied)" in message


def test_an_output_that_cannot_be_made_is_named(tmp_path):
    root = trees.fsdd(tmp_path / "in")
    (tmp_path / "file").write_text("")
    message = refused("fsdd", root, tmp_path / "file" / "out")
    assert message.startswith(f"could not write {tmp_path}/file/out (Not a directory)")


def test_a_text_file_of_another_encoding_is_named(tmp_path):
    root = trees.librispeech(tmp_path / "in")
    transcript = next(root.rglob("*.trans.txt"))
    transcript.write_bytes("1272-128104-0000 ÉTÉ".encode("latin-1"))
    assert "a text file is not UTF-8" in refused("librispeech", root, tmp_path / "out")


def test_nothing_that_can_be_used_is_an_error_with_the_reasons(tmp_path):
    path = jsonl(tmp_path / "in", [{"audio": "gone.wav"}, {"audio": "away.wav"}])
    message = refused("jsonl", path, tmp_path / "out")
    assert "none of 2 clips can be used (missing 2)" in message
    assert len(dropped(tmp_path / "out")) == 2


# ------------------------------------------------------------------------- the command line


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_prepare_prints_what_was_dropped_and_why(tmp_path, capsys, broken):
    arguments = ("jsonl", broken, tmp_path / "out", "--workers", 1)
    code, out, err = run(capsys, "data", "prepare", *arguments)
    assert (code, err) == (0, "")
    assert re.search(r"unreadable +│ +3 │", out)
    assert re.search(r"train +│ +1 │", out)
    assert "nan.wav: expected finite samples" in out
    code, out, _ = run(capsys, "data", "prepare", *arguments, "--json")
    assert json.loads(out)["dropped"]["empty"]["clips"] == 2
    code, out, err = run(capsys, "data", "prepare", "fsdd", broken.parent, tmp_path / "x")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "edge-imputer data prepare jsonl" in err


def test_prepare_names_unknown_characters_and_the_remedy(tmp_path, capsys):
    root = trees.common_voice(tmp_path / "in")
    arguments = (root, tmp_path / "out", "--workers", 1, "--characters", LETTERS)
    _, out, err = run(capsys, "data", "prepare", "common_voice", *arguments)
    assert "none of 4 clips can be used (characters 4)" in err
    flags = ("--keep", "characters", "--keep", "no text")
    code, out, _ = run(capsys, "data", "prepare", "common_voice", *arguments, *flags)
    assert code == 0
    assert "'ŷ' (U+0177) 1" in out
    assert "--punctuation remove takes punctuation out" in out


def test_without_torch_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, err = run(capsys, "data", "list")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "pip install 'edge-imputer[train]'" in err


def test_list_names_every_adapter(capsys):
    _, out, _ = run(capsys, "data", "list")
    _, as_json, _ = run(capsys, "data", "list", "--json")
    rows = json.loads(as_json)
    assert [r["name"] for r in rows] == [
        "speech_commands", "librispeech", "common_voice", "fsdd", "wake_word", "kaldi", "lhotse",
        "jsonl", "words",
    ]  # fmt: skip
    assert all(f"{r['name']}: {r['title']}" in out for r in rows)


def test_info_counts_and_finds_leaks(tmp_path, capsys):
    def row(i: int, split: Any, speaker: str, text: str | None, label: str) -> ClipRecord:
        return ClipRecord(
            audio=f"{i}.wav", text=text, speaker=speaker, split=split, duration_s=1.0 + i,
            sample_rate=RATE, label=label,
        )  # fmt: skip

    rows = [
        row(0, "train", "ann", "ab", "x"),
        row(1, "train", "unknown", None, "x"),
        row(2, "test", "ann", "ab", "y"),
        row(3, "test", "bob", "ab", "y"),
        row(9, "test", "unknown", "c", "x"),
    ]
    write_manifest(tmp_path, rows)
    summary = summarize(Manifest.open(tmp_path))
    assert summary.splits["train"].clips == 2
    assert summary.splits["test"].hours == pytest.approx((3 + 4 + 10) / 3600)
    assert (summary.splits["test"].speakers, summary.splits["train"].without_text) == (2, 1)
    assert summary.labels == {"x": {"train": 2, "test": 1}, "y": {"test": 2}}
    assert summary.characters == {"a": 3, "b": 3, "c": 1}
    assert summary.durations == [(1.0, 2.0, 1), (2.0, 5.0, 3), (10.0, 15.0, 1)]
    (leak,) = summary.leaks
    assert (leak.splits, leak.speakers, leak.texts) == (("train", "test"), 1, 1)
    assert (leak.clips_with_such_texts, leak.examples) == (2, ["ann", "ab"])
    _, out, _ = run(capsys, "data", "info", tmp_path)
    assert "train and test share 1 speakers and 1 texts (2 clips of test): ann; ab" in out
    _, out, _ = run(capsys, "data", "info", tmp_path, "--json")
    assert json.loads(out)["leaks"][0]["speakers"] == 1


def test_export_lhotse_from_the_command_line(tmp_path, capsys):
    import_or_skip("lhotse")
    root = trees.ours(tmp_path / "in")
    code, out, err = run(capsys, "data", "export-lhotse", root, tmp_path / "lhotse")
    assert (code, err) == (0, "")
    assert out.splitlines() == ["train: 2 cuts", "valid: 2 cuts", "test: 2 cuts"]
