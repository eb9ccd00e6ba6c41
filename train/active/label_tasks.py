"""Chosen clips as tasks of labelling tools: Label Studio, or a plain table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from edge_imputer.clip_checks import ClipTask, read_and_check, write_copy
from edge_imputer.errors import DataError
from edge_imputer.files import replacing

Export = Literal["label-studio", "tsv"]

TASKS_NAME = "tasks.json"
CONFIG_NAME = "label_config.xml"
TSV_NAME = "tasks.tsv"
AUDIO_FOLDER = "audio"
TSV_COLUMNS = ("audio", "text", "clip", "rank", "heard")
URL = "/data/local-files/?d="  # of files that Label Studio serves itself
MODEL_VERSION = "edge-imputer"

CONFIG = """<View>
  <Audio name="audio" value="$audio" zoom="true" hotkey="space"/>
  <Text name="heard" value="The model hears: $heard"/>
  <TextArea name="transcription" toName="audio" rows="2" editable="true" maxSubmissions="1"/>
</View>
"""


def write_tasks(export: Export, rows: Iterable[Mapping[str, Any]], folder: Path) -> Path:
    """Write tasks, and copies of the clips beside them: `folder` is all that a labeller needs.

    Parameters
    ----------
    export : "label-studio": a file to import, with what the model hears as a prediction, and the
        labelling interface; "tsv": audio, an empty text, and what the model hears
    rows : of the chosen, see `Outputs.chosen`; paths lead from `folder`
    folder : with ``audio`` for the clips, as 16-bit flac

    Returns
    -------
    path : of the tasks
    """
    copied = _with_copies(rows, folder)
    if export == "tsv":
        path = folder / TSV_NAME
        with replacing(path) as file:
            file.write("\t".join(TSV_COLUMNS).encode() + b"\n")
            for row in copied:
                cells = {**row, "text": ""}
                line = "\t".join(_cell(cells[column]) for column in TSV_COLUMNS)
                file.write(line.encode() + b"\n")
        return path
    (folder / CONFIG_NAME).write_text(CONFIG, "utf-8")
    path = folder / TASKS_NAME
    with replacing(path) as file:
        separator = b"[\n"
        for row in copied:
            file.write(separator + msgspec.json.encode(_task(row, folder.name)))
            separator = b",\n"
        file.write(b"\n]\n")
    return path


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


def _task(row: Mapping[str, Any], root: str) -> dict[str, Any]:
    """A task of Label Studio, which serves the folder that `root` is in."""
    data = {
        "audio": URL + quote(f"{root}/{row['audio']}"),
        **{key: row[key] for key in ("clip", "rank", "heard", "score", "confidence")},
    }
    if not row["heard"]:
        return {"data": data}
    heard = {
        "from_name": "transcription",
        "to_name": "audio",
        "type": "textarea",
        "value": {"text": [row["heard"]]},
    }
    prediction = {
        "model_version": MODEL_VERSION,
        "score": row["confidence"],
        "result": [heard],
    }
    return {"data": data, "predictions": [prediction]}


def _cell(value: object) -> str:
    return " ".join(str(value).split())
