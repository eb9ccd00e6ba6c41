"""Evaluation reports as one HTML file that stands alone: tables, plots, claims, how to repeat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from edge_imputer.claims import (
    Claim,
    at_most,
    operating_point_lines,
    range_text,
    rate_number,
    rate_text,
    share_text,
)
from edge_imputer.errors import require
from edge_imputer.report import escape, html_table, picture, write_page

from .commands import refusal_line, share_or_none
from .results import (
    CommandReport,
    Comparison,
    KeywordReport,
    Report,
    RunInfo,
    SlotScores,
    TranscriptReport,
)


def write_html(path: Path, report: Report) -> Path:
    """Write a report for people and return its path.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    require("matplotlib", extra="report")
    if isinstance(report, KeywordReport):
        return write_page(path, f"Keywords of {report.run.model}", _keywords(report))
    if isinstance(report, CommandReport):
        return write_page(path, f"Commands of {report.run.model}", _commands(report))
    return write_page(path, f"Transcripts of {report.run.model}", _transcripts(report))


def _keywords(report: KeywordReport) -> Iterable[str]:
    from . import plots

    point = report.operating_point
    yield f"<h1>Keywords: {escape(report.run.model)}</h1>"
    yield from map(_claim, report.claims)
    yield "<h2>Operating point</h2>"
    lines = operating_point_lines(point)[: -len(report.claims) or None]
    yield "".join(f"<p>{escape(line)}</p>" for line in lines)
    yield _misses(report)
    yield html_table(
        ["negatives", "hours", "false alarms", "an hour", "95 % interval", "95 % upper limit"],
        [
            (
                row.condition,
                f"{row.false_alarms.hours:.3f}",
                row.false_alarms.count,
                rate_number(row.false_alarms.per_hour),
                range_text(row.false_alarms),
                at_most(row.false_alarms.upper),
            )
            for row in report.false_alarms
        ],
        caption="False alarms: events in audio without keywords",
    )
    if report.curves:
        yield "<h2>Misses against false alarms</h2>"
        yield "<p>One threshold for all keywords, from 0 to 1. Bands are exact 95 % intervals of "
        yield "the misses. " + escape(_pairs(report)) + "</p>"
        yield picture(plots.det_plot(report.curves, point), "DET curves", form="svg")
    bars = [(r.condition, r.frr) for r in report.misses if r.condition.by is None]
    yield "<h2>By noise</h2>"
    yield picture(plots.bar_plot(bars, "missed keywords, %"), "Misses by noise", form="svg")
    yield "<h2>By keyword, clean</h2>"
    yield html_table(
        ["keyword", "speech", "threshold", "missed", "false alarms an hour"],
        [
            (
                row.keyword,
                row.kind,
                f"{row.threshold:.4f}",
                "never said" if row.frr is None else share_text(row.frr),
                rate_text(row.false_alarms),
            )
            for row in report.by_keyword
        ],
    )
    yield "<h2>Confusions</h2><p>Clips that say one keyword once, without noise, and the best of "
    yield "the keywords that fired.</p>"
    for confusion in report.confusions:
        yield f"<p>{escape(confusion.condition)}</p>"
        yield picture(plots.confusion_plot(confusion), f"Confusions: {confusion.condition}")
    yield "<h2>Scores</h2>"
    for histogram in report.histograms:
        yield f"<p>{escape(histogram.kind)} speech, without noise</p>"
        figure = plots.histogram_plot(histogram, list(point.thresholds.values()))
        yield picture(figure, f"Scores, {histogram.kind}", form="svg")
    yield _listed(report)
    yield from _how(report.run)


def _misses(report: KeywordReport) -> str:
    return html_table(
        ["data", "missed", "95 % interval", "n", "false alarms an hour, counted in the negatives"],
        [
            (
                row.condition,
                f"{100 * row.frr.value:.1f} %",
                f"{100 * row.frr.low:.1f} to {100 * row.frr.high:.1f}",
                row.frr.n,
                ""
                if row.false_alarms is None
                else f"{rate_text(row.false_alarms)}: {row.negatives}",
            )
            for row in report.misses
        ],
        caption="Missed keywords",
    )


def _pairs(report: KeywordReport) -> str:
    pairs = dict.fromkeys(f"{c.condition.kind} keywords: {c.negatives}" for c in report.curves)
    return "False alarms are counted in, for " + "; for ".join(pairs) + "."


def _listed(report: KeywordReport) -> str:
    near = html_table(
        ["clip", "data", "at", "keyword", "score", "fires", "text", "label"],
        [
            (
                miss.clip,
                miss.condition,
                f"{miss.time_s:.2f} s",
                miss.keyword,
                f"{miss.score:.4f}",
                "yes" if miss.fires else "no",
                "(no transcript)" if miss.text is None else miss.text,
                miss.label or "",
            )
            for miss in report.near_misses
        ],
        caption="Near misses: the best events where no keyword is said, without noise",
    )
    missed = html_table(
        ["clip", "data", "keyword", "score"],
        [
            (
                miss.clip,
                miss.condition,
                miss.keyword,
                "none" if miss.score is None else f"{miss.score:.4f}",
            )
            for miss in report.missed
        ],
        caption="Missed keywords, the lowest scores, without noise",
    )
    return f"<h2>What to listen to</h2>{near}{missed}"


def _transcripts(report: TranscriptReport) -> Iterable[str]:
    from . import plots

    yield f"<h1>Transcripts: {escape(report.run.model)}</h1>"
    yield "<p>Real and synthetic speech are never pooled. WER and CER: errors over reference words "
    yield "and characters, with 95 % intervals from a bootstrap over utterances; where speakers "
    yield "are known, also one over whole speakers, whose utterances err alike.</p>"
    yield html_table(
        ["data", "clips", "WER", "by speaker", "CER", "exact", "S / D / I"],
        [
            (
                row.condition,
                row.n_clips,
                share_text(row.wer),
                ""
                if row.wer_by_speaker is None
                else f"{100 * row.wer_by_speaker.low:.1f} to {100 * row.wer_by_speaker.high:.1f} "
                f"({row.n_speakers} speakers)",
                share_text(row.cer),
                share_text(row.exact),
                f"{row.substitutions} / {row.deletions} / {row.insertions}",
            )
            for row in report.rows
        ],
    )
    bars = [(row.condition, row.wer) for row in report.rows if row.condition.by is None]
    yield picture(plots.bar_plot(bars, "word error rate, %"), "Word error rates", form="svg")
    yield from _compared(report.comparisons, "WER difference")
    yield "<h2>Errors</h2>"
    for errors in report.errors:
        yield html_table(
            ["error", "reference", "heard", "times"],
            [(e.kind, e.reference, e.hypothesis, e.count) for e in errors.frequent],
            caption=f"{errors.condition}: most frequent",
        )
        yield "".join(
            f"<p>{escape(e.clip)}</p><pre>{escape(e.reference)}\n{escape(e.hypothesis)}</pre>"
            for e in errors.examples
        )
    yield from _how(report.run)


def _commands(report: CommandReport) -> Iterable[str]:
    from . import plots

    yield f"<h1>Commands: {escape(report.run.model)}</h1>"
    yield "<p>A command is right with the intent and every slot that was said, and no other. Real "
    yield "and synthetic speech are never pooled. Shares of clips with exact 95 % intervals; rates "
    yield "of slots with a bootstrap over clips, whose slots err together.</p>"
    yield f"<p>{escape(refusal_line(report.refusal))}</p>"
    yield html_table(
        ["data", "clips", "right", "intent", "refused", "right of those taken"],
        [
            (
                row.condition,
                row.n_clips,
                share_text(row.right),
                share_or_none(row.intent),
                share_text(row.refused),
                share_or_none(row.accepted_right),
            )
            for row in report.rows
        ],
    )
    bars = [(row.condition, row.right) for row in report.rows if row.condition.by is None]
    yield picture(plots.bar_plot(bars, "commands right, %"), "Commands right", form="svg")
    yield "<h2>Slots</h2>"
    columns = ["precision", "recall", "F1", "right", "wrong", "missing", "spurious"]
    yield html_table(
        ["data", *columns],
        [(row.condition, *_slot_cells(row.slots)) for row in report.rows],
        caption="All slots. Wrong: heard with another value; missing: said, not heard; spurious: "
        "heard, not said",
    )
    yield html_table(
        ["data", "slot", "in the grammar", *columns],
        [
            (row.condition, row.slot, share_or_none(row.sayable), *_slot_cells(row.scores))
            for row in report.by_slot
        ],
        caption="By slot, and the share of the values said that its rule can say at all",
    )
    yield from _compared(report.comparisons, "difference of commands right")
    yield "<h2>Errors</h2>"
    yield html_table(
        ["data", "error", "slot", "said", "heard", "times"],
        [(e.condition, e.kind, e.slot, e.said, e.heard, e.count) for e in report.errors],
        caption="Most frequent",
    )
    yield html_table(
        ["data", "clip", "said", "heard", "text", "confidence"],
        [
            (e.condition, e.clip, e.said, e.heard, e.text, f"{e.confidence:.3f}")
            for e in report.examples
        ],
        caption="Commands that were not understood, the surest first",
    )
    yield from _how(report.run)


def _slot_cells(scores: SlotScores) -> list[object]:
    rates = [share_or_none(rate) for rate in (scores.precision, scores.recall, scores.f1)]
    return [*rates, scores.right, scores.wrong, scores.missing, scores.spurious]


def _compared(comparisons: Sequence[Comparison], what: str) -> Iterable[str]:
    if not comparisons:
        return
    yield "<h2>Against another model</h2>"
    yield html_table(
        ["data", "other model", what, "95 % interval", "p"],
        [
            (
                row.condition,
                row.other,
                f"{100 * row.difference.value:+.2f} %",
                f"{100 * row.difference.low:+.2f} to {100 * row.difference.high:+.2f}",
                f"{row.p_value:.3f}",
            )
            for row in comparisons
        ],
        caption="This model's minus the other's, by a paired bootstrap over the same clips",
    )


def _claim(claim: Claim) -> str:
    return f'<p class="claim {claim.verdict}">{escape(claim)}</p>'


def _how(run: RunInfo) -> Iterable[str]:
    yield "<h2>How this was measured</h2>"
    yield f"<pre>{escape(run.command)}</pre>"
    facts = [
        ("model", run.model),
        ("hash of the model", run.model_identity),
        ("seed", run.seed),
        ("made by", run.created_by),
        *run.settings.items(),
    ]
    yield html_table(["", "value"], facts)
    for title, lines in (("Data", run.data), ("Notes", run.notes), ("Left out", run.skipped)):
        if lines:
            yield f"<h3>{title}</h3><ul>{''.join(f'<li>{escape(x)}</li>' for x in lines)}</ul>"
