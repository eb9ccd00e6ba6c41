"""``edge-imputer data``: corpora in their own layouts become checked corpus folders."""

from __future__ import annotations

import json
import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import require
from .joining import concatenate, join
from .show import ClipProgress, say, table

if TYPE_CHECKING:
    from edge_imputer.train.data.prepare import Report
    from edge_imputer.train.data.summary import Summary

app = typer.Typer(
    name="data",
    help="Prepare and look at corpora.",
    epilog="""Examples:

    `edge-imputer data prepare fsdd free-spoken-digit-dataset corpora/fsdd`

    `edge-imputer data info corpora/fsdd`
    """,
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
N_SHOWN = 40  # labels or characters


class CopyFormat(str, Enum):
    """What becomes of the audio."""

    none = "none"
    wav = "wav"
    flac = "flac"


class Punctuation(str, Enum):
    """What becomes of punctuation in transcripts."""

    keep = "keep"
    remove = "remove"


class KeepReason(str, Enum):
    """Reasons to drop a clip that may be overruled."""

    silent = "silent"
    repeated = "repeated"
    duration = "duration"
    characters = "characters"
    no_text = "no text"


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """Show the layouts that can be prepared.

    Example: `edge-imputer data list`
    """
    require("torch", extra="train")
    from edge_imputer.train.data.adapters import ADAPTERS

    if as_json:
        rows = [
            {"name": a.name, "title": a.title, "layout": a.layout, "options": sorted(a.options)}
            for a in ADAPTERS.values()
        ]
        print(json.dumps(rows))
        return
    for adapter in ADAPTERS.values():
        say(f"{adapter.name}: {adapter.title}")
        say(f"    {adapter.layout}")
        if adapter.options:
            flags = (f"--{name.replace('_', '-')}" for name in sorted(adapter.options))
            say(f"    options: {', '.join(flags)}")


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="Layout, as `edge-imputer data list` names them.")],
    root: Annotated[Path, typer.Argument(help="The corpus as it was published.")],
    out: Annotated[Path, typer.Argument(help="Corpus folder to write.")],
    rate: Annotated[
        int, typer.Option(min=1000, help="Hz of copies; lower rates in the originals are reported.")
    ] = 16_000,
    copy: Annotated[
        CopyFormat, typer.Option(help="Copy the audio, or refer to the originals.")
    ] = CopyFormat.none,
    relative: Annotated[
        bool, typer.Option("--relative", help="Refer to the originals by relative paths.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one for each core if unset.")
    ] = None,
    characters: Annotated[
        str | None, typer.Option(help="The only ones transcripts may have, beside the space.")
    ] = None,
    punctuation: Annotated[
        Punctuation, typer.Option(help="Keep it in transcripts, or remove it.")
    ] = Punctuation.keep,
    min_s: Annotated[float | None, typer.Option(help="Drop shorter clips.")] = None,
    max_s: Annotated[float | None, typer.Option(help="Drop longer clips.")] = None,
    keep: Annotated[
        list[KeepReason] | None,
        typer.Option(help="Warn of such clips instead of dropping them; repeatable."),
    ] = None,
    valid_share: Annotated[
        float | None,
        typer.Option(help="Share of valid where the corpus has none, by speaker; 0.1 if drawn."),
    ] = None,
    test_share: Annotated[
        float | None, typer.Option(help="Share of test where splits are drawn; 0.1 if unset.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="speech_commands: 12, or all 30 (v1) or 35 (v2) words.")
    ] = None,
    subset: Annotated[
        list[str] | None, typer.Option(help="librispeech, kaldi: folders to take; repeatable.")
    ] = None,
    validated: Annotated[
        bool, typer.Option("--validated", help="common_voice: train on all of validated.tsv.")
    ] = False,
    keyword: Annotated[
        str | None, typer.Option(help="wake_word: what positives say; the folder's name if unset.")
    ] = None,
    speaker_pattern: Annotated[
        str | None,
        typer.Option(help="words, wake_word: regular expression; its group is the speaker."),
    ] = None,
    allow_commands: Annotated[
        bool,
        typer.Option("--allow-commands", help="kaldi: run what wav.scp says, if you trust it."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every clip of a corpus and write a corpus folder for training.

    Every clip is decoded. OUT/report.json says what was dropped and why, OUT/dropped.jsonl names
    each clip. A run that was interrupted goes on where it was: give the same command again.

    Examples:

    `edge-imputer data prepare speech_commands speech_commands_v0.02 corpora/sc12 --classes 12`

    `edge-imputer data prepare common_voice cv-corpus-21.0/cy corpora/cy --punctuation remove`
    """
    require("torch", extra="train")
    from edge_imputer.train.data.adapters import AdapterOptions
    from edge_imputer.train.data.prepare import prepare_corpus
    from edge_imputer.train.data.verdicts import Rules

    options = AdapterOptions(
        classes=classes,
        subset=tuple(subset or ()),
        validated=validated or None,
        keyword=keyword,
        speaker_pattern=speaker_pattern,
        allow_commands=allow_commands or None,
        valid_share=valid_share,
        test_share=test_share,
    )
    rules = Rules(
        characters=characters,
        remove_punctuation=punctuation is Punctuation.remove,
        min_s=min_s,
        max_s=max_s,
        keep=tuple(reason.value for reason in keep or ()),
        rate=rate,
    )
    with ClipProgress("checking clips") as progress:
        report = prepare_corpus(
            name,
            root,
            out,
            rules=rules,
            options=options,
            copy=copy.value,
            relative=relative,
            workers=workers or _cores(),
            progress=progress,
        )
    if as_json:
        import msgspec

        print(msgspec.json.encode(report).decode())
    else:
        _show_report(report, out)


@app.command()
def info(
    manifest: Annotated[Path, typer.Argument(help="Corpus folder, or a file of its lines.")],
    as_json: JsonOption = False,
) -> None:
    """Show hours, speakers, labels, characters and lengths, and what splits share.

    Example: `edge-imputer data info corpora/sc12`
    """
    require("torch", extra="train")
    from edge_imputer.train.data import Manifest
    from edge_imputer.train.data.summary import summarize

    opened = Manifest.open(manifest)
    summary = summarize(opened)
    if as_json:
        import msgspec

        print(msgspec.json.encode(summary).decode())
    else:
        _show_summary(str(opened.path), summary)


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(help="Corpus folder to write; audio stays where it is.")],
    manifests: Annotated[list[Path], typer.Argument(help="Corpus folders, in order.")],
    split: Annotated[
        list[str] | None, typer.Option(help="Only clips of this split; repeatable.")
    ] = None,
    label_by_text: Annotated[
        bool, typer.Option("--label-by-text", help="Clips without a label are labelled by text.")
    ] = False,
    exclude: Annotated[
        str, typer.Option(help="Words, with spaces: no sentence that has one of them.")
    ] = "",
) -> None:
    """Make one corpus of several.

    Example: `edge-imputer data merge corpora/words corpora/sc35 corpora/synthetic --split train`
    """
    require("torch", extra="train")
    from edge_imputer.train.data import Manifest
    from edge_imputer.train.data.combine import SPLITS, merge

    counts = merge(
        [Manifest.open(manifest) for manifest in manifests],
        out,
        splits=split or SPLITS,
        label_by_text=label_by_text,
        exclude=exclude.split(),
    )
    say(", ".join(f"{name}: {n} clips" for name, n in counts.items()))


app.command()(concatenate)
app.command()(join)


@app.command("export-lhotse")
def export_lhotse(
    manifest: Annotated[Path, typer.Argument(help="Corpus folder, or a file of its lines.")],
    out: Annotated[Path, typer.Argument(help="Folder for recordings, supervisions and cuts.")],
) -> None:
    """Write a corpus as lhotse manifests; needs `pip install 'edge-imputer[lhotse]'`.

    Example: `edge-imputer data export-lhotse corpora/sc12 corpora/sc12/lhotse`
    """
    require("torch", extra="train")
    from edge_imputer.train.data import Manifest
    from edge_imputer.train.data.adapters import export_lhotse as export

    for split, n in export(Manifest.open(manifest), out).items():
        say(f"{split}: {n} cuts")


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _show_report(report: Report, out: Path) -> None:
    for note in report.notes:
        say(f"note: {note}")
    table(
        f"Kept, of {report.found} clips",
        ["split", "clips", "hours", "speakers known"],
        [(s, int(k["clips"]), f"{k['hours']:.2f}", int(k["speakers"]))
         for s, k in report.kept.items()],
    )  # fmt: skip
    for title, tallies in (("Dropped", report.dropped), ("Kept, with a warning", report.warnings)):
        if tallies:
            rows = [(r, t["clips"], f"{t['hours']:.2f}") for r, t in tallies.items()]
            table(title, ["reason", "clips", "hours"], rows)
            for reason, tally in tallies.items():
                say(f"  {reason}: {tally['examples'][0]}")
    if report.unknown_characters:
        from edge_imputer.train.data.transcripts import show_characters

        say(f"unknown characters: {show_characters(report.unknown_characters.items())}")
        if any(not c.isalnum() for c in report.unknown_characters):
            say("  --punctuation remove takes punctuation out of transcripts")
    if report.shared_speakers:
        first, splits = next(iter(report.shared_speakers.items()))
        say(
            f"warning: {len(report.shared_speakers)} speakers are in several splits, such as "
            f"{first} in {', '.join(splits)}; test results then hold for known voices only"
        )
    say(f"{out}: manifest.jsonl, report.json, dropped.jsonl")


def _show_summary(path: str, summary: Summary) -> None:
    table(
        path,
        ["split", "clips", "hours", "speakers known", "without text", "longest, s"],
        [(s, f.clips, f"{f.hours:.2f}", f.speakers, f.without_text, f"{f.longest_s:.1f}")
         for s, f in summary.splits.items()],
    )  # fmt: skip
    splits = list(summary.splits)
    if summary.labels:
        _counted("Labels", ["label", *splits], {
            label: [counts.get(s, 0) for s in splits] for label, counts in summary.labels.items()
        })  # fmt: skip
    if summary.characters:
        _counted("Characters", ["character", "code", "count"], {
            repr(c): [f"U+{ord(c):04X}", n] for c, n in summary.characters.items()
        })  # fmt: skip
    spans = [
        (f"{a:g} s and more" if b is None else f"{a:g} to {b:g} s", n)
        for a, b, n in summary.durations
    ]
    table("Durations", ["from, to below", "clips"], spans)
    rates = [(f"{rate} Hz", n) for rate, n in summary.sample_rates.items()]
    table("Sample rates", ["rate", "clips"], rates)
    for leak in summary.leaks:
        a, b = leak.splits
        say(
            f"{a} and {b} share {leak.speakers} speakers and {leak.texts} texts "
            f"({leak.clips_with_such_texts} clips of {b}): {'; '.join(leak.examples)}"
        )
    if not summary.leaks:
        say("no known speaker and no text is in several splits")


def _counted(title: str, columns: list[str], rows: dict[str, list[Any]]) -> None:
    """Print a table that is cut after the first rows, and say so."""
    shown = [(name, *cells) for name, cells in list(rows.items())[:N_SHOWN]]
    more = f", the first {N_SHOWN}" if len(rows) > N_SHOWN else ""
    table(f"{title}: {len(rows)}{more}", columns, shown)
