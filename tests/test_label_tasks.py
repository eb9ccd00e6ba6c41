"""Tasks of labelling tools, filled in as people do, and back: rows that a model trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edge_imputer.cli.main import main
from edge_imputer.errors import DataError
from edge_imputer.train.active import Selection, SelectionOptions
from edge_imputer.train.active.label_tasks import write_tasks
from edge_imputer.train.active.score_log import Shard
from edge_imputer.train.checkpoint import load_checkpoint
from edge_imputer.train.data.label_files import read_labels
from edge_imputer.train.data.labels import LabelRules, add_labels
from edge_imputer.train.trainer import read_corpus, train

from .selection_cases import (
    babbles,
    read_lines,
    write_keyword_model,
    write_lines,
    write_model,
    write_pool,
)
from .training_cases import tiny_recipe, write_corpus

KEYWORDS = ("ab", "abba")
SAID = {"ab": "ab", "abba": "abba", "ba": "_unknown_"}


@pytest.fixture
def chosen(tmp_path: Path) -> Path:
    """Rows of a pool of tones, as `select` writes them, half of them of the split test."""
    corpus = write_corpus(tmp_path / "corpus", noise=False)
    rows = [row for row in read_lines(corpus / "manifest.jsonl") if row["split"] == "train"]
    found = {"score": 1.0, "confidence": 0.5, "heard": "_unknown_", "text": None, "label": None}
    for k, row in enumerate(rows):
        row |= found | {"clip": f"{k:016x}", "rank": k + 1, "split": ("train", "test")[k % 2]}
        row["audio"] = f"corpus/{row['audio']}"
    (tmp_path / "to_label").mkdir()
    return write_lines(tmp_path / "to_label.jsonl", rows)


def exported(chosen: Path, export: Any, keywords: tuple[str, ...]) -> Path:
    rows = read_lines(chosen)
    for row in rows:
        row["audio"] = f"../{row['audio']}"
    return write_tasks(export, rows, chosen.with_suffix(""), keywords)


def truth(chosen: Path) -> dict[str, str]:
    """What a labeller says of each clip; of the first, that nobody speaks."""
    words = {row["clip"]: Path(row["audio"]).stem.split("-")[1] for row in read_lines(chosen)}
    return {clip: SAID[word] for clip, word in words.items()} | {"0" * 16: "_silence_"}


def controls(folder: Path) -> ElementTree.Element:
    return ElementTree.fromstring((folder / "label_config.xml").read_text())


def filled_in(tasks: Path, said: dict[str, str]) -> list[dict[str, Any]]:
    """An export of Label Studio, where every prediction was put right."""
    choices = {choice.get("alias") for choice in controls(tasks.parent).iter("Choice")}
    assert choices == set(said.values())
    done = json.loads(tasks.read_text())
    for number, task in enumerate(done, 1):
        (result,) = task["predictions"][0]["result"]
        assert result["value"]["choices"][0] in choices
        result = {**result, "value": {"choices": [said[task["data"]["clip"]]]}}
        task |= {"id": number, "annotations": [{"result": [result]}]}
    return done


def minimal(task: dict[str, Any]) -> dict[str, Any]:
    """The same in the format JSON-MIN."""
    (result,) = task["annotations"][0]["result"]
    given = {result["from_name"]: result["value"]["choices"][0]}
    return {**task["data"], "id": task["id"], **given, "annotator": 1, "annotation_id": 2}


@pytest.mark.parametrize("kind", ["json", "json-min", "tsv"])
def test_classes_of_a_keyword_pool_come_back_and_train(
    chosen: Path, tmp_path: Path, kind: str
) -> None:
    said = truth(chosen)
    if kind == "tsv":
        labels = exported(chosen, "tsv", KEYWORDS)
        first, *lines = (line.split("\t") for line in labels.read_text().splitlines())
        assert first == ["audio", "label", "clip", "rank", "heard"]
        rows = [first, *([a, said[clip], clip, *rest] for a, empty, clip, *rest in lines)]
        labels.write_text("".join("\t".join(row) + "\n" for row in rows))
    else:
        done = filled_in(exported(chosen, "label-studio", KEYWORDS), said)
        labels = tmp_path / "project-1.json"
        labels.write_text(json.dumps(done if kind == "json" else list(map(minimal, done))))
    out = tmp_path / "field"
    report = add_labels(chosen, read_labels(labels), out, rules=LabelRules(keywords=KEYWORDS))
    rows = read_lines(out / "manifest.jsonl")
    assert {row["clip"]: row["label"] for row in rows} == said
    assert {row["text"] for row in rows if row["label"] != "_silence_"} == {None}
    assert {row["split"] for row in rows} == {"train"}
    recipe = tiny_recipe("keywords-35", "task.keywords=['ab', 'abba']")
    material, _ = read_corpus(out, recipe.data, 16_000)
    best = train(material, material, recipe, tmp_path / "run", data_name="field", progress=False)
    assert load_checkpoint(best).origin.n_clips == report.written == len(said)


def test_keywords_are_as_they_are_called(chosen: Path) -> None:
    exported(chosen, "label-studio", ('say "on" & <off>', "ab"))
    group = controls(chosen.with_suffix("")).find("Choices")
    assert [(c.get("value"), c.get("alias")) for c in group] == [
        ('say "on" & <off>',) * 2,
        ("ab", "ab"),
        ("other speech", "_unknown_"),
        ("nothing is said", "_silence_"),
    ]


def test_of_a_clip_to_write_down_it_can_be_said_that_nobody_speaks(chosen: Path) -> None:
    tasks = json.loads(exported(chosen, "label-studio", ()).read_text())
    assert tasks[0]["predictions"][0]["result"][0]["type"] == "textarea"
    interface = controls(chosen.with_suffix(""))
    assert interface.find("TextArea").get("name") == "transcription"
    (choice,) = interface.find("Choices")
    assert (choice.get("value"), choice.get("alias")) == ("nothing is said", "_silence_")


def test_a_selection_exports_what_its_model_is_about(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", babbles(4))
    for write, column in ((write_keyword_model, "label"), (write_model, "text")):
        model = write(tmp_path / f"{column}.ckpt")
        options = SelectionOptions(
            model, pool, tmp_path / f"{column}.jsonl", 60.0, strategy="random", export="tsv"
        )
        selection = Selection(options)
        selection.score(Shard())
        assert list(selection.select().keywords) == (["ab", "abba"] if column == "label" else [])
        table = (tmp_path / column / "tasks.tsv").read_text()
        assert table.startswith(f"audio\t{column}\tclip")


def test_a_keyword_model_says_which_classes_there_are(
    capsys: pytest.CaptureFixture[str], chosen: Path, tmp_path: Path
) -> None:
    model = write_keyword_model(tmp_path / "k.ckpt")
    table = exported(chosen, "tsv", KEYWORDS)
    table.write_text(table.read_text().replace("\t\t", "\tabbba\t", 1))
    with pytest.raises(SystemExit) as stop:
        main(["data", "add-labels", str(chosen), str(table), "--out", str(tmp_path / "field"),
              "--model", str(model)])  # fmt: skip
    assert stop.value.code == 2
    assert "1 x unknown class: line 2 (audio/000001-" in capsys.readouterr().err
    with pytest.raises(DataError, match="no label fits"):
        add_labels(chosen, read_labels(exported(chosen, "tsv", KEYWORDS)), tmp_path / "field")
