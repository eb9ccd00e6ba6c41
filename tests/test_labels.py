"""`edge-imputer data add-labels`: what tools of labelling give back, joined to the clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_imputer.cli.main import main
from edge_imputer.errors import DataError
from edge_imputer.train.checkpoint import load_checkpoint
from edge_imputer.train.data import Manifest, load_clips
from edge_imputer.train.data.label_files import Label, read_labels
from edge_imputer.train.data.labels import LabelReport, LabelRules, add_labels
from edge_imputer.train.trainer import read_corpus, train

from .selection_cases import pool_row, read_lines, write_lines
from .training_cases import tiny_recipe, write_corpus


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Four clips, as `select` writes them; two files have one name."""
    folder = tmp_path / "field"
    folder.mkdir()
    names = ("kitchen/a.wav", "hall/a.wav", "hall/b c.wav", "hall/d.flac")
    rows = [
        pool_row(f"../audio/{name}", 1.5, clip=f"{k:016x}", rank=k + 1)
        for k, name in enumerate(names)
    ]
    return write_lines(folder / "to_label.jsonl", rows)


def task(number: int, audio: str, *texts: str, **data: Any) -> dict[str, Any]:
    """A task as Label Studio 1.x exports it in the format JSON."""
    annotations = [
        {
            "id": 100 * number + k,
            "completed_by": 1,
            "result": [
                {
                    "value": {"text": [text]},
                    "id": f"q{k}",
                    "from_name": "transcription",
                    "to_name": "audio",
                    "type": "textarea",
                    "origin": "manual",
                }
            ],
            "was_cancelled": False,
            "ground_truth": False,
            "created_at": "2024-03-09T22:16:08.728353Z",
            "lead_time": 4.288,
            "result_count": 1,
            "task": number,
        }
        for k, text in enumerate(texts)
    ]
    return {
        "id": number,
        "annotations": annotations,
        "drafts": [],
        "predictions": [],
        "data": {"audio": audio, **data},
        "meta": {},
        "created_at": "2024-03-09T21:52:49.513742Z",
        "inner_id": number,
        "total_annotations": len(annotations),
        "project": 83,
        "updated_by": 1,
        "comment_authors": [],
    }


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def joined(manifest: Path, labels: Path, **keys: Any) -> tuple[dict[str, str], LabelReport]:
    """Texts by the end of the path, and the report."""
    out = manifest.parent.parent / "new" / "manifest.jsonl"
    out.unlink(missing_ok=True)
    report = add_labels(manifest, read_labels(labels), out, **keys)
    rows = read_lines(out)
    assert len(rows) == report.written == len(Manifest.open(out))
    for row in rows:
        assert row["device"] == "kitchen"
        assert (
            (out.parent / row["audio"]).resolve().is_relative_to(manifest.parent.parent / "audio")
        )
    return {row["audio"].removeprefix("../audio/"): row["text"] for row in rows}, report


def test_label_studio_s_json_is_joined_by_path(manifest: Path, tmp_path: Path) -> None:
    labels = write_json(
        tmp_path / "project-1.json",
        [
            task(1, "/data/local-files/?d=audio/kitchen/a.wav", "Turn it on"),
            task(2, "/data/upload/83/1a2b3c4d-d.flac", "off"),
            task(3, "s3://bucket/field/audio/hall/b%20c.wav", "Stop"),
            task(4, "/data/local-files/?d=audio/hall/a.wav"),  # nobody has done it yet
        ],
    )
    texts, report = joined(manifest, labels)
    assert texts == {"kitchen/a.wav": "turn it on", "hall/d.flac": "off", "hall/b c.wav": "stop"}
    assert (report.written, report.unlabelled, report.skipped) == (3, 1, 0)
    assert report.hours == pytest.approx(4.5 / 3600)
    assert report.lines() == []


def test_what_was_passed_over_is_counted_and_parts_are_put_in_order(
    manifest: Path, tmp_path: Path
) -> None:
    cancelled = task(1, "/data/local-files/?d=audio/kitchen/a.wav", "nonsense")
    cancelled["annotations"][0]["was_cancelled"] = True
    parts = task(2, "audio/hall/d.flac", "second", "first")
    late, early = (annotation["result"][0] for annotation in parts["annotations"])
    late["value"] |= {"start": 1.2, "end": 1.5}
    early["value"] |= {"start": 0.1, "end": 0.9}
    parts["annotations"] = [{**parts["annotations"][0], "result": [late, early]}]
    old = task(3, "audio/hall/a.wav", "old")
    old["completions"] = old.pop("annotations")
    texts, report = joined(manifest, write_json(tmp_path / "l.json", [cancelled, parts, old]))
    assert texts == {"hall/d.flac": "first second", "hall/a.wav": "old"}
    assert report.skipped == 1


def test_label_studio_s_json_min_is_joined(manifest: Path, tmp_path: Path) -> None:
    common = {"annotator": 1, "annotation_id": 7, "created_at": "2024-03-09", "lead_time": 3.1}
    rows = [
        {"audio": "/data/local-files/?d=audio/kitchen/a.wav", "id": 1, "transcription": "on"},
        {"audio": "/data/upload/1/0f0f0f0f-d.flac", "id": 2, "transcription": ["two", "lines"]},
        {"audio": "x/hall/a.wav", "id": 3, "transcription": {"text": ["three"]}},
    ]
    labels = write_json(tmp_path / "l.json", [{**row, **common} for row in rows])
    texts, _ = joined(manifest, labels)
    assert texts == {"kitchen/a.wav": "on", "hall/d.flac": "two lines", "hall/a.wav": "three"}


def test_the_text_can_be_called_otherwise(manifest: Path, tmp_path: Path) -> None:
    row = {"audio": "hall/a.wav", "transcription": "no", "said": "yes"}
    min_, full = task(1, "hall/a.wav", "yes"), task(2, "hall/a.wav", "no")
    min_["annotations"][0]["result"][0]["from_name"] = "said"
    min_["annotations"][0]["result"] += full["annotations"][0]["result"]
    for content in ([row], [min_]):
        path = write_json(tmp_path / "l.json", content)
        assert [label.text for label in read_labels(path, "said")] == ["yes"]


def written(name: str, text: Any, kind: str = "textarea", **value: Any) -> dict[str, Any]:
    """What a control of Label Studio gave."""
    key = "text" if kind == "textarea" else kind
    return {"from_name": name, "to_name": "audio", "type": kind, "value": {key: text, **value}}


def annotated(*results: dict[str, Any], **data: Any) -> dict[str, Any]:
    return {"id": 1, "annotations": [{"result": list(results)}], "data": {"audio": "a.wav", **data}}


def minimal(**given: Any) -> dict[str, Any]:
    """A task as JSON-MIN has it: its own data, its id, what was given, who gave it."""
    return {"audio": "a.wav", "id": 1, **given, "annotator": 1, "annotation_id": 7}


def texts_of(path: Path, *tasks: dict[str, Any], field: str | None = None) -> list[str | None]:
    return [label.text for label in read_labels(write_json(path / "l.json", tasks), field)]


def test_notes_are_no_part_of_a_transcript(tmp_path: Path) -> None:
    noted = written("notes", ["dog barks"])
    both = annotated(written("transcription", ["turn it on"]), noted)
    assert texts_of(tmp_path, both, annotated(noted)) == ["turn it on", None]
    assert texts_of(tmp_path, both, field="notes") == ["dog barks"]
    other = annotated(written("said", ["turn it on"]), noted)
    assert texts_of(tmp_path, annotated(written("said", ["on"]))) == ["on"]
    with pytest.raises(DataError, match=r"expected one text area, got notes, said; .*--field"):
        texts_of(tmp_path, other)
    with pytest.raises(DataError, match="expected labels called sayd, got notes, said"):
        texts_of(tmp_path, other, field="sayd")
    two = minimal(transcription="on", text="off")
    with pytest.raises(DataError, match="expected one text, got transcription, text"):
        texts_of(tmp_path, two)
    table = tmp_path / "l.tsv"
    table.write_text("audio\ttext\ttranscription\na.wav\toff\ton\n")
    with pytest.raises(DataError, match="expected one column of texts, got transcription, text"):
        list(read_labels(table))
    assert [label.text for label in read_labels(table, "text")] == ["off"]


def test_parts_of_json_min_are_put_in_order_too(tmp_path: Path) -> None:
    parts = [{"start": 1.2, "end": 1.5, "text": ["second"]}, {"start": 0, "text": "first"}]
    assert texts_of(tmp_path, minimal(transcription=parts)) == ["first second"]


def test_what_a_task_said_before_is_no_label(tmp_path: Path) -> None:
    guess = {"text": "a guess"}
    assert texts_of(tmp_path, guess | minimal(transcription="on")) == ["on"]
    unclear = [
        [guess | minimal(answer="on")],  # which of them is it?
        [guess | minimal()],  # nobody has transcribed it, or somebody just that
        [guess | minimal(), minimal(text="on")],
        [{"audio": "a.wav", **guess}],  # not Label Studio's order
        [{"id": 1, "audio": "a.wav", **guess, "annotator": 1}],
        [minimal(answer="on")],
        [{"label": "lamp"} | minimal()],
    ]
    for tasks in unclear:
        with pytest.raises(DataError, match=r"JSON-MIN does not tell which of .*--field"):
            texts_of(tmp_path, *tasks)
    assert texts_of(tmp_path, *unclear[0], field="answer") == ["on"]
    assert texts_of(tmp_path, *unclear[3], field="text") == ["a guess"]
    path = write_json(tmp_path / "l.json", unclear[-1])
    assert [label.label for label in read_labels(path, "label")] == ["lamp"]
    assert texts_of(tmp_path, minimal()) == [None]


def test_choices_are_classes(tmp_path: Path) -> None:
    def classes(*tasks: dict[str, Any]) -> list[str | None]:
        return [x.label for x in read_labels(write_json(tmp_path / "l.json", tasks))]

    loud = written("loudness", ["loud"], "choices")
    assert classes(annotated(written("label", ["on"], "choices"), loud), annotated(loud)) == [
        "on", None
    ]  # fmt: skip
    for given in ("on", ["on"], {"choices": ["on"]}):
        assert classes(minimal(label=given)) == ["on"]
    with pytest.raises(DataError, match="expected one group of choices, got loudness, mood"):
        classes(annotated(loud, written("mood", ["sad"], "choices")))
    for two in (
        annotated(written("label", ["on", "off"], "choices")),
        minimal(label=["on", "off"]),
    ):
        with pytest.raises(DataError, match="task 1: expected one choice, got on, off"):
            classes(two)


def test_nobody_speaks_can_be_said_and_is_no_missing_label(manifest: Path, tmp_path: Path) -> None:
    silent = annotated(written("label", ["_silence_"], "choices"))
    silent["data"]["audio"] = "hall/d.flac"
    tsv = tmp_path / "l.tsv"
    tsv.write_text("audio\ttext\nhall/d.flac\t <Nothing> \nhall/a.wav\t\nkitchen/a.wav\ton\n")
    for path, n_empty in ((write_json(tmp_path / "l.json", [silent]), 0), (tsv, 1)):
        out = tmp_path / f"{path.suffix[1:]}.jsonl"
        report = add_labels(manifest, read_labels(path), out, rules=LabelRules("on"))
        assert (report.empty, report.faults) == (n_empty, {})
        row = read_lines(out)[-1]
        assert (row["text"], row["label"]) == ("", "_silence_")


def test_silence_trains_a_model_that_writes(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", noise=False)
    rows = [r for r in read_lines(corpus / "manifest.jsonl") if r["split"] == "train"][:8]
    pool = write_lines(corpus / "pool.jsonl", [row | {"text": None, "label": None} for row in rows])
    labels = [
        Label(where="line 2", audio=row["audio"], text="<nothing>" if k < 4 else row["text"])
        for k, row in enumerate(rows)
    ]
    out = tmp_path / "new"
    assert add_labels(pool, labels, out).written == 8
    clips = load_clips(out, Manifest.open(out), "train", sample_rate=16_000)
    assert [clip.text for clip in clips].count("") == 4
    recipe = tiny_recipe("ctc")
    material, _ = read_corpus(out, recipe.data, 16_000)
    best = train(material, None, recipe, tmp_path / "run", data_name="field", progress=False)
    assert load_checkpoint(best).origin.n_clips == 8


def test_tables_are_joined_by_path_or_id(manifest: Path, tmp_path: Path) -> None:
    tsv = tmp_path / "labels.tsv"
    tsv.write_text(
        "\ufeffaudio\ttext\tclip\n"
        'audio/000001-x.flac\tSaid "so"\t0000000000000002\n'
        "\n"
        "hall/a.wav\tit’s  two\t\n",
        "utf-8",
    )
    texts, _ = joined(manifest, tsv)
    assert texts == {"hall/b c.wav": 'said "so"', "hall/a.wav": "it’s two"}
    texts, _ = joined(manifest, tsv, rules=LabelRules(remove_punctuation=True))
    assert texts == {"hall/b c.wav": "said so", "hall/a.wav": "it's two"}
    csv = tmp_path / "labels.csv"
    csv.write_text('path,sentence\nhall/a.wav,"one, two"\n')
    assert joined(manifest, csv)[0] == {"hall/a.wav": "one, two"}


@pytest.mark.parametrize(
    "label",
    [
        Label(where="line 2", audio="/data/spk2/d.flac", text="on"),
        Label(where="line 2", audio="s3://bucket/other/d.flac", text="on"),
        Label(where="line 2", audio="http://[bad/d.flac", text="on"),
        Label(where="line 2", audio="hall/d.flac", clip="feedfeedfeedfeed", text="on"),
    ],
    ids=["path", "url", "no url", "id"],
)
def test_a_label_of_another_clip_is_not_put_on_one_of_its_name(
    manifest: Path, tmp_path: Path, label: Label
) -> None:
    with pytest.raises(DataError, match="1 x clip that is not in the manifest: line 2"):
        add_labels(manifest, [label], tmp_path / "new.jsonl")


def test_the_folder_of_the_manifest_counts(tmp_path: Path) -> None:
    home = tmp_path / "spk1"
    home.mkdir()
    manifest = write_lines(home / "m.jsonl", [pool_row("0001.wav", 1.0), pool_row("0002.wav", 1.0)])
    for audio in ("0001.wav", "/0001.wav", "spk1/0001.wav", "s3://b/spk1/0001.wav",
                  str(home / "0001.wav"), "C:\\x\\spk1\\0001.wav"):  # fmt: skip
        label = Label(where="line 2", audio=audio, text="on")
        out = tmp_path / "new.jsonl"
        assert add_labels(manifest, [label], out).written == 1
        out.unlink()
    with pytest.raises(DataError, match="not in the manifest"):
        add_labels(
            manifest, [msgspec.structs.replace(label, audio="spk2/0001.wav")], tmp_path / "n.jsonl"
        )


@pytest.mark.parametrize("audio", ["100%25.wav", "a#b.wav", "what?.wav", "x/what?d=1.wav"])
def test_plain_paths_are_taken_as_they_are(tmp_path: Path, audio: str) -> None:
    rows = [pool_row(name, 1.0) for name in (audio, "100%.wav", "b.wav", "1.wav", "what")]
    manifest = write_lines(tmp_path / "m.jsonl", rows)
    label = Label(where="line 2", audio=audio, text="on")
    out = tmp_path / "new" / "manifest.jsonl"
    assert add_labels(manifest, [label], out).written == 1
    assert (out.parent / read_lines(out)[0]["audio"]).resolve() == tmp_path / audio


def test_what_a_row_was_labelled_before_is_gone(tmp_path: Path) -> None:
    manifest = write_lines(tmp_path / "m.jsonl", [pool_row("a.wav", 1.0, text="x", label="yes")])
    for given, text, label in (({"text": "no"}, "no", None), ({"label": "lamp"}, None, "lamp")):
        out = tmp_path / f"{text}.jsonl"
        add_labels(manifest, [Label(where="line 2", audio="a.wav", **given)], out)
        assert [(r["text"], r.get("label")) for r in read_lines(out)] == [(text, label)]


def test_classes_come_back_too(manifest: Path, tmp_path: Path) -> None:
    choice = task(1, "hall/d.flac")
    result = {"type": "choices", "value": {"choices": ["lamp"]}, "from_name": "word"}
    choice["annotations"] = [{"result": [result]}]
    out = tmp_path / "new.jsonl"
    add_labels(manifest, read_labels(write_json(tmp_path / "l.json", [choice])), out)
    assert [(r["label"], r["text"]) for r in read_lines(out)] == [("lamp", None)]
    tsv = tmp_path / "l.tsv"
    tsv.write_text("audio\tlabel\nhall/d.flac\toff\n")
    out.unlink()
    add_labels(manifest, read_labels(tsv), out)
    assert [r["label"] for r in read_lines(out)] == ["off"]


BAD = {
    "unknown characters": [Label(where="line 2", audio="kitchen/a.wav", text="größe")],
    "unknown class": [Label(where="line 2", audio="kitchen/a.wav", label="lampp")],
    "text of punctuation only": [Label(where="line 2", audio="kitchen/a.wav", text="...")],
    "text that its class contradicts": [
        Label(where="line 2", audio="kitchen/a.wav", text="on", label="_silence_")
    ],
    "clip that is not in the manifest": [Label(where="line 2", audio="kitchen/z.wav", text="on")],
    "name that several clips have": [Label(where="line 2", audio="a.wav", text="on")],
    "second label of a clip": [
        Label(where="line 1", audio="kitchen/a.wav", text="on"),
        Label(where="line 2", audio="kitchen/a.wav", text="off"),
    ],
}


@pytest.mark.parametrize("kind", BAD)
def test_labels_that_are_not_right_are_named_or_left_out(
    manifest: Path, tmp_path: Path, kind: str
) -> None:
    good = Label(where="line 9", audio="hall/d.flac", text="fine")
    labels = [*BAD[kind], good]
    out = tmp_path / "new.jsonl"
    rules = LabelRules("abcdefghijklmnopqrstuvwxyz", ("lamp",), remove_punctuation=True)
    with pytest.raises(DataError, match=rf"1 x {kind}: line 2 \(.*give --skip"):
        add_labels(manifest, labels, out, rules=rules)
    assert not out.exists()
    report = add_labels(manifest, labels, out, rules=rules, skip=True)
    assert list(report.faults) == [kind]
    assert report.written == len(labels) - 1
    assert ("ß" in report.lines()[-1]) == (kind == "unknown characters")
    empty = Label(where="line 2", audio="kitchen/a.wav", text="  ")
    with pytest.raises(DataError, match=r"no label fits a clip .*; 1 are empty"):
        add_labels(manifest, [empty], tmp_path / "none.jsonl", skip=True)


def test_the_same_label_twice_is_no_fault(manifest: Path, tmp_path: Path) -> None:
    labels = [
        Label(where=f"line {k}", audio="hall/d.flac", text=t) for k, t in ((1, "on"), (2, "On"))
    ]
    assert add_labels(manifest, labels, tmp_path / "new.jsonl").faults == {}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.json", "{}", "expected a list of tasks"),
        ("l.json", "[1", "expected an export of Label Studio"),
        ("l.json", '[{"id": 1, "image": "a.png"}]', "task 1: expected the clip's audio"),
        ("l.json", '[{"id": 1, "annotations": []}]', "task 1: .*missing required field `data`"),
        ("l.tsv", "", "expected a first line of column names"),
        ("l.tsv", "audio\twords\n", "got audio, words"),
        ("l.tsv", "audio\ttext\na.wav\n", "line 2: expected 2 columns"),
        ("l.xml", "<x/>", "expected labels as .json"),
        ("l.csv", 'audio,text\na.wav,"on\nb.wav,"off"\n', "the row at line 2: .*quote closed"),
        ("l.csv", 'audio,text\na.wav,on\nb.wav,"off\n', "the row at line 3: .*quote closed"),
        ("l.tsv", "audio\ttext\na.wav\t" + 140_000 * "x", "line 2: .*at most 131072 characters"),
        ("l.tsv", "audio\ttext\n", "expected a first line .*and answer, got audio, text"),
    ],
)
def test_files_that_are_no_labels_are_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        list(read_labels(path, "answer" if "answer" in message else None))


@pytest.mark.parametrize(
    "task",
    [
        annotated(written("transcription", ["on"], start=None)),
        annotated(written("transcription", None)),
        annotated(written("transcription", [None])),
        annotated(written("label", [None], "choices")),
        annotated({"type": "textarea", "value": None}),
        {"id": 1, "annotations": [17, 18], "data": {"audio": "a.wav"}},
        minimal(transcription=[None]),
        minimal(transcription=[{"start": None, "text": "on"}]),
        minimal(label=3),
    ],
)
def test_a_task_that_label_studio_does_not_write_is_named(tmp_path: Path, task: Any) -> None:
    with pytest.raises(DataError, match=r"l\.json, task 1: expected what Label Studio exports: "):
        texts_of(tmp_path, task)


def test_a_second_round_is_added_to_the_first(manifest: Path, tmp_path: Path) -> None:
    rows = [row | {"split": "test"} for row in read_lines(manifest)]
    write_lines(manifest, rows)
    out = tmp_path / "corpus" / "manifest.jsonl"
    first = Label(where="line 1", audio="hall/d.flac", text="on")
    second = Label(where="line 2", audio="hall/a.wav", text="off")
    other = Label(where="line 3", audio="hall/d.flac", text="of")
    add_labels(manifest, [first], out, append=True)
    before = out.read_bytes()
    with pytest.raises(DataError, match=r"manifest\.jsonl is there already; give --append"):
        add_labels(manifest, [second], out.parent)
    with pytest.raises(DataError, match=r"line 3 \(hall/d.flac\): 'on' and 'of'"):
        add_labels(manifest, [second, other], out, append=True)
    assert out.read_bytes() == before
    elsewhere = tmp_path / "elsewhere.jsonl"  # another list of the same clips
    lead = [row | {"audio": row["audio"].removeprefix("../")} for row in rows]
    write_lines(elsewhere, lead)
    report = add_labels(elsewhere, [first, second], out, append=True, split="valid")
    assert (report.written, report.again, report.kept, report.unlabelled) == (1, 1, 1, 2)
    assert out.read_bytes().startswith(before)
    assert [(r["text"], r["split"]) for r in read_lines(out)] == [("on", "train"), ("off", "valid")]
    report = add_labels(manifest, [other], out, append=True, skip=True)
    assert (report.written, report.kept) == (0, 2)
    assert len(read_lines(out)) == 2


def test_the_command_writes_a_corpus_and_says_what_it_left_out(
    capsys: pytest.CaptureFixture[str], manifest: Path, tmp_path: Path
) -> None:
    tsv = tmp_path / "l.tsv"
    tsv.write_text("audio\ttext\nhall/d.flac\tgood\nhall/a.wav\tbäd\n")
    same = ["data", "add-labels", str(manifest), str(tsv), "--out", str(tmp_path / "corpus")]
    with pytest.raises(SystemExit) as stop:
        main([*same, "--characters", "godba"])
    assert stop.value.code == 2
    assert "unknown characters: 'ä' (U+00E4) 1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([*same, "--characters", "godba", "--skip"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert "left out: 1 x unknown characters" in out
    assert "1 clips with labels, 0.00 h; 3 without are left out" in out
    assert [record.text for record in Manifest.open(tmp_path / "corpus")] == ["good"]
    with pytest.raises(SystemExit):
        main([*same, "--split", "valid"])
    assert "give --append to add to it" in capsys.readouterr().err
    tsv.write_text("audio\ttext\nhall/d.flac\tgood\nhall/a.wav\t\nhall/b c.wav\t<nothing>\n")
    with pytest.raises(SystemExit):
        main([*same, "--split", "valid", "--append"])
    out = capsys.readouterr().out
    assert "1 labels are empty: not labelled yet" in out
    assert "added to 1 clips, which have 1 of the labels already" in out
    rows = [(r.text, r.label, r.split) for r in Manifest.open(tmp_path / "corpus")]
    assert rows == [("good", None, "train"), ("", "_silence_", "valid")]
    with pytest.raises(SystemExit):
        main([*same, "--characters", "x", "--model", "y"])
    assert "give one of them" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*same[:-1], str(manifest)])
    assert "a file of its own" in capsys.readouterr().err
