"""``edge-imputer mine`` and ``improve``: from a model's mistakes to a better model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..bundle import MANIFEST_NAME, Bundle
from ..claims import range_text, rate_number, share_text
from ..errors import DataError, SpecError, TrainingStopped, require
from .show import say, table
from .steps import SHIPPED, corpus_folder, corpus_path, export_checkpoint, load_corpus

if TYPE_CHECKING:
    from edge_imputer.train.improving import ImproveReport, MiningReport, Rules
    from edge_imputer.train.recipe import Recipe

MINED_JSON = "mined.json"
NEW_BUNDLE = "bundle"
N_LISTED = 10

NegativesOption = Annotated[
    list[Path],
    typer.Option("--negatives", "-n", help="Corpus without the keywords; repeatable."),
]
LeastOption = Annotated[
    float, typer.Option("--threshold", min=0.0, max=1.0, help="Least score of what is taken.")
]
PerHourOption = Annotated[
    float | None, typer.Option(help="Most events an hour of negatives; any number if unset.")
]
MostOption = Annotated[int, typer.Option(min=1, help="Most events in all.")]
WindowOption = Annotated[float, typer.Option(help="Seconds cut out around an event.")]


def mine(
    model: Annotated[
        Path, typer.Argument(help="A checkpoint or a bundle; with --keyword where it writes text.")
    ],
    negatives: NegativesOption,
    out: Annotated[Path, typer.Option(help="Corpus folder to write.")] = Path("build/mined"),
    keyword: Annotated[
        list[str] | None,
        typer.Option("--keyword", "-w", help="What a model that writes text listens for."),
    ] = None,
    least: LeastOption = 0.1,
    per_hour: PerHourOption = None,
    most: MostOption = 5000,
    window_s: WindowOption = 2.0,
    label: Annotated[
        str,
        typer.Option(help="What they are called; _unknown_ puts them among all other speech."),
    ] = "_hard_",
    split: Annotated[
        str, typer.Option(help="Split of the negatives; what is mined is trained on.")
    ] = "train",
    backend: Annotated[str, typer.Option("--backend", "-b", help="Runtime of a bundle.")] = "onnx",
) -> None:
    """Find what a model takes for its keywords: the highest-scoring events of negatives.

    Writes a corpus folder whose rows lead to the original audio, a window around each event, to
    train on with; and OUT/mined.json. Clips whose text or label holds a keyword are left out. An
    interrupted run goes on where it was: give the same command again.

    Examples:

    `edge-imputer mine build/wake/best.ckpt --negatives corpora/libri --out build/mined`

    `edge-imputer mine bundle -n corpora/talk -w seven --per-hour 20 --out build/mined`
    """
    require("lightning", extra="train")
    require("jiwer", extra="train")
    import msgspec

    from edge_imputer.train.data import Manifest
    from edge_imputer.train.evaluation import Journal
    from edge_imputer.train.improving import mine as mine_negatives
    from edge_imputer.train.improving import open_spotter

    if split not in ("train", "valid", "test"):
        raise SpecError(f"--split: expected train, valid or test, got {split!r}")
    rules = _rules(least, per_hour, most, window_s, label)
    spotter = open_spotter(model, keywords=keyword, backend=backend)
    parts = [Manifest.open(corpus_path(path), split=split) for path in negatives]  # type: ignore[arg-type]
    for path, part in zip(negatives, parts, strict=True):
        if not len(part):
            raise DataError(f"{path}: expected clips of the split {split}, got none; see --split")
    with Journal(out / "journal.jsonl") as journal:
        report = mine_negatives(
            spotter, parts, out, rules, journal=journal, progress=sys.stderr.isatty()
        )
    written = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    (out / MINED_JSON).write_bytes(written)
    print_mined(report)
    print(out)


def improve(
    model: Annotated[Path, typer.Argument(help="A bundle, a checkpoint, or the folder of a run.")],
    false_fires: Annotated[
        Path | None, typer.Option(help="Folder of clips in which it fired wrongly.")
    ] = None,
    misses: Annotated[
        Path | None,
        typer.Option(help="Folder of clips in which it should have; a folder for each keyword."),
    ] = None,
    negatives: Annotated[
        list[Path] | None,
        typer.Option("--negatives", "-n", help="Corpus without the keywords to mine; repeatable."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="The corpus the model was trained on; as it says itself if unset."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything made.")] = Path("build/improve"),
    keyword: Annotated[
        list[str] | None,
        typer.Option(
            "--keyword",
            "-w",
            help="What a model that writes text listens for, repeatable; one alone is also what "
            "misses say that are in no keyword's folder.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Score at which it fires in use; the bundle's, or 0.5, if unset."
        ),
    ] = None,
    keep_back: Annotated[
        float, typer.Option(help="Share of the clips to measure on, by the hash of their samples.")
    ] = 1 / 3,
    share: Annotated[float, typer.Option(help="Share of the new in what is trained on.")] = 0.3,
    rate: Annotated[
        float, typer.Option(help="Learning rate, as a share of the first training's.")
    ] = 0.1,
    updates: Annotated[
        int | None, typer.Option(min=1, help="A tenth of the first training's if unset.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe to continue by, instead of the model's own.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change that recipe; repeatable."),
    ] = None,
    least: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Least score of what is mined.")
    ] = 0.1,
    per_hour: PerHourOption = None,
    most: MostOption = 5000,
    window_s: WindowOption = 2.0,
) -> None:
    """Train a model on with the keywords it got wrong, and compare on clips kept back.

    A part of the saved clips is kept back for measuring; the rest joins the corpus that the model
    was trained on, so that nothing is forgotten. Negatives are mined first. Writes
    OUT/improved.ckpt and OUT/improve.json, and of a bundle OUT/bundle; the old model stays as it
    is. An interrupted run goes on where it was: give the same command again.

    Examples:

    `edge-imputer improve build/wake/best.ckpt --false-fires saved/fires --misses saved/misses
    --data corpora/lamp`

    `edge-imputer improve build/wake --negatives corpora/libri --data corpora/lamp --updates 2000`

    `edge-imputer improve bundle --keyword seven --false-fires saved/fires --data corpora/digits`
    """
    require("lightning", extra="train")
    require("jiwer", extra="train")
    from edge_imputer.train.improving import Improvement
    from edge_imputer.train.improving import improve as improve_model
    from edge_imputer.train.improving.improve import IMPROVED, REPORT, model_file

    if settings and recipe is None:
        raise SpecError("--set changes the recipe that --recipe names; give both, or neither")
    is_bundle = (model / MANIFEST_NAME).is_file()
    if is_bundle:
        from edge_imputer.export.bundle import REQUIRED_MODULES

        for module in REQUIRED_MODULES:  # before hours of training, not after
            require(module, extra="export")
    given: Recipe | None = None
    if recipe is not None:
        from edge_imputer.train.recipe import read_recipe

        given = read_recipe(recipe, settings or ())
    options = Improvement(
        model=model,
        data=_corpus_of(model_file(model), data),
        out=out,
        false_fires=false_fires,
        misses=misses,
        negatives=[corpus_path(path) for path in negatives or ()],
        keywords=keyword or (),
        keep_back=keep_back,
        threshold=threshold,
        rules=_rules(least, per_hour, most, window_s, "_hard_"),
        recipe=given,
        updates=updates,
        rate=rate,
        share=share,
        progress=sys.stderr.isatty(),
    )
    if is_bundle and _only_to_export(model, given, out):
        print(_export(model, out / IMPROVED, options.data, out / NEW_BUNDLE))
        return
    try:
        report = improve_model(options)
    except TrainingStopped as stopped:
        typer.echo(f"stopped: {stopped}", err=True)
        raise typer.Exit(stopped.exit_code) from None
    print_improved(report)
    say(f"Figures: {out / REPORT}")
    if is_bundle:
        print(_export(model, out / IMPROVED, options.data, out / NEW_BUNDLE))
    else:
        print(out / IMPROVED)


def _rules(least: float, per_hour: float | None, most: int, window_s: float, label: str) -> Rules:
    from edge_imputer.train.improving import Rules

    rules = Rules(threshold=least, per_hour=per_hour, most=most, window_s=window_s, label=label)
    rules.check()
    return rules


def _only_to_export(bundle: Path, recipe: Recipe | None, out: Path) -> bool:
    """Whether the same command was interrupted when everything but the new bundle was there."""
    from edge_imputer.train.improving.improve import IMPROVED, REPORT, original_file

    done = (out / REPORT).is_file() and (out / IMPROVED).is_file()
    same = original_file(Bundle.load(bundle), recipe, out).is_file()
    return done and same and not (out / NEW_BUNDLE).exists()


def _export(old: Path, checkpoint: Path, data: Path, out: Path) -> Path:
    """The improved model in the old bundle's form; what was measured of the old one is not kept."""
    manifest = Bundle.load(old).manifest
    corpus = load_corpus(None if data == corpus_folder(None) else data)
    export_checkpoint(checkpoint, corpus, out, name=manifest.name, licence=manifest.licence)
    if manifest.operating_point is not None or manifest.keyword_threshold is not None:
        say(
            "note: the new bundle has no thresholds, since those of the old model mean something "
            "else now; choose them with edge-imputer evaluate --write"
        )
    return out


def _corpus_of(model: Path, data: Path | None) -> Path:
    """The corpus a model was trained on: as given, by its recipe, or by the name it was called."""
    if data is not None:
        return corpus_path(data)
    names: tuple[str, ...]
    if model.is_dir():
        names = (Bundle.load(model).manifest.provenance.data,)
    else:
        from edge_imputer.train.checkpoint import read_raw, unpack

        _, recipe, origin = unpack(read_raw(model), model)
        names = recipe.data.folder, origin.data
    if names[-1] == SHIPPED:
        return corpus_folder(None)
    for name in names:
        folder = corpus_path(Path(name)) if name not in ("", "digits") else None
        if folder is not None and folder.is_dir():
            return folder
    raise DataError(
        f"{model} was trained on {names[-1]!r}; give the folder of that corpus with --data, "
        "so that what the model knows is not forgotten"
    )


def print_mined(report: MiningReport) -> None:
    """What was mined, for people."""
    skipped = f", {len(report.unreadable)} cannot be read" if report.unreadable else ""
    say(
        f"{report.n_clips} clips, {report.hours:.2f} h; left out: {report.keyword_said} that say a "
        f"keyword{skipped}"
    )
    if report.without_text:
        say(f"note: {report.without_text} have no transcript; a keyword may be in them unnoticed")
    table(
        f"Taken: {len(report.mined)} of {report.n_events} events of {report.rules.threshold:g} "
        "or more",
        ["keyword", "events", "highest", "median", "lowest"],
        [
            (word, len(s), f"{s[0]:.3f}", f"{s[len(s) // 2]:.3f}", f"{s[-1]:.3f}")
            for word, s in report.by_keyword()
            if s
        ],
    )
    table(
        "The highest",
        ["audio", "from, s", "keyword", "score"],
        [
            (m.audio, f"{m.offset_s:.2f}", m.keyword, f"{m.score:.3f}")
            for m in report.mined[:N_LISTED]
        ],
    )


def print_improved(report: ImproveReport) -> None:
    """Before and after, for people; what got worse last and plainly."""
    for clip, fault in report.bad.items():
        say(f"left out: {clip}: {fault}")
    if report.repeated:
        say(f"{len(report.repeated)} clips are copies of others, which count once")
    new = ", ".join(f"{n} {kind}" for kind, n in report.n_trained.items() if n)
    kept = ", ".join(f"{n} {kind}" for kind, n in report.n_kept_back.items() if n)
    mined = f"{report.n_mined} mined windows" if report.n_mined else ""
    say(f"trained on: {', '.join(filter(None, (new, mined)))}; kept back: {kept or 'none'}")
    limits = sorted(set(report.thresholds.values()))
    at = f"{limits[0]:g}" if len(limits) == 1 else "the keywords' own thresholds"
    table(
        f"Clips that go wrong at {at} (95 % intervals)",
        ["clips", "what", "before", "after", "", "p"],
        [
            (
                c.clips,
                c.what,
                share_text(c.before),
                share_text(c.after),
                c.verdict,
                f"{c.p_value:.2g}",
            )
            for c in report.comparisons
        ],
    )
    if report.rates:
        table(
            f"False alarms an hour at {at} (95 % intervals)",
            ["audio", "hours", "before", "after"],
            [
                (
                    r.clips,
                    f"{r.before.hours:.2f}",
                    *(f"{rate_number(x.per_hour)} ({range_text(x)})" for x in (r.before, r.after)),
                )
                for r in report.rates
            ],
        )
    for name in report.unmeasured:
        say(f"not measured: {name}, no clip for it")
    for line in report.worse:
        say(f"WORSE: {line}")
    if not report.worse and (report.comparisons or report.rates):
        say("Nothing measured got worse.")
    if report.traded:
        say(
            "It fires less and misses more, or the reverse: its scores moved, so that the old "
            "threshold means something else. Choose it anew, and compare at equal false alarms: "
            "edge-imputer evaluate"
        )
