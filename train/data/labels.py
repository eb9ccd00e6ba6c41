"""Labels back: the rows of a manifest with what people wrote about them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from edge_imputer.errors import DataError
from edge_imputer.files import replacing

from .label_files import Label
from .manifest import find_manifest, read_rows
from .records import ClipRecord
from .transcripts import normalize, show_characters, unknown_characters

N_NAMED = 5  # faults a message names

_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # what Label Studio calls an uploaded file


@dataclass
class LabelReport:
    """What became of labels.

    Attributes
    ----------
    written : int
        Rows with a label.
    hours : float
        Of these rows.
    unlabelled : int
        Rows without one, which are left out.
    skipped : int
        Labels that the labeller passed over.
    faults : dict
        By kind, what is wrong with which labels; these are left out.
    unknown : Counter
        Characters that no text may have.
    """

    written: int = 0
    hours: float = 0.0
    unlabelled: int = 0
    skipped: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, what: str) -> None:
        """Note a fault."""
        self.faults.setdefault(kind, []).append(what)

    def lines(self) -> list[str]:
        """The faults, a line a kind."""
        found = []
        for kind, faults in self.faults.items():
            more = f" and {len(faults) - N_NAMED} more" if len(faults) > N_NAMED else ""
            found.append(f"{len(faults)} x {kind}: {'; '.join(faults[:N_NAMED])}{more}")
        if self.unknown:
            found.append(f"unknown characters: {show_characters(self.unknown.most_common())}")
        return found


def add_labels(
    manifest: Path,
    labels: Iterable[Label],
    out: Path,
    *,
    characters: str | None = None,
    remove_punctuation: bool = False,
    skip: bool = False,
) -> LabelReport:
    """Write a manifest of the rows that have a label, with it.

    Parameters
    ----------
    manifest : of the clips, such as `edge-imputer select` wrote
    labels : see `read_labels`; each belongs to the row of its id; without one, to the row whose
        path ends like the tool's name of the audio, its folder included if it has one
    out : the manifest to write; paths in it lead to the same audio
    characters : the only ones that a text may have, beside the space
    remove_punctuation : see `normalize`
    skip : leave labels out that are not right, instead of raising

    Returns
    -------
    LabelReport

    Raises
    ------
    DataError
        Without `skip`, labels of clips that are not in the manifest, empty and unknown characters,
        two labels for one clip, or a name that fits several clips. With it, if no label is left.
    """
    source = find_manifest(manifest)
    target = out if out.suffix == ".jsonl" else out / "manifest.jsonl"
    if source.resolve() == target.resolve():
        raise DataError(f"expected a file of its own to write, got {out}, the manifest itself")
    report = LabelReport()
    usable = _checked(labels, report, characters, remove_punctuation)
    of_row, n_rows = _matched(source, usable, report)
    if report.faults and not skip:
        raise DataError(
            "; ".join(report.lines()) + ". Mend them, or give --skip to leave these labels out"
        )
    if not of_row:
        raise DataError(
            f"no label fits a clip of {source}" + "".join(f"; {x}" for x in report.lines())
        )
    _write(source, target, of_row, report)
    report.unlabelled = n_rows - report.written
    return report


def _checked(
    labels: Iterable[Label], report: LabelReport, characters: str | None, remove_punctuation: bool
) -> list[Label]:
    """Labels that can be used, their texts as they are trained on."""
    known = None if characters is None else frozenset(characters)
    usable = []
    for label in labels:
        if label.skipped:
            report.skipped += 1
            continue
        name = f"{label.where} ({label.audio or label.clip})"
        text = label.text
        if text is not None:
            text = normalize(text, remove_punctuation=remove_punctuation)
            foreign = Counter[str]() if known is None else unknown_characters(text, known)
            if foreign:
                report.unknown.update(foreign)
                report.add(
                    "unknown characters", f"{name}: {''.join(sorted(foreign))!r} in {text!r}"
                )
                continue
        if not text and label.label is None:
            report.add("empty label", name)
            continue
        usable.append(msgspec.structs.replace(label, text=text or None))
    return usable


class _Row(msgspec.Struct, frozen=True, gc=False):
    """What tells a row of a manifest from the others."""

    audio: str
    clip: str = ""


def _matched(
    source: Path, labels: Sequence[Label], report: LabelReport
) -> tuple[dict[int, Label], int]:
    """The label of every row that has one, and how many rows there are."""
    ids = {label.clip for label in labels if label.clip}
    ends = {parts[-1] for label in labels for parts in _readings(label.audio)}
    home = os.path.abspath(source.parent)
    by_id: dict[str, list[int]] = {}
    by_end: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    n_rows = 0
    for number, row in enumerate(read_rows(source, msgspec.json.Decoder(_Row).decode)):
        n_rows += 1
        if row.clip in ids:
            by_id.setdefault(row.clip, []).append(number)
        parts = _folders(os.path.normpath(os.path.join(home, row.audio.replace("\\", "/"))))
        if parts and parts[-1] in ends:
            by_end.setdefault(parts[-1], []).append((number, parts))
    found: dict[int, Label] = {}
    for label in labels:
        rows = by_id.get(label.clip, []) if label.clip else _by_path(label, by_end)
        name = f"{label.where} ({label.audio or label.clip})"
        if not rows:
            report.add("clip that is not in the manifest", name)
        elif len(rows) > 1:
            report.add("name that several clips have", name)
        elif rows[0] not in found:
            found[rows[0]] = label
        elif (found[rows[0]].text, found[rows[0]].label) != (label.text, label.label):
            other = found[rows[0]]
            both = " and ".join(repr(one.text or one.label) for one in (other, label))
            report.add("second label of a clip", f"{name}: {both}, the first is kept")
    return found, n_rows


def _by_path(
    label: Label, by_end: Mapping[str, Sequence[tuple[int, tuple[str, ...]]]]
) -> list[int]:
    """Rows whose path ends most like the name of the label's audio, with its folder if it has one.

    Files of one name are common, so a name in another folder is another clip.
    """
    for parts in _readings(label.audio):
        best: list[int] = []
        most = 1 if len(parts) > 1 else 0
        for number, path in by_end.get(parts[-1], ()):
            same = 0
            for mine, theirs in zip(reversed(parts), reversed(path), strict=False):
                if mine != theirs:
                    break
                same += 1
            if same > most:
                best, most = [number], same
            elif same == most and best:
                best.append(number)
        if best:
            return best
    return []


def _readings(audio: str) -> list[tuple[str, ...]]:
    """Folders and name that a tool's name of an audio may mean, the first that fits counts.

    What is no URL with a scheme may be a plain path, in which ``%20`` and ``?`` are themselves, or
    a URL on the tool's own server.
    """
    if not audio:
        return []
    url = urlsplit(audio)
    is_file = url.path.endswith("/local-files/") and url.query.startswith("d=")
    served = _folders(unquote(url.query[2:] if is_file else url.path))
    uploaded = _UPLOADED.fullmatch(served[-1]) if "upload" in served else None
    if uploaded:
        served = (uploaded[1],)
    readings = [served] if "://" in audio else [_folders(audio), served]
    return [parts for parts in readings if parts]


def _folders(path: str) -> tuple[str, ...]:
    """The parts of a path, its root left out."""
    return tuple(part for part in PurePosixPath(path.replace("\\", "/")).parts if part != "/")


def _write(source: Path, target: Path, labels: Mapping[int, Label], report: LabelReport) -> None:
    folder, home = source.parent.resolve(), target.parent
    home.mkdir(parents=True, exist_ok=True)
    check = msgspec.json.Decoder(ClipRecord).decode
    with replacing(target) as file:
        for number, line in enumerate(read_rows(source, lambda line: line)):
            label = labels.get(number)
            if label is None:
                continue
            row: dict[str, Any] = msgspec.json.decode(line)
            if not os.path.isabs(row["audio"]):
                row["audio"] = os.path.relpath(folder / row["audio"], home.resolve())
            row["text"] = label.text
            row.pop("label", None)  # whatever it was: it is what is said now that counts
            if label.label is not None:
                row["label"] = label.label
            encoded = msgspec.json.encode(row)
            report.written += 1
            report.hours += check(encoded).duration_s / 3600
            file.write(encoded + b"\n")
