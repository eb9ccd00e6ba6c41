"""Chosen clips as tasks of labelling tools: Label Studio, or a plain table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import msgspec

from edge_imputer.clip_checks import ClipTask, read_and_check, write_copy
from edge_imputer.errors import DataError
from edge_imputer.files import replacing

from ..data.records import SILENCE_LABEL, UNKNOWN_LABEL

Export = Literal["label-studio", "tsv"]

TASKS_NAME = "tasks.json"
CONFIG_NAME = "label_config.xml"
TSV_NAME = "tasks.tsv"
AUDIO_FOLDER = "audio"
URL = "/data/local-files/?d="  # of files that Label Studio serves itself
MODEL_VERSION = "edge-imputer"

SHOWN = {UNKNOWN_LABEL: "other speech", SILENCE_LABEL: "nothing is said"}  # to the labeller

CONFIG = """<View>
  <Audio name="audio" value="$audio" zoom="true" hotkey="space"/>
  <Text name="heard" value="The model hears: $heard"/>
{controls}</View>
"""
TEXT_AREA = """\
  <TextArea name="transcription" toName="audio" rows="2" editable="true" maxSubmissions="1"/>
"""


def write_tasks(
    export: Export,
    rows: Iterable[Mapping[str, Any]],
    folder: Path,
    keywords: Sequence[str] = (),
) -> Path:
    """Write tasks, and copies of the clips beside them: `folder` is all that a labeller needs.

    Parameters
    ----------
    export : "label-studio": a file to import, with what the model hears as a prediction, and the
        labelling interface; "tsv": audio, an empty text or label, and what the model hears
    rows : of the chosen, see `Outputs.chosen`; paths lead from `folder`
    folder : with ``audio`` for the clips, as 16-bit flac
    keywords : of a keyword model, whose clips are given a class: one of these, `UNKNOWN_LABEL` or
        `SILENCE_LABEL`; without any, they are transcribed

    Returns
    -------
    path : of the tasks
    """
    copied = _with_copies(rows, folder)
    if export == "tsv":
        return _write_table(copied, folder, "label" if keywords else "text")
    (folder / CONFIG_NAME).write_text(_config(keywords), "utf-8")
    path = folder / TASKS_NAME
    with replacing(path) as file:
        separator = b"[\n"
        for row in copied:
            file.write(separator + msgspec.json.encode(_task(row, folder.name, bool(keywords))))
            separator = b",\n"
        file.write(b"\n]\n")
    return path


def _write_table(rows: Iterable[Mapping[str, Any]], folder: Path, label: str) -> Path:
    """Write tasks as a table; `label` is what the column to fill in is called."""
    columns = ("audio", label, "clip", "rank", "heard")
    path = folder / TSV_NAME
    with replacing(path) as file:
        file.write("\t".join(columns).encode() + b"\n")
        for row in rows:
            cells = {**row, label: ""}
            file.write("\t".join(_cell(cells[name]) for name in columns).encode() + b"\n")
    return path


def _config(keywords: Sequence[str]) -> str:
    """The labelling interface: a class of each clip, or a text unless nothing is said."""
    classes = (*keywords, UNKNOWN_LABEL, SILENCE_LABEL) if keywords else (SILENCE_LABEL,)
    choices = "".join(
        # What is exported is the alias.
        f"    <Choice value={quoteattr(SHOWN.get(name, name))} alias={quoteattr(name)}/>\n"
        for name in classes
    )
    group = f'  <Choices name="label" toName="audio" choice="single">\n{choices}  </Choices>\n'
    return CONFIG.format(controls=group if keywords else TEXT_AREA + group)


def _with_copies(rows: Iterable[Mapping[str, Any]], folder: Path) -> Iterator[dict[str, Any]]:
    """Rows whose audio is a copy of the clip, named by its rank."""
    for row in rows:
        task = ClipTask(
            audio=str(folder / row["audio"]),
            offset_s=row.get("offset_s", 0.0),
            duration_s=row["duration_s"] or None,
        )
        finding, waveform = read_and_check(task)
        if finding.problem is not None:
            raise DataError(
                f"{task.audio}: {finding.problem}: {finding.detail}; it could be read when it was "
                "scored"
            )
        name = f"{AUDIO_FOLDER}/{row['rank']:06d}-{row['clip']}.flac"
        write_copy(folder / name, waveform, finding.sample_rate, None)
        yield {**row, "audio": name}


def _task(row: Mapping[str, Any], root: str, classes: bool) -> dict[str, Any]:
    """A task of Label Studio, which serves the folder that `root` is in."""
    data = {
        "audio": URL + quote(f"{root}/{row['audio']}"),
        **{key: row[key] for key in ("clip", "rank", "heard", "score", "confidence")},
    }
    if not row["heard"]:
        return {"data": data}
    name, kind, value = (
        ("label", "choices", "choices") if classes else ("transcription", "textarea", "text")
    )
    heard = {
        "from_name": name,
        "to_name": "audio",
        "type": kind,
        "value": {value: [row["heard"]]},
    }
    prediction = {
        "model_version": MODEL_VERSION,
        "score": row["confidence"],
        "result": [heard],
    }
    return {"data": data, "predictions": [prediction]}


def _cell(value: object) -> str:
    return " ".join(str(value).split())
