"""What a selection found, left out and chose, for people and programs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from edge_imputer.files import replacing
from edge_imputer.specs import KeywordModelSpec

from ..data.manifest import read_rows
from ..data.verdicts import Tally
from .choosing import Choice, Rows
from .folder import PoolRows
from .model import OpenedModel
from .score_log import Entry
from .score_table import ScoreTable
from .strategies import STRATEGIES

if TYPE_CHECKING:
    from .selecting import SelectionOptions

LEFT_OUT_NAME = "left_out.jsonl"
REPEATED = "repeated"
N_SHOWN = 20  # clips a reason on the page


class Place(msgspec.Struct, frozen=True, gc=False):
    """What a row of a pool says of its audio."""

    audio: str
    offset_s: float = 0.0


class LeftOutClip(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A line of ``left_out.jsonl``."""

    row: int
    audio: str
    offset_s: float
    seconds: float
    reason: str
    detail: str


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """Clips, and how long they are."""

    clips: int
    hours: float


class SelectionReport(msgspec.Struct, frozen=True, kw_only=True):
    """``report.json``.

    Attributes
    ----------
    model, model_identity : str
    keywords : of a keyword model; else none
    strategy, meaning : what clips were ranked by
    settings : of the strategy
    rank_by : "per_second" or "score"
    seed : int
    pool : its file
    all, scored, chosen : clips and hours
    left_out : by reason
    budget_hours : float
    cut : the lowest score among the chosen
    warnings : what to know
    command : how to do it again
    """

    model: str
    model_identity: str
    keywords: Sequence[str]
    strategy: str
    meaning: str
    settings: Mapping[str, Any]
    rank_by: str
    seed: int
    pool: str
    all: Counted
    scored: Counted
    chosen: Counted
    left_out: Mapping[str, Tally]
    budget_hours: float
    cut: float
    warnings: Sequence[str]
    command: str


class LeftOut:
    """Counts and lists the clips without a score while the scores are read; a context.

    Attributes
    ----------
    tallies : by reason
    shown : of every reason the first clips
    seconds : of all clips, those with a score too
    """

    def __init__(self, pool: Path, folder: Path) -> None:
        self.tallies: dict[str, Tally] = {}
        self.shown: dict[str, list[LeftOutClip]] = {}
        self.n_clips = 0
        self.seconds = 0.0
        self._places: Iterator[Place] = read_rows(pool, msgspec.json.Decoder(Place).decode)
        self._path = folder / LEFT_OUT_NAME
        self._replacing = replacing(self._path)
        self._file: BinaryIO | None = None

    def __enter__(self) -> LeftOut:
        self._file = self._replacing.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._replacing.__exit__(kind, error, traceback)

    def see(self, entry: Entry) -> None:
        """Take the next row of the pool."""
        place = next(self._places)
        self.n_clips += 1
        self.seconds += entry.seconds
        if not entry.reason:
            return
        clip = LeftOutClip(
            row=entry.row,
            audio=place.audio,
            offset_s=place.offset_s,
            seconds=entry.seconds,
            reason=entry.reason,
            detail=entry.detail,
        )
        self.add(clip)
        assert self._file is not None  # it is open while scores are read
        self._file.write(msgspec.json.encode(clip) + b"\n")

    def add(self, clip: LeftOutClip) -> None:
        """Count a clip."""
        detail = f": {clip.detail}" if clip.detail else ""
        self.tallies.setdefault(clip.reason, Tally()).add(f"{clip.audio}{detail}", clip.seconds)
        shown = self.shown.setdefault(clip.reason, [])
        if len(shown) < N_SHOWN:
            shown.append(clip)

    def add_repeats(self, pool: PoolRows, table: ScoreTable, repeats: Rows) -> None:
        """Count and list the clips that repeat chosen ones, see `Choice.repeats`."""
        with self._path.open("ab") as file:
            for row, of in repeats.tolist():
                record = pool[row]
                clip = LeftOutClip(
                    row=row,
                    audio=record.audio,
                    offset_s=record.offset_s,
                    seconds=float(table.seconds[row]),
                    reason=REPEATED,
                    detail=f"the recording of {pool[of].audio}",
                )
                self.add(clip)
                file.write(msgspec.json.encode(clip) + b"\n")

    def ordered(self) -> dict[str, Tally]:
        """Tallies, the most frequent reason first."""
        return dict(sorted(self.tallies.items(), key=lambda item: (-item[1].clips, item[0])))


def report_of(
    options: SelectionOptions,
    model: OpenedModel,
    table: ScoreTable,
    choice: Choice,
    left_out: LeftOut,
    notes: Sequence[str],
) -> SelectionReport:
    """Put a selection's figures together."""
    chosen = Counted(clips=len(choice.rows), hours=choice.seconds / 3600)
    warnings = list(notes)
    repeated = float(table.seconds[choice.repeats[:, 0]].sum(dtype=float))
    if options.budget_s >= choice.scored_s - repeated:
        warnings.append(
            f"the budget of {options.budget_s / 3600:g} h is larger than what the pool has, "
            f"{chosen.hours:.3g} h that can be labelled: all of it is chosen, in its order"
        )
    if not options.trained_on:
        warnings.append(
            "no --trained-on MANIFEST: clips of the pool that the model was trained on "
            f"({model.data}) are not looked for"
        )
    return SelectionReport(
        model=os.fspath(options.model),
        model_identity=model.identity,
        keywords=model.spec.keywords if isinstance(model.spec, KeywordModelSpec) else (),
        strategy=options.strategy,
        meaning=STRATEGIES[options.strategy].meaning,
        settings=dict(options.settings),
        rank_by=options.rank_by,
        seed=options.seed,
        pool=os.fspath(options.pool),
        all=Counted(clips=left_out.n_clips, hours=left_out.seconds / 3600),
        scored=Counted(clips=choice.n_scored, hours=choice.scored_s / 3600),
        chosen=chosen,
        left_out=left_out.ordered(),
        budget_hours=options.budget_s / 3600,
        cut=choice.cut,
        warnings=warnings,
        command=options.command,
    )
