"""Labels back: the rows of a manifest with what people wrote about them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec

from edge_imputer.errors import DataError
from edge_imputer.files import replacing

from .label_files import Label
from .manifest import MANIFEST_NAME, find_manifest, read_rows
from .records import (
    HARD_LABEL,
    NEAR_MISS_LABEL,
    NOISE_LABEL,
    SILENCE_LABEL,
    UNKNOWN_LABEL,
    ClipRecord,
    Split,
)
from .transcripts import normalize, show_characters, unknown_characters

N_NAMED = 5  # faults a message names
NOTHING = "<nothing>"  # in the place of a text: nobody speaks
NO_WORDS = {UNKNOWN_LABEL, SILENCE_LABEL, NEAR_MISS_LABEL, HARD_LABEL, NOISE_LABEL}

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
    empty : int
        Labels that nobody has written yet.
    skipped : int
        Labels that the labeller passed over.
    kept : int
        Rows that the manifest had already.
    again : int
        Labels that these rows have already.
    faults : dict
        By kind, what is wrong with which labels; these are left out.
    unknown : Counter
        Characters that no text may have.
    """

    written: int = 0
    hours: float = 0.0
    unlabelled: int = 0
    empty: int = 0
    skipped: int = 0
    kept: int = 0
    again: int = 0
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


@dataclass(frozen=True)
class LabelRules:
    """What labels may say.

    Attributes
    ----------
    characters : str or None
        The only ones that a text may have, beside the space.
    keywords : collection of str or None
        The only words that a class may be; those of no word may always be.
    remove_punctuation : bool
        See `normalize`.
    """

    characters: str | None = None
    keywords: Collection[str] | None = None
    remove_punctuation: bool = False

    def normal(self, label: Label) -> Label:
        """The label as it is trained on: a text is None where there is none, not where it is ""."""
        text = (label.text or "").strip()
        if text.lower() == NOTHING:
            return msgspec.structs.replace(label, text="", label=label.label or SILENCE_LABEL)
        text = normalize(text, remove_punctuation=self.remove_punctuation)
        nothing = "" if label.label == SILENCE_LABEL else None
        return msgspec.structs.replace(label, text=text or nothing)

    def fault(self, label: Label) -> tuple[str, str] | None:
        """What is wrong with a label, its kind first."""
        text, word = label.text, label.label
        if text is None and word is None:
            return "text of punctuation only", "give <nothing> where nobody speaks"
        if (text == "") != (word == SILENCE_LABEL):
            return "text that its class contradicts", f"{text!r} is {word!r}"
        if foreign := self.foreign(text or ""):
            return "unknown characters", f"{''.join(sorted(foreign))!r} in {text!r}"
        known = self.keywords is None or word is None or word in NO_WORDS or word in self.keywords
        return None if known else ("unknown class", f"{word!r}")

    def foreign(self, text: str) -> Counter[str]:
        """Characters that no text may have."""
        if self.characters is None:
            return Counter()
        return unknown_characters(text, frozenset(self.characters))


def add_labels(
    manifest: Path,
    labels: Iterable[Label],
    out: Path,
    *,
    rules: LabelRules | None = None,
    split: Split = "train",
    append: bool = False,
    skip: bool = False,
) -> LabelReport:
    """Write a manifest of the rows that have a label, with it.

    Parameters
    ----------
    manifest : of the clips, such as `edge-imputer select` wrote
    labels : see `read_labels`; each belongs to the row of its id; without one, to the row whose
        path ends like the tool's name of the audio, its folder included if it has one. The class
        `SILENCE_LABEL` or the text `NOTHING` says that nobody speaks, and stands for both: the
        row has that class and an empty text
    out : the manifest to write; paths in it lead to the same audio
    rules : what labels may say; if unset, anything
    split : of the rows, whichever they had
    append : add to the manifest if it is there; a clip that it has with this label is not added
    skip : leave labels out that are not right, instead of raising

    Returns
    -------
    LabelReport

    Raises
    ------
    DataError
        Without `append`, if there is a manifest. Without `skip`, labels of clips that are not in
        `manifest` or that say what they may not, two labels for one clip, in the manifest that
        is added to or here, or a name that fits several clips. With it, if no label is left.
    """
    source = find_manifest(manifest)
    target = out if out.suffix == ".jsonl" else out / MANIFEST_NAME
    if source.resolve() == target.resolve():
        raise DataError(f"expected a file of its own to write, got {out}, the manifest itself")
    if target.exists() and not append:
        raise DataError(
            f"{target} is there already; give --append to add to it, or another name with --out"
        )
    report = LabelReport()
    of_row, n_rows = _matched(source, _checked(labels, report, rules or LabelRules()), report)
    rows = list(_labelled(source, target.parent.resolve(), of_row, split))
    added = _not_there(target, rows, report) if target.exists() else rows
    if report.faults and not skip:
        raise DataError(
            "; ".join(report.lines()) + ". Mend them, or give --skip to leave these labels out"
        )
    if not rows:
        lines = "".join(f"; {line}" for line in report.lines())
        raise DataError(f"no label fits a clip of {source}; {report.empty} are empty{lines}")
    report.written = len(added)
    report.hours = sum(row.record.duration_s for row in added) / 3600
    report.unlabelled = n_rows - len(rows)
    _write(target, added)
    return report


def _checked(labels: Iterable[Label], report: LabelReport, rules: LabelRules) -> list[Label]:
    """Labels that can be used, as they are trained on."""
    usable = []
    for label in labels:
        if label.skipped:
            report.skipped += 1
        elif label.label is None and not (label.text or "").strip():
            report.empty += 1
        else:
            normal = rules.normal(label)
            fault = rules.fault(normal)
            if fault is None:
                usable.append(normal)
                continue
            report.unknown.update(rules.foreign(normal.text or ""))
            report.add(fault[0], f"{_name(label)}: {fault[1]}")
    return usable


def _name(label: Label) -> str:
    """What messages call a label."""
    return f"{label.where} ({label.audio or label.clip})"


class _Row(ClipRecord, frozen=True, kw_only=True):
    """A row of the manifest, with what `select` calls its clip."""

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
        name = _name(label)
        if not rows:
            report.add("clip that is not in the manifest", name)
        elif len(rows) > 1:
            report.add("name that several clips have", name)
        elif rows[0] not in found:
            found[rows[0]] = label
        else:
            _compare(found[rows[0]], label, report)
    return found, n_rows


def _compare(first: Label | ClipRecord, label: Label, report: LabelReport) -> bool:
    """Whether a clip's second label says what the first does; if not, that is a fault."""
    if (first.text, first.label) == (label.text, label.label):
        return True
    both = " and ".join(repr(one.text or one.label) for one in (first, label))
    report.add("second label of a clip", f"{_name(label)}: {both}, the first is kept")
    return False


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
    try:
        url = urlsplit(audio)
    except ValueError:  # a bracket that is not closed; no URL then, but it may be a path
        return [] if "://" in audio else [_folders(audio)]
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


class _Labelled(NamedTuple):
    """A row to write."""

    label: Label
    record: ClipRecord
    line: bytes


def _labelled(
    source: Path, home: Path, labels: Mapping[int, Label], split: Split
) -> Iterator[_Labelled]:
    """Rows with their labels, with the keys that records ignore; paths lead from `home`."""
    folder = source.parent.resolve()
    for number, line in enumerate(read_rows(source, lambda line: line)):
        label = labels.get(number)
        if label is None:
            continue
        row: dict[str, Any] = msgspec.json.decode(line)
        if not os.path.isabs(row["audio"]):
            row["audio"] = os.path.relpath(folder / row["audio"], home)
        row |= {"text": label.text, "split": split}
        row.pop("label", None)  # whatever it was: it is what is said now that counts
        if label.label is not None:
            row["label"] = label.label
        encoded = msgspec.json.encode(row)
        yield _Labelled(label, _decode(encoded), encoded)


_decode = msgspec.json.Decoder(ClipRecord).decode


def _not_there(target: Path, rows: Sequence[_Labelled], report: LabelReport) -> list[_Labelled]:
    """The rows whose clips a manifest does not have; labels that differ from its are faults."""
    home = target.parent.resolve()
    places = [_place(row.record, home) for row in rows]
    there: dict[tuple[str, float, float], ClipRecord | None] = dict.fromkeys(places)
    for record in read_rows(target, _decode):
        report.kept += 1
        place = _place(record, home)
        if place in there:
            there[place] = record
    added = []
    for row, place in zip(rows, places, strict=True):
        first = there[place]
        if first is None:
            added.append(row)
        else:
            report.again += _compare(first, row.label, report)
    return added


def _place(record: ClipRecord, home: Path) -> tuple[str, float, float]:
    """What tells a clip from others: its file, and where in it it starts and how long it is, s."""
    path = os.path.normpath(home / record.audio)
    return path, round(record.offset_s, 6), round(record.duration_s, 6)


def _write(target: Path, added: Sequence[_Labelled]) -> None:
    """Write rows, after those that are there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as file:
        if target.exists():
            for line in read_rows(target, lambda line: line):
                file.write(line + b"\n")
        for row in added:
            file.write(row.line + b"\n")
