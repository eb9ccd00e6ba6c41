"""Lhotse manifests, in and out, through lhotse itself (the extra ``lhotse``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_imputer.errors import DataError, require

from ..manifest import Manifest
from ..records import UNKNOWN_SPEAKER, ClipRecord, Split
from .base import Adapter, AdapterOptions, Notes, SourceClip, draw_split, split_of_name

_ENDINGS = (".jsonl", ".jsonl.gz")
_KINDS = ("cuts", "recordings", "supervisions")


def clips(root: Path, options: AdapterOptions, notes: Notes) -> Iterator[SourceClip]:
    """Cuts where there are any; else each supervision of each recording."""
    lhotse = _lhotse()
    cuts = _files(root, "cuts")
    if cuts:
        notes.add(f"read: {', '.join(f.name for f in cuts)}")
        for file in cuts:
            for cut in lhotse.load_manifest_lazy(file):
                yield from _cut_clips(file, cut, options)
        return
    for recordings in _files(root, "recordings"):
        supervisions = recordings.with_name(recordings.name.replace("recordings", "supervisions"))
        if not supervisions.is_file():
            raise DataError(f"expected {supervisions.name} beside {recordings}, found none")
        notes.add(f"read: {recordings.name}, {supervisions.name}")
        by_id = {r.id: r for r in lhotse.load_manifest_lazy(recordings)}
        for supervision in lhotse.load_manifest_lazy(supervisions):
            if supervision.recording_id not in by_id:
                raise DataError(
                    f"{supervisions}: {supervision.id} is of the recording "
                    f"{supervision.recording_id}, which is not in {recordings.name}"
                )
            recording = by_id[supervision.recording_id]
            yield _clip(recordings, recording, supervision, supervision.start,
                        supervision.duration, supervision.id, options)  # fmt: skip


def _cut_clips(file: Path, cut: Any, options: AdapterOptions) -> Iterator[SourceClip]:
    """One clip a cut, or one a supervision where a cut holds several."""
    if type(cut).__name__ != "MonoCut":
        raise DataError(
            f"{file}: {cut.id} is a {type(cut).__name__}, expected MonoCut; save mixed or padded "
            "cuts as audio first (CutSet.save_audios)"
        )
    if cut.recording is None:
        raise DataError(f"{file}: {cut.id} has features but no recording; audio is needed")
    if len(cut.supervisions) <= 1:
        supervision = cut.supervisions[0] if cut.supervisions else None
        yield _clip(file, cut.recording, supervision, cut.start, cut.duration, cut.id, options)
        return
    for supervision in cut.supervisions:
        start = cut.start + supervision.start
        yield _clip(file, cut.recording, supervision, start, supervision.duration,
                    supervision.id, options)  # fmt: skip


def _clip(
    file: Path,
    recording: Any,
    supervision: Any,
    start_s: float,
    duration_s: float,
    name: str,
    options: AdapterOptions,
) -> SourceClip:
    source = recording.sources[0]
    if source.type not in ("file", "command"):
        raise DataError(
            f"{file}: the audio of {recording.id} is of type {source.type!r}, expected 'file'"
        )
    if source.type == "command":
        raise DataError(
            f"{file}: {recording.id} is a command to run; save the audio as files first "
            "(RecordingSet or CutSet.save_audios)"
        )
    if recording.transforms:
        raise DataError(
            f"{file}: {recording.id} has transforms (speed, volume); save it as audio first"
        )
    custom = (getattr(supervision, "custom", None) or {}) if supervision is not None else {}
    speaker = (supervision.speaker if supervision is not None else None) or UNKNOWN_SPEAKER
    whole = start_s == 0 and abs(duration_s - recording.duration) < 1e-3
    known = speaker != UNKNOWN_SPEAKER
    split = split_of_name(str(custom.get("split", ""))) or _split_of(file)
    return SourceClip(
        audio=str(file.parent.resolve() / source.source),
        name=f"{file.name.split('.')[0]}/{name}",
        text=supervision.text if supervision is not None else None,
        split=split or draw_split(speaker if known else name, options),
        speaker=speaker,
        label=custom.get("label"),
        engine=custom.get("engine"),
        offset_s=start_s,
        duration_s=None if whole else duration_s,
        stated_s=recording.duration if whole else None,
    )


def _split_of(file: Path) -> Split | None:
    """A split among the words of a name such as ``librispeech_cuts_train-clean-100.jsonl.gz``."""
    words = file.name.split(".")[0].split("_")
    return next((split for split in map(split_of_name, words) if split), None)


def export_lhotse(manifest: Manifest, out: Path) -> dict[str, int]:
    """Write a corpus as lhotse's recordings, supervisions and cuts, a set for each split.

    The audio stays where it is; its paths become absolute. Labels, engines and splits go into the
    supervisions' custom fields, from which `clips` reads them back.

    Returns
    -------
    written : clips by split

    Raises
    ------
    MissingExtraError
        lhotse is not installed.
    """
    lhotse = _lhotse()
    from contextlib import ExitStack

    out.mkdir(parents=True, exist_ok=True)
    writers: dict[str, tuple[Any, Any, Any]] = {}
    recorded: set[str] = set()
    written: dict[str, int] = {}
    with ExitStack() as stack:
        for index, record in enumerate(manifest):
            if record.split not in writers:
                sets = (lhotse.RecordingSet, lhotse.SupervisionSet, lhotse.CutSet)
                paths = [out / f"{k}_{record.split}.jsonl.gz" for k in _IN_ORDER]
                writers[record.split] = tuple(
                    stack.enter_context(kind.open_writer(path, overwrite=True))
                    for kind, path in zip(sets, paths, strict=True)
                )
            _write(lhotse, manifest.folder, index, record, writers[record.split], recorded)
            written[record.split] = written.get(record.split, 0) + 1
    return written


_IN_ORDER = ("recordings", "supervisions", "cuts")


def _write(
    lhotse: Any,
    folder: Path,
    index: int,
    record: ClipRecord,
    writers: tuple[Any, Any, Any],
    recorded: set[str],
) -> None:
    audio = str((folder / record.audio).resolve())
    recording = _recording(lhotse, audio, record.split)
    custom = {"label": record.label, "engine": record.engine, "split": record.split}
    name = f"{index:08d}-{Path(audio).stem}"
    supervision = lhotse.SupervisionSegment(
        id=name,
        recording_id=recording.id,
        start=record.offset_s,
        duration=min(record.duration_s, recording.duration - record.offset_s),
        text=record.text,
        speaker=record.speaker,
        custom={key: value for key, value in custom.items() if value is not None},
    )
    cut = lhotse.MonoCut(
        id=name,
        start=supervision.start,
        duration=supervision.duration,
        channel=0,
        recording=recording,
        supervisions=[supervision.with_offset(-record.offset_s)],
    )
    if recording.id not in recorded:
        recorded.add(recording.id)
        writers[0].write(recording)
    writers[1].write(supervision)
    writers[2].write(cut)


def _recording(lhotse: Any, audio: str, split: str) -> Any:
    from edge_imputer.audio import audio_length

    n_samples, rate = audio_length(audio)
    return lhotse.Recording(
        id=f"{split}:{audio}",
        sources=[lhotse.AudioSource(type="file", channels=[0], source=audio)],
        sampling_rate=rate,
        num_samples=n_samples,
        duration=n_samples / rate,
    )


def _lhotse() -> Any:
    return require("lhotse", extra="lhotse")


def _files(root: Path, kind: str) -> list[Path]:
    """Manifests of one kind, or the file itself if it is one."""
    found = [root] if root.is_file() else sorted(root.iterdir())
    return [f for f in found if kind in f.name and f.name.endswith(_ENDINGS)]


def fits(root: Path) -> bool:
    """Cuts, or recordings with supervisions."""
    n = {kind: len(_files(root, kind)) for kind in _KINDS}
    return bool(n["cuts"] or (n["recordings"] and n["supervisions"]))


LHOTSE = Adapter(
    "lhotse",
    "lhotse manifests (needs edge-imputer[lhotse])",
    "*cuts*.jsonl(.gz), or *recordings*.jsonl(.gz) with *supervisions*.jsonl(.gz)",
    clips,
    fits,
)
