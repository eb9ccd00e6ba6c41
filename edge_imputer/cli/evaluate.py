"""``edge-imputer evaluate``: what a model gets wrong, with intervals, on data nobody tuned on."""

from __future__ import annotations

import shlex
import sys
from enum import Enum
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..claims import at_most, operating_point_lines, rate_text
from ..errors import SpecError, require
from .show import percent, say, table
from .steps import corpus_path

if TYPE_CHECKING:
    from edge_imputer.train.evaluation import KeywordReport, Report, TranscriptReport

JOURNAL_NAME = "journal.jsonl"
JSON_NAME = "evaluation.json"
HTML_NAME = "report.html"


class Task(str, Enum):
    """What is evaluated."""

    transcripts = "transcripts"
    keywords = "keywords"


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
        typer.Option(help="transcripts; or keywords, the default if one of their options is used."),
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
        Path | None, typer.Option(help="Another model, for a paired comparison of transcripts.")
    ] = None,
    backend: Annotated[
        str, typer.Option("--backend", "-b", help="onnx, onnx-float, litert or native.")
    ] = "onnx",
    steps: Annotated[
        int | None, typer.Option("--steps", "-k", min=1, help="Passes of the head a chunk.")
    ] = None,
    language: Annotated[
        Path | None,
        typer.Option(help="What may be said, for transcripts: .jsgf, .txt or .arpa."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of noise and resampling.")] = 0,
    out: Annotated[
        Path, typer.Option(help="Folder for the journal, evaluation.json and report.html.")
    ] = Path("build/evaluate"),
    html: Annotated[bool, typer.Option("--html", help="Write OUT/report.html.")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Put the operating point into the bundle.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for a program to read.")
    ] = False,
) -> None:
    """Count a model's errors by condition, with 95 % intervals; events, not frames.

    Transcripts: word and character error rates. Keywords: the share missed against false alarms an
    hour, at a threshold chosen on the valid split. Real and synthetic speech are never pooled. A
    run that was interrupted goes on where it was: OUT/journal.jsonl keeps what each clip gave.

    Examples:

    `edge-imputer evaluate build/demo/bundle --data real/fsdd --by speaker --html`

    `edge-imputer evaluate build/demo/bundle -d real/fsdd -n real/coffee_commands -w seven --html`

    `edge-imputer evaluate bundle -d words -n speech -w seven --noise noise --snr 20,10,5 --write`
    """
    require("torch", extra="train")
    require("jiwer", extra="train")
    if html:
        require("matplotlib", extra="report")
    asked = bool(negatives or keyword or threshold is not None or write)
    task = task or (Task.keywords if asked else Task.transcripts)
    if task is Task.transcripts and asked:
        raise SpecError(
            "--negatives, --keyword, --threshold and --write belong to keywords; "
            "leave them out, or use --task keywords"
        )
    if write and model.is_file():
        raise SpecError(f"{model} is a checkpoint; only a bundle carries an operating point")
    if task is Task.keywords and (compare or language):
        raise SpecError("--compare and --language belong to transcripts; leave them out")
    from edge_imputer.train.evaluation import (
        Journal,
        Options,
        spot_and_count,
        transcribe_and_count,
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
        language=language,
        seed=seed,
        command=_command(),
        progress=sys.stderr.isatty(),
    )
    report: Report
    with Journal(out / JOURNAL_NAME) as journal:
        if task is Task.transcripts:
            report = transcribe_and_count(options, journal, compare=compare)
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
        _write_operating_point(model, report)
    if as_json:
        print(figures.read_text("utf8"), end="")
        return
    print_report(report)
    say(f"Figures: {figures}")
    if page:
        say(f"Report: {page}")


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


def _write_operating_point(model: Path, report: Report) -> None:
    from edge_imputer.export.bundle import update_operating_point
    from edge_imputer.train.evaluation import KeywordReport

    assert isinstance(report, KeywordReport)  # the option makes it so
    update_operating_point(model, report.operating_point)


def print_report(report: Report) -> None:
    """Tables for people."""
    from edge_imputer.train.evaluation import KeywordReport

    for note in (*report.run.notes, *(f"left out: {line}" for line in report.run.skipped)):
        say(f"note: {note}")
    if isinstance(report, KeywordReport):
        _print_keywords(report)
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
    if report.comparisons:
        table(
            "Word error rate minus the other model's (95 %, paired bootstrap)",
            ["data", "difference", "interval", "p"],
            [
                (
                    f"{c.condition}, minus {c.other}",
                    f"{100 * c.difference.value:+.2f} %",
                    f"{100 * c.difference.low:+.2f} to {100 * c.difference.high:+.2f}",
                    f"{c.p_value:.3f}",
                )
                for c in report.comparisons
            ],
        )


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
