"""Labels as tools of labelling give them back: Label Studio's exports, and plain tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_imputer.errors import DataError

AUDIO_KEYS = ("audio", "audio_url", "audio_path", "path", "file", "wav", "url")
TEXT_KEYS = ("transcription", "text", "transcript", "sentence")
LABEL_KEYS = ("label", "class", "choice")
ID_KEYS = ("clip",)

NamedTasks = Sequence[tuple[str, Mapping[str, Any]]]  # after what messages call them


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
    """Labels of a file, in its order; of what nobody has labelled yet, one that is empty.

    Parameters
    ----------
    path : a JSON or JSON-MIN export of Label Studio (.json), or a table with a line of column
        names (.tsv, or .csv)
    field : the name of what holds the labels, where it is not a usual one or several are

    Raises
    ------
    DataError
        It cannot be read, is none of these, or does not tell what holds the labels.
    """
    if path.suffix == ".json":
        return _label_studio(path, field)
    if path.suffix in (".tsv", ".csv", ".txt"):
        return _table(path, field)
    raise DataError(
        f"{path}: expected labels as .json (Label Studio's JSON or JSON-MIN) or as .tsv, got "
        f"{path.suffix or 'no ending'!r}"
    )


def _picked(
    path: Path,
    what: str,
    names: Iterable[str],
    usual: Sequence[str],
    field: str | None,
    *,
    any_name: bool = False,
) -> str | None:
    """Which of the names holds labels: `field`; else the usual one, or with `any_name` the only.

    Several are never joined: what is noted beside a transcript is no part of it.
    """
    known = set(names)
    if field in known:
        return field
    found = [name for name in usual if name in known]
    if any_name and not found and field is None:
        found = sorted(known)
    if len(found) > 1 and field is None:
        raise DataError(
            f"{path}: expected one {what}, got {', '.join(found)}; say which counts with --field"
        )
    return found[0] if found else None


# Tables.


def _table(path: Path, field: str | None) -> Iterator[Label]:
    rows = _rows(path)
    columns = [name.strip() for name in next(rows, (1, []))[1]]
    names = {
        "audio": next((key for key in AUDIO_KEYS if key in columns), None),
        "clip": next((key for key in ID_KEYS if key in columns), None),
        "text": _picked(path, "column of texts", _texts(columns), TEXT_KEYS, field),
        "label": _picked(path, "column of classes", _classes(columns), LABEL_KEYS, field),
    }
    at = {what: columns.index(name) for what, name in names.items() if name is not None}
    named, labelled = {"audio", "clip"} & at.keys(), {"text", "label"} & at.keys()
    if not named or not labelled or (field and field not in columns):
        raise DataError(
            f"{path}: expected a first line of column names with audio (or clip) and "
            f"{field or ' or '.join((*TEXT_KEYS, LABEL_KEYS[0]))}, got "
            f"{', '.join(columns) or 'nothing'}"
        )
    for number, cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        where = f"line {number}"
        if len(cells) != len(columns):
            raise DataError(
                f"{path}, {where}: expected {len(columns)} columns, as the first line has, got "
                f"{len(cells)}"
            )
        values = {what: cells[column].strip() for what, column in at.items()}
        yield Label(
            where=where,
            audio=values.get("audio", ""),
            clip=values.get("clip", ""),
            text=values.get("text"),
            label=values.get("label") or None,
        )


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Every row of a table, after the number of the line that it begins at."""
    try:
        content = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text: {error}") from error
    lines = io.StringIO(content, newline="")
    if path.suffix == ".csv":
        rows = csv.reader(lines, strict=True)  # else a quote that is not closed swallows rows
    else:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    number = 1
    try:
        for cells in rows:
            yield number, cells
            number = rows.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, the row at line {number}: expected cells of at most "
            f"{csv.field_size_limit()} characters, every quote closed: {error}"
        ) from error


def _texts(names: Iterable[str]) -> list[str]:
    """Names that are not those of classes: of a table and of JSON-MIN, names alone tell."""
    return [name for name in names if name not in LABEL_KEYS]


def _classes(names: Iterable[str]) -> list[str]:
    return [name for name in names if name in LABEL_KEYS]


# Label Studio.


class _Region(msgspec.Struct, gc=False):
    """What was written of a part of a clip, or of all of it."""

    text: str | list[str]
    start: float = 0.0  # seconds

    @property
    def words(self) -> str:
        return self.text if isinstance(self.text, str) else " ".join(self.text)


class _Choices(msgspec.Struct, gc=False):
    choices: list[str]


class _Result(msgspec.Struct, gc=False):
    """What a control of the labelling interface gave."""

    type: str = ""
    from_name: str = ""  # of the control
    value: dict[str, Any] = msgspec.field(default_factory=dict)


class _Annotation(msgspec.Struct, gc=False):
    result: list[_Result] | None = None
    was_cancelled: bool | None = None
    skipped: bool | None = None

    def of(self, kind: str) -> list[_Result]:
        """Results of controls of a kind."""
        return [result for result in self.result or () if result.type == kind]


class _Task(msgspec.Struct, gc=False):
    """A task of the format JSON."""

    data: dict[str, Any]
    annotations: list[_Annotation] | None = None
    completions: list[_Annotation] | None = None  # before version 1


# What JSON-MIN makes of a text area, and of choices.
_Text = str | _Region | list[str | _Region] | None
_Choice = str | _Choices | list[str] | None


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
    named = [(f"task {task.get('id', number)}", task) for number, task in enumerate(tasks, 1)]
    if any("annotations" in task or "completions" in task for task in tasks):
        return _full(path, named, field)
    return _minimal(path, named, field)


def _full(path: Path, tasks: NamedTasks, field: str | None) -> Iterator[Label]:
    """A label for every annotation; for a task without any, which is not done yet, one."""
    done: list[tuple[str, _Task, list[_Annotation]]] = []
    for where, content in tasks:
        task = _converted(f"{path}, {where}", content, _Task)
        done.append((where, task, task.annotations or task.completions or [_Annotation()]))
    every = [one for _, _, its_own in done for one in its_own]
    texts = {result.from_name for one in every for result in one.of("textarea")}
    classes = {result.from_name for one in every for result in one.of("choices")}
    _check_field(path, field, texts | classes)
    text = _picked(path, "text area", texts, TEXT_KEYS, field, any_name=True)
    label = _picked(path, "group of choices", classes, LABEL_KEYS, field, any_name=True)
    for where, task, its_own in done:
        place = f"{path}, {where}"
        audio, clip = _named(place, task.data)
        for one in its_own:
            written = [r.value for r in one.of("textarea") if r.from_name == text]
            chosen = [r.value for r in one.of("choices") if r.from_name == label]
            yield Label(
                where=where,
                audio=audio,
                clip=clip,
                text=_in_time(_converted(place, written, list[_Region])),
                label=_only(place, [_converted(place, v, _Choices) for v in chosen]),
                skipped=bool(one.was_cancelled or one.skipped),
            )


def _minimal(path: Path, tasks: NamedTasks, field: str | None) -> Iterator[Label]:
    """A label for every task of the format JSON-MIN, which is one an annotation."""
    given = {key for _, task in tasks for key in _given(task)}
    others = {key for _, task in tasks for key in task.keys() - _given(task)}
    if field is None:
        _check_told(path, given, others)
    else:
        _check_field(path, field, given | others)
        given.add(field)
    text = _picked(path, "text", _texts(given), TEXT_KEYS, field)
    label = _picked(path, "choice", _classes(given), LABEL_KEYS, field)
    for where, task in tasks:
        place = f"{path}, {where}"
        audio, clip = _named(place, task)
        own = {key: task[key] for key in task if key == field or key in _given(task)}
        written: _Text = _converted(place, own.get(text or ""), _Text)
        chosen: _Choice = _converted(place, own.get(label or ""), _Choice)
        parts = written if isinstance(written, list) else [written]
        yield Label(
            where=where,
            audio=audio,
            clip=clip,
            text=_in_time(_Region(p) if isinstance(p, str) else p for p in parts if p is not None),
            label=_only(place, [] if chosen is None else [chosen]),
        )


def _given(task: Mapping[str, Any]) -> frozenset[str]:
    """Keys of what an annotation gave: JSON-MIN has them after the task's own and its id.

    Empty where that cannot be told. What is called as one of the task's own takes its place.
    """
    keys = list(task)
    if "id" not in keys or "annotator" not in keys:
        return frozenset()
    found = frozenset(keys[keys.index("id") + 1 : keys.index("annotator")])
    return frozenset() if found & {*AUDIO_KEYS, *ID_KEYS} else found  # another order


def _check_told(path: Path, given: set[str], others: set[str]) -> None:
    """Raise `DataError` where what was written cannot be told from the task's own data."""
    texts, usual = {*TEXT_KEYS}, {*TEXT_KEYS, *LABEL_KEYS}
    doubtful = given & others & usual
    if not given & texts:
        doubtful |= {*_texts(given)} | others & texts
    if not given & usual:
        doubtful |= others & usual
    if doubtful:
        raise DataError(
            f"{path}: JSON-MIN does not tell which of {', '.join(sorted(doubtful))} holds what "
            "somebody wrote, and which the task's own data; say it with --field, or export as JSON"
        )


def _check_field(path: Path, field: str | None, names: set[str]) -> None:
    """Raise `DataError` if there are labels, and none by the name asked for."""
    if field is not None and names and field not in names:
        raise DataError(f"{path}: expected labels called {field}, got {', '.join(sorted(names))}")


def _converted(place: str, value: object, kind: Any) -> Any:
    """A value as the kind it has in an export of Label Studio."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise DataError(f"{place}: expected what Label Studio exports: {error}") from error


def _named(place: str, data: Mapping[str, Any]) -> tuple[str, str]:
    """What a task says of which clip it is."""
    audio = next((data[key] for key in AUDIO_KEYS if isinstance(data.get(key), str)), "")
    clip = next((data[key] for key in ID_KEYS if isinstance(data.get(key), str)), "")
    if not (audio or clip):
        raise DataError(
            f"{place}: expected the clip's audio under one of {', '.join(AUDIO_KEYS)}, "
            f"got the keys {', '.join(data)}"
        )
    return audio, clip


def _in_time(regions: Iterable[_Region]) -> str | None:
    """What was written, be it for parts of the clip: then in the order of time."""
    texts = [region.words for region in sorted(regions, key=lambda region: region.start)]
    return " ".join(texts) if texts else None


def _only(place: str, chosen: Iterable[str | list[str] | _Choices]) -> str | None:
    """The class that was chosen."""
    found: dict[str, None] = {}
    for one in chosen:
        names = one.choices if isinstance(one, _Choices) else one
        found |= dict.fromkeys([names] if isinstance(names, str) else names)
    if len(found) > 1:
        raise DataError(f"{place}: expected one choice, got {', '.join(found)}")
    return next(iter(found), None)
