"""What a run is trained and validated on: the clips of a corpus that its task can use."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_imputer.errors import AudioError, DataError, InfeasibleTargetError, TokenError
from edge_imputer.specs import ModelSpec

from ..data import Clip, ClipRecord, Featurizer, Manifest, joined_sequences
from ..data.cache import ClipCache
from ..data.loader import ClipsInMemory, ManifestSource, Source
from ..data.records import HARD_LABEL, NOISE_LABEL
from ..recipe import DataSection

log = logging.getLogger(__name__)

IN_MEMORY_S = 7200.0  # of a split: 0.5 GB; a longer one is read clip by clip
NAMED = 10  # clips left out that the log names one by one


@dataclass(frozen=True)
class Material:
    """The clips of one split, without any decision of a model's.

    Attributes
    ----------
    source : Source
        Reads them.
    durations : float32, (N,), seconds
    records : callable
        Their records, in order; from the file each time, where there are many.
    """

    source: Source
    durations: npt.NDArray[np.float32]
    records: Callable[[], Iterator[ClipRecord]]

    def __len__(self) -> int:
        return len(self.durations)

    def column(self, name: str) -> tuple[list[Any], npt.NDArray[np.int32]]:
        """A key's distinct values, and every row's position among them."""
        numbers: dict[Any, int] = {}
        codes = np.zeros(len(self), np.int32)
        for row, record in enumerate(self.records()):
            codes[row] = numbers.setdefault(getattr(record, name), len(numbers))
        return list(numbers), codes

    def where(self, rows: npt.NDArray[Any]) -> Material:
        """Some of the rows: a mask, or their numbers."""
        if isinstance(self.source, ManifestSource):
            manifest = self.source.manifest.where(rows)
            return of_manifest(manifest, self.source.sample_rate, self.source.cache)
        assert isinstance(self.source, ClipsInMemory)
        chosen: list[int] = (np.flatnonzero(rows) if rows.dtype == bool else rows).tolist()
        clips = [self.source.clips[row] for row in chosen]
        return of_clips(clips, self.source.sample_rate)

    def clips(self, n: int = 0) -> list[Clip]:
        """Clips in memory, all or the first `n`; those that cannot be decoded are left out."""
        found = []
        for row in range(len(self)):
            try:
                found.append(self.source.clip(row))
            except AudioError as error:
                log.warning("left out %s: %s", self.source.name(row), error)
            if n and len(found) == n:
                break
        return found


def of_clips(clips: Sequence[Clip], sample_rate: int) -> Material:
    """Material that is in memory already."""
    source = ClipsInMemory(clips, sample_rate=sample_rate)
    return Material(source, source.durations, lambda: (clip.record for clip in clips))


def of_manifest(manifest: Manifest, sample_rate: int, cache: ClipCache | None = None) -> Material:
    """Material that is read when it is drawn."""
    source = ManifestSource(manifest, sample_rate=sample_rate, cache=cache)
    return Material(source, manifest.durations, lambda: iter(manifest))


def read_corpus(
    folder: Path, section: DataSection, sample_rate: int
) -> tuple[Material, Material | None]:
    """The train and valid splits of a corpus folder; None where it has no valid split.

    A split of up to two hours is decoded at once: what cannot be decoded is known before the run.

    Raises
    ------
    DataError
        No manifest, an unreadable one, no training clip, none that can be decoded, or nobody of
        the name that is to be held out.
    """
    whole = Manifest.open(folder)
    splits, codes = whole.column("split")
    usable = np.ones(len(whole), bool)
    if section.hold_out is not None:
        speakers, spoken_by = whole.column("speaker")
        if section.hold_out not in speakers:
            known = ", ".join(sorted(map(str, speakers))[:20])
            raise DataError(f"data.hold_out: expected one of {known}, got {section.hold_out!r}")
        usable = spoken_by != speakers.index(section.hold_out)
    cache = ClipCache(section.cache) if section.cache else None
    found: dict[str, Material | None] = {}
    for name in ("train", "valid"):
        rows = usable & (codes == splits.index(name)) if name in splits else np.zeros(0, bool)
        material = None
        if rows.any():
            material = of_manifest(whole.where(rows), sample_rate, cache)
            if material.durations.sum() <= IN_MEMORY_S:
                material = _decoded(material, folder, name, sample_rate)
        found[name] = material
    if found["train"] is None:
        raise DataError(f"{folder}: expected at least one clip of the split 'train', got none")
    warn_of_shared_speakers(found["train"], found["valid"])
    return found["train"], found["valid"]


def _decoded(material: Material, folder: Path, split: str, sample_rate: int) -> Material:
    clips = material.clips()
    if not clips:
        raise DataError(
            f"{folder}: none of the {len(material)} clips of the split {split!r} could be decoded"
        )
    return of_clips(clips, sample_rate)


def warn_of_shared_speakers(train: Material, valid: Material | None) -> None:
    """Say so where people are both trained and validated on: the measures will be too good."""
    if valid is None:
        return
    known = set(train.column("speaker")[0]) - {"unknown"}
    shared = sorted(known & set(valid.column("speaker")[0]))
    if shared:
        log.warning(
            "%d speakers are in the train and in the valid split (%s%s): what is measured on valid "
            "is better than it will be for people who were not heard in training",
            len(shared),
            ", ".join(map(str, shared[:3])),
            ", ..." if len(shared) > 3 else "",
        )


def characters_of(train: Material) -> str:
    """Every character of the training transcripts, sorted, the space among them."""
    found = {" "}
    capitals = False
    for record in train.records():
        found.update(record.text or "")
        capitals |= record.text is not None and record.text != record.text.lower()
    if capitals:
        log.warning("some transcripts have capital letters: they become tokens of their own")
    return "".join(sorted(found))


def usable_speech(
    material: Material, featurizer: Featurizer, *, fastest: float, split: str, hard: bool = False
) -> Material:
    """The clips whose transcript the model can write in their time; what is left out is said.

    With `hard`, also the hard negatives that have no transcript, see `is_hard`.

    Raises
    ------
    DataError
        None is left.
    """
    keep = np.zeros(len(material), bool)
    n_transcribed = 0
    reasons: Counter[str] = Counter()
    rate = featurizer.spec.features.sample_rate
    for row, record in enumerate(material.records()):
        if record.label == NOISE_LABEL:
            reasons["noise"] += 1
            continue
        if record.text is None:
            keep[row] = hard and is_hard(record)
            if not keep[row]:
                reasons["no transcript"] += 1
            continue
        n_samples = int(material.durations[row] * rate / fastest)
        try:
            featurizer.targets(" ".join(record.text.split()), featurizer.n_features(n_samples))
        except (InfeasibleTargetError, TokenError) as error:
            unknown = isinstance(error, TokenError)
            reasons["unknown characters" if unknown else "too short for the transcript"] += 1
            if sum(reasons.values()) <= NAMED:
                log.warning("left out %s: %s", record.audio, error)
            continue
        keep[row] = True
        n_transcribed += 1
    _say_left_out(reasons, len(keep), split)
    if not n_transcribed:
        said = ", ".join(f"{n} with {reason}" for reason, n in reasons.items())
        raise DataError(
            f"expected at least one {split} clip with a transcript that it is long enough for, got "
            f"none of {len(keep)} ({said})"
        )
    return material if keep.all() else material.where(keep)


def is_hard(record: ClipRecord) -> bool:
    """Whether of a clip nothing is known but that no keyword is said in it."""
    return record.text is None and record.label == HARD_LABEL


def hard_rows(material: Material) -> npt.NDArray[np.bool_]:
    """Which clips are such, (N,)."""
    return np.fromiter(map(is_hard, material.records()), bool, len(material))


def _say_left_out(reasons: Counter[str], n: int, split: str) -> None:
    bad = {reason: count for reason, count in reasons.items() if reason != "noise"}
    if bad:
        said = ", ".join(f"{reason}: {count}" for reason, count in bad.items())
        log.warning("%s: left out %d of %d clips (%s)", split, sum(bad.values()), n, said)


def labelled(material: Material) -> Material:
    """The clips with a label, without noises to mix in."""
    values, codes = material.column("label")
    wanted = [code for code, value in enumerate(values) if value not in (None, NOISE_LABEL)]
    keep = np.isin(codes, wanted)
    if not keep.any():
        raise DataError(
            "expected clips with a label, the word that is said in them, for a keyword task; got "
            f"none of {len(material)}"
        )
    return material if keep.all() else material.where(keep)


def validation_clips(
    valid: Material, featurizer: Featurizer, section: DataSection, *, seed: int
) -> list[Clip]:
    """What a run is validated on: clips as they are, or joined to sequences of one speaker."""
    if section.valid_joined == (1, 1) or not isinstance(featurizer.spec, ModelSpec):
        return valid.clips(section.valid_utterances)
    return joined_sequences(
        valid.clips(),
        section.valid_utterances,
        sample_rate=featurizer.spec.features.sample_rate,
        seed=seed,
        length=section.valid_joined,
    )
