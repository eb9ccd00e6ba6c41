"""`prepare_corpus`: a corpus in its own layout becomes a checked corpus folder, or says why not."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge_imputer.clip_checks import ClipTask, Finding, copy_digest, stamp
from edge_imputer.errors import DataError
from edge_imputer.files import write_atomically

from .adapters import ADAPTERS, Adapter, AdapterOptions, Notes, SourceClip
from .adapters.base import with_valid
from .checking import check_all
from .journal import Journal, key_of, writing
from .manifest import MANIFEST_NAME, write_manifest
from .records import ClipRecord
from .verdicts import Judge, Rules, shared_speakers, tally_of

Copy = Literal["none", "wav", "flac"]

_UNSAFE = re.compile(r"[^\w.,+=@ -]")


class Report(msgspec.Struct, kw_only=True):
    """``report.json``: what was found, kept and dropped, and why."""

    corpus: str
    root: str
    options: dict[str, Any]
    found: int  # clips
    kept: dict[str, dict[str, float]]  # by split: clips, hours, speakers
    dropped: dict[str, dict[str, Any]]  # by reason: clips, hours, examples
    warnings: dict[str, dict[str, Any]]
    unknown_characters: dict[str, int]
    shared_speakers: dict[str, list[str]]
    notes: list[str]


def prepare_corpus(
    name: str,
    root: Path,
    out: Path,
    *,
    rules: Rules | None = None,
    options: AdapterOptions | None = None,
    copy: Copy = "none",
    relative: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check every clip of a corpus, and write ``manifest.jsonl`` with those that can be used.

    Beside it ``report.json`` and ``dropped.jsonl`` say what was found and what was dropped. Every
    clip is decoded whole. A run that was interrupted, in whatever way, goes on where it was:
    findings are kept in ``journal.jsonl``, and the manifest is written at the end, atomically.

    Parameters
    ----------
    name
        Of the adapter, a key of `ADAPTERS`.
    root
        Folder of the corpus in its original layout.
    out
        Folder to write; made where there is none.
    rules
        What is asked of clips; ``rules.rate`` is the rate of copies, in Hz.
    copy
        "none" refers to the originals; "wav" and "flac" write each kept part, at ``rules.rate``,
        below ``out/audio``.
    relative
        Write paths relative to `out`, where the originals and `out` move together.
    workers
        Processes that decode.
    progress
        Called with the clips done and the clips in all.

    Raises
    ------
    DataError
        No such adapter or layout, nothing to keep, copies inside of the corpus, or `out` cannot be
        written.
    """
    rules, options = rules or Rules(), options or AdapterOptions()
    adapter, notes = _adapter(name, root, options), Notes()
    clips = _read_corpus(adapter, root, options, notes)
    commands = any(clip.command is not None for clip in clips)
    if commands and copy == "none":
        raise DataError(
            f"{root}: clips that commands print leave no file to refer to; pass --copy flac"
        )
    if copy != "none" and out.resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"expected a folder outside of the corpus {root} for copies, got {out}: the next run "
            "would take them for its clips; name another"
        )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    tasks = _tasks(clips, out, copy, rules.rate)
    purpose: dict[str, object] = {"corpus": name, "copy": copy}
    if copy != "none":
        purpose["rate"] = rules.rate
    findings = _findings(tasks, Journal(out, purpose), workers, progress or (lambda *_: None))
    judge = Judge(rules)
    final = [_final(task, f, out, relative) for task, f in zip(tasks, findings, strict=True)]
    kept = dict(judge.records(clips, findings, final))
    records = list(kept.values())
    report = Report(
        corpus=name,
        root=str(root),
        options=_shown(rules, options, copy),
        found=len(clips),
        kept=_kept(records),
        dropped=tally_of(judge.dropped),
        warnings={kind: msgspec.structs.asdict(t) for kind, t in sorted(judge.warnings.items())},
        unknown_characters=dict(judge.unknown.most_common()),
        shared_speakers=shared_speakers(records),
        notes=notes.lines,
    )
    if copy != "none" and hasattr(os, "sync"):
        os.sync()  # once for all copies: one by one would take 3 ms each
    _write(out, report, judge, records)
    _remove_copies([task for number, task in enumerate(tasks) if number not in kept])
    return report


def _adapter(name: str, root: Path, options: AdapterOptions) -> Adapter:
    """Return the adapter if the folder has its layout, or say which one it has."""
    adapter = ADAPTERS.get(name)
    if adapter is None:
        raise DataError(f"expected a corpus among {', '.join(ADAPTERS)}, got {name!r}")
    foreign = sorted(options.given() - adapter.options)
    if foreign:
        taken = f"takes {', '.join(sorted(adapter.options))}" if adapter.options else "has none"
        raise DataError(f"{name} knows no option {', '.join(foreign)}; it {taken}")
    if not root.exists():
        raise DataError(f"expected the folder of a corpus, found nothing at {root}; check the path")
    try:
        if adapter.fits(root):
            return adapter
        others = [a.name for a in ADAPTERS.values() if _fits(a, root)]
        inside = _listing(root)
    except OSError as error:
        raise _unreadable(root, error) from error
    hint = f"it looks like: edge-imputer data prepare {others[0]} {root} OUT" if others else (
        "name the folder that holds these; `edge-imputer data list` shows every layout"
    )  # fmt: skip
    raise DataError(f"{root}: expected {adapter.layout}; found {inside}; {hint}")


def _fits(adapter: Adapter, root: Path) -> bool:
    try:
        return adapter.fits(root)
    except NotADirectoryError:
        return False


def _listing(root: Path) -> str:
    """What a folder holds, in a few names."""
    if root.is_file():
        return "a file"
    with os.scandir(root) as entries:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in entries)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more if names else "an empty folder"


def _unreadable(root: Path, error: OSError) -> DataError:
    named = error.filename if error.filename is not None else root
    return DataError(
        f"{named} could not be read ({error.strerror or error}); check that the disk is there and "
        "that you may read it"
    )


def _read_corpus(
    adapter: Adapter, root: Path, options: AdapterOptions, notes: Notes
) -> list[SourceClip]:
    try:
        clips = list(adapter.clips(root.absolute(), options, notes))
    except OSError as error:
        raise _unreadable(root, error) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{root}: a text file is not UTF-8 ({error}); convert it") from error
    if not clips:
        raise DataError(f"{root}: expected {adapter.layout}; found no clip in it")
    return with_valid(clips, options, notes)


def _tasks(clips: list[SourceClip], out: Path, copy: Copy, rate: int) -> list[ClipTask]:
    """What is to be checked; clips whose copies would have one name get a number."""
    taken: dict[str, int] = {}
    tasks = []
    for clip in clips:
        target = None
        if copy != "none":
            parts = [_UNSAFE.sub("_", part).strip(". ") or "_" for part in clip.name.split("/")]
            stem = "/".join(parts)
            n = taken[stem.lower()] = taken.get(stem.lower(), 0) + 1
            target = str(out / "audio" / (f"{stem}.{copy}" if n == 1 else f"{stem}~{n}.{copy}"))
        tasks.append(
            ClipTask(
                audio=clip.audio,
                offset_s=clip.offset_s,
                duration_s=clip.duration_s,
                command=clip.command,
                copy_to=target,
                copy_rate=rate if target else None,
            )
        )
    return tasks


def _findings(
    tasks: list[ClipTask], journal: Journal, workers: int, progress: Callable[[int, int], None]
) -> list[Finding]:
    """Look up or make the finding of every clip, in order."""
    try:
        synced_ns = _synced_ns(journal.path.parent)
        open_tasks = [task for task in tasks if not _is_done(task, journal, synced_ns)]
        done = len(tasks) - len(open_tasks)
        progress(done, len(tasks))
        for found in check_all(open_tasks, workers):
            journal.add(found)
            done += len(found)
            progress(done, len(tasks))
    finally:
        journal.close()
    return [journal.findings[key_of(task)] for task in tasks]


def _is_done(task: ClipTask, journal: Journal, synced_ns: int) -> bool:
    """Whether a clip's finding is known, and its copy on disk.

    A copy that is later than the last manifest may have been in a power cut: it is read.
    """
    try:
        finding = journal.known(task, stamp(task))
        if finding is None or task.copy_to is None or finding.problem is not None:
            return finding is not None
        copy = Path(task.copy_to)
        state = copy.stat()
        if state.st_size != finding.copy_size:
            return False
        safe = state.st_mtime_ns <= synced_ns
        return safe or copy_digest(copy.read_bytes()) == finding.copy_digest
    except OSError:
        return False  # looked at again, which says what is wrong with the file


def _synced_ns(out: Path) -> int:
    """When the last manifest was written, and all copies were on disk; 0: there is none."""
    manifest = out / MANIFEST_NAME
    return manifest.stat().st_mtime_ns if manifest.is_file() else 0


def _final(task: ClipTask, finding: Finding, out: Path, relative: bool) -> Finding:
    """What a record says of a clip's audio: of the copy where there is one."""
    if task.copy_to is not None:
        return msgspec.structs.replace(
            finding,
            audio=os.path.relpath(task.copy_to, out),
            offset_s=0.0,
            sample_rate=task.copy_rate or finding.sample_rate,
        )
    if relative:
        audio = Path(finding.audio)
        audio = audio.parent.resolve() / audio.name  # `..` of a link leads from what it links to
        return msgspec.structs.replace(finding, audio=os.path.relpath(audio, out.resolve()))
    return finding


def _remove_copies(tasks: list[ClipTask]) -> None:
    """Copies of clips that were dropped after all."""
    for task in tasks:
        if task.copy_to is not None:
            Path(task.copy_to).unlink(missing_ok=True)


def _shown(rules: Rules, options: AdapterOptions, copy: Copy) -> dict[str, Any]:
    """Options that were set, for the report."""
    shown = {**vars(options), **msgspec.structs.asdict(rules), "copy": copy}
    return {key: value for key, value in shown.items() if value not in (None, (), False)}


def _kept(records: list[ClipRecord]) -> dict[str, dict[str, float]]:
    kept: dict[str, dict[str, float]] = {}
    for split in ("train", "valid", "test"):
        chosen = [r for r in records if r.split == split]
        kept[split] = {
            "clips": len(chosen),
            "hours": round(sum(r.duration_s for r in chosen) / 3600, 4),
            "speakers": len({r.speaker for r in chosen} - {"unknown"}),
        }
    return kept


def _write(out: Path, report: Report, judge: Judge, records: list[ClipRecord]) -> None:
    """Write the results; the manifest last, so that where it is, the others are."""
    with writing(out):
        dropped = b"".join(msgspec.json.encode(d) + b"\n" for d in judge.dropped)
        write_atomically(out / "dropped.jsonl", dropped)
        text = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
        write_atomically(out / "report.json", text)
        if records:
            write_manifest(out / MANIFEST_NAME, records)
    if not records:
        reasons = ", ".join(f"{r} {t['clips']}" for r, t in report.dropped.items())
        raise DataError(
            f"{report.root}: none of {report.found} clips can be used ({reasons}); see "
            f"{out / 'dropped.jsonl'}"
        )
