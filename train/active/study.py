"""Active learning on a corpus whose labels are known: what each strategy would have been worth.

The labels are hidden. A model is trained on a base drawn at random; then, for every strategy, round
by round, the model of the round before chooses clips, their labels are shown, and a model is
trained on all that is labelled: from random weights, or from a model that there is already, such as
the one that is in use where the pool comes from. What each gets wrong on the split test, by the
hours labelled, is the strategy's curve.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_imputer.errors import DataError, SpecError
from edge_imputer.files import write_atomically

from ..recipe import Recipe
from ..tasks import KeywordTaskSpec
from ..trainer import read_corpus, read_initial, train
from .junk import JunkRules
from .model import open_model
from .score_log import Shard
from .selecting import Selection, SelectionOptions
from .strategies import STRATEGIES
from .study_corpus import StudyCorpus, rows_chosen
from .study_journal import BASE, Measured, StudyJournal
from .study_measure import count_errors

JOURNAL_NAME = "study.jsonl"
MODEL_NAME = "model.txt"  # the path of a finished run's result
HOURS = 0.5
UNFILTERED = JunkRules(min_s=1e-3, max_s=1e6, keep=("silent", "noise", "clipped"))

Say = Callable[[str], None]


class StudyPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is studied.

    Attributes
    ----------
    strategies : names of `STRATEGIES`
        "random" is what the others are compared with.
    seeds : of the base, of what is drawn, and of training
    base_hours : float
        Labelled from the start. It can be 0 where there is a model to begin from, which then is
        the first to choose.
    round_hours : float
        Labelled in every round.
    rounds : int
    noise_share : float
        Of the pool's seconds, noise that is hidden in it; see `StudyCorpus`.
    filtered : bool
        Whether silence, noise and clipped clips are left out before anything is scored, as
        `select` does.
    continued : int
        Updates by which every round trains the model of the round before on; 0: each model is
        trained anew, by the recipe: from random weights, or from the model to begin from.
    """

    strategies: tuple[str, ...] = tuple(STRATEGIES)
    seeds: tuple[int, ...] = (1, 2, 3)
    base_hours: float = HOURS
    round_hours: float = HOURS
    rounds: int = 3
    noise_share: float = 0.0
    filtered: bool = False
    continued: int = 0

    def check(self) -> None:
        """Raise `SpecError` on what cannot be studied."""
        unknown = [name for name in self.strategies if name not in STRATEGIES]
        if unknown or len(set(self.strategies)) != len(self.strategies) or not self.strategies:
            raise SpecError(
                f"strategies: expected different ones of {', '.join(STRATEGIES)}, got "
                f"{', '.join(self.strategies) or 'none'}"
            )
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds or min(self.seeds) < 0:
            raise SpecError(f"seeds: expected different ones of 0 or more, got {self.seeds}")
        if not (self.base_hours >= 0 and self.round_hours > 0 and self.rounds >= 1):
            raise SpecError(
                "expected hours of 0 or more for the base and above 0 for a round, and 1 round or "
                f"more, got {self.base_hours}, {self.round_hours} and {self.rounds}"
            )
        if not 0 <= self.noise_share < 1 or self.continued < 0:
            raise SpecError(
                "expected a share of noise of 0 or more and below 1, and 0 updates or more, got "
                f"{self.noise_share} and {self.continued}"
            )


def run_study(
    recipe: Recipe,
    corpus: StudyCorpus,
    plan: StudyPlan,
    out: Path,
    *,
    init_from: Path | None = None,
    device: str = "cpu",
    workers: int = 0,
    say: Say = lambda _: None,
) -> list[Measured]:
    """Carry out a study, or what is left of it.

    Parameters
    ----------
    recipe : Recipe
        Which characters or keywords a model knows is set by the corpus, where it does not say.
    corpus : StudyCorpus
    plan : StudyPlan
    out : Path
        Its journal, and the models that are still needed.
    init_from : Path or None
        A checkpoint or bundle that every training begins from, in place of random weights.
    device, workers : of the selection; training takes what it finds
    say : called with what is done next

    Returns
    -------
    list of Measured
        For every seed, that of the base, then the rounds of every strategy.

    Raises
    ------
    DataError
        The journal is another study's; the corpus is too small for the plan.
    """
    plan.check()
    if not plan.base_hours and init_from is None:
        raise SpecError(
            "expected a base of more than 0 hours, or a model to begin from, got neither: nobody "
            "could choose"
        )
    needed = plan.base_hours + plan.rounds * plan.round_hours
    if needed > corpus.hours:
        raise SpecError(
            f"expected hours to label within the corpus' {corpus.hours:.2f}, got {needed:.2f}: "
            "give fewer rounds, or less for each"
        )
    recipe = with_vocabulary(recipe, corpus)
    recipe.check()
    found: list[Measured] = []
    purpose = {
        "plan": msgspec.to_builtins(plan),
        "recipe": msgspec.to_builtins(recipe),
        "corpus": corpus.identity,
        "init": None if init_from is None else read_initial(init_from).sha256,
    }
    with StudyJournal(out / JOURNAL_NAME, purpose) as journal:
        for seed in plan.seeds:
            runs = _Runs(recipe, corpus, plan, out, seed, journal, init_from, device, workers, say)
            found += runs.carry_out()
    return found


def hours_for(corpus: StudyCorpus, rounds: int) -> float:
    """For the base and for every round, where nobody says: half of the corpus stays unlabelled."""
    return min(HOURS, corpus.hours / 2 / (rounds + 1))


def with_vocabulary(recipe: Recipe, corpus: StudyCorpus) -> Recipe:
    """The recipe with what all labels hold: so outputs do not depend on which are labelled."""
    if isinstance(recipe.task, KeywordTaskSpec):
        if recipe.task.keywords:
            return recipe
        task = msgspec.structs.replace(recipe.task, keywords=corpus.keywords())
        return msgspec.structs.replace(recipe, task=task)
    if recipe.data.characters:
        return recipe
    data = msgspec.structs.replace(recipe.data, characters=corpus.characters())
    return msgspec.structs.replace(recipe, data=data)


class _Runs:
    """The rounds of one seed."""

    def __init__(
        self,
        recipe: Recipe,
        corpus: StudyCorpus,
        plan: StudyPlan,
        out: Path,
        seed: int,
        journal: StudyJournal,
        init_from: Path | None,
        device: str,
        workers: int,
        say: Say,
    ) -> None:
        run = msgspec.structs.replace(recipe.run, seed=seed)
        self.recipe = msgspec.structs.replace(recipe, run=run)
        self.corpus, self.plan, self.seed, self.journal = corpus, plan, seed, journal
        self.init_from = init_from
        self.folder = out / "runs" / f"seed-{seed}"
        self._select_on: dict[str, Any] = {"device": device, "workers": workers}
        self._say = say

    def carry_out(self) -> list[Measured]:
        base = self.journal.get(BASE, self.seed, 0)
        strategies = [s for s in self.plan.strategies if not self._is_done(s)]
        if base is None or strategies:
            rows, model = self._begin()
            base = base or self._measure(BASE, 0, rows, model)
            for strategy in strategies:
                self._go_through(strategy, rows, model)
            shutil.rmtree(self.folder)
        kept = [
            self.journal.get(s, self.seed, n) for s in self.plan.strategies for n in self._rounds
        ]
        return [base, *(measured for measured in kept if measured is not None)]

    def _begin(self) -> tuple[list[int], Path]:
        """What is labelled from the start, and the first model that chooses."""
        if not self.plan.base_hours:
            assert self.init_from is not None  # `run_study` sees to it
            return [], self.init_from
        rows = self.corpus.base(self.seed, self.plan.base_hours)
        return rows, self._train(BASE, 0, rows, None)

    @property
    def _rounds(self) -> range:
        return range(1, self.plan.rounds + 1)

    def _is_done(self, strategy: str) -> bool:
        return self.journal.get(strategy, self.seed, self.plan.rounds) is not None

    def _go_through(self, strategy: str, rows: Sequence[int], model: Path) -> None:
        """All rounds of a strategy; of those that were measured only the last model is needed."""
        labelled = list(rows)
        for number in self._rounds:
            done = self.journal.get(strategy, self.seed, number)
            if done is not None:
                labelled = list(done.rows)
                if self.journal.get(strategy, self.seed, number + 1) is None:
                    model = self._trained(strategy, number)
                continue
            labelled += self._choose(strategy, number, labelled, model)
            model = self._train(strategy, number, labelled, model)
            self._measure(strategy, number, labelled, model)
            for old in (f"{strategy}-{number - 1}", f"{strategy}-{number}-choice"):
                shutil.rmtree(self.folder / old, ignore_errors=True)
        shutil.rmtree(self.folder / f"{strategy}-{self.plan.rounds}", ignore_errors=True)

    def _choose(
        self, strategy: str, number: int, labelled: Sequence[int], model: Path
    ) -> list[int]:
        """What the model would have labelled next."""
        self._say(f"seed {self.seed}, {strategy}, round {number}: choosing")
        folder = self.folder / f"{strategy}-{number}-choice"
        pool = folder / "pool.jsonl"
        self.corpus.write_pool(pool, labelled)
        target = self.plan.base_hours + number * self.plan.round_hours
        options = SelectionOptions(
            model=model,
            pool=pool,
            out=folder / "chosen.jsonl",
            budget_s=3600 * (target - self._hours(labelled)),
            strategy=strategy,
            seed=self.seed,
            rules=JunkRules() if self.plan.filtered else UNFILTERED,
            **self._select_on,
        )
        selection = Selection(options)
        selection.score(Shard())
        selection.select()
        return rows_chosen(options.out)

    def _trained(self, strategy: str, number: int) -> Path:
        """The model of a round that was measured."""
        note = self.folder / f"{strategy}-{number}" / MODEL_NAME
        if not note.is_file():
            raise DataError(
                f"{note.parent}: expected the model that was measured last, found none; to go on "
                f"without it, take its seed's lines out of {self.journal.path}"
            )
        return Path(note.read_text("utf-8"))

    def _train(self, strategy: str, number: int, rows: Sequence[int], before: Path | None) -> Path:
        """A model of these labels; of a run that was interrupted, the rest of it."""
        self._say(
            f"seed {self.seed}, {strategy}, round {number}: training on {self._hours(rows):.2f} h"
        )
        folder = self.folder / f"{strategy}-{number}"
        self.corpus.write_labelled(folder / "corpus", rows)
        recipe, init_from = self.recipe, self.init_from
        if self.plan.continued and before is not None:
            run = msgspec.structs.replace(recipe.run, updates=self.plan.continued)
            recipe, init_from = msgspec.structs.replace(recipe, run=run), before
        material, valid = read_corpus(folder / "corpus", recipe.data, recipe.features.sample_rate)
        model = train(
            material,
            valid,
            recipe,
            folder / "run",
            data_name=f"{len(rows)} clips chosen by {strategy}",
            resume=True,
            init_from=init_from,
            progress=False,
        )
        write_atomically(folder / MODEL_NAME, str(model).encode())
        return model

    def _hours(self, rows: Sequence[int]) -> float:
        return float(self.corpus.durations[list(rows)].sum() / 3600)

    def _measure(self, strategy: str, number: int, rows: Sequence[int], model: Path) -> Measured:
        errors, totals = count_errors(open_model(model).task, self.corpus.test)
        measured = Measured(
            strategy=strategy,
            seed=self.seed,
            round=number,
            hours=round(self._hours(rows), 6),
            n_noise=sum(row >= self.corpus.n_clips for row in rows),
            rows=tuple(rows),
            errors=tuple(errors),
            totals=tuple(totals),
        )
        self.journal.put(measured)
        self._say(
            f"seed {self.seed}, {strategy}, round {number}: {100 * measured.rate:.2f} % wrong "
            f"after {measured.hours:.2f} h"
        )
        return measured
