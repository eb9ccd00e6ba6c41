"""``edge-imputer active-study``: what active learning would be worth on a labelled corpus."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import __version__
from ..errors import MissingExtraError, SpecError, TrainingStopped, require
from ..files import write_atomically
from ..measured import Interval
from .select import chosen_device, default_workers
from .show import say, table
from .steps import corpus_folder

if TYPE_CHECKING:
    from edge_imputer.train.active.study_report import StudyReport

REPORT_NAME = "study.json"
PLOT_NAME = "study.png"


def active_study(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A TOML file, or a shipped recipe's name.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled corpus with the splits train and test; the digits if unset."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything made.")] = Path(
        "build/active-study"
    ),
    strategy: Annotated[
        list[str] | None, typer.Option(help="To compare; repeatable; all of them if unset.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each strategy, seeds 1 to this.")] = 3,
    base_hours: Annotated[
        float | None,
        typer.Option(
            help="Labelled from the start, at random; if unset 0.5, less of a small corpus. 0 with "
            "--init-from: that model is the first to choose."
        ),
    ] = None,
    round_hours: Annotated[
        float | None,
        typer.Option(help="Labelled in every round; if unset 0.5, less of a small corpus."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that clips are chosen.")] = 3,
    init_from: Annotated[
        Path | None,
        typer.Option(help="Checkpoint or bundle that every training begins from, such as yours."),
    ] = None,
    noises: Annotated[
        Path | None, typer.Option(help="Corpus of noise, pieces of which are hidden in the pool.")
    ] = None,
    noise_share: Annotated[float, typer.Option(help="Of the pool's seconds, with --noises.")] = 0.1,
    filtered: Annotated[
        bool, typer.Option("--filter", help="Leave out silence and noise first, as select does.")
    ] = False,
    continued: Annotated[
        int,
        typer.Option(min=0, help="Train the last round's model on by so many updates; 0: anew."),
    ] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe; repeatable."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read clips; by the cores if unset.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Of choosing: cpu or cuda; a GPU if there is one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Simulate active learning on a corpus whose labels are known: is it worth it, and which kind.

    The labels of the split train are hidden. A model is trained on a few hours of it; then each
    strategy chooses, round by round, what to label next, and a model is trained on what is
    labelled. Errors on the split test by the hours labelled are its curve; areas under the curves,
    hours to random's last value and intervals go to OUT/study.json, a plot to OUT/study.png.

    A study that was interrupted goes on where it was: give the same command again.

    Examples:

    `edge-imputer active-study digits`

    `edge-imputer active-study ctc --data corpora/talk --noises corpora/kitchen --seeds 5
    --strategy random --strategy egl-sampled --strategy egl-diversity`

    `edge-imputer active-study adapt.toml --data corpora/field --init-from best.ckpt --base-hours 0`
    """
    require("lightning", extra="train")
    require("jiwer", extra="train")
    import msgspec

    from edge_imputer.train.active import STRATEGIES
    from edge_imputer.train.active.study import StudyPlan, hours_for, run_study
    from edge_imputer.train.active.study_corpus import StudyCorpus
    from edge_imputer.train.active.study_report import study_report
    from edge_imputer.train.recipe import read_recipe
    from edge_imputer.train.tasks import KeywordTaskSpec

    wanted = read_recipe(recipe, settings or ())
    if wanted.data.hold_out is not None:
        raise SpecError("data.hold_out: expected none in a study, whose test is the split test")
    words = isinstance(wanted.task, KeywordTaskSpec)
    corpus = StudyCorpus(
        corpus_folder(data),
        words=words,
        noises=None if noises is None else corpus_folder(noises),
        noise_share=noise_share if noises is not None else 0.0,
    )
    hours = hours_for(corpus, rounds)
    plan = StudyPlan(
        strategies=tuple(strategy or STRATEGIES),
        seeds=tuple(range(1, seeds + 1)),
        base_hours=hours if base_hours is None else base_hours,
        round_hours=hours if round_hours is None else round_hours,
        rounds=rounds,
        noise_share=noise_share if noises is not None else 0.0,
        filtered=filtered,
        continued=continued,
    )
    plan.check()
    try:
        found = run_study(
            wanted,
            corpus,
            plan,
            out,
            init_from=init_from,
            device=chosen_device(device),
            workers=default_workers(workers),
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except TrainingStopped as stopped:
        typer.echo(f"stopped: {stopped}; the same command goes on", err=True)
        raise typer.Exit(stopped.exit_code) from None
    report = study_report(
        found,
        what="missed keywords" if words else "wer",
        command=shlex.join(["edge-imputer", *sys.argv[1:]]),
        created_by=f"edge-imputer {__version__}",
    )
    encoded = msgspec.json.encode(report)
    write_atomically(out / REPORT_NAME, msgspec.json.format(encoded, indent=2) + b"\n")
    _draw(report, out / PLOT_NAME)
    if as_json:
        print(encoded.decode())
        return
    print_study(report)
    print(out / REPORT_NAME)


def _draw(report: StudyReport, path: Path) -> None:
    try:
        require("matplotlib", extra="report")
    except MissingExtraError as error:
        say(f"no picture: {error}")
        return
    from edge_imputer.train.active.study_plot import study_plot

    write_atomically(path, study_plot(report))


def print_study(report: StudyReport) -> None:
    """Tables for people."""
    points = [curve.points for curve in report.curves]
    columns = [f"{point.hours:.2f} h" for point in points[0]]
    table(
        f"{report.what}, %, by the hours labelled; the mean of the seeds",
        ["strategy", *columns, "area", "noise"],
        [
            (
                curve.strategy,
                *(f"{100 * point.rate:.2f}" for point in curve.points),
                f"{100 * curve.area:.2f}",
                f"{curve.points[-1].noise:.1f}",
            )
            for curve in report.curves
        ],
    )
    compared = [curve for curve in report.curves if curve.against_random is not None]
    if compared:
        table(
            "Against random at equal hours: errors, %, with 95 % intervals",
            ["strategy", "all rounds", "p", "by seed", "last round", "hours to random's last"],
            [
                (
                    curve.strategy,
                    _percent(curve.against_random.relative),
                    f"{curve.against_random.p_value:.3f}",
                    " ".join(f"{100 * change:+.1f}" for change in curve.against_random.by_seed),
                    _percent(curve.against_random.relative_at_end),
                    "never" if curve.hours_to_random is None else f"{curve.hours_to_random:.2f}",
                )
                for curve in compared
                if curve.against_random is not None
            ],
        )
    say(f"Lowest area: {report.best}")


def _percent(change: Interval) -> str:
    return f"{100 * change.value:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
