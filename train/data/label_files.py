"""Labels as tools of labelling give them back: Label Studio's exports, and plain tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_imputer.errors import DataError

AUDIO_KEYS = ("audio", "audio_url", "audio_path", "path", "file", "wav", "url")
TEXT_KEYS = ("transcription", "text", "transcript", "sentence")
LABEL_KEYS = ("label", "class", "choice")
ID_KEYS = ("clip",)


class Label(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What somebody wrote about a clip.

    Attributes
    ----------
    where : str
        Its place in the file, for messages.
    audio, clip : str
        The clip's audio as the tool calls it, and its id; either may be empty.
    text : str or None
        None: nothing was written. It may be empty.
    label : str or None
        A class.
    skipped : bool
        The labeller passed over it.
    """

    where: str
    audio: str = ""
    clip: str = ""
    text: str | None = None
    label: str | None = None
    skipped: bool = False


def read_labels(path: Path, field: str | None = None) -> Iterator[Label]:
    """Labels of a file, in its order.

    Parameters
    ----------
    path : a JSON or JSON-MIN export of Label Studio (.json), or a table with a line of column
        names (.tsv, or .csv)
    field : the name of what holds the text, where it is not called transcription or text

    Raises
    ------
    DataError
        It cannot be read, or is none of these.
    """
    if path.suffix == ".json":
        return _label_studio(path, field)
    if path.suffix in (".tsv", ".csv", ".txt"):
        return _table(path, field)
    raise DataError(
        f"{path}: expected labels as .json (Label Studio's JSON or JSON-MIN) or as .tsv, got "
        f"{path.suffix or 'no ending'!r}"
    )


def _table(path: Path, field: str | None) -> Iterator[Label]:
    text_keys = (field,) if field else TEXT_KEYS
    try:
        content = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text: {error}") from error
    lines = io.StringIO(content, newline="")
    if path.suffix == ".csv":
        rows = csv.reader(lines)
    else:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    columns = [name.strip() for name in next(rows, [])]
    found = {
        what: next((columns.index(key) for key in keys if key in columns), None)
        for what, keys in (
            ("audio", AUDIO_KEYS),
            ("clip", ID_KEYS),
            ("text", text_keys),
            ("label", LABEL_KEYS),
        )
    }
    known = found["audio"] is not None or found["clip"] is not None
    if not known or (found["text"] is None and found["label"] is None):
        raise DataError(
            f"{path}: expected a first line of column names with audio (or clip) and "
            f"{' or '.join(text_keys)}, got {', '.join(columns) or 'nothing'}"
        )
    for cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        where = f"line {rows.line_num}"
        if len(cells) != len(columns):
            raise DataError(
                f"{path}, {where}: expected {len(columns)} columns, as the first line has, got "
                f"{len(cells)}"
            )
        values = {what: cells[at].strip() for what, at in found.items() if at is not None}
        yield Label(
            where=where,
            audio=values.get("audio", ""),
            clip=values.get("clip", ""),
            text=values.get("text"),
            label=values.get("label") or None,
        )


def _label_studio(path: Path, field: str | None) -> Iterator[Label]:
    try:
        tasks = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected an export of Label Studio: {error}") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise DataError(
            f"{path}: expected a list of tasks, as Label Studio exports in the formats JSON and "
            f"JSON-MIN, got {type(tasks).__name__}"
        )
    for number, task in enumerate(tasks, start=1):
        where = f"task {task.get('id', number)}"
        if "annotations" in task or "completions" in task:
            yield from _full(path, where, task, field)
        else:
            yield _minimal(path, where, task, field)


def _full(path: Path, where: str, task: Mapping[str, Any], field: str | None) -> Iterator[Label]:
    """Every annotation of a task of the format JSON; a task without any is not done yet."""
    data = task.get("data")
    if not isinstance(data, dict):
        raise DataError(f"{path}, {where}: expected the task's data, got {data!r}")
    audio, clip = _named(path, where, data)
    for annotation in task.get("annotations", task.get("completions")) or ():
        results = annotation.get("result") or []
        yield Label(
            where=where,
            audio=audio,
            clip=clip,
            text=_text_of(results, field),
            label=_choice_of(results),
            skipped=bool(annotation.get("was_cancelled") or annotation.get("skipped")),
        )


def _named(path: Path, where: str, data: Mapping[str, Any]) -> tuple[str, str]:
    """What a task says of which clip it is."""
    audio = next((data[key] for key in AUDIO_KEYS if isinstance(data.get(key), str)), "")
    clip = next((data[key] for key in ID_KEYS if isinstance(data.get(key), str)), "")
    if not (audio or clip):
        raise DataError(
            f"{path}, {where}: expected the clip's audio under one of {', '.join(AUDIO_KEYS)}, "
            f"got the keys {', '.join(data)}"
        )
    return audio, clip


def _text_of(results: Sequence[Mapping[str, Any]], field: str | None) -> str | None:
    """What was written, be it for parts of the clip: then in the order of time."""
    parts: list[tuple[float, str]] = []
    for result in results:
        if result.get("type") != "textarea" or field not in (None, result.get("from_name")):
            continue
        value = result.get("value", {})
        written = value.get("text", [])
        words = [written] if isinstance(written, str) else written
        parts.append((float(value.get("start", 0.0)), " ".join(words)))
    return " ".join(text for _, text in sorted(parts, key=lambda p: p[0])) if parts else None


def _choice_of(results: Sequence[Mapping[str, Any]]) -> str | None:
    for result in results:
        choices = result.get("value", {}).get("choices") or []
        if result.get("type") == "choices" and choices:
            return str(choices[0])
    return None


def _minimal(path: Path, where: str, task: Mapping[str, Any], field: str | None) -> Label:
    """A task of the format JSON-MIN, one an annotation."""
    audio, clip = _named(path, where, task)
    keys = (field,) if field else TEXT_KEYS
    written = next((task[key] for key in keys if task.get(key) is not None), None)
    label = next((task[key] for key in LABEL_KEYS if isinstance(task.get(key), str)), None)
    return Label(where=where, audio=audio, clip=clip, text=_plain(written), label=label)


def _plain(written: Any) -> str | None:
    """A text that JSON-MIN has as a text, a list of them, or an object around either."""
    if isinstance(written, dict):
        written = written.get("text")
    if isinstance(written, list):
        return " ".join(filter(None, (_plain(one) for one in written)))
    return written if isinstance(written, str) else None
