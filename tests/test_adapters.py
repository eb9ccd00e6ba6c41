"""Adapters: from trees in the original layouts to clips with the right split, speaker and label."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import soundfile as sf

from edge_imputer.errors import DataError, MissingExtraError
from edge_imputer.train.data import Manifest
from edge_imputer.train.data.adapters import (
    ADAPTERS,
    AdapterOptions,
    Notes,
    SourceClip,
    export_lhotse,
)
from edge_imputer.train.data.adapters.base import draw_split, split_of_name
from edge_imputer.train.data.adapters.speech_commands import which_set
from edge_imputer.train.data.prepare import prepare_corpus

from . import corpus_trees as trees
from .conftest import import_or_skip

TREES = {
    "speech_commands": trees.speech_commands,
    "librispeech": trees.librispeech,
    "common_voice": trees.common_voice,
    "fsdd": trees.fsdd,
    "words": trees.words,
    "wake_word": trees.wake_word,
    "kaldi": trees.kaldi,
    "jsonl": trees.nemo,
}


def clips_of(name: str, root: Path, **options: object) -> tuple[list[SourceClip], list[str]]:
    notes = Notes()
    found = list(ADAPTERS[name].clips(root, AdapterOptions(**options), notes))  # type: ignore[arg-type]
    return found, notes.lines


def by_name(clips: list[SourceClip]) -> dict[str, SourceClip]:
    named = {clip.name: clip for clip in clips}
    assert len(named) == len(clips)
    return named


@pytest.mark.parametrize("name", TREES)
def test_an_adapter_fits_its_layout_and_is_the_first_to(tmp_path, name):
    root = TREES[name](tmp_path)
    fitting = [a.name for a in ADAPTERS.values() if a.fits(root)]
    assert fitting[0] == name


@pytest.mark.parametrize("name", TREES)
def test_every_clip_is_a_file_with_a_name_of_its_own(tmp_path, name):
    clips, _ = clips_of(name, TREES[name](tmp_path))
    assert clips
    by_name(clips)
    for clip in clips:
        assert Path(clip.audio).is_absolute()
        assert Path(clip.audio).is_file()


# ------------------------------------------------------------------------- Speech Commands

# Lines of the lists that are published with v0.01 and v0.02, and clips in neither.
OFFICIAL = {
    "test": "bb05582b_nohash_3 97f4c236_nohash_2 f2e59fea_nohash_3 fdb5155e_nohash_2 "
    "dc75148d_nohash_0 3f170018_nohash_0 18f8afd5_nohash_3 e1469561_nohash_1 5c8af87a_nohash_0 "
    "2aa787cf_nohash_0 ffa76c4a_nohash_0 24ad3ebe_nohash_1 d7467392_nohash_0 0c40e715_nohash_0",
    "valid": "6d0ad764_nohash_0 50f55535_nohash_0 bfbd0e6b_nohash_1 32ad5b65_nohash_0 "
    "638685f2_nohash_0 538e1856_nohash_0 67c7fecb_nohash_0 099d52ad_nohash_3 31f01a8d_nohash_0 "
    "d107dc42_nohash_0 ad63d93c_nohash_0 d3831f6a_nohash_1 3c4aa5ef_nohash_3 c6389ab0_nohash_0",
}


@pytest.mark.parametrize("split", OFFICIAL)
def test_the_hash_split_is_the_official_one(split):
    assert {which_set(f"{stem}.wav") for stem in OFFICIAL[split].split()} == {split}


@pytest.mark.parametrize(("version", "n_words"), [(1, 30), (2, 35)])
def test_speech_commands_versions_are_told_by_their_words(tmp_path, version, n_words):
    root = trees.speech_commands(tmp_path, version=version)
    clips, notes = clips_of("speech_commands", root)
    words = [c for c in clips if c.label != "_noise_"]
    assert len({c.label for c in words}) == n_words
    assert f"version {version}: {n_words} of its {n_words} words" in notes[0]
    assert all(c.text == c.label and c.speaker == Path(c.audio).name[:8] for c in words)
    assert all(c.split == "test" for c in words if c.speaker in trees.TEST_SPEAKERS)
    clips_of("speech_commands", root, classes=n_words)
    with pytest.raises(DataError, match=f"expected --classes 12 or {n_words}, got 65"):
        clips_of("speech_commands", root, classes=65)


def test_twelve_classes_have_ten_percent_of_unknown_and_silence(tmp_path):
    clips, _ = clips_of("speech_commands", trees.speech_commands(tmp_path), classes=12)
    assert {c.label for c in clips} == {
        *"yes no up down left right on off stop go _unknown_ _silence_ _noise_".split()
    }
    for split in ("train", "valid", "test"):
        counts = Counter(c.label for c in clips if c.split == split)
        special = {label: counts.pop(label) for label in ("_unknown_", "_silence_", "_noise_")}
        wanted = -(-sum(counts.values()) // 10)  # rounded up
        assert (special["_unknown_"], special["_silence_"]) == (wanted, wanted), split
    unknown = [c for c in clips if c.label == "_unknown_"]
    assert all(c.text not in (None, "yes", "no") for c in unknown)
    again, _ = clips_of("speech_commands", tmp_path, classes=12)
    assert again == clips


def test_splits_share_no_part_of_a_noise(tmp_path):
    clips, _ = clips_of("speech_commands", trees.speech_commands(tmp_path), classes=12)
    spans: dict[str, list[tuple[float, float]]] = {}
    for clip in clips:
        if clip.label in ("_noise_", "_silence_"):
            assert clip.duration_s is not None
            spans.setdefault(clip.split, []).append(
                (clip.offset_s, clip.offset_s + clip.duration_s)
            )
    borders = {"train": (0, 16), "valid": (16, 18), "test": (18, 20)}  # seconds of 20
    for split, (low, high) in borders.items():
        assert all(low <= a < b <= high + 1e-9 for a, b in spans[split]), split


def test_lists_that_disagree_with_the_hash_are_reported(tmp_path):
    root = trees.speech_commands(tmp_path)
    assert any(line.endswith(": agree") for line in clips_of("speech_commands", root)[1])
    listed = root / "testing_list.txt"
    listed.write_text(listed.read_text() + "yes/00000003_nohash_0.wav\n")
    assert which_set("00000003_nohash_0.wav") == "train"
    _, notes = clips_of("speech_commands", root)
    assert any("1 clips differ, such as yes/00000003_nohash_0" in line for line in notes)
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[1:]))
    assert any("2 clips differ" in line for line in clips_of("speech_commands", root)[1])


# ------------------------------------------------------------------------- sentences


def test_librispeech(tmp_path):
    root = trees.librispeech(tmp_path)
    (root / "LibriSpeech/dev-clean/1272/128104/1272-128104-0001.flac").write_bytes(b"untold")
    clips, notes = clips_of("librispeech", root)
    found = by_name(clips)
    first = found["train-clean-100/103/1240/103-1240-0000"]
    assert (first.text, first.speaker, first.split) == ("CHAPTER ONE", "103", "train")
    assert found["dev-clean/1272/128104/1272-128104-0000"].split == "valid"
    assert found["test-clean/1089/134686/1089-134686-0000"].split == "test"
    assert found["dev-clean/1272/128104/1272-128104-0001"].text == ""
    assert not [line for line in notes if "SPEAKERS" in line]
    assert clips_of("librispeech", root / "LibriSpeech")[0] == clips
    some, _ = clips_of("librispeech", root, subset=("dev-clean",))
    assert {c.split for c in some} == {"valid"}
    with pytest.raises(DataError, match=r"--subset among dev-clean, .*got train-other-500"):
        clips_of("librispeech", root, subset=("train-other-500",))


def test_librispeech_speakers_in_the_wrong_subset_are_reported(tmp_path):
    root = trees.librispeech(tmp_path)
    table = root / "LibriSpeech" / "SPEAKERS.TXT"
    table.write_text(table.read_text().replace("dev-clean ", "test-other"))
    _, notes = clips_of("librispeech", root)
    assert "1 speakers are not of their subset by SPEAKERS.TXT, such as dev-clean/1272" in notes
    table.unlink()
    assert any("no SPEAKERS.TXT" in line for line in clips_of("librispeech", root)[1])


def test_common_voice(tmp_path):
    root = trees.common_voice(tmp_path)
    clips, _ = clips_of("common_voice", root)
    assert Counter(c.split for c in clips) == {"train": 2, "valid": 1, "test": 1}
    quoted = by_name(clips)["clips/common_voice_cy_17000002"]
    assert quoted.text == 'Dywedodd "na".'
    assert quoted.speaker == "a" * 128
    assert quoted.stated_s == 1.0
    everything, notes = clips_of("common_voice", root, validated=True)
    assert Counter(c.split for c in everything) == {"train": 3, "valid": 1, "test": 1}
    assert "validated.tsv: 2 clips of dev, test and their speakers kept out" in notes


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "client_id\tpath\ttext\n",
            "expected the columns client_id, path, sentence, got client_id",
        ),
        ("", "got an empty file"),
        ("client_id\tpath\tsentence\na\tb.mp3\n", "line 2: expected 3 columns, got 2"),
    ],
)
def test_a_broken_common_voice_table_is_named(tmp_path, table, message):
    root = trees.common_voice(tmp_path)
    (root / "train.tsv").write_text(table)
    with pytest.raises(DataError, match=f"train.tsv.*{message}"):
        clips_of("common_voice", root)


# ------------------------------------------------------------------------- folders


def test_fsdd(tmp_path):
    root = trees.fsdd(tmp_path)
    (root / "recordings" / "notes.wav").write_bytes(b"")
    clips, notes = clips_of("fsdd", root)
    splits = {(c.name.rsplit("_", 1)[1], c.split) for c in clips}
    assert splits == {
        *(("0", "test"), ("4", "test"), ("5", "valid"), ("9", "valid")),
        *(("10", "train"), ("11", "train")),
    }
    seven = by_name(clips)["recordings/7_yweweler_10"]
    assert (seven.text, seven.label, seven.speaker) == ("seven", "seven", "yweweler")
    assert any("1 files not named" in line for line in notes)


def test_words_are_their_folders(tmp_path):
    clips, notes = clips_of("words", trees.words(tmp_path / "a"), valid_share=0.2, test_share=0.3)
    assert {(c.label, c.text) for c in clips} == {
        ("lamp", "lamp"), ("front_door", "front door"), ("_unknown_", None),
    }  # fmt: skip
    assert {c.split for c in clips} == {"train", "valid", "test"}
    assert {c.speaker for c in clips} == {"unknown"}
    assert any("hash of each file name" in line for line in notes)
    split, _ = clips_of("words", trees.words(tmp_path / "b", splits=True))
    assert all(c.name.startswith(c.split) for c in split)
    assert len(split) == 3 * 24


def test_words_of_a_speaker_stay_in_one_split(tmp_path):
    root = trees.words(tmp_path)
    clips, _ = clips_of("words", root, speaker_pattern="^([^_]+)_", valid_share=0.3, test_share=0.3)
    splits: dict[str, set[str]] = {}
    for clip in clips:
        splits.setdefault(clip.speaker, set()).add(clip.split)
    assert set(splits) == {"anna0", "anna1", "anna2", "anna3"}
    assert all(len(found) == 1 for found in splits.values())
    for pattern, message in (("^x(.)", "finds no speaker in the file name 'anna0_0'"),
                             ("(", "no regular expression"), ("anna", "one group")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            clips_of("words", root, speaker_pattern=pattern)


def test_wake_word(tmp_path):
    root = trees.wake_word(tmp_path / "hey_lamp")
    clips, notes = clips_of("wake_word", root)
    assert Counter((c.label, c.text) for c in clips) == {
        ("hey lamp", "hey lamp"): 6, ("_near_miss_", None): 6, ("_unknown_", None): 2,
    }  # fmt: skip
    assert "negative/kitchen/fan" in by_name(clips)
    assert any("the keyword is 'hey lamp'" in line for line in notes)
    named, _ = clips_of("wake_word", root, keyword="ok house")
    assert {c.text for c in named} == {"ok house", None}


def test_mycroft_precise_folders(tmp_path):
    clips, _ = clips_of("wake_word", trees.precise(tmp_path), keyword="hey mycroft")
    assert Counter((c.split, c.label) for c in clips) == {
        (split, label): 2 for split in ("train", "test") for label in ("hey mycroft", "_unknown_")
    }


def test_drawn_splits_depend_on_the_name_alone():
    options = AdapterOptions(valid_share=0.2, test_share=0.1)
    drawn = Counter(draw_split(f"speaker{i}", options) for i in range(5000))
    assert drawn["test"] == pytest.approx(500, abs=70)
    assert drawn["valid"] == pytest.approx(1000, abs=90)
    larger = AdapterOptions(valid_share=0.2, test_share=0.2)
    for i in range(200):  # a larger test split takes from the others, and gives nothing back
        if draw_split(f"speaker{i}", options) == "test":
            assert draw_split(f"speaker{i}", larger) == "test"
    for shares in ((0.5, 0.5), (-0.1, 0.1)):
        with pytest.raises(DataError, match="leave some for training"):
            AdapterOptions(valid_share=shares[0], test_share=shares[1])


def test_split_names():
    names = {
        "train-clean-100": "train", "training": "train", "dev": "valid", "validation": "valid",
        "valid_set": "valid", "val": "valid", "test-other": "test", "testing_list": "test",
        "eval2000": "test", "value": None, "device": None, "trainer": None, "contest": None,
    }  # fmt: skip
    assert {name: split_of_name(name) for name in names} == names


# ------------------------------------------------------------------------- Kaldi


def test_kaldi(tmp_path):
    clips, _ = clips_of("kaldi", trees.kaldi(tmp_path))
    found = by_name(clips)
    assert (found["train/ann-utt1"].text, found["train/ann-utt1"].split) == ("GOOD NIGHT", "train")
    first, second = found["dev/bob-call-1"], found["dev/bob-call-2"]
    assert (first.offset_s, first.duration_s, first.speaker) == (0.0, 1.25, "bob")
    assert (second.offset_s, second.duration_s, second.split) == (1.5, None, "valid")
    one, _ = clips_of("kaldi", tmp_path / "data" / "train")
    assert {c.name for c in one} == {"train/ann-utt0", "train/ann-utt1"}


def test_kaldi_runs_no_command_unless_allowed(tmp_path):
    root = trees.kaldi(tmp_path)
    trace = tmp_path / "it_ran"
    source = tmp_path / "audio" / "utt0.flac"
    (root / "train" / "wav.scp").write_text(f"ann-utt0 touch {trace}; cat {source} |\n")
    (root / "train" / "text").write_text("ann-utt0 GOOD MORNING\n")
    with pytest.raises(DataError, match=r"is a command to run .*--allow-commands"):
        prepare_corpus("kaldi", root, tmp_path / "out")
    options = AdapterOptions(allow_commands=True)
    with pytest.raises(DataError, match="no file to refer to; pass --copy flac"):
        prepare_corpus("kaldi", root, tmp_path / "out", options=options)
    assert not trace.exists()
    prepare_corpus("kaldi", root, tmp_path / "out", options=options, copy="flac")
    assert trace.exists()
    (kept,) = Manifest.open(tmp_path / "out", split="train")
    assert kept.audio == "audio/train/ann-utt0.flac"
    assert sf.read(tmp_path / "out" / kept.audio)[0].shape == (8_000,)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("segments", "a call 2.0 1.0\n", "segments, line 1: expected 0 <= START < END"),
        ("segments", "a call soon 1.0\n", "line 1: expected UTTERANCE RECORDING START END"),
        ("segments", "a phone 0.0 1.0\n", "line 1: no recording phone in wav.scp"),
        ("wav.scp", "call\n", "wav.scp, line 1: expected a name and a value, got 'call'"),
        ("wav.scp", "call data/raw.ark:1234\n", "lies in an archive"),
    ],
)
def test_a_broken_kaldi_file_is_named(tmp_path, file, text, message):
    root = trees.kaldi(tmp_path)
    if file == "wav.scp":
        (root / "dev" / "segments").unlink()
    (root / "dev" / file).write_text(text)
    with pytest.raises(DataError, match=message):
        clips_of("kaldi", root)


# ------------------------------------------------------------------------- JSON lines


def test_nemo_manifests(tmp_path):
    clips, notes = clips_of("jsonl", trees.nemo(tmp_path))
    assert Counter(c.split for c in clips) == {"train": 3, "valid": 3}
    part = next(c for c in clips if c.offset_s and c.split == "train")
    assert (part.offset_s, part.duration_s, part.speaker, part.text) == (0.1, 0.2, "7", "part")
    assert Path(part.audio) == tmp_path / "wavs" / "train0.wav"
    whole = clips[0]
    assert (whole.duration_s, whole.stated_s, whole.speaker) == (None, 0.5, "unknown")
    assert notes[0] == "read: train_manifest.json, validation_manifest.json"


def test_our_manifests_come_through_unchanged(tmp_path):
    root = trees.ours(tmp_path / "in")
    prepare_corpus("jsonl", root / "manifest.jsonl", tmp_path / "out", relative=True)
    before, after = list(Manifest.open(root)), list(Manifest.open(tmp_path / "out"))
    assert [r.audio for r in after] == [f"../in/{r.audio}" for r in before]
    keys = ("text", "speaker", "split", "duration_s", "sample_rate", "label")
    assert [[getattr(r, k) for k in keys] for r in after] == [
        [getattr(r, k) for k in keys] for r in before
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[1]", "expected a JSON object"),
        ('{"text": "x"}', "expected one of the keys audio, audio_filepath"),
        ('{"path": "a.wav", "duration": "1"}', "expected duration to be a number, got '1'"),
        ('{"path": "a.wav", "text": 1.5}', "expected text to be a text, got 1.5"),
        ('{"path": "a.wav", "split": "spare"}', "expected a split such as train"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"path": "a.wav"}\n' + row + "\n")
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: {message}"):
        clips_of("jsonl", path)


# ------------------------------------------------------------------------- lhotse


@pytest.fixture
def lhotse_folder(tmp_path: Path) -> Path:
    """A corpus of segments and whole files, exported."""
    import_or_skip("lhotse")
    prepare_corpus("kaldi", trees.kaldi(tmp_path), tmp_path / "corpus")
    assert export_lhotse(Manifest.open(tmp_path / "corpus"), tmp_path / "lhotse") == {
        "train": 2, "valid": 2,
    }  # fmt: skip
    return tmp_path / "lhotse"


def test_lhotse_reads_what_is_exported(tmp_path, lhotse_folder):
    import lhotse

    records = [r for r in Manifest.open(tmp_path / "corpus") if r.split == "valid"]
    cuts = list(lhotse.load_manifest(lhotse_folder / "cuts_valid.jsonl.gz"))
    recordings = lhotse.load_manifest(lhotse_folder / "recordings_valid.jsonl.gz")
    supervisions = lhotse.load_manifest(lhotse_folder / "supervisions_valid.jsonl.gz")
    assert len(recordings) == 1  # both are parts of one recording
    assert lhotse.validate_recordings_and_supervisions(recordings, supervisions) is None
    for cut, record in zip(cuts, records, strict=True):
        lhotse.qa.validate(cut, read_data=True)
        samples = round(record.duration_s * record.sample_rate)
        assert cut.load_audio().shape == (1, samples)
        assert (cut.start, cut.supervisions[0].text) == (record.offset_s, record.text)
        assert cut.supervisions[0].speaker == record.speaker


@pytest.mark.parametrize("removed", ["cuts", "nothing"])
def test_lhotse_comes_back_as_it_was(tmp_path, lhotse_folder, removed):
    for path in lhotse_folder.glob(f"{removed}_*"):
        path.unlink()
    assert ADAPTERS["lhotse"].fits(lhotse_folder)
    prepare_corpus("lhotse", lhotse_folder, tmp_path / "again")
    key = lambda r: (r.split, r.audio, r.offset_s)  # noqa: E731
    before = sorted(Manifest.open(tmp_path / "corpus"), key=key)
    assert sorted(Manifest.open(tmp_path / "again"), key=key) == before


def test_lhotse_cuts_that_are_no_recordings_are_refused(tmp_path, lhotse_folder):
    import lhotse

    cuts = lhotse.load_manifest(lhotse_folder / "cuts_train.jsonl.gz")
    padded = tmp_path / "padded"
    padded.mkdir()
    cuts.pad(duration=9.0).to_file(padded / "cuts.jsonl")
    with pytest.raises(DataError, match=r"is a (Padded|Mixed)Cut"):
        clips_of("lhotse", padded)
    fast = tmp_path / "fast"
    fast.mkdir()
    cuts.perturb_speed(1.1).to_file(fast / "cuts.jsonl")
    with pytest.raises(DataError, match="has transforms"):
        clips_of("lhotse", fast)


def test_lhotse_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lhotse", None)
    (tmp_path / "cuts.jsonl").write_text(json.dumps({"id": "x"}) + "\n")
    with pytest.raises(MissingExtraError, match=r"pip install 'edge-imputer\[lhotse\]'"):
        clips_of("lhotse", tmp_path)
