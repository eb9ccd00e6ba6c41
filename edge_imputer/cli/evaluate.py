"""``edge-imputer evaluate``: what a model gets wrong, with intervals, on data nobody tuned on."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ..bundle import Bundle
from ..claims import at_most, operating_point_lines, rate_text
from ..errors import SpecError, require
from .listening import RevisionsOption, ScheduleOption, parse_schedule
from .show import percent, say, table
from .steps import corpus_path

if TYPE_CHECKING:
    from edge_imputer.train.evaluation import (
        CommandReport,
        Comparison,
        KeywordReport,
        Options,
        Report,
        TranscriptReport,
    )

JOURNAL_NAME = "journal.jsonl"
JSON_NAME = "evaluation.json"
HTML_NAME = "report.html"


class Task(str, Enum):
    """What is evaluated."""

    transcripts = "transcripts"
    keywords = "keywords"
    slots = "slots"


OPTIONS_OF = {
    Task.transcripts: {"--compare", "--language", "--schedule", "--write"},
    Task.keywords: {"--negatives", "--keyword", "--threshold", "--write"},
    Task.slots: {"--compare", "--language", "--schedule", "--threshold"},
}


class SplitName(str, Enum):
    """Splits of a corpus."""

    train = "train"
    valid = "valid"
    test = "test"


def evaluate(
    model: Annotated[Path, typer.Argument(help="Bundle folder, or a checkpoint (.ckpt).")],
    data: Annotated[
        list[Path],
        typer.Option("--data", "-d", help="Corpus folder or manifest; repeatable, kept apart."),
    ],
    task: Annotated[
        Task | None,
        typer.Option(
            help="transcripts; keywords, the default if one of their options is used; or slots, "
            "the default where rows have slots and no texts."
        ),
    ] = None,
    negatives: Annotated[
        list[Path] | None,
        typer.Option("--negatives", "-n", help="Audio without keywords; repeatable."),
    ] = None,
    keyword: Annotated[
        list[str] | None,
        typer.Option("--keyword", "-w", help="What to listen for; repeatable. The model's own."),
    ] = None,
    noise: Annotated[
        Path | None, typer.Option(help="Recordings of noise to mix in, of the same split.")
    ] = None,
    snr: Annotated[
        str | None, typer.Option(help="Signal-to-noise ratios in dB, such as 20,10,5.")
    ] = None,
    split: Annotated[SplitName, typer.Option(help="Split to report on.")] = SplitName.test,
    tune_split: Annotated[
        SplitName, typer.Option(help="Split to choose the threshold on.")
    ] = SplitName.valid,
    target_fa_per_hour: Annotated[
        float, typer.Option(help="False alarms an hour to choose the threshold for.")
    ] = 0.5,
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Take this threshold instead of choosing one."),
    ] = None,
    refractory: Annotated[
        float, typer.Option(min=0.0, help="Least seconds between two events of a keyword.")
    ] = 1.0,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Key of the manifests to break rates down by, such as speaker."),
    ] = None,
    synthetic: Annotated[
        list[Path] | None,
        typer.Option(help="One of the data sets that is generated speech and does not say so."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="Another model, for a paired comparison of transcripts or slots."),
    ] = None,
    backend: Annotated[
        str, typer.Option("--backend", "-b", help="onnx, onnx-float, litert or native.")
    ] = "onnx",
    steps: Annotated[
        int | None, typer.Option("--steps", "-k", min=1, help="Passes of the head a chunk.")
    ] = None,
    schedule: ScheduleOption = None,
    revisions: RevisionsOption = None,
    language: Annotated[
        Path | None,
        typer.Option(help="What may be said: .jsgf, .txt or .arpa; for slots a grammar, .jsgf."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of noise and resampling.")] = 0,
    out: Annotated[
        Path, typer.Option(help="Folder for the journal, evaluation.json and report.html.")
    ] = Path("build/evaluate"),
    html: Annotated[bool, typer.Option("--html", help="Write OUT/report.html.")] = False,
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Put the operating point, or with --task transcripts the word error rate, into "
            "the bundle and its card.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for a program to read.")
    ] = False,
) -> None:
    """Count a model's errors by condition, with 95 % intervals; events, not frames.

    Transcripts: word and character error rates. Slots: commands understood with a grammar, and
    refused below a confidence chosen on the valid split. Keywords: the share missed against false
    alarms an hour, at a threshold chosen there. Real and synthetic speech are never pooled. A run
    that was interrupted goes on where it was: OUT/journal.jsonl keeps what each clip gave.

    Examples:

    `edge-imputer evaluate build/demo/bundle --data real/fsdd --by speaker --html`

    `edge-imputer evaluate build/train/last.ckpt --data commands --steps 1 --revisions 1`

    `edge-imputer evaluate bundle --data real/coffee_commands --language coffee.jsgf --html`

    `edge-imputer evaluate bundle --data commands --task transcripts --write`

    `edge-imputer evaluate build/demo/bundle -d real/fsdd -n real/coffee_commands -w seven --html`

    `edge-imputer evaluate bundle -d words -n speech -w seven --noise noise --snr 20,10,5 --write`
    """
    require("torch", extra="train")
    require("jiwer", extra="train")
    if html:
        require("matplotlib", extra="report")
    from edge_imputer.train.evaluation import (
        Journal,
        Options,
        spot_and_count,
        transcribe_and_count,
        understand_and_count,
        write_html,
        write_json,
    )

    options = Options(
        model=model,
        data=[corpus_path(path) for path in data],
        negatives=[corpus_path(path) for path in negatives or ()],
        synthetic=[corpus_path(path) for path in synthetic or ()],
        split=split.value,
        tune_split=tune_split.value,
        noise=None if noise is None else corpus_path(noise),
        snrs_db=_ratios(snr),
        by=by or (),
        backend=backend,
        n_steps=steps,
        schedule=parse_schedule(schedule, steps),
        revisions=revisions,
        language=language,
        seed=seed,
        command=_command(),
        progress=sys.stderr.isatty(),
    )
    if task is None:
        task = _natural_task(options, bool(negatives or keyword or write), threshold)
    given = {
        "--negatives": negatives,
        "--keyword": keyword,
        "--write": write,
        "--threshold": threshold is not None,
        "--compare": compare,
        "--language": language,
        "--schedule": schedule,
    }
    _check_options(task, given)
    if write:
        _check_write(model, task, options)
    report: Report
    with Journal(out / JOURNAL_NAME) as journal:
        if task is Task.transcripts:
            report = transcribe_and_count(options, journal, compare=compare)
        elif task is Task.slots:
            report = understand_and_count(options, journal, threshold=threshold, compare=compare)
        else:
            report = spot_and_count(
                options,
                journal,
                keywords=keyword,
                target_fa_per_hour=target_fa_per_hour,
                threshold=threshold,
                refractory_s=refractory,
            )
    figures = write_json(out / JSON_NAME, report)
    page = write_html(out / HTML_NAME, report) if html else None
    if write:
        _write_into_bundle(model, report)
    if as_json:
        print(figures.read_text("utf8"), end="")
        return
    print_report(report)
    say(f"Figures: {figures}")
    if page:
        say(f"Report: {page}")


def _natural_task(options: Options, for_keywords: bool, threshold: float | None) -> Task:
    """What the data and the options ask for, where no task is named."""
    from edge_imputer.train.evaluation import tells_commands_only

    if not for_keywords and tells_commands_only(options.open(options.data, options.split)):
        return Task.slots
    return Task.keywords if for_keywords or threshold is not None else Task.transcripts


def _check_options(task: Task, given: Mapping[str, object]) -> None:
    """Refuse options that were given (are true) and belong to other tasks."""
    for option, value in given.items():
        tasks = [one.value for one in OPTIONS_OF if option in OPTIONS_OF[one]]
        if value and task.value not in tasks:
            raise SpecError(
                f"{option} belongs to {' and '.join(tasks)}; leave it out, or use --task {tasks[0]}"
            )


def _ratios(text: str | None) -> list[float]:
    """Parse ``20,10,5``."""
    if text is None:
        return []
    try:
        ratios = [float(part) for part in text.split(",")]
    except ValueError:
        ratios = []
    if not ratios or not all(map(isfinite, ratios)):
        raise SpecError(f"expected --snr such as 20,10,5, got {text!r}")
    return ratios


def _command() -> str:
    """The command line that is running, for the report: without the folder of the program."""
    return shlex.join(["edge-imputer", *sys.argv[1:]])


def _check_write(model: Path, task: Task, options: Options) -> None:
    """Refuse to write what a bundle cannot say, before anything is measured."""
    if model.is_file():
        raise SpecError(f"{model} is a checkpoint; only a bundle carries figures")
    own = (options.n_steps, options.schedule, options.revisions, options.language)
    if task is Task.transcripts and own != (None,) * 4:
        raise SpecError(
            "expected the bundle's own passes and no language with --write: its card says what it "
            "does by itself; leave out --steps, --schedule, --revisions and --language"
        )


def _write_into_bundle(model: Path, report: Report) -> None:
    """Put what a report says of a bundle into its manifest and card."""
    from edge_imputer.export.bundle import NO_METRICS, update_metrics, update_operating_point
    from edge_imputer.train.evaluation import KeywordReport, TranscriptReport

    if isinstance(report, KeywordReport):
        update_operating_point(model, report.operating_point)
        return
    assert isinstance(report, TranscriptReport)  # the options make it so
    clean = [r for r in report.rows if r.condition.snr_db is None and r.condition.by is None]
    if len(clean) != 1:
        named = ", ".join(str(row.condition) for row in clean)
        raise SpecError(
            f"expected one data set of one kind of speech with --write, got {named}; nothing was "
            "written into the bundle"
        )
    metrics = msgspec.structs.replace(NO_METRICS, data=str(clean[0].condition), wer=clean[0].wer)
    update_metrics(model, metrics, Bundle.load(model).manifest.keyword_threshold)


def print_report(report: Report) -> None:
    """Tables for people."""
    from edge_imputer.train.evaluation import CommandReport, KeywordReport

    for note in (*report.run.notes, *(f"left out: {line}" for line in report.run.skipped)):
        say(f"note: {note}")
    if isinstance(report, KeywordReport):
        _print_keywords(report)
    elif isinstance(report, CommandReport):
        _print_commands(report)
    else:
        _print_transcripts(report)


def _print_transcripts(report: TranscriptReport) -> None:
    table(
        "Error rates (95 % intervals, bootstrap over utterances)",
        ["data", "clips", "word error rate", "character error rate", "exact"],
        [
            (r.condition, r.n_clips, percent(r.wer), percent(r.cer), percent(r.exact))
            for r in report.rows
        ],
    )
    _print_comparisons(report.comparisons, "Word error rate")


def _print_comparisons(comparisons: Sequence[Comparison], what: str) -> None:
    if not comparisons:
        return
    table(
        f"{what} minus the other model's (95 %, paired bootstrap)",
        ["data", "difference", "interval", "p"],
        [
            (
                f"{c.condition}, minus {c.other}",
                f"{100 * c.difference.value:+.2f} %",
                f"{100 * c.difference.low:+.2f} to {100 * c.difference.high:+.2f}",
                f"{c.p_value:.3f}",
            )
            for c in comparisons
        ],
    )


def _print_commands(report: CommandReport) -> None:
    from edge_imputer.train.evaluation.commands import refusal_line, share_or_none

    table(
        "Commands understood (exact 95 % intervals)",
        ["data", "clips", "right", "intent", "refused", "right of those taken"],
        [
            (
                r.condition,
                r.n_clips,
                percent(r.right),
                share_or_none(r.intent),
                percent(r.refused),
                share_or_none(r.accepted_right),
            )
            for r in report.rows
        ],
    )
    say(refusal_line(report.refusal))
    table(
        "All slots (95 % intervals, bootstrap over clips)",
        ["data", "precision", "recall", "F1"],
        [
            (r.condition, *map(share_or_none, (r.slots.precision, r.slots.recall, r.slots.f1)))
            for r in report.rows
        ],
    )
    table(
        "By slot",
        ["data", "slot", "F1", "wrong / missing / spurious", "in the grammar"],
        [
            (
                r.condition,
                r.slot,
                share_or_none(r.scores.f1),
                f"{r.scores.wrong} / {r.scores.missing} / {r.scores.spurious}",
                share_or_none(r.sayable),
            )
            for r in report.by_slot
        ],
    )
    _print_comparisons(report.comparisons, "Commands right")


def _print_keywords(report: KeywordReport) -> None:
    table(
        "Keywords at the operating point (exact 95 % intervals)",
        ["data", "missed", "false alarms in the same noise"],
        [
            (
                r.condition,
                percent(r.frr),
                "" if r.false_alarms is None else rate_text(r.false_alarms),
            )
            for r in report.misses
        ],
    )
    table(
        "False alarms",
        ["negatives", "an hour", "95 % upper limit"],
        [
            (r.condition, rate_text(r.false_alarms), at_most(r.false_alarms.upper))
            for r in report.false_alarms
        ],
    )
    for line in operating_point_lines(report.operating_point):
        say(line)
