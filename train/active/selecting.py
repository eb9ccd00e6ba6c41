"""`score` a pool, or a shard of it, and `select` what to label: the steps of the command."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from edge_imputer.errors import DataError, SpecError

from ..data import Featurizer, Manifest
from ..data.manifest import MANIFEST_NAME, find_manifest
from .choosing import CANDIDATES, Choice, Choosing, choose
from .folder import PoolRows, pool_file
from .junk import JunkFilter, JunkRules
from .label_tasks import Export
from .model import OpenedModel, open_model
from .pool import PoolBlocks
from .score_log import ScoreLog, Shard, is_complete
from .score_table import RankBy, ScoreTable, shards_in
from .scores import Scorer, open_scorer
from .scoring import score_pool
from .selection_report import LeftOut, SelectionReport, report_of
from .strategies import STRATEGIES
from .trained_on import TrainedOn
from .writing import Outputs

Progress = Callable[[str, int, int], None]
WAIT_S = 1.0


@dataclass(frozen=True)
class SelectionOptions:
    """What is asked for.

    Attributes
    ----------
    model, pool, out : Path
        See `open_model`; see `pool_file`; the file of chosen rows to write.
    budget_s : float
    strategy : a name of `STRATEGIES`
    settings : of `ScoreOptions`
    seed : int
    rules : what is asked of clips
    trained_on : manifests
    rank_by : "per_second" or "score"
    candidates : see `Choosing`
    batch_s : most seconds of a batch, padding included
    workers : processes that read clips
    device : "cpu" or "cuda"
    export : for a labelling tool
    embed : put the audio into the page
    command : for the report
    """

    model: Path
    pool: Path
    out: Path
    budget_s: float
    strategy: str = "egl-diversity"
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    rules: JunkRules = field(default_factory=JunkRules)
    trained_on: Sequence[Path] = ()
    rank_by: RankBy = "per_second"
    candidates: int = CANDIDATES
    batch_s: float = 60.0
    workers: int = 0
    device: str = "cpu"
    export: Export | None = None
    embed: bool = False
    command: str = ""

    @property
    def folder(self) -> Path:
        """Where everything but the chosen rows is: OUT without its ending."""
        return self.out.with_suffix("")

    def check(self) -> None:
        """Raise `SpecError` on what cannot be."""
        self.rules.check()
        Choosing(self.budget_s, candidates=self.candidates).check()
        if self.strategy not in STRATEGIES:
            raise SpecError(
                f"strategy: expected one of {', '.join(STRATEGIES)}, got {self.strategy!r}"
            )
        strategy = STRATEGIES[self.strategy]
        if self.rank_by == "score" and strategy.needs_embedding and not strategy.weighted:
            raise SpecError(
                f"--rank-by score: {self.strategy} ranks nothing, it chooses by differences of "
                "what a second teaches; leave it out"
            )
        if self.out.suffix != ".jsonl":
            raise SpecError(f"--out: expected a file such as to_label.jsonl, got {self.out}")
        if not self.batch_s > 0:
            raise SpecError(f"expected batches of more than 0 s, got {self.batch_s:g}")


class Selection:
    """A selection, opened: its model, its pool, and what scores hold for.

    Parameters
    ----------
    options : SelectionOptions
    progress : callable
        Called with what is done, and the clips done and in all.

    Raises
    ------
    EdgeImputerError
        Anything that is asked for or given is not as it should be.
    """

    def __init__(self, options: SelectionOptions, progress: Progress | None = None) -> None:
        options.check()
        _check_folder(options)
        self.options = options
        self._progress = progress or (lambda *_: None)
        self.model: OpenedModel = open_model(options.model)
        self.scorer: Scorer = open_scorer(
            options.strategy, self.model.task, seed=options.seed, **options.settings
        )
        self.notes: list[str]
        self.pool_file, self.notes = pool_file(options.pool, options.folder)
        self.n_rows = len(Manifest.open(self.pool_file))
        self.purpose: dict[str, Any] = {
            "model": self.model.identity,
            "pool": _sha256(self.pool_file),
            "strategy": options.strategy,
            "settings": dict(options.settings),
            "seed": options.seed,
            "rules": [options.rules.min_s, options.rules.max_s, sorted(options.rules.keep)],
            "trained on": [_sha256(find_manifest(path)) for path in options.trained_on],
        }

    def score(self, shard: Shard) -> None:
        """Score a shard of the pool, or what is left of it."""
        options = self.options
        with ScoreLog(options.folder, shard, self.purpose, self.n_rows) as scores:
            if scores.rows_done == scores.n_rows:
                return
            blocks = self.blocks(scores.blocks, self._trained_on())
            self.model.task.to(torch.device(options.device))
            score_pool(
                blocks,
                self.scorer,
                scores,
                device=options.device,
                workers=options.workers,
                progress=lambda done, total: self._progress("scoring clips", done, total),
            )

    def blocks(self, numbers: Sequence[int], trained_on: TrainedOn | None) -> PoolBlocks:
        """Blocks of the pool, looked at and ready for the network."""
        return PoolBlocks(
            Manifest.open(self.pool_file),
            numbers,
            Featurizer(self.model.spec),
            JunkFilter(self.options.rules),
            trained_on,
            self.options.batch_s,
        )

    def wait(self, of: int) -> None:
        """Wait until all of so many shards are scored, by other processes."""
        for index in range(1, of + 1):
            file = Shard(index, of).file(self.options.folder)
            while not is_complete(file, self.purpose):
                time.sleep(WAIT_S)

    def select(self) -> SelectionReport:
        """Join the shards, choose, and write everything.

        Raises
        ------
        DataError
            A shard is missing or not finished, or there is nothing to choose.
        """
        options = self.options
        left_out = LeftOut(self.pool_file, options.folder)
        table = self.scores(left_out)
        choice = self.choose(table)
        shown = [clip.row for clips in left_out.shown.values() for clip in clips]
        repeats = choice.repeats.ravel()
        pool = PoolRows(self.pool_file, self.n_rows, choice.rows, choice.below, repeats, shown)
        left_out.add_repeats(pool, table, choice.repeats)
        report = report_of(options, self.model, table, choice, left_out, self.notes)
        Outputs(options, pool, table, choice, left_out, report).write()
        return report

    def scores(self, left_out: LeftOut | None = None) -> ScoreTable:
        """Join the shards; clips without a score are listed."""
        files = shards_in(self.options.folder, self.purpose)
        rank_by = self.options.rank_by
        with left_out or nullcontext():
            see = None if left_out is None else left_out.see
            return ScoreTable.read(files, self.purpose, self.n_rows, rank_by=rank_by, see=see)

    def choose(self, table: ScoreTable) -> Choice:
        """Choose by the scores, and write nothing."""
        options = self.options
        how = Choosing(
            options.budget_s,
            diverse=self.scorer.needs_embedding,
            weighted=self.scorer.weighted,
            seed=options.seed,
            candidates=options.candidates,
        )
        return choose(table, how)

    def _trained_on(self) -> TrainedOn | None:
        paths = self.options.trained_on
        if not paths:
            return None
        manifests = [Manifest.open(path) for path in paths]
        trained = TrainedOn(
            manifests,
            lambda done, total: self._progress("listening to the training set", done, total),
            self.options.folder / _kept_name(manifests),
        )
        if trained.unreadable:
            self.notes.append(
                f"{trained.unreadable} clips of the training set cannot be read: copies of them "
                "in the pool are known by their path only"
            )
        return trained


def _check_folder(options: SelectionOptions) -> None:
    """Refuse to write over a corpus: over a manifest that is read, or into its folder."""
    given = [options.pool, *options.trained_on]
    read = {path.resolve() for path in given} | {(path / MANIFEST_NAME).resolve() for path in given}
    if options.out.resolve() in read:
        raise DataError(f"expected a file of its own to write, got {options.out}, which is read")
    folder = options.folder.resolve()
    inside = any(path.resolve().is_relative_to(folder) for path in given)
    if inside or (folder / MANIFEST_NAME).exists():
        raise DataError(
            f"--out {options.out} writes into the folder {options.folder}, where a corpus is; give "
            "another name"
        )


def _kept_name(manifests: Sequence[Manifest]) -> str:
    """The file of fingerprints of the training set, by its manifests and where they are."""
    digest = hashlib.sha256()
    for manifest in manifests:
        digest.update(f"{_sha256(manifest.path)} {manifest.folder.resolve()}\n".encode())
    return f"trained-on-{digest.hexdigest()[:16]}.prints"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
