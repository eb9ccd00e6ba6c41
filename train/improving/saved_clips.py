"""Clips that a deployed spotter saved: read, checked, and some of them kept back for measuring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_imputer.clip_checks import ClipTask, Finding
from edge_imputer.errors import DataError, SpecError

from ..data import ClipRecord
from ..data.checking import check_all
from ..data.records import HARD_LABEL, UNKNOWN_SPEAKER
from ..data.transcripts import normalize
from ..data.verdicts import SILENT_DB

ENDINGS = {".wav", ".flac", ".ogg"}
MIN_S = 0.2  # no word is shorter
KEEP_BACK = 1 / 3


@dataclass(frozen=True)
class SavedClip:
    """One clip.

    Attributes
    ----------
    path : absolute
    keyword : what was said and missed; None: nothing, and the spotter fired
    digest : of its samples
    duration_s, sample_rate : its own
    kept_back : whether it is measured on, and never trained on
    """

    path: Path
    keyword: str | None
    digest: str
    duration_s: float
    sample_rate: int
    kept_back: bool

    def record(self) -> ClipRecord:
        """The clip as a manifest's row: a false fire is a hard negative."""
        return ClipRecord(
            audio=str(self.path),
            text=self.keyword,
            speaker=UNKNOWN_SPEAKER,
            split="test" if self.kept_back else "train",
            duration_s=self.duration_s,
            sample_rate=self.sample_rate,
            label=self.keyword or HARD_LABEL,
        )


@dataclass
class Collection:
    """What the folders held.

    Attributes
    ----------
    clips : those that can be used, false fires first
    bad : file and what is wrong with it
    repeated : file and the one it is a copy of
    """

    clips: list[SavedClip] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, str] = field(default_factory=dict)

    def some(self, *, misses: bool, kept_back: bool) -> list[SavedClip]:
        """Those of one kind, to train on or kept back."""
        return [
            c for c in self.clips if (c.keyword is not None) == misses and c.kept_back == kept_back
        ]


def collect(
    false_fires: Path | None,
    misses: Path | None,
    keywords: Sequence[str],
    *,
    keyword: str | None = None,
    keep_back: float = KEEP_BACK,
) -> Collection:
    """Read the folders of saved clips.

    A clip is kept back by the hash of its samples alone: it stays so, however many others come,
    and whatever it is called.

    Parameters
    ----------
    false_fires : folder of clips without a keyword in which the spotter fired
    misses : folder of clips in which it should have; in a folder for each keyword, or all of one
    keywords : those of the model
    keyword : what misses say that are in no keyword's folder; the only one where there is one
    keep_back : share of the clips, about

    Raises
    ------
    DataError
        No folder, no clip that can be used, or none left to train on; or nothing says what a miss
        says.
    SpecError
        A keyword that the model does not have, or a share outside 0 to 1.
    """
    if not 0 <= keep_back < 1:
        raise SpecError(f"expected a share from 0 to below 1 to keep back, got {keep_back}")
    if keyword is not None and keyword not in keywords:
        raise SpecError(f"expected one of the keywords {', '.join(keywords)}, got {keyword!r}")
    said: dict[Path, str | None] = {}
    if false_fires is not None:
        said |= dict.fromkeys(_audio_files(false_fires), None)
    if misses is not None:
        for path in _audio_files(misses):
            said[path] = _said(path, misses, keywords, keyword)
    tasks = [ClipTask(audio=str(path)) for path in said]
    findings = [finding for chunk in check_all(tasks, workers=1) for finding in chunk]
    found = Collection()
    usable = list(_usable(zip(said.items(), findings, strict=True), found))
    _sort_out(usable, keep_back, found)
    folders = " and ".join(str(one) for one in (false_fires, misses) if one is not None)
    if not found.clips:
        why = next(iter(found.bad.items()), ("", ""))
        raise DataError(f"none of the clips in {folders} can be used; {why[0]}: {why[1]}")
    if all(clip.kept_back for clip in found.clips):
        raise DataError(
            f"all {len(found.clips)} clips in {folders} are kept back for measuring, none is left "
            "to train on; collect more, or give --keep-back 0 and measure on others"
        )
    return found


def _audio_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"expected a folder of saved clips at {folder}, found none")
    # Not the files themselves: a link says what the folder it is in says.
    files = sorted(p for p in folder.resolve().rglob("*") if p.suffix.lower() in ENDINGS)
    if not files:
        endings = ", ".join(sorted(ENDINGS))
        raise DataError(f"{folder}: expected clips ({endings}), found none")
    return files


def _said(path: Path, folder: Path, keywords: Sequence[str], keyword: str | None) -> str:
    """The keyword of a miss: its folder's name, or what was given, or the only one there is."""
    names = {_plain(word): word for word in keywords}
    inside = path.relative_to(folder.resolve()).parts[:-1]
    named = names.get(_plain(inside[0])) if inside else None
    if named is None:
        named = keyword or (keywords[0] if len(keywords) == 1 else None)
    if named is None:
        raise DataError(
            f"{path}: which keyword does it say? Put misses into a folder for each keyword "
            f"({', '.join(keywords)}), or give --keyword WORD"
        )
    return named


def _plain(name: str) -> str:
    return normalize(name.replace("_", " "), remove_punctuation=True)


def _usable(
    clips: Iterator[tuple[tuple[Path, str | None], Finding]], found: Collection
) -> Iterator[tuple[Path, str | None, Finding]]:
    """Clips without a fault; the others are told apart in `found.bad`."""
    for (path, keyword), finding in clips:
        fault = None
        if finding.problem is not None:
            fault = f"{finding.problem}: {finding.detail}"
        elif finding.duration_s < MIN_S:
            fault = f"too short: {finding.duration_s:.2f} s, expected {MIN_S} s or more"
        elif finding.peak_db < SILENT_DB:
            fault = f"silent: peak {finding.peak_db:.0f} dBFS"
        if fault is None:
            yield path, keyword, finding
        else:
            found.bad[str(path)] = fault


def _sort_out(
    usable: Sequence[tuple[Path, str | None, Finding]], keep_back: float, found: Collection
) -> None:
    """Take each recording once; one that is said to be both kinds is none of them."""
    kinds: dict[str, set[str | None]] = {}
    for _, keyword, finding in usable:
        kinds.setdefault(finding.digest, set()).add(keyword)
    first: dict[str, Path] = {}
    for path, keyword, finding in usable:
        if len(kinds[finding.digest]) > 1:
            names = sorted(word or "a false fire" for word in kinds[finding.digest])
            found.bad[str(path)] = f"the same recording is said to be {' and '.join(names)}"
        elif finding.digest in first:
            found.repeated[str(path)] = str(first[finding.digest])
        else:
            first[finding.digest] = path
            found.clips.append(
                SavedClip(
                    path=path,
                    keyword=keyword,
                    digest=finding.digest,
                    duration_s=finding.duration_s,
                    sample_rate=finding.sample_rate,
                    kept_back=int(finding.digest[:8], 16) < keep_back * 2**32,
                )
            )
